//! Each thing that `wormhole doctor` looks at, once as it should be and once broken.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use wormhole::host::FileSystemStatus;

use super::stage::{Stage, code, errors, wormhole};
use crate::world::WORMHOLE;

/// What the doctor says, by check.
struct Findings(Vec<Value>, Output);

impl Findings {
    fn of(command: &mut Command) -> Self {
        let output = command.output().unwrap();
        let rows = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", errors(&output)));
        Self(rows, output)
    }

    fn row(&self, check: &str) -> &Value {
        self.0.iter().find(|row| row["check"] == check).unwrap_or_else(|| panic!("no {check}: {:?}", self.0))
    }

    /// The verdict on a check, and whether what was found contains these words.
    #[track_caller]
    fn says(&self, check: &str, verdict: &str, words: &str) {
        let row = self.row(check);
        assert_eq!(row["verdict"], verdict, "{row}");
        assert!(row["found"].as_str().unwrap().contains(words), "{row}");
        assert_eq!(row.get("help").is_some(), verdict != "ok", "{row}");
    }
}

fn doctor(arguments: &[&str]) -> Findings {
    Findings::of(wormhole().args(["doctor", "--json"]).args(arguments))
}

/// In namespaces of its own, where root may break things for nobody else. `None`, and a word about it, where that is forbidden.
fn doctor_where(namespaces: &str, broken_by: &str, arguments: &str) -> Option<Findings> {
    let may = Command::new("unshare").args([namespaces, "true"]).output();
    if !may.is_ok_and(|output| output.status.success()) {
        eprintln!("LEFT OUT: `unshare {namespaces}` is not allowed here, {broken_by:?} is not tried");
        return None;
    }
    let script = format!("set -e; {broken_by}; exec \"$0\" doctor --json {arguments}");
    Some(Findings::of(Command::new("unshare").args([namespaces, "sh", "-c", &script, WORMHOLE])))
}

#[test]
fn every_check_has_its_row_and_failures_its_exit_code() {
    let findings = doctor(&[]);
    let checks: Vec<_> = findings.0.iter().map(|row| row["check"].as_str().unwrap()).collect();
    let expected = [
        "FUSE device",
        "fusermount3",
        "mount helper",
        "kernel",
        "disk engine",
        "locked memory",
        "UDP buffers",
        "packets",
        "clock",
        "cache",
    ];
    assert_eq!(checks, expected);
    let fails = findings.0.iter().any(|row| row["verdict"] == "fail");
    assert_eq!(code(&findings.1), if fails { 2 } else { 0 });
    let text = wormhole().arg("doctor").output().unwrap();
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(checks.iter().all(|check| text.contains(check)), "{text}");
    assert!(text.lines().count() <= 24, "more than a screen:\n{text}");
    findings.says("clock", "ok", "the year 20");
}

#[test]
fn a_missing_or_foreign_fuse_device_fails() {
    if Path::new("/dev/fuse").exists() {
        // Whether a plain user may open it is another question.
        let verdict = doctor(&[]).row("FUSE device")["verdict"].clone();
        assert!(verdict == "ok" || !nix::unistd::geteuid().is_root());
    }
    for broken_by in ["mount -t tmpfs none /dev", "mount --bind /dev/null /dev/fuse"] {
        let Some(findings) = doctor_where("--mount", broken_by, "") else { return };
        findings.says("FUSE device", "fail", "/dev/fuse");
        assert_eq!(code(&findings.1), 2);
        assert!(errors(&findings.1).contains("of 10 checks failed"), "{}", errors(&findings.1));
    }
}

#[test]
fn fusermount_is_looked_for_in_the_path() {
    doctor(&[]).says("fusermount3", "ok", "found");
    let nowhere = Findings::of(wormhole().args(["doctor", "--json"]).env("PATH", "/nowhere"));
    let verdict = if nix::unistd::geteuid().is_root() { "warn" } else { "fail" };
    nowhere.says("fusermount3", verdict, "not found");
}

#[test]
fn the_mount_helper_is_looked_for() {
    let empty = "mount -t tmpfs none /usr/sbin";
    let Some(missing) = doctor_where("--mount", empty, "") else { return };
    if fs::canonicalize("/sbin").unwrap() != Path::new("/usr/sbin") {
        eprintln!("LEFT OUT: /sbin is not /usr/sbin here, a missing mount helper is not tried");
        return;
    }
    missing.says("mount helper", "warn", "missing");
    let install = format!("{empty}; touch /usr/sbin/mount.wormhole; chmod 755 /usr/sbin/mount.wormhole");
    doctor_where("--mount", &install, "").unwrap().says("mount helper", "ok", "mount.wormhole");
}

#[test]
fn an_old_kernel_is_told() {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let found = doctor(&[]);
    assert!(found.row("kernel")["found"].as_str().unwrap().contains(release.trim()));
    let old = Command::new("setarch").args(["--uname-2.6", WORMHOLE, "doctor", "--json"]).output().unwrap();
    let rows: Vec<Value> = serde_json::from_slice(&old.stdout).unwrap();
    Findings(rows, old).says("kernel", "warn", "Linux 2.6");
}

