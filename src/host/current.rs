//! Content of a file that changes all the time: read here, between two of its changes, where a look, a read and another
//! look take microseconds and not a round trip.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::answer::{Answer, Gone, malformed};
use super::context::ClientContext;
use super::tree::Handle;
use crate::chunk::{ByteRange, ChunkHash};
use crate::proto::{CURRENT_BYTES_MAX, Errno, ErrorCode, NodeId, Reply, Version, WireError};
use crate::transport::Lane;

/// How long a file is watched for a moment in which it holds still.
///
/// A quarter of a second is thousands of attempts at 4 KiB, hundreds at 1 MiB; a thread of the connection's own share waits.
const PATIENCE: Duration = Duration::from_millis(250);

/// Attempts after which a file that only grows is not waited for: a log's lines lie still once they are written.
const ATTEMPTS_OF_GROWING: u32 = 8;

/// Answers a request for content as it is now.
pub(super) async fn serve(
    context: &Arc<ClientContext>,
    node: NodeId,
    range: ByteRange,
    answer: &mut Answer,
) -> Result<(), Gone> {
    let bytes = match read(context, node, range).await {
        Ok(bytes) => bytes,
        Err(error) => return answer.reply(&Err(error)).await,
    };
    answer.set_lane(Lane::Demand);
    let len = bytes.len();
    let announced: Result<_, WireError> = Ok(Reply::Current { hash: ChunkHash::of(&bytes), len: len as u32 });
    answer.content(&announced, bytes, context.counters()).await?;
    context.counters().content_bytes_sent.add(len as u64);
    Ok(())
}

async fn read(context: &ClientContext, node: NodeId, range: ByteRange) -> Result<Bytes, WireError> {
    if range.len > CURRENT_BYTES_MAX || range.offset.checked_add(range.len).is_none() {
        return Err(malformed(format!("a read of more than {CURRENT_BYTES_MAX} bytes, or past all numbers")));
    }
    context.blocking(move |session| read_still(&*session.file(node)?, range)).await
}

/// What [`read_still`] reads from: a file, or what a test makes up.
trait Source {
    fn version(&self) -> Result<Version, WireError>;
    /// Fills `buffer` from `offset` on; returns less only at the end of the file.
    fn fill(&self, buffer: &mut [u8], offset: u64) -> Result<usize, WireError>;
}

impl Source for Handle {
    fn version(&self) -> Result<Version, WireError> {
        Self::version(self)
    }

    fn fill(&self, buffer: &mut [u8], offset: u64) -> Result<usize, WireError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.file.read_at(&mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => {
                    return Err(WireError::system(Errno(error.raw_os_error().unwrap_or(libc::EIO))));
                }
            }
        }
        Ok(filled)
    }
}

/// The bytes of `range` in one state of the file. Blocks.
fn read_still(source: &impl Source, range: ByteRange) -> Result<Bytes, WireError> {
    let give_up = Instant::now() + PATIENCE;
    let mut buffer = vec![0; range.len as usize];
    let mut before = source.version()?;
    for attempt in 1.. {
        let wanted = range.clamp_to(before.size).len as usize;
        let filled = source.fill(&mut buffer[..wanted], range.offset)?;
        let after = source.version()?;
        let has_grown = attempt >= ATTEMPTS_OF_GROWING && after.size > before.size;
        if filled == wanted && (after == before || has_grown) {
            buffer.truncate(filled);
            return Ok(buffer.into());
        }
        if Instant::now() >= give_up {
            break;
        }
        before = after;
    }
    Err(WireError::new(ErrorCode::VersionChanged, ""))
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;
    use crate::proto::Timestamp;

    /// A file that changes each time it is looked at or read, `changes` times.
    struct Restless {
        content: RefCell<Vec<u8>>,
        looks: Cell<i64>,
        changes: i64,
        grows: bool,
    }

    impl Restless {
        fn new(changes: i64, grows: bool) -> Self {
            Self { content: RefCell::new(vec![0; 100]), looks: Cell::new(0), changes, grows }
        }

        fn look(&self) {
            if self.looks.get() < self.changes {
                self.looks.set(self.looks.get() + 1);
                let mut content = self.content.borrow_mut();
                if self.grows {
                    content.push(1);
                } else {
                    let next = content[0].wrapping_add(1);
                    content.fill(next);
                }
            }
        }
    }

    impl Source for Restless {
        fn version(&self) -> Result<Version, WireError> {
            self.look();
            let stamp = Timestamp(self.looks.get());
            Ok(Version { size: self.content.borrow().len() as u64, mtime: stamp, ctime: stamp })
        }

        fn fill(&self, buffer: &mut [u8], offset: u64) -> Result<usize, WireError> {
            let content = self.content.borrow();
            let rest = content.get(offset as usize..).unwrap_or_default();
            let count = rest.len().min(buffer.len());
            buffer[..count].copy_from_slice(&rest[..count]);
            drop(content);
            self.look();
            Ok(count)
        }
    }

    #[test]
    fn a_file_that_comes_to_rest_is_read_in_its_last_state() {
        let bytes = read_still(&Restless::new(50, false), ByteRange::new(0, 1000)).unwrap();
        assert_eq!(bytes, vec![50; 100]);
    }

    #[test]
    fn a_file_that_never_rests_is_not_mixed() {
        let error = read_still(&Restless::new(i64::MAX, false), ByteRange::new(0, 10)).unwrap_err();
        assert_eq!(error.code, ErrorCode::VersionChanged);
    }

    #[test]
    fn a_file_that_never_stops_growing_is_read_all_the_same() {
        let growing = Restless::new(i64::MAX, true);
        let bytes = read_still(&growing, ByteRange::new(0, 50)).unwrap();
        assert_eq!(bytes, vec![0; 50]);
        let end = read_still(&growing, ByteRange::new(100, 1 << 20)).unwrap();
        assert!(!end.is_empty() && end.iter().all(|byte| *byte == 1), "up to the end that was seen");
    }

    #[test]
    fn behind_the_end_there_is_nothing() {
        let bytes = read_still(&Restless::new(0, false), ByteRange::new(100, 10)).unwrap();
        assert!(bytes.is_empty());
    }
}
