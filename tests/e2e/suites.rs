//! The test suites that others wrote for file systems, on a mount: pjdfstest, fsx, fio, stress-ng.
//!
//! `tests/README.md` has the totals of long runs and the commands.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::world::{World, printed_by, succeeds, words};

/// Tests of pjdfstest that pass on local file systems and not on a mount.
const PJDFSTEST_EXCEPTIONS: [&str; 1] = [
    // Skipped, as on tmpfs: the C library knows the greatest number of links of ext4 and a few others by name.
    "link::link_count_max",
];

const PJDFSTEST_CONFIG: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.02
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

/// A program that cargo installs. Where it is missing, that is said past the capture of tests that pass.
fn installed(name: &str) -> Option<PathBuf> {
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo/bin"));
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&folders).chain(home).map(|folder| folder.join(name)).find(|p| p.is_file());
    if found.is_none() {
        let text = format!("\nNOT TESTED: {name} is not installed here: cargo install --locked {name}\n");
        std::io::stderr().write_all(text.as_bytes()).unwrap();
    }
    found
}

/// A number from the environment.
fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |text| text.parse().expect("a number"))
}

/// The tests that pass in a folder, and all that was said of the others.
fn pjdfstest(program: &Path, config: &Path, folder: &Path) -> (BTreeSet<String>, String) {
    let mut command = Command::new(program);
    command.arg("-c").arg(config).arg("-p").arg(folder).args(["-s", "/dev/shm"]).stdin(Stdio::null());
    let output = command.output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let (passed, other): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.ends_with(" ok"));
    let passed = passed.iter().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect();
    (passed, other.join("\n"))
}

#[test]
fn pjdfstest_passes_what_passes_locally() {
    let Some(program) = installed("pjdfstest") else { return };
    let world = World::new();
    let host = world.host();
    let mount = world.mount_for_all(&host);
    let (config, local) = (world.path("pjdfstest.toml"), world.path("local"));
    fs::write(&config, PJDFSTEST_CONFIG).unwrap();
    fs::create_dir(&local).unwrap();
    let (here, _) = pjdfstest(&program, &config, &local);
    let (there, text) = pjdfstest(&program, &config, &mount.point);
    assert!(here.len() > 100, "only {} tests pass locally", here.len());
    let lost: Vec<&String> =
        here.difference(&there).filter(|name| !PJDFSTEST_EXCEPTIONS.contains(&name.as_str())).collect();
    assert!(lost.is_empty(), "{lost:?} pass locally and not on the mount:\n{text}");
}

/// What fsx does, and how often beside the others; sizes in bytes.
fn fsx_config(file_bytes: u32, operation_bytes: u32) -> String {
    format!(
        "flen = {file_bytes}\n[opsize]\nmax = {operation_bytes}\n[weights]\nclose_open = 1\ninvalidate = 1\nmapread = 5\n\
         mapwrite = 5\nread = 5\nwrite = 5\ntruncate = 3\nfsync = 0.3\nfdatasync = 0.3\nposix_fallocate = 1\npunch_hole = 1\n\
         sendfile = 1\nposix_fadvise = 1\ncopy_file_range = 2\n"
    )
}

#[test]
fn fsx_reads_what_it_wrote() {
    let Some(program) = installed("fsx") else { return };
    let world = World::new();
    let host = world.host();
    let mount = world.mount(&host.ticket, "");
    let end = Instant::now() + Duration::from_secs(number("WORMHOLE_FSX_SECONDS", 10));
    let mut seed = number("WORMHOLE_FSX_SEED", 1);
    let mut operations = 0;
    while Instant::now() < end {
        // Every third file is larger than one chunk and one request.
        let (config, count) = if seed % 3 == 2 {
            (fsx_config(16 << 20, 2_500_000), 300)
        } else {
            (fsx_config(1 << 20, 131_072), 1000)
        };
        let path = world.path("fsx.toml");
        fs::write(&path, config).unwrap();
        let mut command = Command::new(&program);
        command.arg("-f").arg(path).args(["-N", &count.to_string(), "-S", &seed.to_string(), "-q", "-P"]);
        let output =
            command.arg(world.path("")).arg(mount.path("file")).stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "seed {seed}: {}\n{text}", words(&output));
        operations += count;
        seed += 1;
    }
    println!("{operations} operations, seeds below {seed}");
}

