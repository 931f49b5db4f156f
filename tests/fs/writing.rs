//! Own changes of content.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use wormhole::cache::NoCache;
use wormhole::chunk::{ByteRange, CHUNK_BYTES};
use wormhole::client::memory::{MemoryHost, Stage};
use wormhole::client::{CallError, CallFuture, Client, ContentPart, FirstSession, Lane, LinkState, ListPart};
use wormhole::fetch::{FetchConfig, Fetcher};
use wormhole::fs::{
    CreateRequest, EventLane, FileSystem, FsConfig, FsError, FsEvent, Inode, OpenRequest, WriteHow,
};
use wormhole::proto::{
    AllocateHow, Attributes, Change, Errno, NodeId, ReadRequest, Reply, Request, WireError, WriteAt, Written,
};

use super::World;
use super::changing::{WRITE, create, world};

impl World {
    /// Writes as the FUSE adapter does: at once if possible.
    pub(crate) async fn write(&self, handle: u64, offset: u64, bytes: &[u8]) -> Result<u32, FsError> {
        if let Some(written) = self.fs.write_now(handle, offset, bytes, WriteHow::default()) {
            return written;
        }
        self.fs.write(handle, offset, Bytes::copy_from_slice(bytes), WriteHow::default()).await
    }

    pub(crate) async fn write_as(&self, how: WriteHow, handle: u64, offset: u64, bytes: &[u8]) {
        if let Some(written) = self.fs.write_now(handle, offset, bytes, how) {
            written.unwrap();
            return;
        }
        self.fs.write(handle, offset, Bytes::copy_from_slice(bytes), how).await.unwrap();
    }
}

#[tokio::test]
async fn what_was_written_is_read_at_once_through_every_handle() {
    let host = MemoryHost::new();
    host.create_generated("f", 3 * CHUNK_BYTES, 1);
    let world = world(host);
    let file = world.walk("f").await.unwrap();
    let reader = world.open("f").await.handle;
    let writer = world.fs.open(file.inode, WRITE).await.unwrap().handle;
    let mut expected = world.host.content("f");
    assert_eq!(world.read(reader, 0, 3 * CHUNK_BYTES).await.unwrap(), expected);
    for (number, offset) in
        [0, 5, CHUNK_BYTES - 2, 3 * CHUNK_BYTES - 1, 3 * CHUNK_BYTES + 99].into_iter().enumerate()
    {
        let bytes = [number as u8; 7];
        assert_eq!(world.write(writer, offset, &bytes).await.unwrap(), 7);
        let end = offset as usize + 7;
        expected.resize(expected.len().max(end), 0);
        expected[offset as usize..end].copy_from_slice(&bytes);
        assert_eq!(world.fs.getattr(file.inode).await.unwrap().0.size, expected.len() as u64);
        for handle in [reader, writer] {
            // A version that lies still is read as such, with all that is kept of it.
            world.host.advance(std::time::Duration::from_secs(5));
            for _ in 0..2 {
                let read = world.read(handle, 0, expected.len() as u64 + 10).await.unwrap();
                assert!(read == expected, "write {number} through handle {handle}");
            }
        }
    }
    assert!(world.host.content("f") == expected);
    world.fs.release(writer).await.unwrap();
    world.fs.release(reader).await.unwrap();
}

#[tokio::test]
async fn appending_goes_to_the_end_wherever_that_is_by_then() {
    let host = MemoryHost::new();
    host.create_file("log", "one\n");
    let world = world(host);
    let file = world.walk("log").await.unwrap();
    let handle = world.fs.open(file.inode, WRITE).await.unwrap().handle;
    world.host.append("log", "somebody else\n");
    let appends = WriteHow { appends: true, ..WriteHow::default() };
    world.write_as(appends, handle, 4, b"two\n").await;
    world.fs.all_sent().await;
    assert_eq!(world.host.content("log"), b"one\nsomebody else\ntwo\n");
    assert_eq!(world.fs.getattr(file.inode).await.unwrap().0.size, 22);
    // A page that was changed in memory has its place, and so has what is written after O_APPEND was taken back.
    world.write(handle, 0, b"ONE").await.unwrap();
    world.fs.flush(handle).await.unwrap();
    assert_eq!(world.host.content("log"), b"ONE\nsomebody else\ntwo\n");
}

