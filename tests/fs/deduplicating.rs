//! What programs write and the host has already is not sent.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use wormhole::chunk::CHUNK_BYTES;
use wormhole::client::memory::MemoryHost;
use wormhole::fs::{DedupWish, FsConfig, Inode, WriteHow};
use wormhole::proto::{Change, ChangeRequest, Errno, ErrorCode, Request, WireError};

use super::changing::create;
use super::{LASTING, World};

const MIB: u64 = 1024 * 1024;

/// A mount over a long link of 1 Gbit/s, and a host with 5 MiB of noise under the name `old`.
fn world(dedup: DedupWish) -> World {
    let host = MemoryHost::new();
    host.create_generated("old", 5 * MIB, 1);
    host.set_link(Duration::from_millis(50), 0);
    host.set_upload(125_000_000, 6_250_000);
    World::with_config(host, FsConfig { freshness: LASTING, read_only: false, dedup, ..FsConfig::default() })
}

impl World {
    /// Writes a file front to back in pieces of this size, as fast as answers come, and closes it.
    async fn write_file(&self, name: &str, bytes: &[u8], piece: usize) {
        let (_, opened) = self.fs.create(Inode::ROOT, name.as_bytes(), create(true)).await.unwrap();
        for (number, part) in bytes.chunks(piece).enumerate() {
            self.write(opened.handle, (number * piece) as u64, part).await.unwrap();
            if piece as u64 >= CHUNK_BYTES {
                for _ in 0..30 {
                    tokio::task::yield_now().await;
                }
            }
        }
        self.fs.flush(opened.handle).await.unwrap();
        self.fs.release(opened.handle).await.unwrap();
        assert!(self.host.content(name) == bytes, "{name}");
    }

    fn is_write_known(request: &Request) -> bool {
        matches!(request, Request::Change(ChangeRequest { change: Change::WriteKnown { .. }, .. }))
    }
}

#[tokio::test]
async fn a_copy_is_sent_up_to_the_first_answer_and_the_next_not_at_all() {
    let world = world(DedupWish::Worthwhile);
    let content = world.host.content("old");
    world.write_file("one", &content, MIB as usize).await;
    assert_eq!(world.host.counters().written_bytes, 2 * MIB);
    assert_eq!(world.fs.deduplicated_bytes(), 3 * MIB);
    world.write_file("two", &content, MIB as usize).await;
    assert_eq!(world.host.counters().written_bytes, 2 * MIB);
    assert_eq!(world.host.counters().offers, 1);
    assert_eq!(world.fs.deduplicated_bytes(), 8 * MIB);
}

#[tokio::test]
async fn noise_is_sent_with_few_questions() {
    let world = world(DedupWish::Worthwhile);
    let noise: Vec<u8> = (0..24 * MIB / 8).flat_map(|at| (at ^ 0x5555_1234_9876).to_le_bytes()).collect();
    world.write_file("noise", &noise, MIB as usize).await;
    let counters = world.host.counters();
    assert_eq!(counters.written_bytes, 24 * MIB);
    assert!((4..=6).contains(&counters.offers), "{}", counters.offers);
    assert_eq!(world.fs.deduplicated_bytes(), 0);
}

#[tokio::test]
async fn nothing_is_asked_where_it_is_off_the_link_fast_or_the_host_an_older_one() {
    let off = world(DedupWish::Never);
    let content = off.host.content("old");
    off.write_file("one", &content, MIB as usize).await;
    let fast = world(DedupWish::Worthwhile);
    fast.host.set_upload(600_000_000, 6_250_000);
    fast.write_file("one", &content, MIB as usize).await;
    for world in [off, fast] {
        let counters = world.host.counters();
        assert_eq!((counters.offers, counters.written_bytes), (0, 5 * MIB));
    }
    for dedup in [DedupWish::Worthwhile, DedupWish::Always] {
        let old = world(dedup);
        let asked = std::sync::Arc::new(AtomicU64::new(0));
        let count = std::sync::Arc::clone(&asked);
        old.host.set_errors(move |request| {
            let is_new = matches!(request, Request::HaveChunks { .. }) || World::is_write_known(request);
            count.fetch_add(u64::from(is_new), Ordering::Relaxed);
            is_new.then(|| WireError::new(ErrorCode::Malformed, "what is that?"))
        });
        old.write_file("one", &content, MIB as usize).await;
        assert_eq!((asked.load(Ordering::Relaxed), old.host.counters().written_bytes), (1, 5 * MIB));
    }
}

