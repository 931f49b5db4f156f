//! Replies to the kernel from results, and the log of failures.

use std::time::Duration;

use fuser::{
    FileHandle, Generation, ReplyAttr, ReplyCreate, ReplyData, ReplyEmpty, ReplyEntry, ReplyLock, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
};

use super::convert;
use crate::fs::{Entry, FileSystem, FsError, Lookup, Opened};
use crate::proto::{Attributes, FsStatistics, LockFound};

/// Generation in the answer for a name that does not exist.
const NO_GENERATION: Generation = Generation(0);

/// Logs the error and returns its number.
pub(super) fn failed(call: &str, error: &FsError) -> fuser::Errno {
    tracing::debug!(call, %error, "fails");
    convert::errno(error)
}

pub(super) fn lookup(reply: ReplyEntry, found: Result<Lookup, FsError>) {
    match found {
        Ok(Lookup::Found(found)) => entry("lookup", reply, Ok(found)),
        Ok(Lookup::Absent { ttl }) if ttl.is_zero() => reply.error(fuser::Errno::ENOENT),
        Ok(Lookup::Absent { ttl }) => reply.entry(&ttl, &convert::absent_attr(), NO_GENERATION),
        Err(error) => reply.error(failed("lookup", &error)),
    }
}

pub(super) fn entry(call: &str, reply: ReplyEntry, entry: Result<Entry, FsError>) {
    match entry {
        Ok(entry) => {
            let (attr, ttl) = (convert::entry_attr(&entry), convert::attributes_ttl(&entry));
            reply.entry_with_ttls(&ttl, &entry.entry_ttl, &attr, convert::generation(&entry));
        }
        Err(error) => reply.error(failed(call, &error)),
    }
}

pub(super) fn attributes(
    call: &str,
    reply: ReplyAttr,
    fs: &FileSystem,
    answer: Result<(Attributes, Duration), FsError>,
) {
    match answer {
        Ok((attributes, ttl)) => {
            reply.attr(&ttl, &convert::file_attr(fs.shown_number(attributes.node), &attributes));
        }
        Err(error) => reply.error(failed(call, &error)),
    }
}

pub(super) fn opened(reply: ReplyOpen, opened: Result<Opened, FsError>) {
    match opened {
        Ok(opened) => reply.opened(FileHandle(opened.handle), convert::open_flags(opened.mode)),
        Err(error) => reply.error(failed("open", &error)),
    }
}

pub(super) fn data(call: &str, reply: ReplyData, bytes: Result<impl AsRef<[u8]>, FsError>) {
    match bytes {
        Ok(bytes) => reply.data(bytes.as_ref()),
        Err(error) => reply.error(failed(call, &error)),
    }
}

pub(super) fn offset(reply: ReplyLseek, found: Result<u64, FsError>) {
    match found {
        Ok(offset) => reply.offset(offset as i64),
        Err(error) => reply.error(failed("lseek", &error)),
    }
}

pub(super) fn created(reply: ReplyCreate, created: Result<(Entry, Opened), FsError>) {
    match created {
        Ok((entry, opened)) => {
            let (attr, generation) = (convert::entry_attr(&entry), convert::generation(&entry));
            let flags = convert::open_flags(opened.mode);
            reply.created(&convert::entry_ttl(&entry), &attr, generation, FileHandle(opened.handle), flags);
        }
        Err(error) => reply.error(failed("create", &error)),
    }
}

pub(super) fn empty(call: &str, reply: ReplyEmpty, done: Result<(), FsError>) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(failed(call, &error)),
    }
}

/// Replies with the conflicting lock, or with an unlocked range.
pub(super) fn lock(reply: ReplyLock, found: Result<Option<LockFound>, FsError>) {
    match found {
        Ok(Some(found)) => {
            let LockFound { range, kind, process } = found;
            reply.locked(range.start, range.end, convert::lock_type(kind), process);
        }
        Ok(None) => reply.locked(0, 0, libc::F_UNLCK, 0),
        Err(error) => reply.error(failed("getlk", &error)),
    }
}

pub(super) fn statistics(call: &str, reply: ReplyStatfs, statistics: Result<FsStatistics, FsError>) {
    match statistics {
        Ok(all) => reply.statfs(
            all.blocks,
            all.blocks_free,
            all.blocks_available,
            all.inodes,
            all.inodes_free,
            all.block_bytes,
            all.name_bytes_max,
            all.block_bytes,
        ),
        Err(error) => reply.error(failed(call, &error)),
    }
}

pub(super) fn written(call: &str, reply: ReplyWrite, written: Result<u32, FsError>) {
    match written {
        Ok(count) => reply.written(count),
        Err(error) => reply.error(failed(call, &error)),
    }
}

pub(super) fn copied(call: &str, reply: ReplyWrite, copied: Result<u64, FsError>) {
    written(call, reply, copied.map(|count| count as u32));
}

/// Replies with the value of an extended attribute, or with its size if that was asked (`size` 0).
pub(super) fn xattr(reply: ReplyXattr, size: u32, value: Result<Vec<u8>, FsError>) {
    match value {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() <= size as usize => reply.data(&value),
        Ok(_) => reply.error(fuser::Errno::ERANGE),
        Err(error) => reply.error(failed("xattr", &error)),
    }
}