#[tokio::test]
async fn room_holes_and_copies_are_made_on_the_host() {
    let host = MemoryHost::new();
    host.create_file("f", "0123456789");
    let world = world(host);
    let file = world.walk("f").await.unwrap();
    let handle = world.fs.open(file.inode, WRITE).await.unwrap().handle;
    world.fs.allocate(handle, ByteRange::new(2, 3), AllocateHow::PunchHole).await.unwrap();
    assert_eq!(world.read(handle, 0, 100).await.unwrap(), b"01\0\0\x0056789");
    world.fs.allocate(handle, ByteRange::new(0, 12), AllocateHow::Grow).await.unwrap();
    assert_eq!(world.fs.getattr(file.inode).await.unwrap().0.size, 12);
    let (_, other) = world.fs.create(Inode::ROOT, b"copy", create(true)).await.unwrap();
    let sent = world.host.counters().content_bytes;
    let copied = world.fs.copy_range((handle, ByteRange::new(5, 5)), (other.handle, 1)).await.unwrap();
    assert_eq!(copied, 5);
    assert_eq!(world.host.counters().content_bytes, sent);
    assert_eq!(world.read(other.handle, 0, 100).await.unwrap(), b"\x0056789");
}

#[tokio::test]
async fn who_seems_to_copy_gets_nothing_ahead_of_a_large_file() {
    let host = MemoryHost::new();
    host.create_generated("f", 8 << 20, 1);
    host.set_link(std::time::Duration::from_millis(50), 0);
    let world = world(host);
    let file = world.walk("f").await.unwrap();
    let opened_by = async |process| {
        let copies = world.fs.seems_to_copy(process);
        world.host.reset_counters();
        let request = OpenRequest { copies, ..OpenRequest::default() };
        let opened = world.fs.open(file.inode, request).await.unwrap();
        let waited = world.host.until(|host| host.counters().content_bytes > 0);
        let _ = tokio::time::timeout(std::time::Duration::from_millis(200), waited).await;
        world.fs.release(opened.handle).await.unwrap();
        world.host.counters().content_bytes
    };
    world.fs.lookup_for(7, Inode::ROOT, b"copy").await.unwrap();
    world.fs.lookup_for(8, Inode::ROOT, b"f").await.unwrap();
    assert_eq!(opened_by(7).await, 0);
    assert_eq!(opened_by(8).await, 65_536);
}

#[tokio::test]
async fn a_full_disk_is_told_to_the_writer() {
    let world = world(MemoryHost::new());
    let (_, opened) = world.fs.create(Inode::ROOT, b"f", create(true)).await.unwrap();
    world
        .host
        .set_errors(|request| matches!(request, Request::Write(_)).then(|| WireError::system(Errno::ENOSPC)));
    let mut told = world.write(opened.handle, 0, b"x").await;
    if told.is_ok() {
        told = world.fs.flush(opened.handle).await.map(|()| 0);
    }
    assert_eq!(told.unwrap_err().errno(), Errno::ENOSPC);
}

#[tokio::test]
async fn a_write_by_anybody_but_root_takes_the_set_id_bits_away() {
    let world = world(MemoryHost::new());
    let program = CreateRequest { permissions: 0o6755, ..create(true) };
    let (entry, opened) = world.fs.create(Inode::ROOT, b"program", program).await.unwrap();
    let mut events = world.fs.take_events(EventLane::Copies).unwrap();
    world.write(opened.handle, 0, b"by root").await.unwrap();
    assert_eq!(world.fs.getattr(entry.inode).await.unwrap().0.permissions, 0o6755);
    assert!(events.try_recv().is_err());
    let drops_set_id = WriteHow { drops_set_id: true, ..WriteHow::default() };
    world.write_as(drops_set_id, opened.handle, 0, b"by another").await;
    assert_eq!(world.fs.getattr(entry.inode).await.unwrap().0.permissions, 0o755);
    assert!(matches!(events.try_recv(), Ok(FsEvent::InvalidateAttributes { inode }) if inode == entry.inode));
    world.host.reset_counters();
    world.write_as(drops_set_id, opened.handle, 0, b"once more").await;
    world.fs.flush(opened.handle).await.unwrap();
    assert_eq!(world.host.counters().changes, 0, "there is nothing left to take away");
}

