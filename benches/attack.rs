//! What attacks on a host cost the others: each `open` of an admitted client, a new mount, the host's memory; alone and under attack.
//!
//! `cargo bench --bench attack` takes the program built with it, `-- PROGRAM...` others, in turns. Hosts, mounts and attackers run on this
//! machine, over loopback; attackers run with `nice` 19. Each `open` asks the
//! host; `stat` does not, of a name that the mount has learnt beside others.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use wormhole::transport::{
    Endpoint, ExpectedHost, Identity, Lane, TransportChoice, TransportKind, TransportTuning,
};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// How long each attack is measured, after it has begun for [`WARM`].
const SPAN: Duration = Duration::from_secs(6);
const WARM: Duration = Duration::from_secs(3);

/// How long the host's memory may take to fall.
const REST: Duration = Duration::from_secs(15);

/// Between two opens of the admitted client.
const PACE: Duration = Duration::from_millis(2);

/// Files in the export, a thousand a folder: more than are opened.
const FOLDERS: usize = 120;
const FILES_EACH: usize = 1_000;

/// What is done to the host. The last one is done by a key through a mount of its own.
const ATTACKS: [(&str, &str); 4] = [
    ("half-open", "1,100 half-open TCP connections"),
    ("silent", "1,100 silent QUIC connections"),
    ("senders", "1,000 strangers who send all they may"),
    ("key", "one key: 60,000 opens, 32 readers, 32 who list"),
];

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [mark, kind, target] = &arguments[..]
        && mark == "attacker"
    {
        return attack(kind, target);
    }
    let own = vec![env!("CARGO_BIN_EXE_wormhole").to_owned()];
    for program in if arguments.is_empty() { own } else { arguments } {
        println!("\n{program}");
        println!("| | `open` p50 | p99 | failed | new mount | memory before, most, after |");
        println!("| --- | ---: | ---: | ---: | ---: | ---: |");
        let mut stage = Stage::new(Path::new(&program))?;
        for (kind, name) in ATTACKS {
            stage.measure("alone, right before", None)?;
            stage.measure(name, Some(kind))?;
        }
    }
    Ok(())
}

/// A host and an admitted client's mount. Taken down when dropped.
struct Stage {
    program: PathBuf,
    folder: tempfile::TempDir,
    host: Child,
    listening: SocketAddr,
    opened: Arc<AtomicU64>,
    mounts: u32,
}

impl Drop for Stage {
    fn drop(&mut self) {
        for number in 0..=self.mounts {
            let point = self.folder.path().join(format!("mnt{number}"));
            let _ = Command::new(&self.program).args(["umount", "-f"]).arg(&point).output();
            let _ = Command::new("umount").arg("-l").arg(&point).output();
        }
        let _ = self.host.kill();
        let _ = self.host.wait();
    }
}

impl Stage {
    fn new(program: &Path) -> Result<Self, Failure> {
        let folder = tempfile::tempdir()?;
        for number in 0..FOLDERS {
            let at = folder.path().join(format!("export/{number}"));
            fs::create_dir_all(&at)?;
            (0..FILES_EACH).try_for_each(|number| fs::write(at.join(number.to_string()), "content"))?;
        }
        let mut host = Command::new(program)
            .args(["host", "--listen", "127.0.0.1:0", "--state-dir"])
            .arg(folder.path().join("state"))
            .arg(format!("export={}", folder.path().join("export").display()))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let out = host.stdout.take().ok_or("the host says nothing")?;
        let mut lines = BufReader::new(out).lines();
        let listening = lines.next().ok_or("the host has ended")??;
        let listening = listening.trim_start_matches("listening: ").parse()?;
        std::thread::spawn(move || lines.for_each(drop));
        let mut stage =
            Self { program: program.to_owned(), folder, host, listening, opened: Arc::default(), mounts: 0 };
        stage.mount()?;
        Ok(stage)
    }

    /// Mounts by a key of its own. Returns the mount point, and how long it took; fails after 60 s.
    fn mount(&mut self) -> Result<(PathBuf, Duration), Failure> {
        self.mounts += 1;
        let path = |name: &str| self.folder.path().join(format!("{name}{}", self.mounts));
        let made = Command::new(&self.program)
            .args(["pair", "new", "export", "--json", "--state-dir"])
            .arg(self.folder.path().join("state"))
            .output()?;
        let made: serde_json::Value = serde_json::from_slice(&made.stdout)?;
        let ticket = made["ticket"].as_str().ok_or("no ticket")?;
        fs::create_dir(path("mnt"))?;
        let begun = Instant::now();
        let mut command = Command::new("timeout");
        command.arg("60").arg(&self.program).args(["mount", "-o", "cache=none", "--state-dir"]);
        command.arg(path("client")).arg(ticket).arg(path("mnt")).stderr(Stdio::null());
        if command.status()?.success() {
            Ok((path("mnt"), begun.elapsed()))
        } else {
            Err("no mount came in within 60 s".into())
        }
    }

