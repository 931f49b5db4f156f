//! Leases: what the host would tell of changes is not asked for again, and changes show by themselves.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use crate::world::{Mount, World, printed_by, wait_until};

const FOLDERS: usize = 12;
const FILES: usize = 15;

/// Longer than names and attributes hold without a lease.
const LONGER_THAN_TIMEOUTS: Duration = Duration::from_millis(2_500);

fn grow_tree(root: &Path) {
    for folder in 0..FOLDERS {
        let folder = root.join(format!("folder {folder}"));
        fs::create_dir(&folder).unwrap();
        for file in 0..FILES {
            fs::write(folder.join(format!("file {file}")), b"content").unwrap();
        }
    }
}

fn list(path: &Path) -> String {
    printed_by("ls", &["-lR", "--full-time", path.to_str().unwrap()])
}

fn requests(mount: &Mount) -> u64 {
    mount.status()["requests"].as_u64().unwrap()
}

fn leases(mount: &Mount) -> u64 {
    mount.status()["leases"].as_u64().unwrap()
}

#[test]
fn a_tree_that_was_listed_is_listed_again_without_a_question() {
    let world = World::new();
    grow_tree(&world.source());
    let host = world.host();
    let mount = world.mount(&host.ticket, "");
    let first = list(&mount.point);
    assert_eq!(leases(&mount), FOLDERS as u64 + 1);
    assert_eq!(host.status()["leases"], FOLDERS as u64 + 1);
    sleep(LONGER_THAN_TIMEOUTS);
    let before = requests(&mount);
    assert_eq!(list(&mount.point), first);
    assert_eq!(requests(&mount) - before, 0, "the host was asked");
    mount.umount();
}

#[test]
fn a_path_that_was_looked_up_is_looked_up_again_without_a_question() {
    let world = World::new();
    fs::create_dir_all(world.source().join("a/b/c")).unwrap();
    fs::write(world.source().join("a/b/c/file"), b"content").unwrap();
    let host = world.host();
    let mount = world.mount(&host.ticket, "");
    let look = || fs::metadata(mount.path("a/b/c/file")).unwrap().len();
    look();
    sleep(LONGER_THAN_TIMEOUTS);
    // What the kernel asks now of the directories on the way comes under the leases that the first look gave.
    look();
    sleep(LONGER_THAN_TIMEOUTS);
    let before = requests(&mount);
    assert_eq!(look(), 7);
    assert_eq!(requests(&mount) - before, 0, "the host was asked");
    mount.umount();
}

#[test]
fn a_name_that_is_not_there_is_asked_for_once() {
    let world = World::new();
    fs::create_dir(world.source().join("sub")).unwrap();
    fs::write(world.source().join("sub/present"), b"").unwrap();
    let host = world.host();
    let mount = world.mount(&host.ticket, "");
    let (present, absent) = (mount.path("sub/present"), mount.path("sub/absent"));
    // Nobody lists the directory; the name that is there brings the lease.
    for _ in 0..2 {
        assert!(present.exists() && !absent.exists());
        sleep(LONGER_THAN_TIMEOUTS);
    }
    let before = requests(&mount);
    assert!(!absent.exists());
    assert_eq!(requests(&mount) - before, 0, "the host was asked");
    fs::write(world.source().join("sub/absent"), b"").unwrap();
    wait_until("a file that another made", || absent.exists());
    fs::remove_file(world.source().join("sub/absent")).unwrap();
    wait_until("it is gone", || !absent.exists());
    fs::write(&absent, b"made here").unwrap();
    assert_eq!(fs::read(&absent).unwrap(), b"made here");
    mount.umount();
}

#[test]
fn every_kind_of_change_on_the_host_shows_under_a_lease() {
    let world = World::new();
    grow_tree(&world.source());
    let host = world.host();
    let mount = world.mount(&host.ticket, "");
    let there = world.source().join("folder 1");
    let here = mount.path("folder 1");
    list(&mount.point);
    assert!(leases(&mount) > 1);
    let shows = |what: &str, is_so: &dyn Fn() -> bool| {
        // The lease must not be what keeps it from being seen.
        wait_until(what, is_so);
        list(&mount.point);
    };
    fs::write(there.join("new"), b"new").unwrap();
    shows("a file that was made", &|| list(&here).contains("new"));
    fs::write(there.join("new"), b"longer content").unwrap();
    shows("content that was written", &|| fs::metadata(here.join("new")).unwrap().len() == 14);
    fs::OpenOptions::new().write(true).open(there.join("new")).unwrap().set_len(3).unwrap();
    shows("a file that was cut", &|| fs::metadata(here.join("new")).unwrap().len() == 3);
    fs::set_permissions(there.join("new"), fs::Permissions::from_mode(0o600)).unwrap();
    shows("permissions", &|| fs::metadata(here.join("new")).unwrap().mode() & 0o777 == 0o600);
    fs::write(there.join(".temporary"), b"replaced by a rename").unwrap();
    fs::rename(there.join(".temporary"), there.join("new")).unwrap();
    shows("a file that was replaced", &|| {
        fs::read(here.join("new")).is_ok_and(|bytes| bytes == b"replaced by a rename")
    });
    fs::rename(there.join("new"), there.join("newer")).unwrap();
    shows("a file that was renamed", &|| {
        !here.join("new").exists() && fs::metadata(here.join("newer")).is_ok_and(|found| found.len() == 20)
    });
    fs::remove_file(there.join("newer")).unwrap();
    shows("a file that was removed", &|| !here.join("newer").exists() && !list(&here).contains("newer"));
    fs::create_dir(there.join("sub")).unwrap();
    shows("a directory that was made", &|| here.join("sub").is_dir());
    fs::write(there.join("sub/below"), b"x").unwrap();
    shows("a file below it", &|| here.join("sub/below").exists());
    let times = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
    shows("the times of a directory", &|| times(&here.join("sub")) == times(&there.join("sub")));
    fs::remove_dir_all(there.join("sub")).unwrap();
    shows("a directory that was removed", &|| !here.join("sub").exists());
    fs::rename(&there, world.source().join("moved")).unwrap();
    shows("a directory that was moved", &|| !here.exists() && mount.path("moved/file 1").exists());
    mount.umount();
}

