//! Idmapped mounts of a mount.

use std::fs;

use crate::world::{World, run, words};

#[test]
fn owners_can_be_shown_as_others_by_an_idmapped_mount() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("LEFT OUT: only root makes idmapped mounts");
        return;
    }
    let world = World::new();
    fs::write(world.source().join("there"), "x").unwrap();
    let host = world.host();
    let mount = world.mount_for_all(&host);
    let target = world.path("target");
    fs::create_dir(&target).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/idmapped.py");
    let paths = [mount.point.to_str().unwrap(), target.to_str().unwrap()];
    let output = run("python3", &[script, paths[0], paths[1]]);
    assert!(output.status.success(), "{}", words(&output));
    // The worker is 1000 there, which is root for the mount itself; so is the owner of what the host had.
    assert_eq!(String::from_utf8_lossy(&output.stdout), "0 0\n1000 1000\n1000 0\n");
    mount.umount();
}
