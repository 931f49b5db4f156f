//! What processes of the host do: at once, and known to be done.

use wormhole::fs::FsError;
use wormhole::proto::{FileKind, NodeId};

use super::scene::{NAMES, Path, Scene};
use super::tree::{Id, Name, Op, ROOT, Tag};
use super::worlds::Seen;

/// What such a process does; all files are read at once.
#[derive(Debug, Clone)]
pub(super) enum Local {
    Read,
    Create { path: Path },
    Write { path: Path, at: usize, units: usize },
    Append { path: Path, units: usize },
    Truncate { path: Path, units: usize },
    Remove { path: Path },
    Rename { from: Path, to: Path },
    MakeDir { path: Path },
    Link { from: Path, to: Path },
}

impl Scene {
    /// Does it, if that can be done, and if everything that it concerns is known.
    pub(super) fn act(&self, act: &Local) {
        // What cannot be done is left.
        let _ = self.try_to_act(act);
    }

    fn try_to_act(&self, act: &Local) -> Option<()> {
        match *act {
            Local::Read => self.read_all_locally(),
            Local::Create { path } => {
                let (parent, name) = self.free_place(path)?;
                let make = |new| Op::Create { new, parent, name, exclusive: true, truncate: false };
                self.make(make, || self.host.replace(path.text(), ""));
            }
            Local::MakeDir { path } => {
                let (parent, name) = self.free_place(path)?;
                let make = |new| Op::MakeDir { new, parent, name };
                self.make(make, || self.host.create_dir(path.text()));
            }
            Local::Write { path, at, units } => {
                let (node, tag) = (self.file_at(path)?, self.next_tag());
                let bytes = vec![tag; units * self.rules.unit_bytes];
                self.done(Op::Write { node, at, units, tag }, || {
                    self.host.write(path.text(), self.offset(at), bytes);
                });
            }
            Local::Append { path, units } => {
                let (node, tag) = (self.file_at(path)?, self.next_tag());
                let bytes = vec![tag; units * self.rules.unit_bytes];
                self.done(Op::Append { node, units, tag }, || self.host.append(path.text(), bytes));
            }
            Local::Truncate { path, units } => {
                let node = self.file_at(path)?;
                self.done(Op::Truncate { node, units }, || {
                    self.host.truncate(path.text(), self.offset(units));
                });
            }
            Local::Remove { path } => {
                self.file_at(path)?;
                let (parent, name) = self.place(path)?;
                let remove = Op::Remove { parent, name, directory: false };
                self.done(remove, || self.host.unlink(path.text()));
            }
            Local::Rename { from, to } => self.rename_locally(from, to)?,
            Local::Link { from, to } => {
                let node = self.file_at(from)?;
                let (parent, name) = self.free_place(to)?;
                self.done(Op::Link { node, parent, name }, || {
                    self.host.create_hard_link(from.text(), to.text());
                });
            }
        }
        Some(())
    }

    fn read_all_locally(&self) {
        let folders = [None, Some(0), Some(1)].into_iter();
        let all = folders.flat_map(|folder| (0..NAMES.len() as Name).map(move |name| Path { folder, name }));
        for path in all {
            // What is no file is left.
            let _ = self.read_locally(path);
        }
    }

    /// What the host has is so, whatever copies there are of it.
    pub(super) fn read_locally(&self, path: Path) -> Option<()> {
        let node = self.file_at(path)?;
        let tags = self.tags(&self.host.content(path.text()));
        let mut state = self.state();
        let read = state.worlds.begin(Op::Read { node, at: 0, units: usize::MAX }, Vec::new());
        state.worlds.end(read, &Seen::Tags(tags));
        Some(())
    }

    /// Files over files and to free names; directories to free names of the root.
    fn rename_locally(&self, from: Path, to: Path) -> Option<()> {
        let (moved, there) = (self.kind_at(from)?, self.kind_at(to));
        let may_be = match moved {
            FileKind::Directory => there.is_none() && to.folder.is_none(),
            _ => there != Some(FileKind::Directory),
        };
        let (from_place, to_place) = (self.place(from)?, self.place(to)?);
        if may_be {
            let how = wormhole::proto::RenameHow::Replace;
            self.done(Op::Rename { from: from_place, to: to_place, how }, || {
                self.host.rename(from.text(), to.text());
            });
        }
        Some(())
    }

    fn done(&self, op: Op, act: impl FnOnce()) {
        let op = self.begin(op, Vec::new());
        act();
        self.end(op, Ok::<_, FsError>(Seen::Done));
    }

    fn make(&self, op: impl FnOnce(Id) -> Op, act: impl FnOnce() -> NodeId) {
        let op = self.begin_making(op);
        let node = act();
        self.end_at(op, Ok::<_, FsError>(node));
    }

    fn next_tag(&self) -> Tag {
        let mut state = self.state();
        state.last_tag += 1;
        state.last_tag
    }

    pub(super) fn kind_at(&self, path: Path) -> Option<FileKind> {
        self.host.node_at(path.text()).map(|_| self.host.attributes_of(path.text()).kind)
    }

    /// The file that a path names.
    pub(super) fn file_at(&self, path: Path) -> Option<Id> {
        let is_file = self.kind_at(path)? == FileKind::Regular;
        let id = self.state().ids.get(&self.host.node_at(path.text())?).copied();
        id.filter(|_| is_file)
    }

    /// The directory of a path, and the name in it.
    fn place(&self, path: Path) -> Option<(Id, Name)> {
        let Some(folder) = path.folder_name() else { return Some((ROOT, path.name)) };
        let folder = Path { folder: None, name: folder };
        let is_folder = self.kind_at(folder)? == FileKind::Directory;
        let id = self.state().ids.get(&self.host.node_at(folder.text())?).copied();
        id.filter(|_| is_folder).map(|id| (id, path.name))
    }

    fn free_place(&self, path: Path) -> Option<(Id, Name)> {
        self.place(path).filter(|_| self.host.node_at(path.text()).is_none())
    }
}
