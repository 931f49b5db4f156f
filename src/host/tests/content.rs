//! Bytes of files: exactly those of the version that was asked for, or an error.

use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::chunk::testing::noise;
use crate::chunk::{CHUNK_BYTES, ChunkIndex, ChunkRange};
use crate::host::attributes::now;
use crate::host::index::{FileVersion, HashIndex};
use crate::proto::{
    CURRENT_BYTES_MAX, Errno, MANIFEST_CHUNKS_MAX, ManifestRequest, OpenId, READ_CHUNKS_MAX, close,
};

const SIZE: usize = 10 * CHUNK_BYTES as usize + 12_345;

async fn with_file() -> (World, Guest, Attributes) {
    let world = World::new(|export| fs::write(export.join("file"), pattern(SIZE)).unwrap());
    let guest = world.client().await;
    let file = guest.walk("file").await.unwrap();
    (world, guest, file)
}

#[tokio::test]
async fn chunks_come_whole_in_order_and_cut_at_the_end() {
    let (_world, guest, file) = with_file().await;
    let (parts, end) = guest.read(chunks(&file, 5, SIZE as u64 * 2)).await.unwrap();
    assert!(matches!(end, ContentHeader::End { observed } if observed >= file.observed));
    for (i, part) in parts.iter().enumerate() {
        let ContentHeader::Chunk { index, .. } = part.header else { panic!("{part:?}") };
        assert_eq!(index, ChunkIndex(i as u64));
    }
    let joined: Vec<u8> = parts.iter().flat_map(|part| part.bytes.to_vec()).collect();
    assert!(joined == pattern(SIZE));
    let middle = guest.bytes(chunks(&file, CHUNK_BYTES + 1, 1)).await.unwrap();
    assert!(middle == pattern(SIZE)[CHUNK_BYTES as usize..2 * CHUNK_BYTES as usize]);
}

#[tokio::test]
async fn both_engines_serve_the_same() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("export")).unwrap();
    fs::write(folder.path().join("export/file"), pattern(SIZE)).unwrap();
    let world = World { host: start(folder.path(), EngineKind::Blocking), folder };
    assert_eq!(world.host.status().engine, "blocking");
    let guest = world.client().await;
    let file = guest.walk("file").await.unwrap();
    assert!(guest.bytes(chunks(&file, 0, SIZE as u64)).await.unwrap() == pattern(SIZE));
}

#[tokio::test]
async fn a_piece_is_exactly_what_was_asked_for() {
    let (_world, guest, file) = with_file().await;
    for (offset, len, expected) in [
        (1, 4096, 4096),
        (CHUNK_BYTES - 3, 7, 7),
        (3, CHUNK_BYTES, CHUNK_BYTES),
        (SIZE as u64 - 5, 100, 5),
        (SIZE as u64, 10, 0),
        (u64::MAX - 1, 1, 0),
    ] {
        let (parts, end) = guest.read(piece(&file, offset, len)).await.unwrap();
        assert!(matches!(end, ContentHeader::End { .. }));
        assert_eq!(parts.len(), 1);
        assert!(matches!(parts[0].header, ContentHeader::Piece { offset: at, .. } if at == offset));
        let start = (offset as usize).min(SIZE);
        assert!(parts[0].bytes == pattern(SIZE)[start..start + expected as usize]);
    }
}

#[tokio::test]
async fn chunks_the_client_holds_are_not_sent() {
    let (world, guest, file) = with_file().await;
    let whole = pattern(SIZE);
    let hash = |i: usize| ChunkHash::of(&whole[i * CHUNK_BYTES as usize..(i + 1) * CHUNK_BYTES as usize]);
    let known = vec![None, Some(hash(3)), Some(hash(3))];
    let request = ReadRequest { known, ..chunks(&file, 2 * CHUNK_BYTES, 4 * CHUNK_BYTES) };
    let (parts, _) = guest.read(request).await.unwrap();
    let same: Vec<bool> =
        parts.iter().map(|part| matches!(part.header, ContentHeader::Same { .. })).collect();
    assert_eq!(same, [false, true, false, false]);
    assert!(matches!(parts[1].header, ContentHeader::Same { index: ChunkIndex(3) }));
    assert_eq!(world.host.status().content_bytes_sent, 3 * CHUNK_BYTES);
}

