//! Changes and syncs over a real client: under which name they are sent, and what a sync says it waits for.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use wormhole::client::memory::Stage;
use wormhole::client::{Client, FirstSession};
use wormhole::proto::{Caller, Change, NodeId, Operation, OperationId, Request, WriteAt};
use wormhole::transport::TransportKind;

use super::{LinkShape, Server, World, api, until};

fn make(parent: NodeId, name: &str) -> Change {
    Change::MakeDirectory { parent, name: name.into(), permissions: 0o755, caller: Caller::default() }
}

over_both!(a_change_says_to_which_life_of_the_session_it_was_sent_first);

async fn a_change_says_to_which_life_of_the_session_it_was_sent_first(kind: TransportKind) {
    let mut world = World::new(kind, LinkShape::CLEAN).await;
    let operations: Arc<Mutex<Vec<Operation>>> = Arc::default();
    let seen = Arc::clone(&operations);
    world.host.hold(move |request, stage| {
        if let (Request::Change(change), Stage::Arrived) = (request, stage) {
            seen.lock().unwrap().push(change.operation);
        }
        false
    });
    let client = world.client().await;
    let (root, first) = (client.root().node, FirstSession::default());
    client.change(make(root, "one"), &first).await.unwrap();
    world.relay.set_cut(true);
    world.host.restart();
    world.server = Server::start(&world.host, &world.identity);
    world.relay.set_target(world.server.address());
    world.relay.set_cut(false);
    // Made anew, as after an answer that the host knows the file no more: the earlier attempt may have been done all the same.
    client.change(make(root, "two"), &first).await.unwrap();
    client.change(make(root, "three"), &FirstSession::default()).await.unwrap();
    let seen = operations.lock().unwrap();
    let [one, two, three] = seen[..] else { panic!("{seen:?}") };
    assert!(one.id < two.id && two.id < three.id);
    assert_eq!(one.sent_first, two.sent_first);
    assert_ne!(one.sent_first, three.sent_first);
}

over_both!(a_sync_names_what_is_under_way_and_asks_anew_when_that_is_over);

async fn a_sync_names_what_is_under_way_and_asks_anew_when_that_is_over(kind: TransportKind) {
    let world = World::new(kind, LinkShape::CLEAN).await;
    let (node, other) = (world.host.create_file("file", ""), world.host.create_file("other", ""));
    let client = world.client().await;
    for name in [b"file".as_slice(), b"other"] {
        api(&client).lookup(client.root().node, name).await.unwrap();
    }
    let syncs: Arc<Mutex<Vec<Vec<OperationId>>>> = Arc::default();
    let seen = Arc::clone(&syncs);
    // As a host to which what it is to wait for does not come.
    world.host.hold(move |request, stage| match request {
        Request::Sync { after, .. } if stage == Stage::Arrived => {
            seen.lock().unwrap().push(after.clone());
            !after.is_empty()
        }
        Request::Write(_) => stage == Stage::Arrived,
        _ => false,
    });
    let (bytes, first) = (Bytes::from_static(b"bytes"), FirstSession::default());
    let writes =
        [node, other, node].map(|node| client.write(node, WriteAt::Offset(0), bytes.clone(), &first));
    // Named before they are sent.
    let syncing = tokio::spawn(client.sync(node, true));
    until(|| syncs.lock().unwrap().len() == 1).await;
    assert_eq!(syncs.lock().unwrap()[0], [OperationId(1), OperationId(3)]);
    drop(writes);
    syncing.await.unwrap().unwrap();
    assert_eq!(syncs.lock().unwrap().last(), Some(&Vec::new()));
    // With nothing under way it is asked once.
    client.sync(node, true).await.unwrap();
    assert_eq!(syncs.lock().unwrap().len(), 3);
}
