//! The keys of hosts met before, as ssh keeps them: one line `HOST:PORT KEY` each, to be read and edited by people.

use std::{
    fs,
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use thiserror::Error;

use super::{identity::PublicKey, source::HostAddress};

/// Largest file read: some hundred thousand hosts.
const FILE_BYTES_MAX: u64 = 32 << 20;

/// The known-hosts file at a path. It is read at every question, so that an edit takes effect at once.
#[derive(Clone, Debug)]
pub struct KnownHosts {
    path: PathBuf,
}

impl KnownHosts {
    /// The file at `path`, which need not exist yet.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The key `host` is known by; `None` for a host never met.
    pub fn lookup(&self, host: &HostAddress) -> Result<Option<PublicKey>, KnownHostsError> {
        match fs::File::open(&self.path) {
            Ok(mut file) => self.find(&self.read(&mut file)?, host),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(self.failed("read", source)),
        }
    }

    /// Compares the key that `host` presents with the known one: `true` if it is that, `false` if none is known.
    pub fn check(&self, host: &HostAddress, presented: PublicKey) -> Result<bool, KnownHostsError> {
        match self.lookup(host)? {
            None => Ok(false),
            Some(known) if known == presented => Ok(true),
            Some(known) => Err(self.mismatch(host, known, presented)),
        }
    }

    /// Remembers `host` by `key`. Known already by that key: nothing happens; by another: an error, nothing is changed.
    ///
    /// The file is made 0600 if need be; two programs that add at the same time do not mix their lines.
    pub fn add(&self, host: &HostAddress, key: PublicKey) -> Result<(), KnownHostsError> {
        let mut file = self.open_locked().map_err(|source| self.failed("write", source))?;
        let text = self.read(&mut file)?;
        match self.find(&text, host)? {
            Some(known) if known == key => Ok(()),
            Some(known) => Err(self.mismatch(host, known, key)),
            None => {
                let newline = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
                append(&mut file, &format!("{newline}{host} {key}\n"))
                    .map_err(|source| self.failed("write", source))
            }
        }
    }

    /// The lock goes with the file handle.
    fn open_locked(&self) -> io::Result<fs::File> {
        if let Some(folder) = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        let file =
            fs::OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&self.path)?;
        file.lock()?;
        Ok(file)
    }

    fn read(&self, file: &mut fs::File) -> Result<String, KnownHostsError> {
        let mut text = String::new();
        file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(|source| self.failed("read", source))?;
        Ok(text)
    }

    /// A line about `host` that cannot be read is an error: skipping it would make a known host unknown.
    fn find(&self, text: &str, host: &HostAddress) -> Result<Option<PublicKey>, KnownHostsError> {
        for (index, line) in text.lines().enumerate() {
            let mut words = line.split_ascii_whitespace();
            let named = words.next().filter(|word| !word.starts_with('#'));
            if named.and_then(|word| word.parse::<HostAddress>().ok()).as_ref() == Some(host) {
                let key = words.next().and_then(|word| word.parse().ok());
                let bad_line = || KnownHostsError::BadLine { path: self.path.clone(), line: index + 1 };
                return key.ok_or_else(bad_line).map(Some);
            }
        }
        Ok(None)
    }

    fn mismatch(&self, host: &HostAddress, known: PublicKey, presented: PublicKey) -> KnownHostsError {
        KnownHostsError::Mismatch { host: host.clone(), known, presented, path: self.path.clone() }
    }

    fn failed(&self, verb: &'static str, source: io::Error) -> KnownHostsError {
        KnownHostsError::File { verb, path: self.path.clone(), source }
    }
}

/// Appends all or nothing.
fn append(file: &mut fs::File, line: &str) -> io::Result<()> {
    let before = file.seek(SeekFrom::End(0))?;
    let written = file.write_all(line.as_bytes()).and_then(|()| file.sync_all());
    if written.is_err() {
        file.set_len(before)?;
    }
    written
}

