//! The same random operations on a mount and on a folder of this machine: the same results, and the same tree in the end.
//!
//! `WORMHOLE_DIFFERENTIAL_LISTS` tells how many lists of operations are tried, `WORMHOLE_DIFFERENTIAL_SEED` which is the first.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, FallocateFlags, RenameFlags, copy_file_range, fallocate, renameat2};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, mknod, utimensat};
use nix::sys::time::TimeSpec;
use wormhole::io::sys::{XattrSet, XattrTarget, get_xattr, remove_xattr, set_xattr};

use crate::world::World;

const OPERATIONS_A_LIST: usize = 80;

/// `splitmix64`.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let value = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (value ^ (value >> 31)) % below
    }

    /// Few names, so that they meet.
    fn path(&mut self) -> String {
        let name = ["a", "b", "c", "d"][self.roll(4) as usize];
        match self.roll(5) {
            0 | 1 => name.to_owned(),
            2 | 3 => format!("{}/{name}", ["a", "b", "d"][self.roll(3) as usize]),
            _ => format!("d/{}/{name}", ["a", "b"][self.roll(2) as usize]),
        }
    }

    fn offset(&mut self) -> u64 {
        match self.roll(4) {
            0 => 0,
            1 => self.roll(10_000),
            2 => 4096 * self.roll(70),
            _ => 262_144 * self.roll(3) + self.roll(7),
        }
    }
}

/// One operation; both sides get the same.
struct Roll {
    kind: u64,
    one: String,
    other: String,
    slot: u64,
    offset: u64,
    len: u64,
    mode: u32,
    fill: usize,
}

impl Roll {
    fn new(dice: &mut Dice) -> Self {
        let (kind, one, other) = (dice.roll(29), dice.path(), dice.path());
        let (slot, offset, len) = (dice.roll(3), dice.offset(), dice.roll(20_000));
        let (mode, fill) = (dice.roll(512) as u32 | 0o600, dice.roll(251) as usize);
        Self { kind, one, other, slot, offset, len, mode, fill }
    }

    fn bytes(&self) -> Vec<u8> {
        (0..self.len as usize).map(|at| (at * self.fill) as u8).collect()
    }

    fn words(&self, what: &str) -> String {
        let Self { one, other, slot, offset, len, mode, .. } = self;
        format!("{what} {one} {other} slot {slot} offset {offset} len {len} mode {mode:o}")
    }
}

/// What one operation told: a number, bytes, or an error.
type Told = Result<Vec<u8>, Option<i32>>;

/// One side: a folder, and the files that are open in it.
struct Side {
    root: PathBuf,
    open: BTreeMap<u64, File>,
}

impl Side {
    fn new(root: PathBuf) -> Self {
        fs::create_dir(&root).unwrap();
        Self { root, open: BTreeMap::new() }
    }

    /// Does what was rolled.
    fn step(&mut self, roll: &Roll) -> (&'static str, Told) {
        let path = self.root.join(&roll.one);
        // Who opens a pipe waits for somebody at its other end.
        let is_pipe = path.metadata().is_ok_and(|found| found.file_type().is_fifo());
        match roll.kind {
            0..=10 => self.names(roll, &path, is_pipe),
            11..=16 => attributes(roll, &path, is_pipe),
            _ => self.content(roll, &path, is_pipe),
        }
    }

    fn names(&self, roll: &Roll, path: &Path, is_pipe: bool) -> (&'static str, Told) {
        let other = self.root.join(&roll.other);
        match roll.kind {
            0 | 1 if !is_pipe => ("write whole", done(fs::write(path, roll.bytes()))),
            0 | 1 => ("mkfifo", system(mknod(&other, SFlag::S_IFIFO, Mode::S_IRWXU, 0))),
            2 => ("mkdir", done(fs::create_dir(path))),
            3 => ("rmdir", done(fs::remove_dir(path))),
            4 => ("unlink", done(fs::remove_file(path))),
            5 | 6 => ("rename", done(fs::rename(path, &other))),
            7 => {
                let how = [RenameFlags::RENAME_NOREPLACE, RenameFlags::RENAME_EXCHANGE][roll.fill % 2];
                ("renameat2", system(renameat2(AT_FDCWD, path, AT_FDCWD, &other, how)))
            }
            8 => ("link", done(fs::hard_link(path, &other))),
            9 => ("symlink", done(symlink(&roll.other, path))),
            _ => {
                let mode = Mode::from_bits_truncate(roll.mode);
                ("mkfifo", system(mknod(path, SFlag::S_IFIFO, mode, 0)))
            }
        }
    }

