//! (P) Bounded queue of records to write, and the attributes of files changed by this client, which are
//! merged.
//!
//! A program that writes changes the attributes of its file a thousand times a second, and only the last
//! ones are worth a record.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::store::MetadataRecord;
use crate::proto::{Attributes, NodeId, Timestamp};

/// Most bytes of queued records in memory. Records beyond it are dropped.
const QUEUED_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Time for which the attributes of a changed file wait for the next change.
const MERGE_WAIT: Duration = Duration::from_secs(1);

/// Most files whose attributes wait. With more, all are written at once.
const MERGED_FILES_MAX: usize = 1024;

/// Next action of the writer.
#[derive(Debug)]
pub(super) enum Next {
    Write(Timestamp, MetadataRecord),
    /// Wait until this time; `None` means without end.
    Wait(Option<Instant>),
}

#[derive(Debug, Default)]
pub(super) struct RecordQueue {
    records: VecDeque<(Timestamp, MetadataRecord)>,
    bytes: usize,
    changed: HashMap<NodeId, Attributes>,
    /// Time at which `changed` is to be written.
    due: Option<Instant>,
}

impl RecordQueue {
    /// Returns `true` if nothing is left to write, now or later.
    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty() && self.changed.is_empty()
    }

    /// Queues a record seen at `at`; drops it if the queue is full.
    pub(super) fn take(&mut self, at: Timestamp, mut record: MetadataRecord) {
        match &mut record {
            MetadataRecord::Node(attributes) | MetadataRecord::Name(_, _, Some(attributes)) => {
                self.settle(attributes);
            }
            // Entries older than an own change stay, because the record of that change follows and corrects
            // them.
            MetadataRecord::Listing(_, entries) => {
                for entry in entries {
                    self.settle(&mut entry.attributes.clone());
                }
            }
            _ => {}
        }
        let bytes = record.bytes();
        if self.bytes + bytes <= QUEUED_BYTES_MAX {
            self.bytes += bytes;
            self.records.push_back((at, record));
        }
    }

    /// Queues the attributes of a file after an own change. Returns `true` if the next write is due earlier
    /// than before.
    pub(super) fn take_changed(&mut self, now: Instant, attributes: Attributes) -> bool {
        let known = self.changed.entry(attributes.node).or_insert(attributes);
        // Answers to concurrent changes arrive in any order.
        if known.ctime <= attributes.ctime {
            *known = attributes;
        }
        let due = if self.changed.len() > MERGED_FILES_MAX { now } else { now + MERGE_WAIT };
        let is_sooner = self.due.is_none_or(|before| due < before);
        if is_sooner {
            self.due = Some(due);
        }
        is_sooner
    }

    /// Returns the next action. With `is_flushing` it includes attributes that could wait; `at` is their
    /// time.
    pub(super) fn next(&mut self, now: Instant, at: Timestamp, is_flushing: bool) -> Next {
        if self.records.is_empty() && self.due.is_some_and(|due| is_flushing || due <= now) {
            self.due = None;
            for (_, attributes) in self.changed.drain() {
                let record = MetadataRecord::Node(attributes);
                self.bytes += record.bytes();
                self.records.push_back((at, record));
            }
        }
        match self.records.pop_front() {
            Some((at, record)) => {
                self.bytes -= record.bytes();
                Next::Write(at, record)
            }
            None => Next::Wait(self.due),
        }
    }

    /// Keeps the later of two states of a file, by the host's clock.
    fn settle(&mut self, seen: &mut Attributes) {
        match self.changed.get(&seen.node) {
            Some(changed) if changed.ctime > seen.ctime => *seen = *changed,
            Some(_) => {
                self.changed.remove(&seen.node);
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::testing::attributes;
    use crate::proto::{DirectoryEntry, FileKind};

    fn file(inode: u64, ctime: i64) -> Attributes {
        let ctime = Timestamp(ctime);
        Attributes { ctime, size: inode, ..attributes(inode, FileKind::Regular) }
    }

    /// Returns the change time of each node that is written by now.
    fn written(queue: &mut RecordQueue, now: Instant, is_flushing: bool) -> Vec<(u64, i64)> {
        std::iter::from_fn(|| match queue.next(now, Timestamp(0), is_flushing) {
            Next::Write(
                _,
                MetadataRecord::Node(attributes) | MetadataRecord::Name(_, _, Some(attributes)),
            ) => Some((attributes.node.inode, attributes.ctime.0)),
            Next::Write(..) => Some((0, 0)),
            Next::Wait(_) => None,
        })
        .collect()
    }

    #[test]
    fn changes_of_one_file_are_joined_and_the_last_one_is_written() {
        let (mut queue, start) = (RecordQueue::default(), Instant::now());
        for (after_ms, ctime) in [(0, 10), (300, 30), (600, 20)] {
            let is_sooner = queue.take_changed(start + Duration::from_millis(after_ms), file(1, ctime));
            assert_eq!(is_sooner, after_ms == 0, "the writer is woken once");
            assert_eq!(written(&mut queue, start + Duration::from_millis(after_ms), false), []);
        }
        assert!(
            matches!(queue.next(start, Timestamp(0), false), Next::Wait(Some(due)) if due == start + MERGE_WAIT)
        );
        assert_eq!(written(&mut queue, start + MERGE_WAIT, false), [(1, 30)]);
        assert!(queue.is_empty());
        queue.take_changed(start, file(2, 1));
        assert_eq!(written(&mut queue, start, true), [(2, 1)], "during a flush");
    }

    #[test]
    fn too_many_files_do_not_wait() {
        let (mut queue, now) = (RecordQueue::default(), Instant::now());
        for inode in 0..=MERGED_FILES_MAX as u64 {
            assert_eq!(written(&mut queue, now, false), []);
            queue.take_changed(now, file(inode, 1));
        }
        assert_eq!(written(&mut queue, now, false).len(), MERGED_FILES_MAX + 1);
    }

    #[test]
    fn an_answer_holds_unless_it_is_older_than_an_own_change() {
        let (mut queue, now) = (RecordQueue::default(), Instant::now());
        let listing = |inode, ctime| {
            let entry = DirectoryEntry { name: b"n".to_vec(), attributes: file(inode, ctime) };
            MetadataRecord::Listing(file(9, 0).node, vec![entry])
        };
        for inode in 1..=5 {
            queue.take_changed(now, file(inode, 5));
        }
        queue.take(Timestamp(0), MetadataRecord::Node(file(1, 4)));
        queue.take(Timestamp(0), MetadataRecord::Node(file(2, 6)));
        queue.take(Timestamp(0), MetadataRecord::Name(file(9, 0).node, b"n".to_vec(), Some(file(3, 4))));
        queue.take(Timestamp(0), listing(4, 4));
        queue.take(Timestamp(0), listing(5, 5));
        let mut all = written(&mut queue, now, true);
        assert_eq!(all[..5], [(1, 5), (2, 6), (3, 5), (0, 0), (0, 0)]);
        all[5..].sort_unstable();
        assert_eq!(all[5..], [(1, 5), (3, 5), (4, 5)]);
    }

    #[test]
    fn the_queue_is_bounded() {
        let mut queue = RecordQueue::default();
        let long = || MetadataRecord::Link(file(1, 0).node, vec![0; 1 << 20]);
        (0..100).for_each(|_| queue.take(Timestamp(0), long()));
        let count = std::iter::from_fn(|| match queue.next(Instant::now(), Timestamp(0), false) {
            Next::Write(..) => Some(()),
            Next::Wait(_) => None,
        });
        assert_eq!(count.count(), 31);
        assert_eq!(queue.bytes, 0);
    }
}
