//! How a mount looks from outside, and how it ends.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use wormhole::client::memory::MemoryHost;
use wormhole::fs::Freshness;
use wormhole::fuse::{UnmountError, UnmountHow, mount_stub};

use super::{MountedWorld, has_fuse, is_mounted};

fn host() -> MemoryHost {
    let host = MemoryHost::new();
    host.create_file("d/f", "content");
    host.create_generated("large", 4 << 20, 1);
    host
}

#[test]
fn the_table_of_mounts_says_what_it_is() {
    let Some(world) = MountedWorld::new(host()) else { return };
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().find(|line| line.contains(world.folder.path().to_str().unwrap())).unwrap();
    for part in ["ro,nosuid,nodev", "fuse.wormhole model:/export", "default_permissions"] {
        assert!(line.contains(part), "{line}");
    }
    world.end();
}

#[test]
fn a_mount_in_use_is_not_unmounted_but_can_be_detached() {
    let Some(world) = MountedWorld::new(host()) else { return };
    let mut file = File::open(world.path("large")).unwrap();
    let refused = world.mounted.unmount(UnmountHow::Clean).unwrap_err();
    assert!(matches!(refused, UnmountError::Busy(_)));
    assert!(refused.to_string().contains("in use"), "{refused}");
    world.mounted.unmount(UnmountHow::Detach).unwrap();
    assert!(!is_mounted(world.folder.path()));
    let mut read = Vec::new();
    file.read_to_end(&mut read).unwrap();
    assert_eq!(read.len(), 4 << 20);
    drop(file);
    world.runtime.block_on(world.mounted.ended()).unwrap();
}

#[test]
fn whoever_unmounts_it_it_has_ended() {
    let Some(world) = MountedWorld::new(host()) else { return };
    super::until_ok(|| {
        let status = std::process::Command::new("umount").arg(world.folder.path()).status().unwrap();
        if status.success() { Ok(()) } else { Err("in use") }
    });
    world.runtime.block_on(world.mounted.ended()).unwrap();
    assert!(world.mounted.has_ended());
    world.mounted.unmount(UnmountHow::Clean).unwrap();
}

#[test]
fn a_dropped_mount_is_gone_from_its_folder() {
    let Some(world) = MountedWorld::new(host()) else { return };
    let MountedWorld { mounted, folder, .. } = world;
    drop(mounted);
    assert!(!is_mounted(folder.path()));
}

#[test]
fn an_abort_frees_whoever_waits_for_a_host_that_is_gone() {
    let has_list_of_mounts =
        Path::new("/sys/fs/fuse/connections/").read_dir().is_ok_and(|mut all| all.next().is_some());
    if !nix::unistd::geteuid().is_root() && !has_list_of_mounts {
        return;
    }
    let Some(world) = MountedWorld::new(host()) else { return };
    let file = File::open(world.path("large")).unwrap();
    world.host.hold(|request, _| matches!(request, wormhole::proto::Request::Read(..)));
    let waiting = std::thread::spawn(move || (&file).read(&mut [0; 4096]).unwrap_err());
    world.runtime.block_on(world.host.until(|host| !host.held().is_empty()));
    world.mounted.unmount(UnmountHow::Abort).unwrap();
    let error = waiting.join().unwrap();
    assert!(matches!(error.raw_os_error(), Some(libc::ECONNABORTED | libc::ENOTCONN)), "{error}");
    assert!(!is_mounted(world.folder.path()));
}

#[test]
fn df_and_ls_of_a_known_folder_go_on_without_the_host() {
    let Some(world) = MountedWorld::new(host()) else { return };
    let names = |path: &Path| fs::read_dir(path).unwrap().map(Result::unwrap).collect::<Vec<_>>().len();
    assert_eq!(names(&world.path("d")), 1);
    nix::sys::statvfs::statvfs(world.folder.path()).unwrap();
    world.host.set_connected(false);
    assert_eq!(names(&world.path("d")), 1);
    assert_eq!(fs::metadata(world.path("d/f")).unwrap().len(), 7);
    nix::sys::statvfs::statvfs(world.folder.path()).unwrap();
    world.host.set_deadline(Duration::from_millis(1));
    assert_eq!(fs::metadata(world.path("unknown")).unwrap_err().raw_os_error(), Some(libc::ETIMEDOUT));
    world.end();
}

#[test]
fn a_mount_without_a_folder_says_so() {
    if !has_fuse() {
        return;
    }
    let missing = tempfile::tempdir().unwrap().path().join("not here");
    let refused = mount_stub(&missing, 1, true).unwrap_err().to_string();
    assert!(refused.contains("does the folder exist"), "{refused}");
}

#[test]
fn the_stub_serves_zeroes_both_ways() {
    if !has_fuse() {
        return;
    }
    for is_direct in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let stub = mount_stub(folder.path(), 3_000_001, is_direct).unwrap();
        assert!(fs::read(stub.file()).unwrap() == vec![0; 3_000_001]);
        drop(stub);
        assert!(!is_mounted(folder.path()));
    }
}

#[test]
fn kept_names_of_the_kernel_end_with_their_time() {
    let freshness = Freshness {
        attributes: Duration::from_millis(50),
        entries: Duration::from_millis(50),
        absence: Duration::from_millis(50),
    };
    let Some(world) = MountedWorld::with_freshness(host(), freshness) else { return };
    assert_eq!(fs::metadata(world.path("d/f")).unwrap().len(), 7);
    assert!(fs::metadata(world.path("d/new")).is_err());
    world.host.write("d/f", 0, "longer content");
    world.host.create_file("d/new", "x");
    let seen =
        || fs::metadata(world.path("d/f")).unwrap().len() == 14 && fs::metadata(world.path("d/new")).is_ok();
    // Ends when it is seen; a copy that never ends is a test that never does.
    while !seen() {
        std::thread::yield_now();
    }
    world.end();
}
