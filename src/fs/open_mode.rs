//! How the kernel is to treat an open file: through its page cache or past it.
//!
//! Pure: no I/O, no clock.
//!
//! Past the page cache (`FOPEN_DIRECT_IO`) one `read(2)` of up to 1 MiB is one request, answered from one version of the
//! file, and the kernel copies once: it takes half the processor time that the page cache does, and twice the
//! throughput was measured (3.6 against 1.8 GB/s). Through the page cache a file that is read again and again costs no
//! request at all. So large files go past it and small ones through it. A file whose last change is too young to tell its
//! states apart goes past it too: nobody could say later whether the pages still hold.
//!
//! Mapped files live in the page cache either way; `FUSE_DIRECT_IO_ALLOW_MMAP` lets shared mappings do so past it.

use crate::proto::{Attributes, Version};

/// Files of at least this size are read past the page cache, in bytes: the longest request of the kernel.
pub const DIRECT_BYTES_MIN: u64 = 1024 * 1024;

/// The kernel's way to read an open file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenMode {
    /// Whether every read is a request of its own.
    pub is_direct: bool,
    /// Whether the kernel may keep the pages it has of this file.
    pub keeps_pages: bool,
}

impl OpenMode {
    /// For a file with these attributes, of which the kernel has pages of version `pages`. `wants_direct`: opened with
    /// `O_DIRECT`. The second value is the version that the kernel's pages will belong to from now on.
    pub(super) fn choose(
        attributes: &Attributes,
        wants_direct: bool,
        pages: Option<Version>,
    ) -> (Self, Option<Version>) {
        let version = attributes.is_settled().then(|| attributes.version());
        let mode = Self {
            is_direct: wants_direct || version.is_none() || attributes.size >= DIRECT_BYTES_MIN,
            keeps_pages: version.is_some() && version == pages,
        };
        (mode, version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::tests::attributes;
    use crate::proto::{FileKind, Timestamp};

    fn choose(
        size: u64,
        observed_ns: i64,
        wants_direct: bool,
        pages: Option<Version>,
    ) -> (OpenMode, Option<Version>) {
        let observed = Timestamp(observed_ns);
        let file = Attributes { size, observed, ..attributes(7, FileKind::Regular) };
        OpenMode::choose(&file, wants_direct, pages)
    }

    const SETTLED: i64 = Version::SETTLE_NS;

    #[test]
    fn large_young_and_direct_files_go_past_the_page_cache() {
        assert!(!choose(DIRECT_BYTES_MIN - 1, SETTLED, false, None).0.is_direct);
        assert!(choose(DIRECT_BYTES_MIN, SETTLED, false, None).0.is_direct);
        assert!(choose(10, SETTLED - 1, false, None).0.is_direct);
        assert!(choose(10, SETTLED, true, None).0.is_direct);
    }

    #[test]
    fn pages_are_kept_only_of_the_same_settled_version() {
        let (first, version) = choose(10, SETTLED, false, None);
        assert!(!first.keeps_pages);
        let (again, same) = choose(10, SETTLED, false, version);
        assert!(again.keeps_pages);
        assert_eq!(same, version);
        assert!(!choose(11, SETTLED, false, version).0.keeps_pages);
        let (young, none) = choose(10, SETTLED - 1, false, version);
        assert!(!young.keeps_pages);
        assert_eq!(none, None);
    }
}
