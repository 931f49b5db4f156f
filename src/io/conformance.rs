//! Conformance suite of the disk engines, run over each backend.

use std::fs::{self, File};
use std::future::Future;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use proptest::prelude::*;

use super::denied::{Denial, start_denied};
use super::{Engine, EngineConfig, EngineKind, IoError, SMALL_READ_BYTES};

const BUFFER_BYTES: usize = 256 * 1024;
/// Size of a pool with four large buffers and four small ones.
const TINY_POOL_BYTES: usize = 4 * BUFFER_BYTES + 4 * SMALL_READ_BYTES;
/// Deadline of a test. No test takes long unless it hangs.
const DEADLINE: Duration = Duration::from_secs(120);

#[derive(Debug, Clone, Copy)]
enum Flavour {
    Uring,
    UringTwoRings,
    UringUnregistered,
    Blocking,
    /// The configuration of a host: the caller reads from the page cache, `io_uring` does the rest.
    Resident,
}

impl Flavour {
    /// Returns `None` if the environment excuses the lack of `io_uring`.
    fn start(self, pool_bytes: usize) -> Option<Engine> {
        let kind = if matches!(self, Self::Blocking) { EngineKind::Blocking } else { EngineKind::Uring };
        let reads_resident = matches!(self, Self::Resident);
        let config = EngineConfig { kind, pool_bytes, reads_resident, ..EngineConfig::default() };
        let started = match self {
            Self::Uring | Self::Blocking | Self::Resident => Engine::start(&config),
            Self::UringTwoRings => Engine::start(&EngineConfig { rings: 2, ring_depth: 3, ..config }),
            Self::UringUnregistered => start_denied(Denial::BUFFERS, config),
        };
        match started {
            Err(IoError::Unavailable { backend: "io_uring", .. })
                if std::env::var_os("WORMHOLE_TEST_NO_URING").is_some() =>
            {
                None
            }
            started => {
                Some(started.expect(
                    "these tests need io_uring: allow it, or set WORMHOLE_TEST_NO_URING=1 to skip them",
                ))
            }
        }
    }
}

macro_rules! suite {
    ($module:ident, $flavour:expr) => {
        mod $module {
            use super::*;

            macro_rules! check {
                ($name:ident, $pool_bytes:expr) => {
                    #[test]
                    fn $name() {
                        if let Some(engine) = $flavour.start($pool_bytes) {
                            run(super::$name(engine));
                        }
                    }
                };
            }

            // All answers of one round are held at once. In a smaller pool they would wait for each other.
            check!(random_reads_give_the_bytes_of_the_file, 16 << 20);
            check!(the_end_of_a_file_cuts_reads, 4 << 20);
            check!(offsets_beyond_4_gib, 4 << 20);
            check!(files_with_short_reads, 4 << 20);
            check!(errors_have_numbers, 4 << 20);
            check!(futures_dropped_in_flight_lose_no_buffer, TINY_POOL_BYTES);
            check!(many_readers_share_four_buffers, TINY_POOL_BYTES);
            check!(kept_bytes_do_not_change, TINY_POOL_BYTES);
            check!(writes_are_read_back, TINY_POOL_BYTES);
            check!(files_opened_for_direct_io, TINY_POOL_BYTES);
            check!(counters_count, TINY_POOL_BYTES);
            check!(bytes_outlive_the_engine, TINY_POOL_BYTES);
        }
    };
}

suite!(uring, Flavour::Uring);
suite!(uring_two_rings, Flavour::UringTwoRings);
suite!(uring_unregistered, Flavour::UringUnregistered);
suite!(blocking, Flavour::Blocking);
suite!(resident, Flavour::Resident);

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(DEADLINE, test).await.expect("the engine hangs") });
}

/// Returns bytes that differ at every offset of interest.
fn pattern(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

fn file_of(bytes: &[u8]) -> Arc<File> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Arc::new(file)
}

fn part(content: &[u8], offset: u64, len: usize) -> &[u8] {
    let start = content.len().min(offset as usize);
    &content[start..content.len().min(start + len)]
}

/// Polls a future once, then drops it.
async fn poll_once<T>(future: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        value = future => Some(value),
        () = std::future::ready(()) => None,
    }
}

async fn all_buffers_are_back(engine: &Engine) {
    while engine.stats().pool_free < engine.stats().pool_buffers || engine.stats().in_flight > 0 {
        tokio::task::yield_now().await;
    }
}

