//! Table of the chunks in flight, with their requests and waiters. Pure: no clock, no task.
//!
//! A chunk is in flight at most once; later readers join its request. A request stays in the table until it
//! ends, which may be after its last chunk, or until it is unwanted: no reader waits and all its streams
//! have cancelled it.

use std::collections::HashMap;

use super::content::{ChunkKey, StreamId};

/// Number of a request, never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct RequestId(pub(super) u64);

/// Number of a waiter for one chunk, never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct WaiterId(pub(super) u64);

/// Result of a delivered chunk.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Delivery<W> {
    /// Waiters to notify.
    pub(super) waiters: Vec<W>,
    /// Stream for which the chunk was read ahead; `None` for a demand.
    pub(super) stream: Option<StreamId>,
}

/// Waiters to notify of a failed request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failure<W> {
    /// Waiters for chunks that were not delivered.
    pub(super) waiters: Vec<W>,
    /// True if the request was a read-ahead.
    pub(super) was_ahead: bool,
}

/// Table of the requests in flight.
#[derive(Debug)]
pub(super) struct Inflight<W> {
    chunks: HashMap<ChunkKey, Chunk<W>>,
    requests: HashMap<RequestId, Request>,
    bytes: u64,
    ahead_bytes: u64,
    ahead_requests: usize,
    ids_used: u64,
}

#[derive(Debug)]
struct Chunk<W> {
    request: RequestId,
    bytes: u64,
    waiters: Vec<(WaiterId, W)>,
}

#[derive(Debug)]
struct Request {
    /// Chunks not delivered yet.
    left: Vec<ChunkKey>,
    /// Streams that want this read-ahead; its bytes count for the first. Empty for a demand.
    streams: Vec<StreamId>,
    was_ahead: bool,
    waiters: usize,
}

impl Request {
    const fn is_wanted(&self) -> bool {
        self.waiters > 0 || !self.streams.is_empty()
    }
}

impl<W> Inflight<W> {
    pub(super) fn new() -> Self {
        Self {
            chunks: HashMap::new(),
            requests: HashMap::new(),
            bytes: 0,
            ahead_bytes: 0,
            ahead_requests: 0,
            ids_used: 0,
        }
    }

    /// Returns the bytes in flight.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the bytes of read-ahead in flight.
    pub(super) const fn ahead_bytes(&self) -> u64 {
        self.ahead_bytes
    }

    /// Returns the number of read-ahead requests.
    pub(super) const fn ahead_requests(&self) -> usize {
        self.ahead_requests
    }

    /// Returns the number of chunks in flight.
    pub(super) fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// Returns the bytes of read-ahead in flight for one stream.
    pub(super) fn ahead_bytes_of(&self, stream: StreamId) -> u64 {
        let of_owner = self.requests.values().filter(|request| request.streams.first() == Some(&stream));
        of_owner.flat_map(|request| &request.left).map(|key| self.chunks[key].bytes).sum()
    }

    /// Returns the streams of the requests in flight.
    pub(super) fn streams(&self) -> impl Iterator<Item = StreamId> {
        self.requests.values().flat_map(|request| request.streams.iter().copied())
    }

    pub(super) fn contains(&self, key: &ChunkKey) -> bool {
        self.chunks.contains_key(key)
    }

    /// Starts a request for chunks, each with its length in bytes. None of them may be in flight. Without
    /// `stream` it is a demand, which must be joined before anything is cancelled.
    pub(super) fn begin(&mut self, stream: Option<StreamId>, chunks: &[(ChunkKey, u64)]) -> RequestId {
        let id = RequestId(self.next_id());
        for (key, bytes) in chunks {
            let chunk = Chunk { request: id, bytes: *bytes, waiters: Vec::new() };
            let before = self.chunks.insert(*key, chunk);
            assert!(before.is_none(), "a chunk must not be asked for twice");
            self.bytes += bytes;
            self.ahead_bytes += if stream.is_some() { *bytes } else { 0 };
        }
        self.ahead_requests += usize::from(stream.is_some());
        let left = chunks.iter().map(|(key, _)| *key).collect();
        let streams = stream.into_iter().collect();
        self.requests.insert(id, Request { left, streams, was_ahead: stream.is_some(), waiters: 0 });
        id
    }

