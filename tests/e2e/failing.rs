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

/// Time from a link's return until content moves: 1.5 s are promised, and machines under test may be busy with other things.
const MOVING_AGAIN_WITHIN: Duration = Duration::from_secs(20);

/// A test for each of the transports.
macro_rules! over_both {
    ($name:ident) => {
        mod $name {
            #[test]
            fn over_quic() {
                super::$name("quic");
            }

            #[test]
            fn over_tcp() {
                super::$name("tcp");
            }
        }
    };
}

/// A world with one large file behind a relay.
fn world_with_relay(transport: &str, options: &str) -> (World, Host, Relay, Mount) {
    let world = World::new();
    fs::write(world.source().join("large"), noise(CONTENT_BYTES, 1)).unwrap();
    fs::create_dir(world.source().join("folder")).unwrap();
    fs::write(world.source().join("folder/small"), b"small").unwrap();
    let host = world.host();
    let relay = Relay::start(host.listening);
    let options = format!("transport={transport},{options}");
    let mount = world.mount(&host.ticket_for(relay.address()), options.trim_end_matches(','));
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
    let (world, _host, relay, mount) = world_with_relay("auto", "");
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

over_both!(a_cut_link_that_comes_back_goes_on);

fn a_cut_link_that_comes_back_goes_on(transport: &str) {
    let (_world, _host, relay, mount) = world_with_relay(transport, "");
    let (half, go_on, reader) = read_in_halves(&mount);
    half.recv().unwrap();
    relay.cut();
    drop(go_on);
    std::thread::sleep(Duration::from_secs(5));
    assert!(!reader.is_finished(), "the file was read through a cut link");
    let before = relay.bytes_to_client();
    relay.mend();
    let mended = Instant::now();
    wait_until("content moves again", || relay.bytes_to_client() > before + 1_000_000);
    assert!(mended.elapsed() < MOVING_AGAIN_WITHIN, "moving again after {:?}", mended.elapsed());
    assert!(reader.join().unwrap() == noise(CONTENT_BYTES, 1));
    let status = mount.status();
    assert_eq!(status["transport"], transport);
    assert_eq!(status["udp_buffer_bytes"].is_u64(), transport == "quic");
    mount.umount();
}

over_both!(a_host_that_is_killed_and_restarted_goes_on);

fn a_host_that_is_killed_and_restarted_goes_on(transport: &str) {
    let (world, mut host, _relay, mount) = world_with_relay(transport, "");
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

over_both!(a_host_that_is_gone_for_good_costs_a_deadline_and_no_more);

fn a_host_that_is_gone_for_good_costs_a_deadline_and_no_more(transport: &str) {
    let (_world, mut host, _relay, mount) = world_with_relay(transport, "timeo=30,retrans=1");
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

over_both!(a_dead_mount_is_given_up_at_once);

fn a_dead_mount_is_given_up_at_once(transport: &str) {
    let (_world, mut host, _relay, mount) = world_with_relay(transport, "");
    let file = File::open(mount.path("large")).unwrap();
    host.kill();
    let blocked = std::thread::spawn(move || {
        file.read_at(&mut [0; 4096], 30_000_000).map_err(|error| error.raw_os_error())
    });
    std::thread::sleep(Duration::from_millis(300));
    let start = Instant::now();
    let output = run(WORMHOLE, &["umount", "-f", mount.point.to_str().unwrap()]);
    assert!(output.status.success(), "{}", words(&output));
    assert!(start.elapsed() < Duration::from_secs(30), "umount -f took {:?}", start.elapsed());
    assert!(!mount.is_mounted());
    blocked.join().unwrap().unwrap_err();
    wait_until("the daemon has ended", || mount.daemon().is_none());
}

over_both!(a_client_that_was_stopped_recovers);

fn a_client_that_was_stopped_recovers(transport: &str) {
    let (_world, _host, _relay, mount) = world_with_relay(transport, "");
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
    let (world, host, _relay, mount) = world_with_relay("auto", "");
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

#[test]
fn a_short_way_is_taken_over_tcp() {
    let (_world, _host, relay, mount) = world_with_relay("auto", "");
    assert_eq!(mount.status()["transport"], "tcp");
    mount.umount();
    drop(relay);
}

#[test]
fn a_network_without_udp_is_no_obstacle() {
    let world = World::new();
    fs::write(world.source().join("small"), b"small").unwrap();
    let host = world.host();
    let relay = Relay::start(host.listening);
    relay.block_udp();
    assert_eq!(host.status()["transport"], "quic, tcp");
    let ticket = host.ticket_for(relay.address());
    let mount = world.mount(&ticket, "");
    assert_eq!(fs::read(mount.path("small")).unwrap(), b"small");
    assert_eq!(mount.status()["transport"], "tcp");
    mount.umount();
    let (_, refused) = world.try_mount_as("mnt", &ticket, "transport=quic");
    assert!(!refused.status.success(), "QUIC came through a network without UDP");
}
