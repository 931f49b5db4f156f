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
use wormhole::fs::{FileSystem, FsConfig, FsError, Inode, Lookup, Made, OpenRequest};
use wormhole::metadata_cache::{CachingClient, Scope};
use wormhole::proto::{Caller, Errno, RenameHow};

use super::changing::{WRITE, create};
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
    recall: Arc<CachingClient>,
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

    fn mount(&self, make: impl FnOnce(Arc<DiskCache>) -> Option<CachingClient>) -> Option<Mounted> {
        let cache = self.cache();
        let recall = Arc::new(make(Arc::clone(&cache))?);
        let fetcher = Fetcher::new(Arc::clone(&recall) as _, Arc::clone(&cache) as _, FetchConfig::default());
        let config = FsConfig { freshness: FLEETING, read_only: false, ..FsConfig::default() };
        let fs = FileSystem::new(Arc::clone(&recall) as _, Arc::clone(&fetcher), config);
        Some(Mounted { world: World { host: self.host.clone(), fs, fetcher }, recall, cache })
    }

    fn online(&self) -> Mounted {
        let host = self.host.client();
        self.mount(|cache| {
            Some(CachingClient::new(host, cache, Scope::new(&KEY, "media"), b"", true).unwrap())
        })
        .unwrap()
    }

    fn try_offline(&self, export: &str, sub_path: &[u8]) -> Option<Mounted> {
        self.mount(|cache| CachingClient::offline(cache, Scope::new(&KEY, export), sub_path))
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
    tokio::time::timeout(Duration::from_secs(30), soon).await.expect("nothing waits for a deadline");
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
    let soon = tokio::time::timeout(Duration::from_secs(30), mount.names("d")).await;
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
async fn a_mount_that_loses_its_host_shows_what_it_did_itself() {
    let place = looked_at(host()).await;
    let mount = place.online();
    let fs = &mount.world.fs;
    let folder = mount.world.walk("d").await.unwrap().inode;
    fs.remove(folder, b"listed", false).await.unwrap();
    let made = Made::Directory;
    let new = fs.make(folder, b"new", &made, 0o755, Caller::default()).await.unwrap().inode;
    fs.rename((folder, b"read"), (new, b"moved"), RenameHow::NoReplace).await.unwrap();
    fs.make(new, b"link", &Made::Symlink(b"moved".to_vec()), 0o777, Caller::default()).await.unwrap();
    place.host.advance(Duration::from_secs(10));
    assert_eq!(mount.content("d/new/moved").await.unwrap(), b"was read");
    place.host.set_connected(false);
    shows_own_changes(&mount).await;
    mount.end();
    let mount = place.online();
    shows_own_changes(&mount).await;
}

async fn shows_own_changes(mount: &Mounted) {
    assert_eq!(mount.names("d").await.unwrap(), [&b"link"[..], b"new"]);
    let mut names = mount.names("d/new").await.unwrap();
    names.sort();
    assert_eq!(names, [&b"link"[..], b"moved"]);
    assert_eq!(mount.world.walk("d/listed").await.map_err(errno), Err(Errno::ENOENT));
    assert_eq!(mount.content("d/new/moved").await.unwrap(), b"was read");
    let link = mount.world.walk("d/new/link").await.unwrap().inode;
    assert_eq!(&*mount.world.fs.readlink(link).await.unwrap(), b"moved");
}

#[tokio::test]
async fn with_nosoftreval_calls_wait_for_the_host() {
    let place = looked_at(host()).await;
    let cache = place.cache();
    let scope = Scope::new(&KEY, "media");
    let recall: Arc<dyn Client> = Arc::new(
        CachingClient::new(place.host.client(), Arc::clone(&cache) as _, scope, b"", false).unwrap(),
    );
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
    OwnCreate(u8),
    OwnWrite(u8, u8),
    OwnRemove(u8),
    OwnRename(u8, u8),
    OwnExchange(u8, u8),
    OwnLink(u8, u8),
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
        (0..5_u8).prop_map(Step::OwnCreate),
        (0..5_u8, any::<u8>()).prop_map(|(name, length)| Step::OwnWrite(name, length)),
        (0..5_u8).prop_map(Step::OwnRemove),
        (0..5_u8, 0..5_u8).prop_map(|(from, to)| Step::OwnRename(from, to)),
        (0..5_u8, 0..5_u8).prop_map(|(from, to)| Step::OwnExchange(from, to)),
        (0..5_u8, 0..5_u8).prop_map(|(from, to)| Step::OwnLink(from, to)),
        Just(Step::List),
        (0..5_u8).prop_map(Step::LookUp),
        (0..5_u8).prop_map(Step::Read),
        Just(Step::Remount),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a mount saw last of a name is what is shown without the host.
    #[test]
    fn the_last_sight_of_each_name_is_shown(steps in prop::collection::vec(step(), 1..40), lists_first: bool) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(history(steps, lists_first));
    }
}

