//! (P) Bytes of a segment file: its header, its records, its footer. Encoding and bounded decoding, no I/O.
//!
//! ```text
//! segment  = header(64) (record | gap)* [footer]
//! record   = header(64) payload padding to a multiple of 64
//! gap      = header(64) zeroes, up to 64 bytes in front of a block of 4096
//! footer   = entry(44)* trailer(32), only in sealed segments, ends the file
//! ```
//!
//! All numbers are little-endian. Every header and footer carries a keyed checksum. The key is random,
//! belongs to this cache directory and never leaves it. It is needed because payloads come from other
//! machines, and one of them could contain bytes that look like a record or a footer. After a crash such
//! bytes may lie where a header is expected; without the key they fail the check. The checksum does not
//! cover payloads: a chunk is verified by its hash, and a manifest page has its own checksum.
//!
//! Records start at multiples of 64 bytes, because multiples of 4096 would waste up to half the space of
//! small files. Only the payload of a full chunk begins a block, which costs 1.5 % of space. It is written
//! without a copy and read back in as few blocks as possible. That copy cost a tenth of the processor time
//! of a cold read.

use std::fmt;

use data_encoding::HEXLOWER_PERMISSIVE as HEX;

use crate::chunk::CHUNK_BYTES;
use crate::io::DIRECT_ALIGN_BYTES;

/// Key of a record: the BLAKE3 hash of a chunk, or the derived key of a manifest page. 32 bytes.
pub(super) type Key = [u8; 32];

/// Number of a segment; higher is younger.
pub(super) type SegmentId = u64;

/// Size of the header of a segment or a record, in bytes. Records are aligned to it.
pub(super) const HEADER_BYTES: u32 = 64;

/// Largest payload of a record in bytes: a full chunk. Manifest pages are smaller.
pub(super) const PAYLOAD_BYTES_MAX: u32 = CHUNK_BYTES as u32;

/// Block size of direct I/O in bytes.
pub(super) const BLOCK_BYTES: u32 = DIRECT_ALIGN_BYTES as u32;

/// Size of the trailer that ends a footer, in bytes.
pub(super) const TRAILER_BYTES: u32 = 32;

const ENTRY_BYTES: u32 = 44;
const MAC_BYTES: usize = 16;
const RECORD_MAGIC: &[u8; 4] = b"WHrc";
const GAP_MAGIC: &[u8; 4] = b"WHgp";
const SEGMENT_MAGIC: &[u8; 8] = b"WHsegm01";
const FOOTER_MAGIC: &[u8; 8] = b"WHfoot01";

/// Kind of data that a keyed checksum covers. It keeps one kind from passing as another.
#[derive(Clone, Copy)]
pub(super) enum Covers {
    /// The header of a segment.
    Segment = 1,
    /// The header of a record.
    Record = 2,
    /// A footer.
    Footer = 3,
    /// The payload of a manifest page.
    Page = 4,
    /// A pin file.
    Pins = 5,
}

/// Content of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// The plain bytes of a chunk.
    Chunk = 1,
    /// A page of a manifest, see `manifest.rs`.
    Manifest = 2,
}

impl Kind {
    fn decode(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Chunk),
            2 => Some(Self::Manifest),
            _ => None,
        }
    }
}

/// One record of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    /// Its key.
    pub(super) key: Key,
    /// Its content.
    pub(super) kind: Kind,
    /// Offset of its header in the segment, in bytes.
    pub(super) offset: u32,
    /// Size of its payload in bytes.
    pub(super) len: u32,
}

impl Entry {
    /// Returns the offset of the next record, in bytes.
    pub(super) const fn end(&self) -> u64 {
        self.offset as u64 + record_bytes(self.len)
    }
}

/// Returns the size of a record with `payload_len` bytes of payload, header and padding included.
pub(super) const fn record_bytes(payload_len: u32) -> u64 {
    HEADER_BYTES as u64 + (payload_len as u64).next_multiple_of(HEADER_BYTES as u64)
}

/// Returns the most bytes that a record takes in a segment, with its footer entry and the gap before it.
pub(super) const fn stored_bytes(payload_len: u32) -> u64 {
    let gap_bytes_max = if begins_block(payload_len) { BLOCK_BYTES - HEADER_BYTES } else { 0 };
    gap_bytes_max as u64 + record_bytes(payload_len) + ENTRY_BYTES as u64
}

/// Returns `true` if a payload of this length begins a block.
pub(super) const fn begins_block(payload_len: u32) -> bool {
    payload_len == PAYLOAD_BYTES_MAX
}

