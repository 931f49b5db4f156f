//! Reading what is in the page cache: the engines beside a plain `pread` loop.
//!
//! The file is in memory, so this measures what an engine adds to a copy: queues, wake-ups, system calls. After each
//! engine a line says how many calls of `io_uring_enter` one read took. `resident` is what hosts do: whoever asks copies
//! what is in memory, and the engine is left alone.

use std::fs::File;
use std::hint::black_box;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use criterion::{
    BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime,
};
use nix::sys::resource::{UsageWho, getrusage};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use wormhole::io::{Engine, EngineConfig, EngineKind};

const FILE_BYTES: u64 = 1 << 30;
const SMALL_READS: u64 = 65_536;

/// Offsets and length of reads.
#[derive(Clone, Copy)]
struct Pattern {
    count: u64,
    len: usize,
    /// Distance from one read to the next, in reads; odd, so that every place is visited.
    stride: u64,
}

const SEQUENTIAL: Pattern = Pattern { count: FILE_BYTES / (256 << 10), len: 256 << 10, stride: 1 };
const RANDOM: Pattern = Pattern { count: SMALL_READS, len: 4096, stride: 40_503 };

impl Pattern {
    fn offset(self, number: u64) -> u64 {
        number * self.stride * self.len as u64 % FILE_BYTES
    }
}

/// Reads all of the pattern with `depth` reads in flight, each of which looks at one byte a page.
async fn read_all(engine: &Engine, file: &Arc<File>, pattern: Pattern, depth: u64) {
    let mut tasks = JoinSet::new();
    for lane in 0..depth {
        let (engine, file) = (engine.clone(), Arc::clone(file));
        tasks.spawn(async move {
            for number in (lane..pattern.count).step_by(depth as usize) {
                let bytes =
                    engine.read(Arc::clone(&file), pattern.offset(number), pattern.len).await.expect("read");
                assert_eq!(bytes.len(), pattern.len);
                black_box(bytes.iter().step_by(4096).fold(0_u8, |sum, byte| sum ^ byte));
            }
        });
    }
    tasks.join_all().await;
}

/// Runs `work`, then says how many CPU seconds the process used for each GiB: on a busy machine a steadier figure than
/// the time on the clock.
fn metered(name: &str, pattern: Pattern, work: impl FnOnce(&mut u64)) {
    let before = cpu_seconds();
    let mut rounds = 0;
    work(&mut rounds);
    let bytes = rounds as f64 * pattern.count as f64 * pattern.len as f64;
    if rounds == 0 {
        return; // The filter of the command line left it out.
    }
    println!("{name}: {:.3} CPU seconds per GiB", (cpu_seconds() - before) / (bytes / f64::from(1 << 30)));
}

fn cpu_seconds() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("one's own usage");
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    seconds(usage.user_time()) + seconds(usage.system_time())
}

fn with_pread(group: &mut BenchmarkGroup<'_, WallTime>, file: &File, pattern: Pattern) {
    let mut buffer = vec![0; pattern.len];
    metered("pread", pattern, |rounds| {
        group.bench_function("pread", |bencher| {
            bencher.iter(|| {
                *rounds += 1;
                for number in 0..pattern.count {
                    file.read_exact_at(&mut buffer, pattern.offset(number)).expect("read");
                    black_box(buffer.iter().step_by(4096).fold(0_u8, |sum, byte| sum ^ byte));
                }
            });
        });
    });
}

fn with_engines(
    group: &mut BenchmarkGroup<'_, WallTime>,
    runtime: &Runtime,
    file: &Arc<File>,
    pattern: Pattern,
    depth: u64,
) {
    for (name, kind, reads_resident) in [
        ("io_uring", EngineKind::Uring, false),
        ("blocking", EngineKind::Blocking, false),
        ("resident", EngineKind::Auto, true),
    ] {
        let engine = match Engine::start(&EngineConfig { kind, reads_resident, ..EngineConfig::default() }) {
            Ok(engine) => engine,
            Err(error) => {
                println!("{error}");
                continue;
            }
        };
        metered(name, pattern, |rounds| {
            group.bench_function(name, |bencher| {
                bencher.iter(|| {
                    *rounds += 1;
                    runtime.block_on(read_all(&engine, file, pattern, depth));
                });
            });
        });
        let stats = engine.stats();
        if stats.reads == 0 {
            continue;
        }
        let per_read = stats.submissions as f64 / stats.reads as f64;
        println!("{name}: {per_read:.3} io_uring_enter a read; {stats:?}");
    }
}

fn benches(criterion: &mut Criterion) {
    let mut file = tempfile::tempfile().expect("a temporary file");
    let block: Vec<u8> = (0..1 << 20).map(|i: u32| i.wrapping_mul(2_654_435_761) as u8).collect();
    for _ in 0..FILE_BYTES >> 20 {
        file.write_all(&block).expect("room for 1 GiB");
    }
    let file = Arc::new(file);
    let runtime = Runtime::new().expect("a runtime");
    for (name, pattern, depth) in [
        ("sequential 256 KiB, depth 16", SEQUENTIAL, 16),
        ("random 4 KiB, depth 16", RANDOM, 16),
        ("random 4 KiB, depth 1", RANDOM, 1),
    ] {
        let mut group = criterion.benchmark_group(name);
        group.sample_size(10).throughput(Throughput::Bytes(pattern.count * pattern.len as u64));
        with_pread(&mut group, &file, pattern);
        with_engines(&mut group, &runtime, &file, pattern, depth);
        group.finish();
    }
}

criterion_group!(io, benches);
criterion_main!(io);
