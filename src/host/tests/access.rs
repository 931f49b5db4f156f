//! The files of keys and tickets: what is taken away there ends what goes on, and what cannot be understood lets nobody in.

use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use tokio::time::timeout;

use super::changes::WRITE;
use super::*;
use crate::proto::{OpenId, WriteAt, close};
use crate::transport::CloseReason;

/// Generous: the files are looked at once a second.
const SOON: Duration = Duration::from_secs(20);

impl World {
    /// Puts a text in the place of a file of the state, as an editor does.
    fn write_state(&self, name: &str, text: &str) {
        fs::write(self.folder.path().join("new"), text).unwrap();
        fs::rename(self.folder.path().join("new"), self.state().path().join(name)).unwrap();
    }
}

/// Comes in with a key that `authorized_keys` has.
async fn come_in(world: &World, identity: &Identity) -> Result<Guest, WireError> {
    let visitor = Visitor::with_key(world, identity).await;
    let welcome = visitor.greet(hello()).await?;
    Ok(Guest { visitor, welcome })
}

/// Why the host closed the connection.
async fn shown_out(guest: &Guest, why: &str) -> u64 {
    let closed = timeout(SOON, guest.visitor.connection.closed()).await;
    match closed.unwrap_or_else(|_| panic!("still there: {why}")) {
        CloseReason::ByPeer { code, .. } => code,
        other => panic!("{why}: {other:?}"),
    }
}

#[tokio::test]
async fn whichever_right_is_taken_away_ends_what_was_begun_with_it() {
    const CASES: &[(&str, &str, u32)] = &[
        ("KEY", "KEY ro", close::RIGHTS_CHANGED),
        ("KEY owners", "KEY", close::RIGHTS_CHANGED),
        ("KEY owners", "KEY owners ro", close::RIGHTS_CHANGED),
        ("KEY", "KEY\nKEY ro", close::RIGHTS_CHANGED),
        ("KEY owners", "KEY owners\nKEY", close::RIGHTS_CHANGED),
        ("KEY", "", close::REVOKED),
        ("KEY", "# KEY", close::REVOKED),
        ("KEY", "KEY exports=other", close::REVOKED),
        ("KEY exports=export", "KEY exports=export\nKEY exports=other", close::REVOKED),
        ("KEY", "KEY readonly", close::REVOKED),
        ("KEY", "KEY\nKEY readonly", close::REVOKED),
    ];
    let world = World::new(|_| {});
    let identities: Vec<Identity> = CASES.iter().map(|_| Identity::generate().unwrap()).collect();
    let bystander = Identity::generate().unwrap();
    let write = |line_of: fn(&(&str, &str, u32)) -> String| {
        let lines = CASES.iter().zip(&identities);
        let lines = lines.map(|(case, key)| line_of(case).replace("KEY", &key.public_key().to_string()));
        let mut text = lines.collect::<Vec<_>>().join("\n");
        let _ = write!(text, "\nnonsense\n{}\n", bystander.public_key());
        world.write_state("authorized_keys", &text);
    };
    write(|(before, ..)| (*before).to_owned());
    let other = come_in(&world, &bystander).await.unwrap();
    let mut guests = Vec::new();
    for identity in &identities {
        guests.push(come_in(&world, identity).await.unwrap());
    }
    write(|(_, after, _)| (*after).to_owned());
    for (guest, (before, after, code)) in guests.iter().zip(CASES) {
        let why = format!("from {before:?} to {after:?}");
        assert_eq!(shown_out(guest, &why).await, u64::from(*code), "{why}");
    }
    for (identity, (before, after, code)) in identities.iter().zip(CASES) {
        let again = come_in(&world, identity).await;
        assert_eq!(again.is_err(), *code == close::REVOKED, "from {before:?} to {after:?}");
        assert_eq!(again.is_ok_and(|guest| guest.welcome.read_only), after.ends_with("ro"), "{after:?}");
    }
    other.ask(Request::Ping).await.expect("whose line has not changed stays");
}

#[tokio::test]
async fn a_reload_sees_what_the_times_of_the_file_do_not_tell() {
    let world = World::new(|_| {});
    let identity = Identity::generate().unwrap();
    let path = world.state().path().join("authorized_keys");
    let write = |option: &str| fs::write(&path, format!("{}{option}\n", identity.public_key())).unwrap();
    write("   ");
    let before = fs::metadata(&path).unwrap();
    let guest = come_in(&world, &identity).await.unwrap();
    // Until it has been looked at.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    write(" ro");
    fs::File::options().write(true).open(&path).unwrap().set_modified(before.modified().unwrap()).unwrap();
    world.host.reload();
    assert_eq!(shown_out(&guest, "reload").await, u64::from(close::RIGHTS_CHANGED));
}

