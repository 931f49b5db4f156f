//! Reads return the host's bytes, all of them, and the handle leaves nothing behind.

use std::sync::Arc;
use std::time::Duration;

use wormhole::cache::NoCache;
use wormhole::client::memory::{MemoryHost, Stage};
use wormhole::fetch::{FetchConfig, Fetcher};
use wormhole::fs::{DIRECT_BYTES_MIN, FileSystem, FsConfig, FsError, OpenRequest};
use wormhole::proto::{Request, SeekTarget};

use super::{FLEETING, LASTING, World};

const MIB: u64 = 1024 * 1024;

#[tokio::test]
async fn a_file_read_in_steps_of_any_size_equals_the_hosts() {
    let host = MemoryHost::new();
    let size = 5 * MIB + 12_345;
    host.create_generated("f", size, 1);
    let whole = host.content("f");
    for step in [4096, 100_000, 128 * 1024, MIB] {
        let world = World::new(host.clone(), LASTING);
        let file = world.open("f").await;
        let mut read = Vec::new();
        loop {
            let bytes = world.read(file.handle, read.len() as u64, step).await.unwrap();
            assert!(
                bytes.len() as u64 == step || read.len() + bytes.len() == whole.len() || bytes.is_empty()
            );
            if bytes.is_empty() {
                break;
            }
            read.extend(bytes);
        }
        assert!(read == whole, "step {step}");
        world.fs.release(file.handle).await.unwrap();
        world.fs.forget(world.walk("f").await.unwrap().inode, 2);
        world.assert_idle();
    }
}

#[tokio::test]
async fn reads_at_random_places_equal_the_hosts() {
    let host = MemoryHost::new();
    host.create_generated("f", 3 * MIB + 7, 2);
    let world = World::new(host.clone(), FLEETING);
    let file = world.open("f").await;
    let mut place = 12_345u64;
    for _ in 0..200 {
        place = place.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (offset, len) = ((place >> 20) % (4 * MIB), (place >> 45) % (MIB / 2));
        let bytes = world.read(file.handle, offset, len).await.unwrap();
        assert!(bytes == host.content_at("f", offset, len), "{len} bytes at {offset}");
    }
}

#[tokio::test]
async fn empty_files_and_reads_behind_the_end_are_empty() {
    let host = MemoryHost::new();
    host.create_file("empty", "");
    host.create_file("short", "0123456789");
    let world = World::new(host, LASTING);
    let (empty, short) = (world.open("empty").await, world.open("short").await);
    assert_eq!(world.read(empty.handle, 0, 100).await.unwrap(), b"");
    assert_eq!(world.read(short.handle, 10, 100).await.unwrap(), b"");
    assert_eq!(world.read(short.handle, u64::MAX - 5, 100).await.unwrap(), b"");
    assert_eq!(world.read(short.handle, 8, 100).await.unwrap(), b"89");
}

#[tokio::test]
async fn what_was_read_is_answered_in_place() {
    let host = MemoryHost::new();
    host.create_generated("f", MIB, 3);
    let world = World::new(host.clone(), LASTING);
    let file = world.open("f").await;
    world.read(file.handle, 0, MIB).await.unwrap();
    host.reset_counters();
    let range = wormhole::chunk::ByteRange::new(300_000, 500_000);
    assert_eq!(world.fs.read_now(file.handle, range).unwrap(), host.content_at("f", 300_000, 500_000));
    assert_eq!(host.counters().requests(), 0);
}

#[tokio::test]
async fn small_settled_files_go_through_the_page_cache_and_others_past_it() {
    let host = MemoryHost::new();
    host.create_generated("small", DIRECT_BYTES_MIN - 1, 1);
    host.create_generated("large", DIRECT_BYTES_MIN, 1);
    host.create_file("young", "x");
    host.write("young", 0, "y");
    let world = World::new(host.clone(), FLEETING);
    assert!(!world.open("small").await.mode.is_direct);
    assert!(world.open("large").await.mode.is_direct);
    assert!(world.open("young").await.mode.is_direct);
    let again = world.open("small").await.mode;
    assert!(again.keeps_pages);
    host.write("small", 0, "changed");
    host.advance(Duration::from_secs(3));
    let changed = world.open("small").await.mode;
    assert!(!changed.is_direct && !changed.keeps_pages);
}

#[tokio::test]
async fn a_file_that_does_not_fit_leaves_little_of_itself_in_memory() {
    let host = MemoryHost::new();
    for (name, size, kept) in [("fits", 4 * MIB, 4 * MIB..5 * MIB), ("does_not", 16 * MIB, 0..2 * MIB)] {
        host.create_generated(name, size, 1);
        let config = FetchConfig { memory_bytes: 5 * MIB, ..FetchConfig::default() };
        let fetcher = Fetcher::new(host.client(), Arc::new(NoCache), config);
        let fs = FileSystem::new(host.client(), Arc::clone(&fetcher), FsConfig::default());
        let world = World { host: host.clone(), fs, fetcher };
        let file = world.open(name).await;
        for offset in (0..size).step_by(128 << 10) {
            world.read(file.handle, offset, 128 << 10).await.unwrap();
        }
        let bytes = world.fetcher.statistics().memory_bytes;
        assert!(kept.contains(&bytes), "{bytes} bytes of {name}");
    }
}

#[tokio::test]
async fn holes_are_the_hosts() {
    let host = MemoryHost::new();
    host.create_sparse("f", 8 * MIB, &[(MIB, b"data".as_slice())]);
    let world = World::new(host, LASTING);
    let file = world.open("f").await;
    let data = world.fs.lseek(file.handle, 0, SeekTarget::Data).await.unwrap();
    let hole = world.fs.lseek(file.handle, data, SeekTarget::Hole).await.unwrap();
    assert!(data <= MIB && hole > data);
    assert_eq!(world.read(file.handle, MIB - 2, 8).await.unwrap(), b"\0\0data\0\0");
}

