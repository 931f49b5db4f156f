//! Memory of both daemons: what many names take, and that it comes back.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::world::{World, printed_by};

const FOLDERS: usize = 100;
const FILES: usize = 1000;

/// Most memory of an inode, in bytes, all told: its entry in the table, its part of a kept listing, and what the heap loses.
const INODE_BYTES_MAX: usize = 1024;

/// Memory that a process holds and that no file backs, in bytes.
fn private_bytes(process: u64) -> usize {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

/// Waits until a process holds at most so much. Gives back what it holds at the end.
fn falls_to(process: u64, bytes: usize) -> usize {
    let patience = Instant::now() + Duration::from_secs(90);
    while private_bytes(process) > bytes && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(200));
    }
    private_bytes(process)
}

fn count(point: &Path) -> usize {
    // The size has the kernel look each file up.
    printed_by("find", &[point.to_str().unwrap(), "-size", "-1000"]).lines().count()
}

#[test]
fn many_inodes_take_little_memory_which_comes_back_when_the_kernel_forgets_them() {
    let world = World::new();
    for folder in 0..FOLDERS {
        let folder = world.source().join(format!("a folder that has number {folder:>4}"));
        fs::create_dir(&folder).unwrap();
        for file in 0..FILES {
            fs::File::create(folder.join(format!("a file that has number {file:>4}"))).unwrap();
        }
    }
    let host = world.host();
    let mount = world.mount(&host.ticket, "");
    let pid = mount.status()["pid"].as_u64().unwrap();
    let before = private_bytes(pid);
    assert_eq!(count(&mount.point), FOLDERS * (FILES + 1) + 1);
    let full = private_bytes(pid);
    let grown = full.saturating_sub(before);
    assert!(grown <= FOLDERS * FILES * INODE_BYTES_MAX, "{grown} bytes for {} inodes", FOLDERS * FILES);
    if !mount.is_forgotten_by_the_kernel() {
        return;
    }
    // Listings are kept, and the heap has holes.
    let least_back = FOLDERS * FILES * 150;
    let left = falls_to(pid, full.saturating_sub(least_back));
    assert!(left + least_back <= full, "{left} bytes are left of {full}, {before} at the beginning");
    let host_full = private_bytes(host.pid());
    mount.umount();
    let host_least_back = FOLDERS * FILES * 70;
    let left = falls_to(host.pid(), host_full.saturating_sub(host_least_back));
    assert!(left + host_least_back <= host_full, "{left} bytes are left of the host's {host_full}");
}
