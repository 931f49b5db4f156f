//! Numbers of inodes as programs see them, and files that are opened by handles.

use std::fs;
use std::os::unix::fs::{DirEntryExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use crate::world::{World, run, wait_until, words};

fn number(path: &Path) -> u64 {
    fs::symlink_metadata(path).unwrap().ino()
}

#[test]
fn numbers_are_the_hosts_also_those_that_it_gives_again() {
    const ROUNDS: usize = 300;
    let world = World::new();
    fs::create_dir(world.source().join("folder")).unwrap();
    fs::write(world.source().join("folder/file"), "x").unwrap();
    let host = world.host();
    let mount = world.mount(&host.ticket, "");
    for name in [".", "folder", "folder/file"] {
        assert_eq!(number(&mount.path(name)), number(&world.source().join(name)), "{name}");
    }
    let mut again = 0;
    for round in 0..ROUNDS {
        let (first, second) = (mount.path(format!("x{round}")), format!("y{round}"));
        let before = fs::File::create(&first).unwrap().metadata().unwrap().ino();
        fs::remove_file(&first).unwrap();
        let made = fs::File::create(mount.path(&second)).unwrap().metadata().unwrap().ino();
        assert_eq!(made, number(&world.source().join(&second)), "round {round}");
        assert_eq!(number(&mount.path(&second)), made, "round {round}");
        again += usize::from(made == before);
        fs::remove_file(mount.path(&second)).unwrap();
    }
    eprintln!("the host gave {again} of {ROUNDS} numbers again");
    for entry in fs::read_dir(&mount.point).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.ino(), number(&entry.path()), "{}", entry.path().display());
    }
    mount.umount();
}

#[test]
fn a_number_that_the_host_gives_again_is_shown_while_the_earlier_file_is_still_held_here() {
    const ROUNDS: usize = 30;
    let world = World::new();
    let host = world.host();
    let mount = world.mount(&host.ticket, "");
    let mut again = 0;
    for round in 0..ROUNDS {
        let (first, name) = (mount.path(format!("x{round}")), format!("y{round}"));
        let (second, on_host) = (mount.path(&name), world.source().join(&name));
        fs::write(&first, "x").unwrap();
        // The kernel refers to the file, and nobody has it open on the host.
        let path_only = nix::fcntl::OFlag::O_PATH.bits();
        let held = fs::OpenOptions::new().read(true).custom_flags(path_only).open(&first).unwrap();
        let before = held.metadata().unwrap().ino();
        fs::remove_file(&first).unwrap();
        let made = fs::File::create(&second).unwrap();
        let given = number(&on_host);
        again += usize::from(given == before);
        assert_eq!(made.metadata().unwrap().ino(), given, "round {round}");
        assert_eq!(number(&second), given, "round {round}, by its name");
        fs::write(&on_host, "another").unwrap();
        wait_until("the change shows", || fs::read(&second).unwrap() == b"another");
        assert_eq!(number(&second), given, "round {round}, when it was read");
        fs::remove_file(&second).unwrap();
    }
    eprintln!("the host gave {again} of {ROUNDS} numbers again");
    mount.umount();
}

fn by_handle(arguments: &[&str]) -> String {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/handles.py");
    let output = run("python3", &[&[script], arguments].concat());
    assert!(output.status.success(), "{}", words(&output));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn a_file_is_opened_by_its_handle_after_the_kernel_forgot_it() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("LEFT OUT: only root opens files by handles");
        return;
    }
    let world = World::new();
    fs::create_dir_all(world.source().join("a/b")).unwrap();
    for name in ["a/b/file", "a/b/gone", "a/b/kept"] {
        fs::write(world.source().join(name), name).unwrap();
    }
    let host = world.host();
    let mount = world.mount(&host.ticket, "");
    let point = mount.point.to_str().unwrap();
    let handle = |name: &str| by_handle(&["name", mount.path(name).to_str().unwrap()]);
    let (file, gone, folder) = (handle("a/b/file"), handle("a/b/gone"), handle("a/b"));
    assert!(mount.is_forgotten_by_the_kernel());
    assert_eq!(
        by_handle(&["open", point, &file]),
        format!("a/b/file {}", number(&world.source().join("a/b/file")))
    );
    let kept = by_handle(&["list", point, &folder]);
    assert_eq!(kept, format!("{}/a/b file gone kept", mount.point.display()), "the way up is known again");
    fs::remove_file(world.source().join("a/b/gone")).unwrap();
    assert!(mount.is_forgotten_by_the_kernel());
    assert_eq!(by_handle(&["open", point, &gone]), "ESTALE");
    // A handle that was taken before the host's daemon restarted is good afterwards.
    let listening = host.listening;
    drop(host);
    let _host = world.host_on(&listening.to_string(), &[]);
    wait_until("the host is there again", || mount.status()["state"] == "connected");
    assert_eq!(
        by_handle(&["open", point, &file]),
        format!("a/b/file {}", number(&world.source().join("a/b/file")))
    );
    mount.umount();
}
