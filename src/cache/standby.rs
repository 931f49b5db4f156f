//! [`StandbyCache`]: a disk cache that may be unusable for a while. It does without a cache that cannot be
//! opened, was deleted or is read-only. It warns once, and uses the cache again as soon as that works.

use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, Weak};
use std::thread;
use std::time::Duration;

use tracing::{info, warn};

use super::error::PinError;
use super::pinning::PinBuilder;
use super::store::DirectoryState;
use super::{CacheConfig, CacheError, CacheStats, ChunkCache, DiskCache, FileKey, NoCache};
use crate::chunk::{ChunkHash, ChunkIndex, ChunkRange, VerifiedChunk};

/// Time between two checks of the directory. Each costs two or three system calls, or an attempt to open
/// the cache.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// Time between two checks for the last reader of a replaced cache.
const DROP_INTERVAL: Duration = Duration::from_millis(20);

/// The cache in a directory, or no cache while the directory is unusable.
pub struct StandbyCache {
    shared: Arc<Shared>,
    /// Ends the checking thread when dropped.
    _stop: SyncSender<()>,
}

struct Shared {
    config: CacheConfig,
    current: RwLock<Current>,
    on_available: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

/// Cache that answers now.
struct Current {
    cache: Arc<dyn ChunkCache>,
    /// The same cache, if it is on disk.
    disk: Option<Arc<DiskCache>>,
    /// Reason why it is not on disk.
    problem: Option<String>,
}

impl Current {
    fn on(disk: DiskCache) -> Self {
        let disk = Arc::new(disk);
        Self { cache: Arc::clone(&disk) as _, disk: Some(disk), problem: None }
    }

    fn off(problem: &CacheError) -> Self {
        Self { cache: Arc::new(NoCache), disk: None, problem: Some(problem.to_string()) }
    }
}

/// Action to take after a check.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Stay,
    /// Open the cache: there was none, or it became writable.
    Open,
    /// Open the cache: the directory of the old one is gone.
    Replace,
}

/// Derives the action from the state of the open cache; `None` means that no cache is open.
const fn step(state: Option<DirectoryState>) -> Step {
    match state {
        Some(DirectoryState::Good) => Step::Stay,
        Some(DirectoryState::Gone) => Step::Replace,
        Some(DirectoryState::BecameWritable) | None => Step::Open,
    }
}

impl StandbyCache {
    /// Opens the cache. If it cannot be opened now and the error `may_wait`, logs a warning and tries again
    /// later. Blocks on the disk.
    ///
    /// # Errors
    /// Errors that may not wait, and failure to start a thread.
    pub fn open(config: CacheConfig, may_wait: impl Fn(&CacheError) -> bool) -> Result<Self, CacheError> {
        Self::open_with_interval(config, may_wait, CHECK_INTERVAL)
    }

    fn open_with_interval(
        config: CacheConfig,
        may_wait: impl Fn(&CacheError) -> bool,
        every: Duration,
    ) -> Result<Self, CacheError> {
        let current = match DiskCache::open(&config) {
            Ok(disk) => Current::on(disk),
            Err(error) if may_wait(&error) => off(&error),
            Err(error) => return Err(error),
        };
        let directory = config.directory.clone();
        let shared =
            Arc::new(Shared { config, current: RwLock::new(current), on_available: OnceLock::new() });
        let (stop, stopped) = mpsc::sync_channel(0);
        let kept = Arc::downgrade(&shared);
        let keeper = move || {
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(every) {
                if !keep(&kept) {
                    return;
                }
            }
        };
        thread::Builder::new()
            .name("wormhole-standby".to_owned())
            .spawn(keeper)
            .map_err(CacheError::io("start the keeper of", &directory))?;
        Ok(Self { shared, _stop: stop })
    }

    /// Registers a callback that runs each time the cache becomes usable again. Only the first registration
    /// counts.
    pub fn on_available(&self, act: impl Fn() + Send + Sync + 'static) {
        let _ = self.shared.on_available.set(Box::new(act));
    }

    fn current(&self) -> Arc<dyn ChunkCache> {
        Arc::clone(&self.shared.read().cache)
    }
}

/// Checks the directory once and acts on the result. Returns `false` once the cache is dropped.
fn keep(kept: &Weak<Shared>) -> bool {
    let Some(shared) = kept.upgrade() else { return false };
    let disk = shared.read().disk.clone();
    let step = step(disk.as_ref().map(|disk| disk.state()));
    if step == Step::Replace {
        let directory = shared.config.directory.display();
        warn!("cache directory {directory} was deleted; it is created again");
    }
    if step == Step::Stay {
        return true;
    }
    match (DiskCache::open(&shared.config), disk) {
        (Ok(opened), left) => {
            drop(std::mem::replace(&mut *shared.write(), Current::on(opened)));
            info!("the disk cache is in use");
            if let Some(act) = shared.on_available.get() {
                act();
            }
            drop(shared);
            left.is_none_or(|left| leave(left, kept))
        }
        (Err(error), Some(left)) if step == Step::Replace => {
            drop(std::mem::replace(&mut *shared.write(), off(&error)));
            drop(shared);
            leave(left, kept)
        }
        (Err(error), None) => {
            shared.write().problem = Some(error.to_string());
            true
        }
        // It is still read-only.
        (Err(_), Some(_)) => true,
    }
}

/// Drops a cache after its last reader. The drop waits for the disk, and no reader should.
fn leave(mut left: Arc<DiskCache>, kept: &Weak<Shared>) -> bool {
    while kept.strong_count() > 0 {
        match Arc::try_unwrap(left) {
            Ok(last) => {
                drop(last);
                return true;
            }
            Err(used) => left = used,
        }
        thread::sleep(DROP_INTERVAL);
    }
    false
}

