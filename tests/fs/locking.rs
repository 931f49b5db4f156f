//! File locks over the model host: whose they are, how waits end, and what becomes of them in a new life of the session.

use std::future::pending;
use std::time::Duration;

use proptest::prelude::*;
use tokio::sync::oneshot;
use tokio::time::timeout;
use wormhole::client::memory::{MemoryHost, Stage};
use wormhole::fs::{FsConfig, FsError, LockWish};
use wormhole::proto::{Errno, LockFound, LockKind, LockRange, Request};

use super::World;
use super::changing::{WRITE, world};

const EXCLUSIVE: LockKind = LockKind::Exclusive;
const SHARED: LockKind = LockKind::Shared;

fn wish(owner: u64, start: u64, end: u64, kind: LockKind) -> LockWish {
    LockWish { owner, range: LockRange::new(start, end).unwrap(), kind, process: owner as u32 }
}

fn range(start: u64, end: u64) -> LockRange {
    LockRange::new(start, end).unwrap()
}

impl World {
    async fn writer(&self) -> u64 {
        let file = self.walk("f").await.unwrap();
        self.fs.open(file.inode, WRITE).await.unwrap().handle
    }

    /// Without waiting.
    async fn lock(&self, handle: u64, wish: LockWish) -> Result<(), Errno> {
        self.fs.lock(handle, wish, false, pending()).await.map_err(|error| error.errno())
    }
}

fn host() -> MemoryHost {
    let host = MemoryHost::new();
    host.create_file("f", "0123456789");
    host
}

#[tokio::test]
async fn mounts_owners_and_processes_of_the_host_keep_each_other_out() {
    let host = host();
    let (one, other) = (world(host.clone()), world(host.another_client()));
    let (handle, theirs) = (one.writer().await, other.writer().await);
    one.lock(handle, wish(1, 0, 9, EXCLUSIVE)).await.unwrap();
    assert_eq!(one.lock(handle, wish(2, 9, 20, SHARED)).await, Err(Errno::EAGAIN));
    assert_eq!(other.lock(theirs, wish(1, 9, 20, SHARED)).await, Err(Errno::EAGAIN));
    assert!(!host.lock_locally("f", range(0, 0), Some(SHARED)));
    let found = |process| Some(LockFound { range: range(0, 9), kind: EXCLUSIVE, process });
    assert_eq!(one.fs.test_lock(handle, wish(2, 0, 0, SHARED)).await.unwrap(), found(1));
    assert_eq!(other.fs.test_lock(theirs, wish(1, 0, 0, SHARED)).await.unwrap(), found(0));
    one.fs.unlock(handle, 1, range(5, 9)).await.unwrap();
    other.lock(theirs, wish(1, 9, 20, SHARED)).await.unwrap();
    assert_eq!((one.fs.lock_counts(), other.fs.lock_counts()), ((1, 0), (1, 0)));
    one.fs.closed_by(handle, 1).await.unwrap();
    assert!(host.lock_locally("f", range(0, 8), Some(EXCLUSIVE)));
    // What was taken through a handle goes with it, whoever is the owner.
    other.fs.release(theirs).await.unwrap();
    assert_eq!(host.locks_on("f"), 1, "the one of the host's own process");
}

#[tokio::test]
async fn nothing_is_asked_of_the_host_for_who_holds_nothing() {
    let world = world(host());
    let handle = world.writer().await;
    world.host.reset_counters();
    world.fs.unlock(handle, 1, LockRange::WHOLE).await.unwrap();
    world.fs.flush(handle).await.unwrap();
    world.fs.closed_by(handle, 1).await.unwrap();
    assert_eq!(world.host.counters().requests(), 0);
}

