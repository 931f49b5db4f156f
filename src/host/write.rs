//! Content that clients send, and its way to the disk.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use nix::errno::Errno as SystemErrno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::{fdatasync, fsync, syncfs};

use super::actor::Actor;
use super::answer::{malformed, read_body};
use super::attributes::system_error;
use super::confine::open_for;
use super::context::ClientContext;
use super::growing::GrowingWrite;
use super::locks;
use super::once::{once, over};
use super::places::Place;
use super::session::Session;
use super::tree::{Handle, Reached};
use crate::chunk::{ChunkHash, ChunkIndex, HashMismatch};
use crate::io::sys;
use crate::proto::{
    BootId, Errno, ErrorCode, Growth, NodeId, OpenAccess, OperationId, Reply, SYNC_AFTER_MAX, WireError,
    WriteAt, WriteProof, WriteRequest, Written,
};
use crate::transport::RecvStream;

/// Takes the bytes in, proves them, and writes them once.
pub(super) async fn serve(
    context: &Arc<ClientContext>,
    request: WriteRequest,
    receive: &mut RecvStream,
) -> Result<Reply, WireError> {
    let bytes_max = WriteRequest::bytes_max(request.at);
    if u64::from(request.len) > bytes_max {
        return Err(malformed(format!("a write of more than {bytes_max} bytes")));
    }
    let growth = request.at.place().map_or(Growth::default(), |(_, growth, _)| growth);
    let growing = GrowingWrite::begin(context, request.node, growth);
    let place = growing.find_room().await;
    let _room = context.budget.leave_to_receive(request.len).await;
    let bytes = read_body(receive, request.len as usize).await?;
    let WriteProof { hash: actual, chunks } = request.at.proof(&bytes);
    if actual != request.hash {
        let error = malformed(HashMismatch { expected: request.hash, actual });
        growing.over(Err(&error));
        return Err(error);
    }
    let worker = Arc::clone(context);
    let work = move || async move {
        let _place = place;
        let answer = write(&worker, &request, bytes, &chunks, &growing).await;
        if let Err(error) = &answer {
            growing.over(Err(error));
        }
        answer
    };
    once(context, &request.operation, work).await
}

/// `chunks` are the hashes of the chunks that are written, where they are whole ones.
async fn write(
    context: &ClientContext,
    request: &WriteRequest,
    bytes: Bytes,
    chunks: &[ChunkHash],
    growing: &GrowingWrite,
) -> Result<Reply, WireError> {
    let (node, len) = (request.node, bytes.len() as u64);
    let handle = match context.session.file_to_write_at_hand(node) {
        Some(handle) => handle,
        None => context.blocking(move |session| session.file_to_write(node)).await?,
    };
    let offset = match (request.at.place(), request.at) {
        (Some((_, _, Some(run))), _) if context.session.run != run => return Err(locks::lost()),
        (Some((offset, ..)), _) => {
            handle.check_place()?;
            let end = offset.saturating_add(len);
            growing.may_go(&handle, end).await?;
            write_at(context, &handle, offset, bytes).await?;
            growing.over(Ok(end));
            let first = ChunkIndex::containing(offset).0;
            let places = (first..).map(|number| Place { node, index: ChunkIndex(number) });
            context.session.tree.note_places(chunks.iter().copied().zip(places));
            offset
        }
        (None, at) => {
            let WriteAt::End { believed } = at else { return Err(malformed("a write to no place")) };
            let handle = Arc::clone(&handle);
            let unsure = (context.session.run != request.operation.sent_first).then_some(believed);
            context.blocking(move |_| append(&handle, &bytes, unsure)).await?
        }
    };
    context.counters().content_bytes_written.add(len);
    let attributes = context.blocking(move |_| handle.attributes()).await?;
    Ok(Reply::Written(Written { offset, len, attributes, boot: context.boot() }))
}

/// The engine writes as the daemon: root is stopped by no quota, and set-user-id bits outlive what it writes. So it writes for nobody
/// else. Nor does it write where it might hang: its queue is everybody's.
async fn write_at(
    context: &ClientContext,
    handle: &Arc<Handle>,
    offset: u64,
    bytes: Bytes,
) -> Result<(), WireError> {
    let file = Arc::clone(&handle.file);
    if context.session.actor == Actor::Daemon && handle.is_local {
        let written = context.engine().write(file, offset, bytes).await;
        return written.map_err(|error| WireError::system(Errno(error.errno() as i32)));
    }
    let write = move |_: &Session| {
        let written = file.write_all_at(&bytes, offset);
        written.map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno)).map_err(WireError::system)
    };
    context.blocking(write).await
}