#[tokio::test]
async fn an_open_file_is_written_on_after_the_daemon_restarted() {
    let host = MemoryHost::new();
    host.create_file("f", "0123");
    let world = world(host);
    let file = world.walk("f").await.unwrap();
    let handle = world.fs.open(file.inode, WRITE).await.unwrap().handle;
    world.host.restart();
    world.write(handle, 1, b"abc").await.unwrap();
    world.fs.flush(handle).await.unwrap();
    assert_eq!(world.host.opens(file.attributes.node), 1);
    assert_eq!(world.host.content("f"), b"0abc");
}

#[tokio::test]
async fn small_writes_cost_no_round_trip_each_and_close_waits_for_all() {
    let world = world(MemoryHost::new());
    let (entry, opened) = world.fs.create(Inode::ROOT, b"f", create(true)).await.unwrap();
    world.host.hold(|request, stage| matches!(request, Request::Write(_)) && stage == Stage::Arrived);
    let expected: Vec<u8> = (0..1000u32).flat_map(|number| [number as u8; 100]).collect();
    for (number, bytes) in expected.chunks(100).enumerate() {
        world.write(opened.handle, number as u64 * 100, bytes).await.unwrap();
    }
    let (attributes, _) = world.fs.getattr(entry.inode).await.unwrap();
    assert_eq!(attributes.size, 100_000, "what is not sent counts");
    assert!(attributes.mtime > entry.attributes.mtime);
    assert_eq!(world.fs.unsent_bytes(), 100_000);
    let (fs, handle) = (Arc::clone(&world.fs), opened.handle);
    let closing = tokio::spawn(async move { fs.flush(handle).await });
    world.host.until(|host| host.held().len() >= 16).await;
    assert!(!closing.is_finished());
    world.host.release_all();
    closing.await.unwrap().unwrap();
    assert_eq!(world.fs.unsent_bytes(), 0);
    assert!(world.host.content("f") == expected);
    assert!(world.host.counters().writes < 30, "{} writes", world.host.counters().writes);
}

#[tokio::test]
async fn a_writer_who_is_ahead_of_the_link_waits() {
    let world = world(MemoryHost::new());
    let (_, opened) = world.fs.create(Inode::ROOT, b"f", create(true)).await.unwrap();
    world.host.hold(|request, stage| matches!(request, Request::Write(_)) && stage == Stage::Arrived);
    let (fs, handle) = (Arc::clone(&world.fs), opened.handle);
    let bytes = Bytes::from(vec![7; 1 << 20]);
    let writing = tokio::spawn(async move {
        for number in 0..40 {
            fs.write(handle, number << 20, bytes.clone(), WriteHow::default()).await.unwrap();
        }
    });
    world.host.until(|host| host.held().len() == 16).await;
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    assert!(!writing.is_finished());
    assert_eq!(world.fs.unsent_bytes(), 32 << 20, "the budget, and no more");
    world.host.release_all();
    writing.await.unwrap();
    world.fs.fsync(handle, false).await.unwrap();
    assert_eq!(world.host.content("f").len(), 40 << 20);
}

#[tokio::test]
async fn a_failure_behind_the_writers_back_is_told_once_to_each_handle() {
    let world = world(MemoryHost::new());
    let (entry, one) = world.fs.create(Inode::ROOT, b"f", create(true)).await.unwrap();
    let other = world.fs.open(entry.inode, WRITE).await.unwrap();
    world
        .host
        .set_errors(|request| matches!(request, Request::Write(_)).then(|| WireError::system(Errno::ENOSPC)));
    world.write(one.handle, 0, b"lost").await.unwrap();
    world.fs.all_sent().await;
    world.host.set_errors(|_| None);
    for handle in [one.handle, other.handle] {
        assert_eq!(world.fs.fsync(handle, false).await.unwrap_err().errno(), Errno::ENOSPC);
        world.fs.fsync(handle, false).await.unwrap();
    }
    let later = world.fs.open(entry.inode, WRITE).await.unwrap();
    world.fs.flush(later.handle).await.unwrap();
}

