//! Writing through a mount: what programs see, what the host gets, and who may not.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::process::{Command, Stdio};

use super::relay::Relay;
use crate::world::{WORMHOLE, World, noise, printed_by, run, wait_until};

#[test]
fn nothing_is_written_unless_all_three_allow_it() {
    let world = World::new();
    fs::write(world.source().join("file"), "old").unwrap();
    let read_only = |error: std::io::Error| error.raw_os_error() == Some(libc::EROFS);
    {
        let host = world.host_on("127.0.0.1:0", &["--read-only"]);
        let mount = world.mount(&host.ticket, "rw");
        assert!(fs::write(mount.path("new"), "x").is_err_and(read_only), "the host says no");
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = table.lines().find(|line| line.contains(mount.point.to_str().unwrap())).unwrap();
        assert!(line.split(' ').nth(5).unwrap().starts_with("ro"), "{line}");
        mount.umount();
    }
    let host = world.host();
    let mount = world.mount(&host.ticket, "ro");
    assert!(fs::write(mount.path("new"), "x").is_err_and(read_only), "the mount says no");
    mount.umount();
    let mount = world.mount(&host.ticket, "rw");
    fs::write(mount.path("new"), "x").unwrap();
    let keys = world.path("host-state/authorized_keys");
    let text = fs::read_to_string(&keys).unwrap().replace(" exports=", " ro exports=");
    fs::write(&keys, text).unwrap();
    wait_until("the key may no longer write", || fs::write(mount.path("newer"), "x").is_err_and(read_only));
    assert_eq!(fs::read(mount.path("new")).unwrap(), b"x", "reading goes on");
}

/// What is on its way behind a writer's back keeps nobody waiting for a name: not even the MiB of it that was begun.
#[test]
fn who_asks_for_a_name_goes_before_what_was_written() {
    let world = World::new();
    let host = world.host();
    let relay = Relay::start(host.listening);
    let mount = world.mount(&host.ticket_for(relay.address()), "transport=quic");
    relay.narrow(1_000_000);
    fs::write(world.path("content"), noise(12_000_000, 1)).unwrap();
    // A program of its own: who starts one closes a copy of its files, which waits.
    let to = format!("of={}", mount.path("large").display());
    let from = format!("if={}", world.path("content").display());
    let mut writer = Command::new("dd").args([&from, &to, "bs=1M", "status=none"]).spawn().unwrap();
    let unsent = || mount.status()["unsent_bytes"].as_u64().unwrap();
    wait_until("it is on its way", || unsent() > 10_000_000);
    for number in 0..10 {
        fs::create_dir(mount.path(format!("folder {number}"))).unwrap();
    }
    let left = unsent();
    assert!(left > 6_000_000, "{left} bytes are left");
    relay.narrow(u64::MAX);
    assert!(writer.wait().unwrap().success());
    mount.umount();
}

#[test]
fn what_one_mount_closes_another_sees_at_open() {
    let world = World::new();
    let host = world.host();
    let one = world.mount(&host.ticket, "rw");
    let port = format!("port={},rw", host.listening.port());
    let other = world.mount_as("other", "127.0.0.1:/export", &port);
    for (round, size) in [10, 5, 300_000, 3 << 20, 2 << 20].into_iter().enumerate() {
        let (writer, reader) = if round % 2 == 0 { (&one, &other) } else { (&other, &one) };
        let bytes = noise(size, round as u64);
        fs::write(writer.path("file"), &bytes).unwrap();
        let mut read = Vec::new();
        std::io::Read::read_to_end(&mut File::open(reader.path("file")).unwrap(), &mut read).unwrap();
        assert!(read == bytes, "round {round}: {} bytes of {size}", read.len());
        assert!(fs::read(world.source().join("file")).unwrap() == bytes, "round {round}");
    }
}

