//! Listings: entries with their attributes, in batches that leave as soon as they are full.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::dir::{Dir, OwningIter};

use super::answer::{Answer, Gone};
use super::attributes::{self, system_error};
use super::confine::open_for_reading;
use super::context::ClientContext;
use super::crossing;
use super::session::Session;
use crate::proto::{
    Attributes, DirectoryBatch, DirectoryEntry, Errno, ErrorCode, LeaseEpoch, NodeId, Reply, WireError,
};

/// Entries of the first batch: a person who looks at a long listing sees the first screen of it at once.
const FIRST_BATCH_ENTRIES: usize = 64;

/// Size of a full batch on the wire, in bytes: some 300 entries, a quarter of the longest frame.
const BATCH_BYTES: usize = 64 * 1024;

/// Most bytes of an entry on the wire apart from its name: 14 numbers of at most 10 bytes and some small ones.
const ENTRY_BYTES_MAX: usize = 176;

/// Answers with all entries of a folder. One batch is read while the one before is sent, and no thread waits for a
/// client that reads slowly.
pub(super) async fn serve(
    context: &Arc<ClientContext>,
    node: NodeId,
    answer: &mut Answer,
) -> Result<(), Gone> {
    // The first batch before the answer begins: most of what can go wrong is then told in words.
    let begin = move |session: &Session| Listing::open(session, node)?.advance(session);
    let (mut listing, mut batch) = match context.blocking(begin).await {
        Ok(begun) => begun,
        Err(error) => return answer.reply(&Err(error)).await,
    };
    let (attributes, lease) = (listing.attributes, listing.lease);
    answer.reply(&Ok(Reply::Directory { attributes, lease })).await?;
    while !batch.last {
        let read = context.blocking(move |session| listing.advance(session));
        let (read, sent) = tokio::join!(read, answer.frame(&batch));
        sent?;
        (listing, batch) = read.map_err(|error| {
            // The protocol has no word for an error here: an answer that breaks off is asked for again.
            tracing::warn!("the listing of {node:?} breaks off: {error}");
            Gone
        })?;
    }
    answer.frame(&batch).await
}

/// A folder that is being read.
struct Listing {
    node: NodeId,
    names: OwningIter,
    /// The stream of names owns its descriptor; attributes are asked of a second one.
    folder: OwnedFd,
    /// The folder's own, from before its names were read.
    attributes: Option<Attributes>,
    lease: Option<LeaseEpoch>,
    first_is_out: bool,
    omitted: Omitted,
}

impl Listing {
    fn open(session: &Session, node: NodeId) -> Result<Self, WireError> {
        let handle = session.tree.folder(node)?;
        // First of all: whatever changes from here on is told.
        let lease = session.lease(&handle);
        let attributes = handle.attributes().ok();
        let names = open_for_reading(handle.file.as_fd(), true).map_err(system_error)?;
        let folder = names.try_clone().map_err(|_| WireError::system(Errno::EMFILE))?;
        let names = Dir::from_fd(names).map_err(system_error)?.into_iter();
        Ok(Self { node, names, folder, attributes, lease, first_is_out: false, omitted: Omitted::default() })
    }

    fn advance(mut self, session: &Session) -> Result<(Self, DirectoryBatch), WireError> {
        let batch = self.next_batch(session)?;
        Ok((self, batch))
    }

    /// Reads until a batch is full or all is read. Its nodes are known from then on.
    fn next_batch(&mut self, session: &Session) -> Result<DirectoryBatch, WireError> {
        let entries_max = if self.first_is_out { usize::MAX } else { FIRST_BATCH_ENTRIES };
        self.first_is_out = true;
        let mut batch = DirectoryBatch { entries: Vec::new(), last: false };
        let mut bytes = 0;
        while !is_full(bytes) && batch.entries.len() < entries_max {
            let Some(name) = self.names.next() else {
                self.omitted.check()?;
                batch.last = true;
                break;
            };
            let found = look(&self.folder, name.map_err(system_error)?.file_name());
            if let Some(entry) = self.omitted.sift(found) {
                bytes += entry_bytes(&entry);
                batch.entries.push(entry);
            }
        }
        let seen = batch.entries.iter().map(|entry| (entry.attributes.node, &entry.name[..]));
        session.tree.record(self.node, seen);
        Ok(batch)
    }
}

/// Entries whose attributes cannot be had are left out of a listing, such as another user's FUSE mount. Where that is all
/// of them the folder is not empty but closed.
#[derive(Debug, Default)]
struct Omitted {
    first_error: Option<WireError>,
    any_shown: bool,
}

impl Omitted {
    fn sift(&mut self, found: Result<Option<DirectoryEntry>, WireError>) -> Option<DirectoryEntry> {
        match found {
            Ok(entry) => {
                self.any_shown |= entry.is_some();
                entry
            }
            Err(error) => {
                tracing::debug!("an entry is left out of a listing: {error}");
                self.first_error.get_or_insert(error);
                None
            }
        }
    }

    /// At the end of the folder.
    fn check(&mut self) -> Result<(), WireError> {
        match self.first_error.take() {
            Some(error) if !self.any_shown => Err(error),
            _ => Ok(()),
        }
    }
}

/// Bytes that an entry takes on the wire at most.
fn entry_bytes(entry: &DirectoryEntry) -> usize {
    entry.name.len() + ENTRY_BYTES_MAX
}

/// Whether the longest entry might not fit behind these bytes.
fn is_full(bytes: usize) -> bool {
    bytes + crate::proto::NAME_BYTES_MAX + ENTRY_BYTES_MAX > BATCH_BYTES
}

/// One entry; `None` for the folder itself and the one above, and for what vanished since.
fn look(at: &OwnedFd, name: &CStr) -> Result<Option<DirectoryEntry>, WireError> {
    if matches!(name.to_bytes(), b"." | b"..") {
        return Ok(None);
    }
    let found = crossing::check_entry(at.as_fd(), name);
    match found.and_then(|()| attributes::of_entry(at.as_fd(), name)) {
        Ok(attributes) => Ok(Some(DirectoryEntry { name: name.to_bytes().to_vec(), attributes })),
        Err(WireError { code: ErrorCode::System(Errno::ENOENT), .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{Attributes, FileKind, Timestamp, Trust, encode_frame};

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
                has_xattrs: true,
                trust: Trust::Full,
                observed: time,
            },
        }
    }

    #[test]
    fn no_entry_takes_more_than_is_counted_for_it() {
        for name_bytes in [1, 100, 255] {
            let entry = longest(name_bytes);
            assert!(encode_frame(&entry).len() <= entry_bytes(&entry));
        }
    }
    #[test]
    fn entries_that_cannot_be_seen_are_left_out_unless_there_is_nothing_else() {
        let closed = || WireError::system(Errno::EACCES);
        let mut omitted = Omitted::default();
        assert!(omitted.sift(Err(closed())).is_none());
        assert!(omitted.sift(Ok(None)).is_none());
        assert_eq!(omitted.check(), Err(closed()));
        let mut omitted = Omitted::default();
        assert!(omitted.sift(Err(closed())).is_none());
        assert!(omitted.sift(Ok(Some(longest(1)))).is_some());
        assert_eq!(omitted.check(), Ok(()));
    }
}
