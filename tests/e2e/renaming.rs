//! Names that programs on the host move and replace while programs on a mount use them.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use super::relay::Relay;
use crate::world::{World, wait_until};

/// Longer than names and descriptors are believed anywhere.
const UNTIL_OLD: Duration = Duration::from_millis(2500);

/// Steps of a program that works in a folder. Each waits for a line before it goes on.
const WORK: &str = "set -e
cat file; read line; cat file; ls; echo new > made; cat made; mkdir sub; mv made sub; cat sub/made
read line; cat file sub/made; rm -r sub; ls";

#[test]
fn a_working_directory_goes_on_after_the_host_moved_it() {
    let world = World::new();
    let folder = |name: &str| world.source().join(name);
    fs::create_dir_all(folder("project/deep/work")).unwrap();
    fs::write(folder("project/deep/work/file"), "content\n").unwrap();
    let host = world.host();
    let mount = world.mount(&host.ticket, "rw");
    let mut shell = Command::new("sh");
    shell.args(["-c", WORK]).current_dir(mount.path("project/deep/work"));
    let mut shell =
        shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut go_on = shell.stdin.take().unwrap();
    std::thread::sleep(UNTIL_OLD);
    fs::rename(folder("project"), folder("moved")).unwrap();
    std::thread::sleep(UNTIL_OLD);
    writeln!(go_on).unwrap();
    wait_until("the first half is done", || folder("moved/deep/work/sub/made").exists());
    // The folder itself now, and another one takes its name.
    fs::rename(folder("moved/deep/work"), folder("work")).unwrap();
    fs::create_dir(folder("moved/deep/work")).unwrap();
    std::thread::sleep(UNTIL_OLD);
    writeln!(go_on).unwrap();
    let output = shell.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert_eq!(text(&output.stderr), "");
    assert_eq!(text(&output.stdout), "content\ncontent\nfile\nnew\nnew\ncontent\nnew\nfile\n");
    assert!(output.status.success());
    assert_eq!(fs::read_dir(folder("work")).unwrap().count(), 1);
    assert_eq!(fs::read_dir(folder("moved/deep/work")).unwrap().count(), 0);
    mount.umount();
}

/// What programs do by a name.
type Act = fn(&Path) -> std::io::Result<()>;

const ACTS: [(&str, Act); 10] = [
    ("read", |folder| fs::read(folder.join("file")).map(|bytes| assert_eq!(bytes.len(), 200))),
    ("append", |folder| OpenOptions::new().append(true).open(folder.join("file")).map(drop)),
    ("chmod", |folder| fs::set_permissions(folder.join("file"), fs::Permissions::from_mode(0o640))),
    ("utimes", |folder| {
        let file = folder.join("file");
        // By name, as `touch` does with what it may not open.
        let now = nix::sys::time::TimeVal::new(1_000_000_000, 0);
        nix::sys::stat::utimes(&file, &now, &now).map_err(std::io::Error::from)
    }),
    ("truncate", |folder| nix::unistd::truncate(&folder.join("file"), 200).map_err(std::io::Error::from)),
    ("stat", |folder| fs::metadata(folder.join("file")).map(drop)),
    ("access", |folder| {
        nix::unistd::access(&folder.join("file"), nix::unistd::AccessFlags::R_OK)
            .map_err(std::io::Error::from)
    }),
    ("link", |folder| {
        fs::hard_link(folder.join("file"), folder.join("second name"))?;
        fs::remove_file(folder.join("second name"))
    }),
    ("readlink", |folder| fs::read_link(folder.join("link")).map(drop)),
    ("read below a link", |folder| fs::read(folder.join("link/inner")).map(drop)),
];

/// Replaces a file and a link on the host until told to end, with a pause between.
fn replace_all_the_time(folder: &Path, pause: Duration, ends: &AtomicBool) {
    for number in 0.. {
        fs::write(folder.join("tmp"), "x".repeat(200)).unwrap();
        fs::rename(folder.join("tmp"), folder.join("file")).unwrap();
        symlink(format!("release{}", number % 2), folder.join("tmp link")).unwrap();
        fs::rename(folder.join("tmp link"), folder.join("link")).unwrap();
        if ends.load(Ordering::Relaxed) {
            return;
        }
        std::thread::sleep(pause);
    }
}

#[test]
fn a_name_that_the_host_replaces_all_the_time_never_fails() {
    // How long each act is repeated; what happens between two requests depends on when they meet.
    const EACH: Duration = Duration::from_millis(700);
    let world = World::new();
    for release in ["release0", "release1"] {
        fs::create_dir(world.source().join(release)).unwrap();
        fs::write(world.source().join(release).join("inner"), release).unwrap();
    }
    let host = world.host();
    let relay = Relay::start(host.listening);
    relay.delay(Duration::from_millis(10));
    let mount = world.mount(&host.ticket_for(relay.address()), "rw");
    let mut failed = BTreeMap::new();
    for pause_ms in [3, 40, 1100] {
        let ends = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| replace_all_the_time(&world.source(), Duration::from_millis(pause_ms), &ends));
            wait_until("the names are there", || fs::metadata(mount.path("link/inner")).is_ok());
            for (name, act) in ACTS {
                let end = Instant::now() + EACH;
                while Instant::now() < end {
                    if let Err(error) = act(&mount.point) {
                        *failed.entry(format!("{name} every {pause_ms} ms: {error}")).or_insert(0) += 1;
                    }
                }
            }
            ends.store(true, Ordering::Relaxed);
        });
    }
    assert!(failed.is_empty(), "{failed:#?}");
    mount.umount();
}

#[test]
fn what_was_replaced_a_moment_ago_is_neither_read_nor_changed() {
    let world = World::new();
    let file = world.source().join("file");
    fs::write(&file, "first").unwrap();
    let host = world.host();
    let mount = world.mount(&host.ticket, "rw");
    for round in 0..5 {
        let old = world.source().join(format!("old {round}"));
        fs::metadata(mount.path("file")).unwrap();
        // As logs are rotated: the old file is still there, under another name.
        fs::rename(&file, &old).unwrap();
        fs::write(&file, format!("new {round}")).unwrap();
        let state = || {
            let found = fs::metadata(&old).unwrap();
            (fs::read(&old).unwrap(), found.permissions().mode(), found.modified().unwrap())
        };
        let before = state();
        match round {
            0 => assert_eq!(fs::read(mount.path("file")).unwrap(), b"new 0"),
            1 => nix::unistd::truncate(&mount.path("file"), 1).unwrap(),
            2 => fs::set_permissions(mount.path("file"), fs::Permissions::from_mode(0o600)).unwrap(),
            3 => File::options().append(true).open(mount.path("file")).unwrap().write_all(b"!").unwrap(),
            _ => {
                let times = fs::FileTimes::new().set_modified(SystemTime::UNIX_EPOCH);
                File::options().write(true).open(mount.path("file")).unwrap().set_times(times).unwrap();
            }
        }
        assert_eq!(state(), before, "{round}");
    }
    mount.umount();
}
