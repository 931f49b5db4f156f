//! Open files: `open` and `release`.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::ask::WALK_MAX;
use super::attributes::Learned;
use super::inodes::Inode;
use super::nodes::{Age, Lookup};
use super::open_mode::OpenMode;
use super::read::ReadState;
use super::unsynced::Heard;
use super::{FileSystem, FsError, lock};
use crate::fetch::OpenPrefetch;
use crate::proto::{Attributes, Errno, NodeId, OpenAccess, OpenId};

/// How a program opens a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of open(2) or stands for one")]
pub struct OpenRequest {
    /// For reading, or for reading and writing.
    pub reads: bool,
    /// For writing, or for reading and writing.
    pub writes: bool,
    /// With `O_DIRECT`.
    pub is_direct: bool,
    /// By a program that seems to copy within the mount ([`FileSystem::seems_to_copy`]): a large file is not brought ahead.
    pub copies: bool,
    /// With `O_APPEND`.
    pub appends: bool,
}

impl Default for OpenRequest {
    /// For reading.
    fn default() -> Self {
        Self { reads: true, writes: false, is_direct: false, copies: false, appends: false }
    }
}

impl OpenRequest {
    /// What the host is asked for.
    pub(super) const fn access(self) -> OpenAccess {
        OpenAccess {
            reads: self.reads || !self.writes,
            writes: self.writes,
            appends: self.writes && self.appends,
        }
    }
}

/// An opened file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// Its handle.
    pub handle: u64,
    /// How the kernel is to treat it.
    pub mode: OpenMode,
}

/// What a handle keeps.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub inode: Inode,
    pub reads: Mutex<ReadState>,
    /// The beginning of the file, until the first read takes it.
    pub first: Mutex<Option<OpenPrefetch>>,
    /// Which of the file's failures were told through this handle, or before it was opened.
    pub failures_heard: Mutex<Heard>,
    /// Whether locks were ever taken through it.
    pub has_locked: AtomicBool,
    /// Whether some of them were lost: nothing is read or written through it any more.
    pub locks_lost: AtomicBool,
}

/// A handle that is not open yet.
struct Unopened<'a> {
    fs: &'a FileSystem,
    handle: Option<u64>,
    /// The file that the host is being asked to open.
    asked: Option<Inode>,
}

impl Drop for Unopened<'_> {
    fn drop(&mut self) {
        let Some(handle) = self.handle else { return };
        self.fs.fetcher.cancel_handle(handle);
        // A signal came. The host may have opened the file, and would keep it open; one that is away has not.
        if let Some((node, _)) = self.asked.and_then(|inode| self.fs.node_of(inode).ok())
            && self.fs.is_connected()
        {
            let client = Arc::clone(&self.fs.client);
            self.fs.runtime.spawn(async move { client.close(node, OpenId(handle)).await });
        }
    }
}

impl FileSystem {
    /// Opens a regular file. The host is asked, so that what was closed elsewhere before is seen; only while it is out of
    /// reach what is known will do. A name that leads elsewhere by now is [`FsError::Stale`], which makes the kernel
    /// walk the path again.
    pub async fn open(self: &Arc<Self>, inode: Inode, request: OpenRequest) -> Result<Opened, FsError> {
        if request.writes && self.config.read_only {
            return Err(FsError::ReadOnly);
        }
        if request.writes {
            self.prime_room(inode);
        }
        self.sent(inode).await?;
        let handle = lock(&self.files).reserve();
        if let Some(record) = lock(&self.inodes).get_mut(inode) {
            record.more_mut().epoch = handle;
        }
        let first = if request.reads { self.read_first_ahead(inode, handle, request.copies) } else { None };
        // Whatever happens, also if the call is dropped: nobody will read what was asked ahead but through the handle.
        let mut unopened = Unopened { fs: self, handle: Some(handle), asked: Some(inode) };
        let open = OpenId(handle);
        let access = request.access();
        let fresh = async { Ok((self.open_on_host(inode, open, access).await?, Some(open))) };
        let copy = || Some((self.attributes_copy(inode, Age::Any).ok()??.0, None));
        let answer = self.or_copy(fresh, copy).await;
        if answer.is_err() {
            unopened.asked = None;
        }
        let (attributes, on_host) = answer?;
        self.kernel_drops_older_attributes(inode).await;
        unopened.asked = None;
        let opened = self.opened(inode, handle, request, &attributes, on_host)?;
        if let Some(file) = lock(&self.files).get(handle) {
            *lock(&file.first) = first;
        }
        unopened.handle = None;
        Ok(opened)
    }

    /// Looks a name up for a program, by the number of its process.
    pub async fn lookup_for(
        self: &Arc<Self>,
        process: u32,
        parent: Inode,
        name: &[u8],
    ) -> Result<Lookup, FsError> {
        let found = self.lookup(parent, name).await;
        if matches!(found, Ok(Lookup::Absent { .. })) {
            self.note_copier(process);
        }
        found
    }

