//! What lookups of single names have taught: which names change hands, and which are not there.
//!
//! Pure: `now` comes in as an argument.
//!
//! # Names that change hands
//!
//! The kernel believes a name for a while. When it then acts on a file whose name another one has taken, it is told
//! ESTALE and walks the path once more, and only once: each name on the way is looked up again. Between that lookup
//! and what follows it the name may change hands again, and a second ESTALE would reach the program, though the name was there
//! all the time. So such a name is *unsteady* from then on: it is believed for no time, and whoever comes with what it
//! named has looked it up in the same walk. He gets what he found, as on a local disk.
//!
//! # Names that are not there
//!
//! Before it makes a name that must be free, or moves one, the kernel looks the new name up, also where it has just been told
//! that there is none. What was learned then answers it; the host decides when the name is made.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use lru::LruCache;

use super::attributes::Learned;
use super::inodes::Name;
use crate::proto::NodeId;

/// How long a name is unsteady after it was found in other hands: longer than the walk that follows takes, on any way.
const UNSTEADY_KEEP: Duration = Duration::from_secs(10);

/// Most names of each kind; the ones noted longest ago go first.
const NAMES_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("it is not zero");

/// Names in directories.
#[derive(Debug)]
pub(super) struct Lookups {
    unsteady: LruCache<(NodeId, Name), Instant>,
    absent: LruCache<(NodeId, Name), Learned>,
}

impl Default for Lookups {
    fn default() -> Self {
        Self { unsteady: LruCache::new(NAMES_MAX), absent: LruCache::new(NAMES_MAX) }
    }
}

impl Lookups {
    /// Notes that a name was found in other hands at `now`.
    pub(super) fn note_unsteady(&mut self, directory: NodeId, name: &Name, now: Instant) {
        self.unsteady.put((directory, Name::clone(name)), now);
    }

    /// Whether a name was found in other hands lately.
    pub(super) fn is_unsteady(&self, directory: NodeId, name: &Name, now: Instant) -> bool {
        if self.unsteady.is_empty() {
            return false;
        }
        let noted = self.unsteady.peek(&(directory, Name::clone(name)));
        noted.is_some_and(|noted| now.saturating_duration_since(*noted) < UNSTEADY_KEEP)
    }

    /// Notes that the host has said that there is no such name.
    pub(super) fn note_absent(&mut self, directory: NodeId, name: &Name, learned: Learned) {
        self.absent.put((directory, Name::clone(name)), learned);
    }

    /// Forgets what was said about a name: the host has told a change of it.
    pub(super) fn forget_absent(&mut self, directory: NodeId, name: &Name) {
        self.absent.pop(&(directory, Name::clone(name)));
    }

    /// When the host was last heard to say that there is no such name.
    pub(super) fn absent(&self, directory: NodeId, name: &Name) -> Option<Learned> {
        self.absent.peek(&(directory, Name::clone(name))).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIRECTORY: NodeId = NodeId { device: 1, inode: 2, birth_ns: 3 };

    fn name(text: &str) -> Name {
        Name::from(text.as_bytes())
    }

    #[test]
    fn a_name_is_unsteady_for_its_time_and_in_its_directory() {
        let (mut lookups, now) = (Lookups::default(), Instant::now());
        assert!(!lookups.is_unsteady(DIRECTORY, &name("a"), now));
        lookups.note_unsteady(DIRECTORY, &name("a"), now);
        let just_before = now + UNSTEADY_KEEP.saturating_sub(Duration::from_nanos(1));
        assert!(lookups.is_unsteady(DIRECTORY, &name("a"), just_before));
        assert!(!lookups.is_unsteady(DIRECTORY, &name("a"), now + UNSTEADY_KEEP));
        assert!(!lookups.is_unsteady(DIRECTORY, &name("b"), now));
        assert!(!lookups.is_unsteady(NodeId { inode: 9, ..DIRECTORY }, &name("a"), now));
        lookups.note_unsteady(DIRECTORY, &name("a"), just_before);
        assert!(lookups.is_unsteady(DIRECTORY, &name("a"), now + UNSTEADY_KEEP));
    }

    #[test]
    fn an_absence_is_what_was_heard_last() {
        let (mut lookups, now) = (Lookups::default(), Instant::now());
        let (first, second) = (Learned::by_asking(now), Learned::by_asking(now + Duration::from_secs(1)));
        lookups.note_absent(DIRECTORY, &name("a"), first);
        lookups.note_absent(DIRECTORY, &name("a"), second);
        assert_eq!(lookups.absent(DIRECTORY, &name("a")), Some(second));
        assert_eq!(lookups.absent(DIRECTORY, &name("b")), None);
        lookups.forget_absent(DIRECTORY, &name("a"));
        assert_eq!(lookups.absent(DIRECTORY, &name("a")), None);
    }

    #[test]
    fn the_number_of_names_is_bounded() {
        let (mut lookups, now) = (Lookups::default(), Instant::now());
        for number in 0..2 * NAMES_MAX.get() {
            lookups.note_unsteady(DIRECTORY, &name(&number.to_string()), now);
            lookups.note_absent(DIRECTORY, &name(&number.to_string()), Learned::by_asking(now));
        }
        assert_eq!((lookups.unsteady.len(), lookups.absent.len()), (NAMES_MAX.get(), NAMES_MAX.get()));
        assert!(lookups.is_unsteady(DIRECTORY, &name(&NAMES_MAX.to_string()), now));
        assert!(!lookups.is_unsteady(DIRECTORY, &name("0"), now));
    }
}
