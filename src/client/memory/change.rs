//! (P) Changes of the model host. They behave as on Linux, for one owner with all rights.

use std::collections::BTreeMap;

use super::answer::{regular, system};
use super::content::Content;
use super::tree::{Body, Node, Opener, Tree};
use crate::chunk::ByteRange;
use crate::proto::{
    AllocateHow, Attributes, BootId, Change, Changed, Errno, ErrorCode, FileKind, NAME_BYTES_MAX, NodeId,
    OpenAccess, RenameHow, Reply, SetAttributes, SetTime, WireError, WriteAt, WriteRequest, Written,
    XattrHow,
};

impl Tree {
    /// Executes a change for a client.
    pub(super) fn change(&mut self, client: u64, change: &Change, boot: BootId) -> Result<Reply, WireError> {
        if let Change::SetAttributes { node, .. }
        | Change::SetXattr { node, .. }
        | Change::RemoveXattr { node, .. } = change
        {
            self.found(client, *node)?;
        }
        let changed = match change {
            Change::Create { parent, name, permissions, caller, open, access, exclusive, truncate } => {
                let permissions = permissions & !caller.umask;
                let body = Body::File(Content::default());
                match self.make(*parent, name, body, permissions) {
                    Err(error) if error.errno() == Errno::EEXIST && !exclusive => {
                        self.open_existing(*parent, name, ((client, *open), *access), *truncate)?
                    }
                    made => {
                        let made = made?;
                        if let Some(made) = made.node {
                            self.set_open(made.node, (client, *open), true);
                        }
                        made
                    }
                }
            }
            Change::MakeDirectory { parent, name, permissions, caller } => {
                let body = Body::Directory(BTreeMap::new());
                self.make(*parent, name, body, permissions & !caller.umask)?
            }
            Change::MakeNode { parent, name, kind, permissions, caller, .. } => {
                let body = match kind {
                    FileKind::Regular => Body::File(Content::default()),
                    kind => Body::Special(*kind),
                };
                self.make(*parent, name, body, permissions & !caller.umask)?
            }
            Change::MakeSymlink { parent, name, target, .. } => {
                self.make(*parent, name, Body::Symlink(target.clone()), 0o777)?
            }
            Change::Link { node, seen_as, parent, name } => {
                self.link_node(client, *node, seen_as.as_ref(), *parent, name)?
            }
            Change::Remove { parent, name, directory, .. } => self.remove(*parent, name, *directory)?,
            Change::Rename { from_parent, from_name, to_parent, to_name, how, .. } => {
                self.rename_entry((*from_parent, from_name), (*to_parent, to_name), *how)?
            }
            Change::SetAttributes { node, set } => self.set_attributes(*node, set)?,
            Change::SetXattr { node, name, value, how } => self.set_xattr(*node, name, value, *how)?,
            Change::RemoveXattr { node, name } => {
                let removed = self.alter(*node, |node| node.xattrs.remove(name))?;
                removed.ok_or(system(Errno::ENODATA))?;
                self.result(*node, [])?
            }
            Change::Allocate { node, range, how } => self.allocate(*node, *range, *how)?,
            Change::CopyRange { from, range, to, offset } => {
                let bytes = regular(self.node(*from)?)?.read(range.offset, range.len);
                return self.put(*to, WriteAt::Offset(*offset), &bytes, boot).map(Reply::Written);
            }
            Change::WriteKnown { node, offset, chunks, .. } => {
                return self.write_known(*node, *offset, chunks, boot);
            }
        };
        Ok(Reply::Changed(changed))
    }

    /// Writes content.
    pub(super) fn write(
        &mut self,
        request: &WriteRequest,
        bytes: &[u8],
        boot: BootId,
    ) -> Result<Written, WireError> {
        let is_sound = bytes.len() as u64 <= WriteRequest::bytes_max(request.at)
            && bytes.len() == request.len as usize
            && request.at.proof(bytes).hash == request.hash;
        if !is_sound {
            return Err(WireError::new(ErrorCode::Malformed, "a write whose bytes are not what it says"));
        }
        self.put(request.node, request.at, bytes, boot)
    }

    pub(super) fn put(
        &mut self,
        id: NodeId,
        at: WriteAt,
        bytes: &[u8],
        boot: BootId,
    ) -> Result<Written, WireError> {
        let offset = match at {
            WriteAt::Offset(offset) | WriteAt::Behind { offset, .. } => offset,
            WriteAt::End { .. } => regular(self.node(id)?)?.size(),
        };
        self.alter_content(id, |content| content.write(offset, bytes))?;
        let attributes = self.get_attributes(id)?;
        Ok(Written { offset, len: bytes.len() as u64, attributes, boot })
    }

