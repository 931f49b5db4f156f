//! The writer thread. It writes batches of records, creates segments and picks up the changes of other
//! processes.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use tracing::{debug, warn};

use super::directory::DirectoryLock;
use super::error::CacheError;
use super::eviction::{Form, Listed, adoptable, survivors, survivors_bytes};
use super::index::{Candidate, SegmentState};
use super::payload::Access;
use super::queue::{Item, Payload, Task};
use super::record::{HEADER_BYTES, Kind, SegmentId};
use super::segment::{OpenSegment, Record, read_records};
use super::shared::{Counters, RecordRef, Shared, Verified};
use super::staging::Staging;
use super::write_mode::WriteModePolicy;

/// Shortest time between two checks for records of other processes, which follow misses.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);

/// Idle time after which the segment files are closed. An evicted segment takes space as long as a process
/// has it open.
const IDLE_AFTER: Duration = Duration::from_secs(10);

/// Shortest time between two checks of the free space. It is also checked for each new segment.
const SPACE_INTERVAL: Duration = Duration::from_secs(1);

/// Most bytes of surviving records in memory at a time.
const MOVE_BYTES: u64 = 4 * 1024 * 1024;

/// State of the writer.
pub(super) struct Writer {
    shared: Arc<Shared>,
    current: Option<OpenSegment>,
    staging: Staging,
    write_mode_policy: WriteModePolicy,
    may_adopt: bool,
    space_checked: Option<Instant>,
    warned_refused: bool,
}

