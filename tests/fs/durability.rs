//! What `fsync`, `O_SYNC` and `close` promise, and in how many round trips; appends, which keep their order.

use std::sync::Arc;

use wormhole::client::memory::{MemoryHost, Stage};
use wormhole::fs::{FsError, Inode, WriteHow};
use wormhole::proto::{Errno, Request, WireError, WriteAt};

use super::World;
use super::changing::{WRITE, create, world};

const APPENDS: WriteHow = WriteHow { appends: true, syncs: false, drops_set_id: false };
const SYNCS: WriteHow = WriteHow { appends: false, syncs: true, drops_set_id: false };

fn is_write_or_sync(request: &Request, stage: Stage) -> bool {
    matches!(request, Request::Write(_) | Request::Sync { .. }) && stage == Stage::Arrived
}

/// Begins an `fsync` and returns once the host holds so many requests, all of which have arrived before any was answered.
async fn held_at_once(
    world: &World,
    handle: u64,
    count: usize,
) -> tokio::task::JoinHandle<Result<(), FsError>> {
    let fs = Arc::clone(&world.fs);
    let syncing = tokio::spawn(async move { fs.fsync(handle, false).await });
    world.host.until(|host| host.held().len() == count).await;
    syncing
}

#[tokio::test]
async fn a_machine_that_restarts_between_write_and_fsync_is_noticed() {
    let world = world(MemoryHost::new());
    let (_, opened) = world.fs.create(Inode::ROOT, b"f", create(true)).await.unwrap();
    world.write(opened.handle, 0, b"safe").await.unwrap();
    world.fs.fsync(opened.handle, false).await.unwrap();
    world.host.restart();
    world.fs.fsync(opened.handle, false).await.unwrap();
    world.write(opened.handle, 0, b"lost?").await.unwrap();
    world.fs.flush(opened.handle).await.unwrap();
    world.host.restart();
    assert_eq!(world.fs.fsync(opened.handle, true).await, Err(FsError::LostWrites));
    world.fs.fsync(opened.handle, true).await.unwrap();
    // At the close, where nobody asked before; and a write that goes well does not hide it.
    world.write(opened.handle, 0, b"lost?").await.unwrap();
    world.fs.flush(opened.handle).await.unwrap();
    world.host.restart();
    world.write(opened.handle, 9, b"later").await.unwrap();
    assert_eq!(world.fs.flush(opened.handle).await, Err(FsError::LostWrites));
    world.fs.flush(opened.handle).await.unwrap();
}

#[tokio::test]
async fn a_synchronous_write_is_on_the_disk_when_it_returns() {
    let world = world(MemoryHost::new());
    let (entry, _) = world.fs.create(Inode::ROOT, b"f", create(true)).await.unwrap();
    let handle = world.fs.open(entry.inode, WRITE).await.unwrap().handle;
    assert_eq!(world.host.counters().syncs, 0);
    world.write_as(SYNCS, handle, 0, b"safe").await;
    assert_eq!(world.host.counters().syncs, 1);
    let directory = world.fs.opendir(Inode::ROOT).unwrap();
    world.fs.fsyncdir(directory, false).await.unwrap();
    assert_eq!(world.host.counters().syncs, 2);
}

#[tokio::test]
async fn an_fsync_waits_for_what_was_written_before_it_and_not_for_what_comes_after() {
    let world = world(MemoryHost::new());
    let (_, opened) = world.fs.create(Inode::ROOT, b"f", create(true)).await.unwrap();
    world.host.hold(|request, stage| {
        let is_late = matches!(request, Request::Write(write) if write.at.place().is_some_and(|(offset, ..)| offset == 100));
        stage == Stage::Arrived && (is_late || matches!(request, Request::Sync { .. }))
    });
    world.write(opened.handle, 0, b"before").await.unwrap();
    let syncing = held_at_once(&world, opened.handle, 1).await;
    world.write(opened.handle, 100, b"after").await.unwrap();
    world.host.until(|host| host.held().len() == 2).await;
    assert!(world.host.release_one());
    syncing.await.unwrap().unwrap();
    assert_eq!(world.fs.unsent_bytes(), 5);
    world.host.release_all();
    world.fs.all_sent().await;
}

