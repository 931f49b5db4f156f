//! Cuts, restarts, refusals, lies.

use std::time::Duration;

use tokio::time::sleep;
use wormhole::chunk::{ByteRange, CHUNK_BYTES};
use wormhole::client::remote::{ClientConfig, ConnectError, RemoteClient};
use wormhole::client::{CallError, Client, ContentPart, ListPart};
use wormhole::proto::{ErrorCode, ReadRequest, Request, WireError};
use wormhole::transport::{ExpectedHost, Identity, Lane, TransportError, TransportKind};

use super::server::Endless;
use super::{LinkShape, Server, World, api, chunks_of, read_all, until};

/// A link on which a transfer takes long enough to be cut in the middle.
const THIN: LinkShape =
    LinkShape { loss_permille: 0, delay: Duration::from_millis(5), bytes_per_second: 8 << 20, seed: 1 };

over_both!(a_transfer_goes_on_after_a_cut);

async fn a_transfer_goes_on_after_a_cut(kind: TransportKind) {
    let world = World::new(kind, THIN).await;
    world.host.create_generated("file", 6 << 20, 1);
    let client = world.client().await;
    let file = api(&client).lookup(client.root().node, b"file").await.unwrap();
    let mut parts = client.read(chunks_of(&file, 0, file.size), Lane::Demand);
    let mut bytes = Vec::new();
    loop {
        match parts.recv().await.unwrap().unwrap() {
            ContentPart::Chunk { index, chunk } => {
                assert_eq!(index.offset(), bytes.len() as u64);
                bytes.extend_from_slice(chunk.bytes());
            }
            ContentPart::End { .. } => break,
            other => panic!("{other:?}"),
        }
        if bytes.len() == 4 * CHUNK_BYTES as usize {
            world.relay.set_cut(true);
            until(|| client.statistics().state == "silent").await;
            assert!(!client.link().connected);
            sleep(Duration::from_secs(2)).await;
            world.relay.set_cut(false);
        }
    }
    assert!(bytes == world.host.content("file"), "other bytes than the host's");
    assert_eq!(client.statistics().instance_changes, 0);
    until(|| client.link().connected).await;
}

over_both!(content_that_repeats_itself_is_given_up);

async fn content_that_repeats_itself_is_given_up(kind: TransportKind) {
    let world = World::new(kind, LinkShape { bytes_per_second: 1 << 30, ..THIN }).await;
    world.host.create_generated("file", 4 * CHUNK_BYTES, 1);
    let client = world.client().await;
    let file = api(&client).lookup(client.root().node, b"file").await.unwrap();
    world.server.answer_without_end(Some(Endless::Same));
    for request in
        [chunks_of(&file, 0, file.size), ReadRequest { whole_chunks: false, ..chunks_of(&file, 0, 100) }]
    {
        let error = read_all(&*client, request, Lane::Demand).await.unwrap_err();
        assert!(matches!(error, CallError::BadAnswer(_)), "{error}");
    }
}

over_both!(a_listing_without_an_end_is_given_up);

async fn a_listing_without_an_end_is_given_up(kind: TransportKind) {
    let world = World::new(kind, LinkShape { bytes_per_second: 1 << 30, ..THIN }).await;
    for number in 0..500 {
        world.host.create_file(format!("d/{number}"), "");
    }
    let client = world.client().await;
    let folder = api(&client).lookup(client.root().node, b"d").await.unwrap().node;
    for endless in [Endless::Empty, Endless::Same] {
        world.server.answer_without_end(Some(endless));
        let mut parts = client.list(folder);
        let mut entries = 0;
        let error = loop {
            match parts.recv().await.unwrap() {
                Ok(ListPart::Begin { .. }) => {}
                Ok(ListPart::Entries(batch)) => entries += batch.len(),
                Ok(ListPart::End) => panic!("{endless:?} has no end"),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, CallError::BadAnswer(_)), "{endless:?}: {error}");
        assert!(entries <= 500, "{endless:?}: no entry comes twice");
    }
    world.server.answer_without_end(None);
    let mut parts = client.list(folder);
    while !matches!(parts.recv().await.unwrap().unwrap(), ListPart::End) {}
}

over_both!(a_host_that_is_killed_and_comes_back_is_found_and_noticed);

