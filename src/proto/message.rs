//! The messages, in the order of a connection's life: hello, metadata, content.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::change::{
    BootId, ChangeRequest, Changed, KnownChunk, OpenAccess, OperationId, SessionRun, WriteRequest, Written,
};
use super::event::LeaseEpoch;
use super::lane::Lane;
use super::lock::{LockAnswer, LockFound, LockRequest, LockTest};
use super::node::{Attributes, NodeId, Timestamp, TrustReason, Version};
use crate::chunk::{ByteRange, ChunkHash, ChunkIndex, ChunkRange};

/// Names a client's session, which outlives its connections: 16 random bytes, made by the client at mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SessionId(pub [u8; 16]);

/// Names one run of a host: 16 random bytes, made at its start. A new one tells clients that the host restarted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct InstanceId(pub [u8; 16]);

/// Names one open of a file. The client chooses it, and never the same twice in a session, so that a request that is
/// repeated, because its answer was lost, opens nothing twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OpenId(pub u64);

/// The secret of a join ticket. Never shown.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TicketSecret(pub [u8; 16]);

impl fmt::Debug for TicketSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TicketSecret(…)")
    }
}

/// What a side can do beyond the base of the protocol version: a set of bits. None is defined in version 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Features(pub u64);

impl Features {
    /// What this build offers.
    pub const SUPPORTED: Self = Self(0);

    /// What both sides can do; unknown bits of the peer fall away here.
    pub const fn shared_with(self, peer: Self) -> Self {
        Self(self.0 & peer.0)
    }
}

/// Whether a client wants content compressed on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum CompressionWish {
    /// Not at all.
    #[default]
    Never,
    /// Where it makes content arrive sooner.
    Worthwhile,
    /// Wherever it makes content smaller.
    Always,
}

/// The first message of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`super::PROTOCOL_VERSION`] of the client.
    pub protocol_version: u16,
    /// What the client can do.
    pub features: Features,
    /// Which session this connection belongs to.
    pub session: SessionId,
    /// Name of the export that is wanted.
    pub export: String,
    /// Path below the export that is to be the root, names joined by `/`, without a leading one; empty for the export itself.
    pub sub_path: Vec<u8>,
    /// Lets in a client whose key the host has not seen.
    pub ticket: Option<TicketSecret>,
    /// Whether chunks may come as [`ContentHeader::Packed`].
    pub compression: CompressionWish,
}

/// The host's consent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// What both sides can do.
    pub features: Features,
    /// Which run of the host this is.
    pub instance: InstanceId,
    /// The root of what was asked for.
    pub root: Attributes,
    /// Whether the host will refuse every change.
    pub read_only: bool,
    /// How long the host keeps the session when the connection is gone, in milliseconds.
    pub session_keep_ms: u32,
    /// Which life of the session this is.
    pub session: SessionRun,
    /// Which run of the host's kernel this is.
    pub boot: BootId,
    /// As whom the host does what this client asks for.
    pub acts_as: ActingUser,
    /// Whether what this client makes belongs to the asking user instead, by the client's numbers.
    pub chooses_owners: bool,
    /// Why the root's file system has its trust class.
    pub trust_reason: TrustReason,
}

/// A user of the host and his group, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActingUser {
    /// The user.
    pub uid: u32,
    /// The group of what he makes.
    pub gid: u32,
}

