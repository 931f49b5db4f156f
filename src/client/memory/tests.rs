//! Tests of the model host against the guarantees of the protocol.

use super::*;
use crate::chunk::{ByteRange, CHUNK_BYTES, ChunkHash, ChunkIndex};
use crate::proto::{ErrorCode, OpenAccess, OpenId, RenameHow, SeekTarget};

fn read_of(attributes: &Attributes, offset: u64, len: u64) -> ReadRequest {
    ReadRequest::chunks_of(attributes, ByteRange::new(offset, len))
}

/// Returns all parts of a read as text: kind, position, length.
async fn parts(client: &dyn Client, request: ReadRequest) -> Result<Vec<String>, CallError> {
    let mut receiver = client.read(request, Lane::Demand);
    let mut seen = Vec::new();
    while let Some(part) = receiver.recv().await {
        seen.push(match part? {
            ContentPart::Chunk { index, chunk } => format!("chunk {} {}", index.0, chunk.bytes().len()),
            ContentPart::Same { index } => format!("same {}", index.0),
            ContentPart::Piece { offset, bytes } => format!("piece {offset} {}", bytes.len()),
            ContentPart::End { .. } => "end".to_owned(),
        });
    }
    Ok(seen)
}

fn code<T>(result: Result<T, CallError>) -> Option<ErrorCode> {
    result.err().and_then(|error| error.code())
}

#[tokio::test]
async fn chunks_known_chunks_and_pieces_come_as_asked() {
    let host = MemoryHost::new();
    host.create_generated("a/big", 2 * CHUNK_BYTES + 100, 1);
    let client = host.client();
    let folder = client.lookup(host.root_node(), b"a").await.unwrap();
    let file = client.lookup(folder.node, b"big").await.unwrap();
    assert!(file.is_settled());

    let mut request = read_of(&file, CHUNK_BYTES + 5, u64::MAX / 2);
    request.range.len = CHUNK_BYTES;
    let last = host.content_at("a/big", 2 * CHUNK_BYTES, 100);
    request.known = vec![Some(ChunkHash::of(b"other")), Some(ChunkHash::of(&last))];
    assert_eq!(parts(&*client, request).await.unwrap(), ["chunk 1 262144", "same 2", "end"]);

    let piece = ReadRequest { whole_chunks: false, ..read_of(&file, 2 * CHUNK_BYTES + 90, 50) };
    assert_eq!(parts(&*client, piece).await.unwrap(), ["piece 524378 10", "end"]);
    let counters = host.counters();
    assert_eq!((counters.lookups, counters.reads, counters.chunks, counters.same), (2, 2, 1, 1));
    assert_eq!(counters.content_bytes, CHUNK_BYTES + 10);
}

#[tokio::test]
async fn a_change_breaks_a_read_at_its_next_part() {
    let host = MemoryHost::new();
    host.create_generated("f", 3 * CHUNK_BYTES, 1);
    host.hold(|request, stage| matches!(request, Request::Read(..)) && stage == Stage::Part(1));
    let client = host.client();
    let file = client.lookup(host.root_node(), b"f").await.unwrap();
    let mut receiver = client.read(read_of(&file, 0, 3 * CHUNK_BYTES), Lane::Demand);
    assert!(
        matches!(receiver.recv().await, Some(Ok(ContentPart::Chunk { index, .. })) if index == ChunkIndex(0))
    );
    host.until(|host| host.held().len() == 1).await;
    host.write("f", 0, b"x");
    assert!(host.release_one());
    let error = receiver.recv().await.unwrap().unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::VersionChanged));
    assert!(receiver.recv().await.is_none());
    assert_eq!(code(parts(&*client, read_of(&file, 0, 1)).await), Some(ErrorCode::VersionChanged));
    assert!(!client.attributes(file.node).await.unwrap().is_settled());
}

#[tokio::test]
async fn after_a_restart_nodes_are_unknown_until_looked_up() {
    let host = MemoryHost::new();
    let (node, before) = (host.create_file("f", "text"), host.instance());
    let client = host.client();
    assert_eq!(code(client.attributes(node).await), Some(ErrorCode::UnknownNode));
    client.lookup(host.root_node(), b"f").await.unwrap();
    client.open(node, OpenId(1), OpenAccess::READ).await.unwrap();
    host.restart();
    assert_ne!(host.instance(), before);
    assert_eq!(host.opens(node), 0);
    assert_eq!(code(client.attributes(node).await), Some(ErrorCode::UnknownNode));
    assert_eq!(client.lookup(host.root_node(), b"f").await.unwrap().node, node);
    assert!(client.attributes(node).await.is_ok());
}

