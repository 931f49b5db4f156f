//! Files that change while they are read: every call is answered from one version, and new content is seen.

use proptest::prelude::*;
use tokio::runtime::Builder;
use wormhole::chunk::CHUNK_BYTES;
use wormhole::client::memory::{MemoryHost, Stage};
use wormhole::fs::{EventLane, FsError, FsEvent, OpenRequest};
use wormhole::proto::{ErrorCode, Request, WireError};

use super::{FLEETING, LASTING, World};

/// A file of which every byte tells its version.
fn filled(version: u8, size: usize) -> Vec<u8> {
    vec![version; size]
}

fn rewrite(host: &MemoryHost, version: u8, size: usize) {
    host.write("f", 0, filled(version, size));
    host.truncate("f", size as u64);
}

#[tokio::test]
async fn a_change_in_the_middle_of_a_read_starts_the_whole_call_again() {
    let size = 4 * CHUNK_BYTES as usize;
    let host = MemoryHost::new();
    host.create_file("f", filled(1, size));
    let world = World::new(host.clone(), LASTING);
    let file = world.open("f").await;
    // Chunk 0 has arrived in the first version when the file changes.
    host.hold(|request, stage| matches!((request, stage), (Request::Read(..), Stage::Part(1))));
    let (read, ()) = tokio::join!(world.read(file.handle, 0, size as u64), async {
        host.until(|host| !host.held().is_empty()).await;
        rewrite(&host, 2, size);
        host.release_all();
    });
    assert!(read.unwrap() == filled(2, size));
    let mut events = world.fs.take_events(EventLane::Copies).unwrap();
    assert!(matches!(events.try_recv(), Ok(FsEvent::InvalidateContent { .. })));
    assert!(world.fs.take_events(EventLane::Copies).is_none());
}

/// A host on which the file changes between any look and the read that follows it.
fn restless_host(size: usize) -> MemoryHost {
    let host = MemoryHost::new();
    host.create_file("f", filled(1, size));
    let writer = host.clone();
    host.set_delay(move |request| {
        if matches!(request, Request::Read(..) | Request::ReadCurrent { .. }) {
            writer.append("f", [1]);
        }
        std::time::Duration::ZERO
    });
    host
}

#[tokio::test]
async fn a_file_that_changes_faster_than_it_can_be_asked_for_is_read_as_it_is() {
    let host = restless_host(2 * CHUNK_BYTES as usize);
    let world = World::new(host.clone(), FLEETING);
    let file = world.open("f").await;
    let bytes = world.read(file.handle, 0, 2 * CHUNK_BYTES).await.unwrap();
    assert!(bytes == filled(1, 2 * CHUNK_BYTES as usize));
    assert!(host.counters().current_reads > 0);
    // Also what has come to its end since: the host cuts, not what was known of the size.
    let end = world.read(file.handle, 2 * CHUNK_BYTES, 4096).await.unwrap();
    assert!(!end.is_empty() && end.iter().all(|byte| *byte == 1));
}

#[tokio::test]
async fn a_file_that_the_host_cannot_catch_at_rest_is_an_error_and_not_a_mix() {
    let host = restless_host(CHUNK_BYTES as usize);
    let world = World::new(host.clone(), FLEETING);
    let file = world.open("f").await;
    host.set_errors(|request| {
        matches!(request, Request::ReadCurrent { .. }).then(|| WireError::new(ErrorCode::VersionChanged, ""))
    });
    let error = world.read(file.handle, 0, CHUNK_BYTES).await.unwrap_err();
    assert!(matches!(error, FsError::KeepsChanging), "{error}");
}

#[tokio::test]
async fn what_was_closed_elsewhere_before_is_seen_by_an_open() {
    let host = MemoryHost::new();
    host.create_file("f", "old");
    let world = World::new(host.clone(), LASTING);
    let first = world.open("f").await;
    assert_eq!(world.read(first.handle, 0, 10).await.unwrap(), b"old");
    host.write("f", 0, "NEW CONTENT");
    let second = world.open("f").await;
    assert_eq!(world.read(second.handle, 0, 100).await.unwrap(), b"NEW CONTENT");
    assert_eq!(world.read(first.handle, 0, 100).await.unwrap(), b"NEW CONTENT");
}

#[tokio::test]
async fn an_open_handle_follows_the_file_when_its_attributes_have_aged() {
    let host = MemoryHost::new();
    host.create_file("f", "old");
    let world = World::new(host.clone(), FLEETING);
    let file = world.open("f").await;
    assert_eq!(world.read(file.handle, 0, 10).await.unwrap(), b"old");
    host.append("f", " and more");
    assert_eq!(world.read(file.handle, 0, 100).await.unwrap(), b"old and more");
    host.truncate("f", 1);
    assert_eq!(world.read(file.handle, 0, 100).await.unwrap(), b"o");
}

#[tokio::test]
async fn two_states_with_one_stamp_do_not_mix() {
    let size = 3 * CHUNK_BYTES as usize;
    let host = MemoryHost::new();
    host.set_clock_granularity(std::time::Duration::from_secs(1));
    host.create_file("f", filled(0, size));
    rewrite(&host, 1, size);
    let world = World::new(host.clone(), LASTING);
    let file = world.open("f").await;
    world.read(file.handle, 0, CHUNK_BYTES).await.unwrap();
    // The same second, so the same version.
    rewrite(&host, 2, size);
    let read = world.read(file.handle, 0, size as u64).await.unwrap();
    assert!(read.iter().all(|byte| *byte == read[0]), "bytes of two states in one call");
}

