//! Names and attributes that outlive a mount: what one mount learned, the next one shows without a host.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;
use wormhole::cache::{CacheConfig, ChunkCache, DiskCache};
use wormhole::client::Client;
use wormhole::client::memory::MemoryHost;
use wormhole::fetch::{FetchConfig, Fetcher};
use wormhole::fs::{FileSystem, FsConfig, FsError, Inode, Lookup, OpenRequest};
use wormhole::proto::Errno;
use wormhole::recall::{RecallClient, Scope};

use super::{FLEETING, World};

const KEY: [u8; 32] = [7; 32];

/// A host, and a folder for the caches of one mount after the other.
struct Place {
    host: MemoryHost,
    directory: TempDir,
}

/// A mount of it.
struct Mounted {
    world: World,
    recall: Arc<RecallClient>,
    cache: Arc<DiskCache>,
}

impl Place {
    fn new(host: MemoryHost) -> Self {
        // What is there lies still.
        host.advance(Duration::from_secs(10));
        Self { host, directory: tempfile::tempdir().unwrap() }
    }

    fn cache(&self) -> Arc<DiskCache> {
        let config = CacheConfig {
            directory: self.directory.path().to_owned(),
            size_bytes: 64 << 20,
            min_free_ratio: 0.0,
            segment_bytes: Some(1 << 20),
        };
        Arc::new(DiskCache::open(&config).unwrap())
    }

    fn mount(&self, make: impl FnOnce(Arc<DiskCache>) -> Option<RecallClient>) -> Option<Mounted> {
        let cache = self.cache();
        let recall = Arc::new(make(Arc::clone(&cache))?);
        let fetcher = Fetcher::new(Arc::clone(&recall) as _, Arc::clone(&cache) as _, FetchConfig::default());
        let config = FsConfig { freshness: FLEETING, ..FsConfig::default() };
        let fs = FileSystem::new(Arc::clone(&recall) as _, Arc::clone(&fetcher), config);
        Some(Mounted { world: World { host: self.host.clone(), fs, fetcher }, recall, cache })
    }

    fn online(&self) -> Mounted {
        let host = self.host.client();
        self.mount(|cache| {
            Some(RecallClient::new(host, cache, Scope::new(&KEY, "media"), b"", true).unwrap())
        })
        .unwrap()
    }

    fn try_offline(&self, export: &str, sub_path: &[u8]) -> Option<Mounted> {
        self.mount(|cache| RecallClient::offline(cache, Scope::new(&KEY, export), sub_path))
    }

    fn offline(&self) -> Mounted {
        self.try_offline("media", b"").unwrap()
    }
}

impl Mounted {
    async fn names(&self, path: &str) -> Result<Vec<Vec<u8>>, Errno> {
        let inode = match path {
            "" => Inode::ROOT,
            path => self.world.walk(path).await.map_err(errno)?.inode,
        };
        let handle = self.world.fs.opendir(inode).unwrap();
        self.world.fs.readdir(handle, 0, false, |_| false).await.map_err(errno)?;
        Ok(self.world.list_from(handle, 2).await.into_iter().map(|(name, _)| name).collect())
    }

    async fn content(&self, path: &str) -> Result<Vec<u8>, Errno> {
        let entry = self.world.walk(path).await.map_err(errno)?;
        let opened = self.world.fs.open(entry.inode, OpenRequest::default()).await.map_err(errno)?;
        let read = self.world.read(opened.handle, 0, 1 << 20).await.map_err(errno);
        self.world.fs.release(opened.handle).await.unwrap();
        read
    }

