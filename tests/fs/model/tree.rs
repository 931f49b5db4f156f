//! (P) The slow twin of a host: names and files, and what each operation makes of them and answers.

use std::collections::{BTreeMap, BTreeSet};

use wormhole::proto::{Errno, RenameHow};

/// A file or directory of the model; 0 is the root.
pub(super) type Id = u32;

/// A name, by its place in a short list.
pub(super) type Name = u8;

/// What fills one unit of a file: the number of a write, or 0 for a hole.
pub(super) type Tag = u8;

/// The root of the model.
pub(super) const ROOT: Id = 0;

/// What somebody does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Op {
    Create { new: Id, parent: Id, name: Name, exclusive: bool, truncate: bool },
    MakeDir { new: Id, parent: Id, name: Name },
    Link { node: Id, parent: Id, name: Name },
    Remove { parent: Id, name: Name, directory: bool },
    Rename { from: (Id, Name), to: (Id, Name), how: RenameHow },
    Truncate { node: Id, units: usize },
    Write { node: Id, at: usize, units: usize, tag: Tag },
    Append { node: Id, units: usize, tag: Tag },
    Lookup { parent: Id, name: Name },
    List { parent: Id },
    Read { node: Id, at: usize, units: usize },
    Size { node: Id },
}

/// What it comes to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Outcome {
    Done,
    Node(Id),
    Absent,
    Names(BTreeSet<Name>),
    Tags(Vec<Tag>),
    Size(usize),
    Error(i32),
    /// Of a file or directory that has no name any more; done nevertheless where somebody has it open.
    Nameless(Box<Self>),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Node {
    File(Vec<Tag>),
    Dir(BTreeMap<Name, Id>),
}

/// How everything is at one moment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Tree {
    nodes: BTreeMap<Id, Node>,
}

type Answer = Result<Outcome, Errno>;

impl Op {
    /// Whether it puts something into a file.
    pub(super) const fn writes(&self) -> bool {
        matches!(self, Self::Write { .. } | Self::Append { .. })
    }

    /// Whether it changes nothing.
    pub(super) const fn only_looks(&self) -> bool {
        matches!(self, Self::Lookup { .. } | Self::List { .. } | Self::Read { .. } | Self::Size { .. })
    }
}

impl Outcome {
    /// The node that it led to.
    pub(super) fn node(&self) -> Option<Id> {
        match self {
            Self::Node(id) => Some(*id),
            Self::Nameless(outcome) => outcome.node(),
            _ => None,
        }
    }
}

impl Tree {
    pub(super) fn new() -> Self {
        Self { nodes: BTreeMap::from([(ROOT, Node::Dir(BTreeMap::new()))]) }
    }

    /// Does it.
    pub(super) fn apply(&mut self, op: &Op) -> Outcome {
        let nameless = self.concerns_nameless(op);
        let outcome = self.answer(op).unwrap_or_else(|errno| Outcome::Error(errno.0));
        if nameless { Outcome::Nameless(Box::new(outcome)) } else { outcome }
    }

    fn answer(&mut self, op: &Op) -> Answer {
        match op {
            Op::Create { new, parent, name, exclusive, truncate } => {
                self.create(*new, (*parent, *name), *exclusive, *truncate)
            }
            Op::MakeDir { new, parent, name } => {
                self.free(*parent, *name)?;
                self.add(*new, Node::Dir(BTreeMap::new()), (*parent, *name))
            }
            Op::Link { node, parent, name } => {
                if matches!(self.nodes[node], Node::Dir(_)) {
                    return Err(Errno::EPERM);
                }
                self.free(*parent, *name)?;
                self.entries(*parent)?.insert(*name, *node);
                Ok(Outcome::Done)
            }
            Op::Remove { parent, name, directory } => self.remove((*parent, *name), *directory),
            Op::Rename { from, to, how } => self.rename(*from, *to, *how),
            Op::Truncate { node, units } => self.change(*node, |file| file.resize(*units, 0)),
            Op::Write { node, at, units, tag } => self.change(*node, |file| put(file, *at, *units, *tag)),
            Op::Append { node, units, tag } => self.change(*node, |file| put(file, file.len(), *units, *tag)),
            Op::Lookup { parent, name } => {
                let found = self.entries(*parent)?.get(name).copied();
                Ok(found.map_or(Outcome::Absent, Outcome::Node))
            }
            Op::List { parent } => Ok(Outcome::Names(self.entries(*parent)?.keys().copied().collect())),
            Op::Read { node, at, units } => {
                let file = self.file(*node)?;
                Ok(Outcome::Tags(file.iter().skip(*at).take(*units).copied().collect()))
            }
            Op::Size { node } => Ok(Outcome::Size(self.file(*node)?.len())),
        }
    }