/// Returns the size of the gap before a record if the records before it end at `end`. It is 0 or a multiple
/// of [`HEADER_BYTES`].
pub(super) const fn gap_bytes(end: u32, payload_len: u32) -> u32 {
    if begins_block(payload_len) {
        (end + HEADER_BYTES).next_multiple_of(BLOCK_BYTES) - HEADER_BYTES - end
    } else {
        0
    }
}

/// Decoded header inside a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Header {
    /// Start of a record.
    Record(Entry),
    /// Unused bytes up to this offset.
    Gap(u32),
}

/// Returns the size of a footer with `entries` records.
pub(super) const fn footer_bytes(entries: usize) -> u64 {
    entries as u64 * ENTRY_BYTES as u64 + TRAILER_BYTES as u64
}

/// Location of the footer of a segment, and the number of its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Trailer {
    /// Offset of the footer in the segment: the end of its records.
    pub(super) footer_offset: u32,
    count: u32,
}

/// Key of the checksums of one cache directory.
#[derive(Clone)]
pub(super) struct Secret([u8; 32]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Secret {
    /// Creates a key of 32 random bytes.
    pub(super) const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Decodes the text of [`Secret::to_hex`].
    pub(super) fn from_hex(text: &str) -> Option<Self> {
        HEX.decode(text.as_bytes()).ok()?.try_into().ok().map(Self)
    }

    /// Returns the key as 64 hexadecimal digits.
    pub(super) fn to_hex(&self) -> String {
        HEX.encode(&self.0)
    }

    /// Returns the checksum of the concatenated `parts`.
    pub(super) fn mac(&self, covers: Covers, parts: &[&[u8]]) -> [u8; MAC_BYTES] {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&[covers as u8]);
        for part in parts {
            hasher.update(part);
        }
        let mut mac = [0; MAC_BYTES];
        mac.copy_from_slice(&hasher.finalize().as_bytes()[..MAC_BYTES]);
        mac
    }

    /// Encodes the header of segment `id`.
    pub(super) fn encode_segment(&self, id: SegmentId) -> [u8; HEADER_BYTES as usize] {
        let mut header = [0; HEADER_BYTES as usize];
        header[..8].copy_from_slice(SEGMENT_MAGIC);
        header[8..16].copy_from_slice(&id.to_le_bytes());
        self.finish_header(Covers::Segment, header)
    }

    /// Returns `true` if `header` is the header of segment `id` of this cache.
    pub(super) fn is_segment(&self, id: SegmentId, header: &[u8]) -> bool {
        header == self.encode_segment(id)
    }

    /// Encodes the header of a record.
    pub(super) fn encode_record(&self, kind: Kind, key: &Key, len: u32) -> [u8; HEADER_BYTES as usize] {
        let mut header = [0; HEADER_BYTES as usize];
        header[..4].copy_from_slice(RECORD_MAGIC);
        header[4] = kind as u8;
        header[8..12].copy_from_slice(&len.to_le_bytes());
        header[16..48].copy_from_slice(key);
        self.finish_header(Covers::Record, header)
    }

    /// Encodes the bytes before a payload of `payload_len` bytes if the records end at `end`: the gap, if
    /// one is necessary, and the header of the record.
    pub(super) fn encode_prefix(&self, end: u32, kind: Kind, key: &Key, payload_len: u32) -> Vec<u8> {
        let gap_bytes = gap_bytes(end, payload_len) as usize;
        let mut prefix = Vec::with_capacity(gap_bytes + HEADER_BYTES as usize);
        if gap_bytes > 0 {
            let mut header = [0; HEADER_BYTES as usize];
            header[..4].copy_from_slice(GAP_MAGIC);
            header[8..12].copy_from_slice(&(gap_bytes as u32).to_le_bytes());
            prefix.extend_from_slice(&self.finish_header(Covers::Record, header));
            prefix.resize(gap_bytes, 0);
        }
        prefix.extend_from_slice(&self.encode_record(kind, key, payload_len));
        prefix
    }

    /// Decodes the header at `offset`; `None` if it is not a header of this cache.
    pub(super) fn decode_header(&self, offset: u32, header: &[u8; HEADER_BYTES as usize]) -> Option<Header> {
        if header[..4] != *GAP_MAGIC {
            return self.decode_record(offset, header).map(Header::Record);
        }
        let gap_bytes = u32_at(header, 8)?;
        let is_one =
            (HEADER_BYTES..BLOCK_BYTES).contains(&gap_bytes) && gap_bytes.is_multiple_of(HEADER_BYTES);
        let sound = is_one && header[48..] == self.mac(Covers::Record, &[&header[..48]]);
        offset.checked_add(gap_bytes).filter(|_| sound).map(Header::Gap)
    }

    fn decode_record(&self, offset: u32, header: &[u8; HEADER_BYTES as usize]) -> Option<Entry> {
        let kind = Kind::decode(header[4])?;
        let len = u32_at(header, 8)?;
        let key: Key = header[16..48].try_into().ok()?;
        let sound = len <= PAYLOAD_BYTES_MAX && *header == self.encode_record(kind, &key, len);
        sound.then_some(Entry { key, kind, offset, len })
    }

    /// Encodes the footer of segment `id`, whose records end at `footer_offset`.
    pub(super) fn encode_footer(&self, id: SegmentId, footer_offset: u32, entries: &[Entry]) -> Vec<u8> {
        let mut footer = Vec::with_capacity(footer_bytes(entries.len()) as usize);
        for entry in entries {
            footer.extend_from_slice(&entry.key);
            footer.extend_from_slice(&entry.offset.to_le_bytes());
            footer.extend_from_slice(&entry.len.to_le_bytes());
            footer.extend_from_slice(&[entry.kind as u8, 0, 0, 0]);
        }
        let trailer_start = footer.len();
        footer.extend_from_slice(FOOTER_MAGIC);
        footer.extend_from_slice(&footer_offset.to_le_bytes());
        footer.extend_from_slice(&(entries.len() as u32).to_le_bytes());
        let mac = self.footer_mac(id, &footer[..trailer_start], &footer[trailer_start..]);
        footer.extend_from_slice(&mac);
        footer
    }

    /// Decodes the records of segment `id` from the whole `footer` described by `trailer`. `None` if
    /// anything is invalid.
    pub(super) fn decode_footer(&self, id: SegmentId, trailer: Trailer, footer: &[u8]) -> Option<Vec<Entry>> {
        if footer.len() as u64 != footer_bytes(trailer.count as usize) {
            return None;
        }
        let (entries, end) = footer.split_at(footer.len() - TRAILER_BYTES as usize);
        let (fields, mac) = end.split_at(16);
        if mac != self.footer_mac(id, entries, fields) {
            return None;
        }
        entries
            .chunks_exact(ENTRY_BYTES as usize)
            .map(|bytes| decode_entry(bytes, trailer.footer_offset))
            .collect()
    }

    fn footer_mac(&self, id: SegmentId, entries: &[u8], fields: &[u8]) -> [u8; MAC_BYTES] {
        self.mac(Covers::Footer, &[&id.to_le_bytes(), entries, fields])
    }

    fn finish_header(
        &self,
        covers: Covers,
        mut header: [u8; HEADER_BYTES as usize],
    ) -> [u8; HEADER_BYTES as usize] {
        let mac = self.mac(covers, &[&header[..48]]);
        header[48..].copy_from_slice(&mac);
        header
    }
}

