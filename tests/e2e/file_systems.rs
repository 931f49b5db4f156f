//! Exports on file systems whose numbers prove less than those of a local disk, or change: images, layers, programs, other devices.
//!
//! Real ones are mounted, which only root may; elsewhere these tests have nothing to do. The tools are those of Debian's
//! `squashfs-tools`, `erofs-utils`, `xorriso`, `e2fsprogs` and `bindfs`.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::relay::Relay;
use crate::world::{
    Host, Mount, World, errors, mount_at, noise, printed_by, run, succeeds, wait_until, words, wormhole,
};

/// How long names and attributes hold, and a little.
const COPIES_HOLD: Duration = Duration::from_millis(1100);

/// How long a version settles, and a little.
const SETTLES: Duration = Duration::from_millis(2100);

pub(super) fn may_mount() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Whether the kernel has a kind of file system, built in or as a module.
fn kernel_knows(kind: &str) -> bool {
    let is_listed = || {
        let list = fs::read_to_string("/proc/filesystems").unwrap();
        list.lines().any(|line| line.split_whitespace().next_back() == Some(kind))
    };
    is_listed() || (Command::new("modprobe").arg(kind).output().is_ok() && is_listed())
}

/// Something mounted by root; taken down when dropped.
pub(super) struct Mounted(PathBuf);

impl Mounted {
    #[track_caller]
    pub(super) fn new(point: PathBuf, kind: &str, options: &str, source: &Path) -> Self {
        fs::create_dir_all(&point).unwrap();
        succeeds(Command::new("mount").args(["-t", kind, "-o", options]).arg(source).arg(&point));
        Self(point)
    }

    /// Unmounts it as soon as the host has closed what it keeps open for a moment.
    #[track_caller]
    pub(super) fn umount(self) {
        let point = self.0.to_str().unwrap().to_owned();
        wait_until("nobody uses the file system", || run("umount", &[&point]).status.success());
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if mount_at(&self.0).is_some() {
            run("umount", &["-l", self.0.to_str().unwrap()]);
        }
    }
}

/// A loop device of this test's own, behind which images can be exchanged.
struct Loop(PathBuf);

impl Loop {
    fn new(image: &Path) -> Self {
        let output = succeeds(Command::new("losetup").args(["--find", "--show"]).arg(image));
        Self(PathBuf::from(output.trim()))
    }

    #[track_caller]
    fn exchange(&self, image: &Path) {
        let device = self.0.to_str().unwrap();
        wait_until("the device is free", || {
            let _ = run("losetup", &["-d", device]);
            run("losetup", &[device, image.to_str().unwrap()]).status.success()
        });
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        run("losetup", &["-d", self.0.to_str().unwrap()]);
    }
}

const SIZES: [(&str, usize); 2] = [("small", 5000), ("large", (3 << 20) + 77)];

/// Makes a folder with a small and a large file, all of 2001.
fn fill(folder: &Path, seed: u64) {
    fs::create_dir_all(folder).unwrap();
    for (name, len) in SIZES {
        let file = folder.join(name);
        fs::write(&file, noise(len, seed)).unwrap();
        fs::File::options().write(true).open(file).unwrap().set_modified(in_2001()).unwrap();
    }
    fs::File::open(folder).unwrap().set_modified(in_2001()).unwrap();
}

fn in_2001() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_000_000_000)
}

/// What the status of a host says of a folder of its export.
#[track_caller]
fn assert_class(host: &Host, folder: &Path, kind: &str, trust: &str) {
    let status = host.status();
    let all = status["file_systems"].as_array().unwrap();
    let found = all.iter().find(|found| found["path"] == folder.to_str().unwrap());
    let found = found.unwrap_or_else(|| panic!("{} is not in {all:?}", folder.display()));
    assert_eq!((found["file_system"].as_str(), found["trust"].as_str()), (Some(kind), Some(trust)));
}

#[track_caller]
fn assert_shows(mount: &Mount, folder: &str, seed: u64, what: &str) {
    for (name, len) in SIZES {
        let read = fs::read(mount.path(folder).join(name)).unwrap();
        assert!(read == noise(len, seed), "{what}: {name} has other bytes than on the host");
    }
}

