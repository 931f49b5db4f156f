//! The known-hosts file, which users read and edit. [`host_key_table`](super::host_key_table) defines its
//! lines.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use thiserror::Error;

use super::host_key_table::{BadLine, Expected, HostContact, HostKeyTable, HostQuery, KeyVerdict, Notice};
use super::identity::PublicKey;
use super::mount_source::{AddressKind, HostAddress};

/// Largest file read, enough for some hundred thousand hosts.
const FILE_BYTES_MAX: u64 = 32 << 20;

/// The known-hosts file at a path. It is read for every query, so an edit takes effect at once.
#[derive(Clone, Debug)]
pub struct KnownHosts {
    path: PathBuf,
}

impl KnownHosts {
    /// Returns the file at `path`, which need not exist yet.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the keys that may answer for the target.
    pub fn expected(&self, query: &HostQuery) -> Result<Expected, KnownHostsError> {
        self.table()?.expected(query).map_err(|line| self.bad(line))
    }

    /// Returns all keys of known hosts.
    pub fn keys(&self) -> Result<BTreeSet<PublicKey>, KnownHostsError> {
        Ok(self.table()?.keys())
    }

    /// Returns the local name of a host with the key `presented`, if it may answer for the target. Else
    /// returns the reason.
    pub fn check(&self, query: &HostQuery, presented: PublicKey) -> Result<String, KnownHostsError> {
        let (table, host) = (self.table()?, query.address.clone());
        match table.verdict(query, presented).map_err(|line| self.bad(line))? {
            KeyVerdict::Trusted => Ok(table.known_as(presented)),
            KeyVerdict::Unknown => Err(KnownHostsError::UnknownHost { host, presented }),
            KeyVerdict::Mismatch { known, line }
                if query.kind == AddressKind::Address && table.keys().contains(&presented) =>
            {
                Err(KnownHostsError::AddressMoved(Box::new(AddressMoved {
                    host,
                    export: query.export.clone(),
                    known_as: table.known_as(known),
                    presented_as: table.known_as(presented),
                    path: self.path.clone(),
                    line,
                })))
            }
            KeyVerdict::Mismatch { known, line } => {
                let path = self.path.clone();
                Err(KnownHostsError::KeyMismatch(Box::new(KeyMismatch {
                    host,
                    known,
                    presented,
                    path,
                    line,
                })))
            }
        }
    }

    /// Records a host that answered, under every name at which it did. Returns notices to the user.
    ///
    /// The file is created with mode 0600 if there is none. Programs that record at the same time do not lose
    /// lines.
    pub fn record(&self, contact: &HostContact) -> Result<Vec<Notice>, KnownHostsError> {
        let mut file = self.open_locked().map_err(|source| self.failed("write", source))?;
        let text = self.read(&mut file)?;
        let mut table = HostKeyTable::parse(&text);
        let before = table.text();
        let notices = table.record(contact);
        let after = table.text();
        if after != before {
            let written = match after.strip_prefix(&text) {
                Some(more) => append(&mut file, more),
                None => self.replace(&after),
            };
            written.map_err(|source| self.failed("write", source))?;
        }
        Ok(notices)
    }

    fn table(&self) -> Result<HostKeyTable, KnownHostsError> {
        match fs::File::open(&self.path) {
            Ok(mut file) => Ok(HostKeyTable::parse(&self.read(&mut file)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(HostKeyTable::default()),
            Err(source) => Err(self.failed("read", source)),
        }
    }

    /// Opens and locks the file. The lock goes with the file handle. A file that was replaced while we waited
    /// for the lock is opened again.
    fn open_locked(&self) -> io::Result<fs::File> {
        if let Some(folder) = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        loop {
            let file =
                fs::OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&self.path)?;
            file.lock()?;
            let (locked, there) = (file.metadata()?, fs::metadata(&self.path));
            if there.is_ok_and(|there| (there.dev(), there.ino()) == (locked.dev(), locked.ino())) {
                return Ok(file);
            }
        }
    }

    /// Replaces the file under its lock. A reader sees the old one or the new one.
    fn replace(&self, text: &str) -> io::Result<()> {
        let path = fs::canonicalize(&self.path)?;
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let beside = path.with_file_name(name);
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, &path)
    }

