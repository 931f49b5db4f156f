//! Scheduling of background work.

use nix::errno::Errno;

/// `IOPRIO_WHO_PROCESS`: the id is that of one thread.
const WHO_THREAD: libc::c_int = 1;
/// `IOPRIO_CLASS_IDLE`, shifted to its place in an I/O priority.
const IDLE_CLASS: libc::c_int = 3 << 13;

/// Gives the calling thread processor and disk time only while no other thread wants them. Needs no
/// privilege. Disk schedulers without priorities ignore the second part.
pub fn idle_thread() -> Result<(), Errno> {
    // SAFETY: all its fields are integers, for which zero is valid; some systems have more fields than the
    // priority.
    let parameters: libc::sched_param = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live value, which the kernel only reads; 0 is the calling thread.
    Errno::result(unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) })?;
    // SAFETY: takes numbers only; 0 is the calling thread.
    let code = unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_THREAD, 0, IDLE_CLASS) };
    Errno::result(code).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_calling_thread_becomes_idle() {
        let policy_of = |path: &str| {
            let stat = std::fs::read_to_string(path).unwrap();
            // The 41st field, counted from 1. The second field may contain blanks.
            stat.rsplit(") ").next().unwrap().split(' ').nth(38).unwrap().to_owned()
        };
        let inside = std::thread::spawn(move || {
            idle_thread().unwrap();
            policy_of("/proc/thread-self/stat")
        });
        assert_eq!(inside.join().unwrap(), libc::SCHED_IDLE.to_string());
        assert_eq!(policy_of("/proc/thread-self/stat"), libc::SCHED_OTHER.to_string());
    }
}