/// Packs a folder into an image that has nothing in it but names, numbers and content: two such of one tree differ in content alone.
fn pack(kind: &str, folder: &Path, image: &Path) {
    let mut command = match kind {
        "squashfs" => {
            let mut command = Command::new("mksquashfs");
            command.arg(folder).arg(image);
            command.args(["-all-time", "1000000000", "-mkfs-time", "1000000000", "-noappend", "-quiet"]);
            command.arg("-no-progress");
            command
        }
        "erofs" => {
            let mut command = Command::new("mkfs.erofs");
            command.args(["-T", "1000000000", "-U", "00000000-0000-0000-0000-000000000001"]);
            command.arg(image).arg(folder);
            command
        }
        _ => {
            let mut command = Command::new("xorriso");
            command.args(["-as", "mkisofs", "-R", "-quiet", "-o"]).arg(image).arg(folder);
            command.env("SOURCE_DATE_EPOCH", "1000000000");
            command
        }
    };
    succeeds(&mut command);
}

#[test]
fn an_image_that_is_exchanged_behind_its_device_shows_its_own_files() {
    if !may_mount() {
        return;
    }
    let kinds = ["squashfs", "erofs", "iso9660"].into_iter().filter(|kind| kernel_knows(kind));
    for kind in kinds {
        let world = World::new();
        let images = [1, 2].map(|seed| {
            let (folder, image) = (world.path(&format!("tree-{seed}")), world.path(&format!("image-{seed}")));
            fill(&folder, seed);
            pack(kind, &folder, &image);
            image
        });
        let device = Loop::new(&images[0]);
        let inside = Mounted::new(world.source().join("image"), kind, "ro", &device.0);
        let numbers = |path: PathBuf| {
            let found = fs::metadata(path).unwrap();
            (found.dev(), found.ino(), found.len(), found.mtime(), found.ctime())
        };
        let first = numbers(inside.0.join("small"));
        let host = world.host();
        let mount = world.mount(&host.ticket, "");
        assert_shows(&mount, "image", 1, kind);
        assert_shows(&mount, "image", 1, kind);
        assert_class(&host, &inside.0, kind, "weak");
        inside.umount();
        device.exchange(&images[1]);
        let inside = Mounted::new(world.source().join("image"), kind, "ro", &device.0);
        assert_eq!(numbers(inside.0.join("small")), first, "{kind}: the images can be told apart by numbers");
        std::thread::sleep(COPIES_HOLD);
        assert_shows(&mount, "image", 2, kind);
        mount.umount();
        let mount = world.mount(&host.ticket, "");
        assert_shows(&mount, "image", 2, &format!("{kind} after a remount"));
        mount.umount();
        drop(host);
        inside.umount();
    }
}

/// A file system made by a program, which copies the time of modification into the change time and keeps no birth.
#[test]
fn what_changes_below_a_program_without_a_trace_is_seen_by_whoever_opens_it() {
    if !may_mount() {
        return;
    }
    let world = World::new();
    fill(&world.path("tree"), 1);
    let point = world.source().join("program");
    fs::create_dir_all(&point).unwrap();
    succeeds(Command::new("bindfs").arg("--ctime-from-mtime").arg(world.path("tree")).arg(&point));
    let inside = Mounted(point);
    let host = world.host();
    let relay = Relay::start(host.listening);
    let mount = world.mount(&host.ticket_for(relay.address()), "");
    assert_shows(&mount, "program", 1, "bindfs");
    assert_class(&host, &inside.0, "fuse", "weak");
    let before = relay.bytes_to_client();
    assert_shows(&mount, "program", 1, "bindfs");
    let again = relay.bytes_to_client() - before;
    assert!(again < 1_000_000, "{again} bytes came over the wire for what the host only had to confirm");
    let output = wormhole().args(["cache", "warm"]).arg(mount.path("program")).output().unwrap();
    assert!(output.status.success(), "{}", words(&output));
    assert!(
        errors(&output).contains("2 files lie on a file system whose times prove nothing"),
        "{}",
        words(&output)
    );
    for (name, len) in SIZES {
        let file = fs::File::options().write(true).open(world.path("tree").join(name)).unwrap();
        file.write_all_at(&noise(len, 2), 0).unwrap();
        file.set_modified(in_2001()).unwrap();
    }
    // The host's kernel is not told of a new name there; the listing must not be taken to hold.
    assert_eq!(fs::read_dir(mount.path("program")).unwrap().count(), SIZES.len());
    fs::write(world.path("tree/new"), "new").unwrap();
    std::thread::sleep(COPIES_HOLD);
    assert_shows(&mount, "program", 2, "bindfs");
    assert_eq!(fs::read_dir(mount.path("program")).unwrap().count(), SIZES.len() + 1);
    assert_eq!(fs::read(mount.path("program/new")).unwrap(), b"new");
    mount.umount();
    let mount = world.mount(&host.ticket_for(relay.address()), "");
    assert_shows(&mount, "program", 2, "bindfs after a remount");
    mount.umount();
    drop(host);
    inside.umount();
}

