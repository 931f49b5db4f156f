//! What is read through a mount is what lies on the host: a nasty tree, compared entry by entry.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::stat::Mode;
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};

use crate::world::{World, noise, printed_by, run};

/// Everything that trips file systems up, below `root`.
fn grow_nasty_tree(root: &Path) {
    for name in [
        b"plain" as &[u8],
        b" leading space",
        b"new\nline",
        b"quote\"'",
        b"\xff\xfe not utf-8",
        b"-rf",
        "ünïcödé 日本".as_bytes(),
        &[b'n'; 255],
    ] {
        fs::write(root.join(OsStr::from_bytes(name)), name).unwrap();
    }
    fs::write(root.join("empty"), b"").unwrap();
    for (name, len) in
        [("one", 1), ("chunk-1", 262_143), ("chunk", 262_144), ("chunk+1", 262_145), ("several", 3_333_333)]
    {
        fs::write(root.join(name), noise(len, len as u64)).unwrap();
    }
    let sparse = File::create(root.join("sparse")).unwrap();
    sparse.set_len(5 << 30).unwrap();
    sparse.write_all_at(b"middle", 3 << 30).unwrap();
    sparse.write_all_at(b"end", (5 << 30) - 3).unwrap();
    symlink("plain", root.join("link")).unwrap();
    symlink("/nowhere/at/all", root.join("dangling")).unwrap();
    symlink("../../../etc", root.join("outwards")).unwrap();
    fs::hard_link(root.join("chunk"), root.join("second name of chunk")).unwrap();
    nix::unistd::mkfifo(&root.join("fifo"), Mode::from_bits_truncate(0o640)).unwrap();
    fs::set_permissions(root.join("one"), PermissionsExt::from_mode(0o4751)).unwrap();
    let deep = (0..40).fold(root.join("deep"), |path, level| path.join(format!("level {level}")));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("bottom"), b"reached").unwrap();
    fs::create_dir(root.join("empty folder")).unwrap();
    let times = fs::FileTimes::new()
        .set_modified(std::time::UNIX_EPOCH + std::time::Duration::new(1_234_567_890, 123_456_789));
    File::options().write(true).open(root.join("one")).unwrap().set_times(times).unwrap();
}

/// All that can be said of each entry below `root`, content left out.
fn describe(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let target = if meta.is_symlink() { fs::read_link(&path).unwrap() } else { PathBuf::new() };
            let size = if meta.is_dir() { 0 } else { meta.size() };
            let line = format!(
                "mode {:o} links {} uid {} gid {} inode {} size {size} blocks {} mtime {}.{:09} ctime {}.{:09} -> {}",
                meta.mode(),
                meta.nlink(),
                meta.uid(),
                meta.gid(),
                meta.ino(),
                meta.blocks(),
                meta.mtime(),
                meta.mtime_nsec(),
                meta.ctime(),
                meta.ctime_nsec(),
                target.to_string_lossy(),
            );
            if meta.is_dir() {
                folders.push(path.clone());
            }
            found.insert(path.strip_prefix(root).unwrap().to_path_buf(), line);
        }
    }
    found
}

#[test]
fn a_nasty_tree_is_the_same_on_both_sides() {
    let world = World::new();
    grow_nasty_tree(&world.source());
    let host = world.host();
    let mount = world.mount(&host.ticket, "");
    assert_eq!(describe(&mount.point), describe(&world.source()));
    // Content, but for the sparse file, whose five gigabytes of nothing are compared by extent below.
    let difference = run(
        "diff",
        &[
            "-r",
            "--no-dereference",
            "--exclude=sparse",
            "--exclude=fifo",
            world.source().to_str().unwrap(),
            mount.point.to_str().unwrap(),
        ],
    );
    assert_eq!(String::from_utf8_lossy(&difference.stdout), "");
    assert!(difference.status.success(), "{}", String::from_utf8_lossy(&difference.stderr));
    mount.umount();
}