async fn random_reads_give_the_bytes_of_the_file(engine: Engine) {
    const SIZE: usize = 3 * 1024 * 1024 + 777;
    let content = pattern(SIZE);
    let file = file_of(&content);
    let check = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let reads = prop::collection::vec((0..SIZE as u64 + 100_000, 0..=BUFFER_BYTES), 1..40);
        proptest!(ProptestConfig::with_cases(64), |(reads in reads)| {
            let answers = runtime.block_on(async {
                let mut tasks = tokio::task::JoinSet::new();
                for (offset, len) in reads {
                    let (engine, file) = (engine.clone(), Arc::clone(&file));
                    tasks.spawn(async move { (offset, len, engine.read(file, offset, len).await) });
                }
                tasks.join_all().await
            });
            for (offset, len, answer) in answers {
                prop_assert!(answer.unwrap() == part(&content, offset, len), "{len} bytes at {offset}");
            }
        });
    };
    tokio::task::spawn_blocking(check).await.unwrap();
}

async fn the_end_of_a_file_cuts_reads(engine: Engine) {
    let empty = file_of(b"");
    assert_eq!(engine.read(Arc::clone(&empty), 0, 4096).await.unwrap(), "");
    assert_eq!(engine.read(empty, 1 << 40, BUFFER_BYTES).await.unwrap(), "");
    let content = pattern(BUFFER_BYTES + 5);
    let file = file_of(&content);
    for (offset, len) in
        [(0, 0), (0, 1), (1, BUFFER_BYTES), (BUFFER_BYTES, BUFFER_BYTES), (BUFFER_BYTES + 4, 9)]
    {
        let offset = offset as u64;
        let got = engine.read(Arc::clone(&file), offset, len).await.unwrap();
        assert!(got == part(&content, offset, len), "{len} bytes at {offset}");
    }
    for beyond in [content.len() as u64, content.len() as u64 + 1, i64::MAX as u64 - 4096] {
        assert_eq!(engine.read(Arc::clone(&file), beyond, 4096).await.unwrap(), "");
    }
}

async fn offsets_beyond_4_gib(engine: Engine) {
    let file = tempfile::tempfile().unwrap();
    let far = (5 << 30) + 123;
    file.write_all_at(b"here", far).unwrap();
    file.set_len(far + 100_000).unwrap();
    let file = Arc::new(file);
    assert_eq!(engine.read(Arc::clone(&file), far, 4).await.unwrap(), "here");
    assert_eq!(engine.read(Arc::clone(&file), far - 2, 8).await.unwrap(), &b"\0\0here\0\0"[..]);
    assert_eq!(engine.read(Arc::clone(&file), far + 99_999, 4096).await.unwrap(), "\0");
    let written = (9 << 30) + 1;
    engine.write(Arc::clone(&file), written, Bytes::from_static(b"there")).await.unwrap();
    assert_eq!(engine.read(Arc::clone(&file), written, 100).await.unwrap(), "there");
    assert_eq!(file.metadata().unwrap().len(), written + 5);
}

async fn files_with_short_reads(engine: Engine) {
    // The kernel returns its symbol list in pieces of some 4 KiB, and this file does not support
    // asynchronous reads.
    let path = "/proc/kallsyms";
    let content = fs::read(path).unwrap();
    let file = Arc::new(File::open(path).unwrap());
    for offset in [0, 5000] {
        let got = engine.read(Arc::clone(&file), offset, BUFFER_BYTES).await.unwrap();
        assert!(got == part(&content, offset, BUFFER_BYTES), "at {offset}");
    }
    assert!(content.len() < 2 * BUFFER_BYTES || engine.stats().short_reads > 10, "{:?}", engine.stats());
}

async fn errors_have_numbers(engine: Engine) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let write_only = Arc::new(File::create(&path).unwrap());
    let read_only = Arc::new(File::open(&path).unwrap());
    let folder = Arc::new(File::open(dir.path()).unwrap());
    let errno = |answer: Result<Bytes, IoError>| answer.unwrap_err().errno();
    assert_eq!(errno(engine.read(Arc::clone(&write_only), 0, 4096).await), Errno::EBADF);
    assert_eq!(errno(engine.read(folder, 0, BUFFER_BYTES).await), Errno::EISDIR);
    assert_eq!(errno(engine.read(Arc::clone(&read_only), u64::MAX, 1).await), Errno::EINVAL);
    assert_eq!(errno(engine.read(Arc::clone(&read_only), i64::MAX as u64, 1).await), Errno::EINVAL);
    assert_eq!(engine.write(read_only, 0, Bytes::from_static(b"x")).await.unwrap_err().errno(), Errno::EBADF);
    let full = Arc::new(File::options().write(true).open("/dev/full").unwrap());
    assert_eq!(engine.write(full, 0, Bytes::from_static(b"x")).await.unwrap_err().errno(), Errno::ENOSPC);
    let too_long = engine.read(Arc::clone(&write_only), 0, BUFFER_BYTES + 1).await.unwrap_err();
    assert_eq!(too_long, IoError::ReadTooLong { len: BUFFER_BYTES + 1, len_max: BUFFER_BYTES });
    let text = engine.read(write_only, 4096, 10).await.unwrap_err().to_string();
    assert!(text.contains("read of 10 bytes at offset 4096: EBADF"), "{text}");
    all_buffers_are_back(&engine).await;
}

