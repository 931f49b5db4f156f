//! Hosts and clients that are killed while programs write, and links that are cut: what an `fsync` has promised is there, every rename is
//! before or after, and nothing is done twice. `WORMHOLE_CRASH_ROUNDS` and `WORMHOLE_CRASH_SEED` make other and longer runs of it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::relay::Relay;
use crate::world::{Host, Mount, World, run, wait_until};

/// Saves one file after the other as programs do that care: beside its place, to the disk, into its place. Says the number of each.
/// A process of its own: whoever starts a program closes a copy of his files with it, and waits for the host.
const WRITER: &str = "
import os, sys
folder = sys.argv[1]
number = 0
while True:
    beside = '%s/%d.new' % (folder, number)
    file = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    content = (b'%d;' % number) * (1 + number * 7919 % 60000)
    for at in range(0, len(content), 10000):
        os.write(file, content[at:at + 10000])
    os.fsync(file)
    os.close(file)
    os.rename(beside, '%s/%d' % (folder, number))
    print(number, flush=True)
    number += 1
";

fn content(number: u64) -> Vec<u8> {
    format!("{number};").into_bytes().repeat(1 + (number as usize * 7919) % 60_000)
}

struct Writer {
    child: Child,
    saved: Arc<AtomicU64>,
    listening: std::thread::JoinHandle<()>,
}

impl Writer {
    fn new(folder: &Path) -> Self {
        let mut command = Command::new("python3");
        command.args(["-c", WRITER, folder.to_str().unwrap()]).stdout(Stdio::piped());
        let mut child = command.stderr(Stdio::null()).spawn().unwrap();
        let saved = Arc::new(AtomicU64::new(0));
        let (lines, count) = (BufReader::new(child.stdout.take().unwrap()).lines(), Arc::clone(&saved));
        let listening = std::thread::spawn(move || {
            for line in lines {
                count.store(line.unwrap().parse::<u64>().unwrap() + 1, Ordering::Relaxed);
            }
        });
        Self { child, saved, listening }
    }

    fn saved(&self) -> u64 {
        self.saved.load(Ordering::Relaxed)
    }

    /// How many files it saved, when it has ended by itself or is ended now.
    fn end(mut self) -> u64 {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.listening.join().unwrap();
        self.saved.load(Ordering::Relaxed)
    }
}

/// Every file up to `saved` is whole, and no name is there that should not be.
fn check(folder: &Path, saved: u64) {
    for number in 0..saved {
        let found = fs::read(folder.join(number.to_string())).unwrap();
        assert!(found == content(number), "file {number} of {saved}: {} bytes", found.len());
        assert!(!folder.join(format!("{number}.new")).exists(), "{number} has two names");
    }
    // At most the one that was under way.
    assert!(fs::read_dir(folder).unwrap().count() as u64 <= saved + 1);
}

fn rounds() -> u64 {
    std::env::var("WORMHOLE_CRASH_ROUNDS").map_or(6, |text| text.parse().expect("a number"))
}

#[test]
fn a_host_that_is_killed_again_and_again_loses_nothing_and_does_nothing_twice() {
    let world = World::new();
    let mut host = world.host();
    let listen = host.listening.to_string();
    let mount = world.mount(&host.ticket, "");
    let writer = Writer::new(&mount.point);
    for round in 0..rounds() {
        std::thread::sleep(Duration::from_millis(140 + round * 61 % 400));
        host.kill();
        host = world.host_on(&listen, &[]);
        let before = writer.saved();
        // It would have ended with the first error.
        wait_until("the writer goes on", || writer.saved() > before);
    }
    let saved = writer.end();
    check(&mount.point, saved);
    check(&world.source(), saved);
}

#[test]
fn what_a_killed_client_had_synced_is_there() {
    let world = World::new();
    let host = world.host();
    for round in 0..rounds() / 2 {
        for entry in fs::read_dir(world.source()).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        let again = format!("port={}", host.listening.port());
        let source = if round == 0 { host.ticket.as_str() } else { "127.0.0.1:/export" };
        let mount = world.mount(source, &again);
        let writer = Writer::new(&mount.point);
        wait_until("something is saved", || writer.saved() > 0);
        std::thread::sleep(Duration::from_millis(round * 97 % 500));
        kill_client(&mount);
        let saved = writer.end();
        check(&world.source(), saved);
        run("umount", &["-l", mount.point.to_str().unwrap()]);
    }
}

fn kill_client(mount: &Mount) {
    let daemon = nix::unistd::Pid::from_raw(mount.daemon().unwrap());
    nix::sys::signal::kill(daemon, nix::sys::signal::Signal::SIGKILL).unwrap();
}

