//! What a file is: its identity on the host, its version, its attributes.

use serde::{Deserialize, Serialize};

/// Identity of a file, directory or link on its host, the same under every name and after a restart of the host.
///
/// An inode number alone is used again after a file is deleted; the time of birth tells the two apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeId {
    /// File system it lies on, by an id that the host makes: not the device number, which is another one after a restart.
    pub device: u64,
    /// Inode number on that device.
    pub inode: u64,
    /// Time of birth in nanoseconds since the epoch; 0 where the file system does not keep it.
    pub birth_ns: i64,
}

/// Nanoseconds since 1970-01-01 UTC; negative before. Covers the years 1677 to 2262, as ext4's range does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Timestamp(pub i64);

impl Timestamp {
    const SECOND_NS: i64 = 1_000_000_000;

    /// From whole seconds and the nanoseconds after them; clamped at the ends of the range.
    pub const fn new(seconds: i64, nanoseconds: u32) -> Self {
        Self(seconds.saturating_mul(Self::SECOND_NS).saturating_add(nanoseconds as i64))
    }

    /// Whole seconds, rounded down.
    pub const fn seconds(self) -> i64 {
        self.0.div_euclid(Self::SECOND_NS)
    }

    /// Nanoseconds after [`Self::seconds`], 0 to 999,999,999.
    pub const fn subsecond_ns(self) -> u32 {
        self.0.rem_euclid(Self::SECOND_NS) as u32
    }
}

/// How far a file's numbers prove which content it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Trust {
    /// They may stay the same over a change, or be another file's: what is kept under them is a guess, and is compared by hash.
    Weak,
    /// Node and version name one content, once the version is settled.
    Full,
}

impl Trust {
    /// The word for people and JSON.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Weak => "weak",
            Self::Full => "full",
        }
    }
}

/// Reason why a file system has its trust class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TrustReason {
    /// Numbers and times are the host's kernel's own.
    OwnStamps,
    /// Its files have no time of birth.
    NoBirth,
    /// Another mounted file system has the same UUID.
    SameUuid,
    /// Another machine makes the times.
    OtherClock,
    /// A program makes numbers and times.
    Program,
    /// A read-only image.
    Image,
    /// Change times are coarse, or copies of others.
    Coarse,
    /// Nothing is known of its type.
    Unknown,
}

impl TrustReason {
    /// The class that follows from it.
    pub const fn trust(self) -> Trust {
        match self {
            Self::OwnStamps => Trust::Full,
            _ => Trust::Weak,
        }
    }

    /// The same in words, as what the file system does.
    pub const fn words(self) -> &'static str {
        match self {
            Self::OwnStamps => "inode numbers, times of birth and change times are the kernel's own",
            Self::NoBirth => {
                "its files have no time of birth, so an inode number may be another file's by now"
            }
            Self::SameUuid => "another mounted file system has the same UUID",
            Self::OtherClock => "its times come from another machine's clock",
            Self::Program => "its inode numbers and times are made by a program",
            Self::Image => "its times are those of the files that were packed into the image",
            Self::Coarse => "its change times are coarse, or copies of other times",
            Self::Unknown => "nothing is known of how it stamps changes",
        }
    }
}

/// Which state of a file's content is meant. Any change of content changes it, where [`Trust::Full`] holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Version {
    /// Size in bytes.
    pub size: u64,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last change of the inode; cannot be set back by `utimensat`.
    pub ctime: Timestamp,
}

impl Version {
    /// How long a file must have lain still before its times tell all its states apart.
    ///
    /// The kernel stamps files with a clock that ticks every 1 to 10 ms, and file systems exist that keep whole
    /// seconds or two (FAT); git calls an entry inside this span "racy".
    pub const SETTLE_NS: i64 = 2_000_000_000;

    /// Whether the file lay still long enough at `now` (the host's clock) that this version names one content only.
    ///
    /// The change time alone decides, which only the kernel sets: a program may set the other one to any date. A change time in the
    /// future is as good as one in the past: the next change gets the time of then, which is another one. (The clock was set back
    /// since.) Where change times are not the kernel's own, no version names one content.
    pub const fn is_settled(&self, trust: Trust, now: Timestamp) -> bool {
        matches!(trust, Trust::Full) && now.0.abs_diff(self.ctime.0) >= Self::SETTLE_NS.unsigned_abs()
    }
}

/// What kind of thing a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A unix socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

/// Everything `stat(2)` tells, as the host sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// Who it is.
    pub node: NodeId,
    /// What it is.
    pub kind: FileKind,
    /// Permission bits with setuid, setgid and sticky: the low 12 bits of `st_mode`.
    pub permissions: u16,
    /// Number of hard links.
    pub links: u32,
    /// Owner on the host.
    pub uid: u32,
    /// Group on the host.
    pub gid: u32,
    /// Device number of a device node, as Linux encodes it in `st_rdev` for user space; 0 otherwise.
    pub device_number: u64,
    /// Size in bytes.
    pub size: u64,
    /// Allocated blocks of 512 bytes.
    pub blocks: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of content.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    /// Birth, where the file system keeps it.
    pub btime: Option<Timestamp>,
    /// Whether it has extended attributes that the host passes on. Hardly any file has, and programs ask for those of every
    /// file they list.
    pub has_xattrs: bool,
    /// How far node and version prove the content.
    pub trust: Trust,
    /// The host's clock when it looked, so that the client need not trust its own to tell whether a version is settled.
    pub observed: Timestamp,
}

impl Attributes {
    /// The version of the content that these attributes belong to.
    pub const fn version(&self) -> Version {
        Version { size: self.size, mtime: self.mtime, ctime: self.ctime }
    }

    /// Whether the version names one content only; see [`Version::is_settled`].
    pub const fn is_settled(&self) -> bool {
        self.version().is_settled(self.trust, self.observed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn timestamps_split_and_join(seconds in -9_000_000_000i64..9_000_000_000, ns in 0u32..1_000_000_000) {
            let time = Timestamp::new(seconds, ns);
            prop_assert_eq!((time.seconds(), time.subsecond_ns()), (seconds, ns));
        }
    }

    #[test]
    fn the_end_of_time_does_not_overflow() {
        assert_eq!(Timestamp::new(i64::MAX, 999_999_999), Timestamp(i64::MAX));
        assert_eq!(Timestamp::new(i64::MIN, 0).0, i64::MIN);
    }

    #[test]
    fn the_change_time_alone_settles_a_version() {
        let is_settled = |mtime, ctime, trust| {
            let version = Version { size: 1, mtime: Timestamp(mtime), ctime: Timestamp(ctime) };
            version.is_settled(trust, Timestamp(10_000_000_000))
        };
        assert!(is_settled(0, 8_000_000_000, Trust::Full));
        assert!(!is_settled(0, 8_000_000_001, Trust::Full), "young");
        assert!(is_settled(i64::MAX, 8_000_000_000, Trust::Full), "a program set the other time");
        assert!(!is_settled(0, 11_999_999_999, Trust::Full), "the clock may pass it soon");
        assert!(is_settled(0, 12_000_000_000, Trust::Full), "the clock was set back");
        assert!(is_settled(0, i64::MIN, Trust::Full));
        assert!(!is_settled(0, 0, Trust::Weak));
    }
}
