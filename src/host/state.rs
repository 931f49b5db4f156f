//! The daemon's folder of state: who it is, who may come in, which tickets are out, where it listens.
//!
//! The folder is 0700, the files 0600. They are changed under a lock and replaced as a whole, so the daemon, the
//! commands and a person with an editor may all work on them.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::keys::AuthorizedKeys;
use super::tickets::TicketBook;
use crate::io::private::{self, NotPrivate};
use crate::proto::TicketSecret;
use crate::transport::Identity;
use crate::transport::identity::IdentityError;

const IDENTITY_FILE: &str = "host_key";
const KEYS_FILE: &str = "authorized_keys";
const TICKETS_FILE: &str = "tickets.json";
const RUNNING_FILE: &str = "running.json";
/// The secret of the ticket that was shown at the last start: as long as it is good it lies here, and of all others only the hash is kept.
const START_FILE: &str = "start_ticket";
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
    /// The folder is somebody else's, or others may write to it.
    #[error("cannot keep the host's keys in {}: {source}", path.display())]
    NotPrivate {
        /// The folder.
        path: PathBuf,
        /// Why, and what mends it.
        source: NotPrivate,
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
    /// Those in which a plain key acts as root.
    #[serde(default)]
    pub root_exports: Vec<String>,
}

/// Whether there is a process of this number.
fn is_process(process: u32) -> bool {
    let Ok(pid) = i32::try_from(process) else { return false };
    pid > 0 && kill(Pid::from_raw(pid), None) != Err(Errno::ESRCH)
}

/// Tells whether the files of authorised keys and of tickets were touched.
pub(super) type Stamp = [Option<(u64, u64, i64, i64)>; 2];

/// The folder.
#[derive(Debug, Clone)]
pub struct StateDir {
    path: PathBuf,
}

