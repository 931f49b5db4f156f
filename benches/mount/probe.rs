//! The single measurements: each reads files as a program would and says how long it took.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use super::Failure;

const MIB: u64 = 1 << 20;

/// Path look-up, open and the first 64 KiB, in milliseconds.
pub(crate) fn first_bytes_ms(file: &Path) -> Result<f64, Failure> {
    let start = Instant::now();
    let file = File::open(file)?;
    let mut buffer = vec![0; 64 * 1024];
    file.read_exact_at(&mut buffer, 0)?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

/// Reads of 4 KiB at places drawn by `random`, one at a time: milliseconds of each, sorted.
pub(crate) fn random_reads_ms(file: &Path, count: usize, random: &mut Random) -> Result<Vec<f64>, Failure> {
    let file = File::open(file)?;
    let pages = file.metadata()?.len() / 4096;
    let mut buffer = vec![0; 4096];
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let offset = random.below(pages) * 4096;
        let start = Instant::now();
        file.read_exact_at(&mut buffer, offset)?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// What a viewer does to a film: a seek, 2 MiB in calls of 1 MiB, `count` times. Seconds in all.
pub(crate) fn scrub_seconds(file: &Path, count: usize, random: &mut Random) -> Result<f64, Failure> {
    let file = File::open(file)?;
    let size = file.metadata()?.len();
    let mut buffer = vec![0; MIB as usize];
    let start = Instant::now();
    for _ in 0..count {
        let offset = random.below(size - 2 * MIB);
        file.read_exact_at(&mut buffer, offset)?;
        file.read_exact_at(&mut buffer, offset + MIB)?;
    }
    Ok(start.elapsed().as_secs_f64())
}

/// Reads all files at once, a thread each, from their fronts to `bytes`: seconds that each took, sorted.
pub(crate) fn parallel_seconds(files: &[std::path::PathBuf], bytes: u64) -> Result<Vec<f64>, Failure> {
    let start = Instant::now();
    let mut times = std::thread::scope(|scope| {
        let readers: Vec<_> = files
            .iter()
            .map(|path| {
                scope.spawn(move || -> std::io::Result<f64> {
                    let file = File::open(path)?;
                    let mut buffer = vec![0; MIB as usize];
                    for offset in (0..bytes).step_by(MIB as usize) {
                        file.read_exact_at(&mut buffer, offset)?;
                    }
                    Ok(start.elapsed().as_secs_f64())
                })
            })
            .collect();
        readers
            .into_iter()
            .map(|reader| reader.join().expect("a reader does not panic"))
            .collect::<Result<Vec<_>, _>>()
    })?;
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// `SplitMix64` (Steele, Lea, Flood 2014): the same places in every run.
pub(crate) struct Random(pub u64);

impl Random {
    /// The next number, 0 to `bound` - 1.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

/// Writes `bytes` of incompressible content, different for each seed.
pub(crate) fn write_random(path: &Path, bytes: u64, seed: u64) -> Result<(), Failure> {
    use std::io::Write;
    let mut random = Random(seed);
    let mut file = File::create(path)?;
    let mut block = vec![0u8; MIB as usize];
    for _ in 0..bytes / MIB {
        for word in block.chunks_exact_mut(8) {
            word.copy_from_slice(&random.next().to_le_bytes());
        }
        file.write_all(&block)?;
    }
    Ok(())
}

/// The value below which `share` (0 to 1) of the sorted values lie.
pub(crate) fn percentile(sorted: &[f64], share: f64) -> f64 {
    sorted[((sorted.len() as f64 * share) as usize).min(sorted.len() - 1)]
}
