//! Buffers of the disk engine, lent to streams until the client has acknowledged what is in them.
//!
//! That is what "without copying" rests on, and what one client whose link is cut could bring all reads of the daemon to
//! a halt with: the engine's pool is finite. So a key may hold a share of it, all keys together another;
//! what goes beyond is copied into memory of its own, which the connections' send windows bound.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Of the pool's buffers, the share that streams may hold: the rest is always free for reading.
const LENT_OF_POOL: (usize, usize) = (3, 4);

/// Of the pool's buffers, one part of so many is what one key may hold.
const KEY_OF_POOL: usize = 2;

/// Content below this size is copied, in bytes: it would hold a buffer several times its size.
const COPIED_BELOW_BYTES: usize = 64 * 1024;

/// What all keys together may hold.
#[derive(Debug, Clone)]
pub(super) struct Lending {
    all: Arc<Semaphore>,
    own: Arc<Semaphore>,
    own_max: usize,
}

impl Lending {
    /// For a pool of `buffers` buffers.
    pub(super) fn new(buffers: usize) -> Self {
        let own_max = buffers / KEY_OF_POOL;
        let all = Arc::new(Semaphore::new(buffers * LENT_OF_POOL.0 / LENT_OF_POOL.1));
        Self { all, own: Arc::new(Semaphore::new(own_max)), own_max }
    }

    /// The share of one more key.
    pub(super) fn for_key(&self) -> Self {
        let own = Arc::new(Semaphore::new(self.own_max));
        Self { all: Arc::clone(&self.all), own, own_max: self.own_max }
    }

    /// The same bytes, in the engine's buffer where there is a share left, else in memory of their own.
    pub(super) fn lend(&self, bytes: Bytes) -> Bytes {
        if bytes.len() < COPIED_BELOW_BYTES {
            return Bytes::copy_from_slice(&bytes);
        }
        let own = Arc::clone(&self.own).try_acquire_owned();
        let all = Arc::clone(&self.all).try_acquire_owned();
        match (own, all) {
            (Ok(own), Ok(all)) => Bytes::from_owner(Lent { bytes, _shares: [own, all] }),
            _ => Bytes::copy_from_slice(&bytes),
        }
    }
}

/// Bytes in a buffer of the engine; both go back together.
struct Lent {
    bytes: Bytes,
    _shares: [OwnedSemaphorePermit; 2],
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk() -> Bytes {
        vec![7; COPIED_BELOW_BYTES].into()
    }

    /// Whether the bytes lie where they lay.
    fn is_lent(lending: &Lending, kept: &mut Vec<Bytes>) -> bool {
        let original = chunk();
        let lent = lending.lend(original.clone());
        assert_eq!(lent, original);
        let same_place = lent.as_ptr() == original.as_ptr();
        kept.push(lent);
        same_place
    }

    #[test]
    fn a_key_holds_its_share_and_gets_copies_beyond() {
        let (lending, mut kept) = (Lending::new(8).for_key(), Vec::new());
        assert_eq!([(); 5].map(|()| is_lent(&lending, &mut kept)), [true, true, true, true, false]);
        kept.clear();
        assert!(is_lent(&lending, &mut kept), "what came back is lent again");
    }

    #[test]
    fn all_keys_leave_a_quarter_for_reading() {
        let (lending, mut kept) = (Lending::new(8), Vec::new());
        let lent = (0..8).filter(|_| is_lent(&lending.for_key(), &mut kept)).count();
        assert_eq!(lent, 6);
    }

    #[test]
    fn small_content_never_holds_a_buffer() {
        let original = Bytes::from(vec![7; 100]);
        let copy = Lending::new(8).lend(original.clone());
        assert!(copy == original && copy.as_ptr() != original.as_ptr());
    }
}