    fn end(self) {
        assert!(self.recall.flush());
        assert!(self.cache.flush());
    }
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn errno(error: FsError) -> Errno {
    error.errno()
}

fn host() -> MemoryHost {
    let host = MemoryHost::new();
    host.create_file("d/read", "was read");
    host.create_file("d/listed", "was only listed");
    host.create_symlink("d/link", "read");
    host.create_file("alone/looked up", "by name");
    host.create_dir("empty");
    host
}

/// A mount in which some was looked at, ended.
async fn looked_at(host: MemoryHost) -> Place {
    let place = Place::new(host);
    let mount = place.online();
    assert_eq!(mount.names("d").await.unwrap().len(), 3);
    assert_eq!(mount.names("empty").await.unwrap().len(), 0);
    assert_eq!(mount.content("d/read").await.unwrap(), b"was read");
    let link = mount.world.walk("d/link").await.unwrap();
    mount.world.fs.readlink(link.inode).await.unwrap();
    mount.world.walk("alone/looked up").await.unwrap();
    assert_eq!(mount.world.walk("alone/missing").await.map_err(errno), Err(Errno::ENOENT));
    mount.world.fs.statfs().await.unwrap();
    assert_eq!(mount.recall.stale_answers(), 0);
    mount.end();
    place
}

#[tokio::test]
async fn what_was_seen_is_shown_without_a_host() {
    let place = looked_at(host()).await;
    let mount = place.offline();
    assert_eq!(mount.names("d").await.unwrap().len(), 3);
    assert_eq!(mount.names("empty").await, Ok(vec![]));
    assert_eq!(mount.content("d/read").await.unwrap(), b"was read");
    let truth = place.host.attributes_of("d/listed");
    let shown = mount.world.walk("d/listed").await.unwrap().attributes;
    assert_eq!((shown.size, shown.mtime, shown.node), (truth.size, truth.mtime, truth.node));
    let link = mount.world.walk("d/link").await.unwrap();
    assert_eq!(&*mount.world.fs.readlink(link.inode).await.unwrap(), b"read");
    assert_eq!(mount.world.walk("alone/looked up").await.unwrap().attributes.size, 7);
    assert!(mount.world.fs.statfs().await.is_ok());
    mount.world.fs.access(link.inode, 4).await.unwrap();
    assert!(mount.recall.stale_answers() >= 5, "{}", mount.recall.stale_answers());
    assert!(!mount.recall.link().connected);
}

#[tokio::test]
async fn what_was_not_seen_fails_at_once_and_absence_is_said_only_where_known() {
    let place = looked_at(host()).await;
    let mount = place.offline();
    let soon = async {
        assert_eq!(mount.content("d/listed").await, Err(Errno::ENETUNREACH));
        assert_eq!(mount.names("").await, Err(Errno::ENETUNREACH));
        assert_eq!(mount.names("alone").await, Err(Errno::ENETUNREACH));
        let unknown = mount.world.walk("alone/never asked for").await;
        assert_eq!(unknown.map_err(errno), Err(Errno::ENETUNREACH));
        // Known by a listing, and by an answer.
        assert_eq!(mount.world.walk("d/nothing").await.map_err(errno), Err(Errno::ENOENT));
        assert_eq!(mount.world.walk("alone/missing").await.map_err(errno), Err(Errno::ENOENT));
    };
    tokio::time::timeout(Duration::from_secs(5), soon).await.expect("nothing waits for a deadline");
}

#[tokio::test]
async fn only_what_was_mounted_can_be_mounted() {
    let place = looked_at(host()).await;
    assert!(place.try_offline("media", b"").is_some());
    assert!(place.try_offline("other", b"").is_none());
    assert!(place.try_offline("media", b"sub").is_none());
}

#[tokio::test]
async fn what_was_learned_last_holds() {
    let place = looked_at(host()).await;
    place.host.write("d/read", 0, "was written to");
    place.host.unlink("d/listed");
    place.host.create_file("d/new", "new");
    place.host.advance(Duration::from_secs(10));
    let mount = place.online();
    // The directory is listed, then one file changes and is opened.
    assert_eq!(mount.names("d").await.unwrap(), [b"link".to_vec(), b"new".to_vec(), b"read".to_vec()]);
    place.host.write("d/new", 0, "newer than the listing");
    place.host.advance(Duration::from_secs(10));
    assert_eq!(mount.content("d/new").await.unwrap(), b"newer than the listing");
    assert_eq!(mount.content("d/read").await.unwrap(), b"was written to");
    mount.end();
    let mount = place.offline();
    assert_eq!(mount.names("d").await.unwrap().len(), 3);
    assert_eq!(mount.content("d/new").await.unwrap(), b"newer than the listing");
    assert_eq!(mount.content("d/read").await.unwrap(), b"was written to");
    assert_eq!(mount.world.walk("d/listed").await.map_err(errno), Err(Errno::ENOENT));
}

#[tokio::test]
async fn a_mount_that_loses_its_host_shows_what_an_earlier_one_saw() {
    let place = looked_at(host()).await;
    let mount = place.online();
    place.host.set_connected(false);
    // Nothing of it was looked at in this mount.
    let soon = tokio::time::timeout(Duration::from_secs(5), mount.names("d")).await;
    assert_eq!(soon.expect("known things do not wait for the deadline").unwrap().len(), 3);
    assert_eq!(mount.content("d/read").await.unwrap(), b"was read");
    assert!(mount.recall.stale_answers() > 0);
    place.host.set_deadline(Duration::from_millis(1));
    assert_eq!(mount.names("").await, Err(Errno::ETIMEDOUT));
    place.host.set_connected(true);
    place.host.create_file("d/new", "new");
    assert_eq!(mount.names("d").await.unwrap().len(), 4);
}

#[tokio::test]
async fn with_nosoftreval_calls_wait_for_the_host() {
    let place = looked_at(host()).await;
    let cache = place.cache();
    let scope = Scope::new(&KEY, "media");
    let recall: Arc<dyn Client> =
        Arc::new(RecallClient::new(place.host.client(), Arc::clone(&cache) as _, scope, b"", false).unwrap());
    let fetcher = Fetcher::new(Arc::clone(&recall), cache, FetchConfig::default());
    let config = FsConfig { freshness: FLEETING, serves_stale: false, ..FsConfig::default() };
    let fs = FileSystem::new(recall, Arc::clone(&fetcher), config);
    let world = World { host: place.host.clone(), fs, fetcher };
    let folder = world.walk("d").await.unwrap();
    let handle = world.fs.opendir(folder.inode).unwrap();
    world.list_from(handle, 0).await;
    world.fs.statfs().await.unwrap();
    place.host.set_connected(false);
    place.host.set_deadline(Duration::from_millis(1));
    assert_eq!(world.fs.getattr(folder.inode).await.map_err(errno).map(|_| ()), Err(Errno::ETIMEDOUT));
    assert_eq!(world.walk("d").await.map_err(errno), Err(Errno::ETIMEDOUT));
    let listed = world.fs.readdir(world.fs.opendir(folder.inode).unwrap(), 0, false, |_| true).await;
    assert_eq!(listed.map_err(errno), Err(Errno::ETIMEDOUT));
    assert_eq!(world.fs.stale_answers(), 0);
    place.host.set_connected(true);
    assert!(world.walk("d").await.is_ok());
}

#[tokio::test]
async fn a_directory_larger_than_a_chunk_comes_back_whole() {
    let host = MemoryHost::new();
    for number in 0..5000 {
        host.create_file(format!("many/{number:0>150}"), "");
    }
    let place = Place::new(host);
    let mount = place.online();
    let names = mount.names("many").await.unwrap();
    assert_eq!(names.len(), 5000);
    mount.end();
    assert_eq!(place.offline().names("many").await.unwrap(), names);
}

#[tokio::test]
async fn a_damaged_cache_knows_less_and_tells_nothing_wrong() {
    let place = looked_at(host()).await;
    let segments = place.directory.path().join("v1/segments");
    for entry in std::fs::read_dir(segments).unwrap().flatten() {
        let mut bytes = std::fs::read(entry.path()).unwrap();
        for at in (64..bytes.len()).step_by(97) {
            bytes[at] ^= 1;
        }
        std::fs::write(entry.path(), bytes).unwrap();
    }
    // The root is among what is gone; where it is not, nothing of the rest is shown wrongly.
    if let Some(mount) = place.try_offline("media", b"") {
        for path in ["d/read", "d/listed", "alone/looked up"] {
            let shown = mount.world.fs.lookup(Inode::ROOT, path.as_bytes()).await;
            assert!(!matches!(shown, Ok(Lookup::Found(_))), "{path}: {shown:?}");
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Create(u8),
    Write(u8, u8),
    Remove(u8),
    List,
    LookUp(u8),
    Read(u8),
    Remount,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..5_u8).prop_map(Step::Create),
        (0..5_u8, any::<u8>()).prop_map(|(name, length)| Step::Write(name, length)),
        (0..5_u8).prop_map(Step::Remove),
        Just(Step::List),
        (0..5_u8).prop_map(Step::LookUp),
        (0..5_u8).prop_map(Step::Read),
        Just(Step::Remount),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever a mount saw last of a name is what is shown without the host.
    #[test]
    fn the_last_sight_of_each_name_is_shown(steps in prop::collection::vec(step(), 1..40), lists_first: bool) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(history(steps, lists_first));
    }
}

async fn history(steps: Vec<Step>, lists_first: bool) {
    let host = MemoryHost::new();
    host.create_dir("d");
    let place = Place::new(host);
    let mut mount = place.online();
    mount.world.walk("d").await.unwrap();
    let mut there: BTreeMap<u8, u64> = BTreeMap::new();
    // What was last seen of each name: its size, or that it is not there.
    let mut seen: BTreeMap<u8, Option<u64>> = BTreeMap::new();
    let path = |name: u8| format!("d/{name}");
    for step in steps {
        match step {
            Step::Create(name) if !there.contains_key(&name) => {
                place.host.create_file(path(name), "");
                there.insert(name, 0);
            }
            Step::Write(name, length) if there.contains_key(&name) => {
                place.host.replace(path(name), vec![b'x'; usize::from(length)]);
                there.insert(name, u64::from(length));
            }
            Step::Remove(name) if there.remove(&name).is_some() => place.host.unlink(path(name)),
            Step::List => {
                mount.names("d").await.unwrap();
                seen = (0..5).map(|name| (name, there.get(&name).copied())).collect();
            }
            Step::LookUp(name) => {
                let _ = mount.world.walk(&path(name)).await;
                seen.insert(name, there.get(&name).copied());
            }
            Step::Read(name) => {
                let _ = mount.content(&path(name)).await;
                seen.insert(name, there.get(&name).copied());
            }
            Step::Remount => {
                mount.end();
                mount = place.online();
            }
            _ => {}
        }
        place.host.advance(Duration::from_secs(3));
    }
    mount.end();
    let mount = place.offline();
    if lists_first {
        let _ = mount.names("d").await;
    }
    for name in 0..5 {
        let shown = match mount.world.walk(&path(name)).await.map_err(errno) {
            Ok(entry) => Some(Some(entry.attributes.size)),
            Err(Errno::ENOENT) => Some(None),
            Err(errno) => {
                assert_eq!(errno, Errno::ENETUNREACH);
                None
            }
        };
        assert_eq!(shown, seen.get(&name).copied(), "{name}");
    }
}
