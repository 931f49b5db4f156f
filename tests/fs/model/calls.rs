//! What programs do on the mounts, each call checked when it ends.

use std::collections::BTreeSet;

use wormhole::chunk::CHUNK_BYTES;
use wormhole::fs::{CreateRequest, DirectoryItem, FsError, Inode, Made, WriteHow};
use wormhole::proto::{Caller, Errno, FileKind, RenameHow, SetAttributes};

use super::scene::{Handle, NAMES, Path, Queued, Scene};
use super::tree::{Id, Name, Op, Tag};
use super::worlds::{OpId, Seen};
use crate::fs::changing::{WRITE, create};

/// A system call by path.
#[derive(Debug, Clone)]
pub(super) enum Call {
    Create { path: Path, exclusive: bool, truncate: bool },
    Open { path: Path },
    Lookup { path: Path },
    List { folder: Option<usize> },
    MakeDir { path: Path },
    Remove { path: Path, directory: bool },
    Rename { from: Path, to: Path, how: RenameHow },
    Link { from: Path, to: Path },
}

/// One on an open file.
#[derive(Debug, Clone)]
pub(super) enum FileCall {
    Write { at: usize, units: usize },
    Append { units: usize },
    Truncate { units: usize },
    Read { at: usize, units: usize },
    Size,
    Sync,
    Flush,
}

const fn bytes_of(name: Name) -> &'static [u8] {
    NAMES[name as usize].as_bytes()
}

impl Scene {
    /// Makes a call; what it opened.
    pub(super) async fn call(&self, mount: usize, call: Call) -> Option<Handle> {
        match call {
            Call::Create { path, exclusive, truncate } => {
                return self.create(mount, path, exclusive, truncate).await;
            }
            Call::Open { path } => return self.open(mount, path).await,
            Call::Lookup { path } => {
                self.walk(mount, path).await;
            }
            Call::List { folder } => self.list(mount, folder).await,
            Call::MakeDir { path } => self.make_dir(mount, path).await,
            Call::Remove { path, directory } => self.remove(mount, path, directory).await,
            Call::Rename { from, to, how } => self.rename(mount, from, to, how).await,
            Call::Link { from, to } => self.link(mount, from, to).await,
        }
        None
    }

    async fn create(&self, mount: usize, path: Path, exclusive: bool, truncate: bool) -> Option<Handle> {
        let (inode, parent) = self.parent(mount, path).await?;
        let op = self.begin_making(|new| Op::Create { new, parent, name: path.name, exclusive, truncate });
        let fs = &self.mounts[mount].fs;
        let request = CreateRequest { truncate, ..create(exclusive) };
        let created = fs.create(inode, bytes_of(path.name), request).await;
        let found = created.as_ref().ok().copied();
        let id = self.end_at(op, created.map(|(entry, _)| entry.attributes.node));
        let (entry, opened) = found?;
        let Some(id) = id else {
            // Whose it is will turn out.
            fs.release(opened.handle).await.unwrap();
            return None;
        };
        let node = entry.attributes.node;
        Some(Handle { number: opened.handle, inode: entry.inode, node, id, from_content: 0 })
    }

    async fn open(&self, mount: usize, path: Path) -> Option<Handle> {
        let quiet = |scene: &Self| {
            let state = scene.state();
            let under_way = state.worlds.changes_under_way();
            (!under_way && state.breaks == 0 && !state.is_hindered)
                .then_some((state.changes, state.hindrances))
        };
        let before = quiet(self);
        let (entry, id) = self.walk(mount, path).await?;
        if entry.attributes.kind != FileKind::Regular {
            return None;
        }
        let node = entry.attributes.node;
        let (from_content, hindrances) = (self.newest_content(node), self.state().hindrances);
        let was_hindered = self.state().is_hindered;
        match self.mounts[mount].fs.open(entry.inode, WRITE).await {
            Ok(opened) => {
                // A host that is away may be stood in for by copies.
                let by_copy =
                    self.rules.keeps_copies && (was_hindered || self.state().hindrances != hindrances);
                if by_copy {
                    self.state().breaks_off();
                }
                let from_content = if by_copy { 0 } else { from_content };
                Some(Handle { number: opened.handle, inode: entry.inode, node, id, from_content })
            }
            Err(error) => {
                assert!(matches!(error.errno(), Errno::ESTALE | Errno::ENOENT), "{error} by an open");
                assert!(
                    before.is_none() || before != quiet(self) || self.rules.keeps_copies,
                    "{error} by an open while nothing changed"
                );
                None
            }
        }
    }

