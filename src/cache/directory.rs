//! The cache directory: its marker, its permissions, its segment files.
//!
//! ```text
//! CACHEDIR.TAG        marks a cache directory, for us and for backup programs (bford.info/cachedir)
//! v1/                 mode 0700; another format version gets a directory of its own
//! v1/format           format version and key of the checksums (see record.rs); mode 0600
//! v1/lock             locked while segments are created, adopted or removed
//! v1/segments/N.open  a segment that a process appends to and holds locked
//! v1/segments/N.seg   a sealed segment; N is 16 hexadecimal digits, higher is younger
//! v1/segments/N.pin   a sealed segment that no process evicts (see pins.rs)
//! v1/pins/HASH.pin    a pin: its name and the keys of its records; mode 0600
//! v1/pins.lock        locked while pins are made or removed
//! ```
//!
//! The listing of `segments` is the authority on the disk usage of the cache, for all processes that share
//! it.

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
use super::store::DirectoryState;
use super::write_mode::WriteMode;

const TAG_NAME: &str = "CACHEDIR.TAG";
const TAG_STEM: &str = "CACHEDIR.";
const TAG_SIGNATURE: &str = "Signature: 8a477f597d28d172789f06886806bc55";
const TAG_TEXT: &str = "Signature: 8a477f597d28d172789f06886806bc55\n\
    # This file marks a cache directory of wormhole. See https://bford.info/cachedir/ for what that means.\n";
const VERSION_DIR: &str = "v1";
const FORMAT_LINE: &str = "wormhole cache 1";

/// Time that another process may hold the lock of the directory, in milliseconds. The lock is held for some
/// milliseconds to list, create and unlink segments. A holder that takes longer was stopped.
const LOCK_WAIT_MS: u64 = 2000;

/// Time between two attempts to lock, in milliseconds.
const LOCK_RETRY_MS: u64 = 2;

/// Most directory entries read in one listing: sixteen times as many as a cache may hold.
const LISTING_MAX: usize = 65_536;

/// Longest `format` file in bytes.
const FORMAT_BYTES_MAX: u64 = 256;

/// Open cache directory.
#[derive(Debug)]
pub(super) struct Directory {
    versioned: PathBuf,
    pins: PathBuf,
    segments: PathBuf,
    /// True if nothing can be written: another user's directory, or a read-only file system.
    pub(super) read_only: bool,
    /// Device and inode of the `segments` folder when it was opened.
    opened_as: Option<(u64, u64)>,
    /// State of direct I/O on this file system.
    pub(super) direct: Direct,
    warned_foreign: AtomicBool,
}

