//! `wormhole doctor`: what this machine offers, what is wrong with it, and what mends it.

mod export;
mod host;
mod machine;

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::PathBuf;

use serde::Serialize;

use super::{CliError, one_line};

/// What was typed.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// A host to look for, too: what `wormhole mount` takes as its source
    source: Option<String>,

    /// Print a JSON array, one object a check
    #[arg(long)]
    json: bool,

    /// A folder that is to be exported: how far clients may trust the numbers of its file system
    #[arg(long, value_name = "DIR")]
    export: Vec<PathBuf>,

    /// Where the cache is to be, if not where it usually is
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,

    /// Where this machine's known hosts are, if not where they usually are
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// As it should be.
    Ok,
    /// It works, but less well than it could, or not everything.
    Warn,
    /// Nothing can be mounted like this.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Row {
    check: &'static str,
    verdict: Verdict,
    /// What was found.
    found: String,
    /// What mends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    help: Option<String>,
}

impl Row {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Ok, found: one_line(&found.into()), help: None }
    }

    fn warn(check: &'static str, found: impl Into<String>, help: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Warn, found: one_line(&found.into()), help: Some(help.into()) }
    }

    fn fail(check: &'static str, found: impl Into<String>, help: impl Into<String>) -> Self {
        Self { verdict: Verdict::Fail, ..Self::warn(check, found, help) }
    }
}

pub(super) fn run(arguments: Arguments) -> Result<(), CliError> {
    let mut rows = machine::rows(arguments.cache_dir);
    rows.extend(arguments.export.iter().map(|folder| export::row(folder)));
    if let Some(source) = arguments.source {
        rows.extend(host::rows(source, arguments.state_dir)?);
    }
    let text = if arguments.json {
        serde_json::to_string_pretty(&rows).map_err(CliError::system)? + "\n"
    } else {
        table_of(&rows)
    };
    // Who reads no further has seen what he wanted.
    let _ = io::stdout().write_all(text.as_bytes());
    match rows.iter().filter(|row| row.verdict == Verdict::Fail).count() {
        0 => Ok(()),
        failed => Err(CliError::system(format!("{failed} of {} checks failed", rows.len()))),
    }
}

/// A line a check; below it what would help.
fn table_of(rows: &[Row]) -> String {
    let width = rows.iter().map(|row| row.check.len()).max().unwrap_or_default();
    let mut text = String::new();
    for Row { check, verdict, found, help } in rows {
        let verdict = match verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => "WARN",
            Verdict::Fail => "FAIL",
        };
        let _ = writeln!(text, "{verdict:<4}  {check:<width$}  {found}");
        if let Some(help) = help {
            let _ = writeln!(text, "      {:<width$}  -> {help}", "");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_helps_stands_below_what_is_wrong() {
        let rows = [Row::ok("one", "fine"), Row::fail("longer", "missing", "install it")];
        let expected = "ok    one     fine\nFAIL  longer  missing\n              -> install it\n";
        assert_eq!(table_of(&rows), expected);
    }
}
