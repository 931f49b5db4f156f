//! Keys that act as users of the host, and mounts that change nothing: what the kernels on both sides say to programs.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, mknod, utimensat};
use nix::sys::time::TimeSpec;

use crate::world::{Mount, WORMHOLE, World, printed_by, run, wait_until, words};

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A mount by a key of its own that acts as `user`; the disk cache is the same for all.
fn mount_as_user(world: &World, user: &str) -> Mount {
    let state = world.path("host-state");
    let arguments =
        ["pair", "new", "export", "--user", user, "--json", "--state-dir", state.to_str().unwrap()];
    let made: serde_json::Value = serde_json::from_str(&printed_by(WORMHOLE, &arguments)).unwrap();
    assert_eq!(made["user"], user);
    let identity = format!("identity={}", world.path(&format!("{user}-key")).display());
    world.mount_as(user, made["ticket"].as_str().unwrap(), &identity)
}

fn uid_of(user: &str) -> u32 {
    nix::unistd::User::from_name(user).unwrap().unwrap().uid.as_raw()
}

/// Refused by the host's kernel.
#[track_caller]
fn denied<T: std::fmt::Debug>(answer: std::io::Result<T>) {
    let error = answer.map(drop).expect_err("this should be denied");
    assert_eq!(error.raw_os_error(), Some(libc::EACCES), "{error}");
}

#[test]
fn each_key_has_the_rights_of_its_user() {
    if !is_root() {
        return;
    }
    let world = World::new();
    chmod(&world.source(), 0o777);
    let host = world.host();
    let (one, other) = (mount_as_user(&world, "daemon"), mount_as_user(&world, "nobody"));
    let (daemon, nobody) = (uid_of("daemon"), uid_of("nobody"));
    let content = "s".repeat(3 << 20);
    for (mount, uid, name) in [(&one, daemon, "hers"), (&other, nobody, "his")] {
        fs::write(mount.path(name), &content).unwrap();
        chmod(&mount.path(name), 0o600);
        assert_eq!(fs::metadata(world.source().join(name)).unwrap().uid(), uid);
        fs::create_dir(mount.path(format!("{name}-folder"))).unwrap();
        chmod(&mount.path(format!("{name}-folder")), 0o700);
        fs::write(mount.path(format!("{name}-folder/inner")), "x").unwrap();
    }
    for (mine, yours, own, foreign) in [(&one, &other, "hers", "his"), (&other, &one, "his", "hers")] {
        assert_eq!(fs::read_to_string(mine.path(own)).unwrap(), content);
        let path = mine.path(foreign);
        // What another mount made is seen within a second.
        wait_until("the file is seen", || fs::symlink_metadata(&path).is_ok());
        wait_until("the folder is seen", || mine.path(format!("{foreign}-folder")).exists());
        denied(fs::read(&path));
        denied(OpenOptions::new().write(true).open(&path));
        denied(fs::write(&path, "x"));
        let listed = |folder| fs::read_dir(folder).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        denied(listed(mine.path(format!("{foreign}-folder"))));
        denied(fs::metadata(mine.path(format!("{foreign}-folder/inner"))));
        let changed = fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap_err();
        assert_eq!(changed.raw_os_error(), Some(libc::EPERM));
        let sum = run(WORMHOLE, &["sum", path.to_str().unwrap()]);
        assert!(!sum.status.success(), "{}", words(&sum));
        assert_eq!(fs::read_to_string(yours.path(foreign)).unwrap(), content, "who may, may still");
    }
    // Opened while it was allowed is open; opened later is not.
    let open = File::open(other.path("his")).unwrap();
    chown(world.source().join("his"), Some(daemon), None).unwrap();
    let mut byte = [0; 1];
    std::os::unix::fs::FileExt::read_exact_at(&open, &mut byte, 0).unwrap();
    denied(File::open(other.path("his")));
    // Neither key can take the other's place by name or by list.
    let state = world.path("host-state");
    let keys = printed_by(WORMHOLE, &["key", "list", "--json", "--state-dir", state.to_str().unwrap()]);
    let keys: serde_json::Value = serde_json::from_str(&keys).unwrap();
    let users: Vec<_> = keys.as_array().unwrap().iter().map(|key| key["user"].clone()).collect();
    assert_eq!(users, ["daemon", "nobody"]);
    drop(host);
}

