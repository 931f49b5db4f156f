//! (P) Pins: the bytes of a pin file, and the use of pinned segments.
//!
//! A pin keeps records, listed by key, under a name. Its records lie in segments that are pinned as a
//! whole. The name of such a segment ends in `.pin`, so a process that evicts need not read the pins.
//! Records are copied into such a segment before the pin file is written, so a crash leaves no pin without
//! its records. A pinned segment without records of any pin is renamed and may then be evicted.
//!
//! ```text
//! pin = magic(8) name_bytes(u32) records(u32) files(u64) bytes(u64) made_at(u64) name key(32)* mac(16)
//! ```
//!
//! Numbers are little-endian and keys ascend. The checksum is keyed like those of records.

use super::record::{Covers, Entry, Key, Secret, SegmentId, stored_bytes};

/// Longest name of a pin in bytes. It holds the longest path behind the longest names of a host and an
/// export.
pub(super) const PIN_NAME_BYTES_MAX: usize = 8192;

/// Most records of one pin: full chunks of 256 GiB, or as many small files.
pub(super) const PIN_RECORDS_MAX: usize = 1 << 20;

/// Most pins in one cache. Each has at least one segment of its own.
pub(super) const PINS_MAX: usize = 1024;

/// Largest pin file in bytes.
pub(super) const PIN_FILE_BYTES_MAX: usize =
    FIXED_BYTES + PIN_NAME_BYTES_MAX + PIN_RECORDS_MAX * KEY_BYTES + MAC_BYTES;

/// One part in this many of a cache is never pinned, and serves all other reading.
const UNPINNED_PART: u64 = 5;

const MAGIC: &[u8; 8] = b"WHpins01";
const FIXED_BYTES: usize = 40;
const KEY_BYTES: usize = 32;
const MAC_BYTES: usize = 16;

/// A pin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pin {
    /// Its name for users: `HOST:/EXPORT/PATH`.
    pub(super) name: String,
    /// Number of its files.
    pub(super) files: u64,
    /// Total size of its files in bytes.
    pub(super) bytes: u64,
    /// Time of its creation in seconds since 1970.
    pub(super) made_at: u64,
    /// Keys of its records, ascending and unique.
    pub(super) keys: Vec<Key>,
}

impl Pin {
    /// Returns the name of its file without the suffix.
    pub(super) fn stem(name: &str) -> String {
        blake3::hash(name.as_bytes()).to_hex()[..32].to_owned()
    }

    /// Encodes its file.
    pub(super) fn encode(&self, secret: &Secret) -> Vec<u8> {
        let keys_bytes = self.keys.len() * KEY_BYTES;
        let mut bytes = Vec::with_capacity(FIXED_BYTES + self.name.len() + keys_bytes + MAC_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&(self.name.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&(self.keys.len() as u32).to_le_bytes());
        for number in [self.files, self.bytes, self.made_at] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(self.name.as_bytes());
        self.keys.iter().for_each(|key| bytes.extend_from_slice(key));
        let mac = secret.mac(Covers::Pins, &[&bytes]);
        bytes.extend_from_slice(&mac);
        bytes
    }

    /// Decodes a file of [`Pin::encode`]; `None` if anything is invalid.
    pub(super) fn decode(secret: &Secret, bytes: &[u8]) -> Option<Self> {
        let (body, mac) = bytes.split_at_checked(bytes.len().checked_sub(MAC_BYTES)?)?;
        let (fixed, rest) = body.split_at_checked(FIXED_BYTES)?;
        if fixed[..8] != *MAGIC || mac != secret.mac(Covers::Pins, &[body]) {
            return None;
        }
        let small = |at: usize| Some(u32::from_le_bytes(fixed.get(at..at + 4)?.try_into().ok()?) as usize);
        let large = |at: usize| Some(u64::from_le_bytes(fixed.get(at..at + 8)?.try_into().ok()?));
        let (name, keys) = rest.split_at_checked(small(8)?)?;
        let (keys, left) = keys.as_chunks::<KEY_BYTES>();
        let sound = left.is_empty() && keys.len() == small(12)? && keys.is_sorted();
        let name = String::from_utf8(name.to_vec()).ok().filter(|_| sound)?;
        Some(Self { name, files: large(16)?, bytes: large(24)?, made_at: large(32)?, keys: keys.to_vec() })
    }
}

/// Returns the most bytes of pinned segments in a cache of `size_bytes` with segments of up to
/// `segment_bytes`. At least two segments are left for everything else.
pub(super) const fn pinned_bytes_max(size_bytes: u64, segment_bytes: u64) -> u64 {
    let share = size_bytes - size_bytes / UNPINNED_PART;
    let beside = size_bytes.saturating_sub(2 * segment_bytes);
    if share < beside { share } else { beside }
}

/// Records of a pinned segment, and their use by pins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Usage {
    /// The segment.
    pub(super) segment: SegmentId,
    /// Its records, each with `true` if a pin names it.
    pub(super) records: Vec<(Entry, bool)>,
}

