//! The daemon's folder of state: who it is, who may come in, which tickets are out, where it listens.
//!
//! The folder is 0700, the files 0600. They are changed under a lock and replaced as a whole, so the daemon, the
//! commands and a person with an editor may all work on them.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::keys::AuthorizedKeys;
use super::tickets::TicketBook;
use crate::transport::Identity;
use crate::transport::identity::IdentityError;

const IDENTITY_FILE: &str = "host_key";
const KEYS_FILE: &str = "authorized_keys";
const TICKETS_FILE: &str = "tickets.json";
const RUNNING_FILE: &str = "running.json";
const LOCK_FILE: &str = "lock";

/// Longest file read, in bytes: some 50,000 keys.
const FILE_BYTES_MAX: u64 = 8 << 20;

/// Failure to read or keep the daemon's state.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A file or the folder cannot be used.
    #[error("cannot {verb} {}: {source}", path.display())]
    File {
        /// What was attempted.
        verb: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file holds something else than it should.
    #[error("{} cannot be understood: {reason}; mend or remove it", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The host's key cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Where a running daemon can be reached, and what it serves: written down for the commands beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningHost {
    /// Its process.
    pub process: u32,
    /// Names or addresses with ports, best first, as tickets carry them.
    pub addresses: Vec<String>,
    /// Names of its exports, in the order they were given.
    pub exports: Vec<String>,
}

/// Tells whether the file of authorised keys was touched.
pub(super) type KeysStamp = Option<(u64, u64, i64, i64)>;

/// The folder.
#[derive(Debug, Clone)]
pub struct StateDir {
    path: PathBuf,
}

