//! What a client may have changed, and how it is done exactly once.
//!
//! Every change carries an [`Operation`]: a number that the client gives once in its session, ascending. The host keeps
//! the answers of a session until the client says that it has them, so a request that comes again, because its answer was
//! lost, is answered and not done again; one that comes while the first still runs waits for its end. A number that
//! was answered and forgotten is refused: a packet that was delayed for minutes changes nothing.
//!
//! A session that the host no longer has, because the host restarted or kept it long enough, leaves no answers behind. A change that
//! was first sent to it is recognised ([`Operation::sent_first`]). Those whose repetition changes nothing are done again; the others
//! only where the host sees that they were not done, and fail with EIO where it cannot tell.

use serde::{Deserialize, Serialize};

use super::message::{InstanceId, OpenId};
use super::node::{Attributes, FileKind, NodeId, Timestamp};
use crate::chunk::{ByteRange, CHUNK_BYTES, ChunkHash};

/// Names one change of a session; later ones have larger numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OperationId(pub u64);

/// Names one life of a session: the host gives a new one when it has to begin the session anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SessionRun {
    /// Which run of the host.
    pub instance: InstanceId,
    /// Which session of that run, counted from 1.
    pub number: u64,
}

/// Names one run of the host's kernel. Bytes that it has accepted, and not yet brought to the disk, are lost with it, but not
/// with the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BootId(pub [u8; 16]);

/// What makes a change one that is done once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Which change.
    pub id: OperationId,
    /// The client has the answers of all changes before this one, or gave them up.
    pub answered_below: OperationId,
    /// To which life of the session it was sent first.
    pub sent_first: SessionRun,
}

/// The process that wants something made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Caller {
    /// Its user, by the client's numbers.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its file mode creation mask.
    pub umask: u16,
}

/// For what a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OpenAccess {
    /// For reading.
    pub reads: bool,
    /// For writing.
    pub writes: bool,
    /// For writing at the end alone: `O_APPEND`, without which a file that may only be appended to is not opened.
    pub appends: bool,
}

impl OpenAccess {
    /// For reading only.
    pub const READ: Self = Self { reads: true, writes: false, appends: false };

    /// For neither: the node is held as it is, whatever it is and whoever may read it, so that it can still be asked
    /// about and have its attributes changed after its name went to another.
    pub const NONE: Self = Self { reads: false, writes: false, appends: false };

    /// Whether who is let in so may also do what `other` wants.
    pub const fn covers(self, other: Self) -> bool {
        (self.reads || !other.reads) && (self.writes || !other.writes)
    }

    /// Both together.
    pub const fn and(self, other: Self) -> Self {
        Self {
            reads: self.reads || other.reads,
            writes: self.writes || other.writes,
            appends: self.appends || other.appends,
        }
    }
}

/// How a name is moved over another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RenameHow {
    /// What bears the new name is replaced.
    Replace,
    /// EEXIST if something bears it (`RENAME_NOREPLACE`).
    NoReplace,
    /// The two change places (`RENAME_EXCHANGE`).
    Exchange,
}

/// A time to be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SetTime {
    /// The host's clock.
    Now,
    /// This one.
    At(Timestamp),
}

/// What is to become of a node's attributes; what is `None` stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SetAttributes {
    /// The low 12 bits of `st_mode`.
    pub permissions: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes: cuts the file or lets it grow by a hole.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last change of content.
    pub mtime: Option<SetTime>,
}

/// What a set of an extended attribute expects to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum XattrHow {
    /// Anything.
    Any,
    /// Nothing, else EEXIST.
    Create,
    /// Something, else ENODATA.
    Replace,
}

/// What `fallocate(2)` does to a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AllocateHow {
    /// Reserves room; the file grows if need be.
    Grow,
    /// Reserves room; the size stays.
    KeepSize,
    /// Makes a hole; the size stays.
    PunchHole,
    /// Makes zeroes; the file grows if need be.
    Zero,
    /// Makes zeroes; the size stays.
    ZeroKeepSize,
    /// Takes the range out: what is behind it moves forward.
    Collapse,
    /// Puts a hole in: what is behind its beginning moves back.
    Insert,
}