#[tokio::test]
async fn what_was_written_under_a_lock_is_there_when_it_is_given_back_and_seen_by_the_next() {
    let host = host();
    let (one, other) = (world(host.clone()), world(host.another_client()));
    let (handle, theirs) = (one.writer().await, other.writer().await);
    assert_eq!(other.read(theirs, 0, 99).await.unwrap(), b"0123456789");
    one.lock(handle, wish(1, 0, 0, EXCLUSIVE)).await.unwrap();
    host.hold(|request, stage| matches!(request, Request::Write(_)) && stage == Stage::Arrived);
    one.write(handle, 0, b"ABC").await.unwrap();
    let (unlock, look) = (one.fs.unlock(handle, 1, LockRange::WHOLE), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(host.locks_on("f"), 1, "the host lacks what was written under it");
        host.release_all();
    });
    let (unlocked, ()) = tokio::join!(unlock, look);
    unlocked.unwrap();
    // Copies hold for an hour on these mounts.
    assert_eq!(other.read(theirs, 0, 99).await.unwrap(), b"0123456789");
    other.lock(theirs, wish(1, 0, 0, EXCLUSIVE)).await.unwrap();
    assert_eq!(other.read(theirs, 0, 99).await.unwrap(), b"ABC3456789");
    host.append("f", "!");
    other.lock(theirs, wish(1, 5, 5, SHARED)).await.unwrap();
    let inode = other.walk("f").await.unwrap().inode;
    assert_eq!(other.fs.getattr(inode).await.unwrap().0.size, 11);
}

#[tokio::test]
async fn a_wait_ends_with_the_lock_or_with_a_signal_and_leaves_nothing() {
    let host = host();
    let world = world(host.clone());
    let handle = world.writer().await;
    assert!(host.lock_locally("f", range(0, 9), Some(EXCLUSIVE)));
    // The lock.
    let waiting = world.fs.lock(handle, wish(1, 0, 0, EXCLUSIVE), true, pending());
    let free = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(host.locks_on("f"), 1);
        host.lock_locally("f", range(0, 9), None);
    };
    tokio::join!(waiting, free).0.unwrap();
    // A signal.
    assert!(host.lock_locally("f", range(1, 9), Some(EXCLUSIVE)));
    let (signal, signalled) = oneshot::channel::<()>();
    let interrupted = async { drop(signalled.await) };
    let waiting = world.fs.lock(handle, wish(2, 5, 5, EXCLUSIVE), true, interrupted);
    let send = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        signal.send(()).unwrap();
    };
    let (ended, ()) = tokio::join!(waiting, send);
    assert_eq!(ended, Err(FsError::Interrupted));
    host.lock_locally("f", range(1, 9), None);
    // What the same owner asks next comes after all that.
    world.lock(handle, wish(2, 7, 7, EXCLUSIVE)).await.unwrap();
    assert_eq!(world.fs.lock_counts().0, 2);
    assert_eq!(host.locks_on("f"), 2);
}

/// A lock that is given in the moment of the signal is put back, and what was held before stays.
#[tokio::test]
async fn what_is_given_to_one_who_has_gone_is_put_back() {
    let host = host();
    let world = world(host.clone());
    let handle = world.writer().await;
    world.lock(handle, wish(1, 0, 4, SHARED)).await.unwrap();
    // The host's answer is on its way when the signal comes.
    host.hold(|request, stage| matches!(request, Request::Lock(_)) && stage == Stage::Answered);
    let (signal, signalled) = oneshot::channel::<()>();
    let waiting = world.fs.lock(handle, wish(1, 2, 9, EXCLUSIVE), true, async { drop(signalled.await) });
    let send = async {
        host.until(|host| !host.held().is_empty()).await;
        assert!(!host.lock_locally("f", range(9, 9), Some(SHARED)), "it was given");
        signal.send(()).unwrap();
    };
    let (ended, ()) = tokio::join!(waiting, send);
    assert_eq!(ended, Err(FsError::Interrupted));
    host.release_all();
    world.lock(handle, wish(1, 20, 20, EXCLUSIVE)).await.unwrap();
    assert!(host.lock_locally("f", range(5, 9), Some(EXCLUSIVE)));
    assert!(host.lock_locally("f", range(0, 4), Some(SHARED)));
    assert!(!host.lock_locally("f", range(2, 2), Some(EXCLUSIVE)), "the shared one is still there");
}

