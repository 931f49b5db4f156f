//! A relay between client and host, for UDP and TCP at one port, whose link can be cut and mended; no privileges, no namespaces.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

/// How long a thread of the relay waits for a packet before it looks whether it should end.
const PATIENCE: Duration = Duration::from_millis(50);
/// How often it looks for a new TCP connection.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Packets on their way to a client at most.
const PACKETS_MAX: usize = 4096;

/// When a packet is to arrive, and the packet.
type Packet = (Instant, Vec<u8>);

/// The relay; its threads end when it is dropped.
pub(crate) struct Relay {
    address: SocketAddr,
    state: Arc<State>,
}

struct State {
    host: SocketAddr,
    cut: AtomicBool,
    /// Counts cuts. A TCP connection that lived through one stays mute, as one whose kernel waits ever longer before it
    /// sends again; one that was begun during it goes on after it, as a first packet does that is repeated each second.
    cuts: AtomicU64,
    udp_blocked: AtomicBool,
    ended: AtomicBool,
    bytes_to_client: AtomicU64,
    delay_ms: AtomicU64,
    to_host_bytes_per_second: AtomicU64,
}

impl Relay {
    /// A relay on a port of its own in front of `host`.
    pub(crate) fn start(host: SocketAddr) -> Self {
        let (front, door) = sockets();
        front.set_read_timeout(Some(PATIENCE)).unwrap();
        door.set_nonblocking(true).unwrap();
        let address = front.local_addr().unwrap();
        let state = Arc::new(State {
            host,
            cut: AtomicBool::new(false),
            cuts: AtomicU64::new(0),
            udp_blocked: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            bytes_to_client: AtomicU64::new(0),
            delay_ms: AtomicU64::new(0),
            to_host_bytes_per_second: AtomicU64::new(u64::MAX),
        });
        let shared = Arc::clone(&state);
        thread::spawn(move || shared.carry_to_host(&Arc::new(front)));
        let shared = Arc::clone(&state);
        thread::spawn(move || shared.take_in(&door));
        Self { address, state }
    }

    /// Where clients should connect.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on nothing passes, in either direction.
    pub(crate) fn cut(&self) {
        self.state.cuts.fetch_add(1, Ordering::SeqCst);
        self.state.cut.store(true, Ordering::SeqCst);
    }

    /// Everything passes again.
    pub(crate) fn mend(&self) {
        self.state.cut.store(false, Ordering::SeqCst);
    }

    /// From now on no UDP passes, as in some hotels.
    pub(crate) fn block_udp(&self) {
        self.state.udp_blocked.store(true, Ordering::SeqCst);
    }

    /// From now on each UDP packet towards a client takes so long: a long way.
    pub(crate) fn delay(&self, by: Duration) {
        self.state.delay_ms.store(by.as_millis() as u64, Ordering::SeqCst);
    }

    /// From now on no more UDP passes towards the host; what comes faster waits, and is lost where too much waits.
    pub(crate) fn narrow(&self, bytes_per_second: u64) {
        self.state.to_host_bytes_per_second.store(bytes_per_second, Ordering::SeqCst);
    }

    /// Payload carried towards clients so far.
    pub(crate) fn bytes_to_client(&self) -> u64 {
        self.state.bytes_to_client.load(Ordering::SeqCst)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::SeqCst);
    }
}

/// A port that is free for both.
fn sockets() -> (UdpSocket, TcpListener) {
    loop {
        let front = UdpSocket::bind("127.0.0.1:0").unwrap();
        if let Ok(door) = TcpListener::bind(front.local_addr().unwrap()) {
            return (front, door);
        }
    }
}

