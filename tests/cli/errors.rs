//! What is refused, in one line, and with the exit code of mount(8).

use std::fs;

use super::stage::{code, errors, wormhole};

/// Runs it, and checks that it is refused with `exit` in one line that contains each of `parts`.
#[track_caller]
fn refused(arguments: &[&str], exit: i32, parts: &[&str]) {
    let output = wormhole().args(arguments).output().unwrap();
    let text = errors(&output);
    assert_eq!(code(&output), exit, "{arguments:?}: {text}");
    assert_eq!(text.lines().count(), 1, "{arguments:?}: {text}");
    assert!(text.starts_with("wormhole: "), "{text}");
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
}

#[test]
fn wrong_command_lines_end_with_1() {
    refused(&["fly"], 1, &["fly"]);
    refused(&["mount"], 1, &["SOURCE"]);
    refused(&["mount", "/mnt"], 1, &["WORMHOLE_TICKET"]);
    refused(&["mount", "nas", "/mnt"], 1, &["nas"]);
    refused(&["mount", "whm1nonsense", "/mnt"], 1, &["ticket"]);
    refused(&["mount", "@/nowhere", "/mnt"], 1, &["/nowhere"]);
    refused(&["mount", "nas:/m", "/mnt", "--fast"], 1, &["--fast"]);
    refused(&["umount"], 1, &["MOUNTPOINT"]);
    refused(&["sum"], 1, &["FILE"]);
}

#[test]
fn wrong_mount_options_end_with_1_and_name_themselves() {
    for (list, parts) in [
        ("ro,turbo", vec!["turbo", "unknown"]),
        ("port=0", vec!["port=0", "1 to 65535"]),
        ("cache=full", vec!["cache=full", "strict"]),
        ("transport=udp", vec!["transport=udp", "quic, tcp"]),
        ("idmap=all", vec!["idmap=all", "none, user, file"]),
        ("bwlimit=1M", vec!["bwlimit", "not available"]),
        ("cache_dir=here", vec!["cache_dir", "absolute"]),
    ] {
        refused(&["mount", "nas:/m", "/mnt", "-o", list], 1, &parts);
    }
    refused(&["mount", "nas:/m", "/mnt", "--cache-size", "lots"], 1, &["cache_size=lots"]);
}

#[test]
fn places_that_cannot_be_mounted_on_end_with_32() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    refused(&["mount", "nas:/m", file.to_str().unwrap()], 32, &["not a directory"]);
    refused(&["mount", "nas:/m", folder.path().join("missing").to_str().unwrap()], 32, &["create it first"]);
}

#[test]
fn a_host_that_nobody_knows_ends_with_32() {
    if !super::stage::can_mount() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (state, mountpoint) = (folder.path().join("state"), folder.path().join("mnt"));
    fs::create_dir(&mountpoint).unwrap();
    let (state, mountpoint) = (state.to_str().unwrap(), mountpoint.to_str().unwrap());
    for front in [&[][..], &["-f"]] {
        let arguments = [&["mount", "127.0.0.1:/m", mountpoint, "--state-dir", state], front].concat();
        refused(&arguments, 32, &["127.0.0.1:4433", "ticket"]);
    }
}

#[test]
fn what_is_not_mounted_cannot_be_unmounted() {
    let folder = tempfile::tempdir().unwrap();
    refused(&["umount", folder.path().to_str().unwrap()], 32, &["not mounted"]);
    refused(&["umount", "-f", folder.path().to_str().unwrap()], 32, &["not mounted"]);
    refused(&["umount", "/proc"], 32, &["type proc"]);
    refused(&["status", folder.path().to_str().unwrap()], 2, &["no wormhole mount"]);
}

#[test]
fn sums_are_of_files_on_a_mount() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "x").unwrap();
    refused(&["sum", file.to_str().unwrap()], 2, &["not on a wormhole mount", "b3sum"]);
    refused(&["sum", folder.path().to_str().unwrap()], 2, &["not a regular file"]);
    refused(&["sum", "/nowhere"], 2, &["/nowhere"]);
}

#[test]
fn the_daemon_is_not_for_people() {
    refused(&["mount-daemon", "nas:/m", "/mnt"], 1, &["wormhole mount"]);
}

#[test]
fn help_ends_with_0() {
    for arguments in [&["--help"][..], &["mount", "--help"], &["status", "--help"], &["--version"]] {
        let output = wormhole().args(arguments).output().unwrap();
        assert_eq!((code(&output), errors(&output).as_str()), (0, ""), "{arguments:?}");
    }
}
