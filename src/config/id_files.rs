//! `idmap=`: the mapping of numeric ids, and the files that define it.
//!
//! A line is `NAME:NUMBER`, as in sshfs, or a line of the host's `/etc/passwd` or `/etc/group`,
//! `NAME:PASSWORD:NUMBER…`. It maps a user or group of this machine, by name or number, to the number on the
//! host. Empty lines and text after `#` are ignored. Unknown names are skipped, so that files of the host can
//! be used.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::options::{IdMapKind, Ownership};
use super::{Accounts, Environment};
use crate::fs::{IdMap, NumberMap, Taken};
use crate::mount::IdMapping;

/// Longest file, in bytes, enough for some 500,000 users.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Error of the id mapping.
#[derive(Debug, thiserror::Error)]
pub enum IdMapError {
    /// No file is given.
    #[error("`idmap=file` needs `uidfile=FILE`, `gidfile=FILE`, or both")]
    NoFile,
    /// A file is given without `idmap=file`.
    #[error("`{0}=` is for `idmap=file` alone")]
    WithoutIdMap(&'static str),
    /// A file cannot be read.
    #[error("{}: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Reason.
        why: String,
    },
    /// A line is not valid.
    #[error("{}, line {line}: {why}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Number of the line, from 1.
        line: usize,
        /// Reason.
        why: LineError,
    },
}

/// Error in a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// The line has another form.
    #[error("not of the form NAME:NUMBER, with the number on the host")]
    Form,
    /// The number occurs twice.
    #[error(transparent)]
    Taken(#[from] Taken),
}

/// Returns the mapping that the options define. Reads the files.
pub(super) fn id_mapping(
    options: &Ownership,
    environment: &Environment,
    accounts: &dyn Accounts,
) -> Result<IdMapping, IdMapError> {
    if options.id_map != IdMapKind::File {
        for (name, file) in [("uidfile", &options.uid_file), ("gidfile", &options.gid_file)] {
            if file.is_some() {
                return Err(IdMapError::WithoutIdMap(name));
            }
        }
    }
    match options.id_map {
        IdMapKind::None => Ok(IdMapping::None),
        IdMapKind::User => Ok(IdMapping::User { uid: environment.uid, gid: environment.gid }),
        IdMapKind::File => {
            if options.uid_file.is_none() && options.gid_file.is_none() {
                return Err(IdMapError::NoFile);
            }
            // Without a file for them, numbers are those of the host.
            let numbers = |file: &Option<PathBuf>, lookup: &dyn Fn(&str) -> Option<u32>| match file {
                None => Ok(NumberMap::default()),
                Some(path) => read(path, lookup).map(|map| {
                    if options.keeps_unmapped { map.keeping_others() } else { map.refusing_others() }
                }),
            };
            let users = numbers(&options.uid_file, &|name| accounts.user(name))?;
            let groups = numbers(&options.gid_file, &|name| accounts.group(name))?;
            Ok(IdMapping::File(Arc::new(IdMap { users, groups, ..IdMap::default() })))
        }
    }
}

fn read(path: &Path, lookup: &dyn Fn(&str) -> Option<u32>) -> Result<NumberMap, IdMapError> {
    let failed = |why: String| IdMapError::File { path: path.to_owned(), why };
    let mut text = String::new();
    let file = fs::File::open(path).map_err(|error| failed(error.to_string()))?;
    let read = file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text);
    if read.map_err(|error| failed(error.to_string()))? as u64 > FILE_BYTES_MAX {
        return Err(failed(format!("longer than {FILE_BYTES_MAX} bytes")));
    }
    let (map, unknown) =
        parse(&text, lookup).map_err(|(line, why)| IdMapError::Line { path: path.to_owned(), line, why })?;
    if !unknown.is_empty() {
        tracing::warn!("{}: these names are unknown on this machine: {}", path.display(), unknown.join(", "));
    }
    Ok(map)
}

/// Returns the mapping and the unknown names, or the number of the wrong line, from 1.
fn parse<'a>(
    text: &'a str,
    lookup: &dyn Fn(&str) -> Option<u32>,
) -> Result<(NumberMap, Vec<&'a str>), (usize, LineError)> {
    let (mut map, mut unknown) = (NumberMap::default(), Vec::new());
    for (at, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let (name, host) = name_and_number(line).ok_or((at + 1, LineError::Form))?;
        match number(name).or_else(|| lookup(name)) {
            Some(local) => map.insert(host, local).map_err(|taken| (at + 1, taken.into()))?,
            None => unknown.push(name),
        }
    }
    Ok((map, unknown))
}

fn name_and_number(line: &str) -> Option<(&str, u32)> {
    let mut fields = line.split(':').map(str::trim);
    let name = fields.next().filter(|name| !name.is_empty())?;
    let second = fields.next()?;
    // If a third field follows, the second one is a password.
    let host = fields.next().unwrap_or(second);
    Some((name, number(host)?))
}

fn number(text: &str) -> Option<u32> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lookup(name: &str) -> Option<u32> {
        [("ann", 1000), ("bob", 1001)].iter().find(|(known, _)| *known == name).map(|(_, uid)| *uid)
    }

    #[test]
    fn lines_map_names_and_numbers() {
        let text = "# people\nann:500\n\n bob : 501 # late\n77:502\nroot:x:0:0:root:/root:/bin/sh\n";
        let (map, unknown) = parse(text, &lookup).unwrap();
        assert_eq!([500, 501, 502].map(|host| map.local(host)), [Ok(1000), Ok(1001), Ok(77)]);
        assert_eq!(unknown, ["root"]);
    }

    #[test]
    fn a_wrong_line_is_reported_with_its_number() {
        let taken = |taken| LineError::Taken(taken);
        for (text, line, why) in [
            ("ann", 1, LineError::Form),
            ("ann:500\nbob:", 2, LineError::Form),
            ("ann:500\n\n:7\n", 3, LineError::Form),
            ("ann:-1", 1, LineError::Form),
            ("ann:99999999999", 1, LineError::Form),
            ("ann:500\nbob:500", 2, taken(Taken::Host(500))),
            ("ann:500\nann:501", 2, taken(Taken::Local(1000))),
            ("ann:4294967295", 1, taken(Taken::None(u32::MAX))),
        ] {
            assert_eq!(parse(text, &lookup), Err((line, why)), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_map_or_has_a_wrong_line(text in "[ab:#0-9\n]{0,60}") {
            if let Err((line, _)) = parse(&text, &lookup) {
                prop_assert!((1..=text.lines().count()).contains(&line));
            }
        }
    }
}
