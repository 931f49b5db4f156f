//! Keys that act as a user of the host: the kernel's answers, over every road that leads to content or changes it.
//!
//! All of this takes a daemon that runs as root; another one refuses such keys, which is tested with [`super::super::actor`].

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use super::changes::{WRITE, set, system};
use super::*;
use crate::chunk::ChunkRange;
use crate::host::AuthorizedKeys;
use crate::proto::{
    AllocateHow, Caller, Change, Errno, FileKind, ManifestRequest, OpenId, SeekTarget, SetAttributes,
    SetTime, Timestamp, WriteAt, XattrHow,
};

const ALICE: u32 = 51_001;
const BOB: u32 = 51_002;
/// A group that is Alice's own.
const READERS: u32 = 51_100;

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

impl World {
    /// A client with a key of its own that acts as `user`. All name their session alike.
    async fn client_as(&self, user: &str) -> Guest {
        let terms = TicketTerms { user: Some(user.to_owned()), ..TicketTerms::default() };
        let secret = self.host.ticket("export", &terms).unwrap().secret();
        let visitor = Visitor::new(self).await;
        let welcome = visitor.greet(Hello { ticket: Some(secret), ..hello() }).await.unwrap();
        Guest { visitor, welcome }
    }

    async fn alice(&self) -> Guest {
        self.client_as(&format!("{ALICE}:{READERS}")).await
    }

