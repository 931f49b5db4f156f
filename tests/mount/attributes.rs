//! What `stat`, `readdir`, `readlink`, `statfs` and the calls for extended attributes tell.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use wormhole::client::memory::MemoryHost;
use wormhole::proto::{FileKind, NodeId};

use super::MountedWorld;

fn tree() -> MemoryHost {
    let host = MemoryHost::new();
    host.create_file("plain", "content");
    host.create_file("deep/er/file", "x");
    host.create_file(b"not text \xff\xfe".as_slice(), "bytes");
    host.create_symlink("link", "deep/er/file");
    host.create_symlink("dangling", b"nowhere \xff".as_slice());
    host.create_hard_link("plain", "deep/second name");
    host.create_special("pipe", FileKind::Fifo);
    host.create_special("socket", FileKind::Socket);
    host.create_special("disk", FileKind::BlockDevice);
    host.create_special("terminal", FileKind::CharDevice);
    host.set_permissions("plain", 0o4751);
    host.set_owner("plain", 12, 34);
    host
}

/// Every path below `folder` with what `lstat` tells of it.
fn walk(folder: &Path, found: &mut BTreeMap<Vec<u8>, fs::Metadata>, root: &Path) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let metadata = fs::symlink_metadata(&path).unwrap();
        let is_folder = metadata.is_dir();
        found.insert(path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec(), metadata);
        if is_folder {
            walk(&path, found, root);
        }
    }
}

#[test]
fn a_tree_is_shown_as_the_host_has_it() {
    let Some(world) = MountedWorld::new(tree()) else { return };
    let mut found = BTreeMap::new();
    walk(world.folder.path(), &mut found, world.folder.path());
    let expected: [&[u8]; 12] = [
        b"dangling",
        b"deep",
        b"deep/er",
        b"deep/er/file",
        b"deep/second name",
        b"disk",
        b"link",
        b"not text \xff\xfe",
        b"pipe",
        b"plain",
        b"socket",
        b"terminal",
    ];
    assert_eq!(found.keys().map(Vec::as_slice).collect::<Vec<_>>(), expected);
    for (path, shown) in &found {
        let host = world.host.attributes_of(path);
        let times = |seconds: i64, ns: i64| seconds * 1_000_000_000 + ns;
        assert_eq!(shown.ino(), host.node.inode);
        assert_eq!(shown.mode() & 0o7777, u32::from(host.permissions));
        assert_eq!((shown.uid(), shown.gid(), shown.nlink()), (host.uid, host.gid, u64::from(host.links)));
        assert_eq!((shown.len(), shown.blocks()), (host.size, host.blocks));
        assert_eq!(times(shown.mtime(), shown.mtime_nsec()), host.mtime.0);
        assert_eq!(times(shown.ctime(), shown.ctime_nsec()), host.ctime.0);
        assert_eq!(shown.blksize(), 1024 * 1024);
    }
    let kind = |path: &str| found[path.as_bytes()].file_type();
    assert!(kind("pipe").is_fifo() && kind("socket").is_socket());
    assert!(kind("disk").is_block_device() && kind("terminal").is_char_device());
    assert_eq!(found[b"plain".as_slice()].ino(), found[b"deep/second name".as_slice()].ino());
    world.end();
}

#[test]
fn links_lead_where_they_say() {
    let Some(world) = MountedWorld::new(tree()) else { return };
    assert_eq!(fs::read_link(world.path("link")).unwrap(), Path::new("deep/er/file"));
    assert_eq!(fs::read_link(world.path("dangling")).unwrap().as_os_str().as_bytes(), b"nowhere \xff");
    assert_eq!(fs::read(world.path("link")).unwrap(), b"x");
    assert_eq!(fs::read(world.path(OsStr::from_bytes(b"not text \xff\xfe"))).unwrap(), b"bytes");
    assert_eq!(fs::metadata(world.path("dangling")).unwrap_err().raw_os_error(), Some(libc::ENOENT));
    world.end();
}

#[test]
fn room_and_use_are_the_hosts() {
    let Some(world) = MountedWorld::new(tree()) else { return };
    let host = world.runtime.block_on(world.fs.statfs()).unwrap();
    let shown = nix::sys::statvfs::statvfs(world.folder.path()).unwrap();
    assert_eq!((shown.blocks(), shown.blocks_free()), (host.blocks, host.blocks_free));
    assert_eq!((shown.blocks_available(), shown.files()), (host.blocks_available, host.inodes));
    assert_eq!((shown.block_size(), shown.fragment_size()), (4096, 4096));
    assert_eq!(shown.name_max(), 255);
    world.end();
}

#[test]
fn extended_attributes_are_the_hosts() {
    let host = tree();
    host.set_xattr("plain", b"user.comment", b"some\0bytes");
    host.set_xattr("plain", b"user.empty", b"");
    host.set_permissions("plain", 0o644);
    let Some(world) = MountedWorld::new(host) else { return };
    let run = |arguments: &[&str]| {
        let output =
            std::process::Command::new("getfattr").args(arguments).arg(world.path("plain")).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let listed = run(&["--absolute-names", "-d", "-e", "hex"]);
    assert!(listed.contains("user.comment=0x736f6d65006279746573"), "{listed}");
    assert!(listed.contains("user.empty"), "{listed}");
    let sum = run(&["--absolute-names", "--only-values", "-n", "user.wormhole.blake3"]);
    assert_eq!(sum, blake3::hash(b"content").to_string());
    assert!(!listed.contains("wormhole"), "{listed}");
    world.end();
}

#[test]
fn ten_thousand_entries_are_all_there_with_their_attributes() {
    let host = MemoryHost::new();
    let mut expected = BTreeMap::<String, NodeId>::new();
    for number in 0..10_000 {
        let name = format!("{number:05}");
        expected.insert(name.clone(), host.create_file(format!("d/{name}"), ""));
    }
    let Some(world) = MountedWorld::with_freshness(host, wormhole::fs::Freshness::default()) else { return };
    let mut seen = 0;
    for entry in fs::read_dir(world.path("d")).unwrap() {
        let entry = entry.unwrap();
        let node = expected[entry.file_name().to_str().unwrap()];
        assert_eq!(entry.metadata().unwrap().ino(), node.inode);
        seen += 1;
    }
    assert_eq!(seen, expected.len());
    world.end();
}

#[test]
fn nothing_can_be_changed() {
    let Some(world) = MountedWorld::new(tree()) else { return };
    let refused = |result: std::io::Result<()>| {
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EROFS));
    };
    let plain = world.path("plain");
    refused(fs::OpenOptions::new().read(true).write(true).open(&plain).map(drop));
    refused(fs::OpenOptions::new().append(true).open(&plain).map(drop));
    refused(fs::write(world.path("new"), "x"));
    refused(fs::create_dir(world.path("new")));
    refused(fs::remove_file(&plain));
    refused(fs::rename(&plain, world.path("new")));
    refused(fs::set_permissions(&plain, std::os::unix::fs::PermissionsExt::from_mode(0o600)));
    refused(std::os::unix::fs::symlink("a", world.path("new")));
    world.end();
}