    fn create(&mut self, new: Id, (parent, name): (Id, Name), exclusive: bool, truncate: bool) -> Answer {
        let Some(&there) = self.entries(parent)?.get(&name) else {
            return self.add(new, Node::File(Vec::new()), (parent, name));
        };
        if exclusive {
            return Err(Errno::EEXIST);
        }
        let file = self.file(there)?;
        if truncate {
            file.clear();
        }
        Ok(Outcome::Node(there))
    }

    fn remove(&mut self, (parent, name): (Id, Name), directory: bool) -> Answer {
        let id = *self.entries(parent)?.get(&name).ok_or(Errno::ENOENT)?;
        match (&self.nodes[&id], directory) {
            (Node::Dir(_), false) => return Err(Errno::EISDIR),
            (Node::File(_), true) => return Err(Errno::ENOTDIR),
            (Node::Dir(entries), true) if !entries.is_empty() => return Err(Errno::ENOTEMPTY),
            _ => {}
        }
        self.entries(parent)?.remove(&name);
        Ok(Outcome::Done)
    }

    fn rename(&mut self, from: (Id, Name), to: (Id, Name), how: RenameHow) -> Answer {
        let moved = *self.entries(from.0)?.get(&from.1).ok_or(Errno::ENOENT)?;
        let there = self.entries(to.0)?.get(&to.1).copied();
        if self.is_below(to.0, moved)
            || there.is_some_and(|there| how == RenameHow::Exchange && self.is_below(from.0, there))
        {
            return Err(Errno::EINVAL);
        }
        match (how, there) {
            (RenameHow::NoReplace, Some(_)) => return Err(Errno::EEXIST),
            (RenameHow::Exchange, None) => return Err(Errno::ENOENT),
            (RenameHow::Replace, Some(there)) if there == moved => return Ok(Outcome::Done),
            (RenameHow::Replace, Some(there)) => match (&self.nodes[&moved], &self.nodes[&there]) {
                (Node::Dir(_), Node::File(_)) => return Err(Errno::ENOTDIR),
                (Node::File(_), Node::Dir(_)) => return Err(Errno::EISDIR),
                (Node::Dir(_), Node::Dir(entries)) if !entries.is_empty() => return Err(Errno::ENOTEMPTY),
                _ => {}
            },
            _ => {}
        }
        self.entries(from.0)?.remove(&from.1);
        self.entries(to.0)?.insert(to.1, moved);
        if let (RenameHow::Exchange, Some(there)) = (how, there) {
            self.entries(from.0)?.insert(from.1, there);
        }
        Ok(Outcome::Done)
    }

    fn add(&mut self, new: Id, node: Node, (parent, name): (Id, Name)) -> Answer {
        self.entries(parent)?.insert(name, new);
        self.nodes.insert(new, node);
        Ok(Outcome::Node(new))
    }

    fn free(&mut self, parent: Id, name: Name) -> Result<(), Errno> {
        if self.entries(parent)?.contains_key(&name) { Err(Errno::EEXIST) } else { Ok(()) }
    }

    fn change(&mut self, id: Id, change: impl FnOnce(&mut Vec<Tag>)) -> Answer {
        change(self.file(id)?);
        Ok(Outcome::Done)
    }

    fn file(&mut self, id: Id) -> Result<&mut Vec<Tag>, Errno> {
        match self.nodes.get_mut(&id) {
            Some(Node::File(file)) => Ok(file),
            Some(Node::Dir(_)) => Err(Errno::EISDIR),
            None => Err(Errno::ESTALE),
        }
    }

    fn entries(&mut self, id: Id) -> Result<&mut BTreeMap<Name, Id>, Errno> {
        match self.nodes.get_mut(&id) {
            Some(Node::Dir(entries)) => Ok(entries),
            Some(Node::File(_)) => Err(Errno::ENOTDIR),
            None => Err(Errno::ESTALE),
        }
    }

    fn is_below(&self, id: Id, top: Id) -> bool {
        let below = |id: &Id| match &self.nodes[id] {
            Node::Dir(entries) => entries.values().copied().collect(),
            Node::File(_) => Vec::new(),
        };
        id == top || below(&top).into_iter().any(|next| self.is_below(id, next))
    }

    /// Whether one of the nodes that are named by number, and not by name, has no name.
    fn concerns_nameless(&self, op: &Op) -> bool {
        let ids = match op {
            Op::Create { parent, .. }
            | Op::MakeDir { parent, .. }
            | Op::Remove { parent, .. }
            | Op::Lookup { parent, .. }
            | Op::List { parent } => [*parent, ROOT],
            Op::Link { node, parent, .. } => [*node, *parent],
            Op::Rename { from, to, .. } => [from.0, to.0],
            Op::Truncate { node, .. }
            | Op::Write { node, .. }
            | Op::Append { node, .. }
            | Op::Read { node, .. }
            | Op::Size { node } => [*node, ROOT],
        };
        ids.into_iter().any(|id| !self.is_below(id, ROOT))
    }
}

fn put(file: &mut Vec<Tag>, at: usize, units: usize, tag: Tag) {
    file.resize(file.len().max(at + units), 0);
    file[at..at + units].fill(tag);
}
