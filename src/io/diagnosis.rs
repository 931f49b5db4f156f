//! Explanations for the user of a missing `io_uring`, with a remedy. Pure.

use nix::errno::Errno;

/// System call that the kernel refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Creating a ring.
    Setup,
    /// Listing the supported operations.
    Probe,
    /// Running an operation that does nothing.
    Enter,
    /// Locking the buffers.
    Register,
    /// Creating an event descriptor or a thread for the ring.
    Resources,
}

/// Returns the likely cause of `errno` at `step`, and a remedy. `disabled` is the content of
/// `/proc/sys/kernel/io_uring_disabled`, `pool_bytes` the memory to be locked.
pub(super) fn explain(step: Step, errno: Errno, disabled: Option<&str>, pool_bytes: usize) -> String {
    match (step, errno, disabled.map(str::trim)) {
        (Step::Register, ..) => format!(
            "{pool_bytes} bytes of buffers could not be locked: reads use unregistered buffers, a little \
             slower; raise the limit of locked memory (`ulimit -l`, LimitMEMLOCK= of the service)"
        ),
        (Step::Setup, Errno::EPERM | Errno::EACCES, Some("2")) => {
            "the system forbids it to everyone; as root, `sysctl kernel.io_uring_disabled=0` allows it".to_owned()
        }
        (Step::Setup, Errno::EPERM | Errno::EACCES, Some("1")) => "the system allows it to administrators and to \
             the group in kernel.io_uring_group only; as root, `sysctl kernel.io_uring_disabled=0` allows it to all"
            .to_owned(),
        (Step::Setup | Step::Probe | Step::Enter, Errno::EPERM | Errno::EACCES, _) => {
            "a seccomp filter forbids it, as container runtimes do; run with a profile that allows io_uring_setup, \
             io_uring_enter and io_uring_register (docker: --security-opt seccomp=FILE)"
                .to_owned()
        }
        (_, Errno::ENOSYS, _) => "the kernel does not have it: it is older than Linux 5.6, built without it, or a \
             sandbox hides it"
            .to_owned(),
        (Step::Setup | Step::Probe | Step::Enter, Errno::EINVAL | Errno::EOPNOTSUPP, _) => {
            "the kernel is too old: Linux 5.6 or newer is needed".to_owned()
        }
        (_, Errno::ENOMEM, _) => {
            "not enough locked memory for a ring; raise the limit (`ulimit -l`, LimitMEMLOCK= of the service)".to_owned()
        }
        (_, Errno::EMFILE | Errno::ENFILE, _) => {
            "no file descriptor is left for a ring; raise the limit (`ulimit -n`, LimitNOFILE= of the service)".to_owned()
        }
        _ => "the kernel refused it".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cause_and_cure() {
        for (step, errno, disabled, words) in [
            (Step::Setup, Errno::EPERM, Some("2\n"), "kernel.io_uring_disabled=0"),
            (Step::Setup, Errno::EPERM, Some("1\n"), "kernel.io_uring_group"),
            (Step::Setup, Errno::EPERM, Some("0\n"), "seccomp"),
            (Step::Setup, Errno::EPERM, None, "seccomp"),
            (Step::Enter, Errno::EPERM, Some("2\n"), "seccomp"),
            (Step::Setup, Errno::ENOSYS, None, "Linux 5.6"),
            (Step::Probe, Errno::EINVAL, None, "Linux 5.6"),
            (Step::Setup, Errno::ENOMEM, None, "ulimit -l"),
            (Step::Register, Errno::ENOMEM, None, "LimitMEMLOCK"),
            (Step::Resources, Errno::EMFILE, None, "ulimit -n"),
            (Step::Setup, Errno::EIO, None, "refused"),
        ] {
            let text = explain(step, errno, disabled, 1 << 20);
            assert!(text.contains(words), "{step:?} {errno}: {text}");
        }
    }
}