/// Reason why nothing is written at the moment.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("the segments of other processes leave no room within the size of the cache")]
    Size,
    #[error("the file system has less free space than the cache must leave")]
    Space,
    #[error(transparent)]
    Directory(#[from] CacheError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Writer {
    /// Creates a writer.
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            current: None,
            staging: Staging::new(),
            write_mode_policy: WriteModePolicy::default(),
            may_adopt: true,
            space_checked: None,
            warned_refused: false,
        }
    }

    /// Works until the queue is stopped and empty, then seals the segment.
    pub(super) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let _left = ExitNotice(&shared);
        loop {
            match shared.queue.next(IDLE_AFTER) {
                Task::Write(batch) => {
                    self.write(&batch);
                    shared.queue.written(&batch);
                }
                Task::Refresh => {
                    self.refresh();
                    shared.queue.refreshed(Instant::now() + REFRESH_INTERVAL);
                }
                Task::Idle => shared.close_files(),
                Task::Stop => break,
            }
        }
        if let Err(error) = self.finish() {
            debug!("the last segment stays open, the next start will seal it: {error}");
        }
    }

    fn finish(&mut self) -> Result<(), Refused> {
        if self.current.is_some() {
            let lock = self.shared.directory.lock()?;
            self.seal(&lock)?;
        }
        Ok(())
    }

    fn write(&mut self, batch: &[Item]) {
        let records: Vec<Record> = batch.iter().filter_map(|item| self.encode(item)).collect();
        let mut rest = &records[..];
        while let Some((_, _, payload)) = rest.first() {
            let written = self
                .check_space()
                .and_then(|()| self.ensure_room(payload.len()))
                .and_then(|()| self.append(rest));
            match written {
                Ok(count) => rest = &rest[count..],
                Err(refused) => {
                    Counters::add(&self.shared.counters.dropped, rest.len() as u64);
                    self.warn_refused(&refused);
                    return;
                }
            }
            if std::mem::replace(&mut self.warned_refused, false) {
                *self.shared.refusal() = None;
            }
        }
    }

    /// Warns when writing begins to fail. The next warning comes only after a success in between.
    fn warn_refused(&mut self, refused: &Refused) {
        *self.shared.refusal() = Some(format!("it accepts nothing at the moment: {refused}"));
        if !std::mem::replace(&mut self.warned_refused, true) {
            warn!("the disk cache accepts nothing at the moment, reads go on: {refused}");
        }
    }

    /// Encodes the record for `item`; `None` if the disk has it already.
    fn encode(&self, item: &Item) -> Option<Record> {
        match &item.payload {
            Payload::Chunk(chunk) => {
                let known = self.shared.index().contains(&item.key, Kind::Chunk);
                (!known).then(|| (Kind::Chunk, item.key, chunk.bytes().clone()))
            }
            Payload::Manifest(page) => {
                let at = self.shared.index().peek(&item.key, Kind::Manifest);
                let on_disk =
                    at.map(|at| self.shared.read(&[(item.key, Kind::Manifest, at)], Access::Repeated));
                let page = match on_disk.and_then(|mut read| read.pop()?) {
                    // The new page wins: it may be of a file that has changed.
                    Some(Verified::Manifest(old, _)) => {
                        let mut joined = page.as_ref().clone();
                        joined.join(&old);
                        (joined != old).then_some(joined)?
                    }
                    _ => page.as_ref().clone(),
                };
                Some((Kind::Manifest, item.key, page.encode(&self.shared.secret, &item.key).into()))
            }
        }
    }

    /// Appends the first of `records` to the current segment, as many as fit. Returns their number.
    fn append(&mut self, records: &[Record]) -> Result<usize, Refused> {
        let Some(current) = &mut self.current else { return Err(Refused::Size) };
        let count = current.fitting(records.iter().map(|(.., payload)| payload.len()));
        let Shared { directory, secret, .. } = &*self.shared;
        let (mode, bytes_before, cost_before) = (current.mode(), current.end, thread_time());
        let (entries, result) = current.append(directory, secret, &mut self.staging, &records[..count]);
        let cost = thread_time().saturating_sub(cost_before);
        self.write_mode_policy.record_write(mode, u64::from(current.end - bytes_before), cost);
        self.shared.index().extend(current.id, &entries, current.file_bytes, current.end, Form::Open);
        match result {
            Err(error) if entries.is_empty() => Err(error.into()),
            _ => Ok(entries.len()),
        }
    }

    /// Ensures a current segment with room for a payload of `len` bytes.
    fn ensure_room(&mut self, len: usize) -> Result<(), Refused> {
        let fits = |current: &OpenSegment| current.fitting([len].into_iter()) == 1;
        if self.current.as_ref().is_some_and(fits) {
            return Ok(());
        }
        let lock = self.shared.directory.lock()?;
        self.seal(&lock)?;
        let mut listed = self.list_and_sync()?;
        if std::mem::replace(&mut self.may_adopt, false) && self.adopt(&lock, &listed)? {
            if self.current.as_ref().is_some_and(fits) {
                return Ok(());
            }
            self.seal(&lock)?;
            listed = self.list_and_sync()?;
        }
        self.start_segment(lock, &listed)?;
        if self.current.as_ref().is_some_and(fits) { Ok(()) } else { Err(Refused::Size) }
    }

    /// Creates a segment in place of the oldest ones, and rewrites the used records of those into it.
    fn start_segment(&mut self, lock: DirectoryLock, listed: &[Listed]) -> Result<(), Refused> {
        let segment_bytes = u64::from(self.shared.bounds.segment_bytes);
        let reclaimed = self.shared.reclaim(&lock, listed, segment_bytes)?;
        let result = if reclaimed.enough { self.create(&lock, listed) } else { Err(self.refusal_reason()) };
        drop(lock);
        if result.is_ok() {
            self.rewrite(&survivors(reclaimed.used, survivors_bytes(segment_bytes)));
        }
        reclaimed.evicted.iter().for_each(|&segment| self.shared.forget_segment(segment));
        result
    }

    fn create(&mut self, lock: &DirectoryLock, listed: &[Listed]) -> Result<(), Refused> {
        let shared = &self.shared;
        let youngest = listed.last().map_or(0, |last| last.id);
        let known = shared.index().segments().keys().next_back().copied().unwrap_or(0);
        // Numbers are never reused, not even after another process cleared the cache.
        let id = youngest.max(known) + 1;
        let (capacity_bytes, mode) =
            (shared.bounds.segment_bytes, self.write_mode_policy.next_segment(Instant::now()));
        let segment = OpenSegment::create(&shared.directory, lock, &shared.secret, id, capacity_bytes, mode)?;
        self.set_current(segment);
        Ok(())
    }

    /// Resumes the youngest segment of an earlier process, if it has room and the limits allow it to grow.
    fn adopt(&mut self, lock: &DirectoryLock, listed: &[Listed]) -> Result<bool, Refused> {
        let shared = &self.shared;
        let segment_bytes = u64::from(shared.bounds.segment_bytes);
        let Some(last) = adoptable(listed, segment_bytes) else { return Ok(false) };
        let Some(file) = shared.directory.claim_segment(last.id, Form::Sealed)? else { return Ok(false) };
        let records = read_records(&file, &shared.secret, last.id, 0, true)?;
        let grown = Listed { form: Form::Open, ..last };
        let others = listed.iter().map(|one| if one.id == last.id { &grown } else { one });
        let reserved: u64 = others.map(|one| one.reserved(segment_bytes)).sum();
        let missing_bytes = shared.limits(segment_bytes - last.bytes)?.missing_bytes;
        if !records.from_footer || reserved > shared.bounds.size_bytes || missing_bytes > 0 {
            return Ok(false);
        }
        // A resumed segment loses its footer. After a crash the records behind a damaged header would then
        // be lost.
        let walked = read_records(&file, &shared.secret, last.id, 0, false)?;
        if walked.end != records.end {
            return Ok(false);
        }
        shared.directory.rename_segment(lock, last.id, Form::Sealed, Form::Open)?;
        let (capacity_bytes, mode) =
            (shared.bounds.segment_bytes, self.write_mode_policy.next_segment(Instant::now()));
        let segment =
            OpenSegment::resume(&shared.directory, lock, file, last.id, &records, capacity_bytes, mode)?;
        self.set_current(segment);
        Ok(true)
    }

    fn set_current(&mut self, segment: OpenSegment) {
        self.shared.index().extend(segment.id, &[], segment.file_bytes, segment.end, Form::Open);
        self.shared.keep_file(segment.id, Arc::clone(&segment.file));
        self.current = Some(segment);
    }

    fn seal(&mut self, lock: &DirectoryLock) -> Result<(), Refused> {
        let Some(segment) = self.current.take() else { return Ok(()) };
        let (id, end) = (segment.id, segment.end);
        if end == HEADER_BYTES {
            self.shared.directory.remove_segment(lock, id)?;
            self.shared.forget_segment(id);
            return Ok(());
        }
        match segment.seal(&self.shared.directory, lock, &self.shared.secret, Form::Sealed) {
            Ok(bytes) => self.shared.index().extend(id, &[], bytes, end, Form::Sealed),
            // Another process cleared the cache.
            Err(error) if error.kind() == ErrorKind::NotFound => self.shared.forget_segment(id),
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Writes surviving records again. Each pays one of its uses.
    fn rewrite(&mut self, candidates: &[Candidate]) {
        let mut moved_bytes = 0;
        let by_size = |one: &Candidate| {
            moved_bytes += u64::from(one.entry.len);
            moved_bytes / MOVE_BYTES
        };
        let groups: Vec<u64> = candidates.iter().map(by_size).collect();
        let mut rest = candidates;
        for group in groups.chunk_by(PartialEq::eq) {
            let (now, later) = rest.split_at(group.len());
            rest = later;
            let wanted: Vec<RecordRef> =
                now.iter().map(|one| (one.entry.key, one.entry.kind, one.location())).collect();
            let read = self.shared.read(&wanted, Access::First);
            let verified = read.into_iter().zip(&wanted);
            let records: Vec<Record> =
                verified.filter_map(|(verified, wanted)| Some(to_record(verified?, wanted))).collect();
            if let Err(refused) = self.append(&records) {
                self.warn_refused(&refused);
                return;
            }
            let mut index = self.shared.index();
            for (_, key, _) in &records {
                index.spend_hit(key);
            }
        }
    }

    /// Evicts segments if the file system has too little free space. Checks at most once a second.
    fn check_space(&mut self) -> Result<(), Refused> {
        let now = Instant::now();
        if self.space_checked.is_some_and(|checked| now - checked < SPACE_INTERVAL) {
            return Ok(());
        }
        if self.shared.limits(0)?.missing_bytes > 0 {
            let lock = self.shared.directory.lock()?;
            let listed = self.list_and_sync()?;
            let reclaimed = self.shared.reclaim(&lock, &listed, 0)?;
            reclaimed.evicted.iter().for_each(|&segment| self.shared.forget_segment(segment));
            if !reclaimed.enough {
                return Err(self.refusal_reason());
            }
        }
        self.space_checked = Some(now);
        Ok(())
    }

    fn refusal_reason(&self) -> Refused {
        let lacks_space = self.shared.limits(0).is_ok_and(|limits| limits.missing_bytes > 0);
        if lacks_space { Refused::Space } else { Refused::Size }
    }

    fn refresh(&mut self) {
        if let Err(error) = self.list_and_sync() {
            debug!("cannot list the cache directory: {error}");
        }
    }

    /// Lists the directory and updates the index from it.
    fn list_and_sync(&mut self) -> io::Result<Vec<Listed>> {
        let listed = self.shared.directory.list()?;
        self.update_index(&listed);
        Ok(listed)
    }

    /// Updates the index from the directory: forgets the segments that are gone, and reads the records of
    /// other processes.
    fn update_index(&mut self, listed: &[Listed]) {
        let own = self.current.as_ref().map(|segment| segment.id);
        let gone: Vec<SegmentId> = {
            let index = self.shared.index();
            let is_listed = |id: &SegmentId| listed.binary_search_by_key(id, |one| one.id).is_ok();
            index.segments().keys().copied().filter(|id| !is_listed(id)).collect()
        };
        for id in gone {
            self.shared.forget_segment(id);
            if own == Some(id) {
                // Another process cleared the cache, so the file has no name any more.
                self.current = None;
            }
        }
        for segment in listed.iter().filter(|segment| own != Some(segment.id)) {
            if let Err(error) = self.update_segment(*segment)
                && error.kind() != ErrorKind::NotFound
            {
                debug!("cannot read segment {:016x}: {error}", segment.id);
            }
        }
    }

    fn update_segment(&self, segment: Listed) -> io::Result<()> {
        let from = {
            let index = self.shared.index();
            let known = index.segments().get(&segment.id);
            // An open segment may hold more records in the same size, because its last block fills up.
            let is_known = |known: &SegmentState| known.bytes == segment.bytes && known.form == segment.form;
            if !segment.is_open() && known.is_some_and(is_known) {
                return Ok(());
            }
            // Read all records of a segment that was pinned meanwhile: they now take precedence over copies
            // in younger segments.
            known
                .filter(|known| known.form == segment.form || !segment.is_pinned())
                .map_or(0, |known| known.end)
        };
        let file = self.shared.file(segment.id)?;
        let records =
            read_records(file.buffered(), &self.shared.secret, segment.id, from, !segment.is_open())?;
        let mut index = self.shared.index();
        index.extend(segment.id, &records.entries, segment.bytes, records.end, segment.form);
        Ok(())
    }
}

/// Returns the processor time of this thread.
fn thread_time() -> Duration {
    // Without the clock every write counts as free.
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

fn to_record(verified: Verified, wanted: &RecordRef) -> Record {
    let payload = match verified {
        Verified::Chunk(chunk) => chunk.into_bytes(),
        Verified::Manifest(_, payload) => payload,
    };
    (wanted.1, wanted.0, payload)
}

/// Tells the queue that the writer is gone, even after a panic.
struct ExitNotice<'a>(&'a Shared);

impl Drop for ExitNotice<'_> {
    fn drop(&mut self) {
        self.0.queue.writer_exited();
    }
}
