//! Extended attributes: the host's own, and some that the mount adds.
//!
//! `ls -l` asks each file for attributes that hardly any file has; whether it has some came with its other attributes. The
//! *names* of those that there are are kept as long as the file's time of change (`ctime`) stays, which any change of an attribute
//! moves; what is not among them is absent without a question. And when files are asked in the order of their listing,
//! those that follow are asked ahead, many at once.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lru::LruCache;
use tokio::sync::{OnceCell, Semaphore};

use super::inodes::Inode;
use super::nodes::Age;
use super::snapshot::Search;
use super::{FileSystem, FsError, attributes, lock};
use crate::client::{CallError, Client};
use crate::proto::{Attributes, Errno, FileKind, NodeId, Timestamp, Version, WireError};

/// The BLAKE3 hash of a regular file as 64 hexadecimal digits, computed on the host. Not among the listed names: a
/// program that copies all attributes must not make the host read all files.
pub const SUM_XATTR: &[u8] = b"user.wormhole.blake3";

/// Which version of a regular file is read now: `SIZE:MTIME:CTIME`, times in nanoseconds since 1970.
const VERSION_XATTR: &[u8] = b"user.wormhole.version";

/// How many bytes of a regular file, in its version of now, lie in the disk cache.
const CACHED_XATTR: &[u8] = b"user.wormhole.cached_bytes";

/// Where a file or directory comes from: `HOST:/EXPORT/PATH`.
const SOURCE_XATTR: &[u8] = b"user.wormhole.source";

/// How long may be counted what is cached: of a file of 100 GiB the cache has 1,600 pages to read.
const COUNT_WAIT: Duration = Duration::from_secs(10);

/// Names that are listed wherever they are set and shown; others, of file systems of their own kind, may exist unlisted.
const LISTED_PREFIXES: [&[u8]; 4] = [b"user.", b"trusted.", b"security.", b"system.posix_acl_"];

/// Files whose names are kept: 16 MB where each has a few.
const FILES_MAX: NonZeroUsize = NonZeroUsize::new(65_536).expect("not zero");

/// How many files are asked ahead of a program that goes through a listing.
const AHEAD_FILES: usize = 64;

/// Questions under way ahead of it.
const AHEAD_CALLS_MAX: usize = 32;

type Names = Arc<OnceCell<Arc<[u8]>>>;

/// The kept names, by file and its time of change.
pub(super) struct XattrNames {
    kept: Mutex<LruCache<NodeId, (Timestamp, Names)>>,
    /// Directory and position of the last file that was asked.
    last: Mutex<Option<(NodeId, usize)>>,
    ahead: Arc<Semaphore>,
}

impl Default for XattrNames {
    fn default() -> Self {
        Self {
            kept: Mutex::new(LruCache::new(FILES_MAX)),
            last: Mutex::default(),
            ahead: Arc::new(Semaphore::new(AHEAD_CALLS_MAX)),
        }
    }
}

impl XattrNames {
    /// The place for a file's names, and whether it was there before.
    fn place(&self, attributes: &Attributes) -> (Names, bool) {
        let mut kept = lock(&self.kept);
        match kept.get(&attributes.node) {
            Some((ctime, names)) if *ctime == attributes.ctime => (Arc::clone(names), true),
            _ => {
                let names = Names::default();
                // Two changes of so young a file may bear one time.
                if attributes::tell_changes_apart(attributes) {
                    kept.put(attributes.node, (attributes.ctime, Arc::clone(&names)));
                }
                (names, false)
            }
        }
    }

    /// They were changed here.
    pub(super) fn forget(&self, node: NodeId) {
        lock(&self.kept).pop(&node);
    }

    /// Whether the file at `position` follows closely on the last one that was asked in this directory.
    fn follows(&self, directory: NodeId, position: usize) -> bool {
        const STRIDE_MAX: usize = 8;
        let last = lock(&self.last).replace((directory, position));
        last.is_some_and(|(at, before)| {
            at == directory && (1..=STRIDE_MAX).contains(&position.wrapping_sub(before))
        })
    }
}

