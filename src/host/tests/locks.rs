//! Locks: held as the host's own, once, and as long as their session.

use std::fs::{self, File, OpenOptions};
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::*;
use crate::io::sys;
use crate::proto::{
    Errno, LockAction, LockAnswer, LockCall, LockFound, LockKind, LockOwner, LockRange, LockRequest,
    LockTest, LockWait, Operation, OperationId, WholeFile,
};

const ONE: LockOwner = LockOwner(1);
const OTHER: LockOwner = LockOwner(2);

fn range(start: u64, end: u64) -> LockRange {
    LockRange::new(start, end).unwrap()
}

fn take(range: LockRange, kind: LockKind) -> LockAction {
    LockAction::Take { range, kind, whole: WholeFile::Both, process: 7, wait: None }
}

fn wait_for(range: LockRange, kind: LockKind, ticket: u64, for_ms: u32) -> LockAction {
    let wait = Some(LockWait { ticket, for_ms });
    LockAction::Take { range, kind, whole: WholeFile::Both, process: 7, wait }
}

impl Guest {
    fn lock_call(&self, node: NodeId, owner: LockOwner, action: LockAction) -> LockCall {
        LockCall { run: self.welcome.session, node, owner, action }
    }

    async fn lock_as(&self, id: u64, answered_below: u64, call: LockCall) -> Result<LockAnswer, WireError> {
        let (id, answered_below) = (OperationId(id), OperationId(answered_below));
        let operation = Operation { id, answered_below, sent_first: call.run };
        match self.ask(Request::Lock(LockRequest { operation, call })).await? {
            Reply::Lock(answer) => Ok(answer),
            other => panic!("{other:?}"),
        }
    }

    /// Whether it was done.
    async fn lock(
        &self,
        id: u64,
        node: NodeId,
        owner: LockOwner,
        action: LockAction,
    ) -> Result<bool, WireError> {
        let answer = self.lock_as(id, 0, self.lock_call(node, owner, action)).await?;
        Ok(matches!(answer, LockAnswer::Done(_)))
    }

    async fn test_lock(&self, node: NodeId, owner: LockOwner, range: LockRange) -> Option<LockFound> {
        let test = LockTest { node, owner, range, kind: LockKind::Exclusive };
        match self.ask(Request::TestLock(test)).await.unwrap() {
            Reply::LockTest(found) => found,
            other => panic!("{other:?}"),
        }
    }
}

fn world() -> World {
    World::new(|folder| fs::write(folder.join("f"), "content").unwrap())
}

/// Another mount of the same client.
async fn another(world: &World, session: u8) -> Guest {
    world.client_that(Hello { session: SessionId([session; 16]), ..hello() }).await
}

/// Opened by a process of the host.
fn local(world: &World) -> File {
    OpenOptions::new().read(true).write(true).open(world.path("f")).unwrap()
}

fn is_range_free(file: &File, range: LockRange) -> bool {
    sys::test_range(file, range.start, range.end, true).unwrap().is_none()
}

