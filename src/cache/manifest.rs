//! (P) Manifests: the known chunk hashes of file versions, in pages of 256 chunks, in memory and encoded.
//!
//! A file version never changes, so its pages only grow, and two states of a page are merged slot by slot
//! without conflict. A key may also name a file regardless of its version; then the latest record holds.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;

use super::record::{Covers, Key, Secret};
use crate::chunk::{ChunkHash, ChunkIndex};

/// Chunks per page: 64 MiB of a file, 8 KiB of hashes. A page is small enough to be rewritten when it
/// grows.
const PAGE_SLOTS: u64 = 256;

/// Most pages in memory. Full pages take 8 KiB each, 8 MiB in total. They cover 64 GiB of large files, or
/// 1,024 small ones.
const PAGES_MAX: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

/// Most pages in memory that are not on disk. Beyond it all of them are written.
const DIRTY_PAGES_MAX: usize = 256;

const MAC_BYTES: usize = 16;
const BITMAP_BYTES: usize = PAGE_SLOTS as usize / 8;
const HASH_BYTES: usize = 32;

/// Key of one version of one file of one host: 32 bytes, derived by BLAKE3 from the host key, the node and
/// the version. Content read by such a key is taken for the content of the file, so two versions must never
/// share a key. The key of a file without its version names its latest content; the host must confirm that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileKey([u8; 32]);

impl FileKey {
    /// Creates a key from 32 bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Page of a file version: 256 adjacent chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct PageId {
    file: FileKey,
    page: u64,
}

impl PageId {
    /// Returns the page of `file` that holds chunk `index`, and the slot of the chunk.
    pub(super) const fn of(file: FileKey, index: ChunkIndex) -> (Self, usize) {
        (Self { file, page: index.0 / PAGE_SLOTS }, (index.0 % PAGE_SLOTS) as usize)
    }

    /// Returns the key of its record.
    pub(super) fn key(&self) -> Key {
        let mut hasher = blake3::Hasher::new_derive_key("wormhole disk cache, manifest page, version 1");
        hasher.update(&self.file.0).update(&self.page.to_le_bytes());
        *hasher.finalize().as_bytes()
    }
}

/// Known hashes of up to 256 adjacent chunks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ManifestPage {
    /// Ends with the last known slot, so that pages of small files are small.
    slots: Vec<Option<ChunkHash>>,
}

impl ManifestPage {
    /// Returns the hash in `slot`.
    pub(super) fn get(&self, slot: usize) -> Option<ChunkHash> {
        self.slots.get(slot).copied().flatten()
    }

    /// Sets `slot` (below 256). Returns `true` if that changed the page.
    pub(super) fn set(&mut self, slot: usize, hash: ChunkHash) -> bool {
        if self.get(slot) == Some(hash) {
            return false;
        }
        if self.slots.len() <= slot {
            self.slots.resize(slot + 1, None);
        }
        self.slots[slot] = Some(hash);
        true
    }

    /// Adds the hashes that only `other` knows. Returns `true` if that changed the page.
    pub(super) fn join(&mut self, other: &Self) -> bool {
        let known = other.slots.iter().enumerate().filter_map(|(slot, hash)| Some((slot, (*hash)?)));
        let mut news = false;
        for (slot, hash) in known {
            news |= self.get(slot).is_none() && self.set(slot, hash);
        }
        news
    }

    /// Returns `true` if all slots are known.
    pub(super) fn is_complete(&self) -> bool {
        self.slots.len() as u64 == PAGE_SLOTS && self.slots.iter().all(Option::is_some)
    }

    /// Returns the size of [`ManifestPage::encode`] in bytes.
    pub(super) fn encoded_bytes(&self) -> usize {
        MAC_BYTES + BITMAP_BYTES + self.slots.iter().flatten().count() * HASH_BYTES
    }

    /// Encodes the payload of its record: a checksum, a bitmap of the known slots, and their hashes. The
    /// checksum is keyed and covers the record's key, so that no other bytes pass as this page.
    pub(super) fn encode(&self, secret: &Secret, key: &Key) -> Vec<u8> {
        let mut payload = vec![0; MAC_BYTES + BITMAP_BYTES];
        payload.reserve(self.encoded_bytes() - payload.len());
        for (slot, hash) in self.slots.iter().enumerate() {
            if let Some(hash) = hash {
                payload[MAC_BYTES + slot / 8] |= 1 << (slot % 8);
                payload.extend_from_slice(hash.as_bytes());
            }
        }
        let mac = secret.mac(Covers::Page, &[key, &payload[MAC_BYTES..]]);
        payload[..MAC_BYTES].copy_from_slice(&mac);
        payload
    }

