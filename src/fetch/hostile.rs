//! Answers that break the protocol, and a runtime that goes away.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{FetchConfig, FetchError, Fetcher, FileContent, StreamId};
use crate::cache::{FileKey, NoCache};
use crate::chunk::{ByteRange, CHUNK_BYTES, ChunkIndex, ChunkRange, VerifiedChunk};
use crate::client::{CallError, CallFuture, Client, ContentPart, Lane, LinkState, ListPart};
use crate::prefetch::Demand;
use crate::proto::{Attributes, NodeId, ReadRequest, Reply, Request, Timestamp, Version};

type Parts = Vec<Result<ContentPart, CallError>>;

/// A client that answers the next read with these parts, and others with nothing.
struct Scripted(Mutex<Parts>);

impl Client for Scripted {
    fn call(&self, _: Request, _: Lane) -> CallFuture<Reply> {
        Box::pin(async { Err(CallError::Closed) })
    }

    fn list(&self, _: NodeId) -> mpsc::Receiver<Result<ListPart, CallError>> {
        mpsc::channel(1).1
    }

    fn read(&self, _: ReadRequest, _: Lane) -> mpsc::Receiver<Result<ContentPart, CallError>> {
        let (sender, receiver) = mpsc::channel(16);
        for part in self.0.lock().unwrap().drain(..) {
            sender.try_send(part).unwrap();
        }
        receiver
    }

    fn read_current(&self, _: NodeId, _: ByteRange) -> CallFuture<Bytes> {
        Box::pin(async { Err(CallError::Closed) })
    }

    fn root(&self) -> Attributes {
        unreachable!("the root is not requested")
    }

    fn link(&self) -> LinkState {
        LinkState {
            connected: true,
            silent: std::time::Duration::ZERO,
            rtt: std::time::Duration::ZERO,
            bytes_per_second: 0,
            sent_bytes_per_second: 0,
            window_bytes: 0,
        }
    }
}

/// A file of two chunks, the second of 100 bytes.
const CONTENT: FileContent = FileContent {
    node: NodeId { device: 1, inode: 2, birth_ns: 3 },
    version: Version { size: CHUNK_BYTES + 100, mtime: Timestamp(0), ctime: Timestamp(0) },
    key: FileKey::from_bytes([0; 32]),
    history: FileKey::from_bytes([1; 32]),
    settled: true,
    epoch: 0,
};

const END: ContentPart = ContentPart::End { observed: Timestamp(0) };

fn chunk(index: u64, len: u64) -> ContentPart {
    let chunk = VerifiedChunk::compute(Bytes::from(vec![index as u8; len as usize]));
    ContentPart::Chunk { index: ChunkIndex(index), chunk }
}

fn fetcher(parts: Parts) -> Arc<Fetcher> {
    Fetcher::new(Arc::new(Scripted(Mutex::new(parts))), Arc::new(NoCache), FetchConfig::default())
}

/// Reads the whole file with these parts as the answer.
async fn read(parts: Parts) -> Result<Bytes, FetchError> {
    let (fetcher, whole) = (fetcher(parts), ByteRange::new(0, CONTENT.version.size));
    let result = fetcher.read(&CONTENT, whole, Demand::Chunks(whole.chunks())).await;
    let statistics = fetcher.statistics();
    assert_eq!((statistics.inflight_chunks, statistics.inflight_bytes), (0, 0));
    result
}

fn is_bad(result: &Result<Bytes, FetchError>) -> bool {
    matches!(result, Err(FetchError::Call(CallError::BadAnswer(_))))
}

#[tokio::test]
async fn the_right_chunks_in_any_order_are_right() {
    let whole = read(vec![Ok(chunk(1, 100)), Ok(chunk(0, CHUNK_BYTES)), Ok(END)]).await.unwrap();
    assert_eq!(whole[CHUNK_BYTES as usize..], [1; 100]);
    let whole = read(vec![Ok(chunk(0, CHUNK_BYTES)), Ok(chunk(0, CHUNK_BYTES)), Ok(chunk(1, 100)), Ok(END)]);
    assert!(whole.await.is_ok(), "one comes twice");
}

#[tokio::test]
async fn wrong_answers_are_errors() {
    assert!(is_bad(&read(vec![Ok(chunk(0, CHUNK_BYTES)), Ok(END)]).await), "a chunk is left out");
    assert!(is_bad(&read(vec![Ok(chunk(0, CHUNK_BYTES)), Ok(chunk(1, 99))]).await), "too short");
    assert!(is_bad(&read(vec![Ok(chunk(0, CHUNK_BYTES)), Ok(chunk(1, 101))]).await), "too long");
    assert!(is_bad(&read(vec![Ok(chunk(2, 100))]).await), "behind the end");
    assert!(is_bad(&read(vec![Ok(ContentPart::Same { index: ChunkIndex(0) })]).await), "not held");
    let closed = FetchError::Call(CallError::Closed);
    assert_eq!(read(vec![Ok(chunk(0, CHUNK_BYTES))]).await, Err(closed.clone()), "no end");
    assert_eq!(read(Vec::new()).await, Err(closed));
}

#[tokio::test]
async fn wrong_pieces_are_errors() {
    let asked = ByteRange::new(8, 4);
    let piece = |offset, len| Ok(ContentPart::Piece { offset, bytes: Bytes::from(vec![1; len]) });
    let read = async |parts| fetcher(parts).read(&CONTENT, asked, Demand::Piece(asked)).await;
    assert_eq!(read(vec![piece(8, 4), Ok(END)]).await.unwrap(), [1; 4][..]);
    assert!(is_bad(&read(vec![piece(8, 3), Ok(END)]).await));
    assert!(is_bad(&read(vec![piece(7, 4), Ok(END)]).await));
    assert!(is_bad(&read(vec![Ok(END)]).await));
    assert!(is_bad(&read(vec![Ok(chunk(0, CHUNK_BYTES)), Ok(END)]).await));
    assert_eq!(
        read(vec![piece(8, 4)]).await,
        Err(CallError::Closed.into()),
        "not known to be of this version"
    );
}

#[test]
fn a_stopped_runtime_fails_all_reads() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let fetcher = runtime.block_on(async { fetcher(Vec::new()) });
    drop(runtime);
    fetcher.read_ahead(&CONTENT, ChunkRange::new(ChunkIndex(0), 2), StreamId { handle: 1, cursor: 0 });
    let other = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let asked = ByteRange::new(0, 10);
    let result = other.block_on(fetcher.read(&CONTENT, asked, Demand::Chunks(asked.chunks())));
    assert_eq!(result, Err(CallError::Closed.into()));
    assert_eq!(fetcher.statistics().inflight_chunks, 0);
}