/// What is to be changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// Makes a regular file and opens it, as [`super::Request::OpenFor`]; opens one that is there, if not `exclusive`.
    Create {
        /// The directory.
        parent: NodeId,
        /// One name.
        name: Vec<u8>,
        /// Permission bits before the mask.
        permissions: u16,
        /// Who asks.
        caller: Caller,
        /// Names the open.
        open: OpenId,
        /// For what it is opened.
        access: OpenAccess,
        /// EEXIST if the name is taken.
        exclusive: bool,
        /// Cuts one that is there to nothing.
        truncate: bool,
    },
    /// `mkdir(2)`.
    MakeDirectory {
        /// The directory to make it in.
        parent: NodeId,
        /// One name.
        name: Vec<u8>,
        /// Permission bits before the mask.
        permissions: u16,
        /// Who asks.
        caller: Caller,
    },
    /// `mknod(2)`: a pipe, a socket, a device, or an empty regular file.
    MakeNode {
        /// The directory.
        parent: NodeId,
        /// One name.
        name: Vec<u8>,
        /// What to make.
        kind: FileKind,
        /// Permission bits before the mask.
        permissions: u16,
        /// For devices, as [`Attributes::device_number`].
        device_number: u64,
        /// Who asks.
        caller: Caller,
    },
    /// `symlink(2)`.
    MakeSymlink {
        /// The directory.
        parent: NodeId,
        /// One name.
        name: Vec<u8>,
        /// Where it points; the host never follows it.
        target: Vec<u8>,
        /// Who asks.
        caller: Caller,
    },
    /// `link(2)`: one more name.
    Link {
        /// Of what.
        node: NodeId,
        /// The directory and name under which it was last seen. Where the node is no longer there, what bears that name
        /// now gets the new one, as by a call that begins a moment later. `None` where that very node is meant.
        seen_as: Option<(NodeId, Vec<u8>)>,
        /// In which directory.
        parent: NodeId,
        /// One name.
        name: Vec<u8>,
    },
    /// `unlink(2)`, or `rmdir(2)`.
    Remove {
        /// The directory.
        parent: NodeId,
        /// One name.
        name: Vec<u8>,
        /// Whether an empty directory is to go, and not something else.
        directory: bool,
        /// What the client believes it names; only used where it cannot be told whether the change was done before.
        expected: Option<NodeId>,
    },
    /// `renameat2(2)`.
    Rename {
        /// The directory it is in.
        from_parent: NodeId,
        /// Its name there.
        from_name: Vec<u8>,
        /// The directory it goes to.
        to_parent: NodeId,
        /// Its name there.
        to_name: Vec<u8>,
        /// What becomes of what is there.
        how: RenameHow,
        /// What the client believes the old name names; used as in [`Self::Remove`].
        expected: Option<NodeId>,
    },
    /// `chmod`, `chown`, `truncate`, `utimensat`.
    SetAttributes {
        /// Whose.
        node: NodeId,
        /// To what.
        set: SetAttributes,
    },
    /// `setxattr(2)`. Of the namespaces only `user.` and the ACLs of `system.`.
    SetXattr {
        /// Whose.
        node: NodeId,
        /// Name with its namespace.
        name: Vec<u8>,
        /// At most 64 KiB.
        value: Vec<u8>,
        /// What to expect.
        how: XattrHow,
    },
    /// `removexattr(2)`.
    RemoveXattr {
        /// Whose.
        node: NodeId,
        /// Name with its namespace.
        name: Vec<u8>,
    },
    /// `fallocate(2)`.
    Allocate {
        /// In which file.
        node: NodeId,
        /// Which bytes.
        range: ByteRange,
        /// What becomes of them.
        how: AllocateHow,
    },
    /// `copy_file_range(2)`, or a clone where the host's file system has them. Answer: [`super::Reply::Written`], with fewer bytes than asked
    /// where the source ends or the host has worked long enough.
    CopyRange {
        /// From which file.
        from: NodeId,
        /// Which bytes.
        range: ByteRange,
        /// To which file.
        to: NodeId,
        /// Where to.
        offset: u64,
    },
    /// Writes chunks which the host has in files that the client may read, so that their bytes need not be sent. The host reads
    /// them there and proves them before it writes them. Answer: [`super::Reply::Taken`], also where it has none of them.
    WriteKnown {
        /// To which file.
        node: NodeId,
        /// Where the first chunk goes: a multiple of [`CHUNK_BYTES`]. The others follow.
        offset: u64,
        /// BLAKE3 of whole chunks; at most [`super::KNOWN_CHUNKS_MAX`].
        chunks: Vec<ChunkHash>,
        /// When they may make the file longer.
        growth: Growth,
    },
}

/// One change. Answer: [`super::Reply::Changed`], unless the change says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeRequest {
    /// Which.
    pub operation: Operation,
    /// What.
    pub change: Change,
}

/// Where content is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WriteAt {
    /// To this place.
    Offset(u64),
    /// To the end of the file, wherever that is by then.
    End {
        /// Where the client believes the end to be; only used where it cannot be told whether the write was done before.
        believed: u64,
    },
    /// To this place, after what was written before if it makes the file longer.
    Behind {
        /// Where to.
        offset: u64,
        /// When it may make the file longer.
        growth: Growth,
        /// The life of the session in which the lock was taken under which it was written. In another life the lock is
        /// another's by now, and nothing is written.
        run: Option<SessionRun>,
    },
}

