//! (P) Answers of the model host: the guarantees of the protocol about requests, one function for each kind.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::tree::{Body, Node, Opener, Tree};
use crate::chunk::{
    BLOCK_BYTES_MAX, BLOCK_LEAD_BYTES, ByteRange, CHUNK_BYTES, ChunkHash, ChunkIndex, VerifiedChunk,
    cut_blocks,
};
use crate::client::ContentPart;
use crate::proto::{
    ActingUser, Attributes, BootId, CURRENT_BYTES_MAX, DirectoryEntry, Errno, ErrorCode, Features, FileKind,
    FsStatistics, InstanceId, KNOWN_HASHES_MAX, LOOKUP_NAME_BYTES_MAX, LOOKUPS_MAX, MANIFEST_CHUNKS_MAX,
    ManifestRequest, NAME_BYTES_MAX, NodeId, OpenAccess, READ_CHUNKS_MAX, ReadRequest, Reply, Request,
    SeekTarget, SessionRun, Version, Welcome, WireError,
};

/// A read under way, and its next part.
#[derive(Debug)]
pub(super) struct ReadCursor {
    request: ReadRequest,
    next: u64,
    end: u64,
}

impl Tree {
    /// Returns the answer to a client's request that has one message as its answer.
    pub(super) fn answer(
        &mut self,
        client: u64,
        request: &Request,
        instance: InstanceId,
    ) -> Result<Reply, WireError> {
        match request {
            Request::Hello(_) => self.welcome(instance),
            Request::Ping => Ok(Reply::Done),
            Request::Lookup { parent, name } => self.lookup(*parent, name).map(Reply::Attributes),
            Request::LookupMany { parent, names } => self.lookup_many(*parent, names),
            Request::GetAttributes { node } => {
                self.found(client, *node)?;
                self.get_attributes(*node).map(Reply::Attributes)
            }
            Request::ReadLink { node } => self.read_link(*node),
            Request::StatFs { node } => self.node(*node).map(|_| Reply::FsStatistics(STATISTICS)),
            Request::GetXattr { node, name } => self.get_xattr(*node, name),
            Request::ListXattr { node } => self.node(*node).map(list_xattr),
            Request::Access { node, mask } => self.permitted(*node, *mask).map(|()| Reply::Done),
            Request::Open { node, open } => self.open(*node, (client, *open), OpenAccess::READ),
            Request::OpenFor { node, open, access } => self.open(*node, (client, *open), *access),
            Request::Change(request) => self.change(client, &request.change, boot_of(instance)),
            Request::Sync { node, .. } | Request::SyncFileSystem { node } => {
                self.node(*node).map(|_| Reply::Synced { boot: boot_of(instance) })
            }
            Request::Close { node, open } => {
                self.set_open(*node, (client, *open), false);
                Ok(Reply::Done)
            }
            Request::Seek { node, offset, target } => self.seek_in(*node, *offset, *target),
            Request::Sum { node } => self.sum(*node),
            Request::Blocks { node, version, range } => self.blocks(*node, *version, *range),
            Request::Manifest(request) => self.manifest(request),
            Request::Events => {
                Err(WireError::new(ErrorCode::Unsupported, "events are not asked for by a call"))
            }
            Request::HaveChunks { node, offset, chunks } => {
                Ok(Reply::Have(self.have(*node, *offset, chunks)))
            }
            Request::ReadDirectory { .. }
            | Request::Read(..)
            | Request::ReadCurrent { .. }
            | Request::Lock(_)
            | Request::TestLock(_)
            | Request::Write(_) => {
                Err(WireError::new(ErrorCode::Malformed, "this request is answered by a stream of parts"))
            }
        }
    }

    /// Returns all entries of a directory. The client knows their nodes from then on.
    pub(super) fn list(&mut self, node: NodeId) -> Result<Vec<DirectoryEntry>, WireError> {
        self.node(node)?;
        let entries = self.entries(node).ok_or(system(Errno::ENOTDIR))?;
        let listed: Vec<_> = entries
            .iter()
            .filter_map(|(name, id)| Some((name, self.attributes(*id)?)))
            .map(|(name, attributes)| DirectoryEntry { name: name.clone(), attributes })
            .collect();
        for entry in &listed {
            self.see(node, &entry.name, entry.attributes.node);
        }
        Ok(listed)
    }

    /// Returns the present content of a file.
    pub(super) fn read_current(&self, node: NodeId, range: ByteRange) -> Result<Bytes, WireError> {
        if range.len > CURRENT_BYTES_MAX {
            return Err(WireError::new(ErrorCode::Malformed, "a read of more than the protocol allows"));
        }
        self.permitted(node, 4)?;
        Ok(regular(self.node(node)?)?.read(range.offset, range.len).into())
    }