/// Failure to look up or remember a host.
#[derive(Debug, Error)]
pub enum KnownHostsError {
    /// The host has another key than before.
    #[error(
        "the host {host} presents the key {presented}, but is known by {known} in {}: it is another machine, somebody is \
         in between, or it was set up anew. If you know that it was, remove its line from that file",
        .path.display()
    )]
    Mismatch {
        /// The host.
        host: HostAddress,
        /// The key in the file.
        known: PublicKey,
        /// The key it presents now.
        presented: PublicKey,
        /// The file.
        path: PathBuf,
    },
    /// The line about the host makes no sense.
    #[error("line {line} of {} is not `HOST:PORT KEY`: mend or remove it", .path.display())]
    BadLine {
        /// The file.
        path: PathBuf,
        /// The line's number, from 1.
        line: usize,
    },
    /// The file cannot be used.
    #[error("cannot {verb} the known-hosts file {}: {source}", .path.display())]
    File {
        /// What was attempted.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn host(text: &str) -> HostAddress {
        text.parse().unwrap()
    }

    fn fresh() -> (tempfile::TempDir, KnownHosts) {
        let folder = tempfile::tempdir().unwrap();
        let known = KnownHosts::at(folder.path().join("state/known_hosts"));
        (folder, known)
    }

    #[test]
    fn added_hosts_are_known_and_the_file_is_private() {
        let (_folder, known) = fresh();
        assert_eq!(known.lookup(&host("nas")).unwrap(), None);
        known.add(&host("nas"), PublicKey([1; 32])).unwrap();
        known.add(&host("[::1]:9"), PublicKey([2; 32])).unwrap();
        known.add(&host("nas"), PublicKey([1; 32])).unwrap();
        assert!(known.check(&host("NAS:4433"), PublicKey([1; 32])).unwrap());
        assert!(known.check(&host("[::1]:9"), PublicKey([2; 32])).unwrap());
        assert!(!known.check(&host("nas:4434"), PublicKey([9; 32])).unwrap());
        assert_eq!(fs::metadata(known.path()).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_to_string(known.path()).unwrap().lines().count(), 2);
    }

    #[test]
    fn another_key_is_told_with_both_keys_and_the_file() {
        let (_folder, known) = fresh();
        let (old, new) = (PublicKey([1; 32]), PublicKey([2; 32]));
        known.add(&host("nas"), old).unwrap();
        for error in [known.check(&host("nas"), new).unwrap_err(), known.add(&host("nas"), new).unwrap_err()]
        {
            let words = error.to_string();
            for part in [old.to_string(), new.to_string(), known.path().display().to_string()] {
                assert!(words.contains(&part), "{words}");
            }
        }
        assert!(known.check(&host("nas"), old).unwrap());
    }

    #[test]
    fn edited_files_are_read_with_comments_and_without_last_newline() {
        let (_folder, known) = fresh();
        known.add(&host("a"), PublicKey([1; 32])).unwrap();
        let line = format!("# mine\n\nb:4433  {}  laptop", PublicKey([2; 32]));
        fs::write(known.path(), line).unwrap();
        known.add(&host("c"), PublicKey([3; 32])).unwrap();
        assert_eq!(known.lookup(&host("a")).unwrap(), None);
        assert_eq!(known.lookup(&host("b")).unwrap(), Some(PublicKey([2; 32])));
        assert_eq!(known.lookup(&host("c")).unwrap(), Some(PublicKey([3; 32])));
    }

    #[test]
    fn damaged_line_does_not_make_a_host_unknown() {
        let (_folder, known) = fresh();
        known.add(&host("nas"), PublicKey([1; 32])).unwrap();
        fs::write(known.path(), "other:1 rubbish\nnas:4433 rubbish\n").unwrap();
        assert!(matches!(known.lookup(&host("nas")), Err(KnownHostsError::BadLine { line: 2, .. })));
        assert!(known.add(&host("nas"), PublicKey([1; 32])).is_err());
        assert_eq!(known.lookup(&host("unmet")).unwrap(), None);
    }
}
