//! Users and groups of the host under the numbers that they have here, and back.
//!
//! Pure.
//!
//! Two people are never shown as one, and a number that was shown means the same when it comes back: a map is one to one, in both
//! directions. Where the host's user 1000 is shown as 500, the host's own 500 cannot be 500, too. If nobody says who he is, he is
//! shown as 1000, the number that became free.

use std::collections::HashMap;

use crate::proto::{Attributes, Caller, Change, SetAttributes};

/// The number that means "nobody said" to the kernel.
const NOBODY_SAID: u32 = u32::MAX;

/// A number that the map has no counterpart for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the number {0} of a user or group is not in the map of this mount (idmap=file, nomap=error)")]
pub struct Unmapped(pub u32);

/// A number that has a counterpart already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Taken {
    /// One of the host.
    #[error("the host's number {0} stands in an earlier line, too")]
    Host(u32),
    /// One of here.
    #[error("the number {0} of this machine stands in an earlier line, too")]
    Local(u32),
    /// One that is none.
    #[error("{0} is no number of a user or group")]
    None(u32),
}

/// Numbers of one kind, of users or of groups.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NumberMap {
    to_local: HashMap<u32, u32>,
    to_host: HashMap<u32, u32>,
    refuses_others: bool,
}

impl NumberMap {
    /// Two numbers that mean the same. Neither may have another counterpart.
    pub fn insert(&mut self, host: u32, local: u32) -> Result<(), Taken> {
        if host == NOBODY_SAID || local == NOBODY_SAID {
            return Err(Taken::None(NOBODY_SAID));
        }
        if self.to_local.contains_key(&host) {
            return Err(Taken::Host(host));
        }
        if self.to_host.contains_key(&local) {
            return Err(Taken::Local(local));
        }
        self.to_local.insert(host, local);
        self.to_host.insert(local, host);
        Ok(())
    }

    /// The numbers that were not named have no counterpart.
    #[must_use]
    pub fn refusing_others(self) -> Self {
        Self { refuses_others: true, ..self }
    }

    /// The numbers that were not named stay as they are, but for those that others are shown under: they take what these left.
    #[must_use]
    pub fn keeping_others(mut self) -> Self {
        let displaced: Vec<u32> =
            self.to_host.keys().copied().filter(|number| !self.to_local.contains_key(number)).collect();
        for number in displaced {
            // Back to the number under which nobody is shown. The way ends, as `number` itself is nowhere shown as another.
            let mut free = number;
            while let Some(before) = self.to_host.get(&free) {
                free = *before;
            }
            self.to_local.insert(number, free);
            self.to_host.insert(free, number);
        }
        self
    }

    /// A number of the host, as it is shown here.
    pub fn local(&self, host: u32) -> Result<u32, Unmapped> {
        self.find(&self.to_local, host)
    }

    /// A number of here, as the host has it.
    pub fn host(&self, local: u32) -> Result<u32, Unmapped> {
        self.find(&self.to_host, local)
    }

    fn find(&self, map: &HashMap<u32, u32>, number: u32) -> Result<u32, Unmapped> {
        match map.get(&number) {
            Some(found) => Ok(*found),
            None if self.refuses_others && number != NOBODY_SAID => Err(Unmapped(number)),
            None => Ok(number),
        }
    }
}

/// Users and groups.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdMap {
    /// Users.
    pub users: NumberMap,
    /// Groups.
    pub groups: NumberMap,
    /// Whether what is made belongs to whom the host is told, so that numbers of askers count.
    pub callers_count: bool,
}

impl IdMap {
    /// One user of the host and his group, shown as one of here; all others as they are.
    pub fn of_user(host: (u32, u32), local: (u32, u32)) -> Result<Self, Taken> {
        let mut map = Self::default();
        map.users.insert(host.0, local.0)?;
        map.groups.insert(host.1, local.1)?;
        Ok(Self { users: map.users.keeping_others(), groups: map.groups.keeping_others(), ..map })
    }

    /// A change, as the host is to understand it.
    pub(super) fn for_host(&self, change: Change) -> Result<Change, Unmapped> {
        let mut change = change;
        match &mut change {
            Change::Create { caller, .. }
            | Change::MakeDirectory { caller, .. }
            | Change::MakeNode { caller, .. }
            | Change::MakeSymlink { caller, .. }
                if self.callers_count =>
            {
                let (uid, gid) = (self.users.host(caller.uid)?, self.groups.host(caller.gid)?);
                *caller = Caller { uid, gid, ..*caller };
            }
            Change::SetAttributes { set, .. } => {
                let uid = set.uid.map(|uid| self.users.host(uid)).transpose()?;
                let gid = set.gid.map(|gid| self.groups.host(gid)).transpose()?;
                *set = SetAttributes { uid, gid, ..*set };
            }
            Change::SetXattr { name, value, .. } if is_acl(name) => {
                *value = map_acl(value, |uid| self.users.host(uid), |gid| self.groups.host(gid))?;
            }
            _ => {}
        }
        Ok(change)
    }

