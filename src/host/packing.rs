//! Compressing chunks for one client: decided in [`super::compress`], done by zstd where it may take a while.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use zstd::bulk::Compressor;

use super::compress::{LEVELS, Speeds, is_packed_already, is_worth_it, looks_compressible};
use crate::proto::CompressionWish;
use crate::transport::{Connection, LinkStats};

/// What all connections of the daemon share: how fast the codec is.
#[derive(Debug)]
pub(super) struct Codec {
    speeds: Mutex<Speeds>,
    cores: usize,
}

impl Codec {
    /// Nothing is measured yet. Half the cores are left for everything else.
    pub(super) fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2));
        Self { speeds: Mutex::default(), cores }
    }

    fn speeds<T>(&self, work: impl FnOnce(&mut Speeds) -> T) -> T {
        work(&mut self.speeds.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Compresses; `None` where that is not worth it. Blocks for a millisecond or so.
    fn pack(&self, plain: &[u8], level: usize) -> Option<Bytes> {
        let start = Instant::now();
        let packed = Compressor::new(LEVELS[level]).and_then(|mut compressor| compressor.compress(plain));
        self.speeds(|speeds| speeds.measured(level, plain.len(), start.elapsed().as_secs_f64()));
        let packed = packed.inspect_err(|error| tracing::debug!("zstd: {error}")).ok()?;
        is_worth_it(plain.len(), packed.len()).then(|| packed.into())
    }
}

/// How the chunks of one request are compressed.
#[derive(Debug, Clone)]
pub(super) struct Packing {
    codec: Arc<Codec>,
    level: usize,
}

impl Packing {
    /// Compresses, if a sample says that it is not in vain; `None` where the bytes are to be sent as they are.
    pub(super) async fn pack(&self, plain: &Bytes) -> Option<Bytes> {
        if !looks_compressible(plain) {
            return None;
        }
        let (codec, level, plain) = (Arc::clone(&self.codec), self.level, plain.clone());
        tokio::task::spawn_blocking(move || codec.pack(&plain, level)).await.ok().flatten()
    }
}

/// One client's link, and what it wishes.
#[derive(Debug)]
pub(super) struct Packer {
    codec: Arc<Codec>,
    wish: CompressionWish,
    connection: Connection,
}

impl Packer {
    /// For one connection.
    pub(super) fn new(codec: Arc<Codec>, wish: CompressionWish, connection: Connection) -> Self {
        Self { codec, wish, connection }
    }

    /// How to compress what a request brings of a file of this name; `None`: not at all.
    pub(super) fn for_file(&self, name: impl FnOnce() -> Option<Box<[u8]>>) -> Option<Packing> {
        if self.wish == CompressionWish::Never {
            return None;
        }
        let link = bytes_per_second(&self.connection.stats());
        let level = self.codec.speeds(|speeds| speeds.choose(self.wish, link, self.codec.cores))?;
        if name().is_some_and(|name| is_packed_already(&name)) {
            return None;
        }
        Some(Packing { codec: Arc::clone(&self.codec), level })
    }
}

/// What the link carries: a window a round trip.
fn bytes_per_second(link: &LinkStats) -> f64 {
    link.congestion_window_bytes as f64 / link.rtt.as_secs_f64().max(1e-6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_out_is_what_went_in() {
        let plain = b"wormhole ".repeat(10_000);
        for level in 0..LEVELS.len() {
            let packed = Codec::new().pack(&plain, level).expect("text gets smaller");
            assert!(packed.len() < plain.len() / 10);
            assert_eq!(zstd::bulk::decompress(&packed, plain.len()).unwrap(), plain);
        }
    }
}
