//! What the parts can do alone, measured in the same run: the disk, the network, the hash, the kernel.
//!
//! The raw transport's ceiling runs in two processes of this same program (`--role`), so that each end can be put in its namespace and
//! its processor time read.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use wormhole::chunk::{CHUNK_BYTES, ChunkHash};
use wormhole::io::AlignedBuffer;
use wormhole::transport::{
    Endpoint, ExpectedHost, Identity, Lane, PublicKey, TransportChoice, TransportKind, TransportTuning,
};

use super::Failure;
use super::net::Net;
use super::process::{Daemon, run, wait_until};

/// Streams of the raw transfer; as many requests as the mount usually has under way.
const STREAMS: u64 = 8;

/// What the cache writes at once when it is busy, in bytes.
const WRITE_BYTES: usize = 4 << 20;

/// What the mount reads at once from its cache, in bytes, and how many of these at a time when the disk is the bottleneck.
const READ_BYTES: usize = 1 << 20;
const READERS: usize = 8;

/// What a part reached.
pub(crate) struct Ceiling {
    /// Throughput.
    pub mb_per_second: f64,
    /// Processor time of all that took part, in seconds per GiB.
    pub cpu_seconds_per_gib: f64,
}

impl Ceiling {
    pub(crate) fn new(bytes: u64, seconds: f64, cpu_seconds: f64) -> Self {
        Self {
            mb_per_second: bytes as f64 / 1e6 / seconds,
            cpu_seconds_per_gib: cpu_seconds * (1u64 << 30) as f64 / bytes as f64,
        }
    }
}

/// `cat` of the file where it lies.
pub(crate) fn raw_disk(file: &Path) -> Result<Ceiling, Failure> {
    let took = run(Command::new("cat").arg(file))?;
    Ok(Ceiling::new(file.metadata()?.len(), took.seconds, took.cpu_seconds))
}

/// BLAKE3 of the file's content in chunks, one core.
pub(crate) fn blake3(bytes: u64) -> Ceiling {
    let chunk = vec![0x5a; CHUNK_BYTES as usize];
    let start = Instant::now();
    for _ in 0..bytes / CHUNK_BYTES {
        std::hint::black_box(ChunkHash::of(&chunk));
    }
    let seconds = start.elapsed().as_secs_f64();
    Ceiling::new(bytes, seconds, seconds)
}

/// Writing as many bytes as the cache does, as it does: in large pieces, around the page cache where the disk takes that.
/// Says which of the two it was.
pub(crate) fn cache_write(folder: &Path, bytes: u64) -> Result<(Ceiling, &'static str), Failure> {
    let path = folder.join("ceiling");
    let mut piece = AlignedBuffer::zeroed(WRITE_BYTES);
    piece.fill(0x5a);
    let (mut file, mut way) = match around_page_cache().write(true).create(true).truncate(true).open(&path) {
        Ok(file) => (file, "around the page cache"),
        Err(_) => (File::create(&path)?, "through the page cache"),
    };
    let cpu_before = own_cpu_seconds();
    let start = Instant::now();
    for number in 0..bytes / WRITE_BYTES as u64 {
        if let Err(error) = file.write_all(&piece) {
            // Some file systems let files be opened so and refuse to write.
            if number > 0 || error.kind() != ErrorKind::InvalidInput {
                return Err(error.into());
            }
            (file, way) = (File::create(&path)?, "through the page cache");
            file.write_all(&piece)?;
        }
    }
    drop(file);
    let ceiling = Ceiling::new(bytes, start.elapsed().as_secs_f64(), own_cpu_seconds() - cpu_before);
    std::fs::remove_file(path)?;
    Ok((ceiling, way))
}

/// Has the kernel write all files of a folder and drop what it keeps of them in memory, as if the machine had been
/// started since: what writing left in the page cache is chance.
pub(crate) fn forget_pages(folder: &Path) -> Result<(), Failure> {
    for entry in std::fs::read_dir(folder)? {
        let file = File::open(entry?.path())?;
        file.sync_all()?;
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    }
    Ok(())
}

