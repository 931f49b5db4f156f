//! Changes: done beneath the export, once, and only for those who may.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use super::*;
use crate::host::AuthorizedKeys;
use crate::proto::{
    Caller, Change, ChangeRequest, Changed, Errno, Growth, InstanceId, OpenAccess, OpenId, Operation,
    OperationId, RenameHow, SessionRun, SetAttributes, SetTime, Timestamp, WriteAt, WriteRequest, Written,
    XattrHow,
};

const END: WriteAt = WriteAt::End { believed: 0 };

pub(super) const WRITE: OpenAccess = OpenAccess { reads: true, writes: true, appends: false };

impl Guest {
    fn operation(&self, id: u64, answered_below: u64) -> Operation {
        let (id, answered_below) = (OperationId(id), OperationId(answered_below));
        Operation { id, answered_below, sent_first: self.welcome.session }
    }

    async fn apply(&self, operation: Operation, change: Change) -> Result<Changed, WireError> {
        match self.ask(Request::Change(ChangeRequest { operation, change })).await? {
            Reply::Changed(changed) => Ok(changed),
            other => panic!("{other:?}"),
        }
    }

    pub(super) async fn change(&self, id: u64, change: Change) -> Result<Changed, WireError> {
        self.apply(self.operation(id, 0), change).await
    }

    /// Sends what may or may not be what `hash` says.
    async fn write_with(
        &self,
        operation: Operation,
        (node, at): (NodeId, WriteAt),
        (bytes, hash): (&[u8], ChunkHash),
    ) -> Result<Written, WireError> {
        let len = bytes.len() as u32;
        let request = Request::Write(WriteRequest { operation, node, at, len, hash });
        let message = [encode_frame(&request), bytes.to_vec()].concat();
        match self.visitor.send(&message).await.reply().await? {
            Reply::Written(written) => Ok(written),
            other => panic!("{other:?}"),
        }
    }

    pub(super) async fn write(
        &self,
        id: u64,
        node: NodeId,
        at: WriteAt,
        bytes: &[u8],
    ) -> Result<Written, WireError> {
        let hash = ChunkHash::of(bytes);
        self.write_with(self.operation(id, 0), (node, at), (bytes, hash)).await
    }

    pub(super) fn create(&self, name: &str, open: u64) -> Change {
        Change::Create {
            parent: self.root(),
            name: name.into(),
            permissions: 0o666,
            caller: Caller { uid: 0, gid: 0, umask: 0o027 },
            open: OpenId(open),
            access: WRITE,
            exclusive: true,
            truncate: false,
        }
    }

    pub(super) fn mkdir(&self, name: &str) -> Change {
        let caller = Caller { umask: 0o022, ..Caller::default() };
        Change::MakeDirectory { parent: self.root(), name: name.into(), permissions: 0o777, caller }
    }

    pub(super) fn remove(&self, name: &str, expected: Option<NodeId>) -> Change {
        Change::Remove { parent: self.root(), name: name.into(), directory: false, expected }
    }

    pub(super) fn rename(&self, from: &str, to: &str, how: RenameHow, expected: Option<NodeId>) -> Change {
        let (from_parent, to_parent) = (self.root(), self.root());
        let (from_name, to_name) = (from.into(), to.into());
        Change::Rename { from_parent, from_name, to_parent, to_name, how, expected }
    }

    pub(super) fn link(&self, node: NodeId, name: &str) -> Change {
        Change::Link { node, seen_as: None, parent: self.root(), name: name.into() }
    }
}

pub(super) fn set(node: NodeId, set: SetAttributes) -> Change {
    Change::SetAttributes { node, set }
}

/// Gives all keys one option.
fn grant(keys: &mut AuthorizedKeys, option: &str) {
    let lines: Vec<String> = keys.iter().map(|known| format!("{} {option}", known.key)).collect();
    (*keys, _) = AuthorizedKeys::parse(&lines.join("\n"));
}

pub(super) fn system(errno: Errno) -> ErrorCode {
    ErrorCode::System(errno)
}