#[test]
fn modes_and_masks_are_those_of_a_local_folder() {
    let world = World::new();
    let host = world.host();
    let mount = world.mount(&host.ticket, "rw");
    for folder in [mount.point.clone(), world.path("local")] {
        fs::create_dir_all(folder.join("group")).unwrap();
        fs::set_permissions(folder.join("group"), fs::Permissions::from_mode(0o2775)).unwrap();
        let script = "umask 027; touch f; mkdir d group/d; mkfifo p; ln -s f l; \
                      setfacl -d -m u:4321:rwx group/d; umask 077; touch group/d/f; mkdir group/d/d; touch -d @1.5 l -h";
        let made = Command::new("sh").arg("-ec").arg(script).current_dir(&folder).output();
        let made = made.unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
    for name in ["f", "d", "group/d", "p", "l", "group/d/f", "group/d/d"] {
        let local = fs::symlink_metadata(world.path("local").join(name)).unwrap();
        for path in [mount.path(name), world.source().join(name)] {
            let found = fs::symlink_metadata(&path).unwrap();
            assert_eq!(format!("{:o}", found.mode()), format!("{:o}", local.mode()), "{}", path.display());
        }
    }
    let acl = |path: &std::path::Path| {
        printed_by("getfacl", &["-c", "-n", "--absolute-names", path.to_str().unwrap()])
    };
    assert_eq!(acl(&mount.path("group/d/f")), acl(&world.path("local/group/d/f")));
}

#[test]
fn shared_memory_and_open_files_without_a_name_are_written() {
    let world = World::new();
    let host = world.host();
    let mount = world.mount(&host.ticket, "rw");
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(mount.path("f"));
    let file = file.unwrap();
    file.write_all_at(&noise(10_000, 1), 0).unwrap();
    let script = "import mmap,os,sys\n\
                  f = os.open(sys.argv[1], os.O_RDWR)\n\
                  m = mmap.mmap(f, 10000)\n\
                  m[4090:4100] = b'0123456789'\n\
                  m.flush()\n";
    printed_by("python3", &["-c", script, mount.path("f").to_str().unwrap()]);
    let mut expected = noise(10_000, 1);
    expected[4090..4100].copy_from_slice(b"0123456789");
    assert!(fs::read(world.source().join("f")).unwrap() == expected);
    assert!(fs::read(mount.path("f")).unwrap() == expected);
    fs::remove_file(mount.path("f")).unwrap();
    file.write_all_at(b"still here", 20_000).unwrap();
    let mut end = [0; 10];
    file.read_exact_at(&mut end, 20_000).unwrap();
    assert_eq!(&end, b"still here");
    file.sync_all().unwrap();
}

#[test]
fn programs_work_on_it() {
    let world = World::new();
    let host = world.host();
    let mount = world.mount(&host.ticket, "rw");
    let shell = |script: &str| {
        let output = Command::new("sh").arg("-ec").arg(script).current_dir(&mount.point).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let sources = concat!(env!("CARGO_MANIFEST_DIR"), "/src");
    shell(&format!(
        "cp -a {sources} src && diff -r {sources} src && tar cf t.tar src && mkdir out && tar xf t.tar -C out"
    ));
    shell(&format!(
        "diff -r {sources} out/src && mv out/src moved && rm -r out src && diff -r {sources} moved"
    ));
    shell(
        "git init -q repo && cd repo && cp -r ../moved . && git add . && \
         git -c user.name=a -c user.email=a@b commit -qm one && git gc -q && git fsck && \
         git clone -q . ../clone && cd ../clone && git status --porcelain",
    );
    let sql = "import sqlite3\nfor mode in ('delete','wal'):\n d=sqlite3.connect(mode+'.db')\n \
               d.execute('pragma journal_mode='+mode)\n d.execute('create table t(x)')\n \
               d.executemany('insert into t values(?)',((i,) for i in range(1000)))\n d.commit()\n \
               d.execute('delete from t where x%2')\n d.commit()\n \
               print(d.execute('select count(*),sum(x) from t').fetchone(), d.execute('pragma integrity_check').fetchone())\n";
    let told = shell(&format!("python3 -c \"{sql}\""));
    assert_eq!(told.matches("(500, 249500) ('ok',)").count(), 2, "{told}");
}

#[test]
fn writers_go_on_over_a_host_that_restarts_and_append_once() {
    let world = World::new();
    let mut host = world.host();
    let listen = host.listening.to_string();
    let mount = world.mount(&host.ticket, "rw");
    let mut log = OpenOptions::new().append(true).create(true).open(mount.path("log")).unwrap();
    let mut expected: Vec<u8> = Vec::new();
    for line in 0..40 {
        if line % 10 == 5 {
            // Nothing may be on its way here: starting the host closes a copy of this file, and would wait for it.
            log.sync_data().unwrap();
            host.kill();
            host = world.host_on(&listen, &[]);
        }
        let line = format!("line {line}\n");
        log.write_all(line.as_bytes()).unwrap();
        expected.extend(line.as_bytes());
    }
    log.sync_all().unwrap();
    assert_eq!(fs::read(world.source().join("log")).unwrap(), expected);
}

/// What is under way on a connection when the host dies is sent again on the next one, over both transports.
#[test]
fn a_large_file_is_whole_although_the_host_is_killed_under_it() {
    for transport in ["tcp", "quic"] {
        let world = World::new();
        let mut host = world.host();
        let listen = host.listening.to_string();
        let mount = world.mount(&host.ticket, &format!("transport={transport}"));
        let content = noise(150_000_000, 3);
        fs::write(world.path("content"), &content).unwrap();
        // Another process: this one starts a host, which closes a copy of its files and so waits for a host.
        let mut writer = Command::new("dd")
            .arg(format!("if={}", world.path("content").display()))
            .arg(format!("of={}", mount.path("large").display()))
            .args(["bs=1M", "conv=fsync", "status=none"])
            .spawn()
            .unwrap();
        let has_begun =
            || fs::metadata(world.source().join("large")).is_ok_and(|file| file.len() > 20_000_000);
        wait_until("some of it has arrived", has_begun);
        host.kill();
        host = world.host_on(&listen, &[]);
        assert!(writer.wait().unwrap().success());
        assert!(fs::read(world.source().join("large")).unwrap() == content, "{transport}");
        mount.umount();
        drop(host);
    }
}

#[test]
fn status_tells_what_the_host_does_not_have_and_ending_waits_for_it() {
    let world = World::new();
    let host = world.host();
    let mount = world.mount(&host.ticket, "");
    // Another process: one that starts programs closes a copy of its files with each, and waits for the host.
    let script = "import os,sys\n\
                  f = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)\n\
                  for line in sys.stdin:\n \
                  what, size = line.split()\n \
                  os.write(f, b'x' * int(size)) if what == 'write' else os.fsync(f)\n \
                  print('done', flush=True)\n";
    let mut writer = Command::new("python3")
        .args(["-c", script, mount.path("file").to_str().unwrap()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut orders, mut answers) =
        (writer.stdin.take().unwrap(), BufReader::new(writer.stdout.take().unwrap()).lines());
    let mut order = |words: &str| {
        writeln!(orders, "{words}").unwrap();
        answers.next().unwrap().unwrap();
    };
    let reads = |metric: &str| mount.status()[metric].as_u64().unwrap();
    order("write 10000");
    wait_until("the host has it", || reads("unsent_bytes") == 0);
    assert_eq!(reads("unsynced_bytes"), 10_000);
    order("sync 0");
    assert_eq!(reads("unsynced_bytes"), 0);
    let process = nix::unistd::Pid::from_raw(host.child.id() as i32);
    nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGSTOP).unwrap();
    order("write 3000000");
    assert_eq!(reads("unsent_bytes"), 3_000_000);
    let shown = run(WORMHOLE, &["status", mount.point.to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains("not yet at the host"));
    // The daemon is told to end while a program has the file open and the host is silent.
    let daemon = nix::unistd::Pid::from_raw(mount.daemon().unwrap());
    nix::sys::signal::kill(daemon, nix::sys::signal::Signal::SIGTERM).unwrap();
    // So long that connections are given up and made anew, with what was under way on them.
    std::thread::sleep(std::time::Duration::from_millis(2500));
    nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGCONT).unwrap();
    wait_until("the daemon has ended", || mount.daemon().is_none());
    assert!(fs::read(world.source().join("file")).unwrap() == vec![b'x'; 3_010_000]);
    writer.kill().unwrap();
    writer.wait().unwrap();
}

/// A program of its own, as this one starts programs, each of which closes a copy of its files. Its orders are lines of Python about the
/// files `one` and `two`, two handles of the same file; it answers `done`, or the name of an error.
struct Writer {
    child: std::process::Child,
    answers: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Writer {
    const SCRIPT: &str = "import errno,os,sys\n\
        one = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n\
        two = os.open(sys.argv[1], os.O_RDWR)\n\
        for line in sys.stdin:\n \
        try:\n  exec(line)\n  print('done', flush=True)\n \
        except OSError as error: print(errno.errorcode[error.errno], flush=True)\n";

    fn new(path: &std::path::Path) -> Self {
        let mut command = Command::new("python3");
        command.args(["-c", Self::SCRIPT, path.to_str().unwrap()]);
        let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = pipes.spawn().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, answers }
    }

    fn order(&mut self, line: &str) -> String {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
        self.answers.next().unwrap().unwrap()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// A host on a machine that has restarted: its kernel bears another name, in a namespace of its own. Needs root.
fn rebooted(world: &World, listen: &str, name: &str) -> crate::world::Host {
    fs::write(world.path("boot_id"), name).unwrap();
    let script = "mount --bind \"$0\" /proc/sys/kernel/random/boot_id && exec \"$@\"";
    let boot_id = world.path("boot_id");
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", script]).arg(boot_id).arg(WORMHOLE);
    command.env_remove("WORMHOLE_TICKET").stdin(Stdio::null());
    world.host_by(command, listen, &[])
}

#[test]
fn a_machine_that_restarts_before_a_sync_is_told_through_each_handle_once_and_never_forgotten() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let world = World::new();
    let mut host = rebooted(&world, "127.0.0.1:0", "first");
    let listen = host.listening.to_string();
    let mount = world.mount(&host.ticket, "");
    let mut writer = Writer::new(&mount.path("file"));
    let mut boots = 0;
    let mut reboot = |host: &mut crate::world::Host| {
        boots += 1;
        let instances = mount.status()["host_restarts"].as_u64().unwrap();
        host.kill();
        *host = rebooted(&world, &listen, &format!("boot {boots}"));
        let noticed = || mount.status()["host_restarts"].as_u64().unwrap() > instances;
        wait_until("the client has noticed", || {
            // Who asks finds out.
            let _ = fs::metadata(mount.path("other"));
            noticed()
        });
    };
    let accepted = |writer: &mut Writer| {
        assert_eq!(writer.order("os.write(one, b'x' * 5000)"), "done");
        wait_until("the host has it", || mount.status()["unsent_bytes"] == 0);
    };
    // Write, restart, fsync.
    accepted(&mut writer);
    reboot(&mut host);
    assert_eq!(writer.order("os.fsync(one)"), "EIO");
    assert_eq!(writer.order("os.fsync(one)"), "done");
    assert_eq!(writer.order("os.fdatasync(two)"), "EIO", "the other handle, once");
    assert_eq!(writer.order("os.fsync(two)"), "done");
    // What is synced is safe.
    accepted(&mut writer);
    assert_eq!(writer.order("os.fsync(two)"), "done");
    reboot(&mut host);
    assert_eq!(writer.order("os.fsync(one)"), "done");
    // A later write does not hide it.
    accepted(&mut writer);
    reboot(&mut host);
    assert_eq!(writer.order("os.write(two, b'later')"), "done");
    assert_eq!(writer.order("os.fsync(two)"), "EIO");
    assert_eq!(writer.order("os.fsync(one)"), "EIO");
    assert_eq!(writer.order("os.fsync(one); os.fsync(two)"), "done");
    // A close without a sync, of each.
    accepted(&mut writer);
    reboot(&mut host);
    assert_eq!(writer.order("os.close(one)"), "EIO");
    assert_eq!(writer.order("os.close(two)"), "EIO");
    // The daemon alone loses nothing.
    assert_eq!(writer.order("one = os.open(sys.argv[1], os.O_RDWR)"), "done");
    accepted(&mut writer);
    host.kill();
    host = rebooted(&world, &listen, &format!("boot {boots}"));
    assert_eq!(writer.order("os.fsync(one)"), "done");
    drop((writer, host));
}