#[tokio::test]
async fn clients_number_their_opens_each_for_itself() {
    let host = MemoryHost::new();
    let node = host.create_file("f", "text");
    let (one, other) = (host.client(), host.another_client().client());
    for client in [&one, &other] {
        client.lookup(host.root_node(), b"f").await.unwrap();
        client.open(node, OpenId(1), OpenAccess::READ).await.unwrap();
    }
    host.unlink("f");
    other.close(node, OpenId(1)).await.unwrap();
    assert!(one.attributes(node).await.is_ok(), "it is open for the first");
    one.close(node, OpenId(1)).await.unwrap();
    assert_eq!(host.opens(node), 0);
}

#[tokio::test]
async fn unknown_names_are_swapped_once_and_never_with_a_parent() {
    let host = MemoryHost::new();
    let (file, folder) = (host.create_file("f", ""), host.create_dir("d"));
    let inner = host.create_file("d/inner", "");
    let client = host.client();
    let exchange = |from_parent, from_name: &[u8]| Change::Rename {
        from_parent,
        from_name: from_name.to_vec(),
        to_parent: host.root_node(),
        to_name: b"d".to_vec(),
        how: RenameHow::Exchange,
        expected: None,
    };
    client.change(exchange(host.root_node(), b"f"), &FirstSession::default()).await.unwrap();
    assert_eq!((host.node_at("d"), host.node_at("f")), (Some(file), Some(folder)));
    host.rename("d", "file");
    host.rename("f", "d");
    let refused = client.change(exchange(folder, b"inner"), &FirstSession::default()).await;
    assert_eq!(code(refused), Some(ErrorCode::System(Errno::EINVAL)));
    assert_eq!(host.node_at("d/inner"), Some(inner));
}

#[tokio::test]
async fn contents_are_recorded_between_any_two_changes() {
    let host = MemoryHost::new();
    let node = host.create_file("f", "one");
    host.record_contents();
    assert_eq!(host.recorded_contents(node), 0);
    host.write("f", 0, "two");
    host.truncate("f", 1);
    let recorded: Vec<_> =
        (0..host.recorded_contents(node)).filter_map(|at| host.recorded_content(node, at, 0, 9)).collect();
    assert_eq!(recorded, [&b"one"[..], b"two", b"t"]);
}

#[tokio::test]
async fn an_open_file_outlives_its_name() {
    let host = MemoryHost::new();
    host.create_file("f", "text");
    let client = host.client();
    let node = client.lookup(host.root_node(), b"f").await.unwrap().node;
    client.open(node, OpenId(1), OpenAccess::READ).await.unwrap();
    host.unlink("f");
    let open = client.attributes(node).await.unwrap();
    assert_eq!(open.links, 0);
    assert_eq!(parts(&*client, read_of(&open, 0, 4)).await.unwrap(), ["chunk 0 4", "end"]);
    client.close(node, OpenId(1)).await.unwrap();
    assert_eq!(code(client.attributes(node).await), Some(ErrorCode::UnknownNode));
}

#[tokio::test]
async fn listings_come_in_parts_and_make_nodes_known() {
    let host = MemoryHost::new();
    for i in 0..250 {
        host.create_file(format!("d/{i:03}"), "");
    }
    let client = host.client();
    let node = client.lookup(host.root_node(), b"d").await.unwrap().node;
    let mut receiver = client.list(node);
    let mut entries = Vec::new();
    while let ListPart::Entries(part) = receiver.recv().await.unwrap().unwrap() {
        entries.extend(part);
    }
    assert_eq!(entries.len(), 250);
    assert!(client.attributes(entries[249].attributes.node).await.is_ok());
    assert_eq!(host.attributes_of("d").links, 2);
    assert_eq!(host.attributes_of("").links, 3);
}