fn off(error: &CacheError) -> Current {
    warn!("the disk cache cannot be used now, continuing without it: {error}");
    Current::off(error)
}

impl Shared {
    fn read(&self) -> std::sync::RwLockReadGuard<'_, Current> {
        self.current.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Current> {
        self.current.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Every call goes to the current cache.
impl ChunkCache for StandbyCache {
    /// Always `true`: an unusable cache may become usable again.
    fn is_writable(&self) -> bool {
        true
    }

    fn problem(&self) -> Option<String> {
        let current = self.shared.read();
        current.problem.clone().or_else(|| current.cache.problem())
    }

    fn contains(&self, hash: ChunkHash) -> bool {
        self.current().contains(hash)
    }

    fn load_run(&self, hashes: &[ChunkHash]) -> Vec<Option<VerifiedChunk>> {
        self.current().load_run(hashes)
    }

    fn insert(&self, chunk: VerifiedChunk) {
        self.current().insert(chunk);
    }

    fn known_hash(&self, file: &FileKey, index: ChunkIndex) -> Option<ChunkHash> {
        self.current().known_hash(file, index)
    }

    fn knows_none(&self, file: &FileKey, chunks: ChunkRange) -> bool {
        self.current().knows_none(file, chunks)
    }

    fn record_hash(&self, file: &FileKey, index: ChunkIndex, hash: ChunkHash) {
        self.current().record_hash(file, index, hash);
    }

    fn flush_file(&self, file: &FileKey) {
        self.current().flush_file(file);
    }

    fn is_behind(&self) -> bool {
        self.current().is_behind()
    }

    fn writes_bytes_per_second(&self) -> u64 {
        self.current().writes_bytes_per_second()
    }

    fn flush(&self) -> bool {
        self.current().flush()
    }

    fn stats(&self) -> CacheStats {
        self.current().stats()
    }

    fn begin_pin(&self, name: &str) -> Result<PinBuilder, PinError> {
        self.current().begin_pin(name)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::path::Path;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Instant;

    use bytes::Bytes;

    use super::*;

    const OFTEN: Duration = Duration::from_millis(5);

    fn config(directory: &Path) -> CacheConfig {
        CacheConfig {
            directory: directory.join("cache"),
            size_bytes: 1 << 26,
            min_free_ratio: 0.0,
            segment_bytes: Some(1 << 20),
        }
    }

    fn open(directory: &Path) -> StandbyCache {
        StandbyCache::open_with_interval(config(directory), |_| true, OFTEN).unwrap()
    }

    fn chunk(number: u32) -> VerifiedChunk {
        VerifiedChunk::compute(Bytes::from(number.to_le_bytes().repeat(1000)))
    }

    fn until(what: &str, mut is_so: impl FnMut() -> bool) {
        let timeout = Instant::now() + Duration::from_secs(60);
        while !is_so() {
            assert!(Instant::now() < timeout, "timed out: {what}");
            thread::sleep(OFTEN);
        }
    }

    /// Returns `true` if the cache stores the chunk in its directory.
    fn keeps(cache: &StandbyCache, chunk: &VerifiedChunk) -> bool {
        cache.insert(chunk.clone());
        cache.flush() && cache.load(chunk.hash()).is_some()
    }

    #[test]
    fn the_directory_state_decides_the_step() {
        assert_eq!(step(None), Step::Open);
        assert_eq!(step(Some(DirectoryState::BecameWritable)), Step::Open);
        assert_eq!(step(Some(DirectoryState::Gone)), Step::Replace);
        assert_eq!(step(Some(DirectoryState::Good)), Step::Stay);
    }

    #[test]
    fn a_busy_directory_is_used_once_it_is_free() {
        let folder = tempfile::tempdir().unwrap();
        drop(open(folder.path()));
        let lock = File::open(folder.path().join("cache/v1/lock")).unwrap();
        lock.lock().unwrap();
        let cache = open(folder.path());
        assert!(cache.problem().unwrap().contains("busy"), "{:?}", cache.problem());
        let on_available = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&on_available);
        cache.on_available(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        assert!(!keeps(&cache, &chunk(1)) && cache.is_writable());
        drop(lock);
        until("it is available", || on_available.load(Ordering::Relaxed) == 1);
        assert_eq!(cache.problem(), None);
        assert!(keeps(&cache, &chunk(1)));
    }

    #[test]
    fn a_file_in_place_of_the_directory_is_a_passing_obstacle() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("cache"), "").unwrap();
        let refused = StandbyCache::open(config(folder.path()), |_| false);
        assert!(matches!(refused.err(), Some(CacheError::Io { .. })));
        let cache = open(folder.path());
        assert!(cache.problem().is_some());
        fs::remove_file(folder.path().join("cache")).unwrap();
        until("it is available", || cache.problem().is_none());
        assert!(keeps(&cache, &chunk(1)));
    }

    #[test]
    fn a_directory_deleted_under_load_is_created_again() {
        let folder = tempfile::tempdir().unwrap();
        let cache = open(folder.path());
        assert!(keeps(&cache, &chunk(0)));
        thread::scope(|scope| {
            let load = scope.spawn(|| {
                for number in 1..3000 {
                    cache.insert(chunk(number));
                    cache.load(chunk(number / 2).hash());
                }
            });
            while !load.is_finished() {
                // Files are created in the directory meanwhile.
                let _ = fs::remove_dir_all(folder.path().join("cache"));
                thread::sleep(OFTEN);
            }
        });
        let is_there =
            || DiskCache::open(&config(folder.path())).is_ok_and(|other| other.contains(chunk(9999).hash()));
        until("another process finds new content", || keeps(&cache, &chunk(9999)) && is_there());
        assert_eq!(cache.problem(), None);
    }
}
