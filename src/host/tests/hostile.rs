//! A client that breaks every rule it can, over both transports: it harms itself, and others are served meanwhile.

use std::fs;
use std::time::Duration;

use tokio::time::timeout;

use super::*;
use crate::host::KeyLimits;
use crate::proto::{
    OpenAccess, OpenId, Operation, OperationId, WRITE_BYTES_MAX, WriteAt, WriteRequest, close,
};
use crate::transport::{CloseReason, TransportChoice, TransportKind};

/// A hang becomes a failure.
const DEADLINE: Duration = Duration::from_secs(120);

/// How long the attacker waits for a host that takes nothing more.
const ENOUGH: Duration = Duration::from_millis(300);

const KINDS: [TransportKind; 2] = [TransportKind::Quic, TransportKind::Tcp];

async fn visitor(world: &World, kind: TransportKind) -> Visitor {
    let address = world.host.listening();
    let tuning = TransportTuning { transport: TransportChoice::Only(kind), ..TransportTuning::default() };
    let endpoint = Endpoint::client(&Identity::generate().unwrap(), &tuning, address).unwrap();
    let connection = endpoint.connect(address, ExpectedHost::Key(world.host.identity())).await.unwrap();
    Visitor { connection, _endpoint: endpoint }
}

async fn guest(world: &World, kind: TransportKind) -> Guest {
    let ticket = Some(world.host.ticket("export", &TicketTerms::default()).unwrap().secret());
    let visitor = visitor(world, kind).await;
    let welcome = visitor.greet(Hello { ticket, ..hello() }).await.unwrap();
    Guest { visitor, welcome }
}

fn world() -> World {
    World::new(|export| fs::write(export.join("file"), pattern(3000)).unwrap())
}

/// An honest client that was there before, and one that comes now, do what they do each day.
async fn assert_served(world: &World, before: &Guest) {
    let newcomer = timeout(DEADLINE, world.client()).await.expect("nobody comes in");
    for guest in [before, &newcomer] {
        let work = async {
            let file = guest.walk("file").await.unwrap();
            let request = Request::Open { node: file.node, open: OpenId(1) };
            guest.attributes(request).await.unwrap();
            assert_eq!(guest.bytes(chunks(&file, 0, 3000)).await.unwrap(), pattern(3000));
            assert_eq!(guest.list(guest.root()).await.unwrap().concat().len(), 1);
        };
        timeout(DEADLINE, work).await.expect("others are kept waiting");
    }
}

/// Sends on a new stream as much of the bytes as the host takes. `None` where it takes no stream.
async fn push(guest: &Guest, bytes: &[u8]) -> Option<(SendStream, RecvStream)> {
    let open = guest.visitor.connection.open_stream(Lane::Metadata);
    let (mut send, receive) = timeout(ENOUGH, open).await.ok()?.ok()?;
    let _ = timeout(ENOUGH, send.write_all(bytes)).await;
    Some((send, receive))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_before_the_hello_is_told_and_left() {
    let world = world();
    let honest = world.client().await;
    for kind in KINDS {
        for request in [Request::Ping, Request::ReadDirectory { node: honest.root() }, Request::Events] {
            let stranger = visitor(&world, kind).await;
            assert_eq!(code(stranger.ask(&request).await), ErrorCode::Refused);
            let reason = timeout(DEADLINE, stranger.connection.closed()).await.unwrap();
            let CloseReason::ByPeer { code, .. } = reason else { panic!("{reason:?}") };
            assert_eq!(code, u64::from(close::REFUSED));
        }
        let again = guest(&world, kind).await;
        let twice = again.ask(Request::Hello(hello())).await;
        assert!(twice.is_err(), "a second hello: {twice:?}");
    }
    assert_served(&world, &honest).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_begin_and_never_go_on_keep_nobody_waiting() {
    let world = world();
    let honest = world.client().await;
    let announced = (60_000_u32).to_le_bytes();
    let half = &encode_frame(&Request::ReadDirectory { node: honest.root() })[..7];
    for kind in KINDS {
        for beginning in [&b"\x01"[..], &announced, half] {
            let hostile = guest(&world, kind).await;
            let mut held = Vec::new();
            while held.len() < 2000
                && let Some(stream) = push(&hostile, beginning).await
            {
                held.push(stream);
            }
            assert!(held.len() > 10, "{} streams", held.len());
            assert_served(&world, &honest).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_that_lack_their_end_keep_nobody_waiting() {
    let world = world();
    let honest = world.client().await;
    for kind in KINDS {
        let hostile = guest(&world, kind).await;
        let node = hostile.walk("file").await.unwrap().node;
        let access = OpenAccess { reads: true, writes: true, appends: false };
        hostile.attributes(Request::OpenFor { node, open: OpenId(1), access }).await.unwrap();
        let bytes = vec![7; WRITE_BYTES_MAX as usize];
        let mut held = Vec::new();
        for number in 1..100 {
            let id = OperationId(number);
            let operation =
                Operation { id, answered_below: OperationId(0), sent_first: hostile.welcome.session };
            let (at, len, hash) = (WriteAt::Offset(0), bytes.len() as u32, ChunkHash::of(&bytes));
            let request = encode_frame(&Request::Write(WriteRequest { operation, node, at, len, hash }));
            let Some(stream) = push(&hostile, &[&request, &bytes[1..]].concat()).await else { break };
            held.push(stream);
        }
        assert_served(&world, &honest).await;
        assert_eq!(fs::read(world.path("file")).unwrap(), pattern(3000), "nothing of them is written");
    }
}

/// Bytes behind a request, as many as the host takes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_never_end_keep_nobody_waiting() {
    let world = world();
    let honest = world.client().await;
    for kind in KINDS {
        let hostile = guest(&world, kind).await;
        let request = [encode_frame(&Request::Ping), vec![0; 32 << 20]].concat();
        let mut held = Vec::new();
        for _ in 0..4 {
            held.extend(push(&hostile, &request).await);
        }
        assert_served(&world, &honest).await;
    }
}

/// Events that are not read, of more changes than the host keeps for anybody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_nobody_reads_are_not_kept() {
    let world = world();
    let honest = world.client().await;
    for kind in KINDS {
        let hostile = guest(&world, kind).await;
        let mut events = push(&hostile, &encode_frame(&Request::Events)).await.unwrap();
        assert!(events.0.finish().is_ok());
        hostile.list(hostile.root()).await.unwrap();
        for number in 0..10_000 {
            let path = world.path(&format!("{number:0>200}"));
            fs::create_dir(&path).unwrap();
            fs::remove_dir(&path).unwrap();
        }
        assert_served(&world, &honest).await;
    }
}

/// Requests by the thousand, of which no answer is read: as many are under way as the key may have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_nobody_reads_are_as_many_as_a_key_may_have() {
    let world = world();
    let honest = world.client().await;
    for kind in KINDS {
        let hostile = guest(&world, kind).await;
        let request = encode_frame(&Request::ReadDirectory { node: hostile.root() });
        let mut held = Vec::new();
        while held.len() < 3000
            && let Some(stream) = push(&hostile, &request).await
        {
            held.push(stream);
        }
        assert_served(&world, &honest).await;
        let most = u64::from(KeyLimits::default().max_requests);
        let used: Vec<u64> = world.host.status().keys.iter().map(|key| key.requests).collect();
        assert!(used.iter().all(|used| *used <= most), "{used:?}");
    }
}
