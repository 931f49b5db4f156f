//! Limits of a key: set in `authorized_keys`, shown in the status of the host, and felt by that key alone.

use std::fs::{self, File};
use std::path::Path;

use serde_json::Value;

use crate::world::{Host, Mount, WORMHOLE, World, errors, mount_at, printed_by, run, wait_until, wormhole};

/// Mounts by a key of its own, whose name is that of the folder, or tries to.
fn try_mount(world: &World, (key, point): (&str, &str), source: &str) -> (Mount, std::process::Output) {
    let point = world.path(point);
    fs::create_dir_all(&point).unwrap();
    let mut command = wormhole();
    command.arg("mount").arg("--state-dir").arg(world.path(&format!("{key}-state")));
    let output = command.args(["-o", "cache=none", source]).arg(&point).output().unwrap();
    (Mount { point }, output)
}

fn mount(world: &World, key: &str) -> Mount {
    let state = world.path("host-state");
    let new = ["pair", "new", "export", "--name", key, "--state-dir", state.to_str().unwrap(), "--json"];
    let made: Value = serde_json::from_str(&printed_by(WORMHOLE, &new)).unwrap();
    let (mount, output) = try_mount(world, (key, key), made["ticket"].as_str().unwrap());
    assert!(output.status.success(), "{}", errors(&output));
    mount
}

/// Writes options into the line of a key.
fn limit(world: &World, key: &str, options: &str) {
    let path = world.path("host-state/authorized_keys");
    let text = fs::read_to_string(&path).unwrap();
    let name = format!(" name={key} ");
    assert!(text.contains(&name), "{key} is not in {text}");
    let changed = text.replace(&name, &format!("{name}{options} "));
    fs::write(path, changed).unwrap();
}

/// What a key uses, and the most that it may, by the host's status.
fn used(host: &Host, what: &str) -> Vec<(u64, u64)> {
    let status = host.status();
    let pair = |key: &Value| (key[what][0].as_u64().unwrap(), key[what][1].as_u64().unwrap());
    let mut used: Vec<_> = status["keys"].as_array().unwrap().iter().map(pair).collect();
    used.sort_unstable();
    used
}

fn open_all(folder: &Path, count: usize) -> std::io::Result<Vec<File>> {
    (0..count).map(|number| File::open(folder.join(format!("f{number}")))).collect()
}

#[test]
fn limits_are_set_in_authorized_keys_shown_in_the_status_and_felt_by_their_key() {
    let world = World::new();
    for number in 0..6 {
        fs::write(world.source().join(format!("f{number}")), "content").unwrap();
    }
    let host = world.host();
    let (few, many) = (mount(&world, "few"), mount(&world, "many"));
    assert!(used(&host, "open").iter().all(|(_, most)| *most == 65_536), "what holds without options");
    limit(&world, "few", "max_open=3 max_sessions=1 max_threads=5 max_requests=7 max_connections=9");
    // Live connections are made anew with the new limits.
    wait_until("the limits hold", || used(&host, "open").iter().any(|(_, most)| *most == 3));
    for (what, most) in [("sessions", 1), ("threads", 5), ("requests", 7), ("connections", 9)] {
        assert!(used(&host, what).iter().any(|used| used.1 == most), "{what}: {:?}", used(&host, what));
    }
    let held = open_all(&few.point, 3).unwrap();
    let refused = open_all(&few.point, 4).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EMFILE), "{refused}");
    let others = open_all(&many.point, 6).unwrap();
    assert_eq!(used(&host, "open"), [(3, 3), (6, 65_536)]);
    // A second mount of a key that may have one.
    let port = format!("port={}", host.listening.port());
    let point = world.path("second");
    fs::create_dir(&point).unwrap();
    let mut second = wormhole();
    second.arg("mount").arg("--state-dir").arg(world.path("few-state")).args([
        "-o",
        &port,
        "127.0.0.1:/export",
    ]);
    let output = second.arg(&point).output().unwrap();
    assert_eq!((output.status.code(), mount_at(&point)), (Some(32), None), "{}", errors(&output));
    let shown = run(WORMHOLE, &["status"]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("3 of 3 files open"), "{shown}");
    drop(held);
    wait_until("its files are closed on the host", || used(&host, "open")[0] == (0, 3));
    open_all(&few.point, 3).unwrap();
    drop(others);
}
