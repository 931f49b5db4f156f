//! (P) Trust class of a file system: how far the numbers that it gives its files prove anything.
//!
//! Content is kept under (node, version). That proves something only where an inode number with its time of birth names one
//! file for ever, and where each change of content moves the change time by the clock of this kernel. Elsewhere what is kept
//! is a guess, and is compared by hash before it is used.

use crate::proto::{Timestamp, Trust, TrustReason};

/// Facts about a mounted file system, as the kernel tells them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "each is one thing that was looked at")]
pub(super) struct Facts {
    /// Type, as `statfs` names it.
    pub(super) magic: i64,
    /// Whether the file that was looked at has a time of birth.
    pub(super) has_birth: bool,
    /// Whether `statfs` tells an id.
    pub(super) has_fsid: bool,
    /// Whether it tells a UUID.
    pub(super) has_uuid: bool,
    /// Whether another file system that is mounted bears the same UUID.
    pub(super) has_twin: bool,
}

/// Source of a file system's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IdSource {
    /// The id that `statfs` tells, which is made of its UUID: survives a restart of the machine, and other device numbers.
    Fsid,
    /// Its UUID, likewise: what `statfs` tells there is the device number.
    Uuid,
    /// Its device number: the id holds until the machine restarts.
    Device,
    /// Its size and the file that holds it: device numbers of images are used again by other images.
    Image,
}

/// Verdict on a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Name of its type.
    pub(super) name: &'static str,
    pub(super) reason: TrustReason,
    pub(super) id_source: IdSource,
}