impl State {
    fn is_cut(&self) -> bool {
        self.cut.load(Ordering::SeqCst)
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    fn carry_to_host(self: &Arc<Self>, front: &Arc<UdpSocket>) {
        let mut upstreams: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
        let mut packet = vec![0; 65_536];
        while !self.has_ended() {
            let Ok((len, client)) = front.recv_from(&mut packet) else { continue };
            if self.is_cut() || self.udp_blocked.load(Ordering::SeqCst) {
                continue;
            }
            let upstream = upstreams.entry(client).or_insert_with(|| self.new_upstream(client, front));
            // A host that is down refuses; the next packet tries again.
            let _ = upstream.send(&packet[..len]);
            let taken = len as f64 / self.to_host_bytes_per_second.load(Ordering::SeqCst) as f64;
            thread::sleep(Duration::from_secs_f64(taken));
        }
    }

    fn new_upstream(self: &Arc<Self>, client: SocketAddr, front: &Arc<UdpSocket>) -> Arc<UdpSocket> {
        let upstream = Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap());
        upstream.connect(self.host).unwrap();
        upstream.set_read_timeout(Some(PATIENCE)).unwrap();
        let (state, back, front) = (Arc::clone(self), Arc::clone(&upstream), Arc::clone(front));
        let (on_its_way, arriving) = mpsc::sync_channel(PACKETS_MAX);
        thread::spawn(move || state.carry_to_client(&back, &on_its_way));
        let state = Arc::clone(self);
        thread::spawn(move || state.hand_to_client(&arriving, &front, client));
        upstream
    }

    fn carry_to_client(&self, upstream: &UdpSocket, on_its_way: &SyncSender<Packet>) {
        let mut packet = vec![0; 65_536];
        while !self.has_ended() {
            let Ok(len) = upstream.recv(&mut packet) else { continue };
            let due = Instant::now() + Duration::from_millis(self.delay_ms.load(Ordering::SeqCst));
            // A full way loses it.
            let _ = on_its_way.try_send((due, packet[..len].to_vec()));
        }
    }

    /// Ends with the thread that carries.
    fn hand_to_client(&self, arriving: &Receiver<Packet>, front: &UdpSocket, client: SocketAddr) {
        for (due, packet) in arriving {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if !self.is_cut() && front.send_to(&packet, client).is_ok() {
                self.bytes_to_client.fetch_add(packet.len() as u64, Ordering::SeqCst);
            }
        }
    }

    fn take_in(self: &Arc<Self>, door: &TcpListener) {
        while !self.has_ended() {
            let Ok((client, _)) = door.accept() else {
                thread::sleep(LOOK_EVERY);
                continue;
            };
            let state = Arc::clone(self);
            thread::spawn(move || state.join(client));
        }
    }

    fn join(self: &Arc<Self>, client: TcpStream) {
        while self.is_cut() && !self.has_ended() {
            thread::sleep(LOOK_EVERY);
        }
        let cuts = self.cuts.load(Ordering::SeqCst);
        // A host that is down refuses, and so does the relay.
        let Ok(host) = TcpStream::connect(self.host) else { return };
        for stream in [&client, &host] {
            stream.set_nonblocking(false).unwrap();
            stream.set_nodelay(true).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        let (state, from, to) = (Arc::clone(self), client.try_clone().unwrap(), host.try_clone().unwrap());
        thread::spawn(move || state.pass_on(from, to, cuts, false));
        self.pass_on(host, client, cuts, true);
    }

    fn pass_on(&self, mut from: TcpStream, mut to: TcpStream, cuts: u64, to_client: bool) {
        let mut bytes = vec![0; 65_536];
        while !self.has_ended() {
            if self.cuts.load(Ordering::SeqCst) != cuts {
                // Neither end hears of the other again.
                thread::sleep(PATIENCE);
                continue;
            }
            match from.read(&mut bytes) {
                Ok(0) => break,
                Ok(len) if self.cuts.load(Ordering::SeqCst) == cuts => {
                    if to.write_all(&bytes[..len]).is_err() {
                        break;
                    }
                    if to_client {
                        self.bytes_to_client.fetch_add(len as u64, Ordering::SeqCst);
                    }
                }
                Err(error) if !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
                Ok(_) | Err(_) => {}
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    }
}
