//! Names that change hands between the lookup of a name and what is done with what it named.

use std::future::Future;
use std::pin::Pin;

use wormhole::client::memory::MemoryHost;
use wormhole::fs::{Freshness, FsConfig, FsError, Inode, Lookup, OpenRequest};
use wormhole::proto::{Caller, Errno, RenameHow, SetAttributes, SetTime, XattrHow};

use super::changing::create;
use super::{FLEETING, LASTING, World};

const FILE: &str = "a/f";
const LINK: &str = "a/l";
const WRITE: OpenRequest =
    OpenRequest { reads: false, writes: true, is_direct: false, copies: false, appends: false };

type Done<'a> = Pin<Box<dyn Future<Output = Result<(), FsError>> + Send + 'a>>;

/// What a program does with what a name named.
struct Act {
    name: &'static str,
    path: &'static str,
    /// Whether it changes the file, so that it must not be done to one that was replaced before.
    changes: bool,
    run: fn(&World, Inode) -> Done<'_>,
}

fn set(set: SetAttributes) -> impl Fn(&World, Inode) -> Done<'_> {
    move |world, inode| Box::pin(async move { world.fs.setattr(inode, set).await.map(drop) })
}

async fn open(world: &World, inode: Inode, request: OpenRequest) -> Result<(), FsError> {
    let opened = world.fs.open(inode, request).await?;
    if request.reads {
        assert!(!world.read(opened.handle, 0, 10).await?.is_empty());
    }
    world.fs.release(opened.handle).await
}

const ACTS: [Act; 11] = [
    Act {
        name: "open to read",
        path: FILE,
        changes: false,
        run: |world, inode| Box::pin(open(world, inode, OpenRequest::default())),
    },
    Act {
        name: "open to write",
        path: FILE,
        changes: false,
        run: |world, inode| Box::pin(open(world, inode, WRITE)),
    },
    Act {
        name: "chmod",
        path: FILE,
        changes: true,
        run: |world, inode| {
            set(SetAttributes { permissions: Some(0o600), ..SetAttributes::default() })(world, inode)
        },
    },
    Act {
        name: "utimes",
        path: FILE,
        changes: true,
        run: |world, inode| {
            set(SetAttributes { mtime: Some(SetTime::Now), ..SetAttributes::default() })(world, inode)
        },
    },
    Act {
        name: "truncate",
        path: FILE,
        changes: true,
        run: |world, inode| set(SetAttributes { size: Some(1), ..SetAttributes::default() })(world, inode),
    },
    Act {
        name: "setxattr",
        path: FILE,
        changes: true,
        run: |world, inode| {
            Box::pin(async move { world.fs.setxattr(inode, b"user.a", b"1", XattrHow::Any).await })
        },
    },
    Act {
        name: "getxattr",
        path: FILE,
        changes: false,
        run: |world, inode| Box::pin(async move { world.fs.getxattr(inode, b"user.mark").await.map(drop) }),
    },
    Act {
        name: "access",
        path: FILE,
        changes: false,
        run: |world, inode| Box::pin(async move { world.fs.access(inode, 4).await }),
    },
    Act {
        name: "stat",
        path: FILE,
        changes: false,
        run: |world, inode| Box::pin(async move { world.fs.getattr(inode).await.map(drop) }),
    },
    Act {
        name: "link",
        path: FILE,
        changes: true,
        run: |world, inode| {
            Box::pin(async move {
                let made = world.fs.link(inode, Inode::ROOT, b"second name").await?;
                world.fs.forget(made.inode, 1);
                world.fs.remove(Inode::ROOT, b"second name", false).await
            })
        },
    },
    Act {
        name: "readlink",
        path: LINK,
        changes: false,
        run: |world, inode| Box::pin(async move { world.fs.readlink(inode).await.map(drop) }),
    },
];

/// Puts something else in the place of both.
fn replace(host: &MemoryHost) {
    let file = host.replace(FILE, "new content");
    host.set_xattr(FILE, b"user.mark", b"x");
    assert_eq!(host.node_at(FILE), Some(file));
    host.unlink(LINK);
    host.create_symlink(LINK, "elsewhere");
}

fn host() -> MemoryHost {
    let host = MemoryHost::new();
    host.create_file(FILE, "old content");
    host.set_xattr(FILE, b"user.mark", b"x");
    host.create_symlink(LINK, "somewhere");
    host
}

/// Does it as the kernel does: looks the name up, and if that is stale once more. `meanwhile` happens each time in between.
async fn by_name(world: &World, act: &Act, meanwhile: impl Fn(u32)) -> Result<u32, FsError> {
    for attempt in 1.. {
        let found = world.walk(act.path).await?;
        meanwhile(attempt);
        match (act.run)(world, found.inode).await {
            Err(FsError::Stale) if attempt == 1 => {}
            done => return done.map(|()| attempt),
        }
    }
    unreachable!("the second attempt is the last")
}

fn writable(host: MemoryHost, freshness: Freshness) -> World {
    World::with_config(host, FsConfig { freshness, read_only: false, ..FsConfig::default() })
}

async fn world(freshness: Freshness, keeps_old: bool, lists: bool) -> World {
    let host = host();
    if keeps_old {
        host.create_hard_link(FILE, "keeps the old one");
    }
    let world = writable(host, freshness);
    if lists {
        let folder = world.walk("a").await.unwrap();
        let directory = world.fs.opendir(folder.inode).unwrap();
        world.list_from(directory, 0).await;
    }
    world
}

