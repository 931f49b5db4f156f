//! Error numbers of a host, as the kernel of this machine may see them.
//!
//! Pure. A host's errors go through as they are. A few numbers, though, mean something else to the kernel when they are the answer to a
//! FUSE request, and a host must not be able to say it: everything that a host answers passes here before it becomes an answer.

use crate::proto::Errno;

/// Largest number that Linux has for programs: `EHWPOISON`. Those from 512 on are the kernel's own, and an answer that carries one is
/// thrown away, so that the program would wait for ever.
const LARGEST: i32 = 133;

/// Returns what a program is told where a host says `errno`.
pub(super) const fn of_host(errno: Errno) -> Errno {
    match errno.0 {
        // "Never ask again": an `fsync` would then succeed without asking anybody, for all files and as long as the mount lives.
        libc::ENOSYS => Errno::EOPNOTSUPP,
        // Nobody interrupted it here: a call that waits for a lock would begin anew, for ever.
        libc::EINTR
        // Of a call that must not wait. None is passed on, and programs ask again at once.
        | libc::EAGAIN
        // Walk the path again without shortcuts; do it through the page cache; touch the memory and try again.
        | libc::ECHILD
        | libc::ENOTBLK
        | libc::EFAULT
        // The mount is gone: programs that look after mounts would take it down.
        | libc::ENODEV
        | libc::ECONNABORTED
        | libc::ENOTCONN => Errno::EIO,
        1..=LARGEST => errno,
        // Success, or what the kernel does not take.
        _ => Errno::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::CallError;
    use crate::proto::{ErrorCode, WireError};

    /// Numbers that say something to the kernel or to whoever looks after mounts.
    const SPECIAL: [i32; 9] = [4, 10, 11, 14, 15, 19, 38, 103, 107];

    fn told(number: i32) -> i32 {
        let refusal = WireError::new(ErrorCode::System(Errno(number)), "any words");
        CallError::from(refusal).errno().0
    }

    #[test]
    fn every_number_of_a_host_becomes_one_that_is_a_plain_error_here() {
        let numbers = (-5_000..5_000).chain([i32::MIN, i32::MIN + 1, i32::MAX - 1, i32::MAX]);
        for number in numbers {
            let told = told(number);
            assert!((1..=LARGEST).contains(&told) && !SPECIAL.contains(&told), "{number} became {told}");
            let is_plain = (1..=LARGEST).contains(&number) && !SPECIAL.contains(&number);
            assert_eq!(told == number, is_plain || number == libc::EIO, "{number} became {told}");
        }
        assert_eq!(told(libc::ENOSYS), libc::EOPNOTSUPP);
    }
}