/// Everything a client may ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Comes first on every connection. Answer: [`Reply::Welcome`].
    Hello(Hello),
    /// Is anybody there? Answer: [`Reply::Done`].
    Ping,
    /// The attributes of the entry `name` of directory `parent`. Answer: [`Reply::Attributes`].
    Lookup {
        /// The directory.
        parent: NodeId,
        /// One name, never empty, `.`, `..` or with a `/`.
        name: Vec<u8>,
    },
    /// Answer: [`Reply::Attributes`].
    GetAttributes {
        /// Whose.
        node: NodeId,
    },
    /// All entries with their attributes. Answer: [`Reply::Directory`].
    ReadDirectory {
        /// Of which directory.
        node: NodeId,
    },
    /// The target of a symbolic link, as it stands. Answer: [`Reply::Bytes`].
    ReadLink {
        /// The link.
        node: NodeId,
    },
    /// Answer: [`Reply::FsStatistics`].
    StatFs {
        /// Any node of the file system.
        node: NodeId,
    },
    /// Answer: [`Reply::Bytes`].
    GetXattr {
        /// Whose.
        node: NodeId,
        /// Name with its namespace, such as `user.comment`.
        name: Vec<u8>,
    },
    /// The names of all extended attributes, each ended by a NUL. Answer: [`Reply::Bytes`].
    ListXattr {
        /// Whose.
        node: NodeId,
    },
    /// Whether the host's daemon itself may access the node so. Answer: [`Reply::Done`].
    Access {
        /// Whose.
        node: NodeId,
        /// `R_OK` (4), `W_OK` (2), `X_OK` (1).
        mask: u8,
    },
    /// Opens a file for the session: until closed it can be read even if it loses its last name. Answer: [`Reply::Attributes`].
    Open {
        /// Which file.
        node: NodeId,
        /// Which open of it.
        open: OpenId,
    },
    /// Takes back one [`Request::Open`]. Answer: [`Reply::Done`].
    Close {
        /// Which file.
        node: NodeId,
        /// Which open of it.
        open: OpenId,
    },
    /// `SEEK_DATA` and `SEEK_HOLE`. Answer: [`Reply::Offset`].
    Seek {
        /// In which file.
        node: NodeId,
        /// From where.
        offset: u64,
        /// What to look for.
        target: SeekTarget,
    },
    /// Content of a file, to be sent in the order of its lane. Answer: [`Reply::Content`].
    Read(ReadRequest, Lane),
    /// BLAKE3 of a whole regular file, computed on the host. Answer: [`Reply::Sum`].
    Sum {
        /// Which file.
        node: NodeId,
    },
    /// Content of a file as it is now: all from one state, whichever that is. For files that change too often to be
    /// asked for by version. Answer: [`Reply::Current`], or [`super::ErrorCode::VersionChanged`] where the file did
    /// not hold still for as long as the host tried.
    ReadCurrent {
        /// Which file.
        node: NodeId,
        /// Which bytes; at most [`super::CURRENT_BYTES_MAX`].
        range: ByteRange,
    },
    /// The attributes of several entries of one directory. Answer: [`Reply::Entries`].
    LookupMany {
        /// The directory.
        parent: NodeId,
        /// Names as of [`Request::Lookup`]; at most [`super::LOOKUPS_MAX`], of [`super::LOOKUP_NAME_BYTES_MAX`] together.
        names: Vec<Vec<u8>>,
    },
    /// The content-defined blocks of a range, to find again what has moved within a file. Answer: [`Reply::Blocks`].
    Blocks {
        /// Which file.
        node: NodeId,
        /// In which version.
        version: Version,
        /// Which bytes; at most [`super::DELTA_BYTES_MAX`].
        range: ByteRange,
    },
    /// The hashes of some chunks, so that content which the client holds under another name need not be sent.
    /// Answer: [`Reply::Manifest`].
    Manifest(ManifestRequest),
    /// Opens a file as [`Self::Open`] does, for more than reading. Answer: [`Reply::Attributes`].
    OpenFor {
        /// Which file.
        node: NodeId,
        /// Which open of it.
        open: OpenId,
        /// For what.
        access: OpenAccess,
    },
    /// Changes something, once.
    Change(ChangeRequest),
    /// Writes content, once.
    Write(WriteRequest),
    /// Brings what was written to the host's disk: a file's content and attributes, or a directory's entries. Answer:
    /// [`Reply::Synced`].
    Sync {
        /// Of which file or directory.
        node: NodeId,
        /// Whether attributes that are not needed to find the content may wait (`fdatasync`).
        data_only: bool,
        /// Changes of this session that are to be over first, whether they came before this request or come after it; at most
        /// [`super::SYNC_AFTER_MAX`]. [`super::ErrorCode::Busy`] where one does not come.
        after: Vec<OperationId>,
    },
    /// Brings everything on a disk of the host to it (`syncfs`). Answer: [`Reply::Synced`].
    SyncFileSystem {
        /// A file or directory on the disk.
        node: NodeId,
    },
    /// Takes, gives back or waits for a lock, once. Answer: [`Reply::Lock`].
    Lock(LockRequest),
    /// Who stands against a lock. Answer: [`Reply::LockTest`].
    TestLock(LockTest),
    /// Which of these chunks are in files that the client may read, as far as the host knows at once: they could be written by
    /// [`super::Change::WriteKnown`]. One that is only where it is to be written does not count: its bytes may just have come.
    /// Answer: [`Reply::Have`].
    HaveChunks {
        /// To which file they are to be written.
        node: NodeId,
        /// Where the first goes: a multiple of [`crate::chunk::CHUNK_BYTES`]. The others follow.
        offset: u64,
        /// BLAKE3 of whole chunks; at most [`super::KNOWN_CHUNKS_MAX`].
        chunks: Vec<ChunkHash>,
    },
    /// Opens the session's event stream; an earlier one ends. From then on lookups and listings may come with a lease.
    /// Answer: [`Reply::Events`].
    Events,
}