    fn read(&self, file: &mut fs::File) -> Result<String, KnownHostsError> {
        let mut text = String::new();
        file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(|source| self.failed("read", source))?;
        Ok(text)
    }

    fn bad(&self, line: BadLine) -> KnownHostsError {
        KnownHostsError::BadLine { path: self.path.clone(), line: line.0 }
    }

    fn failed(&self, verb: &'static str, source: io::Error) -> KnownHostsError {
        KnownHostsError::File { verb, path: self.path.clone(), source }
    }
}

/// Appends all of `text` or nothing.
fn append(file: &mut fs::File, text: &str) -> io::Result<()> {
    let before = file.seek(SeekFrom::End(0))?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    if written.is_err() {
        file.set_len(before)?;
    }
    written
}

/// Another key under a name than the file says.
#[derive(Debug, Error)]
#[error(
    "the host {host} presents the key {presented}, but line {line} of {} says {known}: it was set up anew, another machine has its \
     name, or the connection is intercepted; nothing was sent to it. If you know that the new key is right, mount it once with a new \
     ticket of that host by -o credentials=FILE, or remove that line",
    .path.display()
)]
pub struct KeyMismatch {
    /// The host.
    pub host: HostAddress,
    /// The key in the file.
    pub known: PublicKey,
    /// The key it presents now.
    pub presented: PublicKey,
    /// The file.
    pub path: PathBuf,
    /// The line's number, from 1.
    pub line: usize,
}

/// An address that now belongs to another known host.
#[derive(Debug, Error)]
#[error(
    "the address {host} now belongs to the host known as {presented_as}, and /{export} was mounted by it from the host known as \
     {known_as}: use that host's name or new address, or remove line {line} of {} if the other one is meant",
    .path.display()
)]
pub struct AddressMoved {
    /// The address.
    pub host: HostAddress,
    /// Export that was mounted.
    pub export: String,
    /// Name of the host from which it was mounted.
    pub known_as: String,
    /// Name of the host that is there now.
    pub presented_as: String,
    /// The file.
    pub path: PathBuf,
    /// The line's number, from 1.
    pub line: usize,
}

