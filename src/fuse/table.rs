//! The mount table, read without touching any mount. A file system whose daemon hangs makes `stat` hang.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// File system type in `/proc/mounts`.
pub const FS_TYPE: &str = "fuse.wormhole";

/// An entry of the mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// Id of the mount. The kernel reuses it when the mount is gone.
    pub id: u64,
    /// Mountpoint.
    pub mountpoint: PathBuf,
    /// File system type.
    pub fs_type: String,
    /// Source, as shown to users.
    pub source: String,
    /// Major and minor number of its device. The minor number is also the number of the FUSE connection.
    pub device: (u32, u32),
}

impl MountEntry {
    /// Returns true for wormhole mounts.
    pub fn is_wormhole(&self) -> bool {
        self.fs_type == FS_TYPE
    }

    /// Returns true if both are the same mount. While a mount is served, no other mount has its device.
    pub fn is_same_mount(&self, other: &Self) -> bool {
        (self.id, self.device) == (other.id, other.device)
    }

    /// Returns its device as `MAJOR:MINOR`.
    pub fn device_text(&self) -> String {
        format!("{}:{}", self.device.0, self.device.1)
    }
}

/// Returns all mounts that this process sees, in the order in which they were made.
pub fn mounts() -> io::Result<Vec<MountEntry>> {
    fs::read("/proc/self/mountinfo").map(|text| parse(&text))
}

/// Returns the topmost mount at `mountpoint`.
pub fn mount_at(mountpoint: &Path) -> io::Result<Option<MountEntry>> {
    Ok(newest_at(mounts()?, mountpoint))
}

fn newest_at(mounts: Vec<MountEntry>, mountpoint: &Path) -> Option<MountEntry> {
    mounts.into_iter().rev().find(|entry| entry.mountpoint == mountpoint)
}

/// Returns the absolute path of a possible mountpoint. It resolves the parent, and does not touch the last
/// name.
pub fn resolve(path: &Path) -> io::Result<PathBuf> {
    let absolute = std::path::absolute(path)?;
    match (absolute.parent(), absolute.file_name()) {
        (Some(above), Some(name)) => Ok(above.canonicalize()?.join(name)),
        // The path ends in `..`, or is the root.
        _ => absolute.canonicalize(),
    }
}

/// Reads the lines of `mountinfo` (proc(5)). Other lines are skipped.
fn parse(text: &[u8]) -> Vec<MountEntry> {
    text.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let words: Vec<_> = line.split(|byte| *byte == b' ').collect();
    let (id, device, mountpoint) = (words.first()?, words.get(2)?, words.get(4)?);
    // Optional fields precede the single hyphen.
    let behind = words.iter().skip(6).position(|word| *word == b"-")? + 7;
    let (major, minor) = std::str::from_utf8(device).ok()?.split_once(':')?;
    Some(MountEntry {
        id: std::str::from_utf8(id).ok()?.parse().ok()?,
        mountpoint: OsString::from_vec(unescape(mountpoint)).into(),
        fs_type: String::from_utf8_lossy(words.get(behind)?).into_owned(),
        source: String::from_utf8_lossy(&unescape(words.get(behind + 1)?)).into_owned(),
        device: (major.parse().ok()?, minor.parse().ok()?),
    })
}

/// Decodes a field. The kernel writes blanks, newlines and backslashes as a backslash with three octal
/// digits.
fn unescape(word: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((&first, after)) = rest.split_first() {
        let escaped = (first == b'\\').then(|| after.get(..3)).flatten().and_then(octal);
        plain.push(escaped.unwrap_or(first));
        rest = if escaped.is_some() { &after[3..] } else { after };
    }
    plain
}

fn octal(digits: &[u8]) -> Option<u8> {
    std::str::from_utf8(digits).ok().and_then(|digits| u8::from_str_radix(digits, 8).ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const INFO: &[u8] = b"22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
        30 22 0:26 / /proc rw shared:12 master:1 - proc proc rw\n\
        41 22 0:45 / /mnt/a\\040b ro,nosuid,nodev shared:2 - fuse.wormhole nas:/media ro,user_id=0\n\
        nonsense\n";

    #[test]
    fn lines_are_read_with_and_without_optional_words() {
        let entries = parse(INFO);
        assert_eq!(entries.len(), 3);
        let expected = MountEntry {
            id: 41,
            mountpoint: "/mnt/a b".into(),
            fs_type: FS_TYPE.to_owned(),
            source: "nas:/media".to_owned(),
            device: (0, 45),
        };
        assert_eq!(entries[2], expected);
        assert!(expected.is_wormhole() && !entries[0].is_wormhole());
    }

    #[test]
    fn the_newest_mount_on_a_folder_is_found() {
        let table = b"91 28 0:41 / /mnt/a rw - fuse.wormhole nas:/a rw\n\
            92 91 0:42 / /mnt/a rw - fuse.wormhole nas:/b rw\n";
        let newest =
            |place: &str| newest_at(parse(table), Path::new(place)).map(|entry| (entry.id, entry.device));
        assert_eq!((newest("/mnt/a"), newest("/mnt")), (Some((92, (0, 42))), None));
    }

    #[test]
    fn a_mount_is_known_by_its_number_and_its_device() {
        let entry = parse(b"91 28 0:41 / /mnt/a rw - fuse.wormhole nas:/a rw\n").remove(0);
        assert!(entry.is_same_mount(&MountEntry { source: "nas:/b".to_owned(), ..entry.clone() }));
        for other in [MountEntry { id: 92, ..entry.clone() }, MountEntry { device: (0, 42), ..entry.clone() }]
        {
            assert!(!entry.is_same_mount(&other));
        }
        assert_eq!(entry.device_text(), "0:41");
    }

    #[test]
    fn the_root_of_this_machine_is_mounted() {
        assert!(mount_at(Path::new("/")).unwrap().is_some());
    }

    #[test]
    fn the_last_name_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let above = directory.path().canonicalize().unwrap();
        std::os::unix::fs::symlink("/", above.join("link")).unwrap();
        assert_eq!(resolve(&above.join("link/")).unwrap(), above.join("link"));
        assert_eq!(resolve(&above.join("link/missing")).unwrap(), Path::new("/missing"));
        assert_eq!(resolve(&above.join("link/..")).unwrap(), Path::new("/"));
        assert!(resolve(&above.join("missing/x")).is_err());
    }

    proptest! {
        #[test]
        fn escaped_fields_are_decoded(name in proptest::collection::vec(any::<u8>(), 0..20)) {
            let mut escaped = Vec::new();
            for byte in &name {
                match byte {
                    b' ' | b'\t' | b'\n' | b'\\' => escaped.extend(format!("\\{byte:03o}").bytes()),
                    other => escaped.push(*other),
                }
            }
            prop_assert_eq!(unescape(&escaped), name);
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            parse(&text);
        }
    }
}
