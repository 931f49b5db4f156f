//! Attributes as the table keeps them: 88 bytes of the 120, with what hardly any file has set apart.
//!
//! Pure: no I/O, no clock.

use crate::proto::{Attributes, FileKind, NodeId, Timestamp, Trust};

/// Has extended attributes.
const XATTRS: u8 = 1;
/// The class is full.
const FULL: u8 = 1 << 1;
/// The time of birth is that of the node.
const BIRTH_OF_NODE: u8 = 1 << 2;
/// Something stands in [`Odd`].
const ODD: u8 = 1 << 3;

/// What hardly any file has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Odd {
    btime: Option<Timestamp>,
    device_number: u64,
}

/// All but what stands in [`Odd`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Packed {
    node: NodeId,
    size: u64,
    blocks: u64,
    atime: Timestamp,
    mtime: Timestamp,
    ctime: Timestamp,
    observed: Timestamp,
    links: u32,
    uid: u32,
    gid: u32,
    permissions: u16,
    kind: FileKind,
    bits: u8,
}

impl Packed {
    pub(super) fn new(attributes: &Attributes) -> (Self, Option<Odd>) {
        let Attributes { node, kind, permissions, links, uid, gid, device_number, size, blocks, .. } =
            *attributes;
        let Attributes { atime, mtime, ctime, btime, has_xattrs, trust, observed, .. } = *attributes;
        let is_of_node = btime == Some(Timestamp(node.birth_ns));
        let is_odd = device_number != 0 || !(is_of_node || btime.is_none());
        let bit = |is_set: bool, bit: u8| if is_set { bit } else { 0 };
        let bits = bit(has_xattrs, XATTRS)
            | bit(trust == Trust::Full, FULL)
            | bit(is_of_node, BIRTH_OF_NODE)
            | bit(is_odd, ODD);
        let packed = Self {
            node,
            size,
            blocks,
            atime,
            mtime,
            ctime,
            observed,
            links,
            uid,
            gid,
            permissions,
            kind,
            bits,
        };
        (packed, is_odd.then_some(Odd { btime, device_number }))
    }

    /// The attributes, with what was set apart.
    pub(super) fn unpack(&self, odd: impl FnOnce() -> Option<Odd>) -> Attributes {
        let Self {
            node,
            size,
            blocks,
            atime,
            mtime,
            ctime,
            observed,
            links,
            uid,
            gid,
            permissions,
            kind,
            bits,
        } = *self;
        let usual =
            Odd { btime: (bits & BIRTH_OF_NODE != 0).then_some(Timestamp(node.birth_ns)), device_number: 0 };
        let Odd { btime, device_number } = if bits & ODD == 0 { usual } else { odd().unwrap_or(usual) };
        Attributes {
            node,
            kind,
            permissions,
            links,
            uid,
            gid,
            device_number,
            size,
            blocks,
            atime,
            mtime,
            ctime,
            btime,
            has_xattrs: bits & XATTRS != 0,
            trust: if bits & FULL == 0 { Trust::Weak } else { Trust::Full },
            observed,
        }
    }

    pub(super) const fn node(&self) -> NodeId {
        self.node
    }

    pub(super) const fn kind(&self) -> FileKind {
        self.kind
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fs::tests::attributes;

    proptest! {
        #[test]
        fn what_is_packed_comes_back(
            numbers in proptest::array::uniform8(any::<i64>()),
            small in proptest::array::uniform3(any::<u32>()),
            permissions in any::<u16>(),
            bits in proptest::array::uniform4(any::<bool>()),
            device_number in prop_oneof![Just(0u64), any::<u64>()],
        ) {
            let [size, blocks, atime, mtime, ctime, observed, birth_ns, btime] = numbers;
            let node = NodeId { device: 3, inode: 4, birth_ns };
            let btime = if bits[0] { birth_ns } else { btime };
            let attributes = Attributes {
                node,
                permissions,
                links: small[0],
                uid: small[1],
                gid: small[2],
                device_number,
                size: size.unsigned_abs(),
                blocks: blocks.unsigned_abs(),
                atime: Timestamp(atime),
                mtime: Timestamp(mtime),
                ctime: Timestamp(ctime),
                btime: bits[1].then_some(Timestamp(btime)),
                has_xattrs: bits[2],
                trust: if bits[3] { Trust::Full } else { Trust::Weak },
                observed: Timestamp(observed),
                ..attributes(4, FileKind::Fifo)
            };
            let (packed, odd) = Packed::new(&attributes);
            prop_assert_eq!(packed.unpack(|| odd), attributes);
        }
    }

    #[test]
    fn a_plain_file_has_nothing_set_apart() {
        let node = NodeId { device: 1, inode: 2, birth_ns: 3 };
        for btime in [None, Some(Timestamp(3))] {
            let plain = Attributes { node, btime, device_number: 0, ..attributes(2, FileKind::Regular) };
            assert_eq!(Packed::new(&plain).1, None);
        }
        assert!(size_of::<Packed>() < size_of::<Attributes>());
    }
}