impl Verdict {
    pub(super) const fn trust(&self) -> Trust {
        self.reason.trust()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Stamps each change by this kernel's clock. The id of `statfs` is made of the UUID.
    LocalFsid,
    /// The same; the id of `statfs` is the device number.
    LocalUuid,
    /// The same, gone with a restart of the machine.
    LocalUntilRestart,
    /// Times and numbers are another machine's.
    Remote,
    /// Times and numbers are made by a program.
    Program,
    /// Read-only image, whose times are those of the files that went into it.
    Image,
    /// Keeps no change time, or coarse ones.
    Simple,
}

const KINDS: &[(i64, &str, Kind)] = &[
    (0xEF53, "ext4", Kind::LocalFsid),
    (0x5846_5342, "xfs", Kind::LocalUuid),
    (0x9123_683E, "btrfs", Kind::LocalFsid),
    (0xF2F5_2010, "f2fs", Kind::LocalUuid),
    (0xCA45_1A4E, "bcachefs", Kind::LocalFsid),
    (0x2FC1_2FC1, "zfs", Kind::LocalFsid),
    (0x0102_1994, "tmpfs", Kind::LocalUntilRestart),
    (0x794C_7630, "overlay", Kind::LocalUntilRestart),
    (0x6969, "nfs", Kind::Remote),
    (0x517B, "smb", Kind::Remote),
    (0xFF53_4D42, "cifs", Kind::Remote),
    (0xFE53_4D42, "smb2", Kind::Remote),
    (0x0102_1997, "9p", Kind::Remote),
    (0x00C3_6400, "ceph", Kind::Remote),
    (0x5346_414F, "afs", Kind::Remote),
    (0x0BD0_0BD0, "lustre", Kind::Remote),
    (0x7461_636F, "ocfs2", Kind::Remote),
    (0x0116_1970, "gfs2", Kind::Remote),
    (0x786F_4256, "vboxsf", Kind::Remote),
    (0x6573_5546, "fuse", Kind::Program),
    (0x7371_7368, "squashfs", Kind::Image),
    (0x9660, "iso9660", Kind::Image),
    (0xE0F5_E1E2, "erofs", Kind::Image),
    (0x1501_3346, "udf", Kind::Image),
    (0x28CD_3D45, "cramfs", Kind::Image),
    (0x7275, "romfs", Kind::Image),
    (0x4D44, "vfat", Kind::Simple),
    (0x2011_BAB0, "exfat", Kind::Simple),
    (0x5346_544E, "ntfs", Kind::Simple),
    (0x7366_746E, "ntfs3", Kind::Simple),
    (0x4244, "hfs", Kind::Simple),
    (0x482B, "hfsplus", Kind::Simple),
];

/// Returns the trust class of a file system, and why.
pub(super) fn decide(facts: Facts) -> Verdict {
    let known = KINDS.iter().find(|(magic, ..)| *magic == facts.magic);
    let (name, kind) = known.map_or(("unknown", Kind::Simple), |(_, name, kind)| (*name, *kind));
    let reason = match kind {
        Kind::LocalFsid | Kind::LocalUuid | Kind::LocalUntilRestart if !facts.has_birth => {
            TrustReason::NoBirth
        }
        Kind::LocalFsid | Kind::LocalUuid if facts.has_twin => TrustReason::SameUuid,
        Kind::LocalFsid | Kind::LocalUuid | Kind::LocalUntilRestart => TrustReason::OwnStamps,
        Kind::Remote => TrustReason::OtherClock,
        Kind::Program => TrustReason::Program,
        Kind::Image => TrustReason::Image,
        Kind::Simple if known.is_none() => TrustReason::Unknown,
        Kind::Simple => TrustReason::Coarse,
    };
    let id_source = match kind {
        Kind::LocalFsid if facts.has_fsid => IdSource::Fsid,
        Kind::LocalUuid if facts.has_uuid => IdSource::Uuid,
        Kind::Image => IdSource::Image,
        _ => IdSource::Device,
    };
    Verdict { name, reason, id_source }
}

/// Returns the trust class of one file on a file system of class `of_file_system`.
///
/// A change time of whole milliseconds is not the kernel's: tools that make images and file systems without nanoseconds have such
/// ones. A kernel's own is one by chance, once in a million, and costs that file a comparison.
pub(super) const fn of_file(of_file_system: Trust, has_birth: bool, ctime: Timestamp) -> Trust {
    const MILLISECOND_NS: i64 = 1_000_000;
    match of_file_system {
        Trust::Full if has_birth && ctime.0 % MILLISECOND_NS != 0 => Trust::Full,
        _ => Trust::Weak,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: Facts = Facts { magic: 0, has_birth: true, has_fsid: true, has_uuid: true, has_twin: false };

    fn verdict(magic: i64) -> (Trust, IdSource) {
        let verdict = decide(Facts { magic, ..FACTS });
        (verdict.trust(), verdict.id_source)
    }

    #[test]
    fn each_file_system_has_its_class() {
        use IdSource::{Device, Fsid, Image, Uuid};
        use Trust::{Full, Weak};
        let table = [
            (libc::EXT4_SUPER_MAGIC, (Full, Fsid)),
            (libc::XFS_SUPER_MAGIC, (Full, Uuid)),
            (libc::BTRFS_SUPER_MAGIC, (Full, Fsid)),
            (libc::F2FS_SUPER_MAGIC, (Full, Uuid)),
            (libc::TMPFS_MAGIC, (Full, Device)),
            (libc::OVERLAYFS_SUPER_MAGIC, (Full, Device)),
            (libc::NFS_SUPER_MAGIC, (Weak, Device)),
            (libc::SMB_SUPER_MAGIC, (Weak, Device)),
            (0xFF53_4D42, (Weak, Device)),
            (libc::FUSE_SUPER_MAGIC, (Weak, Device)),
            (0x7371_7368, (Weak, Image)),
            (libc::ISOFS_SUPER_MAGIC, (Weak, Image)),
            (0xE0F5_E1E2, (Weak, Image)),
            (libc::MSDOS_SUPER_MAGIC, (Weak, Device)),
            (libc::HPFS_SUPER_MAGIC, (Weak, Device)),
        ];
        for (magic, expected) in table {
            assert_eq!(verdict(magic), expected, "{magic:#x}");
        }
    }

    #[test]
    fn what_is_missing_makes_it_weaker() {
        let ext4 = Facts { magic: libc::EXT4_SUPER_MAGIC, ..FACTS };
        assert_eq!(decide(Facts { has_birth: false, ..ext4 }).trust(), Trust::Weak, "ext3");
        assert_eq!(decide(Facts { has_twin: true, ..ext4 }).trust(), Trust::Weak);
        let tmpfs = Facts { magic: libc::TMPFS_MAGIC, ..FACTS };
        assert_eq!(decide(Facts { has_birth: false, ..tmpfs }).trust(), Trust::Weak, "before Linux 6.0");
        let nameless = decide(Facts { has_fsid: false, ..ext4 });
        assert_eq!((nameless.trust(), nameless.id_source), (Trust::Full, IdSource::Device));
        let xfs = decide(Facts { magic: libc::XFS_SUPER_MAGIC, has_uuid: false, ..FACTS });
        assert_eq!((xfs.trust(), xfs.id_source), (Trust::Full, IdSource::Device));
    }

    #[test]
    fn a_file_is_trusted_by_its_own_stamps_only() {
        let fine = Timestamp(1_700_000_000_123_456_789);
        assert_eq!(of_file(Trust::Full, true, fine), Trust::Full);
        assert_eq!(of_file(Trust::Full, false, fine), Trust::Weak);
        assert_eq!(of_file(Trust::Full, true, Timestamp(1_700_000_000_000_000_000)), Trust::Weak, "an image");
        assert_eq!(of_file(Trust::Weak, true, fine), Trust::Weak);
    }
}
