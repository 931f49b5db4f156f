//! A UDP relay between client and host whose link can be cut and mended; no privileges, no namespaces.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// How long a thread of the relay waits for a packet before it looks whether it should end.
const PATIENCE: Duration = Duration::from_millis(50);

/// The relay; its threads end when it is dropped.
pub(crate) struct Relay {
    address: SocketAddr,
    state: Arc<State>,
}

struct State {
    host: SocketAddr,
    cut: AtomicBool,
    ended: AtomicBool,
    bytes_to_client: AtomicU64,
}

impl Relay {
    /// A relay on a port of its own in front of `host`.
    pub(crate) fn start(host: SocketAddr) -> Self {
        let front = UdpSocket::bind("127.0.0.1:0").unwrap();
        front.set_read_timeout(Some(PATIENCE)).unwrap();
        let address = front.local_addr().unwrap();
        let state = Arc::new(State {
            host,
            cut: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            bytes_to_client: AtomicU64::new(0),
        });
        let shared = Arc::clone(&state);
        thread::spawn(move || shared.carry_to_host(&Arc::new(front)));
        Self { address, state }
    }

    /// Where clients should connect.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on nothing passes, in either direction.
    pub(crate) fn cut(&self) {
        self.state.cut.store(true, Ordering::SeqCst);
    }

    /// Everything passes again.
    pub(crate) fn mend(&self) {
        self.state.cut.store(false, Ordering::SeqCst);
    }

    /// UDP payload carried towards clients so far.
    pub(crate) fn bytes_to_client(&self) -> u64 {
        self.state.bytes_to_client.load(Ordering::SeqCst)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::SeqCst);
    }
}

impl State {
    fn carry_to_host(self: &Arc<Self>, front: &Arc<UdpSocket>) {
        let mut upstreams: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
        let mut packet = vec![0; 65_536];
        while !self.ended.load(Ordering::SeqCst) {
            let Ok((len, client)) = front.recv_from(&mut packet) else { continue };
            if self.cut.load(Ordering::SeqCst) {
                continue;
            }
            let upstream = upstreams.entry(client).or_insert_with(|| self.new_upstream(client, front));
            // A host that is down refuses; the next packet tries again.
            let _ = upstream.send(&packet[..len]);
        }
    }

    fn new_upstream(self: &Arc<Self>, client: SocketAddr, front: &Arc<UdpSocket>) -> Arc<UdpSocket> {
        let upstream = Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap());
        upstream.connect(self.host).unwrap();
        upstream.set_read_timeout(Some(PATIENCE)).unwrap();
        let (state, back, front) = (Arc::clone(self), Arc::clone(&upstream), Arc::clone(front));
        thread::spawn(move || state.carry_to_client(&back, &front, client));
        upstream
    }

    fn carry_to_client(&self, upstream: &UdpSocket, front: &UdpSocket, client: SocketAddr) {
        let mut packet = vec![0; 65_536];
        while !self.ended.load(Ordering::SeqCst) {
            let Ok(len) = upstream.recv(&mut packet) else { continue };
            if !self.cut.load(Ordering::SeqCst) && front.send_to(&packet[..len], client).is_ok() {
                self.bytes_to_client.fetch_add(len as u64, Ordering::SeqCst);
            }
        }
    }
}