#[tokio::test]
async fn a_file_is_made_written_synced_and_read_on_without_its_name() {
    let world = World::new(|_| {});
    let guest = world.client().await;
    let made = guest.change(1, guest.create("new", 1)).await.unwrap();
    let file = made.node.unwrap();
    assert!(same_node(&file, &world.path("new")));
    assert_eq!(file.permissions, 0o640, "what the caller masks is taken away, and nothing else");
    assert!(same_node(&made.others[0], &world.path("")));
    let written = guest.write(2, file.node, WriteAt::Offset(3), b"later").await.unwrap();
    assert_eq!((written.offset, written.attributes.size), (3, 8));
    let appended = guest.write(3, file.node, END, b"!").await.unwrap();
    assert_eq!((appended.offset, appended.attributes.size), (8, 9));
    assert_eq!(fs::read(world.path("new")).unwrap(), b"\0\0\0later!");
    let synced =
        guest.ask(Request::Sync { node: file.node, data_only: false, after: Vec::new() }).await.unwrap();
    assert_eq!(synced, Reply::Synced { boot: written.boot });
    assert!(
        guest.ask(Request::Sync { node: guest.root(), data_only: false, after: Vec::new() }).await.is_ok()
    );
    let gone = guest.change(4, guest.remove("new", None)).await.unwrap();
    assert_eq!(gone.node.unwrap().links, 0);
    assert!(!world.path("new").exists());
    guest.write(5, file.node, WriteAt::Offset(0), b"abc").await.unwrap();
    assert_eq!(guest.current(file.node, ByteRange::new(0, 100)).await.unwrap(), &b"abclater!"[..]);
}

#[tokio::test]
async fn a_file_without_a_name_can_be_opened_again_by_whoever_holds_it() {
    let world = World::new(|export| fs::write(export.join("file"), "content").unwrap());
    let guest = world.client().await;
    let node = guest.walk("file").await.unwrap().node;
    guest.attributes(Request::Open { node, open: OpenId(1) }).await.unwrap();
    guest.change(1, guest.remove("file", None)).await.unwrap();
    let again = guest.attributes(Request::Open { node, open: OpenId(2) }).await.unwrap();
    assert_eq!((again.node, again.links), (node, 0));
    let open = Request::OpenFor { node, open: OpenId(3), access: WRITE };
    guest.attributes(open).await.unwrap();
    for open in [1, 2] {
        guest.ask(Request::Close { node, open: OpenId(open) }).await.unwrap();
    }
    guest.write(2, node, END, b" and more").await.unwrap();
    assert_eq!(guest.current(node, ByteRange::new(0, 100)).await.unwrap(), &b"content and more"[..]);
    guest.ask(Request::Close { node, open: OpenId(3) }).await.unwrap();
    let late = guest.attributes(Request::Open { node, open: OpenId(4) }).await;
    assert_eq!(code(late), ErrorCode::UnknownNode, "nobody holds it any more");
}

#[tokio::test]
async fn what_is_written_under_a_lock_of_another_life_is_refused() {
    let world = World::new(|_| {});
    let guest = world.client().await;
    let node = guest.change(1, guest.create("new", 1)).await.unwrap().node.unwrap().node;
    let run = guest.welcome.session;
    let under = |run| WriteAt::Behind { offset: 0, growth: Growth::default(), run: Some(run) };
    guest.write(2, node, under(run), b"mine").await.unwrap();
    let over = SessionRun { number: run.number + 1, ..run };
    let late = guest.write(3, node, under(over), b"late").await;
    assert_eq!(code(late), ErrorCode::LocksLost);
    assert_eq!(fs::read(world.path("new")).unwrap(), b"mine");
}

