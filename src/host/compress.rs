//! Whether a chunk is worth compressing, and how hard: by name, by a sample, by the link against the codec.
//!
//! Pure: bytes and speeds in, decisions out. A chunk that is compressed in vain costs what the link could have sent meanwhile, so
//! most of the work here is to find out cheaply that it would be in vain.

use crate::proto::CompressionWish;

/// zstd's levels that are used, from the fastest on. Between them and above them little is won for much time.
pub(super) const LEVELS: [i32; 3] = [1, 3, 6];

/// What these do at first, in bytes per second of one core, until they have been measured: text on a core of 2020.
const SPEEDS_ASSUMED: [f64; LEVELS.len()] = [350e6, 180e6, 70e6];

/// Weight of one more measurement.
const SPEED_WEIGHT: f64 = 0.1;

/// A level is taken that is so many times faster than the link: the cores have other things to do.
const HEADROOM: f64 = 2.0;

/// The fastest level must at least be so many times faster than the link to pay at all.
const HEADROOM_LEAST: f64 = 1.25;

/// Smaller contents are sent as they are: a packet is a packet.
const BYTES_MIN: usize = 1024;

/// What is compressed already, by the ending of its name.
const PACKED_EXTENSIONS: [&str; 21] = [
    "7z", "aac", "avi", "bz2", "flac", "gif", "gz", "jpeg", "jpg", "mkv", "mov", "mp3", "mp4", "ogg", "png",
    "rar", "webm", "webp", "xz", "zip", "zst",
];

/// Sampled bytes with more entropy than this are noise to a compressor, in bits per byte. 4 KiB of random bytes show 7.95.
const ENTROPY_MAX: f64 = 7.5;

/// The sample: so many stripes, spread evenly, of so many bytes.
const SAMPLE_STRIPES: usize = 16;
const SAMPLE_STRIPE_BYTES: usize = 256;

/// What is left of compressed content must be less than this share of it, in percent, or it is sent as it is.
const KEPT_BELOW_PERCENT: usize = 95;

/// Whether a file of this name is compressed already.
pub(super) fn is_packed_already(name: &[u8]) -> bool {
    let Some(dot) = name.iter().rposition(|byte| *byte == b'.') else { return false };
    let extension = name[dot + 1..].to_ascii_lowercase();
    PACKED_EXTENSIONS.binary_search_by(|known| known.as_bytes().cmp(&extension)).is_ok()
}

/// Whether a sample of these bytes says that compressing them is not in vain.
pub(super) fn looks_compressible(bytes: &[u8]) -> bool {
    bytes.len() >= BYTES_MIN && sampled_entropy(bytes) <= ENTROPY_MAX
}

/// Shannon's entropy of a sample, in bits per byte. Taken all over the chunk: what begins as text may go on as a picture.
fn sampled_entropy(bytes: &[u8]) -> f64 {
    let mut counts = [0u32; 256];
    let mut total = 0u32;
    let step = (bytes.len() / SAMPLE_STRIPES).max(1);
    for stripe in bytes.chunks(step) {
        for byte in &stripe[..stripe.len().min(SAMPLE_STRIPE_BYTES)] {
            counts[usize::from(*byte)] += 1;
            total += 1;
        }
    }
    let share = |count: &u32| f64::from(*count) / f64::from(total);
    counts.iter().filter(|count| **count > 0).map(share).map(|share| -share * share.log2()).sum()
}

/// Whether content of `plain_bytes` is sent as the `packed_bytes` it was compressed to.
pub(super) const fn is_worth_it(plain_bytes: usize, packed_bytes: usize) -> bool {
    packed_bytes * 100 < plain_bytes * KEPT_BELOW_PERCENT
}

/// How fast the levels are, measured as they are used.
#[derive(Debug, Clone, Copy)]
pub(super) struct Speeds {
    bytes_per_second: [f64; LEVELS.len()],
}

impl Default for Speeds {
    fn default() -> Self {
        Self { bytes_per_second: SPEEDS_ASSUMED }
    }
}