#[test]
fn a_change_through_another_name_shows_within_the_time_outs() {
    let world = World::new();
    fs::create_dir(world.source().join("one")).unwrap();
    fs::create_dir(world.source().join("other")).unwrap();
    fs::write(world.source().join("one/file"), b"short").unwrap();
    fs::hard_link(world.source().join("one/file"), world.source().join("other/link")).unwrap();
    let host = world.host();
    let mount = world.mount(&host.ticket, "");
    list(&mount.path("one"));
    fs::write(world.source().join("other/link"), b"something longer").unwrap();
    wait_until("a change through another name", || fs::metadata(mount.path("one/file")).unwrap().len() == 16);
    mount.umount();
}

#[test]
fn two_mounts_see_what_the_other_does_under_leases() {
    let world = World::new();
    grow_tree(&world.source());
    let host = world.host();
    let one = world.mount(&host.ticket, "");
    let key = world.mount_as("other", &host.ticket, "");
    for mount in [&one, &key] {
        list(&mount.point);
    }
    for round in 0..5 {
        let name = format!("folder 2/made {round}");
        fs::write(one.path(&name), vec![b'x'; round + 1]).unwrap();
        wait_until("what the other mount made", || {
            fs::metadata(key.path(&name)).is_ok_and(|found| found.len() == round as u64 + 1)
        });
        fs::remove_file(key.path(&name)).unwrap();
        wait_until("what the other mount removed", || !one.path(&name).exists());
    }
    one.umount();
    key.umount();
}

#[test]
fn leases_end_with_the_host_and_begin_anew() {
    let world = World::new();
    grow_tree(&world.source());
    let mut host = world.host();
    let mount = world.mount(&host.ticket, "");
    list(&mount.point);
    host.kill();
    wait_until("the mount to notice", || mount.status()["state"] == "disconnected" && leases(&mount) == 0);
    fs::write(world.source().join("folder 3/while away"), b"x").unwrap();
    let _host = world.host_on(&host.listening.to_string(), &[]);
    wait_until("what was made while the host was away", || list(&mount.point).contains("while away"));
    wait_until("leases", || {
        list(&mount.point);
        leases(&mount) == FOLDERS as u64 + 1
    });
    mount.umount();
}

#[test]
fn without_time_outs_there_are_no_leases() {
    let world = World::new();
    grow_tree(&world.source());
    let host = world.host();
    let mount = world.mount(&host.ticket, "actimeo=0");
    list(&mount.point);
    let before = requests(&mount);
    list(&mount.point);
    assert!(requests(&mount) > before, "the host was not asked");
    assert_eq!(leases(&mount), 0);
    mount.umount();
}

#[test]
fn what_a_program_did_itself_stays_known() {
    let world = World::new();
    let host = world.host();
    let mount = world.mount(&host.ticket, "");
    let made = Command::new("sh")
        .args(["-c", "for i in 1 2 3 4 5 6 7 8; do echo $i > $i; done; mkdir sub; touch sub/file"])
        .current_dir(&mount.point)
        .status();
    assert!(made.unwrap().success());
    let first = list(&mount.point);
    assert_eq!(first.replace(mount.point.to_str().unwrap(), ""), {
        list(&world.source()).replace(world.source().to_str().unwrap(), "")
    });
    // Events of the mount's own changes are over by then, and what they told is what was known.
    sleep(LONGER_THAN_TIMEOUTS);
    list(&mount.point);
    sleep(LONGER_THAN_TIMEOUTS);
    let before = requests(&mount);
    assert_eq!(list(&mount.point), first);
    assert_eq!(requests(&mount) - before, 0, "the host was asked");
    mount.umount();
}
