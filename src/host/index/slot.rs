//! (P) One slot of the index on disk: the hashes of 64 chunks in a row of one version of a file, and the bytes they take.
//!
//! ```text
//! slot = mac(16) tag(16) written_s(8) known(8) has_sum(1) zeroes(15) sum(32) zeroes(32) hash(32) * 64
//! ```
//!
//! Numbers are little-endian; `known` has a bit for each hash that is there. The checksum is keyed and covers everything behind it, the
//! tag too, so a slot that was torn, flipped, or written for another file is no slot.

use crate::chunk::ChunkHash;
use crate::proto::{NodeId, Version};

/// Chunks in one slot: 16 MiB of a file.
pub(super) const STRETCH_CHUNKS: u64 = 64;

/// Size of a slot in bytes.
pub(super) const SLOT_BYTES: usize = HEAD_BYTES + STRETCH_CHUNKS as usize * HASH_BYTES;

const HEAD_BYTES: usize = 128;
const MAC_BYTES: usize = 16;
const HASH_BYTES: usize = 32;

/// Names a stretch in the table: 128 bits of a keyed hash, so no two share one.
pub(super) type Tag = [u8; 16];

/// Which 64 chunks of which version of which file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::host) struct StretchId {
    pub(super) node: NodeId,
    pub(super) version: Version,
    pub(super) number: u64,
}

/// What is known of a stretch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Stretch {
    /// Ends with the last that is known.
    hashes: Vec<Option<ChunkHash>>,
    /// Of the whole file; in its first stretch.
    pub(super) sum: Option<ChunkHash>,
}

impl Stretch {
    /// The hash of the chunk at `at`, below [`STRETCH_CHUNKS`].
    pub(super) fn get(&self, at: usize) -> Option<ChunkHash> {
        self.hashes.get(at).copied().flatten()
    }

    /// Takes in a hash, which holds from now on.
    pub(super) fn set(&mut self, at: usize, hash: ChunkHash) {
        if self.hashes.len() <= at {
            self.hashes.resize(at + 1, None);
        }
        self.hashes[at] = Some(hash);
    }

    /// Takes in all that `newer` knows. Returns whether that was news.
    pub(super) fn join(&mut self, newer: &Self) -> bool {
        let before = self.clone();
        let known = newer.hashes.iter().enumerate().filter_map(|(at, hash)| Some((at, (*hash)?)));
        known.for_each(|(at, hash)| self.set(at, hash));
        self.sum = newer.sum.or(self.sum);
        *self != before
    }
}

/// The key of the checksums and tags of one index.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct IndexKey([u8; 32]);

impl IndexKey {
    pub(super) const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub(super) const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The name of a stretch in the table.
    pub(super) fn tag(&self, id: &StretchId) -> Tag {
        let StretchId { node, version, number } = id;
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(b"tag");
        hasher.update(&node.device.to_le_bytes()).update(&node.inode.to_le_bytes());
        hasher.update(&node.birth_ns.to_le_bytes()).update(&version.size.to_le_bytes());
        hasher.update(&version.mtime.0.to_le_bytes()).update(&version.ctime.0.to_le_bytes());
        hasher.update(&number.to_le_bytes());
        first_half(&hasher)
    }

    fn mac(&self, covered: &[u8]) -> [u8; MAC_BYTES] {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        first_half(hasher.update(b"mac").update(covered))
    }

    /// The bytes of a slot.
    pub(super) fn encode(&self, tag: &Tag, written_seconds: u64, stretch: &Stretch) -> Vec<u8> {
        let mut slot = vec![0; SLOT_BYTES];
        slot[16..32].copy_from_slice(tag);
        slot[32..40].copy_from_slice(&written_seconds.to_le_bytes());
        let mut known = 0u64;
        for (at, hash) in stretch.hashes.iter().enumerate() {
            if let Some(hash) = hash {
                known |= 1 << at;
                slot[HEAD_BYTES + at * HASH_BYTES..][..HASH_BYTES].copy_from_slice(hash.as_bytes());
            }
        }
        slot[40..48].copy_from_slice(&known.to_le_bytes());
        if let Some(sum) = stretch.sum {
            slot[48] = 1;
            slot[64..96].copy_from_slice(sum.as_bytes());
        }
        self.seal(&mut slot);
        slot
    }

    /// Writes the checksum of a slot into it.
    pub(super) fn seal(&self, slot: &mut [u8]) {
        let mac = self.mac(&slot[MAC_BYTES..]);
        slot[..MAC_BYTES].copy_from_slice(&mac);
    }