impl Speeds {
    /// Takes note of `bytes` compressed at [`LEVELS`]`[level]` within `seconds`.
    pub(super) fn measured(&mut self, level: usize, bytes: usize, seconds: f64) {
        let speed = bytes as f64 / seconds.max(1e-9);
        let known = &mut self.bytes_per_second[level];
        *known += SPEED_WEIGHT * (speed - *known);
    }

    /// Which of [`LEVELS`] to use for a link of that rate, with so many cores to spare; `None`: none pays.
    pub(super) fn choose(
        &self,
        wish: CompressionWish,
        link_bytes_per_second: f64,
        cores: usize,
    ) -> Option<usize> {
        let is_faster = |level: usize, times: f64| {
            self.bytes_per_second[level] * cores as f64 >= times * link_bytes_per_second
        };
        let hardest = (0..LEVELS.len()).rev().find(|level| is_faster(*level, HEADROOM));
        match wish {
            CompressionWish::Never => None,
            CompressionWish::Always => hardest.or(Some(0)),
            CompressionWish::Worthwhile => hardest.or_else(|| is_faster(0, HEADROOM_LEAST).then_some(0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::testing::noise;

    #[test]
    fn names_tell_what_is_compressed_already() {
        for extension in PACKED_EXTENSIONS {
            let upper = extension.to_uppercase();
            assert!(is_packed_already(format!("a.b.{extension}").as_bytes()), "{extension}");
            assert!(is_packed_already(format!("a.{upper}").as_bytes()), "{upper}");
        }
        for name in ["zip", "a.zipp", "a.", "", "mp4.txt", "a.tar", "ä.\u{fe}"] {
            assert!(!is_packed_already(name.as_bytes()), "{name}");
        }
        assert!(PACKED_EXTENSIONS.is_sorted());
    }

    #[test]
    fn a_sample_tells_noise_from_text() {
        let text: Vec<u8> =
            b"The quick brown fox jumps over the lazy dog. ".repeat(6000)[..256 * 1024].to_vec();
        assert!(looks_compressible(&text));
        assert!(!looks_compressible(&noise(1, 256 * 1024)));
        assert!(looks_compressible(&vec![0; 256 * 1024]));
        // The head alone says nothing.
        let mixed = [&text[..4096], &noise(1, 252 * 1024)].concat();
        assert!(!looks_compressible(&mixed));
    }

    #[test]
    fn little_content_is_not_compressed() {
        assert!(!looks_compressible(&[b'a'; BYTES_MIN - 1]));
        assert!(looks_compressible(&[b'a'; BYTES_MIN]));
        assert!(!looks_compressible(&[]));
    }

    #[test]
    fn what_is_hardly_smaller_is_sent_as_it_is() {
        assert!(is_worth_it(1000, 949));
        assert!(!is_worth_it(1000, 950));
        assert!(!is_worth_it(1000, 1010));
    }

    #[test]
    fn the_level_follows_the_link() {
        let choose = |wish, link| Speeds::default().choose(wish, link, 1).map(|level| LEVELS[level]);
        let worthwhile = |link| choose(CompressionWish::Worthwhile, link);
        assert_eq!(worthwhile(1e6), Some(6));
        assert_eq!(worthwhile(35e6), Some(6));
        assert_eq!(worthwhile(36e6), Some(3));
        assert_eq!(worthwhile(125e6), Some(1));
        assert_eq!(worthwhile(270e6), Some(1));
        assert_eq!(worthwhile(290e6), None);
        assert_eq!(choose(CompressionWish::Always, 1e10), Some(1));
        assert_eq!(choose(CompressionWish::Always, 1e6), Some(6));
        assert_eq!(choose(CompressionWish::Never, 1e6), None);
        let two_cores = Speeds::default().choose(CompressionWish::Worthwhile, 290e6, 2);
        assert_eq!(two_cores, Some(0));
    }

    #[test]
    fn a_codec_that_turns_out_slow_is_used_less() {
        let mut speeds = Speeds::default();
        for _ in 0..50 {
            speeds.measured(2, 256 * 1024, 0.02);
        }
        assert_eq!(speeds.choose(CompressionWish::Worthwhile, 12.5e6, 1), Some(1));
        speeds.measured(0, 1, 0.0);
        assert!(speeds.bytes_per_second[0].is_finite());
    }
}