#[tokio::test]
async fn a_cut_delays_what_is_asked_and_nobody_waits_for_it_for_ever() {
    let host = host();
    let patience = Duration::from_millis(300);
    let config = FsConfig { patience, read_only: false, ..FsConfig::default() };
    let world = World::with_config(host.clone(), config);
    let handle = world.writer().await;
    world.lock(handle, wish(1, 0, 0, EXCLUSIVE)).await.unwrap();
    host.set_connected(false);
    assert_eq!(world.lock(handle, wish(1, 5, 5, EXCLUSIVE)).await, Err(Errno::ETIMEDOUT));
    let waited =
        timeout(Duration::from_secs(60), world.fs.lock(handle, wish(2, 6, 6, SHARED), true, pending()));
    assert_eq!(waited.await.unwrap().unwrap_err().errno(), Errno::ETIMEDOUT);
    assert_eq!(world.fs.unlock(handle, 1, range(0, 0)).await.unwrap_err().errno(), Errno::ETIMEDOUT);
    assert_eq!(host.locks_on("f"), 1);
    host.set_connected(true);
    // Everything is put right: what was given up is not held, and what was given back is free.
    timeout(Duration::from_secs(60), host.until(|host| host.locks_on("f") == 0)).await.unwrap();
    world.lock(handle, wish(1, 0, 9, EXCLUSIVE)).await.unwrap();
    assert_eq!((host.locks_on("f"), world.fs.lock_counts()), (1, (1, 0)));
}

#[tokio::test]
async fn locks_are_lost_with_the_life_of_the_session_and_their_handles_with_them() {
    for restarts in [false, true] {
        let host = host();
        let (one, other) = (world(host.clone()), world(host.another_client()));
        let (handle, bystander, theirs) = (one.writer().await, one.writer().await, other.writer().await);
        one.lock(handle, wish(1, 0, 0, EXCLUSIVE)).await.unwrap();
        one.lock(handle, wish(1, 5, 5, SHARED)).await.unwrap();
        if restarts {
            host.restart();
        } else {
            host.expire_session();
        }
        other.lock(theirs, wish(1, 0, 0, EXCLUSIVE)).await.unwrap();
        for _ in 0..2 {
            assert_eq!(one.read(handle, 0, 1).await.unwrap_err(), FsError::LocksLost);
            assert_eq!(one.write(handle, 0, b"x").await.unwrap_err(), FsError::LocksLost);
            assert_eq!(one.lock(handle, wish(1, 7, 7, SHARED)).await, Err(Errno::ESTALE));
        }
        assert_eq!(one.fs.lock_counts(), (0, 2));
        one.fs.unlock(handle, 1, LockRange::WHOLE).await.unwrap();
        assert_eq!(one.read(bystander, 0, 1).await.unwrap(), b"0");
        one.lock(bystander, wish(2, 7, 7, SHARED)).await.unwrap();
        one.fs.release(handle).await.unwrap();
        assert_eq!(one.read(one.writer().await, 0, 1).await.unwrap(), b"0", "opened again");
        assert_eq!(host.locks_on("f"), 2);
    }
}

/// What was written under a lock and not sent when it was lost must not come on top of what the next holder writes.
#[tokio::test]
async fn what_was_written_under_a_lost_lock_is_not_sent() {
    let host = host();
    let world = world(host.clone());
    let handle = world.writer().await;
    world.lock(handle, wish(1, 0, 0, EXCLUSIVE)).await.unwrap();
    host.set_connected(false);
    world.write(handle, 0, b"late").await.unwrap();
    host.expire_session();
    host.write("f", 0, "next");
    host.set_connected(true);
    assert_eq!(world.fs.flush(handle).await.unwrap_err().errno(), Errno::ESTALE);
    assert_eq!(host.content("f"), b"next456789");
    // Without a lock what was written is sent, however late.
    let free = world.writer().await;
    host.set_connected(false);
    world.write(free, 0, b"LATE").await.unwrap();
    host.expire_session();
    host.set_connected(true);
    world.fs.flush(free).await.unwrap();
    assert_eq!(host.content("f"), b"LATE456789");
}

