//! Lookups, attributes, links, and what costs a round trip.

use wormhole::client::memory::MemoryHost;
use wormhole::fs::{FsConfig, FsError, Inode, Lookup, OpenRequest, Ownership, SUM_XATTR};
use wormhole::proto::{Errno, FileKind, Trust};

use super::{FLEETING, LASTING, World};

#[tokio::test]
async fn a_walk_finds_what_the_host_has_and_forgets_leave_nothing() {
    let host = MemoryHost::new();
    let node = host.create_file("a/b/\u{fc}.txt", "content");
    let world = World::new(host, LASTING);
    let entry = world.walk("a/b/\u{fc}.txt").await.unwrap();
    assert_eq!(entry.attributes.node, node);
    assert_eq!(entry.inode, Inode(node.inode));
    assert_eq!(entry.attributes.size, 7);
    assert_eq!(world.walk("a/c").await, Err(FsError::NotFound));
    world.forget_walk("a/b/\u{fc}.txt").await;
    world.fs.forget(world.walk("a").await.unwrap().inode, 2);
    world.assert_idle();
}

#[tokio::test]
async fn names_that_are_not_text_and_names_too_long() {
    let host = MemoryHost::new();
    host.create_file(b"\xff\xfe".as_slice(), "x");
    let world = World::new(host, LASTING);
    assert!(matches!(world.fs.lookup(Inode::ROOT, b"\xff\xfe").await, Ok(Lookup::Found(_))));
    assert_eq!(world.fs.lookup(Inode::ROOT, &[b'a'; 256]).await, Err(FsError::NameTooLong(256)));
}

#[tokio::test]
async fn attributes_that_hold_cost_no_round_trip_and_others_one() {
    let host = MemoryHost::new();
    host.create_file("f", "x");
    for (freshness, asked) in [(LASTING, 0), (FLEETING, 2)] {
        let world = World::new(host.clone(), freshness);
        let file = world.walk("f").await.unwrap();
        host.reset_counters();
        world.fs.getattr(file.inode).await.unwrap();
        world.fs.getattr(file.inode).await.unwrap();
        assert_eq!(host.counters().attributes, asked);
    }
}

#[tokio::test]
async fn the_kernel_may_believe_an_answer_for_what_is_left_of_its_time() {
    let host = MemoryHost::new();
    host.create_file("f", "x");
    let world = World::new(host, LASTING);
    let file = world.walk("f").await.unwrap();
    let (_, first) = world.fs.getattr(file.inode).await.unwrap();
    let (_, second) = world.fs.getattr(file.inode).await.unwrap();
    assert!(first < LASTING.attributes);
    assert!(second < first);
}

#[tokio::test]
async fn hard_links_are_one_inode_with_two_names() {
    let host = MemoryHost::new();
    host.create_file("a", "x");
    host.create_hard_link("a", "d/b");
    let world = World::new(host, LASTING);
    let (a, b) = (world.walk("a").await.unwrap(), world.walk("d/b").await.unwrap());
    assert_eq!(a.inode, b.inode);
    assert_eq!(b.attributes.links, 2);
}

#[tokio::test]
async fn a_link_target_is_asked_for_once() {
    let host = MemoryHost::new();
    host.create_symlink("l", "../else\u{fc}where");
    let world = World::new(host.clone(), FLEETING);
    let link = world.walk("l").await.unwrap();
    for _ in 0..3 {
        assert_eq!(&*world.fs.readlink(link.inode).await.unwrap(), "../else\u{fc}where".as_bytes());
    }
    assert_eq!(host.counters().links, 1);
}

#[tokio::test]
async fn a_link_target_is_asked_for_again_where_numbers_prove_nothing() {
    let host = MemoryHost::new();
    host.set_trust(Trust::Weak);
    host.create_symlink("l", "somewhere");
    let world = World::new(host.clone(), LASTING);
    let link = world.walk("l").await.unwrap();
    for _ in 0..3 {
        assert_eq!(&*world.fs.readlink(link.inode).await.unwrap(), b"somewhere");
    }
    assert_eq!(host.counters().links, 3);
}

#[tokio::test]
async fn a_replaced_file_is_another_inode() {
    let host = MemoryHost::new();
    host.create_file("f", "old");
    let world = World::new(host.clone(), FLEETING);
    let old = world.walk("f").await.unwrap();
    host.replace("f", "new!");
    let new = world.walk("f").await.unwrap();
    assert_ne!(old.inode, new.inode);
    assert_eq!(new.attributes.size, 4);
}

#[tokio::test]
async fn an_open_through_a_name_that_leads_elsewhere_is_stale_so_that_the_kernel_looks_again() {
    let host = MemoryHost::new();
    host.create_file("f", "old");
    host.create_hard_link("f", "keeps the old one alive");
    let world = World::new(host.clone(), LASTING);
    let directory = world.fs.opendir(Inode::ROOT).unwrap();
    world.list_from(directory, 0).await;
    let old = world.walk("f").await.unwrap();
    host.replace("f", "new!");
    assert_eq!(world.fs.open(old.inode, OpenRequest::default()).await, Err(FsError::Stale));
    assert_eq!(host.opens(old.attributes.node), 0);
    let new = world.walk("f").await.unwrap();
    assert_ne!(new.inode, old.inode);
    assert!(world.fs.open(new.inode, OpenRequest::default()).await.is_ok());
}

