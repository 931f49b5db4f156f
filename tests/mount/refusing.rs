//! A host whose answers are error numbers that mean something to the kernel: to programs they are plain errors, and nothing is remembered.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use nix::fcntl::{FallocateFlags, RenameFlags};
use wormhole::client::memory::MemoryHost;
use wormhole::fs::FsConfig;
use wormhole::fuse::FuseConfig;
use wormhole::proto::{Errno, WireError};

use super::{FLEETING, MountedWorld, has_fuse};

/// Generous: a kernel that takes no notice of an answer waits for ever.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is asked of a host, as numbers that say something special, or nothing that is allowed.
const NUMBERS: [i32; 16] = [
    libc::ENOSYS,
    libc::EINTR,
    libc::EAGAIN,
    libc::ECHILD,
    libc::EFAULT,
    libc::ENODEV,
    libc::ENOTCONN,
    libc::ECONNABORTED,
    0,
    -1,
    -libc::EIO,
    512,
    518,
    4096,
    i32::MAX,
    i32::MIN,
];

type Operation = fn(&Path, &File) -> io::Result<()>;

fn errno<T>(result: nix::Result<T>) -> io::Result<()> {
    result.map(drop).map_err(io::Error::from)
}

/// What `getfattr` says of an attribute.
fn xattr(path: &Path) -> io::Result<()> {
    let output = Command::new("getfattr").args(["-n", "user.comment"]).arg(path).output()?;
    if output.status.success() { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EIO)) }
}

/// Each kind of request, by a program that makes it. What is open was opened before the host began to refuse.
const OPERATIONS: &[(&str, Operation)] = &[
    ("lookup", |at, _| fs::symlink_metadata(at.join("unseen")).map(drop)),
    ("getattr", |_, file| file.metadata().map(drop)),
    ("open", |at, _| File::open(at.join("f")).map(drop)),
    ("opendir", |at, _| fs::read_dir(at.join("d"))?.next().transpose().map(drop)),
    ("readlink", |at, _| fs::read_link(at.join("link")).map(drop)),
    ("read", |_, file| file.read_at(&mut [0; 512], 0).map(drop)),
    ("write and fsync", |_, mut file| file.write_all(b"x").and_then(|()| file.sync_all())),
    ("fsync", |_, file| file.sync_all()),
    ("fsyncdir", |at, _| File::open(at.join("d"))?.sync_all()),
    ("access", |at, _| errno(nix::unistd::access(&at.join("f"), nix::unistd::AccessFlags::R_OK))),
    ("getxattr", |at, _| xattr(&at.join("f"))),
    ("fallocate", |_, file| errno(nix::fcntl::fallocate(file, FallocateFlags::empty(), 0, 5000))),
    ("lseek", |_, file| errno(nix::unistd::lseek(file, 0, nix::unistd::Whence::SeekHole))),
    ("copy_file_range", |at, file| {
        let to = OpenOptions::new().write(true).open(at.join("g"))?;
        errno(nix::fcntl::copy_file_range(file, Some(&mut 0), to, Some(&mut 0), 4))
    }),
    ("create", |at, _| OpenOptions::new().write(true).create_new(true).open(at.join("new")).map(drop)),
    ("mkdir", |at, _| fs::create_dir(at.join("newdir"))),
    ("rename", |at, _| fs::rename(at.join("g"), at.join("h"))),
    ("rename2", |at, _| {
        let (from, to) = (at.join("h"), at.join("i"));
        errno(nix::fcntl::renameat2(
            nix::fcntl::AT_FDCWD,
            &from,
            nix::fcntl::AT_FDCWD,
            &to,
            RenameFlags::RENAME_NOREPLACE,
        ))
    }),
    ("unlink", |at, _| fs::remove_file(at.join("i"))),
    ("setattr", |_, file| file.set_len(3)),
    ("statfs", |at, _| errno(nix::sys::statvfs::statvfs(at))),
];

/// What became of each operation: nothing, or its error number.
fn outcomes(world: &MountedWorld, file: &File) -> Vec<(&'static str, Option<i32>)> {
    let mut outcomes = Vec::new();
    for (name, operation) in OPERATIONS {
        let (at, file) = (world.folder.path().to_owned(), file.try_clone().unwrap());
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || tell.send(operation(&at, &file)));
        let outcome = told.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{name} hangs"));
        outcomes.push((*name, outcome.err().map(|error| error.raw_os_error().unwrap())));
    }
    outcomes
}

#[test]
fn no_answer_of_a_host_means_more_to_the_kernel_than_that_something_failed() {
    if !has_fuse() {
        return;
    }
    for number in NUMBERS {
        let host = MemoryHost::new();
        host.create_file("f", "some content");
        host.create_file("g", "more content");
        host.create_file("d/inner", "");
        host.create_file("unseen", "");
        host.create_symlink("link", "f");
        host.set_xattr("f", b"user.comment", b"x");
        let config = FsConfig { freshness: FLEETING, read_only: false, ..FsConfig::default() };
        let world =
            MountedWorld::mount_as(host, config, &FuseConfig { read_only: false, ..FuseConfig::default() });
        let file = OpenOptions::new().read(true).write(true).open(world.path("f")).unwrap();
        world.host.set_errors(move |_| Some(WireError::system(Errno(number))));
        let first = outcomes(&world, &file);
        let failed = first.iter().filter(|(_, outcome)| outcome.is_some()).count();
        assert!(failed * 2 > first.len(), "the host refuses: {first:?}");
        for (name, outcome) in &first {
            let plain = |errno: &i32| (1..134).contains(errno) && !NUMBERS.contains(errno);
            assert!(outcome.iter().all(plain), "{number}: {name} gives {outcome:?}");
        }
        assert_eq!(outcomes(&world, &file), first, "{number}: the kernel has learnt something");
        world.host.set_errors(|_| None);
        // What was written before tells its failure once.
        let _ = file.sync_all();
        for (name, outcome) in outcomes(&world, &file) {
            assert_eq!(outcome, None, "{number}: {name} works again");
        }
        drop(file);
        world.end();
    }
}
