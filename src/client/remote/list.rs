//! Directory listings, delivered as they arrive. A listing that breaks off starts again and skips delivered
//! entries.

use std::collections::HashSet;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::active_connection::Waiting;
use super::call::{Retry, Stopped, broken};
use super::progress_timeout::ProgressTimeout;
use super::shared::{CallCount, Shared};
use super::stream::{Exchange, Fault};
use crate::client::{CallError, ListPart};
use crate::proto::{
    DirectoryBatch, DirectoryEntry, NAME_BYTES_MAX, NodeId, Reply, Request, WireError, encode_frame,
};
use crate::transport::Lane;

type Parts = mpsc::Sender<Result<ListPart, CallError>>;

/// Delivers all entries of `node` into `parts`.
pub(super) async fn list(shared: Arc<Shared>, node: NodeId, parts: Parts) {
    let _count = CallCount::new(&shared);
    let timeout = ProgressTimeout::new(&shared);
    let listing = Listing { shared: &shared, parts: &parts, timeout: &timeout, delivered: HashSet::new() };
    let last = tokio::select! {
        biased;
        () = parts.closed() => return,
        () = shared.closed() => Some(Err(CallError::Closed)),
        last = listing.run(node) => last,
        () = timeout.exhausted() => Some(Err(CallError::TimedOut(shared.deadline))),
    };
    if let Some(last) = last {
        // The receiver may have gone.
        let _ = parts.send(last).await;
    }
}

struct Listing<'a> {
    shared: &'a Shared,
    parts: &'a Parts,
    timeout: &'a ProgressTimeout<'a>,
    /// Names that were delivered, as 16 bytes of their hash. A listing of millions of entries need not be
    /// held in memory.
    delivered: HashSet<[u8; 16]>,
}

/// Largest number of entries in a listing, twice the number that any cache keeps. It stops a host whose
/// listing never ends.
const ENTRIES_MAX: usize = 1 << 23;

/// Entries that may repeat in one attempt, in addition to those of earlier attempts. A directory that changes
/// while it is listed shows some entries twice.
const REPEATED_MAX: usize = 65_536;

impl Listing<'_> {
    /// Returns the end or the error of the listing, `None` if there is no receiver any more.
    async fn run(mut self, node: NodeId) -> Option<Result<ListPart, CallError>> {
        let frame = encode_frame(&Request::ReadDirectory { node });
        let mut retry = Retry::default();
        loop {
            match self.attempt(&frame).await {
                Ok(()) => return Some(Ok(ListPart::End)),
                Err(stopped) => {
                    if let Err(end) = retry.after(self.shared, stopped).await {
                        return end.map(Err);
                    }
                }
            }
        }
    }

    async fn attempt(&mut self, frame: &[u8]) -> Result<(), Stopped> {
        let live = self.shared.usable().await.map_err(Stopped::Call)?;
        let mut waiting = Waiting::new(&live, 0);
        let _permit = live.admit(Lane::Metadata).await.map_err(|_| Fault::Lost)?;
        let mut exchange = Exchange::begin(&live.connection, frame, Lane::Metadata).await?;
        match exchange.frame::<Result<Reply, WireError>>().await? {
            Ok(Reply::Directory { attributes, lease }) => {
                let begin = ListPart::Begin { attributes, lease };
                self.parts.send(Ok(begin)).await.map_err(|_| Stopped::Dropped)?;
            }
            Ok(_) => return Err(broken("the reply is not a directory")),
            Err(refusal) => {
                exchange.complete();
                return Err(Stopped::Refused(refusal));
            }
        }
        let mut repeated_max = self.delivered.len() + REPEATED_MAX;
        loop {
            let batch: DirectoryBatch = exchange.frame().await?;
            if batch.entries.is_empty() && !batch.last {
                return Err(broken("an empty part of a directory"));
            }
            let count = batch.entries.len();
            let fresh = self.fresh(batch.entries)?;
            repeated_max = repeated_max
                .checked_sub(count - fresh.len())
                .ok_or_else(|| broken("a directory that repeats its entries"))?;
            if fresh.is_empty() {
                // This counts as progress: delivered entries come again after a lost connection, but only so
                // many.
                self.timeout.renew();
            } else {
                waiting.pause();
                self.timeout.pause();
                let sent = self.parts.send(Ok(ListPart::Entries(fresh))).await;
                sent.map_err(|_| Stopped::Dropped)?;
                self.timeout.renew();
                waiting.resume();
            }
            if batch.last {
                exchange.complete();
                return Ok(());
            }
        }
    }

    /// Returns the entries that were not delivered yet.
    fn fresh(&mut self, entries: Vec<DirectoryEntry>) -> Result<Vec<DirectoryEntry>, Stopped> {
        if !entries.iter().all(|entry| is_name(&entry.name)) {
            return Err(broken("a directory entry with an impossible name"));
        }
        let is_fresh = |entry: &DirectoryEntry| self.delivered.insert(digest(&entry.name));
        let fresh: Vec<_> = entries.into_iter().filter(is_fresh).collect();
        if self.delivered.len() > ENTRIES_MAX {
            return Err(Stopped::Call(CallError::BadAnswer("a directory without an end".to_owned())));
        }
        Ok(fresh)
    }
}

/// Returns true if a directory can hold an entry of this name.
pub(super) fn is_name(name: &[u8]) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && !name.iter().any(|&byte| byte == b'/' || byte == 0)
        && name != b"."
        && name != b".."
}

fn digest(name: &[u8]) -> [u8; 16] {
    let mut digest = [0; 16];
    digest.copy_from_slice(&blake3::hash(name).as_bytes()[..16]);
    digest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_out_of_the_directory_are_refused() {
        for good in [&b"a"[..], b"...", b" ", b"\xff\xfe", &[b'x'; 255]] {
            assert!(is_name(good));
        }
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'x'; 256]] {
            assert!(!is_name(bad));
        }
    }
}
