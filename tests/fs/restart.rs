//! A host that restarts: open files, names and listings go on; what is gone is stale.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use wormhole::client::memory::MemoryHost;
use wormhole::fs::{EventLane, FsConfig, FsError, FsEvent, Inode};
use wormhole::proto::{Errno, ErrorCode, Request, SetAttributes, WireError};

use super::changing::WRITE;
use super::{FLEETING, World};

#[tokio::test]
async fn open_files_go_on_after_a_restart() {
    let host = MemoryHost::new();
    let node = host.create_generated("a/b/f", 3 * 1024 * 1024, 1);
    let whole = host.content("a/b/f");
    let world = World::new(host.clone(), FLEETING);
    let file = world.open("a/b/f").await;
    world.read(file.handle, 0, 4096).await.unwrap();
    host.restart();
    let rest = world.read(file.handle, 2 * 1024 * 1024, 1024 * 1024).await.unwrap();
    assert!(rest == whole[2 * 1024 * 1024..]);
    assert_eq!(host.opens(node), 1, "opened again, once");
    world.fs.release(file.handle).await.unwrap();
    assert_eq!(host.opens(node), 0);
}

#[tokio::test]
async fn names_and_listings_go_on_after_a_restart() {
    let host = MemoryHost::new();
    host.create_file("a/b/f", "x");
    let world = World::new(host.clone(), FLEETING);
    let folder = world.walk("a/b").await.unwrap();
    let file = world.walk("a/b/f").await.unwrap();
    host.restart();
    assert_eq!(world.fs.getattr(file.inode).await.unwrap().0.size, 1);
    host.restart();
    let handle = world.fs.opendir(folder.inode).unwrap();
    assert_eq!(world.list_from(handle, 0).await.len(), 3);
    host.restart();
    assert_eq!(world.walk("a/b/f").await.unwrap().inode, file.inode);
}

#[tokio::test]
async fn another_file_under_the_name_is_stale_and_the_kernel_is_told() {
    let host = MemoryHost::new();
    host.create_file("a/f", "old");
    let world = World::new(host.clone(), FLEETING);
    let old = world.walk("a/f").await.unwrap();
    host.replace("a/f", "new");
    host.restart();
    assert_eq!(world.fs.getattr(old.inode).await, Err(FsError::Stale));
    let mut events = world.fs.take_events(EventLane::Copies).unwrap();
    assert!(matches!(events.try_recv(), Ok(FsEvent::InvalidateEntry { name, .. }) if &*name == b"f"));
    let new = world.walk("a/f").await.unwrap();
    assert_ne!(new.inode, old.inode);
}

#[tokio::test]
async fn a_file_gone_during_the_restart_is_stale_for_its_handle() {
    let host = MemoryHost::new();
    host.create_generated("f", 1024 * 1024, 1);
    let world = World::new(host.clone(), FLEETING);
    let file = world.open("f").await;
    host.unlink("f");
    host.restart();
    let error = world.read(file.handle, 0, 4096).await.unwrap_err();
    assert_eq!(error.errno(), Errno::ESTALE);
}

#[tokio::test]
async fn many_readers_recover_together_with_one_walk() {
    let host = MemoryHost::new();
    host.create_generated("a/b/c/f", 8 * 1024 * 1024, 1);
    let world = std::sync::Arc::new(World::new(host.clone(), super::LASTING));
    let file = world.open("a/b/c/f").await;
    host.restart();
    host.reset_counters();
    let mut reads = tokio::task::JoinSet::new();
    for place in 0..8u64 {
        let world = std::sync::Arc::clone(&world);
        reads.spawn(async move { world.read(file.handle, place << 20, 1 << 20).await.unwrap() });
    }
    while let Some(read) = reads.join_next().await {
        assert_eq!(read.unwrap().len(), 1 << 20);
    }
    // Up: f, c, b, a. Down again: b, c, f.
    assert_eq!(host.counters().lookups, 7);
    assert_eq!(host.counters().opens, 1);
}

#[tokio::test]
async fn a_moved_directory_is_found_again_by_whoever_looks_from_the_root() {
    let host = MemoryHost::new();
    host.create_file("a/f", "x");
    let world = World::new(host.clone(), FLEETING);
    let file = world.walk("a/f").await.unwrap();
    host.rename("a", "b");
    host.restart();
    assert_eq!(world.fs.getattr(file.inode).await, Err(FsError::Stale));
    assert_eq!(world.walk("b/f").await.unwrap().inode, file.inode);
    assert_eq!(world.fs.getattr(file.inode).await.unwrap().0.size, 1);
    assert!(world.fs.getattr(Inode::ROOT).await.is_ok());
}

/// A host that restarts as each of the next `restarts` requests that are not lookups arrives, or each at all if `during_lookups`.
fn restarting(host: &MemoryHost, restarts: u32, during_lookups: bool) {
    let (left, restarting) = (AtomicU32::new(restarts), host.clone());
    host.set_delay(move |request| {
        let counts = during_lookups || !matches!(request, Request::Lookup { .. });
        let take = |left: u32| left.checked_sub(1);
        if counts && left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
            restarting.restart();
        }
        Duration::ZERO
    });
}

#[tokio::test]
async fn nothing_fails_however_often_the_host_restarts_meanwhile() {
    for restarts in [1, 2, 3, 7, 40] {
        for during_lookups in [false, true] {
            let host = MemoryHost::new();
            host.create_generated("a/b/f", 100_000, 1);
            let config = FsConfig { freshness: FLEETING, read_only: false, ..FsConfig::default() };
            let world = World::with_config(host.clone(), config);
            let folder = world.walk("a/b").await.unwrap().inode;
            let inode = world.walk("a/b/f").await.unwrap().inode;
            let file = world.fs.open(inode, WRITE).await.unwrap();
            let again = || restarting(&host, restarts, during_lookups);
            again();
            assert_eq!(world.fs.getattr(inode).await.unwrap().0.size, 100_000);
            again();
            assert_eq!(world.read(file.handle, 5, 1000).await.unwrap(), host.content_at("a/b/f", 5, 1000));
            again();
            let listed = world.fs.opendir(folder).unwrap();
            assert_eq!(world.list_from(listed, 0).await.len(), 3);
            again();
            world.write(file.handle, 50_000, b"queued").await.unwrap();
            world.fs.flush(file.handle).await.unwrap();
            assert_eq!(host.content_at("a/b/f", 50_000, 6), b"queued");
            // What an earlier run of the machine had taken in is lost with the next restart otherwise.
            host.set_delay(|_| Duration::ZERO);
            world.fs.fsync(file.handle, false).await.unwrap();
            again();
            world.fs.fsync(file.handle, false).await.unwrap();
            again();
            let set = SetAttributes { permissions: Some(0o600), ..SetAttributes::default() };
            assert_eq!(world.fs.setattr(inode, set).await.unwrap().0.permissions, 0o600);
            again();
            world.fs.release(file.handle).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_host_that_never_knows_a_file_is_not_asked_for_ever() {
    let host = MemoryHost::new();
    host.create_file("f", "x");
    let world = World::new(host.clone(), FLEETING);
    let file = world.walk("f").await.unwrap();
    host.set_errors(|request| {
        let refused = matches!(request, Request::GetAttributes { .. } | Request::ReadCurrent { .. });
        refused.then(|| WireError::new(ErrorCode::UnknownNode, "never heard of it"))
    });
    assert_eq!(world.fs.getattr(file.inode).await.unwrap_err().errno(), Errno::ESTALE);
}