    /// Checks a read. Its parts come from [`Self::next_part`].
    pub(super) fn begin_read(&self, request: ReadRequest) -> Result<ReadCursor, WireError> {
        let range = request.range;
        let too_long = if request.whole_chunks {
            range.chunks().count > READ_CHUNKS_MAX || request.known.len() > KNOWN_HASHES_MAX
        } else {
            range.len > CHUNK_BYTES
        };
        if range.offset.checked_add(range.len).is_none() {
            return Err(WireError::new(ErrorCode::Malformed, "a range that passes the end of all numbers"));
        }
        if too_long {
            return Err(WireError::new(
                ErrorCode::Malformed,
                "a read of more chunks than the protocol allows",
            ));
        }
        self.permitted(request.node, 4)?;
        self.content_of(request.node, request.version)?;
        let chunks = range.chunks().as_range();
        Ok(ReadCursor { request, next: chunks.start, end: chunks.end })
    }

    /// Returns the next part of a read, `Break` after the last.
    pub(super) fn next_part(
        &self,
        cursor: &mut ReadCursor,
    ) -> ControlFlow<Result<ContentPart, WireError>, ContentPart> {
        match self.part_of(cursor) {
            Ok(end @ ContentPart::End { .. }) => ControlFlow::Break(Ok(end)),
            Ok(part) => ControlFlow::Continue(part),
            Err(error) => ControlFlow::Break(Err(error)),
        }
    }

    fn part_of(&self, cursor: &mut ReadCursor) -> Result<ContentPart, WireError> {
        let content = self.content_of(cursor.request.node, cursor.request.version)?;
        let ReadCursor { request, next, end } = cursor;
        let range = request.range.clamp_to(content.size());
        if !request.whole_chunks && *next != u64::MAX {
            *next = u64::MAX;
            let bytes = content.read(range.offset, range.len);
            return Ok(ContentPart::Piece { offset: request.range.offset, bytes: bytes.into() });
        }
        if *next >= *end || ChunkIndex(*next).bytes_in(content.size()).is_empty() {
            return Ok(ContentPart::End { observed: self.now() });
        }
        let index = ChunkIndex(*next);
        let bytes: ByteRange = index.bytes_in(content.size());
        *next += 1;
        let position = (index.0 - request.range.chunks().first.0) as usize;
        let chunk = VerifiedChunk::compute(Bytes::from(content.read(bytes.offset, bytes.len)));
        let known = request.known.get(position).copied().flatten();
        Ok(if known == Some(chunk.hash()) {
            ContentPart::Same { index }
        } else {
            ContentPart::Chunk { index, chunk }
        })
    }

    fn content_of(&self, node: NodeId, version: Version) -> Result<&super::content::Content, WireError> {
        let content = regular(self.node(node)?)?;
        let found = self.attributes(node).map(|attributes| attributes.version());
        if found == Some(version) { Ok(content) } else { Err(WireError::new(ErrorCode::VersionChanged, "")) }
    }

    fn welcome(&self, instance: InstanceId) -> Result<Reply, WireError> {
        Ok(Reply::Welcome(Welcome {
            features: Features::SUPPORTED,
            instance,
            root: self.get_attributes(self.root)?,
            read_only: false,
            session_keep_ms: 90_000,
            session: SessionRun { instance, number: 1 },
            boot: boot_of(instance),
            acts_as: ActingUser { uid: 0, gid: 0 },
            chooses_owners: false,
            trust_reason: self.trust_reason(),
        }))
    }

    fn lookup(&mut self, parent: NodeId, name: &[u8]) -> Result<Attributes, WireError> {
        let id = self.child(parent, name)?.ok_or(system(Errno::ENOENT))?;
        self.see(parent, name, id);
        self.pin(id);
        self.get_attributes(id)
    }

    fn lookup_many(&mut self, parent: NodeId, names: &[Vec<u8>]) -> Result<Reply, WireError> {
        if names.len() > LOOKUPS_MAX || names.iter().map(Vec::len).sum::<usize>() > LOOKUP_NAME_BYTES_MAX {
            return Err(WireError::new(ErrorCode::Malformed, "more names than may be asked for at once"));
        }
        self.node(parent)?;
        self.entries(parent).ok_or(system(Errno::ENOTDIR))?;
        Ok(Reply::Entries(names.iter().map(|name| self.lookup(parent, name).ok()).collect()))
    }

    pub(super) fn get_attributes(&self, id: NodeId) -> Result<Attributes, WireError> {
        self.node(id)?;
        self.attributes(id).ok_or(system(Errno::ESTALE))
    }

    fn read_link(&self, id: NodeId) -> Result<Reply, WireError> {
        match &self.node(id)?.body {
            Body::Symlink(target) => Ok(Reply::Bytes(target.clone())),
            _ => Err(system(Errno::EINVAL)),
        }
    }