    async fn bob(&self) -> Guest {
        self.client_as(&format!("{BOB}:{BOB}")).await
    }
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A folder where everybody may make things, with a file of 2 MiB that is Alice's alone.
fn common(path: &Path) {
    chmod(path, 0o777);
    fs::write(path.join("secret"), pattern(2 << 20)).unwrap();
    chown(path.join("secret"), Some(ALICE), Some(ALICE)).unwrap();
    chmod(&path.join("secret"), 0o600);
}

#[tokio::test]
async fn no_road_leads_to_the_content_of_another_user() {
    if !is_root() {
        return;
    }
    let world = World::new(common);
    let (alice, bob) = (world.alice().await, world.bob().await);
    assert_eq!((bob.welcome.acts_as.uid, bob.welcome.acts_as.gid), (BOB, BOB));
    // Alice leaves what she can: an open file, descriptors that are kept, hashes.
    let file = alice.walk("secret").await.unwrap();
    let (node, version) = (file.node, file.version());
    alice.ask(Request::Sum { node }).await.unwrap();
    alice.attributes(Request::GetAttributes { node }).await.unwrap();
    // Without an open, so that the host keeps the descriptor by itself.
    assert_eq!(alice.bytes(chunks(&file, 0, 2 << 20)).await.unwrap(), pattern(2 << 20));
    alice.ask(Request::OpenFor { node, open: OpenId(1), access: WRITE }).await.unwrap();

    assert_eq!(bob.walk("secret").await.unwrap().node, node, "its attributes are no secret");
    let own = bob.change(1, bob.create("own", 9)).await.unwrap().node.unwrap().node;
    let range = ByteRange::new(0, 1 << 18);
    let chunk = ChunkRange::new(crate::chunk::ChunkIndex(0), 1);
    let denied = system(Errno::EACCES);
    for request in [
        Request::Open { node, open: OpenId(2) },
        Request::OpenFor { node, open: OpenId(3), access: WRITE },
        Request::Manifest(ManifestRequest { node, version, chunks: chunk }),
        Request::Sum { node },
        Request::Blocks { node, version, range },
        Request::Seek { node, offset: 0, target: SeekTarget::Data },
        Request::Access { node, mask: 4 },
        Request::GetXattr { node, name: b"user.x".to_vec() },
    ] {
        assert_eq!(code(bob.ask(request.clone()).await), denied, "{request:?}");
    }
    assert_eq!(code(bob.read(chunks(&file, 0, 10)).await.map(drop)), denied);
    assert_eq!(code(bob.read(piece(&file, 0, 10)).await.map(drop)), denied);
    assert_eq!(code(bob.current(node, range).await), denied);
    let sized = SetAttributes { size: Some(0), ..Default::default() };
    let touched =
        SetAttributes { atime: Some(SetTime::Now), mtime: Some(SetTime::Now), ..Default::default() };
    for (id, change) in (2..).zip([
        Change::CopyRange { from: node, range, to: own, offset: 0 },
        Change::CopyRange { from: own, range, to: node, offset: 0 },
        Change::Allocate { node, range, how: AllocateHow::PunchHole },
        Change::SetXattr { node, name: b"user.x".to_vec(), value: vec![1], how: XattrHow::Any },
        set(node, sized),
        set(node, touched),
    ]) {
        assert_eq!(code(bob.change(id, change.clone()).await), denied, "{change:?}");
    }
    assert_eq!(code(bob.write(20, node, WriteAt::Offset(0), b"x").await), denied);
    assert_eq!(code(bob.write(21, node, WriteAt::End { believed: 0 }, b"x").await), denied);
    let later = SetAttributes { mtime: Some(SetTime::At(Timestamp(5))), ..Default::default() };
    let open_to_all = SetAttributes { permissions: Some(0o666), ..Default::default() };
    let taken = SetAttributes { uid: Some(BOB), ..Default::default() };
    for (id, change) in (30..).zip([set(node, later), set(node, open_to_all), set(node, taken)]) {
        assert_eq!(code(bob.change(id, change.clone()).await), system(Errno::EPERM), "{change:?}");
    }
    assert_eq!(fs::read(world.path("secret")).unwrap(), pattern(2 << 20));
    assert!(fs::read(world.path("own")).unwrap().is_empty());
    // And she still has it.
    assert_eq!(alice.bytes(chunks(&file, 0, 2 << 20)).await.unwrap(), pattern(2 << 20));
}

#[tokio::test]
async fn a_closed_folder_stays_closed_although_another_user_has_been_in_it() {
    if !is_root() {
        return;
    }
    let world = World::new(|path| {
        common(path);
        fs::create_dir_all(path.join("private/inner")).unwrap();
        fs::write(path.join("private/file"), "x").unwrap();
        chown(path.join("private"), Some(ALICE), None).unwrap();
        chmod(&path.join("private"), 0o700);
    });
    let (alice, bob) = (world.alice().await, world.bob().await);
    let folder = alice.walk("private").await.unwrap().node;
    let file = alice.walk("private/file").await.unwrap();
    assert_eq!(alice.list(folder).await.unwrap().concat().len(), 2);
    let denied = system(Errno::EACCES);
    bob.walk("private").await.unwrap();
    assert_eq!(code(bob.list(folder).await), denied);
    assert_eq!(code(bob.lookup(folder, b"file").await), denied);
    assert_eq!(
        code(bob.attributes(Request::GetAttributes { node: file.node }).await),
        ErrorCode::UnknownNode
    );
    let secret = |user: String| TicketTerms { user: Some(user), ..TicketTerms::default() };
    let below = |terms: &TicketTerms| {
        let ticket = Some(world.host.ticket("export", terms).unwrap().secret());
        Hello { sub_path: b"private/inner".to_vec(), ticket, ..hello() }
    };
    let visitor = Visitor::new(&world).await;
    let refused = visitor.greet(below(&secret(format!("{BOB}:{BOB}")))).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Refused);
    assert!(refused.text.contains("private/inner"), "{refused}");
    let visitor = Visitor::new(&world).await;
    visitor.greet(below(&secret(format!("{ALICE}:{ALICE}")))).await.unwrap();
}

