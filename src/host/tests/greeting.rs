//! Who is let in, and what those who are not are told.

use super::*;
use crate::transport::{CloseReason, PublicKey};

/// Says hello with a new key; what the host answers and how it closes.
async fn refusal(world: &World, hello: Hello) -> (WireError, CloseReason) {
    let visitor = Visitor::new(world).await;
    let error = visitor.greet(hello).await.unwrap_err();
    (error, visitor.connection.closed().await)
}

async fn assert_refused(world: &World, hello: Hello, words: &str) {
    let (error, closed) = refusal(world, hello).await;
    assert_eq!(error.code, ErrorCode::Refused);
    assert!(error.text.contains(words), "{error}");
    assert!(matches!(closed, CloseReason::ByPeer { text, .. } if text.contains(words)));
}

fn ticket(world: &World, terms: &TicketTerms) -> TicketSecret {
    world.host.ticket("export", terms).unwrap().secret()
}

#[tokio::test]
async fn a_ticket_enrols_a_key_which_then_needs_none() {
    let world = World::new(|_| {});
    let identity = Identity::generate().unwrap();
    let secret = Some(ticket(&world, &TicketTerms::default()));
    for ticket in [secret, secret, None] {
        let visitor = Visitor::with_key(&world, &identity).await;
        let welcome = visitor.greet(Hello { ticket, ..hello() }).await.unwrap();
        assert!(same_node(&welcome.root, &world.path("")));
        assert_eq!(welcome.features, Features::SUPPORTED);
        assert!(!welcome.read_only);
    }
    assert_refused(&world, Hello { ticket: secret, ..hello() }, "as many keys").await;
    assert_eq!(world.host.status().refused, 1);
}

#[tokio::test]
async fn strangers_and_bad_tickets_are_refused_in_words() {
    let world = World::new(|_| {});
    assert_refused(&world, hello(), "not known to this host").await;
    let unknown = Some(TicketSecret([0; 16]));
    assert_refused(&world, Hello { ticket: unknown, ..hello() }, "no such ticket").await;
    let expired = Some(ticket(&world, &TicketTerms { expires_seconds: Some(0), ..TicketTerms::default() }));
    assert_refused(&world, Hello { ticket: expired, ..hello() }, "expired").await;
    let revoked = Some(ticket(&world, &TicketTerms::default()));
    let state = world.state();
    let id = state.tickets().unwrap().iter().last().unwrap().id.clone();
    state.update(|_, tickets| assert!(tickets.revoke(&id))).unwrap();
    assert_refused(&world, Hello { ticket: revoked, ..hello() }, "revoked").await;
}

#[tokio::test]
async fn other_versions_and_exports_are_refused_in_words() {
    let world = World::new(|_| {});
    let version = PROTOCOL_VERSION + 1;
    assert_refused(&world, Hello { protocol_version: version, ..hello() }, "version 2").await;
    let secret = Some(ticket(&world, &TicketTerms::default()));
    let other = Hello { ticket: secret, export: "other".into(), ..hello() };
    assert_refused(&world, other, "is for the export \"export\"").await;
    let identity = Identity::generate().unwrap();
    let known = Visitor::with_key(&world, &identity).await;
    known.greet(Hello { ticket: secret, ..hello() }).await.unwrap();
    let again = Visitor::with_key(&world, &identity).await;
    let error = again.greet(Hello { export: "other".into(), ..hello() }).await.unwrap_err();
    assert!(
        error.text.contains("no export \"other\"") && error.text.contains("may mount: export"),
        "{error}"
    );
}

#[tokio::test]
async fn a_hello_of_another_version_is_known_by_its_beginning() {
    let world = World::new(|_| {});
    let visitor = Visitor::new(&world).await;
    let mut later = encode_frame(&(0u32, 900u16));
    later.extend([0xff; 20]);
    let len = (later.len() - FRAME_HEADER_BYTES) as u32;
    later[..FRAME_HEADER_BYTES].copy_from_slice(&len.to_le_bytes());
    let error = visitor.send(&later).await.reply().await.unwrap_err();
    assert!(error.code == ErrorCode::Refused && error.text.contains("900"), "{error}");
}

#[tokio::test]
async fn the_first_message_must_be_the_hello() {
    let world = World::new(|_| {});
    let visitor = Visitor::new(&world).await;
    assert_eq!(code(visitor.ask(&Request::Ping).await), ErrorCode::Refused);
    let CloseReason::ByPeer { text, .. } = visitor.connection.closed().await else { panic!() };
    assert!(text.contains("hello"), "{text}");
}

#[tokio::test]
async fn a_second_hello_breaks_the_protocol() {
    let world = World::new(|_| {});
    let guest = world.client().await;
    assert_eq!(code(guest.ask(Request::Hello(hello())).await), ErrorCode::Malformed);
    assert_eq!(guest.ask(Request::Ping).await, Ok(Reply::Done));
}

