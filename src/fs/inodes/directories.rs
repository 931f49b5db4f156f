//! Numbers of the directories that hold names, so that each name needs four bytes to tell its directory.
//!
//! Pure: no I/O, no clock.

use std::collections::HashMap;

use crate::proto::NodeId;

/// Directories that hold a name, counted.
#[derive(Debug, Default)]
pub(super) struct Directories {
    numbers: HashMap<NodeId, u32>,
    /// Each with the number of its names.
    nodes: Vec<(NodeId, u32)>,
    free: Vec<u32>,
}

impl Directories {
    /// Counts one more name in a directory. Returns its number.
    pub(super) fn hold(&mut self, node: NodeId) -> u32 {
        if let Some(number) = self.numbers.get(&node) {
            self.nodes[*number as usize].1 += 1;
            return *number;
        }
        let number = self.free.pop().unwrap_or(self.nodes.len() as u32);
        if number as usize == self.nodes.len() {
            self.nodes.push((node, 1));
        } else {
            self.nodes[number as usize] = (node, 1);
        }
        self.numbers.insert(node, number);
        number
    }

    /// Counts one name less.
    pub(super) fn release(&mut self, number: u32) {
        let (node, names) = &mut self.nodes[number as usize];
        *names -= 1;
        if *names > 0 {
            return;
        }
        self.numbers.remove(node);
        self.free.push(number);
        if self.numbers.is_empty() {
            *self = Self::default();
        } else if self.numbers.len() < self.numbers.capacity() / 8 {
            self.numbers.shrink_to(self.numbers.len() * 2);
        }
    }

    /// The directory of a number that is held.
    pub(super) fn node(&self, number: u32) -> NodeId {
        self.nodes[number as usize].0
    }

    /// The number of a directory, if it holds a name.
    pub(super) fn number(&self, node: NodeId) -> Option<u32> {
        self.numbers.get(&node).copied()
    }

    /// Memory that it takes, in bytes, about.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.numbers.capacity() * (size_of::<(NodeId, u32)>() + 1)
            + self.nodes.capacity() * size_of::<(NodeId, u32)>()
            + self.free.capacity() * size_of::<u32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_keeps_its_number_while_it_holds_a_name() {
        let node = |inode| NodeId { device: 1, inode, birth_ns: 0 };
        let mut directories = Directories::default();
        let (one, two) = (directories.hold(node(1)), directories.hold(node(2)));
        assert_eq!(directories.hold(node(1)), one);
        directories.release(one);
        assert_eq!((directories.node(one), directories.number(node(1))), (node(1), Some(one)));
        directories.release(one);
        assert_eq!(directories.number(node(1)), None);
        assert_eq!(directories.hold(node(3)), one, "numbers are used again");
        assert_eq!(directories.node(two), node(2));
    }
}
