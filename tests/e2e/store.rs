//! The disk cache between real processes: shared, killed at any moment, and taken away under a mount that reads.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tempfile::TempDir;
use wormhole::cache::{CacheConfig, ChunkCache, DiskCache, FileKey, pins};
use wormhole::chunk::{ChunkHash, ChunkIndex, ChunkRange, VerifiedChunk};

use crate::world::{World, noise, run, wait_until};

const SIZE_BYTES: u64 = 4 << 20;
const SEGMENT_BYTES: u64 = 1 << 17;

/// In the environment of a child: where its cache is, what it does, and from which number on.
const DIRECTORY: &str = "WORMHOLE_TEST_CACHE";
const WORK: &str = "WORMHOLE_TEST_WORK";

/// How often a process is killed; more by hand: `WORMHOLE_KILLS=500 cargo test --test all e2e::store`.
fn kills() -> u64 {
    std::env::var("WORMHOLE_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(30)
}

fn open(directory: &Path) -> DiskCache {
    let config = CacheConfig {
        directory: directory.to_owned(),
        size_bytes: SIZE_BYTES,
        min_free_ratio: 0.0,
        segment_bytes: Some(SEGMENT_BYTES),
    };
    DiskCache::open(&config).unwrap()
}

/// Chunk `number`: its length and bytes follow from it.
fn chunk(number: u64) -> VerifiedChunk {
    VerifiedChunk::compute(Bytes::from(noise(200 + (number * 577 % 9000) as usize, number)))
}

fn file_key(number: u64) -> FileKey {
    FileKey::from_bytes(*blake3::hash(&number.to_le_bytes()).as_bytes())
}

fn disk_bytes(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = fs::read_dir(directory.join("v1/segments")).into_iter().flatten().flatten();
    // One that is evicted at this moment takes nothing.
    entries.filter_map(|entry| entry.metadata().ok()).map(|meta| meta.blocks() * 512).sum()
}

/// This test's binary once more, as a process of its own.
fn child(directory: &Path, work: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "e2e::store::a_process_of_its_own", "--ignored", "--nocapture"])
        .env(DIRECTORY, directory)
        .env(WORK, work)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// What the children of the other tests do.
#[test]
#[ignore = "the other tests run it as a process of its own"]
fn a_process_of_its_own() {
    let directory = std::env::var_os(DIRECTORY).expect("run by another test");
    let cache = open(Path::new(&directory));
    match std::env::var(WORK).unwrap().split_once(':').unwrap() {
        ("insert", first) => insert_for_ever(&cache, first.parse().unwrap()),
        ("share", seed) => share(&cache, seed.parse().unwrap()),
        other => panic!("{other:?}"),
    }
}

/// Tells after each group what is written by then; pins something now and then.
fn insert_for_ever(cache: &DiskCache, first: u64) {
    for group in first.. {
        for number in group * 8..group * 8 + 8 {
            cache.insert(chunk(number));
        }
        assert!(cache.flush());
        println!("written {group}");
        if group % 8 == 0 {
            let one = chunk(group * 8);
            cache.record_hash(&file_key(group), ChunkIndex(0), one.hash());
            // The same name again and again, so that pins do not fill the cache.
            let mut pinning = cache.begin_pin(&format!("pin {}", group / 8 % 4)).unwrap();
            pinning.add_chunks(&file_key(group), ChunkRange::new(ChunkIndex(0), 1)).unwrap();
            pinning.add_file(&file_key(group), one.bytes().len() as u64).unwrap();
            pinning.finish().unwrap();
            println!("pinned {group}");
        }
    }
}

