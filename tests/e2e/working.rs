//! Programs that work in a folder, on a mount: git, tar, cargo, `SQLite`, rsync, vim, dpkg. What they left is compared with the
//! host's own folder.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;
use std::process::Command;

use crate::world::{World, noise, printed_by, succeeds};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A shell script that must go well, run in a folder; git knows nobody but its own test's user.
#[track_caller]
fn shell(folder: &Path, script: &str) -> String {
    let mut command = Command::new("sh");
    for (name, value) in [("GIT_CONFIG_GLOBAL", "/dev/null"), ("GIT_CONFIG_SYSTEM", "/dev/null")] {
        command.env(name, value);
    }
    for role in ["AUTHOR", "COMMITTER"] {
        command
            .env(format!("GIT_{role}_NAME"), "nobody")
            .env(format!("GIT_{role}_EMAIL"), "nobody@localhost");
    }
    command.env_remove("CARGO_TARGET_DIR").stdin(std::process::Stdio::null());
    succeeds(command.args(["-ec", script]).current_dir(folder))
}

#[test]
fn git_clones_collects_and_finds_no_fault() {
    let world = World::new();
    let (local, sources) = (world.path("local"), Path::new(env!("CARGO_MANIFEST_DIR")).join("src/host"));
    fs::create_dir(&local).unwrap();
    let begin = format!(
        "git init -q; cp -r {} src; git add .; git commit -qm one; rm -r src/change; git commit -qam two
         cp -r src copied; ln -s src/tests link; git add .; git commit -qm three",
        text(&sources)
    );
    shell(&local, &begin);
    let host = world.host();
    let mount = world.mount(&host.ticket, "");
    let work = format!(
        "git clone -q {} repository; cd repository; git fsck --strict; git gc -q; git fsck --strict
         git checkout -q -b more; echo new >new; git add new; git commit -qm new; git checkout -q HEAD~2; git checkout -q more
         git stash list; git repack -adq; git fsck --strict",
        text(&local)
    );
    shell(&mount.point, &work);
    for root in [mount.path("repository"), world.source().join("repository")] {
        let look =
            "git -c safe.directory='*' status --porcelain; git -c safe.directory='*' fsck --strict 2>&1";
        assert_eq!(shell(&root, look), "", "{}", root.display());
        assert_eq!(fs::read_to_string(root.join("new")).unwrap(), "new\n");
    }
    for folder in ["src", "copied"] {
        let there = world.source().join("repository").join(folder);
        printed_by("diff", &["-r", text(&local.join(folder)), text(&there)]);
    }
}

#[test]
fn a_crate_is_unpacked_built_tested_and_cleaned_away() {
    let world = World::new();
    let packed = world.path("crate");
    fs::create_dir_all(packed.join("src")).unwrap();
    let manifest = "[package]\nname = \"small\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[workspace]\n";
    fs::write(packed.join("Cargo.toml"), manifest).unwrap();
    let main = "mod part;\nfn main() { println!(\"{}\", part::answer()); }\n";
    fs::write(packed.join("src/main.rs"), main).unwrap();
    let part = "pub fn answer() -> u32 { 41 + 1 }\n#[test]\nfn it_is() { assert_eq!(answer(), 42) }\n";
    fs::write(packed.join("src/part.rs"), part).unwrap();
    shell(&world.path(""), "tar -cf crate.tar crate");
    let host = world.host();
    let mount = world.mount(&host.ticket, "");
    let archive = world.path("crate.tar");
    shell(&mount.point, &format!("tar -xf {0}; tar -df {0}", text(&archive)));
    let cargo = env!("CARGO");
    let built = format!(
        "{cargo} build --offline -q; ./target/debug/small; {cargo} test --offline -q; cp -a target/debug/small before
         echo 'pub fn more() {{}}' >>src/part.rs; {cargo} run --offline -q 2>/dev/null; cp before here; ./here"
    );
    let printed = shell(&mount.path("crate"), &built);
    assert_eq!(printed.lines().filter(|line| *line == "42").count(), 3, "{printed}");
    assert!(printed.contains("1 passed"), "{printed}");
    shell(&mount.path("crate"), &format!("{cargo} clean -q --offline"));
    assert!(!world.source().join("crate/target").exists());
}

/// Two processes that write to one database at once, some of it rolled back; each looks after every step whether it adds up.
const TWO_WRITERS: &str = r#"
import multiprocessing, os, sqlite3, sys
path, mode = sys.argv[1:]
ROUNDS = 40

def work(number):
    database = sqlite3.connect(path, timeout=60, isolation_level=None)
    for round in range(ROUNDS):
        database.execute("begin immediate")
        database.execute("insert into rows values (?, ?)", (number, "x" * (round * 37 % 3000)))
        database.execute("update sums set total = total + 1")
        database.execute("rollback" if round % 8 == 3 else "commit")
        rows, total = database.execute("select (select count(*) from rows), (select total from sums)").fetchone()
        assert rows == total, (rows, total)
    database.close()

database = sqlite3.connect(path)
mode_now = database.execute(f"pragma journal_mode={mode}").fetchone()[0]
database.executescript("create table rows (number int, text); create table sums (total int); insert into sums values (0)")
database.close()
workers = [multiprocessing.Process(target=work, args=(number,)) for number in range(2)]
for worker in workers: worker.start()
for worker in workers: worker.join()
assert all(worker.exitcode == 0 for worker in workers)
database = sqlite3.connect(path)
sound = database.execute("pragma integrity_check").fetchone()[0]
print(mode_now, sound, database.execute("select count(*) from rows").fetchone()[0])
"#;