    /// Decodes a payload of [`ManifestPage::encode`] for `key`; `None` if anything is invalid.
    pub(super) fn decode(secret: &Secret, key: &Key, payload: &[u8]) -> Option<Self> {
        let (mac, body) = payload.split_at_checked(MAC_BYTES)?;
        let (bitmap, hashes) = body.split_at_checked(BITMAP_BYTES)?;
        let known = bitmap.iter().map(|byte| byte.count_ones() as usize).sum::<usize>();
        if hashes.len() != known * HASH_BYTES || mac != secret.mac(Covers::Page, &[key, body]) {
            return None;
        }
        let mut page = Self::default();
        let slots = (0..PAGE_SLOTS as usize).filter(|slot| bitmap[slot / 8] >> (slot % 8) & 1 == 1);
        for (slot, hash) in slots.zip(hashes.chunks_exact(HASH_BYTES)) {
            page.set(slot, ChunkHash::from_bytes(hash.try_into().ok()?));
        }
        Some(page)
    }
}

/// Result of a lookup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lookup {
    /// The hash is known.
    Known(ChunkHash),
    /// Not in memory, and the disk was not read yet.
    AskDisk,
    /// Neither memory nor disk has it.
    Unknown,
}

/// Page that is not on disk yet.
pub(super) type DirtyPage = (PageId, Arc<ManifestPage>);

#[derive(Debug, Default)]
struct CachedPage {
    page: Arc<ManifestPage>,
    /// True if the page on disk was merged in.
    joined: bool,
}

/// Pages in memory: the most recently used ones, and those that are not on disk yet.
#[derive(Debug)]
pub(super) struct ManifestTable {
    pages: LruCache<PageId, CachedPage>,
    /// Pages in `pages` that are not on disk. They are sorted, so those of a file are adjacent.
    dirty: BTreeSet<PageId>,
}

impl Default for ManifestTable {
    fn default() -> Self {
        Self { pages: LruCache::new(PAGES_MAX), dirty: BTreeSet::new() }
    }
}

impl ManifestTable {
    /// Returns the hash in `slot` of page `id`.
    pub(super) fn lookup(&mut self, id: PageId, slot: usize) -> Lookup {
        match self.pages.get(&id) {
            None => Lookup::AskDisk,
            Some(held) => match held.page.get(slot) {
                Some(hash) => Lookup::Known(hash),
                None if held.joined => Lookup::Unknown,
                None => Lookup::AskDisk,
            },
        }
    }

    /// Merges page `id` from disk. Returns a dirty page that was evicted and must be written.
    pub(super) fn join(&mut self, id: PageId, from_disk: &ManifestPage) -> Option<DirtyPage> {
        let (held, out) = self.held(id);
        Arc::make_mut(&mut held.page).join(from_disk);
        held.joined = true;
        out
    }

    /// Records a hash. Returns the pages that must be written: complete ones, and all if too many are
    /// dirty.
    pub(super) fn record(&mut self, id: PageId, slot: usize, hash: ChunkHash) -> Vec<DirtyPage> {
        let (held, out) = self.held(id);
        let mut due: Vec<DirtyPage> = out.into_iter().collect();
        let was_complete = held.page.is_complete();
        if !Arc::make_mut(&mut held.page).set(slot, hash) {
            return due;
        }
        if held.page.is_complete() && !was_complete {
            due.push((id, Arc::clone(&held.page)));
            self.dirty.remove(&id);
        } else {
            self.dirty.insert(id);
        }
        if self.dirty.len() > DIRTY_PAGES_MAX {
            due.extend(self.take_dirty());
        }
        due
    }

    /// Returns the dirty pages of `file` and marks them as clean.
    pub(super) fn take_dirty_of(&mut self, file: FileKey) -> Vec<DirtyPage> {
        let pages = PageId { file, page: 0 }..=PageId { file, page: u64::MAX };
        let ids: Vec<PageId> = self.dirty.range(pages).copied().collect();
        self.take(&ids)
    }

    /// Returns all dirty pages and marks them as clean.
    pub(super) fn take_dirty(&mut self) -> Vec<DirtyPage> {
        let ids: Vec<PageId> = self.dirty.iter().copied().collect();
        self.take(&ids)
    }

    fn take(&mut self, ids: &[PageId]) -> Vec<DirtyPage> {
        for id in ids {
            self.dirty.remove(id);
        }
        ids.iter().filter_map(|id| Some((*id, Arc::clone(&self.pages.peek(id)?.page)))).collect()
    }

