//! A host that speaks the protocol over a real endpoint and has any [`Client`] answer.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use tokio::task::{JoinHandle, JoinSet};
use wormhole::chunk::ChunkHash;
use wormhole::client::memory::MemoryHost;
use wormhole::client::{CallError, Client, ContentPart, ListPart};
use wormhole::proto::{
    ContentHeader, DirectoryBatch, ErrorCode, FRAME_HEADER_BYTES, NodeId, ReadRequest, Reply, Request,
    WireError, decode_body, encode_frame, frame_len,
};
use wormhole::transport::{CloseReason, Connection, Endpoint, Identity, Lane, RecvStream, SendStream};

use super::tuning;

/// A running host. Dropped, it is as if its process had been killed, except that the kernel tells nobody.
pub(crate) struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

/// What tests may change and look at.
#[derive(Default)]
pub(crate) struct Shared {
    refusal: Mutex<Option<WireError>>,
    corruptions: AtomicU32,
    closed: Mutex<Vec<CloseReason>>,
    reads: Mutex<Vec<ReadRequest>>,
    endless: Mutex<Option<Endless>>,
}

/// How a listing goes on that has no end. Content repeats its first part.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Endless {
    /// With parts that hold nothing.
    Empty,
    /// With the same entries again.
    Same,
}

