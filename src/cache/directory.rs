//! The cache directory: what marks it, who may write to it, which segment files it holds.
//!
//! ```text
//! CACHEDIR.TAG            marks the directory as a cache, for us and for backup programs (bford.info/cachedir)
//! v1/                     mode 0700; another version of the format gets a directory of its own
//! v1/format               the version, and the key of the checksums (see record.rs); mode 0600
//! v1/lock                 held while segments are made, taken up or removed
//! v1/segments/N.open      a segment that a process appends to, and holds locked
//! v1/segments/N.seg       a finished segment; N is 16 hexadecimal digits, higher is younger
//! v1/segments/N.pin       a finished segment that no process removes to make room (see pins.rs)
//! v1/pins/HASH.pin        which records somebody wants to keep, and under which name; mode 0600
//! v1/pins.lock            held while pins are made or taken back
//! ```
//!
//! The listing of `segments` is the truth about what the cache takes on disk, for all processes that share it.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::{AccessFlags, geteuid};
use tracing::warn;

use super::direct::{Direct, DirectIo};
use super::error::{CacheError, PinError};
use super::eviction::{Form, Listed};
use super::record::{Secret, SegmentId};
use super::store::Standing;
use super::way::Way;

const TAG_NAME: &str = "CACHEDIR.TAG";
const TAG_STEM: &str = "CACHEDIR.";
const TAG_SIGNATURE: &str = "Signature: 8a477f597d28d172789f06886806bc55";
const TAG_TEXT: &str = "Signature: 8a477f597d28d172789f06886806bc55\n\
    # This file marks a cache directory of wormhole. See https://bford.info/cachedir/ for what that means.\n";
const VERSION_DIR: &str = "v1";
const FORMAT_LINE: &str = "wormhole cache 1";

/// How long another process may hold the lock of the directory, in milliseconds. It is held for some milliseconds
/// while segments are listed, made and unlinked; a holder that takes longer was stopped.
const LOCK_WAIT_MS: u64 = 2000;

/// Between two tries for the lock, in milliseconds.
const LOCK_RETRY_MS: u64 = 2;

/// Most directory entries that are looked at in one listing: sixteen times what a cache may hold.
const LISTING_MAX: usize = 65_536;

/// Longest `format` file, in bytes.
const FORMAT_BYTES_MAX: u64 = 256;

/// An open cache directory.
#[derive(Debug)]
pub(super) struct Directory {
    versioned: PathBuf,
    pins: PathBuf,
    segments: PathBuf,
    /// Whether nothing can be written: another user's, or a read-only file system.
    pub(super) read_only: bool,
    /// Device and inode of the folder of segments when it was opened.
    opened_as: Option<(u64, u64)>,
    /// Whether the segments take direct I/O.
    pub(super) direct: Direct,
    warned_foreign: AtomicBool,
}

