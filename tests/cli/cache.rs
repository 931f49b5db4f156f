//! `wormhole cache` on real mounts: warming, pinning, proving, tidying up, and the attributes that tell of it.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::stage::{Stage, can_mount, code, errors, succeeds, wormhole};
use crate::world::noise;

const LARGE_BYTES: u64 = 5_000_000;
const HELLO_BYTES: u64 = 13;

#[track_caller]
fn json(command: &mut Command) -> Value {
    serde_json::from_str(&succeeds(command)).unwrap()
}

fn cache(arguments: &[&str]) -> Command {
    let mut command = wormhole();
    command.arg("cache").args(arguments);
    command
}

/// In the cache of this stage.
fn cache_of(stage: &Stage, arguments: &[&str]) -> Command {
    let mut command = cache(arguments);
    command.arg("--cache-dir").arg(stage.path("cache"));
    command
}

#[track_caller]
fn attribute(name: &str, path: &Path) -> String {
    let value = succeeds(
        Command::new("getfattr").args(["--absolute-names", "--only-values", "-n"]).arg(name).arg(path),
    );
    value.trim().to_owned()
}

fn cached_bytes(path: &Path) -> u64 {
    attribute("user.wormhole.cached_bytes", path).parse().unwrap()
}

fn host_bytes(mountpoint: &Path) -> u64 {
    Stage::status(mountpoint)["host_bytes"].as_u64().unwrap()
}

/// Cold files of 40 MB in all, read once.
fn scan(stage: &Stage, mountpoint: &Path) {
    for number in 0..10_u64 {
        let name = format!("cold{number}");
        assert!(
            fs::read(mountpoint.join(&name)).unwrap() == fs::read(stage.path("export").join(&name)).unwrap()
        );
    }
}

fn with_cold_files() -> Stage {
    let stage = Stage::new();
    for number in 0..10_u64 {
        fs::write(stage.path("export").join(format!("cold{number}")), noise(4_000_000, number)).unwrap();
    }
    settle(&stage, "cold9");
    stage
}

fn settle(stage: &Stage, name: &str) {
    let changed = fs::metadata(stage.path("export").join(name)).unwrap().modified().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(2100).saturating_sub(changed.elapsed().unwrap()));
}

#[test]
fn a_warmed_tree_is_read_without_the_host_and_past_the_kernel() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    // Names are bytes.
    let strange = std::ffi::OsStr::from_bytes(b"str\xe4nge \n");
    fs::write(stage.path("export").join(strange), "x").unwrap();
    stage.settle();
    let mountpoint = stage.mount("mnt", "ro");
    let large = mountpoint.join("below/large");
    assert_eq!(cached_bytes(&large), 0);
    assert_eq!(json(cache(&["warm", "--json"]).arg(mountpoint.join(strange)))["host_bytes"], 1);
    assert_eq!(cached_bytes(&mountpoint.join(strange)), 1);
    let part = json(cache(&["warm", "--json"]).arg(mountpoint.join("hello")));
    assert_eq!(
        (&part["files"], &part["bytes"], &part["host_bytes"]),
        (&1.into(), &HELLO_BYTES.into(), &HELLO_BYTES.into())
    );
    // The rest of the tree: what was warmed before is not sent again.
    let output = cache(&["warm", "--json"]).arg(&mountpoint).output().unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "no progress where nobody looks: {output:?}"
    );
    let whole: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(whole["files"], 3);
    assert_eq!(whole["bytes"], LARGE_BYTES + HELLO_BYTES + 1);
    assert_eq!(whole["host_bytes"], LARGE_BYTES);
    assert_eq!(
        (&whole["skipped"], &whole["failed"], &whole["pinned"]),
        (&0.into(), &0.into(), &false.into())
    );
    assert_eq!(cached_bytes(&large), LARGE_BYTES);
    let status = Stage::status(&mountpoint);
    assert_eq!(status["memory_used_bytes"], 0, "it does not push out what people read");
    assert_eq!(status["cache_dir"], stage.path("cache").to_str().unwrap());
    let before = host_bytes(&mountpoint);
    assert!(fs::read(&large).unwrap() == fs::read(stage.path("export/below/large")).unwrap());
    assert_eq!(fs::read(mountpoint.join("hello")).unwrap(), b"hello, world\n");
    assert_eq!(host_bytes(&mountpoint), before);
    let again = succeeds(cache(&["warm"]).arg(&mountpoint));
    assert!(
        again.contains("3 files, 4.8 MiB (0 B from the host") && again.contains("in the cache"),
        "{again}"
    );
    assert!(json(&mut cache_of(&stage, &["stat", "--json"]))["entries"].as_u64().unwrap() >= 21);
}

