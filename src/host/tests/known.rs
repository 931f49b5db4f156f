//! Content that clients write and the host has: only what they could read counts, and only as it is now.

use std::fs;

use super::*;
use crate::chunk::CHUNK_BYTES;
use crate::proto::{
    Change, ChangeRequest, Errno, Growth, KNOWN_CHUNKS_MAX, KnownChunk, Operation, OperationId, WriteAt,
    WriteRequest, Written,
};

const CHUNK: usize = CHUNK_BYTES as usize;

impl Guest {
    fn numbered(&self, id: u64) -> Operation {
        let sent_first = self.welcome.session;
        Operation { id: OperationId(id), answered_below: OperationId(0), sent_first }
    }

    async fn send_content(&self, id: u64, node: NodeId, offset: u64, bytes: &[u8]) -> Result<(), WireError> {
        let at = WriteAt::Offset(offset);
        let (len, hash) = (bytes.len() as u32, at.proof(bytes).hash);
        let request = Request::Write(WriteRequest { operation: self.numbered(id), node, at, len, hash });
        let message = [encode_frame(&request), bytes.to_vec()].concat();
        self.visitor.send(&message).await.reply().await.map(drop)
    }

    /// Whether chunks could be written somewhere else than where they are.
    async fn have(&self, chunks: &[ChunkHash]) -> Vec<bool> {
        self.have_for((self.root(), 0), chunks).await
    }

    async fn have_for(&self, (node, offset): (NodeId, u64), chunks: &[ChunkHash]) -> Vec<bool> {
        let chunks = chunks.to_vec();
        match self.ask(Request::HaveChunks { node, offset, chunks }).await.unwrap() {
            Reply::Have(have) => have,
            other => panic!("{other:?}"),
        }
    }

    async fn write_known(
        &self,
        id: u64,
        (node, offset): (NodeId, u64),
        chunks: &[ChunkHash],
    ) -> Result<(Written, Vec<bool>), WireError> {
        let (written, chunks) =
            self.write_known_behind(id, (node, offset), chunks, Growth::default()).await?;
        Ok((written, chunks.into_iter().map(|chunk| chunk == KnownChunk::Written).collect()))
    }

    async fn write_known_behind(
        &self,
        id: u64,
        (node, offset): (NodeId, u64),
        chunks: &[ChunkHash],
        growth: Growth,
    ) -> Result<(Written, Vec<KnownChunk>), WireError> {
        let change = Change::WriteKnown { node, offset, chunks: chunks.to_vec(), growth };
        let request = ChangeRequest { operation: self.numbered(id), change };
        match self.ask(Request::Change(request)).await? {
            Reply::Taken { written, chunks } => Ok((written, chunks)),
            other => panic!("{other:?}"),
        }
    }
}

/// Four chunks that differ, and their hashes.
fn content() -> (Vec<u8>, Vec<ChunkHash>) {
    let bytes = pattern(4 * CHUNK);
    let hashes = bytes.chunks(CHUNK).map(ChunkHash::of).collect();
    (bytes, hashes)
}

/// A host with an empty `old` and an empty `new`, into whose `old` a client has written the four chunks.
async fn written() -> (World, Guest, NodeId, NodeId) {
    let world = World::new(|export| {
        fs::create_dir(export.join("below")).unwrap();
        for name in ["old", "new", "below/file"] {
            fs::write(export.join(name), "").unwrap();
        }
    });
    let guest = world.client().await;
    let (old, new) = (guest.walk("old").await.unwrap().node, guest.walk("new").await.unwrap().node);
    guest.send_content(1, old, 0, &content().0).await.unwrap();
    (world, guest, old, new)
}