/// Asks for the hashes of chunks of one version of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestRequest {
    /// Which file.
    pub node: NodeId,
    /// In which version; [`super::ErrorCode::VersionChanged`] where the file has another by now.
    pub version: Version,
    /// Which chunks; at most [`super::MANIFEST_CHUNKS_MAX`].
    pub chunks: ChunkRange,
}

/// Asks for content of one version of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadRequest {
    /// Which file.
    pub node: NodeId,
    /// In which version; [`super::ErrorCode::VersionChanged`] where the file has another by now.
    pub version: Version,
    /// Which bytes. At most [`super::READ_CHUNKS_MAX`] chunks. If `whole_chunks` is set the host widens the range to whole chunks;
    /// otherwise it answers exactly these bytes, cut at the end of the file, in one [`ContentHeader::Piece`] (at most one chunk's size).
    pub range: ByteRange,
    /// Whether to answer in whole chunks, which can be kept under their hash.
    pub whole_chunks: bool,
    /// Hashes of the chunks of the range that the client holds from elsewhere, by position; may be shorter than the range, or empty.
    /// Where one is named the host hashes the chunk; of others it may tell the hash that it noted of this version.
    pub known: Vec<Option<ChunkHash>>,
}

impl ReadRequest {
    /// For whole chunks of a file as it is now, with none of them at hand.
    pub const fn chunks_of(file: &Attributes, range: ByteRange) -> Self {
        Self { node: file.node, version: file.version(), range, whole_chunks: true, known: Vec::new() }
    }
}

/// What [`Request::Seek`] looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeekTarget {
    /// The next byte that is stored.
    Data,
    /// The next byte that is not; every file ends in a hole.
    Hole,
}

/// What a host answers, where it does not refuse.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// To [`Request::Hello`].
    Welcome(Welcome),
    /// It is so, or it was done.
    Done,
    /// What `stat` tells.
    Attributes(Attributes),
    /// [`DirectoryBatch`] frames follow.
    Directory {
        /// The directory's own attributes, as they were before its entries were read.
        attributes: Option<Attributes>,
        /// The event stream that will tell changes made after the entries were read; `None` if none will.
        lease: Option<LeaseEpoch>,
    },
    /// A link's target, an attribute's value, a list of names.
    Bytes(Vec<u8>),
    /// What `statfs` tells.
    FsStatistics(FsStatistics),
    /// A place in a file.
    Offset(u64),
    /// [`ContentHeader`] frames follow, each with its bytes.
    Content,
    /// Hash of a whole file.
    Sum {
        /// The BLAKE3 hash, as `b3sum` prints it.
        hash: ChunkHash,
        /// Of which version.
        version: Version,
    },
    /// Entries in the order of their names; `None` where there is none, or none that can be looked at.
    Entries(Vec<Option<Attributes>>),
    /// The bytes asked for; `len` raw bytes follow.
    Current {
        /// BLAKE3 of the bytes.
        hash: ChunkHash,
        /// How many; fewer than asked only at the end of the file.
        len: u32,
    },
    /// Blocks in a row as [`crate::chunk::cut_blocks`] cuts them, which cover what was asked for and may begin before it and end
    /// behind it.
    Blocks {
        /// Where the first begins.
        offset: u64,
        /// Length and BLAKE3 of each.
        blocks: Vec<(u32, ChunkHash)>,
    },
    /// Hashes of chunks, in their order.
    Manifest {
        /// One a chunk; fewer than asked only at the end of the file.
        hashes: Vec<ChunkHash>,
        /// How many of them the host did not know yet and had to read the file for.
        computed: u32,
    },
    /// To [`Request::Change`].
    Changed(Changed),
    /// To [`Request::Write`].
    Written(Written),
    /// To [`Request::Sync`].
    Synced {
        /// Which run of the host's kernel did it.
        boot: BootId,
    },
    /// To [`Request::Lock`].
    Lock(LockAnswer),
    /// To [`Request::TestLock`]: a lock that stands against it; `None` where it could be taken.
    LockTest(Option<LockFound>),
    /// To [`Request::HaveChunks`]: whether each is there.
    Have(Vec<bool>),
    /// To [`super::Change::WriteKnown`].
    Taken {
        /// The file after it; `len` is of what was written, all together.
        written: Written,
        /// Outcome of each chunk.
        chunks: Vec<KnownChunk>,
    },
    /// To [`Request::Lookup`], where the session holds a lease on the directory.
    Entry {
        /// What `stat` tells of the entry.
        attributes: Attributes,
        /// The event stream that will tell changes made after this was read.
        lease: LeaseEpoch,
    },
    /// To [`Request::Events`]: [`super::HostEvent`] frames follow.
    Events {
        /// The name of this stream.
        epoch: LeaseEpoch,
    },
}

