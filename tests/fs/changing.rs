//! Own changes of names and attributes: seen at once, however long copies hold.

use wormhole::client::CallError;
use wormhole::client::memory::{MemoryHost, Stage};
use wormhole::fs::{CreateRequest, FsConfig, FsError, Inode, Lookup, Made, OpenRequest};
use wormhole::proto::{Caller, Errno, FileKind, RenameHow, Request, SetAttributes, WireError, XattrHow};

use super::{LASTING, World};

pub(crate) const WRITE: OpenRequest =
    OpenRequest { reads: true, writes: true, is_direct: false, copies: false, appends: false };

/// A mount that may write, whose copies hold for so long that none ends.
pub(crate) fn world(host: MemoryHost) -> World {
    World::with_config(host, FsConfig { freshness: LASTING, read_only: false, ..FsConfig::default() })
}

pub(crate) fn create(exclusive: bool) -> CreateRequest {
    let caller = Caller { uid: 1, gid: 1, umask: 0o022 };
    CreateRequest { permissions: 0o666, caller, open: WRITE, exclusive, truncate: false }
}

fn errno<T: std::fmt::Debug>(answer: Result<T, FsError>) -> Errno {
    answer.unwrap_err().errno()
}

async fn names(world: &World) -> Vec<String> {
    let handle = world.fs.opendir(Inode::ROOT).unwrap();
    let all = world.list_from(handle, 2).await;
    world.fs.releasedir(handle).unwrap();
    all.into_iter().map(|(name, _)| String::from_utf8(name).unwrap()).collect()
}

async fn is_there(world: &World, name: &str) -> bool {
    match world.fs.lookup(Inode::ROOT, name.as_bytes()).await.unwrap() {
        Lookup::Found(_) => true,
        Lookup::Absent { ttl } => {
            assert!(!ttl.is_zero(), "{name}: absence that is known holds");
            false
        }
    }
}

#[tokio::test]
async fn what_is_made_and_taken_is_seen_at_once_through_every_copy() {
    let host = MemoryHost::new();
    host.create_file("old", "content");
    let world = world(host);
    assert_eq!(names(&world).await, ["old"]);
    assert!(!is_there(&world, "new").await);
    let root_before = world.fs.getattr(Inode::ROOT).await.unwrap().0;

    let (entry, opened) = world.fs.create(Inode::ROOT, b"new", create(true)).await.unwrap();
    assert_eq!((entry.attributes.kind, entry.attributes.permissions), (FileKind::Regular, 0o644));
    assert!(!entry.entry_ttl.is_zero() && !entry.attributes_ttl.is_zero());
    assert!(opened.mode.is_direct, "who writes goes past the page cache");
    assert_eq!(world.host.opens(entry.attributes.node), 1, "it is open on the host without another request");
    assert!(is_there(&world, "new").await);
    assert_eq!(names(&world).await, ["new", "old"]);
    assert_eq!(errno(world.fs.create(Inode::ROOT, b"new", create(true)).await), Errno::EEXIST);
    let requests = world.host.counters().requests();
    let root = world.fs.getattr(Inode::ROOT).await.unwrap().0;
    assert!(root.mtime > root_before.mtime, "the directory's times came with the answer");
    assert_eq!(world.host.counters().requests(), requests);

    world.fs.remove(Inode::ROOT, b"old", false).await.unwrap();
    assert!(!is_there(&world, "old").await);
    assert_eq!(names(&world).await, ["new"]);
    let made = Made::Directory;
    let folder = world.fs.make(Inode::ROOT, b"folder", &made, 0o777, Caller::default()).await.unwrap();
    assert_eq!(errno(world.fs.remove(Inode::ROOT, b"folder", false).await), Errno::EISDIR);
    assert_eq!(errno(world.fs.remove(Inode::ROOT, b"new", true).await), Errno::ENOTDIR);
    world
        .fs
        .make(folder.inode, b"pipe", &Made::Node(FileKind::Fifo, 0), 0o600, Caller::default())
        .await
        .unwrap();
    assert_eq!(errno(world.fs.remove(Inode::ROOT, b"folder", true).await), Errno::ENOTEMPTY);
    let link = Made::Symlink(b"new".to_vec());
    let link = world.fs.make(Inode::ROOT, b"link", &link, 0o777, Caller::default()).await.unwrap();
    assert_eq!(&*world.fs.readlink(link.inode).await.unwrap(), b"new");
    world.fs.release(opened.handle).await.unwrap();
    assert_eq!(world.host.opens(entry.attributes.node), 0);
}

