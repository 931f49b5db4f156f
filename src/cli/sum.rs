//! `wormhole sum`: BLAKE3 of files on a mount, computed by the host, in the format of `b3sum`.

use std::ffi::CString;
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use serde::Serialize;

use super::CliError;
use crate::fs::SUM_XATTR;
use crate::io::sys::{XattrTarget, get_xattr};

/// What was typed.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Files on a mount
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,

    /// Print a JSON array of objects with `hash` and `path`
    #[arg(long)]
    json: bool,
}

/// A line of output.
#[derive(Serialize)]
struct Sum {
    hash: String,
    path: String,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), CliError> {
    let (mut sums, mut failures) = (Vec::new(), Vec::new());
    for path in &arguments.files {
        match sum(path) {
            Ok(hash) => {
                let sum = Sum { hash, path: path.to_string_lossy().into_owned() };
                if !arguments.json {
                    print(&format!("{}  {}", sum.hash, sum.path))?;
                }
                sums.push(sum);
            }
            // The others are told all the same, as b3sum does.
            Err(error) => failures.push(error),
        }
    }
    if arguments.json {
        print(&serde_json::to_string_pretty(&sums).map_err(CliError::system)?)?;
    }
    match (failures.pop(), arguments.files.len()) {
        (None, _) => Ok(()),
        (Some(error), 1) => Err(error),
        (Some(last), files) => {
            failures.push(last);
            for error in &failures {
                eprintln!("wormhole: {error}");
            }
            Err(CliError::system(format!("{} of {files} sums are missing", failures.len())))
        }
    }
}

fn print(line: &str) -> Result<(), CliError> {
    writeln!(io::stdout(), "{line}").map_err(|error| CliError::system(format!("standard output: {error}")))
}

/// The sum as the mount gives it: one question to the host, no content. The file is not opened, as with its opening comes its beginning.
fn sum(path: &Path) -> Result<String, CliError> {
    let wrong = |why: &dyn std::fmt::Display| CliError::system(format!("{}: {why}", path.display()));
    if !fs::metadata(path).map_err(|error| wrong(&error))?.is_file() {
        return Err(wrong(&"not a regular file"));
    }
    let name = CString::new(SUM_XATTR).map_err(|error| wrong(&error))?;
    let target = CString::new(path.as_os_str().as_bytes()).map_err(|error| wrong(&error))?;
    match get_xattr(XattrTarget::Path(&target), &name) {
        Ok(value) => String::from_utf8(value).map_err(|_| wrong(&"the mount answers nothing that is a sum")),
        Err(Errno::ENODATA | Errno::EOPNOTSUPP) => {
            Err(wrong(&"not on a wormhole mount; `b3sum` computes the sum of local files"))
        }
        Err(error) => Err(wrong(&error.desc())),
    }
}