#[tokio::test]
async fn what_is_asked_for_again_is_answered_and_not_done_again() {
    let world = World::new(|_| {});
    let guest = world.client().await;
    let file = guest.change(1, guest.create("file", 1)).await.unwrap();
    assert_eq!(guest.change(1, guest.create("file", 1)).await.unwrap(), file, "not EEXIST");
    let node = file.node.unwrap().node;
    let appended = guest.write(2, node, END, b"once").await.unwrap();
    assert_eq!(guest.write(2, node, END, b"once").await.unwrap(), appended);
    assert_eq!(fs::read(world.path("file")).unwrap(), b"once");
    let refused = guest.change(3, guest.mkdir("file")).await;
    assert_eq!(code(refused), system(Errno::EEXIST));
    fs::remove_file(world.path("file")).unwrap();
    assert_eq!(code(guest.change(3, guest.mkdir("file")).await), system(Errno::EEXIST), "a refusal, too");
    assert!(!world.path("file").exists());
    // Told that the answers have arrived, the host does not take up what comes late.
    guest.apply(guest.operation(9, 9), guest.mkdir("later")).await.unwrap();
    let late = guest.apply(guest.operation(4, 0), guest.mkdir("late")).await;
    assert_eq!(code(late), ErrorCode::Malformed);
    assert!(!world.path("late").exists());
}

#[tokio::test]
async fn two_requests_for_one_change_at_once_are_one_change() {
    let world = World::new(|_| {});
    let guest = world.client().await;
    let node = guest.change(1, guest.create("file", 1)).await.unwrap().node.unwrap().node;
    let bytes = pattern(1 << 20);
    for id in 2..12 {
        let twice = (guest.write(id, node, END, &bytes), guest.write(id, node, END, &bytes));
        let (one, other) = tokio::join!(twice.0, twice.1);
        assert_eq!(one.unwrap(), other.unwrap());
    }
    assert_eq!(fs::metadata(world.path("file")).unwrap().size(), 10 << 20);
}

#[tokio::test]
async fn a_sync_waits_for_what_it_names_whether_that_came_before_or_comes_after() {
    let world = World::new(|path| fs::write(path.join("file"), "old").unwrap());
    let guest = world.client().await;
    let node = guest.walk("file").await.unwrap().node;
    let sync = |after: &[u64]| {
        let after = after.iter().map(|id| OperationId(*id)).collect();
        guest.ask(Request::Sync { node, data_only: true, after })
    };
    let mut early = std::pin::pin!(sync(&[1, 2, 3]));
    let waits = tokio::time::timeout(std::time::Duration::from_millis(100), &mut early).await;
    assert!(waits.is_err(), "{waits:?}");
    guest.write(1, node, WriteAt::Offset(0), b"new").await.unwrap();
    // What fails is over, too: who asked for it is told.
    assert_eq!(code(guest.change(2, guest.mkdir("file")).await), system(Errno::EEXIST));
    let waits = tokio::time::timeout(std::time::Duration::from_millis(100), &mut early).await;
    assert!(waits.is_err(), "{waits:?}");
    guest.write(3, node, WriteAt::Offset(3), b"er").await.unwrap();
    assert!(matches!(early.await, Ok(Reply::Synced { .. })));
    assert!(sync(&[3, 1]).await.is_ok(), "all is over");
    guest.apply(guest.operation(9, 8), guest.mkdir("folder")).await.unwrap();
    assert!(sync(&[1, 2, 3, 7]).await.is_ok(), "the client has their answers");
    assert_eq!(code(sync(&[0; 1025]).await), ErrorCode::Malformed);
}

#[tokio::test]
async fn content_that_does_not_match_its_hash_is_not_written() {
    let world = World::new(|path| fs::write(path.join("file"), "old").unwrap());
    let guest = world.client().await;
    let node = guest.walk("file").await.unwrap().node;
    let wrong = ChunkHash::of(b"other");
    let answer = guest.write_with(guest.operation(1, 0), (node, WriteAt::Offset(0)), (b"bytes", wrong)).await;
    assert_eq!(code(answer), ErrorCode::Malformed);
    assert_eq!(fs::read(world.path("file")).unwrap(), b"old");
}

/// As if the answer was lost with an earlier life of the session.
fn uncertain(id: u64) -> Operation {
    let sent_first = SessionRun { instance: InstanceId([9; 16]), number: 1 };
    Operation { id: OperationId(id), answered_below: OperationId(0), sent_first }
}

