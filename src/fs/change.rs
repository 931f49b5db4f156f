//! Changes of names: `create`, `mkdir`, `mknod`, `symlink`, `link`, `unlink`, `rmdir`, `rename`; and what all changes have in
//! common.
//!
//! What a change has made of files and directories comes with its answer. It replaces all copies at once, and what was asked before
//! the answer came says nothing any more: after a change returns, nobody on this mount sees how things were before.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ask::Held;
use super::attributes::Learned;
use super::error::Remedy;
use super::files::{OpenRequest, Opened};
use super::ids::Unmapped;
use super::inodes::{Inode, Name};
use super::nodes::Entry;
use super::recovering::Recovering;
use super::{FileSystem, FsError, lock};
use crate::client::{CallError, Client, FirstSession};
use crate::proto::{
    Attributes, Caller, Change, Changed, Errno, ErrorCode, FileKind, NAME_BYTES_MAX, NodeId, OpenId,
    RenameHow, WireError,
};

/// How a file is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CreateRequest {
    /// Permission bits before the mask.
    pub permissions: u16,
    /// Who asks.
    pub caller: Caller,
    /// For what it is opened.
    pub open: OpenRequest,
    /// Whether the name must be free.
    pub exclusive: bool,
    /// Whether a file that is there is cut to nothing.
    pub truncate: bool,
}

/// What can be made besides files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Made {
    /// A directory.
    Directory,
    /// A pipe, a socket, a device with its number, or a file that is not opened.
    Node(FileKind, u64),
    /// A symbolic link to this.
    Symlink(Vec<u8>),
}

impl FileSystem {
    /// Makes a file and opens it.
    pub async fn create(
        self: &Arc<Self>,
        parent: Inode,
        name: &[u8],
        request: CreateRequest,
    ) -> Result<(Entry, Opened), FsError> {
        let name = checked(name)?;
        self.prime_room(parent);
        let handle = lock(&self.files).reserve();
        let CreateRequest { permissions, caller, exclusive, truncate, open } = request;
        let access = open.access();
        let (changed, learned) = self
            .change_names([parent], |[parent]| Change::Create {
                parent,
                name: name.to_vec(),
                permissions,
                caller,
                open: OpenId(handle),
                access,
                exclusive,
                truncate,
            })
            .await?;
        let attributes = made(&changed)?;
        let entry = self.enter(parent, &name, attributes, learned);
        let opened = self.opened(entry.inode, handle, open, &attributes, Some(OpenId(handle)))?;
        Ok((entry, opened))
    }

    /// Makes something else than an open file.
    pub async fn make(
        &self,
        parent: Inode,
        name: &[u8],
        what: &Made,
        permissions: u16,
        caller: Caller,
    ) -> Result<Entry, FsError> {
        let name = checked(name)?;
        let make = |[parent]: [NodeId; 1]| {
            let name = name.to_vec();
            match what.clone() {
                Made::Directory => Change::MakeDirectory { parent, name, permissions, caller },
                Made::Node(kind, device_number) => {
                    Change::MakeNode { parent, name, kind, permissions, device_number, caller }
                }
                Made::Symlink(target) => Change::MakeSymlink { parent, name, target, caller },
            }
        };
        let (changed, learned) = self.change_names([parent], make).await?;
        Ok(self.enter(parent, &name, made(&changed)?, learned))
    }

    /// Gives a file one more name.
    pub async fn link(&self, inode: Inode, parent: Inode, name: &[u8]) -> Result<Entry, FsError> {
        let name = checked(name)?;
        self.sent(inode).await?;
        let seen_as = self.seen_as(inode);
        let link = |[node, parent]: [NodeId; 2]| Change::Link {
            node,
            seen_as: seen_as.clone(),
            parent,
            name: name.to_vec(),
        };
        let linked = self.change([inode, parent], &[parent], link).await;
        if let Err(error) = &linked
            && error.errno() == Errno::ENOENT
            && seen_as.is_none()
            && lock(&self.inodes).get(inode).is_some_and(|record| record.more().opens == 0)
        {
            // The host has told that another file bears the name; the kernel will hear of it and is to look it up.
            return Err(FsError::Stale);
        }
        let (changed, learned) = linked?;
        let mut entry = self.enter(parent, &name, made(&changed)?, learned);
        // The kernel counts the names that it knows by itself and refuses to link a file that has none left. Until it is
        // told that the first name leads elsewhere, the file has two names for it.
        if entry.attributes.links < 2 {
            entry.attributes.links = 2;
            entry.attributes_ttl = Duration::ZERO;
        }
        Ok(entry)
    }

