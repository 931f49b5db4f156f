//! Whose files are whose: `idmap=none`, `user` and `file`, in both directions.
//!
//! Files of several users are made by root; other users have no such tests.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown};
use std::path::Path;

use crate::world::{WORMHOLE, World, plain_users_can_mount, printed_by, run, succeeds, words};

/// As whom the host acts: `daemon`, which Debian and its kin have as user 1 and group 1.
const ACTING: (u32, u32) = (1, 1);

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A world whose folder everybody may write to, with a file for each of these users and groups, named `UID-GID`.
fn world_of(owners: &[(u32, u32)]) -> World {
    let world = World::new();
    fs::set_permissions(world.source(), fs::Permissions::from_mode(0o777)).unwrap();
    for (uid, gid) in owners {
        let path = world.source().join(format!("{uid}-{gid}"));
        fs::write(&path, "x").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        chown(&path, Some(*uid), Some(*gid)).unwrap();
    }
    world
}

fn owner(path: &Path) -> (u32, u32) {
    let found = fs::symlink_metadata(path).unwrap();
    (found.uid(), found.gid())
}

fn acl(path: &Path) -> String {
    printed_by("getfacl", &["-c", "-n", "--absolute-names", path.to_str().unwrap()])
}

#[test]
fn the_mounting_user_stands_for_the_one_as_whom_the_host_acts() {
    if !is_root() {
        return;
    }
    let world = world_of(&[ACTING, (0, 0), (4321, 8765)]);
    let host = world.host_on("127.0.0.1:0", &["--ticket-user", "daemon"]);
    let shown = |options: &str| {
        let mount = world.mount(&host.ticket, options);
        let shown = ["1-1", "0-0", "4321-8765"].map(|name| owner(&mount.path(name)));
        mount.umount();
        shown
    };
    // Here root mounts: user 0 is who mounts, and the host's own 0 is shown under the number that became free.
    assert_eq!(shown(""), [(1, 1), (0, 0), (4321, 8765)]);
    assert_eq!(shown("idmap=none"), [(1, 1), (0, 0), (4321, 8765)]);
    assert_eq!(shown("idmap=user"), [(0, 0), (1, 1), (4321, 8765)]);
    assert_eq!(
        shown("idmap=user,uid=77"),
        [(77, 0), (77, 1), (77, 8765)],
        "one owner for all counts for more"
    );

    let mount = world.mount(&host.ticket, "idmap=user");
    let (file, held) = (mount.path("new"), world.source().join("new"));
    fs::write(&file, "x").unwrap();
    assert_eq!((owner(&file), owner(&held)), ((0, 0), ACTING));
    // What the mounting user may do on the host is to give files to himself, under his number here.
    chown(&file, Some(0), Some(0)).unwrap();
    assert_eq!(owner(&held), ACTING);
    assert!(chown(&file, Some(1), None).is_err_and(|error| error.raw_os_error() == Some(libc::EPERM)));
    let path = file.to_str().unwrap();
    printed_by("setfacl", &["-m", "u:0:rw,u:4321:r,u:1:rwx,g:0:r", path]);
    let (here, there) = (acl(&file), acl(&held));
    for (line, seen) in [("user:0:rw", &here), ("user:1:rw", &there), ("user:4321:r--", &there)] {
        assert!(seen.contains(line), "{line} is not in {seen}");
    }
    assert!(here.contains("user:1:rwx") && there.contains("user:0:rwx"), "{here}{there}");
    assert!(here.contains("group:0:r") && there.contains("group:1:r"), "{here}{there}");
    let (folder, held) = (mount.path("folder"), world.source().join("folder"));
    fs::create_dir(&folder).unwrap();
    printed_by("setfacl", &["-d", "-m", "u:0:rw", folder.to_str().unwrap()]);
    assert!(acl(&folder).contains("default:user:0:rw") && acl(&held).contains("default:user:1:rw"));
}

