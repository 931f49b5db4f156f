//! Recovery on start: reads the records of the segments from their footers, and seals the segments that a
//! crash left open.

use std::io::{self, ErrorKind};

use tracing::warn;

use super::directory::{Directory, DirectoryLock};
use super::error::CacheError;
use super::eviction::{Form, Listed};
use super::index::Index;
use super::record::{HEADER_BYTES, Secret};
use super::segment::{OpenSegment, Records, read_records};
use super::write_mode::WriteMode;

/// Reads the records of the directory. With its `lock`, segments left open by a crash are sealed; without
/// it, they are read as far as possible. A damaged segment is not an error: its unreadable records are
/// missing.
pub(super) fn recover(
    directory: &Directory,
    secret: &Secret,
    lock: Option<&DirectoryLock>,
) -> Result<Index, CacheError> {
    let listed = directory.list().map_err(CacheError::io("list", &directory.path(0, Form::Sealed)))?;
    let mut index = Index::default();
    let mut found = Vec::with_capacity(listed.len());
    for segment in listed {
        let read = match lock {
            Some(lock) if segment.is_open() => finish(directory, lock, secret, segment),
            _ => read(directory, secret, segment),
        };
        match read {
            Ok(read) => found.extend(read),
            // Another process evicted it meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                warn!("cannot read {}: {error}", directory.path(segment.id, segment.form).display());
            }
        }
    }
    index.reserve(found.iter().map(|(_, records)| records.entries.len()).sum());
    for (segment, records) in found {
        index.extend(segment.id, &records.entries, segment.bytes, records.end, segment.form);
    }
    Ok(index)
}

fn read(directory: &Directory, secret: &Secret, segment: Listed) -> io::Result<Option<(Listed, Records)>> {
    let file = directory.open_segment(segment.id)?;
    let records = read_records(&file, secret, segment.id, 0, !segment.is_open())?;
    Ok(Some((segment, records)))
}

/// Seals a segment whose writer is gone.
fn finish(
    directory: &Directory,
    lock: &DirectoryLock,
    secret: &Secret,
    segment: Listed,
) -> io::Result<Option<(Listed, Records)>> {
    let Some(file) = directory.claim_segment(segment.id, Form::Open)? else {
        return read(directory, secret, segment);
    };
    let records = read_records(&file, secret, segment.id, 0, false)?;
    if records.end <= HEADER_BYTES {
        directory.remove_segment(lock, segment.id)?;
        return Ok(None);
    }
    // The segment is sealed at once, so its capacity does not matter. Room for the footer was kept when the
    // records were written.
    let bytes = OpenSegment::resume(directory, lock, file, segment.id, &records, 0, WriteMode::Buffered)?
        .seal(directory, lock, secret, Form::Sealed)?;
    Ok(Some((Listed { bytes, form: Form::Sealed, ..segment }, records)))
}
