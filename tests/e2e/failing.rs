//! What happens when the link, the host or the client stops: nothing hangs, nothing is lost.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::relay::Relay;
use crate::world::{Host, Mount, WORMHOLE, World, noise, run, wait_until, words};

const CONTENT_BYTES: usize = 60_000_000;

/// A world with one large file behind a relay.
fn world_with_relay(options: &str) -> (World, Host, Relay, Mount) {
    let world = World::new();
    fs::write(world.source().join("large"), noise(CONTENT_BYTES, 1)).unwrap();
    fs::create_dir(world.source().join("folder")).unwrap();
    fs::write(world.source().join("folder/small"), b"small").unwrap();
    let host = world.host();
    let relay = Relay::start(host.listening);
    let mount = world.mount(&host.ticket_for(relay.address()), options);
    (world, host, relay, mount)
}

/// Reads the large file in a thread, stopping half way until `go_on` is dropped by the caller.
fn read_in_halves(
    mount: &Mount,
) -> (std::sync::mpsc::Receiver<()>, std::sync::mpsc::Sender<()>, JoinHandle<Vec<u8>>) {
    let (at_half, half_reached) = std::sync::mpsc::channel();
    let (go_on, may_go_on) = std::sync::mpsc::channel::<()>();
    let path = mount.path("large");
    let reader = std::thread::spawn(move || {
        let mut file = File::open(path).unwrap();
        let mut content = vec![0; 2_000_000];
        file.read_exact(&mut content).unwrap();
        at_half.send(()).unwrap();
        let _ = may_go_on.recv();
        file.read_to_end(&mut content).unwrap();
        content
    });
    (half_reached, go_on, reader)
}

#[test]
fn an_unmount_right_behind_a_close_complains_of_nothing() {
    let (world, _host, relay, mount) = world_with_relay("");
    mount.umount();
    let (point, log) = (world.path("front"), world.path("front.log"));
    fs::create_dir(&point).unwrap();
    let mut command = world.mount_command("127.0.0.1:/export", &point);
    command.args(["-f", "-o", &format!("port={}", relay.address().port())]);
    let mut front =
        command.stdout(File::create(&log).unwrap()).stderr(File::create(&log).unwrap()).spawn().unwrap();
    wait_until("the mount is there", || point.join("large").exists());
    let file = File::open(point.join("large")).unwrap();
    relay.cut();
    drop(file);
    assert!(run("umount", &[point.to_str().unwrap()]).status.success());
    assert!(front.wait().unwrap().success());
    let said = fs::read_to_string(log).unwrap();
    assert!(!said.contains("ERROR"), "{said}");
}

#[test]
fn a_cut_link_that_comes_back_goes_on() {
    let (_world, _host, relay, mount) = world_with_relay("");
    let (half, go_on, reader) = read_in_halves(&mount);
    half.recv().unwrap();
    relay.cut();
    drop(go_on);
    std::thread::sleep(Duration::from_secs(5));
    assert!(!reader.is_finished(), "the file was read through a cut link");
    relay.mend();
    assert!(reader.join().unwrap() == noise(CONTENT_BYTES, 1));
    mount.umount();
}

#[test]
fn a_host_that_is_killed_and_restarted_goes_on() {
    let (world, mut host, _relay, mount) = world_with_relay("");
    let (half, go_on, reader) = read_in_halves(&mount);
    half.recv().unwrap();
    host.kill();
    drop(go_on);
    std::thread::sleep(Duration::from_secs(2));
    let _host = world.host_on(&host.listening.to_string(), &[]);
    assert!(reader.join().unwrap() == noise(CONTENT_BYTES, 1));
    assert_eq!(fs::read(mount.path("folder/small")).unwrap(), b"small");
    mount.umount();
}