    /// Adds a waiter for a chunk; `None` if it is not in flight.
    pub(super) fn join(&mut self, key: &ChunkKey, waiter: impl FnOnce() -> W) -> Option<WaiterId> {
        let id = WaiterId(self.next_id());
        let chunk = self.chunks.get_mut(key)?;
        chunk.waiters.push((id, waiter()));
        self.requests.get_mut(&chunk.request).expect("every chunk has a request").waiters += 1;
        Some(id)
    }

    /// Adds a stream to the read-ahead of a chunk that is in flight.
    pub(super) fn adopt(&mut self, key: &ChunkKey, stream: StreamId) {
        let Some(chunk) = self.chunks.get(key) else { return };
        let request = self.requests.get_mut(&chunk.request).expect("every chunk has a request");
        if request.was_ahead && !request.streams.contains(&stream) {
            request.streams.push(stream);
        }
    }

    /// Delivers a chunk; `None` if its request was cancelled or delivered it before.
    pub(super) fn deliver(&mut self, id: RequestId, key: &ChunkKey) -> Option<Delivery<W>> {
        if self.chunks.get(key)?.request != id {
            return None;
        }
        let chunk = self.remove_chunk(key);
        let request = self.requests.get_mut(&id).expect("every chunk has a request");
        request.left.retain(|left| left != key);
        request.waiters -= chunk.waiters.len();
        let stream = request.streams.first().copied();
        Some(Delivery { waiters: chunk.waiters.into_iter().map(|(_, waiter)| waiter).collect(), stream })
    }

    /// Ends a request. Returns the waiters of its missing chunks; `None` if there are none or the request
    /// is gone.
    pub(super) fn end(&mut self, id: RequestId) -> Option<Failure<W>> {
        let is_complete = self.requests.get(&id)?.left.is_empty();
        let (request, waiters) = self.remove_request(id)?;
        (!is_complete).then_some(Failure { waiters, was_ahead: request.was_ahead })
    }

    /// Removes a waiter. Returns its request if that is unwanted now; it is removed from the table.
    pub(super) fn leave(&mut self, key: &ChunkKey, waiter: WaiterId) -> Option<RequestId> {
        let chunk = self.chunks.get_mut(key)?;
        let at = chunk.waiters.iter().position(|(id, _)| *id == waiter)?;
        chunk.waiters.remove(at);
        let id = chunk.request;
        let request = self.requests.get_mut(&id).expect("every chunk has a request");
        request.waiters -= 1;
        if request.is_wanted() {
            return None;
        }
        self.remove_request(id);
        Some(id)
    }

    /// Cancels the read-ahead of streams. Returns the requests that are unwanted now; they are removed from
    /// the table.
    pub(super) fn cancel(&mut self, gives_up: impl Fn(StreamId) -> bool) -> Vec<RequestId> {
        let mut unwanted = Vec::new();
        for (id, request) in &mut self.requests {
            let before = request.streams.len();
            request.streams.retain(|stream| !gives_up(*stream));
            if request.streams.len() < before && !request.is_wanted() {
                unwanted.push(*id);
            }
        }
        for id in &unwanted {
            self.remove_request(*id);
        }
        unwanted
    }

    /// Returns the number of all waiters.
    #[cfg(test)]
    pub(super) fn waiters(&self) -> usize {
        self.requests.values().map(|request| request.waiters).sum()
    }

    fn next_id(&mut self) -> u64 {
        self.ids_used += 1;
        self.ids_used
    }

    fn remove_chunk(&mut self, key: &ChunkKey) -> Chunk<W> {
        let chunk = self.chunks.remove(key).expect("the chunk was found before");
        self.bytes -= chunk.bytes;
        if self.requests[&chunk.request].was_ahead {
            self.ahead_bytes -= chunk.bytes;
        }
        chunk
    }

