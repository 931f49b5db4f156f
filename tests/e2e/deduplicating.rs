//! Content that is written and that the host has already is not sent.

use std::fs;
use std::io::Write;
use std::time::Duration;

use super::relay::Relay;
use crate::world::{Mount, World, noise, wait_until};

fn reads(mount: &Mount, metric: &str) -> u64 {
    let status = mount.status();
    status[metric].as_u64().unwrap_or_else(|| panic!("no {metric} in {status}"))
}

/// Bytes on the wire, both ways, for writing a file.
fn sent_by_writing(mount: &Mount, name: &str, content: &[u8]) -> u64 {
    let wire = || reads(mount, "wire_sent_bytes") + reads(mount, "wire_received_bytes");
    let before = wire();
    let mut file = fs::File::create(mount.path(name)).unwrap();
    write_whole_pages(&mut file, content);
    // Nobody is told what a close returns.
    file.sync_all().unwrap();
    wire() - before
}

/// Writes from memory that begins with a page, MiB by MiB, as most programs do. From elsewhere the kernel takes a write of many MiB
/// apart within chunks, and on a machine that is busy in between such parts are sent as they are.
fn write_whole_pages(file: &mut fs::File, content: &[u8]) {
    const PAGE: usize = 4096;
    let mut buffer = vec![0; (1 << 20) + PAGE];
    let start = buffer.as_ptr().align_offset(PAGE);
    for part in content.chunks(1 << 20) {
        let page = &mut buffer[start..start + part.len()];
        page.copy_from_slice(part);
        file.write_all(page).unwrap();
    }
}

/// As a way of 400 Mbit/s to somebody far away.
fn make_long(relay: &Relay, mount: &Mount) {
    relay.delay(Duration::from_millis(20));
    relay.narrow(50_000_000);
    wait_until("the way is known to be long", || {
        // A change always goes to the host; under a lease a question may not.
        fs::create_dir(mount.path("probe")).unwrap();
        fs::remove_dir(mount.path("probe")).unwrap();
        mount.status()["rtt_ms"].as_f64().unwrap() > 15.0
    });
}

#[test]
fn the_same_content_written_under_two_names_is_sent_once() {
    let world = World::new();
    let content = noise(64 << 20, 1);
    let host = world.host();
    let mount = world.mount(&host.ticket, "dedup=on");
    let first = sent_by_writing(&mount, "first", &content);
    assert!(first > content.len() as u64, "{first} bytes");
    let second = sent_by_writing(&mount, "second", &content);
    assert!(second < content.len() as u64 / 32, "{second} bytes for a copy");
    let spared = reads(&mount, "deduplicated_bytes");
    assert!(spared >= content.len() as u64 / 32 * 31, "{spared} bytes");
    for name in ["first", "second"] {
        assert!(fs::read(world.source().join(name)).unwrap() == content, "{name}");
    }
    mount.umount();
    let mount = world.mount(&host.ticket, "dedup=off");
    let third = sent_by_writing(&mount, "third", &content);
    assert!(third > content.len() as u64, "{third} bytes");
    assert_eq!(reads(&mount, "deduplicated_bytes"), 0);
    mount.umount();
}

#[test]
fn on_a_long_way_most_of_a_copy_is_not_sent_unless_told_otherwise() {
    let world = World::new();
    let content = noise(96 << 20, 1);
    fs::write(world.source().join("first"), &content).unwrap();
    let host = world.host();
    let relay = Relay::start(host.listening);
    let mount = world.mount(&host.ticket_for(relay.address()), "transport=quic");
    assert!(fs::read(mount.path("first")).unwrap() == content, "the host has seen its chunks");
    make_long(&relay, &mount);
    sent_by_writing(&mount, "second", &content);
    let spared = reads(&mount, "deduplicated_bytes");
    assert!(spared > 48 << 20, "{spared} bytes");
    assert!(fs::read(world.source().join("second")).unwrap() == content);
    mount.umount();
}

