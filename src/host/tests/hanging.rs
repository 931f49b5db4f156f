//! File systems below an export that hang: one of another process, which is stopped.
//!
//! The file system is `bindfs`. It must not be this process, whose threads wait for it.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::timeout;

use super::*;
use crate::host::KeyLimits;
use crate::proto::OpenId;

/// A hang becomes a failure.
const DEADLINE: Duration = Duration::from_secs(120);

const SIZE: u64 = 1 << 20;

/// A folder seen through a process. Dropped, the process is killed, which ends every call, and it is unmounted.
struct Through {
    process: Child,
    point: PathBuf,
}

impl Through {
    fn new(source: &Path, point: PathBuf) -> Self {
        let process = Command::new("bindfs").arg("-f").arg(source).arg(&point).stdin(Stdio::null()).spawn();
        let process = process.expect("bindfs is needed");
        let through = Self { process, point };
        let device = |path: &Path| fs::metadata(path).map(|found| found.dev());
        let around = device(through.point.parent().unwrap()).unwrap();
        let until = std::time::Instant::now() + DEADLINE;
        while device(&through.point).is_ok_and(|found| found == around) {
            assert!(std::time::Instant::now() < until, "bindfs does not mount");
            std::thread::sleep(Duration::from_millis(5));
        }
        through
    }

    /// Answers nothing from now on.
    fn stop(&self) {
        kill(Pid::from_raw(self.process.id() as i32), Signal::SIGSTOP).unwrap();
    }
}

impl Drop for Through {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        for program in ["umount", "fusermount3"] {
            let option = if program == "umount" { "-l" } else { "-uz" };
            let unmounted = Command::new(program).arg(option).arg(&self.point).stderr(Stdio::null()).status();
            if unmounted.is_ok_and(|status| status.success()) {
                return;
            }
        }
    }
}

/// Nine connections of one key ask for what never comes, by more requests than the daemon has threads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_system_that_hangs_costs_the_key_that_asked_and_nobody_else() {
    let world = World::new(|export| {
        fs::create_dir(export.join("dead")).unwrap();
        fs::write(export.join("alive"), "x").unwrap();
    });
    let source = world.folder.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), pattern(SIZE as usize)).unwrap();
    let through = Through::new(&source, world.path("dead"));
    let identity = Identity::generate().unwrap();
    let ticket = Some(world.host.ticket("export", &TicketTerms::default()).unwrap().secret());
    let mut guests = Vec::new();
    for number in 0..9 {
        let visitor = Visitor::with_key(&world, &identity).await;
        let hello = Hello { ticket, session: SessionId([number; 16]), ..hello() };
        let welcome = visitor.greet(hello).await.unwrap();
        let guest = Guest { visitor, welcome };
        let file = guest.walk("dead/file").await.unwrap();
        let open = Request::Open { node: file.node, open: OpenId(number.into()) };
        guest.attributes(open).await.unwrap();
        guests.push((guest, file));
    }
    through.stop();
    let mut asked = Vec::new();
    for (guest, file) in &guests {
        for number in 0..100 {
            asked.push(guest.visitor.send(&encode_frame(&never_answered(file, number))).await);
        }
    }
    let others = async {
        until_threads_are_taken(&world).await;
        for _ in 0..3 {
            let other = world.client().await;
            let alive = other.walk("alive").await.unwrap();
            other.attributes(Request::Open { node: alive.node, open: OpenId(1) }).await.unwrap();
            assert_eq!(other.bytes(chunks(&alive, 0, 1)).await.unwrap(), b"x");
        }
        assert_eq!(guests[0].0.ask(Request::Ping).await, Ok(Reply::Done));
        world.state().update(|keys, _| assert!(keys.revoke(identity.public_key()))).unwrap();
        for (guest, _) in &guests {
            guest.visitor.connection.closed().await;
        }
    };
    timeout(DEADLINE, others).await.expect("others are kept waiting");
    let World { host, folder } = world;
    timeout(DEADLINE, host.shutdown()).await.expect("the daemon does not end");
    drop(through);
    drop((asked, folder));
}

/// A request of each kind that asks a file system, in turn.
fn never_answered(file: &Attributes, number: u64) -> Request {
    let range = ByteRange::new(0, SIZE);
    match number % 5 {
        0 => Request::Read(ReadRequest::chunks_of(file, range), Lane::Demand),
        1 => Request::ReadCurrent { node: file.node, range },
        2 => Request::GetAttributes { node: file.node },
        3 => Request::StatFs { node: file.node },
        _ => Request::GetXattr { node: file.node, name: b"user.none".to_vec() },
    }
}

/// Waits until the key that asked has all threads that it may have, and no more.
async fn until_threads_are_taken(world: &World) {
    let most = u64::from(KeyLimits::default().max_threads);
    loop {
        let taken = world.host.status().keys.iter().map(|key| key.threads).max().unwrap_or_default();
        assert!(taken <= most, "{taken} threads");
        if taken == most {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
