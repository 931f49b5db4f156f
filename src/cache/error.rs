//! What can go wrong when a cache is opened or cleared. Once it is open nothing is an error: what fails is a miss.

use std::io;
use std::path::{Path, PathBuf};

/// Why a cache cannot be opened or cleared.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The operating system refused something.
    #[error("cannot {what} {}: {source}; choose another directory with --cache-dir, or cache=none", path.display())]
    Io {
        /// What was tried, as a verb.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The directory holds files and is not marked as a cache.
    #[error(
        "{} is not a wormhole cache: it has no valid CACHEDIR.TAG, yet is not empty; name a new or empty directory",
        path.display()
    )]
    NotACache {
        /// The directory.
        path: PathBuf,
    },
    /// Somebody else could have put records into it.
    #[error(
        "cache directory {} belongs to user {owner}; it must belong to you (user {user}) or root; choose another one",
        path.display()
    )]
    NotOurs {
        /// The directory.
        path: PathBuf,
        /// User id of its owner.
        owner: u32,
        /// Our effective user id.
        user: u32,
    },
    /// There is not even room for two segments.
    #[error(
        "a cache of {size_bytes} bytes is too small: it needs at least {least_bytes}; raise --cache-size or use cache=none"
    )]
    TooSmall {
        /// The size that was asked for, in bytes.
        size_bytes: u64,
        /// The least size that works, in bytes.
        least_bytes: u64,
    },
    /// Segments must hold a record and be addressable with 32 bits.
    #[error("segments of {segment_bytes} bytes do not work: between 4096 and 1073741824 do")]
    SegmentSize {
        /// The size that was asked for, in bytes.
        segment_bytes: u64,
    },
    /// Another process holds the lock of the directory.
    #[error(
        "cache directory {} is busy: another wormhole process held its lock for {waited_ms} ms; try again",
        path.display()
    )]
    Busy {
        /// The directory.
        path: PathBuf,
        /// How long was waited, in milliseconds.
        waited_ms: u64,
    },
}

impl CacheError {
    /// Whether it stays as it is until somebody asks for another cache.
    pub const fn is_lasting(&self) -> bool {
        match self {
            Self::NotACache { .. }
            | Self::NotOurs { .. }
            | Self::TooSmall { .. }
            | Self::SegmentSize { .. } => true,
            Self::Io { .. } | Self::Busy { .. } => false,
        }
    }

    /// Makes an I/O error say what was tried on what.
    pub(super) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, path: path.to_owned(), source }
    }
}

/// Why something cannot be pinned, or a pin not taken back.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The cache itself.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The disk.
    #[error("the disk of the cache: {0}")]
    Io(#[from] io::Error),
    /// There is no cache on disk.
    #[error("nothing is kept on disk here (cache=none, or a file that changed within two seconds)")]
    NoCache,
    /// Nothing can be written to it.
    #[error("the cache directory cannot be written")]
    ReadOnly,
    /// One at a time.
    #[error("somebody else makes or takes back a pin in this cache; try again when that is done")]
    Busy,
    /// The cache does not have a chunk.
    #[error("the cache did not keep what was to be pinned: its disk is full or too slow; try again")]
    Missing,
    /// The share of the cache that may be pinned.
    #[error(
        "pins take {pinned} bytes and may take {most}, 80 % of the cache; raise cache_size, or unpin something"
    )]
    TooMuch {
        /// What pinned segments take now, in bytes.
        pinned: u64,
        /// What they may take, in bytes.
        most: u64,
    },
    /// Other processes or the floor of free space take the room.
    #[error(
        "there is no room for another pinned segment: the disk is too full, or other processes write there"
    )]
    NoRoom,
    /// The number of pins.
    #[error("there are {most} pins already; unpin something")]
    TooMany {
        /// How many there may be.
        most: usize,
    },
    /// The number of records of one pin.
    #[error("one pin covers {most} chunks and files at most; pin parts of it instead")]
    TooManyRecords {
        /// How many there may be.
        most: usize,
    },
    /// The name.
    #[error("the path is too long to be pinned")]
    NameTooLong,
    /// No pin of that name.
    #[error("nothing is pinned as {name}; `wormhole cache stat` lists what is")]
    NoSuchPin {
        /// The name.
        name: String,
    },
}
