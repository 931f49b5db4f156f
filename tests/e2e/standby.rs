//! Disk caches that cannot be used for a while: the mount goes on without, says so, and takes them up later.

use std::fs;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::world::{Mount, World, errors, noise, run, succeeds, wait_until, words, wormhole};

/// A world with files of a MiB, as many as are asked for.
fn world(files: u64) -> World {
    let world = World::new();
    for number in 0..files {
        fs::write(world.source().join(number.to_string()), noise(1 << 20, number)).unwrap();
    }
    std::thread::sleep(std::time::Duration::from_millis(2100));
    world
}

fn reads(mount: &Mount, number: u64) {
    assert!(fs::read(mount.path(number.to_string())).unwrap() == noise(1 << 20, number));
}

fn problem(mount: &Mount) -> Option<Value> {
    mount.status().get("cache_problem").cloned()
}

/// Waits until what is read is kept on disk.
fn keeps_what_it_reads(mount: &Mount, number: u64) {
    reads(mount, number);
    wait_until("it is kept", || mount.status()["cache_entries"].as_u64().unwrap() >= 4);
    assert_eq!(problem(mount), None);
}

/// Ends when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_cache_that_another_program_keeps_locked_is_taken_up_when_it_is_free() {
    let world = world(2);
    let host = world.host();
    world.mount(&host.ticket, "").umount();
    let lock = world.path("cache/v1/lock");
    let script = "exec 3< \"$0\"; flock 3; echo locked; exec sleep 1000";
    let mut holder =
        Command::new("sh").args(["-c", script]).arg(&lock).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let mut told = std::io::BufReader::new(holder.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut told, &mut line).unwrap();
    let holder = Running(holder);

    let (mount, output) = world.try_mount_as("mnt", &host.ticket, "");
    assert!(output.status.success(), "{}", words(&output));
    let said = errors(&output);
    assert_eq!(said.matches("the disk cache cannot be used now").count(), 1, "{said}");
    assert!(said.contains("busy"), "{said}");
    reads(&mount, 0);
    assert!(problem(&mount).unwrap().as_str().unwrap().contains("busy"));
    let shown = succeeds(wormhole().arg("status").arg(&mount.point));
    assert!(shown.contains("reads go on"), "{shown}");
    drop(holder);
    wait_until("it is taken up", || problem(&mount).is_none());
    keeps_what_it_reads(&mount, 1);
    mount.umount();
    // What is mounted was noted, too, although it was known before there was a cache.
    let source = format!("wormhole://{}/export", host.listening);
    let offline = world.mount(&source, "offline");
    reads(&offline, 1);
    offline.umount();
}

#[test]
fn a_cache_that_is_deleted_under_a_mount_is_made_anew() {
    let world = world(3);
    let host = world.host();
    let mount = world.mount(&host.ticket, "");
    keeps_what_it_reads(&mount, 0);
    fs::remove_dir_all(world.path("cache")).unwrap();
    reads(&mount, 1);
    let format = world.path("cache/v1/format");
    wait_until("it is made anew", || format.exists());
    wait_until("it is taken up", || problem(&mount).is_none());
    keeps_what_it_reads(&mount, 2);
    mount.umount();
    let source = format!("wormhole://{}/export", host.listening);
    let offline = world.mount(&source, "offline");
    reads(&offline, 2);
    offline.umount();
}

#[test]
fn a_full_disk_under_the_cache_costs_the_cache_and_not_the_mount() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let world = world(2);
    let host = world.host();
    fs::create_dir(world.path("small")).unwrap();
    let small = world.path("small");
    succeeds(Command::new("mount").args(["-t", "tmpfs", "-o", "size=64M", "none"]).arg(&small));
    run("sh", &["-c", &format!("cat /dev/zero > {}/other 2> /dev/null", small.display())]);
    let options = format!("cache_dir={}/cache,cache_size=16M", small.display());
    let (mount, output) = world.try_mount_as("mnt", &host.ticket, &options);
    assert!(output.status.success(), "{}", words(&output));
    assert!(errors(&output).contains("the disk cache cannot be used now"), "{}", errors(&output));
    reads(&mount, 0);
    assert!(problem(&mount).is_some());
    fs::remove_file(small.join("other")).unwrap();
    wait_until("it is taken up", || problem(&mount).is_none());
    keeps_what_it_reads(&mount, 1);
    mount.umount();
}
