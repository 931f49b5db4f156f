//! Programs that are run, and what becomes of them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The binary under test.
pub(crate) const WORMHOLE: &str = env!("CARGO_BIN_EXE_wormhole");

/// How long anything may take that should be done at once; generous, because machines under test are slow.
const PATIENCE: Duration = Duration::from_secs(60);

/// The binary under test, without what the environment might tell it.
pub(crate) fn wormhole() -> Command {
    let mut command = Command::new(WORMHOLE);
    command.env_remove("WORMHOLE_TICKET").stdin(Stdio::null());
    command
}

/// Exit code of a process that was not killed.
pub(crate) fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("killed: {}", output.status))
}

/// Standard error as text.
pub(crate) fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// How a program ended, and what it said to people.
pub(crate) fn words(output: &Output) -> String {
    format!("{} {}", output.status, errors(output).trim())
}

/// Runs a program to its end.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    output.unwrap_or_else(|error| {
        panic!("{program} cannot be run ({error}); is its package installed? .ci/run lists them")
    })
}

/// Runs a program which must succeed, and gives what it printed.
#[track_caller]
pub(crate) fn printed_by(program: &str, arguments: &[&str]) -> String {
    succeeds(Command::new(program).args(arguments).stdin(Stdio::null()))
}

/// The same for a command that is put together already.
#[track_caller]
pub(crate) fn succeeds(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", words(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits for something that must come.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let patience = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < patience, "waited {} s in vain until {what}", PATIENCE.as_secs());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a process is there and not only waits to be waited for.
pub(crate) fn is_alive(pid: u64) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !matches!(stat.rsplit(") ").next().and_then(|rest| rest.chars().next()), None | Some('Z' | 'X'))
}

/// The kernel's list of mounts.
pub(crate) fn mount_table() -> String {
    fs::read_to_string("/proc/self/mountinfo").unwrap()
}

/// The line of the mount table about a mountpoint.
pub(crate) fn mount_at(mountpoint: &Path) -> Option<String> {
    let name = mountpoint.to_str().unwrap();
    mount_table().lines().rev().find(|line| line.split(' ').nth(4) == Some(name)).map(str::to_owned)
}

/// Sees to it that plain users can open `/dev/fuse`, where root runs the tests: udev lets everybody, a bare container nobody but
/// root. Returns `false`, and says so, where that cannot be changed; such a test ends then.
pub(crate) fn plain_users_can_mount() -> bool {
    const DEVICE: &str = "/dev/fuse";
    let mode = |path: &str| fs::metadata(path).map(|found| found.permissions().mode());
    let is_open = |mode: u32| mode & 0o006 == 0o006;
    if mode(DEVICE).is_ok_and(is_open) {
        return true;
    }
    match fs::set_permissions(DEVICE, fs::Permissions::from_mode(0o666)) {
        Ok(()) => {
            eprintln!("NOTE: {DEVICE} was root's own; it has mode 0666 from now on, as udev gives it");
            true
        }
        Err(error) => {
            eprintln!("LEFT OUT: plain users may not open {DEVICE}, and its mode cannot be changed: {error}");
            false
        }
    }
}

/// Whether this machine can mount at all; tests that need to return at once where it cannot.
pub(crate) fn can_mount() -> bool {
    let device = fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
    let excused = std::env::var_os("WORMHOLE_TEST_NO_FUSE").is_some();
    assert!(
        device.is_ok() || excused,
        "/dev/fuse cannot be used here: load the fuse module, or give the container the device; \
         WORMHOLE_TEST_NO_FUSE=1 leaves tests out that can be"
    );
    device.is_ok()
}