/// Goes on where an earlier one stopped, if it was killed. In each step: numbered records at the end of a log, one file beside its place, to
/// the disk and into its place, one into its place without that, a folder made, moved into, out of, and removed, an old file removed; at
/// last the log to the disk. Says `STEP RECORDS` then: how many of each are safe. Making a folder may fail with EIO where it cannot be told
/// who made it; nothing else may fail.
const SCRIBE: &str = "
import errno, os, sys
folder, step = sys.argv[1] + '/work', int(sys.argv[2])
def make(path):
    try:
        os.mkdir(path)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        print('unsure', flush=True)
        os.path.isdir(path) or os.mkdir(path)
os.path.isdir(folder) or make(folder)
log = os.open(folder + '/log', os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
size = os.fstat(log).st_size
lines = os.pread(log, 8192, max(0, size - 8192)).split(b'\\n')
os.ftruncate(log, size - len(lines[-1]))
record = int(lines[-2][:8]) + 1 if len(lines) > 1 else 0
below = '%s/below%d' % (folder, step)
if os.path.isdir(below):
    os.path.exists(below + '/moved') and os.rename(below + '/moved', '%s/%d' % (folder, step))
    os.rmdir(below)
first = step
def save(name, number, sync):
    file = os.open(folder + '/' + name + '.new', os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    content = (b'%d;' % number) * (1 + number * 7919 % 20000)
    for at in range(0, len(content), 10000):
        os.write(file, content[at:at + 10000])
    sync and os.fsync(file)
    os.close(file)
    os.rename(folder + '/' + name + '.new', folder + '/' + name)
while True:
    for _ in range(12):
        os.write(log, b'%08d' % record + b'x' * (record * 37 % 3000) + b'\\n')
        record += 1
    save('current', step, False)
    save(str(step), step, True)
    below = '%s/below%d' % (folder, step)
    make(below)
    os.rename('%s/%d' % (folder, step), below + '/moved')
    os.rename(below + '/moved', '%s/%d' % (folder, step))
    os.rmdir(below)
    if step >= 40 and (step > first or os.path.exists('%s/%d' % (folder, step - 40))):
        os.unlink('%s/%d' % (folder, step - 40))
    os.fsync(log)
    step += 1
    print(step, record, flush=True)
";

/// How many files are kept.
const KEPT: u64 = 40;

/// What a scribe has said to be safe.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Safe {
    steps: u64,
    records: u64,
}

struct Scribe {
    child: Child,
    errors: PathBuf,
    safe: Arc<Mutex<(Safe, u64)>>,
    listening: std::thread::JoinHandle<()>,
}

impl Scribe {
    /// On the mount at `folder`; what it complains of goes to the file `errors`.
    fn new(folder: &Path, errors: PathBuf, safe: Safe) -> Self {
        let mut command = Command::new("python3");
        command.args(["-c", SCRIBE, folder.to_str().unwrap(), &safe.steps.to_string()]);
        let mut child =
            command.stdout(Stdio::piped()).stderr(fs::File::create(&errors).unwrap()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let safe = Arc::new(Mutex::new((safe, 0)));
        let told = Arc::clone(&safe);
        let listening = std::thread::spawn(move || {
            for line in lines.map(Result::unwrap) {
                let mut told = told.lock().unwrap();
                match line.split_once(' ') {
                    Some((steps, records)) => {
                        told.0 = Safe { steps: steps.parse().unwrap(), records: records.parse().unwrap() };
                    }
                    None => told.1 += 1,
                }
            }
        });
        Self { child, errors, safe, listening }
    }

    /// Waits until it has done a step more, and one that it began after that.
    fn goes_on(&mut self, round: &str) {
        let before = self.safe.lock().unwrap().0.steps;
        wait_until(round, || {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "{round}: {}", fs::read_to_string(&self.errors).unwrap());
            self.safe.lock().unwrap().0.steps > before + 1
        });
    }

    /// What is safe, and how often it could not be told who made a folder; ends it.
    fn end(mut self) -> (Safe, u64) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.listening.join().unwrap();
        *self.safe.lock().unwrap()
    }
}