fn is_whole_free(file: &File) -> bool {
    let free = sys::lock_whole(file, Some(true)).unwrap();
    sys::lock_whole(file, None).unwrap();
    free
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_and_processes_of_the_host_keep_each_other_out() {
    let world = world();
    let (one, other, local) = (world.client().await, another(&world, 2).await, local(&world));
    let file = one.walk("f").await.unwrap().node;
    other.walk("f").await.unwrap();
    assert!(one.lock(1, file, ONE, take(range(0, 9), LockKind::Exclusive)).await.unwrap());
    assert!(!is_range_free(&local, range(9, 9)) && is_range_free(&local, range(10, 99)));
    assert!(is_whole_free(&local), "a range is none of flock");
    // Another owner of the same mount, another mount, and the owner himself.
    assert!(!one.lock(2, file, OTHER, take(range(5, 20), LockKind::Shared)).await.unwrap());
    assert!(!other.lock(1, file, ONE, take(range(5, 20), LockKind::Shared)).await.unwrap());
    assert!(one.lock(3, file, ONE, take(range(5, 20), LockKind::Shared)).await.unwrap());
    assert!(other.lock(2, file, ONE, take(range(5, 20), LockKind::Shared)).await.unwrap());
    assert!(one.lock(4, file, ONE, LockAction::Release { range: LockRange::WHOLE }).await.unwrap());
    assert!(!is_range_free(&local, range(5, 5)) && is_range_free(&local, range(0, 4)));
    assert!(other.lock(3, file, ONE, LockAction::Release { range: range(5, 12) }).await.unwrap());
    assert!(is_range_free(&local, range(0, 12)) && !is_range_free(&local, range(13, 13)));
    // And the other way round.
    assert!(sys::lock_range(&local, 0, 4, Some(true)).unwrap());
    assert!(!one.lock(5, file, ONE, take(range(4, 4), LockKind::Shared)).await.unwrap());
    assert_eq!(world.host.status().locks_held, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_file_is_locked_in_both_ways_of_the_host() {
    let world = world();
    let (one, local) = (world.client().await, local(&world));
    let file = one.walk("f").await.unwrap().node;
    let whole =
        |kind, whole| LockAction::Take { range: LockRange::WHOLE, kind, whole, process: 7, wait: None };
    let exclusive = |kinds| whole(LockKind::Exclusive, kinds);
    assert!(one.lock(1, file, ONE, exclusive(WholeFile::Both)).await.unwrap());
    assert!(!is_whole_free(&local) && !is_range_free(&local, range(3, 3)));
    // What a process has in one of the ways stands against both, and leaves nothing of the other behind.
    assert!(one.lock(2, file, ONE, LockAction::Release { range: LockRange::WHOLE }).await.unwrap());
    assert!(sys::lock_whole(&local, Some(false)).unwrap());
    assert!(!one.lock(3, file, ONE, exclusive(WholeFile::Both)).await.unwrap());
    assert!(is_range_free(&local, LockRange::WHOLE));
    assert!(one.lock(4, file, ONE, whole(LockKind::Shared, WholeFile::Both)).await.unwrap());
    assert!(!one.lock(5, file, ONE, exclusive(WholeFile::Both)).await.unwrap());
    assert!(sys::lock_whole(&local, None).unwrap());
    assert!(!is_whole_free(&local), "the shared one is still there");
    assert!(one.lock(6, file, ONE, LockAction::Release { range: LockRange::WHOLE }).await.unwrap());
    assert!(sys::lock_range(&local, 3, 3, Some(true)).unwrap());
    assert!(!one.lock(7, file, ONE, exclusive(WholeFile::Both)).await.unwrap());
    assert!(is_whole_free(&local), "nothing of flock is left of a lock that could not be had");
    // A client that knows which it means gets that one alone.
    assert!(one.lock(8, file, ONE, exclusive(WholeFile::Flock)).await.unwrap());
    assert!(!is_whole_free(&local));
    assert!(one.lock(9, file, ONE, LockAction::Release { range: LockRange::WHOLE }).await.unwrap());
    sys::lock_range(&local, 3, 3, None).unwrap();
    assert!(one.lock(10, file, ONE, exclusive(WholeFile::Fcntl)).await.unwrap());
    assert!(is_whole_free(&local) && !is_range_free(&local, range(0, 0)));
    // A part of it is given back: then it was none of flock.
    assert!(one.lock(11, file, ONE, exclusive(WholeFile::Both)).await.unwrap());
    assert!(one.lock(12, file, ONE, LockAction::Release { range: range(0, 0) }).await.unwrap());
    assert!(
        is_whole_free(&local) && is_range_free(&local, range(0, 0)) && !is_range_free(&local, range(1, 1))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_is_told_in_turn_and_keeps_his_place() {
    let world = world();
    let (one, other) = (world.client().await, another(&world, 2).await);
    let file = one.walk("f").await.unwrap().node;
    other.walk("f").await.unwrap();
    let exclusive = take(LockRange::WHOLE, LockKind::Exclusive);
    assert!(one.lock(1, file, ONE, exclusive).await.unwrap());
    // The first of two asks for a moment only, and again later.
    let first = wait_for(LockRange::WHOLE, LockKind::Exclusive, 1, 50);
    assert!(!other.lock(1, file, ONE, first).await.unwrap());
    let second = other.lock(2, file, OTHER, wait_for(LockRange::WHOLE, LockKind::Exclusive, 2, 20_000));
    let first = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        other.lock(3, file, ONE, wait_for(LockRange::WHOLE, LockKind::Exclusive, 1, 20_000)).await
    };
    let release = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(one.lock(2, file, ONE, LockAction::Release { range: LockRange::WHOLE }).await.unwrap());
    };
    let (mut first, mut second) = (Box::pin(first), Box::pin(second));
    let won = tokio::select! {
        got = &mut first => got.unwrap(),
        _ = &mut second => panic!("the second was first"),
        () = async { release.await; tokio::time::sleep(Duration::from_secs(10)).await } => panic!("nobody was told"),
    };
    assert!(won);
    assert!(other.lock(4, file, ONE, LockAction::Release { range: LockRange::WHOLE }).await.unwrap());
    assert!(timeout(Duration::from_secs(10), second).await.unwrap().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_of_a_process_is_waited_for_and_a_wait_can_be_left() {
    let world = world();
    let (one, local) = (world.client().await, local(&world));
    let file = one.walk("f").await.unwrap().node;
    assert!(sys::lock_range(&local, 0, 9, Some(true)).unwrap());
    let wait = wait_for(range(0, 0), LockKind::Shared, 1, 20_000);
    let waiting = one.lock(1, file, ONE, wait);
    let free = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        sys::lock_range(&local, 0, 9, None).unwrap();
        Instant::now()
    };
    let (got, freed) = tokio::join!(waiting, free);
    assert!(got.unwrap());
    // The wait itself may take 20 s.
    assert!(freed.elapsed() < Duration::from_secs(15), "{:?}", freed.elapsed());
    // Another owner stands in the way now, and whoever waits for him leaves.
    let waiting = one.lock(2, file, OTHER, wait_for(range(0, 0), LockKind::Exclusive, 2, 20_000));
    let leave = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        one.lock(3, file, OTHER, LockAction::Leave { ticket: 2 }).await
    };
    let begun = Instant::now();
    let (got, left) = tokio::join!(waiting, leave);
    assert!(!got.unwrap() && !left.unwrap());
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    assert!(one.lock(4, file, ONE, LockAction::Release { range: LockRange::WHOLE }).await.unwrap());
    assert!(is_range_free(&local, LockRange::WHOLE), "nobody has taken what nobody waits for");
    assert_eq!(world.host.status().locks_held, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_again_is_answered_and_not_done_again() {
    let world = world();
    let (one, local) = (world.client().await, local(&world));
    let file = one.walk("f").await.unwrap().node;
    let call = |action| one.lock_call(file, ONE, action);
    let exclusive = take(range(0, 0), LockKind::Exclusive);
    assert!(matches!(one.lock_as(1, 0, call(exclusive)).await, Ok(LockAnswer::Done(_))));
    let release = LockAction::Release { range: LockRange::WHOLE };
    assert!(matches!(one.lock_as(2, 0, call(release)).await, Ok(LockAnswer::Done(_))));
    // It was long on its way.
    assert!(matches!(one.lock_as(1, 0, call(exclusive)).await, Ok(LockAnswer::Done(_))));
    assert!(is_range_free(&local, LockRange::WHOLE));
    assert!(matches!(one.lock_as(3, 3, call(release)).await, Ok(LockAnswer::Done(_))));
    assert_eq!(code(one.lock_as(1, 0, call(exclusive)).await), ErrorCode::Malformed);
    // In another life of the session nothing is done, whatever its number.
    let mut other_life = call(exclusive);
    other_life.run.number += 1;
    assert_eq!(code(one.lock_as(4, 0, other_life).await), ErrorCode::LocksLost);
    assert!(is_range_free(&local, LockRange::WHOLE));
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_end_with_their_session_and_outlive_a_connection() {
    let world = world();
    let identity = Identity::generate().unwrap();
    let secret = world.host.ticket("export", &TicketTerms::default()).unwrap().secret();
    let connect = async || {
        let visitor = Visitor::with_key(&world, &identity).await;
        let welcome = visitor.greet(Hello { ticket: Some(secret), ..hello() }).await.unwrap();
        Guest { visitor, welcome }
    };
    let (one, other) = (connect().await, another(&world, 2).await);
    let file = one.walk("f").await.unwrap().node;
    other.walk("f").await.unwrap();
    assert!(one.lock(1, file, ONE, take(range(0, 0), LockKind::Exclusive)).await.unwrap());
    // A cut: the connection goes, and is not said goodbye.
    one.visitor.connection.close(1, "cut");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!other.lock(1, file, ONE, take(range(0, 0), LockKind::Shared)).await.unwrap());
    let again = connect().await;
    assert_eq!(again.welcome.session, one.welcome.session);
    let waiting = other.lock(2, file, ONE, wait_for(range(0, 0), LockKind::Shared, 1, 20_000));
    let end = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        again.visitor.connection.close(crate::proto::close::GOODBYE, "unmounted");
    };
    let (got, ()) = tokio::join!(waiting, end);
    assert!(got.unwrap(), "the session is over, and so is its lock");
    assert_eq!(world.host.status().locks_held, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_only_read_takes_shared_locks() {
    let world = world();
    let identity = Identity::generate().unwrap();
    let secret = world.host.ticket("export", &TicketTerms::default()).unwrap().secret();
    let visitor = Visitor::with_key(&world, &identity).await;
    visitor.greet(Hello { ticket: Some(secret), ..hello() }).await.unwrap();
    let keys = world.folder.path().join("state/authorized_keys");
    let text = fs::read_to_string(&keys).unwrap().replace(" exports=", " ro exports=");
    fs::write(&keys, text).unwrap();
    let visitor = Visitor::with_key(&world, &identity).await;
    let welcome = visitor.greet(Hello { session: SessionId([9; 16]), ..hello() }).await.unwrap();
    assert!(welcome.read_only);
    let (guest, local) = (Guest { visitor, welcome }, local(&world));
    let file = guest.walk("f").await.unwrap().node;
    assert!(guest.lock(1, file, ONE, take(LockRange::WHOLE, LockKind::Shared)).await.unwrap());
    assert!(!is_whole_free(&local) && !is_range_free(&local, range(0, 0)));
    let refused = guest.lock(2, file, ONE, take(LockRange::WHOLE, LockKind::Exclusive)).await;
    assert_eq!(code(refused), ErrorCode::System(Errno::EROFS));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_holds_a_lock_is_told_and_what_makes_no_sense_is_refused() {
    let world = world();
    let (one, other, local) = (world.client().await, another(&world, 2).await, local(&world));
    let file = one.walk("f").await.unwrap().node;
    other.walk("f").await.unwrap();
    assert!(one.lock(1, file, ONE, take(range(5, 9), LockKind::Shared)).await.unwrap());
    let found = |process| Some(LockFound { range: range(5, 9), kind: LockKind::Shared, process });
    assert_eq!(one.test_lock(file, OTHER, LockRange::WHOLE).await, found(7));
    assert_eq!(other.test_lock(file, ONE, LockRange::WHOLE).await, found(0));
    assert_eq!(one.test_lock(file, ONE, LockRange::WHOLE).await, None, "it is his own");
    assert!(sys::lock_range(&local, 100, 100, Some(true)).unwrap());
    let theirs = LockFound { range: range(100, 100), kind: LockKind::Exclusive, process: 0 };
    assert_eq!(one.test_lock(file, ONE, LockRange::WHOLE).await, Some(theirs));
    let backwards = LockRange { start: 2, end: 1 };
    assert_eq!(code(one.lock(2, file, ONE, take(backwards, LockKind::Shared)).await), ErrorCode::Malformed);
    let for_ever = wait_for(range(0, 0), LockKind::Shared, 1, u32::MAX);
    assert_eq!(code(one.lock(3, file, ONE, for_ever).await), ErrorCode::Malformed);
    let folder = one.root();
    assert_eq!(
        code(one.lock(4, folder, ONE, take(range(0, 0), LockKind::Shared)).await),
        ErrorCode::System(Errno::EISDIR)
    );
    let status = world.host.status();
    assert_eq!(status.locks_held, 1);
}