    fn make(
        &mut self,
        parent: NodeId,
        name: &[u8],
        body: Body,
        permissions: u16,
    ) -> Result<Changed, WireError> {
        if self.child(parent, name)?.is_some() {
            return Err(system(Errno::EEXIST));
        }
        let id = self.add(body, 0);
        if let Some(node) = self.nodes.get_mut(&id) {
            node.permissions = permissions;
        }
        self.name(parent, name, id);
        self.see(parent, name, id);
        self.result(id, [parent])
    }

    fn open_existing(
        &mut self,
        parent: NodeId,
        name: &[u8],
        (open, access): (Opener, OpenAccess),
        truncate: bool,
    ) -> Result<Changed, WireError> {
        let id = self.child(parent, name)?.ok_or(system(Errno::ENOENT))?;
        self.see(parent, name, id);
        regular(self.node(id)?)?;
        self.permitted(id, u8::from(access.reads) * 4 + u8::from(access.writes) * 2)?;
        if truncate && access.writes {
            self.alter_content(id, |content| content.truncate(0))?;
        }
        self.set_open(id, open, true);
        self.result(id, [parent])
    }

    fn link_node(
        &mut self,
        client: u64,
        id: NodeId,
        seen_as: Option<&(NodeId, Vec<u8>)>,
        parent: NodeId,
        name: &[u8],
    ) -> Result<Changed, WireError> {
        let found = self.found(client, id).map(drop);
        let is_there = found.is_ok() && self.node(id)?.links > 0;
        let id = match seen_as {
            Some((folder, seen)) if !is_there => self.child(*folder, seen)?.ok_or(system(Errno::ENOENT))?,
            // After a restart the client is to look the node up again; without a name left it is gone.
            _ if !is_there => return Err(found.err().unwrap_or(system(Errno::ENOENT))),
            _ => id,
        };
        self.see(parent, name, id);
        if self.node(id)?.body.kind() == FileKind::Directory {
            return Err(system(Errno::EPERM));
        }
        if self.child(parent, name)?.is_some() {
            return Err(system(Errno::EEXIST));
        }
        self.name(parent, name, id);
        self.result(id, [parent])
    }

    fn remove(&mut self, parent: NodeId, name: &[u8], directory: bool) -> Result<Changed, WireError> {
        let id = self.child(parent, name)?.ok_or(system(Errno::ENOENT))?;
        match (self.entries(id), directory) {
            (Some(_), false) => return Err(system(Errno::EISDIR)),
            (None, true) => return Err(system(Errno::ENOTDIR)),
            (Some(entries), true) if !entries.is_empty() => return Err(system(Errno::ENOTEMPTY)),
            _ => {}
        }
        self.entries_mut(parent).remove(name);
        self.lost_a_name(parent, id);
        Ok(Changed { node: self.attributes(id), others: self.attributes(parent).into_iter().collect() })
    }

    fn rename_entry(
        &mut self,
        (from, from_name): (NodeId, &[u8]),
        (to, to_name): (NodeId, &[u8]),
        how: RenameHow,
    ) -> Result<Changed, WireError> {
        let id = self.child(from, from_name)?.ok_or(system(Errno::ENOENT))?;
        let there = self.child(to, to_name)?;
        // The answer contains them.
        self.known.extend(there);
        self.known.insert(id);
        let is_directory = self.entries(id).is_some();
        let swaps_with_parent = |there| how == RenameHow::Exchange && self.lies_below(from, there);
        if self.lies_below(to, id) || there.is_some_and(swaps_with_parent) {
            return Err(system(Errno::EINVAL));
        }
        match (how, there) {
            (RenameHow::NoReplace, Some(_)) => return Err(system(Errno::EEXIST)),
            (RenameHow::Exchange, None) => return Err(system(Errno::ENOENT)),
            (RenameHow::Replace, Some(there)) if there == id => return self.result(id, [from, to, there]),
            (RenameHow::Replace, Some(there)) => match (is_directory, self.entries(there)) {
                (true, None) => return Err(system(Errno::ENOTDIR)),
                (false, Some(_)) => return Err(system(Errno::EISDIR)),
                (true, Some(entries)) if !entries.is_empty() => return Err(system(Errno::ENOTEMPTY)),
                _ => {}
            },
            _ => {}
        }
        if let (RenameHow::Exchange, Some(there)) = (how, there) {
            self.entries_mut(from).insert(from_name.to_vec(), there);
            self.entries_mut(to).insert(to_name.to_vec(), id);
            for changed in [from, to, id, there] {
                self.alter(changed, |_| ())?;
            }
        } else {
            self.name(to, to_name, id);
            self.entries_mut(from).remove(from_name);
            self.lost_a_name(from, id);
        }
        self.see(to, to_name, id);
        if let Some(there) = there.filter(|_| how == RenameHow::Exchange) {
            self.see(from, from_name, there);
        }
        let others = [Some(from), Some(to), there].into_iter().flatten();
        Ok(Changed {
            node: self.attributes(id),
            others: others.filter_map(|other| self.attributes(other)).collect(),
        })
    }