#[tokio::test]
async fn extended_attributes_pass_through_and_the_sum_is_added() {
    let host = MemoryHost::new();
    host.create_file("f", "content");
    host.set_xattr("f", b"user.comment", b"\x00bytes\xff");
    let world = World::new(host.clone(), LASTING);
    let file = world.walk("f").await.unwrap();
    assert_eq!(world.fs.listxattr(file.inode).await.unwrap(), b"user.comment\0");
    assert_eq!(world.fs.getxattr(file.inode, b"user.comment").await.unwrap(), b"\x00bytes\xff");
    let missing = world.fs.getxattr(file.inode, b"user.other").await.unwrap_err();
    assert_eq!(missing.errno(), Errno::ENODATA);
    let sum = world.fs.getxattr(file.inode, SUM_XATTR).await.unwrap();
    assert_eq!(String::from_utf8(sum).unwrap(), blake3::hash(b"content").to_string());
    let without = World::with_config(host, FsConfig { xattrs: false, ..FsConfig::default() });
    let file = without.walk("f").await.unwrap();
    assert_eq!(without.fs.listxattr(file.inode).await.unwrap_err().errno(), Errno::EOPNOTSUPP);
}

#[tokio::test]
async fn owners_and_masks_are_shown_as_configured() {
    let host = MemoryHost::new();
    host.create_file("d/f", "x");
    let ownership = Ownership {
        uid: Some(7),
        gid: Some(8),
        file_mask: 0o077,
        directory_mask: 0o055,
        ..Ownership::default()
    };
    let world = World::with_config(host, FsConfig { ownership, ..FsConfig::default() });
    let shown =
        |attributes: wormhole::proto::Attributes| (attributes.uid, attributes.gid, attributes.permissions);
    let file = world.walk("d/f").await.unwrap();
    assert_eq!(shown(file.attributes), (7, 8, 0o600));
    assert_eq!(shown(world.fs.getattr(file.inode).await.unwrap().0), (7, 8, 0o600));
    let folder = world.walk("d").await.unwrap();
    assert_eq!((folder.attributes.kind, shown(folder.attributes)), (FileKind::Directory, (7, 8, 0o700)));
}

#[tokio::test]
async fn nothing_is_opened_for_writing_and_access_follows_the_host() {
    let host = MemoryHost::new();
    host.create_file("f", "x");
    host.set_permissions("f", 0o044);
    let world = World::new(host, LASTING);
    let file = world.walk("f").await.unwrap();
    let writes = OpenRequest { writes: true, ..OpenRequest::default() };
    assert_eq!(world.fs.open(file.inode, writes).await, Err(FsError::ReadOnly));
    assert_eq!(world.fs.access(file.inode, 4).await.unwrap_err().errno(), Errno::EACCES);
    assert_eq!(world.fs.access(file.inode, 2).await, Err(FsError::ReadOnly));
    assert_eq!(world.fs.access(Inode::ROOT, 5).await, Ok(()));
}

#[tokio::test]
async fn names_of_extended_attributes_are_asked_for_once_and_ahead_of_who_goes_in_order() {
    let host = MemoryHost::new();
    for number in 0..60 {
        host.create_file(format!("{number:02}"), "");
    }
    for number in 0..50 {
        host.set_xattr(format!("{number:02}"), b"user.a", b"1");
    }
    host.advance(std::time::Duration::from_secs(3));
    let world = World::new(host.clone(), LASTING);
    let directory = world.fs.opendir(Inode::ROOT).unwrap();
    world.list_from(directory, 0).await;
    let acl = b"system.posix_acl_access";
    for number in 0..60 {
        let file = world.walk(&format!("{number:02}")).await.unwrap();
        assert_eq!(world.fs.getxattr(file.inode, acl).await.unwrap_err().errno(), Errno::ENODATA);
        assert_eq!(
            world.fs.getxattr(file.inode, b"security.selinux").await.unwrap_err().errno(),
            Errno::ENODATA
        );
        if number == 1 {
            // The second in order has the others asked for, while nobody waits for them.
            host.until(|host| host.counters().xattrs == 50).await;
        }
    }
    assert_eq!(host.counters().xattrs, 50);
    let with = world.walk("07").await.unwrap();
    assert_eq!(world.fs.listxattr(with.inode).await.unwrap(), b"user.a\0");
    assert_eq!(host.counters().xattrs, 50);
}

#[tokio::test]
async fn an_extended_attribute_that_is_set_later_is_seen() {
    let host = MemoryHost::new();
    host.create_file("f", "");
    let world = World::new(host.clone(), FLEETING);
    let file = world.walk("f").await.unwrap();
    assert!(world.fs.listxattr(file.inode).await.unwrap().is_empty());
    host.set_xattr("f", b"user.a", b"1");
    assert_eq!(world.fs.listxattr(file.inode).await.unwrap(), b"user.a\0");
    assert_eq!(world.fs.getxattr(file.inode, b"user.a").await.unwrap(), b"1");
}