#[tokio::test]
async fn another_version_is_not_served() {
    let (world, guest, file) = with_file().await;
    let other = Version { size: file.size + 1, ..file.version() };
    let answer = guest.read(ReadRequest { version: other, ..chunks(&file, 0, 1) }).await;
    assert_eq!(code(answer), ErrorCode::VersionChanged);
    fs::write(world.path("file"), "short").unwrap();
    assert_eq!(code(guest.read(chunks(&file, 0, 1)).await), ErrorCode::VersionChanged);
    assert_eq!(code(guest.read(piece(&file, 0, 1)).await), ErrorCode::VersionChanged);
    let fresh = guest.attributes(Request::GetAttributes { node: file.node }).await.unwrap();
    assert_eq!(guest.bytes(chunks(&fresh, 0, 10)).await.unwrap(), b"short");
}

/// A writer that never stops is read all the same, and no answer holds two of its versions. Each lies in one system call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_under_a_busy_writer_is_read_as_it_is() {
    const BYTES: u64 = 64 * 1024;
    let (world, guest, file) = with_file().await;
    fs::write(world.path("file"), vec![0; BYTES as usize]).unwrap();
    let done = Arc::new(AtomicUsize::new(0));
    let stop = Arc::clone(&done);
    let path = world.path("file");
    let writer = std::thread::spawn(move || {
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        let mut round = 0u64;
        while stop.load(Ordering::Acquire) == 0 {
            round += 1;
            // First one end of the file, then the other: equal, or the first is ahead by one.
            file.write_all_at(&round.to_le_bytes(), 0).unwrap();
            file.write_all_at(&round.to_le_bytes(), BYTES - 8).unwrap();
            std::thread::sleep(std::time::Duration::from_micros(500));
        }
    });
    for _ in 0..50 {
        let bytes = guest.current(file.node, ByteRange::new(0, 1 << 20)).await.unwrap();
        assert_eq!(bytes.len() as u64, BYTES);
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let (first, second) = (word(0), word(BYTES as usize - 8));
        assert!(first == second || first == second + 1, "{first} and {second}");
    }
    done.store(1, Ordering::Release);
    writer.join().unwrap();
    let too_much = guest.current(file.node, ByteRange::new(0, CURRENT_BYTES_MAX + 1)).await;
    assert_eq!(too_much.unwrap_err().code, ErrorCode::Malformed);
    let past_all = guest.current(file.node, ByteRange::new(u64::MAX, 2)).await;
    assert_eq!(past_all.unwrap_err().code, ErrorCode::Malformed);
    let folder = guest.current(guest.root(), ByteRange::new(0, 1)).await;
    assert_eq!(folder.unwrap_err().code, ErrorCode::System(Errno::EISDIR));
}

/// A writer fills the file with one byte after the other and lets it lie for at least one whole read each time: every
/// answer that ends well holds one byte only, and some do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_versions_are_never_mixed() {
    const READS: usize = 60;
    let (world, guest, file) = with_file().await;
    let path = world.path("file");
    fs::write(&path, vec![0; SIZE]).unwrap();
    let reads = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&reads);
    let writer = std::thread::spawn(move || {
        for round in 1u8.. {
            let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
            // The size differs from round to round, as the clock of a file system may tick too slowly.
            file.set_len(0).unwrap();
            file.write_all_at(&vec![round; SIZE + usize::from(round)], 0).unwrap();
            let until = seen.load(Ordering::Acquire) + 2;
            while seen.load(Ordering::Acquire) < until {
                if until > READS {
                    return;
                }
                std::thread::yield_now();
            }
        }
    });
    let mut whole = 0;
    for _ in 0..READS {
        let fresh = guest.attributes(Request::GetAttributes { node: file.node }).await.unwrap();
        if let Ok((parts, ContentHeader::End { .. })) = guest.read(chunks(&fresh, 0, SIZE as u64)).await {
            let first = parts.first().map(|part| part.bytes[0]);
            assert!(parts.iter().all(|part| part.bytes.iter().all(|byte| Some(*byte) == first)), "mixed");
            whole += 1;
        }
        reads.fetch_add(1, Ordering::Release);
    }
    writer.join().unwrap();
    assert!(whole > 0);
}

