//! A world with sample files and a host from the beginning, for tests of the command line.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::world::{Host, World, status_of};
pub(super) use crate::world::{
    can_mount, code, errors, is_alive, mount_at, mount_table, succeeds, wait_until, wormhole,
};

/// One folder, one host, any number of mounts.
pub(super) struct Stage {
    // Dropped first: a mount ends better while its host is there.
    world: World,
    host: Option<Host>,
    pub(super) listening: String,
    pub(super) ticket: String,
}

impl Stage {
    /// A host that serves `export` with two files and a folder.
    pub(super) fn new() -> Self {
        let world = World::new();
        let export = world.source();
        fs::create_dir_all(export.join("below")).unwrap();
        fs::write(export.join("hello"), "hello, world\n").unwrap();
        let large: Vec<u8> =
            (0..5_000_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        fs::write(export.join("below/large"), large).unwrap();
        let mut stage = Self { world, host: None, listening: String::new(), ticket: String::new() };
        stage.start_host("127.0.0.1:0");
        fs::write(stage.path("ticket"), format!("{}\n", stage.ticket)).unwrap();
        stage
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.world.path(name)
    }

    pub(super) fn start_host(&mut self, listen: &str) {
        let host = self.world.host_on(listen, &[]);
        (self.listening, self.ticket) = (host.listening.to_string(), host.ticket.clone());
        self.host = Some(host);
    }

    pub(super) fn host_pid(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(self.host.as_ref().unwrap().child.id().cast_signed())
    }

    /// What `wormhole status` says of the host.
    pub(super) fn host_status(&self) -> Value {
        self.host.as_ref().unwrap().status()
    }

    pub(super) fn stop_host(&mut self) {
        self.host = None;
    }

    /// Waits until the files have lain still for so long that a version names one content, as the cache demands.
    pub(super) fn settle(&self) {
        let of_folder =
            |name| fs::read_dir(self.path(name)).unwrap().map(|entry| entry.unwrap().metadata().unwrap());
        let all = of_folder("export").chain(of_folder("export/below"));
        let changed = all.map(|found| found.modified().unwrap()).max().unwrap();
        let settled = Duration::from_nanos(wormhole::proto::Version::SETTLE_NS.unsigned_abs() + 100_000_000);
        std::thread::sleep(settled.saturating_sub(changed.elapsed().unwrap()));
    }

    /// A directory to mount on; made if need be.
    pub(super) fn mountpoint(&self, name: &str) -> PathBuf {
        let mountpoint = self.path(name);
        if mount_at(&mountpoint).is_none() {
            fs::create_dir_all(&mountpoint).unwrap();
        }
        mountpoint
    }

    pub(super) fn mount_command(&self, source: &str, mountpoint: &Path) -> Command {
        self.world.mount_command(source, mountpoint)
    }

    /// Mounts by the ticket in its file.
    #[track_caller]
    pub(super) fn mount(&self, name: &str, options: &str) -> PathBuf {
        let mountpoint = self.mountpoint(name);
        let source = format!("@{}", self.path("ticket").display());
        succeeds(self.mount_command(&source, &mountpoint).args(["-o", options]));
        mountpoint
    }

    /// The report of the mount there.
    #[track_caller]
    pub(super) fn status(mountpoint: &Path) -> Value {
        status_of(mountpoint)
    }

    /// Fails unless mount, process and control socket are gone.
    #[track_caller]
    pub(super) fn nothing_is_left(mountpoint: &Path, status: &Value) {
        wait_until("the mount is gone", || mount_at(mountpoint).is_none());
        let pid = status["pid"].as_u64().unwrap();
        wait_until("the daemon is gone", || !is_alive(pid));
        let left: Vec<_> = fs::read_dir(control_dir())
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
            .filter(|name| name.ends_with(&format!("-{pid}.sock")))
            .collect();
        assert_eq!(left, Vec::<String>::new());
    }
}

/// Where the sockets of this user's daemons are.
pub(super) fn control_dir() -> PathBuf {
    wormhole::config::Environment::of_process().control_dir()
}