#[derive(Debug, Clone)]
enum Step {
    Rewrite { size: usize },
    Read { handle: usize, offset: u64, len: u64 },
    Open,
    Settle,
    Release { handle: usize },
    Hold,
    LetGo,
}

fn step() -> impl Strategy<Value = Step> {
    let chunk = CHUNK_BYTES as usize;
    prop_oneof![
        2 => (0..6 * chunk).prop_map(|size| Step::Rewrite { size }),
        6 => (0usize..4, 0..6 * CHUNK_BYTES, 1..4 * CHUNK_BYTES)
            .prop_map(|(handle, offset, len)| Step::Read { handle, offset, len }),
        1 => Just(Step::Open),
        1 => Just(Step::Settle),
        1 => (0usize..4).prop_map(|handle| Step::Release { handle }),
        1 => Just(Step::Hold),
        2 => Just(Step::LetGo),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_read_mixes_versions_whatever_happens(steps in proptest::collection::vec(step(), 1..40)) {
        let runtime = Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(history(steps));
    }
}

/// Carries out a history with reads under way while the file changes, and checks each when it ends.
async fn history(steps: Vec<Step>) {
    let host = MemoryHost::new();
    let mut version = 1u8;
    host.create_file("f", filled(version, 2 * CHUNK_BYTES as usize));
    let world = std::sync::Arc::new(World::new(host.clone(), FLEETING));
    let mut handles = vec![world.open("f").await.handle];
    let mut reads = tokio::task::JoinSet::new();
    for step in steps {
        match step {
            Step::Rewrite { size } => {
                version = version.wrapping_add(1).max(1);
                // One change of the version, so that no reader sees half of it.
                host.replace_content(version, size);
            }
            Step::Read { handle, offset, len } => {
                let Some(handle) = handles.get(handle).copied() else { continue };
                let world = std::sync::Arc::clone(&world);
                reads.spawn(async move { world.read(handle, offset, len).await });
            }
            Step::Open => handles.push(world.open("f").await.handle),
            Step::Settle => host.advance(std::time::Duration::from_secs(3)),
            Step::Release { handle } if handle < handles.len() && reads.is_empty() => {
                world.fs.release(handles.swap_remove(handle)).await.unwrap();
            }
            Step::Release { .. } => {}
            Step::Hold => {
                host.hold(|request, stage| matches!((request, stage), (Request::Read(..), Stage::Part(_))));
            }
            Step::LetGo => {
                host.release_one();
                tokio::task::yield_now().await;
            }
        }
    }
    host.release_all();
    while let Some(read) = reads.join_next().await {
        let bytes = read.unwrap().unwrap();
        assert!(bytes.iter().all(|byte| *byte == bytes[0]), "bytes of two versions in one call");
    }
    for handle in handles {
        let read = world.read(handle, 0, u64::MAX).await.unwrap();
        assert!(read == host.content_at("f", 0, 1024 * 1024), "the newest version is not seen");
        world.fs.release(handle).await.unwrap();
    }
}

/// Rewrites at once.
trait ReplaceContent {
    fn replace_content(&self, version: u8, size: usize);
}

impl ReplaceContent for MemoryHost {
    /// No await lies between the two changes, so no request of this single-threaded history comes between them.
    fn replace_content(&self, version: u8, size: usize) {
        rewrite(self, version, size);
    }
}

#[tokio::test]
async fn the_kernel_is_told_by_an_open_of_what_it_may_have_another_state_of_and_of_nothing_else() {
    let host = MemoryHost::new();
    host.create_file("d/f", "some");
    let world = World::new(host.clone(), LASTING);
    let mut events = world.fs.take_events(EventLane::Attributes).unwrap();
    let (sender, mut told) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            match event {
                FsEvent::Told(told) => told.tell(),
                event => sender.send(event).unwrap(),
            }
        }
    });
    let file = world.walk("d/f").await.unwrap().inode;
    world.fs.open(file, OpenRequest::default()).await.unwrap();
    assert!(told.try_recv().is_err(), "nothing has changed");
    host.append("d/f", "more");
    world.fs.open(file, OpenRequest::default()).await.unwrap();
    // The answer to the open comes when the kernel has been told.
    assert_eq!(told.try_recv(), Ok(FsEvent::InvalidateAttributes { inode: file }));
    world.fs.open(file, OpenRequest::default()).await.unwrap();
    assert!(told.try_recv().is_err(), "it has none");
    host.append("d/f", "and more");
    host.set_permissions("d/f", 0o600);
    world.fs.open(file, OpenRequest::default()).await.unwrap();
    assert_eq!(told.try_recv(), Ok(FsEvent::InvalidateAttributes { inode: file }));
    host.append("d/f", "!");
    assert_eq!(world.walk("d/f").await.unwrap().attributes.size, 17);
    world.fs.open(file, OpenRequest::default()).await.unwrap();
    assert!(told.try_recv().is_err(), "the lookup told it");
    host.append("d/f", "!");
    assert_eq!(world.fs.getattr(file).await.unwrap().0.size, 17, "an older state");
    world.fs.open(file, OpenRequest::default()).await.unwrap();
    assert_eq!(told.try_recv(), Ok(FsEvent::InvalidateAttributes { inode: file }));
}
