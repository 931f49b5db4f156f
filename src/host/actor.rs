//! As whom a client acts: as the user who runs the daemon, as one whom its key names, or as the owner of the exported folder where root
//! runs the daemon; with that user's rights and no more.
//!
//! The kernel checks these rights at every operation: each begins by [`Actor::assume`] on the thread that does it. What reads from
//! files that were opened so needs no rights any more. Nothing that was opened for one user is used for another, because each has
//! trees of his own ([`super::core::Core::tree`]), and sessions belong to one key.

use std::ffi::CString;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use nix::errno::Errno as SystemErrno;
use nix::sys::stat::fstat;
use nix::unistd::{Gid, Uid, User, getegid, geteuid, getgrouplist};

use super::attributes::system_error;
use super::keys::{AuthorizedKey, Rights};
use crate::io::sys::{Assumed, Credentials};
use crate::proto::{ActingUser, WireError};

/// As whom.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) enum Actor {
    /// The user who runs the daemon.
    #[default]
    Daemon,
    /// Somebody else.
    User(Arc<Credentials>),
}

/// Why nobody can act as a user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// Nobody of that name.
    #[error("there is no user {0:?} on this host; name one, or write UID:GID")]
    Unknown(String),
    /// The system does not say.
    #[error("cannot tell who {user:?} is: {errno}")]
    Lookup {
        /// Who was looked for.
        user: String,
        /// What the system said.
        errno: SystemErrno,
    },
    /// The folder does not say whose it is.
    #[error("cannot tell whose the exported folder is: {errno}")]
    Folder {
        /// What the system said.
        errno: SystemErrno,
    },
    /// The daemon has no right to.
    #[error(
        "this host cannot act as {user:?} ({errno}): that takes a host that runs as root and may change users (CAP_SETUID, CAP_SETGID)"
    )]
    NotAllowed {
        /// As whom.
        user: String,
        /// What the system said.
        errno: SystemErrno,
    },
}

impl Actor {
    /// Whom a key with these rights acts as in an exported folder. Root is who chooses owners, and for others the owner of the folder, so that
    /// a key that was let in to somebody's files is not let in as root. Blocks.
    pub(super) fn of_key(rights: &Rights, folder: BorrowedFd<'_>) -> Result<Self, UserError> {
        match &rights.user {
            Some(user) => Self::named(Some(user)),
            None if rights.owners || !geteuid().is_root() => Ok(Self::Daemon),
            None => Self::owner_of(folder),
        }
    }

    /// The owner of a folder, with his groups; where the system does not know him with the folder's group alone. Blocks.
    pub(super) fn owner_of(folder: BorrowedFd<'_>) -> Result<Self, UserError> {
        let found = fstat(folder).map_err(|errno| UserError::Folder { errno })?;
        let (uid, gid) = (found.st_uid, found.st_gid);
        match Self::named(Some(&uid.to_string())) {
            Err(UserError::Unknown(_)) => Self::named(Some(&format!("{uid}:{gid}"))),
            known => known,
        }
    }

    /// Whom a key or a ticket names: by name, by number, or as `UID:GID` who needs not be known to the system and is in no other group.
    /// Tries whether the process may act so. Blocks, as names may be looked up anywhere.
    pub(super) fn named(user: Option<&str>) -> Result<Self, UserError> {
        let Some(user) = user else { return Ok(Self::Daemon) };
        let credentials = look_up(user)?;
        // Root acts as root by its own means: the restrictions of keys hold for it.
        if credentials.uid == geteuid().as_raw() {
            return Ok(Self::Daemon);
        }
        let tried = credentials.assume().map(drop);
        tried.map_err(|errno| UserError::NotAllowed { user: user.to_owned(), errno })?;
        Ok(Self::User(Arc::new(credentials)))
    }

    /// Lets the calling thread act so until the answer is dropped. Nothing that may start a thread may be called meanwhile.
    pub(super) fn assume(&self) -> Result<Option<Assumed>, WireError> {
        match self {
            Self::Daemon => Ok(None),
            Self::User(credentials) => credentials.assume().map(Some).map_err(system_error),
        }
    }

    /// Whether this is one and the same user; groups may be others.
    pub(super) fn is_same_user(&self, other: &Self) -> bool {
        self.ids() == other.ids()
    }

    /// Whether everything is allowed that no key forbids.
    pub(super) fn is_root(&self) -> bool {
        *self == Self::Daemon && geteuid().is_root()
    }

