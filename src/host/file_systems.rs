//! File systems that files of the exports lie on: the id that is part of every node, and the trust class (`trust`).
//!
//! A device number names a file system for as long as it is mounted, and then another one. So each mount is looked at once, by its
//! number that is never used again; where the kernel has none (before Linux 6.8), and on btrfs, whose subvolumes come and go with
//! their device numbers, once a second.

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, fstatfs};
use nix::sys::statvfs::fstatvfs;

use super::confine::proc_path;
use super::context::boot_id;
use super::trust::{self, Facts, IdSource, Verdict};
use crate::io::sys::{self, Statx};
use crate::proto::{Trust, TrustReason};

/// How long a mount is taken for the same whose number may be used again.
const HOLDS: Duration = Duration::from_secs(1);

/// Most mounts that are remembered: a host with automounts sees new ones all the time. Each takes 100 bytes.
const MOUNTS_MAX: usize = 4096;

/// Most ids that are remembered: more than one machine mounts between two restarts.
const IDS_MAX: usize = 65_536;

/// Most file systems below one export that are shown.
const SHOWN_MAX: usize = 50;

/// A file system as clients are told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileSystem {
    /// Id, the device of every node on it.
    pub(super) id: u64,
    pub(super) verdict: Verdict,
}

/// Device number and mount of a file.
type MountKey = (u64, Option<u64>);

#[derive(Debug, Clone, Copy)]
struct Known {
    file_system: FileSystem,
    /// `None` where the mount's number is never used again.
    until: Option<Instant>,
}

#[derive(Debug, Default)]
struct Registry {
    mounts: HashMap<MountKey, Known>,
    /// Verdict on each id, and the device number under which it was seen last.
    ids: HashMap<u64, (Verdict, u64)>,
}

/// One for the process, as the kernel's mounts are: everything in it can be found out again.
static REGISTRY: LazyLock<RwLock<Registry>> = LazyLock::new(RwLock::default);

thread_local! {
    /// The last answer that holds for ever: most files lie where the one before lay.
    static LAST: Cell<Option<(MountKey, FileSystem)>> = const { Cell::new(None) };
}

/// Returns the file system of an open file, which may be an `O_PATH` descriptor, with these attributes.
pub(super) fn of_open(fd: BorrowedFd<'_>, raw: &Statx) -> FileSystem {
    known(raw).unwrap_or_else(|| learn(fd, raw))
}

/// Returns the file system of the entry `name` of `at`, with these attributes.
pub(super) fn of_entry(at: BorrowedFd<'_>, name: &CStr, raw: &Statx) -> FileSystem {
    if let Some(known) = known(raw) {
        return known;
    }
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let opened = openat(at, name, flags, Mode::empty());
    match opened.ok().and_then(|fd| Some((sys::fstatx(fd.as_fd()).ok()?, fd))) {
        Some((found, fd)) if key_of(&found) == key_of(raw) => learn(fd.as_fd(), raw),
        // It was replaced in between, or may not be opened: whoever asks again is told more.
        _ => FileSystem { id: device_id(raw.dev, 0, 0), verdict: trust::decide(UNKNOWN) },
    }
}

/// Returns the trust class of the file system with this id, as far as it was seen.
pub(super) fn trust_of(id: u64) -> Trust {
    reason_of(id).trust()
}

/// Returns the reason for that class.
pub(super) fn reason_of(id: u64) -> TrustReason {
    let registry = REGISTRY.read().unwrap_or_else(PoisonError::into_inner);
    registry.ids.get(&id).map_or(TrustReason::Unknown, |(verdict, _)| verdict.reason)
}

/// Returns the file system that a folder lies on.
pub(super) fn of_folder(folder: BorrowedFd<'_>) -> io::Result<FileSystem> {
    Ok(of_open(folder, &sys::fstatx(folder)?))
}

