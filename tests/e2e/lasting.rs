//! What outlives a mount: the key, the host's identity, what was read.

use std::fs;
use std::os::unix::fs::FileExt;

use super::relay::Relay;
use crate::world::{World, noise, printed_by, wait_until};

#[test]
fn what_was_read_is_not_sent_again_after_a_remount() {
    let world = World::new();
    let content = noise(40_000_000, 1);
    fs::write(world.source().join("large"), &content).unwrap();
    let past = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    fs::File::options().write(true).open(world.source().join("large")).unwrap().set_modified(past).unwrap();
    // The change time cannot be set back: let the version settle.
    std::thread::sleep(std::time::Duration::from_millis(2100));
    let host = world.host();
    let relay = Relay::start(host.listening);
    let ticket = host.ticket_for(relay.address());

    let mount = world.mount(&ticket, "");
    assert!(fs::read(mount.path("large")).unwrap() == content);
    mount.umount();
    let before = relay.bytes_to_client();
    assert!(before > content.len() as u64, "the relay saw no content");

    let mount = world.mount(&ticket, "");
    assert!(fs::read(mount.path("large")).unwrap() == content);
    let again = relay.bytes_to_client() - before;
    assert!(again < 100_000, "{again} bytes came over the wire for a file that is in the cache");
    assert_eq!(mount.status()["disk_chunks"], content.len().div_ceil(256 * 1024));
    mount.umount();
}

#[test]
fn a_damaged_cache_is_a_miss() {
    let world = World::new();
    let content = noise(10_000_000, 1);
    fs::write(world.source().join("large"), &content).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(2100));
    let host = world.host();
    let mount = world.mount(&host.ticket, "");
    assert!(fs::read(mount.path("large")).unwrap() == content);
    mount.umount();
    let segments =
        printed_by("find", &[world.path("cache").to_str().unwrap(), "-type", "f", "-size", "+64k"]);
    assert!(segments.lines().count() > 0, "nothing was cached");
    for path in segments.lines() {
        let mut bytes = fs::read(path).unwrap();
        bytes.iter_mut().step_by(100_000).for_each(|byte| *byte ^= 1);
        fs::write(path, bytes).unwrap();
    }
    let mount = world.mount(&host.ticket, "");
    assert!(fs::read(mount.path("large")).unwrap() == content);
    mount.umount();
}

#[test]
fn a_ticket_is_needed_once() {
    let world = World::new();
    fs::create_dir(world.source().join("sub")).unwrap();
    fs::write(world.source().join("sub/file"), b"content").unwrap();
    let host = world.host();
    let port = format!("port={}", host.listening.port());
    world.mount(&host.ticket, "").umount();
    let mount = world.mount("127.0.0.1:/export", &port);
    assert_eq!(fs::read(mount.path("sub/file")).unwrap(), b"content");
    mount.umount();
    let mount = world.mount("127.0.0.1:/export/sub", &port);
    assert_eq!(fs::read(mount.path("file")).unwrap(), b"content");
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = mounts.lines().find(|line| line.contains(mount.point.to_str().unwrap())).unwrap();
    assert!(line.contains("127.0.0.1") && line.contains("/export/sub "), "{line}");
    assert!(line.contains(" fuse.wormhole "), "{line}");
    mount.umount();
}

#[test]
fn of_a_file_that_was_touched_or_edited_only_the_news_are_sent() {
    let world = World::new();
    let mut content = noise(20_000_000, 1);
    let path = world.source().join("file");
    fs::write(&path, &content).unwrap();
    let settle = || std::thread::sleep(std::time::Duration::from_millis(2100));
    settle();
    let host = world.host();
    let relay = Relay::start(host.listening);
    let ticket = host.ticket_for(relay.address());
    let mount = world.mount(&ticket, "");
    let sent_by_reading = |content: &[u8]| {
        let before = relay.bytes_to_client();
        assert!(fs::read(mount.path("file")).unwrap() == content);
        relay.bytes_to_client() - before
    };
    assert!(sent_by_reading(&content) > 20_000_000);

    fs::File::options().write(true).open(&path).unwrap().set_modified(std::time::SystemTime::now()).unwrap();
    settle();
    let touched = sent_by_reading(&content);
    assert!(touched < 200_000, "{touched} bytes of a file that was only touched");

    content[5_000_000..6_000_000].copy_from_slice(&noise(1_000_000, 9));
    fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .write_all_at(&content[5_000_000..6_000_000], 5_000_000)
        .unwrap();
    settle();
    let edited = sent_by_reading(&content);
    assert!((1_000_000..2_000_000).contains(&edited), "{edited} bytes for an edit of a million");
    mount.umount();
}

#[test]
fn what_was_read_and_closed_outlives_a_killed_client() {
    let world = World::new();
    let content = noise(5_000_000, 1);
    fs::write(world.source().join("file"), &content).unwrap();
    // Let the version settle.
    std::thread::sleep(std::time::Duration::from_millis(2100));
    let host = world.host();
    let relay = Relay::start(host.listening);
    let ticket = host.ticket_for(relay.address());

    let mount = world.mount(&ticket, "");
    assert!(fs::read(mount.path("file")).unwrap() == content);
    // Twenty chunks, and the page that says in which file they are.
    wait_until("all of it is in the cache", || mount.status()["cache_entries"].as_u64() >= Some(21));
    let daemon = nix::unistd::Pid::from_raw(mount.daemon().unwrap());
    nix::sys::signal::kill(daemon, nix::sys::signal::Signal::SIGKILL).unwrap();
    printed_by("umount", &["-l", mount.point.to_str().unwrap()]);

    let before = relay.bytes_to_client();
    let mount = world.mount(&ticket, "");
    assert!(fs::read(mount.path("file")).unwrap() == content);
    let again = relay.bytes_to_client() - before;
    assert!(again < 100_000, "{again} bytes came over the wire for a file that is in the cache");
}

#[test]
fn of_a_file_in_which_everything_moved_only_the_news_are_sent() {
    let world = World::new();
    let mut content = noise(40_000_000, 1);
    fs::write(world.source().join("large"), &content).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(2100));
    let host = world.host();
    let relay = Relay::start(host.listening);
    let ticket = host.ticket_for(relay.address());
    // Over a faster link nothing is looked for.
    let mount = world.mount(&ticket, "transport=quic");
    assert!(fs::read(mount.path("large")).unwrap() == content);

    content.insert(0, b'x');
    fs::write(world.source().join("large"), &content).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(2100));
    let before = relay.bytes_to_client();
    assert!(fs::read(mount.path("large")).unwrap() == content);
    let came = relay.bytes_to_client() - before;
    // What was asked for before the first difference was seen came whole.
    assert!(came < content.len() as u64 / 2, "{came} bytes for one byte in front");
    assert!(mount.status()["moved_bytes"].as_u64().unwrap() > content.len() as u64 / 2);
    mount.umount();
}