async fn futures_dropped_in_flight_lose_no_buffer(engine: Engine) {
    let content = pattern(4 << 20);
    let file = file_of(&content);
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..8_u64 {
        let (engine, file) = (engine.clone(), Arc::clone(&file));
        tasks.spawn(async move {
            for round in 0..1000 {
                let offset = (number * 1000 + round) * 509 % (4 << 20);
                let len = if round % 3 == 0 { 4096 } else { BUFFER_BYTES };
                let mut read = Box::pin(engine.read(Arc::clone(&file), offset, len));
                for _ in 0..round % 4 {
                    if poll_once(&mut read).await.is_some() {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
                drop(read);
                if round % 50 == 0 {
                    poll_once(engine.write(Arc::clone(&file), 64 << 20, Bytes::from_static(b"far away")))
                        .await;
                }
            }
        });
    }
    tasks.join_all().await;
    all_buffers_are_back(&engine).await;
    let got = engine.read(file, 12_345, BUFFER_BYTES).await.unwrap();
    assert!(got == part(&content, 12_345, BUFFER_BYTES));
}

async fn many_readers_share_four_buffers(engine: Engine) {
    let content = Arc::new(pattern(8 << 20));
    let file = file_of(&content);
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..64_u64 {
        let (engine, file, content) = (engine.clone(), Arc::clone(&file), Arc::clone(&content));
        tasks.spawn(async move {
            for round in 0..20 {
                let offset = (number * 7919 + round * 104_729) % (8 << 20);
                let len = if number % 4 == 0 { 4096 } else { BUFFER_BYTES - round as usize };
                let got = engine.read(Arc::clone(&file), offset, len).await.unwrap();
                assert!(got == part(&content, offset, len), "{len} bytes at {offset}");
            }
        });
    }
    tasks.join_all().await;
    all_buffers_are_back(&engine).await;
}

async fn kept_bytes_do_not_change(engine: Engine) {
    let content = pattern(8 << 20);
    let file = file_of(&content);
    let mut kept = Vec::new();
    for chunk in 0..3 {
        let offset = chunk * BUFFER_BYTES as u64;
        kept.push((offset, engine.read(Arc::clone(&file), offset, BUFFER_BYTES).await.unwrap()));
    }
    let slices: Vec<_> = kept.iter().map(|(offset, bytes)| (offset + 10, bytes.slice(10..2000))).collect();
    assert_eq!(engine.stats().pool_free, engine.stats().pool_buffers - 3);
    for round in 0..200 {
        let offset = 3 * BUFFER_BYTES as u64 + round * 4099;
        let got = engine.read(Arc::clone(&file), offset, BUFFER_BYTES).await.unwrap();
        assert!(got == part(&content, offset, BUFFER_BYTES));
    }
    for (offset, bytes) in kept.into_iter().chain(slices) {
        assert!(bytes == part(&content, offset, bytes.len()), "kept bytes at {offset} changed");
    }
    assert_eq!(engine.stats().pool_free, engine.stats().pool_buffers);
}

async fn writes_are_read_back(engine: Engine) {
    let content = Bytes::from(pattern(5 * BUFFER_BYTES + 99));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let file = Arc::new(File::options().read(true).write(true).create_new(true).open(&path).unwrap());
    engine.write(Arc::clone(&file), 7, Bytes::new()).await.unwrap();
    assert_eq!(file.metadata().unwrap().len(), 0);
    let mut tasks = tokio::task::JoinSet::new();
    for start in (0..content.len()).step_by(70_001) {
        let (engine, file) = (engine.clone(), Arc::clone(&file));
        let bytes = content.slice(start..content.len().min(start + 70_001));
        tasks.spawn(async move { engine.write(file, start as u64, bytes).await.unwrap() });
    }
    tasks.join_all().await;
    assert!(fs::read(&path).unwrap() == content);
    // A single write, larger than a buffer of the pool.
    engine.write(Arc::clone(&file), 1, content.clone()).await.unwrap();
    assert!(fs::read(&path).unwrap()[1..] == content);
    assert_eq!(engine.stats().written_bytes, 2 * content.len() as u64);
    let got = engine.read(file, 1, BUFFER_BYTES).await.unwrap();
    assert!(got == content[..BUFFER_BYTES]);
}

async fn files_opened_for_direct_io(engine: Engine) {
    use std::os::unix::fs::OpenOptionsExt;
    let beside_the_test = std::env::current_exe().unwrap();
    let dir = tempfile::tempdir_in(beside_the_test.parent().unwrap_or(Path::new("."))).unwrap();
    let path = dir.path().join("file");
    let content = pattern(2 * BUFFER_BYTES);
    fs::write(&path, &content).unwrap();
    let opened = File::options().read(true).custom_flags(libc::O_DIRECT).open(&path);
    if opened.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EINVAL)) {
        return; // The file system does not support it.
    }
    let file = Arc::new(opened.unwrap());
    for (offset, len) in [(0, BUFFER_BYTES), (4096, 8192), (BUFFER_BYTES as u64, BUFFER_BYTES)] {
        assert!(engine.read(Arc::clone(&file), offset, len).await.unwrap() == part(&content, offset, len));
    }
}

