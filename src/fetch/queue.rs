//! Queue of read-ahead. Pure: no clock, no task.
//!
//! Each stream has its own line, and the lines are served in turn, so that sixteen readers share the link.
//! Demands start at once and never enter the queue, so they go before everything in it.

use std::collections::VecDeque;

use super::content::StreamId;

/// Lines of streams, each in the order of arrival.
#[derive(Debug)]
pub(super) struct Queue<T> {
    /// Lines are never empty. The front one is next.
    lines: VecDeque<(StreamId, VecDeque<T>)>,
    len: usize,
    len_max: usize,
}

impl<T> Queue<T> {
    /// Creates a queue of at most `len_max` items.
    pub(super) const fn new(len_max: usize) -> Self {
        Self { lines: VecDeque::new(), len: 0, len_max }
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Returns the streams with queued items.
    pub(super) fn streams(&self) -> impl Iterator<Item = StreamId> {
        self.lines.iter().map(|(stream, _)| *stream)
    }

    /// Appends an item to the line of its stream. Returns `false` if the queue is full.
    pub(super) fn push(&mut self, stream: StreamId, item: T) -> bool {
        if self.len == self.len_max {
            return false;
        }
        self.len += 1;
        match self.lines.iter_mut().find(|(waiting, _)| *waiting == stream) {
            Some((_, line)) => line.push_back(item),
            None => self.lines.push_back((stream, VecDeque::from([item]))),
        }
        true
    }

    /// Returns the next item.
    pub(super) fn peek(&self) -> Option<(StreamId, &T)> {
        let (stream, line) = self.lines.front()?;
        Some((*stream, line.front()?))
    }

    /// Removes the next item and moves its line to the back.
    pub(super) fn pop(&mut self) -> Option<(StreamId, T)> {
        let (stream, mut line) = self.lines.pop_front()?;
        let item = line.pop_front()?;
        self.len -= 1;
        if !line.is_empty() {
            self.lines.push_back((stream, line));
        }
        Some((stream, item))
    }

    /// Drops the items of the streams for which `gives_up` is true.
    pub(super) fn cancel(&mut self, gives_up: impl Fn(StreamId) -> bool) {
        self.lines.retain(|(stream, _)| !gives_up(*stream));
        self.count();
    }

    /// Calls `retained` on every item, which may change it, and drops the items for which it returns `false`.
    pub(super) fn retain(&mut self, mut retained: impl FnMut(&mut T) -> bool) {
        self.lines.iter_mut().for_each(|(_, line)| line.retain_mut(&mut retained));
        self.lines.retain(|(_, line)| !line.is_empty());
        self.count();
    }

    fn count(&mut self) {
        self.len = self.lines.iter().map(|(_, line)| line.len()).sum();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn stream(handle: u64) -> StreamId {
        StreamId { handle, cursor: 0 }
    }

    #[test]
    fn streams_take_turns() {
        let mut queue = Queue::new(100);
        (0..3).for_each(|i| assert!(queue.push(stream(1), i)));
        assert!(queue.push(stream(2), 10));
        let order: Vec<i32> = std::iter::from_fn(|| queue.pop()).map(|(_, item)| item).collect();
        assert_eq!(order, [0, 10, 1, 2]);
    }

    #[derive(Debug, Clone)]
    enum Op {
        Push(u64),
        Pop,
        Cancel(u64),
        DropEvery(u32),
    }

    /// Naive model: all items in one list, and the last turn of each stream.
    #[derive(Default)]
    struct Model {
        items: Vec<(u64, u32)>,
        turns: Vec<u64>,
    }

    impl Model {
        fn push(&mut self, stream: u64, item: u32) {
            if !self.items.iter().any(|(waiting, _)| *waiting == stream) {
                self.turns.push(stream);
            }
            self.items.push((stream, item));
        }

        fn pop(&mut self) -> Option<(u64, u32)> {
            let next = (!self.turns.is_empty()).then(|| self.turns.remove(0))?;
            let at = self.items.iter().position(|(stream, _)| *stream == next).unwrap();
            let item = self.items.remove(at);
            if self.items.iter().any(|(stream, _)| *stream == next) {
                self.turns.push(next);
            }
            Some(item)
        }

        fn cancel(&mut self, stream: u64) {
            self.items.retain(|(waiting, _)| *waiting != stream);
            self.turns.retain(|waiting| *waiting != stream);
        }

        fn drop_every(&mut self, nth: u32) {
            self.items.retain(|(_, item)| item % nth != 0);
            let items = &self.items;
            self.turns.retain(|stream| items.iter().any(|(waiting, _)| waiting == stream));
        }
    }

    proptest! {
        #[test]
        fn the_queue_agrees_with_the_model(
            ops in prop::collection::vec(
                prop_oneof![
                    4 => (0..5u64).prop_map(Op::Push),
                    3 => Just(Op::Pop),
                    1 => (0..5u64).prop_map(Op::Cancel),
                    1 => (1..4u32).prop_map(Op::DropEvery)
                ],
                0..200,
            )
        ) {
            let (mut queue, mut model) = (Queue::new(20), Model::default());
            for (number, op) in ops.into_iter().enumerate() {
                match op {
                    Op::Push(handle) => {
                        let room = model.items.len() < 20;
                        prop_assert_eq!(queue.push(stream(handle), number as u32), room);
                        if room {
                            model.push(handle, number as u32);
                        }
                    }
                    Op::Pop => {
                        let peeked = queue.peek().map(|(stream, item)| (stream.handle, *item));
                        let popped = queue.pop().map(|(stream, item)| (stream.handle, item));
                        prop_assert_eq!(peeked, popped);
                        prop_assert_eq!(popped, model.pop());
                    }
                    Op::Cancel(handle) => {
                        queue.cancel(|other| other == stream(handle));
                        model.cancel(handle);
                    }
                    Op::DropEvery(nth) => {
                        queue.retain(|item| *item % nth != 0);
                        model.drop_every(nth);
                    }
                }
                prop_assert_eq!(queue.len(), model.items.len());
                prop_assert_eq!(queue.streams().map(|stream| stream.handle).collect::<Vec<_>>(), model.turns.clone());
            }
        }
    }
}
