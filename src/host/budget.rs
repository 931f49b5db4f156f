//! What one key may use at a time, whatever it does.
//!
//! All connections and sessions of a key share one budget, and keys share the daemon's processor turns fairly. What a key has too
//! much of waits or is refused; other keys do not notice.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit, oneshot};

use super::lending::Lending;
use super::limits::KeyLimits;
use super::shares::Shares;
use super::turns::FairQueue;
use crate::proto::WRITE_BYTES_MAX;
use crate::transport::PublicKey;

/// Reads that all requests of a key may have ahead of what is being sent: 32 MiB, besides one a request.
const READS_AHEAD_MAX: usize = 128;

/// Requests of a key that read and hash much for a short answer: blocks, sums, hashes of ranges. Blocks hold 1.2 MiB each.
const HASHING_MAX: usize = 8;

/// Content of a key's writes that is taken in or written at a time, in units of the largest ordinary write: 64 MiB.
const RECEIVING_MAX: usize = 64;

/// Writes of a key whose content is here and waits for earlier content. They may take half of what may be taken in, so what
/// they wait for always finds room.
const WAITING_MAX: usize = RECEIVING_MAX / 2;

/// Content of a key's reads that is asked for and has not arrived, in units of [`READING_UNIT_BYTES`]: 512 MiB. Requests on a
/// connection that was cut count until it is given up, so it must be more than a mount has under way.
const READING_MAX: usize = 8192;
const READING_UNIT_BYTES: u64 = 64 << 10;

/// A pool that keys share, by the rule of [`Shares`].
#[derive(Debug, Clone)]
pub(super) struct Pool(Arc<Mutex<Shares<PublicKey>>>);

/// A part of a pool, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    pool: Pool,
    key: PublicKey,
}

impl Pool {
    /// A pool of `parts`.
    pub(super) fn new(parts: u64) -> Self {
        Self(Arc::new(Mutex::new(Shares::new(parts))))
    }

    /// One part for `key`, which may have `own_max`, unless it has its share.
    pub(super) fn take(&self, key: PublicKey, own_max: u64) -> Option<Place> {
        lock(&self.0).take(key, own_max).then(|| Place { pool: self.clone(), key })
    }

    /// Parts that `key` has.
    pub(super) fn of(&self, key: PublicKey) -> u64 {
        lock(&self.0).of(key)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.pool.0).give_back(self.key);
    }
}

/// The budgets of all keys.
#[derive(Debug)]
pub(super) struct Budgets {
    files: Pool,
    lending: Lending,
    turns: Arc<Turns>,
    keys: Mutex<HashMap<(PublicKey, KeyLimits), Weak<KeyBudget>>>,
    files_max: Mutex<HashMap<PublicKey, Weak<AtomicU64>>>,
}

/// What one key uses and may use.
#[derive(Debug)]
pub(super) struct KeyBudget {
    pub(super) key: PublicKey,
    pub(super) limits: KeyLimits,
    /// Its share of the disk engine's buffers.
    pub(super) lending: Lending,
    /// Its share of the daemon's open files.
    pub(super) files: FileBudget,
    turns: Arc<Turns>,
    requests: Arc<Semaphore>,
    threads: Arc<Semaphore>,
    ahead: Arc<Semaphore>,
    hashing: Semaphore,
    receiving: Semaphore,
    waiting: Arc<Semaphore>,
    reading: Semaphore,
}

/// Open files of a key.
#[derive(Debug, Clone)]
pub(super) struct FileBudget {
    pool: Pool,
    key: PublicKey,
    /// The most that the key may have open by its line of now, also for a session that began under another one.
    max: Arc<AtomicU64>,
}

impl FileBudget {
    /// Room for one more open file.
    pub(super) fn take(&self) -> Option<Place> {
        self.pool.take(self.key, self.max.load(Ordering::Relaxed))
    }

    /// Whose they are.
    pub(super) const fn key(&self) -> PublicKey {
        self.key
    }

    /// How many the key has open.
    pub(super) fn len(&self) -> u64 {
        self.pool.of(self.key)
    }
}