#[tokio::test]
async fn chunks_that_are_there_are_written_without_their_bytes() {
    let (world, guest, old, new) = written().await;
    let (bytes, hashes) = content();
    let strange = ChunkHash::of(b"strange");
    assert_eq!(guest.have(&[hashes[2], strange, hashes[0]]).await, [true, false, true]);
    assert!(guest.have(&[]).await.is_empty());
    assert_eq!(guest.have_for((old, 0), &hashes).await, [false; 4], "only where they are to go");
    assert_eq!(guest.have_for((old, CHUNK_BYTES), &hashes).await, [true; 4]);
    let asked = [hashes[3], strange, hashes[1]];
    fs::File::options().write(true).open(world.path("new")).unwrap().set_len(4 * CHUNK_BYTES).unwrap();
    let (written, taken) = guest.write_known(2, (new, CHUNK_BYTES), &asked).await.unwrap();
    assert_eq!(taken, [true, false, true]);
    assert_eq!(
        (written.offset, written.len, written.attributes.size),
        (CHUNK_BYTES, 2 * CHUNK_BYTES, 4 * CHUNK_BYTES)
    );
    let found = fs::read(world.path("new")).unwrap();
    assert!(found[CHUNK..2 * CHUNK] == bytes[3 * CHUNK..], "the fourth");
    assert!(found[2 * CHUNK..3 * CHUNK].iter().all(|byte| *byte == 0), "nothing where nothing was found");
    assert!(found[3 * CHUNK..] == bytes[CHUNK..2 * CHUNK], "the second");
}

#[tokio::test]
async fn what_was_read_and_what_was_asked_about_is_known_too() {
    let (bytes, hashes) = content();
    let world = World::new(|export| fs::write(export.join("old"), &bytes).unwrap());
    let guest = world.client().await;
    let old = guest.walk("old").await.unwrap();
    assert_eq!(guest.have(&hashes).await, [false; 4], "nobody has looked at it");
    guest.bytes(chunks(&old, 0, CHUNK_BYTES)).await.unwrap();
    assert_eq!(guest.have(&hashes).await, [true, false, false, false]);
    let all = crate::chunk::ChunkRange::new(crate::chunk::ChunkIndex(0), 4);
    let request = crate::proto::ManifestRequest { node: old.node, version: old.version(), chunks: all };
    guest.ask(Request::Manifest(request)).await.unwrap();
    assert_eq!(guest.have(&hashes).await, [true; 4]);
}

#[tokio::test]
async fn what_has_changed_since_or_is_gone_is_not_taken() {
    let (world, guest, _, new) = written().await;
    let (mut bytes, hashes) = content();
    // The same length, and other bytes under the second and third hash.
    bytes[CHUNK + 7] ^= 1;
    bytes[2 * CHUNK..3 * CHUNK].fill(9);
    fs::write(world.path("old"), &bytes).unwrap();
    fs::File::options().write(true).open(world.path("new")).unwrap().set_len(4 * CHUNK_BYTES).unwrap();
    let (_, taken) = guest.write_known(2, (new, 0), &hashes).await.unwrap();
    assert_eq!(taken, [true, false, false, true]);
    let found = fs::read(world.path("new")).unwrap();
    assert!(found[CHUNK..3 * CHUNK].iter().all(|byte| *byte == 0), "nothing wrong was written");
    // The first two were noted in `new` by then; what is left of `old` is cut short, then gone.
    fs::write(world.path("old"), &bytes[..10]).unwrap();
    fs::write(world.path("new"), "").unwrap();
    assert_eq!(guest.have(&hashes).await, [false; 4]);
    let (world, guest, _, new) = written().await;
    fs::remove_file(world.path("old")).unwrap();
    // A descriptor that the host keeps from before is trusted for a second.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    assert_eq!(guest.write_known(2, (new, 0), &hashes).await.unwrap().1, [false; 4]);
    assert_eq!(fs::read(world.path("new")).unwrap(), b"");
}

