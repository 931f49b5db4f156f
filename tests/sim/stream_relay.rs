//! The link for TCP: bytes go through it late, slowly, or not at all; none is lost and none overtakes another.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::relay::State;

/// Bytes taken in at once, and portions on their way in one direction.
const PORTION_BYTES: usize = 16 << 10;
const PORTIONS_MAX: usize = 64;
/// How often a link that is cut is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Joins each client with the host until dropped.
pub(super) async fn run(door: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((client, _)) = door.accept().await else { continue };
        connections.spawn(join(client, Arc::clone(&state)));
    }
}

/// A connection that begins while the link is cut goes on after it, as a first packet does that is repeated each second.
async fn join(client: TcpStream, state: Arc<State>) {
    while state.cut.load(Ordering::Relaxed) {
        sleep(LOOK_EVERY).await;
    }
    let cuts = state.cuts.load(Ordering::Relaxed);
    let target = *state.target.lock().unwrap();
    let Ok(host) = TcpStream::connect(target).await else { return };
    client.set_nodelay(true).unwrap();
    host.set_nodelay(true).unwrap();
    let ((client_read, client_write), (host_read, host_write)) = (client.into_split(), host.into_split());
    tokio::join!(
        pass_on(client_read, host_write, &state, cuts),
        pass_on(host_read, client_write, &state, cuts)
    );
}

async fn pass_on(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, state: &State, cuts: u64) {
    let (queue, mut portions) = mpsc::channel::<(Instant, Vec<u8>)>(PORTIONS_MAX);
    let read = async move {
        loop {
            let mut portion = vec![0; PORTION_BYTES];
            let Ok(len @ 1..) = from.read(&mut portion).await else { return };
            portion.truncate(len);
            if queue.send((Instant::now(), portion)).await.is_err() {
                return;
            }
        }
    };
    let write = async move {
        let mut free_at = Instant::now();
        while let Some((came_at, mut portion)) = portions.recv().await {
            let due = state.due(came_at, &mut free_at, portion.len());
            if due > Instant::now() + Duration::from_millis(1) {
                sleep_until(due).await;
            }
            // Who lived through a cut stays mute, as a kernel that waits ever longer before it sends again.
            if state.cuts.load(Ordering::Relaxed) != cuts {
                std::future::pending::<()>().await;
            }
            state.forwarded.fetch_add(1, Ordering::Relaxed);
            state.pass(&mut portion);
            if to.write_all(&portion).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(read, write);
}