/// Reads and writes the same numbers as others do, for a while.
fn share(cache: &DiskCache, seed: u64) {
    let (start, mut hits, mut turn) = (Instant::now(), 0, seed);
    while start.elapsed() < Duration::from_secs(3) {
        turn += 1;
        let wanted = chunk((turn * (7 + seed) + turn / 50) % 1500);
        match cache.load(wanted.hash()) {
            Some(found) => {
                assert_eq!(found, wanted);
                hits += 1;
            }
            None => cache.insert(wanted),
        }
        if turn % 64 == 0 {
            assert!(cache.flush());
        }
    }
    assert!(cache.flush());
    let stats = cache.stats();
    println!("shared: {hits} hits, {} inserts, {} damaged", stats.inserts, stats.corrupt);
    assert_eq!(stats.corrupt, 0);
}

/// Runs `work` while another thread watches what the directory takes. Gives the most it saw, and how often it looked.
fn watched<T>(directory: &Path, work: impl FnOnce() -> T) -> (T, u64, u64) {
    let (done, most, looks) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let result = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                most.fetch_max(disk_bytes(directory), Ordering::Relaxed);
                looks.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let result = work();
        done.store(true, Ordering::Relaxed);
        result
    });
    (result, most.into_inner(), looks.into_inner())
}

#[test]
fn processes_share_a_cache_within_its_size() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let (outputs, most, looks) = watched(path, || {
        let children: Vec<Child> = (0..3).map(|seed| child(path, &format!("share:{seed}"))).collect();
        children.into_iter().map(|child| child.wait_with_output().unwrap()).collect::<Vec<_>>()
    });
    let mut hits = 0;
    for output in &outputs {
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}");
        let told = text.lines().find_map(|line| line.split_once("shared: ")?.1.split_once(" hits"));
        hits += told.unwrap().0.parse::<u64>().unwrap();
    }
    assert!(hits > 0 && looks > 100, "{hits} hits, {looks} looks");
    assert!(most <= SIZE_BYTES && most > SIZE_BYTES / 2, "{most}");
    let cache = open(path);
    assert_eq!(cache.verify(|_, _| true).bad, 0);
}

/// What a killed process had told: the last group that was written, and which pin held which group.
#[derive(Default)]
struct Told {
    written: Option<u64>,
    pinned: BTreeMap<u64, u64>,
}

/// Has a process insert, and kills it `after` its first words.
fn insert_and_kill(directory: &Path, first: u64, after: Duration, told: &mut Told) {
    let mut process = child(directory, &format!("insert:{first}"));
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let mut take = |line: String| {
        // The first one stands behind what the test harness says.
        let words: Vec<&str> = line.split(' ').collect();
        if let [.., what, group] = words.as_slice()
            && let Ok(group) = group.parse::<u64>()
        {
            match *what {
                "written" => told.written = Some(group),
                what if what.ends_with("pinned") => drop(told.pinned.insert(group / 8 % 4, group)),
                _ => return false,
            }
            return true;
        }
        false
    };
    while !take(lines.next().expect("it ended by itself").unwrap()) {}
    std::thread::sleep(after);
    process.kill().unwrap();
    process.wait().unwrap();
    for line in lines.map_while(Result::ok) {
        take(line);
    }
    // Behind every eighth group a pin is made; what it replaces may have gone by then, and it may not have come yet.
    if let Some(group) = told.written.filter(|group| group % 8 == 0)
        && told.pinned.get(&(group / 8 % 4)) != Some(&group)
    {
        told.pinned.remove(&(group / 8 % 4));
    }
}

