//! Typed methods, one for each request, so that callers do not match on replies.

use super::{CallError, Client, FirstSession, Lane};
use crate::chunk::ChunkHash;
use crate::proto::{
    Attributes, Change, Changed, FsStatistics, Growth, KnownChunk, LeaseEpoch, LockFound, LockTest,
    ManifestRequest, NodeId, OpenAccess, OpenId, Reply, Request, SeekTarget, Version, Written,
};

impl dyn Client {
    /// Returns the attributes of one entry of a directory.
    pub async fn lookup(&self, parent: NodeId, name: &[u8]) -> Result<Attributes, CallError> {
        self.lookup_leased(parent, name).await.map(|(attributes, _)| attributes)
    }

    /// Does the same. Also returns the event stream on which changes of the entry are reported, if there is
    /// one.
    pub async fn lookup_leased(
        &self,
        parent: NodeId,
        name: &[u8],
    ) -> Result<(Attributes, Option<LeaseEpoch>), CallError> {
        match self.call(Request::Lookup { parent, name: name.to_vec() }, Lane::Metadata).await? {
            Reply::Attributes(attributes) => Ok((attributes, None)),
            Reply::Entry { attributes, lease } => Ok((attributes, Some(lease))),
            other => Err(unexpected(&other)),
        }
    }

    /// Returns the attributes of some entries of a directory, in the order of `names`, `None` for missing
    /// ones.
    pub async fn lookup_many(
        &self,
        parent: NodeId,
        names: Vec<Vec<u8>>,
    ) -> Result<Vec<Option<Attributes>>, CallError> {
        let count = names.len();
        match self.call(Request::LookupMany { parent, names }, Lane::Metadata).await? {
            Reply::Entries(entries) if entries.len() == count => Ok(entries),
            other => Err(unexpected(&other)),
        }
    }

    /// Returns the attributes of a node.
    pub async fn attributes(&self, node: NodeId) -> Result<Attributes, CallError> {
        self.attributes_of(Request::GetAttributes { node }).await
    }

    /// Opens a file on the host. The returned attributes are as fresh as one round trip allows.
    pub async fn open(
        &self,
        node: NodeId,
        open: OpenId,
        access: OpenAccess,
    ) -> Result<Attributes, CallError> {
        let request = if access == OpenAccess::READ {
            Request::Open { node, open }
        } else {
            Request::OpenFor { node, open, access }
        };
        self.attributes_of(request).await
    }

    /// Executes a change whose reply describes the result.
    pub async fn changed(&self, change: Change, first: &FirstSession) -> Result<Changed, CallError> {
        match self.change(change, first).await? {
            Reply::Changed(changed) => Ok(changed),
            other => Err(unexpected(&other)),
        }
    }

    /// Copies content within the host.
    pub async fn copy(&self, change: Change, first: &FirstSession) -> Result<Written, CallError> {
        match self.change(change, first).await? {
            Reply::Written(written) => Ok(written),
            other => Err(unexpected(&other)),
        }
    }

    /// Tells for each of some chunks, about to be written, if the host has it elsewhere.
    pub async fn have_chunks(
        &self,
        node: NodeId,
        offset: u64,
        chunks: Vec<ChunkHash>,
    ) -> Result<Vec<bool>, CallError> {
        let count = chunks.len();
        match self.call(Request::HaveChunks { node, offset, chunks }, Lane::Metadata).await? {
            Reply::Have(have) if have.len() == count => Ok(have),
            other => Err(unexpected(&other)),
        }
    }

    /// Writes chunks that the host already has. Returns the file after the write, and the result for each
    /// chunk.
    pub async fn write_known(
        &self,
        node: NodeId,
        offset: u64,
        (chunks, growth): (Vec<ChunkHash>, Growth),
        first: &FirstSession,
    ) -> Result<(Written, Vec<KnownChunk>), CallError> {
        let count = chunks.len();
        match self.change(Change::WriteKnown { node, offset, chunks, growth }, first).await? {
            Reply::Taken { written, chunks } if chunks.len() == count => Ok((written, chunks)),
            other => Err(unexpected(&other)),
        }
    }

