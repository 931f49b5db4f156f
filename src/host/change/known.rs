//! Chunks that clients write and the host has: found where they were seen, read, proved, and only then written. Everything here
//! blocks.
//!
//! What counts is what this client could read: a chunk is looked for in the files of its own tree, which are opened as for its reading. So
//! an answer tells nothing that reading would not. What was seen is a hint; the file may have changed, or be gone, or another one.

use std::os::unix::fs::FileExt;

use bytes::Bytes;

use super::{Changer, Done, errno};
use crate::chunk::{CHUNK_BYTES, ChunkHash, ChunkIndex, VerifiedChunk};
use crate::host::answer::malformed;
use crate::host::places::Place;
use crate::host::session::Session;
use crate::proto::{Errno, KNOWN_CHUNKS_MAX, KnownChunk, NodeId, Reply, WireError, Written};

/// Which of some chunks could be written by [`Changer::write_known`].
pub(in crate::host) fn have(
    session: &Session,
    node: NodeId,
    offset: u64,
    chunks: &[ChunkHash],
) -> Result<Reply, WireError> {
    check(offset, chunks)?;
    let own = (ChunkIndex::containing(offset).0..).map(|number| Place { node, index: ChunkIndex(number) });
    let is_elsewhere = |(hash, own)| session.tree.place(hash) != Some(own) && find(session, hash).is_some();
    Ok(Reply::Have(chunks.iter().copied().zip(own).map(is_elsewhere).collect()))
}

impl Changer<'_> {
    pub(super) fn write_known(
        &self,
        node: NodeId,
        offset: u64,
        chunks: &[ChunkHash],
    ) -> Result<Done, WireError> {
        check(offset, chunks)?;
        let target = self.session.file_to_write(node)?;
        target.check_place()?;
        let (mut taken, mut written) = (Vec::with_capacity(chunks.len()), Vec::new());
        // Behind a chunk that is missing the file does not become longer.
        let (size, mut is_whole) = (target.version()?.size, true);
        for (hash, at) in chunks.iter().zip((offset..).step_by(CHUNK_BYTES as usize)) {
            let found = find(self.session, *hash);
            is_whole &= found.is_some();
            let may_go = is_whole || at + CHUNK_BYTES <= size;
            if let Some(chunk) = found.as_ref().filter(|_| may_go) {
                let done = target.file.write_all_at(chunk.bytes(), at);
                errno(done.map_err(|error| {
                    error.raw_os_error().map_or(nix::errno::Errno::EIO, nix::errno::Errno::from_raw)
                }))?;
                written.push((*hash, Place { node, index: ChunkIndex::containing(at) }));
            }
            taken.push(match found {
                Some(_) if may_go => KnownChunk::Written,
                Some(_) => KnownChunk::Held,
                None => KnownChunk::Missing,
            });
        }
        let len = written.len() as u64 * CHUNK_BYTES;
        self.session.tree.note_places(written);
        let attributes = target.attributes()?;
        Ok(Done::Taken(Written { offset, len, attributes, boot: self.boot }, taken))
    }
}

fn check(offset: u64, chunks: &[ChunkHash]) -> Result<(), WireError> {
    if chunks.len() > KNOWN_CHUNKS_MAX {
        return Err(malformed(format!("more than {KNOWN_CHUNKS_MAX} chunks at once")));
    }
    if !offset.is_multiple_of(CHUNK_BYTES) {
        return Err(malformed("chunks that are not in their places"));
    }
    let len = chunks.len() as u64 * CHUNK_BYTES;
    match offset.checked_add(len).map(i64::try_from) {
        Some(Ok(_)) => Ok(()),
        _ => Err(WireError::system(Errno::EFBIG)),
    }
}

/// A chunk, if it is still where it was seen, and the client may read it there.
fn find(session: &Session, hash: ChunkHash) -> Option<VerifiedChunk> {
    let place = session.tree.place(hash)?;
    let file = session.file_at_hand(place.node).map_or_else(|| session.tree.file(place.node), Ok).ok()?;
    let mut bytes = vec![0; CHUNK_BYTES as usize];
    let read = file.file.read_exact_at(&mut bytes, place.index.offset());
    let found = read.ok().and_then(|()| VerifiedChunk::verify(hash, Bytes::from(bytes)).ok());
    if found.is_none() {
        session.tree.forget_place(hash, place);
    }
    found
}