#[tokio::test]
async fn what_a_user_makes_is_his_and_the_kernel_says_what_he_may_do_with_it() {
    if !is_root() {
        return;
    }
    let world = World::new(|path| {
        common(path);
        fs::create_dir(path.join("shared")).unwrap();
        chown(path.join("shared"), None, Some(READERS)).unwrap();
        chmod(&path.join("shared"), 0o2777);
        fs::write(path.join("for-readers"), "read me").unwrap();
        chown(path.join("for-readers"), None, Some(READERS)).unwrap();
        chmod(&path.join("for-readers"), 0o640);
    });
    let (alice, bob) = (world.alice().await, world.bob().await);
    let caller = Caller { uid: 0, gid: 0, umask: 0o022 };
    let node = |change: Result<crate::proto::Changed, WireError>| change.unwrap().node.unwrap();
    // Owners, whatever numbers the client sends.
    let file = node(alice.change(1, alice.create("hers", 1)).await);
    assert_eq!((file.uid, file.gid), (ALICE, READERS));
    let shared = bob.walk("shared").await.unwrap().node;
    let (parent, permissions) = (shared, 0o777);
    let inner = Change::MakeDirectory { parent, name: b"inner".to_vec(), permissions, caller };
    let inner = node(bob.change(1, inner).await);
    assert_eq!((inner.uid, inner.gid, inner.permissions), (BOB, READERS, 0o2755), "the folder's group");
    let link = Change::MakeSymlink { parent, name: b"link".to_vec(), target: b"x".to_vec(), caller };
    assert_eq!(node(bob.change(2, link).await).uid, BOB);
    let pipe = |kind| Change::MakeNode {
        parent,
        name: b"pipe".to_vec(),
        kind,
        permissions: 0o600,
        device_number: 0x103,
        caller,
    };
    assert_eq!(code(bob.change(3, pipe(FileKind::CharDevice)).await), system(Errno::EPERM));
    assert_eq!(node(bob.change(4, pipe(FileKind::Fifo)).await).uid, BOB);
    // Groups.
    let readers_file = alice.walk("for-readers").await.unwrap();
    assert_eq!(alice.bytes(chunks(&readers_file, 0, 7)).await.unwrap(), b"read me");
    assert_eq!(
        bob.bytes(chunks(&bob.walk("for-readers").await.unwrap(), 0, 7)).await,
        Err(system(Errno::EACCES))
    );
    let regrouped = |gid| SetAttributes { gid: Some(gid), ..Default::default() };
    assert_eq!(code(alice.change(2, set(file.node, regrouped(BOB))).await), system(Errno::EPERM));
    alice.change(3, set(file.node, regrouped(READERS))).await.unwrap();
    let given = SetAttributes { uid: Some(BOB), ..Default::default() };
    assert_eq!(code(alice.change(4, set(file.node, given)).await), system(Errno::EPERM));
    // Her own bits are hers to set, and what is written to takes them away again.
    let lends = SetAttributes { permissions: Some(0o4755), ..Default::default() };
    assert_eq!(node(alice.change(5, set(file.node, lends)).await).permissions, 0o4755);
    alice.write(6, file.node, WriteAt::Offset(0), b"new").await.unwrap();
    assert_eq!(fs::metadata(world.path("hers")).unwrap().mode() & 0o7777, 0o755);
}

#[tokio::test]
async fn in_a_sticky_folder_each_takes_away_his_own() {
    if !is_root() {
        return;
    }
    let world = World::new(|path| {
        common(path);
        fs::create_dir(path.join("sticky")).unwrap();
        chmod(&path.join("sticky"), 0o1777);
    });
    let (alice, bob) = (world.alice().await, world.bob().await);
    let caller = Caller::default();
    let sticky = alice.walk("sticky").await.unwrap().node;
    assert_eq!(bob.walk("sticky").await.unwrap().node, sticky);
    let make = |permissions| Change::MakeNode {
        parent: sticky,
        name: b"kept".to_vec(),
        kind: FileKind::Regular,
        permissions,
        device_number: 0,
        caller,
    };
    alice.change(7, make(0o666)).await.unwrap();
    let remove =
        || Change::Remove { parent: sticky, name: b"kept".to_vec(), directory: false, expected: None };
    assert_eq!(code(bob.change(5, remove()).await), system(Errno::EPERM));
    alice.change(8, remove()).await.unwrap();
}

