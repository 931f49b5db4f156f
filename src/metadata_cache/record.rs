//! (P) Encoding of metadata records, and the division of a long record into chunks.
//!
//! A record is found by its [`FileKey`] in the disk cache: chunk 0 of that "file" is its head. The head
//! contains the body of a short record, or the hashes of the parts of a long one. So one hash replaces a
//! record, and a record is never a mix of two.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::cache::FileKey;
use crate::chunk::{CHUNK_BYTES, ChunkHash};
use crate::proto::{ActingUser, Attributes, DirectoryEntry, FsStatistics, NodeId, Timestamp};

/// Version of the encoding. Records of another version are ignored.
const FORMAT: u16 = 1;

/// Longest body stored in the head. Few directories are larger, and two chunks cost more than one.
const BODY_IN_HEAD_BYTES_MAX: usize = 64 * 1024;

/// Longest body. Its head fits into a chunk many times over.
pub(super) const BODY_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Most chunks of a body. A head with more was not written here, and one chunk repeated many times would
/// fill the memory.
const PARTS_MAX: usize = BODY_BYTES_MAX / CHUNK_BYTES as usize;

/// Scope of records: one host seen through one export. Two exports may show different things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scope([u8; 32]);

impl Scope {
    /// Creates the scope of an export of the host with this key.
    pub fn new(host_key: &[u8; 32], export: &str) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("wormhole recall, scope, version 1");
        hasher.update(host_key).update(export.as_bytes());
        Self(*hasher.finalize().as_bytes())
    }
}

/// Subject of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subject<'a> {
    /// Root of a mount of this path below the export.
    Root(&'a [u8]),
    /// Attributes of a node.
    Node(NodeId),
    /// Target of a name in a directory.
    Name(NodeId, &'a [u8]),
    /// All entries of a directory.
    Listing(NodeId),
    /// Target of a symbolic link.
    Link(NodeId),
    /// Size and usage of the file system.
    Statistics,
    /// User as which the host acts.
    ActsAs,
}

impl Subject<'_> {
    /// Returns the cache key of its record.
    pub(super) fn key(&self, scope: Scope) -> FileKey {
        let (kind, node, name): (u8, Option<NodeId>, &[u8]) = match *self {
            Self::Root(path) => (0, None, path),
            Self::Node(node) => (1, Some(node), b""),
            Self::Name(parent, name) => (2, Some(parent), name),
            Self::Listing(node) => (3, Some(node), b""),
            Self::Link(node) => (4, Some(node), b""),
            Self::Statistics => (5, None, b""),
            Self::ActsAs => (6, None, b""),
        };
        let mut hasher = blake3::Hasher::new_derive_key("wormhole recall, record, version 1");
        hasher.update(&scope.0).update(&[kind]);
        if let Some(node) = node {
            hasher.update(&node.device.to_le_bytes()).update(&node.inode.to_le_bytes());
            hasher.update(&node.birth_ns.to_le_bytes());
        }
        hasher.update(name);
        FileKey::from_bytes(*hasher.finalize().as_bytes())
    }
}

/// Value with the time at which it was seen, by the clock of this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seen<T> {
    pub at: Timestamp,
    pub value: T,
}

/// Attributes of a node, or of the root.
pub(super) type SeenNode = Seen<Attributes>;
/// Target of a name; `None` if the name does not exist.
pub(super) type SeenName = Seen<Option<Attributes>>;
/// Complete listing.
pub(super) type SeenListing = Seen<Vec<DirectoryEntry>>;
/// Target of a link.
pub(super) type SeenLink = Seen<Vec<u8>>;
/// Size and usage of the file system.
pub(super) type SeenStatistics = Seen<FsStatistics>;
/// User as which the host acts.
pub(super) type SeenActsAs = Seen<ActingUser>;

#[derive(Debug, Serialize, Deserialize)]
struct Head {
    format: u16,
    /// Key of the record, because the hash of a chunk names only its content.
    key: [u8; 32],
    body: Body,
}

/// Location of a record's body.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Body {
    /// In the head.
    Here(Vec<u8>),
    /// In chunks, in this order.
    Parts(Vec<ChunkHash>),
}

/// Encodes a record into chunks, the head first; `None` if it is too long.
pub(super) fn encode<T: Serialize>(key: &FileKey, value: &T) -> Option<Vec<Bytes>> {
    let bytes = postcard::to_stdvec(value).ok().filter(|bytes| bytes.len() <= BODY_BYTES_MAX)?;
    let (body, mut parts) = if bytes.len() <= BODY_IN_HEAD_BYTES_MAX {
        (Body::Here(bytes), Vec::new())
    } else {
        let bytes = Bytes::from(bytes);
        let cut = |at: usize| bytes.slice(at..bytes.len().min(at + CHUNK_BYTES as usize));
        let parts: Vec<Bytes> = (0..bytes.len()).step_by(CHUNK_BYTES as usize).map(cut).collect();
        (Body::Parts(parts.iter().map(|part| ChunkHash::of(part)).collect()), parts)
    };
    let head = Head { format: FORMAT, key: *key.as_bytes(), body };
    parts.insert(0, postcard::to_stdvec(&head).ok()?.into());
    Some(parts)
}