impl StateDir {
    /// Uses the folder at `path`, which is made if need be and closed to others. One that others may write to, or that is another user's, is
    /// refused: the keys in it may be anybody's.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let failed = |verb| move |source| StateError::File { verb, path: path.to_owned(), source };
        let found = private::prepare(path)
            .map_err(|source| StateError::NotPrivate { path: path.to_owned(), source })?;
        if found.mode() & 0o077 != 0 {
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

    /// Who may come in.
    pub fn keys(&self) -> Result<AuthorizedKeys, StateError> {
        Ok(AuthorizedKeys::parse(&self.read(KEYS_FILE)?).0)
    }

    /// Which tickets are out.
    pub fn tickets(&self) -> Result<TicketBook, StateError> {
        Ok(self.ticket_file()?.0)
    }

    fn ticket_file(&self) -> Result<(TicketBook, Vec<(usize, String)>), StateError> {
        let text = self.read(TICKETS_FILE)?;
        if text.is_empty() {
            return Ok(Default::default());
        }
        TicketBook::parse(&text).map_err(|error| self.malformed(TICKETS_FILE, &error))
    }

    /// What in the files lets nobody in because it cannot be understood or read, one sentence for each.
    pub fn problems(&self) -> Vec<String> {
        let keys = self.path.join(KEYS_FILE);
        let bad_line = |(line, why)| format!("{} line {line} lets nobody in: {why}", keys.display());
        let mut problems = match self.read(KEYS_FILE) {
            Ok(text) => AuthorizedKeys::parse(&text).1.into_iter().map(bad_line).collect(),
            Err(error) => vec![error.to_string()],
        };
        let tickets = self.path.join(TICKETS_FILE);
        let bad_entry = |(entry, why)| format!("{} entry {entry} lets nobody in: {why}", tickets.display());
        match self.ticket_file() {
            Ok((_, found)) => problems.extend(found.into_iter().map(bad_entry)),
            Err(error) => problems.push(error.to_string()),
        }
        problems
    }

    /// Changes keys and tickets; nobody else does meanwhile. What `change` leaves as it was is not written. A file of tickets that cannot
    /// be understood is never replaced, and keeps nobody from changing the keys.
    pub fn update<T>(
        &self,
        change: impl FnOnce(&mut AuthorizedKeys, &mut TicketBook) -> T,
    ) -> Result<T, StateError> {
        let _lock = self.lock()?;
        let keys = self.keys()?;
        let (tickets, unread) = match self.tickets() {
            Err(error @ StateError::Malformed { .. }) => (TicketBook::default(), Some(error)),
            tickets => (tickets?, None),
        };
        let (mut new_keys, mut new_tickets) = (keys.clone(), tickets.clone());
        let answer = change(&mut new_keys, &mut new_tickets);
        // The tickets first: a crash in between then costs a ticket and does not give one key too many.
        if new_tickets != tickets {
            if let Some(unread) = unread {
                return Err(unread);
            }
            let text = new_tickets.to_text().map_err(|error| self.malformed(TICKETS_FILE, &error))?;
            self.replace(TICKETS_FILE, text.as_bytes())?;
        }
        if new_keys != keys {
            self.replace(KEYS_FILE, &new_keys.to_text())?;
        }
        Ok(answer)
    }

    /// The secret of the ticket that was shown at the last start, if it can be read.
    pub(super) fn start_secret(&self) -> Option<TicketSecret> {
        let text = self.read(START_FILE).ok()?;
        let bytes = HEXLOWER.decode(text.trim_ascii()).ok()?;
        bytes.try_into().ok().map(TicketSecret)
    }

    /// Keeps the secret of the ticket that is shown at the start.
    pub(super) fn write_start_secret(&self, secret: TicketSecret) -> Result<(), StateError> {
        self.replace(START_FILE, format!("{}\n", HEXLOWER.encode(&secret.0)).as_bytes())
    }

    /// Writes down that a daemon runs, beside others that run with this folder, too.
    pub fn write_running(&self, running: &RunningHost) -> Result<(), StateError> {
        let _lock = self.lock()?;
        // A list that cannot be read is made anew: it holds nothing that the next daemon would not write again.
        let mut all = self.running().unwrap_or_default();
        all.retain(|other| other.process != running.process);
        all.push(running.clone());
        self.replace_running(&all)
    }

    /// The daemons that run with this folder, in the order in which they began.
    pub fn running(&self) -> Result<Vec<RunningHost>, StateError> {
        let text = self.read(RUNNING_FILE)?;
        if text.is_empty() {
            return Ok(Vec::new());
        }
        let mut all: Vec<RunningHost> =
            serde_json::from_slice(&text).map_err(|error| self.malformed(RUNNING_FILE, &error))?;
        // One that was killed could not take its entry back.
        all.retain(|host| is_process(host.process));
        Ok(all)
    }

    /// Takes back what a daemon wrote by [`Self::write_running`].
    pub fn clear_running(&self, process: u32) {
        // An entry that stays behind is found out by its process.
        let Ok(_lock) = self.lock() else { return };
        let Ok(mut all) = self.running() else { return };
        all.retain(|host| host.process != process);
        if all.is_empty() {
            let _ = fs::remove_file(self.path.join(RUNNING_FILE));
        } else {
            let _ = self.replace_running(&all);
        }
    }

    fn replace_running(&self, all: &[RunningHost]) -> Result<(), StateError> {
        let text = serde_json::to_string(all).map_err(|error| self.malformed(RUNNING_FILE, &error))?;
        self.replace(RUNNING_FILE, text.as_bytes())
    }

    /// Changes whenever the files of authorised keys and of tickets do.
    pub(super) fn stamp(&self) -> Stamp {
        [KEYS_FILE, TICKETS_FILE].map(|name| {
            let found = fs::metadata(self.path.join(name)).ok()?;
            Some((found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
        })
    }

    /// The text of a file; empty where there is none. One that is too long is an error, because the half of a line may give more
    /// than the whole.
    fn read(&self, name: &str) -> Result<Vec<u8>, StateError> {
        let path = self.path.join(name);
        let mut text = Vec::new();
        match File::open(&path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut text)) {
            Ok(_) if text.len() as u64 > FILE_BYTES_MAX => {
                Err(StateError::File { verb: "read", path, source: io::ErrorKind::FileTooLarge.into() })
            }
            Ok(_) => Ok(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(source) => Err(StateError::File { verb: "read", path, source }),
        }
    }

    /// The file appears whole or not at all, and is on the disk when this returns.
    fn replace(&self, name: &str, text: &[u8]) -> Result<(), StateError> {
        let path = self.path.join(name);
        let beside = self.path.join(format!(".{name}.{}.new", std::process::id()));
        let write = || {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
            file.write_all(text)?;
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
    use crate::host::keys::Rights;
    use crate::host::tickets::Terms;
    use crate::transport::PublicKey;

    #[test]
    fn what_is_kept_is_private_and_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let state = StateDir::open(&path).unwrap();
        let id = state.update(|keys, tickets| {
            keys.add(PublicKey([1; 32]), "media", &Rights::default(), ("", "test"));
            tickets.issue(TicketSecret([2; 16]), "media", Terms { keys_max: 1, ..Terms::default() }, 0)
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
    fn a_folder_that_others_may_write_to_is_refused_and_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o1777)).unwrap();
        let refused = StateDir::open(folder.path()).unwrap_err().to_string();
        assert!(refused.contains("chmod"), "{refused}");
        assert_eq!(fs::metadata(folder.path()).unwrap().mode() & 0o7777, 0o1777);
    }

    #[test]
    fn two_that_change_it_at_once_lose_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(&folder.path().join("state")).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4u8 {
                let state = &state;
                scope.spawn(move || {
                    for i in 0..5 {
                        let key = PublicKey([thread * 5 + i; 32]);
                        state.update(|keys, _| keys.add(key, "media", &Rights::default(), ("", ""))).unwrap();
                    }
                });
            }
        });
        assert_eq!(state.keys().unwrap().iter().count(), 20);
    }

    #[test]
    fn the_stamp_tells_that_keys_or_tickets_changed() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(&folder.path().join("state")).unwrap();
        let before = state.stamp();
        state.update(|keys, _| keys.add(PublicKey([1; 32]), "media", &Rights::default(), ("", ""))).unwrap();
        let added = state.stamp();
        state.update(|_, tickets| tickets.revoke("none")).unwrap();
        assert!(before != added && state.stamp() == added);
        state
            .update(|_, tickets| tickets.issue(TicketSecret([2; 16]), "media", Terms::default(), 0))
            .unwrap();
        assert_ne!(state.stamp(), added);
    }