#[test]
fn supplementary_groups_count_and_folders_hand_theirs_on() {
    const GROUP: u32 = 51_100;
    if !is_root() {
        return;
    }
    let world = World::new();
    for (name, gid, mode) in [("shared", GROUP, 0o2770), ("closed", GROUP + 1, 0o2770), ("sticky", 0, 0o1777)]
    {
        let path = world.source().join(name);
        fs::create_dir(&path).unwrap();
        fs::write(path.join("file"), "read me").unwrap();
        chown(&path, None, Some(gid)).unwrap();
        chmod(&path, mode);
    }
    // For the host alone, `nobody` is in one more group.
    let groups = fs::read_to_string("/etc/group").unwrap() + &format!("wormhole-test:x:{GROUP}:nobody\n");
    fs::write(world.path("group"), groups).unwrap();
    let mut command = Command::new("unshare");
    let script = "mount --bind \"$1\" /etc/group; shift; exec \"$@\"";
    command.args(["--mount", "sh", "-ec", script, "sh"]).arg(world.path("group")).arg(WORMHOLE);
    let host = world.host_by(command, "127.0.0.1:0", &["--ticket-user", "nobody"]);
    let mount = world.mount(&host.ticket, "");
    assert_eq!(fs::read_to_string(mount.path("shared/file")).unwrap(), "read me");
    denied(fs::read(mount.path("closed/file")));
    fs::write(mount.path("shared/new"), "x").unwrap();
    fs::create_dir(mount.path("shared/folder")).unwrap();
    for (name, mode) in [("shared/new", 0o644), ("shared/folder", 0o2755)] {
        let made = fs::metadata(world.source().join(name)).unwrap();
        assert_eq!((made.uid(), made.gid()), (uid_of("nobody"), GROUP), "{name}");
        assert_eq!(made.mode() & 0o7777, mode, "{name}");
    }
    let kept = fs::remove_file(mount.path("sticky/file")).unwrap_err();
    assert_eq!(kept.raw_os_error(), Some(libc::EPERM));
    fs::write(mount.path("sticky/own"), "x").unwrap();
    fs::remove_file(mount.path("sticky/own")).unwrap();
}

#[test]
fn a_user_whom_nobody_knows_is_refused_in_words() {
    let world = World::new();
    let host = world.host();
    let state = world.path("host-state");
    let arguments =
        ["pair", "new", "export", "--user", "no-such-user", "--state-dir", state.to_str().unwrap()];
    let output = run(WORMHOLE, &arguments);
    assert_eq!(output.status.code(), Some(1));
    assert!(words(&output).contains("no-such-user"), "{}", words(&output));
    drop(host);
}

#[test]
fn a_mount_that_is_read_only_refuses_every_change() {
    let world = World::new();
    fs::write(world.source().join("file"), "old").unwrap();
    fs::create_dir(world.source().join("folder")).unwrap();
    let host = world.host();
    for options in ["ro", "ro,default_permissions"] {
        let mount = world.mount(&host.ticket, options);
        let (file, folder, new) = (mount.path("file"), mount.path("folder"), mount.path("new"));
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let program = |name: &str, arguments: &[&str]| {
            let output = run(name, arguments);
            let is_refused = !output.status.success() && words(&output).contains("Read-only file system");
            if is_refused { Err(Errno::EROFS.into()) } else { Err(std::io::Error::other(words(&output))) }
        };
        let nix = |done: nix::Result<()>| done.map_err(std::io::Error::from);
        let time = TimeSpec::new(5, 0);
        let attempts: [(&str, std::io::Result<()>); 16] = [
            ("create", File::create(&new).map(drop)),
            ("open", OpenOptions::new().write(true).open(&file).map(drop)),
            ("append", OpenOptions::new().append(true).open(&file).map(drop)),
            ("mkdir", fs::create_dir(&new)),
            ("mknod", nix(mknod(&new, SFlag::S_IFIFO, Mode::S_IRWXU, 0))),
            ("symlink", symlink("x", &new)),
            ("link", fs::hard_link(&file, &new)),
            ("unlink", fs::remove_file(&file)),
            ("rmdir", fs::remove_dir(&folder)),
            ("rename", fs::rename(&file, &new)),
            ("chmod", fs::set_permissions(&file, fs::Permissions::from_mode(0o600))),
            ("chown", chown(&file, Some(4321), None)),
            ("utimens", nix(utimensat(AT_FDCWD, &file, &time, &time, UtimensatFlags::FollowSymlink))),
            ("truncate", nix(nix::unistd::truncate(&file, 0))),
            ("setxattr", program("setfattr", &["-n", "user.x", "-v", "1", &text(&file)])),
            ("acl", program("setfacl", &["-m", "u:4321:r", &text(&file)])),
        ];
        for (what, attempt) in attempts {
            let error = attempt.expect_err(what);
            assert_eq!(error.raw_os_error(), Some(libc::EROFS), "{options}: {what}: {error}");
        }
        assert_eq!(fs::read(&file).unwrap(), b"old");
        mount.umount();
    }
    assert_eq!(fs::read_dir(world.source()).unwrap().count(), 2);
}
