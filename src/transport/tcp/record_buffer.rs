//! Encrypted bytes that wait to be sent, in memory that is used again.

use std::ops::Deref;

/// Encrypted bytes. Their memory is zeroed at its first use, and not each time.
#[derive(Debug, Default)]
pub(super) struct RecordBuffer {
    memory: Vec<u8>,
    len: usize,
}

impl RecordBuffer {
    /// Appends `len` bytes with undefined content. The caller overwrites them.
    pub(super) fn append(&mut self, len: usize) -> &mut [u8] {
        let start = self.len;
        self.len += len;
        if self.memory.len() < self.len {
            self.memory.resize(self.len, 0);
        }
        &mut self.memory[start..self.len]
    }

    /// Forgets the bytes, keeps the memory.
    pub(super) const fn clear(&mut self) {
        self.len = 0;
    }
}

impl Deref for RecordBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_an_earlier_use_do_not_show() {
        let mut sealed = RecordBuffer::default();
        sealed.append(3).copy_from_slice(b"abc");
        sealed.clear();
        assert!(sealed.is_empty());
        sealed.append(1)[0] = b'x';
        sealed.append(4).copy_from_slice(b"yzzz");
        assert_eq!(&sealed[..], b"xyzzz");
    }
}