#[tokio::test]
async fn a_name_that_moves_takes_its_file_along() {
    let host = MemoryHost::new();
    host.create_file("a", "aa");
    host.create_file("b", "bbbb");
    host.create_dir("d");
    let world = world(host);
    let (a, b, d) =
        (world.walk("a").await.unwrap(), world.walk("b").await.unwrap(), world.walk("d").await.unwrap());
    let rename = |from, to, how| world.fs.rename(from, to, how);
    let here = Inode::ROOT;
    assert_eq!(errno(rename((here, b"a"), (here, b"b"), RenameHow::NoReplace).await), Errno::EEXIST);
    rename((here, b"a"), (here, b"b"), RenameHow::Exchange).await.unwrap();
    assert_eq!(world.walk("a").await.unwrap().inode, b.inode);
    assert_eq!(world.walk("b").await.unwrap().inode, a.inode);
    rename((here, b"a"), (d.inode, b"b2"), RenameHow::NoReplace).await.unwrap();
    assert!(!is_there(&world, "a").await);
    assert_eq!(world.walk("d/b2").await.unwrap().inode, b.inode);
    let opened = world.fs.open(a.inode, OpenRequest::default()).await.unwrap();
    rename((d.inode, b"b2"), (here, b"b"), RenameHow::Replace).await.unwrap();
    assert_eq!(world.walk("b").await.unwrap().attributes.size, 4);
    assert_eq!(world.fs.getattr(a.inode).await.unwrap().0.links, 0, "what was replaced has lost its name");
    assert_eq!(world.read(opened.handle, 0, 10).await.unwrap(), b"aa");
    assert_eq!(errno(rename((here, b"d"), (d.inode, b"x"), RenameHow::Replace).await), Errno::EINVAL);
    // The node that was moved is found again after a restart by its new name.
    world.host.restart();
    let linked = world.fs.link(b.inode, d.inode, b"second").await.unwrap();
    assert_eq!((linked.inode, linked.attributes.links), (b.inode, 2));
}

#[tokio::test]
async fn attributes_are_seen_as_they_were_set() {
    let host = MemoryHost::new();
    host.create_file("f", "content");
    let world = world(host);
    let file = world.walk("f").await.unwrap();
    let opened = world.fs.open(file.inode, OpenRequest::default()).await.unwrap();
    assert_eq!(world.read(opened.handle, 0, 100).await.unwrap(), b"content");
    let cut = SetAttributes { size: Some(3), permissions: Some(0o600), ..Default::default() };
    let (attributes, ttl) = world.fs.setattr(file.inode, cut).await.unwrap();
    assert_eq!((attributes.size, attributes.permissions), (3, 0o600));
    assert!(!ttl.is_zero());
    assert_eq!(world.fs.getattr(file.inode).await.unwrap().0, attributes);
    assert_eq!(world.read(opened.handle, 0, 100).await.unwrap(), b"con");
    assert!(world.fs.listxattr(file.inode).await.unwrap().is_empty());
    world.fs.setxattr(file.inode, b"user.a", b"1", XattrHow::Create).await.unwrap();
    assert_eq!(world.fs.listxattr(file.inode).await.unwrap(), b"user.a\0");
    assert_eq!(world.fs.getxattr(file.inode, b"user.a").await.unwrap(), b"1");
    world.fs.setxattr(file.inode, b"user.b", b"2", XattrHow::Any).await.unwrap();
    assert_eq!(world.fs.listxattr(file.inode).await.unwrap(), b"user.a\0user.b\0");
    world.fs.removexattr(file.inode, b"user.a").await.unwrap();
    assert_eq!(errno(world.fs.getxattr(file.inode, b"user.a").await), Errno::ENODATA);
    let sum = world.fs.setxattr(file.inode, b"user.wormhole.blake3", b"x", XattrHow::Any).await;
    assert_eq!(errno(sum), Errno::EOPNOTSUPP);
}