impl Budgets {
    /// Nobody uses anything. `files_max` files may be open for all together, `turns_max` requests have the processor at a time.
    pub(super) fn new(files_max: usize, lending: Lending, turns_max: usize) -> Self {
        Self {
            files: Pool::new(files_max as u64),
            lending,
            turns: Arc::new(Turns(Mutex::new(FairQueue::new(turns_max)))),
            keys: Mutex::default(),
            files_max: Mutex::default(),
        }
    }

    /// The budget of a key. One whose limits were changed begins another: its connections are made anew then.
    pub(super) fn of(&self, key: PublicKey, limits: KeyLimits) -> Arc<KeyBudget> {
        let files_max = self.files_max(key, limits);
        let mut keys = lock(&self.keys);
        if let Some(known) = keys.get(&(key, limits)).and_then(Weak::upgrade) {
            return known;
        }
        keys.retain(|_, budget| budget.strong_count() > 0);
        let semaphore = |places: u32| Semaphore::new(places as usize);
        let budget = Arc::new(KeyBudget {
            key,
            limits,
            lending: self.lending.for_key(),
            files: FileBudget { pool: self.files.clone(), key, max: files_max },
            turns: Arc::clone(&self.turns),
            requests: Arc::new(semaphore(limits.max_requests)),
            threads: Arc::new(semaphore(limits.max_threads)),
            ahead: Arc::new(Semaphore::new(READS_AHEAD_MAX)),
            hashing: Semaphore::new(HASHING_MAX),
            receiving: Semaphore::new(RECEIVING_MAX),
            waiting: Arc::new(Semaphore::new(WAITING_MAX)),
            reading: Semaphore::new(READING_MAX),
        });
        keys.insert((key, limits), Arc::downgrade(&budget));
        budget
    }

    /// Sets what a key may have open, for all of its sessions.
    fn files_max(&self, key: PublicKey, limits: KeyLimits) -> Arc<AtomicU64> {
        let mut all = lock(&self.files_max);
        all.retain(|_, max| max.strong_count() > 0);
        let max = all.get(&key).and_then(Weak::upgrade).unwrap_or_default();
        max.store(limits.max_open.into(), Ordering::Relaxed);
        all.insert(key, Arc::downgrade(&max));
        max
    }

    /// The budgets of keys that use something.
    pub(super) fn in_use(&self) -> Vec<Arc<KeyBudget>> {
        lock(&self.keys).values().filter_map(Weak::upgrade).collect()
    }
}

// Semaphores here are never closed, so waiting for one fails never; `None` would let the caller go on without a place.
impl KeyBudget {
    /// Requests that have a place now.
    pub(super) fn requests(&self) -> u64 {
        u64::from(self.limits.max_requests).saturating_sub(self.requests.available_permits() as u64)
    }

    /// Threads that are taken now.
    pub(super) fn threads(&self) -> u64 {
        u64::from(self.limits.max_threads).saturating_sub(self.threads.available_permits() as u64)
    }

    /// A place for one more request.
    pub(super) async fn place_for_request(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.requests).acquire_owned().await.ok()
    }

    /// A place on a thread that may wait for the disk.
    pub(super) async fn place_on_thread(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.threads).acquire_owned().await.ok()
    }

    /// Leave to read one more part before it is needed, where the key has not too many already.
    pub(super) fn leave_to_read_ahead(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.ahead).try_acquire_owned().ok()
    }

    /// A place to read and hash much for a short answer.
    pub(super) async fn place_for_hashing(&self) -> Option<SemaphorePermit<'_>> {
        self.hashing.acquire().await.ok()
    }

    /// Leave to take in the content of one more write, `len` bytes.
    pub(super) async fn leave_to_receive(&self, len: u32) -> Option<SemaphorePermit<'_>> {
        let places = u64::from(len).div_ceil(WRITE_BYTES_MAX).max(1) as u32;
        self.receiving.acquire_many(places).await.ok()
    }

    /// Leave to take in one more write that must wait for others.
    pub(super) async fn leave_to_wait(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.waiting).acquire_owned().await.ok()
    }

    /// Leave to read and send `len` bytes.
    pub(super) async fn leave_to_send(&self, len: u64) -> Option<SemaphorePermit<'_>> {
        let places = len.div_ceil(READING_UNIT_BYTES).clamp(1, READING_MAX as u64) as u32;
        self.reading.acquire_many(places).await.ok()
    }

    /// Waits for a turn at the processor.
    pub(super) async fn turn(&self) -> Turn {
        let mut told = None;
        let has_turn = lock(&self.turns.0).ask(self.key, || {
            let (tell, wait) = oneshot::channel();
            told = Some(wait);
            (self.key, tell)
        });
        let given = match told {
            Some(told) if !has_turn => told.await.ok(),
            _ => None,
        };
        let mut turn = given.unwrap_or_else(|| Turn::new(&self.turns, self.key));
        turn.begun = Instant::now();
        turn
    }
}