    fn set_attributes(&mut self, id: NodeId, set: &SetAttributes) -> Result<Changed, WireError> {
        if let Some(size) = set.size {
            self.alter_content(id, |content| content.truncate(size))?;
        }
        let now = self.now();
        let time = |time: SetTime| match time {
            SetTime::Now => now,
            SetTime::At(time) => time,
        };
        self.alter(id, |node| {
            node.permissions = set.permissions.unwrap_or(node.permissions);
            node.owner = (set.uid.unwrap_or(node.owner.0), set.gid.unwrap_or(node.owner.1));
            node.mtime = set.mtime.map_or(node.mtime, time);
            node.atime = set.atime.map(time).or(node.atime);
        })?;
        self.result(id, [])
    }

    fn set_xattr(
        &mut self,
        id: NodeId,
        name: &[u8],
        value: &[u8],
        how: XattrHow,
    ) -> Result<Changed, WireError> {
        let is_there = self.node(id)?.xattrs.contains_key(name);
        match how {
            XattrHow::Create if is_there => return Err(system(Errno::EEXIST)),
            XattrHow::Replace if !is_there => return Err(system(Errno::ENODATA)),
            _ => {}
        }
        self.alter(id, |node| node.xattrs.insert(name.to_vec(), value.to_vec()))?;
        self.result(id, [])
    }

    fn allocate(&mut self, id: NodeId, range: ByteRange, how: AllocateHow) -> Result<Changed, WireError> {
        let size = regular(self.node(id)?)?.size();
        let grown = size.max(range.end());
        self.alter_content(id, |content| match how {
            AllocateHow::Grow => content.truncate(grown),
            AllocateHow::PunchHole | AllocateHow::ZeroKeepSize => {
                content.write(range.offset, &vec![0; range.clamp_to(size).len as usize]);
            }
            AllocateHow::Zero => {
                content.write(range.offset, &vec![0; range.len as usize]);
            }
            AllocateHow::KeepSize | AllocateHow::Collapse | AllocateHow::Insert => {}
        })?;
        if matches!(how, AllocateHow::Collapse | AllocateHow::Insert) {
            return Err(system(Errno::EOPNOTSUPP));
        }
        self.result(id, [])
    }

    /// Changes content and updates both times.
    fn alter_content(&mut self, id: NodeId, change: impl FnOnce(&mut Content)) -> Result<(), WireError> {
        regular(self.node(id)?)?;
        self.change_file(id, change).map_err(system)
    }

    /// Changes a node and updates its `ctime`.
    fn alter<T>(&mut self, id: NodeId, change: impl FnOnce(&mut Node) -> T) -> Result<T, WireError> {
        self.node(id)?;
        let stamp = self.tick();
        let node = self.nodes.get_mut(&id).ok_or(system(Errno::ESTALE))?;
        node.ctime = stamp;
        Ok(change(node))
    }

    pub(super) fn child(&self, parent: NodeId, name: &[u8]) -> Result<Option<NodeId>, WireError> {
        self.node(parent)?;
        let entries = self.entries(parent).ok_or(system(Errno::ENOTDIR))?;
        if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') {
            return Err(WireError::new(ErrorCode::Malformed, "not one name of a directory entry"));
        }
        if name.len() > NAME_BYTES_MAX {
            return Err(system(Errno::ENAMETOOLONG));
        }
        Ok(entries.get(name).copied())
    }

    /// Returns true if `id` is `top` or lies below it.
    fn lies_below(&self, id: NodeId, top: NodeId) -> bool {
        id == top
            || self
                .entries(top)
                .is_some_and(|entries| entries.values().any(|&below| self.lies_below(id, below)))
    }

    fn result<const N: usize>(&self, id: NodeId, others: [NodeId; N]) -> Result<Changed, WireError> {
        let node: Attributes = self.get_attributes(id)?;
        let others = others.iter().filter_map(|other| self.attributes(*other)).collect();
        Ok(Changed { node: Some(node), others })
    }
}