    #[test]
    fn a_key_is_revoked_although_the_tickets_cannot_be_understood() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(&folder.path().join("state")).unwrap();
        let key = PublicKey([1; 32]);
        fs::write(state.path().join(KEYS_FILE), format!("{key}\n")).unwrap();
        fs::write(state.path().join(TICKETS_FILE), "{").unwrap();
        assert!(state.update(|keys, _| keys.revoke(key)).unwrap());
        assert!(state.keys().unwrap().find(key).is_none());
        let issue = |tickets: &mut TicketBook| {
            tickets.issue(TicketSecret([2; 16]), "media", Terms::default(), 0);
        };
        assert!(matches!(state.update(|_, tickets| issue(tickets)), Err(StateError::Malformed { .. })));
        assert_eq!(fs::read(state.path().join(TICKETS_FILE)).unwrap(), b"{", "a person may mend it");
    }

    #[test]
    fn what_lets_nobody_in_is_named_by_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(&folder.path().join("state")).unwrap();
        assert!(state.problems().is_empty());
        fs::write(state.path().join(KEYS_FILE), "# top\nnonsense\n").unwrap();
        fs::write(state.path().join(TICKETS_FILE), "{\"tickets\": [{}]}").unwrap();
        let problems = state.problems();
        assert_eq!(problems.len(), 2);
        assert!(problems[0].contains("authorized_keys line 2"), "{}", problems[0]);
        assert!(problems[1].contains("tickets.json entry 1"), "{}", problems[1]);
    }

    #[test]
    fn a_file_that_is_too_long_is_not_read_in_part() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(&folder.path().join("state")).unwrap();
        let key = PublicKey([1; 32]);
        let mut text = vec![b' '; FILE_BYTES_MAX as usize - key.to_string().len()];
        text.extend_from_slice(format!("{key} ro\n").as_bytes());
        fs::write(state.path().join(KEYS_FILE), text).unwrap();
        assert!(state.keys().is_err(), "the half line would allow more than the whole");
    }

    #[test]
    fn a_broken_book_of_tickets_is_an_error_and_not_an_empty_one() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(&folder.path().join("state")).unwrap();
        fs::write(state.path().join(TICKETS_FILE), "{").unwrap();
        assert!(matches!(state.tickets(), Err(StateError::Malformed { .. })));
    }

    #[test]
    fn daemons_that_share_a_folder_keep_their_own_entries() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(&folder.path().join("state")).unwrap();
        let host = |process: u32, export: &str| RunningHost {
            process,
            addresses: vec!["a:1".into()],
            exports: vec![export.into()],
            root_exports: Vec::new(),
        };
        // Two processes that are there, and one that is not.
        let (first, second) = (host(1, "first"), host(std::process::id(), "second"));
        for running in [&first, &host(i32::MAX as u32, "killed"), &second] {
            state.write_running(running).unwrap();
        }
        assert_eq!(state.running().unwrap(), [first.clone(), second.clone()]);
        state.clear_running(7);
        state.clear_running(second.process);
        assert_eq!(state.running().unwrap(), [first]);
        state.clear_running(1);
        assert_eq!(state.running().unwrap(), []);
        fs::write(state.path().join(RUNNING_FILE), "{").unwrap();
        assert!(state.running().is_err());
        state.write_running(&second).unwrap();
        assert_eq!(state.running().unwrap(), [second]);
    }
}
