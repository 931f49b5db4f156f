//! Tests of the helper as mount(8) runs it, with a `wormhole` that records its call.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Writes its arguments, one a line, and two variables. Exits with the configured code.
const RECORDER: &str = "#!/bin/sh\n\
    here=$(dirname \"$0\")\n\
    printf '%s\\n' \"$@\" > \"$here/arguments\"\n\
    printf '%s\\n%s\\n' \"$HOME\" \"$PATH\" > \"$here/environment\"\n\
    exit \"$(cat \"$here/exit\" 2>/dev/null || echo 0)\"\n";

/// A folder with the helper, and optionally a `wormhole` next to it.
struct Bench {
    folder: tempfile::TempDir,
    /// A program that another test starts inherits the file that is being written for a moment, and the file
    /// cannot be executed meanwhile (ETXTBSY). So the tests run one at a time.
    _alone: MutexGuard<'static, ()>,
}

impl Bench {
    fn new() -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::tempdir().unwrap();
        fs::copy(env!("CARGO_BIN_EXE_mount-wormhole"), folder.path().join("mount.wormhole")).unwrap();
        let bench = Self { folder, _alone: alone };
        Self::put_recorder(&bench.path("wormhole"));
        fs::create_dir(bench.path("mnt")).unwrap();
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn put_recorder(path: &Path) {
        fs::write(path, RECORDER).unwrap();
        fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
    }

    fn helper(&self) -> Command {
        Command::new(self.path("mount.wormhole"))
    }

    fn recorded(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.path(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn errors(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn the_call_of_mount_is_translated() {
    let bench = Bench::new();
    let mountpoint = bench.path("mnt");
    let options = "ro,noauto,nofail,_netdev,user=ann,x-systemd.automount,cache_size=50G";
    let output =
        bench.helper().arg("nas:/media").arg(&mountpoint).args(["-s", "-v", "-o", options]).output().unwrap();
    assert_eq!(code(&output), 0, "{}", errors(&output));
    let expected = [
        "mount",
        "-v",
        "--sloppy",
        "-o",
        "ro,cache_size=50G",
        "--",
        "nas:/media",
        mountpoint.to_str().unwrap(),
    ];
    assert_eq!(bench.recorded("arguments"), expected);
    assert_eq!(errors(&output), "");
}

#[test]
fn the_exit_code_is_that_of_wormhole() {
    let bench = Bench::new();
    for expected in [0, 1, 2, 32] {
        fs::write(bench.path("exit"), expected.to_string()).unwrap();
        let output = bench.helper().args(["nas:/media", "/mnt", "-o", "ro"]).output().unwrap();
        assert_eq!(code(&output), expected);
    }
}

#[test]
fn at_boot_there_is_neither_home_nor_path() {
    let bench = Bench::new();
    let output = bench.helper().args(["nas:/media", "/mnt", "-o", "ro"]).env_clear().output().unwrap();
    assert_eq!(code(&output), 0, "{}", errors(&output));
    let environment = bench.recorded("environment");
    assert_eq!(environment[0], "", "wormhole looks up the home");
    assert!(environment[1].split(':').any(|place| place == "/usr/bin"), "{environment:?}");
}

#[test]
fn wormhole_is_looked_for_in_path_too() {
    let bench = Bench::new();
    let elsewhere = bench.path("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::remove_file(bench.path("wormhole")).unwrap();
    Bench::put_recorder(&elsewhere.join("wormhole"));
    let path = format!("{}:/usr/bin:/bin", elsewhere.display());
    let output = bench.helper().args(["nas:/media", "/mnt", "-o", "ro"]).env("PATH", path).output().unwrap();
    assert_eq!(code(&output), 0, "{}", errors(&output));
    assert!(bench.recorded("elsewhere/arguments").contains(&"nas:/media".to_owned()));
}

#[test]
fn a_faked_mount_does_everything_else() {
    let bench = Bench::new();
    let fake = |mountpoint: &Path| {
        bench.helper().arg("nas:/media").arg(mountpoint).args(["-f", "-o", "ro"]).output().unwrap()
    };
    assert_eq!(code(&fake(&bench.path("mnt"))), 0);
    assert_eq!(bench.recorded("arguments"), Vec::<String>::new());
    let output = fake(&bench.path("missing"));
    assert_eq!(code(&output), 1);
    assert!(errors(&output).contains("missing"));
}

#[test]
fn a_wrong_call_is_reported_in_one_line() {
    let bench = Bench::new();
    for arguments in
        [vec![], vec!["nas:/media"], vec!["a:/b", "/mnt", "-x"], vec!["a:/b", "/mnt", "-t", "nfs"]]
    {
        let output = bench.helper().args(&arguments).output().unwrap();
        assert_eq!(code(&output), 1, "{arguments:?}");
        assert_eq!(errors(&output).lines().count(), 1, "{}", errors(&output));
    }
    assert_eq!(bench.recorded("arguments"), Vec::<String>::new());
}

#[test]
fn rw_is_the_default_and_not_passed_on() {
    let bench = Bench::new();
    let output = bench.helper().args(["nas:/media", "/mnt", "-o", "rw,port=1"]).output().unwrap();
    assert_eq!(code(&output), 0);
    assert_eq!(errors(&output), "");
    assert!(!bench.recorded("arguments").iter().any(|argument| argument.contains("rw")));
    assert!(bench.recorded("arguments").contains(&"port=1".to_owned()));
}

/// Removes a file at the end, also of a failed test.
struct Removed(&'static Path);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.0);
    }
}

#[test]
fn mount_itself_finds_the_helper() {
    let place = Path::new("/sbin/mount.wormhole");
    let bench = Bench::new();
    // Only root may install it, and an installed helper is kept.
    if std::os::unix::fs::symlink(bench.path("mount.wormhole"), place).is_err() {
        return;
    }
    let _removed = Removed(place);
    let mountpoint = bench.path("mnt");
    let output = Command::new("mount")
        .args(["-t", "wormhole", "nas:/media"])
        .arg(&mountpoint)
        .args(["-o", "ro,nofail,x-gvfs-hide,port=4434"])
        .output()
        .unwrap();
    assert_eq!(code(&output), 0, "{}", errors(&output));
    let arguments = bench.recorded("arguments");
    assert_eq!(arguments[..2], ["mount".to_owned(), "-o".to_owned()]);
    assert_eq!(arguments[3..], ["--".to_owned(), "nas:/media".to_owned(), mountpoint.display().to_string()]);
    assert!(arguments[2].contains("ro") && arguments[2].contains("port=4434"), "{arguments:?}");
    assert!(!arguments[2].contains("nofail") && !arguments[2].contains("x-gvfs"), "{arguments:?}");
}
