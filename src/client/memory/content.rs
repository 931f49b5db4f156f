//! (P) Content of a model file: written blocks over computed bytes, and holes between them.

use std::collections::BTreeMap;

use crate::proto::SeekTarget;

/// Unit in which content is stored and holes are counted, in bytes, as on most file systems.
pub(super) const BLOCK_BYTES: u64 = 4096;

/// Content of a file of any size. Only written blocks take memory.
#[derive(Debug, Clone, Default)]
pub(super) struct Content {
    size: u64,
    generated: Option<Generated>,
    written: BTreeMap<u64, Vec<u8>>,
}

/// Bytes that are computed from their offset.
#[derive(Debug, Clone, Copy)]
struct Generated {
    seed: u64,
    size: u64,
}

impl Content {
    /// Returns a file with the content `bytes`.
    pub(super) fn from_bytes(bytes: &[u8]) -> Self {
        let mut content = Self::default();
        content.write(0, bytes);
        content
    }

    /// Returns a file of `size` bytes that look random and depend only on `seed` and their offset.
    pub(super) fn generated(seed: u64, size: u64) -> Self {
        Self { size, generated: Some(Generated { seed, size }), written: BTreeMap::new() }
    }

    /// Returns the size in bytes.
    pub(super) const fn size(&self) -> u64 {
        self.size
    }

    /// Returns the number of stored bytes, in whole blocks.
    pub(super) fn allocated_bytes(&self) -> u64 {
        let generated_blocks = self.generated.map_or(0, |generated| generated.size.div_ceil(BLOCK_BYTES));
        let beyond = self.written.range(generated_blocks..).count() as u64;
        (generated_blocks + beyond) * BLOCK_BYTES
    }

    /// Returns the bytes of `offset..offset + len` that lie before the end.
    pub(super) fn read(&self, offset: u64, len: u64) -> Vec<u8> {
        let end = offset.saturating_add(len).min(self.size);
        let mut bytes = Vec::with_capacity(end.saturating_sub(offset) as usize);
        let mut at = offset;
        while at < end {
            let (index, within) = (at / BLOCK_BYTES, (at % BLOCK_BYTES) as usize);
            let take = (BLOCK_BYTES as usize - within).min((end - at) as usize);
            match self.written.get(&index) {
                Some(block) => bytes.extend_from_slice(&block[within..within + take]),
                None => bytes.extend_from_slice(&self.unwritten_block(index)[within..within + take]),
            }
            at += take as u64;
        }
        bytes
    }

    /// Writes `bytes` at `offset`. The file grows as needed, with a hole in the gap.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let mut rest = bytes;
        let mut at = offset;
        while !rest.is_empty() {
            let (index, within) = (at / BLOCK_BYTES, (at % BLOCK_BYTES) as usize);
            let (now, later) = rest.split_at(rest.len().min(BLOCK_BYTES as usize - within));
            self.block_mut(index)[within..within + now.len()].copy_from_slice(now);
            at += now.len() as u64;
            rest = later;
        }
        self.size = self.size.max(at);
    }

    /// Truncates the file, or extends it by a hole.
    pub(super) fn truncate(&mut self, size: u64) {
        if size < self.size {
            let (last, within) = (size / BLOCK_BYTES, (size % BLOCK_BYTES) as usize);
            self.written.split_off(&size.div_ceil(BLOCK_BYTES));
            self.generated = self.generated.map(|old| Generated { size: old.size.min(size), ..old });
            if let Some(block) = self.written.get_mut(&last) {
                block[within..].fill(0);
            }
        }
        self.size = size;
    }

    /// Returns the next data or hole from `offset` on, as `lseek(2)`, or `None` for `ENXIO`.
    pub(super) fn seek(&self, offset: u64, target: SeekTarget) -> Option<u64> {
        if offset >= self.size {
            return None;
        }
        let wanted = matches!(target, SeekTarget::Data);
        let first = offset / BLOCK_BYTES;
        let blocks = self.size.div_ceil(BLOCK_BYTES);
        let found = (first..blocks).find(|&index| self.is_data(index) == wanted);
        match found {
            Some(index) => Some((index * BLOCK_BYTES).max(offset)),
            None if wanted => None,
            None => Some(self.size),
        }
    }

    fn is_data(&self, index: u64) -> bool {
        self.written.contains_key(&index)
            || self.generated.is_some_and(|generated| index < generated.size.div_ceil(BLOCK_BYTES))
    }

    fn block_mut(&mut self, index: u64) -> &mut Vec<u8> {
        let fresh = (!self.written.contains_key(&index)).then(|| self.unwritten_block(index).to_vec());
        self.written.entry(index).or_insert_with(|| fresh.unwrap_or_default())
    }

    fn unwritten_block(&self, index: u64) -> [u8; BLOCK_BYTES as usize] {
        let mut block = [0; BLOCK_BYTES as usize];
        let Some(generated) = self.generated else { return block };
        let start = index * BLOCK_BYTES;
        let filled = generated.size.saturating_sub(start).min(BLOCK_BYTES) as usize;
        let first_word = start / 8;
        for (word, bytes) in block[..filled].chunks_mut(8).enumerate() {
            let value = scramble(generated.seed ^ scramble(first_word + word as u64));
            bytes.copy_from_slice(&value.to_le_bytes()[..bytes.len()]);
        }
        block
    }
}