#[test]
fn a_host_that_is_gone_for_good_costs_a_deadline_and_no_more() {
    let (_world, mut host, _relay, mount) = world_with_relay("timeo=30,retrans=1");
    for entry in fs::read_dir(mount.path("folder")).unwrap() {
        entry.unwrap().metadata().unwrap();
    }
    nix::sys::statvfs::statvfs(&mount.point).unwrap();
    let file = File::open(mount.path("large")).unwrap();
    host.kill();
    let readers: Vec<_> = (0..50u64)
        .map(|number| {
            let file = file.try_clone().unwrap();
            std::thread::spawn(move || {
                let start = Instant::now();
                let error = file.read_at(&mut [0; 4096], 10_000_000 + number * 500_000).unwrap_err();
                (error.raw_os_error(), start.elapsed())
            })
        })
        .collect();
    std::thread::sleep(Duration::from_millis(500));
    let start = Instant::now();
    let listed: Vec<_> =
        fs::read_dir(mount.path("folder")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(listed, ["small"]);
    nix::sys::statvfs::statvfs(&mount.point).unwrap();
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "ls and df waited for the dead host: {:?}",
        start.elapsed()
    );
    for reader in readers {
        let (errno, took) = reader.join().unwrap();
        assert_eq!(errno, Some(libc::ETIMEDOUT));
        assert!(
            took > Duration::from_secs(2) && took < Duration::from_secs(20),
            "the deadline of 3 s passed after {took:?}"
        );
    }
    assert_ne!(mount.status()["state"], "connected");
}

#[test]
fn a_dead_mount_is_given_up_at_once() {
    let (_world, mut host, _relay, mount) = world_with_relay("");
    let file = File::open(mount.path("large")).unwrap();
    host.kill();
    let blocked = std::thread::spawn(move || {
        file.read_at(&mut [0; 4096], 30_000_000).map_err(|error| error.raw_os_error())
    });
    std::thread::sleep(Duration::from_millis(300));
    let start = Instant::now();
    let output = run(WORMHOLE, &["umount", "-f", mount.point.to_str().unwrap()]);
    assert!(output.status.success(), "{}", words(&output));
    assert!(start.elapsed() < Duration::from_secs(10), "umount -f took {:?}", start.elapsed());
    assert!(!mount.is_mounted());
    blocked.join().unwrap().unwrap_err();
    wait_until("the daemon has ended", || mount.daemon().is_none());
}

#[test]
fn a_client_that_was_stopped_recovers() {
    let (_world, _host, _relay, mount) = world_with_relay("");
    let daemon = Pid::from_raw(mount.daemon().unwrap());
    let (half, go_on, reader) = read_in_halves(&mount);
    half.recv().unwrap();
    kill(daemon, Signal::SIGSTOP).unwrap();
    drop(go_on);
    std::thread::sleep(Duration::from_secs(5));
    kill(daemon, Signal::SIGCONT).unwrap();
    assert!(reader.join().unwrap() == noise(CONTENT_BYTES, 1));
    mount.umount();
}

#[test]
fn every_way_to_end_leaves_nothing_behind() {
    let (world, host, _relay, mount) = world_with_relay("");
    mount.umount();
    let point = mount.point.to_str().unwrap();
    let ends: [(&str, &[&str]); 3] =
        [("fusermount3", &["-u", point]), (WORMHOLE, &["umount", point]), ("kill", &["-TERM"])];
    for (program, arguments) in ends {
        let mount = world.mount(&host.ticket, "");
        let daemon = mount.daemon().expect("the daemon runs").to_string();
        let arguments: Vec<&str> =
            arguments.iter().copied().chain((program == "kill").then_some(daemon.as_str())).collect();
        let output = run(program, &arguments);
        assert!(output.status.success(), "{program}: {}", words(&output));
        wait_until("the mount is gone", || !mount.is_mounted());
        wait_until("the daemon has ended", || mount.daemon().is_none());
        let left = run(WORMHOLE, &["status", "--json"]);
        assert!(!String::from_utf8_lossy(&left.stdout).contains(point), "status still knows the mount");
    }
}
