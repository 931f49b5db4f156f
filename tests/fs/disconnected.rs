//! A host out of reach: what is known is served at once, the rest fails when its deadline passes.

use std::time::Duration;

use wormhole::chunk::ByteRange;
use wormhole::client::memory::MemoryHost;
use wormhole::fs::{FsConfig, Inode, Lookup, OpenRequest};
use wormhole::proto::Errno;

use super::{FLEETING, World};

fn host() -> MemoryHost {
    let host = MemoryHost::new();
    host.create_file("d/f", "content");
    host.create_symlink("d/l", "f");
    host.create_file("d/with attributes", "");
    host.set_xattr("d/with attributes", b"user.a", b"1");
    host
}

/// A world in which everything about `d` was looked at once, and then the link was cut.
async fn cut_off() -> World {
    let world = World::new(host(), FLEETING);
    let folder = world.walk("d").await.unwrap();
    let handle = world.fs.opendir(folder.inode).unwrap();
    world.list_from(handle, 0).await;
    let link = world.walk("d/l").await.unwrap();
    world.fs.readlink(link.inode).await.unwrap();
    world.fs.statfs().await.unwrap();
    world.host.set_connected(false);
    world.host.set_deadline(Duration::from_millis(1));
    world
}

#[tokio::test]
async fn listings_attributes_links_and_statistics_go_on() {
    let world = cut_off().await;
    let folder = world.walk("d").await.unwrap();
    let handle = world.fs.opendir(folder.inode).unwrap();
    assert_eq!(world.list_from(handle, 0).await.len(), 5);
    let file = world.walk("d/f").await.unwrap();
    assert_eq!(world.fs.getattr(file.inode).await.unwrap().0.size, 7);
    // As `ls -l` asks.
    let acl = world.fs.getxattr(file.inode, b"system.posix_acl_access").await.unwrap_err();
    assert_eq!(acl.errno(), Errno::ENODATA);
    let link = world.walk("d/l").await.unwrap();
    assert_eq!(&*world.fs.readlink(link.inode).await.unwrap(), b"f");
    assert!(world.fs.statfs().await.is_ok());
    assert!(matches!(world.fs.lookup(folder.inode, b"absent").await, Ok(Lookup::Absent { .. })));
}

#[tokio::test]
async fn what_was_read_can_be_read_again_also_through_a_new_open() {
    let world = World::new(host(), FLEETING);
    let file = world.open("d/f").await;
    world.fs.read(file.handle, ByteRange::new(0, 128 * 1024)).await.unwrap();
    world.host.set_connected(false);
    let again = world.open("d/f").await;
    for handle in [file.handle, again.handle] {
        assert_eq!(world.read(handle, 0, 100).await.unwrap(), b"content");
    }
}

#[tokio::test]
async fn who_wants_no_old_answers_gets_none_from_memory_either() {
    let config = FsConfig { freshness: FLEETING, serves_stale: false, ..FsConfig::default() };
    let world = World::with_config(host(), config);
    let file = world.open("d/f").await;
    let range = ByteRange::new(0, 128 * 1024);
    world.fs.read(file.handle, range).await.unwrap();
    world.host.set_connected(false);
    assert!(world.fs.read_now(file.handle, range).is_none());
    world.host.set_deadline(Duration::from_millis(1));
    assert_eq!(world.read(file.handle, 0, 100).await.unwrap_err().errno(), Errno::ETIMEDOUT);
}

#[tokio::test]
async fn what_is_not_known_fails_at_its_deadline() {
    let world = cut_off().await;
    let errno = |error: wormhole::fs::FsError| error.errno();
    assert_eq!(world.fs.lookup(Inode::ROOT, b"never seen").await.map_err(errno), Err(Errno::ETIMEDOUT));
    let root = world.fs.opendir(Inode::ROOT).unwrap();
    assert_eq!(world.fs.readdir(root, 0, false, |_| true).await.map_err(errno), Err(Errno::ETIMEDOUT));
    let file = world.walk("d/f").await.unwrap();
    let opened = world.fs.open(file.inode, OpenRequest::default()).await.unwrap();
    assert_eq!(world.read(opened.handle, 0, 10).await.map_err(errno), Err(Errno::ETIMEDOUT));
    let with = world.walk("d/with attributes").await.unwrap();
    assert_eq!(world.fs.getxattr(with.inode, b"user.a").await.map_err(errno), Err(Errno::ETIMEDOUT));
}

#[tokio::test]
async fn a_call_that_was_waiting_when_the_link_went_takes_the_copy() {
    let world = World::new(host(), FLEETING);
    let file = world.walk("d/f").await.unwrap();
    world.host.hold(|_, _| true);
    let (answer, ()) = tokio::join!(world.fs.getattr(file.inode), async {
        world.host.until(|host| !host.held().is_empty()).await;
        world.host.set_connected(false);
    });
    assert_eq!(answer.unwrap().0.size, 7);
}

#[tokio::test]
async fn when_the_link_is_back_the_truth_is_told() {
    let world = cut_off().await;
    world.host.set_connected(true);
    world.host.create_file("d/new", "x");
    world.host.write("d/f", 0, "longer than before");
    assert_eq!(world.walk("d/f").await.unwrap().attributes.size, 18);
    let folder = world.walk("d").await.unwrap();
    let handle = world.fs.opendir(folder.inode).unwrap();
    assert_eq!(world.list_from(handle, 0).await.len(), 6);
}

#[tokio::test]
async fn a_host_that_answers_too_late_for_df_gets_the_last_answer_told() {
    let world = World::new(host(), FLEETING);
    let first = world.fs.statfs().await.unwrap();
    world.host.hold(|_, _| true);
    assert_eq!(world.fs.statfs().await.unwrap(), first);
}