    /// Takes a name away: of an empty directory if `directory`, else of something else.
    pub async fn remove(&self, parent: Inode, name: &[u8], directory: bool) -> Result<(), FsError> {
        let name = checked(name)?;
        let inode = lock(&self.inodes).child(parent, &name);
        let expected = self.node_named(parent, &name);
        let remove =
            |[parent]: [NodeId; 1]| Change::Remove { parent, name: name.to_vec(), directory, expected };
        let unanswered = Unanswered { fs: self, inodes: inode.as_slice(), directories: &[] };
        let removed = self.change_names([parent], remove).await;
        unanswered.answered();
        let mut inodes = lock(&self.inodes);
        if removed.is_ok() {
            inodes.remove_name(parent, &name);
            if let Some(inode) = inode {
                inodes.name_taken(inode, parent, &name);
            }
        }
        let is_told = removed.as_ref().is_ok_and(|(changed, _)| changed.node.is_some());
        if let Some(inode) = inode.filter(|_| !is_told) {
            inodes.outdate(inode, Instant::now());
        }
        removed.map(drop)
    }

    /// Moves a name.
    pub async fn rename(
        &self,
        (from, from_name): (Inode, &[u8]),
        (to, to_name): (Inode, &[u8]),
        how: RenameHow,
    ) -> Result<(), FsError> {
        let (from_name, to_name) = (checked(from_name)?, checked(to_name)?);
        let expected = self.node_named(from, &from_name);
        let moving = lock(&self.inodes).child(from, &from_name);
        if let Some(inode) = moving {
            // Who looks under the new name finds what was written.
            self.sent(inode).await?;
        }
        let rename = |[from_parent, to_parent]: [NodeId; 2]| Change::Rename {
            from_parent,
            from_name: from_name.to_vec(),
            to_parent,
            to_name: to_name.to_vec(),
            how,
            expected,
        };
        let concerned: Vec<Inode> =
            moving.into_iter().chain(lock(&self.inodes).child(to, &to_name)).collect();
        let unanswered = Unanswered { fs: self, inodes: &concerned, directories: &[] };
        let renamed = self.change([from, to], &[from, to], rename).await;
        unanswered.answered();
        let mut inodes = lock(&self.inodes);
        let (moved, replaced) = (inodes.child(from, &from_name), inodes.child(to, &to_name));
        if let Err(error) = renamed {
            [moved, replaced].into_iter().flatten().for_each(|inode| inodes.outdate(inode, Instant::now()));
            return Err(error);
        }
        if moved.is_some() && moved == replaced {
            // Two names of one file: nothing has happened.
            return Ok(());
        }
        inodes.remove_name(from, &from_name);
        inodes.remove_name(to, &to_name);
        if let Some(moved) = moved {
            inodes.name_taken(moved, from, &from_name);
        }
        if let Some(replaced) = replaced {
            inodes.name_taken(replaced, to, &to_name);
        }
        if let Some(moved) = moved {
            inodes.rename(moved, to, &to_name);
        }
        if let (Some(replaced), RenameHow::Exchange) = (replaced, how) {
            inodes.rename(replaced, from, &from_name);
        }
        Ok(())
    }

    /// A change of names in `directories`, and of nothing else.
    async fn change_names<const N: usize>(
        &self,
        directories: [Inode; N],
        change: impl Fn([NodeId; N]) -> Change,
    ) -> Result<(Changed, Learned), FsError> {
        self.change(directories, &directories, change).await
    }

    /// Has the host change something. Where it does not know one of `inodes`, because it restarted, all are looked up again and it
    /// is told once more: it has done nothing then.
    pub(super) async fn change<const N: usize>(
        &self,
        inodes: [Inode; N],
        directories: &[Inode],
        change: impl Fn([NodeId; N]) -> Change,
    ) -> Result<(Changed, Learned), FsError> {
        let first = FirstSession::default();
        let call = |client: Arc<dyn Client>, nodes| {
            let (change, first) = (self.config.ownership.for_host(change(nodes)), first.clone());
            async move {
                let refused =
                    |error: Unmapped| WireError::new(ErrorCode::System(Errno::EPERM), error.to_string());
                client.changed(change.map_err(refused)?, &first).await
            }
        };
        let begun = Instant::now();
        let unanswered = Unanswered { fs: self, inodes: &inodes, directories };
        let answer = self.ask_to_change(inodes, call).await;
        unanswered.answered();
        let completed = Instant::now();
        self.names_changed(directories, completed);
        match answer {
            Ok(changed) => {
                self.learn_own(changed.node.iter().chain(&changed.others), begun, completed);
                Ok((changed, Learned { seen: begun, ..Learned::by_asking(completed) }))
            }
            Err(error) => {
                if !matches!(error, FsError::Call(CallError::Host(_))) {
                    // It may have been done, or not.
                    for inode in inodes {
                        lock(&self.inodes).outdate(inode, completed);
                    }
                }
                Err(error)
            }
        }
    }