impl FileSystem {
    /// The value of an extended attribute.
    pub async fn getxattr(self: &Arc<Self>, inode: Inode, name: &[u8]) -> Result<Vec<u8>, FsError> {
        if let Some(value) = self.virtual_xattr(inode, name).await? {
            return Ok(value);
        }
        self.may_have_xattrs()?;
        if LISTED_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
            let names = self.xattr_names_of(inode).await?;
            if names.split(|byte| *byte == 0).all(|listed| listed != name) {
                return Err(refused(Errno::ENODATA));
            }
        }
        let ask = |client: Arc<dyn Client>, node| {
            let name = name.to_vec();
            async move { client.get_xattr(node, &name).await }
        };
        match self.ask(inode, ask).await {
            // A host whose file system knows no ACLs has none here; of any other word the kernel makes a refusal.
            Err(error) if name.starts_with(b"system.posix_acl_") && error.errno() == Errno::EOPNOTSUPP => {
                Err(refused(Errno::ENODATA))
            }
            value => self.config.ownership.present_xattr(name, value?),
        }
    }

    /// The attributes that the mount adds. None of them is listed: a program that copies all attributes must not make the
    /// host read all files, nor give the copy the version and the source of the original.
    async fn virtual_xattr(self: &Arc<Self>, inode: Inode, name: &[u8]) -> Result<Option<Vec<u8>>, FsError> {
        if name == SUM_XATTR {
            self.sent(inode).await?;
            let (hash, _) = self.ask(inode, |client, node| async move { client.sum(node).await }).await?;
            return Ok(Some(hash.to_string().into_bytes()));
        }
        if name == SOURCE_XATTR {
            let way = lock(&self.inodes).way_up(inode).ok_or(FsError::Stale)?;
            let names: Vec<&[u8]> = way.iter().rev().map(|step| &*step.name).collect();
            return Ok(Some(self.source_of(&names.join(&b'/')).into_bytes()));
        }
        if name != VERSION_XATTR && name != CACHED_XATTR {
            return Ok(None);
        }
        let (attributes, _) = self.attributes_of(inode, Age::Fresh).await?;
        if attributes.kind != FileKind::Regular {
            return Err(refused(Errno::ENODATA));
        }
        if name == VERSION_XATTR {
            let Version { size, mtime, ctime } = attributes.version();
            return Ok(Some(format!("{size}:{}:{}", mtime.0, ctime.0).into_bytes()));
        }
        let (fetcher, content) = (Arc::clone(&self.fetcher), self.content_kept(&attributes));
        let counted = self.runtime.spawn_blocking(move || fetcher.cached_bytes(&content, COUNT_WAIT)).await;
        let bytes = counted.ok().flatten().ok_or_else(|| refused(Errno::ETIMEDOUT))?;
        Ok(Some(bytes.to_string().into_bytes()))
    }

    /// The names of the extended attributes, each ended by a NUL.
    pub async fn listxattr(self: &Arc<Self>, inode: Inode) -> Result<Vec<u8>, FsError> {
        self.may_have_xattrs()?;
        Ok(self.xattr_names_of(inode).await?.to_vec())
    }

    fn may_have_xattrs(&self) -> Result<(), FsError> {
        if self.config.xattrs { Ok(()) } else { Err(refused(Errno::EOPNOTSUPP)) }
    }

    async fn xattr_names_of(self: &Arc<Self>, inode: Inode) -> Result<Arc<[u8]>, FsError> {
        let (attributes, _) = self.attributes_of(inode, Age::Fresh).await?;
        if !attributes.has_xattrs {
            return Ok(Arc::default());
        }
        self.ask_xattr_names_ahead(inode);
        let (names, _) = self.xattr_names.place(&attributes);
        let asking = || async {
            let names = self.ask(inode, |client, node| async move { client.list_xattr(node).await }).await?;
            Ok(Arc::from(names))
        };
        names.get_or_try_init(asking).await.cloned()
    }

    /// If files are asked in the order of their listing, asks the next ones too.
    fn ask_xattr_names_ahead(self: &Arc<Self>, inode: Inode) {
        let Some((parent, name)) = lock(&self.inodes).newest_name(inode) else { return };
        let Ok((directory, _)) = self.node_of(parent) else { return };
        let Some(listing) = lock(&self.recent).get(directory) else { return };
        let following: Vec<Attributes> = {
            let snapshot = lock(&listing.snapshot);
            let Search::At(position) = snapshot.find(&name) else { return };
            if !self.xattr_names.follows(directory, position) || !self.is_connected() {
                return;
            }
            let next = position + 1..position + 1 + AHEAD_FILES;
            next.map_while(|at| snapshot.get(at)).map(|listed| listed.attributes).collect()
        };
        for attributes in following.into_iter().filter(|attributes| attributes.has_xattrs) {
            let (names, is_known) = self.xattr_names.place(&attributes);
            if !is_known {
                self.runtime.spawn(Arc::clone(self).fill_xattr_names(attributes.node, names));
            }
        }
    }

    /// Asks for one file's names ahead. If that fails, whoever needs them asks again and hears why.
    async fn fill_xattr_names(self: Arc<Self>, node: NodeId, names: Names) {
        let Ok(_turn) = self.xattr_names.ahead.acquire().await else { return };
        let asking = || async { self.client.list_xattr(node).await.map(Arc::from) };
        if let Err(error) = names.get_or_try_init(asking).await {
            tracing::debug!(%error, "names of extended attributes were not got ahead");
        }
    }
}

pub(super) const fn refused(errno: Errno) -> FsError {
    FsError::Call(CallError::Host(WireError::system(errno)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::tests::attributes;

    #[test]
    fn names_are_kept_until_the_file_changes() {
        let kept = XattrNames::default();
        let file = attributes(7, FileKind::Regular);
        assert!(!kept.place(&file).1);
        assert!(kept.place(&file).1);
        let changed = Attributes { ctime: Timestamp(5), ..file };
        assert!(!kept.place(&changed).1);
        let young = Attributes { ctime: Timestamp(9), observed: Timestamp(9), ..file };
        assert!(!kept.place(&young).1);
        assert!(!kept.place(&young).1);
    }

    #[test]
    fn only_who_goes_forward_in_steps_is_followed() {
        let kept = XattrNames::default();
        let (here, there) =
            (attributes(1, FileKind::Directory).node, attributes(2, FileKind::Directory).node);
        assert!(!kept.follows(here, 0));
        assert!(kept.follows(here, 1));
        assert!(!kept.follows(here, 1));
        assert!(kept.follows(here, 5));
        assert!(!kept.follows(here, 4));
        assert!(!kept.follows(here, 100));
        assert!(!kept.follows(there, 101));
    }
}