#[tokio::test]
async fn what_was_asked_before_a_change_is_not_believed_after_it() {
    let host = MemoryHost::new();
    host.create_file("f", "content");
    let world = world(host);
    let file = world.walk("f").await.unwrap();
    // A listing and a look that are answered from how things were, and arrive when they are otherwise.
    world.host.hold(|request, stage| {
        let is_old = matches!(request, Request::ReadDirectory { .. } | Request::GetAttributes { .. });
        is_old && stage == Stage::Answered
    });
    let fs = std::sync::Arc::clone(&world.fs);
    let listing = tokio::spawn(async move {
        let handle = fs.opendir(Inode::ROOT).unwrap();
        fs.readdir(handle, 0, false, |_| true).await.unwrap();
        fs.releasedir(handle).unwrap();
    });
    let fs = std::sync::Arc::clone(&world.fs);
    let looking = tokio::spawn(async move {
        fs.setattr(file.inode, SetAttributes::default()).await.unwrap();
    });
    world.host.until(|host| host.held().len() == 2).await;
    let cut = SetAttributes { size: Some(1), ..Default::default() };
    world.fs.setattr(file.inode, cut).await.unwrap();
    world.fs.rename((Inode::ROOT, b"f"), (Inode::ROOT, b"g"), RenameHow::Replace).await.unwrap();
    world.host.release_all();
    listing.await.unwrap();
    looking.await.unwrap();
    assert_eq!(world.fs.getattr(file.inode).await.unwrap().0.size, 1);
    assert!(!is_there(&world, "f").await);
    assert!(is_there(&world, "g").await);
}

#[tokio::test]
async fn a_change_whose_outcome_is_unknown_leaves_no_copy_behind() {
    let host = MemoryHost::new();
    host.create_file("f", "content");
    let world = world(host);
    let file = world.walk("f").await.unwrap();
    assert_eq!(names(&world).await, ["f"]);
    // Done, but the answer never comes.
    world.host.set_deadline(std::time::Duration::from_millis(50));
    world.host.hold(|request, stage| matches!(request, Request::Change(_)) && stage == Stage::Answered);
    let lost = world.fs.remove(Inode::ROOT, b"f", false).await;
    assert!(matches!(lost, Err(FsError::Call(CallError::TimedOut(_)))), "{lost:?}");
    let cut = SetAttributes { permissions: Some(0), ..Default::default() };
    assert_eq!(errno(world.fs.setattr(Inode::ROOT, cut).await), Errno::ETIMEDOUT);
    world.host.release_all();
    assert!(!is_there(&world, "f").await);
    assert_eq!(world.fs.getattr(Inode::ROOT).await.unwrap().0.permissions, 0);
    assert!(world.fs.getattr(file.inode).await.is_err());
}

#[tokio::test]
async fn a_host_that_restarted_is_told_again_and_does_it_once() {
    let host = MemoryHost::new();
    host.create_file("d/f", "content");
    let world = world(host);
    let (d, f) = (world.walk("d").await.unwrap(), world.walk("d/f").await.unwrap());
    world.host.restart();
    world.fs.create(d.inode, b"new", create(true)).await.unwrap();
    world.host.restart();
    world.fs.setattr(f.inode, SetAttributes { size: Some(1), ..Default::default() }).await.unwrap();
    world.host.restart();
    world.fs.rename((d.inode, b"f"), (Inode::ROOT, b"f"), RenameHow::Replace).await.unwrap();
    assert_eq!(world.host.content("f"), b"c");
}

#[tokio::test]
async fn a_mount_that_only_reads_asks_nobody() {
    let world = World::new(MemoryHost::new(), LASTING);
    let requests = world.host.counters().requests();
    let made = world.fs.make(Inode::ROOT, b"d", &Made::Directory, 0o777, Caller::default()).await;
    assert_eq!(errno(made), Errno::EROFS);
    assert_eq!(errno(world.fs.create(Inode::ROOT, b"f", create(false)).await), Errno::EROFS);
    assert_eq!(
        errno(world.fs.setattr(Inode::ROOT, SetAttributes { size: Some(0), ..Default::default() }).await),
        Errno::EROFS
    );
    assert_eq!(world.host.counters().requests(), requests);
}

#[tokio::test]
async fn the_hosts_refusals_come_as_they_are() {
    let host = MemoryHost::new();
    let world = world(host);
    for errno in [Errno::ENOSPC, Errno(122), Errno::EROFS, Errno::EMFILE, Errno::EPERM] {
        world.host.set_errors(move |request| {
            matches!(request, Request::Change(_)).then(|| WireError::system(errno))
        });
        assert_eq!(world.fs.create(Inode::ROOT, b"f", create(true)).await.unwrap_err().errno(), errno);
    }
}