/// Returns the file systems that were seen below a folder, with where they are mounted; the folder's own is not among them. Asks
/// none of them.
pub(super) fn seen_below(folder: &Path, own: u64) -> Vec<(PathBuf, FileSystem)> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let registry = REGISTRY.read().unwrap_or_else(PoisonError::into_inner);
    let mounts = table.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(2);
        let (device, point) = (words.next()?, PathBuf::from(words.nth(1)?));
        let (major, minor) = device.split_once(':')?;
        let device = libc::makedev(major.parse().ok()?, minor.parse().ok()?);
        let seen = registry.mounts.iter().find(|((seen, _), _)| *seen == device)?.1.file_system;
        (point.starts_with(folder) && seen.id != own).then_some((point, seen))
    });
    mounts.take(SHOWN_MAX).collect()
}

/// Facts about what cannot be looked at.
const UNKNOWN: Facts =
    Facts { magic: 0, has_birth: false, has_fsid: false, has_uuid: false, has_twin: false };

fn key_of(raw: &Statx) -> MountKey {
    (raw.dev, raw.mount_id)
}

fn known(raw: &Statx) -> Option<FileSystem> {
    let key = key_of(raw);
    if let Some((_, last)) = LAST.get().filter(|(last, _)| *last == key) {
        return Some(last);
    }
    let registry = REGISTRY.read().unwrap_or_else(PoisonError::into_inner);
    let known = registry.mounts.get(&key)?;
    match known.until {
        Some(until) if Instant::now() >= until => return None,
        Some(_) => {}
        None => LAST.set(Some((key, known.file_system))),
    }
    Some(known.file_system)
}

/// Looks at a mount, outside of the lock, as that may wait for its disk.
fn learn(fd: BorrowedFd<'_>, raw: &Statx) -> FileSystem {
    let Ok(looked) = Look::at(fd, raw) else {
        return FileSystem { id: device_id(raw.dev, 0, 0), verdict: trust::decide(UNKNOWN) };
    };
    let twin = twin_of(&looked, raw.dev);
    let verdict = trust::decide(Facts { has_twin: twin, ..looked.facts });
    let id = looked.id(verdict.id_source, raw, twin);
    let file_system = FileSystem { id, verdict };
    let may_change = !raw.has_unique_mount_id || looked.facts.magic == BTRFS_SUPER_MAGIC.0;
    let until = may_change.then(|| Instant::now() + HOLDS);
    let mut registry = REGISTRY.write().unwrap_or_else(PoisonError::into_inner);
    if registry.mounts.len() >= MOUNTS_MAX {
        registry.mounts.clear();
    }
    if registry.ids.len() >= IDS_MAX {
        registry.ids.clear();
    }
    registry.mounts.insert(key_of(raw), Known { file_system, until });
    registry.ids.insert(id, (verdict, raw.dev));
    file_system
}

/// Whether a file system with the same UUID is mounted from another device.
fn twin_of(looked: &Look, device: u64) -> bool {
    let Some(id) = looked.lasting_id(trust::decide(looked.facts).id_source) else { return false };
    let other = {
        let registry = REGISTRY.read().unwrap_or_else(PoisonError::into_inner);
        registry.ids.get(&id).map(|(_, other)| *other)
    };
    other.is_some_and(|other| other != device && is_mounted(other))
}

/// Whether something is mounted from this device.
fn is_mounted(device: u64) -> bool {
    let wanted = format!("{}:{}", libc::major(device), libc::minor(device));
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().any(|line| line.split(' ').nth(2) == Some(wanted.as_str()))
}

/// One look at a file system.
#[derive(Debug)]
struct Look {
    facts: Facts,
    uuid: Option<[u8; 16]>,
    fsid: u64,
    blocks: u64,
    files: u64,
}