/// Finaliser of `splitmix64`. Neighbouring values become unrelated.
const fn scramble(value: u64) -> u64 {
    let value = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Op {
        Write(u64, Vec<u8>),
        Truncate(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (0u64..20_000, proptest::collection::vec(any::<u8>(), 0..6_000))
                .prop_map(|(at, bytes)| Op::Write(at, bytes)),
            (0u64..30_000).prop_map(Op::Truncate),
        ]
    }

    proptest! {
        #[test]
        fn content_is_as_a_plain_vector_would_be(
            generated in 0u64..20_000,
            ops in proptest::collection::vec(op(), 0..12),
            offset in 0u64..30_000,
            len in 0u64..30_000,
        ) {
            let mut content = Content::generated(7, generated);
            let mut twin = content.read(0, generated);
            prop_assert_eq!(twin.len() as u64, generated);
            for op in ops {
                match op {
                    Op::Write(at, bytes) => {
                        content.write(at, &bytes);
                        let end = at as usize + bytes.len();
                        // An empty write changes nothing, even beyond the end.
                        if !bytes.is_empty() {
                            twin.resize(twin.len().max(end), 0);
                            twin[at as usize..end].copy_from_slice(&bytes);
                        }
                    }
                    Op::Truncate(size) => {
                        content.truncate(size);
                        twin.resize(size as usize, 0);
                    }
                }
                prop_assert_eq!(content.size(), twin.len() as u64);
            }
            let from = (offset as usize).min(twin.len());
            let to = (offset + len).min(twin.len() as u64) as usize;
            prop_assert_eq!(content.read(offset, len), &twin[from..to.max(from)]);
        }
    }

    #[test]
    fn seeking_distinguishes_data_and_holes() {
        let mut content = Content::default();
        content.write(2 * BLOCK_BYTES, b"island");
        content.truncate(5 * BLOCK_BYTES);
        assert_eq!(content.seek(0, SeekTarget::Data), Some(2 * BLOCK_BYTES));
        assert_eq!(content.seek(0, SeekTarget::Hole), Some(0));
        assert_eq!(content.seek(2 * BLOCK_BYTES + 3, SeekTarget::Data), Some(2 * BLOCK_BYTES + 3));
        assert_eq!(content.seek(2 * BLOCK_BYTES, SeekTarget::Hole), Some(3 * BLOCK_BYTES));
        assert_eq!(content.seek(3 * BLOCK_BYTES, SeekTarget::Data), None);
        assert_eq!(Content::from_bytes(b"full").seek(1, SeekTarget::Hole), Some(4));
        assert_eq!(content.seek(5 * BLOCK_BYTES, SeekTarget::Hole), None);
    }
}
