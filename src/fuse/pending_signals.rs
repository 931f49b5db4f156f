//! Pending signals of a thread, read from `/proc`, and the rules by which they end its wait.
//!
//! Pure: no I/O, no clock.

use std::mem::replace;
use std::time::Duration;

/// Longest time of a call under normal conditions.
const LONG: Duration = Duration::from_secs(1);

/// Rule for the signals that end a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InterruptPolicy {
    /// Every signal that the thread would act on, as for `F_SETLKW` on a local disk.
    Any,
    /// Fatal signals, and after a while handled signals that ask the program to end.
    Terminating,
    /// The same. A thread that waits for a page of a mapping ends its wait only if it is killed, because it
    /// would see the error as SIGBUS.
    TerminatingUnlessFault,
    /// The same, but handled signals count only while the host does not answer. A database takes EINTR of
    /// `fsync` for lost data.
    TerminatingIfSilent,
    /// Only fatal signals. The program must not repeat the call.
    Fatal,
}

impl InterruptPolicy {
    /// Returns `true` if a handled signal that asks the program to end may end its call.
    pub(super) fn is_long(self, waited: Duration, host_answers: bool) -> bool {
        !host_answers || self != Self::TerminatingIfSilent && waited >= LONG
    }
}

/// Signals that ask a program to end. Other handled signals (`SIGCHLD`, `SIGALRM`, `SIGURG`, `SIGWINCH` …)
/// come at any time, and hardly a program expects EINTR of a file.
const TERMINATING: u64 = bit(libc::SIGHUP) | bit(libc::SIGINT) | bit(libc::SIGQUIT) | bit(libc::SIGTERM);

/// Signals that stop a program or do nothing by default.
const HARMLESS: u64 = bit(libc::SIGSTOP)
    | bit(libc::SIGTSTP)
    | bit(libc::SIGTTIN)
    | bit(libc::SIGTTOU)
    | bit(libc::SIGCONT)
    | bit(libc::SIGCHLD)
    | bit(libc::SIGURG)
    | bit(libc::SIGWINCH);

/// `PF_EXITING` of the kernel: the thread is exiting.
const EXITING: u64 = 0x4;

/// Low bits of an exit code: the signal that killed the process.
const KILLED_BY: u64 = 0x7f;

const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// Pending signals of a thread that it does not block, as bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Signals {
    /// Sent to the thread itself. Contains `SIGKILL` if the whole process is killed.
    own: u64,
    /// Sent to the process.
    shared: u64,
    /// Signals with a handler.
    handled: u64,
    /// Signals that the program ignores.
    ignored: u64,
}

impl Signals {
    /// Reads the text of `/proc/TID/status`.
    pub(super) fn of(status: &str) -> Option<Self> {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            u64::from_str_radix(line.trim(), 16).ok()
        };
        let unblocked = !field("SigBlk")?;
        Some(Self {
            own: field("SigPnd")? & unblocked,
            shared: field("ShdPnd")? & unblocked,
            handled: field("SigCgt")?,
            ignored: field("SigIgn")?,
        })
    }

    /// Returns the signals that kill the program.
    const fn fatal(self) -> u64 {
        bit(libc::SIGKILL) | !(self.handled | self.ignored | HARMLESS)
    }
}

/// Wait of one thread, checked repeatedly.
#[derive(Debug)]
pub(super) struct SignalWait {
    policy: InterruptPolicy,
    seen: u64,
    is_undecided: bool,
}

impl SignalWait {
    pub(super) const fn new(policy: InterruptPolicy) -> Self {
        Self { policy, seen: 0, is_undecided: false }
    }

    /// Returns true if a signal was seen once that ends the wait if it is seen again.
    pub(super) const fn is_undecided(&self) -> bool {
        self.is_undecided
    }

