//! The file of the index: sets of slots, found by arithmetic, so that it opens in no time however full it is.
//!
//! ```text
//! file = head(4096) set * SETS        set = slot * 4
//! head = "WHindex1" sets(8) key(32) checksum(32) zeroes
//! ```
//!
//! A stretch may lie in any slot of its set; the one written longest ago gives way. The file is sparse and never longer than that. A
//! write that is cut short costs its slot, a damaged head costs everything in it; neither gives a wrong hash.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use super::slot::{IndexKey, SLOT_BYTES, Stretch, StretchId, Tag, tag_of};

/// Slots in a set.
const WAYS: usize = 4;

/// Size of a set in bytes.
const SET_BYTES: usize = WAYS * SLOT_BYTES;

/// Sets in the file: 255 MiB, the hashes of 1.9 TiB in large files or of 122,000 small ones.
const SETS: u64 = 30_720;

const HEAD_BYTES: usize = 4096;
const MAGIC: &[u8; 8] = b"WHindex1";

/// The open file, locked against other daemons.
#[derive(Debug)]
pub(super) struct Table {
    file: File,
    key: IndexKey,
    sets: u64,
}

impl std::fmt::Debug for IndexKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("IndexKey(..)")
    }
}

impl Table {
    /// Opens the file at `path`, which is made, or made anew where its head is damaged; `fresh_key` is for that.
    ///
    /// [`io::ErrorKind::WouldBlock`] where another daemon has it.
    pub(super) fn open(path: &Path, fresh_key: [u8; 32]) -> io::Result<Self> {
        Self::open_with(path, fresh_key, SETS)
    }

    pub(super) fn open_with(path: &Path, fresh_key: [u8; 32], sets: u64) -> io::Result<Self> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        file.try_lock()?;
        let mut head = vec![0; HEAD_BYTES];
        let len = read_up_to(&file, &mut head, 0)?;
        if let Some(key) = key_in(&head[..len], sets) {
            if file.metadata()?.len() > length(sets) {
                // Somebody wrote behind the end; nothing is read there, but it would take its room for ever.
                file.set_len(length(sets))?;
            }
            return Ok(Self { file, key, sets });
        }
        let key = IndexKey::new(fresh_key);
        file.set_len(0)?;
        file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
        file.write_all_at(&head_of(&key, sets), 0)?;
        Ok(Self { file, key, sets })
    }

    /// What is known of a stretch. An error of the disk is as good as nothing known.
    pub(super) fn read(&self, id: &StretchId) -> Option<Stretch> {
        let tag = self.key.tag(id);
        let set = self.read_set(self.offset(&tag)).ok()?;
        set.chunks_exact(SLOT_BYTES).find_map(|slot| self.key.decode(&tag, slot))
    }

    /// Adds what is known of a stretch to what the file has. Returns whether that was news.
    pub(super) fn write(&self, id: &StretchId, news: &Stretch, now_seconds: u64) -> io::Result<bool> {
        let tag = self.key.tag(id);
        let offset = self.offset(&tag);
        let set = self.read_set(offset)?;
        let (way, mut stretch) = self.place(&tag, &set);
        if !stretch.join(news) {
            return Ok(false);
        }
        let slot = self.key.encode(&tag, now_seconds, &stretch);
        self.file.write_all_at(&slot, offset + (way * SLOT_BYTES) as u64)?;
        Ok(true)
    }

    /// Lets another daemon have the file; nothing may be written any more.
    pub(super) fn unlock(&self) {
        // It fails only where locks are unknown, and there opening failed.
        let _ = self.file.unlock();
    }

    /// What the file takes on its disk, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.file.metadata().map_or(0, |found| found.blocks() * 512)
    }

    /// Most that [`Self::bytes`] comes to.
    pub(super) const fn bytes_max(&self) -> u64 {
        length(self.sets).next_multiple_of(4096)
    }

    /// The slot of a set for a stretch, and what is in it: its own, else an empty or damaged one, else the oldest.
    fn place(&self, tag: &Tag, set: &[u8]) -> (usize, Stretch) {
        let slots = || set.chunks_exact(SLOT_BYTES).enumerate();
        let mut own = slots().filter(|(_, slot)| tag_of(slot) == Some(*tag));
        if let Some(found) = own.find_map(|(way, slot)| Some((way, self.key.decode(tag, slot)?))) {
            return found;
        }
        let oldest = slots().min_by_key(|(_, slot)| self.key.written_seconds(slot).unwrap_or(0));
        (oldest.map_or(0, |(way, _)| way), Stretch::default())
    }

    fn offset(&self, tag: &Tag) -> u64 {
        let set = u128::from_le_bytes(*tag) % u128::from(self.sets);
        HEAD_BYTES as u64 + set as u64 * SET_BYTES as u64
    }

    /// A set; zeroes where the file does not reach so far.
    fn read_set(&self, offset: u64) -> io::Result<Vec<u8>> {
        let mut set = vec![0; SET_BYTES];
        read_up_to(&self.file, &mut set, offset)?;
        Ok(set)
    }
}

/// Longest that a file of so many sets is, in bytes.
const fn length(sets: u64) -> u64 {
    HEAD_BYTES as u64 + sets * SET_BYTES as u64
}

fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match file.read_at(&mut buffer[len..], offset + len as u64) {
            Ok(0) => break,
            Ok(more) => len += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}

fn head_of(key: &IndexKey, sets: u64) -> Vec<u8> {
    let mut head = Vec::with_capacity(HEAD_BYTES);
    head.extend_from_slice(MAGIC);
    head.extend_from_slice(&sets.to_le_bytes());
    head.extend_from_slice(key.as_bytes());
    let checksum = blake3::hash(&head);
    head.extend_from_slice(checksum.as_bytes());
    head.resize(HEAD_BYTES, 0);
    head
}

fn key_in(head: &[u8], sets: u64) -> Option<IndexKey> {
    let key = IndexKey::new(head.get(16..48)?.try_into().ok()?);
    (head == head_of(&key, sets)).then_some(key)
}
