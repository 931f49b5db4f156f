//! Client with injected faults, for tests of the layers above.
//!
//! Every call draws from a seeded generator, so a failed run can be repeated. It injects the faults of a real
//! host and network: refusals, timeouts, answers that break off, late answers.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use super::{
    CallError, CallFuture, Client, ContentPart, FirstSession, LinkState, ListPart, PARTS_QUEUED_MAX,
};
use crate::chunk::ByteRange;
use crate::proto::{
    Attributes, BootId, Change, Errno, ErrorCode, LockAnswer, LockCall, NodeId, ReadRequest, Reply, Request,
    SessionRun, WireError, WriteAt, Written,
};
use crate::transport::Lane;

/// Rates of the faults, per mille of the calls.
#[derive(Debug, Clone)]
pub struct FaultRates {
    /// Calls that fail with one of `errors`.
    pub error_permille: u32,
    /// Errors to choose from.
    pub errors: Vec<ErrorCode>,
    /// Calls that fail with [`CallError::TimedOut`].
    pub timeout_permille: u32,
    /// Calls that fail with [`CallError::BadAnswer`].
    pub bad_answer_permille: u32,
    /// Listings and reads that fail after some of their parts.
    pub broken_stream_permille: u32,
    /// Listings and reads that end after some of their parts, as if the mount ended.
    pub cut_stream_permille: u32,
    /// Answers that are late.
    pub delay_permille: u32,
    /// Longest delay.
    pub delay_max: Duration,
}

impl FaultRates {
    /// No faults.
    pub const NONE: Self = Self {
        error_permille: 0,
        errors: Vec::new(),
        timeout_permille: 0,
        bad_answer_permille: 0,
        broken_stream_permille: 0,
        cut_stream_permille: 0,
        delay_permille: 0,
        delay_max: Duration::ZERO,
    };

    /// Faults in about one call of ten.
    pub fn rough() -> Self {
        Self {
            error_permille: 30,
            errors: vec![ErrorCode::System(Errno::EIO), ErrorCode::VersionChanged, ErrorCode::UnknownNode],
            timeout_permille: 20,
            bad_answer_permille: 10,
            broken_stream_permille: 40,
            cut_stream_permille: 10,
            delay_permille: 100,
            delay_max: Duration::from_millis(5),
        }
    }
}

/// A client with faults around another client. Clones share the generator.
#[derive(Clone)]
pub struct FaultyClient {
    inner: Arc<dyn Client>,
    generator: Arc<Mutex<FaultGenerator>>,
}

struct FaultGenerator {
    rates: FaultRates,
    state: u64,
    injected: u64,
}

/// Faults of one call.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Faults {
    delay: Duration,
    error: Option<CallError>,
    /// End after so many parts, with or without an error.
    end: Option<(u64, Option<CallError>)>,
}

impl FaultyClient {
    /// Wraps a client. Equal seeds give equal faults, call by call.
    pub fn new(inner: Arc<dyn Client>, seed: u64, rates: FaultRates) -> Self {
        Self { inner, generator: Arc::new(Mutex::new(FaultGenerator { rates, state: seed, injected: 0 })) }
    }

    /// Changes the rates from now on.
    pub fn set_rates(&self, rates: FaultRates) {
        self.generator(|generator| generator.rates = rates);
    }

    /// Returns the number of calls that were made to fail so far, without delays.
    pub fn injected(&self) -> u64 {
        self.generator(|generator| generator.injected)
    }

    fn generator<T>(&self, look: impl FnOnce(&mut FaultGenerator) -> T) -> T {
        look(&mut self.generator.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn wrap_call<T: 'static>(
        &self,
        call: impl FnOnce(&dyn Client) -> CallFuture<T> + Send + 'static,
    ) -> CallFuture<T> {
        let faults = self.generator(|generator| generator.faults(false));
        let inner = Arc::clone(&self.inner);
        Box::pin(async move {
            tokio::time::sleep(faults.delay).await;
            match faults.error {
                Some(error) => Err(error),
                None => call(&*inner).await,
            }
        })
    }

    fn wrap_stream<T: Send + 'static>(
        &self,
        open: impl FnOnce(&dyn Client) -> mpsc::Receiver<Result<T, CallError>> + Send + 'static,
    ) -> mpsc::Receiver<Result<T, CallError>> {
        let faults = self.generator(|generator| generator.faults(true));
        let (parts, receiver) = mpsc::channel(PARTS_QUEUED_MAX);
        let inner = Arc::clone(&self.inner);
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = parts.closed() => {}
                () = relay(faults, inner, open, &parts) => {}
            }
        });
        receiver
    }
}

async fn relay<T>(
    faults: Faults,
    inner: Arc<dyn Client>,
    open: impl FnOnce(&dyn Client) -> mpsc::Receiver<Result<T, CallError>>,
    parts: &mpsc::Sender<Result<T, CallError>>,
) {
    tokio::time::sleep(faults.delay).await;
    // `closed` of the caller shows if there is still a receiver.
    if let Some(error) = faults.error {
        let _ = parts.send(Err(error)).await;
        return;
    }
    let mut source = open(&*inner);
    let (mut left, last_error) = faults.end.unwrap_or((u64::MAX, None));
    while let Some(part) = source.recv().await {
        if left == 0 {
            if let Some(error) = last_error {
                let _ = parts.send(Err(error)).await;
            }
            return;
        }
        left -= 1;
        if parts.send(part).await.is_err() {
            return;
        }
    }
}