/// Of one that a program's long write was cut into, the kernel tells nobody: it says how much was written before.
#[tokio::test]
async fn a_failure_that_a_write_was_told_is_told_by_the_close_and_the_sync_behind_it() {
    let world = world(MemoryHost::new());
    let (_, opened) = world.fs.create(Inode::ROOT, b"f", create(true)).await.unwrap();
    let handle = opened.handle;
    world
        .host
        .set_errors(|request| matches!(request, Request::Write(_)).then(|| WireError::system(Errno::ENOSPC)));
    world.write(handle, 0, b"lost").await.unwrap();
    world.fs.all_sent().await;
    world.host.set_errors(|_| None);
    assert_eq!(world.write(handle, 4, b"told").await.unwrap_err().errno(), Errno::ENOSPC);
    assert_eq!(world.write(handle, 4, b"goes").await.unwrap(), 4);
    assert_eq!(world.fs.flush(handle).await.unwrap_err().errno(), Errno::ENOSPC);
    world.fs.flush(handle).await.unwrap();
    assert_eq!(world.fs.fsync(handle, false).await.unwrap_err().errno(), Errno::ENOSPC);
    world.fs.fsync(handle, false).await.unwrap();
}

#[tokio::test]
async fn who_waits_for_a_host_that_is_away_is_told_and_nothing_is_lost() {
    let patience = std::time::Duration::from_millis(50);
    let config = FsConfig { freshness: super::LASTING, read_only: false, patience, ..FsConfig::default() };
    let world = World::with_config(MemoryHost::new(), config);
    let (_, opened) = world.fs.create(Inode::ROOT, b"f", create(true)).await.unwrap();
    world.host.set_connected(false);
    world.write(opened.handle, 0, b"kept").await.unwrap();
    for _ in 0..2 {
        assert_eq!(world.fs.flush(opened.handle).await.unwrap_err().errno(), Errno::ETIMEDOUT);
    }
    assert_eq!(world.read(opened.handle, 0, 4).await.unwrap_err().errno(), Errno::ETIMEDOUT);
    world.host.set_connected(true);
    world.fs.fsync(opened.handle, false).await.unwrap();
    assert_eq!(world.host.content("f"), b"kept");
}

/// A client in which writes panic, as by a mistake of ours.
struct Broken(Arc<dyn Client>);

impl Client for Broken {
    fn call(&self, request: Request, lane: Lane) -> CallFuture<Reply> {
        self.0.call(request, lane)
    }

    fn change(&self, change: Change, first: &FirstSession) -> CallFuture<Reply> {
        self.0.change(change, first)
    }

    fn write(&self, _: NodeId, _: WriteAt, _: Bytes, _: &FirstSession) -> CallFuture<Written> {
        Box::pin(async { panic!("on purpose") })
    }

    fn list(&self, node: NodeId) -> mpsc::Receiver<Result<ListPart, CallError>> {
        self.0.list(node)
    }

    fn read(&self, request: ReadRequest, lane: Lane) -> mpsc::Receiver<Result<ContentPart, CallError>> {
        self.0.read(request, lane)
    }

    fn read_current(&self, node: NodeId, range: ByteRange) -> CallFuture<Bytes> {
        self.0.read_current(node, range)
    }

    fn root(&self) -> Attributes {
        self.0.root()
    }

    fn link(&self) -> LinkState {
        self.0.link()
    }
}

#[tokio::test]
async fn what_is_lost_by_a_mistake_of_ours_is_told() {
    let host = MemoryHost::new();
    host.create_file("f", "");
    let client: Arc<dyn Client> = Arc::new(Broken(host.client()));
    let fetcher = Fetcher::new(Arc::clone(&client), Arc::new(NoCache), FetchConfig::default());
    let config = FsConfig { read_only: false, ..FsConfig::default() };
    let fs = FileSystem::new(client, Arc::clone(&fetcher), config);
    let world = World { host, fs, fetcher };
    let file = world.walk("f").await.unwrap();
    let handle = world.fs.open(file.inode, WRITE).await.unwrap().handle;
    assert_eq!(world.write(handle, 0, b"gone").await.unwrap(), 4);
    assert_eq!(world.fs.fsync(handle, false).await.unwrap_err().errno(), Errno::EIO);
}