    /// The value of an extended attribute, as users see it.
    pub(super) fn shown_xattr(&self, name: &[u8], value: Vec<u8>) -> Result<Vec<u8>, Unmapped> {
        if !is_acl(name) {
            return Ok(value);
        }
        map_acl(&value, |uid| self.users.local(uid), |gid| self.groups.local(gid))
    }

    /// The owner and the group, as users see them.
    pub(super) fn shown_owner(
        &self,
        attributes: &Attributes,
    ) -> (Result<u32, Unmapped>, Result<u32, Unmapped>) {
        (self.users.local(attributes.uid), self.groups.local(attributes.gid))
    }
}

/// Whether the attribute of this name holds numbers of users and groups.
fn is_acl(name: &[u8]) -> bool {
    name == b"system.posix_acl_access" || name == b"system.posix_acl_default"
}

/// The version of the format of ACLs, `POSIX_ACL_XATTR_VERSION`: these four bytes, then entries of tag (2 bytes), permissions (2)
/// and number (4), all little-endian.
const ACL_VERSION: [u8; 4] = 2_u32.to_le_bytes();
const ACL_ENTRY_BYTES: usize = 8;

/// `ACL_USER` and `ACL_GROUP`: entries that name somebody.
const ACL_USER: [u8; 2] = 2_u16.to_le_bytes();
const ACL_GROUP: [u8; 2] = 8_u16.to_le_bytes();