impl Look {
    fn at(fd: BorrowedFd<'_>, raw: &Statx) -> io::Result<Self> {
        let found = fstatfs(fd)?;
        let uuid = uuid_of(fd, raw);
        let fsid = fstatvfs(fd)?.filesystem_id();
        let facts = Facts {
            magic: found.filesystem_type().0,
            has_birth: raw.btime.is_some(),
            has_fsid: fsid != 0,
            has_uuid: uuid.is_some(),
            has_twin: false,
        };
        Ok(Self { facts, uuid, fsid, blocks: found.blocks(), files: found.files() })
    }

    fn id(&self, source: IdSource, raw: &Statx, has_twin: bool) -> u64 {
        match (self.lasting_id(source), source) {
            (Some(id), _) if has_twin => hash(b"twin", &[&id.to_le_bytes(), &raw.dev.to_le_bytes()]),
            (Some(id), _) => id,
            (None, IdSource::Image) => self.image_id(raw),
            (None, _) => device_id(raw.dev, self.facts.magic, self.fsid),
        }
    }

    /// An id that has nothing of the device number in it.
    fn lasting_id(&self, source: IdSource) -> Option<u64> {
        let magic = self.facts.magic.to_le_bytes();
        match source {
            IdSource::Fsid => Some(hash(b"fsid", &[&magic, &self.fsid.to_le_bytes()])),
            IdSource::Uuid => self.uuid.map(|uuid| hash(b"uuid", &[&magic, &uuid])),
            IdSource::Device | IdSource::Image => None,
        }
    }

    fn image_id(&self, raw: &Statx) -> u64 {
        let (magic, blocks, files) =
            (self.facts.magic.to_le_bytes(), self.blocks.to_le_bytes(), self.files.to_le_bytes());
        let place = backing_file(raw.dev).unwrap_or_else(|| {
            let mount = raw.mount_id.filter(|_| raw.has_unique_mount_id).unwrap_or_default();
            [raw.dev.to_le_bytes(), mount.to_le_bytes(), boot().to_le_bytes()].concat()
        });
        hash(b"image", &[&magic, &blocks, &files, &place])
    }
}

/// Opens what may be opened without a side effect, and asks for the UUID.
fn uuid_of(fd: BorrowedFd<'_>, raw: &Statx) -> Option<[u8; 16]> {
    if !matches!(raw.mode & libc::S_IFMT, libc::S_IFREG | libc::S_IFDIR) {
        return None;
    }
    let flags = libc::O_NONBLOCK | libc::O_NOATIME;
    let open = |flags| File::options().read(true).custom_flags(flags).open(proc_path(fd).as_str());
    let file = open(flags).or_else(|_| open(libc::O_NONBLOCK)).ok()?;
    sys::file_system_uuid(file.as_fd()).ok()
}

/// Names the file behind a loop device, in the state that it is in; `None` for other devices.
fn backing_file(device: u64) -> Option<Vec<u8>> {
    let node = format!("/sys/dev/block/{}:{}/loop/backing_file", libc::major(device), libc::minor(device));
    let path = std::fs::read(node).ok()?;
    let found =
        std::fs::metadata(PathBuf::from(String::from_utf8(path).ok()?.trim_end_matches('\n'))).ok()?;
    let numbers = [found.dev(), found.ino(), found.size()].map(u64::to_le_bytes);
    let times = [found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec()].map(i64::to_le_bytes);
    Some([numbers.concat(), times.concat()].concat())
}

fn boot() -> u64 {
    boot_id().map_or(0, |boot| hash(b"boot", &[&boot.0]))
}

fn device_id(device: u64, magic: i64, fsid: u64) -> u64 {
    let parts = [device.to_le_bytes(), magic.to_le_bytes(), fsid.to_le_bytes(), boot().to_le_bytes()];
    hash(b"device", &[&parts.concat()])
}

fn hash(what: &[u8], parts: &[&[u8]]) -> u64 {
    let mut hasher = blake3::Hasher::new_derive_key("wormhole 2026-11 id of a file system");
    hasher.update(what);
    for part in parts {
        hasher.update(part);
    }
    let mut first = [0; 8];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(first)
}
