//! The event stream: leases with lookups and listings, and the changes that are told under them.

use std::fs;
use std::time::Duration;

use tokio::time::timeout;

use super::*;
use crate::proto::{DirectoryChange, HostEvent, LeaseEpoch};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

struct Events {
    answered: Answered,
    epoch: LeaseEpoch,
}

impl Events {
    async fn open(guest: &Guest) -> Self {
        let mut answered = guest.visitor.send(&encode_frame(&Request::Events)).await;
        match answered.reply().await {
            Ok(Reply::Events { epoch }) => Self { answered, epoch },
            other => panic!("no event stream: {other:?}"),
        }
    }

    /// The next event that says something; `None` when the stream is over.
    async fn next(&mut self) -> Option<HostEvent> {
        let something = async {
            loop {
                match self.answered.frame().await {
                    Some(HostEvent::Alive) => {}
                    event => return event,
                }
            }
        };
        timeout(PATIENCE, something).await.expect("nothing is told")
    }

    /// Events until one tells of this name; what it leads to.
    async fn told(&mut self, name: &[u8]) -> Option<Attributes> {
        loop {
            match self.next().await.expect("the stream goes on") {
                HostEvent::Changed(DirectoryChange { entries, .. }) => {
                    if let Some((_, found)) = entries.into_iter().rfind(|entry| entry.0 == name) {
                        return found;
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

async fn lease_of_listing(guest: &Guest, node: NodeId) -> Option<LeaseEpoch> {
    let mut answered = guest.visitor.send(&encode_frame(&Request::ReadDirectory { node })).await;
    match answered.reply().await {
        Ok(Reply::Directory { lease, attributes }) => {
            assert_eq!(attributes.unwrap().node, node);
            lease
        }
        other => panic!("{other:?}"),
    }
}

async fn lease_of_lookup(guest: &Guest, name: &str) -> Option<LeaseEpoch> {
    let request = Request::Lookup { parent: guest.root(), name: name.into() };
    match guest.ask(request).await.unwrap() {
        Reply::Attributes(_) => None,
        Reply::Entry { lease, .. } => Some(lease),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn leases_come_with_answers_once_there_is_an_event_stream() {
    let world = World::new(|export| fs::write(export.join("file"), b"").unwrap());
    let guest = world.client().await;
    assert_eq!(lease_of_listing(&guest, guest.root()).await, None);
    assert_eq!(lease_of_lookup(&guest, "file").await, None);
    let events = Events::open(&guest).await;
    assert_eq!(lease_of_lookup(&guest, "file").await, Some(events.epoch));
    assert_eq!(lease_of_listing(&guest, guest.root()).await, Some(events.epoch));
    assert_eq!(world.host.status().leases, 1);
}

#[tokio::test]
async fn changes_are_told_with_what_is_there_then() {
    let world = World::new(|export| fs::write(export.join("file"), b"old").unwrap());
    let guest = world.client().await;
    let mut events = Events::open(&guest).await;
    assert!(lease_of_listing(&guest, guest.root()).await.is_some());
    fs::write(world.path("file"), b"longer").unwrap();
    let mut size = 0;
    while size != 6 {
        size = events.told(b"file").await.unwrap().size;
    }
    fs::rename(world.path("file"), world.path("other")).unwrap();
    assert_eq!(events.told(b"file").await, None);
    fs::remove_file(world.path("other")).unwrap();
    while events.told(b"other").await.is_some() {}
}

#[tokio::test]
async fn a_second_stream_ends_the_first_and_its_leases() {
    let world = World::new(|_| {});
    let guest = world.client().await;
    let mut first = Events::open(&guest).await;
    assert!(lease_of_listing(&guest, guest.root()).await.is_some());
    let second = Events::open(&guest).await;
    assert_ne!(first.epoch, second.epoch);
    assert_eq!(first.next().await, None);
    assert_eq!(lease_of_listing(&guest, guest.root()).await, Some(second.epoch));
    drop(guest);
}

#[tokio::test]
async fn a_directory_that_goes_is_told_by_the_one_that_held_it() {
    let world = World::new(|export| fs::create_dir(export.join("sub")).unwrap());
    let guest = world.client().await;
    let mut events = Events::open(&guest).await;
    assert!(lease_of_listing(&guest, guest.root()).await.is_some());
    fs::remove_dir(world.path("sub")).unwrap();
    assert_eq!(events.told(b"sub").await, None);
}

#[tokio::test]
async fn nothing_is_told_of_a_directory_that_was_moved_out_of_the_export() {
    let world = World::new(|export| fs::create_dir(export.join("sub")).unwrap());
    let guest = world.client().await;
    let mut events = Events::open(&guest).await;
    let sub = guest.walk("sub").await.unwrap().node;
    assert!(lease_of_listing(&guest, sub).await.is_some());
    let outside = world.folder.path().join("outside");
    fs::rename(world.path("sub"), &outside).unwrap();
    // A descriptor of it may be trusted for a second; the path is walked again after that.
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    fs::write(outside.join("secret"), b"").unwrap();
    loop {
        match events.next().await.unwrap() {
            HostEvent::Revoked { directory } if directory == sub => break,
            HostEvent::Changed(change) => {
                assert!(change.entries.iter().all(|(name, _)| name != b"secret"), "{change:?}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_daemon_ends_although_event_streams_are_open() {
    let world = World::new(|_| {});
    let guest = world.client().await;
    let mut events = Events::open(&guest).await;
    let ending = timeout(Duration::from_secs(4), world.host.shutdown());
    let (ended, told) = tokio::join!(ending, events.next());
    assert!(ended.is_ok(), "the daemon waited for the stream");
    assert_eq!(told, None);
}