#[tokio::test]
async fn users_take_turns_on_the_same_threads_and_stay_who_they_are() {
    if !is_root() {
        return;
    }
    let world = World::new(common);
    let (alice, bob, own) = (world.alice().await, world.bob().await, world.client().await);
    let secret = own.walk("secret").await.unwrap();
    for guest in [&alice, &bob] {
        guest.walk("secret").await.unwrap();
    }
    for round in 1..60_u64 {
        let make = |guest: &Guest, who: &str| guest.create(&format!("{who}-{round}"), round);
        let open = Request::Open { node: secret.node, open: OpenId(1000 + round) };
        let (hers, his, its, may, may_not, may_too) = tokio::join!(
            alice.change(round, make(&alice, "alice")),
            bob.change(round, make(&bob, "bob")),
            own.change(round, make(&own, "own")),
            alice.ask(open.clone()),
            bob.ask(open.clone()),
            own.ask(open.clone()),
        );
        let owners = [hers, his, its].map(|made| made.unwrap().node.unwrap().uid);
        assert_eq!(owners, [ALICE, BOB, 0], "round {round}");
        assert!(may.is_ok() && may_too.is_ok(), "round {round}");
        assert_eq!(code(may_not), system(Errno::EACCES), "round {round}");
    }
}

#[tokio::test]
async fn a_key_that_becomes_another_user_loses_what_it_had_open() {
    if !is_root() {
        return;
    }
    let world = World::new(common);
    let identity = Identity::generate().unwrap();
    let terms = TicketTerms { user: Some(format!("{ALICE}:{ALICE}")), ..TicketTerms::default() };
    let secret = world.host.ticket("export", &terms).unwrap().secret();
    let visitor = Visitor::with_key(&world, &identity).await;
    let welcome = visitor.greet(Hello { ticket: Some(secret), ..hello() }).await.unwrap();
    let guest = Guest { visitor, welcome };
    let file = guest.walk("secret").await.unwrap();
    guest.ask(Request::Open { node: file.node, open: OpenId(1) }).await.unwrap();
    world
        .state()
        .update(|keys, _| {
            let text = String::from_utf8(keys.to_text()).unwrap();
            let text = text.replace(&format!("user={ALICE}:{ALICE}"), &format!("user={BOB}:{BOB}"));
            (*keys, _) = AuthorizedKeys::parse(&text);
        })
        .unwrap();
    // Before anybody has looked at the list again, and after.
    for late in [false, true] {
        if late {
            let closed = guest.visitor.connection.closed().await;
            assert!(format!("{closed:?}").contains("another user"), "{closed:?}");
        }
        let visitor = Visitor::with_key(&world, &identity).await;
        let welcome = visitor.greet(hello()).await.unwrap();
        assert_eq!(welcome.acts_as.uid, BOB);
        assert_ne!(welcome.session, guest.welcome.session, "another session, in which nothing is open");
        let changed = Guest { visitor, welcome };
        changed.walk("secret").await.unwrap();
        assert_eq!(code(changed.read(chunks(&file, 0, 10)).await.map(drop)), system(Errno::EACCES));
    }
}

/// The folder is Alice's, and in it lies a file of root's.
fn of_alice(path: &Path) {
    fs::write(path.join("roots"), "for root alone").unwrap();
    chmod(&path.join("roots"), 0o600);
    fs::write(path.join("hers"), "old").unwrap();
    chmod(&path.join("hers"), 0o600);
    for path in [path, &path.join("hers")] {
        chown(path, Some(ALICE), Some(READERS)).unwrap();
    }
    chmod(path, 0o755);
}

