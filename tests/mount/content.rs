//! Content through the kernel: past the page cache and through it, mapped, sparse, changing.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use wormhole::client::memory::{MemoryHost, Stage};
use wormhole::proto::Request;

use super::MountedWorld;

const MIB: usize = 1024 * 1024;

#[test]
fn files_of_all_sizes_read_in_blocks_of_all_sizes_equal_the_hosts() {
    let host = MemoryHost::new();
    let sizes = [0, 1, 4095, 4097, 262_144, 262_145, MIB - 1, MIB, 3 * MIB + 17];
    for size in sizes {
        host.create_generated(format!("f{size}"), size as u64, size as u64);
    }
    let Some(world) = MountedWorld::new(host) else { return };
    for size in sizes {
        let expected = world.host.content(format!("f{size}"));
        for block in [1000, 128 * 1024, MIB] {
            let mut file = File::open(world.path(format!("f{size}"))).unwrap();
            let mut read = Vec::new();
            let mut buffer = vec![0; block];
            loop {
                let count = file.read(&mut buffer).unwrap();
                assert!(count == block || read.len() + count == size, "a short read inside the file");
                if count == 0 {
                    break;
                }
                read.extend_from_slice(&buffer[..count]);
            }
            assert!(read == expected, "size {size} in blocks of {block}");
        }
    }
    world.end();
}

#[test]
fn a_file_opened_for_direct_reads_equals_the_hosts() {
    let host = MemoryHost::new();
    host.create_generated("f", 300_000, 1);
    let Some(world) = MountedWorld::new(host) else { return };
    let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(world.path("f")).unwrap();
    let mut buffer = vec![0; 65_536];
    assert_eq!(file.read_at(&mut buffer, 131_072).unwrap(), buffer.len());
    assert!(buffer == world.host.content_at("f", 131_072, 65_536));
    drop(file);
    world.end();
}

/// Runs a few lines of Python, which can map files without unsafe code here.
pub(super) fn python(script: &str, arguments: &[&std::path::Path]) -> String {
    let output =
        std::process::Command::new("python3").arg("-c").arg(script).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn files_are_mapped_shared_and_private_whether_large_or_small() {
    let host = MemoryHost::new();
    host.create_generated("small", 100_000, 1);
    host.create_generated("large", 2 * MIB as u64 + 5, 2);
    let Some(world) = MountedWorld::new(host) else { return };
    let script = "import mmap,sys,hashlib\n\
        f = open(sys.argv[1], 'rb')\n\
        for flags in (mmap.MAP_SHARED, mmap.MAP_PRIVATE):\n\
        \x20   m = mmap.mmap(f.fileno(), 0, flags=flags, prot=mmap.PROT_READ)\n\
        \x20   print(hashlib.sha256(m[:]).hexdigest())";
    for name in ["small", "large"] {
        let sums = python(script, &[&world.path(name)]);
        let expected = sha256(&world.host.content(name));
        assert_eq!(sums, format!("{expected}\n{expected}"));
    }
    world.end();
}

fn sha256(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    data_encoding::HEXLOWER.encode(digest.as_ref())
}

#[test]
fn holes_are_found_where_the_host_has_them() {
    let host = MemoryHost::new();
    let size = 8 * MIB as u64;
    host.create_sparse("f", size, &[(2 * MIB as u64, vec![1u8; MIB].as_slice())]);
    let Some(world) = MountedWorld::new(host) else { return };
    let file = File::open(world.path("f")).unwrap();
    let seek = |offset, whence| nix::unistd::lseek64(&file, offset, whence).unwrap();
    let data = seek(0, nix::unistd::Whence::SeekData);
    let hole = seek(data, nix::unistd::Whence::SeekHole);
    assert_eq!((data, hole), (2 * MIB as i64, 3 * MIB as i64));
    let end = nix::unistd::lseek64(&file, hole, nix::unistd::Whence::SeekData);
    assert_eq!(end, Err(nix::errno::Errno::ENXIO));
    drop(file);
    world.end();
}

#[test]
fn a_change_on_the_host_is_seen_by_the_next_open_and_by_open_files() {
    for size in [1000, 2 * MIB] {
        let host = MemoryHost::new();
        host.create_file("f", vec![1; size]);
        let Some(world) = MountedWorld::new(host) else { return };
        let mut open = File::open(world.path("f")).unwrap();
        let mut read = Vec::new();
        open.read_to_end(&mut read).unwrap();
        assert!(read == vec![1; size]);
        world.host.write("f", 0, vec![2; size]);
        assert!(fs::read(world.path("f")).unwrap() == vec![2; size]);
        // The times of the file are as young as the change; the page cache must not hold on to what was before.
        read.clear();
        open.seek(SeekFrom::Start(0)).unwrap();
        open.read_to_end(&mut read).unwrap();
        assert!(read == vec![2; size], "size {size}");
        drop(open);
        world.end();
    }
}

#[test]
fn one_read_call_of_a_large_file_is_one_version() {
    let host = MemoryHost::new();
    host.create_file("f", vec![1; 2 * MIB]);
    let Some(world) = MountedWorld::new(host) else { return };
    let file = File::open(world.path("f")).unwrap();
    world.host.hold(|request, stage| matches!((request, stage), (Request::Read(..), Stage::Part(2))));
    let reader = std::thread::spawn(move || {
        let mut buffer = vec![0; MIB];
        let count = file.read_at(&mut buffer, 0).unwrap();
        (buffer, count)
    });
    world.runtime.block_on(world.host.until(|host| !host.held().is_empty()));
    world.host.write("f", 0, vec![2; 2 * MIB]);
    world.host.release_all();
    let (buffer, count) = reader.join().unwrap();
    assert_eq!(count, MIB);
    assert!(buffer == vec![2; MIB]);
    world.end();
}

#[test]
fn many_threads_read_one_file() {
    let host = MemoryHost::new();
    host.create_generated("f", 16 * MIB as u64, 1);
    let Some(world) = MountedWorld::new(host) else { return };
    let expected = world.host.content("f");
    let file = File::open(world.path("f")).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (file, expected) = (&file, &expected);
            scope.spawn(move || {
                let mut buffer = vec![0; 100_000];
                for step in 0..40 {
                    let offset = (thread * 2_000_003 + step * 777_777) % (15 * MIB);
                    file.read_exact_at(&mut buffer, offset as u64).unwrap();
                    assert!(buffer == expected[offset..offset + buffer.len()]);
                }
            });
        }
    });
    drop(file);
    world.end();
}

#[test]
fn an_unlinked_open_file_reads_on_and_its_name_is_gone() {
    let host = MemoryHost::new();
    host.create_generated("f", 2 * MIB as u64, 1);
    let expected = host.content("f");
    let Some(world) = MountedWorld::new(host) else { return };
    let mut file = File::open(world.path("f")).unwrap();
    world.host.unlink("f");
    let mut read = Vec::new();
    file.read_to_end(&mut read).unwrap();
    assert!(read == expected);
    assert_eq!(File::open(world.path("f")).unwrap_err().raw_os_error(), Some(libc::ENOENT));
    world.host.restart();
    let gone = file.read_at(&mut [0; 10], 0).unwrap_err();
    assert_eq!(gone.raw_os_error(), Some(libc::ESTALE));
    drop(file);
    world.end();
}
