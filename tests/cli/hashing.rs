//! `wormhole host --index`: what it shows of its progress, and to whom.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::world::{WORMHOLE, wait_until, wormhole};

/// A folder with a file that is large and old enough to be hashed.
fn export(folder: &Path) {
    fs::create_dir(folder.join("export")).unwrap();
    fs::write(folder.join("export/large"), vec![7; 5_000_000]).unwrap();
    std::thread::sleep(Duration::from_millis(2100));
}

#[test]
fn a_terminal_shows_a_bar() {
    let folder = tempfile::tempdir().unwrap();
    export(folder.path());
    let host = format!(
        "{WORMHOLE} host --index --listen 127.0.0.1:0 --state-dir {0}/state export={0}/export",
        folder.path().display()
    );
    // It gives the command a terminal, and ends it after a minute in any case.
    let mut script = Command::new("timeout")
        .args(["60", "script", "-qfec", &host, "/dev/null"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut shown, mut buffer) = (String::new(), [0; 4096]);
    let mut output = script.stdout.take().unwrap();
    while !shown.contains("4.8 MiB of 4.8 MiB") {
        let len = output.read(&mut buffer).unwrap();
        assert!(len > 0, "it ended: {shown}");
        shown.push_str(&String::from_utf8_lossy(&buffer[..len]));
    }
    assert!(shown.contains("ticket: ") && shown.contains("hashing ahead [####"), "{shown}");
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(script.id().cast_signed()),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    script.wait().unwrap();
}

#[test]
fn a_pipe_shows_none() {
    let folder = tempfile::tempdir().unwrap();
    export(folder.path());
    let mut host = wormhole()
        .args(["host", "--index", "--listen", "127.0.0.1:0", "--state-dir"])
        .arg(folder.path().join("state"))
        .arg(format!("export={}", folder.path().join("export").display()))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The head of the index, and the one stretch that there is to write.
    let written = || fs::metadata(folder.path().join("state/hashes")).is_ok_and(|found| found.len() > 5000);
    wait_until("it is hashed", written);
    std::thread::sleep(Duration::from_millis(500));
    host.kill().unwrap();
    let output = host.wait_with_output().unwrap();
    // A host of root says that its clients act as root; nothing else is to be said.
    let said = String::from_utf8_lossy(&output.stderr);
    let progress: Vec<_> = said.lines().filter(|line| !line.contains("clients act as root")).collect();
    assert_eq!(progress, [""; 0], "{said}");
}
