//! Content that changes without bytes from the client: room and holes, copies within the host.

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
        let (mut read_at, mut write_at) = (signed(range.offset)?, signed(offset)?);
        signed(range.offset.saturating_add(range.len))?;
        signed(offset.saturating_add(range.len))?;
        let (begun, mut copied) = (Instant::now(), 0);
        while copied < range.len && begun.elapsed() < COPY_TIME {
            let len = (range.len - copied).min(COPY_BYTES) as usize;
            match copy_file_range(&*source.file, Some(&mut read_at), &*target.file, Some(&mut write_at), len)
            {
                Ok(0) => break,
                Ok(count) => copied += count as u64,
                Err(SystemErrno::EINTR) => {}
                // What was copied counts; the next request meets the error again.
                Err(_) if copied > 0 => break,
                Err(error) => return errno(Err(error)),
            }
        }
        let attributes = target.attributes()?;
        Ok(Done::Written(Written { offset, len: copied, attributes, boot: self.boot }))
    }
}

fn signed(number: u64) -> Result<i64, WireError> {
    i64::try_from(number).map_err(|_| WireError::system(Errno::EFBIG))
}
