//! Files that may only be appended to (`chattr +a`).

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::process::Command;

use super::file_systems::{Mounted, may_mount};
use crate::world::{World, run, succeeds, wait_until};

#[test]
fn a_file_of_chattr_a_can_be_appended_to_and_nothing_else() {
    if !may_mount() {
        return;
    }
    let world = World::new();
    let image = world.path("image");
    File::create(&image).unwrap().set_len(16 << 20).unwrap();
    succeeds(Command::new("mkfs.ext4").arg("-q").arg(&image));
    let disk = Mounted::new(world.source(), "ext4", "loop", &image);
    let (name, local) = ("log", world.source().join("log"));
    fs::write(&local, "one\n").unwrap();
    succeeds(Command::new("chattr").arg("+a").arg(&local));
    let mut host = world.host();
    let listen = host.listening.to_string();
    let mount = world.mount(&host.ticket, "");
    let path = mount.path(name);
    let mut log = File::options().append(true).open(&path).unwrap();
    log.write_all(b"two\n").unwrap();
    log.sync_all().unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntwo\n");
    for refused in [File::options().write(true).open(&path), File::create(&path)] {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::PermissionDenied);
    }
    assert_eq!(fs::remove_file(&path).unwrap_err().kind(), ErrorKind::PermissionDenied);
    // Also after the host has forgotten that it is open.
    host.kill();
    host = world.host_on(&listen, &[]);
    log.write_all(b"three\n").unwrap();
    log.sync_all().unwrap();
    drop(log);
    assert_eq!(fs::read_to_string(&local).unwrap(), "one\ntwo\nthree\n");
    mount.umount();
    drop(host);
    wait_until("the attribute is gone", || run("chattr", &["-a", local.to_str().unwrap()]).status.success());
    disk.umount();
}
