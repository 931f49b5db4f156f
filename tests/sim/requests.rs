//! Requests over a link that only loses packets now and then, or nothing at all.

use std::collections::BTreeSet;
use std::time::Duration;

use wormhole::chunk::{ByteRange, CHUNK_BYTES, ChunkHash, RunSlice};
use wormhole::client::memory::Stage;
use wormhole::client::remote::{ClientConfig, RemoteClient};
use wormhole::client::{CallError, Client, ContentPart, ListPart};
use wormhole::proto::{
    CURRENT_BYTES_MAX, Errno, ErrorCode, OpenAccess, OpenId, ReadRequest, Request, SeekTarget, close,
};
use wormhole::transport::{CloseReason, Lane, TransportKind};

use super::{LinkShape, World, api, chunks_of, read_all, until};

over_both!(every_request_is_answered_as_by_the_host_itself);

async fn every_request_is_answered_as_by_the_host_itself(kind: TransportKind) {
    let world = World::new(kind, LinkShape::CLEAN).await;
    world.host.create_generated("dir/file", 3 * CHUNK_BYTES + 7, 1);
    world.host.create_symlink("dir/link", "file");
    world.host.set_xattr("dir/file", b"user.a", b"1");
    let client = api(&world.client().await);
    assert_eq!(client.root().node, world.host.root_node());
    let dir = client.lookup(client.root().node, b"dir").await.unwrap();
    let file = client.lookup(dir.node, b"file").await.unwrap();
    assert_eq!(client.attributes(file.node).await.unwrap(), file);
    assert_eq!(client.open(file.node, OpenId(1), OpenAccess::READ).await.unwrap().node, file.node);
    assert_eq!(world.host.opens(file.node), 1);
    client.close(file.node, OpenId(1)).await.unwrap();
    let link = client.lookup(dir.node, b"link").await.unwrap();
    assert_eq!(client.read_link(link.node).await.unwrap(), b"file");
    assert_eq!(client.get_xattr(file.node, b"user.a").await.unwrap(), b"1");
    assert_eq!(client.list_xattr(file.node).await.unwrap(), b"user.a\0");
    assert_eq!(client.fs_statistics(dir.node).await.unwrap().block_bytes, 4096);
    assert_eq!(client.seek(file.node, 0, SeekTarget::Hole).await.unwrap(), file.size);
    let whole = world.host.content("dir/file");
    assert_eq!(client.sum(file.node).await.unwrap().0, ChunkHash::of(&whole));
    let missing = client.lookup(dir.node, b"none").await.unwrap_err();
    assert_eq!(missing.code(), Some(ErrorCode::System(Errno::ENOENT)));

    assert_eq!(read_all(&*client, chunks_of(&file, 0, file.size), Lane::Demand).await.unwrap(), whole);
    let piece = ReadRequest { whole_chunks: false, ..chunks_of(&file, 1_000, 5_000) };
    assert_eq!(read_all(&*client, piece, Lane::Demand).await.unwrap(), whole[1_000..6_000]);
    let known = vec![Some(ChunkHash::of(&whole[..CHUNK_BYTES as usize]))];
    let request = ReadRequest { known, ..chunks_of(&file, 0, 2 * CHUNK_BYTES) };
    let rest = read_all(&*client, request, Lane::Demand).await.unwrap();
    assert_eq!(rest, whole[CHUNK_BYTES as usize..2 * CHUNK_BYTES as usize]);
    let stale = ReadRequest { version: dir.version(), ..chunks_of(&file, 0, 1) };
    let error = read_all(&*client, stale, Lane::Demand).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::VersionChanged));
    let names = [&b"none"[..], b"file", b".."].map(<[u8]>::to_vec).to_vec();
    let found = client.lookup_many(dir.node, names).await.unwrap();
    let nodes: Vec<_> = found.iter().map(|found| found.map(|found| found.node)).collect();
    assert_eq!(nodes, [None, Some(file.node), None]);
    let current = client.read_current(file.node, ByteRange::new(file.size - 10, 1_000)).await.unwrap();
    assert_eq!(current, whole[whole.len() - 10..]);
    let too_much =
        client.read_current(file.node, ByteRange::new(0, CURRENT_BYTES_MAX + 1)).await.unwrap_err();
    assert_eq!(too_much.code(), Some(ErrorCode::Malformed));
}