    /// What [`Self::encode`] wrote for `tag`; `None` where anything is wrong.
    pub(super) fn decode(&self, tag: &Tag, slot: &[u8]) -> Option<Stretch> {
        if tag_of(slot)? != *tag || !self.is_whole(slot) {
            return None;
        }
        let hash =
            |from: usize| slot.get(from..from + HASH_BYTES)?.try_into().ok().map(ChunkHash::from_bytes);
        let known = number(slot, 40)?;
        let mut stretch = Stretch { sum: if slot[48] == 1 { hash(64) } else { None }, ..Stretch::default() };
        for at in (0..STRETCH_CHUNKS as usize).filter(|at| known >> at & 1 == 1) {
            stretch.set(at, hash(HEAD_BYTES + at * HASH_BYTES)?);
        }
        Some(stretch)
    }

    /// When a slot was written, in seconds since the epoch; `None` where it holds nothing.
    pub(super) fn written_seconds(&self, slot: &[u8]) -> Option<u64> {
        number(slot, 32).filter(|_| self.is_whole(slot))
    }

    fn is_whole(&self, slot: &[u8]) -> bool {
        slot.len() == SLOT_BYTES && slot[..MAC_BYTES] == self.mac(&slot[MAC_BYTES..])
    }
}

/// The tag that a slot bears, true or not.
pub(super) fn tag_of(slot: &[u8]) -> Option<Tag> {
    slot.get(16..32)?.try_into().ok()
}

fn number(bytes: &[u8], from: usize) -> Option<u64> {
    bytes.get(from..from + 8)?.try_into().ok().map(u64::from_le_bytes)
}

fn first_half(hasher: &blake3::Hasher) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    half
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::Timestamp;

    fn hash(byte: u8) -> ChunkHash {
        ChunkHash::from_bytes([byte; 32])
    }

    fn id(number: u64) -> StretchId {
        StretchId {
            node: NodeId { device: 1, inode: 2, birth_ns: 3 },
            version: Version { size: 4, mtime: Timestamp(5), ctime: Timestamp(6) },
            number,
        }
    }

    #[test]
    fn every_part_of_a_name_makes_another_tag() {
        let key = IndexKey::new([7; 32]);
        let mut ids = [id(0); 8];
        ids[1].number += 1;
        ids[2].node.device += 1;
        ids[3].node.inode += 1;
        ids[4].node.birth_ns += 1;
        ids[5].version.size += 1;
        ids[6].version.mtime.0 += 1;
        ids[7].version.ctime.0 += 1;
        let mut tags: Vec<_> = ids.iter().map(|id| key.tag(id)).collect();
        tags.push(IndexKey::new([8; 32]).tag(&ids[0]));
        tags.sort_unstable();
        tags.dedup();
        assert_eq!(tags.len(), 9);
    }

    #[test]
    fn what_is_newer_holds() {
        let (mut old, mut new) = (Stretch::default(), Stretch { sum: Some(hash(9)), ..Stretch::default() });
        old.set(1, hash(1));
        old.set(2, hash(2));
        new.set(2, hash(3));
        assert!(old.join(&new));
        assert_eq!(
            [old.get(0), old.get(1), old.get(2), old.sum],
            [None, Some(hash(1)), Some(hash(3)), Some(hash(9))]
        );
        assert!(!old.join(&new), "that is no news");
    }

    proptest! {
        #[test]
        fn slots_come_back_and_damage_does_not(
            hashes in prop::collection::btree_map(0..64usize, any::<u8>(), 0..64),
            sum in any::<Option<u8>>(),
            flipped in 0..SLOT_BYTES * 8,
            cut in 0..SLOT_BYTES,
        ) {
            let (key, tag) = (IndexKey::new([7; 32]), IndexKey::new([7; 32]).tag(&id(0)));
            let mut stretch = Stretch { sum: sum.map(hash), ..Stretch::default() };
            for (at, byte) in &hashes {
                stretch.set(*at, hash(*byte));
            }
            let mut slot = key.encode(&tag, 12, &stretch);
            prop_assert_eq!((key.decode(&tag, &slot), key.written_seconds(&slot)), (Some(stretch), Some(12)));
            prop_assert_eq!(key.decode(&key.tag(&id(1)), &slot), None);
            prop_assert_eq!(IndexKey::new([8; 32]).decode(&tag, &slot), None);
            prop_assert_eq!(key.decode(&tag, &slot[..cut]), None);
            slot[flipped / 8] ^= 1 << (flipped % 8);
            prop_assert_eq!((key.decode(&tag, &slot), key.written_seconds(&slot)), (None, None));
        }
    }
}