    fn content(&mut self, roll: &Roll, path: &Path, is_pipe: bool) -> (&'static str, Told) {
        let (offset, len) = (roll.offset, roll.len);
        let nothing = |done: io::Result<()>| done.map(|()| Vec::new());
        let bytes = roll.bytes();
        let open = &self.open;
        let with = |work: &dyn Fn(&File) -> io::Result<Vec<u8>>| {
            open.get(&roll.slot).map_or(Ok(Vec::new()), |file| told(work(file)))
        };
        match roll.kind {
            17 if !is_pipe => ("read whole", told(fs::read(path))),
            18 if !is_pipe => {
                let opened = OpenOptions::new().write(true).open(path);
                ("truncate", done(opened.and_then(|file| file.set_len(offset))))
            }
            19 | 20 if !is_pipe => {
                let mut options = OpenOptions::new();
                let every = |count| roll.fill.is_multiple_of(count);
                options.read(true).write(!every(4)).mode(roll.mode).append(every(5));
                options.create(!every(4) && every(3));
                let opened = options.open(path);
                let told = opened.as_ref().map(|_| Vec::new()).map_err(io::Error::raw_os_error);
                if let Ok(file) = opened {
                    self.open.insert(roll.slot, file);
                }
                ("open", told)
            }
            17..=22 => ("pwrite", with(&|file| nothing(file.write_all_at(&bytes, offset)))),
            23 => ("pread", with(&|file| read_some(file, offset, len))),
            24 => ("ftruncate", with(&|file| nothing(file.set_len(offset)))),
            25 => ("fsync", with(&|file| nothing(file.sync_all()))),
            26 => ("fallocate", with(&|file| allocate(file, roll))),
            _ if is_pipe => ("nothing", Ok(Vec::new())),
            _ => ("copy_file_range", with(&|file| copy(file, path, roll))),
        }
    }

    /// Everything there is, name by name.
    fn tree(&self) -> Vec<String> {
        let mut lines = Vec::new();
        walk(&self.root, &self.root, &mut lines);
        lines
    }
}

fn attributes(roll: &Roll, path: &Path, is_pipe: bool) -> (&'static str, Told) {
    let found = path.symlink_metadata();
    match roll.kind {
        11 if !found.as_ref().is_ok_and(fs::Metadata::is_symlink) => {
            ("chmod", done(fs::set_permissions(path, fs::Permissions::from_mode(roll.mode))))
        }
        12 => {
            let mtime = TimeSpec::new(1_000_000_000 + roll.len as i64, roll.fill as i64);
            let set = utimensat(AT_FDCWD, path, &mtime, &mtime, UtimensatFlags::NoFollowSymlink);
            ("utimens", system(set))
        }
        13 => ("readlink", told(path.read_link().map(|to| to.into_os_string().into_encoded_bytes()))),
        14 | 15 if path.is_file() && !is_pipe => {
            let name = [c"user.one", c"user.two"][roll.fill % 2];
            let how = [XattrSet::Any, XattrSet::Create, XattrSet::Replace][roll.len as usize % 3];
            let c_path = CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
            let (target, bytes) = (XattrTarget::Path(&c_path), roll.bytes());
            match roll.offset % 3 {
                0 => ("setxattr", system(set_xattr(target, name, &bytes[..bytes.len().min(99)], how))),
                1 => ("removexattr", system(remove_xattr(target, name))),
                _ => ("getxattr", told(get_xattr(target, name).map_err(io::Error::from))),
            }
        }
        _ => ("stat", told(found.map(|found| summary(&found).into_bytes()))),
    }
}

fn allocate(file: &File, roll: &Roll) -> io::Result<Vec<u8>> {
    let flags = [
        FallocateFlags::empty(),
        FallocateFlags::FALLOC_FL_KEEP_SIZE,
        FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE,
        FallocateFlags::FALLOC_FL_ZERO_RANGE,
    ][roll.fill % 4];
    fallocate(file.as_fd(), flags, roll.offset as i64, roll.len as i64 + 1)?;
    Ok(Vec::new())
}