/// The lock of the directory; released when dropped.
pub(super) struct DirectoryLock(#[allow(dead_code, reason = "held, not read")] File);

impl Directory {
    /// Opens the cache in `root`, which is made and marked where needed; read-only where it cannot be written.
    pub(super) fn open(root: &Path, direct: DirectIo) -> Result<(Self, Secret), CacheError> {
        let mut directory = Self::at(root, direct);
        let prepared = directory.prepare(root);
        directory.opened_as = directory.identity().ok();
        match prepared {
            Ok(secret) => Ok((directory, secret)),
            Err(CacheError::Io { source, what, path }) if is_read_only(&source) => {
                // What is there can be read all the same.
                directory.read_only = true;
                if check_owner(&directory.versioned).is_err() {
                    return Err(CacheError::Io { what, path, source });
                }
                let Some(secret) = directory.read_format()? else {
                    return Err(CacheError::Io { what, path, source });
                };
                warn!(
                    "cache directory {} cannot be written; what it holds is used, nothing is added",
                    root.display()
                );
                Ok((directory, secret))
            }
            Err(error) => Err(error),
        }
    }

    fn at(root: &Path, direct: DirectIo) -> Self {
        let versioned = root.join(VERSION_DIR);
        let (segments, pins) = (versioned.join("segments"), versioned.join("pins"));
        let (direct, warned_foreign) = (Direct::new(direct), AtomicBool::new(false));
        Self { versioned, pins, segments, read_only: false, opened_as: None, direct, warned_foreign }
    }

    /// Opens the cache that is in `root` without making or changing anything.
    pub(super) fn look(root: &Path) -> Result<(Self, Secret), CacheError> {
        let directory = Self { read_only: true, ..Self::at(root, DirectIo::Auto) };
        let none = || CacheError::NotACache { path: root.to_owned() };
        if !is_tagged(root) || !directory.versioned.exists() {
            return Err(none());
        }
        check_owner(&directory.versioned)?;
        let secret = directory.read_format()?.ok_or_else(none)?;
        Ok((directory, secret))
    }

    /// Looks whether the directory is still the one that was opened, and whether it can be written to now. A disk that does not
    /// tell counts as before.
    pub(super) fn standing(&self) -> Standing {
        let is_missing =
            |found: io::Result<bool>| found.unwrap_or_else(|error| error.kind() == ErrorKind::NotFound);
        let moved = self.identity().map(|now| self.opened_as.is_some_and(|then| then != now));
        // The rest may be there because a file was made while the directory was being deleted.
        let format = fs::symlink_metadata(self.versioned.join("format")).map(|_| false);
        if is_missing(moved) || is_missing(format) {
            return Standing::Gone;
        }
        if self.read_only && nix::unistd::access(&self.segments, AccessFlags::W_OK).is_ok() {
            return Standing::WritableNow;
        }
        Standing::Good
    }

    fn identity(&self) -> io::Result<(u64, u64)> {
        fs::symlink_metadata(&self.segments).map(|found| (found.dev(), found.ino()))
    }

    fn prepare(&self, root: &Path) -> Result<Secret, CacheError> {
        make_dir(root)?;
        if !is_tagged(root) {
            refuse_foreign(root)?;
            let tag = root.join(TAG_NAME);
            replace_file(&tag, TAG_TEXT.as_bytes(), 0o600).map_err(CacheError::io("write", &tag))?;
        }
        make_dir(&self.versioned)?;
        check_owner(&self.versioned)?;
        make_dir(&self.segments)?;
        let _lock = self.lock()?;
        match self.read_format()? {
            Some(secret) => Ok(secret),
            None => self.start_over(),
        }
    }

    /// Waits for the lock of the directory, with a deadline. Keeps other processes from changing the set of segments.
    pub(super) fn lock(&self) -> Result<DirectoryLock, CacheError> {
        let path = self.versioned.join("lock");
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.map_err(CacheError::io("open", &path))?;
        let deadline = Instant::now() + Duration::from_millis(LOCK_WAIT_MS);
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(DirectoryLock(file)),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(LOCK_RETRY_MS));
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(CacheError::Busy { path: self.versioned.clone(), waited_ms: LOCK_WAIT_MS });
                }
                Err(TryLockError::Error(error)) => return Err(CacheError::io("lock", &path)(error)),
            }
        }
    }

    /// The segment files, oldest first. Other files are left alone, with one warning.
    pub(super) fn list(&self) -> io::Result<Vec<Listed>> {
        let mut found = BTreeMap::new();
        let mut foreign = None;
        for entry in fs::read_dir(&self.segments)?.take(LISTING_MAX) {
            let entry = entry?;
            let name = entry.file_name();
            let Some((id, form)) = name.to_str().and_then(parse_name) else {
                foreign = Some(name);
                continue;
            };
            match entry.metadata() {
                Ok(meta) if meta.is_file() && u32::try_from(meta.len()).is_ok() => {
                    found.insert(id, Listed { id, bytes: meta.len(), form });
                }
                Ok(_) => foreign = Some(name),
                // Evicted by another process, or renamed: what is renamed is there under its new name next time.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        if let Some(name) = foreign
            && !self.warned_foreign.swap(true, Ordering::Relaxed)
        {
            let segments = self.segments.display();
            warn!(
                "{segments} holds files that are not of the cache ({}, ...); they are left alone",
                name.display()
            );
        }
        Ok(found.into_values().collect())
    }

    /// Path of segment `id`.
    pub(super) fn path(&self, id: SegmentId, form: Form) -> PathBuf {
        self.segments.join(format!("{id:016x}.{}", suffix(form)))
    }

    /// Opens segment `id` for reading, finished or not.
    pub(super) fn open_segment(&self, id: SegmentId) -> io::Result<File> {
        self.open_with(id, no_follow().read(true))
    }

    /// Opens segment `id` for reading around the page cache; `None` where that does not work.
    pub(super) fn open_direct(&self, id: SegmentId) -> Option<File> {
        self.direct.open(|| self.open_with(id, no_follow_direct().read(true)))
    }

    /// Opens segment `id`, which this process has claimed, for writing around the page cache; `None` where that is not
    /// its `way` or does not work.
    pub(super) fn open_direct_to_append(&self, _: &DirectoryLock, id: SegmentId, way: Way) -> Option<File> {
        if !self.direct.writes(way) {
            return None;
        }
        self.direct.open(|| no_follow_direct().write(true).open(self.path(id, Form::Open)))
    }

    fn open_with(&self, id: SegmentId, options: &OpenOptions) -> io::Result<File> {
        // Twice the first two: it may be finished, or pinned, between two tries.
        let forms = [Form::Sealed, Form::Pinned, Form::Open, Form::Sealed, Form::Pinned];
        let mut result = Err(ErrorKind::NotFound.into());
        for form in forms {
            result = options.open(self.path(id, form));
            if !matches!(&result, Err(error) if error.kind() == ErrorKind::NotFound) {
                break;
            }
        }
        result
    }

    /// Opens segment `id` for appending and locks it; `None` while another process has it.
    pub(super) fn claim_segment(&self, id: SegmentId, form: Form) -> io::Result<Option<File>> {
        let file = no_follow().read(true).write(true).open(self.path(id, form))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Makes the new segment `id`, locked.
    pub(super) fn create_segment(&self, _: &DirectoryLock, id: SegmentId) -> io::Result<File> {
        let path = self.path(id, Form::Open);
        let file = no_follow().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        file.try_lock()?;
        Ok(file)
    }

    /// Renames segment `id` from one form to another.
    pub(super) fn rename_segment(
        &self,
        _: &DirectoryLock,
        id: SegmentId,
        from: Form,
        to: Form,
    ) -> io::Result<()> {
        fs::rename(self.path(id, from), self.path(id, to))
    }

    /// Unlinks segment `id`, unless it is pinned; it is well if it is gone already.
    pub(super) fn remove_segment(&self, _: &DirectoryLock, id: SegmentId) -> io::Result<()> {
        for form in [Form::Open, Form::Sealed] {
            match fs::remove_file(self.path(id, form)) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                result => return result,
            }
        }
        Ok(())
    }

    /// Free and total bytes of the file system.
    pub(super) fn space(&self) -> io::Result<(u64, u64)> {
        let stat = nix::sys::statvfs::statvfs(&self.segments)?;
        let unit = stat.fragment_size();
        Ok((stat.blocks_available() * unit, stat.blocks() * unit))
    }

    /// Where the pins are.
    pub(super) fn pins(&self) -> &Path {
        &self.pins
    }

    /// The file whose lock is the turn of one who makes or takes back pins.
    pub(super) fn open_pins_lock(&self) -> io::Result<File> {
        let path = self.versioned.join("pins.lock");
        no_follow().write(true).create(true).truncate(false).mode(0o600).open(path)
    }

    /// Writes a file of pins in one step that outlives a loss of power.
    pub(super) fn write_pin(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        DirBuilder::new().mode(0o700).recursive(true).create(&self.pins)?;
        replace_file(path, bytes, 0o600)?;
        for directory in [&self.pins, &self.segments] {
            File::open(directory)?.sync_all()?;
        }
        Ok(())
    }

    fn remove_pins(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.pins) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// The secret out of the `format` file; `None` where there is none that this version understands.
    fn read_format(&self) -> Result<Option<Secret>, CacheError> {
        let path = self.versioned.join("format");
        let mut text = String::new();
        match no_follow().read(true).open(&path) {
            Ok(file) => match file.take(FORMAT_BYTES_MAX).read_to_string(&mut text) {
                Ok(_) => Ok(parse_format(&text)),
                Err(error) if error.kind() == ErrorKind::InvalidData => Ok(None),
                Err(error) => Err(CacheError::io("read", &path)(error)),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(CacheError::io("open", &path)(error)),
        }
    }

    /// Makes a new secret. Segments made under an old one can never be read again, so they go. For holders of the
    /// lock.
    fn start_over(&self) -> Result<Secret, CacheError> {
        let path = self.versioned.join("format");
        self.remove_pins().map_err(CacheError::io("clear", &self.pins))?;
        let removed =
            remove_segments(&self.segments, true).map_err(CacheError::io("clear", &self.segments))?;
        if removed > 0 {
            warn!(
                "{} was missing or damaged: the cache starts over, {removed} bytes were removed",
                path.display()
            );
        }
        let mut random = [0; 32];
        let mut source =
            File::open("/dev/urandom").map_err(CacheError::io("open", Path::new("/dev/urandom")))?;
        source.read_exact(&mut random).map_err(CacheError::io("read", Path::new("/dev/urandom")))?;
        let secret = Secret::new(random);
        let text = format!("{FORMAT_LINE}\n{}\n", secret.to_hex());
        replace_file(&path, text.as_bytes(), 0o600).map_err(CacheError::io("write", &path))?;
        Ok(secret)
    }
}

/// Removes everything that is cached in `root`, whoever uses it at the moment; what is pinned only `with_pins`. Returns the
/// bytes freed. Refuses a directory that is not marked as a cache; touches nothing but segments and pins.
pub fn clear(root: &Path, with_pins: bool) -> Result<u64, PinError> {
    if !is_tagged(root) {
        return Err(CacheError::NotACache { path: root.to_owned() }.into());
    }
    let directory = Directory::at(root, DirectIo::Auto);
    if !directory.segments.exists() {
        return Ok(0);
    }
    let _turn = if with_pins { Some(directory.pins_turn()?) } else { None };
    let _lock = directory.lock()?;
    if with_pins {
        directory.remove_pins().map_err(CacheError::io("clear", &directory.pins))?;
    }
    let removed = remove_segments(&directory.segments, with_pins);
    Ok(removed.map_err(CacheError::io("clear", &directory.segments))?)
}

fn remove_segments(segments: &Path, with_pinned: bool) -> io::Result<u64> {
    let mut removed = 0;
    for entry in fs::read_dir(segments)? {
        let entry = entry?;
        let name = entry.file_name();
        let form = name.to_str().and_then(parse_name).map(|(_, form)| form);
        if form.is_some_and(|form| with_pinned || form != Form::Pinned) {
            let bytes = entry.metadata().map_or(0, |meta| meta.len());
            match fs::remove_file(entry.path()) {
                Ok(()) => removed += bytes,
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(removed)
}

const fn suffix(form: Form) -> &'static str {
    match form {
        Form::Open => "open",
        Form::Sealed => "seg",
        Form::Pinned => "pin",
    }
}

fn parse_name(name: &str) -> Option<(SegmentId, Form)> {
    let (digits, kind) = name.split_once('.')?;
    let form = [Form::Open, Form::Sealed, Form::Pinned].into_iter().find(|form| suffix(*form) == kind)?;
    let id = SegmentId::from_str_radix(digits, 16).ok()?;
    (format!("{id:016x}") == digits).then_some((id, form))
}

fn parse_format(text: &str) -> Option<Secret> {
    let (line, secret) = text.split_once('\n')?;
    (line == FORMAT_LINE).then(|| Secret::from_hex(secret.strip_suffix('\n')?))?
}

fn no_follow() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC);
    options
}

fn no_follow_direct() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_DIRECT);
    options
}

