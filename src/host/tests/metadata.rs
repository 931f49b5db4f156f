//! Names, attributes, listings, and everything that must not lead out.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;

use super::*;
use crate::io::sys::{XattrSet, XattrTarget, set_xattr};
use crate::proto::{Errno, FileKind, FsStatistics, OpenId, SeekTarget};

const ODD: &[u8] = b"not utf-8 \xff\n";

fn errno<T: std::fmt::Debug>(answer: Result<T, WireError>) -> Errno {
    match code(answer) {
        ErrorCode::System(errno) => errno,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn names_are_bytes_and_attributes_are_the_kernels() {
    let world = World::new(|export| {
        fs::create_dir(export.join("folder")).unwrap();
        fs::write(export.join("folder").join(OsStr::from_bytes(ODD)), "content").unwrap();
    });
    let guest = world.client().await;
    let folder = guest.lookup(guest.root(), b"folder").await.unwrap();
    let file = guest.lookup(folder.node, ODD).await.unwrap();
    let path = world.path("folder").join(OsStr::from_bytes(ODD));
    assert!(same_node(&file, &path) && same_node(&folder, &world.path("folder")));
    assert_eq!((file.kind, file.size, file.version()), (FileKind::Regular, 7, version_of(&path)));
    let again = guest.attributes(Request::GetAttributes { node: file.node }).await.unwrap();
    assert_eq!(Attributes { observed: file.observed, ..again }, file);
    assert!(again.observed >= file.observed);
    assert_eq!(errno(guest.lookup(folder.node, b"none").await), Errno::ENOENT);
    assert_eq!(errno(guest.lookup(file.node, b"x").await), Errno::ENOTDIR);
    assert_eq!(errno(guest.lookup(folder.node, &[b'x'; 256]).await), Errno::ENAMETOOLONG);
}

#[tokio::test]
async fn names_that_lead_elsewhere_break_the_protocol() {
    let world = World::new(|export| fs::create_dir(export.join("folder")).unwrap());
    let guest = world.client().await;
    let folder = guest.walk("folder").await.unwrap();
    for name in [b"..".as_slice(), b".", b"", b"../export", b"/etc", b"folder/x", b"a\0b"] {
        for parent in [folder.node, guest.root()] {
            assert_eq!(code(guest.lookup(parent, name).await), ErrorCode::Malformed, "{name:?}");
        }
    }
}

#[tokio::test]
async fn links_are_told_and_never_followed() {
    let world = World::new(|export| {
        symlink("/etc/passwd", export.join("absolute")).unwrap();
        symlink("../state", export.join("up")).unwrap();
    });
    let guest = world.client().await;
    for (name, target) in [("absolute", "/etc/passwd"), ("up", "../state")] {
        let link = guest.walk(name).await.unwrap();
        assert_eq!(link.kind, FileKind::Symlink);
        let read = guest.ask(Request::ReadLink { node: link.node }).await;
        assert_eq!(read, Ok(Reply::Bytes(target.into())));
        assert_eq!(errno(guest.lookup(link.node, b"host_key").await), Errno::ENOTDIR);
        assert_eq!(errno(guest.read(piece(&link, 0, 1)).await), Errno::EINVAL);
        assert_eq!(errno(guest.list(link.node).await), Errno::ENOTDIR);
    }
    assert_eq!(errno(guest.ask(Request::ReadLink { node: guest.root() }).await), Errno::EINVAL);
}

#[tokio::test]
async fn a_node_nobody_was_told_of_is_unknown() {
    let world = World::new(|_| {});
    let guest = world.client().await;
    let state = fs::metadata(world.folder.path()).unwrap();
    let node = NodeId { inode: state.ino(), ..guest.root() };
    assert_eq!(code(guest.attributes(Request::GetAttributes { node }).await), ErrorCode::UnknownNode);
    assert_eq!(code(guest.lookup(node, b"state").await), ErrorCode::UnknownNode);
    assert_eq!(code(guest.list(node).await), ErrorCode::UnknownNode);
}

#[tokio::test]
async fn a_large_folder_is_listed_whole_and_begins_early() {
    const FILES: usize = 20_000;
    let world = World::new(|export| {
        fs::create_dir(export.join("many")).unwrap();
        for i in 0..FILES {
            fs::File::create(export.join(format!("many/file-{i:05}"))).unwrap();
        }
        fs::write(export.join("many").join(OsStr::from_bytes(ODD)), "x").unwrap();
    });
    let guest = world.client().await;
    let many = guest.walk("many").await.unwrap();
    let batches = guest.list(many.node).await.unwrap();
    assert!(batches[0].len() < 100 && batches.len() > 10);
    let names: BTreeSet<&[u8]> = batches.iter().flatten().map(|entry| &entry.name[..]).collect();
    assert_eq!(names.len(), FILES + 1);
    assert!(names.contains(ODD) && names.contains(&b"file-19999"[..]));
    let entry = batches.iter().flatten().find(|entry| entry.name == ODD).unwrap();
    assert!(same_node(&entry.attributes, &world.path("many").join(OsStr::from_bytes(ODD))));
    let node = entry.attributes.node;
    let known = guest.attributes(Request::GetAttributes { node }).await.unwrap();
    assert_eq!(known.node, node, "a listing makes its nodes known");
    assert_eq!(guest.bytes(chunks(&known, 0, 1)).await.unwrap(), b"x");
}

#[tokio::test]
async fn an_empty_folder_is_one_empty_batch() {
    let world = World::new(|_| {});
    let guest = world.client().await;
    assert_eq!(guest.list(guest.root()).await.unwrap(), [vec![]]);
}

#[tokio::test]
async fn statistics_attributes_access_and_holes_are_the_hosts() {
    let world = World::new(|export| {
        let file = fs::File::create(export.join("file")).unwrap();
        set_xattr(XattrTarget::Fd(std::os::fd::AsFd::as_fd(&file)), c"user.who", b"me", XattrSet::Any)
            .unwrap();
        file.set_len(1 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"data", 512 << 10).unwrap();
    });
    let guest = world.client().await;
    let node = guest.walk("file").await.unwrap().node;
    let Ok(Reply::FsStatistics(FsStatistics { block_bytes, blocks, name_bytes_max, .. })) =
        guest.ask(Request::StatFs { node }).await
    else {
        panic!()
    };
    assert!(block_bytes >= 512 && blocks > 0 && name_bytes_max == 255);
    let get = |name: &[u8]| guest.ask(Request::GetXattr { node, name: name.to_vec() });
    assert_eq!(get(b"user.who").await, Ok(Reply::Bytes(b"me".to_vec())));
    assert_eq!(errno(get(b"user.none").await), Errno::ENODATA);
    assert_eq!(code(get(b"user.\0").await), ErrorCode::Malformed);
    let Ok(Reply::Bytes(list)) = guest.ask(Request::ListXattr { node }).await else { panic!() };
    assert!(list.windows(9).any(|name| name == b"user.who\0"));
    assert_eq!(guest.ask(Request::Access { node, mask: 4 }).await, Ok(Reply::Done));
    assert_eq!(errno(guest.ask(Request::Access { node, mask: 8 }).await), Errno::EINVAL);
    let seek = |offset, target| guest.ask(Request::Seek { node, offset, target });
    assert_eq!(seek(0, SeekTarget::Data).await, Ok(Reply::Offset(512 << 10)));
    assert_eq!(seek(0, SeekTarget::Hole).await, Ok(Reply::Offset(0)));
    assert_eq!(errno(seek(2 << 20, SeekTarget::Data).await), Errno::ENXIO);
    assert_eq!(errno(seek(u64::MAX, SeekTarget::Data).await), Errno::ENXIO);
}

#[tokio::test]
async fn pipes_and_sockets_are_shown_and_never_opened() {
    let world = World::new(|export| {
        nix::unistd::mkfifo(&export.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        drop(std::os::unix::net::UnixListener::bind(export.join("socket")).unwrap());
    });
    let guest = world.client().await;
    for (name, kind) in [("pipe", FileKind::Fifo), ("socket", FileKind::Socket)] {
        let found = guest.walk(name).await.unwrap();
        assert_eq!(found.kind, kind);
        assert_eq!(errno(guest.read(piece(&found, 0, 1)).await), Errno::EINVAL);
        let node = found.node;
        let opened = guest.attributes(Request::Open { node, open: OpenId(1) }).await.unwrap();
        assert_eq!(opened.kind, kind);
        assert_eq!(guest.ask(Request::Close { node, open: OpenId(1) }).await, Ok(Reply::Done));
        assert_eq!(errno(guest.ask(Request::Sum { node }).await), Errno::EINVAL);
    }
    let root = guest.welcome.root;
    assert_eq!(errno(guest.read(piece(&root, 0, 1)).await), Errno::EISDIR);
    assert_eq!(errno(guest.ask(Request::Sum { node: root.node }).await), Errno::EISDIR);
}