/// Reading all files of a folder around the page cache, as many pieces at once as the mount has readers: what the disk
/// gives. `None` where it cannot be read so.
pub(crate) fn disk_read(folder: &Path) -> Result<Option<Ceiling>, Failure> {
    let mut pieces = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let (path, mut at) = (entry?.path(), 0);
        let Ok(file) = around_page_cache().read(true).open(&path) else { return Ok(None) };
        let (file, len) = (Arc::new(file), path.metadata()?.len());
        while at < len {
            pieces.push((Arc::clone(&file), at));
            at += READ_BYTES as u64;
        }
    }
    let mut buffers = AlignedBuffer::zeroed(READERS * READ_BYTES);
    let (bytes, next) = (pieces.len() as u64 * READ_BYTES as u64, AtomicUsize::new(0));
    let cpu_before = own_cpu_seconds();
    let start = Instant::now();
    let reader = |buffer: &mut [u8]| -> std::io::Result<()> {
        while let Some((file, at)) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            std::hint::black_box(file.read_at(buffer, *at)?);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let buffers = buffers.chunks_mut(READ_BYTES);
        let readers: Vec<_> = buffers.map(|buffer| scope.spawn(|| reader(buffer))).collect();
        readers.into_iter().try_for_each(|reader| reader.join().expect("a reader does not panic"))
    })?;
    Ok(Some(Ceiling::new(bytes, start.elapsed().as_secs_f64(), own_cpu_seconds() - cpu_before)))
}

fn around_page_cache() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.custom_flags(libc::O_DIRECT);
    options
}

fn own_cpu_seconds() -> f64 {
    use nix::sys::resource::{UsageWho, getrusage};
    use nix::sys::time::TimeValLike;
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("getrusage takes RUSAGE_SELF");
    (usage.user_time().num_microseconds() + usage.system_time().num_microseconds()) as f64 / 1e6
}

/// `bytes` over the project's own transport with its own tuning, and nothing else.
pub(crate) fn raw(net: &Net, kind: TransportKind, bytes: u64) -> Result<Ceiling, Failure> {
    let program = std::env::current_exe()?;
    let program = program.to_str().ok_or("the program's path is not text")?;
    let mut command = net.host_command(program);
    command.args(["--role", "raw-host", "--address", &net.address, "--transport", kind.name()]);
    let mut host = Daemon::start(command, true)?;
    let mut line = String::new();
    BufReader::new(host.child().stdout.take().ok_or("no standard output")?).read_line(&mut line)?;
    let [address, key] = line.split_whitespace().collect::<Vec<_>>()[..] else {
        return Err(format!("the raw host said {line:?}").into());
    };
    let mut command = net.client_command(program);
    command.args([
        "--role",
        "raw-client",
        "--address",
        address,
        "--transport",
        kind.name(),
        "--key",
        key,
        "--bytes",
        &bytes.to_string(),
    ]);
    let mut client = Daemon::start(command, true)?;
    let mut seconds = String::new();
    client.child().stdout.take().ok_or("no standard output")?.read_to_string(&mut seconds)?;
    // Both are read before the client is reaped: its entry in /proc stays until then.
    let cpu = host.cpu_seconds() + client.cpu_seconds();
    let seconds: f64 = seconds.trim().parse().map_err(|_| format!("the raw client said {seconds:?}"))?;
    Ok(Ceiling::new(bytes, seconds, cpu))
}

/// The process that sends; ends when it is told to.
pub(crate) fn raw_host(address: &str, transport: TransportChoice) -> Result<(), Failure> {
    let runtime = tokio::runtime::Runtime::new()?;
    let tuning = TransportTuning { transport, ..TransportTuning::default() };
    runtime.block_on(async {
        let identity = Identity::generate()?;
        let listen: SocketAddr = format!("{address}:0").parse()?;
        let endpoint = Endpoint::host(listen, &identity, &tuning)?;
        println!("{} {}", endpoint.local_address(), identity.public_key());
        while let Some(incoming) = endpoint.accept().await {
            let connection = incoming.handshake().await?;
            connection.admit();
            while let Ok((mut send, mut receive)) = connection.accept_stream().await {
                tokio::spawn(async move {
                    let mut wanted = [0; 8];
                    receive.read_exact(&mut wanted).await.ok()?;
                    let chunk = Bytes::from(vec![0x5a; CHUNK_BYTES as usize]);
                    for _ in 0..u64::from_le_bytes(wanted) / CHUNK_BYTES {
                        send.write_chunk(chunk.clone()).await.ok()?;
                    }
                    send.finish().ok()
                });
            }
        }
        Ok(())
    })
}

