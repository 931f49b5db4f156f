//! Content that changes without bytes from the client: room and holes, copies within the host.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use nix::errno::Errno as SystemErrno;
use nix::fcntl::{FallocateFlags, copy_file_range, fallocate};

use super::{Changer, Done, cannot_tell, changed, errno};
use crate::chunk::ByteRange;
use crate::proto::{AllocateHow, Errno, NodeId, WireError, Written};

/// How long one request copies before it answers how far it came: well below every client's deadline.
const COPY_TIME: Duration = Duration::from_secs(5);

/// Bytes copied by one system call: at 100 MB/s a sixth of a second.
const COPY_BYTES: u64 = 16 * 1024 * 1024;

/// Bytes copied at a time where no system call does it.
const BUFFER_BYTES: u64 = 1024 * 1024;

impl Changer<'_> {
    pub(super) fn allocate(
        &self,
        node: NodeId,
        range: ByteRange,
        how: AllocateHow,
    ) -> Result<Done, WireError> {
        let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let flags = match how {
            AllocateHow::Grow => FallocateFlags::empty(),
            AllocateHow::KeepSize => keep,
            AllocateHow::PunchHole => FallocateFlags::FALLOC_FL_PUNCH_HOLE | keep,
            AllocateHow::Zero => FallocateFlags::FALLOC_FL_ZERO_RANGE,
            AllocateHow::ZeroKeepSize => FallocateFlags::FALLOC_FL_ZERO_RANGE | keep,
            // Done twice, these two would take out, or put in, twice.
            AllocateHow::Collapse | AllocateHow::Insert if !self.is_certain() => {
                return cannot_tell("the file shows no sign of it");
            }
            AllocateHow::Collapse => FallocateFlags::FALLOC_FL_COLLAPSE_RANGE,
            AllocateHow::Insert => FallocateFlags::FALLOC_FL_INSERT_RANGE,
        };
        let (offset, len) = (signed(range.offset)?, signed(range.len)?);
        let handle = self.session.file_to_write(node)?;
        loop {
            match fallocate(&*handle.file, flags, offset, len) {
                Err(SystemErrno::EINTR) => {}
                done => break errno(done)?,
            }
        }
        Ok(changed(Some(handle.attributes()?), []))
    }

    pub(super) fn copy_range(
        &self,
        from: NodeId,
        range: ByteRange,
        to: NodeId,
        offset: u64,
    ) -> Result<Done, WireError> {
        let (source, target) = (self.session.file(from)?, self.session.file_to_write(to)?);
        signed(range.offset.saturating_add(range.len))?;
        signed(offset.saturating_add(range.len))?;
        let copied = errno(copy_for(COPY_TIME, &source.file, range, &target.file, offset))?;
        let attributes = target.attributes()?;
        Ok(Done::Written(Written { offset, len: copied, attributes, boot: self.boot }))
    }
}

/// Copies for so long, and at least one piece. How many bytes were copied: fewer than asked also where the source ends.
fn copy_for(
    time: Duration,
    source: &File,
    range: ByteRange,
    target: &File,
    offset: u64,
) -> Result<u64, SystemErrno> {
    let (begun, mut copied) = (Instant::now(), 0);
    while copied < range.len && (copied == 0 || begun.elapsed() < time) {
        let piece = ByteRange::new(range.offset + copied, (range.len - copied).min(COPY_BYTES));
        match copy_piece(source, piece, target, offset + copied) {
            Ok(0) => break,
            Ok(count) => copied += count as u64,
            Err(SystemErrno::EINTR) => {}
            // What was copied counts; the next request meets the error again.
            Err(_) if copied > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(copied)
}

fn copy_piece(source: &File, piece: ByteRange, target: &File, offset: u64) -> Result<usize, SystemErrno> {
    let (mut read_at, mut write_at) = (piece.offset as i64, offset as i64);
    let copied = copy_file_range(source, Some(&mut read_at), target, Some(&mut write_at), piece.len as usize);
    match copied {
        // Two file systems within the export, or one that cannot.
        Err(SystemErrno::EXDEV | SystemErrno::EOPNOTSUPP | SystemErrno::ENOSYS) => {
            copy_by_hand(source, piece, target, offset)
                .map_err(|error| error.raw_os_error().map_or(SystemErrno::EIO, SystemErrno::from_raw))
        }
        copied => copied,
    }
}

fn copy_by_hand(source: &File, piece: ByteRange, target: &File, offset: u64) -> std::io::Result<usize> {
    let mut buffer = vec![0; piece.len.min(BUFFER_BYTES) as usize];
    let len = source.read_at(&mut buffer, piece.offset)?;
    target.write_all_at(&buffer[..len], offset)?;
    Ok(len)
}

fn signed(number: u64) -> Result<i64, WireError> {
    i64::try_from(number).map_err(|_| WireError::system(Errno::EFBIG))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_that_takes_too_long_says_how_far_it_came() {
        let (source, target) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let content: Vec<u8> = (0..COPY_BYTES * 2 + 77).map(|at| (at / 4099) as u8).collect();
        source.write_all_at(&content, 0).unwrap();
        let mut copied = 0;
        for expected in [COPY_BYTES, COPY_BYTES, 77, 0] {
            let rest = ByteRange::new(copied, u64::from(u32::MAX));
            let count = copy_for(Duration::ZERO, &source, rest, &target, copied + 5).unwrap();
            assert_eq!(count, expected);
            copied += count;
        }
        let mut read = vec![0; content.len()];
        target.read_exact_at(&mut read, 5).unwrap();
        assert!(read == content);
    }
}
