//! A host that lies: it takes a client's requests to an honest host, and answers what it is told to.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::runtime::Runtime;
use wormhole::proto::{FRAME_HEADER_BYTES, Request, decode_body, frame_len};
use wormhole::transport::{
    Connection, Endpoint, ExpectedHost, HostAddress, Identity, Lane, RecvStream, SendStream, Ticket,
    TransportTuning,
};

use crate::world::Host;

/// Longest portion that is passed on at once.
const PORTION_BYTES_MAX: usize = 256 << 10;

/// Bytes that are sent instead of an answer.
pub(crate) struct Lie {
    pub(crate) bytes: Vec<u8>,
    /// Whether they are sent again and again.
    pub(crate) goes_on: bool,
}

/// Decides what is said to a request; `None`: what the honest host says.
pub(crate) type Decide = Arc<dyn Fn(&Request) -> Option<Lie> + Send + Sync>;

/// A running host; it ends when this is dropped.
pub(crate) struct Liar {
    pub(crate) ticket: String,
    shared: Arc<Shared>,
    _runtime: Runtime,
}

#[derive(Default)]
struct Shared {
    decide: Mutex<Option<Decide>>,
    /// Number of the next portion that is spoilt; 0: none is.
    spoilt: AtomicU64,
    told: AtomicU64,
    clients: Mutex<Vec<Connection>>,
}

impl Liar {
    /// Stands in front of a host.
    pub(crate) fn new(host: &Host) -> Self {
        let runtime = Runtime::new().unwrap();
        let inside = runtime.enter();
        let (ours, shared) = (Identity::generate().unwrap(), Arc::<Shared>::default());
        let endpoint =
            Endpoint::host("127.0.0.1:0".parse().unwrap(), &ours, &TransportTuning::default()).unwrap();
        let address = endpoint.local_address();
        let address = HostAddress::new(&address.ip().to_string(), address.port()).unwrap();
        let honest: Ticket = host.ticket.parse().unwrap();
        let ticket =
            Ticket::new(vec![address], ours.public_key(), honest.export().to_owned(), honest.secret());
        let expected = ExpectedHost::Key(honest.host_key());
        runtime.spawn(accept(endpoint, host.listening, expected, Arc::clone(&shared)));
        drop(inside);
        Self { ticket: ticket.unwrap().to_string(), shared, _runtime: runtime }
    }

    /// Lies from now on, or tells the truth.
    pub(crate) fn lie(&self, decide: Option<Decide>) {
        *self.shared.decide.lock().unwrap() = decide;
    }

    /// How many lies were told.
    pub(crate) fn told(&self) -> u64 {
        self.shared.told.load(Ordering::Relaxed)
    }

    /// Ends all connections; clients make others.
    pub(crate) fn hang_up(&self) {
        for client in self.shared.clients.lock().unwrap().drain(..) {
            client.close(0, "once more");
        }
    }

    /// Changes bytes of every second portion of answers from now on, or none: which ones follows from `seed`, which is not 0.
    pub(crate) fn spoil(&self, seed: Option<u64>) {
        self.shared.spoilt.store(seed.unwrap_or_default(), Ordering::Relaxed);
    }
}

impl Shared {
    fn pass(&self, portion: &mut [u8]) {
        let next = |number: u64| (number > 0).then(|| number.wrapping_add(1).max(1));
        if let Ok(number) = self.spoilt.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next) {
            spoil(portion, number);
        }
    }
}

fn spoil(portion: &mut [u8], number: u64) {
    let hash = blake3::hash(&number.to_le_bytes());
    let [how, count, places @ ..] = hash.as_bytes();
    // The length in front is spoilt more seldom: nothing is understood behind it.
    let first = if how % 16 < 2 { 0 } else { FRAME_HEADER_BYTES };
    if how % 2 == 0 || portion.len() <= first {
        return;
    }
    for place in places.chunks_exact(3).take(1 + usize::from(count % 3)) {
        // Mostly near the beginning, where the numbers are.
        let far = usize::from(u16::from_le_bytes([place[0], place[1] & 1]));
        let at = first + far % (portion.len() - first);
        portion[at] = [portion[at] ^ 1 << (place[2] % 8), place[2], 0, 1, 0xff][usize::from(place[2] % 5)];
    }
}

async fn accept(endpoint: Endpoint, host: SocketAddr, expected: ExpectedHost, shared: Arc<Shared>) {
    let identity = Arc::new(Identity::generate().unwrap());
    while let Some(incoming) = endpoint.accept().await {
        let (shared, expected, identity) = (Arc::clone(&shared), expected.clone(), Arc::clone(&identity));
        tokio::spawn(async move {
            let Ok(client) = incoming.handshake().await else { return };
            client.admit();
            let ours = Endpoint::client(&identity, &TransportTuning::default(), host).unwrap();
            let Ok(host) = ours.connect(host, expected).await else { return };
            shared.clients.lock().unwrap().push(client.clone());
            while let Ok((send, receive)) = client.accept_stream().await {
                let (host, shared) = (host.clone(), Arc::clone(&shared));
                // A stream that breaks is a side's way to give up.
                tokio::spawn(async move { serve(send, receive, &host, &shared).await.ok() });
            }
            host.close(0, "the client has left");
        });
    }
}

type Broken = Box<dyn std::error::Error + Send + Sync>;

async fn serve(
    mut send: SendStream,
    mut receive: RecvStream,
    host: &Connection,
    shared: &Shared,
) -> Result<(), Broken> {
    let mut header = [0; FRAME_HEADER_BYTES];
    receive.read_exact(&mut header).await?;
    let mut body = vec![0; frame_len(header)?];
    receive.read_exact(&mut body).await?;
    let request: Request = decode_body(&body)?;
    let stopped = send.stopped();
    let work = async {
        let decide = shared.decide.lock().unwrap().clone();
        if let Some(lie) = decide.and_then(|decide| decide(&request)) {
            shared.told.fetch_add(1, Ordering::Relaxed);
            send.write_all(&lie.bytes).await?;
            if lie.goes_on {
                loop {
                    send.write_all(&lie.bytes).await?;
                }
            }
        } else {
            let lane = if let Request::Read(_, lane) = request { lane } else { Lane::Metadata };
            let (mut to_host, mut from_host) = host.open_stream(lane).await?;
            to_host.write_all(&[&header[..], &body].concat()).await?;
            let asked = async {
                while let Some(portion) = receive.read_chunk(PORTION_BYTES_MAX).await? {
                    to_host.write_chunk(portion).await?;
                }
                Ok::<_, Broken>(to_host.finish()?)
            };
            let answered = async {
                while let Some(portion) = from_host.read_chunk(PORTION_BYTES_MAX).await? {
                    let mut portion = portion.to_vec();
                    shared.pass(&mut portion);
                    send.write_all(&portion).await?;
                }
                Ok::<_, Broken>(())
            };
            tokio::try_join!(asked, answered)?;
        }
        send.finish()?;
        Ok(())
    };
    tokio::select! {
        done = work => done,
        _ = stopped => Ok(()),
    }
}
