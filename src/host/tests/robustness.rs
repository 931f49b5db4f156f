//! Clients that send nonsense, read nothing, or leave; daemons that end.

use std::fs;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt as _;

use super::*;
use crate::chunk::CHUNK_BYTES;
use crate::host::HostStatus;
use crate::proto::FRAME_BYTES_MAX;
use crate::transport::CloseReason;

#[tokio::test]
async fn garbage_harms_its_own_stream_only() {
    let world = World::new(|_| {});
    let guest = world.client().await;
    let oversized = (FRAME_BYTES_MAX as u32 + 1).to_le_bytes();
    let too_long_for_a_request = [&(64u32 << 10).to_le_bytes()[..], &vec![0; 64 << 10]].concat();
    let trailing = [encode_frame(&Request::Ping), vec![0; 100]].concat();
    for garbage in [
        b"".as_slice(),
        b"\x01",
        b"\x04\0\0\0\xff\xff\xff\xff",
        b"\xff\0\0\0short",
        &oversized,
        &too_long_for_a_request,
    ] {
        let mut answered = guest.visitor.send(garbage).await;
        assert_eq!(code(answered.reply().await), ErrorCode::Malformed);
    }
    assert_eq!(guest.visitor.send(&trailing).await.reply().await, Ok(Reply::Done));
    assert_eq!(guest.ask(Request::Ping).await, Ok(Reply::Done));
}

#[tokio::test]
async fn garbage_for_a_hello_harms_its_own_connection_only() {
    let world = World::new(|_| {});
    let guest = world.client().await;
    let visitor = Visitor::new(&world).await;
    let mut answered = visitor.send(b"\x08\0\0\0garbage!").await;
    assert_eq!(code(answered.reply().await), ErrorCode::Malformed);
    assert!(matches!(visitor.connection.closed().await, CloseReason::ByPeer { .. }));
    assert_eq!(guest.ask(Request::Ping).await, Ok(Reply::Done));
}

#[tokio::test]
async fn a_stream_that_says_nothing_keeps_no_other_waiting() {
    let world = World::new(|_| {});
    let guest = world.client().await;
    let (mut silent, _receive) = guest.visitor.connection.open_stream(Lane::Metadata).await.unwrap();
    silent.write_all(b"\x01").await.unwrap();
    assert_eq!(guest.ask(Request::Ping).await, Ok(Reply::Done));
}

/// More bytes are asked for than the engine's pool, the windows and the connection's share hold together, and none is
/// read; another client is served all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reads_nothing_keeps_nobody_waiting() {
    const SIZE: u64 = 16 << 20;
    let world = World::new(|export| {
        fs::File::create(export.join("large")).unwrap().set_len(SIZE).unwrap();
        fs::write(export.join("small"), pattern(1000)).unwrap();
    });
    let lazy = world.client().await;
    let large = lazy.walk("large").await.unwrap();
    let mut unread = Vec::new();
    for _ in 0..32 {
        unread.push(
            lazy.visitor.send(&encode_frame(&Request::Read(chunks(&large, 0, SIZE), Lane::Ahead))).await,
        );
    }
    nothing_goes_on(&world).await;
    let other = world.client().await;
    let small = other.walk("small").await.unwrap();
    assert!(other.bytes(chunks(&small, 0, 1000)).await.unwrap() == pattern(1000));
    let large = other.walk("large").await.unwrap();
    assert_eq!(other.bytes(chunks(&large, 0, SIZE)).await.unwrap().len() as u64, SIZE);
    drop(unread);
    until(&world, |status| status.send_inflight == 0).await;
    let whole = lazy.bytes(chunks(&large, 0, SIZE)).await.unwrap();
    assert_eq!(whole.len() as u64, SIZE, "whoever gave up can ask again");
}

#[tokio::test]
async fn a_client_that_leaves_is_off_the_list() {
    let world = World::new(|_| {});
    let guest = world.client().await;
    assert_eq!(world.host.status().clients.len(), 1);
    guest.visitor.connection.close(0, "bye");
    until(&world, |status| status.clients.is_empty()).await;
    assert_eq!(world.host.status().sessions, 1, "its session is kept for a while");
}

/// Half-open TCP connections and QUIC ones that say nothing, from the address that an honest client has, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_who_say_nothing_keep_nobody_out_and_hold_few_places() {
    const EACH: usize = 400;
    let world = World::new(|_| {});
    let guest = world.client().await;
    let address = world.host.listening();
    let mut half_open = Vec::new();
    for _ in 0..EACH {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(b"\x16\x03\x01\x02\x00\x01").await.unwrap();
        half_open.push(stream);
    }
    until(&world, |status| status.refused > EACH as u64 / 2).await;
    let strangers = world.host.status().strangers;
    assert!(strangers > 0 && strangers < EACH as u64 / 2, "{strangers} places");
    assert_eq!(guest.ask(Request::Ping).await, Ok(Reply::Done));
    let newcomer = world.client().await;
    assert_eq!(newcomer.ask(Request::Ping).await, Ok(Reply::Done));
    drop(half_open);
    until(&world, |status| status.strangers == 0).await;
}