fn copy(file: &File, path: &Path, roll: &Roll) -> io::Result<Vec<u8>> {
    let Ok(to) = OpenOptions::new().write(true).open(path) else { return Ok(Vec::new()) };
    if !path.is_file() || to.metadata()?.ino() == file.metadata()?.ino() {
        return Ok(Vec::new());
    }
    let (mut from_at, mut to_at) = (0, roll.offset as i64);
    let copied = copy_file_range(file, Some(&mut from_at), &to, Some(&mut to_at), roll.len as usize)?;
    Ok(copied.to_le_bytes().to_vec())
}

fn done(result: io::Result<()>) -> Told {
    told(result.map(|()| Vec::new()))
}

fn system(result: nix::Result<()>) -> Told {
    done(result.map_err(io::Error::from))
}

fn told(result: io::Result<Vec<u8>>) -> Told {
    result.map_err(|error| error.raw_os_error())
}

fn read_some(file: &File, offset: u64, len: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len as usize];
    let mut at = 0;
    while at < bytes.len() {
        match file.read_at(&mut bytes[at..], offset + at as u64)? {
            0 => break,
            count => at += count,
        }
    }
    bytes.truncate(at);
    Ok(bytes)
}

/// What `stat` tells that must be the same; not what depends on the moment or the disk.
fn summary(found: &fs::Metadata) -> String {
    let size = if found.is_dir() { 0 } else { found.size() };
    let set_mtime = if found.mtime() < 1_100_000_000 { found.mtime_nsec() + found.mtime() } else { 0 };
    format!("{:o} size {size} links {} mtime {set_mtime}", found.mode(), found.nlink())
}

fn walk(root: &Path, folder: &Path, lines: &mut Vec<String>) {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let found = path.symlink_metadata().unwrap();
        let content = if found.is_file() {
            let xattr = |name| {
                let c_path = CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
                get_xattr(XattrTarget::Link(&c_path), name).unwrap_or_default()
            };
            let content = fs::read(&path).unwrap();
            format!("{} {:?} {:?}", blake3::hash(&content), xattr(c"user.one"), xattr(c"user.two"))
        } else if found.is_symlink() {
            format!("-> {}", path.read_link().unwrap().display())
        } else {
            String::new()
        };
        lines.push(format!("{} {} {content}", path.strip_prefix(root).unwrap().display(), summary(&found)));
        if found.is_dir() {
            walk(root, &path, lines);
        }
    }
}

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |text| text.parse().expect("a number"))
}

#[test]
fn a_mount_does_what_a_local_folder_does() {
    let world = World::new();
    let host = world.host();
    let mount = world.mount(&host.ticket, "rw");
    let (first, lists) = (number("WORMHOLE_DIFFERENTIAL_SEED", 1), number("WORMHOLE_DIFFERENTIAL_LISTS", 40));
    // Beside the export, on the same file system.
    fs::create_dir(world.path("local")).unwrap();
    for seed in first..first + lists {
        let name = format!("list-{seed}");
        let mut remote = Side::new(mount.path(&name));
        let mut local = Side::new(world.path("local").join(&name));
        let mut dice = Dice(seed);
        let mut history = Vec::new();
        for _ in 0..OPERATIONS_A_LIST {
            let roll = Roll::new(&mut dice);
            let (what, expected) = local.step(&roll);
            let words = roll.words(what);
            history.push(words.clone());
            let (_, told) = remote.step(&roll);
            assert!(
                told == expected,
                "seed {seed}: {words}\n told {:?}, expected {:?}\nafter\n{}",
                told.as_ref().map(Vec::len),
                expected.as_ref().map(Vec::len),
                history.join("\n")
            );
        }
        let expected = local.tree();
        assert_eq!(remote.tree(), expected, "seed {seed}, through the mount, after\n{}", history.join("\n"));
        let on_host = Side { root: world.source().join(&name), open: BTreeMap::new() };
        assert_eq!(on_host.tree(), expected, "seed {seed}, on the host, after\n{}", history.join("\n"));
    }
}
