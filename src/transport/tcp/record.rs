//! TLS 1.3 records (RFC 8446, section 5) with keys that rustls negotiated. Encrypts batches of frames, and
//! decrypts records in place.
//!
//! rustls does the handshake, verifies the peer, and derives every key. This file holds only the part that
//! runs a hundred thousand times a second. The record layer of rustls copies each record once more in each
//! direction and reads a socket in steps of 4 KiB, which costs a tenth of a transfer. The tests let rustls
//! read our records, and the other way round.

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{ConnectionTrafficSecrets, ExtractedSecrets};

use super::mux::Batch;
use super::record_buffer::RecordBuffer;

/// Content of a full record, in bytes.
pub(super) const RECORD_CONTENT_BYTES_MAX: usize = 1 << 14;
/// Largest record on the wire: content, the padding and tag that the standard allows, and the header.
pub(super) const RECORD_BYTES_MAX: usize = RECORD_CONTENT_BYTES_MAX + 256 + RECORD_HEADER_BYTES;
const RECORD_HEADER_BYTES: usize = 5;
const TAG_BYTES: usize = 16;
const NONCE_BYTES: usize = 12;
/// Shortest content that is encrypted from its own memory. Shorter content is copied to share a record with
/// its neighbours.
const UNGATHERED_BYTES_MIN: usize = 4 << 10;
/// Bytes at the end of content that wait for the next record. Content is decrypted in place only while more
/// of its piece follows.
const TAIL_BYTES: usize = 64;

const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
const KEY_UPDATE: u8 = 24;
const CLOSE_NOTIFY: u8 = 0;

/// Records encrypted with one key. AES-GCM is safe for 2^24.5 full ones (RFC 8446, section 5.5).
const RECORDS_PER_KEY_MAX: u64 = 1 << 23;

/// Reason why a record cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RecordError {
    #[error("TLS: malformed record")]
    Malformed,
    #[error("TLS: a record was changed in transit")]
    Forged,
    #[error("TLS: the other side reports error {0}")]
    Alert(u8),
    #[error("TLS: no more keys")]
    Keys,
}

/// Source of the next keys.
pub(super) enum Schedule {
    Client(KernelConnection<ClientConnectionData>),
    Host(KernelConnection<ServerConnectionData>),
}

/// One direction: its key, and the number of the next record.
struct Direction {
    key: LessSafeKey,
    iv: [u8; NONCE_BYTES],
    sequence: u64,
}

impl Direction {
    fn new((sequence, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Self, RecordError> {
        let (algorithm, key, iv) = match &secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err(RecordError::Keys),
        };
        let key = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| RecordError::Keys)?;
        let iv = iv.as_ref().try_into().map_err(|_| RecordError::Keys)?;
        Ok(Self { key: LessSafeKey::new(key), iv, sequence })
    }

    /// Returns the nonce of the next record: the vector, combined with the record number at its end. None is
    /// used twice.
    fn next_nonce(&mut self) -> Result<Nonce, RecordError> {
        let mut nonce = self.iv;
        for (byte, number) in nonce[NONCE_BYTES - 8..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= number;
        }
        self.sequence = self.sequence.checked_add(1).ok_or(RecordError::Keys)?;
        Ok(Nonce::assume_unique_for_key(nonce))
    }

    /// Appends one record to `out` without copying `content` first.
    fn seal(&mut self, kind: u8, content: &[u8], out: &mut RecordBuffer) -> Result<(), RecordError> {
        let sealed_bytes = content.len() + 1 + TAG_BYTES;
        let header = [APPLICATION_DATA, 3, 3, (sealed_bytes >> 8) as u8, sealed_bytes as u8];
        let (to_header, rest) =
            out.append(RECORD_HEADER_BYTES + sealed_bytes).split_at_mut(RECORD_HEADER_BYTES);
        to_header.copy_from_slice(&header);
        let (to_content, to_kind_and_tag) = rest.split_at_mut(content.len());
        let (nonce, header) = (self.next_nonce()?, Aad::from(header));
        let sealed =
            self.key.seal_out_of_place_scatter(nonce, header, content, to_content, &[kind], to_kind_and_tag);
        sealed.map_err(|_| RecordError::Keys)
    }
}

/// Content of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opened {
    /// Number of content bytes.
    Content(usize),
    /// No content.
    Nothing,
    /// The peer sends no more.
    End,
}

/// Both directions of a connection.
pub(super) struct Records {
    schedule: Schedule,
    seal: Direction,
    open: Direction,
    /// Short parts that share a record.
    gathered: Vec<u8>,
    /// Number of records after which the key changes.
    pub(super) per_key_max: u64,
    must_update: bool,
}

impl Records {
    pub(super) fn new(secrets: ExtractedSecrets, schedule: Schedule) -> Result<Self, RecordError> {
        let (seal, open) = (Direction::new(secrets.tx)?, Direction::new(secrets.rx)?);
        let per_key_max = RECORDS_PER_KEY_MAX;
        Ok(Self { schedule, seal, open, gathered: Vec::new(), per_key_max, must_update: false })
    }

