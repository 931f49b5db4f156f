//! The end of a mount that has something left to send: it waits and says so, or gives it up and says what.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::world::{Host, Mount, WORMHOLE, World, errors, noise, succeeds, wait_until, wormhole};

fn signal(host: &Host, signal: Signal) {
    kill(Pid::from_raw(host.child.id() as i32), signal).unwrap();
}

/// A mount that holds what a silent host does not have, of files that nobody has open any more: their closing was told ETIMEDOUT.
fn unsent(world: &World) -> (Host, Mount) {
    let host = world.host();
    let log = world.path("mount.log");
    let mount = Mount { point: world.path("mnt") };
    fs::create_dir_all(&mount.point).unwrap();
    let mut command = world.mount_command(&host.ticket, &mount.point);
    succeeds(command.args(["-o", "timeo=20,retrans=0"]).arg("--log-file").arg(&log));
    fs::create_dir(mount.path("folder")).unwrap();
    fs::write(mount.path("folder/large"), "").unwrap();
    fs::write(mount.path("small"), "").unwrap();
    fs::write(world.path("content"), noise(3_000_000, 1)).unwrap();
    let mut writers = ["folder/large", "small"].map(|name| Writer::open(&mount.path(name)));
    signal(&host, Signal::SIGSTOP);
    for (writer, bytes) in writers.iter_mut().zip([3_000_000, 1000]) {
        writer.write(&world.path("content"), bytes);
    }
    assert_eq!(mount.status()["unsent_bytes"].as_u64(), Some(3_001_000));
    (host, mount)
}

/// A program of its own, as this one starts programs, each of which closes a copy of its files.
struct Writer(Child);

impl Writer {
    const SCRIPT: &str = "import os,sys\n\
        f = os.open(sys.argv[1], os.O_WRONLY)\n\
        print('open', flush=True)\n\
        content, size = input().split()\n\
        os.write(f, open(content, 'rb').read(int(size)))\n\
        try:\n    os.close(f)\n\
        except TimeoutError: pass\n";

    fn open(path: &Path) -> Self {
        let mut command = Command::new("python3");
        command
            .args(["-c", Self::SCRIPT, path.to_str().unwrap()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "open\n");
        Self(child)
    }

    fn write(&mut self, content: &Path, bytes: u64) {
        use std::io::Write;
        writeln!(self.0.stdin.take().unwrap(), "{} {bytes}", content.display()).unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

fn spawn(command: &mut Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Reads until some words come.
fn read_until(from: &mut impl Read, words: &str) -> String {
    let (mut text, mut byte) = (Vec::new(), [0]);
    while !String::from_utf8_lossy(&text).contains(words) {
        assert_eq!(
            from.read(&mut byte).unwrap(),
            1,
            "{words:?} did not come: {}",
            String::from_utf8_lossy(&text)
        );
        text.push(byte[0]);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// What came of it, when the host goes on.
fn check(world: &World, mount: &Mount) {
    wait_until("the daemon has ended", || mount.daemon().is_none());
    let content = noise(3_000_000, 1);
    assert!(fs::read(world.source().join("folder/large")).unwrap() == content);
    assert!(fs::read(world.source().join("small")).unwrap() == content[..1000]);
}

#[test]
fn umount_waits_until_everything_is_sent_and_says_what_is_left() {
    let world = World::new();
    let (host, mount) = unsent(&world);
    let mut umount = spawn(wormhole().arg("umount").arg(&mount.point));
    let mut told = umount.stderr.take().unwrap();
    read_until(&mut told, "waiting until the host has everything: 2.9 MiB left, 0.0 MB/s\n");
    assert!(!mount.is_mounted());
    assert!(umount.try_wait().unwrap().is_none());
    // Whoever comes later can wait, too.
    let mut later = spawn(wormhole().arg("umount").arg(&mount.point));
    read_until(later.stderr.as_mut().unwrap(), "2.9 MiB left");
    signal(&host, Signal::SIGCONT);
    assert!(umount.wait().unwrap().success());
    assert!(later.wait().unwrap().success());
    check(&world, &mount);
    assert!(
        fs::read_to_string(world.path("mount.log"))
            .unwrap()
            .contains("ending: 3001000 bytes are not sent to the host yet")
    );
}

#[test]
fn umount_shows_what_is_left_on_a_terminal() {
    let world = World::new();
    let (host, mount) = unsent(&world);
    let command = format!("{WORMHOLE} umount {}", mount.point.display());
    let mut umount = spawn(Command::new("script").args(["-qec", &command, "/dev/null"]));
    let mut shown = umount.stdout.take().unwrap();
    let text = read_until(&mut shown, "2.9 MiB left");
    assert!(text.contains('\r') && !text.contains('\n'), "one line that changes: {text:?}");
    signal(&host, Signal::SIGCONT);
    let mut rest = String::new();
    shown.read_to_string(&mut rest).unwrap();
    assert!(umount.wait().unwrap().success());
    check(&world, &mount);
}

fn lost(output: &Output) {
    assert!(output.status.success());
    let told = errors(output);
    let lines: Vec<_> = told.lines().collect();
    let expected = [
        "wormhole: lost: 2.9 MiB of 2 files, written here and not confirmed by the host",
        "wormhole: lost: 2.9 MiB of folder/large",
        "wormhole: lost: 1000 B of small",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn what_is_given_up_by_force_is_said_and_in_the_log() {
    let world = World::new();
    let (_host, mount) = unsent(&world);
    lost(&wormhole().args(["umount", "-f"]).arg(&mount.point).output().unwrap());
    wait_until("the daemon has ended", || mount.daemon().is_none());
    let log = fs::read_to_string(world.path("mount.log")).unwrap();
    assert!(log.contains("lost: 3001000 bytes of 2 files"), "{log}");
    assert!(log.contains("lost: 3000000 bytes of folder/large"), "{log}");
}

#[test]
fn what_the_daemon_goes_on_to_send_behind_an_unmounted_folder_can_be_given_up() {
    let world = World::new();
    let (_host, mount) = unsent(&world);
    // The kernel does not tell it to wait.
    succeeds(Command::new("umount").arg(&mount.point));
    assert!(!mount.is_mounted() && mount.daemon().is_some());
    lost(&wormhole().args(["umount", "-f"]).arg(&mount.point).output().unwrap());
    wait_until("the daemon has ended", || mount.daemon().is_none());
    let nothing = wormhole().args(["umount", "-f"]).arg(&mount.point).output().unwrap();
    assert!(errors(&nothing).contains("not mounted"));
}
