//! What a mount can choose about its semantics.

use std::fmt;
use std::time::Duration;

use super::attributes::{Freshness, Ownership};
use super::locks::RemoteLocks;

/// Whether content that programs write is kept off the wire where the host has it already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DedupWish {
    /// Not at all.
    Never,
    /// Where finding it is faster than sending it.
    #[default]
    Worthwhile,
    /// Wherever it makes fewer bytes.
    Always,
}

/// The choices.
#[allow(clippy::struct_excessive_bools, reason = "each is an option of its own")]
#[derive(Clone)]
pub struct FsConfig {
    /// The host's public key: keeps apart what the cache knows of files of different hosts.
    pub host_key: [u8; 32],
    /// What is mounted, for people: `HOST:/EXPORT/PATH`.
    pub source: String,
    /// Whether the mount changes nothing.
    pub read_only: bool,
    /// How long who waits for the host to accept what was written waits without any of it being accepted. It is sent on after
    /// that.
    pub patience: Duration,
    /// Which locks are held on the host.
    pub locks: RemoteLocks,
    /// How long attributes and names hold.
    pub freshness: Freshness,
    /// Whether what is known is served while the host is out of reach; otherwise calls wait for it.
    pub serves_stale: bool,
    /// Shown in place of the host's owners and permissions.
    pub ownership: Ownership,
    /// Whether the kernel checks permissions by owner, group and mode. Otherwise the host is asked.
    pub default_permissions: bool,
    /// Whether the host is asked for content before it is sent.
    pub dedup: DedupWish,
    /// Whether extended attributes are passed through. Programs such as `ls -l` ask for them file by file, each a
    /// round trip.
    pub xattrs: bool,
    /// Most memory that all listings of the mount may take together, in bytes.
    pub listings_bytes_max: usize,
}

/// A gigabyte: some four million entries with names of common length. A host whose listings do not end takes no more.
const LISTINGS_BYTES_MAX: usize = 1 << 30;

impl Default for FsConfig {
    fn default() -> Self {
        Self {
            host_key: [0; 32],
            source: String::new(),
            read_only: true,
            patience: Duration::from_secs(60),
            locks: RemoteLocks::ALL,
            freshness: Freshness::default(),
            serves_stale: true,
            ownership: Ownership::default(),
            default_permissions: true,
            dedup: DedupWish::default(),
            xattrs: true,
            listings_bytes_max: LISTINGS_BYTES_MAX,
        }
    }
}

impl fmt::Debug for FsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FsConfig")
            .field("source", &self.source)
            .field("read_only", &self.read_only)
            .field("freshness", &self.freshness)
            .field("serves_stale", &self.serves_stale)
            .field("ownership", &self.ownership)
            .field("default_permissions", &self.default_permissions)
            .field("dedup", &self.dedup)
            .field("xattrs", &self.xattrs)
            .finish_non_exhaustive()
    }
}
