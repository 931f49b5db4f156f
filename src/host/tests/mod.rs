//! The daemon, asked by a client over a real connection.

mod access;
mod budget;
mod changes;
mod content;
mod events;
mod fuzz;
mod greeting;
mod hanging;
mod held;
mod hostile;
mod known;
mod locks;
mod metadata;
mod read_only;
mod rights;
mod robustness;

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::{Export, Host, HostConfig, StateDir, TicketTerms};
use crate::chunk::{ByteRange, ChunkHash};
use crate::io::EngineKind;
use crate::proto::{
    Attributes, CompressionWish, ContentHeader, DirectoryBatch, DirectoryEntry, ErrorCode,
    FRAME_HEADER_BYTES, Features, Hello, NodeId, PROTOCOL_VERSION, ReadRequest, Reply, Request, SessionId,
    TicketSecret, Version, Welcome, WireError, decode_body, encode_frame, frame_len,
};
use crate::transport::{
    Connection, Endpoint, ExpectedHost, Identity, Lane, RecvStream, SendStream, TransportTuning,
};

/// A folder, a daemon that serves it as `export`, and where both lie.
struct World {
    host: Host,
    folder: tempfile::TempDir,
}

impl World {
    /// Serves a folder that `fill` has filled.
    fn new(fill: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("export")).unwrap();
        fill(&folder.path().join("export"));
        let host = start(folder.path(), EngineKind::Auto);
        Self { host, folder }
    }

    /// The daemon ends, and another one serves the same.
    async fn restart(self) -> Self {
        let Self { host, folder } = self;
        host.shutdown().await;
        let host = start(folder.path(), EngineKind::Auto);
        Self { host, folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("export").join(name)
    }

    fn state(&self) -> StateDir {
        StateDir::open(&self.folder.path().join("state")).unwrap()
    }

    /// A client that was let in with a ticket of its own.
    async fn client(&self) -> Guest {
        self.client_below("").await
    }

    async fn client_below(&self, sub_path: &str) -> Guest {
        self.client_that(Hello { sub_path: sub_path.into(), ..hello() }).await
    }

    /// One that says `hello` beside its ticket.
    async fn client_that(&self, hello: Hello) -> Guest {
        let secret = self.host.ticket("export", &TicketTerms::default()).unwrap().secret();
        let visitor = Visitor::new(self).await;
        let hello = Hello { ticket: Some(secret), ..hello };
        let welcome = visitor.greet(hello).await.unwrap();
        Guest { visitor, welcome }
    }
}

fn start(folder: &Path, engine: EngineKind) -> Host {
    let export = Export { name: "export".into(), path: folder.join("export"), read_only: false };
    let mut config = HostConfig::new(vec![export], folder.join("state"));
    config.listen = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
    config.engine = engine;
    Host::start(config).unwrap()
}

fn hello() -> Hello {
    Hello {
        protocol_version: PROTOCOL_VERSION,
        features: Features(u64::MAX),
        session: SessionId([1; 16]),
        export: "export".into(),
        sub_path: Vec::new(),
        ticket: None,
        compression: CompressionWish::Never,
    }
}

/// A connection over which nothing was said yet.
struct Visitor {
    connection: Connection,
    _endpoint: Endpoint,
}

impl Visitor {
    async fn new(world: &World) -> Self {
        Self::with_key(world, &Identity::generate().unwrap()).await
    }

    async fn with_key(world: &World, identity: &Identity) -> Self {
        let address = world.host.listening();
        let endpoint = Endpoint::client(identity, &TransportTuning::default(), address).unwrap();
        let expected = ExpectedHost::Key(world.host.identity());
        let connection = endpoint.connect(address, expected).await.unwrap();
        Self { connection, _endpoint: endpoint }
    }

    async fn greet(&self, hello: Hello) -> Result<Welcome, WireError> {
        match self.ask(&Request::Hello(hello)).await? {
            Reply::Welcome(welcome) => Ok(welcome),
            other => panic!("{other:?}"),
        }
    }

    /// Asks for something that is answered by one message.
    async fn ask(&self, request: &Request) -> Result<Reply, WireError> {
        self.send(&encode_frame(request)).await.reply().await
    }

    async fn send(&self, bytes: &[u8]) -> Answered {
        let (mut send, receive) = self.connection.open_stream(Lane::Metadata).await.unwrap();
        send.write_all(bytes).await.unwrap();
        send.finish().unwrap();
        Answered { _send: send, receive }
    }
}

/// The host's half of a stream.
struct Answered {
    _send: SendStream,
    receive: RecvStream,
}

impl Answered {
    async fn reply(&mut self) -> Result<Reply, WireError> {
        self.frame().await.expect("an answer")
    }

    /// The next message; `None` where the stream ends or breaks off.
    async fn frame<T: serde::de::DeserializeOwned>(&mut self) -> Option<T> {
        let mut header = [0; FRAME_HEADER_BYTES];
        self.receive.read_exact(&mut header).await.ok()?;
        let mut body = vec![0; frame_len(header).unwrap()];
        self.receive.read_exact(&mut body).await.ok()?;
        Some(decode_body(&body).unwrap())
    }

    async fn raw(&mut self, len: u32) -> Bytes {
        let mut bytes = vec![0; len as usize];
        self.receive.read_exact(&mut bytes).await.unwrap();
        bytes.into()
    }
}

/// A client that was let in.
struct Guest {
    visitor: Visitor,
    welcome: Welcome,
}

impl Guest {
    fn root(&self) -> NodeId {
        self.welcome.root.node
    }