#[test]
fn sqlite_is_written_by_two_processes_with_a_journal_and_with_a_log() {
    let world = World::new();
    let script = world.path("two_writers.py");
    fs::write(&script, TWO_WRITERS).unwrap();
    let host = world.host();
    let mount = world.mount(&host.ticket, "");
    for mode in ["delete", "truncate", "persist", "wal"] {
        let database = mount.path(format!("{mode}.db"));
        let printed = printed_by("python3", &[text(&script), text(&database), mode]);
        assert_eq!(printed.trim(), format!("{mode} ok 70"));
        let look = "import sqlite3, sys; database = sqlite3.connect(sys.argv[1]); \
                    print(*database.execute('pragma integrity_check').fetchone(), \
                    *database.execute('select count(*) from rows').fetchone())";
        let there = world.source().join(format!("{mode}.db"));
        assert_eq!(printed_by("python3", &["-c", look, text(&there)]).trim(), "ok 70", "{mode}, on the host");
    }
}

#[test]
fn rsync_brings_everything_there_and_back() {
    let world = World::new();
    let (tree, back) = (world.path("tree"), world.path("back"));
    fs::create_dir_all(tree.join("folder/below")).unwrap();
    fs::write(tree.join("file"), "content").unwrap();
    fs::write(tree.join("folder/large"), noise(3_000_000, 1)).unwrap();
    fs::hard_link(tree.join("folder/large"), tree.join("folder/below/same")).unwrap();
    symlink("../file", tree.join("folder/link")).unwrap();
    symlink("/nowhere", tree.join("dangling")).unwrap();
    File::create(tree.join("sparse")).unwrap().write_all_at(b"x", 5_000_000).unwrap();
    shell(
        &tree,
        "mkfifo pipe; chmod 2770 folder/below; chmod 400 file; setfacl -m u:77:rwx file; setfacl -d -m g:5:rx folder
         setfattr -n user.one -v value file; setfattr -n user.two -v value folder
         touch -d '1960-01-01 00:00:00.5' file; touch -d 2100-01-01 folder/below; printf x >\"$(printf 'odd\\nname\\377')\"
         [ $(id -u) != 0 ] || { chown 1000:1001 folder/below; mknod device c 1 7; chmod 4755 folder/large; }",
    );
    let host = world.host();
    let mount = world.mount_for_all(&host);
    let (from, there, to) = (format!("{}/", text(&tree)), mount.path("copy/"), format!("{}/", text(&back)));
    let there = text(&there);
    printed_by("rsync", &["-aHAX", "--numeric-ids", &from, there]);
    printed_by("rsync", &["-aHAX", "--numeric-ids", there, &to]);
    for other in [there, &to, &format!("{}/", text(&world.source().join("copy")))] {
        let differences = ["-aHAXnic", "--delete", "--numeric-ids", &from, other];
        assert_eq!(printed_by("rsync", &differences), "", "{other}");
    }
    // Only what has changed is written into the file that is there. By content: its size and second may be those of before.
    let large = File::options().write(true).open(tree.join("folder/large")).unwrap();
    large.write_all_at(b"changed", 1_500_000).unwrap();
    let inode = fs::metadata(mount.path("copy/folder/large")).unwrap().ino();
    printed_by("rsync", &["-aHAXc", "--inplace", "--no-whole-file", "--numeric-ids", &from, there]);
    assert!(
        fs::read(world.source().join("copy/folder/below/same")).unwrap()
            == fs::read(tree.join("folder/large")).unwrap()
    );
    assert_eq!(fs::metadata(mount.path("copy/folder/large")).unwrap().ino(), inode);
}

#[test]
fn vim_edits_and_leaves_nothing_behind() {
    let world = World::new();
    fs::write(world.source().join("text"), "one\ntwo\n").unwrap();
    let host = world.host();
    let mount = world.mount(&host.ticket, "");
    for (settings, change) in
        [("nobackup", "%s/one/ONE/"), ("writebackup", "%s/two/TWO/"), ("backupcopy=yes", "%s/$/!/")]
    {
        let (set, file) = (format!("set nocp {settings}"), mount.path("text"));
        printed_by("vim.tiny", &["-es", "-u", "NONE", "-c", &set, "-c", change, "-c", "wq", text(&file)]);
    }
    assert_eq!(fs::read_to_string(world.source().join("text")).unwrap(), "ONE!\nTWO!\n");
    assert_eq!(fs::read_dir(&mount.point).unwrap().count(), 1);
}

#[test]
fn packages_are_built_and_unpacked() {
    let world = World::new();
    let local = world.path("local");
    let tree = local.join("package");
    fs::create_dir_all(tree.join("DEBIAN")).unwrap();
    fs::create_dir_all(tree.join("usr/share/small/deep/er")).unwrap();
    let control = "Package: small\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@localhost>\nDescription: small\n";
    fs::write(tree.join("DEBIAN/control"), control).unwrap();
    fs::write(tree.join("usr/share/small/deep/er/file"), noise(700_000, 3)).unwrap();
    symlink("deep/er/file", tree.join("usr/share/small/link")).unwrap();
    let host = world.host();
    let mount = world.mount(&host.ticket, "");
    shell(
        &mount.point,
        &format!("cp -a {} tree; dpkg-deb -b tree small.deb; dpkg-deb -x small.deb unpacked", text(&tree)),
    );
    shell(&local, &format!("dpkg-deb -x {} unpacked", text(&world.source().join("small.deb"))));
    printed_by(
        "diff",
        &["-r", "--no-dereference", text(&local.join("unpacked")), text(&mount.path("unpacked"))],
    );
    printed_by(
        "diff",
        &["-r", "--no-dereference", text(&tree.join("usr")), text(&world.source().join("unpacked/usr"))],
    );
}