impl Server {
    /// Serves `host` on a port of its own.
    pub(crate) fn start(host: &MemoryHost, identity: &Identity) -> Self {
        let endpoint = Endpoint::host("127.0.0.1:0".parse().unwrap(), identity, &tuning()).unwrap();
        let address = endpoint.local_address();
        let shared = Arc::new(Shared::default());
        let task = tokio::spawn(accept(endpoint, host.client(), Arc::clone(&shared)));
        Self { address, shared, task }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on every hello is answered so.
    pub(crate) fn refuse(&self, refusal: Option<WireError>) {
        *self.shared.refusal.lock().unwrap() = refusal;
    }

    /// So many of the next parts of content get a flipped bit.
    pub(crate) fn corrupt(&self, parts: u32) {
        self.shared.corruptions.store(parts, Ordering::Relaxed);
    }

    /// From now on every listing, and all content, goes on so behind its first part.
    pub(crate) fn answer_without_end(&self, endless: Option<Endless>) {
        *self.shared.endless.lock().unwrap() = endless;
    }

    /// What was asked for so far.
    pub(crate) fn reads(&self) -> Vec<ReadRequest> {
        self.shared.reads.lock().unwrap().clone()
    }

    /// How connections ended so far.
    pub(crate) fn closed(&self) -> Vec<CloseReason> {
        self.shared.closed.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(endpoint: Endpoint, client: Arc<dyn Client>, shared: Arc<Shared>) {
    // Dropped with this task, and everything in it.
    let mut connections = JoinSet::new();
    while let Some(incoming) = endpoint.accept().await {
        let (client, shared) = (Arc::clone(&client), Arc::clone(&shared));
        connections.spawn(async move {
            if let Ok(connection) = incoming.handshake().await {
                connection.admit();
                serve(connection, client, shared).await;
            }
        });
    }
}

async fn serve(connection: Connection, client: Arc<dyn Client>, shared: Arc<Shared>) {
    let mut streams = JoinSet::new();
    while let Ok((send, receive)) = connection.accept_stream().await {
        let (client, shared) = (Arc::clone(&client), Arc::clone(&shared));
        streams.spawn(async move {
            // A stream that breaks is the client's way to cancel.
            let _ = answer(send, receive, &*client, &shared).await;
        });
    }
    shared.closed.lock().unwrap().extend(connection.close_reason());
}

type Broken = Box<dyn std::error::Error + Send + Sync>;

async fn answer(
    mut send: SendStream,
    mut receive: RecvStream,
    client: &dyn Client,
    shared: &Shared,
) -> Result<(), Broken> {
    let mut header = [0; FRAME_HEADER_BYTES];
    receive.read_exact(&mut header).await?;
    let mut body = vec![0; frame_len(header)?];
    receive.read_exact(&mut body).await?;
    let stopped = send.stopped();
    let work = async {
        match decode_body(&body)? {
            Request::Read(request, lane) => content(&mut send, client, request, lane, shared).await?,
            Request::ReadCurrent { node, range } => {
                let bytes = client.read_current(node, range).await.map_err(wire);
                let reply = bytes.as_ref().map(|bytes| {
                    let hash = ChunkHash::of(bytes);
                    Reply::Current { hash, len: bytes.len() as u32 }
                });
                send.write_all(&encode_frame(&reply)).await?;
                send.write_all(&bytes.unwrap_or_default()).await?;
            }
            Request::ReadDirectory { node } => directory(&mut send, client, node, shared).await?,
            request => {
                let refusal = shared.refusal.lock().unwrap().clone();
                let refusal = refusal.filter(|_| matches!(request, Request::Hello(_)));
                let reply = match refusal {
                    Some(refusal) => Err(refusal),
                    None => client.call(request, Lane::Metadata).await.map_err(wire),
                };
                send.write_all(&encode_frame(&reply)).await?;
            }
        }
        send.finish()?;
        Ok(())
    };
    tokio::select! {
        result = work => result,
        _ = stopped => Ok(()),
    }
}

async fn content(
    send: &mut SendStream,
    client: &dyn Client,
    request: ReadRequest,
    lane: Lane,
    shared: &Shared,
) -> Result<(), Broken> {
    shared.reads.lock().unwrap().push(request.clone());
    let mut parts = client.read(request, lane);
    let mut begun = false;
    while let Some(part) = parts.recv().await {
        if !begun {
            begun = true;
            let reply = part.as_ref().map(|_| Reply::Content).map_err(|error| wire(error.clone()));
            send.write_all(&encode_frame(&reply)).await?;
            if reply.is_err() {
                return Ok(());
            }
        }
        let (header, bytes) = match part {
            Ok(ContentPart::Chunk { index, chunk }) => {
                let bytes = chunk.bytes().clone();
                (ContentHeader::Chunk { index, hash: chunk.hash(), len: bytes.len() as u32 }, bytes)
            }
            Ok(ContentPart::Piece { offset, bytes }) => {
                let hash = ChunkHash::of(&bytes);
                (ContentHeader::Piece { offset, hash, len: bytes.len() as u32 }, bytes)
            }
            Ok(ContentPart::Same { index }) => (ContentHeader::Same { index }, bytes::Bytes::new()),
            Ok(ContentPart::End { observed }) => (ContentHeader::End { observed }, bytes::Bytes::new()),
            Err(error) => (ContentHeader::Failed(wire(error).code), bytes::Bytes::new()),
        };
        let mut bytes = bytes.to_vec();
        let spoil = |left: u32| left.checked_sub(1);
        if let Some(byte) = bytes.first_mut()
            && shared.corruptions.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spoil).is_ok()
        {
            *byte ^= 1;
        }
        send.write_all(&encode_frame(&header)).await?;
        send.write_all(&bytes).await?;
        while shared.endless.lock().unwrap().is_some() {
            send.write_all(&encode_frame(&header)).await?;
            send.write_all(&bytes).await?;
        }
    }
    Ok(())
}

async fn directory(
    send: &mut SendStream,
    client: &dyn Client,
    node: NodeId,
    shared: &Shared,
) -> Result<(), Broken> {
    let endless = *shared.endless.lock().unwrap();
    let mut parts = client.list(node);
    let mut begun = false;
    while let Some(part) = parts.recv().await {
        if !begun {
            begun = true;
            let reply = part
                .as_ref()
                .map(|_| Reply::Directory { attributes: None, lease: None })
                .map_err(|error| wire(error.clone()));
            send.write_all(&encode_frame(&reply)).await?;
        }
        let batch = match part {
            Ok(ListPart::Begin { .. }) => continue,
            Ok(ListPart::Entries(entries)) => {
                let batch = DirectoryBatch { entries, last: false };
                if let Some(endless) = endless {
                    let empty = DirectoryBatch { entries: Vec::new(), last: false };
                    let again = match endless {
                        Endless::Empty => encode_frame(&empty),
                        Endless::Same => encode_frame(&batch),
                    };
                    send.write_all(&encode_frame(&batch)).await?;
                    loop {
                        send.write_all(&again).await?;
                    }
                }
                batch
            }
            Ok(ListPart::End) => DirectoryBatch { entries: Vec::new(), last: true },
            Err(_) => return Ok(()),
        };
        send.write_all(&encode_frame(&batch)).await?;
    }
    Ok(())
}

fn wire(error: CallError) -> WireError {
    match error {
        CallError::Host(error) => error,
        other => WireError::new(ErrorCode::Busy, other.to_string()),
    }
}
