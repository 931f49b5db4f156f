//! Mutations of valid bytes, for the fuzzers of all formats that come from a disk or a peer.
//!
//! A fuzzer runs a moment in every test run, or for `WORMHOLE_FUZZ_SECONDS` if that is set. A failure names
//! its seed, and `WORMHOLE_FUZZ_SEED` repeats it.

use std::panic::{RefUnwindSafe, catch_unwind};
use std::time::{Duration, Instant, SystemTime};

/// Small random generator: equal seeds give equal numbers on every machine.
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number below `end`, or 0 if `end` is 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % (end as u64).max(1)) as usize
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

/// Changes bits, bytes, numbers to their limits, the length, or the order.
pub(crate) fn mutate(bytes: &mut Vec<u8>, numbers: &mut Numbers) {
    for _ in 0..=numbers.below(4) {
        let at = numbers.below(bytes.len());
        match numbers.below(8) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << numbers.below(8),
            1 if !bytes.is_empty() => bytes[at] = numbers.next() as u8,
            2 | 3 if bytes.len() >= at + 4 => {
                let limits = [0, 1, 63, 64, u32::MAX, u32::MAX - 63, 1 << 31, 1 << 18, bytes.len() as u32];
                let number = limits[numbers.below(limits.len())].wrapping_add(numbers.below(3) as u32);
                bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
            }
            4 => bytes.truncate(at),
            5 => {
                let len = numbers.below(100);
                bytes.splice(at..at, numbers.bytes(len));
            }
            6 if !bytes.is_empty() => {
                let end = at + numbers.below(bytes.len() - at);
                let copy = bytes[at..end].to_vec();
                let to = numbers.below(bytes.len());
                bytes.splice(to..to, copy);
            }
            _ if !bytes.is_empty() => {
                let end = at + numbers.below(bytes.len() - at);
                bytes[at..end].fill(0);
            }
            _ => {}
        }
    }
}

/// Changes bytes without changing the length.
pub(crate) fn mutate_in_place(bytes: &mut [u8], numbers: &mut Numbers) {
    let mut changed = bytes.to_vec();
    mutate(&mut changed, numbers);
    changed.resize(bytes.len(), 0);
    bytes.copy_from_slice(&changed);
}

/// Overwrites a block of `bytes` with one of `other`, mostly from the same place, like a disk that lost a
/// write. Blocks have `block` bytes and are counted from `first`.
pub(crate) fn take_block(
    bytes: &mut [u8],
    other: &[u8],
    (first, block): (usize, usize),
    numbers: &mut Numbers,
) {
    let count = |bytes: &[u8]| bytes.len().saturating_sub(first) / block;
    if count(bytes) == 0 || count(other) == 0 {
        return;
    }
    let to = numbers.below(count(bytes));
    let from = if numbers.below(3) > 0 && to < count(other) { to } else { numbers.below(count(other)) };
    let taken = &other[first + from * block..][..block];
    bytes[first + to * block..][..block].copy_from_slice(taken);
}

/// Runs `one` with one seed after another until the time is over.
pub(crate) fn fuzz(name: &str, one: impl Fn(&mut Numbers) + RefUnwindSafe) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = number("WORMHOLE_FUZZ_SEED") {
        one(&mut Numbers(seed));
        return;
    }
    let seconds = number("WORMHOLE_FUZZ_SECONDS");
    let wanted = seconds.map_or(Duration::from_millis(300), Duration::from_secs);
    let first = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    let (start, mut runs) = (Instant::now(), 0);
    while start.elapsed() < wanted {
        let seed = first.wrapping_add(runs);
        let outcome = catch_unwind(|| one(&mut Numbers(seed)));
        assert!(outcome.is_ok(), "{name}: WORMHOLE_FUZZ_SEED={seed} fails");
        runs += 1;
    }
    println!("{name}: {runs} runs from seed {first}, {} s", start.elapsed().as_secs());
}

/// Returns all files below a folder, in order.
pub(crate) fn files_below(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files.sort();
    files
}