/// What the host knew of its content is gone with its daemon, in the middle of a file.
#[test]
fn a_copy_is_whole_although_the_host_is_killed_under_it() {
    let world = World::new();
    let mut host = world.host();
    let listen = host.listening.to_string();
    let mount = world.mount(&host.ticket, "dedup=on");
    let content = noise(200_000_000, 3);
    fs::write(world.path("content"), &content).unwrap();
    fs::write(mount.path("first"), &content).unwrap();
    // Another process: this one starts a host, which closes a copy of its files and so waits for a host.
    let mut writer = std::process::Command::new("dd")
        .arg(format!("if={}", world.path("content").display()))
        .arg(format!("of={}", mount.path("second").display()))
        .args(["bs=1M", "conv=fsync", "status=none"])
        .spawn()
        .unwrap();
    wait_until("some of it has arrived", || {
        fs::metadata(world.source().join("second")).is_ok_and(|file| file.len() > 80_000_000)
    });
    host.kill();
    host = world.host_on(&listen, &[]);
    assert!(writer.wait().unwrap().success());
    assert!(reads(&mount, "deduplicated_bytes") >= 15_000_000);
    assert!(fs::read(world.source().join("second")).unwrap() == content);
    mount.umount();
    drop(host);
}

/// `content`, of which the host has some chunks: every second one, or all but every tenth.
fn partly_known(content: &[u8], known: &[u8], is_new: impl Fn(usize) -> bool) -> Vec<u8> {
    let chunks = content.chunks(1 << 18).zip(known.chunks(1 << 18)).enumerate();
    chunks.flat_map(|(number, (new, known))| if is_new(number) { new } else { known }).copied().collect()
}

/// Tools that go on with an upload look at the length of what is there, and go on behind it.
#[test]
fn what_is_left_of_a_killed_upload_is_a_beginning_of_it() {
    let world = World::new();
    let host = world.host();
    let (known, new) = (noise(32 << 20, 1), noise(32 << 20, 2));
    fs::write(world.source().join("known"), &known).unwrap();
    let shapes: [fn(usize) -> bool; 3] = [|number| number % 2 == 1, |number| number % 10 == 9, |_| true];
    for (round, (is_new, options)) in
        shapes.into_iter().zip(["dedup=on", "dedup=auto", "dedup=off"]).enumerate()
    {
        let content = partly_known(&new, &known, is_new);
        fs::write(world.path("content"), &content).unwrap();
        let relay = Relay::start(host.listening);
        let mount = world.mount_as(&format!("m{round}"), &host.ticket_for(relay.address()), options);
        assert!(fs::read(mount.path("known")).unwrap() == known, "the host has seen its chunks");
        relay.delay(Duration::from_millis(20));
        relay.narrow(50_000_000);
        let name = format!("upload{round}");
        let mut writer = std::process::Command::new("dd")
            .arg(format!("if={}", world.path("content").display()))
            .arg(format!("of={}", mount.path(&name).display()))
            .args(["bs=1M", "status=none"])
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let there = || fs::read(world.source().join(&name)).unwrap_or_default();
        let looks = std::cell::Cell::new(0);
        wait_until("half of it has arrived", || {
            let found = there();
            assert!(content.starts_with(&found), "{} bytes that are no beginning ({options})", found.len());
            looks.set(looks.get() + 1);
            found.len() > content.len() / 2
        });
        let daemon = nix::unistd::Pid::from_raw(mount.daemon().unwrap());
        nix::sys::signal::kill(daemon, nix::sys::signal::Signal::SIGKILL).unwrap();
        let _ = writer.wait();
        // What has arrived is still being written.
        let mut before = there().len();
        for _ in 0..10 {
            std::thread::sleep(Duration::from_millis(50));
            let found = there();
            assert!(content.starts_with(&found), "{} bytes that are no beginning ({options})", found.len());
            assert!(found.len() >= before);
            before = found.len();
        }
        assert!(looks.get() > 1);
        mount.umount();
    }
}

#[test]
fn what_was_written_over_a_long_way_is_not_sent_back() {
    let world = World::new();
    let host = world.host();
    let relay = Relay::start(host.listening);
    let mount = world.mount(&host.ticket_for(relay.address()), "transport=quic");
    make_long(&relay, &mount);
    let content = noise((8 << 20) + 5, 1);
    sent_by_writing(&mount, "file", &content);
    // Until its next change would bear another time the host reads it whatever is known of it.
    std::thread::sleep(Duration::from_millis(50));
    let before = reads(&mount, "wire_received_bytes");
    assert!(fs::read(mount.path("file")).unwrap() == content);
    let received = reads(&mount, "wire_received_bytes") - before;
    assert!(received < 1 << 20, "{received} bytes");
    mount.umount();
}
