//! What is shared: a folder, under a name.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

/// Name of an export whose path has no last component.
const NAME_OF_ROOT: &str = "root";

/// Longest name of an export, in bytes: that of a directory entry, as clients write it like one.
const NAME_BYTES_MAX: usize = crate::proto::NAME_BYTES_MAX;

/// A folder that clients may mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// What clients call it; never empty, without `/` and control characters.
    pub name: String,
    /// The folder, absolute, free of symlinks when it was looked at.
    pub path: PathBuf,
    /// Whether nobody may change anything in it.
    pub read_only: bool,
}

/// Why something cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// There is nothing to export.
    #[error("no folder to serve: name at least one, as PATH or NAME=PATH")]
    Nothing,
    /// The path leads nowhere.
    #[error("cannot serve {}: {source}", path.display())]
    Path {
        /// What was given.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The path is no folder.
    #[error("cannot serve {}: it is not a folder; serve the folder that holds it", .0.display())]
    NotFolder(PathBuf),
    /// The name cannot be one.
    #[error("cannot serve {} under the name {name:?}: {reason}; give it another, as NAME=PATH", path.display())]
    Name {
        /// What was given, or made from the path.
        name: String,
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Two folders would have the same name.
    #[error("two folders are named {0:?}; give one of them another name, as NAME=PATH")]
    Twice(String),
}

impl Export {
    /// From what was typed: `PATH`, which is named like its last component, or `NAME=PATH`.
    ///
    /// A path that holds a `=` is written with a `/` in front of it, such as `./a=b`.
    pub fn parse(text: &OsStr) -> Result<Self, ExportError> {
        let (name, given) = split(text);
        let path_error = |source| ExportError::Path { path: given.to_owned(), source };
        let path = given.canonicalize().map_err(path_error)?;
        if !path.is_dir() {
            return Err(ExportError::NotFolder(path));
        }
        let name = match name {
            Some(name) => name.to_owned(),
            None => path.file_name().unwrap_or(OsStr::new(NAME_OF_ROOT)).to_owned(),
        };
        match name.to_str().ok_or("it is not valid UTF-8").and_then(|name| check_name(name).map(|()| name)) {
            Ok(name) => Ok(Self { name: name.to_owned(), path, read_only: false }),
            Err(reason) => Err(ExportError::Name { name: name.to_string_lossy().into_owned(), path, reason }),
        }
    }

    /// Whether these can be served together.
    pub fn check_all(exports: &[Self]) -> Result<(), ExportError> {
        if exports.is_empty() {
            return Err(ExportError::Nothing);
        }
        for (i, export) in exports.iter().enumerate() {
            if exports[..i].iter().any(|other| other.name == export.name) {
                return Err(ExportError::Twice(export.name.clone()));
            }
        }
        Ok(())
    }

    /// A descriptor of the folder, which stays it whatever is later found at its path.
    pub(super) fn open(&self) -> Result<OwnedFd, ExportError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        open(&self.path, flags, Mode::empty())
            .map_err(|errno: Errno| ExportError::Path { path: self.path.clone(), source: errno.into() })
    }
}

/// Name, where one was given, and path.
fn split(text: &OsStr) -> (Option<&OsStr>, &Path) {
    let bytes = text.as_bytes();
    match bytes.iter().position(|byte| *byte == b'=') {
        Some(at) if !bytes[..at].contains(&b'/') => {
            (Some(OsStr::from_bytes(&bytes[..at])), Path::new(OsStr::from_bytes(&bytes[at + 1..])))
        }
        _ => (None, Path::new(text)),
    }
}

fn check_name(name: &str) -> Result<(), &'static str> {
    match name {
        "" => Err("it is empty"),
        "." | ".." => Err("it is kept for the folder itself and the one above"),
        name if name.len() > NAME_BYTES_MAX => Err("it is longer than 255 bytes"),
        name if name.contains('/') => Err("it holds a `/`"),
        name if name.chars().any(char::is_control) => Err("it holds a control character"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &Path) -> Result<Export, ExportError> {
        Export::parse(text.as_os_str())
    }

    #[test]
    fn a_folder_is_named_like_its_last_component() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap().join("photos");
        std::fs::create_dir(&path).unwrap();
        let export = parse(&path.join("../photos/.")).unwrap();
        assert_eq!(export, Export { name: "photos".into(), path, read_only: false });
        assert_eq!(parse(Path::new("/")).unwrap().name, "root");
    }

    #[test]
    fn a_name_goes_in_front_of_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let mut text = std::ffi::OsString::from("my pictures=");
        text.push(folder.path());
        assert_eq!(Export::parse(&text).unwrap().name, "my pictures");
    }

    #[test]
    fn a_path_with_an_equals_sign_is_no_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a=b");
        std::fs::create_dir(&path).unwrap();
        assert_eq!(parse(&path).unwrap().name, "a=b");
    }

    #[test]
    fn what_cannot_be_served_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(parse(&file), Err(ExportError::NotFolder(_))));
        assert!(matches!(parse(&folder.path().join("none")), Err(ExportError::Path { .. })));
        for text in ["=/", "..=/", "a\n=/"] {
            assert!(matches!(parse(Path::new(text)), Err(ExportError::Name { .. })), "{text:?}");
        }
    }

    #[test]
    fn names_are_used_once() {
        let export = parse(Path::new("x=/")).unwrap();
        assert!(Export::check_all(std::slice::from_ref(&export)).is_ok());
        assert!(matches!(Export::check_all(&[export.clone(), export]), Err(ExportError::Twice(_))));
        assert!(matches!(Export::check_all(&[]), Err(ExportError::Nothing)));
    }
}