#[test]
fn a_sparse_file_keeps_its_holes() {
    let world = World::new();
    grow_nasty_tree(&world.source());
    let host = world.host();
    let mount = world.mount(&host.ticket, "");
    let mut here = File::open(mount.path("sparse")).unwrap();
    let mut there = File::open(world.source().join("sparse")).unwrap();
    assert_eq!(here.seek(SeekFrom::End(0)).unwrap(), 5 << 30);
    let mut offset = 0;
    while let Ok(Some(data)) = seek_data(&there, offset) {
        assert_eq!(seek_data(&here, offset).unwrap(), Some(data));
        let hole = nix::unistd::lseek(&there, data, nix::unistd::Whence::SeekHole).unwrap();
        assert_eq!(nix::unistd::lseek(&here, data, nix::unistd::Whence::SeekHole).unwrap(), hole);
        let (mut ours, mut theirs) = (vec![0; (hole - data) as usize], vec![0; (hole - data) as usize]);
        here.seek(SeekFrom::Start(data as u64)).unwrap();
        there.seek(SeekFrom::Start(data as u64)).unwrap();
        here.read_exact(&mut ours).unwrap();
        there.read_exact(&mut theirs).unwrap();
        assert!(ours == theirs, "bytes differ in the extent at {data}");
        offset = hole;
    }
    assert!(offset > 0, "the file system below the test keeps no holes");
    assert_eq!(seek_data(&here, offset).unwrap(), None);
}

fn seek_data(file: &File, offset: i64) -> nix::Result<Option<i64>> {
    match nix::unistd::lseek(file, offset, nix::unistd::Whence::SeekData) {
        Ok(found) => Ok(Some(found)),
        Err(nix::errno::Errno::ENXIO) => Ok(None),
        Err(error) => Err(error),
    }
}

#[test]
fn a_folder_of_twenty_thousand_is_listed_whole() {
    let world = World::new();
    let folder = world.source().join("many");
    fs::create_dir(&folder).unwrap();
    for number in 0..20_000 {
        File::create(folder.join(format!("entry number {number:05}"))).unwrap();
    }
    let host = world.host();
    let mount = world.mount(&host.ticket, "");
    let names = |path: PathBuf| -> Vec<OsString> {
        let mut names: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(mount.path("many")), names(folder));
    let listed = printed_by("ls", &["-lR", mount.point.to_str().unwrap()]);
    assert_eq!(listed.lines().filter(|line| line.contains("entry number")).count(), 20_000);
}

#[test]
fn xattrs_statfs_and_access_are_the_hosts() {
    let world = World::new();
    let file = world.source().join("file");
    fs::write(&file, b"content").unwrap();
    printed_by("setfattr", &["-n", "user.colour", "-v", "green", file.to_str().unwrap()]);
    let host = world.host();
    let mount = world.mount(&host.ticket, "");
    let here = mount.path("file");
    assert_eq!(
        printed_by("getfattr", &["--only-values", "-n", "user.colour", here.to_str().unwrap()]),
        "green"
    );
    assert!(printed_by("getfattr", &[here.to_str().unwrap()]).contains("user.colour"));
    assert!(!run("getfattr", &["-n", "user.none", here.to_str().unwrap()]).status.success());
    let here = nix::sys::statvfs::statvfs(&mount.point).unwrap();
    let there = nix::sys::statvfs::statvfs(&world.source()).unwrap();
    assert_eq!(
        (here.blocks() * here.fragment_size(), here.files()),
        (there.blocks() * there.fragment_size(), there.files())
    );
    assert_eq!(fs::metadata(mount.path("file")).unwrap().blksize(), 1 << 20);
}

