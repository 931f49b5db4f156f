//! Start: what the segments hold, from their footers; segments that a crash left open are walked and finished.

use std::io::{self, ErrorKind};

use tracing::warn;

use super::directory::{Directory, DirectoryLock};
use super::error::CacheError;
use super::eviction::{Form, Listed};
use super::index::Index;
use super::record::{HEADER_BYTES, Secret};
use super::segment::{OpenSegment, Records, read_records};
use super::way::Way;

/// Reads what the directory holds. With its `lock`, segments that a crash left open are finished; without, they are
/// read as far as they go. Nothing that is wrong with a segment is an error: what cannot be read is not there.
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
            // Evicted by another process meanwhile.
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

/// Finishes a segment that nobody writes to any more.
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
    // It is sealed at once, so the capacity does not matter: the footer's room was kept when the records were
    // written.
    let bytes = OpenSegment::resume(directory, lock, file, segment.id, &records, 0, Way::Through)?.seal(
        directory,
        lock,
        secret,
        Form::Sealed,
    )?;
    Ok(Some((Listed { bytes, form: Form::Sealed, ..segment }, records)))
}
