//! Mounts that follow each other on one folder: what an earlier one, or its daemon, leaves to the next.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

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
