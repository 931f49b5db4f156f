//! Hosts and clients that are killed while programs write: what an `fsync` has promised is there, and every rename is before or after.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::world::{World, run, wait_until};

/// Saves one file after the other as programs do that care: beside its place, to the disk, into its place. Says the number of each.
/// A process of its own: whoever starts a program closes a copy of his files with it, and waits for the host.
const WRITER: &str = "
import os, sys
folder = sys.argv[1]
number = 0
while True:
    beside = '%s/%d.new' % (folder, number)
    file = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    content = (b'%d;' % number) * (1 + number * 7919 % 60000)
    for at in range(0, len(content), 10000):
        os.write(file, content[at:at + 10000])
    os.fsync(file)
    os.close(file)
    os.rename(beside, '%s/%d' % (folder, number))
    print(number, flush=True)
    number += 1
";

fn content(number: u64) -> Vec<u8> {
    format!("{number};").into_bytes().repeat(1 + (number as usize * 7919) % 60_000)
}

struct Writer {
    child: Child,
    saved: Arc<AtomicU64>,
    listening: std::thread::JoinHandle<()>,
}

impl Writer {
    fn new(folder: &Path) -> Self {
        let mut command = Command::new("python3");
        command.args(["-c", WRITER, folder.to_str().unwrap()]).stdout(Stdio::piped());
        let mut child = command.stderr(Stdio::null()).spawn().unwrap();
        let saved = Arc::new(AtomicU64::new(0));
        let (lines, count) = (BufReader::new(child.stdout.take().unwrap()).lines(), Arc::clone(&saved));
        let listening = std::thread::spawn(move || {
            for line in lines {
                count.store(line.unwrap().parse::<u64>().unwrap() + 1, Ordering::Relaxed);
            }
        });
        Self { child, saved, listening }
    }

    fn saved(&self) -> u64 {
        self.saved.load(Ordering::Relaxed)
    }

    /// How many files it saved, when it has ended by itself or is ended now.
    fn end(mut self) -> u64 {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.listening.join().unwrap();
        self.saved.load(Ordering::Relaxed)
    }
}

/// Every file up to `saved` is whole, and no name is there that should not be.
fn check(folder: &Path, saved: u64) {
    for number in 0..saved {
        let found = fs::read(folder.join(number.to_string())).unwrap();
        assert!(found == content(number), "file {number} of {saved}: {} bytes", found.len());
        assert!(!folder.join(format!("{number}.new")).exists(), "{number} has two names");
    }
    // At most the one that was under way.
    assert!(fs::read_dir(folder).unwrap().count() as u64 <= saved + 1);
}

fn rounds() -> u64 {
    std::env::var("WORMHOLE_CRASH_ROUNDS").map_or(6, |text| text.parse().expect("a number"))
}

#[test]
fn a_host_that_is_killed_again_and_again_loses_nothing_and_does_nothing_twice() {
    let world = World::new();
    let mut host = world.host();
    let listen = host.listening.to_string();
    let mount = world.mount(&host.ticket, "");
    let writer = Writer::new(&mount.point);
    for round in 0..rounds() {
        std::thread::sleep(Duration::from_millis(140 + round * 61 % 400));
        host.kill();
        host = world.host_on(&listen, &[]);
        let before = writer.saved();
        // It would have ended with the first error.
        wait_until("the writer goes on", || writer.saved() > before);
    }
    let saved = writer.end();
    check(&mount.point, saved);
    check(&world.source(), saved);
}

#[test]
fn what_a_killed_client_had_synced_is_there() {
    let world = World::new();
    let host = world.host();
    for round in 0..rounds() / 2 {
        for entry in fs::read_dir(world.source()).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        let again = format!("port={}", host.listening.port());
        let source = if round == 0 { host.ticket.as_str() } else { "127.0.0.1:/export" };
        let mount = world.mount(source, &again);
        let writer = Writer::new(&mount.point);
        std::thread::sleep(Duration::from_millis(500 + round * 97));
        let daemon = nix::unistd::Pid::from_raw(mount.daemon().unwrap());
        nix::sys::signal::kill(daemon, nix::sys::signal::Signal::SIGKILL).unwrap();
        let saved = writer.end();
        assert!(saved > 0);
        check(&world.source(), saved);
        run("umount", &["-l", mount.point.to_str().unwrap()]);
    }
}
