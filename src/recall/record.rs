//! (P) What is remembered of names and attributes, as bytes, and how a long record is cut into chunks.
//!
//! A record is found by its [`FileKey`] in the disk cache: chunk 0 of that "file" is its head. A short record stands in the head; of
//! a long one the head lists the hashes of its parts. So a record is replaced by one hash, and never a mix of two.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::cache::FileKey;
use crate::chunk::{CHUNK_BYTES, ChunkHash};
use crate::proto::{ActingUser, Attributes, DirectoryEntry, FsStatistics, NodeId, Timestamp};

/// Changes whenever the bytes mean something else; what has another one is unknown.
const FORMAT: u16 = 1;

/// Longest body that stands in the head: few directories are larger, and two chunks cost more than one.
const BODY_IN_HEAD_BYTES_MAX: usize = 64 * 1024;

/// Longest body, so that its head fits into a chunk many times over.
pub(super) const BODY_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Most chunks of a body. A head that lists more was not written here; the same chunk over and over would fill the memory.
const PARTS_MAX: usize = BODY_BYTES_MAX / CHUNK_BYTES as usize;

/// Whose records: one host's, as seen through one export. What one export shows another need not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scope([u8; 32]);

impl Scope {
    /// Of an export of the host with this key.
    pub fn new(host_key: &[u8; 32], export: &str) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("wormhole recall, scope, version 1");
        hasher.update(host_key).update(export.as_bytes());
        Self(*hasher.finalize().as_bytes())
    }
}

/// What a record tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subject<'a> {
    /// What is mounted when this path below the export is.
    Root(&'a [u8]),
    /// A node's attributes.
    Node(NodeId),
    /// What a name in a directory leads to.
    Name(NodeId, &'a [u8]),
    /// All entries of a directory.
    Listing(NodeId),
    /// The target of a symbolic link.
    Link(NodeId),
    /// Room and use of the file system.
    Statistics,
    /// As whom the host acts.
    ActsAs,
}

impl Subject<'_> {
    /// Where its record is.
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

/// Something as it was seen at a time by this machine's clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seen<T> {
    pub at: Timestamp,
    pub what: T,
}

/// The attributes of a node, or of the root.
pub(super) type SeenNode = Seen<Attributes>;
/// What a name leads to; `None`: there is no such name.
pub(super) type SeenName = Seen<Option<Attributes>>;
/// A complete listing.
pub(super) type SeenListing = Seen<Vec<DirectoryEntry>>;
/// A link's target.
pub(super) type SeenLink = Seen<Vec<u8>>;
/// Room and use.
pub(super) type SeenStatistics = Seen<FsStatistics>;
/// As whom the host acts.
pub(super) type SeenActsAs = Seen<ActingUser>;

#[derive(Debug, Serialize, Deserialize)]
struct Head {
    format: u16,
    /// Whose record it is: a chunk is named by its content alone.
    key: [u8; 32],
    body: Body,
}

/// Where a record's bytes are.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Body {
    /// Here.
    Here(Vec<u8>),
    /// In chunks, one after the other.
    Parts(Vec<ChunkHash>),
}

/// The chunks of a record, the head first; `None` if it is too long to be kept.
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

/// Where the body of the record `key` is; `None` when this is not its head.
pub(super) fn decode_head(key: &FileKey, head: &[u8]) -> Option<Body> {
    let head: Head = decode_body(head)?;
    let is_too_long = matches!(&head.body, Body::Parts(parts) if parts.len() > PARTS_MAX);
    (head.format == FORMAT && head.key == *key.as_bytes() && !is_too_long).then_some(head.body)
}

/// What a body says; `None` when it says nothing that is understood, or something stands behind it.
pub(super) fn decode_body<T: DeserializeOwned>(body: &[u8]) -> Option<T> {
    let (value, rest) = postcard::take_from_bytes(body).ok()?;
    rest.is_empty().then_some(value)
}

/// Attributes without what changes though nothing has: the clock when they were looked at, but for whether that was long enough
/// after the last change that content can be kept by them; and the time of the last reading.
pub(super) const fn lasting(mut attributes: Attributes) -> Attributes {
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
            let value = Seen { at: Timestamp(7), what: vec![3_u8; len] };
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
    fn a_head_says_no_more_than_was_written() {
        let head =
            |parts| postcard::to_stdvec(&(FORMAT, [1_u8; 32], Body::Parts(vec![ChunkHash::of(b""); parts])));
        let mut longest = head(PARTS_MAX).unwrap();
        assert!(decode_head(&key(1), &longest).is_some());
        assert_eq!(decode_head(&key(1), &head(PARTS_MAX + 1).unwrap()), None, "it would fill the memory");
        longest.push(0);
        assert_eq!(decode_head(&key(1), &longest), None, "something stands behind it");
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
