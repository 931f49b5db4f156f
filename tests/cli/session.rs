//! A mount from its beginning to its end: reading, looking, summing, mounting again.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use super::stage::{Stage, can_mount, code, errors, is_alive, mount_at, succeeds, wormhole};

#[test]
fn what_the_host_has_is_on_the_mount_until_it_is_unmounted() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    let mountpoint = stage.mount("mnt", "ro");
    assert_eq!(fs::read_to_string(mountpoint.join("hello")).unwrap(), "hello, world\n");
    let large = fs::read(mountpoint.join("below/large")).unwrap();
    assert_eq!(large, fs::read(stage.path("export/below/large")).unwrap());
    assert!(fs::write(mountpoint.join("new"), "").is_err());

    let status = Stage::status(&mountpoint);
    assert_eq!(status["kind"], "mount");
    assert_eq!(status["state"], "connected");
    assert_eq!(status["transport"], "tcp", "the way to this machine is short");
    assert_eq!(status["address"], stage.listening.as_str());
    assert_eq!(status["mountpoint"], mountpoint.to_str().unwrap());
    assert!(status["host_bytes"].as_u64().unwrap() >= 5_000_000, "{status}");
    assert!(status["wire_received_bytes"].as_u64().unwrap() >= 5_000_000, "{status}");
    let text = succeeds(wormhole().arg("status").arg(&mountpoint));
    assert!(text.contains(mountpoint.to_str().unwrap()) && text.contains(&stage.listening), "{text}");

    succeeds(wormhole().arg("umount").arg(&mountpoint));
    // `umount` has waited for the daemon: no waiting here.
    assert!(!is_alive(status["pid"].as_u64().unwrap()));
    assert!(mount_at(&mountpoint).is_none());
    Stage::nothing_is_left(&mountpoint, &status);
}

#[test]
fn sums_are_those_of_b3sum() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    let mountpoint = stage.mount("mnt", "ro");
    let (hello, large) = (mountpoint.join("hello"), mountpoint.join("below/large"));
    let before = Stage::status(&mountpoint)["host_bytes"].clone();
    let expected = |name: &str| blake3::hash(&fs::read(stage.path("export").join(name)).unwrap()).to_string();
    let text = succeeds(wormhole().arg("sum").args([&hello, &large]));
    let lines = format!(
        "{}  {}\n{}  {}\n",
        expected("hello"),
        hello.display(),
        expected("below/large"),
        large.display()
    );
    assert_eq!(text, lines);
    let json: serde_json::Value =
        serde_json::from_str(&succeeds(wormhole().args(["sum", "--json"]).arg(&large))).unwrap();
    assert_eq!(json[0]["hash"], expected("below/large").as_str());
    assert_eq!(Stage::status(&mountpoint)["host_bytes"], before, "content was transferred");
    nix::unistd::mkfifo(&stage.path("export/fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let output = wormhole().arg("sum").arg(mountpoint.join("fifo")).output().unwrap();
    assert!(errors(&output).contains("not a regular file"), "{}", errors(&output));
    let output = wormhole().arg("sum").args([&hello, &mountpoint.join("missing")]).output().unwrap();
    assert_eq!(code(&output), 2);
    assert!(String::from_utf8_lossy(&output.stdout).contains(&expected("hello")), "{}", errors(&output));
}

#[test]
fn a_comma_in_the_source_is_shown_as_it_is() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    fs::create_dir(stage.path("export/a,b")).unwrap();
    let mountpoint = stage.mount("mnt", "ro");
    succeeds(wormhole().arg("umount").arg(&mountpoint));
    let source = format!("wormhole://{}/export/a,b", stage.listening);
    succeeds(&mut stage.mount_command(&source, &mountpoint));
    assert!(mount_at(&mountpoint).unwrap().contains(&format!(" fuse.wormhole {source} ")));
    succeeds(wormhole().arg("umount").arg(&mountpoint));
}

#[test]
fn after_the_ticket_the_name_is_enough() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    let mountpoint = stage.mount("mnt", "ro");
    succeeds(wormhole().arg("umount").arg(&mountpoint));
    let port = stage.listening.rsplit(':').next().unwrap();
    for source in [format!("wormhole://127.0.0.1:{port}/export"), "127.0.0.1:/export/below".to_owned()] {
        succeeds(stage.mount_command(&source, &mountpoint).arg("-o").arg(format!("port={port}")));
        let name = if source.ends_with("below") { "large" } else { "below/large" };
        assert_eq!(fs::metadata(mountpoint.join(name)).unwrap().len(), 5_000_000, "{source}");
        succeeds(wormhole().arg("umount").arg(&mountpoint));
    }
}

#[test]
fn what_was_read_is_not_sent_again_after_a_remount() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    stage.settle();
    let mut host_bytes = Vec::new();
    for _ in 0..2 {
        let mountpoint = stage.mount("mnt", "ro");
        assert_eq!(
            fs::read(mountpoint.join("below/large")).unwrap(),
            fs::read(stage.path("export/below/large")).unwrap()
        );
        host_bytes.push(Stage::status(&mountpoint)["host_bytes"].as_u64().unwrap());
        succeeds(wormhole().arg("umount").arg(&mountpoint));
    }
    assert!(host_bytes[0] >= 5_000_000, "{host_bytes:?}");
    assert!(host_bytes[1] < 100_000, "{host_bytes:?}");
}

