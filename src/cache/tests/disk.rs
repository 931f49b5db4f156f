//! Disks that are full, nearly full, or read-only. These tests need a file system of their own and run as
//! root only.

use std::io::Write;
use std::thread;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::geteuid;

use super::*;

/// A small file system in memory, unmounted when dropped.
struct SmallDisk {
    directory: TempDir,
}

impl SmallDisk {
    /// Returns `None` with a message if the file system cannot be mounted.
    fn mount(bytes: u64) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let options = format!("size={bytes},mode=700");
        let mounted = geteuid().is_root().then(|| {
            mount(Some("tmpfs"), directory.path(), Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
        });
        match mounted {
            Some(Ok(())) => Some(Self { directory }),
            other => {
                eprintln!("SKIPPED: needs root and the right to mount a tmpfs: {other:?}");
                None
            }
        }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Fills the disk with a foreign file, except for `free_bytes`.
    fn fill_but(&self, free_bytes: u64) -> PathBuf {
        let path = self.path().join("other");
        let mut file = fs::File::create(&path).unwrap();
        let piece = [0; 4096];
        while file.write_all(&piece).is_ok() {}
        let len = file.metadata().unwrap().len();
        file.set_len(len - free_bytes).unwrap();
        path
    }

    fn make_read_only(&self) {
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, self.path(), None::<&str>, flags, None::<&str>).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(self.path(), MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_full_disk_drops_inserts_and_nothing_else() {
    let Some(disk) = SmallDisk::mount(8 << 20) else { return };
    let cache = open(disk.path(), 1 << 28, 1 << 22);
    let chunks: Vec<VerifiedChunk> = (0..40).map(|number| chunk(number, 65_536)).collect();
    insert(&cache, &chunks[0]);
    let other = disk.fill_but(1 << 20);
    for chunk in &chunks {
        insert(&cache, chunk);
    }
    let stats = cache.stats();
    assert!(stats.dropped >= 23 && stats.entries >= 10, "{stats:?}");
    let found = chunks.iter().filter(|chunk| cache.load(chunk.hash()).as_ref() == Some(chunk)).count() as u64;
    assert_eq!((found, cache.stats().corrupt), (stats.entries, 0));
    drop(cache);
    // The footer may not have fitted either. A start finds everything all the same.
    let cache = open(disk.path(), 1 << 28, 1 << 22);
    assert_eq!(cache.stats().entries, stats.entries);
    // Once there is room again, the cache goes on.
    fs::remove_file(other).unwrap();
    for chunk in &chunks {
        insert(&cache, chunk);
    }
    assert!(chunks.iter().all(|chunk| cache.load(chunk.hash()).as_ref() == Some(chunk)));
}

#[test]
fn the_floor_of_free_space_is_left() {
    let Some(disk) = SmallDisk::mount(4 << 20) else { return };
    let config = CacheConfig { min_free_ratio: 0.5, ..config(disk.path(), 1 << 28, 1 << 18) };
    let cache = DiskCache::open_with(&config, direct_io()).unwrap();
    (0..100).for_each(|number| insert(&cache, &chunk(number, 65_536)));
    assert!(disk_bytes(disk.path()) <= 2 << 20);
    assert!(disk_bytes(disk.path()) >= 1 << 20);
    assert_eq!(cache.stats().dropped, 0);
    assert!(cache.load(chunk(99, 65_536).hash()).is_some());
    drop(cache);
    // A foreign file takes the room, and the cache gives way.
    fs::write(disk.path().join("other"), vec![0; 2 << 20]).unwrap();
    let cache = DiskCache::open_with(&config, direct_io()).unwrap();
    assert_eq!(disk_bytes(disk.path()), 0);
    insert(&cache, &chunk(1, 65_536));
    assert_eq!((cache.stats().dropped, cache.stats().segments), (1, 0));
}

#[test]
fn a_running_cache_shrinks_when_others_take_the_space() {
    let Some(disk) = SmallDisk::mount(4 << 20) else { return };
    let config = CacheConfig { min_free_ratio: 0.25, ..config(disk.path(), 1 << 28, 1 << 18) };
    let cache = DiskCache::open_with(&config, direct_io()).unwrap();
    (0..20).for_each(|number| insert(&cache, &chunk(number, 65_536)));
    insert(&cache, &chunk(100, 64));
    disk.fill_but(1 << 19);
    // The next check is due within a second. Only small records are written, so that no new segment
    // triggers it.
    for number in 1000..1500 {
        insert(&cache, &chunk(number, 64));
        if cache.stats().evicted_bytes > 0 {
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    assert!(cache.contains(chunk(100, 64).hash()));
    assert!(!cache.contains(chunk(0, 65_536).hash()), "nothing was given back");
}

#[test]
fn a_read_only_cache_is_read() {
    let Some(disk) = SmallDisk::mount(1 << 20) else { return };
    let one = chunk(1, 5000);
    let cache = open(disk.path(), 1 << 19, 1 << 16);
    cache.record_hash(&file_key(1), ChunkIndex(3), one.hash());
    insert(&cache, &one);
    drop(cache);
    disk.make_read_only();
    let cache = open(disk.path(), 1 << 19, 1 << 16);
    assert_eq!(cache.load(one.hash()), Some(one.clone()));
    assert_eq!(cache.known_hash(&file_key(1), ChunkIndex(3)), Some(one.hash()));
    insert(&cache, &chunk(2, 5000));
    assert_eq!(cache.load(chunk(2, 5000).hash()), None);
    assert_eq!(cache.stats().dropped, 1);
    assert!(cache.refresh());
    let fresh = DiskCache::open(&config(&disk.path().join("elsewhere"), 1 << 19, 1 << 16));
    assert!(matches!(fresh, Err(CacheError::Io { .. })));
}

#[test]
fn a_running_cache_reports_a_full_disk_and_continues_when_there_is_room() {
    let Some(disk) = SmallDisk::mount(8 << 20) else { return };
    let cache = open(disk.path(), 1 << 28, 1 << 22);
    assert_eq!(cache.problem(), None);
    let other = disk.fill_but(1 << 20);
    (0..40).for_each(|number| insert(&cache, &chunk(number, 65_536)));
    assert!(cache.problem().is_some() && cache.stats().dropped > 0);
    fs::remove_file(other).unwrap();
    (0..40).for_each(|number| insert(&cache, &chunk(number, 65_536)));
    assert_eq!(cache.problem(), None);
    assert!((0..40).all(|number| cache.load(chunk(number, 65_536).hash()).is_some()));
}

#[test]
fn a_directory_that_cannot_be_written_says_so_until_it_can() {
    let Some(disk) = SmallDisk::mount(1 << 20) else { return };
    drop(open(disk.path(), 1 << 19, 1 << 16));
    disk.make_read_only();
    let cache = open(disk.path(), 1 << 19, 1 << 16);
    assert!(cache.problem().unwrap().contains("cannot be written"));
    assert_eq!(cache.state(), store::DirectoryState::Good);
    let flags = MsFlags::MS_REMOUNT;
    mount(None::<&str>, disk.path(), None::<&str>, flags, None::<&str>).unwrap();
    assert_eq!(cache.state(), store::DirectoryState::BecameWritable);
}
