//! What waits to be read ahead. Pure: no clock, no task.
//!
//! Each owner has its own line; the lines are served in turn, so that sixteen readers share the link. Demands never come
//! here: they start at once, and so go before everything that waits.

use std::collections::VecDeque;

use super::content::OwnerId;

/// Lines of owners, each in the order of asking.
#[derive(Debug)]
pub(super) struct Queue<T> {
    /// Never empty ones; the front one is next.
    lines: VecDeque<(OwnerId, VecDeque<T>)>,
    len: usize,
    len_max: usize,
}

impl<T> Queue<T> {
    /// A queue of at most `len_max` items.
    pub(super) const fn new(len_max: usize) -> Self {
        Self { lines: VecDeque::new(), len: 0, len_max }
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Those who wait.
    pub(super) fn owners(&self) -> impl Iterator<Item = OwnerId> {
        self.lines.iter().map(|(owner, _)| *owner)
    }

    /// Takes an item in, behind the owner's others. Says whether there was room.
    pub(super) fn push(&mut self, owner: OwnerId, item: T) -> bool {
        if self.len == self.len_max {
            return false;
        }
        self.len += 1;
        match self.lines.iter_mut().find(|(waiting, _)| *waiting == owner) {
            Some((_, line)) => line.push_back(item),
            None => self.lines.push_back((owner, VecDeque::from([item]))),
        }
        true
    }

    /// What is next.
    pub(super) fn peek(&self) -> Option<(OwnerId, &T)> {
        let (owner, line) = self.lines.front()?;
        Some((*owner, line.front()?))
    }

    /// Takes out what is next; its owner's line goes to the end.
    pub(super) fn pop(&mut self) -> Option<(OwnerId, T)> {
        let (owner, mut line) = self.lines.pop_front()?;
        let item = line.pop_front()?;
        self.len -= 1;
        if !line.is_empty() {
            self.lines.push_back((owner, line));
        }
        Some((owner, item))
    }

    /// Drops what owners wait for.
    pub(super) fn cancel(&mut self, gives_up: impl Fn(OwnerId) -> bool) {
        self.lines.retain(|(owner, _)| !gives_up(*owner));
        self.len = self.lines.iter().map(|(_, line)| line.len()).sum();
    }
}