#[tokio::test]
async fn an_open_file_is_read_after_its_last_name_is_gone() {
    let (world, guest, file) = with_file().await;
    let node = file.node;
    guest.attributes(Request::Open { node, open: OpenId(1) }).await.unwrap();
    assert_eq!(world.host.status().open_files, 1);
    fs::remove_file(world.path("file")).unwrap();
    let fresh = guest.attributes(Request::GetAttributes { node }).await.unwrap();
    assert_eq!(fresh.links, 0);
    assert!(guest.bytes(chunks(&fresh, 0, SIZE as u64)).await.unwrap() == pattern(SIZE));
    assert_eq!(guest.ask(Request::Close { node, open: OpenId(1) }).await, Ok(Reply::Done));
    let gone = guest.attributes(Request::GetAttributes { node }).await;
    assert_eq!(code(gone), ErrorCode::UnknownNode);
    assert_eq!(world.host.status().open_files, 0);
    assert_eq!(
        guest.ask(Request::Close { node, open: OpenId(1) }).await,
        Ok(Reply::Done),
        "may be said again"
    );
}

#[tokio::test]
async fn an_open_that_is_repeated_is_one_open() {
    let (world, guest, file) = with_file().await;
    let node = file.node;
    for _ in 0..2 {
        guest.attributes(Request::Open { node, open: OpenId(1) }).await.unwrap();
    }
    assert_eq!(world.host.status().open_files, 1, "its answer was lost, nothing else");
    guest.attributes(Request::Open { node, open: OpenId(2) }).await.unwrap();
    assert_eq!(world.host.status().open_files, 2);
    fs::remove_file(world.path("file")).unwrap();
    let repeated = guest.attributes(Request::Open { node, open: OpenId(2) }).await.unwrap();
    assert_eq!(repeated.links, 0, "what is open is open, also without a name");
    for open in [1, 1, 2] {
        assert_eq!(guest.ask(Request::Close { node, open: OpenId(open) }).await, Ok(Reply::Done));
    }
    assert_eq!(world.host.status().open_files, 0);
}