#[tokio::test]
async fn a_small_write_and_its_fsync_are_one_round_trip() {
    let world = world(MemoryHost::new());
    let (_, opened) = world.fs.create(Inode::ROOT, b"f", create(true)).await.unwrap();
    world.host.hold(is_write_or_sync);
    world.write(opened.handle, 0, &[1; 4096]).await.unwrap();
    let syncing = held_at_once(&world, opened.handle, 2).await;
    let held = world.host.held();
    let at = held.iter().position(|(request, _)| matches!(request, Request::Sync { .. })).unwrap();
    assert!(matches!(&held[at].0, Request::Sync { after, .. } if after.len() == 1), "{held:?}");
    world.host.release_all();
    syncing.await.unwrap().unwrap();
    assert_eq!(world.fs.unsynced_bytes(), 0);
    let counters = world.host.counters();
    assert_eq!((counters.writes, counters.syncs), (1, 1));
}

#[tokio::test]
async fn a_sync_that_overtakes_what_it_waits_for_waits_for_it() {
    let world = world(MemoryHost::new());
    let (_, opened) = world.fs.create(Inode::ROOT, b"f", create(true)).await.unwrap();
    world.host.hold(|request, stage| matches!(request, Request::Write(_)) && stage == Stage::Arrived);
    world.write(opened.handle, 0, b"late").await.unwrap();
    let syncing = held_at_once(&world, opened.handle, 1).await;
    world.host.until(|host| host.counters().syncs == 1).await;
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    assert!(!syncing.is_finished());
    world.host.release_all();
    syncing.await.unwrap().unwrap();
    assert_eq!(world.host.content("f"), b"late");
}

#[tokio::test]
async fn scattered_writes_and_their_fsync_are_one_round_trip() {
    let world = world(MemoryHost::new());
    let (_, opened) = world.fs.create(Inode::ROOT, b"f", create(true)).await.unwrap();
    world.host.hold(is_write_or_sync);
    for number in 0..50u8 {
        world.write(opened.handle, u64::from(number) * 8192, &[number; 4096]).await.unwrap();
    }
    let syncing = held_at_once(&world, opened.handle, 51).await;
    world.host.release_all();
    syncing.await.unwrap().unwrap();
    assert_eq!(world.host.counters().syncs, 1);
    assert_eq!(world.host.content_at("f", 49 * 8192, 1), [49]);
}

#[tokio::test]
async fn a_synchronous_write_is_one_round_trip_also_where_it_appends() {
    for appends in [false, true] {
        let host = MemoryHost::new();
        host.create_file("f", "begin,");
        let world = world(host);
        let file = world.walk("f").await.unwrap();
        let handle = world.fs.open(file.inode, WRITE).await.unwrap().handle;
        world.host.hold(is_write_or_sync);
        let fs = Arc::clone(&world.fs);
        let writing =
            tokio::spawn(
                async move { fs.write(handle, 6, "end".into(), WriteHow { appends, ..SYNCS }).await },
            );
        world.host.until(|host| host.held().len() == 2).await;
        world.host.release_all();
        assert_eq!(writing.await.unwrap().unwrap(), 3);
        assert_eq!(world.host.content("f"), b"begin,end");
        assert_eq!(world.fs.unsynced_bytes(), 0);
    }
}

#[tokio::test]
async fn what_had_to_be_sent_anew_is_synced_anew() {
    let host = MemoryHost::new();
    host.create_file("f", "");
    let world = world(host);
    let file = world.walk("f").await.unwrap();
    let handle = world.fs.open(file.inode, WRITE).await.unwrap().handle;
    // The daemon restarts while both are on their way, and knows the file no more.
    world.host.hold(is_write_or_sync);
    world.write(handle, 0, b"kept").await.unwrap();
    let syncing = held_at_once(&world, handle, 2).await;
    world.host.restart();
    // The sync is answered while what it should have waited for is not written yet.
    world.host.hold(|request, stage| matches!(request, Request::Write(_)) && stage == Stage::Arrived);
    while world.host.release_one() {}
    world.host.until(|host| host.counters().writes == 2).await;
    world.host.release_all();
    syncing.await.unwrap().unwrap();
    assert_eq!(world.host.content("f"), b"kept");
    assert_eq!(world.fs.unsynced_bytes(), 0);
    assert_eq!(world.host.counters().syncs, 2);
}

