//! A file system that serves zeroes from memory and discards writes. It shows the limit of FUSE on this
//! machine, which a benchmark reports next to its result.

use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

use fuser::{
    FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, KernelConfig, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyEntry, ReplyOpen, ReplyWrite, Request, WriteFlags,
};

use super::convert::absent_attr;
use super::session::{FuseConfig, FuseError, KernelLimits, Mounted, serve};

/// Name of the only file.
const NAME: &str = "zeroes";

/// Inode number of the only file.
const INODE: INodeNo = INodeNo(2);

/// Cache time: nothing changes.
const TTL: Duration = Duration::from_secs(3600);

/// Longest answer, in bytes.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// The mount. Dropping it unmounts.
#[derive(Debug)]
pub struct StubMount {
    mounted: Mounted,
}

impl StubMount {
    /// Returns the path of the file of zeroes.
    pub fn file(&self) -> std::path::PathBuf {
        self.mounted.mountpoint().join(NAME)
    }
}

/// Mounts a folder with one file `zeroes` of `size_bytes`, with direct I/O if `is_direct`.
pub fn mount_stub(folder: &Path, size_bytes: u64, is_direct: bool) -> Result<StubMount, FuseError> {
    let config = FuseConfig { source: "wormhole-stub".into(), read_only: false, ..FuseConfig::default() };
    let stub =
        Stub { size_bytes, is_direct, zeroes: vec![0; ANSWER_BYTES_MAX], limits: KernelLimits::of(&config) };
    let mounted = serve(stub, folder, &config, |_| Ok(Vec::new()))?;
    Ok(StubMount { mounted })
}

struct Stub {
    size_bytes: u64,
    is_direct: bool,
    zeroes: Vec<u8>,
    limits: KernelLimits,
}

impl Stub {
    const fn attr(&self, number: INodeNo) -> FileAttr {
        if number.0 == INodeNo::ROOT.0 {
            FileAttr { ino: number, kind: FileType::Directory, perm: 0o555, nlink: 2, ..absent_attr() }
        } else {
            FileAttr { ino: number, size: self.size_bytes, perm: 0o644, nlink: 1, ..absent_attr() }
        }
    }
}

impl Filesystem for Stub {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        self.limits.apply(config);
        Ok(())
    }

    fn lookup(&self, _request: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == NAME {
            reply.entry(&TTL, &self.attr(INODE), Generation(0));
        } else {
            reply.error(fuser::Errno::ENOENT);
        }
    }

    fn getattr(&self, _request: &Request, number: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attr(number));
    }

    fn open(&self, _request: &Request, _number: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let flags = if self.is_direct { FopenFlags::FOPEN_DIRECT_IO } else { FopenFlags::empty() };
        reply.opened(FileHandle(0), flags);
    }

    fn read(
        &self,
        _request: &Request,
        _number: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let left = self.size_bytes.saturating_sub(offset).min(u64::from(size)) as usize;
        reply.data(&self.zeroes[..left.min(ANSWER_BYTES_MAX)]);
    }

    fn write(
        &self,
        _request: &Request,
        _number: INodeNo,
        _handle: FileHandle,
        _offset: u64,
        bytes: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.written(bytes.len() as u32);
    }
}
