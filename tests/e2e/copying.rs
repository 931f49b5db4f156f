//! Copies within the mount are made by the host: nothing of the content comes and goes over the wire.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::Duration;

use super::relay::Relay;
use crate::world::{Mount, World, noise, printed_by, run, wait_until, words};

/// What a copy may cost on the wire, whatever its size.
const COPY_BYTES_MAX: u64 = 64 * 1024;

/// Bytes that a mount has sent and received.
fn wire_bytes(mount: &Mount) -> (u64, u64) {
    let status = mount.status();
    let reads = |metric: &str| status[metric].as_u64().unwrap();
    (reads("wire_sent_bytes"), reads("wire_received_bytes"))
}

fn copy(mount: &Mount, options: &[&str], from: &str, to: &str) -> std::process::Output {
    Command::new("cp").args(options).arg(mount.path(from)).arg(mount.path(to)).output().unwrap()
}

#[test]
fn a_copy_within_the_mount_moves_no_content_also_over_a_long_way() {
    let world = World::new();
    let content = noise(300_000_000, 1);
    fs::write(world.source().join("f"), &content).unwrap();
    fs::write(world.source().join("text"), "text\n".repeat(1_000_000)).unwrap();
    std::thread::sleep(Duration::from_millis(2100));
    let host = world.host();
    let relay = Relay::start(host.listening);
    let mount = world.mount(&host.ticket_for(relay.address()), "transport=quic,compress=off");
    // So long that the first bytes of a file are asked for as it is opened.
    relay.delay(Duration::from_millis(4));
    wait_until("the way is known to be long", || {
        // A change always goes to the host; under a lease a question may not.
        fs::create_dir(mount.path("probe")).unwrap();
        fs::remove_dir(mount.path("probe")).unwrap();
        mount.status()["rtt_ms"].as_f64().unwrap() > 3.0
    });
    let before = wire_bytes(&mount);
    let output = copy(&mount, &[], "f", "g");
    assert!(output.status.success(), "{}", words(&output));
    let after = wire_bytes(&mount);
    let (sent, received) = (after.0 - before.0, after.1 - before.1);
    assert!(sent < COPY_BYTES_MAX && received < COPY_BYTES_MAX, "{sent} bytes sent, {received} received");
    assert!(fs::read(world.source().join("g")).unwrap() == content);
    // One that only reads has the first bytes with the opening: what the copy was spared.
    assert_eq!(printed_by("head", &["-n", "1", mount.path("text").to_str().unwrap()]), "text\n");
    let received = wire_bytes(&mount).1 - after.1;
    assert!(received > COPY_BYTES_MAX, "{received} bytes received");
    relay.delay(Duration::ZERO);

    // FICLONE does not come as far as a FUSE file system: who insists on it is told so, others copy.
    let output = copy(&mount, &["--reflink=always"], "f", "h");
    assert!(words(&output).contains("Operation not supported"), "{}", words(&output));
    assert!(copy(&mount, &["--reflink=auto"], "f", "h").status.success());
    assert!(fs::read(world.source().join("h")).unwrap() == content);
    mount.umount();
}

#[test]
fn what_was_copied_over_is_read_at_once_and_holes_stay() {
    let world = World::new();
    let (old, new) = (noise(3_000_000, 1), noise(3_000_000, 2));
    fs::write(world.source().join("old"), &old).unwrap();
    fs::write(world.source().join("new"), &new).unwrap();
    let sparse = File::create(world.source().join("sparse")).unwrap();
    sparse.set_len(50_000_000).unwrap();
    sparse.write_all_at(&new, 20_000_000).unwrap();
    let host = world.host();
    let mount = world.mount(&host.ticket, "");
    let reader = File::open(mount.path("old")).unwrap();
    let read = || {
        let mut bytes = vec![0; old.len()];
        reader.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    assert!(read() == old);
    assert!(copy(&mount, &[], "new", "old").status.success());
    assert!(read() == new, "through a handle from before");
    assert!(fs::read(mount.path("old")).unwrap() == new);
    assert!(copy(&mount, &[], "sparse", "thin").status.success());
    let room = |name: &str| std::os::unix::fs::MetadataExt::blocks(&fs::metadata(mount.path(name)).unwrap());
    assert!(room("thin") <= room("sparse") + 16, "{} and {} blocks", room("thin"), room("sparse"));
    assert!(fs::read(mount.path("thin")).unwrap() == fs::read(world.source().join("sparse")).unwrap());
    drop(reader);
    mount.umount();
}

#[test]
fn a_copy_to_another_file_system_of_the_export_stays_there_and_tells_that_it_is_full() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can mount a second file system");
        return;
    }
    let world = World::new();
    let content = noise(6_000_000, 1);
    fs::write(world.source().join("f"), &content).unwrap();
    fs::write(world.source().join("large"), noise(20_000_000, 2)).unwrap();
    let other = world.source().join("other");
    fs::create_dir(&other).unwrap();
    printed_by("mount", &["-t", "tmpfs", "-o", "size=10m", "tmpfs", other.to_str().unwrap()]);
    {
        let host = world.host();
        let mount = world.mount(&host.ticket, "");
        let before = wire_bytes(&mount);
        let output = copy(&mount, &[], "f", "other/f");
        assert!(output.status.success(), "{}", words(&output));
        let after = wire_bytes(&mount);
        assert!(after.0 - before.0 < COPY_BYTES_MAX && after.1 - before.1 < COPY_BYTES_MAX);
        assert!(fs::read(other.join("f")).unwrap() == content);
        let output = copy(&mount, &[], "large", "other/large");
        assert!(words(&output).contains("No space left on device"), "{}", words(&output));
        let came = fs::read(other.join("large")).unwrap();
        assert!(came[..] == noise(20_000_000, 2)[..came.len()], "what was copied is right");
        mount.umount();
    }
    run("umount", &[other.to_str().unwrap()]);
}