over_both!(a_short_read_over_a_fast_link_is_a_run_that_nobody_has_to_copy);

async fn a_short_read_over_a_fast_link_is_a_run_that_nobody_has_to_copy(kind: TransportKind) {
    let world = World::new(kind, LinkShape::CLEAN).await;
    world.host.create_generated("file", 5 * CHUNK_BYTES - 7, 1);
    let whole = world.host.content("file");
    let lies_in_a_run = async |runs_from_bytes_per_second, offset, len, known| {
        let config = ClientConfig { runs_from_bytes_per_second, ..world.config() };
        let client = RemoteClient::connect(config).await.unwrap();
        let file = api(&client).lookup(client.root().node, b"file").await.unwrap();
        let request = ReadRequest { known, ..chunks_of(&file, offset, len) };
        let mut parts = client.read(request, Lane::Ahead);
        let mut run_slice = Vec::new();
        while let Some(part) = parts.recv().await {
            match part.unwrap() {
                ContentPart::Chunk { index, chunk } => {
                    let start = index.offset() as usize;
                    assert!(whole[start..start + chunk.bytes().len()] == chunk.bytes()[..]);
                    run_slice.push(chunk.run_slice().clone());
                }
                ContentPart::Same { .. } => {}
                ContentPart::End { .. } => break,
                ContentPart::Piece { .. } => panic!("no piece was asked for"),
            }
        }
        let joined = RunSlice::join(&run_slice, 0, usize::MAX);
        (run_slice.len(), joined.as_ptr() == run_slice[0].bytes().as_ptr())
    };
    assert_eq!(lies_in_a_run(0, 0, 4 * CHUNK_BYTES, vec![]).await, (4, true));
    assert_eq!(lies_in_a_run(0, CHUNK_BYTES, 4 * CHUNK_BYTES, vec![]).await, (4, true), "to the end");
    assert_eq!(lies_in_a_run(0, 0, 5 * CHUNK_BYTES, vec![]).await, (5, false), "too long for one request");
    assert_eq!(lies_in_a_run(u64::MAX, 0, 4 * CHUNK_BYTES, vec![]).await, (4, false), "too slow");
    let second = &whole[CHUNK_BYTES as usize..2 * CHUNK_BYTES as usize];
    let known = vec![None, Some(ChunkHash::of(second))];
    assert_eq!(lies_in_a_run(0, 0, 4 * CHUNK_BYTES, known).await, (3, false), "with a gap");
}

over_both!(a_lossy_link_delivers_equal_bytes);

async fn a_lossy_link_delivers_equal_bytes(kind: TransportKind) {
    let shape = LinkShape { loss_permille: 10, delay: Duration::from_millis(2), ..LinkShape::CLEAN };
    let world = World::new(kind, shape).await;
    world.host.create_generated("file", 4 << 20, 2);
    let client = world.client().await;
    let file = api(&client).lookup(client.root().node, b"file").await.unwrap();
    let bytes = read_all(&*client, chunks_of(&file, 0, file.size), Lane::Demand).await.unwrap();
    assert_eq!(bytes, world.host.content("file"));
    let statistics = client.statistics();
    assert!(statistics.content_bytes >= file.size && statistics.bytes_received > file.size);
    assert_eq!((statistics.transport, statistics.state), (kind.name(), "connected"));
    assert_eq!(statistics.reconnects, 0);
    until(|| client.statistics().requests_in_flight == 0).await;
}

over_both!(a_listing_delivers_every_name_once);

async fn a_listing_delivers_every_name_once(kind: TransportKind) {
    let world = World::new(kind, LinkShape { loss_permille: 10, ..LinkShape::CLEAN }).await;
    for i in 0..3_000 {
        world.host.create_file(i.to_string(), "");
    }
    let client = api(&world.client().await);
    let mut parts = client.list(client.root().node);
    let mut names = BTreeSet::new();
    assert!(matches!(parts.recv().await.unwrap().unwrap(), ListPart::Begin { .. }));
    while let ListPart::Entries(entries) = parts.recv().await.unwrap().unwrap() {
        for entry in entries {
            assert!(names.insert(entry.name), "a name twice");
        }
    }
    assert_eq!(names.len(), 3_000);
    assert!(parts.recv().await.is_none());
    let file = client.lookup(client.root().node, b"1").await.unwrap();
    let error = client.list(file.node).recv().await.unwrap().unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::System(Errno::ENOTDIR)));
}

