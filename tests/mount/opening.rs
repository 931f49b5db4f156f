//! What a program sees right after it has opened or closed a file, through a kernel that keeps attributes for an hour.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::time::Duration;

use wormhole::client::memory::MemoryHost;
use wormhole::fs::FsConfig;
use wormhole::fuse::FuseConfig;
use wormhole::proto::Request;

use super::{MountedWorld, has_fuse};
use crate::fs::LASTING;

const MIB: u64 = 1024 * 1024;

fn writable(host: MemoryHost) -> Option<MountedWorld> {
    let config = FsConfig { freshness: LASTING, read_only: false, ..FsConfig::default() };
    let fuse = FuseConfig { read_only: false, ..FuseConfig::default() };
    has_fuse().then(|| MountedWorld::mount_as(host, config, &fuse))
}

/// Ways to open a file that is there.
fn modes() -> Vec<(&'static str, OpenOptions)> {
    let with = |set: &dyn Fn(&mut OpenOptions) -> &mut OpenOptions| set(&mut OpenOptions::new()).clone();
    vec![
        ("read", with(&|options| options.read(true))),
        ("direct", with(&|options| options.read(true).custom_flags(libc::O_DIRECT))),
        ("write", with(&|options| options.write(true))),
        ("read and write", with(&|options| options.read(true).write(true))),
        ("append", with(&|options| options.append(true))),
        ("read and append", with(&|options| options.read(true).append(true))),
    ]
}

/// Changes of a file of `size` bytes in its place, and its size then.
fn changes(size: u64) -> [(&'static str, u64); 3] {
    [("cut", 10), ("longer by little", size + 100), ("longer by much", size + 2 * MIB)]
}

fn change_in_place(host: &MemoryHost, size: u64, new: u64) {
    if new < size {
        host.truncate("f", new);
    } else {
        host.append("f", vec![7; (new - size) as usize]);
    }
}

/// Has the kernel learn a file, changes it on the host, and calls `look` with what an open gives then.
fn for_each_change(is_young: bool, look: impl Fn(&MountedWorld, File, &str, u64)) {
    for size in [236, 3 * MIB] {
        for (how, new) in changes(size) {
            for (mode, options) in modes() {
                let host = MemoryHost::new();
                host.create_generated("f", size, 1);
                let Some(world) = writable(host) else { return };
                assert_eq!(fs::metadata(world.path("f")).unwrap().len(), size);
                change_in_place(&world.host, size, new);
                if !is_young {
                    world.host.advance(Duration::from_secs(3600));
                }
                let file = options.open(world.path("f")).unwrap();
                look(&world, file, &format!("{size} bytes, {how}, opened to {mode}"), new);
                world.end();
            }
        }
    }
}

#[test]
fn an_open_file_has_the_size_and_times_that_it_has_on_the_host() {
    for is_young in [false, true] {
        for_each_change(is_young, |world, mut file, case, size| {
            let (seen, host) = (file.metadata().unwrap(), world.host.attributes_of("f"));
            assert_eq!((seen.len(), seen.blocks()), (size, host.blocks), "fstat: {case}");
            assert_eq!(seen.mtime() * 1_000_000_000 + seen.mtime_nsec(), host.mtime.0, "{case}");
            assert_eq!(seen.ctime() * 1_000_000_000 + seen.ctime_nsec(), host.ctime.0, "{case}");
            assert_eq!(fs::metadata(world.path("f")).unwrap().len(), size, "stat: {case}");
            assert_eq!(file.seek(SeekFrom::End(0)).unwrap(), size, "{case}");
        });
    }
}

#[test]
fn the_end_of_an_open_file_is_the_host_s_before_anything_else_was_asked() {
    for_each_change(false, |world, mut file, case, size| {
        assert_eq!(file.seek(SeekFrom::End(0)).unwrap(), size, "{case}");
        let mut buffer = [0; 20];
        // Those opened for writing alone, and those past the page cache whose buffer lies badly, cannot be read here.
        if let Ok(count) = file.read_at(&mut buffer, size - 10) {
            assert_eq!(count, 10, "{case}");
            assert!(buffer[..10] == world.host.content_at("f", size - 10, 10), "{case}");
        }
    });
}

#[test]
fn a_file_is_mapped_in_the_length_that_it_has_on_the_host() {
    let script = "import mmap, sys, zlib\n\
        f = open(sys.argv[1], 'rb', buffering=0)\n\
        m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)\n\
        print(len(m), zlib.crc32(m))\n";
    for size in [236, 3 * MIB] {
        for (how, new) in changes(size) {
            let host = MemoryHost::new();
            host.create_generated("f", size, 1);
            let Some(world) = writable(host) else { return };
            assert_eq!(fs::metadata(world.path("f")).unwrap().len(), size);
            change_in_place(&world.host, size, new);
            world.host.advance(Duration::from_secs(3600));
            let expected = tempfile::NamedTempFile::new().unwrap();
            fs::write(expected.path(), world.host.content("f")).unwrap();
            let mapped = super::content::python(script, &[&world.path("f")]);
            assert_eq!(mapped, super::content::python(script, &[expected.path()]), "{size} bytes, {how}");
            world.end();
        }
    }
}

#[test]
fn what_is_shown_after_a_close_is_the_host_s_also_to_who_looked_before() {
    let Some(world) = writable(MemoryHost::new()) else { return };
    let mut file = File::create(world.path("f")).unwrap();
    world.host.hold(|request, _| matches!(request, Request::Write(..)));
    file.write_all(&vec![1; 70_000]).unwrap();
    file.write_all(&vec![2; 70_000]).unwrap();
    let seen = file.metadata().unwrap();
    assert_eq!(seen.len(), 140_000, "what is on its way counts");
    world.host.release_all();
    drop(file);
    let host = world.host.attributes_of("f");
    for _ in 0..2 {
        let seen = fs::metadata(world.path("f")).unwrap();
        assert_eq!((seen.len(), seen.blocks()), (140_000, host.blocks));
        assert_eq!(seen.mtime() * 1_000_000_000 + seen.mtime_nsec(), host.mtime.0);
        assert_eq!(seen.ctime() * 1_000_000_000 + seen.ctime_nsec(), host.ctime.0);
    }
    world.end();
}