/// A part of a directory's entries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryBatch {
    /// In the order in which the host's file system gives them, `.` and `..` left out.
    pub entries: Vec<DirectoryEntry>,
    /// Whether this was all.
    pub last: bool,
}

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryEntry {
    /// Its name: 1 to 255 bytes, no `/`, no NUL.
    pub name: Vec<u8>,
    /// What it names.
    pub attributes: Attributes,
}

/// What `statfs(2)` tells, from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsStatistics {
    /// Size of a block, in bytes; the unit of the next three.
    pub block_bytes: u32,
    /// Blocks in all.
    pub blocks: u64,
    /// Blocks free.
    pub blocks_free: u64,
    /// Blocks free for people other than root.
    pub blocks_available: u64,
    /// Inodes in all.
    pub inodes: u64,
    /// Inodes free.
    pub inodes_free: u64,
    /// Longest name, in bytes.
    pub name_bytes_max: u32,
}

/// Announces a part of a file's content; the bytes follow raw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContentHeader {
    /// A whole chunk; `len` raw bytes follow.
    Chunk {
        /// Which.
        index: ChunkIndex,
        /// BLAKE3 of the bytes.
        hash: ChunkHash,
        /// How many: [`crate::chunk::CHUNK_BYTES`] but for the last chunk of the file.
        len: u32,
    },
    /// A chunk that the client holds: its hash is the one that the request carried. No bytes follow.
    Same {
        /// Which.
        index: ChunkIndex,
    },
    /// Exactly the bytes that were asked for; `len` raw bytes follow.
    Piece {
        /// Where they begin in the file.
        offset: u64,
        /// BLAKE3 of the bytes.
        hash: ChunkHash,
        /// How many; fewer than asked only at the end of the file.
        len: u32,
    },
    /// Everything was sent, and the file still had the version that was asked for when the last byte was read.
    End {
        /// The host's clock then.
        observed: Timestamp,
    },
    /// The host stops here.
    Failed(super::ErrorCode),
    /// A whole chunk, compressed; `packed_len` raw bytes follow, one frame of zstd (RFC 8878).
    Packed {
        /// Which.
        index: ChunkIndex,
        /// BLAKE3 of the bytes that come out.
        hash: ChunkHash,
        /// How many come out, as of [`Self::Chunk`].
        len: u32,
        /// How many follow; fewer than `len`.
        packed_len: u32,
    },
    /// Exactly the bytes that were asked for, compressed; `packed_len` raw bytes follow, one frame of zstd.
    PackedPiece {
        /// Where they begin in the file.
        offset: u64,
        /// BLAKE3 of the bytes that come out.
        hash: ChunkHash,
        /// How many come out, as of [`Self::Piece`].
        len: u32,
        /// How many follow; fewer than `len`.
        packed_len: u32,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_features_fall_away() {
        assert_eq!(Features(0b011).shared_with(Features(0b110)), Features(0b010));
    }

    #[test]
    fn a_ticket_secret_is_not_shown() {
        assert!(!format!("{:?}", TicketSecret([7; 16])).contains('7'));
    }
}