/// What is in a directory of files: which file each name names, and their sizes.
#[derive(Default, Clone)]
struct Folder {
    names: BTreeMap<u8, u64>,
    sizes: BTreeMap<u64, u64>,
}

impl Folder {
    fn add(&mut self, name: u8, size: u64) {
        let file = self.sizes.len() as u64;
        self.names.insert(name, file);
        self.sizes.insert(file, size);
    }
}

/// A folder, and what was seen of it.
#[derive(Default)]
struct Sight {
    there: Folder,
    names: BTreeMap<u8, Option<u64>>,
    sizes: BTreeMap<u64, u64>,
}

impl Sight {
    fn see(&mut self, name: u8) {
        let file = self.there.names.get(&name).copied();
        self.names.insert(name, file);
        if let Some(file) = file {
            self.see_file(file);
        }
    }

    fn see_file(&mut self, file: u64) {
        self.sizes.insert(file, self.there.sizes[&file]);
    }

    /// The size that a name is shown with, or why it is not.
    fn shown(&self, name: u8) -> Result<u64, Errno> {
        let seen = self.names.get(&name).ok_or(Errno::ENETUNREACH)?;
        seen.map(|file| self.sizes[&file]).ok_or(Errno::ENOENT)
    }

    /// The file that a name names has another size now.
    fn resize(&mut self, name: u8, size: u64) {
        self.there.sizes.insert(self.there.names[&name], size);
    }
}

fn path(name: u8) -> String {
    format!("d/{name}")
}

fn bytes(name: u8) -> Vec<u8> {
    name.to_string().into_bytes()
}

/// Does on the host what a step says.
fn step_on_host(host: &MemoryHost, step: &Step, there: &mut Folder) {
    match *step {
        Step::Create(name) if !there.names.contains_key(&name) => {
            host.create_file(path(name), "");
            there.add(name, 0);
        }
        Step::Write(name, length) if there.names.contains_key(&name) => {
            host.replace(path(name), vec![b'x'; usize::from(length)]);
            there.add(name, u64::from(length));
        }
        Step::Remove(name) if there.names.remove(&name).is_some() => host.unlink(path(name)),
        _ => {}
    }
}