#[tokio::test]
async fn tickets_that_cannot_be_understood_keep_out_nobody_who_needs_none() {
    let world = World::new(|_| {});
    let identity = Identity::generate().unwrap();
    world.write_state("authorized_keys", &format!("{}\n", identity.public_key()));
    let secret = world.host.ticket("export", &TicketTerms::default()).unwrap().secret();
    let good = world.host.ticket("export", &TicketTerms::default()).unwrap().secret();
    let path = world.state().path().join("tickets.json");
    let text = fs::read_to_string(&path).unwrap();
    let stranger = async |secret| {
        let visitor = Visitor::new(&world).await;
        visitor.greet(Hello { ticket: Some(secret), ..hello() }).await
    };
    world.write_state("tickets.json", "{");
    come_in(&world, &identity).await.unwrap();
    assert_eq!(stranger(secret).await.unwrap_err().code, ErrorCode::Busy);
    // An entry that says more than this version understands, and one that says less.
    for broken in [
        text.replacen("\"revoked\": false", "\"revoked\": false, \"only_on_sundays\": true", 1),
        text.replacen("\"keys_max\": 1,", "", 1),
    ] {
        world.write_state("tickets.json", &broken);
        come_in(&world, &identity).await.unwrap();
        assert_eq!(stranger(secret).await.unwrap_err().code, ErrorCode::Refused);
    }
    stranger(good).await.expect("the other entry holds");
}

#[tokio::test]
async fn a_ticket_to_read_lets_in_keys_that_may_only_read_and_have_its_name() {
    let world = World::new(|path| fs::write(path.join("file"), "old").unwrap());
    let terms = TicketTerms { read_only: true, name: "living room".into(), ..TicketTerms::default() };
    let secret = world.host.ticket("export", &terms).unwrap().secret();
    let identity = Identity::generate().unwrap();
    let visitor = Visitor::with_key(&world, &identity).await;
    let welcome = visitor.greet(Hello { ticket: Some(secret), ..hello() }).await.unwrap();
    assert!(welcome.read_only);
    let known = world.state().keys().unwrap().find(identity.public_key()).unwrap();
    assert!(known.rights.read_only && known.name == "living room", "{known:?}");
    assert!(come_in(&world, &identity).await.unwrap().welcome.read_only, "also later");
}

/// Repeats what a client does until it fails, without a pause: that it goes on must not keep the way open.
async fn until_refused(what: &str, work: impl AsyncFn() -> Result<(), WireError>) -> WireError {
    let refused = async {
        loop {
            if let Err(error) = work().await {
                return error;
            }
        }
    };
    timeout(SOON, refused).await.unwrap_or_else(|_| panic!("{what} goes on"))
}

#[tokio::test]
async fn what_was_moved_out_of_the_export_is_out_of_reach_also_where_it_is_open() {
    let world = World::new(|path| {
        fs::create_dir_all(path.join("d/inner")).unwrap();
        for name in ["file", "d/file", "d/inner/file", "gone", "stays"] {
            fs::write(path.join(name), "content").unwrap();
        }
    });
    let guest = world.client().await;
    let mut nodes = Vec::new();
    for (id, name) in (1..).zip(["file", "d/file", "gone", "stays"]) {
        let node = guest.walk(name).await.unwrap().node;
        guest.ask(Request::OpenFor { node, open: OpenId(id), access: WRITE }).await.unwrap();
        nodes.push(node);
    }
    let (folder, inner) = (guest.walk("d").await.unwrap().node, guest.walk("d/inner").await.unwrap().node);
    let out = world.folder.path().join("out");
    fs::create_dir(&out).unwrap();
    fs::rename(world.path("d"), out.join("d")).unwrap();
    fs::rename(world.path("file"), out.join("file")).unwrap();
    fs::remove_file(world.path("gone")).unwrap();
    fs::rename(world.path("stays"), world.path("renamed")).unwrap();
    let range = ByteRange::new(0, 7);
    let id = std::sync::atomic::AtomicU64::new(100);
    let next = || id.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    for node in &nodes[..2] {
        until_refused("reading", async || guest.current(*node, range).await.map(drop)).await;
        let write = async || guest.write(next(), *node, WriteAt::Offset(0), b"x").await.map(drop);
        until_refused("writing", write).await;
        until_refused("asking", async || {
            guest.attributes(Request::GetAttributes { node: *node }).await.map(drop)
        })
        .await;
    }
    for node in [folder, inner] {
        until_refused("looking up", async || guest.lookup(node, b"file").await.map(drop)).await;
        until_refused("listing", async || guest.list(node).await.map(drop)).await;
    }
    // Whatever lost its name, or has another one in the export, goes on.
    for node in &nodes[2..] {
        guest.write(next(), *node, WriteAt::Offset(0), b"C").await.unwrap();
        assert_eq!(&guest.current(*node, range).await.unwrap()[..], b"Content");
    }
}

#[tokio::test]
async fn a_mounted_folder_that_was_moved_out_of_the_export_is_out_of_reach() {
    let world = World::new(|path| {
        for name in ["out", "within"] {
            fs::create_dir(path.join(name)).unwrap();
            fs::write(path.join(name).join("file"), "content").unwrap();
        }
    });
    let (guest, other) = (world.client_below("out").await, world.client_below("within").await);
    let node = guest.walk("file").await.unwrap().node;
    guest.ask(Request::Open { node, open: OpenId(1) }).await.unwrap();
    fs::rename(world.path("within"), world.path("renamed")).unwrap();
    fs::rename(world.path("out"), world.folder.path().join("out")).unwrap();
    assert_eq!(shown_out(&guest, "moved out").await, u64::from(close::RIGHTS_CHANGED));
    assert!(other.walk("file").await.is_ok(), "what has another name in the export goes on");
}
