//! Content is known by its hash: what was read under one name is not sent under another, and the host hashes nothing twice.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::relay::Relay;
use crate::world::{Host, Mount, World, noise, printed_by, status_of, succeeds, wait_until, wormhole};

/// The files lie still for so long that a version names one content.
fn settle() {
    std::thread::sleep(Duration::from_millis(2100));
}

fn number(status: &Value, key: &str) -> u64 {
    status[key].as_u64().unwrap_or_else(|| panic!("no {key} in {status}"))
}

/// Bytes that the host's process has read by system calls, sockets not counted.
fn bytes_read(host: &Host) -> u64 {
    let io = fs::read_to_string(format!("/proc/{}/io", host.child.id())).unwrap();
    io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
}

/// Waits until the host has nothing more to write into its index.
fn index_is_written(world: &World) {
    let file = world.path("host-state/hashes");
    let written = || fs::metadata(&file).unwrap().modified().unwrap();
    wait_until("the index lies still", || written().elapsed().unwrap() > Duration::from_millis(1500));
}

/// The content of a file, in calls as `cat` makes them.
fn read_as_cat(path: &Path) -> Vec<u8> {
    let (mut file, mut content, mut buffer) =
        (fs::File::open(path).unwrap(), Vec::new(), vec![0; 256 * 1024]);
    loop {
        match file.read(&mut buffer).unwrap() {
            0 => return content,
            len => content.extend_from_slice(&buffer[..len]),
        }
    }
}

#[test]
fn a_copy_under_another_name_is_not_sent() {
    let world = World::new();
    let content = noise(100_000_000, 1);
    fs::write(world.source().join("f"), &content).unwrap();
    fs::copy(world.source().join("f"), world.source().join("g")).unwrap();
    settle();
    let host = world.host();
    let relay = Relay::start(host.listening);
    let mount = world.mount(&host.ticket_for(relay.address()), "");
    let sent_by_reading = |name: &str| {
        let before = relay.bytes_to_client();
        assert!(read_as_cat(&mount.path(name)) == content);
        relay.bytes_to_client() - before
    };
    assert!(sent_by_reading("f") > 100_000_000);
    // What is asked for twice on a slow machine is held the second time.
    let held_before = number(&mount.status(), "manifest_chunks_held");
    let chunks = content.len().div_ceil(256 * 1024) as u64;
    wait_until("it is in the cache", || number(&mount.status(), "cache_entries") >= chunks);
    let sent = sent_by_reading("g");
    assert!(sent < content.len() as u64 / 200, "{sent} bytes of a copy");
    let status = mount.status();
    let (asked, held) = (number(&status, "manifest_chunks"), number(&status, "manifest_chunks_held"));
    assert!(held - held_before >= chunks - 1 && held <= asked, "{status}");
    assert!(number(&host.status(), "index_misses") >= chunks - 16, "the host had not read g before");
    mount.umount();
}

#[test]
fn a_second_client_has_hashes_told_that_a_killed_host_had_computed() {
    let world = World::new();
    let content = noise(40_000_000, 1);
    fs::write(world.source().join("f"), &content).unwrap();
    fs::copy(world.source().join("f"), world.source().join("g")).unwrap();
    settle();
    // Where a thread makes system calls the kernel counts what it reads.
    let mut host = world.host_on("127.0.0.1:0", &["--io", "blocking"]);
    let read = |mount: &Mount, name: &str| assert!(fs::read(mount.path(name)).unwrap() == content);
    let first = world.mount(&host.ticket, "");
    read(&first, "f");
    first.umount();
    let own_cache = format!("cache_dir={}", world.path("other-cache").display());
    let second = world.mount(&host.ticket, &own_cache);
    read(&second, "g");
    second.umount();
    assert!(bytes_read(&host) >= 80_000_000);
    index_is_written(&world);
    host.kill();

    let host = world.host_on(&host.listening.to_string(), &["--io", "blocking"]);
    let relay = Relay::start(host.listening);
    let second = world.mount(&host.ticket_for(relay.address()), &own_cache);
    read(&second, "f");
    let status = host.status();
    assert_eq!(number(&status, "index_misses"), 0, "{status}");
    assert!(number(&status, "index_hits") >= 150, "{status}");
    assert!(number(&status, "index_used_bytes") > 10_000, "{status}");
    assert!(number(&status, "index_limit_bytes") > number(&status, "index_used_bytes"), "{status}");
    let (sent, read) = (relay.bytes_to_client(), bytes_read(&host));
    assert!(sent < 2_000_000, "{sent} bytes of a copy were sent");
    assert!(read < 4_000_000, "{read} bytes were read for hashes that were known");
    second.umount();
}