    /// A program has missed a name here, or makes one.
    pub fn note_copier(&self, process: u32) {
        lock(&self.copiers).note(process, Instant::now());
    }

    /// Whether it seems to copy within the mount, by what it did before.
    pub fn seems_to_copy(&self, process: u32) -> bool {
        lock(&self.copiers).seems_to_copy(process, Instant::now())
    }

    /// A file is open under `handle`, on the host too if `on_host`.
    pub(super) fn opened(
        &self,
        inode: Inode,
        handle: u64,
        request: OpenRequest,
        attributes: &Attributes,
        on_host: Option<OpenId>,
    ) -> Result<Opened, FsError> {
        let (mode, failures) = {
            let mut inodes = lock(&self.inodes);
            inodes.opened(inode, request.access(), on_host);
            let record = inodes.get_mut(inode).ok_or(FsError::UnknownInode(inode.0))?;
            // Who writes goes past the page cache: what it holds would be another version after the first write.
            let wants_direct = request.is_direct || request.writes;
            let more = record.more_mut();
            let (mode, pages) = OpenMode::choose(attributes, wants_direct, more.pages);
            more.pages = pages;
            more.epoch = more.epoch.max(handle);
            (mode, record.writes().failures())
        };
        let file = OpenFile {
            inode,
            reads: Mutex::new(ReadState::new(attributes)),
            first: Mutex::default(),
            failures_heard: Mutex::new(failures),
            has_locked: AtomicBool::new(false),
            locks_lost: AtomicBool::new(false),
        };
        lock(&self.files).insert_as(handle, file);
        Ok(Opened { handle, mode })
    }

    /// Closes a file: what was asked ahead for it is no longer wanted.
    pub async fn release(self: &Arc<Self>, handle: u64) -> Result<(), FsError> {
        let file = lock(&self.files).remove(handle).ok_or(FsError::BadHandle(handle))?;
        self.fetcher.cancel_handle(handle);
        // Its last pages may come without a flush. While the host is away they stay on their way, and the file is known until then.
        while self.sent(file.inode).await.is_err() {}
        self.let_go_of(file.inode, handle).await;
        if let Ok(Some((attributes, _))) = self.attributes_copy(file.inode, Age::Any) {
            self.fetcher.flush_hashes(&self.content_kept(&attributes));
        }
        let surplus = lock(&self.inodes).closed(file.inode);
        match surplus {
            Some((node, open)) => self.close_on_host(node, open).await,
            None => Ok(()),
        }
    }

    /// The kernel is gone. It drops the releases that it had not yet sent, so what is still open is closed here; the host
    /// closes its side with the session.
    pub fn end(&self) {
        let files = lock(&self.files).clear();
        lock(&self.directories).clear();
        for handle in files {
            self.fetcher.cancel_handle(handle);
        }
    }

    /// A host that restarted has nothing to close.
    async fn close_on_host(&self, node: NodeId, open: OpenId) -> Result<(), FsError> {
        if let Err(error) = self.client.close(node, open).await {
            tracing::debug!(%error, "the host was not told that a file is closed");
        }
        Ok(())
    }

    /// Opens the file on the host and has its name checked on the way: within the time that a name holds here, another
    /// file may have taken it. The kernel is told so then ([`FsError::Stale`]), and looks the name up.
    async fn open_on_host(
        &self,
        inode: Inode,
        open: OpenId,
        access: OpenAccess,
    ) -> Result<Attributes, FsError> {
        let begun = Instant::now();
        let learned = Learned::by_asking(begun);
        let was_just_looked_up = lock(&self.inodes).was_just_looked_up(inode, begun, WALK_MAX);
        let opening = self.ask(inode, |client, node| async move { client.open(node, open, access).await });
        let (opened, name_holds) = tokio::join!(opening, self.name_holds(inode));
        let attributes = match opened {
            Err(error) if matches!(error.errno(), Errno::ESTALE | Errno::ENOENT) => {
                self.forget_name_of(inode);
                return Err(FsError::Stale);
            }
            opened => opened?,
        };
        {
            let _steady = self.steady();
            self.learn(attributes, self.with_lease_of(learned, inode, &attributes));
        }
        // Who has just looked the name up opens what he found, as on a local disk.
        if !name_holds && !was_just_looked_up {
            self.forget_name_of(inode);
            self.close_on_host(attributes.node, open).await?;
            return Err(FsError::Stale);
        }
        Ok(attributes)
    }

    /// Whether the newest name of an inode still leads to it. What cannot be told counts as yes.
    async fn name_holds(&self, inode: Inode) -> bool {
        let (node, place) = {
            let inodes = lock(&self.inodes);
            (inodes.get(inode).map(|record| record.node()), inodes.reached_by(inode))
        };
        let Some((parent, name)) = place else { return true };
        let call = |client: Arc<dyn crate::client::Client>, directory| {
            let name = Arc::clone(&name);
            async move { client.lookup(directory, &name).await }
        };
        match self.ask(parent, call).await {
            Ok(attributes) => Some(attributes.node) == node,
            Err(error) => !error.is_not_found(),
        }
    }
}