#[tokio::test]
async fn a_wait_goes_on_in_the_next_life_of_the_session() {
    let host = host();
    let (one, other) = (world(host.clone()), world(host.another_client()));
    let (handle, theirs) = (one.writer().await, other.writer().await);
    other.lock(theirs, wish(1, 0, 0, EXCLUSIVE)).await.unwrap();
    let waiting = one.fs.lock(handle, wish(1, 0, 0, SHARED), true, pending());
    let lives = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        host.expire_session();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(host.locks_on("f"), 1);
        other.fs.unlock(theirs, 1, LockRange::WHOLE).await.unwrap();
    };
    let (locked, ()) =
        timeout(Duration::from_secs(60), async { tokio::join!(waiting, lives) }).await.unwrap();
    locked.unwrap();
    assert_eq!(one.fs.lock_counts(), (1, 0));
}

/// The kernel does not say which kind a lock of a whole file is; who takes both of one file must not wait for himself.
#[tokio::test]
async fn a_program_may_lock_a_file_in_both_ways() {
    for part_first in [false, true] {
        let host = host();
        let world = world(host.clone());
        let handle = world.writer().await;
        let [flock, fcntl] =
            [1, 2].map(|owner| LockWish { process: 7, ..wish(owner, 0, LockRange::LAST, EXCLUSIVE) });
        if part_first {
            world.lock(handle, LockWish { range: range(0, 0), ..fcntl }).await.unwrap();
        }
        world.lock(handle, flock).await.unwrap();
        world.lock(handle, fcntl).await.unwrap();
        world.lock(handle, flock).await.unwrap();
        assert!(!host.flock_locally("f", Some(SHARED)) && !host.lock_locally("f", range(5, 5), Some(SHARED)));
        world.fs.unlock(handle, 1, LockRange::WHOLE).await.unwrap();
        assert!(host.flock_locally("f", Some(SHARED)) && !host.lock_locally("f", range(5, 5), Some(SHARED)));
        world.fs.unlock(handle, 2, LockRange::WHOLE).await.unwrap();
        assert!(host.lock_locally("f", range(5, 5), Some(SHARED)));
        // Two handles are two, though: flock keeps one out of the other.
        let other = world.writer().await;
        host.flock_locally("f", None);
        host.lock_locally("f", LockRange::WHOLE, None);
        world.lock(handle, flock).await.unwrap();
        assert_eq!(world.lock(other, LockWish { owner: 3, ..flock }).await, Err(Errno::EAGAIN));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Two mounts and the host take and give back at random: each gets exactly what a table of bytes says.
    #[test]
    fn everybody_gets_what_a_map_of_bytes_says(
        steps in proptest::collection::vec((0usize..5, 0usize..8, 1usize..8, 0u8..4), 1..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let host = host();
            let (one, other) = (world(host.clone()), world(host.another_client()));
            let (handle, theirs) = (one.writer().await, other.writer().await);
            let mut slow = [[None; 8]; 5];
            for (who, start, len, what) in steps {
                let end = (start + len).min(8);
                let (first, last) = (start as u64, end as u64 - 1);
                let kind = match what { 0 => None, 1 => Some(SHARED), _ => Some(EXCLUSIVE) };
                let is_free = kind.is_none_or(|kind| (0..5).filter(|other| *other != who).all(|other| {
                    slow[other][start..end].iter().flatten().all(|theirs| *theirs == SHARED && kind == SHARED)
                }));
                let (world, handle) = if who < 2 { (&one, handle) } else { (&other, theirs) };
                let done = match (who, kind) {
                    (4, kind) => host.lock_locally("f", range(first, last), kind),
                    (_, None) => world.fs.unlock(handle, who as u64, range(first, last)).await.is_ok(),
                    (_, Some(kind)) => world.lock(handle, wish(who as u64, first, last, kind)).await.is_ok(),
                };
                assert_eq!(done, is_free, "{who} {start}..{end} {kind:?}");
                if done {
                    slow[who][start..end].fill(kind);
                }
            }
            for owner in 0..4 {
                let (world, handle) = if owner < 2 { (&one, handle) } else { (&other, theirs) };
                world.fs.closed_by(handle, owner).await.unwrap();
            }
            host.lock_locally("f", LockRange::WHOLE, None);
            assert_eq!(host.locks_on("f"), 0);
        });
    }
}
