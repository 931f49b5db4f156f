//! State shared by all calls and all connections of a client.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Instant, sleep};

use super::active_connection::ActiveConnection;
use super::link::Phase;
use super::meter::Meter;
use super::operations::Operations;
use super::statistics::Totals;
use crate::client::{CallError, away};
use crate::proto::{ActingUser, Attributes, BootId, InstanceId, SessionRun, TrustReason, Welcome, WireError};

/// Lock requests that wait on the host at once. They occupy streams for seconds, of which a connection has
/// 128. Further ones wait here.
const LOCK_WAITS_MAX: usize = 32;

/// State of one client.
pub(super) struct Shared {
    pub(super) deadline: Duration,
    pub(super) runs_from_bytes_per_second: u64,
    pub(super) slots: Vec<Slot>,
    pub(super) totals: Totals,
    pub(super) instance_changes: watch::Sender<u64>,
    pub(super) operations: Mutex<Operations>,
    /// The same for lock operations, some of which wait for seconds. They are separate, so that they delay no
    /// release of cached replies.
    pub(super) lock_operations: Mutex<Operations>,
    /// Permits for lock requests that wait on the host.
    pub(super) lock_waits: Semaphore,
    /// Session epoch that the host reported last.
    pub(super) run: watch::Sender<Option<SessionRun>>,
    closing: watch::Sender<bool>,
    changes: watch::Sender<()>,
    host: Mutex<Host>,
    meter: Mutex<Meter>,
    write_meter: Mutex<Meter>,
    unassigned: AtomicUsize,
    calls: AtomicUsize,
    started_at: Instant,
}

/// One of the client's connections.
pub(super) struct Slot {
    /// Notifies the supervisor that a call waits.
    pub(super) wake: Arc<Notify>,
    state: Mutex<SlotState>,
}

/// State of a connection, as its supervisor last published it.
#[derive(Clone)]
pub(super) struct SlotState {
    pub(super) phase: Phase,
    pub(super) silent_since: Option<Duration>,
    pub(super) live: Option<Arc<ActiveConnection>>,
    pub(super) refusal: Option<WireError>,
}

/// Data about the host from its last welcome.
struct Host {
    root: Attributes,
    instance: InstanceId,
    boot: BootId,
    acts_as: ActingUser,
    trust_reason: TrustReason,
}

impl Shared {
    pub(super) fn new(
        deadline: Duration,
        runs_from_bytes_per_second: u64,
        connections: usize,
        welcome: &Welcome,
    ) -> Self {
        let slot = |_| Slot {
            wake: Arc::new(Notify::new()),
            state: Mutex::new(SlotState {
                phase: Phase::Reconnecting,
                silent_since: Some(Duration::ZERO),
                live: None,
                refusal: None,
            }),
        };
        Self {
            deadline,
            runs_from_bytes_per_second,
            slots: (0..connections).map(slot).collect(),
            totals: Totals::default(),
            instance_changes: watch::channel(0).0,
            operations: Mutex::default(),
            lock_operations: Mutex::default(),
            lock_waits: Semaphore::new(LOCK_WAITS_MAX),
            run: watch::channel(Some(welcome.session)).0,
            closing: watch::channel(false).0,
            changes: watch::channel(()).0,
            host: Mutex::new(Host {
                root: welcome.root,
                instance: welcome.instance,
                boot: welcome.boot,
                acts_as: welcome.acts_as,
                trust_reason: welcome.trust_reason,
            }),
            meter: Mutex::default(),
            write_meter: Mutex::default(),
            unassigned: AtomicUsize::new(0),
            calls: AtomicUsize::new(0),
            started_at: Instant::now(),
        }
    }

    /// Returns the time since the client began.
    pub(super) fn now(&self) -> Duration {
        self.started_at.elapsed()
    }

    /// Returns the least busy connection. Waits while there is none.
    pub(super) async fn usable(&self) -> Result<Arc<ActiveConnection>, CallError> {
        if let Some(found) = self.choose() {
            return found;
        }
        let mut changes = self.changes.subscribe();
        let _unassigned = UnassignedCall::new(self);
        loop {
            if let Some(found) = self.choose() {
                return found;
            }
            if changes.changed().await.is_err() {
                return Err(CallError::Closed);
            }
        }
    }

    /// Publishes the state of a connection, and wakes waiting calls.
    pub(super) fn publish(&self, slot: usize, state: SlotState) {
        *locked(&self.slots[slot].state) = state;
        self.changes.send_replace(());
    }

    /// Returns the reason for the trust class of the root's file system.
    pub(super) fn trust_reason(&self) -> TrustReason {
        locked(&self.host).trust_reason
    }

    /// Records a welcome, and notices a restart of the host.
    pub(super) fn welcomed(&self, welcome: &Welcome) {
        let mut host = locked(&self.host);
        (host.root, host.boot, host.trust_reason) = (welcome.root, welcome.boot, welcome.trust_reason);
        if std::mem::replace(&mut host.acts_as, welcome.acts_as) != welcome.acts_as {
            let ActingUser { uid, gid } = welcome.acts_as;
            tracing::warn!(
                "the host now acts as its user {uid}, group {gid} for this mount; `idmap=user` follows at the next mount"
            );
        }
        let changed = std::mem::replace(&mut host.instance, welcome.instance) != welcome.instance;
        drop(host);
        self.run.send_if_modified(|run| run.replace(welcome.session) != Some(welcome.session));
        if changed {
            self.instance_changes.send_modify(|count| *count += 1);
        }
    }

