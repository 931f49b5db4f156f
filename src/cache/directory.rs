//! The cache directory: what marks it, who may write to it, which segment files it holds.
//!
//! ```text
//! CACHEDIR.TAG            marks the directory as a cache, for us and for backup programs (bford.info/cachedir)
//! v1/                     mode 0700; another version of the format gets a directory of its own
//! v1/format               the version, and the key of the checksums (see record.rs); mode 0600
//! v1/lock                 held while segments are made, taken up or removed
//! v1/segments/N.open      a segment that a process appends to, and holds locked
//! v1/segments/N.seg       a finished segment; N is 16 hexadecimal digits, higher is younger
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

use nix::unistd::geteuid;
use tracing::warn;

use super::direct::{Direct, DirectIo};
use super::error::CacheError;
use super::eviction::Listed;
use super::record::{Secret, SegmentId};
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
    segments: PathBuf,
    /// Whether nothing can be written: another user's, or a read-only file system.
    pub(super) read_only: bool,
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
        match directory.prepare(root) {
            Ok(secret) => Ok((directory, secret)),
            Err(CacheError::Io { source, what, path }) if is_read_only(&source) => {
                // What is there can be read all the same.
                directory.read_only = true;
                check_owner(&directory.versioned).map_err(|_| CacheError::Io { what, path, source })?;
                let secret =
                    directory.read_format()?.ok_or(CacheError::NotACache { path: root.to_owned() })?;
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
        let segments = versioned.join("segments");
        let (direct, warned_foreign) = (Direct::new(direct), AtomicBool::new(false));
        Self { versioned, segments, read_only: false, direct, warned_foreign }
    }

    fn prepare(&self, root: &Path) -> Result<Secret, CacheError> {
        make_dir(root)?;
        if !is_tagged(root) {
            refuse_foreign(root)?;
            let tag = root.join(TAG_NAME);
            replace_file(&tag, TAG_TEXT, 0o600).map_err(CacheError::io("write", &tag))?;
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
            let Some((id, open)) = name.to_str().and_then(parse_name) else {
                foreign = Some(name);
                continue;
            };
            match entry.metadata() {
                Ok(meta) if meta.is_file() && u32::try_from(meta.len()).is_ok() => {
                    found.insert(id, Listed { id, bytes: meta.len(), open });
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
    pub(super) fn path(&self, id: SegmentId, open: bool) -> PathBuf {
        self.segments.join(format!("{id:016x}.{}", if open { "open" } else { "seg" }))
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
        self.direct.open(|| no_follow_direct().write(true).open(self.path(id, true)))
    }

    fn open_with(&self, id: SegmentId, options: &OpenOptions) -> io::Result<File> {
        let open = |open| options.open(self.path(id, open));
        match open(false) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            result => return result,
        }
        match open(true) {
            // Finished between the two tries.
            Err(error) if error.kind() == ErrorKind::NotFound => open(false),
            result => result,
        }
    }

    /// Opens segment `id` for appending and locks it; `None` while another process has it.
    pub(super) fn claim_segment(&self, id: SegmentId, open: bool) -> io::Result<Option<File>> {
        let file = no_follow().read(true).write(true).open(self.path(id, open))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Makes the new segment `id`, locked.
    pub(super) fn create_segment(&self, _: &DirectoryLock, id: SegmentId) -> io::Result<File> {
        let path = self.path(id, true);
        let file = no_follow().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        file.try_lock()?;
        Ok(file)
    }

    /// Renames segment `id` as finished, or as open again.
    pub(super) fn rename_segment(&self, _: &DirectoryLock, id: SegmentId, open: bool) -> io::Result<()> {
        fs::rename(self.path(id, !open), self.path(id, open))
    }

    /// Unlinks segment `id`; it is well if it is gone already.
    pub(super) fn remove_segment(&self, _: &DirectoryLock, id: SegmentId) -> io::Result<()> {
        for open in [true, false] {
            match fs::remove_file(self.path(id, open)) {
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
        let removed = remove_segments(&self.segments).map_err(CacheError::io("clear", &self.segments))?;
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
        replace_file(&path, &text, 0o600).map_err(CacheError::io("write", &path))?;
        Ok(secret)
    }
}

/// Removes everything that is cached in `root`, whoever uses it at the moment. Returns the bytes freed. Refuses a
/// directory that is not marked as a cache; touches nothing but segments.
pub fn clear(root: &Path) -> Result<u64, CacheError> {
    if !is_tagged(root) {
        return Err(CacheError::NotACache { path: root.to_owned() });
    }
    let directory = Directory::at(root, DirectIo::Auto);
    if !directory.segments.exists() {
        return Ok(0);
    }
    let _lock = directory.lock()?;
    remove_segments(&directory.segments).map_err(CacheError::io("clear", &directory.segments))
}

fn remove_segments(segments: &Path) -> io::Result<u64> {
    let mut removed = 0;
    for entry in fs::read_dir(segments)? {
        let entry = entry?;
        if entry.file_name().to_str().and_then(parse_name).is_some() {
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

fn parse_name(name: &str) -> Option<(SegmentId, bool)> {
    let (digits, kind) = name.split_once('.')?;
    let open = match kind {
        "open" => true,
        "seg" => false,
        _ => return None,
    };
    let id = SegmentId::from_str_radix(digits, 16).ok()?;
    (format!("{id:016x}") == digits).then_some((id, open))
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
        // Another process may be marking it at this moment; a fresh ext4 file system has lost+found.
        if name != "lost+found" && !name.to_string_lossy().starts_with(TAG_STEM) {
            let marked_meanwhile = is_tagged(root);
            return marked_meanwhile.then_some(()).ok_or(CacheError::NotACache { path: root.to_owned() });
        }
    }
    Ok(())
}

/// Writes `text` to `path` in one step: a reader sees the old file or the whole new one, also after a crash.
fn replace_file(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let temporary = path.with_extension(format!("{}-{count}.new", std::process::id()));
    let mut file = no_follow().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

fn is_read_only(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied)
}