#[test]
fn a_process_that_is_killed_costs_nothing_that_was_written_and_no_pin() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let mut told = Told::default();
    let mut damaged = 0;
    for round in 0..kills() {
        let first = told.written.map_or(0, |group| group + 1);
        insert_and_kill(path, first, Duration::from_micros(round * 7919 % 40_000), &mut told);
        assert!(disk_bytes(path) <= SIZE_BYTES);
        let cache = open(path);
        let last = told.written.unwrap();
        for number in last * 8..last * 8 + 8 {
            let wanted = chunk(number);
            assert_eq!(cache.load(wanted.hash()), Some(wanted), "round {round}, chunk {number} was written");
        }
        // Whatever else is there is right.
        for number in (last * 8).saturating_sub(800)..last * 8 + 64 {
            let wanted = chunk(number);
            assert!(cache.load(wanted.hash()).is_none_or(|found| found == wanted));
        }
        for (&pin, &group) in &told.pinned {
            let wanted = chunk(group * 8);
            assert_eq!(cache.known_hash(&file_key(group), ChunkIndex(0)), Some(wanted.hash()), "pin {pin}");
            assert_eq!(cache.load(wanted.hash()), Some(wanted), "pin {pin}");
        }
        let listed = pins(path).unwrap().0.len();
        assert!(listed >= told.pinned.len(), "{listed} pins of {}", told.pinned.len());
        damaged += cache.verify(|_, _| true).bad;
    }
    assert!(told.written.unwrap() > kills(), "hardly anything was written");
    println!("{} kills, {} groups written, {damaged} records damaged", kills(), told.written.unwrap());
    let unknown = ChunkHash::of(b"never inserted");
    assert!(open(path).load(unknown).is_none());
}

/// A small disk of its own, unmounted when dropped.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount(options: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let output =
            run("mount", &["-t", "tmpfs", "-o", options, "none", directory.path().to_str().unwrap()]);
        assert!(output.status.success(), "a tmpfs cannot be mounted");
        Self(directory)
    }

    fn path(&self) -> &str {
        self.0.path().to_str().unwrap()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        run("umount", &["-l", self.path()]);
    }
}

#[test]
fn reads_go_on_whatever_becomes_of_the_cache() {
    let world = World::new();
    let contents: Vec<Vec<u8>> = (0..4).map(|seed| noise(6_000_000, seed)).collect();
    for (number, content) in contents.iter().enumerate() {
        fs::write(world.source().join(number.to_string()), content).unwrap();
    }
    std::thread::sleep(Duration::from_millis(2100));
    let host = world.host();
    let disk = SmallDisk::mount("size=12M");
    let options = format!("cache_dir={}/cache,cache_size=64M,cache_min_free=0,memory_target=4M", disk.path());
    let mount = world.mount(&host.ticket, &options);
    let all_are_right = || {
        for (number, content) in contents.iter().enumerate() {
            assert!(fs::read(mount.path(number.to_string())).unwrap() == *content, "{number}");
        }
    };
    // 24 MB through a disk of 12: the cache makes room in time.
    all_are_right();
    assert_eq!(mount.status()["cache_dropped"], 0);
    // Somebody else takes all of it.
    let other = disk.0.path().join("other");
    let mut file = fs::File::create(&other).unwrap();
    while file.write_all(&[1; 8192]).is_ok() {}
    all_are_right();
    let mut more = fs::File::options().append(true).open(&other).unwrap();
    while more.write_all(&[1; 8192]).is_ok() {}
    all_are_right();
    wait_until("the full disk is noticed", || mount.status()["cache_dropped"].as_u64().unwrap() > 0);
    drop((file, more));
    fs::remove_file(&other).unwrap();
    all_are_right();
    run("mount", &["-o", "remount,ro", disk.path()]);
    all_are_right();
    run("mount", &["-o", "remount,rw", disk.path()]);
    fs::remove_dir_all(disk.0.path().join("cache")).unwrap();
    all_are_right();
    mount.umount();
    // What cannot be written at all is used as it is, and told.
    let mount = world.mount(&host.ticket, &options);
    for (number, content) in contents.iter().take(1).enumerate() {
        assert!(fs::read(mount.path(number.to_string())).unwrap() == *content);
    }
    mount.umount();
    run("mount", &["-o", "remount,ro", disk.path()]);
    let mount = world.mount(&host.ticket, &options);
    for (number, content) in contents.iter().enumerate() {
        assert!(fs::read(mount.path(number.to_string())).unwrap() == *content);
    }
    assert!(mount.status()["disk_chunks"].as_u64().unwrap() > 0, "what was there is used");
    mount.umount();
}