#[test]
fn offline_the_one_as_whom_the_host_acted_last_is_remembered() {
    if !is_root() {
        return;
    }
    let world = world_of(&[ACTING, (0, 0)]);
    let mut host = world.host_on("127.0.0.1:0", &["--ticket-user", "daemon"]);
    let mount = world.mount(&host.ticket, "ro");
    assert_eq!(owner(&mount.path("1-1")), ACTING);
    mount.umount();
    host.kill();
    let mount = world.mount(&host.ticket, "offline,idmap=user");
    assert_eq!(owner(&mount.path("1-1")), (0, 0));
}

#[test]
fn files_say_who_stands_for_whom() {
    if !is_root() {
        return;
    }
    let world = world_of(&[(6001, 6002), (5001, 5002), (7001, 0), (1, 0)]);
    let host = world.host();
    let options = |users: &str, groups: &str, more: &str| {
        fs::write(world.path("users"), users).unwrap();
        fs::write(world.path("groups"), groups).unwrap();
        let (users, groups) = (world.path("users"), world.path("groups"));
        format!("idmap=file,uidfile={},gidfile={},{more}", users.display(), groups.display())
    };
    let (users, groups) =
        ("# people\n5001:6001\ndaemon:x:7001:7001::/:/bin/false\n0:0\n", "5002:6002\n0:0\n");

    let mount = world.mount(&host.ticket, &options(users, groups, "nomap=ignore"));
    assert_eq!(owner(&mount.path("6001-6002")), (5001, 5002));
    assert_eq!(owner(&mount.path("5001-5002")), (6001, 6002), "nobody is shown as somebody else");
    assert_eq!(owner(&mount.path("7001-0")), (1, 0));
    assert_eq!(owner(&mount.path("1-0")), (7001, 0));
    mount.umount();

    for more in ["nomap=error", ""] {
        let mount = world.mount(&host.ticket, &options(users, groups, more));
        assert_eq!(owner(&mount.path("6001-6002")), (5001, 5002));
        let unmapped = fs::symlink_metadata(mount.path("5001-5002")).unwrap_err();
        assert_eq!(unmapped.raw_os_error(), Some(libc::EPERM), "{unmapped}");
        let mut names: Vec<_> =
            fs::read_dir(&mount.point).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["1-0", "5001-5002", "6001-6002", "7001-0"], "names are no secret");
        assert!(fs::read(mount.path("5001-5002")).is_err() && fs::read(mount.path("6001-6002")).is_ok());
        mount.umount();
    }

    // One kind of file alone leaves the other kind of numbers as they are.
    options(users, groups, "");
    let mount = world.mount(&host.ticket, &format!("idmap=file,uidfile={}", world.path("users").display()));
    assert_eq!(owner(&mount.path("6001-6002")), (5001, 6002));
    mount.umount();

    let refused = |options: String, parts: &[&str]| {
        let (_, output) = world.try_mount_as("refused", &host.ticket, &options);
        assert_eq!(output.status.code(), Some(32), "{}", words(&output));
        for part in parts {
            assert!(words(&output).contains(part), "{part:?} is not in {}", words(&output));
        }
    };
    refused(options("5001:6001\nann 7\n", groups, ""), &["users", "line 2"]);
    refused(options(users, "5002:6002\n5003:6002\n", ""), &["groups", "line 2", "6002"]);
    refused(options("5001:6001\n", groups, ""), &["number 0", "nomap=ignore"]);
    refused("idmap=file".to_owned(), &["uidfile"]);
    refused("uidfile=/etc/passwd".to_owned(), &["idmap=file"]);
}