/// Finds the footer of a segment of `file_bytes` from its last [`TRAILER_BYTES`]. [`Secret::decode_footer`]
/// verifies the checksum; until then this bounds the read.
pub(super) fn decode_trailer(file_bytes: u64, trailer: &[u8]) -> Option<Trailer> {
    if trailer.len() != TRAILER_BYTES as usize || trailer[..8] != *FOOTER_MAGIC {
        return None;
    }
    let (footer_offset, count) = (u32_at(trailer, 8)?, u32_at(trailer, 12)?);
    let fits = u64::from(footer_offset) + footer_bytes(count as usize) == file_bytes;
    (fits && footer_offset >= HEADER_BYTES).then_some(Trailer { footer_offset, count })
}

fn decode_entry(bytes: &[u8], records_end: u32) -> Option<Entry> {
    let key = bytes[..32].try_into().ok()?;
    let (offset, len) = (u32_at(bytes, 32)?, u32_at(bytes, 36)?);
    let entry = Entry { key, kind: Kind::decode(bytes[40])?, offset, len };
    let aligned = offset >= HEADER_BYTES && offset.is_multiple_of(HEADER_BYTES);
    let inside = len <= PAYLOAD_BYTES_MAX && entry.end() <= u64::from(records_end);
    (aligned && inside).then_some(entry)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn secret() -> Secret {
        Secret::new([7; 32])
    }

    fn entries(lens: &[u32]) -> (Vec<Entry>, u32) {
        let mut offset = HEADER_BYTES;
        let list = lens.iter().enumerate().map(|(i, &len)| {
            let kind = if i % 3 == 0 { Kind::Manifest } else { Kind::Chunk };
            let entry = Entry { key: [i as u8; 32], kind, offset, len };
            offset = entry.end() as u32;
            entry
        });
        (list.collect(), offset)
    }

    proptest! {
        #[test]
        fn footers_come_back_and_a_flipped_bit_is_refused(
            lens in prop::collection::vec(0..=PAYLOAD_BYTES_MAX, 0..20), id: u64, at: prop::sample::Index, bit in 0..8,
        ) {
            let (entries, end) = entries(&lens);
            let mut footer = secret().encode_footer(id, end, &entries);
            let file_bytes = u64::from(end) + footer.len() as u64;
            let open = |footer: &[u8]| {
                let trailer = decode_trailer(file_bytes, &footer[footer.len() - TRAILER_BYTES as usize..])?;
                secret().decode_footer(id, trailer, footer)
            };
            prop_assert_eq!(footer.len() as u64, footer_bytes(entries.len()));
            prop_assert_eq!(open(&footer), Some(entries));
            let at = at.index(footer.len());
            footer[at] ^= 1u8 << bit;
            prop_assert_eq!(open(&footer), None);
        }

        #[test]
        fn record_headers_come_back_and_a_flipped_bit_is_refused(
            key: [u8; 32], len in 0..=PAYLOAD_BYTES_MAX, at in 0..64usize, bit in 0..8,
        ) {
            let mut header = secret().encode_record(Kind::Chunk, &key, len);
            let entry = Entry { key, kind: Kind::Chunk, offset: 64, len };
            prop_assert_eq!(secret().decode_record(64, &header), Some(entry));
            header[at] ^= 1u8 << bit;
            prop_assert_eq!(secret().decode_record(64, &header), None);
        }

        #[test]
        fn any_bytes_are_decoded_without_a_crash(bytes in prop::collection::vec(any::<u8>(), 0..200), size: u64) {
            prop_assert_eq!(decode_trailer(size, &bytes), None);
            let trailer = Trailer { footer_offset: 64, count: 2 };
            prop_assert_eq!(secret().decode_footer(1, trailer, &bytes), None);
        }
    }

    proptest! {
        #[test]
        fn only_full_chunks_begin_a_block_behind_a_gap(
            end in 1..5000u32, len in 0..PAYLOAD_BYTES_MAX, at in 0..64usize, bit in 0..8,
        ) {
            let (end, key) = (end * HEADER_BYTES, [3; 32]);
            let header = |prefix: &[u8], at: usize| *prefix[at..].first_chunk::<64>().unwrap();
            let plain = secret().encode_prefix(end, Kind::Chunk, &key, len);
            prop_assert_eq!(plain, secret().encode_record(Kind::Chunk, &key, len));
            let prefix = secret().encode_prefix(end, Kind::Chunk, &key, PAYLOAD_BYTES_MAX);
            prop_assert_eq!((end as usize + prefix.len()) % BLOCK_BYTES as usize, 0);
            prop_assert!(prefix.len() <= BLOCK_BYTES as usize);
            prop_assert!(stored_bytes(PAYLOAD_BYTES_MAX) >= prefix.len() as u64 + u64::from(PAYLOAD_BYTES_MAX + ENTRY_BYTES));
            let gap = prefix.len() - HEADER_BYTES as usize;
            let record = Entry { key, kind: Kind::Chunk, offset: end + gap as u32, len: PAYLOAD_BYTES_MAX };
            let found = secret().decode_header(record.offset, &header(&prefix, gap));
            prop_assert_eq!(found, Some(Header::Record(record)));
            if gap > 0 {
                let mut header = header(&prefix, 0);
                prop_assert_eq!(secret().decode_header(end, &header), Some(Header::Gap(record.offset)));
                header[at] ^= 1u8 << bit;
                prop_assert_eq!(secret().decode_header(end, &header), None);
            }
        }
    }

    #[test]
    fn another_key_or_another_segment_is_refused() {
        let (entries, end) = entries(&[100, 5000]);
        let footer = secret().encode_footer(3, end, &entries);
        let trailer =
            decode_trailer(u64::from(end) + footer.len() as u64, &footer[footer.len() - 32..]).unwrap();
        assert!(secret().decode_footer(3, trailer, &footer).is_some());
        assert!(secret().decode_footer(4, trailer, &footer).is_none());
        assert!(Secret::new([8; 32]).decode_footer(3, trailer, &footer).is_none());
        assert!(secret().is_segment(3, &secret().encode_segment(3)));
        assert!(!secret().is_segment(4, &secret().encode_segment(3)));
    }

    #[test]
    fn an_entry_that_reaches_past_the_records_is_refused() {
        let (mut entries, end) = entries(&[100, 5000]);
        entries[1].len += 64;
        let footer = secret().encode_footer(3, end, &entries);
        let trailer =
            decode_trailer(u64::from(end) + footer.len() as u64, &footer[footer.len() - 32..]).unwrap();
        assert_eq!(secret().decode_footer(3, trailer, &footer), None);
    }

    #[test]
    fn the_secret_survives_its_text_form() {
        assert_eq!(Secret::from_hex(&secret().to_hex()).unwrap().0, secret().0);
        assert!(Secret::from_hex("07").is_none());
    }
}