#[tokio::test]
async fn a_cut_link_holds_calls_until_their_deadline() {
    let host = MemoryHost::new();
    let client = host.client();
    host.set_connected(false);
    assert!(!client.link().connected);
    host.set_deadline(Duration::from_millis(1));
    assert_eq!(client.ping().await, Err(CallError::TimedOut(Duration::from_millis(1))));
    host.set_deadline(DEADLINE_DEFAULT);
    let (answer, ()) = tokio::join!(client.ping(), async {
        host.until(|host| host.counters().pings == 2).await;
        host.set_connected(true);
    });
    assert_eq!(answer, Ok(()));
    host.close();
    assert_eq!(client.ping().await, Err(CallError::Closed));
}

#[tokio::test]
async fn a_held_answer_has_the_earlier_state() {
    let host = MemoryHost::new();
    host.create_file("f", "old");
    host.hold(|_, stage| stage == Stage::Answered);
    let client = host.client();
    let asked = tokio::spawn({
        let (client, root) = (client.clone(), host.root_node());
        async move { client.lookup(root, b"f").await }
    });
    host.until(|host| host.held().len() == 1).await;
    host.append("f", " and new");
    host.release_all();
    assert_eq!(asked.await.unwrap().unwrap().size, 3);
    assert_eq!(host.attributes_of("f").size, 11);
}

#[tokio::test]
async fn dropped_requests_count_as_cancelled() {
    let host = MemoryHost::new();
    host.create_generated("f", 64 * CHUNK_BYTES, 1);
    host.hold(|_, stage| matches!(stage, Stage::Part(0)));
    let client = host.client();
    let file = client.lookup(host.root_node(), b"f").await.unwrap();
    let receiver = client.read(read_of(&file, 0, CHUNK_BYTES), Lane::Ahead);
    host.until(|host| host.held().len() == 1).await;
    drop(receiver);
    host.until(|host| host.counters().cancelled == 1).await;
    assert_eq!((host.held().len(), host.counters().content_bytes), (0, 0));
}

#[tokio::test]
async fn renaming_over_replacing_and_linking_keep_the_counts() {
    let host = MemoryHost::new();
    let node = host.create_file("a", "1");
    host.create_hard_link("a", "dir/b");
    assert_eq!(host.attributes_of("dir/b").links, 2);
    host.create_file("c", "2");
    host.rename("c", "a");
    assert_eq!((host.attributes_of("dir/b").links, host.content("a")), (1, b"2".to_vec()));
    assert_ne!(host.replace("dir/b", "3"), node);
    assert!(!host.attributes_of("dir/b").is_settled());
    host.rename("dir", "moved");
    assert_eq!((host.content("moved/b"), host.attributes_of("").links), (b"3".to_vec(), 3));
}

#[tokio::test]
async fn requests_are_refused_as_the_protocol_says() {
    let host = MemoryHost::new();
    host.create_file("secret", "x");
    host.set_permissions("secret", 0o200);
    host.create_symlink("link", "secret");
    host.create_sparse("sparse", 1 << 20, &[(1 << 16, b"data")]);
    let (client, root) = (host.client(), host.root_node());
    let system = |errno| Some(ErrorCode::System(errno));
    assert_eq!(code(client.lookup(root, b"..").await), Some(ErrorCode::Malformed));
    assert_eq!(code(client.lookup(root, &[b'x'; 256]).await), system(Errno::ENAMETOOLONG));
    assert_eq!(code(client.lookup(root, b"none").await), system(Errno::ENOENT));
    let secret = client.lookup(root, b"secret").await.unwrap();
    assert_eq!(code(client.open(secret.node, OpenId(1), OpenAccess::READ).await), system(Errno::EACCES));
    assert_eq!(code(client.lookup(secret.node, b"x").await), system(Errno::ENOTDIR));
    let link = client.lookup(root, b"link").await.unwrap();
    assert_eq!(client.read_link(link.node).await.unwrap(), b"secret");
    assert_eq!(code(client.get_xattr(link.node, b"user.x").await), system(Errno::ENODATA));
    host.set_xattr("link", b"user.x", b"1");
    assert_eq!(client.list_xattr(link.node).await.unwrap(), b"user.x\0");
    let sparse = client.lookup(root, b"sparse").await.unwrap();
    assert_eq!(client.seek(sparse.node, 0, SeekTarget::Data).await.unwrap(), 1 << 16);
    let long = read_of(&sparse, 0, 65 * CHUNK_BYTES);
    assert_eq!(code(parts(&*client, long).await), Some(ErrorCode::Malformed));
}