/// Makes an ext4 image.
fn ext4(image: &Path) {
    fs::File::create(image).unwrap().set_len(32 << 20).unwrap();
    succeeds(Command::new("mkfs.ext4").args(["-q", "-b", "4096"]).arg(image));
}

#[test]
fn a_file_system_with_another_device_number_is_still_the_same() {
    if !may_mount() {
        return;
    }
    let world = World::new();
    let image = world.path("image");
    ext4(&image);
    let device = Loop::new(&image);
    let disk = Mounted::new(world.source(), "ext4", "rw", &device.0);
    fill(&world.source().join("folder"), 1);
    // Too small to be found by their hashes, as large files are under whatever name.
    let names: Vec<String> = (0..20).map(|number| format!("folder/{number}")).collect();
    for name in &names {
        fs::write(world.source().join(name), noise(50_000, 3)).unwrap();
    }
    let read_all = |mount: &Mount| {
        assert_shows(mount, "folder", 1, "ext4");
        for name in &names {
            assert!(fs::read(mount.path(name)).unwrap() == noise(50_000, 3), "{name}");
        }
    };
    std::thread::sleep(SETTLES);
    let number = fs::metadata(world.source()).unwrap().dev();
    let host = world.host();
    let mount = world.mount(&host.ticket, "");
    read_all(&mount);
    assert_class(&host, &world.source(), "ext4", "full");
    assert_eq!(mount.status()["file_systems"][0]["trust"], "full");
    mount.umount();
    drop(host);
    disk.umount();

    let other = Loop::new(&world.path("image"));
    drop(device);
    let disk = Mounted::new(world.source(), "ext4", "rw", &other.0);
    assert_ne!(fs::metadata(world.source()).unwrap().dev(), number);
    let host = world.host();
    let relay = Relay::start(host.listening);
    let mount = world.mount(&host.ticket_for(relay.address()), "");
    read_all(&mount);
    let sent = relay.bytes_to_client();
    assert!(sent < 200_000, "{sent} bytes came over the wire for what is in the cache");
    mount.umount();
    drop(host);
    disk.umount();
}

/// Copies of one disk have the same UUID and the same numbers inside.
#[test]
fn two_copies_of_one_disk_are_two_file_systems() {
    if !may_mount() {
        return;
    }
    let world = World::new();
    let (one, two) = (world.path("image-1"), world.path("image-2"));
    ext4(&one);
    let device = Loop::new(&one);
    let disk = Mounted::new(world.source().join("one"), "ext4", "rw", &device.0);
    fill(&disk.0, 1);
    disk.umount();
    fs::copy(&one, &two).unwrap();
    let devices = [device, Loop::new(&two)];
    let disks = ["one", "two"].into_iter().zip(&devices);
    let disks: Vec<_> = disks
        .map(|(name, device)| Mounted::new(world.source().join(name), "ext4", "rw", &device.0))
        .collect();
    // The first stays as it was, so only the device tells the two apart.
    let file = fs::File::options().write(true).open(world.source().join("two/small")).unwrap();
    file.write_all_at(&noise(SIZES[0].1, 2), 0).unwrap();
    file.set_modified(in_2001()).unwrap();
    drop(file);
    std::thread::sleep(SETTLES);
    let host = world.host();
    let mount = world.mount(&host.ticket, "");
    for _ in 0..2 {
        assert!(
            fs::read(mount.path("one/small")).unwrap() == noise(SIZES[0].1, 1),
            "the copy that lies still"
        );
        assert!(fs::read(mount.path("two/small")).unwrap() == noise(SIZES[0].1, 2), "the copy that changed");
    }
    assert_class(&host, &world.source().join("one"), "ext4", "full");
    assert_class(&host, &world.source().join("two"), "ext4", "weak");
    let inode = |name: &str| fs::metadata(mount.path(name)).unwrap().ino();
    assert_ne!(inode("one/small"), inode("two/small"), "they would be taken for one file with two names");
    mount.umount();
    drop(host);
    disks.into_iter().for_each(Mounted::umount);
}

