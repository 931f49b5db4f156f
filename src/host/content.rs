//! Requests for content: chunks of one version of a file, or exactly some bytes of it.

use std::sync::Arc;

use bytes::Bytes;

use super::ahead::{Make, ReadAhead, check_version};
use super::answer::{Answer, Gone, malformed};
use super::attributes::now;
use super::context::ClientContext;
use super::index::FileVersion;
use super::packing::Packing;
use super::places::Place;
use super::tree::Handle;
use crate::chunk::{ByteRange, CHUNK_BYTES, ChunkHash, ChunkIndex, ChunkRange};
use crate::proto::{
    ContentHeader, KNOWN_HASHES_MAX, NodeId, READ_CHUNKS_MAX, ReadRequest, Reply, Version, WireError,
};
use crate::transport::Lane;

/// Answers a request for content.
pub(super) async fn serve(
    context: &Arc<ClientContext>,
    request: ReadRequest,
    lane: Lane,
    answer: &mut Answer,
) -> Result<(), Gone> {
    let opened = match check(&request) {
        Ok(()) => open(context, request.node, request.version).await,
        Err(error) => Err(error),
    };
    let file = match opened {
        Ok(file) => file,
        Err(error) => return answer.reply(&Err(error)).await,
    };
    answer.set_lane(lane);
    let _memory = context.budget.leave_to_send(request.range.clamp_to(request.version.size).len).await;
    answer.reply(&Ok(Reply::Content)).await?;
    let unwanted = answer.unwanted();
    let sent = async {
        if request.whole_chunks {
            send_chunks(context, &file, &request, answer).await
        } else {
            send_piece(context, &file, &request, answer).await
        }
    };
    let sent = tokio::select! {
        sent = sent => sent,
        // Also while the disk is read and nothing is written, a reader that gave up is noticed.
        () = unwanted => Err(Stop::Gone),
    };
    let observed = now();
    let last = match sent.and(check_version(context, &file, request.version).await.map_err(Stop::Failed)) {
        Ok(()) => ContentHeader::End { observed },
        Err(Stop::Failed(error)) => ContentHeader::Failed(error.code),
        Err(Stop::Gone) => return Err(Gone),
    };
    answer.frame(&last).await
}

/// Why no more is sent.
enum Stop {
    Failed(WireError),
    Gone,
}

impl From<Gone> for Stop {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

/// The file, if it is in the version asked for.
pub(super) async fn open(
    context: &Arc<ClientContext>,
    node: NodeId,
    version: Version,
) -> Result<Arc<Handle>, WireError> {
    let file = match context.session.file_at_hand(node) {
        Some(file) => file,
        None => context.blocking(move |session| session.file(node)).await?,
    };
    check_version(context, &file, version).await?;
    Ok(file)
}

fn check(request: &ReadRequest) -> Result<(), WireError> {
    let range = request.range;
    if range.offset.checked_add(range.len).is_none() {
        return Err(malformed("a range that passes the end of all numbers"));
    }
    if request.whole_chunks && range.chunks().count > READ_CHUNKS_MAX {
        return Err(malformed(format!("a read of more than {READ_CHUNKS_MAX} chunks")));
    }
    if !request.whole_chunks && range.len > CHUNK_BYTES {
        return Err(malformed(format!("a piece of more than {CHUNK_BYTES} bytes")));
    }
    if request.known.len() > KNOWN_HASHES_MAX {
        return Err(malformed(format!("more than {KNOWN_HASHES_MAX} known hashes")));
    }
    Ok(())
}

async fn send_chunks(
    context: &Arc<ClientContext>,
    file: &Arc<Handle>,
    request: &ReadRequest,
    answer: &mut Answer,
) -> Result<(), Stop> {
    let size = request.version.size;
    let chunks = request.range.clamp_to(size).chunks();
    let ranges = chunks.iter().map(move |index| index.bytes_in(size));
    let version = request.version;
    let (of, observed) = (FileVersion::of(request.node, version), now());
    let (context_of_reads, file) = (Arc::clone(context), Arc::clone(file));
    let make = Wrapped {
        packing: context.packing(request.node),
        known: request.known.iter().copied().flatten().collect(),
        first: chunks.first,
        noted: noted(context, of, chunks, &request.known).await.map_err(Stop::Failed)?,
    };
    let mut parts = ReadAhead::new(context_of_reads, file, version, ranges, make);
    let mut position = 0;
    while let Some(part) = parts.next().await {
        let part = part.map_err(Stop::Failed)?;
        let (index, known) = (ChunkIndex::containing(part.range.offset), request.known.get(position));
        let hash = part.content.hash;
        if part.content.is_hashed {
            context.index.note(of, observed, index, hash);
        }
        note_place(context, of.node, (index, part.range), hash);
        send_chunk(context, index, known.copied().flatten(), &part.content, answer).await?;
        position += 1;
    }
    Ok(())
}

/// The hashes of a request's chunks, where the index has them. Of a chunk that the client names a hash of none is taken on trust:
/// it is held against content.
async fn noted(
    context: &ClientContext,
    of: FileVersion,
    chunks: ChunkRange,
    named: &[Option<ChunkHash>],
) -> Result<Arc<[Option<ChunkHash>]>, WireError> {
    let mut noted = if let Some(noted) = context.index.hashes_at_hand(of, chunks) {
        noted
    } else {
        let index = Arc::clone(&context.index);
        context.blocking(move |_| Ok(index.hashes(of, chunks))).await?
    };
    for (noted, _) in noted.iter_mut().zip(named).filter(|(_, named)| named.is_some()) {
        *noted = None;
    }
    context.counters().index_hits.add(noted.iter().flatten().count() as u64);
    Ok(noted.into())
}

/// Takes note of where a chunk is, if it is a whole one: somebody may write it again.
pub(super) fn note_place(
    context: &ClientContext,
    node: NodeId,
    (index, range): (ChunkIndex, ByteRange),
    hash: ChunkHash,
) {
    if range.len == CHUNK_BYTES {
        context.session.tree.note_places([(hash, Place { node, index })]);
    }
}

/// Makes chunks ready to be sent.
#[derive(Clone)]
struct Wrapped {
    packing: Option<Packing>,
    /// Hashes of chunks that will probably not be sent.
    known: Arc<[ChunkHash]>,
    /// The first chunk of the request.
    first: ChunkIndex,
    /// What the chunks' hashes are, where that was found before.
    noted: Arc<[Option<ChunkHash>]>,
}

impl Wrapped {
    /// For what is never in the index.
    fn unnoted(packing: Option<Packing>) -> Self {
        Self { packing, known: Arc::default(), first: ChunkIndex(0), noted: Arc::default() }
    }

