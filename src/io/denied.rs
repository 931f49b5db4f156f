//! Tests with parts of `io_uring` forbidden, as in containers, by a seccomp filter for one thread.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::thread;

use nix::errno::Errno;

use super::{Engine, EngineConfig, EngineKind, IoError};

/// System call that fails.
#[derive(Clone, Copy)]
pub(crate) struct Denial {
    syscall: libc::c_long,
    /// Value of the second argument for which it fails; `None` for all.
    argument: Option<u32>,
    errno: Errno,
}

impl Denial {
    /// No ring can be created.
    pub(crate) const SETUP: Self =
        Self { syscall: libc::SYS_io_uring_setup, argument: None, errno: Errno::EPERM };
    /// Rings can be created and not be used.
    pub(super) const ENTER: Self =
        Self { syscall: libc::SYS_io_uring_enter, argument: None, errno: Errno::EPERM };
    /// Buffers cannot be registered (`IORING_REGISTER_BUFFERS`), as if memory may not be locked.
    pub(crate) const BUFFERS: Self =
        Self { syscall: libc::SYS_io_uring_register, argument: Some(0), errno: Errno::ENOMEM };
}

/// Starts an engine on a thread with `denial`. The threads of the engine inherit it.
pub(super) fn start_denied(denial: Denial, config: EngineConfig) -> Result<Engine, IoError> {
    with_denial(denial, move || Engine::start(&config))
}

/// Runs `work` on a thread with `denial`.
pub(crate) fn with_denial<T: Send + 'static>(denial: Denial, work: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = thread::spawn(move || {
        install(denial).unwrap();
        work()
    });
    thread.join().unwrap()
}

/// Installs the filter for the calling thread and the threads it starts. It cannot be removed.
fn install(denial: Denial) -> io::Result<()> {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    // Offsets in `struct seccomp_data`: the call number, and the lower half of the second argument.
    const NUMBER: u32 = 0;
    const ARGUMENT: u32 = if cfg!(target_endian = "little") { 24 } else { 28 };

    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let fail = step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | denial.errno as u32);
    let allow = step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW);
    let mut program = vec![step(LOAD, 0, 0, NUMBER)];
    match denial.argument {
        None => program.push(step(JUMP_EQUAL, 0, 1, denial.syscall as u32)),
        Some(argument) => program.extend([
            step(JUMP_EQUAL, 0, 3, denial.syscall as u32),
            step(LOAD, 0, 0, ARGUMENT),
            step(JUMP_EQUAL, 0, 1, argument),
        ]),
    }
    program.extend([fail, allow]);
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    nix::sys::prctl::set_no_new_privs()?;
    // SAFETY: `filter` describes a program that lives through the call; the kernel copies and checks it.
    let code = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn config(kind: EngineKind) -> EngineConfig {
    EngineConfig { kind, pool_bytes: 2 << 20, reads_resident: false, ..EngineConfig::default() }
}

async fn reads(engine: &Engine) {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"hello").unwrap();
    assert_eq!(engine.read(Arc::new(file), 1, 100).await.unwrap(), "ello");
}

#[tokio::test]
async fn auto_falls_back_with_a_reason() {
    for denial in [Denial::SETUP, Denial::ENTER] {
        let engine = start_denied(denial, config(EngineKind::Auto)).unwrap();
        assert_eq!(engine.name(), "blocking");
        let reason = engine.fallback_reason().unwrap();
        assert!(reason.contains("io_uring") && reason.contains("EPERM"), "{reason}");
        reads(&engine).await;
    }
}

#[test]
fn an_explicit_engine_is_not_replaced() {
    let error = start_denied(Denial::SETUP, config(EngineKind::Uring)).unwrap_err();
    assert!(
        matches!(error, IoError::Unavailable { backend: "io_uring", errno: Errno::EPERM, .. }),
        "{error:?}"
    );
    assert!(error.to_string().contains("seccomp") || error.to_string().contains("sysctl"), "{error}");
}

#[tokio::test]
async fn buffers_that_cannot_be_registered_are_used_all_the_same() {
    if std::env::var_os("WORMHOLE_TEST_NO_URING").is_some() {
        return;
    }
    let engine = start_denied(Denial::BUFFERS, config(EngineKind::Uring)).unwrap();
    assert_eq!(engine.name(), "io_uring");
    let reason = engine.fallback_reason().unwrap();
    assert!(reason.contains("ulimit -l") && reason.contains("ENOMEM"), "{reason}");
    reads(&engine).await;
    assert_eq!(engine.stats().fixed_reads, 0);
}

/// Environment variable with the log path for the child of [`a_fallback_warns_once`].
const CHILD_LOG: &str = "WORMHOLE_TEST_FALLBACK_LOG";

#[test]
fn a_fallback_warns_once() {
    if let Some(path) = std::env::var_os(CHILD_LOG) {
        return fall_back_logging_to(Path::new(&path));
    }
    // The test runs in its own process: the interest in a log line is cached for the whole process, so
    // other tests would disable it.
    let log = tempfile::NamedTempFile::new().unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "io::denied::a_fallback_warns_once"])
        .env(CHILD_LOG, log.path())
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
    let text = std::fs::read_to_string(log.path()).unwrap();
    assert_eq!(text.matches(" WARN ").count(), 1, "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains("seccomp") || text.contains("sysctl"), "{text}");
}

fn fall_back_logging_to(path: &Path) {
    let writer = Arc::new(File::create(path).unwrap());
    with_denial(Denial::SETUP, move || {
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(writer).finish();
        tracing::subscriber::with_default(subscriber, || Engine::start(&config(EngineKind::Auto)).map(drop))
            .unwrap();
    });
}
