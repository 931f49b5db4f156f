//! Errors of opening and clearing a cache. An open cache returns no errors: a failure is a miss.

use std::io;
use std::path::{Path, PathBuf};

/// Reason why a cache cannot be opened or cleared.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// A system call failed.
    #[error("cannot {what} {}: {source}; choose another directory with --cache-dir, or cache=none", path.display())]
    Io {
        /// Attempted action, as a verb.
        what: &'static str,
        /// Its object.
        path: PathBuf,
        /// Reason of the failure.
        source: io::Error,
    },
    /// The directory has files and no valid tag.
    #[error(
        "{} is not a wormhole cache: it has no valid CACHEDIR.TAG, yet is not empty; name a new or empty directory",
        path.display()
    )]
    NotACache {
        /// The directory.
        path: PathBuf,
    },
    /// The directory belongs to another user, whose records cannot be trusted.
    #[error(
        "cache directory {} belongs to user {owner}; it must belong to you (user {user}) or root; choose another one",
        path.display()
    )]
    NotOurs {
        /// The directory.
        path: PathBuf,
        /// User id of its owner.
        owner: u32,
        /// Effective user id of this process.
        user: u32,
    },
    /// There is no room for two segments.
    #[error(
        "a cache of {size_bytes} bytes is too small: it needs at least {least_bytes}; raise --cache-size or use cache=none"
    )]
    TooSmall {
        /// Requested size in bytes.
        size_bytes: u64,
        /// Smallest size that works, in bytes.
        least_bytes: u64,
    },
    /// A segment must hold a record and be addressable with 32 bits.
    #[error("segments of {segment_bytes} bytes do not work: between 4096 and 1073741824 do")]
    SegmentSize {
        /// Requested size in bytes.
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
        /// Time spent waiting, in milliseconds.
        waited_ms: u64,
    },
}

impl CacheError {
    /// Returns `true` if a retry cannot help and only another configuration does.
    pub const fn is_lasting(&self) -> bool {
        match self {
            Self::NotACache { .. }
            | Self::NotOurs { .. }
            | Self::TooSmall { .. }
            | Self::SegmentSize { .. } => true,
            Self::Io { .. } | Self::Busy { .. } => false,
        }
    }

    /// Adds the attempted action and its object to an I/O error.
    pub(super) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, path: path.to_owned(), source }
    }
}

/// Reason why content cannot be pinned or unpinned.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The cache directory cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The disk failed.
    #[error("the disk of the cache: {0}")]
    Io(#[from] io::Error),
    /// There is no cache on disk.
    #[error("nothing is kept on disk here (cache=none, or a file that changed within two seconds)")]
    NoCache,
    /// Nothing can be written to it.
    #[error("the cache directory cannot be written")]
    ReadOnly,
    /// Another process changes pins.
    #[error("another process is changing the pins of this cache; try again when it is done")]
    Busy,
    /// The cache lacks a chunk.
    #[error("the cache did not keep the content to pin: its disk is full or too slow; try again")]
    Missing,
    /// The share of the cache that may be pinned is used up.
    #[error(
        "pins take {pinned} bytes and may take {most}, 80 % of the cache; raise cache_size, or unpin something"
    )]
    TooMuch {
        /// Bytes that pinned segments take now.
        pinned: u64,
        /// Most bytes that they may take.
        most: u64,
    },
    /// Other processes or the minimum of free space leave no room.
    #[error(
        "there is no room for another pinned segment: the disk is too full, or other processes write there"
    )]
    NoRoom,
    /// There are too many pins.
    #[error("there are {most} pins already; unpin something")]
    TooMany {
        /// Most pins allowed.
        most: usize,
    },
    /// The pin has too many records.
    #[error("one pin covers {most} chunks and files at most; pin parts of it instead")]
    TooManyRecords {
        /// Most records allowed.
        most: usize,
    },
    /// The name is too long.
    #[error("the path is too long to be pinned")]
    NameTooLong,
    /// No pin has this name.
    #[error("nothing is pinned as {name}; `wormhole cache stat` lists the pins")]
    NoSuchPin {
        /// Requested name.
        name: String,
    },
}
