//! Mounts that follow each other on one folder: what an earlier one, or its daemon, leaves to the next.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::relay::Relay;
use crate::world::{Mount, World, is_alive, run, succeeds, wait_until, words, wormhole};

/// A program that holds a file open, and reads it when it is told to.
struct Reader(Child);

impl Reader {
    fn of(path: &Path) -> Self {
        let script = "exec 3< \"$0\"; echo open; read go; cat <&3";
        let mut command = Command::new("sh");
        command.args(["-c", script]).arg(path).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut reader = Self(command.spawn().unwrap());
        assert_eq!(reader.line(), "open\n");
        reader
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        BufReader::with_capacity(1, self.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        line
    }

    /// Returns what the file has.
    fn reads(mut self) -> String {
        self.0.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
        self.line()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The process of the daemon that serves what is mounted there now.
fn pid(mount: &Mount) -> u64 {
    mount.status()["pid"].as_u64().unwrap()
}

fn signal(pid: u64, signal: Signal) {
    kill(Pid::from_raw(pid as i32), signal).unwrap();
}

/// A world with one file.
fn world() -> World {
    let world = World::new();
    fs::write(world.source().join("file"), "content\n").unwrap();
    world
}

/// A mount that was detached while a program had a file open, and the next one on the same folder.
fn detached_and_next(world: &World, ticket: &str) -> (Reader, u64, Mount) {
    let first = world.mount(ticket, "");
    let old = pid(&first);
    let reader = Reader::of(&first.path("file"));
    assert!(!run("umount", &[first.point.to_str().unwrap()]).status.success(), "it is in use");
    succeeds(Command::new("umount").arg("-l").arg(&first.point));
    // Dropped, it would take down what is mounted there then.
    std::mem::forget(first);
    let next = world.mount(ticket, &format!("cache_dir={}", world.path("other-cache").display()));
    assert_ne!(pid(&next), old, "status tells of the one that is there");
    (reader, old, next)
}

#[test]
fn a_daemon_whose_mount_was_detached_leaves_the_next_one_alone() {
    let world = world();
    let host = world.host();
    let (reader, old, next) = detached_and_next(&world, &host.ticket);
    // Told to end, while somebody still uses what it serves.
    signal(old, Signal::SIGTERM);
    wait_until("the old daemon has ended", || !is_alive(old));
    assert!(next.is_mounted());
    assert_eq!(fs::read_to_string(next.path("file")).unwrap(), "content\n");
    drop(reader);
    next.umount();

    let (reader, old, next) = detached_and_next(&world, &host.ticket);
    // Its last user leaves.
    assert_eq!(reader.reads(), "content\n");
    wait_until("the old daemon has ended", || !is_alive(old));
    assert_eq!(fs::read_to_string(next.path("file")).unwrap(), "content\n");
    next.umount();
}

#[test]
fn a_mount_is_given_up_with_its_own_daemon_and_not_with_its_predecessor_s() {
    let world = world();
    let host = world.host();
    let (reader, old, next) = detached_and_next(&world, &host.ticket);
    let new = pid(&next);
    signal(new, Signal::SIGKILL);
    wait_until("it is dead", || !is_alive(new));
    let output = wormhole().args(["umount", "-f"]).arg(&next.point).output().unwrap();
    assert!(output.status.success(), "{}", words(&output));
    assert!(!next.is_mounted());
    assert!(is_alive(old));
    assert_eq!(reader.reads(), "content\n");
    wait_until("the old daemon has ended", || !is_alive(old));
}

/// What comes of `wormhole mount` where something is mounted already. The folder is not looked at: that may hang.
fn refusal(world: &World, ticket: &str) -> String {
    let output = world.mount_command(ticket, &world.path("mnt")).output().unwrap();
    assert_eq!(output.status.code(), Some(32), "{}", words(&output));
    words(&output)
}

/// `wormhole mount -o bg` of a host that is not there yet.
fn in_background(world: &World, port: u16) -> (Mount, std::process::Output) {
    // By name: the host is known here.
    world.try_mount_as("mnt", "127.0.0.1:/export", &format!("bg,port={port}"))
}

/// A world whose host was mounted once and went away, and its port.
fn known_and_gone() -> (World, u16) {
    let world = world();
    let host = world.host();
    world.mount(&host.ticket, "").umount();
    let port = host.listening.port();
    (world, port)
}

#[test]
fn an_attempt_in_the_background_is_shown_does_not_stack_and_can_be_cancelled() {
    let (world, port) = known_and_gone();
    let (mount, begun) = in_background(&world, port);
    assert!(begun.status.success(), "{}", words(&begun));
    wait_until("its first failure is told", || mount.status().get("problem").is_some());
    let status = mount.status();
    assert_eq!(status["state"], "mounting", "{status}");
    assert!(status["problem"].as_str().unwrap().contains("127.0.0.1"), "{status}");
    let shown = succeeds(wormhole().arg("status").arg(&mount.point));
    assert!(shown.contains("not mounted yet") && shown.contains("wormhole umount"), "{shown}");

    let (_, again) = in_background(&world, port);
    assert_eq!(again.status.code(), Some(32), "{}", words(&again));
    assert!(words(&again).contains("about to mount there"), "{}", words(&again));

    let trying = pid(&mount);
    succeeds(wormhole().arg("umount").arg(&mount.point));
    assert!(!is_alive(trying), "umount waits for its end");
    let nothing = wormhole().arg("status").arg(&mount.point).output().unwrap();
    assert!(!nothing.status.success(), "{}", String::from_utf8_lossy(&nothing.stdout));
    let (mount, _) = in_background(&world, port);
    succeeds(wormhole().args(["umount", "-f"]).arg(&mount.point));
    wait_until("it has ended", || mount.daemon().is_none());
}

#[test]
fn an_attempt_mounts_once_its_host_is_there_and_never_over_what_came_meanwhile() {
    let (world, port) = known_and_gone();
    let (mount, begun) = in_background(&world, port);
    assert!(begun.status.success(), "{}", words(&begun));
    let host = world.host_on(&format!("127.0.0.1:{port}"), &[]);
    wait_until("it is mounted", || mount.is_mounted());
    wait_until("status says so", || mount.status()["state"] == "connected");
    assert_eq!(fs::read_to_string(mount.path("file")).unwrap(), "content\n");
    mount.umount();
    drop(host);

    let (mount, begun) = in_background(&world, port);
    assert!(begun.status.success(), "{}", words(&begun));
    let trying = pid(&mount);
    if !nix::unistd::geteuid().is_root() {
        succeeds(wormhole().arg("umount").arg(&mount.point));
        return;
    }
    succeeds(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&mount.point));
    fs::write(mount.path("written-meanwhile"), "").unwrap();
    let _host = world.host_on(&format!("127.0.0.1:{port}"), &[]);
    wait_until("it has given up", || !is_alive(trying));
    assert!(mount.path("written-meanwhile").exists(), "it was not covered");
    succeeds(Command::new("umount").arg(&mount.point));
    assert!(!mount.is_mounted());
}

#[test]
fn a_mount_whose_daemon_was_killed_is_shown_as_dead_and_replaced() {
    let world = world();
    let host = world.host();
    let mount = world.mount(&host.ticket, "");
    let dead = pid(&mount);
    signal(dead, Signal::SIGKILL);
    wait_until("it is dead", || !is_alive(dead));
    // A question that is on its way when the kernel notices ends with ECONNABORTED.
    wait_until("the kernel has noticed", || {
        fs::read_dir(&mount.point).unwrap_err().raw_os_error() == Some(libc::ENOTCONN)
    });
    assert_eq!(mount.status()["state"], "dead");
    let shown = succeeds(wormhole().arg("status").arg(&mount.point));
    assert!(shown.contains("died") && shown.contains("wormhole mount"), "{shown}");

    let output = world.mount_command(&host.ticket, &mount.point).output().unwrap();
    assert!(output.status.success(), "{}", words(&output));
    assert!(words(&output).contains("its mount was taken away"), "{}", words(&output));
    assert_eq!(fs::read_to_string(mount.path("file")).unwrap(), "content\n");
    let refused = refusal(&world, &host.ticket);
    assert!(refused.contains("mounted there already"), "{refused}");
    mount.umount();
}

#[test]
fn a_mount_whose_daemon_hangs_is_not_taken_for_dead() {
    let world = world();
    let host = world.host();
    let mount = world.mount(&host.ticket, "");
    let hanging = pid(&mount);
    signal(hanging, Signal::SIGSTOP);
    let refused = refusal(&world, &host.ticket);
    let state = mount.status()["state"].clone();
    signal(hanging, Signal::SIGCONT);
    assert!(refused.contains("mounted there already"), "{refused}");
    assert_eq!(state, "unreachable");
    assert_eq!(fs::read_to_string(mount.path("file")).unwrap(), "content\n");
    mount.umount();
}

/// A mount's device number goes to the next mount as soon as it has ended, while its daemon may still be sending.
#[test]
fn a_daemon_that_still_sends_hides_no_mount_that_came_after_its_own() {
    const WRITES: &str = "import sys, time\n\
        file = open(sys.argv[1], 'wb', buffering=0)\n\
        print('opened', flush=True)\n\
        sys.stdin.readline()\n\
        file.write(b'x' * 1_000_000)\n\
        print('written', flush=True)\n\
        time.sleep(600)\n";
    let (world, other) = (world(), world());
    let (host, other_host) = (world.host(), other.host());
    let relay = Relay::start(host.listening);
    let mount = world.mount(&host.ticket_for(relay.address()), "");
    let mut writer = Command::new("python3");
    writer.args(["-c", WRITES]).arg(mount.path("large")).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut writer = writer.spawn().unwrap();
    let mut said = BufReader::new(writer.stdout.take().unwrap()).lines();
    assert_eq!(said.next().unwrap().unwrap(), "opened");
    relay.cut();
    writer.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    assert_eq!(said.next().unwrap().unwrap(), "written");
    let sending = pid(&mount);
    // Killed, it does not wait for what it wrote; nor does the kernel's umount.
    writer.kill().unwrap();
    writer.wait().unwrap();
    succeeds(Command::new("umount").arg(&mount.point));
    let next = other.mount(&other_host.ticket, "");
    let hanging = pid(&next);
    signal(hanging, Signal::SIGSTOP);
    let shown = wormhole().args(["status", "--json"]).arg(&next.point).output().unwrap();
    signal(hanging, Signal::SIGCONT);
    assert!(is_alive(sending), "it was to be sending still");
    relay.mend();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("unreachable"), "{shown}");
    wait_until("it has sent everything", || !is_alive(sending));
    next.umount();
}
