//! `wormhole sync`, and what `sync -f` does.

use std::fs;
use std::io::Write;
use std::process::Output;

use serde_json::Value;

use super::relay::Relay;
use crate::world::{Mount, World, run, wait_until, words, wormhole};

fn sync(mount: &Mount, arguments: &[&str]) -> Output {
    wormhole().arg("sync").arg(&mount.point).args(arguments).output().unwrap()
}

fn unsynced(mount: &Mount) -> u64 {
    mount.status()["unsynced_bytes"].as_u64().unwrap()
}

/// Leaves files behind that were never synced, one of them open.
fn write_some(mount: &Mount) -> fs::File {
    fs::create_dir(mount.path("folder")).unwrap();
    for number in 0..20 {
        fs::write(mount.path(format!("folder/{number}")), vec![7; 100_000]).unwrap();
    }
    let mut open = fs::File::create(mount.path("open")).unwrap();
    open.write_all(&vec![8; 300_000]).unwrap();
    open
}

#[test]
fn a_sync_returns_when_all_of_a_mount_is_on_the_hosts_disk() {
    let world = World::new();
    let host = world.host();
    let mount = world.mount(&host.ticket, "");
    let open = write_some(&mount);
    wait_until("the host has it", || mount.status()["unsent_bytes"] == 0);
    assert!(unsynced(&mount) >= 2_300_000);
    // The kernel tells nobody of it.
    assert!(run("sync", &["-f", mount.point.to_str().unwrap()]).status.success());
    assert!(unsynced(&mount) >= 2_300_000);
    let output = sync(&mount, &[]);
    assert!(output.status.success(), "{}", words(&output));
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(told.contains("everything is on the host's disk"), "{told}");
    assert_eq!(unsynced(&mount), 0);
    fs::write(mount.path("folder/0"), b"more").unwrap();
    let output = wormhole().args(["sync", "--json"]).arg(mount.path("folder")).output().unwrap();
    assert!(output.status.success(), "{}", words(&output));
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((told["files"].as_u64(), told["synced"].as_u64()), (Some(1), Some(1)), "{told}");
    assert_eq!(unsynced(&mount), 0);
    drop(open);
    mount.umount();
}

#[test]
fn a_sync_without_a_host_says_so_and_nothing_is_lost() {
    let world = World::new();
    let host = world.host();
    let relay = Relay::start(host.listening);
    let mount = world.mount(&host.ticket_for(relay.address()), "timeo=30,retrans=0");
    let mut file = fs::File::create(mount.path("file")).unwrap();
    file.write_all(b"before").unwrap();
    assert!(sync(&mount, &[]).status.success());
    relay.cut();
    file.write_all(b" and after").unwrap();
    let output = sync(&mount, &["--json"]);
    assert_eq!(output.status.code(), Some(2), "{}", words(&output));
    assert!(words(&output).contains("run it again"), "{}", words(&output));
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(told["error"].is_string() && told["unsent_bytes"] == 10, "{told}");
    relay.mend();
    wait_until("the host is there again", || sync(&mount, &[]).status.success());
    assert_eq!(fs::read(world.source().join("file")).unwrap(), b"before and after");
    drop(file);
    mount.umount();
    let output = wormhole().arg("sync").arg(world.source()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(words(&output).contains("not on a wormhole mount"), "{}", words(&output));
}
