//! Taking names away and moving them.

use std::os::fd::AsFd;

use nix::errno::Errno as SystemErrno;
use nix::fcntl::{RenameFlags, renameat2};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::{Changer, Done, cannot_tell, changed, errno, folder_now, hold_entry, now};
use crate::host::tree::check_name;
use crate::proto::{NodeId, RenameHow, WireError};

impl Changer<'_> {
    pub(super) fn remove(
        &self,
        parent: NodeId,
        name: &[u8],
        directory: bool,
        expected: Option<NodeId>,
    ) -> Result<Done, WireError> {
        let c_name = check_name(name)?;
        let folder = self.folder(parent)?;
        let there = hold_entry(&folder, &c_name);
        if !self.is_certain() {
            match &there {
                // It was done, or somebody else did the same.
                Err(SystemErrno::ENOENT) => return Ok(changed(None, [folder_now(&folder)])),
                Ok(there) if now(there).map(|found| found.node) == expected && expected.is_some() => {}
                _ => return cannot_tell("something else bears the name now"),
            }
        }
        let how = if directory { UnlinkatFlags::RemoveDir } else { UnlinkatFlags::NoRemoveDir };
        errno(unlinkat(folder.file.as_fd(), c_name.as_c_str(), how))?;
        let gone = there.ok().and_then(|there| now(&there));
        if let Some(gone) = gone.filter(|gone| gone.links == 0) {
            self.session.tree.release(gone.node);
        }
        Ok(changed(gone, [folder_now(&folder)]))
    }

    pub(super) fn rename(
        &self,
        from: (NodeId, &[u8]),
        to: (NodeId, &[u8]),
        how: RenameHow,
        expected: Option<NodeId>,
    ) -> Result<Done, WireError> {
        let (from_name, to_name) = (check_name(from.1)?, check_name(to.1)?);
        let (from_folder, to_folder) = (self.folder(from.0)?, self.folder(to.0)?);
        let moved = hold_entry(&from_folder, &from_name);
        let replaced = hold_entry(&to_folder, &to_name).ok();
        let node_of = |fd| now(fd).map(|found| found.node);
        if !self.is_certain() && (expected.is_none() || moved.as_ref().ok().and_then(node_of) != expected) {
            if expected.is_some() && replaced.as_ref().and_then(node_of) == expected {
                let others = [folder_now(&from_folder), folder_now(&to_folder)];
                return Ok(changed(replaced.as_ref().and_then(now), others));
            }
            return cannot_tell("another file bears the old name, or none");
        }
        let flags = match how {
            RenameHow::Replace => RenameFlags::empty(),
            RenameHow::NoReplace => RenameFlags::RENAME_NOREPLACE,
            RenameHow::Exchange => RenameFlags::RENAME_EXCHANGE,
        };
        errno(renameat2(
            from_folder.file.as_fd(),
            from_name.as_c_str(),
            to_folder.file.as_fd(),
            to_name.as_c_str(),
            flags,
        ))?;
        let (moved, replaced) = (moved.ok().as_ref().and_then(now), replaced.as_ref().and_then(now));
        if let Some(moved) = moved {
            self.session.tree.record(to.0, [(moved.node, to.1)]);
        }
        if let Some(replaced) = replaced.filter(|_| how == RenameHow::Exchange) {
            self.session.tree.record(from.0, [(replaced.node, from.1)]);
        }
        let others = [folder_now(&from_folder), folder_now(&to_folder), replaced];
        Ok(changed(moved, others))
    }
}