#[tokio::test]
async fn a_revoked_key_is_shown_out_and_its_ticket_is_no_way_back() {
    let world = World::new(|_| {});
    let identity = Identity::generate().unwrap();
    let secret = Some(ticket(&world, &TicketTerms { keys_max: 9, ..TicketTerms::default() }));
    let visitor = Visitor::with_key(&world, &identity).await;
    visitor.greet(Hello { ticket: secret, ..hello() }).await.unwrap();
    world.state().update(|keys, _| assert!(keys.revoke(identity.public_key()))).unwrap();
    let CloseReason::ByPeer { text, .. } = visitor.connection.closed().await else { panic!() };
    assert!(text.contains("revoked"), "{text}");
    let again = Visitor::with_key(&world, &identity).await;
    let error = again.greet(Hello { ticket: secret, ..hello() }).await.unwrap_err();
    assert!(error.text.contains("revoked"), "{error}");
}

#[tokio::test]
async fn a_key_that_may_only_read_is_told_so() {
    let world = World::new(|_| {});
    let identity = Identity::generate().unwrap();
    let line = format!("{} ro exports=export # by hand\n", identity.public_key());
    std::fs::write(world.state().path().join("authorized_keys"), line).unwrap();
    let visitor = Visitor::with_key(&world, &identity).await;
    let welcome = visitor.greet(hello()).await.unwrap();
    assert!(welcome.read_only);
    let access = Request::Access { node: welcome.root.node, mask: 2 };
    assert_eq!(visitor.ask(&access).await.unwrap_err().errno(), crate::proto::Errno::EROFS);
}

#[tokio::test]
async fn a_folder_below_an_export_is_a_root_of_its_own() {
    let world = World::new(|export| {
        std::fs::create_dir_all(export.join("a/b")).unwrap();
        std::fs::write(export.join("a/b/inside"), "x").unwrap();
        std::fs::write(export.join("outside"), "x").unwrap();
        std::os::unix::fs::symlink("a", export.join("link")).unwrap();
    });
    let whole = world.client().await;
    let outside = whole.walk("outside").await.unwrap();
    let inside = whole.walk("a/b/inside").await.unwrap();
    let below = world.client_below("a/b").await;
    assert!(same_node(&below.welcome.root, &world.path("a/b")));
    for node in [outside.node, whole.root(), inside.node] {
        let answer = below.attributes(Request::GetAttributes { node }).await;
        assert_eq!(code(answer), ErrorCode::UnknownNode, "not looked up from here");
    }
    assert_eq!(below.walk("inside").await.unwrap().node, inside.node);
    for (path, expected) in [
        ("../export", ErrorCode::Malformed),
        ("a//b", ErrorCode::Malformed),
        ("/a", ErrorCode::Malformed),
        ("link", ErrorCode::Refused),
        ("link/b", ErrorCode::Refused),
        ("outside", ErrorCode::Refused),
        ("none", ErrorCode::Refused),
    ] {
        let hello =
            Hello { sub_path: path.into(), ticket: Some(ticket(&world, &TicketTerms::default())), ..hello() };
        assert_eq!(refusal(&world, hello).await.0.code, expected, "{path}");
    }
}

#[tokio::test]
async fn a_session_is_of_one_folder_and_one_key() {
    let world = World::new(|export| std::fs::create_dir(export.join("a")).unwrap());
    let identity = Identity::generate().unwrap();
    let secret = Some(ticket(&world, &TicketTerms::default()));
    let first = Visitor::with_key(&world, &identity).await;
    first.greet(Hello { ticket: secret, ..hello() }).await.unwrap();
    let second = Visitor::with_key(&world, &identity).await;
    let elsewhere = second.greet(Hello { sub_path: b"a".to_vec(), ..hello() }).await;
    assert!(elsewhere.unwrap_err().text.contains("another folder"));
    // The same number, said by another key, is another session.
    world.client_below("a").await;
    assert_eq!(world.host.status().sessions, 2);
}

#[tokio::test]
async fn a_client_that_says_nothing_keeps_nobody_waiting() {
    let world = World::new(|_| {});
    let _silent = Visitor::new(&world).await;
    let guest = world.client().await;
    assert_eq!(guest.ask(Request::Ping).await, Ok(Reply::Done));
}

#[tokio::test]
async fn the_ticket_names_the_host() {
    let world = World::new(|_| {});
    let ticket = world.host.ticket("export", &TicketTerms::default()).unwrap();
    let key: PublicKey = world.host.identity();
    assert_eq!((ticket.host_key(), ticket.export()), (key, "export"));
    assert_eq!(ticket.addresses(), [world.host.listening().into()]);
    assert!(world.host.ticket("none", &TicketTerms::default()).is_err());
}
