//! Maps error numbers of a host to numbers that the kernel of this machine may see.
//!
//! Pure. Most errors pass unchanged. A few numbers have a special meaning to the kernel in an answer to a
//! FUSE request, and a host must not be able to use it. Every error of a host passes through this function.

use crate::proto::Errno;

/// Largest error number that Linux has for programs: `EHWPOISON`. Numbers from 512 on belong to the kernel.
/// It discards an answer with such a number, and the program would wait forever.
const LARGEST: i32 = 133;

/// Returns the error that a program gets if the host answers `errno`.
pub(super) const fn of_host(errno: Errno) -> Errno {
    match errno.0 {
        // "Never ask again": every later `fsync` would succeed without a request, for all files of the mount.
        libc::ENOSYS => Errno::EOPNOTSUPP,
        // Nothing was interrupted here. A call that waits for a lock would restart forever.
        libc::EINTR
        // Belongs to calls that must not wait. No such call is sent, and programs would retry at once.
        | libc::EAGAIN
        // Walk the path again without shortcuts; use the page cache; touch the memory and retry.
        | libc::ECHILD
        | libc::ENOTBLK
        | libc::EFAULT
        // The mount is gone: programs that monitor mounts would unmount it.
        | libc::ENODEV
        | libc::ECONNABORTED
        | libc::ENOTCONN => Errno::EIO,
        1..=LARGEST => errno,
        // Success, or a number that the kernel does not accept.
        _ => Errno::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::CallError;
    use crate::proto::{ErrorCode, WireError};

    /// Numbers with a special meaning to the kernel or to programs that monitor mounts.
    const SPECIAL: [i32; 9] = [4, 10, 11, 14, 15, 19, 38, 103, 107];

    fn mapped(number: i32) -> i32 {
        let refusal = WireError::new(ErrorCode::System(Errno(number)), "any words");
        CallError::from(refusal).errno().0
    }

    #[test]
    fn every_number_of_a_host_becomes_one_that_is_a_plain_error_here() {
        let numbers = (-5_000..5_000).chain([i32::MIN, i32::MIN + 1, i32::MAX - 1, i32::MAX]);
        for number in numbers {
            let mapped = mapped(number);
            assert!(
                (1..=LARGEST).contains(&mapped) && !SPECIAL.contains(&mapped),
                "{number} became {mapped}"
            );
            let is_plain = (1..=LARGEST).contains(&number) && !SPECIAL.contains(&number);
            assert_eq!(mapped == number, is_plain || number == libc::EIO, "{number} became {mapped}");
        }
        assert_eq!(mapped(libc::ENOSYS), libc::EOPNOTSUPP);
    }
}