fn make_dir(path: &Path) -> Result<(), CacheError> {
    let made = DirBuilder::new().mode(0o700).recursive(true).create(path);
    made.map_err(CacheError::io("create", path))
}

/// Whether `directory` is ours alone; takes rights away from others where they have some.
fn check_owner(directory: &Path) -> Result<(), CacheError> {
    let meta = fs::symlink_metadata(directory).map_err(CacheError::io("look at", directory))?;
    let user = geteuid().as_raw();
    if meta.uid() != user && meta.uid() != 0 {
        return Err(CacheError::NotOurs { path: directory.to_owned(), owner: meta.uid(), user });
    }
    if meta.uid() == user && meta.mode() & 0o077 != 0 {
        let private = fs::Permissions::from_mode(0o700);
        fs::set_permissions(directory, private).map_err(CacheError::io("make private", directory))?;
    }
    Ok(())
}

fn is_tagged(root: &Path) -> bool {
    let mut start = [0; TAG_SIGNATURE.len()];
    let read = File::open(root.join(TAG_NAME)).and_then(|mut tag| tag.read_exact(&mut start));
    read.is_ok() && start == *TAG_SIGNATURE.as_bytes()
}

/// A home directory named by mistake must not be marked as something that backups leave out.
fn refuse_foreign(root: &Path) -> Result<(), CacheError> {
    let entries = fs::read_dir(root).map_err(CacheError::io("list", root))?;
    for entry in entries.take(LISTING_MAX) {
        let name = entry.map_err(CacheError::io("list", root))?.file_name();
        // Another process may be marking it at this moment; a fresh ext4 file system has lost+found. And a cache may have been deleted
        // while it was written to: then a part of it is left, without the mark.
        let is_left = name == VERSION_DIR && is_left(&root.join(VERSION_DIR));
        if name != "lost+found" && !is_left && !name.to_string_lossy().starts_with(TAG_STEM) {
            let marked_meanwhile = is_tagged(root);
            return marked_meanwhile.then_some(()).ok_or(CacheError::NotACache { path: root.to_owned() });
        }
    }
    Ok(())
}

/// Whether a folder holds nothing but what a cache makes there.
fn is_left(versioned: &Path) -> bool {
    let is_ours = |entry: io::Result<fs::DirEntry>| {
        entry.is_ok_and(|entry| {
            let name = entry.file_name();
            ["format", "lock", "segments", "pins"].iter().any(|stem| name.to_string_lossy().starts_with(stem))
        })
    };
    fs::read_dir(versioned).is_ok_and(|mut entries| entries.all(is_ours))
}

/// Writes `bytes` to `path` in one step: a reader sees the old file or the whole new one, also after a crash.
fn replace_file(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let temporary = path.with_extension(format!("{}-{count}.new", std::process::id()));
    let mut file = no_follow().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

fn is_read_only(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied)
}