    async fn ask(&self, request: Request) -> Result<Reply, WireError> {
        self.visitor.ask(&request).await
    }

    async fn attributes(&self, request: Request) -> Result<Attributes, WireError> {
        match self.ask(request).await? {
            Reply::Attributes(attributes) | Reply::Entry { attributes, .. } => Ok(attributes),
            other => panic!("{other:?}"),
        }
    }

    async fn lookup(&self, parent: NodeId, name: &[u8]) -> Result<Attributes, WireError> {
        self.attributes(Request::Lookup { parent, name: name.to_vec() }).await
    }

    /// The attributes of what a path leads to, names joined by `/`.
    async fn walk(&self, path: &str) -> Result<Attributes, WireError> {
        let mut at = self.welcome.root;
        for name in path.split('/') {
            at = self.lookup(at.node, name.as_bytes()).await?;
        }
        Ok(at)
    }

    async fn list(&self, node: NodeId) -> Result<Vec<Vec<DirectoryEntry>>, WireError> {
        let mut answered = self.visitor.send(&encode_frame(&Request::ReadDirectory { node })).await;
        assert!(matches!(answered.reply().await?, Reply::Directory { .. }));
        let mut batches = Vec::new();
        loop {
            let batch: DirectoryBatch = answered.frame().await.expect("a batch");
            batches.push(batch.entries);
            if batch.last {
                return Ok(batches);
            }
        }
    }

    /// The parts of an answer to a read, proved, and how it ends.
    async fn read(&self, request: ReadRequest) -> Result<(Vec<Part>, ContentHeader), WireError> {
        let (parts, end) = self.read_unproved(request).await?;
        let is_right = |part: &Part| part.hash().is_none_or(|hash| ChunkHash::of(&part.bytes) == hash);
        assert!(parts.iter().all(is_right));
        Ok((parts, end))
    }

    async fn read_unproved(&self, request: ReadRequest) -> Result<(Vec<Part>, ContentHeader), WireError> {
        let mut answered = self.visitor.send(&encode_frame(&Request::Read(request, Lane::Demand))).await;
        assert_eq!(answered.reply().await?, Reply::Content);
        let mut parts = Vec::new();
        loop {
            let header: ContentHeader = answered.frame().await.expect("a header");
            let bytes = match header {
                ContentHeader::Chunk { len, .. } | ContentHeader::Piece { len, .. } => {
                    answered.raw(len).await
                }
                ContentHeader::Packed { len, packed_len, .. }
                | ContentHeader::PackedPiece { len, packed_len, .. } => {
                    let packed = answered.raw(packed_len).await;
                    let bytes: Bytes = zstd::bulk::decompress(&packed, len as usize).unwrap().into();
                    assert!(bytes.len() as u32 == len && packed_len < len);
                    bytes
                }
                ContentHeader::Same { .. } => Bytes::new(),
                ContentHeader::End { .. } | ContentHeader::Failed(_) => return Ok((parts, header)),
            };
            parts.push(Part { header, bytes });
        }
    }

    /// Content as it is now.
    async fn current(&self, node: NodeId, range: ByteRange) -> Result<Bytes, WireError> {
        let mut answered = self.visitor.send(&encode_frame(&Request::ReadCurrent { node, range })).await;
        let Reply::Current { hash, len } = answered.reply().await? else { panic!("another reply") };
        let bytes = answered.raw(len).await;
        assert_eq!(ChunkHash::of(&bytes), hash);
        Ok(bytes)
    }

    /// All bytes of a range, whole chunks joined.
    async fn bytes(&self, request: ReadRequest) -> Result<Vec<u8>, ErrorCode> {
        let (parts, end) = self.read(request).await.map_err(|error| error.code)?;
        match end {
            ContentHeader::Failed(code) => Err(code),
            _ => Ok(parts.iter().flat_map(|part| part.bytes.iter().copied()).collect()),
        }
    }
}

/// A header and the bytes behind it.
#[derive(Debug)]
struct Part {
    header: ContentHeader,
    bytes: Bytes,
}

impl Part {
    /// The name it comes under.
    fn hash(&self) -> Option<ChunkHash> {
        match self.header {
            ContentHeader::Chunk { hash, .. }
            | ContentHeader::Piece { hash, .. }
            | ContentHeader::Packed { hash, .. }
            | ContentHeader::PackedPiece { hash, .. } => Some(hash),
            _ => None,
        }
    }
}

/// A request for whole chunks.
fn chunks(file: &Attributes, offset: u64, len: u64) -> ReadRequest {
    ReadRequest::chunks_of(file, ByteRange::new(offset, len))
}

/// A request for exactly some bytes.
fn piece(file: &Attributes, offset: u64, len: u64) -> ReadRequest {
    ReadRequest { whole_chunks: false, ..chunks(file, offset, len) }
}

/// Bytes that differ from place to place.
fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).flat_map(u32::to_le_bytes).take(len).collect()
}

/// The node as the host's kernel names it, apart from its birth and its file system.
fn same_node(attributes: &Attributes, path: &Path) -> bool {
    let found = std::fs::symlink_metadata(path).unwrap();
    attributes.node.inode == found.ino()
}

fn code<T: std::fmt::Debug>(answer: Result<T, WireError>) -> ErrorCode {
    answer.unwrap_err().code
}

fn version_of(path: &Path) -> Version {
    let found = std::fs::metadata(path).unwrap();
    Version {
        size: found.size(),
        mtime: crate::proto::Timestamp::new(found.mtime(), found.mtime_nsec() as u32),
        ctime: crate::proto::Timestamp::new(found.ctime(), found.ctime_nsec() as u32),
    }
}
