//! The door and what lies behind it: places of strangers and of keys, and the log of who was refused.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

use super::budget::{Place, Pool};
use super::counters::Counters;
use super::door::{Door, DoorLimits, Source, StrangerId, Verdict};
use super::refusals::{RefusalLine, Refusals};
use crate::transport::{Incoming, PublicKey, TransportKind};

/// Who is at the door, who is in, and who was refused.
#[derive(Debug)]
pub(super) struct Entry {
    /// One for QUIC, one for TCP: a flood over one of them leaves the other.
    doors: [Mutex<Door<Arc<Notify>>>; 2],
    connections: Pool,
    /// Keys that may come in, as far as was seen a moment ago, and how many connections each may have.
    known: Mutex<HashMap<PublicKey, u32>>,
    refusals: Mutex<Refusals>,
    counters: Arc<Counters>,
}

/// A stranger's place, until it is dropped.
#[derive(Debug)]
pub(super) struct StrangerPlace {
    entry: Arc<Entry>,
    transport: usize,
    id: StrangerId,
    dropped: Arc<Notify>,
}

impl Entry {
    /// Nobody is there. At most `strangers_max` strangers come over each transport, and `connections_max` connections are let in.
    pub(super) fn new(strangers_max: usize, connections_max: usize, counters: Arc<Counters>) -> Self {
        let door = || Mutex::new(Door::new(DoorLimits::new(strangers_max)));
        Self {
            doors: [door(), door()],
            connections: Pool::new(connections_max as u64),
            known: Mutex::default(),
            refusals: Mutex::default(),
            counters,
        }
    }

    /// Decides about a client that knocks. `None`: it comes again, with a proof of its address.
    pub(super) fn knock(self: &Arc<Self>, incoming: Incoming) -> Option<(Incoming, StrangerPlace)> {
        let address = incoming.remote_address();
        let transport = usize::from(incoming.kind() == TransportKind::Tcp);
        let (dropped, random) = (Arc::new(Notify::new()), RandomState::new().hash_one(address));
        let verdict = lock(&self.doors[transport]).knock(
            Source::of(address.ip()),
            incoming.is_address_proved(),
            random,
            Arc::clone(&dropped),
        );
        match verdict {
            Verdict::ProveAddress => {
                incoming.ask_for_proof();
                None
            }
            Verdict::Enter(id, instead) => {
                // Kept until it is waited for.
                instead.inspect(|instead| instead.notify_one());
                Some((incoming, StrangerPlace { entry: Arc::clone(self), transport, id, dropped }))
            }
        }
    }

    /// A place for a connection of `key`, which may have `own_max`, unless it has its share.
    pub(super) fn place(&self, key: PublicKey, own_max: u32) -> Option<Place> {
        self.connections.take(key, own_max.into())
    }

    /// How many connections this key may have, if it was let in before, as far as is known without looking.
    pub(super) fn known(&self, key: PublicKey) -> Option<u32> {
        lock(&self.known).get(&key).copied()
    }

    /// Notes which keys may come in, and how many connections each may have.
    pub(super) fn set_known(&self, keys: impl IntoIterator<Item = (PublicKey, u32)>) {
        let keys = keys.into_iter().collect();
        *lock(&self.known) = keys;
    }

    /// Connections that `key` has.
    pub(super) fn connections(&self, key: PublicKey) -> u64 {
        self.connections.of(key)
    }

    /// Strangers at a time, over both transports.
    pub(super) fn strangers(&self) -> usize {
        self.doors.iter().map(|door| lock(door).len()).sum()
    }

    /// Counts one who was refused. `is_warning`: it said who it is.
    pub(super) fn refused(&self, text: String, is_warning: bool) {
        self.counters.refused.add(1);
        let line = lock(&self.refusals).note(RefusalLine { text, is_warning }, Instant::now());
        line.as_ref().inspect(|line| log(line));
    }

    /// Tells of those who were refused lately, if that was not done.
    pub(super) fn tell(&self, now: Instant) {
        let line = lock(&self.refusals).due(now);
        line.as_ref().inspect(|line| log(line));
    }
}

impl StrangerPlace {
    /// Waits until somebody else gets this place.
    pub(super) async fn dropped(&self) {
        self.dropped.notified().await;
    }
}

impl Drop for StrangerPlace {
    fn drop(&mut self) {
        lock(&self.entry.doors[self.transport]).leave(self.id);
    }
}

/// Who was refused, for the log.
pub(super) fn named(address: SocketAddr, why: impl std::fmt::Display) -> String {
    format!("refused {address}: {why}")
}

fn log(line: &RefusalLine) {
    if line.is_warning {
        tracing::warn!("{}", line.text);
    } else {
        tracing::info!("{}", line.text);
    }
}

/// What the locks guard is whole between any two statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
