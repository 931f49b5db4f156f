//! File locks: between programs on a mount, on other mounts and on the host.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::e2e::relay::Relay;
use crate::world::{Host, Mount, World, run, wait_until};

/// How long an answer may take that nothing stands in the way of.
const SOON: Duration = Duration::from_secs(20);

/// How long it is watched that somebody waits.
const A_WHILE: Duration = Duration::from_millis(700);

/// Answers each line with what the expression in it is, or with the name of the error.
const ACTOR: &str = r"
import errno, os, signal, struct, sys
import fcntl as kernel
from fcntl import *
def usr1(*_): raise InterruptedError(errno.EINTR, 'signal')
signal.signal(signal.SIGUSR1, usr1)
def op(path, flags=os.O_RDWR): return os.open(path, flags)
def fl(fd, how): flock(fd, how)
def range_(fd, how, start=0, length=0): lockf(fd, how, length, start)
def getlk(fd, start, length):
    found = kernel.fcntl(fd, F_GETLK, struct.pack('hhqqi4x', F_WRLCK, 0, start, length, 0))
    kind, _, start, length, pid = struct.unpack('hhqqi4x', found)
    return None if kind == F_UNLCK else (kind == F_WRLCK, start, length, pid)
def ofd(fd, kind, start, length, cmd=37): kernel.fcntl(fd, cmd, struct.pack('hhqqi4x', kind, 0, start, length, 0))
EX, SH, NB, UN = LOCK_EX, LOCK_SH, LOCK_NB, LOCK_UN
print('ready', flush=True)
for line in sys.stdin:
    try:
        print(repr(eval(line)), flush=True)
    except OSError as error:
        print(errno.errorcode[error.errno], flush=True)
";

/// A program with files of its own.
pub(super) struct Actor {
    child: Child,
    answers: mpsc::Receiver<String>,
}

impl Actor {
    /// One that has `path` open for reading and writing as descriptor `f`.
    pub(super) fn with(path: &Path) -> Self {
        let mut actor = Self::new();
        actor.opens(path);
        actor
    }