async fn counters_count(engine: Engine) {
    let content = pattern(BUFFER_BYTES);
    let file = file_of(&content);
    for _ in 0..100 {
        engine.read(Arc::clone(&file), 0, 4096).await.unwrap();
    }
    engine.read(Arc::clone(&file), 4096, BUFFER_BYTES).await.unwrap();
    engine.read(Arc::clone(&file), 0, BUFFER_BYTES).await.unwrap();
    let stats = engine.stats();
    assert_eq!((stats.reads, stats.read_bytes), (102, 100 * 4096 + 2 * BUFFER_BYTES as u64 - 4096));
    assert_eq!((stats.writes, stats.written_bytes, stats.cancelled), (0, 0, 0));
    assert_eq!((stats.pool_buffers, stats.pool_free), (8, 8));
    if stats.resident_reads > 0 {
        // All but the one at the end of the file, which the backend must confirm.
        assert_eq!((stats.resident_reads, stats.short_reads, stats.in_flight), (101, 0, 0));
        assert!(stats.submissions <= 6, "{stats:?}");
        return;
    }
    assert_eq!((stats.short_reads, stats.in_flight, stats.in_flight_max), (1, 0, 1));
    let registered = engine.name() == "io_uring" && engine.fallback_reason().is_none();
    assert_eq!(stats.fixed_reads, if registered { 103 } else { 0 });
    if engine.name() == "io_uring" {
        // One each to start, to sleep and to read. A polling thread would need many more.
        assert!((102..=3 * 104).contains(&stats.submissions), "{stats:?}");
    } else {
        assert_eq!(stats.submissions, 0);
    }
}

#[test]
fn resident_reads_skip_the_queue() {
    let Some(engine) = Flavour::Resident.start(TINY_POOL_BYTES) else { return };
    let content = pattern(8 << 20);
    let fill = |mut file: File| {
        file.write_all(&content).unwrap();
        Arc::new(file)
    };
    if let Ok(file) = tempfile::tempfile_in("/dev/shm") {
        run(async {
            assert!(engine.read(fill(file), 5, 1000).await.unwrap() == content[5..1005]);
            assert_eq!((engine.stats().resident_reads, engine.stats().in_flight_max), (1, 0));
        });
    } else {
        eprintln!("LEFT OUT: a file in memory, which needs a tmpfs at /dev/shm");
    }
    // The file lies beside the test binary, because a tmpfs never drops its pages.
    let file = fill(tempfile::tempfile_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap());
    file.sync_all().unwrap();
    // The middle is far enough from the start that no large page reaches across.
    let dropped = content.len() / 2;
    posix_fadvise(&file, dropped as i64, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    run(async move {
        let before = engine.stats();
        let offset = dropped - BUFFER_BYTES / 2;
        let read = engine.read(file, offset as u64, BUFFER_BYTES).await.unwrap();
        assert!(read == content[offset..offset + BUFFER_BYTES]);
        let stats = engine.stats();
        assert_eq!(
            (stats.reads, stats.read_bytes),
            (before.reads + 1, before.read_bytes + BUFFER_BYTES as u64)
        );
        assert_eq!((stats.resident_reads, stats.in_flight_max), (before.resident_reads, 1));
    });
}

async fn bytes_outlive_the_engine(engine: Engine) {
    let content = pattern(BUFFER_BYTES);
    let bytes = engine.read(file_of(&content), 0, BUFFER_BYTES).await.unwrap();
    drop(engine);
    assert!(bytes == content);
}
