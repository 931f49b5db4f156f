//! Who may only read changes nothing: every request of the protocol that changes something, over an export that is read-only and
//! by a key that is.

use std::fs;

use super::changes::{WRITE, set, system};
use super::*;
use crate::host::AuthorizedKeys;
use crate::proto::{
    AllocateHow, Caller, Change, Errno, FileKind, Growth, OpenId, RenameHow, SetAttributes, WriteAt, XattrHow,
};

/// One of each kind. What is added to the protocol has to be added here, or this does not compile.
fn every_change(guest: &Guest, node: NodeId) -> Vec<Change> {
    let (parent, name, caller) = (guest.root(), b"new".to_vec(), Caller::default());
    let range = ByteRange::new(0, 1);
    let changes = vec![
        guest.create("new", 1),
        guest.mkdir("new"),
        Change::MakeNode {
            parent,
            name: name.clone(),
            kind: FileKind::Fifo,
            permissions: 0o600,
            device_number: 0,
            caller,
        },
        Change::MakeSymlink { parent, name, target: b"x".to_vec(), caller },
        guest.link(node, "new"),
        guest.remove("file", None),
        guest.rename("file", "new", RenameHow::Replace, None),
        set(node, SetAttributes { permissions: Some(0o600), ..Default::default() }),
        Change::SetXattr { node, name: b"user.x".to_vec(), value: b"1".to_vec(), how: XattrHow::Any },
        Change::RemoveXattr { node, name: b"user.x".to_vec() },
        Change::Allocate { node, range, how: AllocateHow::Grow },
        Change::CopyRange { from: node, range, to: node, offset: 1 },
        Change::WriteKnown {
            node,
            offset: 0,
            chunks: vec![ChunkHash::of(b"old")],
            growth: Growth::default(),
        },
    ];
    for (at, change) in changes.iter().enumerate() {
        let place = match change {
            Change::Create { .. } => 0,
            Change::MakeDirectory { .. } => 1,
            Change::MakeNode { .. } => 2,
            Change::MakeSymlink { .. } => 3,
            Change::Link { .. } => 4,
            Change::Remove { .. } => 5,
            Change::Rename { .. } => 6,
            Change::SetAttributes { .. } => 7,
            Change::SetXattr { .. } => 8,
            Change::RemoveXattr { .. } => 9,
            Change::Allocate { .. } => 10,
            Change::CopyRange { .. } => 11,
            Change::WriteKnown { .. } => 12,
        };
        assert_eq!(at, place, "one of each kind, in this order");
    }
    changes
}

async fn nothing_is_changed(world: &World, guest: &Guest) {
    assert!(guest.welcome.read_only);
    let node = guest.walk("file").await.unwrap().node;
    let read_only = system(Errno::EROFS);
    for (id, change) in (1..).zip(every_change(guest, node)) {
        assert_eq!(code(guest.change(id, change.clone()).await), read_only, "{change:?}");
    }
    assert_eq!(code(guest.write(50, node, WriteAt::Offset(0), b"new").await), read_only);
    assert_eq!(code(guest.write(51, node, WriteAt::End { believed: 3 }, b"new").await), read_only);
    for request in
        [Request::OpenFor { node, open: OpenId(1), access: WRITE }, Request::Access { node, mask: 2 }]
    {
        assert_eq!(code(guest.ask(request.clone()).await), read_only, "{request:?}");
    }
    assert_eq!(fs::read(world.path("file")).unwrap(), b"old");
    assert_eq!(fs::read_dir(world.path("")).unwrap().count(), 1);
    assert_eq!(guest.current(node, ByteRange::new(0, 10)).await.unwrap(), &b"old"[..], "but it is read");
}

#[tokio::test]
async fn an_export_that_is_read_only_is_not_changed() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("export")).unwrap();
    fs::write(folder.path().join("export/file"), "old").unwrap();
    let export = Export { name: "export".into(), path: folder.path().join("export"), read_only: true };
    let mut config = HostConfig::new(vec![export], folder.path().join("state"));
    config.listen = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
    let world = World { host: Host::start(config).unwrap(), folder };
    let guest = world.client().await;
    nothing_is_changed(&world, &guest).await;
}

#[tokio::test]
async fn a_key_that_may_only_read_changes_nothing() {
    let world = World::new(|path| fs::write(path.join("file"), "old").unwrap());
    let identity = Identity::generate().unwrap();
    let line = format!("{} ro\n", identity.public_key());
    world.state().update(|keys, _| (*keys, _) = AuthorizedKeys::parse(&line)).unwrap();
    let visitor = Visitor::with_key(&world, &identity).await;
    let welcome = visitor.greet(hello()).await.unwrap();
    nothing_is_changed(&world, &Guest { visitor, welcome }).await;
}