#[tokio::test]
async fn a_name_that_is_replaced_all_the_time_never_fails() {
    for act in &ACTS {
        for (freshness, keeps_old, lists) in [
            (LASTING, false, false),
            (LASTING, true, false),
            (LASTING, false, true),
            (FLEETING, false, false),
            (FLEETING, true, false),
        ] {
            let world = world(freshness, keeps_old, lists).await;
            for round in 0..5 {
                let done = by_name(&world, act, |_| replace(&world.host)).await;
                assert!(done.is_ok(), "{} {freshness:?} {keeps_old} {lists}, {round}: {done:?}", act.name);
            }
        }
    }
}

#[tokio::test]
async fn what_was_replaced_before_is_not_changed_in_the_place_of_what_bears_the_name() {
    for act in ACTS.iter().filter(|act| act.changes) {
        let world = world(LASTING, true, false).await;
        world.walk(act.path).await.unwrap();
        replace(&world.host);
        let before = world.host.attributes_of("keeps the old one");
        let new = world.host.attributes_of(FILE);
        by_name(&world, act, |_| ()).await.unwrap();
        let after = world.host.attributes_of("keeps the old one");
        assert_eq!((before.ctime, before.size), (after.ctime, after.size), "{}", act.name);
        assert_ne!(world.host.attributes_of(FILE).ctime, new.ctime, "{}", act.name);
    }
}

#[tokio::test]
async fn an_open_sees_what_was_put_under_the_name_before_it() {
    for lists in [false, true] {
        let world = world(LASTING, true, lists).await;
        let old = world.walk(FILE).await.unwrap();
        replace(&world.host);
        assert_eq!(world.fs.open(old.inode, OpenRequest::default()).await, Err(FsError::Stale));
        let new = world.walk(FILE).await.unwrap();
        assert_eq!(Some(new.attributes.node), world.host.node_at(FILE));
        assert!(new.entry_ttl.is_zero(), "the name is believed for no time");
        assert!(world.fs.open(new.inode, OpenRequest::default()).await.is_ok());
    }
}

#[tokio::test]
async fn what_the_host_holds_no_longer_is_stale() {
    let world = world(LASTING, false, false).await;
    world.host.set_pins_max(0);
    for act in ACTS.iter().filter(|act| !matches!(act.name, "link" | "stat" | "readlink")) {
        let done = by_name(&world, act, |_| replace(&world.host)).await;
        assert_eq!(done, Err(FsError::Stale), "{}", act.name);
    }
}

#[tokio::test]
async fn what_was_held_for_a_change_is_let_go() {
    let world = world(FLEETING, false, false).await;
    let old = world.walk(FILE).await.unwrap();
    replace(&world.host);
    world
        .fs
        .setattr(old.inode, SetAttributes { permissions: Some(0), ..SetAttributes::default() })
        .await
        .unwrap();
    let node = old.attributes.node;
    let let_go = world.host.until(|host| host.opens(node) == 0);
    tokio::time::timeout(std::time::Duration::from_secs(30), let_go).await.unwrap();
}

#[tokio::test]
async fn an_absence_just_learnt_answers_the_lookup_before_the_name_is_made() {
    let host = MemoryHost::new();
    host.create_file("old", "x");
    let world = writable(host.clone(), LASTING);
    world.walk("old").await.unwrap();
    for name in ["file", "folder", "moved"] {
        assert_eq!(world.walk(name).await, Err(FsError::NotFound));
        host.reset_counters();
        // The kernel asks again before it makes a name that must be free, or puts one in another's place.
        assert_eq!(world.walk(name).await, Err(FsError::NotFound));
        match name {
            "file" => drop(world.fs.create(Inode::ROOT, b"file", create(true)).await.unwrap()),
            "folder" => {
                let what = wormhole::fs::Made::Directory;
                world
                    .fs
                    .make(Inode::ROOT, name.as_bytes(), &what, 0o755, Caller::default())
                    .await
                    .map(drop)
                    .unwrap();
            }
            _ => {
                let how = RenameHow::NoReplace;
                world.fs.rename((Inode::ROOT, b"old"), (Inode::ROOT, b"moved"), how).await.unwrap();
            }
        }
        let counters = host.counters();
        assert_eq!((counters.lookups, counters.changes), (0, 1), "{name}");
        assert!(world.walk(name).await.is_ok(), "it is there from then on");
    }
}

#[tokio::test]
async fn an_absence_ends_with_its_time_and_the_host_decides_who_made_the_name() {
    let host = MemoryHost::new();
    let world = writable(host.clone(), LASTING);
    assert_eq!(world.walk("lock").await, Err(FsError::NotFound));
    host.create_file("lock", "another's");
    let error = world.fs.create(Inode::ROOT, b"lock", create(true)).await.unwrap_err();
    assert_eq!(error.errno(), Errno::EEXIST);
    assert!(world.walk("lock").await.is_ok());
    let fleeting = writable(host.clone(), FLEETING);
    for _ in 0..2 {
        assert_eq!(fleeting.walk("none").await, Err(FsError::NotFound));
    }
    host.reset_counters();
    assert!(matches!(fleeting.fs.lookup(Inode::ROOT, b"none").await, Ok(Lookup::Absent { .. })));
    assert_eq!(host.counters().lookups, 1);
}