/// An ACL with other numbers. What is none stays as it is: whoever gets it says so.
fn map_acl(
    value: &[u8],
    user: impl Fn(u32) -> Result<u32, Unmapped>,
    group: impl Fn(u32) -> Result<u32, Unmapped>,
) -> Result<Vec<u8>, Unmapped> {
    let mut mapped = value.to_vec();
    let Some((version, entries)) = mapped.split_first_chunk_mut::<4>() else { return Ok(mapped) };
    if *version != ACL_VERSION || entries.len() % ACL_ENTRY_BYTES != 0 {
        return Ok(mapped);
    }
    for entry in entries.chunks_exact_mut(ACL_ENTRY_BYTES) {
        let (head, number) = entry.split_at_mut(4);
        let found = u32::from_le_bytes([number[0], number[1], number[2], number[3]]);
        let found = match [head[0], head[1]] {
            ACL_USER => user(found)?,
            ACL_GROUP => group(found)?,
            _ => continue,
        };
        number.copy_from_slice(&found.to_le_bytes());
    }
    Ok(mapped)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::proto::{NodeId, XattrHow};

    const NODE: NodeId = NodeId { device: 1, inode: 2, birth_ns: 3 };

    fn map(pairs: &[(u32, u32)]) -> NumberMap {
        let mut map = NumberMap::default();
        for (host, local) in pairs {
            map.insert(*host, *local).unwrap();
        }
        map
    }

    fn acl(entries: &[(u16, u32)]) -> Vec<u8> {
        let entry = |(tag, id): &(u16, u32)| [&tag.to_le_bytes()[..], &[6, 0], &id.to_le_bytes()].concat();
        [ACL_VERSION.to_vec(), entries.iter().flat_map(entry).collect()].concat()
    }

    #[test]
    fn the_host_s_user_and_the_one_of_here_change_places() {
        let map = IdMap::of_user((1001, 100), (1000, 50)).unwrap();
        let shown = [1001, 1000, 0, 7].map(|uid| map.users.local(uid).unwrap());
        assert_eq!(shown, [1000, 1001, 0, 7]);
        assert_eq!(map.groups.local(100), Ok(50));
        assert_eq!(IdMap::of_user((5, 6), (5, 6)).unwrap().users.local(5), Ok(5));
    }

    #[test]
    fn nobody_stands_for_two_and_no_number_for_nobody() {
        let mut known = map(&[(1, 2)]);
        assert_eq!(known.insert(1, 3), Err(Taken::Host(1)));
        assert_eq!(known.insert(3, 2), Err(Taken::Local(2)));
        assert_eq!(known.insert(u32::MAX, 5), Err(Taken::None(u32::MAX)));
        assert_eq!(known.insert(5, u32::MAX), Err(Taken::None(u32::MAX)));
        known.insert(2, 1).unwrap();
        assert_eq!(known.keeping_others(), map(&[(1, 2), (2, 1)]));
    }

    #[test]
    fn what_has_no_counterpart_is_refused_where_that_was_said() {
        let map = map(&[(1, 2)]).refusing_others();
        assert_eq!((map.local(1), map.local(2)), (Ok(2), Err(Unmapped(2))));
        assert_eq!((map.host(2), map.host(1)), (Ok(1), Err(Unmapped(1))));
        assert_eq!(map.local(u32::MAX), Ok(u32::MAX), "nobody was named");
    }

    #[test]
    fn changes_name_the_host_s_users() {
        let mut ids = IdMap::of_user((1001, 101), (1000, 100)).unwrap();
        let caller = Caller { uid: 1000, gid: 100, umask: 0o22 };
        let make =
            |caller| Change::MakeDirectory { parent: NODE, name: vec![b'x'], permissions: 0o777, caller };
        assert_eq!(ids.for_host(make(caller)), Ok(make(caller)), "who asks does not count");
        ids.callers_count = true;
        let mapped = Caller { uid: 1001, gid: 101, ..caller };
        assert_eq!(ids.for_host(make(caller)), Ok(make(mapped)));
        let set = |uid, gid| {
            let set = SetAttributes { uid, gid, size: Some(3), ..SetAttributes::default() };
            Change::SetAttributes { node: NODE, set }
        };
        assert_eq!(ids.for_host(set(Some(1000), None)), Ok(set(Some(1001), None)));
        assert_eq!(ids.for_host(set(Some(5), Some(100))), Ok(set(Some(5), Some(101))));
        let acl_of = |name: &[u8], value| Change::SetXattr {
            node: NODE,
            name: name.to_vec(),
            value,
            how: XattrHow::Any,
        };
        let (shown, held) =
            (acl(&[(1, u32::MAX), (2, 1000), (8, 100)]), acl(&[(1, u32::MAX), (2, 1001), (8, 101)]));
        for name in [&b"system.posix_acl_access"[..], b"system.posix_acl_default"] {
            assert_eq!(ids.for_host(acl_of(name, shown.clone())), Ok(acl_of(name, held.clone())));
            assert_eq!(ids.shown_xattr(name, held.clone()), Ok(shown.clone()));
        }
        assert_eq!(ids.for_host(acl_of(b"user.x", shown.clone())), Ok(acl_of(b"user.x", shown.clone())));
        let strict = IdMap { users: map(&[(1, 2)]).refusing_others(), ..IdMap::default() };
        assert_eq!(strict.shown_xattr(b"system.posix_acl_access", held), Err(Unmapped(1001)));
        assert_eq!(strict.for_host(set(Some(9), None)), Err(Unmapped(9)));
    }

    /// Pairs in which no number stands twice on the same side, out of few numbers, so that they meet.
    fn pairs() -> impl Strategy<Value = Vec<(u32, u32)>> {
        (0_usize..9).prop_flat_map(|count| {
            let side = || Just((0..12).collect::<Vec<u32>>()).prop_shuffle();
            (side(), side())
                .prop_map(move |(hosts, locals)| hosts.into_iter().zip(locals).take(count).collect())
        })
    }

    proptest! {
        #[test]
        fn numbers_come_back_and_no_two_are_shown_alike(pairs in pairs(), strict in any::<bool>()) {
            let named: BTreeMap<u32, u32> = pairs.iter().copied().collect();
            let map = map(&pairs);
            let map = if strict { map.refusing_others() } else { map.keeping_others() };
            let mut shown = BTreeMap::new();
            for host in (0..20).chain([u32::MAX]) {
                match map.local(host) {
                    Ok(local) => {
                        prop_assert_eq!(map.host(local), Ok(host));
                        prop_assert_eq!(shown.insert(local, host), None, "two are shown as {}", local);
                        if let Some(expected) = named.get(&host) {
                            prop_assert_eq!(local, *expected);
                        } else if !strict && !pairs.iter().any(|(_, local)| *local == host) {
                            prop_assert_eq!(local, host, "whose number nobody took keeps it");
                        }
                    }
                    Err(_) => prop_assert!(strict && !named.contains_key(&host)),
                }
            }
        }

        #[test]
        fn any_bytes_are_an_acl_or_stay(bytes in proptest::collection::vec(any::<u8>(), 0..60), is_acl in any::<bool>()) {
            let bytes = if is_acl { [ACL_VERSION.to_vec(), bytes].concat() } else { bytes };
            let ids = IdMap::of_user((1001, 101), (1000, 100)).unwrap();
            let shown = ids.shown_xattr(b"system.posix_acl_access", bytes.clone()).unwrap();
            prop_assert_eq!(shown.len(), bytes.len());
            let back = map_acl(&shown, |uid| ids.users.host(uid), |gid| ids.groups.host(gid));
            prop_assert_eq!(back, Ok(bytes));
        }
    }
}