    fn measure(&mut self, name: &str, kind: Option<&str>) -> Result<(), Failure> {
        let before = self.memory_mib();
        let attacker = kind.map(|kind| self.attacker(kind)).transpose()?;
        if attacker.is_some() {
            std::thread::sleep(WARM);
        }
        let is_over = Arc::new(AtomicBool::new(false));
        let most = {
            let (is_over, host) = (Arc::clone(&is_over), self.host.id());
            std::thread::spawn(move || {
                let mut most = 0;
                while !is_over.load(Ordering::Relaxed) {
                    most = most.max(memory_mib_of(host));
                    std::thread::sleep(Duration::from_millis(50));
                }
                most
            })
        };
        let opening = self.open_in_turns();
        std::thread::sleep(SPAN / 2);
        let mounted = self.mount();
        let (mut opens, failed) = opening.join().map_err(|_| "the client panicked")?;
        is_over.store(true, Ordering::Relaxed);
        let most = most.join().map_err(|_| "memory cannot be read")?;
        if let Some(mut attacker) = attacker {
            attacker.kill()?;
            attacker.wait()?;
            std::thread::sleep(REST);
        }
        let after = self.memory_mib();
        let mounted = mounted.map_or_else(|_| "none in 60 s".to_owned(), |(_, took)| shown(took));
        println!(
            "| {name} | {} | {} | {failed} of {} | {mounted} | {before}, {most}, {after} MiB |",
            shown(percentile(&mut opens, 50)),
            shown(percentile(&mut opens, 99)),
            opens.len() + failed,
        );
        Ok(())
    }

    /// The admitted client, for [`SPAN`]: times of `open`, and how many failed.
    fn open_in_turns(&self) -> std::thread::JoinHandle<(Vec<Duration>, usize)> {
        let (point, opened) = (self.folder.path().join("mnt1"), Arc::clone(&self.opened));
        std::thread::spawn(move || {
            let (mut times, mut failed, begun) = (Vec::new(), 0, Instant::now());
            while begun.elapsed() < SPAN {
                let number = opened.fetch_add(1, Ordering::Relaxed) as usize;
                let file = point.join(format!("{}/{}", number % FOLDERS, number / FOLDERS));
                let start = Instant::now();
                if File::open(&file).is_ok() {
                    times.push(start.elapsed());
                } else {
                    failed += 1;
                }
                std::thread::sleep(PACE);
            }
            (times, failed)
        })
    }

    fn attacker(&mut self, kind: &str) -> Result<Child, Failure> {
        let target =
            if kind == "key" { self.mount()?.0.display().to_string() } else { self.listening.to_string() };
        let own = std::env::current_exe()?;
        Ok(Command::new("nice").args(["-n", "19"]).arg(own).args(["attacker", kind, &target]).spawn()?)
    }

    fn memory_mib(&self) -> u64 {
        memory_mib_of(self.host.id())
    }
}

fn memory_mib_of(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or_default() / 1024
}

fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    times.get((times.len() * percent / 100).min(times.len().saturating_sub(1))).copied().unwrap_or_default()
}

fn shown(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1e3;
    if ms < 100.0 { format!("{ms:.2} ms") } else { format!("{ms:.0} ms") }
}

/// The life of an attacker, until it is killed.
fn attack(kind: &str, target: &str) -> Result<(), Failure> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    match kind {
        "half-open" => half_open(target.parse()?),
        "key" => {
            use_mount(Path::new(target));
            Ok(())
        }
        _ => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            let sends = kind == "senders";
            runtime.block_on(strangers(target.parse()?, if sends { 1_000 } else { 1_100 }, sends));
            Ok(())
        }
    }
}

/// Connections that say the beginning of a handshake, each made anew when the host has closed it.
fn half_open(host: SocketAddr) -> Result<(), Failure> {
    let mut held: Vec<TcpStream> = Vec::new();
    loop {
        held.retain_mut(|stream| {
            matches!(stream.read(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
        });
        while held.len() < 1_100 {
            let Ok(mut stream) = TcpStream::connect_timeout(&host, Duration::from_secs(1)) else { break };
            let _ = stream.write_all(b"\x16\x03\x01\x02\x00\x01");
            stream.set_nonblocking(true)?;
            held.push(stream);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Connections of keys that nobody knows, made anew when they end: silent ones, or such as send all that is taken.
async fn strangers(host: SocketAddr, count: usize, sends: bool) {
    let mut all = tokio::task::JoinSet::new();
    for number in 0..count {
        all.spawn(async move {
            let kind = if sends && number % 2 == 0 { TransportKind::Tcp } else { TransportKind::Quic };
            loop {
                // One that was refused does not come again at once.
                let _ = stranger(host, kind, sends).await;
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        });
    }
    while all.join_next().await.is_some() {}
}

async fn stranger(host: SocketAddr, kind: TransportKind, sends: bool) -> Result<(), Failure> {
    let tuning = TransportTuning { transport: TransportChoice::Only(kind), ..TransportTuning::default() };
    let endpoint = Endpoint::client(&Identity::generate()?, &tuning, host)?;
    let connection = endpoint.connect(host, ExpectedHost::Any).await?;
    let mut sending = tokio::task::JoinSet::new();
    for _ in 0..if sends { 4 } else { 0 } {
        let connection = connection.clone();
        sending.spawn(async move {
            let Ok((mut send, _receive)) = connection.open_stream(Lane::Metadata).await else { return };
            let bytes = vec![0x5a; 64 << 10];
            while send.write_all(&bytes).await.is_ok() {}
        });
    }
    connection.closed().await;
    Ok(())
}

/// Opens what it can, reads and lists, by many threads.
fn use_mount(point: &Path) {
    let path = |number: usize| point.join(format!("{}/{}", number % FOLDERS, number / FOLDERS % FILES_EACH));
    std::thread::scope(|scope| {
        for thread in 0..64 {
            scope.spawn(move || {
                for number in (thread..).step_by(64) {
                    if thread % 2 == 0 {
                        let _ = fs::read(path(number));
                    } else {
                        let _ = fs::read_dir(point.join((number % FOLDERS).to_string())).map(Iterator::count);
                    }
                }
            });
        }
        let mut held = Vec::new();
        for number in 0..60_000 {
            held.extend(File::open(path(number)));
        }
        std::thread::sleep(Duration::from_secs(600));
    });
}