/// Everything safe is there, once, whole and in order.
fn check_work(folder: &Path, safe: Safe, round: &str) {
    if safe.steps == 0 {
        return;
    }
    let log = fs::read(folder.join("log")).unwrap();
    let mut records = 0;
    // What is behind the last line end was being written as its writer was killed.
    for line in log.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n")) {
        let expected = format!("{records:08}{}\n", "x".repeat(records as usize * 37 % 3000));
        assert!(
            line == expected.as_bytes(),
            "{round}: record {records}: {}",
            String::from_utf8_lossy(&line[..8])
        );
        records += 1;
    }
    assert!(records >= safe.records, "{round}: {records} records of {} that are safe", safe.records);
    let whole = |number: u64| format!("{number};").into_bytes().repeat(1 + (number as usize * 7919) % 20_000);
    for step in safe.steps.saturating_sub(KEPT)..safe.steps {
        // Of the next step the oldest may be gone, or the newest be on its way through a folder.
        match fs::read(folder.join(step.to_string())) {
            Ok(found) => assert!(found == whole(step), "{round}: file {step}: {} bytes", found.len()),
            Err(error) => assert!(step + KEPT == safe.steps, "{round}: file {step}: {error}"),
        }
        assert!(!folder.join(format!("{step}.new")).exists(), "{round}: {step} has two names");
    }
    let current = fs::read(folder.join("current")).unwrap();
    let number = String::from_utf8_lossy(&current).split(';').next().unwrap().parse().unwrap();
    assert!(
        number + 1 >= safe.steps && current == whole(number),
        "{round}: current is {number}, or not whole"
    );
    let names = fs::read_dir(folder).unwrap().count() as u64;
    assert!(names <= KEPT + 7, "{round}: {names} names");
}

struct Chaos {
    world: World,
    host: Host,
    relay: Relay,
    mount: Mount,
    transport: &'static str,
}

impl Chaos {
    fn new(transport: &'static str) -> Self {
        let world = World::new();
        let host = world.host();
        let relay = Relay::start(host.listening);
        let options = format!("transport={transport}");
        let mount = world.mount(&host.ticket_for(relay.address()), &options);
        Self { world, host, relay, mount, transport }
    }

    fn restart_host(&mut self) {
        self.host.kill();
        self.host = self.world.host_on(&self.host.listening.to_string(), &[]);
    }

    fn remount(&mut self) {
        run("umount", &["-l", self.mount.point.to_str().unwrap()]);
        let options = format!("port={},transport={}", self.relay.address().port(), self.transport);
        let old = std::mem::replace(&mut self.mount, self.world.mount("127.0.0.1:/export", &options));
        // Dropped, it would take down what has its place now.
        std::mem::forget(old);
    }
}

/// `splitmix64`.
const fn dice(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let value = (*state ^ (*state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

#[test]
fn cuts_and_kills_of_either_end_or_both_lose_nothing_and_do_nothing_twice() {
    let seed = std::env::var("WORMHOLE_CRASH_SEED").map_or(4, |text| text.parse().expect("a number"));
    for transport in ["quic", "tcp"] {
        rage(transport, seed, rounds() / 2);
    }
}

fn rage(transport: &'static str, seed: u64, rounds: u64) {
    let (mut state, mut chaos) = (seed, Chaos::new(transport));
    let source = chaos.world.source().join("work");
    let mut scribe = Scribe::new(&chaos.mount.point, chaos.world.path("errors"), Safe::default());
    let (mut tally, mut unsure) = ([0; 5], 0);
    for number in 0..rounds {
        let (what, wait) = (dice(&mut state) % 5, Duration::from_millis(dice(&mut state) % 700));
        let pause = Duration::from_millis(100 + dice(&mut state) % 2_000);
        let round = format!("{transport}, round {number}, kind {what}");
        scribe.goes_on(&round);
        std::thread::sleep(wait);
        tally[what as usize] += 1;
        if what < 3 {
            match what {
                0 => {
                    chaos.relay.cut();
                    std::thread::sleep(pause);
                    chaos.relay.mend();
                }
                1 => chaos.restart_host(),
                _ => {
                    chaos.relay.cut();
                    std::thread::sleep(pause / 4);
                    chaos.restart_host();
                    chaos.relay.mend();
                }
            }
            continue;
        }
        if what == 4 {
            chaos.host.kill();
        }
        kill_client(&chaos.mount);
        let (safe, times) = scribe.end();
        unsure += times;
        check_work(&source, safe, &round);
        if what == 4 {
            chaos.restart_host();
        }
        chaos.remount();
        scribe = Scribe::new(&chaos.mount.point, chaos.world.path("errors"), safe);
    }
    scribe.goes_on("the end");
    let (safe, times) = scribe.end();
    chaos.mount.umount();
    check_work(&source, safe, "the end");
    let [cuts, hosts, both_at_once, clients, both] = tally;
    println!(
        "{transport}: {cuts} cuts, {hosts} kills of the host, {both_at_once} of the host during a cut, {clients} of the client, {both} of \
         both; {} steps, {} records; {} times it could not be told who made a folder",
        safe.steps,
        safe.records,
        unsure + times
    );
}