#[tokio::test]
async fn after_a_goodbye_nothing_stays_open() {
    let (world, guest, file) = with_file().await;
    guest.attributes(Request::Open { node: file.node, open: OpenId(1) }).await.unwrap();
    assert_eq!((world.host.status().sessions, world.host.status().open_files), (1, 1));
    guest.visitor.connection.close(close::GOODBYE, "");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while (world.host.status().sessions, world.host.status().open_files) != (0, 0) {
        assert!(std::time::Instant::now() < deadline, "the session is kept: {:?}", world.host.status());
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn open_files_outlive_the_connection() {
    let world = World::new(|export| fs::write(export.join("file"), "content").unwrap());
    let identity = Identity::generate().unwrap();
    let secret = world.host.ticket("export", &TicketTerms::default()).unwrap().secret();
    let visitor = Visitor::with_key(&world, &identity).await;
    let ticket = Some(secret);
    let welcome = visitor.greet(Hello { ticket, ..hello() }).await.unwrap();
    let first = Guest { visitor, welcome };
    let node = first.walk("file").await.unwrap().node;
    first.attributes(Request::Open { node, open: OpenId(1) }).await.unwrap();
    fs::remove_file(world.path("file")).unwrap();
    first.visitor.connection.close(0, "cut");
    let visitor = Visitor::with_key(&world, &identity).await;
    let welcome = visitor.greet(hello()).await.unwrap();
    assert_eq!(welcome.instance, first.welcome.instance);
    let second = Guest { visitor, welcome };
    let fresh = second.attributes(Request::GetAttributes { node }).await.unwrap();
    assert_eq!(second.bytes(piece(&fresh, 0, 10)).await.unwrap(), b"content");
    let stranger = world.client().await;
    let unknown = stranger.attributes(Request::GetAttributes { node }).await;
    assert_eq!(code(unknown), ErrorCode::UnknownNode, "what one session has open is not another's");
}

#[tokio::test]
async fn what_asks_for_too_much_breaks_the_protocol() {
    let (_world, guest, file) = with_file().await;
    for request in [
        chunks(&file, 0, (READ_CHUNKS_MAX + 1) * CHUNK_BYTES),
        chunks(&file, u64::MAX, 2),
        piece(&file, 0, CHUNK_BYTES + 1),
        ReadRequest { known: vec![None; 65], ..chunks(&file, 0, 1) },
    ] {
        assert_eq!(code(guest.read(request).await), ErrorCode::Malformed);
    }
}

#[tokio::test]
async fn the_sum_is_that_of_the_whole_file() {
    let (world, guest, file) = with_file().await;
    let sum = guest.ask(Request::Sum { node: file.node }).await.unwrap();
    assert_eq!(sum, Reply::Sum { hash: ChunkHash::of(&pattern(SIZE)), version: file.version() });
    fs::write(world.path("empty"), "").unwrap();
    let empty = guest.walk("empty").await.unwrap();
    let sum = guest.ask(Request::Sum { node: empty.node }).await.unwrap();
    assert_eq!(sum, Reply::Sum { hash: ChunkHash::of(b""), version: empty.version() });
}

#[tokio::test]
async fn a_file_that_may_not_be_read_says_so() {
    if nix::unistd::geteuid().is_root() {
        // Root may read everything; a device that is not there at least is an error of the file system.
        return;
    }
    let (world, guest, _) = with_file().await;
    let closed = world.path("closed");
    fs::write(&closed, "x").unwrap();
    fs::set_permissions(&closed, std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
    let file = guest.walk("closed").await.unwrap();
    assert_eq!(code(guest.read(piece(&file, 0, 1)).await), ErrorCode::System(Errno::EACCES));
}

#[tokio::test]
async fn content_comes_compressed_where_that_is_wished_and_not_in_vain() {
    let text = b"All work and no play makes a dull link. ".repeat(10_000);
    let world = World::new(|export| {
        for (name, content) in [("text", &text), ("text.ZIP", &text), ("noise", &noise(1, text.len()))] {
            fs::write(export.join(name), content).unwrap();
        }
    });
    let mut saved = 0;
    for (wish, name, expected) in [
        (CompressionWish::Always, "text", true),
        (CompressionWish::Always, "text.ZIP", false),
        (CompressionWish::Always, "noise", false),
        (CompressionWish::Never, "text", false),
    ] {
        let guest = world.client_that(Hello { compression: wish, ..hello() }).await;
        let file = guest.walk(name).await.unwrap();
        let (parts, _) = guest.read(chunks(&file, 0, file.size)).await.unwrap();
        for part in &parts {
            let is_packed = matches!(part.header, ContentHeader::Packed { .. });
            assert_eq!(is_packed, expected, "{wish:?} {name}");
        }
        let joined: Vec<u8> = parts.iter().flat_map(|part| part.bytes.to_vec()).collect();
        assert!(joined == fs::read(world.path(name)).unwrap());
        let piece = ByteRange::new(5, 100_000);
        let request = ReadRequest { range: piece, whole_chunks: false, ..chunks(&file, 0, 0) };
        let (pieces, _) = guest.read(request).await.unwrap();
        let is_packed = matches!(pieces[0].header, ContentHeader::PackedPiece { offset: 5, .. });
        assert_eq!(is_packed, expected, "{wish:?} {name}");
        assert!(pieces[0].bytes == joined[5..100_005]);
        let status = world.host.status();
        assert_eq!(status.content_bytes_saved > saved, expected, "{wish:?} {name}");
        saved = status.content_bytes_saved;
        // What the client holds is not compressed to be thrown away.
        let known = parts.iter().map(|part| Some(ChunkHash::of(&part.bytes))).collect();
        let (parts, _) = guest.read(ReadRequest { known, ..chunks(&file, 0, file.size) }).await.unwrap();
        assert!(parts.iter().all(|part| matches!(part.header, ContentHeader::Same { .. })));
    }
}

#[tokio::test]
async fn a_manifest_has_the_hashes_of_what_would_be_sent() {
    let (world, guest, file) = with_file().await;
    let ask = |first, count, version| {
        let chunks = ChunkRange::new(ChunkIndex(first), count);
        guest.ask(Request::Manifest(ManifestRequest { node: file.node, version, chunks }))
    };
    let hashes_of = |reply| match reply {
        Reply::Manifest { hashes, .. } => hashes,
        other => panic!("{other:?}"),
    };
    let right: Vec<_> = pattern(SIZE).chunks(CHUNK_BYTES as usize).map(ChunkHash::of).collect();
    assert_eq!(hashes_of(ask(0, 256, file.version()).await.unwrap()), right);
    assert_eq!(hashes_of(ask(3, 2, file.version()).await.unwrap()), right[3..5]);
    for first in [11, u64::MAX] {
        assert_eq!(hashes_of(ask(first, 256, file.version()).await.unwrap()), [], "behind the end");
    }
    assert_eq!(code(ask(0, MANIFEST_CHUNKS_MAX + 1, file.version()).await), ErrorCode::Malformed);
    let other = Version { size: file.size + 1, ..file.version() };
    assert_eq!(code(ask(0, 1, other).await), ErrorCode::VersionChanged);
    assert_eq!(world.host.status().content_bytes_sent, 0);
}

#[tokio::test]
async fn what_was_hashed_once_is_not_read_again_not_even_by_another_daemon() {
    let (mut world, guest, file) = with_file().await;
    let ask = async |guest: &Guest, first, count| {
        let chunks = ChunkRange::new(ChunkIndex(first), count);
        let request = ManifestRequest { node: file.node, version: file.version(), chunks };
        match guest.ask(Request::Manifest(request)).await.unwrap() {
            Reply::Manifest { hashes, computed } => (hashes, computed),
            other => panic!("{other:?}"),
        }
    };
    let right: Vec<_> = pattern(SIZE).chunks(CHUNK_BYTES as usize).map(ChunkHash::of).collect();
    for _ in 0..2 {
        assert_eq!(ask(&guest, 0, 11).await, (right.clone(), 11), "it is too young to be taken note of");
    }
    tokio::time::sleep(std::time::Duration::from_nanos(Version::SETTLE_NS.unsigned_abs())).await;
    guest.bytes(chunks(&file, 0, 3 * CHUNK_BYTES)).await.unwrap();
    assert_eq!(ask(&guest, 0, 11).await, (right.clone(), 8), "what was sent is known");
    assert_eq!(ask(&guest, 2, 4).await, (right[2..6].to_vec(), 0));
    let sum = guest.ask(Request::Sum { node: file.node }).await.unwrap();
    let status = world.host.status();
    assert_eq!((status.index_hits, status.index_misses), (3 + 4, 11 + 11 + 8 + 1));
    assert!(status.index_limit_bytes > 0);

    drop(guest);
    world = world.restart().await;
    let guest = world.client().await;
    assert_eq!(guest.walk("file").await.unwrap().version(), file.version());
    assert_eq!(ask(&guest, 0, 11).await, (right, 0));
    assert_eq!(guest.ask(Request::Sum { node: file.node }).await.unwrap(), sum);
    let status = world.host.status();
    assert_eq!((status.index_hits, status.index_misses, status.disk_inflight_max), (12, 0, 0));
}

/// Names told before are told again without hashing; whoever finds one wrong asks by another name, and the host learns.
#[tokio::test]
async fn a_wrong_note_is_mended_by_whoever_finds_it_wrong() {
    let (world, guest, file) = with_file().await;
    tokio::time::sleep(std::time::Duration::from_nanos(Version::SETTLE_NS.unsigned_abs())).await;
    drop(guest);
    let World { host, folder } = world;
    host.shutdown().await;
    let index = HashIndex::open(&folder.path().join("state"));
    let (of, wrong) = (FileVersion::of(file.node, file.version()), ChunkHash::of(b"another"));
    index.note(of, now(), ChunkIndex(1), wrong);
    index.close();
    drop(index);
    let world = World { host: start(folder.path(), EngineKind::Auto), folder };
    let guest = world.client().await;
    guest.walk("file").await.unwrap();
    let whole = pattern(SIZE);
    let named = async |known| {
        let request = ReadRequest { known, ..chunks(&file, 0, 3 * CHUNK_BYTES) };
        let (parts, _) = guest.read_unproved(request).await.unwrap();
        let joined: Vec<u8> = parts.iter().flat_map(|part| part.bytes.to_vec()).collect();
        assert!(joined == whole[..3 * CHUNK_BYTES as usize]);
        parts.iter().map(|part| part.hash().unwrap()).collect::<Vec<_>>()
    };
    let right: Vec<_> = whole.chunks(CHUNK_BYTES as usize).map(ChunkHash::of).take(3).collect();
    assert_eq!(named(vec![]).await, [right[0], wrong, right[2]]);
    assert_eq!(world.host.status().index_hits, 1);
    assert_eq!(named(vec![Some(ChunkHash::from_bytes([0; 32])); 3]).await, right);
    assert_eq!(world.host.status().index_hits, 1, "what is named is hashed");
    assert_eq!(named(vec![]).await, right);
    assert_eq!(world.host.status().index_hits, 1 + 3);
}