#[tokio::test]
async fn a_machine_that_restarts_is_noticed_by_a_close_that_nothing_else_came_before() {
    let world = world(MemoryHost::new());
    let (entry, one) = world.fs.create(Inode::ROOT, b"f", create(true)).await.unwrap();
    let other = world.fs.open(entry.inode, WRITE).await.unwrap();
    world.write(one.handle, 0, b"lost?").await.unwrap();
    world.fs.flush(one.handle).await.unwrap();
    world.host.restart();
    // Each handle hears of it, whichever of its calls comes first, and from a sync in any case.
    assert_eq!(world.fs.flush(one.handle).await, Err(FsError::LostWrites));
    world.fs.flush(one.handle).await.unwrap();
    assert_eq!(world.write(other.handle, 0, b"later").await, Err(FsError::LostWrites));
    world.write(other.handle, 0, b"later").await.unwrap();
    for handle in [one.handle, other.handle] {
        assert_eq!(world.fs.fsync(handle, false).await, Err(FsError::LostWrites));
        world.fs.fsync(handle, false).await.unwrap();
    }
    // What was synced is safe.
    world.host.restart();
    world.fs.flush(one.handle).await.unwrap();
    world.fs.flush(other.handle).await.unwrap();
}

#[tokio::test]
async fn a_restart_that_a_later_write_hears_of_is_told_at_the_fsync_behind_it() {
    let world = world(MemoryHost::new());
    let (_, opened) = world.fs.create(Inode::ROOT, b"f", create(true)).await.unwrap();
    for also_close in [false, true] {
        world.write(opened.handle, 0, b"lost?").await.unwrap();
        world.fs.all_sent().await;
        world.host.restart();
        world.write(opened.handle, 9, b"later").await.unwrap();
        if also_close {
            assert_eq!(world.fs.flush(opened.handle).await, Err(FsError::LostWrites));
        }
        assert_eq!(world.fs.fsync(opened.handle, true).await, Err(FsError::LostWrites));
        world.fs.fsync(opened.handle, true).await.unwrap();
    }
}

#[tokio::test]
async fn small_appends_join_keep_their_order_and_are_seen_before_they_arrive() {
    let host = MemoryHost::new();
    host.create_file("log", "begin\n");
    let world = world(host);
    let file = world.walk("log").await.unwrap();
    let one = world.fs.open(file.inode, WRITE).await.unwrap().handle;
    let other = world.fs.open(file.inode, WRITE).await.unwrap().handle;
    world.host.hold(|request, stage| matches!(request, Request::Write(_)) && stage == Stage::Arrived);
    let mut expected = b"begin\n".to_vec();
    for number in 0..500 {
        let line = format!("line {number}\n");
        let handle = if number % 3 == 0 { one } else { other };
        world.write_as(APPENDS, handle, 0, line.as_bytes()).await;
        expected.extend(line.as_bytes());
    }
    assert_eq!(world.fs.getattr(file.inode).await.unwrap().0.size, expected.len() as u64);
    // Somebody else is faster: his lines are not torn, nor are ours.
    world.host.append("log", "somebody else\n");
    world.host.release_all();
    assert_eq!(world.read(one, 0, 100_000).await.unwrap(), world.host.content("log"));
    let found = String::from_utf8(world.host.content("log")).unwrap();
    let ours = found.replace("somebody else\n", "");
    assert_eq!(ours.as_bytes(), expected);
    assert!(world.host.counters().writes <= 3, "{} writes", world.host.counters().writes);
}

#[tokio::test]
async fn appends_and_other_writes_of_a_file_keep_their_order() {
    let world = world(MemoryHost::new());
    let (entry, plain) = world.fs.create(Inode::ROOT, b"f", create(true)).await.unwrap();
    let append = world.fs.open(entry.inode, WRITE).await.unwrap().handle;
    let mut expected = Vec::new();
    for number in 0..60u8 {
        let bytes = vec![number; 100];
        if number % 4 == 0 {
            // Behind the end, as it is with what is queued.
            world.write(plain.handle, expected.len() as u64 + 50, &bytes).await.unwrap();
            expected.extend([0; 50]);
        } else {
            world.write_as(APPENDS, append, 0, &bytes).await;
        }
        expected.extend(bytes);
    }
    world.fs.fsync(append, false).await.unwrap();
    assert!(world.host.content("f") == expected);
}