/// Who waits for a turn, and how he gets it.
type Waiting = (PublicKey, oneshot::Sender<Turn>);

#[derive(Debug)]
struct Turns(Mutex<FairQueue<PublicKey, Waiting>>);

/// A turn at the processor, until it is dropped. Not to be held while waiting for anything.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Arc<Turns>,
    key: PublicKey,
    begun: Instant,
    is_over: bool,
}

impl Turn {
    fn new(turns: &Arc<Turns>, key: PublicKey) -> Self {
        Self { turns: Arc::clone(turns), key, begun: Instant::now(), is_over: false }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let (mut key, mut spent) = (self.key, self.begun.elapsed());
        let mut is_over = self.is_over;
        while !is_over {
            let next = lock(&self.turns.0).end(key, spent);
            let Some((next, tell)) = next else { return };
            match tell.send(Self::new(&self.turns, next)) {
                Ok(()) => return,
                // He has left meanwhile: the one after him.
                Err(mut turn) => {
                    turn.is_over = true;
                    (key, spent, is_over) = (next, Duration::ZERO, false);
                }
            }
        }
    }
}

/// What the locks guard is whole between any two statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> PublicKey {
        PublicKey([byte; 32])
    }

    fn budgets(files_max: usize) -> Budgets {
        Budgets::new(files_max, Lending::new(8), 1)
    }

    #[test]
    fn a_key_has_one_budget_and_cannot_take_all_files() {
        let budgets = budgets(100);
        let (one, same) =
            (budgets.of(key(1), KeyLimits::default()), budgets.of(key(1), KeyLimits::default()));
        assert!(Arc::ptr_eq(&one, &same));
        let held: Vec<Place> = std::iter::from_fn(|| one.files.take()).collect();
        assert_eq!((held.len(), same.files.len()), (50, 50));
        let other = budgets.of(key(2), KeyLimits { max_open: 3, ..KeyLimits::default() });
        let others: Vec<Place> = std::iter::from_fn(|| other.files.take()).collect();
        assert_eq!(others.len(), 3);
        drop(held);
        assert!(same.files.take().is_some());
        // What began under other limits has those of now.
        let less = budgets.of(key(1), KeyLimits { max_open: 2, ..KeyLimits::default() });
        for files in [&one.files, &less.files] {
            let held: Vec<Place> = std::iter::from_fn(|| files.take()).collect();
            assert_eq!(held.len(), 2);
        }
    }

    #[tokio::test]
    async fn turns_go_on_when_those_who_wait_for_them_leave() {
        let budgets = budgets(1);
        let (one, other) =
            (budgets.of(key(1), KeyLimits::default()), budgets.of(key(2), KeyLimits::default()));
        let turn = one.turn().await;
        let mut leavers: Vec<_> = (0..10_000).map(|_| Box::pin(one.turn())).collect();
        for leaver in &mut leavers {
            assert!(futures_poll(leaver.as_mut()).is_none());
        }
        let mut waits = Box::pin(other.turn());
        assert!(futures_poll(waits.as_mut()).is_none());
        drop(leavers);
        drop(turn);
        drop(waits.await);
        drop(one.turn().await);
    }

    /// What a future has after one look.
    fn futures_poll<T>(future: std::pin::Pin<&mut impl Future<Output = T>>) -> Option<T> {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match future.poll(&mut context) {
            std::task::Poll::Ready(value) => Some(value),
            std::task::Poll::Pending => None,
        }
    }
}
