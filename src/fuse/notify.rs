//! Invalidates caches of the kernel.
//!
//! It uses its own threads. To drop a page the kernel waits for the page lock, and a read in flight holds
//! that lock until it is answered. A FUSE thread, or a thread with a lock that the answer needs, would
//! deadlock. These threads may wait, because no answer needs them. Attributes have a thread of their own that
//! never waits for a page, because the answer to an open waits for it.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;

use fuser::{INodeNo, Notifier};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use crate::fs::FsEvent;

/// Starts to execute the events of one lane. Dropping the returned sender ends it after the current event.
pub(super) fn start(
    runtime: Handle,
    notifier: Notifier,
    mut events: mpsc::Receiver<FsEvent>,
) -> io::Result<oneshot::Sender<()>> {
    let (armed, mut disarmed) = oneshot::channel();
    let next = async move |events: &mut mpsc::Receiver<FsEvent>, disarmed: &mut oneshot::Receiver<()>| {
        tokio::select! {
            biased;
            _ = disarmed => None,
            event = events.recv() => event,
        }
    };
    std::thread::Builder::new().name("wormhole-notify".into()).spawn(move || {
        while let Some(event) = runtime.block_on(next(&mut events, &mut disarmed)) {
            match carry_out(&notifier, &event) {
                Ok(()) => tracing::trace!(?event, "told the kernel"),
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return,
                Err(error) => tracing::debug!(?event, %error, "the kernel was not told"),
            }
        }
    })?;
    Ok(armed)
}

fn carry_out(notifier: &Notifier, event: &FsEvent) -> io::Result<()> {
    match event {
        // From byte 0 to the end.
        FsEvent::InvalidateContent { inode } => notifier.inval_inode(INodeNo(inode.0), 0, 0),
        // A negative offset means no pages.
        FsEvent::InvalidateAttributes { inode } => notifier.inval_inode(INodeNo(inode.0), -1, 0),
        FsEvent::Told(told) => {
            told.tell();
            Ok(())
        }
        FsEvent::InvalidateEntry { parent, name } => {
            notifier.inval_entry(INodeNo(parent.0), OsStr::from_bytes(name))
        }
    }
}