over_both!(a_dropped_read_stops_the_host);

async fn a_dropped_read_stops_the_host(kind: TransportKind) {
    let world = World::new(kind, LinkShape::CLEAN).await;
    world.host.create_generated("file", 64 * CHUNK_BYTES, 3);
    world.host.hold(|request, stage| matches!(request, Request::Read(..)) && stage == Stage::Part(2));
    let client = world.client().await;
    let file = api(&client).lookup(client.root().node, b"file").await.unwrap();
    let mut parts = client.read(chunks_of(&file, 0, file.size), Lane::Demand);
    parts.recv().await.unwrap().unwrap();
    world.host.until(|host| host.held().len() == 1).await;
    drop(parts);
    world.host.until(|host| host.counters().cancelled == 1).await;
    assert_eq!(world.host.counters().chunks, 2);
    until(|| client.statistics().requests_in_flight == 0).await;
}

over_both!(a_dropped_call_stops_the_host);

async fn a_dropped_call_stops_the_host(kind: TransportKind) {
    let world = World::new(kind, LinkShape::CLEAN).await;
    world.host.hold(|request, _| matches!(request, Request::Ping));
    let client = world.client().await;
    let call = tokio::spawn(client.call(Request::Ping, Lane::Metadata));
    world.host.until(|host| host.held().len() == 1).await;
    call.abort();
    world.host.until(|host| host.counters().cancelled == 1).await;
}

over_both!(read_ahead_never_stands_in_the_way_of_people);

async fn read_ahead_never_stands_in_the_way_of_people(kind: TransportKind) {
    let world = World::new(kind, LinkShape::CLEAN).await;
    world.host.create_generated("ahead", CHUNK_BYTES, 4);
    world.host.create_generated("now", CHUNK_BYTES, 5);
    let client = world.client().await;
    let ahead = api(&client).lookup(client.root().node, b"ahead").await.unwrap();
    world.host.hold(
        move |request, _| matches!(request, Request::Read(read, Lane::Ahead) if read.node == ahead.node),
    );
    let reads: Vec<_> = (0..400).map(|_| client.read(chunks_of(&ahead, 0, 1), Lane::Ahead)).collect();
    world.host.until(|host| host.held().len() > 50).await;
    let now = api(&client).lookup(client.root().node, b"now").await.unwrap();
    let bytes = read_all(&*client, chunks_of(&now, 0, now.size), Lane::Demand).await.unwrap();
    assert_eq!(bytes, world.host.content("now"));
    world.host.release_all();
    for mut read in reads {
        assert!(read.recv().await.unwrap().is_ok());
    }
}

over_both!(several_connections_share_the_work);

async fn several_connections_share_the_work(kind: TransportKind) {
    let world = World::new(kind, LinkShape::CLEAN).await;
    world.host.create_generated("file", 4 * CHUNK_BYTES, 6);
    let config = ClientConfig { connections: 3, ..world.config() };
    let client = RemoteClient::connect(config).await.unwrap();
    until(|| client.statistics().connections == 3).await;
    let file = api(&client).lookup(client.root().node, b"file").await.unwrap();
    for _ in 0..5 {
        let bytes = read_all(&*client, chunks_of(&file, 0, file.size), Lane::Demand).await.unwrap();
        assert_eq!(bytes, world.host.content("file"));
    }
    assert_eq!(client.statistics().reconnects, 0);
}

over_both!(after_shutdown_calls_fail_and_the_host_knows);

async fn after_shutdown_calls_fail_and_the_host_knows(kind: TransportKind) {
    let world = World::new(kind, LinkShape::CLEAN).await;
    world.host.hold(|request, _| matches!(request, Request::Ping));
    let client = world.client().await;
    let waiting = tokio::spawn(client.call(Request::Ping, Lane::Metadata));
    world.host.until(|host| host.held().len() == 1).await;
    client.shutdown().await;
    assert_eq!(waiting.await.unwrap(), Err(CallError::Closed));
    assert_eq!(api(&client).ping().await, Err(CallError::Closed));
    assert!(!client.link().connected);
    until(|| !world.server.closed().is_empty()).await;
    let [CloseReason::ByPeer { code, .. }] = world.server.closed()[..] else {
        panic!("closed as {:?}", world.server.closed());
    };
    assert_eq!(code, u64::from(close::GOODBYE));
}