    /// Returns the lock that conflicts with a lock, if any.
    pub async fn test_lock(&self, test: LockTest) -> Result<Option<LockFound>, CallError> {
        match self.call(Request::TestLock(test), Lane::Metadata).await? {
            Reply::LockTest(found) => Ok(found),
            other => Err(unexpected(&other)),
        }
    }

    /// Closes one `open`.
    pub async fn close(&self, node: NodeId, open: OpenId) -> Result<(), CallError> {
        self.done(Request::Close { node, open }).await
    }

    /// Succeeds if the host's daemon may access the node in this way.
    pub async fn access(&self, node: NodeId, mask: u8) -> Result<(), CallError> {
        self.done(Request::Access { node, mask }).await
    }

    /// Makes one round trip to the host.
    pub async fn ping(&self) -> Result<(), CallError> {
        self.done(Request::Ping).await
    }

    /// Returns the target of a symbolic link.
    pub async fn read_link(&self, node: NodeId) -> Result<Vec<u8>, CallError> {
        self.bytes_of(Request::ReadLink { node }).await
    }

    /// Returns the value of an extended attribute.
    pub async fn get_xattr(&self, node: NodeId, name: &[u8]) -> Result<Vec<u8>, CallError> {
        self.bytes_of(Request::GetXattr { node, name: name.to_vec() }).await
    }

    /// Returns the names of the extended attributes, each with a NUL at its end.
    pub async fn list_xattr(&self, node: NodeId) -> Result<Vec<u8>, CallError> {
        self.bytes_of(Request::ListXattr { node }).await
    }

    /// Returns the size and use of the file system.
    pub async fn fs_statistics(&self, node: NodeId) -> Result<FsStatistics, CallError> {
        match self.call(Request::StatFs { node }, Lane::Metadata).await? {
            Reply::FsStatistics(statistics) => Ok(statistics),
            other => Err(unexpected(&other)),
        }
    }

    /// Returns the next data or hole from `offset` on.
    pub async fn seek(&self, node: NodeId, offset: u64, target: SeekTarget) -> Result<u64, CallError> {
        match self.call(Request::Seek { node, offset, target }, Lane::Metadata).await? {
            Reply::Offset(found) => Ok(found),
            other => Err(unexpected(&other)),
        }
    }

    /// Returns the BLAKE3 hash of a whole file, computed on the host.
    pub async fn sum(&self, node: NodeId) -> Result<(ChunkHash, Version), CallError> {
        match self.call(Request::Sum { node }, Lane::Background).await? {
            Reply::Sum { hash, version } => Ok((hash, version)),
            other => Err(unexpected(&other)),
        }
    }

    /// Returns the hashes of some chunks, and the number of chunks for which the host had to read the file.
    pub async fn manifest(&self, request: ManifestRequest) -> Result<(Vec<ChunkHash>, u32), CallError> {
        let chunks = request.chunks.clamp_to(request.version.size);
        match self.call(Request::Manifest(request), Lane::Metadata).await? {
            Reply::Manifest { hashes, computed } if hashes.len() as u64 == chunks.count => {
                Ok((hashes, computed))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn attributes_of(&self, request: Request) -> Result<Attributes, CallError> {
        match self.call(request, Lane::Metadata).await? {
            Reply::Attributes(attributes) => Ok(attributes),
            other => Err(unexpected(&other)),
        }
    }

    async fn bytes_of(&self, request: Request) -> Result<Vec<u8>, CallError> {
        match self.call(request, Lane::Metadata).await? {
            Reply::Bytes(bytes) => Ok(bytes),
            other => Err(unexpected(&other)),
        }
    }

    async fn done(&self, request: Request) -> Result<(), CallError> {
        match self.call(request, Lane::Metadata).await? {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }
}

pub(super) fn unexpected(reply: &Reply) -> CallError {
    let debug = format!("{reply:?}");
    let kind = debug.split([' ', '(', '{']).next().unwrap_or_default();
    CallError::BadAnswer(format!("a reply of another kind than asked for ({kind})"))
}