    async fn list(&self, mount: usize, folder: Option<usize>) {
        let path = Path { folder, name: 0 };
        let Some((inode, parent)) = self.parent(mount, path).await else { return };
        let look = self.look(Op::List { parent }, Vec::new());
        let names = self.names(mount, inode).await;
        self.end_look(look, names.map(Seen::Names));
    }

    async fn names(&self, mount: usize, inode: Inode) -> Result<BTreeSet<Name>, FsError> {
        let fs = &self.mounts[mount].fs;
        let handle = fs.opendir(inode)?;
        let (mut names, mut next, mut read) = (BTreeSet::new(), 0, Ok(()));
        loop {
            let before = next;
            let take = |item: &DirectoryItem<'_>| {
                let known = NAMES.iter().position(|name| name.as_bytes() == item.name);
                names.extend(known.map(|at| at as Name));
                next = item.next_offset;
                true
            };
            read = read.and(fs.readdir(handle, before, false, take).await);
            if next == before || read.is_err() {
                break;
            }
        }
        fs.releasedir(handle)?;
        read.map(|()| names)
    }

    async fn make_dir(&self, mount: usize, path: Path) {
        let Some((inode, parent)) = self.parent(mount, path).await else { return };
        let op = self.begin_making(|new| Op::MakeDir { new, parent, name: path.name });
        let (name, what) = (bytes_of(path.name), Made::Directory);
        let made = self.mounts[mount].fs.make(inode, name, &what, 0o777, Caller::default()).await;
        self.end_at(op, made.map(|entry| entry.attributes.node));
    }

    async fn remove(&self, mount: usize, path: Path, directory: bool) {
        let Some((inode, parent)) = self.parent(mount, path).await else { return };
        let op = self.begin(Op::Remove { parent, name: path.name, directory }, Vec::new());
        let removed = self.mounts[mount].fs.remove(inode, bytes_of(path.name), directory).await;
        self.end(op, removed.map(|()| Seen::Done));
    }

    async fn rename(&self, mount: usize, from: Path, to: Path, how: RenameHow) {
        let Some((from_inode, from_parent)) = self.parent(mount, from).await else { return };
        let Some((to_inode, to_parent)) = self.parent(mount, to).await else { return };
        // As the kernel does. Who finds the file under its new name finds in it what was written here before.
        let Some((_, id)) = self.lookup(mount, (from_inode, from_parent), from.name).await else { return };
        let (from, to) = ((from_parent, from.name), (to_parent, to.name));
        let op = self.begin(Op::Rename { from, to, how }, self.own_ops(mount, id));
        let renamed = self.mounts[mount]
            .fs
            .rename((from_inode, bytes_of(from.1)), (to_inode, bytes_of(to.1)), how)
            .await;
        self.end(op, renamed.map(|()| Seen::Done));
    }

    async fn link(&self, mount: usize, from: Path, to: Path) {
        let Some((entry, node)) = self.walk(mount, from).await else { return };
        let Some((inode, parent)) = self.parent(mount, to).await else { return };
        let op = self.begin(Op::Link { node, parent, name: to.name }, self.own_ops(mount, node));
        let linked = self.mounts[mount].fs.link(entry.inode, inode, bytes_of(to.name)).await;
        self.end(op, linked.map(|_| Seen::Done));
    }

    /// Makes a call on an open file.
    pub(super) async fn file_call(&self, mount: usize, file: &Handle, call: FileCall) {
        let own = self.own(mount, file.id);
        let own_ops = || own.iter().map(|queued| queued.op).collect();
        let (world, fs) = (&self.mounts[mount], &self.mounts[mount].fs);
        match call {
            FileCall::Write { at, units } => self.write(mount, file, Some(at), units).await,
            FileCall::Append { units } => self.write(mount, file, None, units).await,
            FileCall::Truncate { units } => {
                let op = self.begin(Op::Truncate { node: file.id, units }, own_ops());
                let set = SetAttributes { size: Some(self.offset(units)), ..SetAttributes::default() };
                let done = fs.setattr(file.inode, set).await;
                self.end(op, done.map(|_| Seen::Done));
            }
            FileCall::Read { at, units } => self.read(mount, file, (at, units), own).await,
            FileCall::Size => {
                let is_lost = !own.is_empty() && self.state().breaks > 0;
                if is_lost || own.iter().any(|queued| queued.place.is_none()) {
                    // Where the end will be nobody knows.
                    return;
                }
                let look = self.look(Op::Size { node: file.id }, Vec::new());
                let seen = fs.getattr(file.inode).await.map(|(attributes, _)| {
                    let unsent = self.own(mount, file.id).into_iter().chain(own);
                    let unsent = unsent.map(|queued| (queued.op, queued.place.map_or(0, |place| place.1)));
                    let units = attributes.size as usize / self.rules.unit_bytes;
                    assert_eq!(self.offset(units), attributes.size, "a part of a unit");
                    Seen::Size { units, unsent: unsent.collect() }
                });
                self.end_look(look, seen);
            }
            FileCall::Sync => self.written(mount, file, own, world.fs.fsync(file.number, false).await),
            FileCall::Flush => self.written(mount, file, own, world.fs.flush(file.number).await),
        }
    }

    async fn write(&self, mount: usize, file: &Handle, at: Option<usize>, units: usize) {
        let tag = {
            let mut state = self.state();
            state.last_tag += 1;
            state.last_tag
        };
        let node = file.id;
        let ops: Vec<_> = match at {
            // What lies in two chunks goes in two parts, and one of them can be seen without the other.
            Some(at) => {
                let parts = self.parts(at, units).into_iter();
                parts.map(|(at, end)| self.queue((mount, node), Some((at, end)), tag, end - at)).collect()
            }
            None => vec![self.queue((mount, node), None, tag, units)],
        };
        let bytes = vec![tag; units * self.rules.unit_bytes];
        let how = WriteHow { appends: at.is_none(), ..WriteHow::default() };
        let fs = &self.mounts[mount].fs;
        let written = match fs.write_now(file.number, self.offset(at.unwrap_or(0)), &bytes, how) {
            Some(written) => written,
            None => fs.write(file.number, self.offset(at.unwrap_or(0)), bytes.into(), how).await,
        };
        if let Err(error) = written {
            let mut state = self.state();
            assert!(state.may_be_lost(&error), "{error} by a write");
            for op in ops {
                state.queued.entry((mount, node)).or_default().retain(|queued| queued.op != op);
                state.worlds.give_up(op);
            }
        }
    }

    /// A write is on its way, behind those of which it must not go ahead.
    fn queue(&self, key: (usize, Id), place: Option<(usize, usize)>, tag: Tag, units: usize) -> OpId {
        let meets = |queued: &Queued| match (queued.place, place) {
            (Some(one), Some(other)) => one.0 < other.1 && other.0 < one.1,
            _ => true,
        };
        let after = self.own(key.0, key.1).into_iter().filter(meets).map(|queued| queued.op).collect();
        let op = match place {
            Some((at, _)) => Op::Write { node: key.1, at, units, tag },
            None => Op::Append { node: key.1, units, tag },
        };
        let op = self.begin(op, after);
        self.state().queued.entry(key).or_default().push(Queued { op, place, tag, may_be_lost: false });
        op
    }

    fn parts(&self, at: usize, units: usize) -> Vec<(usize, usize)> {
        let chunk_units = (CHUNK_BYTES as usize / self.rules.unit_bytes).max(1);
        let end = at + units;
        let border = at.next_multiple_of(chunk_units);
        if at < border && border < end { vec![(at, border), (border, end)] } else { vec![(at, end)] }
    }

    async fn read(&self, mount: usize, file: &Handle, (at, units): (usize, usize), own: Vec<Queued>) {
        let after = own.iter().map(|queued| queued.op).collect();
        let look = self.look(Op::Read { node: file.id, at, units }, after);
        let floor = self.state().floors.get(&(mount, file.id)).copied().unwrap_or(0);
        let read = self.mounts[mount].read(file.number, self.offset(at), self.offset(units)).await;
        let seen = read.map(|bytes| {
            let first = file.from_content.max(floor).max(self.own_contents(file, &own));
            self.check_whole(file, first, (at, units), &bytes);
            Seen::Tags(self.tags(&bytes))
        });
        self.end_look(look, seen);
    }

    /// The first recorded content that has all of some writes.
    fn own_contents(&self, file: &Handle, own: &[Queued]) -> usize {
        let has = |queued: &Queued| {
            let (at, _) = queued.place?;
            let (at, count) = (self.offset(at), self.host.recorded_contents(file.node));
            (0..count).find(|number| {
                let byte = self.host.recorded_content(file.node, *number, at, 1);
                byte.is_some_and(|byte| byte == [queued.tag])
            })
        };
        own.iter().filter_map(has).max().unwrap_or(0)
    }

    /// What was read in one call was all of it in the file at one moment, not before the file had content number `first`.
    fn check_whole(&self, file: &Handle, first: usize, (at, units): (usize, usize), bytes: &[u8]) {
        let count = self.host.recorded_contents(file.node);
        let is_it = |number: &usize| {
            let (offset, len) = (self.offset(at), self.offset(units));
            let content = self.host.recorded_content(file.node, *number, offset, len);
            content.is_some_and(|content| content == bytes)
        };
        assert!(
            count == 0 || (first..count).any(|number| is_it(&number)),
            "{:?} from unit {at} on was not in file {} since its content number {first} of {count}",
            self.tags(bytes),
            file.id
        );
    }

    /// Somebody was told that the writes are over.
    pub(super) fn written(&self, mount: usize, file: &Handle, own: Vec<Queued>, told: Result<(), FsError>) {
        let floor = self.own_contents(file, &own);
        let mut state = self.state();
        let key = (mount, file.id);
        let is_lost = told.is_err();
        if let Err(error) = told {
            assert!(state.may_be_lost(&error), "{error} by a sync or a close");
            // Also of those that were made after it had begun; who tells next may say nothing of them any more.
            state.queued.entry(key).or_default().iter_mut().for_each(|queued| queued.may_be_lost = true);
        }
        let known = state.floors.entry(key).or_default();
        *known = floor.max(*known);
        for Queued { op, .. } in own {
            let queued = state.queued.entry(key).or_default();
            // If it is not there somebody else was told first.
            let Some(at) = queued.iter().position(|queued| queued.op == op) else { continue };
            let may_be_lost = queued.remove(at).may_be_lost;
            if is_lost || may_be_lost {
                state.worlds.give_up(op);
            } else {
                state.worlds.end(op, &Seen::Done);
            }
        }
    }

    /// Closes a file that nothing is under way on.
    pub(super) async fn close(&self, mount: usize, file: Handle) {
        self.file_call(mount, &file, FileCall::Flush).await;
        self.mounts[mount].fs.release(file.number).await.unwrap();
    }
}