    /// The numbers of the user and his group.
    pub(super) fn ids(&self) -> ActingUser {
        match self {
            Self::Daemon => ActingUser { uid: geteuid().as_raw(), gid: getegid().as_raw() },
            Self::User(credentials) => ActingUser { uid: credentials.uid, gid: credentials.gid },
        }
    }
}

/// Whether a key is as good as root in an export of a host that root runs; `root_exports` are those whose folders are root's.
pub fn is_as_root(key: &AuthorizedKey, root_exports: &[String]) -> bool {
    match &key.rights.user {
        Some(user) => look_up(user).is_ok_and(|found| found.uid == 0),
        None => key.rights.owners || root_exports.iter().any(|export| key.may_mount(export)),
    }
}

fn look_up(user: &str) -> Result<Credentials, UserError> {
    if let Some((uid, gid)) = user.split_once(':') {
        let numbers = number(uid).zip(number(gid));
        let (uid, gid) = numbers.ok_or_else(|| UserError::Unknown(user.to_owned()))?;
        return Ok(Credentials { uid, gid, groups: vec![gid] });
    }
    let found = match number(user) {
        Some(uid) => User::from_uid(Uid::from_raw(uid)),
        None => User::from_name(user),
    };
    let lookup = |errno| UserError::Lookup { user: user.to_owned(), errno };
    let found = found.map_err(lookup)?.ok_or_else(|| UserError::Unknown(user.to_owned()))?;
    let name = CString::new(found.name).map_err(|_| UserError::Unknown(user.to_owned()))?;
    let groups = getgrouplist(&name, found.gid).map_err(lookup)?;
    let groups = groups.into_iter().map(Gid::as_raw).collect();
    Ok(Credentials { uid: found.uid.as_raw(), gid: found.gid.as_raw(), groups })
}

/// A user's or group's number; the last one means "nobody said" to the kernel.
fn number(text: &str) -> Option<u32> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|id| is_number && *id < u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn users_are_found_by_name_and_by_numbers() {
        let root = look_up("root").unwrap();
        assert_eq!((root.uid, root.gid), (0, 0));
        assert!(root.groups.contains(&0));
        assert_eq!(look_up("0").unwrap(), root);
        let unknown = look_up("54321:54322").unwrap();
        assert_eq!((unknown.uid, unknown.gid, unknown.groups), (54321, 54322, vec![54322]));
        for wrong in ["nobody-of-this-name", "54321", "1:", ":1", "a:b", "4294967295:1", "", "-1"] {
            assert_eq!(look_up(wrong), Err(UserError::Unknown(wrong.to_owned())), "{wrong}");
        }
    }

    #[test]
    fn a_key_acts_as_the_owner_of_the_folder_unless_it_says_otherwise() {
        let folder = tempfile::tempdir().unwrap();
        let opened = std::fs::File::open(folder.path()).unwrap();
        let of = |rights: &Rights| Actor::of_key(rights, opened.as_fd());
        let plain = Rights::default();
        assert_eq!(of(&plain), Ok(Actor::Daemon), "who runs the daemon owns the folder");
        if !geteuid().is_root() {
            return;
        }
        std::os::unix::fs::chown(folder.path(), Some(54_321), Some(54_322)).unwrap();
        let owner = of(&plain).unwrap();
        assert_eq!((owner.ids().uid, owner.ids().gid), (54_321, 54_322));
        assert_eq!(of(&Rights { read_only: true, ..plain.clone() }), Ok(owner));
        assert_eq!(of(&Rights { owners: true, ..plain.clone() }), Ok(Actor::Daemon));
        let other = Rights { user: Some("54323:54324".into()), ..plain.clone() };
        assert_eq!(of(&other).unwrap().ids().uid, 54_323);
        let root = Rights { user: Some("root".into()), ..plain };
        assert_eq!(of(&root), Ok(Actor::Daemon), "who wants root says so");
    }

    #[test]
    fn who_runs_the_daemon_needs_no_disguise_and_others_need_a_right() {
        let own = geteuid().to_string();
        let gid = getegid();
        assert_eq!(Actor::named(None), Ok(Actor::Daemon));
        assert_eq!(Actor::named(Some(&format!("{own}:{gid}"))), Ok(Actor::Daemon));
        match Actor::named(Some("54321:54322")) {
            Ok(actor) => assert!(geteuid().is_root() && !actor.is_root() && actor.ids().uid == 54321),
            Err(error) => assert!(!geteuid().is_root(), "{error}"),
        }
    }
}