impl Client for FaultyClient {
    fn call(&self, request: Request, lane: Lane) -> CallFuture<Reply> {
        self.wrap_call(move |inner| inner.call(request, lane))
    }

    fn change(&self, change: Change, first: &FirstSession) -> CallFuture<Reply> {
        let first = first.clone();
        self.wrap_call(move |inner| inner.change(change, &first))
    }

    fn write(&self, node: NodeId, at: WriteAt, bytes: Bytes, first: &FirstSession) -> CallFuture<Written> {
        // Started at once, so that a sync includes it.
        let written = self.inner.write(node, at, bytes, first);
        self.wrap_call(move |_| written)
    }

    fn sync(&self, node: NodeId, data_only: bool) -> CallFuture<BootId> {
        let synced = self.inner.sync(node, data_only);
        self.wrap_call(move |_| synced)
    }

    fn boot(&self) -> Option<BootId> {
        self.inner.boot()
    }

    fn lock(&self, call: LockCall) -> CallFuture<LockAnswer> {
        self.wrap_call(move |inner| inner.lock(call))
    }

    fn runs(&self) -> watch::Receiver<Option<SessionRun>> {
        self.inner.runs()
    }

    fn list(&self, node: NodeId) -> mpsc::Receiver<Result<ListPart, CallError>> {
        self.wrap_stream(move |inner| inner.list(node))
    }

    fn read(&self, request: ReadRequest, lane: Lane) -> mpsc::Receiver<Result<ContentPart, CallError>> {
        self.wrap_stream(move |inner| inner.read(request, lane))
    }

    fn read_current(&self, node: NodeId, range: ByteRange) -> CallFuture<Bytes> {
        self.wrap_call(move |inner| inner.read_current(node, range))
    }

    fn root(&self) -> Attributes {
        self.inner.root()
    }

    fn link(&self) -> LinkState {
        self.inner.link()
    }
}

impl FaultGenerator {
    fn faults(&mut self, is_stream: bool) -> Faults {
        let rates = self.rates.clone();
        let delay = if self.happens(rates.delay_permille) {
            rates.delay_max.mul_f64(self.next() as f64 / u64::MAX as f64)
        } else {
            Duration::ZERO
        };
        let error = if self.happens(rates.error_permille) && !rates.errors.is_empty() {
            let code = rates.errors[(self.next() % rates.errors.len() as u64) as usize];
            Some(WireError::new(code, "injected").into())
        } else if self.happens(rates.timeout_permille) {
            Some(CallError::TimedOut(Duration::ZERO))
        } else if self.happens(rates.bad_answer_permille) {
            Some(CallError::BadAnswer("injected".to_owned()))
        } else {
            None
        };
        let end = if error.is_none() && is_stream { self.early_end(&rates) } else { None };
        self.injected += u64::from(error.is_some() || end.is_some());
        Faults { delay, error, end }
    }

    fn early_end(&mut self, rates: &FaultRates) -> Option<(u64, Option<CallError>)> {
        // Few parts, so that most reads are long enough to break off.
        let parts = self.next() % 4;
        if self.happens(rates.broken_stream_permille) {
            Some((parts, Some(CallError::BadAnswer("broken off on purpose".to_owned()))))
        } else {
            self.happens(rates.cut_stream_permille).then_some((parts, None))
        }
    }

    fn happens(&mut self, permille: u32) -> bool {
        self.next() % 1_000 < u64::from(permille)
    }

    /// `splitmix64`.
    const fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let value = (self.state ^ (self.state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        value ^ (value >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::CHUNK_BYTES;
    use crate::client::memory::MemoryHost;

    async fn outcomes(seed: u64, rates: FaultRates) -> Vec<Result<(), CallError>> {
        let client = FaultyClient::new(MemoryHost::new().client(), seed, rates);
        let mut outcomes = Vec::new();
        for _ in 0..200 {
            outcomes.push((&client as &dyn Client).ping().await);
        }
        assert_eq!(client.injected(), outcomes.iter().filter(|outcome| outcome.is_err()).count() as u64);
        outcomes
    }

    #[tokio::test]
    async fn equal_seeds_fail_alike() {
        let first = outcomes(1, FaultRates::rough()).await;
        assert_eq!(first, outcomes(1, FaultRates::rough()).await);
        assert_ne!(first, outcomes(2, FaultRates::rough()).await);
        assert!(first.iter().any(Result::is_err) && first.iter().any(Result::is_ok));
        assert!(outcomes(1, FaultRates::NONE).await.iter().all(Result::is_ok));
    }

    #[tokio::test]
    async fn a_broken_stream_delivers_some_parts_and_an_error() {
        let host = MemoryHost::new();
        host.create_generated("f", 8 * CHUNK_BYTES, 1);
        let rates = FaultRates { broken_stream_permille: 1_000, ..FaultRates::NONE };
        let client = FaultyClient::new(host.client(), 3, rates);
        let file = (&client as &dyn Client).lookup(host.root_node(), b"f").await.unwrap();
        let request = ReadRequest::chunks_of(&file, ByteRange::new(0, file.size));
        let mut parts = client.read(request, Lane::Demand);
        let mut chunks = 0;
        while let Some(Ok(ContentPart::Chunk { .. })) = parts.recv().await {
            chunks += 1;
        }
        assert!(chunks < 4 && parts.recv().await.is_none());
    }
}