async fn a_host_that_is_killed_and_comes_back_is_found_and_noticed(kind: TransportKind) {
    let mut world = World::new(kind, THIN).await;
    world.host.create_generated("file", 4 << 20, 2);
    let client = world.client().await;
    let api = api(&client);
    let file = api.lookup(client.root().node, b"file").await.unwrap();
    let mut parts = client.read(chunks_of(&file, 0, file.size), Lane::Demand);
    parts.recv().await.unwrap().unwrap();

    // What its sockets say while it dies does not get through: as if the power had gone.
    world.relay.set_cut(true);
    world.host.restart();
    world.server = Server::start(&world.host, &world.identity);
    world.relay.set_target(world.server.address());
    world.relay.set_cut(false);

    let error = loop {
        match parts.recv().await.unwrap() {
            Ok(ContentPart::Chunk { .. }) => {}
            Ok(other) => panic!("{other:?}"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.code(), Some(ErrorCode::UnknownNode));
    assert_eq!(*client.instance_changes().borrow(), 1);
    assert_eq!(client.instance(), world.host.instance());
    let again = api.lookup(client.root().node, b"file").await.unwrap();
    assert_eq!(again.version(), file.version());
    let bytes = read_all(&*client, chunks_of(&again, 0, again.size), Lane::Demand).await.unwrap();
    assert!(bytes == world.host.content("file"), "other bytes than the host's");
    assert_eq!(client.statistics().reconnects, 1);
}

over_both!(a_host_that_is_away_keeps_nobody_for_a_whole_deadline);

async fn a_host_that_is_away_keeps_nobody_for_a_whole_deadline(kind: TransportKind) {
    let world = World::new(kind, THIN).await;
    world.host.create_generated("file", 1 << 20, 2);
    let deadline = Duration::from_secs(8);
    let client = RemoteClient::connect(ClientConfig { deadline, ..world.config() }).await.unwrap();
    let api = api(&client);
    let file = api.lookup(client.root().node, b"file").await.unwrap();
    world.relay.set_cut(true);
    assert_eq!(api.ping().await, Err(CallError::TimedOut(deadline)));
    let since = tokio::time::Instant::now();
    for _ in 0..2 {
        assert_eq!(api.ping().await, Err(CallError::TimedOut(deadline)));
        let read = read_all(&*client, chunks_of(&file, 0, file.size), Lane::Demand).await;
        assert_eq!(read.unwrap_err(), CallError::TimedOut(deadline));
        let current = client.read_current(file.node, ByteRange::new(0, 10)).await;
        assert_eq!(current.unwrap_err(), CallError::TimedOut(deadline));
    }
    assert!(since.elapsed() < 3 * deadline, "six calls took {:?}", since.elapsed());
    world.relay.set_cut(false);
    until(|| client.link().connected).await;
    assert_eq!(client.link().silent, Duration::ZERO);
    api.ping().await.unwrap();
}

over_both!(a_deadline_ends_one_call_and_no_other);

async fn a_deadline_ends_one_call_and_no_other(kind: TransportKind) {
    let world = World::new(kind, LinkShape::CLEAN).await;
    world.host.create_generated("stuck", CHUNK_BYTES, 3);
    let deadline = Duration::from_secs(2);
    let client = RemoteClient::connect(ClientConfig { deadline, ..world.config() }).await.unwrap();
    let api = api(&client);
    let stuck = api.lookup(client.root().node, b"stuck").await.unwrap();
    world.host.hold(|request, _| matches!(request, Request::Read(..) | Request::StatFs { .. }));
    let call = tokio::spawn(client.call(Request::StatFs { node: stuck.node }, Lane::Metadata));
    let mut read = client.read(chunks_of(&stuck, 0, 1), Lane::Demand);
    world.host.until(|host| host.held().len() == 2).await;
    assert_eq!(api.attributes(stuck.node).await.unwrap(), stuck);
    assert_eq!(call.await.unwrap(), Err(CallError::TimedOut(deadline)));
    assert_eq!(read.recv().await.unwrap().unwrap_err(), CallError::TimedOut(deadline));
    assert_eq!(api.attributes(stuck.node).await.unwrap(), stuck);
    world.host.until(|host| host.counters().cancelled == 2).await;
    assert_eq!(client.statistics().reconnects, 0, "a host that is slow is not a host that is gone");

    world.relay.set_cut(true);
    assert_eq!(api.ping().await, Err(CallError::TimedOut(deadline)));
    world.relay.set_cut(false);
}

over_both!(a_client_that_may_not_come_back_is_told_at_once);

async fn a_client_that_may_not_come_back_is_told_at_once(kind: TransportKind) {
    let mut world = World::new(kind, LinkShape::CLEAN).await;
    let client = world.client().await;
    let refusal = WireError::new(ErrorCode::Refused, "this key was taken off the list");
    world.server = Server::start(&world.host, &world.identity);
    world.server.refuse(Some(refusal.clone()));
    world.relay.set_target(world.server.address());
    assert_eq!(api(&client).ping().await, Err(CallError::Host(refusal.clone())));
    assert_eq!(api(&client).ping().await, Err(CallError::Host(refusal)));
    assert_eq!((client.statistics().state, client.link().connected), ("refused", false));
}

over_both!(a_first_connection_that_fails_says_why);

async fn a_first_connection_that_fails_says_why(kind: TransportKind) {
    let world = World::new(kind, LinkShape::CLEAN).await;
    world.server.refuse(Some(WireError::new(ErrorCode::Refused, "no export is called films")));
    let error = RemoteClient::connect(world.config()).await.err().unwrap();
    assert!(matches!(error, ConnectError::Refused { .. }), "{error}");
    assert!(error.to_string().ends_with("refuses: no export is called films"), "{error}");

    let other = Identity::generate().unwrap().public_key();
    let config = ClientConfig { expected: ExpectedHost::Key(other), ..world.config() };
    let error = RemoteClient::connect(config).await.err().unwrap();
    assert!(matches!(error, ConnectError::Transport(TransportError::WrongHostKey { .. })), "{error}");

    world.relay.set_cut(true);
    let config = ClientConfig { connect_timeout: Duration::from_millis(300), ..world.config() };
    let error = RemoteClient::connect(config).await.err().unwrap();
    let start = format!("no answer from {} within 0.3 s", world.relay.address());
    assert!(error.to_string().starts_with(&start), "{error}");
}

over_both!(flipped_bits_are_asked_for_again_and_then_refused);

async fn flipped_bits_are_asked_for_again_and_then_refused(kind: TransportKind) {
    let world = World::new(kind, LinkShape::CLEAN).await;
    world.host.create_generated("file", 3 * CHUNK_BYTES, 4);
    let client = world.client().await;
    let file = api(&client).lookup(client.root().node, b"file").await.unwrap();
    world.server.corrupt(1);
    let bytes = read_all(&*client, chunks_of(&file, 0, file.size), Lane::Demand).await.unwrap();
    assert!(bytes == world.host.content("file"), "other bytes than the host's");
    assert_eq!(client.statistics().bad_answers, 1);
    let named: Vec<Vec<bool>> =
        world.server.reads().iter().map(|read| read.known.iter().map(Option::is_some).collect()).collect();
    assert_eq!(named, [vec![], vec![true; 3]], "the host is not to believe what it noted");
    world.server.corrupt(u32::MAX);
    let error = read_all(&*client, chunks_of(&file, 0, file.size), Lane::Demand).await.unwrap_err();
    assert!(matches!(error, CallError::BadAnswer(_)), "{error}");
    assert_eq!(client.statistics().bad_answers, 1 + 3);
    assert!(api(&client).ping().await.is_ok());
}

over_both!(what_is_damaged_on_the_way_is_sent_again);

/// Packets of QUIC are lost then; a connection over TCP ends, and another one begins.
async fn what_is_damaged_on_the_way_is_sent_again(kind: TransportKind) {
    let world = World::new(kind, LinkShape::CLEAN).await;
    world.host.create_generated("file", 2 << 20, 5);
    let client = world.client().await;
    let file = api(&client).lookup(client.root().node, b"file").await.unwrap();
    for _ in 0..8 {
        world.relay.damage(1);
        let bytes = read_all(&*client, chunks_of(&file, 0, file.size), Lane::Demand).await.unwrap();
        assert!(bytes == world.host.content("file"), "other bytes than the host's");
        assert_eq!(world.relay.to_damage(), 0);
    }
    // A handshake that is damaged fails at worst, and the next one does not.
    world.relay.damage(1);
    let config = || ClientConfig { connect_timeout: Duration::from_secs(2), ..world.config() };
    let first = RemoteClient::connect(config()).await;
    assert_eq!(world.relay.to_damage(), 0);
    let other = if let Ok(other) = first { other } else { world.client().await };
    assert!(api(&other).ping().await.is_ok());
}

over_both!(a_run_that_is_cut_or_spoilt_goes_on_where_it_was);

async fn a_run_that_is_cut_or_spoilt_goes_on_where_it_was(kind: TransportKind) {
    let mut world = World::new(kind, THIN).await;
    world.host.create_generated("file", 4 * CHUNK_BYTES, 9);
    let config = ClientConfig { runs_from_bytes_per_second: 0, ..world.config() };
    let client = RemoteClient::connect(config).await.unwrap();
    let file = api(&client).lookup(client.root().node, b"file").await.unwrap();
    let read = || read_all(&*client, chunks_of(&file, 0, file.size), Lane::Ahead);
    world.server.corrupt(1);
    assert!(read().await.unwrap() == world.host.content("file"), "other bytes than the host's");
    assert_eq!(client.statistics().bad_answers, 1);

    let before = client.statistics().content_bytes;
    let cut = async {
        until(|| client.statistics().content_bytes >= before + CHUNK_BYTES * 3 / 2).await;
        world.relay.set_cut(true);
        world.server = Server::start(&world.host, &world.identity);
        world.relay.set_target(world.server.address());
        world.relay.set_cut(false);
    };
    let (bytes, ()) = tokio::join!(read(), cut);
    assert!(bytes.unwrap() == world.host.content("file"), "other bytes than the host's");
    assert_eq!(client.statistics().reconnects, 1);
    let again = world.server.reads();
    assert!(again[0].range.offset >= CHUNK_BYTES, "what had come is asked for again: {again:?}");
}

over_both!(an_idle_connection_costs_a_packet_a_second);

async fn an_idle_connection_costs_a_packet_a_second(kind: TransportKind) {
    let world = World::new(kind, LinkShape::CLEAN).await;
    let client = world.client().await;
    api(&client).ping().await.unwrap();
    sleep(Duration::from_millis(300)).await;
    let before = world.relay.forwarded();
    sleep(Duration::from_millis(1_500)).await;
    let packets = world.relay.forwarded() - before;
    assert!(packets < 20, "{packets} packets while nothing was asked");
}
