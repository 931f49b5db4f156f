//! Real FUSE mounts over the model host: what programs see through the kernel.
//!
//! Without `/dev/fuse` these tests fail, unless `WORMHOLE_TEST_NO_FUSE=1` says that this machine has none.

mod attributes;
mod content;
mod opening;
mod programs;
mod refusing;
mod session;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::runtime::Runtime;
use wormhole::cache::NoCache;
use wormhole::client::memory::MemoryHost;
use wormhole::fetch::{FetchConfig, Fetcher};
use wormhole::fs::{FileSystem, Freshness, FsConfig};
use wormhole::fuse::{FuseConfig, Mounted, UnmountHow};

use super::fs::FLEETING;

/// Whether these tests can run here.
fn has_fuse() -> bool {
    let is_there = Path::new("/dev/fuse").exists();
    let may_be_missing = std::env::var_os("WORMHOLE_TEST_NO_FUSE").is_some_and(|value| value == "1");
    assert!(
        is_there || may_be_missing,
        "no /dev/fuse; set WORMHOLE_TEST_NO_FUSE=1 to go without these tests"
    );
    is_there
}

/// A mount of a model host. Its end is checked when it is dropped.
struct MountedWorld {
    host: MemoryHost,
    fs: Arc<FileSystem>,
    fetcher: Arc<Fetcher>,
    mounted: Mounted,
    runtime: Runtime,
    folder: tempfile::TempDir,
}

impl MountedWorld {
    /// Mounts with copies that hold for no time, so that every look is at the host.
    fn new(host: MemoryHost) -> Option<Self> {
        Self::with_freshness(host, FLEETING)
    }

    fn with_freshness(host: MemoryHost, freshness: Freshness) -> Option<Self> {
        has_fuse().then(|| Self::mount(host, FsConfig { freshness, ..FsConfig::default() }))
    }

    fn mount(host: MemoryHost, config: FsConfig) -> Self {
        Self::mount_as(host, config, &FuseConfig::default())
    }

    fn mount_as(host: MemoryHost, config: FsConfig, fuse: &FuseConfig) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (fs, fetcher) = {
            let _inside = runtime.enter();
            let fetcher = Fetcher::new(host.client(), Arc::new(NoCache), FetchConfig::default());
            (FileSystem::new(host.client(), Arc::clone(&fetcher), config), fetcher)
        };
        let folder = tempfile::tempdir().unwrap();
        let fuse = FuseConfig { source: "model:/export".into(), ..fuse.clone() };
        let mounted = wormhole::fuse::mount(&fs, folder.path(), &fuse).unwrap();
        Self { host, fs, fetcher, mounted, runtime, folder }
    }

    fn path(&self, below: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join(below)
    }

    /// Unmounts, and looks that nothing is left.
    fn end(self) {
        until_ok(|| self.mounted.unmount(UnmountHow::Clean));
        self.runtime.block_on(self.mounted.ended()).unwrap();
        assert!(!is_mounted(self.folder.path()));
        // The kernel does not wait until it is answered that a file is released.
        until_ok(|| {
            let (gauges, inflight) = (self.fs.gauges(), self.fetcher.statistics().inflight_chunks);
            let is_idle = (gauges.files, gauges.directories, inflight) == (0, 0, 0);
            if is_idle { Ok(()) } else { Err(format!("in use: {gauges:?}, {inflight} chunks under way")) }
        });
    }
}

/// Repeats what fails while the mount is in use: a program that another test is just starting holds a copy of every
/// open file for a moment, and what is released is released behind the scenes.
fn until_ok<E: std::fmt::Display>(work: impl Fn() -> Result<(), E>) {
    const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);
    let begun = std::time::Instant::now();
    loop {
        match work() {
            Ok(()) => return,
            Err(error) if error.to_string().contains("in use") && begun.elapsed() < PATIENCE => {
                std::thread::yield_now();
            }
            Err(error) => panic!("{error}"),
        }
    }
}

fn is_mounted(folder: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().any(|line| line.split(' ').nth(4) == folder.to_str())
}