#[tokio::test]
async fn behind_an_append_that_failed_nothing_is_appended_until_it_was_told() {
    let world = world(MemoryHost::new());
    let (entry, _) = world.fs.create(Inode::ROOT, b"log", create(true)).await.unwrap();
    let handle = world.fs.open(entry.inode, WRITE).await.unwrap().handle;
    world.host.hold(|request, stage| matches!(request, Request::Write(_)) && stage == Stage::Arrived);
    for line in ["one\n", "two\n", "three\n"] {
        world.write_as(APPENDS, handle, 0, line.as_bytes()).await;
    }
    world.host.until(|host| !host.held().is_empty()).await;
    let full = |request: &Request| match request {
        Request::Write(write) if write.at == (WriteAt::End { believed: 0 }) => {
            Some(WireError::system(Errno::ENOSPC))
        }
        _ => None,
    };
    world.host.set_errors(full);
    world.host.release_all();
    assert_eq!(world.fs.fsync(handle, false).await.unwrap_err().errno(), Errno::ENOSPC);
    assert_eq!((world.host.content("log"), world.fs.unsent_bytes()), (Vec::new(), 0));
    world.host.set_errors(|_| None);
    world.write_as(APPENDS, handle, 0, b"four\n").await;
    world.fs.fsync(handle, false).await.unwrap();
    assert_eq!(world.host.content("log"), b"four\n");
}

#[tokio::test]
async fn what_is_not_sent_is_known_by_file() {
    let host = MemoryHost::new();
    host.create_dir("folder");
    let world = world(host);
    let folder = world.walk("folder").await.unwrap();
    let (_, one) = world.fs.create(folder.inode, b"one", create(true)).await.unwrap();
    let (_, two) = world.fs.create(Inode::ROOT, b"two", create(true)).await.unwrap();
    world.host.hold(|request, stage| matches!(request, Request::Write(_)) && stage == Stage::Arrived);
    world.write(one.handle, 0, &[1; 10]).await.unwrap();
    world.write(two.handle, 0, &[1; 5]).await.unwrap();
    assert_eq!(world.fs.unsent_files(), [(b"folder/one".to_vec(), 10), (b"two".to_vec(), 5)]);
    world.host.release_all();
    world.fs.all_sent().await;
    assert_eq!(world.fs.unsent_files(), []);
}

async fn synced(world: &World) -> wormhole::fs::SyncProgress {
    let job = world.fs.sync_all();
    loop {
        let progress = job.progress();
        if progress.is_done {
            return progress;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_sync_of_everything_reaches_the_disk_and_tells_each_failure_once() {
    let world = world(MemoryHost::new());
    for name in [b"one", b"two"] {
        let (_, opened) = world.fs.create(Inode::ROOT, name, create(true)).await.unwrap();
        world.write(opened.handle, 0, b"content").await.unwrap();
    }
    let before = world.host.counters().syncs;
    let told = synced(&world).await;
    assert_eq!((told.files, told.synced, told.failed, told.error), (2, 2, 0, None));
    assert_eq!(world.host.counters().syncs - before, 3, "two files, and the disk with their names");
    assert_eq!(world.fs.unsynced_bytes(), 0);
    assert_eq!(synced(&world).await.files, 0, "nothing is left");
    // What fails is told with its name, by this and not by the next one.
    let (_, opened) = world.fs.create(Inode::ROOT, b"three", create(true)).await.unwrap();
    world
        .host
        .set_errors(|request| matches!(request, Request::Write(_)).then(|| WireError::system(Errno::EIO)));
    world.write(opened.handle, 0, b"lost").await.unwrap();
    world.fs.all_sent().await;
    world.host.set_errors(|_| None);
    let told = synced(&world).await;
    assert_eq!((told.files, told.synced, told.failed), (1, 0, 1));
    assert!(told.problems[0].starts_with("three: "), "{:?}", told.problems);
    assert_eq!(synced(&world).await.failed, 0);
    assert_eq!(
        world.fs.fsync(opened.handle, false).await.unwrap_err().errno(),
        Errno::EIO,
        "its writer hears, too"
    );
    // A disk that fails is told, too.
    world.host.set_errors(|request| {
        matches!(request, Request::SyncFileSystem { .. }).then(|| WireError::system(Errno::EIO))
    });
    assert!(synced(&world).await.error.is_some());
}