#[test]
fn layers_and_memory_are_kept_as_a_disk_is() {
    if !may_mount() {
        return;
    }
    let world = World::new();
    for folder in ["lower", "upper", "work"] {
        fs::create_dir(world.path(folder)).unwrap();
    }
    fill(&world.path("lower"), 1);
    let [lower, upper, work] = ["lower", "upper", "work"].map(|name| world.path(name).display().to_string());
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    let layers = Mounted::new(world.source().join("layers"), "overlay", &options, Path::new("overlay"));
    let memory = Mounted::new(world.source().join("memory"), "tmpfs", "size=32m", Path::new("tmpfs"));
    fill(&memory.0, 2);
    std::thread::sleep(SETTLES);
    let host = world.host();
    let relay = Relay::start(host.listening);
    let ticket = host.ticket_for(relay.address());
    for expected in [20_000_000, 200_000] {
        let before = relay.bytes_to_client();
        let mount = world.mount(&ticket, "");
        assert_shows(&mount, "layers", 1, "overlay");
        assert_shows(&mount, "memory", 2, "tmpfs");
        mount.umount();
        let sent = relay.bytes_to_client() - before;
        assert!(sent < expected, "{sent} bytes came over the wire");
    }
    assert_class(&host, &layers.0, "overlay", "full");
    assert_class(&host, &memory.0, "tmpfs", "full");
    // What is written goes to the upper layer: another inode, the same name.
    let mount = world.mount(&ticket, "");
    fs::write(world.source().join("layers/small"), noise(SIZES[0].1, 3)).unwrap();
    std::thread::sleep(COPIES_HOLD);
    assert!(fs::read(mount.path("layers/small")).unwrap() == noise(SIZES[0].1, 3));
    mount.umount();
    drop(host);
    [layers, memory].into_iter().for_each(Mounted::umount);
}

#[test]
fn a_file_of_the_future_is_kept() {
    let world = World::new();
    fill(&world.source(), 1);
    for (name, _) in SIZES {
        let file = fs::File::options().write(true).open(world.source().join(name)).unwrap();
        file.set_modified(SystemTime::now() + Duration::from_secs(365 * 24 * 3600)).unwrap();
    }
    std::thread::sleep(SETTLES);
    let host = world.host();
    let relay = Relay::start(host.listening);
    let ticket = host.ticket_for(relay.address());
    let mount = world.mount(&ticket, "");
    let output = wormhole().args(["cache", "warm"]).arg(&mount.point).output().unwrap();
    assert!(output.status.success(), "{}", words(&output));
    for (name, len) in SIZES {
        let cached = printed_by(
            "getfattr",
            &["-n", "user.wormhole.cached_bytes", "--only-values", mount.path(name).to_str().unwrap()],
        );
        assert_eq!(cached, len.to_string(), "{name}");
    }
    mount.umount();
    let before = relay.bytes_to_client();
    let mount = world.mount(&ticket, "");
    assert_shows(&mount, "", 1, "the future");
    mount.umount();
    let sent = relay.bytes_to_client() - before;
    assert!(sent < 200_000, "{sent} bytes came over the wire for what is in the cache");
}
