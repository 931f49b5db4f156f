//! Numbers of inodes: what users see, what the kernel is told, and files that are found again by a handle.

use wormhole::client::memory::MemoryHost;
use wormhole::fs::{Entry, FsConfig, FsError, Inode};
use wormhole::proto::{Errno, RenameHow};

use super::{FLEETING, LASTING, World};

/// Takes a file away on the host and makes another one that is given its number.
fn replace_with_same_number(host: &MemoryHost, old: &str, new: &str) -> u64 {
    let number = host.node_at(old).unwrap().inode;
    host.unlink(old);
    host.give_number_again(number);
    assert_eq!(host.create_file(new, "another").inode, number);
    number
}

async fn numbers_in_root(world: &World) -> Vec<u64> {
    let handle = world.fs.opendir(Inode::ROOT).unwrap();
    let mut numbers = Vec::new();
    let take = |item: &wormhole::fs::DirectoryItem<'_>| {
        numbers.push(item.number);
        true
    };
    world.fs.readdir(handle, 2, false, take).await.unwrap();
    world.fs.releasedir(handle).unwrap();
    numbers
}

#[tokio::test]
async fn a_number_that_the_host_gives_again_is_shown_also_while_the_kernel_knows_the_earlier_file() {
    let host = MemoryHost::new();
    host.create_file("a", "content");
    let world = World::new(host.clone(), FLEETING);
    let first = world.walk("a").await.unwrap();
    assert_eq!((first.inode.0, first.number), (host.node_at("a").unwrap().inode, first.inode.0));
    let number = replace_with_same_number(&host, "a", "b");
    let second = world.walk("b").await.unwrap();
    assert_ne!(second.inode, first.inode, "the kernel would take it for the earlier file");
    assert_ne!(second.generation, first.generation);
    assert_eq!(second.number, number);
    let (attributes, _) = world.fs.getattr(second.inode).await.unwrap();
    assert_eq!(world.fs.shown_number(attributes.node), number);
    assert_eq!(numbers_in_root(&world).await, [number]);
    // While the host has the earlier file still, because it was looked up, the earlier number means it.
    let earlier = world.fs.getattr(first.inode).await.map(|(attributes, _)| attributes.node);
    assert!(earlier.is_err() || earlier == Ok(first.attributes.node), "{earlier:?}");
    world.fs.forget(first.inode, 1);
    world.fs.forget(second.inode, 1);
    let again = world.walk("b").await.unwrap();
    assert_eq!((again.inode.0, again.number), (number, number), "the kernel has forgotten the earlier one");
    assert_eq!(again.generation, second.generation);
}

#[tokio::test]
async fn the_root_is_shown_under_the_hosts_number() {
    let host = MemoryHost::new();
    let world = World::new(host.clone(), LASTING);
    let (attributes, _) = world.fs.getattr(Inode::ROOT).await.unwrap();
    assert_eq!(world.fs.shown_number(attributes.node), host.root_node().inode);
}

/// A file below two folders that the kernel has looked up and forgotten: the folder above it, its own folder, and it.
async fn forgotten() -> (World, [Entry; 3]) {
    let host = MemoryHost::new();
    host.create_file("a/d/f", "content");
    let config = FsConfig { freshness: FLEETING, read_only: false, ..FsConfig::default() };
    let world = World::with_config(host, config);
    let entries = [
        world.walk("a").await.unwrap(),
        world.walk("a/d").await.unwrap(),
        world.walk("a/d/f").await.unwrap(),
    ];
    for (entry, count) in entries.iter().zip([3, 2, 1]) {
        world.fs.forget(entry.inode, count);
    }
    world.assert_idle();
    (world, entries)
}

async fn found(world: &World, entry: &Entry) -> Result<(), FsError> {
    let again = world.fs.lookup_itself(entry.inode).await?;
    assert_eq!((again.inode, again.generation, again.number), (entry.inode, entry.generation, entry.number));
    assert_eq!(again.attributes.node, entry.attributes.node);
    world.fs.getattr(entry.inode).await?;
    world.fs.forget(entry.inode, 1);
    world.assert_idle();
    Ok(())
}

async fn errno(world: &World, entry: &Entry) -> Result<(), Errno> {
    found(world, entry).await.map_err(|error| error.errno())
}

#[tokio::test]
async fn an_inode_that_the_kernel_forgot_is_found_again() {
    let (world, entries) = forgotten().await;
    for entry in &entries {
        found(&world, entry).await.unwrap();
    }
    // The host knows no node any more, and each is found below the last that is known.
    for entry in &entries {
        world.host.restart();
        found(&world, entry).await.unwrap();
    }
    assert_eq!(
        errno(&world, &Entry { inode: Inode(77), ..entries[2] }).await,
        Err(Errno::ESTALE),
        "never told"
    );
}

#[tokio::test]
async fn what_is_found_again_can_be_read_and_is_known_by_its_name() {
    let (world, [_, _, file]) = forgotten().await;
    world.fs.lookup_itself(file.inode).await.unwrap();
    let opened = world.fs.open(file.inode, wormhole::fs::OpenRequest::default()).await.unwrap();
    assert_eq!(world.read(opened.handle, 0, 10).await.unwrap(), b"content");
    world.fs.release(opened.handle).await.unwrap();
    assert_eq!(world.walk("a/d/f").await.unwrap().inode, file.inode);
}

#[tokio::test]
async fn directories_lead_up_to_the_root_by_handles_alone() {
    let (world, [above, folder, file]) = forgotten().await;
    world.fs.lookup_itself(file.inode).await.unwrap();
    world.fs.lookup_itself(folder.inode).await.unwrap();
    assert_eq!(world.fs.lookup_parent(folder.inode).await.unwrap().inode, above.inode);
    assert_eq!(world.fs.lookup_parent(above.inode).await.unwrap().inode, Inode::ROOT);
    world.host.restart();
    let (attributes, _) = world.fs.getattr(file.inode).await.unwrap();
    assert_eq!(attributes.node, file.attributes.node, "the way up is known, so it outlives the host");
}

#[tokio::test]
async fn a_handle_of_what_is_gone_is_stale() {
    let (world, [_, _, file]) = forgotten().await;
    let number = replace_with_same_number(&world.host, "a/d/f", "a/d/g");
    assert_eq!(errno(&world, &file).await, Err(Errno::ESTALE));
    let other = world.walk("a/d/g").await.unwrap();
    assert_eq!((other.inode, other.number), (file.inode, number));
    assert_ne!(other.generation, file.generation, "the kernel tells them apart by it");
    let known = world.fs.lookup_itself(file.inode).await.unwrap();
    assert_eq!(known.generation, other.generation);
}

#[tokio::test]
async fn a_handle_of_what_was_moved_here_is_good_and_of_what_the_host_moved_is_not() {
    let (world, [_, _, file]) = forgotten().await;
    let folder = world.walk("a/d").await.unwrap();
    world.fs.lookup(folder.inode, b"f").await.unwrap();
    world.fs.rename((folder.inode, b"f"), (Inode::ROOT, b"moved"), RenameHow::Replace).await.unwrap();
    world.fs.forget(file.inode, 1);
    world.forget_walk("a/d").await;
    world.host.restart();
    let again = world.fs.lookup_itself(file.inode).await.unwrap();
    assert_eq!(again.attributes.node, file.attributes.node);
    world.fs.forget(file.inode, 1);
    world.host.rename("moved", "a/elsewhere");
    world.host.restart();
    assert_eq!(errno(&world, &file).await, Err(Errno::ESTALE), "nobody knows where it is");
}
