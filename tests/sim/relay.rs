//! A link made of two sockets: packets go through it late, sometimes, or not at all.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::stream_relay;

/// Largest UDP packet there is.
const PACKET_BYTES_MAX: usize = 65_535;
/// Packets that wait in one direction; more are lost, as in any router.
const QUEUE_PACKETS_MAX: usize = 1_024;

/// How the link is, in each direction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LinkShape {
    /// Packets lost of a thousand.
    pub(crate) loss_permille: u64,
    /// Time on the way.
    pub(crate) delay: Duration,
    /// Bytes per second; 0 for no limit.
    pub(crate) bytes_per_second: u64,
    /// Which packets are lost follows from it.
    pub(crate) seed: u64,
}

impl LinkShape {
    /// Nothing in the way.
    pub(crate) const CLEAN: Self =
        Self { loss_permille: 0, delay: Duration::ZERO, bytes_per_second: 0, seed: 1 };
}

/// A running link; gone when dropped.
pub(crate) struct Relay {
    address: SocketAddr,
    state: Arc<State>,
    tasks: [JoinHandle<()>; 2],
}

pub(super) struct State {
    shape: LinkShape,
    pub(super) cut: AtomicBool,
    /// Counts cuts.
    pub(super) cuts: AtomicU64,
    pub(super) target: Mutex<SocketAddr>,
    random: AtomicU64,
    pub(super) forwarded: AtomicU64,
    damages: AtomicU64,
}

type Queue = mpsc::Sender<(Instant, Vec<u8>)>;

impl Relay {
    /// A link to `target`.
    pub(crate) async fn start(target: SocketAddr, shape: LinkShape) -> Self {
        let (front, door) = loop {
            let front = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            if let Ok(door) = TcpListener::bind(front.local_addr().unwrap()).await {
                break (Arc::new(front), door);
            }
        };
        let state = Arc::new(State {
            shape,
            cut: AtomicBool::new(false),
            cuts: AtomicU64::new(0),
            target: Mutex::new(target),
            random: AtomicU64::new(shape.seed),
            forwarded: AtomicU64::new(0),
            damages: AtomicU64::new(0),
        });
        let address = front.local_addr().unwrap();
        let over_udp = tokio::spawn(run(front, Arc::clone(&state)));
        let over_tcp = tokio::spawn(stream_relay::run(door, Arc::clone(&state)));
        Self { address, state, tasks: [over_udp, over_tcp] }
    }

    /// Where clients send to.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on nothing passes, or everything does again.
    pub(crate) fn set_cut(&self, cut: bool) {
        self.state.cuts.fetch_add(u64::from(cut), Ordering::Relaxed);
        self.state.cut.store(cut, Ordering::Relaxed);
    }

    /// Packets go to another host from now on.
    pub(crate) fn set_target(&self, target: SocketAddr) {
        *self.state.target.lock().unwrap() = target;
    }

    /// So many of the next packets, or portions of TCP's bytes, get a flipped bit, whichever way they go.
    pub(crate) fn damage(&self, packets: u64) {
        self.state.damages.fetch_add(packets, Ordering::Relaxed);
    }

    /// Packets that are still to get one.
    pub(crate) fn to_damage(&self) -> u64 {
        self.state.damages.load(Ordering::Relaxed)
    }

    /// Packets, or portions of TCP's bytes, that passed so far, both ways.
    pub(crate) fn forwarded(&self) -> u64 {
        self.state.forwarded.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl State {
    /// When what came at `came_at` is through; the link is taken until `free_at`.
    pub(super) fn due(&self, came_at: Instant, free_at: &mut Instant, len: usize) -> Instant {
        if let Some(ns) = (len as u64 * 1_000_000_000).checked_div(self.shape.bytes_per_second) {
            *free_at = (*free_at).max(came_at) + Duration::from_nanos(ns);
        }
        (came_at + self.shape.delay).max(*free_at)
    }

    fn drops(&self) -> bool {
        self.number() % 1_000 < self.shape.loss_permille
    }

    fn number(&self) -> u64 {
        let seed = self.random.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Flips a bit if this is one of those that are to be damaged.
    pub(super) fn pass(&self, bytes: &mut [u8]) {
        let less = |left: u64| left.checked_sub(1);
        if !bytes.is_empty() && self.damages.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
        {
            let number = self.number();
            bytes[number as usize / 8 % bytes.len()] ^= 1 << (number % 8);
        }
    }
}

/// Sends what comes down the queue when its time has come.
fn forward(
    state: Arc<State>,
    mut queue: mpsc::Receiver<(Instant, Vec<u8>)>,
    socket: Arc<UdpSocket>,
    to: impl Fn(&State) -> SocketAddr + Send + 'static,
) {
    tokio::spawn(async move {
        let mut free_at = Instant::now();
        while let Some((came_at, mut packet)) = queue.recv().await {
            let due = state.due(came_at, &mut free_at, packet.len());
            // Finer than the timer makes no sense.
            if due > Instant::now() + Duration::from_millis(1) {
                sleep_until(due).await;
            }
            if !state.cut.load(Ordering::Relaxed) && !state.drops() {
                state.forwarded.fetch_add(1, Ordering::Relaxed);
                state.pass(&mut packet);
                let _ = socket.send_to(&packet, to(&state)).await;
            }
        }
    });
}

async fn run(front: Arc<UdpSocket>, state: Arc<State>) {
    let mut clients: HashMap<SocketAddr, (Queue, JoinHandle<()>)> = HashMap::new();
    let mut buffer = vec![0; PACKET_BYTES_MAX];
    loop {
        let Ok((len, client)) = front.recv_from(&mut buffer).await else { continue };
        let way = match clients.entry(client) {
            Entry::Occupied(way) => way.into_mut(),
            Entry::Vacant(place) => place.insert(open_way(&front, &state, client).await),
        };
        let _ = way.0.try_send((Instant::now(), buffer[..len].to_vec()));
    }
}

/// A socket of its own for a client, as a router's address translation has it.
async fn open_way(front: &Arc<UdpSocket>, state: &Arc<State>, client: SocketAddr) -> (Queue, JoinHandle<()>) {
    let back = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let (up, packets) = mpsc::channel(QUEUE_PACKETS_MAX);
    forward(Arc::clone(state), packets, Arc::clone(&back), |state| *state.target.lock().unwrap());
    let (down, packets) = mpsc::channel(QUEUE_PACKETS_MAX);
    forward(Arc::clone(state), packets, Arc::clone(front), move |_| client);
    (up, tokio::spawn(listen(back, down)))
}

async fn listen(back: Arc<UdpSocket>, down: Queue) {
    let mut buffer = vec![0; PACKET_BYTES_MAX];
    while !down.is_closed() {
        let Ok((len, _)) = back.recv_from(&mut buffer).await else { continue };
        let _ = down.try_send((Instant::now(), buffer[..len].to_vec()));
    }
}