/// Lock of the directory, released when dropped.
pub(super) struct DirectoryLock(#[allow(dead_code, reason = "held, not read")] File);

impl Directory {
    /// Opens the cache in `root`. Creates and marks it if necessary; opens it read-only if it cannot be
    /// written.
    pub(super) fn open(root: &Path, direct: DirectIo) -> Result<(Self, Secret), CacheError> {
        let mut directory = Self::at(root, direct);
        let prepared = directory.prepare(root);
        directory.opened_as = directory.identity().ok();
        match prepared {
            Ok(secret) => Ok((directory, secret)),
            Err(CacheError::Io { source, what, path }) if is_read_only(&source) => {
                // The existing content can still be read.
                directory.read_only = true;
                if check_owner(&directory.versioned).is_err() {
                    return Err(CacheError::Io { what, path, source });
                }
                let Some(secret) = directory.read_format()? else {
                    return Err(CacheError::Io { what, path, source });
                };
                warn!(
                    "cache directory {} cannot be written; its content is used, nothing is added",
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

    /// Opens the existing cache in `root` without creating or changing anything.
    pub(super) fn open_read_only(root: &Path) -> Result<(Self, Secret), CacheError> {
        let directory = Self { read_only: true, ..Self::at(root, DirectIo::Auto) };
        let none = || CacheError::NotACache { path: root.to_owned() };
        if !is_tagged(root) || !directory.versioned.exists() {
            return Err(none());
        }
        check_owner(&directory.versioned)?;
        let secret = directory.read_format()?.ok_or_else(none)?;
        Ok((directory, secret))
    }

    /// Checks if the directory is still the one that was opened, and if it can be written now. If the disk
    /// does not answer, the state counts as unchanged.
    pub(super) fn state(&self) -> DirectoryState {
        let is_missing =
            |found: io::Result<bool>| found.unwrap_or_else(|error| error.kind() == ErrorKind::NotFound);
        let moved = self.identity().map(|now| self.opened_as.is_some_and(|then| then != now));
        // A file created during the deletion can leave the folders behind.
        let format = fs::symlink_metadata(self.versioned.join("format")).map(|_| false);
        if is_missing(moved) || is_missing(format) {
            return DirectoryState::Gone;
        }
        if self.read_only && nix::unistd::access(&self.segments, AccessFlags::W_OK).is_ok() {
            return DirectoryState::BecameWritable;
        }
        DirectoryState::Good
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
            None => self.reset(),
        }
    }

    /// Waits for the lock of the directory, with a deadline. The lock keeps other processes from changing
    /// the set of segments.
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

    /// Returns the segment files, oldest first. Other files are left alone, with one warning.
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
                // Another process evicted or renamed it. The next listing shows the new name.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        if let Some(name) = foreign
            && !self.warned_foreign.swap(true, Ordering::Relaxed)
        {
            let segments = self.segments.display();
            warn!(
                "{segments} holds files that do not belong to the cache ({}, ...); they are left alone",
                name.display()
            );
        }
        Ok(found.into_values().collect())
    }

    /// Returns the path of segment `id`.
    pub(super) fn path(&self, id: SegmentId, form: Form) -> PathBuf {
        self.segments.join(format!("{id:016x}.{}", suffix(form)))
    }

    /// Opens segment `id` for reading, in any form.
    pub(super) fn open_segment(&self, id: SegmentId) -> io::Result<File> {
        self.open_with(id, no_follow().read(true))
    }

    /// Opens segment `id` for direct reads; `None` if that does not work.
    pub(super) fn open_direct(&self, id: SegmentId) -> Option<File> {
        self.direct.open(|| self.open_with(id, no_follow_direct().read(true)))
    }

    /// Opens segment `id`, claimed by this process, for direct writes. Returns `None` if its write mode is
    /// buffered or direct I/O does not work.
    pub(super) fn open_direct_to_append(
        &self,
        _: &DirectoryLock,
        id: SegmentId,
        mode: WriteMode,
    ) -> Option<File> {
        if !self.direct.writes(mode) {
            return None;
        }
        self.direct.open(|| no_follow_direct().write(true).open(self.path(id, Form::Open)))
    }

    fn open_with(&self, id: SegmentId, options: &OpenOptions) -> io::Result<File> {
        // The first two forms are tried twice, because the segment may be sealed or pinned between two
        // attempts.
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

    /// Opens segment `id` for appending and locks it; `None` while another process holds it.
    pub(super) fn claim_segment(&self, id: SegmentId, form: Form) -> io::Result<Option<File>> {
        let file = no_follow().read(true).write(true).open(self.path(id, form))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Creates segment `id` and locks it.
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

    /// Unlinks segment `id`, unless it is pinned. A missing segment is no error.
    pub(super) fn remove_segment(&self, _: &DirectoryLock, id: SegmentId) -> io::Result<()> {
        for form in [Form::Open, Form::Sealed] {
            match fs::remove_file(self.path(id, form)) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                result => return result,
            }
        }
        Ok(())
    }

    /// Returns the free and the total bytes of the file system.
    pub(super) fn space(&self) -> io::Result<(u64, u64)> {
        let stat = nix::sys::statvfs::statvfs(&self.segments)?;
        let unit = stat.fragment_size();
        Ok((stat.blocks_available() * unit, stat.blocks() * unit))
    }

    /// Returns the folder of the pins.
    pub(super) fn pins(&self) -> &Path {
        &self.pins
    }

    /// Opens the file whose lock serialises the changes of pins.
    pub(super) fn open_pins_lock(&self) -> io::Result<File> {
        let path = self.versioned.join("pins.lock");
        no_follow().write(true).create(true).truncate(false).mode(0o600).open(path)
    }

    /// Writes a pin file atomically, so that it survives a power loss.
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

    /// Reads the secret from the `format` file; `None` if the file is missing or of another version.
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

    /// Creates a new secret. Segments with an old secret are unreadable, so they are removed. The caller
    /// holds the lock.
    fn reset(&self) -> Result<Secret, CacheError> {
        let path = self.versioned.join("format");
        self.remove_pins().map_err(CacheError::io("clear", &self.pins))?;
        let removed =
            remove_segments(&self.segments, true).map_err(CacheError::io("clear", &self.segments))?;
        if removed > 0 {
            warn!(
                "{} was missing or damaged: the cache was reset, {removed} bytes were removed",
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

/// Removes the cached content in `root`, even while the cache is in use, and the pinned content only
/// `with_pins`. Returns the bytes freed. Refuses a directory that is not marked as a cache, and touches
/// only segments and pins.
pub fn clear(root: &Path, with_pins: bool) -> Result<u64, PinError> {
    if !is_tagged(root) {
        return Err(CacheError::NotACache { path: root.to_owned() }.into());
    }
    let directory = Directory::at(root, DirectIo::Auto);
    if !directory.segments.exists() {
        return Ok(0);
    }
    let _turn = if with_pins { Some(directory.lock_pins()?) } else { None };
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

/// Checks that `directory` belongs to this user or root, and removes the access of other users.
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

/// Refuses a non-empty directory. A home directory named by mistake must not be marked as a cache, because
/// backups leave caches out.
fn refuse_foreign(root: &Path) -> Result<(), CacheError> {
    let entries = fs::read_dir(root).map_err(CacheError::io("list", root))?;
    for entry in entries.take(LISTING_MAX) {
        let name = entry.map_err(CacheError::io("list", root))?.file_name();
        // Another process may be marking the directory at this moment. A fresh ext4 file system has
        // lost+found. A cache deleted during writes leaves a part without the mark.
        let is_leftover = name == VERSION_DIR && is_leftover(&root.join(VERSION_DIR));
        if name != "lost+found" && !is_leftover && !name.to_string_lossy().starts_with(TAG_STEM) {
            let marked_meanwhile = is_tagged(root);
            return marked_meanwhile.then_some(()).ok_or(CacheError::NotACache { path: root.to_owned() });
        }
    }
    Ok(())
}

/// Returns `true` if a folder holds only files that a cache creates there.
fn is_leftover(versioned: &Path) -> bool {
    let is_ours = |entry: io::Result<fs::DirEntry>| {
        entry.is_ok_and(|entry| {
            let name = entry.file_name();
            ["format", "lock", "segments", "pins"].iter().any(|stem| name.to_string_lossy().starts_with(stem))
        })
    };
    fs::read_dir(versioned).is_ok_and(|mut entries| entries.all(is_ours))
}

/// Writes `bytes` to `path` atomically: a reader sees the old file or the whole new one, even after a
/// crash.
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