#[test]
fn owners_that_are_chosen_here_are_the_host_s_there() {
    if !is_root() {
        return;
    }
    let world = world_of(&[(6001, 6002)]);
    let host = world.host();
    world.mount(&host.ticket, "").umount();
    let keys = world.path("host-state/authorized_keys");
    let text = fs::read_to_string(&keys).unwrap().replace(" exports=", " owners exports=");
    fs::write(&keys, text).unwrap();
    fs::write(world.path("users"), "5001:6001\n").unwrap();
    fs::write(world.path("groups"), "5002:6002\n").unwrap();
    let options = format!(
        "idmap=file,uidfile={},gidfile={},nomap=ignore,allow_other",
        world.path("users").display(),
        world.path("groups").display()
    );
    fs::set_permissions(world.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    let mount = world.mount(&host.ticket, &options);
    let script = "umask 022; touch file; mkdir folder; mkfifo pipe; ln -s x link";
    let script = format!("cd {} && {script}", mount.point.display());
    let made =
        run("setpriv", &["--reuid=5001", "--regid=5002", "--clear-groups", "--", "sh", "-ec", &script]);
    assert!(made.status.success(), "{}", words(&made));
    for name in ["file", "folder", "pipe", "link"] {
        assert_eq!(owner(&world.source().join(name)), (6001, 6002), "{name}");
        assert_eq!(owner(&mount.path(name)), (5001, 5002), "{name}");
    }
    // As on a local disk.
    let local = world.path("local");
    fs::create_dir(&local).unwrap();
    chown(&local, Some(5001), Some(5002)).unwrap();
    let bits = "import os, stat\nos.setgroups([])\nos.setgid(5002)\nos.setuid(5001)\nos.umask(0)\n\
                for kind in ['S_IFIFO', 'S_IFREG', 'S_IFSOCK']: os.mknod(kind, getattr(stat, kind) | 0o6777)";
    for folder in [mount.point.as_path(), &local] {
        succeeds(std::process::Command::new("python3").args(["-c", bits]).current_dir(folder));
    }
    for name in ["S_IFIFO", "S_IFREG", "S_IFSOCK"] {
        let mode = |path: std::path::PathBuf| fs::symlink_metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(mount.path(name)), mode(local.join(name)), "{name}");
    }
    lchown(mount.path("link"), Some(4321), Some(5002)).unwrap();
    assert_eq!(owner(&world.source().join("link")), (4321, 6002));
    chown(mount.path("file"), Some(6001), None).unwrap();
    assert_eq!(owner(&world.source().join("file")), (5001, 6002), "who is shown as 6001 is the host's 5001");
}

#[test]
fn a_plain_user_sees_as_his_own_what_the_host_s_user_has() {
    if !is_root() || !plain_users_can_mount() {
        return;
    }
    let world = world_of(&[(0, 0), (4321, 8765)]);
    let host = world.host();
    fs::set_permissions(world.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    let home = world.path("home");
    fs::create_dir_all(home.join("mnt")).unwrap();
    printed_by("chown", &["-R", "nobody", home.to_str().unwrap()]);
    // The binary may lie where only root may look.
    let binary = world.path("wormhole");
    fs::copy(WORMHOLE, &binary).unwrap();
    let as_nobody = |command: &str| {
        let command = format!("cd {0} && export HOME={0} XDG_RUNTIME_DIR={0} && {command}", home.display());
        let arguments = ["--reuid=nobody", "--regid=nogroup", "--clear-groups", "--", "sh", "-ec", &command];
        let output = run("setpriv", &arguments);
        assert!(output.status.success(), "{command}: {}", words(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    as_nobody(&format!("{} mount {} mnt -o idmap=user", binary.display(), host.ticket));
    let shown = as_nobody(
        "touch mnt/new; chown nobody mnt/new; cd mnt; stat -c %U:%G:%u new 0-0; stat -c %u:%g 4321-8765",
    );
    assert_eq!(
        shown.lines().collect::<Vec<_>>(),
        ["nobody:nogroup:65534", "nobody:nogroup:65534", "4321:8765"]
    );
    assert_eq!(owner(&world.source().join("new")), (0, 0), "root runs the host");
    as_nobody(&format!("{} umount mnt", binary.display()));
}
