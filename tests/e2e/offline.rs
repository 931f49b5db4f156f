//! Mounts without a host: what was seen is there, byte for byte; the rest fails at once; `status` says so.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use crate::world::{Host, Mount, World, errors, noise, run, succeeds, wait_until, wormhole};

/// The files lie still for so long that a version names one content.
fn settle() {
    std::thread::sleep(Duration::from_millis(2100));
}

/// A world with a tree `seen` and things besides it.
fn world() -> (World, Host) {
    let world = World::new();
    let seen = world.source().join("seen");
    fs::create_dir_all(seen.join("deep/deeper")).unwrap();
    fs::create_dir(seen.join("empty")).unwrap();
    fs::write(seen.join("small"), b"small").unwrap();
    fs::write(seen.join("large"), noise(5_000_000, 1)).unwrap();
    fs::write(seen.join("deep/deeper/file"), noise(300_000, 2)).unwrap();
    symlink("deep/deeper/file", seen.join("link")).unwrap();
    fs::create_dir(world.source().join("unseen")).unwrap();
    fs::write(world.source().join("unseen/file"), b"never read").unwrap();
    fs::write(world.source().join("unread"), noise(100_000, 3)).unwrap();
    settle();
    let host = world.host();
    (world, host)
}

/// Reads the tree through a mount, and lists what is above it.
fn look(world: &World, mount: &Mount) {
    let (there, here) = (world.source().join("seen"), mount.path("seen"));
    succeeds(std::process::Command::new("diff").arg("-r").args([&there, &here]));
    assert_eq!(fs::read_dir(&mount.point).unwrap().count(), 3);
    assert_eq!(fs::read_dir(mount.path("seen/empty")).unwrap().count(), 0);
}

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

#[test]
fn what_was_read_is_mounted_without_the_host() {
    let (world, mut host) = world();
    let mount = world.mount(&host.ticket, "");
    look(&world, &mount);
    let status = mount.status();
    assert_eq!((&status["state"], &status["stale_answers"]), (&"connected".into(), &0.into()));
    assert_eq!(status["last_contact_s"], 0);
    mount.umount();
    host.kill();

    let source = format!("127.0.0.1:{}", host.listening.port());
    let source = format!("wormhole://{source}/export");
    let started = Instant::now();
    let point = world.path("mnt");
    succeeds(world.mount_command(&source, &point).arg("--offline"));
    let truth = fs::metadata(world.source().join("unread")).unwrap();
    let shown = fs::metadata(mount.path("unread")).unwrap();
    assert_eq!((shown.len(), shown.modified().unwrap()), (truth.len(), truth.modified().unwrap()));
    look(&world, &mount);
    assert!(run("df", &[point.to_str().unwrap()]).status.success());
    assert!(run("sh", &["-c", &format!("cd {}/seen/deep && ls -la", point.display())]).status.success());
    // ENETUNREACH where nobody knows, ENOENT where it is known that there is nothing.
    assert_eq!(errno(fs::read(mount.path("unread"))), libc::ENETUNREACH);
    let listed = fs::read_dir(mount.path("unseen")).and_then(|mut entries| entries.next().unwrap());
    assert_eq!(errno(listed), libc::ENETUNREACH);
    assert_eq!(errno(fs::metadata(mount.path("unseen/file"))), libc::ENETUNREACH);
    assert_eq!(errno(fs::metadata(mount.path("seen/nothing"))), libc::ENOENT);
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());

    let status = mount.status();
    assert_eq!((&status["state"], &status["transport"]), (&"offline".into(), &"none".into()));
    assert!(status["stale_answers"].as_u64().unwrap() >= 5, "{status}");
    // Since the other mount ended, which was some seconds ago.
    assert!((0..600).contains(&status["last_contact_s"].as_i64().unwrap()), "{status}");
    assert!(status.get("requests").is_none() && status["disk_chunks"].as_u64().unwrap() > 0, "{status}");
    let said = succeeds(wormhole().arg("status").arg(&point));
    assert!(said.contains("offline: what is known is shown") && said.contains("stale answers"), "{said}");
    mount.umount();
}

#[test]
fn offline_needs_something_to_show() {
    let (world, host) = world();
    world.mount(&host.ticket, "").umount();
    let source = format!("wormhole://127.0.0.1:{}", host.listening.port());
    for (source, options, says) in [
        (format!("{source}/export/unseen"), "offline", "has nothing of"),
        (format!("{source}/export"), "offline,cache=none", "cache=none"),
        (format!("{source}/export"), "offline,nosoftreval", "nosoftreval"),
    ] {
        let (_, output) = world.try_mount_as("mnt", &source, options);
        assert!(!output.status.success() && errors(&output).contains(says), "{}", errors(&output));
    }
    // The host is there, and all the same not asked.
    let mount = world.mount(&format!("{source}/export"), "offline");
    assert_eq!(errno(fs::read(mount.path("unread"))), libc::ENETUNREACH);
    mount.umount();
}

#[test]
fn a_mount_whose_host_went_away_says_that_it_shows_old_things() {
    let (world, mut host) = world();
    let mount = world.mount(&host.ticket, "");
    look(&world, &mount);
    mount.umount();
    // Of this mount nothing was looked at when the host goes.
    let mount = world.mount(&host.ticket, "");
    host.kill();
    wait_until("the loss is noticed", || mount.status()["state"] == "disconnected");
    let started = Instant::now();
    look(&world, &mount);
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    settle();
    let status = mount.status();
    assert!(status["stale_answers"].as_u64().unwrap() >= 5, "{status}");
    assert!(status["last_contact_s"].as_u64().unwrap() >= 2, "{status}");
    let said = succeeds(wormhole().arg("status").arg(&mount.point));
    assert!(said.contains("the host does not answer") && said.contains("stale answers"), "{said}");
    mount.umount();
}

#[test]
fn with_nosoftreval_nothing_old_is_shown() {
    let (world, mut host) = world();
    let mount = world.mount(&host.ticket, "nosoftreval,timeo=20,retrans=1,noac");
    look(&world, &mount);
    host.kill();
    wait_until("the loss is noticed", || mount.status()["state"] == "disconnected");
    let started = Instant::now();
    assert_eq!(errno(fs::read(mount.path("seen/small"))), libc::ETIMEDOUT);
    assert!(started.elapsed() >= Duration::from_millis(1900), "{:?}", started.elapsed());
    assert_eq!(mount.status()["stale_answers"], 0);
}
