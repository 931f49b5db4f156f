//! What is held beyond its name: what was just looked up, and folders that were moved.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::Duration;

use super::changes::{WRITE, set};
use super::*;
use crate::host::handles::HANDLE_FRESH;
use crate::proto::{Change, Errno, OpenAccess, OpenId, SetAttributes};

/// Puts a new file, or a link where `link` says so, in the place of another.
fn replace(world: &World, name: &str, link: bool) {
    if link {
        symlink("new", world.path("tmp")).unwrap();
    } else {
        fs::write(world.path("tmp"), "new").unwrap();
    }
    fs::rename(world.path("tmp"), world.path(name)).unwrap();
}

fn chmod(node: NodeId) -> Change {
    set(node, SetAttributes { permissions: Some(0o640), ..SetAttributes::default() })
}

fn hold(node: NodeId, open: u64) -> Request {
    Request::OpenFor { node, open: OpenId(open), access: OpenAccess::NONE }
}

/// Longer than a descriptor is used without a look at where its file is.
async fn until_old() {
    tokio::time::sleep(HANDLE_FRESH + Duration::from_millis(200)).await;
}

#[tokio::test]
async fn what_was_looked_up_can_be_asked_and_opened_after_it_was_replaced() {
    let world = World::new(|export| {
        fs::write(export.join("file"), "old").unwrap();
        symlink("old", export.join("link")).unwrap();
    });
    let guest = world.client().await;
    for wait in [false, true] {
        let (file, link) = (guest.walk("file").await.unwrap(), guest.walk("link").await.unwrap());
        let before = fs::read(world.path("file")).unwrap();
        let target = fs::read_link(world.path("link")).unwrap().into_os_string().into_encoded_bytes();
        replace(&world, "file", false);
        replace(&world, "link", true);
        if wait {
            until_old().await;
        }
        assert_eq!(guest.ask(Request::ReadLink { node: link.node }).await, Ok(Reply::Bytes(target)));
        assert_eq!(guest.ask(Request::ListXattr { node: file.node }).await, Ok(Reply::Bytes(Vec::new())));
        assert_eq!(guest.ask(Request::Access { node: file.node, mask: 4 }).await, Ok(Reply::Done));
        let (node, open, access) = (file.node, OpenId(1), WRITE);
        let opened = guest.attributes(Request::OpenFor { node, open, access }).await.unwrap();
        assert_eq!((opened.node, opened.links), (file.node, 0));
        let read = guest.current(node, ByteRange::new(0, 10)).await.unwrap();
        assert_eq!(read, before);
        guest.ask(Request::Close { node, open }).await.unwrap();
    }
}

#[tokio::test]
async fn a_change_goes_by_the_name_unless_the_node_is_held_for_it() {
    let world = World::new(|export| fs::write(export.join("file"), "old").unwrap());
    let guest = world.client().await;
    let old = guest.walk("file").await.unwrap();
    replace(&world, "file", false);
    let mode = || fs::metadata(world.path("file")).unwrap().permissions().mode();
    let before = mode();
    assert_eq!(code(guest.change(1, chmod(old.node)).await), ErrorCode::UnknownNode);
    assert_eq!(
        code(guest.attributes(Request::GetAttributes { node: old.node }).await),
        ErrorCode::UnknownNode
    );
    assert_eq!(guest.attributes(hold(old.node, 7)).await.unwrap().node, old.node);
    let changed = guest.change(2, chmod(old.node)).await.unwrap().node.unwrap();
    assert_eq!((changed.node, changed.permissions, changed.links), (old.node, 0o640, 0));
    let cut = set(old.node, SetAttributes { size: Some(1), ..SetAttributes::default() });
    assert_eq!(guest.change(3, cut).await.unwrap().node.unwrap().size, 1);
    guest.ask(Request::Close { node: old.node, open: OpenId(7) }).await.unwrap();
    assert_eq!(code(guest.change(4, chmod(old.node)).await), ErrorCode::UnknownNode);
    assert_eq!((mode(), fs::read(world.path("file")).unwrap()), (before, b"new".to_vec()), "not the new one");
}

#[tokio::test]
async fn what_nobody_has_looked_up_is_not_held() {
    let world = World::new(|export| fs::write(export.join("file"), "old").unwrap());
    let guest = world.client().await;
    let listed = guest.list(guest.root()).await.unwrap()[0][0].attributes;
    replace(&world, "file", false);
    assert_eq!(code(guest.attributes(hold(listed.node, 1)).await), ErrorCode::UnknownNode);
    let node = NodeId { birth_ns: 1, ..listed.node };
    assert_eq!(code(guest.attributes(hold(node, 1)).await), ErrorCode::UnknownNode);
}

