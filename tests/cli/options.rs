//! Each option that is accepted does what it says.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::stage::{Stage, can_mount, code, errors, mount_at, succeeds, wormhole};

#[track_caller]
fn unmount(mountpoint: &Path) {
    succeeds(wormhole().arg("umount").arg(mountpoint));
}

#[test]
fn the_kernel_is_told() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    for (options, present, absent) in [
        (
            "ro",
            &["ro,", "nosuid", "nodev", "fuse.wormhole", ":/"][..],
            &["noexec", "allow_other", "default_perm"][..],
        ),
        ("noexec,default_permissions", &["noexec", "default_permissions"], &["allow_other"]),
        ("allow_other", &["allow_other", "default_permissions"], &[]),
        ("suid,dev,exec", &["rw,"], &["nosuid", "nodev", "noexec"]),
    ] {
        if options.contains("suid") && !nix::unistd::geteuid().is_root() {
            continue;
        }
        let mountpoint = stage.mount("mnt", options);
        let line = mount_at(&mountpoint).unwrap();
        for part in present {
            assert!(line.contains(part), "{options}: {part} is not in {line}");
        }
        for part in absent {
            assert!(!line.contains(part), "{options}: {part} is in {line}");
        }
        unmount(&mountpoint);
    }
}

#[test]
fn owners_and_permissions_are_shown_as_told() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    let mountpoint = stage.mount("mnt", "uid=12345,gid=23456,fmask=0177,dmask=077");
    let file = fs::metadata(mountpoint.join("hello")).unwrap();
    assert_eq!((file.uid(), file.gid(), file.mode() & 0o177), (12345, 23456, 0));
    let folder = fs::metadata(mountpoint.join("below")).unwrap();
    assert_eq!((folder.uid(), folder.gid(), folder.mode() & 0o777), (12345, 23456, 0o700));
    unmount(&mountpoint);
}

#[test]
fn the_cache_lies_where_it_is_told_or_nowhere() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    stage.settle();
    let other = stage.path("other-cache");
    let mountpoint = stage.mountpoint("mnt");
    let source = format!("@{}", stage.path("ticket").display());
    succeeds(
        stage
            .mount_command(&source, &mountpoint)
            .arg("--cache-dir")
            .arg(&other)
            .args(["--cache-size", "64M"]),
    );
    fs::read(mountpoint.join("below/large")).unwrap();
    assert_eq!(Stage::status(&mountpoint)["cache_limit_bytes"], 64 << 20);
    unmount(&mountpoint);
    assert!(size_of(&other) > 5_000_000, "{}", size_of(&other));
    assert!(!stage.path("cache").exists());

    let mountpoint = stage.mount("mnt", "cache=none");
    fs::read(mountpoint.join("below/large")).unwrap();
    assert!(Stage::status(&mountpoint).get("cache_limit_bytes").is_none());
    unmount(&mountpoint);
    assert!(!stage.path("cache").exists());
}

fn size_of(folder: &Path) -> u64 {
    fs::read_dir(folder).map_or(0, |entries| {
        entries
            .map(|entry| {
                let entry = entry.unwrap();
                if entry.path().is_dir() { size_of(&entry.path()) } else { entry.metadata().unwrap().len() }
            })
            .sum()
    })
}

#[test]
fn the_link_is_made_as_told() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    for cc in ["delivery", "cubic", "bbr", "newreno"] {
        let mountpoint = stage.mount("mnt", &format!("nconnect=3,cc={cc},memory_target=64M,cache=none"));
        assert_eq!(fs::read(mountpoint.join("below/large")).unwrap().len(), 5_000_000, "{cc}");
        super::stage::wait_until("three connections", || Stage::status(&mountpoint)["connections"] == 3);
        unmount(&mountpoint);
    }
}