#[tokio::test]
async fn handles_end_and_the_host_counts_each_open_once() {
    let host = MemoryHost::new();
    let node = host.create_file("f", "x");
    let world = World::new(host.clone(), LASTING);
    let entry = world.walk("f").await.unwrap();
    let mut handles = Vec::new();
    for _ in 0..3 {
        handles.push(world.fs.open(entry.inode, OpenRequest::default()).await.unwrap().handle);
    }
    assert_eq!(host.opens(node), 3);
    for handle in &handles {
        world.fs.release(*handle).await.unwrap();
    }
    assert_eq!(host.opens(node), 0);
    assert_eq!(world.read(handles[0], 0, 1).await, Err(FsError::BadHandle(handles[0])));
    assert_eq!(world.fs.release(handles[0]).await, Err(FsError::BadHandle(handles[0])));
    world.fs.forget(entry.inode, 1);
    world.assert_idle();
}

#[tokio::test]
async fn an_unlinked_open_file_is_read_to_its_end() {
    let host = MemoryHost::new();
    host.create_generated("f", 2 * MIB, 4);
    let whole = host.content("f");
    let world = World::new(host.clone(), FLEETING);
    let file = world.open("f").await;
    world.read(file.handle, 0, 1000).await.unwrap();
    host.unlink("f");
    assert!(world.read(file.handle, MIB, MIB).await.unwrap() == whole[MIB as usize..]);
}

#[tokio::test]
async fn the_content_of_a_small_file_is_on_its_way_while_the_file_is_being_opened() {
    let host = MemoryHost::new();
    let node = host.create_generated("f", 10_000, 1);
    let world = World::new(host.clone(), LASTING);
    let entry = world.walk("f").await.unwrap();
    host.hold(|request, stage| matches!((request, stage), (Request::Open { .. }, Stage::Arrived)));
    let opening = world.fs.open(entry.inode, OpenRequest::default());
    let (opened, ()) = tokio::join!(opening, async {
        host.until(|host| host.counters().chunks == 1).await;
        host.release_all();
    });
    let handle = opened.unwrap().handle;
    host.reset_counters();
    assert!(world.read(handle, 0, 131_072).await.unwrap() == host.content("f"));
    assert_eq!(host.counters().reads, 0);
    world.fs.release(handle).await.unwrap();
    assert_eq!(host.opens(node), 0);
}

/// Opens `f` on a way of 50 ms, waits until its beginning has come, and counts from zero.
async fn open_far(host: &MemoryHost, world: &World) -> u64 {
    host.set_link(Duration::from_millis(50), 0);
    host.reset_counters();
    let handle = world.open("f").await.handle;
    host.until(|host| host.counters().pieces == 1).await;
    assert_eq!(host.counters().content_bytes, 64 * 1024);
    host.reset_counters();
    handle
}

#[tokio::test]
async fn the_beginning_of_a_large_file_comes_with_its_opening_over_a_long_way() {
    let host = MemoryHost::new();
    host.create_generated("f", 100 * MIB, 1);
    let world = World::new(host.clone(), LASTING);
    let handle = open_far(&host, &world).await;
    assert!(world.read(handle, 4096, 4096).await.unwrap() == host.content_at("f", 4096, 4096));
    assert_eq!(host.counters().reads, 0);
    // Once: what is read next is the prefetcher's affair.
    assert!(world.read(handle, MIB, 4096).await.unwrap() == host.content_at("f", MIB, 4096));
    assert_eq!(host.counters().reads, 1);
}

#[tokio::test]
async fn a_beginning_of_another_version_or_another_place_is_not_used() {
    let host = MemoryHost::new();
    host.create_generated("f", 2 * MIB, 1);
    let world = World::new(host.clone(), FLEETING);
    let handle = open_far(&host, &world).await;
    assert!(world.read(handle, MIB, 4096).await.unwrap() == host.content_at("f", MIB, 4096));
    let handle = open_far(&host, &world).await;
    host.write("f", 0, "changed");
    assert!(world.read(handle, 0, 4096).await.unwrap() == host.content_at("f", 0, 4096));
}

#[tokio::test]
async fn nothing_is_asked_with_an_opening_where_the_way_is_short_or_the_bytes_are_here() {
    let host = MemoryHost::new();
    host.create_generated("f", 2 * MIB, 1);
    let world = World::new(host.clone(), LASTING);
    host.set_link(Duration::from_micros(200), 0);
    let handle = world.open("f").await.handle;
    world.read(handle, 0, MIB).await.unwrap();
    assert_eq!(host.counters().pieces, 0);
    host.set_link(Duration::from_millis(50), 0);
    let handle = world.open("f").await.handle;
    assert!(world.read(handle, 0, 4096).await.unwrap() == host.content_at("f", 0, 4096));
    assert_eq!(host.counters().pieces, 0);
}

#[tokio::test]
async fn an_open_that_is_given_up_leaves_nothing_under_way() {
    let host = MemoryHost::new();
    host.create_generated("f", 10_000, 1);
    let world = World::new(host.clone(), LASTING);
    let entry = world.walk("f").await.unwrap();
    host.hold(|_, _| true);
    {
        let opening = world.fs.open(entry.inode, OpenRequest::default());
        tokio::select! {
            biased;
            _ = opening => panic!("the open was held back"),
            () = host.until(|host| host.held().len() >= 3) => {}
        }
    }
    world.fs.forget(entry.inode, 1);
    world.assert_idle();
}