impl Usage {
    /// Creates the usage of a segment with no named records.
    pub(super) fn new(segment: SegmentId, records: Vec<Entry>) -> Self {
        Self { segment, records: records.into_iter().map(|entry| (entry, false)).collect() }
    }

    /// Marks the records that `pin` names.
    pub(super) fn mark(&mut self, pin: &Pin) {
        for (entry, named) in &mut self.records {
            *named |= pin.keys.binary_search(&entry.key).is_ok();
        }
    }

    /// Returns `true` if no pin names any of its records.
    pub(super) fn is_unused(&self) -> bool {
        self.records.iter().all(|(_, named)| !named)
    }

    /// Returns `true` if pins name less than half of its bytes, so that the named records should be copied
    /// elsewhere.
    pub(super) fn is_sparse(&self) -> bool {
        let bytes = |wanted: bool| -> u64 {
            let some = self.records.iter().filter(|(_, named)| *named == wanted);
            some.map(|(entry, _)| stored_bytes(entry.len)).sum()
        };
        bytes(false) > bytes(true)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::record::Kind;
    use super::*;

    fn pin(name: String, numbers: &[u16]) -> Pin {
        let mut keys: Vec<Key> = numbers.iter().map(|number| key(*number)).collect();
        keys.sort_unstable();
        keys.dedup();
        Pin { name, files: 3, bytes: 1 << 40, made_at: 7, keys }
    }

    fn key(number: u16) -> Key {
        *blake3::hash(&number.to_le_bytes()).as_bytes()
    }

    proptest! {
        #[test]
        fn pins_come_back_and_a_flipped_bit_is_refused(
            name in ".{0,40}", numbers in prop::collection::vec(any::<u16>(), 0..50), at: prop::sample::Index, bit in 0..8,
        ) {
            let (secret, pin) = (Secret::new([5; 32]), pin(name, &numbers));
            let mut bytes = pin.encode(&secret);
            prop_assert_eq!(Pin::decode(&secret, &bytes), Some(pin));
            prop_assert_eq!(Pin::decode(&Secret::new([6; 32]), &bytes), None);
            let at = at.index(bytes.len());
            prop_assert_eq!(Pin::decode(&secret, &bytes[..at]), None);
            bytes[at] ^= 1u8 << bit;
            prop_assert_eq!(Pin::decode(&secret, &bytes), None);
        }

        #[test]
        fn usage_agrees_with_looking_at_all_keys(
            held in prop::collection::vec(0..40u16, 0..20), named in prop::collection::vec(prop::collection::vec(0..60u16, 0..20), 0..4),
        ) {
            let entries = held.iter().enumerate().map(|(at, number)| {
                Entry { key: key(*number), kind: Kind::Chunk, offset: 64 * (at as u32 + 1), len: 0 }
            });
            let mut usage = Usage::new(1, entries.collect());
            for numbers in &named {
                usage.mark(&pin(String::new(), numbers));
            }
            let is_named = |number: &u16| named.iter().flatten().any(|other| other == number);
            let count = held.iter().filter(|number| is_named(number)).count();
            prop_assert_eq!(usage.is_unused(), count == 0);
            prop_assert_eq!(usage.is_sparse(), held.len() - count > count);
        }
    }

    #[test]
    fn two_segments_are_left_beside_pinned_content() {
        assert_eq!(pinned_bytes_max(1000, 10), 800);
        assert_eq!(pinned_bytes_max(1000, 300), 400);
        assert_eq!(pinned_bytes_max(1000, 500), 0);
    }
}