#[test]
fn what_is_pinned_outlives_a_scan_and_a_remount_until_it_is_unpinned() {
    if !can_mount() {
        return;
    }
    let stage = with_cold_files();
    let mountpoint = stage.mount("mnt", "ro,cache_size=16M");
    let (large, below) = (mountpoint.join("below/large"), mountpoint.join("below"));
    let pinned = json(cache(&["pin", "--json"]).arg(&below));
    assert_eq!((&pinned["files"], &pinned["pinned"]), (&1.into(), &true.into()));
    scan(&stage, &mountpoint);
    assert_eq!(cached_bytes(&large), LARGE_BYTES);
    assert!((0..10).any(|number| cached_bytes(&mountpoint.join(format!("cold{number}"))) == 0));
    let stat = json(&mut cache_of(&stage, &["stat", "--json"]));
    let name = pinned["source"].as_str().unwrap();
    assert!(name.ends_with("/export/below"), "{name}");
    assert_eq!(stat["pins"][0]["name"], name);
    assert_eq!(stat["pins"][0]["bytes"], LARGE_BYTES);
    assert!(
        stat["pinned_bytes"].as_u64().unwrap() > LARGE_BYTES && stat["bytes"].as_u64().unwrap() <= 16 << 20
    );
    let text = succeeds(&mut cache_of(&stage, &["stat"]));
    assert!(text.contains(name) && text.contains("1 files, 4.8 MiB"), "{text}");

    succeeds(wormhole().arg("umount").arg(&mountpoint));
    let mountpoint = stage.mount("mnt", "ro,cache_size=16M");
    let before = host_bytes(&mountpoint);
    assert!(fs::read(&large).unwrap() == fs::read(stage.path("export/below/large")).unwrap());
    assert_eq!(host_bytes(&mountpoint), before);

    // By path, in the cache of its mount.
    let unpinned = succeeds(cache(&["unpin"]).arg(&below));
    assert!(unpinned.contains(name), "{unpinned}");
    scan(&stage, &mountpoint);
    scan(&stage, &mountpoint);
    assert!(cached_bytes(&large) < LARGE_BYTES);
    // By name, also when nothing is mounted.
    succeeds(cache(&["pin"]).arg(&below));
    succeeds(wormhole().arg("umount").arg(&mountpoint));
    assert_eq!(json(&mut cache_of(&stage, &["unpin", name, "--json"]))["name"], name);
    assert_eq!(json(&mut cache_of(&stage, &["stat", "--json"]))["pins"].as_array().unwrap().len(), 0);
    let twice = cache_of(&stage, &["unpin", name]).output().unwrap();
    assert_eq!(code(&twice), 2);
    assert!(errors(&twice).contains("nothing is pinned as"), "{}", errors(&twice));
}

#[test]
fn what_cannot_be_warmed_or_pinned_is_told_in_words() {
    if !can_mount() {
        return;
    }
    let stage = with_cold_files();
    let mountpoint = stage.mount("mnt", "ro,cache_size=16M");
    let refused = |command: &mut Command, words: &str| {
        let output = command.output().unwrap();
        let said = errors(&output);
        assert!(code(&output) == 2 && said.contains(words), "{words:?} in {said:?}");
        assert_eq!(
            said.lines().filter(|line| line.starts_with("wormhole: ")).count(),
            said.lines().count(),
            "{said}"
        );
    };
    refused(cache(&["warm"]).arg(stage.path("export/hello")), "not on a wormhole mount");
    refused(cache(&["warm"]).arg(mountpoint.join("nothing")), "No such file");
    refused(cache(&["pin"]).arg(&mountpoint), "80 % of the cache; raise cache_size");
    assert_eq!(json(&mut cache_of(&stage, &["stat", "--json"]))["pinned_bytes"], 0);
    refused(&mut cache(&["stat", "--cache-dir", "/nowhere"]), "/nowhere is not a wormhole cache");
    refused(&mut cache(&["verify", "--cache-dir", "/nowhere"]), "/nowhere");
    refused(&mut cache(&["gc", "--cache-dir", "/nowhere"]), "/nowhere");
    refused(&mut cache(&["clear", "--cache-dir", "/nowhere"]), "/nowhere");
    fs::write(stage.path("export/young"), "young").unwrap();
    refused(cache(&["warm"]).arg(mountpoint.join("young")), "less than two seconds ago");
    let uncached = stage.mount("uncached", "ro,cache=none");
    refused(cache(&["warm"]).arg(uncached.join("hello")), "cache=none");
    assert_eq!(cached_bytes(&uncached.join("hello")), 0);
    let usage = cache(&["gc", "--cache-size", "much"]).output().unwrap();
    assert_eq!(code(&usage), 1);
}

