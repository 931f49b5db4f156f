//! Storage for values of one size: places are used again, and a group of places is given back when all of it is free.
//!
//! Pure: no I/O, no clock.

/// Places in a group. Values that stay keep their group: the fewer there are in it, the less that costs.
const GROUP: usize = 64;

#[derive(Debug)]
struct Group<T> {
    /// Empty while none is in use.
    values: Vec<Option<T>>,
    /// A bit for each place, set where it is free.
    free: u64,
}

/// The storage. A value is found by the number of its place.
#[derive(Debug)]
pub(super) struct Slots<T> {
    groups: Vec<Group<T>>,
    /// Groups with a free place.
    roomy: Vec<u32>,
    len: usize,
}

impl<T> Slots<T> {
    pub(super) const fn new() -> Self {
        Self { groups: Vec::new(), roomy: Vec::new(), len: 0 }
    }

    /// Stores a value. Returns its place.
    pub(super) fn insert(&mut self, value: T) -> u32 {
        let at = self.roomy_group();
        let group = &mut self.groups[at as usize];
        if group.values.is_empty() {
            group.values.reserve_exact(GROUP);
            group.values.resize_with(GROUP, || None);
        }
        let place = group.free.trailing_zeros();
        group.free &= group.free - 1;
        group.values[place as usize] = Some(value);
        if group.free == 0 {
            self.roomy.pop();
        }
        self.len += 1;
        at * GROUP as u32 + place
    }

    fn roomy_group(&mut self) -> u32 {
        if let Some(at) = self.roomy.last() {
            return *at;
        }
        let at = self.groups.len() as u32;
        self.groups.push(Group { values: Vec::new(), free: u64::MAX });
        self.roomy.push(at);
        at
    }

    pub(super) fn remove(&mut self, slot: u32) -> Option<T> {
        let at = slot / GROUP as u32;
        let group = self.groups.get_mut(at as usize)?;
        let value = group.values.get_mut(slot as usize % GROUP)?.take()?;
        if group.free == 0 {
            self.roomy.push(at);
        }
        group.free |= 1 << (slot % GROUP as u32);
        if group.free == u64::MAX {
            group.values = Vec::new();
        }
        self.len -= 1;
        Some(value)
    }

    pub(super) fn get(&self, slot: u32) -> Option<&T> {
        self.groups.get(slot as usize / GROUP)?.values.get(slot as usize % GROUP)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> Option<&mut T> {
        self.groups.get_mut(slot as usize / GROUP)?.values.get_mut(slot as usize % GROUP)?.as_mut()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.groups.iter().flat_map(|group| group.values.iter().flatten())
    }

    /// Number of values.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Memory that it takes, in bytes, without what values point to.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        let places: usize = self.groups.iter().map(|group| group.values.capacity()).sum();
        places * size_of::<Option<T>>()
            + self.groups.capacity() * size_of::<Group<T>>()
            + self.roomy.capacity() * size_of::<u32>()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_holds_what_a_map_holds(steps in proptest::collection::vec((any::<bool>(), 0usize..200), 0..600)) {
            let (mut slots, mut map) = (Slots::new(), HashMap::new());
            for (number, (adds, which)) in steps.into_iter().enumerate() {
                if adds {
                    let slot = slots.insert(number);
                    prop_assert_eq!(map.insert(slot, number), None, "a place was given out twice");
                } else if let Some(slot) = map.keys().copied().nth(which % map.len().max(1)) {
                    prop_assert_eq!(slots.remove(slot), map.remove(&slot));
                    prop_assert_eq!(slots.remove(slot), None);
                }
                prop_assert_eq!(slots.len(), map.len());
            }
            for (slot, number) in &map {
                prop_assert_eq!(slots.get(*slot), Some(number));
            }
            prop_assert_eq!(slots.iter().count(), map.len());
        }
    }

    #[test]
    fn groups_without_values_are_given_back() {
        let mut slots = Slots::new();
        let all: Vec<u32> = (0..GROUP as u64 * 100).map(|value| slots.insert(value)).collect();
        let full = slots.bytes();
        all.iter().skip(1).for_each(|slot| assert!(slots.remove(*slot).is_some()));
        assert!(slots.bytes() < full / 10, "{} of {full}", slots.bytes());
        assert_eq!(slots.get(all[0]), Some(&0));
        let again: Vec<u32> = all.iter().skip(1).map(|_| slots.insert(7)).collect();
        assert!(again.iter().all(|slot| (*slot as usize) < all.len()), "places are used again");
    }
}
