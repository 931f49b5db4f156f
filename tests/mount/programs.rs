//! Programs that people use, over a mount and over the same tree on a disk.

use std::path::Path;
use std::process::Command;

use wormhole::client::memory::MemoryHost;
use wormhole::fs::Freshness;

use super::MountedWorld;

/// A tree on the host, and the same one in a folder here.
fn twins() -> (MemoryHost, tempfile::TempDir) {
    let (host, disk) = (MemoryHost::new(), tempfile::tempdir().unwrap());
    for (folder, files) in [("a", 30), ("a/b", 5), ("c", 1)] {
        std::fs::create_dir(disk.path().join(folder)).unwrap();
        for number in 0..files {
            let path = format!("{folder}/file {number}");
            let content = vec![number as u8; number * 10_007];
            host.create_file(&path, &content);
            std::fs::write(disk.path().join(path), content).unwrap();
        }
    }
    host.create_symlink("link", "a/b");
    std::os::unix::fs::symlink("a/b", disk.path().join("link")).unwrap();
    host.create_hard_link("a/file 3", "hard");
    std::fs::hard_link(disk.path().join("a/file 3"), disk.path().join("hard")).unwrap();
    (host, disk)
}

fn run(folder: &Path, script: &str) -> String {
    let output = Command::new("sh").arg("-c").arg(script).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn programs_see_the_same_tree() {
    let (host, disk) = twins();
    let Some(world) = MountedWorld::with_freshness(host, Freshness::default()) else { return };
    let scripts = [
        "find . | sort",
        "find . -type f -size +100k | sort",
        "find . -type f -printf '%p %s %n\\n' | sort",
        "ls -R -1 --group-directories-first",
        "ls -lR | awk '/^[-l]/ {print $2, $5, $9, $10, $11, $12}'",
        "du -al --apparent-size . | awk '{print $2, $3}' | sort",
        "cat a/* c/* 2>/dev/null | sha256sum",
        "tar -cf - --sort=name --owner=0 --group=0 --mtime=@0 --mode=0644 . | tar -tvf - | sort",
        "grep -rlc nothing . | sort; true",
        "dd if='a/file 29' bs=128k status=none | sha256sum",
        "dd if='a/file 29' bs=1M iflag=direct status=none | sha256sum",
        "wc -c a/b/* hard | sort",
    ];
    for script in scripts {
        assert_eq!(run(world.folder.path(), script), run(disk.path(), script), "{script}");
    }
    world.end();
}

#[test]
fn copies_equal_the_original() {
    let (host, disk) = twins();
    let Some(world) = MountedWorld::with_freshness(host, Freshness::default()) else { return };
    let copies = tempfile::tempdir().unwrap();
    for (name, copy) in
        [("cp", "cp -r . $OUT/cp"), ("tar", "mkdir $OUT/tar && tar -cf - . | tar -xf - -C $OUT/tar")]
    {
        let script = copy.replace("$OUT", copies.path().to_str().unwrap());
        run(world.folder.path(), &script);
        let compare = format!("diff -r --no-dereference {} .", copies.path().join(name).display());
        assert_eq!(run(disk.path(), &compare), "");
    }
    let links = run(copies.path(), "stat -c %h tar/hard");
    assert_eq!(links.trim(), "2", "tar keeps hard links");
    world.end();
}

#[test]
fn a_program_on_the_mount_runs() {
    let host = MemoryHost::new();
    host.create_file("hello", "#!/bin/sh\necho hello $1\n");
    host.set_permissions("hello", 0o755);
    host.create_file("true", std::fs::read("/bin/true").unwrap());
    host.set_permissions("true", 0o755);
    let Some(world) = MountedWorld::new(host) else { return };
    assert_eq!(run(world.folder.path(), "./hello you && ./true"), "hello you\n");
    world.end();
}

#[test]
fn a_walk_costs_one_listing_a_folder_and_no_lookup_an_entry() {
    let host = MemoryHost::new();
    for folder in 0..10 {
        for file in 0..50 {
            host.create_file(format!("d{folder}/f{file}"), "");
        }
    }
    // The folders have just changed, too.
    host.advance(std::time::Duration::from_secs(3));
    let freshness = super::super::fs::LASTING;
    let Some(world) = MountedWorld::with_freshness(host, freshness) else { return };
    assert_eq!(run(world.folder.path(), "find . -printf '%s\\n' | wc -l").trim(), "511");
    let counters = world.host.counters();
    assert_eq!(counters.listings, 11);
    assert_eq!((counters.lookups, counters.attributes), (0, 0), "{counters:?}");
    run(world.folder.path(), "ls -lR");
    run(world.folder.path(), "ls -lR");
    let counters = world.host.counters();
    assert_eq!((counters.lookups, counters.attributes, counters.listings), (0, 0, 11), "{counters:?}");
    assert_eq!(counters.xattrs, 0, "who has no extended attributes is not asked for them");
    world.end();
}