#[tokio::test]
async fn after_a_restart_only_what_was_surely_not_done_is_done() {
    let world = World::new(|path| {
        for name in ["there", "moved", "other"] {
            fs::write(path.join(name), name).unwrap();
        }
    });
    let guest = world.client().await;
    let node = guest.walk("there").await.unwrap().node;
    let moved = guest.walk("moved").await.unwrap().node;
    let cannot_tell = |answer: Result<Changed, WireError>| {
        let error = answer.unwrap_err();
        assert_eq!(error.code, system(Errno::EIO));
        assert!(error.text.contains("cannot be told"), "{error}");
    };
    cannot_tell(guest.apply(uncertain(1), guest.create("there", 1)).await);
    cannot_tell(guest.apply(uncertain(2), guest.mkdir("there")).await);
    guest.apply(uncertain(3), guest.mkdir("fresh")).await.unwrap();
    // The name is gone, or still names what it named; where it names another, somebody may have used it since.
    guest.apply(uncertain(4), guest.remove("gone", Some(node))).await.unwrap();
    cannot_tell(guest.apply(uncertain(5), guest.remove("other", Some(node))).await);
    cannot_tell(guest.apply(uncertain(6), guest.remove("other", None)).await);
    guest.apply(uncertain(7), guest.remove("there", Some(node))).await.unwrap();
    // Moved already, not yet, or something else.
    let rename = |to: &str| guest.rename("from", to, RenameHow::Replace, Some(moved));
    guest.apply(uncertain(8), rename("moved")).await.unwrap();
    cannot_tell(guest.apply(uncertain(9), rename("other")).await);
    let back = guest.rename("moved", "from", RenameHow::Replace, Some(moved));
    guest.apply(uncertain(10), back).await.unwrap();
    assert_eq!(fs::read(world.path("from")).unwrap(), b"moved");
    // A name of the very file proves that the link was made.
    guest.apply(uncertain(11), guest.link(moved, "second")).await.unwrap();
    guest.apply(uncertain(12), guest.link(moved, "second")).await.unwrap();
    assert_eq!(code(guest.apply(uncertain(13), guest.link(moved, "other")).await), system(Errno::EEXIST));
    assert_eq!(fs::read(world.path("other")).unwrap(), b"other");
    assert_eq!(fs::metadata(world.path("from")).unwrap().nlink(), 2);
}

#[tokio::test]
async fn after_a_restart_nothing_is_appended_twice() {
    let world = World::new(|path| fs::write(path.join("log"), "one").unwrap());
    let guest = world.client().await;
    let node = guest.walk("log").await.unwrap().node;
    let append = async |id, bytes: &'static [u8], believed| {
        let written = (bytes, ChunkHash::of(bytes));
        guest.write_with(uncertain(id), (node, WriteAt::End { believed }), written).await
    };
    assert_eq!(append(1, b"two", 3).await.unwrap().offset, 3, "it was not done");
    assert_eq!(append(2, b"two", 3).await.unwrap().offset, 3, "it was");
    assert_eq!(code(append(3, b"three", 3).await), system(Errno::EIO), "somebody else appended, or this did");
    assert_eq!(fs::read(world.path("log")).unwrap(), b"onetwo");
    // The host was killed half way through.
    fs::write(world.path("log"), "onetwofo").unwrap();
    assert_eq!(append(4, b"four", 6).await.unwrap().offset, 6);
    assert_eq!(fs::read(world.path("log")).unwrap(), b"onetwofour");
    // Open for writing alone, as by most who append.
    let open = Request::OpenFor {
        node,
        open: OpenId(1),
        access: OpenAccess { reads: false, writes: true, appends: false },
    };
    guest.ask(open).await.unwrap();
    assert_eq!(append(5, b"four", 6).await.unwrap().offset, 6);
    assert_eq!(code(append(6, b"five", 11).await), system(Errno::EIO), "it has become shorter");
    assert_eq!(fs::read(world.path("log")).unwrap(), b"onetwofour");
}