    /// Drops what is known of the names in `directories`.
    fn names_changed(&self, directories: &[Inode], completed: Instant) {
        for directory in directories {
            let node = self.node_of(*directory).map(|(node, _)| node);
            lock(&self.inodes).names_changed(*directory, completed);
            if let Ok(node) = node {
                lock(&self.recent).remove(node);
            }
        }
    }

    /// Tells the host to change something that concerns `inodes`.
    pub(super) async fn ask_to_change<T, F, const N: usize>(
        &self,
        inodes: [Inode; N],
        call: impl Fn(Arc<dyn Client>, [NodeId; N]) -> F,
    ) -> Result<T, FsError>
    where
        F: Future<Output = Result<T, CallError>>,
    {
        if self.config.read_only {
            return Err(FsError::ReadOnly);
        }
        // Each call ends by itself when its deadline is over; that of content has none.
        let mut recovering = Recovering::without_deadline();
        let (begun, mut held) = (Instant::now(), Held::new(self));
        loop {
            let mut nodes = Vec::with_capacity(N);
            for inode in inodes {
                nodes.push(self.node_of(inode)?);
            }
            let ids = std::array::from_fn(|at| nodes[at].0);
            match call(Arc::clone(&self.client), ids).await {
                Err(error) if Remedy::of(&error) == Remedy::Resolve => {
                    self.may_recover(&mut recovering, error)?;
                    for (inode, (_, recoveries)) in inodes.iter().zip(&nodes) {
                        self.find_again((*inode, *recoveries), begun, &mut recovering, &mut held).await?;
                    }
                }
                answer => return answer.map_err(FsError::from),
            }
        }
    }

    /// Takes note of what an own change has made of files that are known.
    pub(super) fn learn_own<'a>(
        &self,
        all: impl IntoIterator<Item = &'a Attributes>,
        begun: Instant,
        completed: Instant,
    ) {
        let mut inodes = lock(&self.inodes);
        for attributes in all {
            inodes.learn_own(*attributes, begun, completed);
        }
    }

    /// The directory and name by which a program has just reached a file, if it did so by name: what it has open is meant
    /// itself.
    fn seen_as(&self, inode: Inode) -> Option<(NodeId, Vec<u8>)> {
        let inodes = lock(&self.inodes);
        let (parent, name) = inodes.reached_by(inode)?;
        let is_open = inodes.get(inode)?.more().opens > 0;
        (!is_open).then_some((inodes.get(parent)?.node(), name.to_vec()))
    }

    /// Which node a name is known to name.
    fn node_named(&self, parent: Inode, name: &Name) -> Option<NodeId> {
        let inodes = lock(&self.inodes);
        inodes.get(inodes.child(parent, name)?).map(|record| record.node())
    }
}

/// A change under way. If its call is dropped before the answer, because a signal came, nobody knows whether
/// it was done: what is known of all that it concerns is out of date then.
pub(super) struct Unanswered<'a> {
    pub fs: &'a FileSystem,
    pub inodes: &'a [Inode],
    pub directories: &'a [Inode],
}

impl Unanswered<'_> {
    pub(super) fn answered(mut self) {
        (self.inodes, self.directories) = (&[], &[]);
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        let now = Instant::now();
        self.fs.names_changed(self.directories, now);
        self.inodes.iter().for_each(|inode| lock(&self.fs.inodes).outdate(*inode, now));
    }
}

impl Entry {
    /// The shorter of the two times.
    pub fn ttl(&self) -> Duration {
        self.attributes_ttl.min(self.entry_ttl)
    }
}

fn made(changed: &Changed) -> Result<Attributes, FsError> {
    let missing = || CallError::BadAnswer("what was made is missing in the answer".into());
    changed.node.ok_or_else(|| missing().into())
}

fn checked(name: &[u8]) -> Result<Name, FsError> {
    if name.len() > NAME_BYTES_MAX { Err(FsError::NameTooLong(name.len())) } else { Ok(name.into()) }
}
