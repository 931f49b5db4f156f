//! The same random operations on a mount and on a folder of this machine: the same results, and the same tree in the end.
//!
//! `WORMHOLE_DIFFERENTIAL_LISTS` tells how many lists of operations are tried, `WORMHOLE_DIFFERENTIAL_SEED` which is the first.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, FallocateFlags, RenameFlags, copy_file_range, fallocate, renameat2};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, mknod, utimensat};
use nix::sys::time::TimeSpec;
use wormhole::io::sys::{XattrSet, XattrTarget, get_xattr, remove_xattr, set_xattr};

use crate::world::World;

const OPERATIONS_A_LIST: usize = 60;

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

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Does what the dice say; both sides get the same.
    fn step(&mut self, dice: &mut Dice) -> (String, Told) {
        let (kind, one, other) = (dice.roll(27), dice.path(), dice.path());
        let (slot, offset, len) = (dice.roll(3), dice.offset(), dice.roll(20_000));
        let (mode, fill) = (dice.roll(512) as u32 | 0o600, dice.roll(251) as u8);
        let (path, path2) = (self.path(&one), self.path(&other));
        // Who opens a pipe waits for somebody at its other end.
        let is_pipe = path.metadata().is_ok_and(|found| found.file_type().is_fifo());
        let kind = if is_pipe && [0, 1, 2, 12, 18, 19, 26].contains(&kind) { 15 } else { kind };
        let words =
            |what: &str| format!("{what} {one} {other} slot {slot} offset {offset} len {len} mode {mode:o}");
        let done = |result: io::Result<()>| told(result.map(|()| Vec::new()));
        let system = |result: nix::Result<()>| done(result.map_err(io::Error::from));
        let with = |open: &BTreeMap<u64, File>, work: &dyn Fn(&File) -> io::Result<Vec<u8>>| {
            open.get(&slot).map_or(Ok(Vec::new()), |file| told(work(file)))
        };
        let bytes: Vec<u8> = (0..len).map(|at| (at as u8).wrapping_mul(fill)).collect();
        match kind {
            0 | 1 => (words("write whole"), done(fs::write(&path, &bytes))),
            2 => (words("read whole"), told(fs::read(&path))),
            3 => (words("mkdir"), done(fs::create_dir(&path))),
            4 => (words("rmdir"), done(fs::remove_dir(&path))),
            5 => (words("unlink"), done(fs::remove_file(&path))),
            6 | 7 => (words("rename"), done(fs::rename(&path, &path2))),
            8 => {
                let how = [RenameFlags::RENAME_NOREPLACE, RenameFlags::RENAME_EXCHANGE][(fill % 2) as usize];
                (words("renameat2"), system(renameat2(AT_FDCWD, &path, AT_FDCWD, &path2, how)))
            }
            9 => (words("link"), done(fs::hard_link(&path, &path2))),
            10 => (words("symlink"), done(symlink(&other, &path))),
            11 => {
                let is_link = path.symlink_metadata().is_ok_and(|found| found.is_symlink());
                let set = || fs::set_permissions(&path, fs::Permissions::from_mode(mode));
                (words("chmod"), if is_link { Ok(Vec::new()) } else { done(set()) })
            }
            12 => {
                let open = OpenOptions::new().write(true).open(&path);
                (words("truncate"), done(open.and_then(|file| file.set_len(offset))))
            }
            13 => {
                let mtime = TimeSpec::new(1_000_000_000 + len as i64, i64::from(fill));
                let set = utimensat(AT_FDCWD, &path, &mtime, &mtime, UtimensatFlags::NoFollowSymlink);
                (words("utimens"), system(set))
            }
            14 => (words("mkfifo"), system(mknod(&path, SFlag::S_IFIFO, Mode::from_bits_truncate(mode), 0))),
            15 => (words("stat"), told(path.symlink_metadata().map(|found| summary(&found).into_bytes()))),
            16 => {
                (words("readlink"), told(path.read_link().map(|to| to.into_os_string().into_encoded_bytes())))
            }
            17 => {
                let name = [c"user.one", c"user.two"][(fill % 2) as usize];
                let how = [XattrSet::Any, XattrSet::Create, XattrSet::Replace][(len % 3) as usize];
                let c_path = CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
                let target = XattrTarget::Path(&c_path);
                if !path.is_file() {
                    return (words("no xattr"), Ok(Vec::new()));
                }
                match offset % 3 {
                    0 => (
                        words("setxattr"),
                        system(set_xattr(target, name, &bytes[..bytes.len().min(99)], how)),
                    ),
                    1 => (words("removexattr"), system(remove_xattr(target, name))),
                    _ => (words("getxattr"), told(get_xattr(target, name).map_err(io::Error::from))),
                }
            }
            18 | 19 => {
                let mut options = OpenOptions::new();
                options.read(true).write(fill % 4 != 0).mode(mode);
                options.append(fill % 5 == 0).create(fill % 4 != 0 && fill % 3 == 0);
                let opened = options.open(&path);
                let told = done(opened.as_ref().map(drop).map_err(clone));
                if let Ok(file) = opened {
                    self.open.insert(slot, file);
                }
                (words("open"), told)
            }
            20 | 21 => (
                words("pwrite"),
                with(&self.open, &|file| file.write_all_at(&bytes, offset).map(|()| Vec::new())),
            ),
            22 => (words("pread"), with(&self.open, &|file| read_some(file, offset, len))),
            23 => (words("ftruncate"), with(&self.open, &|file| file.set_len(offset).map(|()| Vec::new()))),
            24 => (words("fsync"), with(&self.open, &|file| file.sync_all().map(|()| Vec::new()))),
            25 => {
                let flags = [
                    FallocateFlags::empty(),
                    FallocateFlags::FALLOC_FL_KEEP_SIZE,
                    FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE,
                    FallocateFlags::FALLOC_FL_ZERO_RANGE,
                ][(fill % 4) as usize];
                let allocate = |file: &File| {
                    fallocate(file.as_fd(), flags, offset as i64, len as i64 + 1)?;
                    Ok(Vec::new())
                };
                (words("fallocate"), with(&self.open, &allocate))
            }
            _ => {
                let copy = |file: &File| {
                    let Ok(to) = OpenOptions::new().write(true).open(&path) else { return Ok(Vec::new()) };
                    if !path.is_file() || to.metadata()?.ino() == file.metadata()?.ino() {
                        return Ok(Vec::new());
                    }
                    let (mut from_at, mut to_at) = (0, offset as i64);
                    let copied =
                        copy_file_range(file, Some(&mut from_at), &to, Some(&mut to_at), len as usize)?;
                    Ok(copied.to_le_bytes().to_vec())
                };
                (words("copy_file_range"), with(&self.open, &copy))
            }
        }
    }

    /// Everything there is, name by name.
    fn tree(&self) -> Vec<String> {
        let mut lines = Vec::new();
        walk(&self.root, &self.root, &mut lines);
        lines
    }
}

fn clone(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| io::Error::from(ErrorKind::Other), io::Error::from_raw_os_error)
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
        let (mut dice, mut same_dice) = (Dice(seed), Dice(seed));
        let mut history = Vec::new();
        for _ in 0..OPERATIONS_A_LIST {
            let (words, expected) = local.step(&mut dice);
            history.push(words.clone());
            let (_, told) = remote.step(&mut same_dice);
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