/// Decodes the head of the record `key`; `None` if this is not its head.
pub(super) fn decode_head(key: &FileKey, head: &[u8]) -> Option<Body> {
    let head: Head = decode_body(head)?;
    let is_too_long = matches!(&head.body, Body::Parts(parts) if parts.len() > PARTS_MAX);
    (head.format == FORMAT && head.key == *key.as_bytes() && !is_too_long).then_some(head.body)
}

/// Decodes a body; `None` if it is invalid or has trailing bytes.
pub(super) fn decode_body<T: DeserializeOwned>(body: &[u8]) -> Option<T> {
    let (value, rest) = postcard::take_from_bytes(body).ok()?;
    rest.is_empty().then_some(value)
}

/// Returns attributes without the parts that change although the file did not: the time of the last access,
/// and the time of the look. Of the latter only [`Attributes::is_settled`] is kept.
pub(super) const fn stable_part(mut attributes: Attributes) -> Attributes {
    attributes.observed = Timestamp(attributes.is_settled() as i64);
    attributes.atime = Timestamp(0);
    attributes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(byte: u8) -> FileKey {
        FileKey::from_bytes([byte; 32])
    }

    fn node(inode: u64) -> NodeId {
        NodeId { device: 1, inode, birth_ns: 2 }
    }

    proptest! {
        #[test]
        fn records_of_any_length_come_back(len in prop_oneof![0..200usize, 65_000..67_000usize, 500_000..800_000usize]) {
            let value = Seen { at: Timestamp(7), value: vec![3_u8; len] };
            let chunks = encode(&key(1), &value).unwrap();
            prop_assert!(chunks.iter().all(|chunk| chunk.len() as u64 <= CHUNK_BYTES));
            let body = match decode_head(&key(1), &chunks[0]).unwrap() {
                Body::Here(body) => body,
                Body::Parts(hashes) => {
                    let expected: Vec<ChunkHash> = chunks[1..].iter().map(|part| ChunkHash::of(part)).collect();
                    prop_assert_eq!(hashes, expected);
                    chunks[1..].concat()
                }
            };
            prop_assert_eq!(decode_body::<SeenLink>(&body), Some(value));
            prop_assert_eq!(decode_head(&key(2), &chunks[0]), None);
        }

        #[test]
        fn any_bytes_are_a_record_or_none(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            decode_head(&key(1), &bytes);
            decode_body::<SeenListing>(&bytes);
            decode_body::<SeenName>(&bytes);
        }
    }

    #[test]
    fn a_head_is_bounded() {
        let head =
            |parts| postcard::to_stdvec(&(FORMAT, [1_u8; 32], Body::Parts(vec![ChunkHash::of(b""); parts])));
        let mut longest = head(PARTS_MAX).unwrap();
        assert!(decode_head(&key(1), &longest).is_some());
        assert_eq!(decode_head(&key(1), &head(PARTS_MAX + 1).unwrap()), None, "it would fill the memory");
        longest.push(0);
        assert_eq!(decode_head(&key(1), &longest), None, "trailing bytes");
    }

    #[test]
    fn another_format_is_unknown() {
        let head = Head { format: FORMAT + 1, key: [1; 32], body: Body::Here(vec![1]) };
        assert_eq!(decode_head(&key(1), &postcard::to_stdvec(&head).unwrap()), None);
    }

    #[test]
    fn every_subject_has_a_key_of_its_own() {
        let scopes = [Scope::new(&[1; 32], "a"), Scope::new(&[1; 32], "b"), Scope::new(&[2; 32], "a")];
        let subjects = [
            Subject::Root(b""),
            Subject::Root(b"x"),
            Subject::Node(node(1)),
            Subject::Node(node(2)),
            Subject::Name(node(1), b"x"),
            Subject::Name(node(1), b"y"),
            Subject::Name(node(2), b"x"),
            Subject::Listing(node(1)),
            Subject::Link(node(1)),
            Subject::Statistics,
            Subject::ActsAs,
        ];
        let keys: std::collections::BTreeSet<FileKey> =
            scopes.iter().flat_map(|scope| subjects.iter().map(|subject| subject.key(*scope))).collect();
        assert_eq!(keys.len(), scopes.len() * subjects.len());
    }
}
