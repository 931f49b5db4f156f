//! A host that restarts: open files, names and listings go on; what is gone is stale.

use wormhole::client::memory::MemoryHost;
use wormhole::fs::{EventLane, FsError, FsEvent, Inode};
use wormhole::proto::Errno;

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
