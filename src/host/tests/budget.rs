//! What one key may use, whatever it does, and what that leaves to others.

use std::fs;
use std::io::Write as _;

use super::*;
use crate::host::KeyLimits;
use crate::proto::{Errno, OpenId};

/// A client whose key stands in `authorized_keys` with these options.
async fn client_with(world: &World, options: &str, hello: Hello) -> Result<Guest, WireError> {
    let identity = Identity::generate().unwrap();
    allow(world, &identity, options);
    let visitor = Visitor::with_key(world, &identity).await;
    let welcome = visitor.greet(hello).await?;
    Ok(Guest { visitor, welcome })
}

fn allow(world: &World, identity: &Identity, options: &str) {
    let path = world.folder.path().join("state/authorized_keys");
    let mut file = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    writeln!(file, "{} {options}", identity.public_key()).unwrap();
}

fn world_of_files(count: u64) -> World {
    World::new(|export| {
        for number in 0..count {
            fs::write(export.join(format!("f{number}")), "x").unwrap();
        }
    })
}

async fn open(guest: &Guest, number: u64) -> Result<Attributes, WireError> {
    let node = guest.walk(&format!("f{number}")).await?.node;
    guest.attributes(Request::Open { node, open: OpenId(number) }).await
}

#[tokio::test]
async fn a_key_that_has_all_the_files_it_may_have_keeps_nobody_else_from_opening() {
    let world = world_of_files(5);
    let greedy = client_with(&world, "max_open=3", hello()).await.unwrap();
    for number in 0..3 {
        open(&greedy, number).await.unwrap();
    }
    assert_eq!(code(open(&greedy, 3).await), ErrorCode::System(Errno::EMFILE));
    let other = client_with(&world, "", hello()).await.unwrap();
    for number in 0..5 {
        open(&other, number).await.unwrap();
    }
    let status = world.host.status();
    let used: Vec<_> =
        status.keys.iter().map(|key| (key.limits.max_open, key.open_files, key.sessions)).collect();
    assert!(used.contains(&(3, 3, 1)) && used.contains(&(KeyLimits::default().max_open, 5, 1)), "{used:?}");
    let node = greedy.walk("f0").await.unwrap().node;
    assert_eq!(greedy.ask(Request::Close { node, open: OpenId(0) }).await, Ok(Reply::Done));
    open(&greedy, 3).await.unwrap();
}

#[tokio::test]
async fn two_sessions_of_a_key_share_its_files_and_a_third_is_refused() {
    let world = world_of_files(3);
    let identity = Identity::generate().unwrap();
    allow(&world, &identity, "max_open=2 max_sessions=2");
    let mut guests = Vec::new();
    for number in 0..2 {
        let visitor = Visitor::with_key(&world, &identity).await;
        let welcome = visitor.greet(Hello { session: SessionId([number; 16]), ..hello() }).await.unwrap();
        guests.push(Guest { visitor, welcome });
    }
    open(&guests[0], 0).await.unwrap();
    open(&guests[1], 1).await.unwrap();
    for guest in &guests {
        assert_eq!(code(open(guest, 2).await), ErrorCode::System(Errno::EMFILE));
    }
    let third = Visitor::with_key(&world, &identity).await;
    let refused = third.greet(Hello { session: SessionId([9; 16]), ..hello() }).await;
    assert_eq!(refused.unwrap_err().code, ErrorCode::Busy);
}

/// One thread and one request at a time are slow, and enough.
#[tokio::test]
async fn the_smallest_budget_still_serves() {
    let world = world_of_files(40);
    let guest = client_with(&world, "max_threads=1 max_requests=1 max_connections=1", hello()).await.unwrap();
    let mut asked = Vec::new();
    for number in 0..40_u64 {
        let name = format!("f{number}").into_bytes();
        let request = Request::LookupMany { parent: guest.root(), names: vec![name] };
        asked.push(guest.visitor.send(&encode_frame(&request)).await);
    }
    for mut answered in asked {
        assert!(matches!(answered.reply().await, Ok(Reply::Entries(found)) if found[0].is_some()));
    }
    until_no_request(&world).await;
}

async fn until_no_request(world: &World) {
    while world.host.status().keys.iter().any(|key| key.requests + key.threads > 0) {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}