#[test]
fn the_disk_engine_is_the_one_a_host_has() {
    let stage = Stage::new();
    let engine = stage.host_status()["engine"].as_str().unwrap().to_owned();
    let verdict = if engine == "io_uring" { "ok" } else { "warn" };
    doctor(&[]).says("disk engine", verdict, &engine);
}

/// Root is granted more than the limits say.
#[test]
fn a_plain_user_is_told_of_the_limits() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let program = folder.path().join("wormhole");
    fs::copy(WORMHOLE, &program).unwrap();
    let findings = Findings::of(
        Command::new("setpriv")
            .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
            .args(["prlimit", "--memlock=65536:65536"])
            .arg(program)
            .args(["doctor", "--json"])
            .env("HOME", "/")
            .env_remove("XDG_CACHE_HOME"),
    );
    findings.says("locked memory", "warn", "64.0 KiB");
    findings.says("cache", "warn", "cannot be written");
    let limit: u64 = fs::read_to_string("/proc/sys/net/core/rmem_max").unwrap().trim().parse().unwrap();
    findings.says("UDP buffers", if limit < 16 << 20 { "warn" } else { "ok" }, "16.0 MiB wanted");
}

#[test]
fn the_default_route_and_its_packets_are_looked_at() {
    let Some(none) = doctor_where("--net", ":", "") else { return };
    none.says("packets", "warn", "no default route");
    let route = |mtu: u32| {
        let set = format!(
            "ip link set lo mtu {mtu} up; ip address add 10.1.1.1/32 dev lo; ip route add default dev lo"
        );
        doctor_where("--net", &set, "").unwrap()
    };
    route(1000).says("packets", "warn", "less than QUIC's");
    route(1500).says("packets", "ok", "1,472 bytes");
}

#[test]
fn the_cache_is_looked_at_where_it_is_told_to_be() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("cache/not/there/yet");
    doctor(&["--cache-dir", place.to_str().unwrap()]).says("cache", "ok", place.to_str().unwrap());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "looking makes nothing");
    let below = folder.path().display();
    for (broken_by, words) in [
        (format!("mount -t tmpfs -o ro none {below}"), "cannot be written"),
        (format!("mount -t tmpfs -o size=1M none {below}; head -c 1M /dev/zero > {below}/full || :"), "free"),
    ] {
        let Some(findings) = doctor_where("--mount", &broken_by, &format!("--cache-dir {below}")) else {
            return;
        };
        findings.says("cache", "warn", words);
    }
}

#[test]
fn a_host_is_reached_and_known_or_not() {
    let mut stage = Stage::new();
    let state = stage.path("client-state");
    let by_name = format!("wormhole://{}/export", stage.listening);
    let ask = |source: &str| doctor(&["--state-dir", state.to_str().unwrap(), source]);
    let with_ticket = ask(&format!("@{}", stage.path("ticket").display()));
    with_ticket.says("host key", "ok", "says the ticket");
    with_ticket.says("host", "ok", "round trip");
    let stranger = ask(&by_name);
    stranger.says("host key", "fail", "not known here");
    stranger.says("host", "ok", &stage.listening);
    assert!(!state.exists(), "looking makes nothing");
    let mountpoint = stage.mount("mnt", "ro");
    assert!(wormhole().arg("umount").arg(&mountpoint).status().unwrap().success());
    ask(&by_name).says("host key", "ok", "as before");
    // Another host at the same place.
    let (listening, key) =
        (stage.listening.clone(), fs::read(stage.path("client-state/known_hosts")).unwrap());
    stage.stop_host();
    let gone = ask(&by_name);
    gone.says("host", "fail", "");
    assert_eq!(code(&gone.1), 2);
    fs::remove_dir_all(stage.path("host-state")).unwrap();
    stage.start_host(&listening);
    ask(&by_name).says("host key", "fail", "not known here");
    assert_eq!(fs::read(stage.path("client-state/known_hosts")).unwrap(), key);
    assert_eq!(code(&wormhole().args(["doctor", "nas"]).output().unwrap()), 1, "no source");
}

#[test]
fn a_folder_to_be_exported_has_a_trust_class() {
    let stage = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let here = stage.path().to_str().unwrap();
    let known = FileSystemStatus::look(stage.path()).unwrap();
    let verdict = if known.trust == "full" { "ok" } else { "warn" };
    doctor(&["--export", here]).says(
        "export",
        verdict,
        &format!("{here}: {}, trust class {}", known.name, known.trust),
    );
    doctor(&["--export", "/proc"]).says("export", "warn", "trust class weak: nothing is known");
    doctor(&["--export", "/nowhere"]).says("export", "fail", "/nowhere: No such file");
}