/// Two counters lie almost a megabyte apart; the writer counts up the first, then the second. In every state of the file the
/// first is equal to the second or one ahead, so anything else is a mix of two states.
#[test]
fn a_file_that_is_written_to_is_never_mixed() {
    const SECOND_AT: u64 = READ_BYTES as u64 - 8;
    // One request of the kernel has at most 256 pages, and a buffer that is not aligned touches one more.
    const READ_BYTES: usize = (1 << 20) - 4096;
    let world = World::new();
    let file = world.source().join("flux");
    fs::write(&file, vec![0; 1 << 20]).unwrap();
    let host = world.host();
    let mount = world.mount(&host.ticket, "");
    let writer = {
        let file = File::options().write(true).open(&file).unwrap();
        std::thread::spawn(move || {
            for count in 1..=3_000u64 {
                file.write_all_at(&count.to_le_bytes(), 0).unwrap();
                file.write_all_at(&count.to_le_bytes(), SECOND_AT).unwrap();
                // Shorter than it takes to be told of a version and to ask for it, long enough for the host to read it.
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        })
    };
    let mut seen = std::collections::BTreeSet::new();
    let mut buffer = vec![0; READ_BYTES];
    while !writer.is_finished() {
        let file = File::open(mount.path("flux")).unwrap();
        for _ in 0..4 {
            file.read_exact_at(&mut buffer, 0).unwrap();
            let counter = |at: u64| u64::from_le_bytes(buffer[at as usize..][..8].try_into().unwrap());
            let (first, second) = (counter(0), counter(SECOND_AT));
            assert!(first == second || first == second + 1, "one call returned {first} and {second}");
            seen.insert(first);
        }
    }
    writer.join().unwrap();
    assert!(seen.len() > 1, "the reader never saw a change");
}

#[test]
fn changes_on_the_host_are_seen() {
    let world = World::new();
    let file = world.source().join("log");
    fs::write(&file, b"first\n").unwrap();
    let host = world.host();
    let mount = world.mount(&host.ticket, "");
    assert_eq!(fs::read(mount.path("log")).unwrap(), b"first\n");
    fs::write(&file, b"first\nsecond\n").unwrap();
    assert_eq!(
        fs::read(mount.path("log")).unwrap(),
        b"first\nsecond\n",
        "an open sees what was closed before"
    );
    fs::write(&file, b"1\n").unwrap();
    assert_eq!(fs::read(mount.path("log")).unwrap(), b"1\n", "also when it shrank");
    let replacement = world.source().join("log.new");
    fs::write(&replacement, b"replaced\n").unwrap();
    let open_before = File::open(mount.path("log")).unwrap();
    fs::rename(&replacement, &file).unwrap();
    let mut old = String::new();
    (&open_before).read_to_string(&mut old).unwrap();
    assert_eq!(old, "1\n", "an open file outlives its name");
    crate::world::wait_until("the new name is seen", || {
        fs::read(mount.path("log")).unwrap() == b"replaced\n"
    });
    fs::remove_file(&file).unwrap();
    crate::world::wait_until("the removal is seen", || !mount.path("log").exists());
}

#[test]
fn on_the_host_disk_and_network_work_at_the_same_time() {
    let (world, content) = (World::new(), noise(64 << 20, 12));
    fs::write(world.source().join("large"), &content).unwrap();
    // What lies in memory is read at once.
    let file = File::open(world.source().join("large")).unwrap();
    file.sync_all().unwrap();
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    let host = world.host();
    let mount = world.mount(&host.ticket, "cache=none");
    assert!(fs::read(mount.path("large")).unwrap() == content);
    let status = host.status();
    let mut gauges = vec!["send_in_flight_max"];
    if fstatfs(&file).unwrap().filesystem_type() == TMPFS_MAGIC {
        eprintln!("LEFT OUT: disk_in_flight_max, as nothing leaves the memory of a tmpfs");
    } else {
        gauges.push("disk_in_flight_max");
    }
    for gauge in gauges {
        assert!(status[gauge].as_u64().unwrap() > 1, "{gauge}: {status}");
    }
    for gauge in ["disk_in_flight", "send_in_flight"] {
        assert!(status[gauge].is_u64(), "{gauge}: {status}");
    }
}