#[tokio::test]
async fn what_lies_outside_of_what_is_mounted_is_as_if_it_were_not() {
    let (world, guest, ..) = written().await;
    let (_, hashes) = content();
    assert_eq!(guest.have(&hashes).await, [true; 4]);
    let other = world.client_below("below").await;
    let file = other.walk("file").await.unwrap().node;
    assert_eq!(other.have(&hashes).await, [false; 4]);
    assert_eq!(other.write_known(1, (file, 0), &hashes).await.unwrap().1, [false; 4]);
    assert_eq!(fs::read(world.path("below/file")).unwrap(), b"");
    // Also where the file's own name is known to both: what the other wrote counts for the one tree and for the other apart.
    other.send_content(2, file, 0, &content().0).await.unwrap();
    assert_eq!(other.have(&hashes).await, [true; 4]);
}

#[tokio::test]
async fn it_is_done_once_and_only_within_the_bounds() {
    let (world, guest, _, new) = written().await;
    let (_, hashes) = content();
    let first = guest.write_known(2, (new, 0), &hashes[..1]).await.unwrap();
    fs::write(world.path("new"), "changed since").unwrap();
    assert_eq!(guest.write_known(2, (new, 0), &hashes[..1]).await.unwrap(), first, "it is answered again");
    assert_eq!(fs::read(world.path("new")).unwrap(), b"changed since");

    let many = vec![hashes[0]; KNOWN_CHUNKS_MAX + 1];
    assert_eq!(code(guest.write_known(3, (new, 0), &many).await), ErrorCode::Malformed);
    assert_eq!(
        code(guest.ask(Request::HaveChunks { node: new, offset: 0, chunks: many }).await),
        ErrorCode::Malformed
    );
    assert_eq!(code(guest.write_known(4, (new, 1), &hashes).await), ErrorCode::Malformed);
    for offset in [u64::MAX / CHUNK_BYTES * CHUNK_BYTES, i64::MAX as u64 / CHUNK_BYTES * CHUNK_BYTES] {
        let refused = guest.write_known(5 + offset, (new, offset), &hashes).await;
        assert_eq!(code(refused), ErrorCode::System(Errno::EFBIG));
    }
    let below = guest.walk("below").await.unwrap().node;
    assert!(guest.write_known(20, (below, 0), &hashes).await.is_err(), "a folder");
    assert_eq!(fs::read(world.path("new")).unwrap(), b"changed since");
}

#[tokio::test]
async fn bytes_that_are_not_what_their_hashes_say_are_neither_written_nor_noted() {
    let (world, guest, _, new) = written().await;
    let (mut bytes, _) = content();
    let at = WriteAt::Offset(0);
    let hash = at.proof(&bytes).hash;
    bytes[CHUNK] ^= 1;
    let len = bytes.len() as u32;
    let request = WriteRequest { operation: guest.numbered(2), node: new, at, len, hash };
    let message = [encode_frame(&Request::Write(request)), bytes.clone()].concat();
    assert_eq!(code(guest.visitor.send(&message).await.reply().await), ErrorCode::Malformed);
    assert_eq!(fs::read(world.path("new")).unwrap(), b"");
    assert_eq!(guest.have(&[ChunkHash::of(&bytes[CHUNK..2 * CHUNK])]).await, [false]);
}

/// Place of content that may make the file longer once it reaches to `offset`.
fn behind(offset: u64) -> WriteAt {
    WriteAt::Behind { offset, growth: Growth { from: offset }, run: None }
}