    /// Returns `true` if the wait must end. `is_long` tells that the host does not answer or the call takes
    /// long. `is_fault` tells that the thread waits for a page.
    pub(super) fn check(
        &mut self,
        signals: Signals,
        is_long: impl FnOnce() -> bool,
        is_fault: impl FnOnce() -> bool,
    ) -> bool {
        // Another thread usually takes a signal to the process at once. A signal that is seen twice stays.
        let stays = signals.shared & replace(&mut self.seen, signals.shared);
        let due = signals.own | stays;
        self.is_undecided = signals.shared & !stays & (signals.fatal() | TERMINATING) != 0;
        if self.policy == InterruptPolicy::Any {
            return due != 0;
        }
        if due & signals.fatal() != 0 {
            return true;
        }
        self.policy != InterruptPolicy::Fatal
            && due & signals.handled & TERMINATING != 0
            && is_long()
            && !(self.policy == InterruptPolicy::TerminatingUnlessFault && is_fault())
    }
}

/// Returns `true` if `/proc/TID/stat` shows a thread that exits because its process was killed.
pub(super) fn was_killed(stat: &str) -> bool {
    // The program's name is in parentheses, and may contain some.
    let Some((_, fields)) = stat.rsplit_once(") ") else { return false };
    let field = |number: usize| fields.split_whitespace().nth(number - 3)?.parse::<u64>().ok();
    field(9).is_some_and(|flags| flags & EXITING != 0) && field(52).is_some_and(|code| code & KILLED_BY != 0)
}