/// Where the bytes went. `unsure`: they may have been appended before, when the end was there.
fn append(handle: &Handle, bytes: &[u8], unsure: Option<u64>) -> Result<u64, WireError> {
    let _turn = handle.append_turn();
    let done = unsure.map_or(Ok(0), |believed| appended_before(handle, bytes, believed))?;
    if done == bytes.len() {
        return Ok(unsure.unwrap_or_default());
    }
    let offset = sys::append(handle.file.as_fd(), &bytes[done..]).map_err(system_error)?;
    Ok(offset.saturating_sub(done as u64))
}

/// How many of the bytes an earlier run of the host has appended: one that is killed may have come half way.
fn appended_before(handle: &Handle, bytes: &[u8], believed: u64) -> Result<usize, WireError> {
    let behind = handle.version()?.size.checked_sub(believed);
    let len = behind.map(|behind| bytes.len().min(usize::try_from(behind).unwrap_or(usize::MAX)));
    if len == Some(0) {
        return Ok(0);
    }
    // The file may be open for writing alone.
    let there = len.and_then(|len| {
        let mut there = vec![0; len];
        let (fd, _) = open_for(handle.file.as_fd(), OpenAccess::READ).ok()?;
        File::from(fd).read_exact_at(&mut there, believed).ok()?;
        Some(there)
    });
    match there {
        Some(there) if bytes.starts_with(&there) => Ok(there.len()),
        _ => {
            let text = "the host restarted while this was appended, and the file has changed since; \
                        whether it was done cannot be told";
            Err(WireError::new(ErrorCode::System(Errno::EIO), text))
        }
    }
}

/// Brings a file, or a folder's entries, to the disk, once the changes `after` are over.
pub(super) async fn sync_after(
    context: &Arc<ClientContext>,
    node: NodeId,
    data_only: bool,
    after: &[OperationId],
) -> Result<Reply, WireError> {
    if after.len() > SYNC_AFTER_MAX {
        return Err(malformed(format!("a sync after more than {SYNC_AFTER_MAX} changes")));
    }
    for id in after {
        over(context, *id).await?;
    }
    let boot = context.boot();
    context.blocking(move |session| sync(session, boot, node, data_only)).await
}

/// Brings everything on a node's file system to its disk. A client that may not write has nothing to bring there.
pub(super) async fn sync_file_system(context: &Arc<ClientContext>, node: NodeId) -> Result<Reply, WireError> {
    let boot = context.boot();
    if context.read_only {
        return Ok(Reply::Synced { boot });
    }
    context.blocking(move |session| sync_by(session, boot, node, |fd| syncfs(fd))).await
}

/// Brings a file, or a folder's entries, to the disk. Blocks.
fn sync(session: &Session, boot: BootId, node: NodeId, data_only: bool) -> Result<Reply, WireError> {
    sync_by(session, boot, node, |fd| if data_only { fdatasync(fd) } else { fsync(fd) })
}

fn sync_by(
    session: &Session,
    boot: BootId,
    node: NodeId,
    how: impl Fn(BorrowedFd<'_>) -> Result<(), SystemErrno>,
) -> Result<Reply, WireError> {
    let (reached, _) = session.reach(node)?;
    let synced = match &reached {
        Reached::Handle(handle) if !handle.is_folder => until_done(|| how(handle.file.as_fd())),
        Reached::Handle(handle) => {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            openat(handle.file.as_fd(), ".", flags, Mode::empty())
                .and_then(|folder| until_done(|| how(folder.as_fd())))
        }
        Reached::Path(_) => {
            let handle = session.file(node).or_else(|_| session.file_to_write(node))?;
            until_done(|| how(handle.file.as_fd()))
        }
    };
    match synced {
        // File systems without a disk have nothing to bring to it.
        Ok(()) | Err(SystemErrno::EINVAL | SystemErrno::EROFS) => Ok(Reply::Synced { boot }),
        Err(error) => Err(WireError::system(Errno(error as i32))),
    }
}

fn until_done(work: impl Fn() -> Result<(), SystemErrno>) -> Result<(), SystemErrno> {
    loop {
        match work() {
            Err(SystemErrno::EINTR) => {}
            done => return done,
        }
    }
}
