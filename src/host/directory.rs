//! Listings: entries with their attributes, in batches that leave as soon as they are full.

use std::ffi::CStr;
use std::os::fd::AsFd;
use std::sync::Arc;

use nix::dir::Dir;
use tokio::sync::mpsc;

use super::attributes::{self, system_error};
use super::confine::open_for_reading;
use super::session::Session;
use crate::proto::{DirectoryBatch, DirectoryEntry, Errno, ErrorCode, NodeId, WireError};

/// Entries of the first batch: a person who looks at a long listing sees the first screen of it at once.
const FIRST_BATCH_ENTRIES: usize = 64;

/// Size of a full batch on the wire, in bytes: some 500 entries, a quarter of the longest frame.
const BATCH_BYTES: usize = 64 * 1024;

/// Most bytes of an entry on the wire apart from its name: 14 numbers of at most 10 bytes and some small ones.
const ENTRY_BYTES_MAX: usize = 176;

/// Batches between the thread that reads the folder and the stream: one on its way, one in the making.
const BATCHES_QUEUED_MAX: usize = 2;

/// A listing under way. Its folder is open, so what can fail now is only to read on.
#[derive(Debug)]
pub(super) struct Listing {
    /// Comes to its end after the batch that is marked as the last, or an error.
    pub(super) batches: mpsc::Receiver<Result<DirectoryBatch, WireError>>,
}

/// Opens a folder and begins to read it in a thread of its own, which stops when the listing is dropped.
pub(super) async fn start(session: Arc<Session>, node: NodeId) -> Result<Listing, WireError> {
    let (sender, batches) = mpsc::channel(BATCHES_QUEUED_MAX);
    let (opened, is_open) = tokio::sync::oneshot::channel();
    tokio::task::spawn_blocking(move || match open(&session, node) {
        Ok(folder) => {
            // Whoever asked may be gone.
            if opened.send(Ok(())).is_ok() {
                send_all(&session, node, folder, &sender);
            }
        }
        Err(error) => drop(opened.send(Err(error))),
    });
    is_open.await.unwrap_or_else(|_| Err(WireError::system(Errno::EIO)))?;
    Ok(Listing { batches })
}

fn open(session: &Session, node: NodeId) -> Result<Dir, WireError> {
    let handle = session.tree.folder(node)?;
    let fd = open_for_reading(handle.file.as_fd(), true).map_err(system_error)?;
    Dir::from_fd(fd).map_err(system_error)
}

fn send_all(
    session: &Session,
    node: NodeId,
    folder: Dir,
    sender: &mpsc::Sender<Result<DirectoryBatch, WireError>>,
) {
    let mut batches = Batches::default();
    // The stream of entries owns its descriptor; attributes are asked of a second one.
    let Ok(at) = folder.as_fd().try_clone_to_owned() else {
        let _ = sender.blocking_send(Err(WireError::system(Errno::EMFILE)));
        return;
    };
    let mut deliver = |batch: Result<DirectoryBatch, WireError>| {
        if let Ok(batch) = &batch {
            let seen = batch.entries.iter().map(|entry| (entry.attributes.node, &entry.name[..]));
            session.tree.record(node, seen);
        }
        sender.blocking_send(batch).is_ok()
    };
    for entry in folder {
        let found = match entry {
            Ok(entry) => look(&at, entry.file_name()),
            Err(errno) => Err(system_error(errno)),
        };
        let full = match found {
            Ok(Some(entry)) => batches.push(entry),
            Ok(None) => None,
            Err(error) => {
                deliver(Err(error));
                return;
            }
        };
        if full.is_some_and(|batch| !deliver(Ok(batch))) {
            return;
        }
    }
    deliver(Ok(batches.finish()));
}

/// One entry; `None` for the folder itself and the one above, and for what vanished since.
fn look(at: &impl AsFd, name: &CStr) -> Result<Option<DirectoryEntry>, WireError> {
    if matches!(name.to_bytes(), b"." | b"..") {
        return Ok(None);
    }
    match attributes::of_entry(at.as_fd(), name) {
        Ok(attributes) => Ok(Some(DirectoryEntry { name: name.to_bytes().to_vec(), attributes })),
        Err(WireError { code: ErrorCode::System(Errno::ENOENT), .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Entries gathered until they are worth a message.
#[derive(Debug, Default)]
struct Batches {
    entries: Vec<DirectoryEntry>,
    bytes: usize,
    first_is_out: bool,
}

impl Batches {
    /// Adds an entry; returns a batch when it is full.
    fn push(&mut self, entry: DirectoryEntry) -> Option<DirectoryBatch> {
        self.bytes += entry.name.len() + ENTRY_BYTES_MAX;
        self.entries.push(entry);
        let another_fits = self.bytes + crate::proto::NAME_BYTES_MAX + ENTRY_BYTES_MAX <= BATCH_BYTES;
        if another_fits && (self.first_is_out || self.entries.len() < FIRST_BATCH_ENTRIES) {
            return None;
        }
        self.first_is_out = true;
        self.bytes = 0;
        Some(DirectoryBatch { entries: std::mem::take(&mut self.entries), last: false })
    }

    /// What is left.
    fn finish(self) -> DirectoryBatch {
        DirectoryBatch { entries: self.entries, last: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{Attributes, FileKind, Timestamp, encode_frame};

    /// An entry that takes as many bytes as one can.
    fn longest(name_bytes: usize) -> DirectoryEntry {
        let time = Timestamp(i64::MIN);
        DirectoryEntry {
            name: vec![b'x'; name_bytes],
            attributes: Attributes {
                node: NodeId { device: u64::MAX, inode: u64::MAX, birth_ns: i64::MIN },
                kind: FileKind::BlockDevice,
                permissions: u16::MAX,
                links: u32::MAX,
                uid: u32::MAX,
                gid: u32::MAX,
                device_number: u64::MAX,
                size: u64::MAX,
                blocks: u64::MAX,
                atime: time,
                mtime: time,
                ctime: time,
                btime: Some(time),
                observed: time,
            },
        }
    }

    #[test]
    fn batches_stay_below_their_size_and_lose_nothing() {
        let (mut batches, mut sizes) = (Batches::default(), Vec::new());
        for i in 0..5000 {
            if let Some(batch) = batches.push(longest(1 + i % 255)) {
                assert!(!batch.last);
                assert!(encode_frame(&batch).len() <= BATCH_BYTES);
                sizes.push(batch.entries.len());
            }
        }
        let last = batches.finish();
        assert!(last.last);
        assert_eq!(sizes[0], FIRST_BATCH_ENTRIES);
        assert_eq!(sizes.iter().sum::<usize>() + last.entries.len(), 5000);
    }
}