#[test]
fn a_second_sum_reads_nothing_also_after_a_restart() {
    let world = World::new();
    let content = noise(20_000_000, 1);
    fs::write(world.source().join("f"), &content).unwrap();
    settle();
    let mut host = world.host_on("127.0.0.1:0", &["--io", "blocking"]);
    let mount = world.mount(&host.ticket, "");
    let sum = || succeeds(wormhole().arg("sum").arg(mount.path("f")));
    let right = sum();
    assert!(right.starts_with(&blake3::hash(&content).to_string()), "{right}");
    index_is_written(&world);
    host.kill();
    let host = world.host_on(&host.listening.to_string(), &["--io", "blocking"]);
    assert_eq!(sum(), right);
    assert_eq!(number(&host.status(), "index_hits"), 1);
    assert!(bytes_read(&host) < 2_000_000, "{} bytes were read", bytes_read(&host));

    // Other content is another version.
    let mut content = content;
    content[7] ^= 1;
    fs::write(world.source().join("f"), &content).unwrap();
    assert!(sum().starts_with(&blake3::hash(&content).to_string()));
}

#[test]
fn the_first_byte_of_a_large_file_waits_for_no_hashing() {
    const SIZE: u64 = 10 << 30;
    let world = World::new();
    fs::write(world.source().join("small"), noise(3_000_000, 1)).unwrap();
    fs::File::create(world.source().join("large")).unwrap().set_len(SIZE).unwrap();
    settle();
    let host = world.host();
    let mount = world.mount(&host.ticket, "");
    fs::read(mount.path("small")).unwrap();
    wait_until("something is in the cache", || number(&mount.status(), "cache_entries") > 0);
    let began = Instant::now();
    let mut start = vec![1; 65_536];
    fs::File::open(mount.path("large")).unwrap().read_exact(&mut start).unwrap();
    let took = began.elapsed();
    assert!(start.iter().all(|byte| *byte == 0));
    assert!(took < Duration::from_secs(1), "{took:?}");
    let computed = number(&host.status(), "index_misses");
    assert!((1..2000).contains(&computed), "{computed} of {} chunks", SIZE / (256 * 1024));
    mount.umount();
}

#[test]
fn a_host_that_hashes_ahead_has_all_hashes_before_it_is_asked() {
    let world = World::new();
    let content = noise(30_000_000, 1);
    fs::create_dir(world.source().join("below")).unwrap();
    fs::write(world.source().join("below/g"), &content).unwrap();
    fs::write(world.source().join("f"), &content).unwrap();
    settle();
    let host = world.host_on("127.0.0.1:0", &["--index"]);
    wait_until("all is hashed", || number(&host.status(), "index_ahead_bytes") == 60_000_000);
    assert_eq!(number(&host.status(), "index_ahead_total_bytes"), 60_000_000);
    let mount = world.mount(&host.ticket, "");
    assert!(fs::read(mount.path("f")).unwrap() == content);
    wait_until("it is in the cache", || number(&mount.status(), "cache_entries") >= 115);
    assert!(fs::read(mount.path("below/g")).unwrap() == content);
    let status = host.status();
    assert_eq!(number(&status, "index_misses"), 0, "{status}");
    assert!(number(&status, "index_hits") >= 100, "{status}");
    let text = succeeds(wormhole().arg("status"));
    assert!(text.contains("hashed ahead 57.2 MiB of 57.2 MiB"), "{text}");
    mount.umount();
}

/// What is mapped on a tmpfs is written without a change of times: the host's note is of what the file held before.
#[test]
fn a_note_of_what_a_file_no_longer_holds_is_found_wrong_and_not_believed() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("LEFT OUT: only root can mount a tmpfs");
        return;
    }
    let world = World::new();
    printed_by("mount", &["-t", "tmpfs", "none", world.source().to_str().unwrap()]);
    let file = world.source().join("f");
    let (mut content, at) = (noise(3_000_000, 1), 1_500_000);
    fs::write(&file, &content).unwrap();
    // The first write to a mapped page changes the times, later ones do not.
    let script = "import mmap,sys\n\
        with open(sys.argv[1], 'r+b') as f, mmap.mmap(f.fileno(), 0) as m:\n\
        \x20   at = int(sys.argv[2]); m[at] = m[at]; print(flush=True); sys.stdin.readline(); m[at] ^= 1";
    let mut writer = Command::new("python3")
        .args(["-c", script, file.to_str().unwrap(), &at.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    writer.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    settle();
    let host = world.host();
    let read_anew = |name: &str| {
        let point = world.path(name);
        fs::create_dir_all(&point).unwrap();
        let cache = format!("cache_dir={}", world.path(&format!("cache-{name}")).display());
        succeeds(world.mount_command(&host.ticket, &point).args(["-o", &cache]));
        let read = read_as_cat(&point.join("f"));
        let status = status_of(&point);
        succeeds(wormhole().arg("umount").arg(&point));
        (read, number(&status, "bad_answers"))
    };
    assert!(read_anew("first") == (content.clone(), 0));
    let before = fs::metadata(&file).unwrap();
    content[at] ^= 1;
    writer.stdin.take().unwrap().write_all(b"now\n").unwrap();
    assert!(writer.wait().unwrap().success());
    let after = fs::metadata(&file).unwrap();
    assert_eq!((before.mtime_nsec(), before.ctime_nsec()), (after.mtime_nsec(), after.ctime_nsec()));
    let (read, bad_answers) = read_anew("second");
    assert!(read == content && bad_answers == 1, "{bad_answers} answers were found wrong");
    assert!(read_anew("third") == (content, 0), "the host has learnt it");
}