/// Condition under which content may make its file longer: what the program wrote before it is there. So a file of which a part
/// has arrived is a beginning of what was written. Content that ends within the file waits for nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Growth {
    /// Size that the file must have reached, in bytes. The host waits for that; where it does not come about the write is
    /// refused with [`super::ErrorCode::TooEarly`].
    pub from: u64,
}

/// What became of a chunk that was named by its hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum KnownChunk {
    /// It was found and written.
    Written,
    /// It was found, and is not written because one before it, which would make the file longer, is missing.
    Held,
    /// It was not found.
    Missing,
}

/// Content to be written; `len` raw bytes follow on the same stream. Answer: [`super::Reply::Written`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteRequest {
    /// Which change this is.
    pub operation: Operation,
    /// Which file.
    pub node: NodeId,
    /// Where to.
    pub at: WriteAt,
    /// How many bytes; at most [`Self::bytes_max`].
    pub len: u32,
    /// What [`WriteAt::proof`] tells of the bytes; what does not match is not written.
    pub hash: ChunkHash,
}

/// That content is what was to be written, and the names of its chunks from the same pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteProof {
    /// Of all the bytes.
    pub hash: ChunkHash,
    /// Of each chunk, where the content is whole chunks in their places.
    pub chunks: Vec<ChunkHash>,
}

impl WriteAt {
    /// A place in the file, when the file may grow by it, and the lock; `None` for its end.
    pub const fn place(self) -> Option<(u64, Growth, Option<SessionRun>)> {
        const ANY: Growth = Growth { from: 0 };
        match self {
            Self::Offset(offset) => Some((offset, ANY, None)),
            Self::Behind { offset, growth, run } => Some((offset, growth, run)),
            Self::End { .. } => None,
        }
    }

    /// Hashes content once. What is whole chunks in their places is proved by BLAKE3 of their hashes, one behind the other; everything
    /// else by BLAKE3 of the bytes.
    pub fn proof(self, bytes: &[u8]) -> WriteProof {
        let whole = |number: u64| number.is_multiple_of(CHUNK_BYTES);
        match self {
            Self::Offset(offset) | Self::Behind { offset, .. }
                if whole(offset) && whole(bytes.len() as u64) && !bytes.is_empty() =>
            {
                let chunks: Vec<_> = bytes.chunks(CHUNK_BYTES as usize).map(ChunkHash::of).collect();
                let joined: Vec<u8> = chunks.iter().flat_map(|chunk| *chunk.as_bytes()).collect();
                WriteProof { hash: ChunkHash::of(&joined), chunks }
            }
            _ => WriteProof { hash: ChunkHash::of(bytes), chunks: Vec::new() },
        }
    }
}

impl WriteRequest {
    /// Most bytes that may go there at once.
    pub const fn bytes_max(at: WriteAt) -> u64 {
        match at {
            WriteAt::Offset(_) | WriteAt::Behind { .. } => super::WRITE_BYTES_MAX,
            WriteAt::End { .. } => super::APPEND_BYTES_MAX,
        }
    }
}

/// What became of a change.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Changed {
    /// What was made, moved, removed or changed, as it is now.
    pub node: Option<Attributes>,
    /// What changed besides: the directories, what was replaced.
    pub others: Vec<Attributes>,
}

/// What became of content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// Where the first byte went.
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
    /// The file after it.
    pub attributes: Attributes,
    /// Which run of the host's kernel has the bytes.
    pub boot: BootId,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_chunks_in_their_places_are_named_and_nothing_else() {
        let bytes: Vec<u8> = (0..2 * CHUNK_BYTES).map(|at| (at / 1000) as u8).collect();
        let (first, second) = bytes.split_at(CHUNK_BYTES as usize);
        let proof = WriteAt::Offset(3 * CHUNK_BYTES).proof(&bytes);
        assert_eq!(proof.chunks, [ChunkHash::of(first), ChunkHash::of(second)]);
        let mut changed = bytes.clone();
        changed[CHUNK_BYTES as usize] ^= 1;
        assert_ne!(WriteAt::Offset(3 * CHUNK_BYTES).proof(&changed).hash, proof.hash);
        let plain = WriteProof { hash: ChunkHash::of(&bytes), chunks: Vec::new() };
        assert_eq!(WriteAt::Offset(1).proof(&bytes), plain);
        assert_eq!(WriteAt::End { believed: 0 }.proof(&bytes), plain);
        assert_eq!(WriteAt::Offset(0).proof(&bytes[1..]).chunks, []);
        assert_eq!(WriteAt::Offset(0).proof(b"").hash, ChunkHash::of(b""));
    }
}
