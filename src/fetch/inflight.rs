//! Table of the chunks in flight, with their requests and waiters. Pure: no clock, no task.
//!
//! A chunk is in flight at most once; later readers join its request. A request stays in the table until it
//! ends, which may be after its last chunk, or until it is unwanted: no reader waits and all its streams
//! have cancelled it.

use std::collections::HashMap;

use super::content::{ChunkKey, OwnerId};

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
    pub(super) owner: Option<OwnerId>,
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
    owners: Vec<OwnerId>,
    was_ahead: bool,
    waiters: usize,
}

impl Request {
    const fn is_wanted(&self) -> bool {
        self.waiters > 0 || !self.owners.is_empty()
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
    pub(super) fn ahead_bytes_of(&self, owner: OwnerId) -> u64 {
        let of_owner = self.requests.values().filter(|request| request.owners.first() == Some(&owner));
        of_owner.flat_map(|request| &request.left).map(|key| self.chunks[key].bytes).sum()
    }

    /// Returns the streams of the requests in flight.
    pub(super) fn owners(&self) -> impl Iterator<Item = OwnerId> {
        self.requests.values().flat_map(|request| request.owners.iter().copied())
    }

    pub(super) fn contains(&self, key: &ChunkKey) -> bool {
        self.chunks.contains_key(key)
    }

    /// Starts a request for chunks, each with its length in bytes. None of them may be in flight. Without
    /// `owner` it is a demand, which must be joined before anything is cancelled.
    pub(super) fn begin(&mut self, owner: Option<OwnerId>, chunks: &[(ChunkKey, u64)]) -> RequestId {
        let id = RequestId(self.next_id());
        for (key, bytes) in chunks {
            let chunk = Chunk { request: id, bytes: *bytes, waiters: Vec::new() };
            let before = self.chunks.insert(*key, chunk);
            assert!(before.is_none(), "a chunk must not be asked for twice");
            self.bytes += bytes;
            self.ahead_bytes += if owner.is_some() { *bytes } else { 0 };
        }
        self.ahead_requests += usize::from(owner.is_some());
        let left = chunks.iter().map(|(key, _)| *key).collect();
        let owners = owner.into_iter().collect();
        self.requests.insert(id, Request { left, owners, was_ahead: owner.is_some(), waiters: 0 });
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
    pub(super) fn adopt(&mut self, key: &ChunkKey, owner: OwnerId) {
        let Some(chunk) = self.chunks.get(key) else { return };
        let request = self.requests.get_mut(&chunk.request).expect("every chunk has a request");
        if request.was_ahead && !request.owners.contains(&owner) {
            request.owners.push(owner);
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
        let owner = request.owners.first().copied();
        Some(Delivery { waiters: chunk.waiters.into_iter().map(|(_, waiter)| waiter).collect(), owner })
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
    pub(super) fn cancel(&mut self, gives_up: impl Fn(OwnerId) -> bool) -> Vec<RequestId> {
        let mut unwanted = Vec::new();
        for (id, request) in &mut self.requests {
            let before = request.owners.len();
            request.owners.retain(|owner| !gives_up(*owner));
            if request.owners.len() < before && !request.is_wanted() {
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

    const fn owner(handle: u64) -> OwnerId {
        OwnerId { handle, cursor: 0 }
    }

    #[derive(Debug, Clone)]
    enum Op {
        /// Chunks `first..first + count`, for a stream or with a waiter on the first.
        Begin {
            first: u64,
            count: u64,
            owner: Option<u64>,
        },
        Join(u64),
        Adopt {
            index: u64,
            owner: u64,
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
                .prop_map(|(first, count, owner)| Op::Begin { first, count, owner }),
            3 => index.clone().prop_map(Op::Join),
            1 => (index.clone(), 0..3u64).prop_map(|(index, owner)| Op::Adopt { index, owner }),
            4 => index.prop_map(Op::Deliver),
            2 => any::<usize>().prop_map(Op::End),
            2 => any::<usize>().prop_map(Op::Leave),
            1 => (0..3u64).prop_map(Op::Cancel),
        ]
    }

    /// Naive model: a flat list of requests with their chunks, streams and waiters.
    #[derive(Debug)]
    struct Twin {
        id: RequestId,
        ahead: bool,
        owners: Vec<u64>,
        /// Chunk and the numbers of its waiters.
        left: Vec<(u64, Vec<u32>)>,
    }

    impl Twin {
        fn is_wanted(&self) -> bool {
            !self.owners.is_empty() || self.left.iter().any(|(_, waiters)| !waiters.is_empty())
        }
    }

    fn holder(twins: &mut [Twin], index: u64) -> Option<&mut Twin> {
        twins.iter_mut().find(|twin| twin.left.iter().any(|(other, _)| *other == index))
    }

    #[derive(Default)]
    struct Run {
        twins: Vec<Twin>,
        /// Number of a waiter, its id and its chunk.
        waiters: Vec<(u32, WaiterId, u64)>,
        next: u32,
    }

    impl Run {
        fn join(&mut self, table: &mut Inflight<u32>, index: u64) -> Result<(), TestCaseError> {
            self.next += 1;
            let number = self.next;
            let id = table.join(&key(index), || number);
            let twin = holder(&mut self.twins, index);
            prop_assert_eq!(id.is_some(), twin.is_some());
            if let (Some(id), Some(twin)) = (id, twin) {
                let (_, waiters) = twin.left.iter_mut().find(|(other, _)| *other == index).unwrap();
                waiters.push(number);
                self.waiters.push((number, id, index));
            }
            Ok(())
        }

        fn apply(&mut self, table: &mut Inflight<u32>, op: &Op) -> Result<(), TestCaseError> {
            match *op {
                Op::Begin { first, count, owner: handle } => {
                    let free = |index: &u64| holder(&mut self.twins, *index).is_none();
                    let indices: Vec<u64> = (first..first + count).filter(free).collect();
                    if indices.is_empty() {
                        return Ok(());
                    }
                    let chunks: Vec<_> = indices.iter().map(|index| (key(*index), 100 + index)).collect();
                    let id = table.begin(handle.map(owner), &chunks);
                    let left = indices.iter().map(|index| (*index, Vec::new())).collect();
                    let owners = handle.into_iter().collect();
                    self.twins.push(Twin { id, ahead: handle.is_some(), owners, left });
                    if handle.is_none() {
                        self.join(table, indices[0])?;
                    }
                }
                Op::Join(index) => self.join(table, index)?,
                Op::Adopt { index, owner: handle } => {
                    table.adopt(&key(index), owner(handle));
                    if let Some(twin) = holder(&mut self.twins, index)
                        && twin.ahead
                        && !twin.owners.contains(&handle)
                    {
                        twin.owners.push(handle);
                    }
                }
                Op::Deliver(index) => {
                    let Some(twin) = holder(&mut self.twins, index) else {
                        prop_assert_eq!(table.deliver(RequestId(0), &key(index)), None);
                        return Ok(());
                    };
                    let at = twin.left.iter().position(|(other, _)| *other == index).unwrap();
                    let (_, waiters) = twin.left.remove(at);
                    let owner = twin.owners.first().map(|handle| owner(*handle));
                    let expected = Some(Delivery { waiters, owner });
                    prop_assert_eq!(table.deliver(twin.id, &key(index)), expected);
                }
                Op::End(pick) => self.end(table, pick)?,
                Op::Leave(pick) => self.leave(table, pick)?,
                Op::Cancel(handle) => self.cancel(table, handle)?,
            }
            Ok(())
        }

        fn end(&mut self, table: &mut Inflight<u32>, pick: usize) -> Result<(), TestCaseError> {
            if self.twins.is_empty() {
                return Ok(());
            }
            let twin = self.twins.remove(pick % self.twins.len());
            let failure = table.end(twin.id);
            prop_assert_eq!(failure.is_none(), twin.left.is_empty());
            if let Some(failure) = failure {
                let expected: BTreeSet<u32> =
                    twin.left.into_iter().flat_map(|(_, waiters)| waiters).collect();
                prop_assert_eq!(failure.waiters.into_iter().collect::<BTreeSet<_>>(), expected);
                prop_assert_eq!(failure.was_ahead, twin.ahead);
            }
            prop_assert_eq!(table.end(twin.id), None);
            Ok(())
        }

        fn leave(&mut self, table: &mut Inflight<u32>, pick: usize) -> Result<(), TestCaseError> {
            let Some((number, id, index)) =
                (!self.waiters.is_empty()).then(|| self.waiters[pick % self.waiters.len()])
            else {
                return Ok(());
            };
            let mut unwanted = None;
            if let Some(twin) = holder(&mut self.twins, index) {
                let (_, waiters) = twin.left.iter_mut().find(|(other, _)| *other == index).unwrap();
                let before = waiters.len();
                waiters.retain(|other| *other != number);
                if waiters.len() < before && !twin.is_wanted() {
                    unwanted = Some(twin.id);
                }
            }
            self.twins.retain(|twin| Some(twin.id) != unwanted);
            prop_assert_eq!(table.leave(&key(index), id), unwanted);
            Ok(())
        }

        fn cancel(&mut self, table: &mut Inflight<u32>, handle: u64) -> Result<(), TestCaseError> {
            let mut expected = BTreeSet::new();
            for twin in &mut self.twins {
                let before = twin.owners.len();
                twin.owners.retain(|other| *other != handle);
                if twin.owners.len() < before && !twin.is_wanted() {
                    expected.insert(twin.id);
                }
            }
            self.twins.retain(|twin| !expected.contains(&twin.id));
            let unwanted = table.cancel(|other| other == owner(handle));
            prop_assert_eq!(unwanted.into_iter().collect::<BTreeSet<_>>(), expected);
            Ok(())
        }

        fn bytes(&self, counts: impl Fn(&Twin) -> bool) -> u64 {
            let counted = self.twins.iter().filter(|twin| counts(twin));
            counted.flat_map(|twin| &twin.left).map(|(index, _)| 100 + index).sum()
        }
    }

    proptest! {
        #[test]
        fn it_knows_what_its_slow_twin_knows(ops in prop::collection::vec(op(), 0..200)) {
            let (mut table, mut run) = (Inflight::new(), Run::default());
            for op in ops {
                run.apply(&mut table, &op)?;
                prop_assert_eq!(table.bytes(), run.bytes(|_| true));
                prop_assert_eq!(table.ahead_bytes(), run.bytes(|twin| twin.ahead));
                prop_assert_eq!(table.ahead_requests(), run.twins.iter().filter(|twin| twin.ahead).count());
                prop_assert_eq!(table.requests.len(), run.twins.len());
                for handle in 0..3 {
                    let first = |twin: &Twin| twin.owners.first() == Some(&handle);
                    prop_assert_eq!(table.ahead_bytes_of(owner(handle)), run.bytes(first));
                }
                for index in 0..27 {
                    prop_assert_eq!(table.contains(&key(index)), holder(&mut run.twins, index).is_some());
                }
            }
        }
    }
}
