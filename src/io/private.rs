//! Private folders for keys, state and sockets, into which no other user can write.
//!
//! A folder is created private, whatever the umask is. It is refused if it belongs to another user or
//! others may write to it, because its content could then come from anybody.

use std::fs::{self, DirBuilder, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

use nix::unistd::geteuid;

/// Reason why a folder cannot be used, with a remedy. The text follows the path of the folder.
#[derive(Debug, thiserror::Error)]
pub enum NotPrivate {
    /// It cannot be created or inspected.
    #[error("cannot {verb} it: {source}")]
    System {
        /// Attempted action, as a verb.
        verb: &'static str,
        /// Error of the system.
        source: io::Error,
    },
    /// Something else has its name.
    #[error("it is not a folder; move it away, or name another")]
    NotAFolder,
    /// It belongs to another user.
    #[error(
        "it belongs to user {owner}, not to user {user}; name another, run as user {owner}, or check its content and \
         have root give it to user {user} (`chown`)"
    )]
    Owner {
        /// User id of its owner.
        owner: u32,
        /// User id of this process.
        user: u32,
    },
    /// Other users may write to it.
    #[error(
        "other users may write to it (mode {mode:04o}); check that everything in it is yours, then `chmod go-w`"
    )]
    Writable {
        /// Its permissions.
        mode: u32,
    },
}

/// Creates the folder for this user alone if it is missing, and returns its metadata. An existing one is
/// checked, and followed if it is a link.
pub fn prepare(path: &Path) -> Result<Metadata, NotPrivate> {
    let failed = |verb| move |source| NotPrivate::System { verb, source };
    DirBuilder::new().recursive(true).mode(0o700).create(path).or_else(|error| match error.kind() {
        // A dangling link or another kind of file is reported below.
        io::ErrorKind::AlreadyExists => Ok(()),
        _ => Err(failed("make")(error)),
    })?;
    let found = fs::metadata(path).map_err(failed("look at"))?;
    judge(&found, geteuid().as_raw()).map(|()| found)
}

/// Checks an existing folder, which must not be a link. Root's folders suit every user, and any folder
/// suits root.
pub fn check(path: &Path) -> Result<(), NotPrivate> {
    let found = fs::symlink_metadata(path);
    judge_for_use(&found.map_err(|source| NotPrivate::System { verb: "look at", source })?)
}

/// Checks a folder, which is followed if it is a link, and may be missing.
pub fn check_if_there(path: &Path) -> Result<(), NotPrivate> {
    match fs::metadata(path) {
        Ok(found) => judge_for_use(&found),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(NotPrivate::System { verb: "look at", source }),
    }
}

fn judge_for_use(found: &Metadata) -> Result<(), NotPrivate> {
    let user = geteuid().as_raw();
    judge(found, if found.uid() == 0 || user == 0 { found.uid() } else { user })
}

fn judge(found: &Metadata, user: u32) -> Result<(), NotPrivate> {
    let (owner, mode) = (found.uid(), found.mode() & 0o7777);
    if !found.is_dir() {
        Err(NotPrivate::NotAFolder)
    } else if owner != user {
        Err(NotPrivate::Owner { owner, user })
    } else if mode & 0o022 != 0 {
        Err(NotPrivate::Writable { mode })
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    #[test]
    fn a_folder_that_is_not_there_is_made_closed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        assert_eq!(prepare(&path).unwrap().mode() & 0o7777, 0o700);
        assert_eq!(fs::metadata(folder.path().join("a")).unwrap().mode() & 0o7777, 0o700);
        prepare(&path).unwrap();
        check(&path).unwrap();
    }

    #[test]
    fn a_folder_of_others_or_open_to_them_is_refused_with_a_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("open");
        fs::create_dir(&path).unwrap();
        for (mode, cure) in [(0o700, ""), (0o755, ""), (0o775, "chmod"), (0o1777, "chmod"), (0o702, "chmod")]
        {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            for result in [prepare(&path).map(drop), check(&path)] {
                let words = result.map_or_else(|refused| refused.to_string(), |()| String::new());
                assert!(words.contains(cure) && words.is_empty() == cure.is_empty(), "{mode:o}: {words}");
            }
        }
        if geteuid().is_root() {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
            chown(&path, Some(51_003), None).unwrap();
            let words = prepare(&path).unwrap_err().to_string();
            assert!(words.contains("51003") && words.contains("chown"), "{words}");
            check(&path).expect("root may ask everybody's daemons");
        }
    }

    #[test]
    fn another_kind_of_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        fs::write(&file, "").unwrap();
        assert!(matches!(prepare(&file), Err(NotPrivate::NotAFolder)));
        prepare(&folder.path().join("real")).unwrap();
        symlink("real", &link).unwrap();
        prepare(&link).unwrap();
        check_if_there(&link).unwrap();
        check_if_there(&folder.path().join("nothing")).unwrap();
        assert!(matches!(check_if_there(&file), Err(NotPrivate::NotAFolder)));
        assert!(matches!(check(&link), Err(NotPrivate::NotAFolder)), "a link in /tmp may belong to anybody");
    }
}