/// Returns `true` if `/proc/TID/syscall` shows a thread that reads by a system call, and not by touching a
/// mapping.
pub(super) fn reads_by_call(syscall: &str) -> bool {
    const READS: [i64; 7] = [
        libc::SYS_read,
        libc::SYS_readv,
        libc::SYS_pread64,
        libc::SYS_preadv,
        libc::SYS_preadv2,
        libc::SYS_sendfile,
        libc::SYS_splice,
    ];
    let number = syscall.split_whitespace().next().and_then(|word| word.parse().ok());
    number.is_some_and(|number: i64| READS.contains(&number))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NONE: Signals = Signals { own: 0, shared: 0, handled: 0, ignored: 0 };

    fn ends(policy: InterruptPolicy, signals: Signals, is_long: bool, is_fault: bool) -> bool {
        let mut wait = SignalWait::new(policy);
        wait.check(signals, || is_long, || is_fault) || wait.check(signals, || is_long, || is_fault)
    }

    #[test]
    fn pending_signals_that_are_not_blocked_count() {
        let status = "Name:\tcat\nSigQ:\t0/1\nSigPnd:\t0000000000000003\nShdPnd:\t0000000000000104\n\
                      SigBlk:\t0000000000000101\nSigIgn:\t0000000000001000\nSigCgt:\t0000000000000002\n";
        assert_eq!(Signals::of(status), Some(Signals { own: 2, shared: 4, handled: 2, ignored: 0x1000 }));
        assert_eq!(Signals::of("Name:\tcat\n"), None);
        let own = std::fs::read_to_string("/proc/self/status").unwrap();
        assert!(Signals::of(&own).is_some(), "{own}");
    }

    #[test]
    fn killed_threads_end_every_wait() {
        let killed = Signals { own: bit(libc::SIGKILL), ..NONE };
        for policy in [
            InterruptPolicy::Any,
            InterruptPolicy::Terminating,
            InterruptPolicy::TerminatingUnlessFault,
            InterruptPolicy::TerminatingIfSilent,
            InterruptPolicy::Fatal,
        ] {
            assert!(SignalWait::new(policy).check(killed, || false, || true), "{policy:?}");
        }
    }

    #[test]
    fn handled_signals_end_waits_only_if_they_ask_to_end_and_the_wait_is_long() {
        let handled = |signal| Signals { shared: bit(signal), handled: bit(signal), ..NONE };
        for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM] {
            let signals = handled(signal);
            assert!(ends(InterruptPolicy::Terminating, signals, true, true));
            assert!(!ends(InterruptPolicy::Terminating, signals, false, false));
            assert!(!ends(InterruptPolicy::Fatal, signals, true, false));
            assert!(ends(InterruptPolicy::TerminatingUnlessFault, signals, true, false));
            assert!(!ends(InterruptPolicy::TerminatingUnlessFault, signals, true, true));
        }
        for signal in [libc::SIGCHLD, libc::SIGALRM, libc::SIGURG, libc::SIGWINCH, libc::SIGUSR1] {
            assert!(!ends(InterruptPolicy::Terminating, handled(signal), true, false));
            assert!(ends(InterruptPolicy::Any, handled(signal), false, false));
        }
    }

    #[test]
    fn a_sync_on_a_slow_link_is_not_interrupted() {
        assert!(
            InterruptPolicy::Terminating.is_long(LONG, true)
                && !InterruptPolicy::Terminating.is_long(LONG / 2, true)
        );
        assert!(InterruptPolicy::Terminating.is_long(Duration::ZERO, false));
        assert!(!InterruptPolicy::TerminatingIfSilent.is_long(LONG * 100, true));
        assert!(InterruptPolicy::TerminatingIfSilent.is_long(Duration::ZERO, false));
    }

    #[test]
    fn signals_without_a_handler_kill_unless_they_stop() {
        for (signal, kills) in [
            (libc::SIGINT, true),
            (libc::SIGQUIT, true),
            (libc::SIGALRM, true),
            (libc::SIGUSR1, true),
            (libc::SIGTSTP, false),
            (libc::SIGCHLD, false),
            (libc::SIGWINCH, false),
        ] {
            let signals = Signals { shared: bit(signal), ..NONE };
            assert_eq!(ends(InterruptPolicy::Fatal, signals, false, true), kills, "{signal}");
            assert!(!ends(InterruptPolicy::Fatal, Signals { ignored: bit(signal), ..signals }, false, true));
        }
    }

    #[test]
    fn a_signal_to_the_process_counts_when_it_stays() {
        let mut wait = SignalWait::new(InterruptPolicy::Any);
        let signals = Signals { shared: bit(libc::SIGINT), ..NONE };
        assert!(!wait.check(signals, || true, || false) && wait.is_undecided());
        assert!(!wait.check(NONE, || true, || false) && !wait.is_undecided(), "another thread took it");
        assert!(!wait.check(signals, || true, || false));
        assert!(wait.check(signals, || true, || false));
    }

    #[test]
    fn the_stat_file_tells_if_a_thread_was_killed() {
        let stat = |flags: u64, code: u64| {
            let between = "0 ".repeat(42);
            format!("7 (a) b) c) S 1 1 1 0 -1 {flags} {between}{code}")
        };
        assert!(was_killed(&stat(0x0040_0404, 9)));
        assert!(!was_killed(&stat(0x0040_0404, 0)), "exit(0) while others read");
        assert!(!was_killed(&stat(0x0040_0404, 3 << 8)), "exit(3)");
        assert!(!was_killed(&stat(0x0040_0400, 9)));
        assert!(!was_killed("7 (a"));
        let own = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        assert!(own.rsplit_once(") ").unwrap().1.split_whitespace().count() >= 50, "{own}");
        assert!(!was_killed(&own));
    }

    #[test]
    fn reads_are_distinguished_from_faults() {
        assert!(reads_by_call(&format!("{} 0x3 0x7f 0x10 0x0 0x0 0x0 0x7ffe 0x7f\n", libc::SYS_pread64)));
        assert!(!reads_by_call("-1 0x7ffe 0x7f\n"), "in user code");
        assert!(!reads_by_call("running\n") && !reads_by_call(""));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_readers_panic(text in ".{0,300}") {
            let _ = (Signals::of(&text), was_killed(&text), reads_by_call(&text));
        }

        #[test]
        fn blocked_or_ignored_signals_end_nothing(own: u64, shared: u64, handled: u64) {
            let all_blocked = format!(
                "SigPnd:\t{own:x}\nShdPnd:\t{shared:x}\nSigBlk:\t{:x}\nSigIgn:\t0\nSigCgt:\t{handled:x}\n", u64::MAX
            );
            prop_assert!(!ends(InterruptPolicy::Any, Signals::of(&all_blocked).unwrap(), true, false));
        }
    }
}