#[tokio::test]
async fn a_file_is_a_beginning_of_what_it_will_be_whatever_comes_first() {
    let (world, guest, _, new) = written().await;
    let (known, hashes) = content();
    let own: Vec<u8> = known.iter().map(|byte| byte ^ 0x55).collect();
    // What the host has, and what it has not, in turns: of each part the one half is sent and the other named.
    let mut whole = Vec::new();
    for number in 0..4 {
        let part = number * CHUNK..(number + 1) * CHUNK;
        whole.extend([&own[part.clone()], &known[part]].concat());
    }
    let is_beginning = || {
        let found = fs::read(world.path("new")).unwrap();
        assert!(whole.starts_with(&found), "{} bytes that are no beginning", found.len());
        found.len()
    };
    let send = async |number: u64| {
        let offset = number * CHUNK_BYTES;
        let growth = Growth { from: offset };
        if number.is_multiple_of(2) {
            let bytes = &whole[number as usize * CHUNK..(number as usize + 1) * CHUNK];
            let at = behind(offset);
            let (len, hash) = (bytes.len() as u32, at.proof(bytes).hash);
            let request = WriteRequest { operation: guest.numbered(10 + number), node: new, at, len, hash };
            let message = [encode_frame(&Request::Write(request)), bytes.to_vec()].concat();
            guest.visitor.send(&message).await.reply().await.unwrap();
        } else {
            let chunk = [hashes[number as usize / 2]];
            let (_, done) =
                guest.write_known_behind(10 + number, (new, offset), &chunk, growth).await.unwrap();
            assert_eq!(done, [KnownChunk::Written]);
        }
        is_beginning();
    };
    let watch = async {
        for _ in 0..20 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            assert_eq!(is_beginning(), 0, "the first part is not there");
        }
        send(0).await;
    };
    tokio::join!(send(7), send(3), send(5), send(6), send(1), send(2), send(4), watch);
    assert_eq!(is_beginning(), whole.len());
}

#[tokio::test]
async fn behind_a_chunk_that_is_missing_a_file_does_not_become_longer() {
    let (world, guest, _, new) = written().await;
    let (bytes, hashes) = content();
    let asked = [hashes[0], ChunkHash::of(b"strange"), hashes[2], hashes[3]];
    let (_, done) = guest.write_known_behind(2, (new, 0), &asked, Growth::default()).await.unwrap();
    assert_eq!(done, [KnownChunk::Written, KnownChunk::Missing, KnownChunk::Held, KnownChunk::Held]);
    assert!(fs::read(world.path("new")).unwrap() == bytes[..CHUNK]);
    let growth = Growth { from: 2 * CHUNK_BYTES };
    let at = (new, 2 * CHUNK_BYTES);
    let missing = vec![7; CHUNK];
    let (held, missing) = tokio::join!(
        guest.write_known_behind(3, at, &hashes[2..], growth),
        guest.send_content(4, new, CHUNK_BYTES, &missing),
    );
    missing.unwrap();
    assert_eq!(held.unwrap().1, [KnownChunk::Written; 2]);
    let found = fs::read(world.path("new")).unwrap();
    assert!(found[2 * CHUNK..] == bytes[2 * CHUNK..]);
}

#[tokio::test]
async fn what_lies_within_the_file_waits_for_nothing() {
    let (world, guest, old, new) = written().await;
    let growth = Growth { from: u64::MAX };
    let within = WriteAt::Behind { offset: 5, growth, run: None };
    guest.write(3, old, within, b"within").await.unwrap();
    assert_eq!(&fs::read(world.path("old")).unwrap()[5..11], b"within");
    // A program of the host makes it long enough.
    fs::write(world.path("new"), [1; 10]).unwrap();
    guest.write(4, new, behind(10), b"more").await.unwrap();
    assert_eq!(fs::read(world.path("new")).unwrap().len(), 14);
}

#[tokio::test]
async fn what_waits_for_a_write_that_fails_is_refused_at_once() {
    let (world, guest, _, new) = written().await;
    let failing = async {
        for number in 3.. {
            guest.write(number, new, WriteAt::Offset(i64::MAX as u64 - 2), b"too far").await.unwrap_err();
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    let waiting = async {
        tokio::select! {
            waiting = guest.write(2, new, behind(10), b"more") => waiting,
            () = failing => unreachable!("it never ends"),
        }
    };
    let waiting = tokio::time::timeout(std::time::Duration::from_secs(25), waiting).await;
    assert_eq!(waiting.expect("it waits until its time is over").unwrap_err().code, ErrorCode::TooEarly);
    assert!(fs::read(world.path("new")).unwrap().is_empty());
}