    pub(super) fn root(&self) -> Attributes {
        locked(&self.host).root
    }

    pub(super) fn instance(&self) -> InstanceId {
        locked(&self.host).instance
    }

    pub(super) fn boot(&self) -> BootId {
        locked(&self.host).boot
    }

    /// Closes the client.
    pub(super) fn close(&self) {
        self.closing.send_replace(true);
    }

    /// Waits until the client is closed.
    pub(super) async fn closed(&self) {
        // The sender lives as long as `self`.
        let _ = self.closing.subscribe().wait_for(|closing| *closing).await;
    }

    /// Returns the number of calls that wait for any connection.
    pub(super) fn unassigned(&self) -> usize {
        self.unassigned.load(Ordering::Relaxed)
    }

    /// Returns the number of calls under way.
    pub(super) fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    pub(super) fn meter(&self) -> MutexGuard<'_, Meter> {
        locked(&self.meter)
    }

    pub(super) fn write_meter(&self) -> MutexGuard<'_, Meter> {
        locked(&self.write_meter)
    }

    /// Returns true if the host answers on some connection.
    pub(super) fn is_connected(&self) -> bool {
        self.states().any(|state| state.phase == Phase::Connected)
    }

    /// Returns the silence of the host over all connections, zero while it answers on one.
    pub(super) fn silent_for(&self) -> Duration {
        let now = self.now();
        let silences = self
            .states()
            .map(|state| state.silent_since.map_or(Duration::ZERO, |since| now.saturating_sub(since)));
        silences.min().unwrap_or_default()
    }

    /// Waits until a call that begins now has used its `deadline`, or the host is away.
    pub(super) async fn too_late(&self, deadline: Duration) {
        let begun = self.now();
        loop {
            let waited = self.now().saturating_sub(begun);
            let left = away::left(deadline.saturating_sub(waited), self.deadline, waited, self.silent_for());
            if left.is_zero() {
                return;
            }
            sleep(left).await;
        }
    }

    /// Returns the states of the connections.
    pub(super) fn states(&self) -> impl Iterator<Item = SlotState> {
        self.slots.iter().map(|slot| locked(&slot.state).clone())
    }

    fn choose(&self) -> Option<Result<Arc<ActiveConnection>, CallError>> {
        let mut best: Option<(u8, (u64, usize), Arc<ActiveConnection>)> = None;
        let mut refusal = None;
        for state in self.states() {
            match state.live.filter(|live| live.is_open()) {
                Some(live) => {
                    let rank = (u8::from(state.phase != Phase::Connected), live.load());
                    if best.as_ref().is_none_or(|best| rank < (best.0, best.1)) {
                        best = Some((rank.0, rank.1, live));
                    }
                }
                None => refusal = refusal.or(state.refusal.filter(|_| state.phase == Phase::Refused)),
            }
        }
        best.map(|(_, _, live)| Ok(live)).or_else(|| refusal.map(|refusal| Err(refusal.into())))
    }
}

/// Counts a call as under way until dropped.
pub(super) struct CallCount<'a>(&'a AtomicUsize);

impl<'a> CallCount<'a> {
    pub(super) fn new(shared: &'a Shared) -> Self {
        shared.calls.fetch_add(1, Ordering::Relaxed);
        shared.totals.requests.fetch_add(1, Ordering::Relaxed);
        Self(&shared.calls)
    }
}

impl Drop for CallCount<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts a write in its meter until dropped.
pub(super) struct MeteredWrite<'a>(&'a Shared);

impl<'a> MeteredWrite<'a> {
    pub(super) fn new(shared: &'a Shared) -> Self {
        shared.write_meter().begin();
        Self(shared)
    }

    pub(super) fn accepted(&self, bytes: u64) {
        self.0.write_meter().arrived(self.0.now(), bytes);
    }
}

impl Drop for MeteredWrite<'_> {
    fn drop(&mut self) {
        self.0.write_meter().end();
    }
}

/// Counts a read in the meter until dropped.
pub(super) struct Metered<'a>(&'a Shared);

impl<'a> Metered<'a> {
    pub(super) fn new(shared: &'a Shared) -> Self {
        shared.meter().begin();
        Self(shared)
    }

    pub(super) fn arrived(&self, bytes: u64) {
        self.0.totals.content_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.0.meter().arrived(self.0.now(), bytes);
    }
}

impl Drop for Metered<'_> {
    fn drop(&mut self) {
        self.0.meter().end();
    }
}

struct UnassignedCall<'a>(&'a AtomicUsize);

impl<'a> UnassignedCall<'a> {
    fn new(shared: &'a Shared) -> Self {
        if shared.unassigned.fetch_add(1, Ordering::Relaxed) == 0 {
            shared.slots.iter().for_each(|slot| slot.wake.notify_one());
        }
        Self(&shared.unassigned)
    }
}

impl Drop for UnassignedCall<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Adds to a counter.
pub(super) fn add(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}