    fn remove_request(&mut self, id: RequestId) -> Option<(Request, Vec<W>)> {
        let left = std::mem::take(&mut self.requests.get_mut(&id)?.left);
        let chunks: Vec<Chunk<W>> = left.iter().map(|key| self.remove_chunk(key)).collect();
        let request = self.requests.remove(&id)?;
        self.ahead_requests -= usize::from(request.was_ahead);
        let waiters = chunks.into_iter().flat_map(|chunk| chunk.waiters).map(|(_, waiter)| waiter).collect();
        Some((request, waiters))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::cache::FileKey;
    use crate::chunk::ChunkIndex;

    fn key(index: u64) -> ChunkKey {
        ChunkKey { file: FileKey::from_bytes([0; 32]), settled: true, epoch: 0, index: ChunkIndex(index) }
    }

    const fn stream(handle: u64) -> StreamId {
        StreamId { handle, cursor: 0 }
    }

    #[derive(Debug, Clone)]
    enum Op {
        /// Chunks `first..first + count`, for a stream or with a waiter on the first.
        Begin {
            first: u64,
            count: u64,
            stream: Option<u64>,
        },
        Join(u64),
        Adopt {
            index: u64,
            stream: u64,
        },
        Deliver(u64),
        End(usize),
        Leave(usize),
        Cancel(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        let index = 0..24u64;
        prop_oneof![
            4 => (index.clone(), 1..4u64, prop::option::of(0..3u64))
                .prop_map(|(first, count, stream)| Op::Begin { first, count, stream }),
            3 => index.clone().prop_map(Op::Join),
            1 => (index.clone(), 0..3u64).prop_map(|(index, stream)| Op::Adopt { index, stream }),
            4 => index.prop_map(Op::Deliver),
            2 => any::<usize>().prop_map(Op::End),
            2 => any::<usize>().prop_map(Op::Leave),
            1 => (0..3u64).prop_map(Op::Cancel),
        ]
    }

    /// Naive model: a flat list of requests with their chunks, streams and waiters.
    #[derive(Debug)]
    struct Model {
        id: RequestId,
        ahead: bool,
        streams: Vec<u64>,
        /// Chunk and the numbers of its waiters.
        left: Vec<(u64, Vec<u32>)>,
    }

    impl Model {
        fn is_wanted(&self) -> bool {
            !self.streams.is_empty() || self.left.iter().any(|(_, waiters)| !waiters.is_empty())
        }
    }

    fn holder(models: &mut [Model], index: u64) -> Option<&mut Model> {
        models.iter_mut().find(|model| model.left.iter().any(|(other, _)| *other == index))
    }

    #[derive(Default)]
    struct Run {
        models: Vec<Model>,
        /// Number of a waiter, its id and its chunk.
        waiters: Vec<(u32, WaiterId, u64)>,
        next: u32,
    }

    impl Run {
        fn join(&mut self, table: &mut Inflight<u32>, index: u64) -> Result<(), TestCaseError> {
            self.next += 1;
            let number = self.next;
            let id = table.join(&key(index), || number);
            let model = holder(&mut self.models, index);
            prop_assert_eq!(id.is_some(), model.is_some());
            if let (Some(id), Some(model)) = (id, model) {
                let (_, waiters) = model.left.iter_mut().find(|(other, _)| *other == index).unwrap();
                waiters.push(number);
                self.waiters.push((number, id, index));
            }
            Ok(())
        }

        fn apply(&mut self, table: &mut Inflight<u32>, op: &Op) -> Result<(), TestCaseError> {
            match *op {
                Op::Begin { first, count, stream: handle } => {
                    let free = |index: &u64| holder(&mut self.models, *index).is_none();
                    let indices: Vec<u64> = (first..first + count).filter(free).collect();
                    if indices.is_empty() {
                        return Ok(());
                    }
                    let chunks: Vec<_> = indices.iter().map(|index| (key(*index), 100 + index)).collect();
                    let id = table.begin(handle.map(stream), &chunks);
                    let left = indices.iter().map(|index| (*index, Vec::new())).collect();
                    let streams = handle.into_iter().collect();
                    self.models.push(Model { id, ahead: handle.is_some(), streams, left });
                    if handle.is_none() {
                        self.join(table, indices[0])?;
                    }
                }
                Op::Join(index) => self.join(table, index)?,
                Op::Adopt { index, stream: handle } => {
                    table.adopt(&key(index), stream(handle));
                    if let Some(model) = holder(&mut self.models, index)
                        && model.ahead
                        && !model.streams.contains(&handle)
                    {
                        model.streams.push(handle);
                    }
                }
                Op::Deliver(index) => {
                    let Some(model) = holder(&mut self.models, index) else {
                        prop_assert_eq!(table.deliver(RequestId(0), &key(index)), None);
                        return Ok(());
                    };
                    let at = model.left.iter().position(|(other, _)| *other == index).unwrap();
                    let (_, waiters) = model.left.remove(at);
                    let stream = model.streams.first().map(|handle| stream(*handle));
                    let expected = Some(Delivery { waiters, stream });
                    prop_assert_eq!(table.deliver(model.id, &key(index)), expected);
                }
                Op::End(pick) => self.end(table, pick)?,
                Op::Leave(pick) => self.leave(table, pick)?,
                Op::Cancel(handle) => self.cancel(table, handle)?,
            }
            Ok(())
        }

        fn end(&mut self, table: &mut Inflight<u32>, pick: usize) -> Result<(), TestCaseError> {
            if self.models.is_empty() {
                return Ok(());
            }
            let model = self.models.remove(pick % self.models.len());
            let failure = table.end(model.id);
            prop_assert_eq!(failure.is_none(), model.left.is_empty());
            if let Some(failure) = failure {
                let expected: BTreeSet<u32> =
                    model.left.into_iter().flat_map(|(_, waiters)| waiters).collect();
                prop_assert_eq!(failure.waiters.into_iter().collect::<BTreeSet<_>>(), expected);
                prop_assert_eq!(failure.was_ahead, model.ahead);
            }
            prop_assert_eq!(table.end(model.id), None);
            Ok(())
        }

        fn leave(&mut self, table: &mut Inflight<u32>, pick: usize) -> Result<(), TestCaseError> {
            let Some((number, id, index)) =
                (!self.waiters.is_empty()).then(|| self.waiters[pick % self.waiters.len()])
            else {
                return Ok(());
            };
            let mut unwanted = None;
            if let Some(model) = holder(&mut self.models, index) {
                let (_, waiters) = model.left.iter_mut().find(|(other, _)| *other == index).unwrap();
                let before = waiters.len();
                waiters.retain(|other| *other != number);
                if waiters.len() < before && !model.is_wanted() {
                    unwanted = Some(model.id);
                }
            }
            self.models.retain(|model| Some(model.id) != unwanted);
            prop_assert_eq!(table.leave(&key(index), id), unwanted);
            Ok(())
        }

        fn cancel(&mut self, table: &mut Inflight<u32>, handle: u64) -> Result<(), TestCaseError> {
            let mut expected = BTreeSet::new();
            for model in &mut self.models {
                let before = model.streams.len();
                model.streams.retain(|other| *other != handle);
                if model.streams.len() < before && !model.is_wanted() {
                    expected.insert(model.id);
                }
            }
            self.models.retain(|model| !expected.contains(&model.id));
            let unwanted = table.cancel(|other| other == stream(handle));
            prop_assert_eq!(unwanted.into_iter().collect::<BTreeSet<_>>(), expected);
            Ok(())
        }

        fn bytes(&self, counts: impl Fn(&Model) -> bool) -> u64 {
            let counted = self.models.iter().filter(|model| counts(model));
            counted.flat_map(|model| &model.left).map(|(index, _)| 100 + index).sum()
        }
    }

    proptest! {
        #[test]
        fn the_table_agrees_with_the_model(ops in prop::collection::vec(op(), 0..200)) {
            let (mut table, mut run) = (Inflight::new(), Run::default());
            for op in ops {
                run.apply(&mut table, &op)?;
                prop_assert_eq!(table.bytes(), run.bytes(|_| true));
                prop_assert_eq!(table.ahead_bytes(), run.bytes(|model| model.ahead));
                prop_assert_eq!(table.ahead_requests(), run.models.iter().filter(|model| model.ahead).count());
                prop_assert_eq!(table.requests.len(), run.models.len());
                for handle in 0..3 {
                    let first = |model: &Model| model.streams.first() == Some(&handle);
                    prop_assert_eq!(table.ahead_bytes_of(stream(handle)), run.bytes(first));
                }
                for index in 0..27 {
                    prop_assert_eq!(table.contains(&key(index)), holder(&mut run.models, index).is_some());
                }
            }
        }
    }
}