    fn get_xattr(&self, id: NodeId, name: &[u8]) -> Result<Reply, WireError> {
        let value = self.node(id)?.xattrs.get(name).cloned();
        value.map(Reply::Bytes).ok_or(system(Errno::ENODATA))
    }

    fn open(&mut self, id: NodeId, open: Opener, access: OpenAccess) -> Result<Reply, WireError> {
        let directory = self.node(id)?.body.kind() == FileKind::Directory;
        if directory && access == OpenAccess::NONE {
            return self.get_attributes(id).map(Reply::Attributes);
        }
        if directory {
            return Err(system(Errno::EISDIR));
        }
        self.permitted(id, u8::from(access.reads) * 4 + u8::from(access.writes) * 2)?;
        self.set_open(id, open, true);
        self.get_attributes(id).map(Reply::Attributes)
    }

    fn seek_in(&self, id: NodeId, offset: u64, target: SeekTarget) -> Result<Reply, WireError> {
        let found = regular(self.node(id)?)?.seek(offset, target);
        found.map(Reply::Offset).ok_or(system(Errno::ENXIO))
    }

    fn sum(&self, id: NodeId) -> Result<Reply, WireError> {
        let content = regular(self.node(id)?)?;
        let hash = ChunkHash::of(&content.read(0, content.size()));
        Ok(Reply::Sum { hash, version: self.get_attributes(id)?.version() })
    }

    fn blocks(&self, id: NodeId, version: Version, range: ByteRange) -> Result<Reply, WireError> {
        let content = self.content_of(id, version)?;
        let offset = range.offset.saturating_sub(BLOCK_LEAD_BYTES);
        let bytes = content.read(offset, range.end() + BLOCK_BYTES_MAX - offset);
        let blocks = cut_blocks(offset, &bytes).into_iter().map(|block| (block.range.len as u32, block.hash));
        Ok(Reply::Blocks { offset, blocks: blocks.collect() })
    }

    /// Answers as if nothing had been known before.
    fn manifest(&self, request: &ManifestRequest) -> Result<Reply, WireError> {
        if request.chunks.count > MANIFEST_CHUNKS_MAX {
            return Err(WireError::new(
                ErrorCode::Malformed,
                "a manifest of more chunks than the protocol allows",
            ));
        }
        self.permitted(request.node, 4)?;
        let content = self.content_of(request.node, request.version)?;
        let chunks = request.chunks.clamp_to(content.size());
        let ranges = chunks.iter().map(|index| index.bytes_in(content.size()));
        let hashes: Vec<_> =
            ranges.map(|range| ChunkHash::of(&content.read(range.offset, range.len))).collect();
        Ok(Reply::Manifest { computed: hashes.len() as u32, hashes })
    }

    /// Checks access as for the owner of everything.
    pub(super) fn permitted(&self, id: NodeId, mask: u8) -> Result<(), WireError> {
        let owner_bits = (self.node(id)?.permissions >> 6) & 7;
        if u16::from(mask) & !owner_bits == 0 { Ok(()) } else { Err(system(Errno::EACCES)) }
    }

    pub(super) fn node(&self, id: NodeId) -> Result<&Node, WireError> {
        let known = self.known.contains(&id).then(|| self.nodes.get(&id)).flatten();
        known.ok_or_else(|| WireError::new(ErrorCode::UnknownNode, ""))
    }

    /// Checks that a change finds its node by a name, or that this client has it open.
    pub(super) fn found(&self, client: u64, id: NodeId) -> Result<(), WireError> {
        self.node(id)?;
        if self.is_found(client, id) { Ok(()) } else { Err(WireError::new(ErrorCode::UnknownNode, "")) }
    }
}

/// Returns the statistics of a file system with free space.
const STATISTICS: FsStatistics = FsStatistics {
    block_bytes: 4096,
    blocks: 1 << 28,
    blocks_free: 1 << 27,
    blocks_available: 1 << 26,
    inodes: 1 << 24,
    inodes_free: 1 << 23,
    name_bytes_max: NAME_BYTES_MAX as u32,
};

fn list_xattr(node: &Node) -> Reply {
    Reply::Bytes(node.xattrs.keys().flat_map(|name| name.iter().copied().chain([0])).collect())
}

pub(super) fn regular(node: &Node) -> Result<&super::content::Content, WireError> {
    match &node.body {
        Body::File(content) => Ok(content),
        Body::Directory(_) => Err(system(Errno::EISDIR)),
        _ => Err(system(Errno::EINVAL)),
    }
}

/// Returns the boot id. The model's kernel restarts with its daemon.
pub(super) const fn boot_of(instance: InstanceId) -> BootId {
    BootId(instance.0)
}

pub(super) const fn system(errno: Errno) -> WireError {
    WireError::system(errno)
}