    fn new() -> Self {
        let mut command = Command::new("python3");
        let mut child =
            command.args(["-c", ACTOR]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (tell, answers) = mpsc::channel();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| tell.send(line)));
        let actor = Self { child, answers };
        assert_eq!(actor.answer(), "ready");
        actor
    }

    fn opens(&mut self, path: &Path) {
        self.is(&format!("globals().update(f=op('{}'))", path.display()), "None");
    }

    /// Begins something.
    pub(super) fn begin(&mut self, what: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{what}").unwrap();
    }

    /// What came of it.
    pub(super) fn answer(&self) -> String {
        self.answers.recv_timeout(SOON).expect("an answer in time")
    }

    /// Has something done.
    #[track_caller]
    pub(super) fn is(&mut self, what: &str, expected: &str) {
        self.begin(what);
        assert_eq!(self.answer(), expected, "{what}");
    }

    /// Nothing comes of it for a while.
    #[track_caller]
    pub(super) fn waits(&self) {
        let answer = self.answers.recv_timeout(A_WHILE);
        assert!(answer.is_err(), "it did not wait: {answer:?}");
    }

    fn signal(&self, signal: &str) {
        assert!(run("kill", &[signal, &self.child.id().to_string()]).status.success());
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A host with one file, and two mounts of it.
pub(super) fn stage(options: &str) -> (World, Host, Mount, Mount) {
    let world = World::new();
    fs::write(world.source().join("file"), "0").unwrap();
    let host = world.host();
    let one = world.mount(&host.ticket, options);
    let port = format!("port={},{options}", host.listening.port());
    let other = world.mount_as("other", "127.0.0.1:/export", port.trim_end_matches(','));
    (world, host, one, other)
}

/// Somebody on each mount, and on the host.
fn actors(world: &World, one: &Mount, other: &Mount) -> [Actor; 3] {
    [one.path("file"), other.path("file"), world.source().join("file")].map(|path| Actor::with(&path))
}

#[test]
fn everybody_keeps_everybody_out() {
    let (world, host, one, other) = stage("");
    let mut actors = actors(&world, &one, &other);
    for how in ["fl(f, {})", "range_(f, {})", "range_(f, {}, 100, 10)"] {
        let call = |kind: &str| how.replace("{}", kind);
        for holder in 0..3 {
            actors[holder].is(&call("EX|NB"), "None");
            for guest in (0..3).filter(|guest| *guest != holder) {
                actors[guest].is(&call("EX|NB"), "EAGAIN");
                actors[guest].is(&call("SH|NB"), "EAGAIN");
            }
            actors[holder].is(&call("SH|NB"), "None");
            for guest in (0..3).filter(|guest| *guest != holder) {
                actors[guest].is(&call("EX|NB"), "EAGAIN");
                actors[guest].is(&call("SH|NB"), "None");
                actors[holder].is(&call("EX|NB"), "EAGAIN");
                // flock gives up what it has before it tries for more.
                actors[holder].is(&call("SH|NB"), "None");
                actors[guest].is(&call("UN"), "None");
            }
            actors[holder].is(&call("EX|NB"), "None");
            actors[holder].is(&call("UN"), "None");
        }
    }
    // Ranges beside each other are no matter.
    for (at, actor) in actors.iter_mut().enumerate() {
        actor.is(&format!("range_(f, EX|NB, {at}, 1)"), "None");
    }
    actors[0].is("range_(f, EX|NB, 1, 1)", "EAGAIN");
    assert_eq!(one.status()["locks_held"], 1);
    assert_eq!(host.status()["locks_held"], 2);
    // A second program on the same mount: who holds it is told by number there, and not elsewhere.
    let mut neighbour = Actor::with(&one.path("file"));
    let pid = actors[0].child.id();
    neighbour.is("getlk(f, 0, 1)", &format!("(True, 0, 1, {pid})"));
    actors[1].is("getlk(f, 0, 1)", "(True, 0, 1, 0)");
    actors[1].is("getlk(f, 2, 1)", "(True, 2, 1, 0)");
    actors[1].is("getlk(f, 3, 1)", "None");
    neighbour.is("range_(f, EX|NB, 0, 1)", "EAGAIN");
    actors[0].is("range_(f, UN, 0, 1)", "None");
    neighbour.is("range_(f, EX|NB, 0, 1)", "None");
}

#[test]
fn closing_and_dying_give_back_what_was_held() {
    let (_world, host, one, other) = stage("");
    let mut guest = Actor::with(&other.path("file"));
    let path = one.path("file");
    // A process loses its fcntl locks with any descriptor of the file, and flock's with the last of that open.
    let mut holder = Actor::with(&path);
    holder.is("range_(f, EX, 0, 1)", "None");
    guest.is("range_(f, EX|NB, 0, 1)", "EAGAIN");
    holder.is(&format!("os.close(op('{}'))", path.display()), "None");
    guest.is("range_(f, EX|NB, 0, 1)", "None");
    guest.is("range_(f, UN, 0, 1)", "None");
    holder.is("fl(f, EX)", "None");
    holder.is(&format!("os.close(op('{}'))", path.display()), "None");
    holder.is("globals().update(g=os.dup(f))", "None");
    holder.is("os.close(f)", "None");
    guest.is("fl(f, EX|NB)", "EAGAIN");
    holder.is("os.close(g)", "None");
    guest.is("fl(f, EX)", "None");
    guest.is("fl(f, UN)", "None");
    // Locks of an open file.
    holder.opens(&path);
    holder.is("ofd(f, F_WRLCK, 5, 1)", "None");
    holder.is(&format!("os.close(op('{}'))", path.display()), "None");
    guest.is("range_(f, EX|NB, 5, 1)", "EAGAIN");
    holder.is("os.close(f)", "None");
    guest.is("range_(f, EX, 5, 1)", "None");
    guest.is("range_(f, UN, 5, 1)", "None");
    // Whoever dies.
    for lock in ["fl(f, EX)", "range_(f, EX)", "range_(f, EX, 7, 3)", "ofd(f, F_WRLCK, 0, 0)"] {
        let mut holder = Actor::with(&path);
        holder.is(lock, "None");
        guest.is("range_(f, EX|NB, 8, 1)", "EAGAIN");
        holder.kill();
        guest.is("range_(f, EX)", "None");
        guest.is("range_(f, UN)", "None");
    }
    // An unmount.
    let mut holder = Actor::with(&path);
    holder.is("fl(f, EX)", "None");
    assert_eq!(host.status()["locks_held"], 1);
    assert!(run("umount", &["-l", one.point.to_str().unwrap()]).status.success());
    guest.is("fl(f, EX|NB)", "EAGAIN");
    holder.kill();
    guest.is("fl(f, EX)", "None");
}

#[test]
fn who_waits_gets_it_and_a_signal_ends_the_wait() {
    let (world, _host, one, other) = stage("");
    let mut actors = actors(&world, &one, &other);
    for how in ["fl(f, {})", "range_(f, {})", "range_(f, {}, 100, 10)"] {
        let call = |kind: &str| how.replace("{}", kind);
        for (holder, waiter) in [(0, 1), (2, 0), (1, 2)] {
            actors[holder].is(&call("EX"), "None");
            actors[waiter].begin(&call("EX"));
            actors[waiter].waits();
            actors[holder].is(&call("UN"), "None");
            assert_eq!(actors[waiter].answer(), "None");
            actors[waiter].is(&call("UN"), "None");
        }
    }
    let [one, other, _] = &mut actors;
    other.is("range_(f, EX)", "None");
    for call in ["fl(f, EX)", "range_(f, EX)"] {
        one.begin(call);
        one.waits();
        one.signal("-USR1");
        // Without the signal it would wait until somebody gives the lock back.
        assert_eq!(one.answer(), "EINTR");
    }
    one.begin("range_(f, EX, 0, 1)");
    one.waits();
    one.signal("-KILL");
    wait_until("it has ended", || one.child.try_wait().unwrap().is_some());
    // Nobody holds what nobody waits for.
    other.is("range_(f, UN)", "None");
    let mut third = Actor::with(&world.source().join("file"));
    wait_until("all is free", || {
        third.begin("range_(f, EX|NB)");
        third.answer() == "None"
    });
}

#[test]
fn a_wait_goes_on_over_a_cut_and_can_be_ended_during_one() {
    for transport in ["tcp", "quic"] {
        let world = World::new();
        fs::write(world.source().join("file"), "0").unwrap();
        let host = world.host();
        let relay = Relay::start(host.listening);
        let mount = world.mount(&host.ticket_for(relay.address()), &format!("transport={transport}"));
        let mut waiter = Actor::with(&mount.path("file"));
        let mut local = Actor::with(&world.source().join("file"));
        let mut quitter = Actor::with(&mount.path("file"));
        local.is("range_(f, EX)", "None");
        waiter.begin("range_(f, EX, 0, 5)");
        quitter.begin("range_(f, EX, 7, 1)");
        waiter.waits();
        relay.cut();
        waiter.waits();
        quitter.signal("-USR1");
        assert_eq!(quitter.answer(), "EINTR");
        local.is("range_(f, UN)", "None");
        std::thread::sleep(Duration::from_secs(3));
        waiter.waits();
        relay.mend();
        assert_eq!(waiter.answer(), "None");
        local.is("range_(f, EX|NB, 0, 1)", "EAGAIN");
        wait_until("what was given up is free", || {
            local.begin("range_(f, EX|NB, 7, 1)");
            local.answer() == "None"
        });
        local.is("range_(f, UN, 7, 1)", "None");
        // What is given back while the host is away is given back in the end.
        relay.cut();
        waiter.begin("range_(f, UN)");
        waiter.waits();
        relay.mend();
        assert_eq!(waiter.answer(), "None");
        local.is("range_(f, EX|NB)", "None");
        assert_eq!(mount.status()["locks_held"], 0);
    }
}

#[test]
fn a_host_that_restarts_has_lost_the_locks_and_who_held_them_hears_of_it() {
    let (world, mut host, one, other) = stage("");
    let listen = host.listening.to_string();
    let mut holder = Actor::with(&one.path("file"));
    let mut bystander = Actor::with(&one.path("file"));
    let mut guest = Actor::with(&other.path("file"));
    holder.is("fl(f, EX)", "None");
    holder.is("os.pwrite(f, b'12', 0)", "2");
    guest.begin("range_(f, EX, 0, 1)");
    guest.waits();
    host.kill();
    let host = world.host_on(&listen, &[]);
    assert_eq!(guest.answer(), "None", "a wait goes on");
    wait_until("the mount has noticed", || one.status()["locks_lost"] == 1);
    for call in ["os.pwrite(f, b'3', 0)", "os.pread(f, 1, 0)", "fl(f, EX|NB)", "range_(f, SH|NB, 9, 1)"] {
        holder.is(call, "ESTALE");
    }
    bystander.is("os.pread(f, 2, 0)", "b'12'");
    guest.is("range_(f, UN)", "None");
    holder.is("fl(f, UN)", "None");
    holder.is("os.close(f)", "None");
    holder.opens(&one.path("file"));
    holder.is("fl(f, EX|NB)", "None");
    holder.is("os.pwrite(f, b'3', 0)", "1");
    assert_eq!(
        (one.status()["locks_held"].as_u64(), other.status()["locks_lost"].as_u64()),
        (Some(1), Some(0))
    );
    assert_eq!(host.status()["locks_held"], 1);
}

#[test]
fn what_a_mount_that_was_killed_held_is_free_when_its_session_ends() {
    let (_world, host, one, other) = stage("");
    let mut holder = Actor::with(&one.path("file"));
    let mut guest = Actor::with(&other.path("file"));
    holder.is("fl(f, EX)", "None");
    guest.is("fl(f, EX|NB)", "EAGAIN");
    let daemon = one.daemon().unwrap();
    assert!(run("kill", &["-KILL", &daemon.to_string()]).status.success());
    let killed = Instant::now();
    guest.is("fl(f, EX|NB)", "EAGAIN");
    guest.begin("fl(f, EX)");
    let answer = guest.answers.recv_timeout(Duration::from_secs(150)).expect("the session ends after 90 s");
    assert_eq!(answer, "None");
    assert!(killed.elapsed() > Duration::from_secs(85), "{:?}", killed.elapsed());
    assert_eq!(host.status()["locks_held"], 1);
}

#[test]
fn locks_stay_on_the_machine_where_asked() {
    for (options, flock_is_local, fcntl_is_local) in [
        ("nolock", true, true),
        ("local_lock=all", true, true),
        ("local_lock=flock", true, false),
        ("local_lock=posix", false, true),
        ("ro,nolock", true, true),
    ] {
        let (world, _host, one, other) = stage(options);
        let paths = [one.path("file"), one.path("file"), other.path("file"), world.source().join("file")];
        let mut actors = paths.map(|path| {
            let mut actor = Actor::new();
            actor.is(&format!("globals().update(f=op('{}', os.O_RDONLY))", path.display()), "None");
            actor
        });
        let outcome = |is_local: bool| if is_local { "None" } else { "EAGAIN" };
        actors[0].is("fl(f, EX)", "None");
        actors[1].is("fl(f, EX|NB)", "EAGAIN");
        actors[2].is("fl(f, EX|NB)", outcome(flock_is_local));
        actors[2].is("fl(f, UN)", "None");
        actors[3].is("fl(f, EX|NB)", outcome(flock_is_local));
        actors[3].is("fl(f, UN)", "None");
        actors[0].is("fl(f, UN)", "None");
        if options.starts_with("ro") {
            continue;
        }
        let mut writers =
            [one.path("file"), one.path("file"), other.path("file")].map(|path| Actor::with(&path));
        writers[0].is("range_(f, EX)", "None");
        writers[1].is("range_(f, EX|NB)", "EAGAIN");
        writers[2].is("range_(f, EX|NB)", outcome(fcntl_is_local));
        // The two kinds know nothing of each other where it is known which is meant.
        writers[1].is("fl(f, EX|NB)", "None");
    }
}

#[test]
fn who_may_only_read_takes_shared_locks() {
    let world = World::new();
    fs::write(world.source().join("file"), "0").unwrap();
    let reader = |path: &Path| {
        let mut actor = Actor::new();
        actor.is(&format!("globals().update(f=op('{}', os.O_RDONLY))", path.display()), "None");
        actor
    };
    for (arguments, options, exclusive) in
        [(&[] as &[&str], "ro", "None"), (&["--read-only"], "", "EROFS"), (&[], "rw", "None")]
    {
        let host = world.host_on("127.0.0.1:0", arguments);
        let mount = world.mount(&host.ticket, options);
        let mut local = Actor::with(&world.source().join("file"));
        let mut guest = reader(&mount.path("file"));
        for call in ["fl(f, {})", "range_(f, {})", "range_(f, {}, 3, 1)"] {
            let call = |kind: &str| call.replace("{}", kind);
            guest.is(&call("SH"), "None");
            local.is(&call("EX|NB"), "EAGAIN");
            local.is(&call("SH|NB"), "None");
            guest.is(&call("UN"), "None");
            local.is(&call("EX|NB"), "None");
            guest.is(&call("SH|NB"), "EAGAIN");
            local.is(&call("UN"), "None");
        }
        guest.is("fl(f, EX|NB)", exclusive);
        // Who locks in both ways does not stand in his own.
        guest.is("range_(f, SH|NB)", "None");
        guest.is("fl(f, UN)", "None");
        // What is closed is free, also on a mount that changes nothing.
        guest.is("range_(f, SH, 0, 1)", "None");
        guest.is("os.close(f)", "None");
        local.is("range_(f, EX)", "None");
        drop(guest);
        mount.umount();
    }
}

#[test]
fn what_the_kernel_has_kept_of_a_file_is_dropped_when_it_is_locked() {
    let world = World::new();
    fs::write(world.source().join("file"), "before").unwrap();
    // Files that have lain still are read through the kernel's page cache.
    std::thread::sleep(Duration::from_millis(2_500));
    let host = world.host();
    let mount = world.mount(&host.ticket, "actimeo=600");
    let mut reader = Actor::new();
    reader.is(&format!("globals().update(f=op('{}', os.O_RDONLY))", mount.path("file").display()), "None");
    reader.is("globals().update(m=__import__('mmap').mmap(f, 6, prot=1))", "None");
    reader.is("m[:6], os.pread(f, 9, 0)", "(b'before', b'before')");
    let mut writer = Actor::with(&world.source().join("file"));
    writer.is("range_(f, EX)", "None");
    // Linux tells no watcher of a change through a mapping, so no lease ends.
    writer.is("globals().update(m=__import__('mmap').mmap(f, 6))", "None");
    writer.is("m.__setitem__(slice(0, 6), b'behind')", "None");
    reader.is("m[:6], os.pread(f, 9, 0)", "(b'before', b'before')");
    reader.begin("range_(f, SH)");
    reader.waits();
    writer.is("range_(f, UN)", "None");
    assert_eq!(reader.answer(), "None");
    reader.is("m[:6], os.pread(f, 20, 0), os.fstat(f).st_size", "(b'behind', b'behind', 6)");
}

/// Adds one to the number in the file, so often, under a lock.
const COUNT: &str = r"
import fcntl, os, sys
how, path, times = sys.argv[1], sys.argv[2], int(sys.argv[3])
f = os.open(path, os.O_RDWR)
for _ in range(times):
    lock = fcntl.flock if how == 'flock' else fcntl.lockf
    lock(f, fcntl.LOCK_EX)
    n = int(os.pread(f, 20, 0)) + 1
    os.pwrite(f, b'%d' % n, 0)
    assert os.fstat(f).st_size == len(str(n)), 'the size is that of the last'
    lock(f, fcntl.LOCK_UN)
";

#[test]
fn no_increment_is_lost_between_mounts_and_the_host() {
    let (world, _host, one, other) = stage("");
    for how in ["flock", "lockf"] {
        fs::write(world.source().join("file"), "0").unwrap();
        let count = |path: &Path| {
            let path = path.to_str().unwrap();
            Command::new("python3")
                .args(["-c", COUNT, how, path, "100"])
                .stdin(Stdio::null())
                .spawn()
                .unwrap()
        };
        let counters = [one.path("file"), one.path("file"), other.path("file"), world.source().join("file")];
        for mut child in counters.map(|path| count(&path)) {
            assert!(child.wait().unwrap().success());
        }
        assert_eq!(fs::read_to_string(world.source().join("file")).unwrap(), "400", "{how}");
    }
}

/// Adds one to a row, so often, each in a transaction.
const TRANSACTIONS: &str = r"
import sqlite3, sys
d = sqlite3.connect(sys.argv[1], timeout=120, isolation_level=None)
for _ in range(int(sys.argv[2])):
    d.execute('begin immediate')
    n = d.execute('select n from t').fetchone()[0]
    d.execute('update t set n = ?', (n + 1,))
    d.execute('insert into log values (?)', (n + 1,))
    d.execute('commit')
";

#[test]
fn sqlite_counts_right_on_two_mounts_and_the_host() {
    let (world, _host, one, other) = stage("");
    let script = |script: &str, path: &Path, more: &str| {
        let path = path.to_str().unwrap();
        Command::new("python3").args(["-c", script, path, more]).stdin(Stdio::null()).spawn().unwrap()
    };
    let make = "import sqlite3,sys\nd=sqlite3.connect(sys.argv[1])\nd.execute('pragma journal_mode=delete')\n\
                d.execute('create table t(n)')\nd.execute('create table log(n)')\n\
                d.execute('insert into t values(0)')\nd.commit()\n";
    assert!(script(make, &one.path("db"), "").wait().unwrap().success());
    let places = [one.path("db"), other.path("db"), world.source().join("db")];
    for mut child in places.clone().map(|path| script(TRANSACTIONS, &path, "40")) {
        assert!(child.wait().unwrap().success());
    }
    let check = "import sqlite3,sys\nd=sqlite3.connect(sys.argv[1])\n\
                 assert d.execute('select n from t').fetchone() == (120,)\n\
                 assert d.execute('select count(distinct n), max(n) from log').fetchone() == (120, 120)\n\
                 assert d.execute('pragma integrity_check').fetchone() == ('ok',)\n";
    for path in &places {
        assert!(script(check, path, "").wait().unwrap().success(), "{}", path.display());
    }
}
