//! Users and groups of the host under the numbers that they have here, wherever numbers come in or go out.

use std::sync::Arc;

use wormhole::client::memory::MemoryHost;
use wormhole::fs::{DirectoryItem, FsConfig, FsError, IdMap, Inode, NumberMap, Ownership};
use wormhole::proto::{Attributes, Errno, SetAttributes, XattrHow};

use super::changing::create;
use super::{LASTING, World};

/// The mounting user.
const HERE: (u32, u32) = (7, 8);

const ACL: &[u8] = b"system.posix_acl_access";

fn mounted(host: &MemoryHost, ids: IdMap) -> World {
    let ownership = Ownership { ids: Arc::new(ids), ..Ownership::default() };
    let config = FsConfig { freshness: LASTING, read_only: false, ownership, ..FsConfig::default() };
    World::with_config(host.clone(), config)
}

fn owner(attributes: &Attributes) -> (u32, u32) {
    (attributes.uid, attributes.gid)
}

/// An ACL with an entry for one user.
fn acl_for(uid: u32) -> Vec<u8> {
    [&[2, 0, 0, 0, 2, 0, 6, 0][..], &uid.to_le_bytes()].concat()
}

/// The owners that a listing tells of, by name.
async fn listed(world: &World) -> Vec<(Vec<u8>, (u32, u32))> {
    let handle = world.fs.opendir(Inode::ROOT).unwrap();
    let mut all = Vec::new();
    let take = |item: &DirectoryItem<'_>| {
        all.extend(item.entry.map(|entry| (item.name.to_vec(), owner(&entry.attributes))));
        true
    };
    world.fs.readdir(handle, 0, true, take).await.unwrap();
    world.fs.releasedir(handle).unwrap();
    all
}

#[tokio::test]
async fn numbers_are_mapped_both_ways() {
    let host = MemoryHost::new();
    host.create_file("f", "x");
    let there = owner(&mounted(&host, IdMap::default()).walk("f").await.unwrap().attributes);
    assert_ne!(there, HERE);
    let world = mounted(&host, IdMap::of_user(there, HERE).unwrap());
    assert_eq!(listed(&world).await, [(b"f".to_vec(), HERE)]);
    let file = world.walk("f").await.unwrap();
    assert_eq!(owner(&file.attributes), HERE);
    assert_eq!(owner(&world.fs.getattr(file.inode).await.unwrap().0), HERE);
    let (made, opened) = world.fs.create(Inode::ROOT, b"new", create(true)).await.unwrap();
    assert_eq!(owner(&made.attributes), HERE);
    world.fs.release(opened.handle).await.unwrap();

    let give = |uid, gid| SetAttributes { uid: Some(uid), gid: Some(gid), ..Default::default() };
    let set = world.fs.setattr(file.inode, give(4321, HERE.1)).await.unwrap().0;
    assert_eq!(owner(&set), (4321, HERE.1));
    world.fs.setxattr(file.inode, ACL, &acl_for(HERE.0), XattrHow::Any).await.unwrap();
    assert_eq!(world.fs.getxattr(file.inode, ACL).await.unwrap(), acl_for(HERE.0));

    let plain = mounted(&host, IdMap::default());
    let file = plain.walk("f").await.unwrap();
    assert_eq!(owner(&file.attributes), (4321, there.1), "as the host has it");
    assert_eq!(plain.fs.getxattr(file.inode, ACL).await.unwrap(), acl_for(there.0));
}

#[tokio::test]
async fn whom_nobody_stands_for_is_not_shown_where_that_was_said() {
    let host = MemoryHost::new();
    host.create_file("f", "x");
    host.create_file("other", "x");
    let plain = mounted(&host, IdMap::default());
    let (file, other) = (plain.walk("f").await.unwrap(), plain.walk("other").await.unwrap());
    plain.fs.setattr(other.inode, SetAttributes { uid: Some(4321), ..Default::default() }).await.unwrap();
    plain.fs.setxattr(file.inode, ACL, &acl_for(4321), XattrHow::Any).await.unwrap();

    let mut users = NumberMap::default();
    users.insert(file.attributes.uid, HERE.0).unwrap();
    let world = mounted(&host, IdMap { users: users.refusing_others(), ..IdMap::default() });
    let shown = world.walk("f").await.unwrap();
    assert_eq!(shown.attributes.uid, HERE.0);
    let refused = |answer: Result<(), FsError>| assert_eq!(answer.unwrap_err().errno(), Errno::EPERM);
    refused(world.walk("other").await.map(drop));
    refused(world.fs.getxattr(shown.inode, ACL).await.map(drop));
    refused(world.fs.setxattr(shown.inode, ACL, &acl_for(9), XattrHow::Any).await);
    let given = SetAttributes { uid: Some(9), ..Default::default() };
    refused(world.fs.setattr(shown.inode, given).await.map(drop));
    let names: Vec<_> = listed(&world).await.into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, [b"f".to_vec(), b"other".to_vec()], "names are no secret");
}