    fn noted(&self, index: ChunkIndex) -> Option<ChunkHash> {
        *self.noted.get(usize::try_from(index.0.checked_sub(self.first.0)?).ok()?)?
    }
}

/// Content, its hash, and what it was compressed to where that is worth it.
struct Parcel {
    hash: ChunkHash,
    /// Whether it was computed from these bytes; else it was noted before, and may be wrong by now.
    is_hashed: bool,
    bytes: Bytes,
    packed: Option<Bytes>,
}

impl Make for Wrapped {
    type Made = Parcel;

    async fn make(self, range: ByteRange, bytes: Bytes) -> Parcel {
        let noted = self.noted(ChunkIndex::containing(range.offset));
        let hash = noted.unwrap_or_else(|| ChunkHash::of(&bytes));
        let packed = match self.packing {
            Some(packing) if !self.known.contains(&hash) => packing.pack(&bytes).await,
            _ => None,
        };
        Parcel { hash, is_hashed: noted.is_none(), bytes, packed }
    }
}

async fn send_chunk(
    context: &ClientContext,
    index: ChunkIndex,
    known: Option<ChunkHash>,
    Parcel { hash, bytes, packed, .. }: &Parcel,
    answer: &mut Answer,
) -> Result<(), Gone> {
    let hash = *hash;
    if known == Some(hash) {
        context.counters().chunks_same.add(1);
        return answer.frame(&ContentHeader::Same { index }).await;
    }
    let len = bytes.len() as u32;
    let Some(packed) = packed else {
        return send(context, ContentHeader::Chunk { index, hash, len }, bytes, answer).await;
    };
    let packed_len = packed.len() as u32;
    let header = ContentHeader::Packed { index, hash, len, packed_len };
    send_packed(context, header, len - packed_len, packed, answer).await
}

async fn send_piece(
    context: &Arc<ClientContext>,
    file: &Arc<Handle>,
    request: &ReadRequest,
    answer: &mut Answer,
) -> Result<(), Stop> {
    let range = request.range.clamp_to(request.version.size);
    let (context_of_reads, file) = (Arc::clone(context), Arc::clone(file));
    let ranges = std::iter::once(range);
    let make = Wrapped::unnoted(context.packing(request.node));
    let mut parts = ReadAhead::new(context_of_reads, file, request.version, ranges, make);
    while let Some(part) = parts.next().await {
        let Parcel { hash, bytes, packed, .. } = part.map_err(Stop::Failed)?.content;
        let (offset, len) = (range.offset, range.len as u32);
        match packed {
            None => send(context, ContentHeader::Piece { offset, hash, len }, &bytes, answer).await?,
            Some(packed) => {
                let packed_len = packed.len() as u32;
                let header = ContentHeader::PackedPiece { offset, hash, len, packed_len };
                send_packed(context, header, len - packed_len, &packed, answer).await?;
            }
        }
    }
    Ok(())
}

async fn send_packed(
    context: &ClientContext,
    header: ContentHeader,
    saved: u32,
    packed: &Bytes,
    answer: &mut Answer,
) -> Result<(), Gone> {
    send(context, header, packed, answer).await?;
    context.counters().content_bytes_saved.add(u64::from(saved));
    Ok(())
}

async fn send(
    context: &ClientContext,
    header: ContentHeader,
    bytes: &Bytes,
    answer: &mut Answer,
) -> Result<(), Gone> {
    answer.content(&header, bytes.clone(), context.counters()).await?;
    context.counters().content_bytes_sent.add(bytes.len() as u64);
    Ok(())
}