/// The process that receives; prints the seconds it took.
pub(crate) fn raw_client(
    address: &str,
    transport: TransportChoice,
    key: &str,
    bytes: u64,
) -> Result<(), Failure> {
    let runtime = tokio::runtime::Runtime::new()?;
    let tuning = TransportTuning { transport, ..TransportTuning::default() };
    runtime.block_on(async {
        let identity = Identity::generate()?;
        let (address, key): (SocketAddr, PublicKey) = (address.parse()?, key.parse()?);
        let endpoint = Endpoint::client(&identity, &tuning, address)?;
        let connection = endpoint.connect(address, ExpectedHost::Key(key)).await?;
        let start = Instant::now();
        let mut readers = tokio::task::JoinSet::new();
        for _ in 0..STREAMS {
            let (mut send, mut receive) = connection.open_stream(Lane::Demand).await?;
            send.write_all(&(bytes / STREAMS).to_le_bytes()).await?;
            readers.spawn(async move {
                while let Ok(Some(_)) = receive.read_chunk(CHUNK_BYTES as usize).await {}
            });
        }
        readers.join_all().await;
        println!("{}", start.elapsed().as_secs_f64());
        Ok(())
    })
}

/// `cat` of a file that a FUSE daemon of ours makes up from memory: what the kernel and the library allow.
pub(crate) fn fuse_stub(folder: &Path, bytes: u64, is_direct: bool) -> Result<Ceiling, Failure> {
    with_stub(folder, bytes, is_direct, |file| {
        let mut cat = Command::new("cat");
        cat.arg(file);
        cat
    })
}

/// `dd` of `source` into a file system that forgets it, past the page cache.
pub(crate) fn fuse_stub_write(folder: &Path, source: &Path, bytes: u64) -> Result<Ceiling, Failure> {
    with_stub(folder, bytes, true, |file| write_command(source, file, &["conv=notrunc"]))
}

/// `dd` of `source` to where it would be hosted, and `fsync`.
pub(crate) fn raw_write(folder: &Path, source: &Path, bytes: u64) -> Result<Ceiling, Failure> {
    let target = folder.join("written where it lies");
    let took = run(&mut write_command(source, &target, &["conv=fsync"]))?;
    std::fs::remove_file(&target)?;
    Ok(Ceiling::new(bytes, took.seconds, took.cpu_seconds))
}

/// The writer of every measurement.
pub(crate) fn write_command(source: &Path, target: &Path, how: &[&str]) -> Command {
    let mut writer = Command::new("dd");
    writer.arg(format!("if={}", source.display())).arg(format!("of={}", target.display()));
    writer.args(["bs=1M", "status=none"]).args(how);
    writer
}

fn with_stub(
    folder: &Path,
    bytes: u64,
    is_direct: bool,
    user: impl FnOnce(&Path) -> Command,
) -> Result<Ceiling, Failure> {
    let point = folder.join("stub");
    std::fs::create_dir_all(&point)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--role", "stub", "--bytes", &bytes.to_string()]).arg("--data-dir").arg(&point);
    command.args(is_direct.then_some(["--key", "direct"]).iter().flatten());
    let daemon = Daemon::start(command, false)?;
    let file = point.join("zeroes");
    wait_until("the stub is there", || file.exists())?;
    let cpu_before = daemon.cpu_seconds();
    let took = run(&mut user(&file))?;
    let cpu = took.cpu_seconds + daemon.cpu_seconds() - cpu_before;
    drop(daemon);
    Ok(Ceiling::new(bytes, took.seconds, cpu))
}

/// The process behind it; ends when it is told to, and unmounts.
pub(crate) fn stub(folder: &Path, bytes: u64, is_direct: bool) -> Result<(), Failure> {
    let runtime = tokio::runtime::Runtime::new()?;
    let mounted = wormhole::fuse::mount_stub(folder, bytes, is_direct)?;
    runtime.block_on(async {
        let mut end = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        end.recv().await;
        Ok::<_, std::io::Error>(())
    })?;
    drop(mounted);
    Ok(())
}
