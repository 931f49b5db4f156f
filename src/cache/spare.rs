//! Buffers of direct reads, used again: new memory must be zeroed, and costs a virtual machine more than a read into it.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::record::PAYLOAD_BYTES_MAX;
use crate::io::AlignedBuffer;

/// Size of the buffers that are kept: what a full chunk lies in.
const KEPT_BYTES: usize = PAYLOAD_BYTES_MAX as usize;

/// Most buffers kept: what eight requests take, 8 MiB. A reader lets go of one for each it asks for.
const KEPT_MAX: usize = 32;

/// The buffers that nobody uses.
#[derive(Debug, Default)]
pub(super) struct Spares {
    kept: Mutex<Vec<AlignedBuffer>>,
}

impl Spares {
    /// A buffer of at least `len` bytes; what is in it is left from its last use.
    pub(super) fn lend(self: &Arc<Self>, len: usize) -> Lent {
        let used = if len == KEPT_BYTES { self.kept().pop() } else { None };
        Lent { buffer: Some(used.unwrap_or_else(|| AlignedBuffer::zeroed(len))), home: Arc::clone(self) }
    }

    /// Frees them all.
    pub(super) fn clear(&self) {
        drop(std::mem::take(&mut *self.kept()));
    }

    fn kept(&self) -> MutexGuard<'_, Vec<AlignedBuffer>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A buffer that comes back when it is dropped.
#[derive(Debug)]
pub(super) struct Lent {
    /// There until it is dropped.
    buffer: Option<AlignedBuffer>,
    home: Arc<Spares>,
}

impl Deref for Lent {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.buffer.as_deref().unwrap_or_default()
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.buffer.as_deref_mut().unwrap_or_default()
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut kept = self.home.kept();
        if self.len() == KEPT_BYTES && kept.len() < KEPT_MAX {
            kept.extend(self.buffer.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_buffers_come_back_and_only_so_many_are_kept() {
        let spares = Arc::new(Spares::default());
        let mut first = spares.lend(KEPT_BYTES);
        first[0] = 7;
        let address = first.as_ptr();
        drop(first);
        let again = spares.lend(KEPT_BYTES);
        assert_eq!((again.as_ptr(), again[0]), (address, 7));
        assert_ne!(spares.lend(KEPT_BYTES).as_ptr(), address, "two at once");
        drop(spares.lend(KEPT_BYTES / 2));
        let many: Vec<Lent> = (0..2 * KEPT_MAX).map(|_| spares.lend(KEPT_BYTES)).collect();
        drop(many);
        assert_eq!(spares.kept().len(), KEPT_MAX);
        spares.clear();
        assert_eq!(spares.kept().len(), 0);
        drop(again);
        assert_eq!(spares.kept().len(), 1);
    }
}