#[test]
fn content_is_compressed_as_told() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    let text = "All work and no play makes a dull link. ".repeat(50_000);
    fs::write(stage.path("export/text"), &text).unwrap();
    stage.settle();
    let received = |options: &str| {
        let mountpoint = stage.mount("mnt", &format!("cache=none,{options}"));
        assert_eq!(fs::read_to_string(mountpoint.join("text")).unwrap(), text, "{options}");
        let received = Stage::status(&mountpoint)["wire_received_bytes"].as_u64().unwrap();
        unmount(&mountpoint);
        received
    };
    let (on, off) = (received("compress=on"), received("compress=off"));
    assert!(off > text.len() as u64, "{off}");
    assert!(on < text.len() as u64 / 4, "{on}");
    let saved = stage.host_status()["served_saved_bytes"].as_u64().unwrap();
    assert!(saved > text.len() as u64 / 2, "{saved}");
    // Inside one machine the link is faster than any codec.
    assert!(received("compress=auto") > text.len() as u64);
}

#[test]
fn a_deadline_that_passes_is_an_error() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    let mountpoint = stage.mount("mnt", "timeo=10,retrans=1,cache=none");
    nix::sys::signal::kill(stage.host_pid(), nix::sys::signal::Signal::SIGSTOP).unwrap();
    let error = fs::read(mountpoint.join("below/large")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ETIMEDOUT), "{error}");
    nix::sys::signal::kill(stage.host_pid(), nix::sys::signal::Signal::SIGCONT).unwrap();
    super::stage::wait_until("it comes back", || fs::read(mountpoint.join("below/large")).is_ok());
}

#[test]
fn nothing_is_read_ahead_when_told_so() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    // What changed a moment ago is read anew once it has lain still.
    stage.settle();
    let host_bytes = |mountpoint: &Path| Stage::status(mountpoint)["host_bytes"].as_u64().unwrap();
    let read = |options: &str| {
        let mountpoint = stage.mount("mnt", options);
        let mut file = fs::File::open(mountpoint.join("below/large")).unwrap();
        std::io::Read::read_exact(&mut file, &mut vec![0; 1_500_000]).unwrap();
        (mountpoint, file)
    };
    let (mountpoint, file) = read("cache=none");
    super::stage::wait_until("more than was read", || host_bytes(&mountpoint) > 2_600_000);
    drop(file);
    unmount(&mountpoint);
    let (mountpoint, file) = read("read_ahead=0,cache=none");
    assert!((1_500_000..2_600_000).contains(&host_bytes(&mountpoint)), "{}", host_bytes(&mountpoint));
    drop(file);
    unmount(&mountpoint);
}

#[test]
fn files_of_the_client_are_where_they_are_told_to_be() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    let options = format!(
        "identity={},known_hosts={}",
        stage.path("keys/mine").display(),
        stage.path("keys/hosts").display()
    );
    let mountpoint = stage.mount("mnt", &options);
    unmount(&mountpoint);
    assert!(stage.path("keys/mine").exists() && stage.path("keys/hosts").exists());
    assert!(!stage.path("client-state").exists());
}

#[test]
fn a_credentials_file_vouches_for_a_host_by_name() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    let mountpoint = stage.mountpoint("mnt");
    let port = stage.listening.rsplit(':').next().unwrap();
    let options = format!("port={port},credentials={}", stage.path("ticket").display());
    succeeds(stage.mount_command("127.0.0.1:/export", &mountpoint).args(["-o", &options]));
    assert_eq!(fs::read_to_string(mountpoint.join("hello")).unwrap(), "hello, world\n");
    unmount(&mountpoint);
}

#[test]
fn unknown_options_are_ignored_when_told_so() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    let mountpoint = stage.mountpoint("mnt");
    let source = format!("@{}", stage.path("ticket").display());
    let output =
        stage.mount_command(&source, &mountpoint).args(["-o", "turbo", "--sloppy"]).output().unwrap();
    assert_eq!(code(&output), 0, "{}", errors(&output));
    unmount(&mountpoint);
}

#[test]
fn the_log_goes_where_it_is_told_to() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    let mountpoint = stage.mountpoint("mnt");
    let source = format!("@{}", stage.path("ticket").display());
    let mut command = stage.mount_command(&source, &mountpoint);
    succeeds(command.args(["-v", "-o", "noatime", "--log-file"]).arg(stage.path("log")));
    unmount(&mountpoint);
    let log = fs::read_to_string(stage.path("log")).unwrap();
    assert!(log.contains("noatime") && !log.contains(&stage.ticket), "{log}");
}