const FIO_JOBS: &str = "
[global]
size=${MIB}m
verify=crc32c
verify_fatal=1
do_verify=1
fallocate=none
verify_state_save=0
[sequential]
rw=write
bs=64k
ioengine=sync
stonewall
[sequential-unaligned]
rw=write
bs=13k
ioengine=sync
numjobs=2
stonewall
[random-synced]
rw=randwrite
bs=4k
ioengine=psync
numjobs=2
fsync=256
stonewall
[random-direct]
rw=randwrite
bs=16k
direct=1
ioengine=psync
numjobs=2
stonewall
[random-mapped]
rw=randwrite
bs=4k
ioengine=mmap
numjobs=2
stonewall
[sequential-mapped]
rw=write
bs=128k
ioengine=mmap
stonewall
[random-sizes]
rw=randwrite
bsrange=512-300k
ioengine=psync
numjobs=2
stonewall
[random-queued]
rw=randwrite
bs=8k
direct=1
ioengine=libaio
iodepth=16
stonewall
[verify-while-writing]
rw=randwrite
bs=32k
ioengine=psync
verify_backlog=64
stonewall
";

#[test]
fn fio_verifies_what_it_wrote() {
    let world = World::new();
    let host = world.host();
    let mount = world.mount(&host.ticket, "");
    let jobs = world.path("verify.fio");
    fs::write(&jobs, FIO_JOBS).unwrap();
    let mut fio = Command::new("fio");
    fio.env("MIB", number("WORMHOLE_FIO_MIB", 4).to_string())
        .current_dir(world.path(""))
        .stdin(Stdio::null());
    succeeds(fio.arg("--directory").arg(&mount.point).arg(jobs));
    mount.umount();
    let mount = world.mount(&host.ticket, "");
    printed_by("diff", &["-r", world.source().to_str().unwrap(), mount.point.to_str().unwrap()]);
    assert_eq!(fs::read_dir(&mount.point).unwrap().count(), 14);
}

/// Those of stress-ng's file-system class that work through a folder's files. The rest of the class never gets to a FUSE mount: it
/// needs binder, privileges over the machine, fs-verity or maps of extents.
const STRESSORS: [&str; 44] = [
    "access",
    "chattr",
    "chdir",
    "chmod",
    "chown",
    "copy-file",
    "dentry",
    "dir",
    "dirdeep",
    "dirmany",
    "dnotify",
    "dup",
    "eventfd",
    "fallocate",
    "fanotify",
    "fcntl",
    "file-ioctl",
    "filename",
    "flock",
    "fpunch",
    "fsize",
    "fstat",
    "getdent",
    "handle",
    "hdd",
    "inode-flags",
    "inotify",
    "io",
    "iomix",
    "ioprio",
    "lease",
    "link",
    "locka",
    "lockf",
    "lockofd",
    "mknod",
    "open",
    "procfs",
    "rename",
    "symlink",
    "sync-file",
    "touch",
    "utime",
    "xattr",
];

#[test]
fn stress_ng_finds_nothing_wrong() {
    let world = World::new();
    let host = world.host();
    let mount = world.mount_for_all(&host);
    let seconds = number("WORMHOLE_STRESS_SECONDS", 0);
    let few = ["chattr", "fallocate", "fpunch", "rename", "utime"];
    let (stressors, seconds): (&[&str], u64) = if seconds == 0 { (&few, 1) } else { (&STRESSORS, seconds) };
    for stressor in stressors {
        // Setting up and tearing down take what they take: some make thousands of files first.
        let patience = (seconds * 10 + 120).to_string();
        let mut command = Command::new("timeout");
        command.args([
            &patience,
            "stress-ng",
            &format!("--{stressor}"),
            "2",
            "-t",
            &seconds.to_string(),
            "--verify",
        ]);
        command.args([
            "--hdd-bytes",
            "32M",
            "--fallocate-bytes",
            "32M",
            "--iomix-bytes",
            "32M",
            "--dirdeep-bytes",
            "8M",
        ]);
        let output = command
            .arg("--temp-path")
            .arg(&mount.point)
            .current_dir(world.path(""))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{stressor}: {}", words(&output));
        assert!(mount.is_mounted());
    }
    println!("{} stressors, {seconds} s each", stressors.len());
}