#[tokio::test]
async fn nothing_outside_of_the_export_can_be_touched() {
    let world = World::new(|path| {
        fs::write(path.join("../secret"), "outside").unwrap();
        symlink("../secret", path.join("out")).unwrap();
        symlink("..", path.join("up")).unwrap();
    });
    let guest = world.client().await;
    for name in ["..", ".", "", "../x", "up/x"] {
        assert_eq!(code(guest.change(1, guest.mkdir(name)).await), ErrorCode::Malformed, "{name:?}");
        let moved = guest.rename("out", name, RenameHow::Replace, None);
        let moved = guest.apply(guest.operation(2, 2), moved).await;
        assert_eq!(code(moved), ErrorCode::Malformed, "{name:?}");
        guest.ask(Request::Ping).await.unwrap();
    }
    let up = guest.walk("up").await.unwrap().node;
    let change = Change::MakeDirectory {
        parent: up,
        name: b"x".to_vec(),
        permissions: 0o777,
        caller: Caller::default(),
    };
    assert_eq!(code(guest.change(3, change).await), system(Errno::ENOTDIR));
    // A link is changed itself, and a create does not go through it.
    let out = guest.walk("out").await.unwrap().node;
    let times = SetAttributes { mtime: Some(SetTime::At(Timestamp(5_000_000_007))), ..Default::default() };
    guest.change(4, set(out, times)).await.unwrap();
    assert_eq!(fs::symlink_metadata(world.path("out")).unwrap().mtime_nsec(), 7);
    let Change::Create { parent, name, permissions, caller, open, access, truncate, .. } =
        guest.create("out", 1)
    else {
        unreachable!()
    };
    let through =
        Change::Create { parent, name, permissions, caller, open, access, exclusive: false, truncate };
    assert_eq!(code(guest.change(5, through).await), system(Errno::ELOOP));
    let cut = SetAttributes { size: Some(0), ..Default::default() };
    assert_eq!(code(guest.change(6, set(out, cut)).await), system(Errno::EINVAL));
    assert_eq!(fs::read(world.folder.path().join("secret")).unwrap(), b"outside");
    assert_ne!(fs::metadata(world.folder.path().join("secret")).unwrap().mtime_nsec(), 7);
    guest.change(7, guest.link(out, "out2")).await.unwrap();
    assert!(fs::symlink_metadata(world.path("out2")).unwrap().is_symlink());
}

#[tokio::test]
async fn a_key_that_loses_its_right_to_write_loses_it_at_once() {
    let world = World::new(|_| {});
    let guest = world.client().await;
    guest.change(1, guest.mkdir("before")).await.unwrap();
    let text = world.state().update(|keys, _| {
        grant(keys, "ro");
        keys.to_text()
    });
    assert!(String::from_utf8(text.unwrap()).unwrap().contains("ro"));
    let closed = guest.visitor.connection.closed().await;
    assert!(format!("{closed:?}").contains("only read"), "{closed:?}");
}

#[tokio::test]
async fn attributes_are_set_as_asked() {
    let world = World::new(|path| fs::write(path.join("file"), "content").unwrap());
    let guest = world.client().await;
    let node = guest.walk("file").await.unwrap().node;
    let wanted = SetAttributes {
        permissions: Some(0o640),
        size: Some(3),
        atime: Some(SetTime::At(Timestamp(-1))),
        mtime: Some(SetTime::At(Timestamp(1_000_000_000_123_456_789))),
        ..Default::default()
    };
    let found = guest.change(1, set(node, wanted)).await.unwrap().node.unwrap();
    assert_eq!((found.permissions, found.size, found.atime), (0o640, 3, Timestamp(-1)));
    assert_eq!(found.mtime, Timestamp(1_000_000_000_123_456_789));
    let only_mtime = SetAttributes { mtime: Some(SetTime::Now), ..Default::default() };
    let found = guest.change(2, set(node, only_mtime)).await.unwrap().node.unwrap();
    assert_eq!(found.atime, Timestamp(-1));
    assert!(found.mtime > Timestamp(1_600_000_000_000_000_000));
    let xattr = |name: &[u8], value: &[u8], how| Change::SetXattr {
        node,
        name: name.to_vec(),
        value: value.to_vec(),
        how,
    };
    for (id, name) in [(3, &b"security.x"[..]), (4, b"trusted.x"), (5, b"system.x")] {
        let answer = guest.change(id, xattr(name, b"1", XattrHow::Any)).await;
        assert_eq!(code(answer), system(Errno::EOPNOTSUPP));
    }
    let missing = guest.change(6, xattr(b"user.x", b"1", XattrHow::Replace)).await;
    assert_eq!(code(missing), system(Errno::ENODATA));
    let found = guest.change(7, xattr(b"user.x", b"1", XattrHow::Create)).await.unwrap();
    assert!(found.node.unwrap().has_xattrs);
    assert_eq!(code(guest.change(8, xattr(b"user.x", b"1", XattrHow::Create)).await), system(Errno::EEXIST));
    let removed = guest.change(9, Change::RemoveXattr { node, name: b"user.x".to_vec() }).await.unwrap();
    assert!(!removed.node.unwrap().has_xattrs);
}

