//! A ticket that was typed does not stay in the list of processes, where everybody on this machine can read it.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::CliError;
use crate::transport::ticket::TICKET_PREFIX;

/// Commands that take a ticket from standard input where `-` stands for it.
const TAKES_TICKETS: [&str; 2] = ["mount", "doctor"];

/// Longest ticket that a pipe is sure to take at once, in bytes: a page.
const TICKET_BYTES_MAX: usize = 4096;

/// Starts this program again with the ticket on standard input, if one is among the arguments. Returns where none is.
pub(super) fn hide_ticket() -> Result<(), CliError> {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let Some((ticket, rest)) = ticket_in(&arguments) else { return Ok(()) };
    let failed =
        |error: io::Error| CliError::system(format!("cannot hide the ticket from other users: {error}"));
    let (reading, mut writing) = io::pipe().map_err(failed)?;
    writing.write_all(ticket.as_bytes()).map_err(failed)?;
    drop(writing);
    let error = Command::new("/proc/self/exe").arg0("wormhole").args(rest).stdin(reading).exec();
    Err(failed(error))
}

/// The ticket, and the arguments with `-` in its place.
fn ticket_in(arguments: &[OsString]) -> Option<(&OsStr, Vec<&OsStr>)> {
    let command = arguments.iter().find(|argument| !argument.as_bytes().starts_with(b"-"))?;
    if !TAKES_TICKETS.iter().any(|name| command == name) {
        return None;
    }
    let at = arguments.iter().position(|argument| is_ticket(argument))?;
    let rest = arguments
        .iter()
        .enumerate()
        .map(|(place, argument)| if place == at { OsStr::new("-") } else { argument.as_os_str() });
    Some((&arguments[at], rest.collect()))
}

/// Whether a word is a ticket, whatever is wrong with it; a host is never of this form, as it has `:/` behind it.
fn is_ticket(word: &OsStr) -> bool {
    let word = word.as_bytes();
    let has_prefix =
        word.get(..TICKET_PREFIX.len()).is_some_and(|p| p.eq_ignore_ascii_case(TICKET_PREFIX.as_bytes()));
    has_prefix && word.len() <= TICKET_BYTES_MAX && word.iter().all(u8::is_ascii_alphanumeric)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_goes_to_standard_input_and_nothing_else_does() {
        let words = |list: &[&str]| list.iter().map(OsString::from).collect::<Vec<_>>();
        let hidden = |list: &[&str]| {
            let arguments = words(list);
            ticket_in(&arguments).map(|(ticket, rest)| {
                let rest: Vec<_> = rest.into_iter().map(OsStr::to_owned).collect();
                (ticket.to_owned(), rest)
            })
        };
        for (typed, left) in [
            (vec!["mount", "whm1abc", "/mnt"], vec!["mount", "-", "/mnt"]),
            (
                vec!["-v", "mount", "-o", "ro", "--", "WHM1abc2", "/mnt"],
                vec!["-v", "mount", "-o", "ro", "--", "-", "/mnt"],
            ),
            (vec!["doctor", "whm1abc"], vec!["doctor", "-"]),
        ] {
            let (ticket, rest) = hidden(&typed).unwrap();
            assert!(ticket.to_ascii_lowercase().to_str().unwrap().starts_with("whm1abc"));
            assert_eq!(rest, words(&left));
        }
        for typed in [
            &["mount", "whm1:/x", "/mnt"][..],
            &["mount", "nas:/m", "/mnt"],
            &["umount", "whm1abc"],
            &["-v"],
            &[],
        ] {
            assert_eq!(hidden(typed), None, "{typed:?}");
        }
    }
}