/// Failure to look up or record a host.
#[derive(Debug, Error)]
pub enum KnownHostsError {
    /// No line says which key the host has.
    #[error(
        "the host {host} is not known here (it presents the key {presented}): mount it once by a ticket (on the host: \
         `wormhole pair new`), or give one with -o credentials=FILE"
    )]
    UnknownHost {
        /// The host.
        host: HostAddress,
        /// The key it presents.
        presented: PublicKey,
    },
    /// The host has another key than before.
    #[error(transparent)]
    KeyMismatch(Box<KeyMismatch>),
    /// The address belongs to another known host than the one mounted from it.
    #[error(transparent)]
    AddressMoved(Box<AddressMoved>),
    /// The line about the host holds no key.
    #[error("line {line} of {} names this host and holds no key: repair or remove it", .path.display())]
    BadLine {
        /// The file.
        path: PathBuf,
        /// The line's number, from 1.
        line: usize,
    },
    /// The file cannot be used.
    #[error("cannot {verb} the known-hosts file {}: {source}", .path.display())]
    File {
        /// Verb of the failed operation.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// Error of the system.
        source: io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: PublicKey = PublicKey([1; 32]);
    const B: PublicKey = PublicKey([2; 32]);

    fn query(host: &str) -> HostQuery {
        let address: HostAddress = host.parse().unwrap();
        HostQuery { kind: address.kind(), address, export: "m".to_owned() }
    }

    fn typed(key: PublicKey, host: &str) -> HostContact {
        HostContact { key, query: Some(query(host)), vouched: false, answered_at: Vec::new() }
    }

    fn met(key: PublicKey, host: &str) -> HostContact {
        let address: HostAddress = host.parse().unwrap();
        let answered_at = vec![(address.clone(), address.kind())];
        HostContact { key, query: None, vouched: false, answered_at }
    }

    fn fresh() -> (tempfile::TempDir, KnownHosts) {
        let folder = tempfile::tempdir().unwrap();
        let known = KnownHosts::at(folder.path().join("state/known_hosts"));
        (folder, known)
    }

    #[test]
    fn hosts_that_were_met_are_known_and_the_file_is_private() {
        let (_folder, known) = fresh();
        assert_eq!(known.expected(&query("nas")).unwrap(), Expected::AnyKnown(BTreeSet::new()));
        for contact in [met(A, "192.0.2.1"), met(B, "192.0.2.1"), typed(A, "nas"), typed(A, "nas")] {
            known.record(&contact).unwrap();
        }
        assert_eq!(known.expected(&query("NAS")).unwrap(), Expected::Only(A));
        let file = fs::read_to_string(known.path()).unwrap();
        assert_eq!(file, format!("192.0.2.1:4433 {B}\n- {A}\nnas:4433 {A}\n"));
        assert_eq!(fs::metadata(known.path()).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(known.path().parent().unwrap()).unwrap().count(), 1, "no other file is left");
    }

    #[test]
    fn another_key_is_reported_with_both_keys_the_file_and_a_remedy() {
        let (_folder, known) = fresh();
        known.record(&met(B, "192.0.2.2")).unwrap();
        known.record(&typed(A, "nas")).unwrap();
        for other in [B, PublicKey([3; 32])] {
            let words = known.check(&query("nas"), other).unwrap_err().to_string();
            let file = format!("line 2 of {}", known.path().display());
            for part in [&A.to_string(), &other.to_string(), &file, "credentials="] {
                assert!(words.contains(part), "{words}");
            }
        }
        assert_eq!(known.check(&query("nas"), A).unwrap(), "nas:4433");
    }

    #[test]
    fn an_address_that_moved_is_reported_without_alarm() {
        let (_folder, known) = fresh();
        known.record(&met(B, "192.0.2.2")).unwrap();
        known.record(&typed(A, "192.0.2.1")).unwrap();
        let error = known.check(&query("192.0.2.1"), B).unwrap_err();
        assert!(matches!(&error, KnownHostsError::AddressMoved(moved) if moved.line == 2), "{error}");
        assert!(!error.to_string().contains("intercepted"), "{error}");
        assert!(matches!(
            known.check(&query("x"), PublicKey([3; 32])),
            Err(KnownHostsError::UnknownHost { .. })
        ));
    }

    #[test]
    fn files_without_a_last_newline_are_appended_to() {
        let (_folder, known) = fresh();
        known.record(&typed(A, "a")).unwrap();
        fs::write(known.path(), format!("# mine\n\nb:4433  {B}  laptop")).unwrap();
        known.record(&typed(A, "c")).unwrap();
        let text = fs::read_to_string(known.path()).unwrap();
        assert_eq!(text, format!("# mine\n\nb:4433  {B}  laptop\nc:4433 {A}\n"));
    }

    #[test]
    fn programs_at_the_same_time_lose_nothing() {
        let (_folder, known) = fresh();
        std::thread::scope(|scope| {
            for number in 0..8 {
                let known = known.clone();
                scope.spawn(move || {
                    let key = PublicKey([number; 32]);
                    known.record(&met(key, "192.0.2.1")).unwrap();
                    known.record(&typed(key, &format!("host{number}"))).unwrap();
                });
            }
        });
        assert_eq!(known.keys().unwrap().len(), 8);
        for number in 0..8 {
            let expected = known.expected(&query(&format!("host{number}"))).unwrap();
            assert_eq!(expected, Expected::Only(PublicKey([number; 32])));
        }
    }

    #[test]
    fn damaged_line_does_not_make_a_host_unknown() {
        let (_folder, known) = fresh();
        known.record(&typed(A, "nas")).unwrap();
        fs::write(known.path(), "other:1 rubbish\nnas:4433 rubbish\n").unwrap();
        assert!(matches!(known.expected(&query("nas")), Err(KnownHostsError::BadLine { line: 2, .. })));
        assert!(matches!(known.check(&query("nas"), A), Err(KnownHostsError::BadLine { line: 2, .. })));
    }
}
