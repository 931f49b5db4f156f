//! Numbers for what is open.
//!
//! Pure: no I/O, no clock. How many there can be is bounded by the kernel's limit on open files.

use std::collections::HashMap;
use std::sync::Arc;

/// Open things by number; a number is never given twice.
#[derive(Debug)]
pub(super) struct Handles<T> {
    open: HashMap<u64, Arc<T>>,
    given: u64,
}

impl<T> Default for Handles<T> {
    fn default() -> Self {
        Self { open: HashMap::new(), given: 0 }
    }
}

impl<T> Handles<T> {
    /// A number for what will be open soon.
    pub(super) const fn reserve(&mut self) -> u64 {
        self.given += 1;
        self.given
    }

    pub(super) fn insert_as(&mut self, number: u64, thing: T) {
        self.open.insert(number, Arc::new(thing));
    }

    pub(super) fn insert(&mut self, thing: T) -> u64 {
        let number = self.reserve();
        self.insert_as(number, thing);
        number
    }

    pub(super) fn get(&self, number: u64) -> Option<Arc<T>> {
        self.open.get(&number).cloned()
    }

    pub(super) fn remove(&mut self, number: u64) -> Option<Arc<T>> {
        self.open.remove(&number)
    }

    /// Closes everything; says what was open.
    pub(super) fn clear(&mut self) -> Vec<u64> {
        self.open.drain().map(|(number, _)| number).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.open.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_not_given_twice() {
        let mut handles = Handles::default();
        let first = handles.insert("a");
        assert_eq!(handles.remove(first).as_deref(), Some(&"a"));
        assert_ne!(handles.reserve(), first);
        let second = handles.insert("b");
        assert_ne!(first, second);
        assert!(handles.get(first).is_none());
        assert_eq!(handles.get(second).as_deref(), Some(&"b"));
        assert_eq!(handles.len(), 1);
    }
}