    /// Appends `batch` to `out`. Long content is encrypted from its own memory, short content is gathered in
    /// records as full as possible.
    pub(super) fn seal(&mut self, batch: &Batch, out: &mut RecordBuffer) -> Result<(), RecordError> {
        for part in &batch.parts {
            let mut bytes = part.bytes();
            while bytes.len() >= UNGATHERED_BYTES_MIN {
                self.seal_gathered(out)?;
                let (now, later) = bytes.split_at(RECORD_CONTENT_BYTES_MAX.min(bytes.len() - TAIL_BYTES));
                self.seal_record(APPLICATION_DATA, now, out)?;
                bytes = later;
            }
            self.gather(bytes, out)?;
        }
        self.seal_gathered(out)
    }

    /// Appends the alert that ends the connection.
    pub(super) fn seal_end(&mut self, out: &mut RecordBuffer) -> Result<(), RecordError> {
        self.seal_record(ALERT, &[1, CLOSE_NOTIFY], out)
    }

    fn gather(&mut self, mut bytes: &[u8], out: &mut RecordBuffer) -> Result<(), RecordError> {
        while !bytes.is_empty() {
            let room = RECORD_CONTENT_BYTES_MAX - self.gathered.len();
            let (now, later) = bytes.split_at(bytes.len().min(room));
            self.gathered.extend_from_slice(now);
            bytes = later;
            if now.len() == room {
                self.seal_gathered(out)?;
            }
        }
        Ok(())
    }

    fn seal_gathered(&mut self, out: &mut RecordBuffer) -> Result<(), RecordError> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        let mut gathered = std::mem::take(&mut self.gathered);
        self.seal_record(APPLICATION_DATA, &gathered, out)?;
        gathered.clear();
        self.gathered = gathered;
        Ok(())
    }

    fn seal_record(&mut self, kind: u8, content: &[u8], out: &mut RecordBuffer) -> Result<(), RecordError> {
        self.seal.seal(kind, content, out)?;
        if self.seal.sequence >= self.per_key_max || std::mem::take(&mut self.must_update) {
            self.seal.seal(HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 0], out)?;
            let next = match &mut self.schedule {
                Schedule::Client(schedule) => schedule.update_tx_secret(),
                Schedule::Host(schedule) => schedule.update_tx_secret(),
            };
            self.seal = Direction::new(next.map_err(|_| RecordError::Keys)?)?;
        }
        Ok(())
    }

    /// Returns the length of the record at the start of `bytes`, if it is complete.
    pub(super) fn complete_len(bytes: &[u8]) -> Result<Option<usize>, RecordError> {
        let Some(header) = bytes.first_chunk::<RECORD_HEADER_BYTES>() else { return Ok(None) };
        let len = RECORD_HEADER_BYTES + usize::from(u16::from_be_bytes([header[3], header[4]]));
        if header[..3] != [APPLICATION_DATA, 3, 3] || len > RECORD_BYTES_MAX {
            return Err(RecordError::Malformed);
        }
        Ok((bytes.len() >= len).then_some(len))
    }

    /// Returns the size of the encrypted part of `record`, a complete one: content, one byte for the kind,
    /// and padding.
    pub(super) const fn sealed_bytes(record: &[u8]) -> usize {
        record.len().saturating_sub(RECORD_HEADER_BYTES + TAG_BYTES)
    }

    /// Decrypts one complete record into `out`, which has exactly [`Self::sealed_bytes`] bytes. Content is at
    /// its start.
    pub(super) fn open(&mut self, record: &[u8], out: &mut [u8]) -> Result<Opened, RecordError> {
        let parts = record.split_first_chunk::<RECORD_HEADER_BYTES>();
        let parts = parts.and_then(|(header, rest)| Some((header, rest.split_last_chunk::<TAG_BYTES>()?)));
        let (header, (sealed, tag)) = parts.ok_or(RecordError::Malformed)?;
        let nonce = self.open.next_nonce()?;
        let opened = self.open.key.open_separate_gather(nonce, Aad::from(*header), sealed, tag, out);
        opened.map_err(|_| RecordError::Forged)?;
        self.parse_inner(out)
    }

    fn parse_inner(&mut self, opened: &[u8]) -> Result<Opened, RecordError> {
        // The kind follows the content, and zeroes may follow the kind.
        let kind_at = opened.iter().rposition(|byte| *byte != 0).ok_or(RecordError::Malformed)?;
        match (opened[kind_at], &opened[..kind_at]) {
            (APPLICATION_DATA, content) if content.len() <= RECORD_CONTENT_BYTES_MAX => {
                Ok(Opened::Content(kind_at))
            }
            (ALERT, [_, CLOSE_NOTIFY]) => Ok(Opened::End),
            (ALERT, [_, alert]) => Err(RecordError::Alert(*alert)),
            (HANDSHAKE, [KEY_UPDATE, 0, 0, 1, wants_ours @ 0..=1]) => {
                self.must_update |= *wants_ours == 1;
                let next = match &mut self.schedule {
                    Schedule::Client(schedule) => schedule.update_rx_secret(),
                    Schedule::Host(schedule) => schedule.update_rx_secret(),
                };
                self.open = Direction::new(next.map_err(|_| RecordError::Keys)?)?;
                Ok(Opened::Nothing)
            }
            _ => Err(RecordError::Malformed),
        }
    }
}