/// What follows is about hosts that run as root; as another user the kernel refuses by itself.
fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

#[tokio::test]
async fn a_host_that_runs_as_root_gives_nothing_away_unless_the_key_says_so() {
    if !is_root() {
        return;
    }
    let world = World::new(|path| fs::write(path.join("file"), "").unwrap());
    let identity = Identity::generate().unwrap();
    let secret = world.host.ticket("export", &TicketTerms::default()).unwrap().secret();
    let visitor = Visitor::with_key(&world, &identity).await;
    let welcome = visitor.greet(Hello { ticket: Some(secret), ..hello() }).await.unwrap();
    let guest = Guest { visitor, welcome };
    let node = guest.walk("file").await.unwrap().node;
    let caller = Caller { uid: 4321, gid: 8765, umask: 0 };
    let device = |caller| Change::MakeNode {
        parent: guest.root(),
        name: b"null".to_vec(),
        kind: crate::proto::FileKind::CharDevice,
        permissions: 0o666,
        device_number: nix::sys::stat::makedev(1, 3),
        caller,
    };
    let refused = [
        set(node, SetAttributes { uid: Some(4321), ..Default::default() }),
        set(node, SetAttributes { permissions: Some(0o4755), ..Default::default() }),
        device(caller),
    ];
    for (id, change) in (1..).zip(refused) {
        assert_eq!(code(guest.change(id, change).await), system(Errno::EPERM));
    }
    let make = |name: &str, permissions| Change::MakeDirectory {
        parent: guest.root(),
        name: name.into(),
        permissions,
        caller,
    };
    let made = guest.change(5, make("ours", 0o777)).await.unwrap().node.unwrap();
    assert_eq!((made.uid, made.permissions), (0, 0o777));
    world
        .state()
        .update(|keys, _| {
            grant(keys, "owners");
        })
        .unwrap();
    let visitor = Visitor::with_key(&world, &identity).await;
    let welcome = visitor.greet(hello()).await.unwrap();
    assert_eq!(welcome.session, guest.welcome.session, "the session goes on");
    let again = Guest { visitor, welcome };
    let made = again.change(6, make("theirs", 0o755)).await.unwrap().node.unwrap();
    assert_eq!((made.uid, made.gid), (4321, 8765));
    again.change(7, device(caller)).await.unwrap();
    let lent = SetAttributes { permissions: Some(0o4755), uid: Some(4321), ..Default::default() };
    again.change(8, set(node, lent)).await.unwrap();
    let found = fs::metadata(world.path("file")).unwrap();
    assert_eq!((found.uid(), found.permissions().mode() & 0o7777), (4321, 0o4755));
}

#[tokio::test]
async fn a_file_that_is_closed_while_it_is_opened_again_stays_open() {
    let world = World::new(|path| fs::write(path.join("file"), "content").unwrap());
    let guest = world.client().await;
    let node = guest.walk("file").await.unwrap().node;
    guest.ask(Request::OpenFor { node, open: OpenId(0), access: WRITE }).await.unwrap();
    for round in 1..300 {
        let close = guest.ask(Request::Close { node, open: OpenId(round - 1) });
        let open = guest.ask(Request::Open { node, open: OpenId(round) });
        let (closed, opened) = tokio::join!(close, open);
        closed.unwrap();
        opened.unwrap();
    }
}
