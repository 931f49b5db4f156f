//! However a mount ends, nothing of it is left: no process, no socket, no mount.

use std::fs;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::stage::{Stage, can_mount, code, errors, mount_at, succeeds, wait_until, wormhole};

fn pid_of(status: &Value) -> Pid {
    Pid::from_raw(i32::try_from(status["pid"].as_i64().unwrap()).unwrap())
}

#[test]
fn every_way_of_unmounting_ends_the_daemon() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    let ways: [(&str, &[&str]); 6] = [
        ("umount", &[]),
        ("umount", &["-l"]),
        ("fusermount3", &["-u"]),
        (env!("CARGO_BIN_EXE_wormhole"), &["umount"]),
        (env!("CARGO_BIN_EXE_wormhole"), &["umount", "-l"]),
        (env!("CARGO_BIN_EXE_wormhole"), &["umount", "-f"]),
    ];
    for (program, arguments) in ways {
        let mountpoint = stage.mount("mnt", "cache=none");
        let status = Stage::status(&mountpoint);
        succeeds(Command::new(program).args(arguments).arg(&mountpoint));
        Stage::nothing_is_left(&mountpoint, &status);
    }
}

#[test]
fn every_signal_to_end_unmounts() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let mountpoint = stage.mount("mnt", "cache=none");
        let status = Stage::status(&mountpoint);
        kill(pid_of(&status), signal).unwrap();
        Stage::nothing_is_left(&mountpoint, &status);
    }
}

#[test]
fn in_front_ctrl_c_unmounts() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    let mountpoint = stage.mountpoint("mnt");
    let mut front = stage.mount_command(&stage.ticket, &mountpoint).arg("-f").spawn().unwrap();
    wait_until("mounted", || mount_at(&mountpoint).is_some());
    wait_until("readable", || fs::metadata(mountpoint.join("hello")).is_ok());
    let status = Stage::status(&mountpoint);
    assert_eq!(status["pid"].as_u64().unwrap(), u64::from(front.id()), "it is not in front");
    let arguments = fs::read_to_string(format!("/proc/{}/cmdline", front.id())).unwrap();
    assert!(!arguments.contains(&stage.ticket), "{arguments}");
    kill(pid_of(&status), Signal::SIGINT).unwrap();
    assert!(front.wait().unwrap().success());
    Stage::nothing_is_left(&mountpoint, &status);
}

#[test]
fn a_mount_in_use_stays_unless_told_otherwise() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    let mountpoint = stage.mount("mnt", "ro");
    let status = Stage::status(&mountpoint);
    let mut user = Command::new("sleep").arg("1000").current_dir(mountpoint.join("below")).spawn().unwrap();
    let output = wormhole().arg("umount").arg(&mountpoint).output().unwrap();
    assert_eq!(code(&output), 32);
    assert!(errors(&output).contains("in use"), "{}", errors(&output));
    assert!(mount_at(&mountpoint).is_some());
    succeeds(wormhole().args(["umount", "-l"]).arg(&mountpoint));
    assert!(mount_at(&mountpoint).is_none());
    user.kill().unwrap();
    user.wait().unwrap();
    Stage::nothing_is_left(&mountpoint, &status);
}

#[test]
fn a_dead_host_does_not_keep_a_mount() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    let mountpoint = stage.mount("mnt", "hard,cache=none");
    let status = Stage::status(&mountpoint);
    kill(stage.host_pid(), Signal::SIGSTOP).unwrap();
    let mut reader = Command::new("cat")
        .arg(mountpoint.join("below/large"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the reader waits", || {
        let now = Stage::status(&mountpoint);
        now["requests_in_flight"].as_u64().unwrap() > 0
    });
    succeeds(wormhole().args(["umount", "-f"]).arg(&mountpoint));
    assert!(!reader.wait().unwrap().success());
    Stage::nothing_is_left(&mountpoint, &status);
    kill(stage.host_pid(), Signal::SIGCONT).unwrap();
}

