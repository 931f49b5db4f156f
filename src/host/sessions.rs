//! Which sessions live, and how long one without a connection is kept.
//!
//! Pure: `now` comes in as an argument, and what a session is is up to the caller.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a session is kept after its last connection is gone.
///
/// Long enough for a laptop to change networks or a router to restart; open files of a client that is gone for good
/// are let go after it.
pub(super) const SESSION_KEEP: Duration = Duration::from_secs(90);

/// Most connections of one session: 16 in use, and as many again that died unnoticed, with room to spare.
pub(super) const CONNECTIONS_PER_SESSION_MAX: usize = 64;

/// Why a connection cannot join a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum AttachError {
    /// The key has too many sessions, each with a connection.
    #[error("this key has {0} mounts already; unmount one")]
    TooManySessions(usize),
    /// The session has too many connections.
    #[error("this mount has {CONNECTIONS_PER_SESSION_MAX} connections already")]
    TooManyConnections,
}

#[derive(Debug)]
struct Slot<T> {
    session: Arc<T>,
    connections: usize,
    /// When the last connection went, while there is none.
    left: Option<Instant>,
}

/// Sessions by the client's key `K` and the number `I` that the client gave them.
#[derive(Debug)]
pub(super) struct Sessions<K, I, T> {
    slots: HashMap<(K, I), Slot<T>>,
}

impl<K: Copy + Eq + Hash, I: Copy + Eq + Hash, T> Sessions<K, I, T> {
    /// None.
    pub(super) fn new() -> Self {
        Self { slots: HashMap::new() }
    }

    /// Counts one more connection of a session; `new` is it if there is none of that name and the key has less than `own_max`.
    pub(super) fn attach(
        &mut self,
        (key, own_max): (K, usize),
        id: I,
        new: Arc<T>,
    ) -> Result<Arc<T>, AttachError> {
        if let Some(slot) = self.slots.get_mut(&(key, id)) {
            if slot.connections == CONNECTIONS_PER_SESSION_MAX {
                return Err(AttachError::TooManyConnections);
            }
            slot.connections += 1;
            slot.left = None;
            return Ok(Arc::clone(&slot.session));
        }
        self.make_room(key, own_max)?;
        self.slots.insert((key, id), Slot { session: Arc::clone(&new), connections: 1, left: None });
        Ok(new)
    }

    /// The session of that name, if it lives.
    #[cfg(test)]
    fn get(&self, key: K, id: I) -> Option<&Arc<T>> {
        self.slots.get(&(key, id)).map(|slot| &slot.session)
    }

    /// Takes one connection back at `now`.
    pub(super) fn detach(&mut self, key: K, id: I, now: Instant) {
        if let Some(slot) = self.slots.get_mut(&(key, id)) {
            slot.connections = slot.connections.saturating_sub(1);
            if slot.connections == 0 {
                slot.left = Some(now);
            }
        }
    }

    /// Takes out the sessions that had no connection for [`SESSION_KEEP`] at `now`; the caller drops them.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<Arc<T>> {
        let is_over = |_: &(K, I), slot: &mut Slot<T>| {
            slot.left.is_some_and(|left| now.saturating_duration_since(left) >= SESSION_KEEP)
        };
        self.slots.extract_if(is_over).map(|(_, slot)| slot.session).collect()
    }

    /// Ends a session whose client will not come back; the caller drops it.
    pub(super) fn end(&mut self, key: K, id: I) -> Option<Arc<T>> {
        self.slots.remove(&(key, id)).map(|slot| slot.session)
    }

    /// Ends all sessions of a key that may no longer come in.
    pub(super) fn remove_key(&mut self, key: K) -> Vec<Arc<T>> {
        self.slots.extract_if(|(of, _), _| *of == key).map(|(_, slot)| slot.session).collect()
    }

    /// How many sessions a key has.
    pub(super) fn of(&self, key: K) -> usize {
        self.slots.keys().filter(|(of, _)| *of == key).count()
    }

    /// All sessions.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<T>> {
        self.slots.values().map(|slot| &slot.session)
    }

    /// A client at its limit gives up the session it left longest ago.
    fn make_room(&mut self, key: K, own_max: usize) -> Result<(), AttachError> {
        if self.of(key) < own_max {
            return Ok(());
        }
        let left = self.slots.iter().filter(|((of, _), _)| *of == key);
        let oldest = left.filter_map(|(name, slot)| Some((slot.left?, *name))).min_by_key(|(left, _)| *left);
        let (_, name) = oldest.ok_or(AttachError::TooManySessions(own_max))?;
        self.slots.remove(&name);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 64;

    type Table = Sessions<u8, usize, &'static str>;

    #[test]
    fn a_session_outlives_its_connections_for_a_while() {
        let (mut table, start) = (Table::new(), Instant::now());
        table.attach((1, MAX), 1, Arc::new("first")).unwrap();
        table.attach((1, MAX), 1, Arc::new("unused")).unwrap();
        table.detach(1, 1, start);
        assert!(table.expire(start + 2 * SESSION_KEEP).is_empty(), "a connection is left");
        table.detach(1, 1, start);
        let just_before = start + SESSION_KEEP.saturating_sub(Duration::from_nanos(1));
        assert!(table.expire(just_before).is_empty());
        assert_eq!(*table.attach((1, MAX), 1, Arc::new("unused")).unwrap(), "first");
        assert!(table.expire(start + SESSION_KEEP).is_empty(), "it came back");
        table.detach(1, 1, start);
        assert_eq!(table.expire(start + SESSION_KEEP), [Arc::new("first")]);
        assert!(table.get(1, 1).is_none());
    }

    #[test]
    fn a_session_that_was_ended_is_gone_also_while_it_has_connections() {
        let (mut table, now) = (Table::new(), Instant::now());
        table.attach((1, MAX), 1, Arc::new("first")).unwrap();
        table.attach((1, MAX), 1, Arc::new("unused")).unwrap();
        assert_eq!(table.end(1, 1).as_deref(), Some(&"first"));
        table.detach(1, 1, now);
        assert_eq!(table.end(1, 1), None);
        assert_eq!(*table.attach((1, MAX), 1, Arc::new("second")).unwrap(), "second");
    }

    #[test]
    fn a_session_belongs_to_one_key() {
        let mut table = Table::new();
        table.attach((1, MAX), 7, Arc::new("mine")).unwrap();
        assert_eq!(*table.attach((2, MAX), 7, Arc::new("yours")).unwrap(), "yours");
        assert_eq!(table.remove_key(1), [Arc::new("mine")]);
        assert!(table.get(2, 7).is_some());
    }

    #[test]
    fn sessions_and_connections_are_bounded() {
        let (mut table, now) = (Table::new(), Instant::now());
        for id in 0..MAX {
            table.attach((1, MAX), id, Arc::new("")).unwrap();
        }
        assert_eq!(table.attach((1, MAX), 1000, Arc::new("")), Err(AttachError::TooManySessions(MAX)));
        assert!(table.attach((2, MAX), 1000, Arc::new("")).is_ok());
        table.detach(1, 5, now);
        assert!(table.attach((1, MAX), 1000, Arc::new("")).is_ok());
        assert!(table.get(1, 5).is_none());
        for _ in 1..CONNECTIONS_PER_SESSION_MAX {
            table.attach((1, MAX), 0, Arc::new("")).unwrap();
        }
        assert_eq!(table.attach((1, MAX), 0, Arc::new("")), Err(AttachError::TooManyConnections));
    }
}