#[tokio::test]
async fn what_the_host_has_only_in_part_is_put_together() {
    let world = world(DedupWish::Always);
    let mut content = world.host.content("old");
    for chunk in [0, 5, 6, 11, 19] {
        content[chunk * CHUNK_BYTES as usize] ^= 1;
    }
    content.extend_from_slice(b"and a little more");
    world.write_file("new", &content, MIB as usize).await;
    assert_eq!(world.host.counters().written_bytes, 5 * CHUNK_BYTES + 17);
    assert_eq!(world.fs.deduplicated_bytes(), 15 * CHUNK_BYTES);
}

#[tokio::test]
async fn small_writes_make_up_chunks_and_their_end_is_not_held_for_long() {
    let world = world(DedupWish::Always);
    let content = world.host.content("old");
    world.write_file("new", &content[..4 * MIB as usize + 99], 10_000).await;
    let sent = world.host.counters().written_bytes;
    assert!(sent < MIB, "{sent} bytes sent");
    // Nobody asks for it, and it goes all the same.
    let (_, opened) = world.fs.create(Inode::ROOT, b"log", create(true)).await.unwrap();
    world.write(opened.handle, 0, b"line\n").await.unwrap();
    let sent = world.host.until(|host| host.content("log") == b"line\n");
    tokio::time::timeout(Duration::from_secs(60), sent).await.unwrap();
    // Somebody asks for it, and it goes at once, every time.
    let begun = Instant::now();
    for number in 1..=200 {
        world.write(opened.handle, number * 5, b"line\n").await.unwrap();
        world.fs.flush(opened.handle).await.unwrap();
    }
    // Held back each time they would take 20 s.
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    assert_eq!(world.host.content("log").len(), 201 * 5);
}

#[tokio::test]
async fn a_full_disk_is_told_also_where_only_hashes_went() {
    let world = world(DedupWish::Always);
    let content = world.host.content("old");
    world.host.set_errors(|request| World::is_write_known(request).then(|| WireError::system(Errno::ENOSPC)));
    let (_, opened) = world.fs.create(Inode::ROOT, b"new", create(true)).await.unwrap();
    world.write(opened.handle, 0, &content[..MIB as usize]).await.unwrap();
    assert_eq!(world.fs.flush(opened.handle).await.unwrap_err().errno(), Errno::ENOSPC);
    world.fs.flush(opened.handle).await.unwrap();
}

/// Writes over each other, of what the host has and what it has not: the file is as if they had been done one after the other.
#[tokio::test]
async fn the_last_write_counts_whichever_way_it_went() {
    let world = world(DedupWish::Always);
    let old = world.host.content("old");
    let (_, opened) = world.fs.create(Inode::ROOT, b"new", create(true)).await.unwrap();
    let mut expected = Vec::new();
    let mut state = 7u64;
    let mut dice = |sides: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % sides
    };
    for number in 0..150 {
        let (from, to) = (dice(16) * CHUNK_BYTES, dice(8) * CHUNK_BYTES);
        let (len, shift) = ((1 + dice(4)) * CHUNK_BYTES, if dice(3) == 0 { dice(5000) } else { 0 });
        let bytes = &old[from as usize..(from + len - shift) as usize];
        let (start, end) = ((to + shift) as usize, (to + shift) as usize + bytes.len());
        expected.resize(expected.len().max(end), 0);
        expected[start..end].copy_from_slice(bytes);
        world
            .fs
            .write(opened.handle, to + shift, Bytes::copy_from_slice(bytes), WriteHow::default())
            .await
            .unwrap();
        if dice(10) == 0 {
            tokio::task::yield_now().await;
        }
        if number % 50 == 49 {
            world.fs.fsync(opened.handle, true).await.unwrap();
            assert!(world.host.content("new") == expected, "after write {number}");
        }
    }
    assert!(world.fs.deduplicated_bytes() > 0);
}