#[test]
fn a_daemon_that_hangs_does_not_keep_a_mount() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    let mountpoint = stage.mount("mnt", "cache=none");
    let status = Stage::status(&mountpoint);
    kill(pid_of(&status), Signal::SIGSTOP).unwrap();
    succeeds(wormhole().args(["umount", "-f"]).arg(&mountpoint));
    assert!(mount_at(&mountpoint).is_none());
    wait_until("killed", || !super::stage::is_alive(status["pid"].as_u64().unwrap()));
    // The next look cleans up what the killed daemon could not.
    succeeds(wormhole().arg("status"));
    Stage::nothing_is_left(&mountpoint, &status);
}

#[test]
fn who_gives_up_waiting_leaves_nothing() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    kill(stage.host_pid(), Signal::SIGSTOP).unwrap();
    let mountpoint = stage.mountpoint("mnt");
    let source = format!("@{}", stage.path("ticket").display());
    let mut waiting = stage.mount_command(&source, &mountpoint).args(["-o", "retry=5"]).spawn().unwrap();
    let daemons = || {
        let output = Command::new("pgrep").args(["-P", &waiting.id().to_string()]).output().unwrap();
        String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .filter_map(|pid| pid.parse().ok())
            .collect::<Vec<u64>>()
    };
    let mut daemon = 0;
    wait_until("the daemon has started", || {
        daemon = daemons().first().copied().unwrap_or(0);
        daemon != 0
    });
    // As Ctrl-C does: both are in the terminal's foreground.
    for pid in [i32::try_from(daemon).unwrap(), waiting.id().cast_signed()] {
        let _ = kill(Pid::from_raw(pid), Signal::SIGINT);
    }
    assert!(!waiting.wait().unwrap().success());
    wait_until("the daemon is gone", || !super::stage::is_alive(daemon));
    assert!(mount_at(&mountpoint).is_none());
    kill(stage.host_pid(), Signal::SIGCONT).unwrap();
}

#[test]
fn a_connection_that_root_aborts_leaves_nothing() {
    if !can_mount() || !nix::unistd::geteuid().is_root() {
        return;
    }
    let stage = Stage::new();
    let mountpoint = stage.mount("mnt", "cache=none");
    let status = Stage::status(&mountpoint);
    let line = mount_at(&mountpoint).unwrap();
    let minor = line.split(' ').nth(2).unwrap().split(':').nth(1).unwrap().to_owned();
    // Where the control file system of FUSE is not mounted, there is nothing to abort by.
    if fs::write(format!("/sys/fs/fuse/connections/{minor}/abort"), "1").is_err() {
        return;
    }
    Stage::nothing_is_left(&mountpoint, &status);
}

#[test]
fn a_daemon_that_ends_leaves_the_next_mount_alone() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    for _ in 0..10 {
        let mountpoint = stage.mount("mnt", "cache=none");
        // Returns before the daemon is gone; the next mount often has its device number.
        succeeds(Command::new("fusermount3").arg("-u").arg(&mountpoint));
    }
    let mountpoint = stage.mount("mnt", "cache=none");
    assert_eq!(fs::read_to_string(mountpoint.join("hello")).unwrap(), "hello, world\n");
    let pid = Stage::status(&mountpoint)["pid"].as_u64().unwrap();
    let socket = |name: &std::ffi::OsStr| name.to_str().is_some_and(|name| name.starts_with("mount-"));
    let others_are_gone = || {
        let sockets = fs::read_dir(super::stage::control_dir()).unwrap();
        let names: Vec<_> =
            sockets.map(|entry| entry.unwrap().file_name()).filter(|name| socket(name)).collect();
        let key = names
            .iter()
            .find_map(|name| name.to_str()?.strip_suffix(&format!("-{pid}.sock")).map(str::to_owned));
        names.iter().filter(|name| name.to_str().unwrap().starts_with(key.as_deref().unwrap_or("?"))).count()
            == 1
    };
    wait_until("the daemons of before have ended", others_are_gone);
    assert_eq!(fs::read_to_string(mountpoint.join("hello")).unwrap(), "hello, world\n");
}
