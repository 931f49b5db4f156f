//! Content that clients send, and its way to the disk.

use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use nix::errno::Errno as SystemErrno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::{fdatasync, fsync};

use super::answer::{malformed, read_body};
use super::attributes::system_error;
use super::context::ClientContext;
use super::once::once;
use super::places::Place;
use super::session::Session;
use super::tree::{Handle, Reached};
use crate::chunk::{ChunkHash, ChunkIndex, HashMismatch};
use crate::io::sys;
use crate::proto::{
    BootId, Errno, ErrorCode, NodeId, Reply, WRITE_BYTES_MAX, WireError, WriteAt, WriteProof, WriteRequest,
    Written,
};
use crate::transport::RecvStream;

/// Takes the bytes in, proves them, and writes them once.
pub(super) async fn serve(
    context: &Arc<ClientContext>,
    request: WriteRequest,
    receive: &mut RecvStream,
) -> Result<Reply, WireError> {
    if u64::from(request.len) > WRITE_BYTES_MAX {
        return Err(malformed(format!("a write of more than {WRITE_BYTES_MAX} bytes")));
    }
    let _room = context.leave_to_receive().await;
    let bytes = read_body(receive, request.len as usize).await?;
    let WriteProof { hash: actual, chunks } = request.at.proof(&bytes);
    if actual != request.hash {
        return Err(malformed(HashMismatch { expected: request.hash, actual }));
    }
    let worker = Arc::clone(context);
    once(context, &request.operation, move || async move { write(&worker, &request, bytes, &chunks).await })
        .await
}

/// `chunks` are the hashes of the chunks that are written, where they are whole ones.
async fn write(
    context: &ClientContext,
    request: &WriteRequest,
    bytes: Bytes,
    chunks: &[ChunkHash],
) -> Result<Reply, WireError> {
    let (node, len) = (request.node, bytes.len() as u64);
    let handle = match context.session.file_to_write_at_hand(node) {
        Some(handle) => handle,
        None => context.blocking(move |session| session.file_to_write(node)).await?,
    };
    let offset = match request.at {
        WriteAt::Offset(offset) => {
            let file = Arc::clone(&handle.file);
            let written = context.engine().write(file, offset, bytes).await;
            written.map_err(|error| WireError::system(Errno(error.errno() as i32)))?;
            let first = ChunkIndex::containing(offset).0;
            let places = (first..).map(|number| Place { node, index: ChunkIndex(number) });
            context.session.tree.note_places(chunks.iter().copied().zip(places));
            offset
        }
        WriteAt::End { believed } => {
            let handle = Arc::clone(&handle);
            let unsure = (context.session.run != request.operation.sent_first).then_some(believed);
            context.blocking(move |_| append(&handle, &bytes, unsure)).await?
        }
    };
    context.counters().content_bytes_written.add(len);
    let attributes = context.blocking(move |_| handle.attributes()).await?;
    Ok(Reply::Written(Written { offset, len, attributes, boot: context.boot() }))
}

/// Where the bytes went. `unsure`: they may have been appended before, when the end was there.
fn append(handle: &Handle, bytes: &[u8], unsure: Option<u64>) -> Result<u64, WireError> {
    let _turn = handle.append_turn();
    if let Some(believed) = unsure {
        let size = handle.version()?.size;
        let mut there = vec![0; bytes.len()];
        if handle.file.read_exact_at(&mut there, believed).is_ok() && there == bytes {
            return Ok(believed);
        }
        if size != believed {
            let text = "the host restarted while this was appended, and the file has changed since; \
                        whether it was done cannot be told";
            return Err(WireError::new(ErrorCode::System(Errno::EIO), text));
        }
    }
    sys::append(handle.file.as_fd(), bytes).map_err(system_error)
}

/// Brings a file, or a folder's entries, to the disk. Blocks.
pub(super) fn sync(
    session: &Session,
    boot: BootId,
    node: NodeId,
    data_only: bool,
) -> Result<Reply, WireError> {
    let (reached, _) = session.reach(node)?;
    let synced = match &reached {
        Reached::Handle(handle) if !handle.is_folder => sync_open(handle.file.as_fd(), data_only),
        Reached::Handle(handle) => {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            openat(handle.file.as_fd(), ".", flags, Mode::empty())
                .and_then(|folder| sync_open(folder.as_fd(), data_only))
        }
        Reached::Path(_) => {
            let handle = session.file(node).or_else(|_| session.file_to_write(node))?;
            sync_open(handle.file.as_fd(), data_only)
        }
    };
    match synced {
        // File systems without a disk have nothing to bring to it.
        Ok(()) | Err(SystemErrno::EINVAL | SystemErrno::EROFS) => Ok(Reply::Synced { boot }),
        Err(error) => Err(WireError::system(Errno(error as i32))),
    }
}

fn sync_open(fd: std::os::fd::BorrowedFd<'_>, data_only: bool) -> Result<(), SystemErrno> {
    loop {
        match if data_only { fdatasync(fd) } else { fsync(fd) } {
            Err(SystemErrno::EINTR) => {}
            done => return done,
        }
    }
}