#[tokio::test]
async fn a_host_of_root_acts_as_the_owner_of_the_folder() {
    if !is_root() {
        return;
    }
    let world = World::new(of_alice);
    let guest = world.client().await;
    let acts_as = guest.welcome.acts_as;
    assert_eq!((acts_as.uid, acts_as.gid), (ALICE, READERS));
    let made = guest.change(1, guest.create("new", 1)).await.unwrap().node.unwrap();
    assert_eq!((made.uid, made.gid), (ALICE, READERS));
    let hers = guest.walk("hers").await.unwrap();
    assert_eq!(guest.bytes(chunks(&hers, 0, 3)).await.unwrap(), b"old");
    let roots = guest.walk("roots").await.unwrap();
    let denied = system(Errno::EACCES);
    assert_eq!(code(guest.read(chunks(&roots, 0, 4)).await.map(drop)), denied);
    assert_eq!(code(guest.write(2, roots.node, WriteAt::Offset(0), b"x").await), denied);
    let taken = SetAttributes { uid: Some(ALICE), ..Default::default() };
    assert_eq!(code(guest.change(3, set(roots.node, taken)).await), system(Errno::EPERM));
    assert_eq!(fs::read(world.path("roots")).unwrap(), b"for root alone");
}

#[tokio::test]
async fn a_key_that_chooses_owners_or_names_root_is_root_in_a_folder_of_somebody_else() {
    if !is_root() {
        return;
    }
    let world = World::new(of_alice);
    for option in ["owners", "user=root", "user=0"] {
        let identity = Identity::generate().unwrap();
        let line = format!("{} {option}\n", identity.public_key());
        world.state().update(|keys, _| (*keys, _) = AuthorizedKeys::parse(&line)).unwrap();
        let visitor = Visitor::with_key(&world, &identity).await;
        let welcome = visitor.greet(hello()).await.unwrap();
        assert_eq!((welcome.acts_as.uid, welcome.chooses_owners), (0, option == "owners"), "{option}");
        let guest = Guest { visitor, welcome };
        let roots = guest.walk("roots").await.unwrap();
        assert_eq!(guest.bytes(chunks(&roots, 0, 14)).await.unwrap(), b"for root alone", "{option}");
    }
    // And who loses it is the owner again.
    let identity = Identity::generate().unwrap();
    let line = |option: &str| format!("{} {option}\n", identity.public_key());
    let put = |text: String| {
        world.state().update(|keys, _| (*keys, _) = AuthorizedKeys::parse(&text)).unwrap();
    };
    put(line("owners"));
    let visitor = Visitor::with_key(&world, &identity).await;
    let before = visitor.greet(hello()).await.unwrap();
    put(line(""));
    visitor.connection.closed().await;
    let visitor = Visitor::with_key(&world, &identity).await;
    let after = visitor.greet(hello()).await.unwrap();
    assert_eq!((before.acts_as.uid, after.acts_as.uid), (0, ALICE));
    assert_ne!(before.session, after.session, "nothing that root opened is left");
}

#[tokio::test]
async fn whom_nobody_can_act_as_gets_no_ticket_and_is_not_let_in() {
    let world = World::new(|_| {});
    let unknown = TicketTerms { user: Some("nobody-of-this-name".into()), ..TicketTerms::default() };
    let error = world.host.ticket("export", &unknown).unwrap_err().to_string();
    assert!(error.contains("nobody-of-this-name"), "{error}");
    let identity = Identity::generate().unwrap();
    let line = format!("{} user=nobody-of-this-name\n", identity.public_key());
    world.state().update(|keys, _| (*keys, _) = AuthorizedKeys::parse(&line)).unwrap();
    let visitor = Visitor::with_key(&world, &identity).await;
    let refused = visitor.greet(hello()).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Refused);
    assert!(refused.text.contains("nobody-of-this-name"), "{refused}");
}

#[tokio::test]
async fn a_file_is_opened_again_with_the_rights_of_now() {
    if !is_root() {
        return;
    }
    let world = World::new(common);
    let alice = world.alice().await;
    let node = alice.walk("secret").await.unwrap().node;
    let open = |open, access| Request::OpenFor { node, open: OpenId(open), access };
    alice.ask(open(1, WRITE)).await.unwrap();
    chmod(&world.path("secret"), 0o400);
    assert_eq!(code(alice.ask(open(2, WRITE)).await), system(Errno::EACCES));
    alice.ask(open(3, crate::proto::OpenAccess::READ)).await.unwrap();
    alice.write(1, node, WriteAt::Offset(0), b"what is open stays open").await.unwrap();
}