#[tokio::test]
async fn a_pipe_that_is_held_is_never_opened() {
    let world = World::new(|export| {
        nix::unistd::mkfifo(&export.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    });
    let guest = world.client().await;
    let pipe = guest.walk("pipe").await.unwrap();
    replace(&world, "pipe", false);
    guest.attributes(hold(pipe.node, 1)).await.unwrap();
    assert_eq!(guest.change(1, chmod(pipe.node)).await.unwrap().node.unwrap().permissions, 0o640);
    let open = Request::OpenFor { node: pipe.node, open: OpenId(2), access: WRITE };
    assert!(guest.attributes(open).await.is_err());
    let cut = set(pipe.node, SetAttributes { size: Some(1), ..SetAttributes::default() });
    assert_eq!(code(guest.change(2, cut).await), ErrorCode::System(Errno::EINVAL));
}

#[tokio::test]
async fn a_link_to_what_was_replaced_is_one_to_what_bears_the_name_now() {
    let world = World::new(|export| fs::write(export.join("file"), "old").unwrap());
    let guest = world.client().await;
    let old = guest.walk("file").await.unwrap();
    replace(&world, "file", false);
    assert!(guest.change(1, guest.link(old.node, "exact")).await.is_err());
    let by_name = |name: &str| Change::Link {
        node: old.node,
        seen_as: Some((guest.root(), b"file".to_vec())),
        parent: guest.root(),
        name: name.into(),
    };
    let made = guest.change(2, by_name("link")).await.unwrap().node.unwrap();
    assert!(same_node(&made, &world.path("file")) && same_node(&made, &world.path("link")));
    guest.attributes(hold(old.node, 1)).await.unwrap();
    let made = guest.change(3, by_name("another")).await.unwrap().node.unwrap();
    assert!(same_node(&made, &world.path("another")));
}

#[tokio::test]
async fn a_folder_that_was_moved_goes_on_with_all_that_is_in_it() {
    let world = World::new(|export| {
        fs::create_dir_all(export.join("a/b/c")).unwrap();
        fs::write(export.join("a/b/c/file"), "content").unwrap();
    });
    let guest = world.client().await;
    let folder = guest.walk("a/b").await.unwrap();
    let below = guest.walk("a/b/c").await.unwrap();
    let file = guest.walk("a/b/c/file").await.unwrap();
    for (from, to) in [("a/b", "b2"), ("b2/c", "b2/c2"), ("a", "a2")] {
        fs::rename(world.path(from), world.path(to)).unwrap();
        // Something else takes the place, which must not be taken for it.
        fs::create_dir_all(world.path(from)).unwrap();
        until_old().await;
        assert_eq!(guest.lookup(folder.node, b"none").await.unwrap_err(), WireError::system(Errno::ENOENT));
        assert_eq!(guest.lookup(below.node, b"file").await.unwrap().node, file.node);
        assert_eq!(guest.list(below.node).await.unwrap().concat().len(), 1);
        let found = guest.attributes(Request::GetAttributes { node: folder.node }).await.unwrap();
        assert_eq!(found.node, folder.node);
        let read = guest.current(file.node, ByteRange::new(0, 10)).await.unwrap();
        assert_eq!(read, b"content".as_slice());
        assert!(guest.change(from.len() as u64, chmod(file.node)).await.is_ok());
    }
    let open = Change::Create {
        parent: below.node,
        name: b"made".into(),
        permissions: 0o666,
        caller: crate::proto::Caller::default(),
        open: OpenId(1),
        access: WRITE,
        exclusive: true,
        truncate: false,
    };
    guest.change(2000, open).await.unwrap();
    assert!(world.path("b2/c2/made").exists());
    // A file that was found in a folder of which nothing else is known, below one that is moved.
    let listed = guest.list(folder.node).await.unwrap().concat();
    let renamed = listed.iter().find(|entry| entry.name == b"c").unwrap().attributes.node;
    fs::write(world.path("b2/c/late"), "late").unwrap();
    let late = guest.lookup(renamed, b"late").await.unwrap();
    fs::rename(world.path("b2"), world.path("b3")).unwrap();
    until_old().await;
    assert_eq!(guest.current(late.node, ByteRange::new(0, 9)).await.unwrap(), b"late".as_slice());
}

#[tokio::test]
async fn what_was_moved_out_of_the_export_is_out_of_reach_after_a_second() {
    let world = World::new(|export| {
        fs::create_dir(export.join("folder")).unwrap();
        fs::write(export.join("folder/inner"), "inner").unwrap();
        fs::write(export.join("file"), "content").unwrap();
    });
    let guest = world.client().await;
    let (folder, file) = (guest.walk("folder").await.unwrap(), guest.walk("file").await.unwrap());
    let inner = guest.walk("folder/inner").await.unwrap();
    for name in ["folder", "file"] {
        fs::rename(world.path(name), world.folder.path().join(name)).unwrap();
    }
    until_old().await;
    assert_eq!(code(guest.ask(Request::ReadDirectory { node: folder.node }).await), ErrorCode::UnknownNode);
    assert_eq!(code(guest.lookup(folder.node, b"inner").await), ErrorCode::UnknownNode);
    for node in [file.node, inner.node] {
        assert_eq!(code(guest.attributes(hold(node, 1)).await), ErrorCode::UnknownNode);
        assert_eq!(
            code(guest.attributes(Request::Open { node, open: OpenId(1) }).await),
            ErrorCode::UnknownNode
        );
        assert_eq!(code(guest.current(node, ByteRange::new(0, 1)).await), ErrorCode::UnknownNode);
    }
    assert_eq!(fs::metadata(world.folder.path().join("file")).unwrap().ino(), file.node.inode);
}