#[test]
fn attributes_tell_of_version_cache_and_source() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    stage.settle();
    let mountpoint = stage.mount("mnt", "ro");
    let (hello, large) = (mountpoint.join("hello"), mountpoint.join("below/large"));
    let source = Stage::status(&mountpoint)["source"][0].as_str().unwrap().to_owned();
    assert_eq!(attribute("user.wormhole.source", &mountpoint), source);
    assert_eq!(attribute("user.wormhole.source", &large), format!("{source}/below/large"));
    let version = |path: &Path| attribute("user.wormhole.version", path);
    let expected = |path: &Path| {
        use std::os::unix::fs::MetadataExt;
        let meta = fs::metadata(path).unwrap();
        let ns = |seconds: i64, rest: i64| seconds * 1_000_000_000 + rest;
        let (mtime, ctime) = (ns(meta.mtime(), meta.mtime_nsec()), ns(meta.ctime(), meta.ctime_nsec()));
        format!("{}:{mtime}:{ctime}", meta.len())
    };
    assert_eq!(version(&hello), expected(&stage.path("export/hello")));
    fs::write(stage.path("export/hello"), "another").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1100));
    assert_eq!(version(&hello), expected(&stage.path("export/hello")));
    assert_eq!(cached_bytes(&large), 0);
    // Three chunks of twenty.
    let mut part = vec![0; 700_000];
    fs::File::open(&large).unwrap().read_exact_at(&mut part, 0).unwrap();
    crate::world::wait_until("what was read is in the cache", || cached_bytes(&large) >= 3 * 262_144);
    let listed = succeeds(Command::new("getfattr").args(["--absolute-names", "-m-"]).arg(&large));
    assert!(!listed.contains("wormhole"), "{listed}");
    for name in ["user.wormhole.version", "user.wormhole.cached_bytes", "user.wormhole.other"] {
        let output = Command::new("getfattr")
            .args(["--absolute-names", "-n", name])
            .arg(&mountpoint)
            .output()
            .unwrap();
        assert!(!output.status.success(), "{name} of a directory");
    }
}

#[test]
fn damage_is_found_and_told_with_its_place() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    stage.settle();
    let mountpoint = stage.mount("mnt", "ro");
    succeeds(cache(&["warm"]).arg(&mountpoint));
    succeeds(wormhole().arg("umount").arg(&mountpoint));
    let sound = json(&mut cache_of(&stage, &["verify", "--json"]));
    assert_eq!((&sound["damaged"], sound["places"].as_array().unwrap().len()), (&0.into(), 0));
    assert!(sound["records"].as_u64().unwrap() >= 21 && sound["bytes"].as_u64().unwrap() > LARGE_BYTES);
    let segments = fs::read_dir(stage.path("cache/v1/segments")).unwrap();
    let segment: PathBuf = segments.map(|entry| entry.unwrap().path()).max().unwrap();
    fs::File::options().write(true).open(&segment).unwrap().write_all_at(b"damage", 1_000_000).unwrap();
    let output = cache_of(&stage, &["verify", "--json"]).output().unwrap();
    assert_eq!(code(&output), 2);
    assert!(errors(&output).contains("1 of "), "{}", errors(&output));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["damaged"], 1);
    assert_eq!(found["places"][0]["file"], segment.file_name().unwrap().to_str().unwrap());
    let offset = found["places"][0]["offset"].as_u64().unwrap();
    assert!((1_000_000 - 262_144..=1_000_000).contains(&offset), "{found}");
    let text = cache_of(&stage, &["verify"]).output().unwrap();
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("damaged: ") && text.contains("; 1 damaged"), "{text}");
}

#[test]
fn a_cache_is_cleared_and_made_smaller() {
    if !can_mount() {
        return;
    }
    let stage = with_cold_files();
    let mountpoint = stage.mount("mnt", "ro");
    succeeds(cache(&["warm"]).arg(&mountpoint));
    succeeds(cache(&["pin"]).arg(mountpoint.join("hello")));
    let stat = || json(&mut cache_of(&stage, &["stat", "--json"]));
    assert!(stat()["bytes"].as_u64().unwrap() > 45_000_000);
    // Without a size nothing that may be of use goes.
    let kept = json(&mut cache_of(&stage, &["gc", "--json"]));
    assert_eq!(kept["freed_bytes"], 0);
    succeeds(wormhole().arg("umount").arg(&mountpoint));
    let smaller = json(&mut cache_of(&stage, &["gc", "--cache-size", "20M", "--json"]));
    assert!(smaller["bytes"].as_u64().unwrap() <= 20 << 20, "{smaller}");
    assert!(smaller["freed_bytes"].as_u64().unwrap() >= 25_000_000, "{smaller}");
    let cleared = succeeds(&mut cache_of(&stage, &["clear"]));
    assert!(cleared.contains("pinned and stay; --pins"), "{cleared}");
    assert_eq!(stat()["bytes"], stat()["pinned_bytes"]);
    let cleared = json(&mut cache_of(&stage, &["clear", "--pins", "--json"]));
    assert!(cleared["freed_bytes"].as_u64().unwrap() > 0);
    assert_eq!((&stat()["bytes"], &stat()["entries"]), (&0.into(), &0.into()));
}

#[test]
fn on_a_terminal_the_progress_is_shown() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    stage.settle();
    let mountpoint = stage.mount("mnt", "ro");
    let on_terminal = |command: &str| {
        let mut script = Command::new("script");
        script.args(["-qec", &format!("{} cache {command}", crate::world::WORMHOLE), "/dev/null"]);
        succeeds(script.stdin(std::process::Stdio::null()))
    };
    let shown = on_terminal(&format!("warm {}", mountpoint.display()));
    assert!(shown.contains("\r\x1b[K") && shown.contains(" from the host"), "{shown:?}");
    let shown = on_terminal(&format!("verify --cache-dir {}", stage.path("cache").display()));
    assert!(shown.contains("\r\x1b[K") && shown.contains(" records, "), "{shown:?}");
}