/// Does through the mount what a step says.
async fn step_on_mount(mount: &Mounted, folder: Inode, step: &Step, sight: &mut Sight) {
    let fs = &mount.world.fs;
    // The kernel looks a name up before it changes it.
    if let Step::OwnRemove(from) | Step::OwnRename(from, _) | Step::OwnExchange(from, _) = *step {
        let _ = mount.world.walk(&path(from)).await;
        sight.see(from);
    }
    if let Step::OwnRename(_, to) | Step::OwnExchange(_, to) | Step::OwnLink(_, to) = *step {
        let _ = mount.world.walk(&path(to)).await;
        sight.see(to);
    }
    let is_there = |name: &u8| sight.there.names.contains_key(name);
    match *step {
        Step::OwnCreate(name) if !is_there(&name) => {
            let (_, opened) = fs.create(folder, &bytes(name), create(true)).await.unwrap();
            fs.release(opened.handle).await.unwrap();
            sight.there.add(name, 0);
            sight.see(name);
        }
        Step::OwnWrite(name, length) if is_there(&name) => {
            let file = mount.world.walk(&path(name)).await.unwrap();
            let opened = fs.open(file.inode, WRITE).await.unwrap();
            mount.world.write(opened.handle, 0, &vec![b'y'; usize::from(length)]).await.unwrap();
            fs.flush(opened.handle).await.unwrap();
            fs.release(opened.handle).await.unwrap();
            sight.resize(name, file.attributes.size.max(u64::from(length)));
            sight.see(name);
        }
        Step::OwnRemove(name) if is_there(&name) => {
            fs.remove(folder, &bytes(name), false).await.unwrap();
            let file = sight.there.names.remove(&name).unwrap();
            sight.names.insert(name, None);
            sight.see_file(file);
        }
        Step::OwnLink(from, to) if is_there(&from) && !is_there(&to) => {
            let file = mount.world.walk(&path(from)).await.unwrap();
            fs.link(file.inode, folder, &bytes(to)).await.unwrap();
            sight.there.names.insert(to, sight.there.names[&from]);
            sight.see(from);
            sight.see(to);
        }
        Step::OwnRename(..) | Step::OwnExchange(..) => rename(fs, folder, step, sight).await,
        Step::List => {
            mount.names("d").await.unwrap();
            (0..5).for_each(|name| sight.see(name));
        }
        Step::LookUp(name) => {
            let _ = mount.world.walk(&path(name)).await;
            sight.see(name);
        }
        Step::Read(name) => {
            let _ = mount.content(&path(name)).await;
            sight.see(name);
        }
        _ => {}
    }
}

/// Moves a name, or two.
async fn rename(fs: &FileSystem, folder: Inode, step: &Step, sight: &mut Sight) {
    let is_there = |name: &u8| sight.there.names.contains_key(name);
    match *step {
        Step::OwnRename(from, to) if is_there(&from) => {
            let (from_name, to_name) = (bytes(from), bytes(to));
            fs.rename((folder, &from_name), (folder, &to_name), RenameHow::Replace).await.unwrap();
            let (moved, replaced) = (sight.there.names[&from], sight.there.names.get(&to).copied());
            if replaced != Some(moved) {
                sight.there.names.remove(&from);
                sight.there.names.insert(to, moved);
                sight.see(from);
                sight.see(to);
            }
            [Some(moved), replaced].into_iter().flatten().for_each(|file| sight.see_file(file));
        }
        Step::OwnExchange(from, to) if is_there(&from) && is_there(&to) => {
            let (from_name, to_name) = (bytes(from), bytes(to));
            fs.rename((folder, &from_name), (folder, &to_name), RenameHow::Exchange).await.unwrap();
            let (one, other) = (sight.there.names[&from], sight.there.names[&to]);
            if one != other {
                sight.there.names.extend([(from, other), (to, one)]);
                sight.see(from);
                sight.see(to);
            }
            sight.see_file(one);
            sight.see_file(other);
        }
        _ => {}
    }
}

async fn history(steps: Vec<Step>, lists_first: bool) {
    let host = MemoryHost::new();
    host.create_dir("d");
    let place = Place::new(host);
    let mut mount = place.online();
    let mut folder = mount.world.walk("d").await.unwrap().inode;
    let mut sight = Sight::default();
    for step in steps {
        if matches!(step, Step::Remount) {
            mount.end();
            mount = place.online();
            folder = mount.world.walk("d").await.unwrap().inode;
        }
        step_on_host(&place.host, &step, &mut sight.there);
        step_on_mount(&mount, folder, &step, &mut sight).await;
        place.host.advance(Duration::from_secs(3));
    }
    mount.end();
    let mount = place.offline();
    if lists_first {
        let _ = mount.names("d").await;
    }
    for name in 0..5 {
        let shown = mount.world.walk(&path(name)).await.map_err(errno).map(|entry| entry.attributes.size);
        assert_eq!(shown, sight.shown(name), "{name}");
    }
}
