//! Files that a program reaches by a file handle (`open_by_handle_at`, an NFS server) and by no name.
//!
//! The kernel asks then for `.` in an inode that it may have forgotten long since, and for `..` in a directory whose way to the root it
//! does not know. The host is asked about the node; where it does not know it any more, the node is looked up under the name
//! that it had when the kernel forgot it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::attributes::Learned;
use super::error::Remedy;
use super::inodes::{DEPTH_MAX, Gone, Inode, generation};
use super::nodes::{Age, Entry};
use super::{FileSystem, FsError, lock};
use crate::client::Client;
use crate::proto::{Attributes, NodeId};

impl FileSystem {
    /// The inode itself, to which the kernel refers once more.
    pub async fn lookup_itself(&self, inode: Inode) -> Result<Entry, FsError> {
        let gone = {
            let inodes = lock(&self.inodes);
            if inodes.get(inode).is_some() { None } else { Some(inodes.gone(inode).ok_or(FsError::Stale)?) }
        };
        match gone {
            None => {
                self.attributes_of(inode, Age::Fresh).await?;
                lock(&self.inodes).looked_up_again(inode).ok_or(FsError::Stale)?;
            }
            Some(gone) => {
                let learned = Learned::by_asking(Instant::now());
                let attributes = self.find_gone(&gone).await?;
                lock(&self.inodes).readmit(inode, &gone, attributes, learned).ok_or(FsError::Stale)?;
            }
        }
        let shown = self.entry_without_name(inode);
        if shown.is_err() {
            self.forget(inode, 1);
        }
        shown
    }

    /// The directory that holds a directory, to which the kernel refers once more.
    pub async fn lookup_parent(&self, directory: Inode) -> Result<Entry, FsError> {
        let parent = {
            let inodes = lock(&self.inodes);
            let node = inodes.parent_of(directory).ok_or(FsError::Stale)?;
            inodes.number_of(node)
        };
        self.lookup_itself(parent).await
    }

    fn entry_without_name(&self, inode: Inode) -> Result<Entry, FsError> {
        let (attributes, attributes_ttl) = self.to_kernel(inode)?;
        Ok(Entry {
            inode,
            number: self.shown_number(attributes.node),
            generation: generation(attributes.node),
            attributes,
            attributes_ttl,
            entry_ttl: Duration::ZERO,
        })
    }

    /// Asks the host about a node that the kernel has forgotten here.
    async fn find_gone(&self, gone: &Gone) -> Result<Attributes, FsError> {
        match self.client.attributes(gone.node).await {
            Ok(attributes) if attributes.node == gone.node => Ok(attributes),
            Err(error) if Remedy::of(&error) != Remedy::Resolve => Err(error.into()),
            _ => self.walk_to(gone).await,
        }
    }

    /// Looks a node up by its names, down from the first directory above it to which the kernel refers.
    async fn walk_to(&self, gone: &Gone) -> Result<Attributes, FsError> {
        let (from, way) = self.way_to(gone).ok_or(FsError::Stale)?;
        let mut found: Option<Attributes> = None;
        for step in way.iter().rev() {
            let call = |client: Arc<dyn Client>, directory: NodeId| {
                let (directory, name) = (found.map_or(directory, |found| found.node), Arc::clone(&step.name));
                async move { client.lookup(directory, &name).await }
            };
            let next = match self.ask(from, call).await {
                Err(error) if error.is_not_found() => return Err(FsError::Stale),
                next => next?,
            };
            if next.node != step.node {
                return Err(FsError::Stale);
            }
            found = Some(next);
        }
        found.ok_or(FsError::Stale)
    }

    /// The steps from a node that was forgotten up to a directory that is known, its own first.
    fn way_to(&self, gone: &Gone) -> Option<(Inode, Vec<Gone>)> {
        let inodes = lock(&self.inodes);
        let mut way = vec![gone.clone()];
        while way.len() <= DEPTH_MAX {
            let parent = way.last()?.parent;
            if let Some(from) = inodes.inode_of(parent) {
                return Some((from, way));
            }
            way.push(inodes.gone(inodes.number_of(parent)).filter(|above| above.node == parent)?);
        }
        None
    }
}
