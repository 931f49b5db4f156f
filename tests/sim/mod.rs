//! Two ends over a fake link: what a client makes of loss, cuts, restarts and hosts that lie.
//!
//! Both ends are real, QUIC and TLS over TCP included; between them stands a relay that loses, delays and cuts. The host is a model in
//! memory behind a small server that speaks the protocol.

mod relay;
mod server;
mod stream_relay;

/// A test for each of the transports.
macro_rules! over_both {
    ($name:ident) => {
        mod $name {
            use wormhole::transport::TransportKind;

            #[tokio::test]
            async fn over_quic() {
                super::$name(TransportKind::Quic).await;
            }

            #[tokio::test]
            async fn over_tcp() {
                super::$name(TransportKind::Tcp).await;
            }
        }
    };
}

mod changes;
mod failures;
mod requests;

use std::sync::Arc;
use std::time::Duration;

use wormhole::chunk::ByteRange;
use wormhole::client::memory::MemoryHost;
use wormhole::client::remote::{ClientConfig, RemoteClient};
use wormhole::client::{CallError, Client, ContentPart};
use wormhole::proto::{Attributes, ReadRequest, SessionId};
use wormhole::transport::{ExpectedHost, Identity, Lane, TransportChoice, TransportKind, TransportTuning};

use self::relay::{LinkShape, Relay};
use self::server::Server;

/// A host, a link and what a client needs to come in.
struct World {
    host: MemoryHost,
    server: Server,
    relay: Relay,
    identity: Arc<Identity>,
    kind: TransportKind,
}

impl World {
    /// A host with nothing in it, at the far end of a link of this shape.
    async fn new(kind: TransportKind, shape: LinkShape) -> Self {
        let host = MemoryHost::new();
        let identity = Arc::new(Identity::generate().unwrap());
        let server = Server::start(&host, &identity);
        let relay = Relay::start(server.address(), shape).await;
        Self { host, server, relay, identity, kind }
    }

    /// The way to the host, with a deadline that no test reaches by accident.
    fn config(&self) -> ClientConfig {
        let expected = ExpectedHost::Key(self.identity.public_key());
        let ours = Arc::new(Identity::generate().unwrap());
        let addresses = vec![self.relay.address().into()];
        let mut config = ClientConfig::new(addresses, expected, "export", ours, SessionId([7; 16]));
        config.tuning = TransportTuning { transport: TransportChoice::Only(self.kind), ..tuning() };
        config
    }

    async fn client(&self) -> Arc<RemoteClient> {
        RemoteClient::connect(self.config()).await.unwrap()
    }
}

/// Packets as on the internet; loopback's 64 KiB would make loss and rates unreal.
fn tuning() -> TransportTuning {
    TransportTuning { datagram_bytes_max: 1_400, ..TransportTuning::default() }
}

fn api(client: &Arc<RemoteClient>) -> Arc<dyn Client> {
    Arc::clone(client) as Arc<dyn Client>
}

/// Whole chunks of `len` bytes from `offset` on.
fn chunks_of(file: &Attributes, offset: u64, len: u64) -> ReadRequest {
    ReadRequest::chunks_of(file, ByteRange::new(offset, len))
}

/// Takes one part after the other; the bytes in order of arrival.
async fn read_all(client: &dyn Client, request: ReadRequest, lane: Lane) -> Result<Vec<u8>, CallError> {
    let mut parts = client.read(request, lane);
    let mut bytes = Vec::new();
    loop {
        match parts.recv().await.expect("a read ends with its end or an error")? {
            ContentPart::Chunk { chunk, .. } => bytes.extend_from_slice(chunk.bytes()),
            ContentPart::Piece { bytes: piece, .. } => bytes.extend_from_slice(&piece),
            ContentPart::Same { .. } => {}
            ContentPart::End { .. } => return Ok(bytes),
        }
    }
}

/// Waits for something that will come; a test that hangs here has failed.
async fn until(mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait).await.expect("it should have come true by now");
}