impl StateDir {
    /// Uses the folder at `path`, which is made if need be and closed to others.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let failed = |verb| move |source| StateError::File { verb, path: path.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("make"))?;
        let mode = fs::metadata(path).map_err(failed("read"))?.mode();
        if mode & 0o077 != 0 {
            fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(failed("close to others"))?;
        }
        Ok(Self { path: path.to_owned() })
    }

    /// Where the folder is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The host's key pair, made at the first call.
    pub fn identity(&self) -> Result<Identity, StateError> {
        Ok(Identity::load_or_create(&self.path.join(IDENTITY_FILE))?)
    }

    /// Who may come in. Lines that make no sense are logged.
    pub fn keys(&self) -> Result<AuthorizedKeys, StateError> {
        let (keys, problems) = AuthorizedKeys::parse(&self.read(KEYS_FILE)?);
        for (line, problem) in problems {
            tracing::warn!("{} line {line} lets nobody in: {problem}", self.path.join(KEYS_FILE).display());
        }
        Ok(keys)
    }

    /// Which tickets are out.
    pub fn tickets(&self) -> Result<TicketBook, StateError> {
        let text = self.read(TICKETS_FILE)?;
        if text.is_empty() {
            return Ok(TicketBook::default());
        }
        serde_json::from_str(&text).map_err(|error| self.malformed(TICKETS_FILE, &error))
    }

    /// Changes keys and tickets; nobody else does meanwhile. What `change` leaves as it was is not written.
    pub fn update<T>(
        &self,
        change: impl FnOnce(&mut AuthorizedKeys, &mut TicketBook) -> T,
    ) -> Result<T, StateError> {
        let _lock = self.lock()?;
        let (keys, tickets) = (self.keys()?, self.tickets()?);
        let (mut new_keys, mut new_tickets) = (keys.clone(), tickets.clone());
        let answer = change(&mut new_keys, &mut new_tickets);
        // The tickets first: a crash in between then costs a ticket and does not give one key too many.
        if new_tickets != tickets {
            let text = serde_json::to_string_pretty(&new_tickets)
                .map_err(|error| self.malformed(TICKETS_FILE, &error))?;
            self.replace(TICKETS_FILE, &text)?;
        }
        if new_keys != keys {
            self.replace(KEYS_FILE, &new_keys.to_text())?;
        }
        Ok(answer)
    }

    /// Writes down that a daemon runs.
    pub fn write_running(&self, running: &RunningHost) -> Result<(), StateError> {
        let text = serde_json::to_string(running).map_err(|error| self.malformed(RUNNING_FILE, &error))?;
        self.replace(RUNNING_FILE, &text)
    }

    /// What a daemon wrote down, if one did and did not take it back. Whether it still runs is another question.
    pub fn running(&self) -> Result<Option<RunningHost>, StateError> {
        let text = self.read(RUNNING_FILE)?;
        if text.is_empty() {
            return Ok(None);
        }
        serde_json::from_str(&text).map(Some).map_err(|error| self.malformed(RUNNING_FILE, &error))
    }

    /// Takes back what [`Self::write_running`] wrote, unless another daemon has written since.
    pub fn clear_running(&self, process: u32) {
        if matches!(self.running(), Ok(Some(running)) if running.process == process) {
            // A note that stays behind is found out by its process.
            let _ = fs::remove_file(self.path.join(RUNNING_FILE));
        }
    }

    /// Changes whenever the file of authorised keys does.
    pub(super) fn keys_stamp(&self) -> KeysStamp {
        let found = fs::metadata(self.path.join(KEYS_FILE)).ok()?;
        Some((found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
    }

    /// The text of a file; empty where there is none.
    fn read(&self, name: &str) -> Result<String, StateError> {
        let path = self.path.join(name);
        let mut text = String::new();
        match File::open(&path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text)) {
            Ok(_) => Ok(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            Err(source) => Err(StateError::File { verb: "read", path, source }),
        }
    }

    /// The file appears whole or not at all, and is on the disk when this returns.
    fn replace(&self, name: &str, text: &str) -> Result<(), StateError> {
        let path = self.path.join(name);
        let beside = self.path.join(format!(".{name}.{}.new", std::process::id()));
        let write = || {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&beside, &path)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(|source| {
            let _ = fs::remove_file(&beside);
            StateError::File { verb: "write", path: path.clone(), source }
        })
    }

    /// Held until the file is dropped.
    fn lock(&self) -> Result<File, StateError> {
        let path = self.path.join(LOCK_FILE);
        let open = || {
            let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path)?;
            file.lock()?;
            Ok(file)
        };
        open().map_err(|source| StateError::File { verb: "lock", path: path.clone(), source })
    }

    fn malformed(&self, name: &str, error: &serde_json::Error) -> StateError {
        StateError::Malformed { path: self.path.join(name), reason: error.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::TicketSecret;
    use crate::transport::PublicKey;

    #[test]
    fn what_is_kept_is_private_and_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let state = StateDir::open(&path).unwrap();
        let id = state.update(|keys, tickets| {
            keys.add(PublicKey([1; 32]), "media", None, "test");
            tickets.issue(TicketSecret([2; 16]), "media", (None, 1, None), 0)
        });
        let again = StateDir::open(&path).unwrap();
        assert_eq!(again.tickets().unwrap().iter().next().unwrap().id, id.unwrap());
        assert!(again.keys().unwrap().find(PublicKey([1; 32])).is_some());
        let key = again.identity().unwrap().public_key();
        assert_eq!(state.identity().unwrap().public_key(), key);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        for entry in fs::read_dir(&path).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().mode() & 0o777, 0o600, "{:?}", entry.file_name());
        }
    }

    #[test]
    fn a_folder_open_to_others_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        StateDir::open(folder.path()).unwrap();
        assert_eq!(fs::metadata(folder.path()).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn two_that_change_it_at_once_lose_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path()).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4u8 {
                let state = &state;
                scope.spawn(move || {
                    for i in 0..5 {
                        let key = PublicKey([thread * 5 + i; 32]);
                        state.update(|keys, _| keys.add(key, "media", None, "")).unwrap();
                    }
                });
            }
        });
        assert_eq!(state.keys().unwrap().iter().count(), 20);
    }

    #[test]
    fn the_stamp_tells_that_keys_changed() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path()).unwrap();
        let before = state.keys_stamp();
        state.update(|keys, _| keys.add(PublicKey([1; 32]), "media", None, "")).unwrap();
        let added = state.keys_stamp();
        state.update(|_, tickets| tickets.revoke("none")).unwrap();
        assert!(before != added && state.keys_stamp() == added);
    }

    #[test]
    fn a_broken_book_of_tickets_is_an_error_and_not_an_empty_one() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path()).unwrap();
        fs::write(folder.path().join(TICKETS_FILE), "{").unwrap();
        assert!(matches!(state.tickets(), Err(StateError::Malformed { .. })));
    }

    #[test]
    fn a_daemon_takes_back_only_its_own_note() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path()).unwrap();
        let running = RunningHost { process: 7, addresses: vec!["a:1".into()], exports: vec!["x".into()] };
        state.write_running(&running).unwrap();
        state.clear_running(8);
        assert_eq!(state.running().unwrap(), Some(running));
        state.clear_running(7);
        assert_eq!(state.running().unwrap(), None);
    }
}
