//! Databases whose host fails: what goes wrong is told as what it is.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use super::file_systems::{Mounted, may_mount};
use crate::world::{World, succeeds, wait_until};

/// Fills the disk by transactions of rows of a given size, then frees room and goes on. Prints each error.
const FILL: &str = r"
import os, sqlite3, sys
path, mode, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
count = 240000 // size
database = sqlite3.connect(path, isolation_level=None)
database.execute('pragma journal_mode = ' + mode)
database.execute('create table rows(number integer primary key, content blob)')
open(path + '.ballast', 'wb').write(bytes(2000000))
rows = 0
def insert(count, size):
    database.execute('begin immediate')
    for _ in range(count):
        database.execute('insert into rows(content) values (?)', (os.urandom(size),))
    database.execute('commit')
for attempt in range(3):
    try:
        while True:
            insert(count, size)
            rows += count
    except sqlite3.Error as error:
        print(error)
        if database.in_transaction:
            database.execute('rollback')
assert database.execute('select count(*) from rows').fetchone() == (rows,)
os.unlink(path + '.ballast')
insert(1, 1000)
assert database.execute('pragma integrity_check').fetchone() == ('ok',)
database.close()
";

#[test]
fn a_full_disk_of_the_host_is_a_full_disk_to_sqlite() {
    if !may_mount() {
        return;
    }
    let world = World::new();
    let image = world.path("image");
    fs::File::create(&image).unwrap().set_len(12 << 20).unwrap();
    succeeds(Command::new("mkfs.ext4").arg("-q").arg(&image));
    let ext4 = Mounted::new(world.source().join("ext4"), "ext4", "loop", &image);
    let memory = Mounted::new(world.source().join("memory"), "tmpfs", "size=6m", Path::new("tmpfs"));
    let host = world.host();
    let mount = world.mount(&host.ticket, "");
    for folder in ["ext4", "memory"] {
        for mode in ["delete", "wal"] {
            for size in ["3000", "100000"] {
                let path = mount.path(folder).join(format!("{mode}-{size}"));
                let mut fill = Command::new("python3");
                let told = succeeds(fill.args(["-c", FILL]).arg(&path).args([mode, size]));
                let errors: Vec<_> = told.lines().collect();
                assert_eq!(errors, ["database or disk is full"; 3], "{folder}, {mode}, rows of {size}");
                for left in fs::read_dir(mount.path(folder)).unwrap() {
                    let left = left.unwrap().path();
                    if left.is_file() {
                        fs::remove_file(left).unwrap();
                    }
                }
            }
        }
    }
    mount.umount();
    drop(host);
    [ext4, memory].into_iter().for_each(Mounted::umount);
}

/// Holds a transaction open while something happens to the host, then prints what each kind of statement says.
const HOLD: &str = r"
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute('pragma cache_size = 2')
database.execute('begin immediate')
database.execute('update rows set content = zeroblob(3000) where number < 5')
print('held', flush=True)
sys.stdin.readline()
for statement in ['select sum(length(content)) from rows', 'insert into rows(content) values (1)', 'commit',
                  'rollback', 'begin immediate', 'select sum(length(content)) from rows', 'rollback']:
    try:
        database.execute(statement).fetchall()
        print('done:', statement)
    except sqlite3.Error as error:
        print(error)
";

#[test]
fn a_lost_lock_is_no_corrupt_database() {
    let world = World::new();
    let mut host = world.host();
    let listen = host.listening.to_string();
    let mount = world.mount(&host.ticket, "");
    for mode in ["delete", "wal"] {
        let path = mount.path(mode);
        let make = format!(
            "import sqlite3, sys\ndatabase = sqlite3.connect(sys.argv[1], isolation_level=None)\n\
             database.execute('pragma journal_mode = {mode}')\n\
             database.execute('create table rows(number integer primary key, content blob)')\n\
             for _ in range(400): database.execute('insert into rows(content) values (randomblob(3000))')\n"
        );
        succeeds(Command::new("python3").args(["-c", &make]).arg(&path));
        let lost = mount.status()["locks_lost"].as_u64().unwrap();
        let mut holder = Command::new("python3")
            .args(["-c", HOLD])
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "held");
        host.kill();
        host = world.host_on(&listen, &[]);
        wait_until("the mount has noticed", || mount.status()["locks_lost"].as_u64().unwrap() > lost);
        holder.stdin.take().unwrap().write_all(b"\n").unwrap();
        let told: Vec<String> = lines.map(Result::unwrap).collect();
        assert!(holder.wait().unwrap().success(), "{told:?}");
        assert!(told.iter().any(|line| line == "disk I/O error"), "{told:?}");
        assert!(!told.iter().any(|line| line.contains("malformed")), "{told:?}");
        let check = "import sqlite3, sys\ndatabase = sqlite3.connect(sys.argv[1])\n\
                     assert database.execute('pragma integrity_check').fetchone() == ('ok',)\n\
                     assert database.execute('select count(*) from rows').fetchone() == (400,)\n";
        succeeds(Command::new("python3").args(["-c", check]).arg(&path));
    }
    mount.umount();
}