/// Strangers who prove a key and then send all they may hold little of the host, and are gone in time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_who_send_all_they_may_keep_nobody_out() {
    let world = World::new(|_| {});
    let guest = world.client().await;
    let mut strangers = Vec::new();
    for _ in 0..100 {
        let visitor = Visitor::new(&world).await;
        let (mut send, receive) = visitor.connection.open_stream(Lane::Metadata).await.unwrap();
        let sending = tokio::spawn(async move { send.write_all(&vec![7; 8 << 20]).await });
        strangers.push((visitor, receive, sending));
    }
    let newcomer = world.client().await;
    assert_eq!(newcomer.ask(Request::Ping).await, Ok(Reply::Done));
    assert_eq!(guest.ask(Request::Ping).await, Ok(Reply::Done));
    for (visitor, ..) in &strangers {
        visitor.connection.closed().await;
    }
    for (_, _, sending) in strangers {
        assert!(sending.await.unwrap().is_err(), "more was taken than a stranger may send");
    }
    until(&world, |status| status.strangers == 0).await;
}

#[tokio::test]
async fn a_daemon_that_ends_finishes_answers_and_says_why() {
    let world = World::new(|export| fs::write(export.join("file"), pattern(8 << 20)).unwrap());
    let World { host, folder } = world;
    let world = World { host, folder };
    let guest = world.client().await;
    let file = guest.walk("file").await.unwrap();
    let request = encode_frame(&Request::Read(chunks(&file, 0, 8 << 20), Lane::Demand));
    let mut answered = guest.visitor.send(&request).await;
    assert_eq!(answered.reply().await, Ok(Reply::Content));
    let state = world.state();
    assert_eq!(state.running().unwrap()[0].exports, ["export"]);
    let ending = tokio::spawn(world.host.shutdown());
    let mut read = 0;
    while let Some(ContentHeader::Chunk { len, .. }) = answered.frame().await {
        read += u64::from(len);
        answered.raw(len).await;
    }
    assert_eq!(read, 32 * CHUNK_BYTES);
    let CloseReason::ByPeer { text, .. } = guest.visitor.connection.closed().await else { panic!() };
    assert!(text.contains("shutting down"), "{text}");
    ending.await.unwrap();
    assert_eq!(state.running().unwrap(), []);
}

#[tokio::test]
async fn a_client_that_stays_silent_does_not_keep_a_daemon_from_ending() {
    let world = World::new(|_| {});
    let _silent = Visitor::new(&world).await;
    let guest = world.client().await;
    world.host.shutdown().await;
    assert!(matches!(guest.visitor.connection.closed().await, CloseReason::ByPeer { .. }));
}

#[tokio::test]
async fn a_host_that_restarts_is_another_instance_with_the_same_keys() {
    let World { host, folder } = World::new(|export| fs::write(export.join("file"), "x").unwrap());
    let world = World { host, folder };
    let identity = Identity::generate().unwrap();
    let secret = world.host.ticket("export", &TicketTerms::default()).unwrap().secret();
    let visitor = Visitor::with_key(&world, &identity).await;
    let ticket = Some(secret);
    let before = visitor.greet(Hello { ticket, ..hello() }).await.unwrap();
    let (key, World { host, folder }) = (world.host.identity(), world);
    host.shutdown().await;
    let world = World { host: start(folder.path(), EngineKind::Auto), folder };
    assert_eq!(world.host.identity(), key);
    let visitor = Visitor::with_key(&world, &identity).await;
    let welcome = visitor.greet(hello()).await.unwrap();
    assert_ne!(welcome.instance, before.instance);
    assert_eq!(welcome.root.node, before.root.node);
    let guest = Guest { visitor, welcome };
    assert_eq!(guest.bytes(chunks(&guest.walk("file").await.unwrap(), 0, 1)).await.unwrap(), b"x");
}

/// Waits until the daemon has sent something and can send no more. Some requests may have filled the windows before others had their turn.
async fn nothing_goes_on(world: &World) {
    let (mut sent, mut since) = (0, Instant::now());
    while sent == 0 || since.elapsed() < Duration::from_millis(500) {
        let now = world.host.status().content_bytes_sent;
        if now != sent {
            (sent, since) = (now, Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(world.host.status().send_inflight > 0);
}

/// Waits until the daemon's report is as it should be.
#[track_caller]
fn until(world: &World, is_so: impl Fn(&HostStatus) -> bool) -> impl Future<Output = ()> {
    const WAIT: Duration = Duration::from_secs(120);
    let caller = std::panic::Location::caller();
    async move {
        let begun = Instant::now();
        while !is_so(&world.host.status()) {
            assert!(begun.elapsed() < WAIT, "{caller}: {:?}", world.host.status());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