    /// Returns page `id`, created if missing, and the dirty page evicted by that.
    fn held(&mut self, id: PageId) -> (&mut CachedPage, Option<DirtyPage>) {
        let mut out = None;
        if !self.pages.contains(&id) {
            let gone = self.pages.push(id, CachedPage::default());
            out = gone.filter(|(gone, _)| self.dirty.remove(gone)).map(|(gone, held)| (gone, held.page));
        }
        (self.pages.get_or_insert_mut(id, CachedPage::default), out)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn hash(byte: u8) -> ChunkHash {
        ChunkHash::from_bytes([byte; 32])
    }

    fn id(file: u8, page: u64) -> PageId {
        PageId { file: FileKey::from_bytes([file; 32]), page }
    }

    fn page(slots: &[(usize, u8)]) -> ManifestPage {
        let mut page = ManifestPage::default();
        for &(slot, byte) in slots {
            page.set(slot, hash(byte));
        }
        page
    }

    fn write(disk: &mut HashMap<PageId, ManifestPage>, due: Vec<DirtyPage>) {
        for (id, page) in due {
            disk.entry(id).or_default().join(&page);
        }
    }

    fn slots() -> impl Strategy<Value = Vec<(usize, u8)>> {
        prop::collection::vec((0..256usize, any::<u8>()), 0..300)
    }

    proptest! {
        #[test]
        fn pages_come_back_and_a_flipped_bit_is_refused(slots in slots(), at: prop::sample::Index, bit in 0..8) {
            let (secret, page) = (Secret::new([3; 32]), page(&slots));
            let mut bytes = page.encode(&secret, &[1; 32]);
            prop_assert_eq!(bytes.len(), page.encoded_bytes());
            prop_assert_eq!(ManifestPage::decode(&secret, &[1; 32], &bytes), Some(page));
            prop_assert_eq!(ManifestPage::decode(&secret, &[2; 32], &bytes), None);
            let at = at.index(bytes.len());
            bytes[at] ^= 1u8 << bit;
            prop_assert_eq!(ManifestPage::decode(&secret, &[1; 32], &bytes), None);
        }

        #[test]
        fn joining_fills_gaps_and_changes_nothing_else(ours in slots(), theirs in slots()) {
            let (before, other) = (page(&ours), page(&theirs));
            let mut joined = before.clone();
            let news = joined.join(&other);
            prop_assert_eq!(news, joined != before);
            for slot in 0..256 {
                prop_assert_eq!(joined.get(slot), before.get(slot).or(other.get(slot)));
            }
        }

        /// Model: the table over a map as disk. No recorded hash is ever lost, whatever is written when.
        #[test]
        fn table_and_disk_together_know_everything(
            steps in prop::collection::vec((0..4u8, 0..60u8, 0..20u64, 0..256usize), 1..600),
        ) {
            let (mut table, mut twin) = (ManifestTable::default(), HashMap::new());
            let mut disk: HashMap<PageId, ManifestPage> = HashMap::new();
            for (what, file, page, slot) in steps {
                let (id, value) = (id(file, page), hash(file ^ page as u8 ^ slot as u8));
                let due = match what {
                    0 => table.take_dirty_of(id.file),
                    1 => Vec::from_iter(match table.lookup(id, slot) {
                        Lookup::AskDisk => table.join(id, disk.get(&id).unwrap_or(&ManifestPage::default())),
                        _ => None,
                    }),
                    _ => {
                        twin.insert((id, slot), value);
                        table.record(id, slot, value)
                    }
                };
                write(&mut disk, due);
                prop_assert!(table.pages.len() <= PAGES_MAX.get() && table.dirty.len() <= DIRTY_PAGES_MAX);
                prop_assert!(what != 0 || !table.dirty.iter().any(|dirty| dirty.file == id.file));
                let known = match table.lookup(id, slot) {
                    Lookup::Known(hash) => Some(hash),
                    Lookup::Unknown => None,
                    Lookup::AskDisk => disk.get(&id).and_then(|page| page.get(slot)),
                };
                prop_assert_eq!(known, twin.get(&(id, slot)).copied());
            }
            write(&mut disk, table.take_dirty());
            for ((id, slot), hash) in twin {
                prop_assert_eq!(disk[&id].get(slot), Some(hash));
            }
        }
    }

    #[test]
    fn a_complete_page_is_due_at_once() {
        let mut table = ManifestTable::default();
        for slot in 0..255 {
            assert!(table.record(id(1, 0), slot, hash(1)).is_empty());
        }
        let due = table.record(id(1, 0), 255, hash(1));
        assert_eq!(due.len(), 1);
        assert!(due[0].1.is_complete());
        assert!(table.take_dirty().is_empty());
    }

    #[test]
    fn an_evicted_dirty_page_is_written() {
        let mut table = ManifestTable::default();
        assert!(table.record(id(0, 0), 0, hash(1)).is_empty());
        for page in 0..PAGES_MAX.get() as u64 {
            let out = table.join(id(1, page), &ManifestPage::default());
            assert_eq!(out.is_some(), page + 1 == PAGES_MAX.get() as u64);
        }
    }

    #[test]
    fn keys_of_pages_differ_by_file_and_page() {
        assert_ne!(id(1, 0).key(), id(1, 1).key());
        assert_ne!(id(1, 0).key(), id(2, 0).key());
        assert_eq!(PageId::of(FileKey::from_bytes([1; 32]), ChunkIndex(513)), (id(1, 2), 1));
    }
}