#[test]
fn the_ticket_is_seen_nowhere() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    let mountpoint = stage.mountpoint("mnt");
    let ways: [&dyn Fn(); 4] = [
        &|| drop(succeeds(&mut stage.mount_command(&stage.ticket, &mountpoint))),
        &|| {
            let source = format!("@{}", stage.path("ticket").display());
            succeeds(&mut stage.mount_command(&source, &mountpoint));
        },
        &|| {
            let mut command = wormhole();
            command.arg("mount").arg("--state-dir").arg(stage.path("client-state")).arg(&mountpoint);
            succeeds(command.args(["-o", "cache=none"]).env("WORMHOLE_TICKET", &stage.ticket));
        },
        &|| {
            let mut command = stage.mount_command("-", &mountpoint);
            let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
            writeln!(child.stdin.take().unwrap(), "{}", stage.ticket).unwrap();
            assert!(child.wait().unwrap().success());
        },
    ];
    for mount in ways {
        mount();
        let status = Stage::status(&mountpoint);
        let read = |what: &str| fs::read_to_string(format!("/proc/{}/{what}", status["pid"])).unwrap();
        let shown = [read("cmdline"), read("environ"), mount_at(&mountpoint).unwrap(), status.to_string()];
        for text in shown {
            assert!(!text.contains(&stage.ticket) && !text.contains("whm1"), "{text}");
        }
        assert!(
            read("cmdline").contains("/export") && read("cmdline").contains(mountpoint.to_str().unwrap())
        );
        succeeds(wormhole().arg("umount").arg(&mountpoint));
    }
}

#[test]
fn a_second_mount_on_the_same_place_is_refused() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    let mountpoint = stage.mount("mnt", "ro");
    let output = stage.mount_command("127.0.0.1:/export", &mountpoint).output().unwrap();
    assert_eq!(code(&output), 32);
    assert!(errors(&output).contains("mounted there already"), "{}", errors(&output));
    assert_eq!(fs::read_to_string(mountpoint.join("hello")).unwrap(), "hello, world\n");
}

#[test]
fn a_mount_in_the_background_comes_when_the_host_does() {
    if !can_mount() {
        return;
    }
    let mut stage = Stage::new();
    let listening = stage.listening.clone();
    stage.stop_host();
    let mountpoint = stage.mountpoint("mnt");
    let source = format!("@{}", stage.path("ticket").display());
    let mut command = stage.mount_command(&source, &mountpoint);
    let output = command.args(["-o", "bg"]).output().unwrap();
    assert_eq!(code(&output), 0, "{}", errors(&output));
    assert!(errors(&output).contains("in the background"), "{}", errors(&output));
    assert!(mount_at(&mountpoint).is_none());
    stage.start_host(&listening);
    super::stage::wait_until("mounted", || mount_at(&mountpoint).is_some());
    super::stage::wait_until("readable", || fs::metadata(mountpoint.join("hello")).is_ok());
}

#[test]
fn the_demonstration_works_and_cleans_up() {
    if !can_mount() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let text = succeeds(wormhole().args(["demo", "--json"]).env("TMPDIR", folder.path()));
    let findings: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(findings["files"], findings["equal_files"], "{text}");
    assert!(findings["files"].as_u64().unwrap() > 100, "{text}");
    // A cache that cannot keep up with a busy machine leaves chunks out, but not all of them.
    let (again, first) = (&findings["again_host_bytes"], &findings["copied_bytes"]);
    assert!(again.as_u64().unwrap() < first.as_u64().unwrap(), "{text}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn an_interrupted_demonstration_cleans_up() {
    if !can_mount() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let below = folder.path().canonicalize().unwrap();
    let mut demo = wormhole()
        .arg("demo")
        .env("TMPDIR", &below)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mounted = || super::stage::mount_table().contains(below.to_str().unwrap());
    super::stage::wait_until("it has mounted", mounted);
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(demo.id().cast_signed()),
        nix::sys::signal::Signal::SIGINT,
    )
    .unwrap();
    assert_eq!(demo.wait().unwrap().code(), Some(2));
    assert!(!mounted());
    assert_eq!(fs::read_dir(&below).unwrap().count(), 0);
}

#[test]
fn a_host_shows_in_the_status() {
    let mut stage = Stage::new();
    let pid = u64::from(stage.host_pid().as_raw().unsigned_abs());
    let hosts = || {
        let text = succeeds(wormhole().args(["status", "--json"]));
        let reports: serde_json::Value = serde_json::from_str(&text).unwrap();
        let ours = |report: &&serde_json::Value| report["kind"] == "host" && report["pid"] == pid;
        reports.as_array().unwrap().iter().find(ours).cloned()
    };
    let report = hosts().unwrap();
    assert_eq!(report["address"], stage.listening.as_str());
    assert_eq!(report["source"][0], format!("export={}", stage.path("export").display()));
    stage.stop_host();
    assert_eq!(hosts(), None);
}

#[test]
fn the_demonstration_shows_a_folder_of_ones_own() {
    if !can_mount() {
        return;
    }
    let (folder, own) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(own.path().join("one"), "1").unwrap();
    let text = succeeds(wormhole().arg("demo").arg(own.path()).env("TMPDIR", folder.path()));
    assert!(text.contains("1 files") && text.contains("equal"), "{text}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
