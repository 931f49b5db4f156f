//! `wormhole pair`: makes, lists and revokes join tickets of a host on this machine.

use std::fmt;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Subcommand;
use serde::Serialize;

use super::CliError;
use super::on_state::{self, OnState, print_json};
use crate::host::{self, RunningHost, StateDir, TicketRecord, TicketState, TicketTerms};

/// What was typed.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,

    #[command(flatten)]
    on: OnState,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a ticket for an export of the running host
    New {
        /// Which export; not needed where there is only one
        export: Option<String>,

        /// How long the ticket lets keys in, such as 30m, 24h, 7d or never
        #[arg(long, value_name = "TIME", default_value = "24h")]
        expires: Lifetime,

        /// How many keys it lets in
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        keys: u32,

        /// As whom the keys act that it lets in: a user of this machine, on a host that runs as root
        #[arg(long, value_name = "USER")]
        user: Option<String>,

        /// The keys that it lets in may only read
        #[arg(long)]
        read_only: bool,

        /// What to call the keys that it lets in, as `wormhole key list` and `wormhole status` show it
        #[arg(long, value_name = "NAME", default_value = "", value_parser = key_name)]
        name: String,
    },
    /// List the tickets that are out
    List,
    /// Take a ticket back; keys that it let in stay
    Revoke {
        /// The ticket's name, as `list` shows it
        id: String,
    },
}

/// How long something is good: seconds, or for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lifetime(Option<u64>);

impl Lifetime {
    /// In seconds; `None` for ever.
    pub(super) const fn seconds(self) -> Option<u64> {
        self.0
    }
}

impl FromStr for Lifetime {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no length of time: write a number with s, m, h or d, or never");
        if text == "never" {
            return Ok(Self(None));
        }
        let unit = text.chars().last().ok_or_else(bad)?;
        let seconds = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 24 * 3600,
            _ => return Err(bad()),
        };
        let number = text.strip_suffix(unit).unwrap_or_default();
        let count: u64 = number.parse().map_err(|_| bad())?;
        count
            .checked_mul(seconds)
            .filter(|seconds| *seconds > 0)
            .map(|seconds| Self(Some(seconds)))
            .ok_or_else(bad)
    }
}

impl fmt::Display for Lifetime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("never"),
            Some(seconds) => f.write_str(&span(seconds)),
        }
    }
}

#[derive(Debug, Serialize)]
struct NewTicket {
    /// Name for `pair list` and `pair revoke`.
    id: String,
    ticket: String,
    export: String,
    /// Seconds since the epoch; absent for never.
    expires: Option<u64>,
    keys: u32,
    /// As whom they act; absent for the user who runs the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    read_only: bool,
    /// What they are called; absent for nothing.
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
}

/// Longest name of a key, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// What was typed as the name of keys.
fn key_name(text: &str) -> Result<String, String> {
    match text {
        text if text.chars().any(char::is_control) => Err("a name is one line of text".to_owned()),
        text if text.len() > NAME_BYTES_MAX => Err(format!("a name has {NAME_BYTES_MAX} bytes at most")),
        text => Ok(text.trim().to_owned()),
    }
}

#[derive(Debug, Serialize)]
struct Listed<'a> {
    state: TicketState,
    #[serde(flatten)]
    record: &'a TicketRecord,
}

pub(super) fn run(arguments: Arguments) -> Result<(), CliError> {
    let (json, state) = (arguments.on.json, arguments.on.open()?);
    match arguments.action {
        Action::New { export, expires, keys, user, read_only, name } => {
            let expires_seconds = expires.seconds();
            let terms = TicketTerms { expires_seconds, keys_max: keys, user, read_only, name };
            make(&state, export, terms, json)
        }
        Action::List => list(&state, json),
        Action::Revoke { id } => revoke(&state, &id),
    }
}

fn make(state: &StateDir, export: Option<String>, terms: TicketTerms, json: bool) -> Result<(), CliError> {
    let running = running(state, export.as_deref())?;
    let export = match (export, running.exports.as_slice()) {
        (Some(export), _) => export,
        (None, [only]) => only.clone(),
        (None, several) => {
            return Err(CliError::usage(format!("which export? This host serves {}", several.join(", "))));
        }
    };
    let ticket = host::issue_beside(state, &running, &export, &terms).map_err(|error| match error {
        host::HostError::UnknownExport { .. } | host::HostError::User(_) => CliError::usage(error),
        error => CliError::system(error),
    })?;
    let TicketTerms { keys_max: keys, user, read_only, name, .. } = terms;
    let expires = terms.expires_seconds.map(|seconds| now().saturating_add(seconds));
    let made = NewTicket {
        id: host::ticket_id(ticket.secret()),
        ticket: ticket.to_string(),
        export,
        expires,
        keys,
        user,
        read_only,
        name,
    };
    if json {
        return print_json(&made);
    }
    println!("ticket: {}", made.ticket);
    Ok(())
}

/// The daemon that runs with this state and serves `export`, else the latest one; without it nobody knows the addresses.
fn running(state: &StateDir, export: Option<&str>) -> Result<RunningHost, CliError> {
    let mut all = state.running().map_err(CliError::system)?;
    let serves = |host: &RunningHost| export.is_some_and(|name| host.exports.iter().any(|own| own == name));
    let at = all.iter().rposition(serves).or(all.len().checked_sub(1));
    at.map(|at| all.swap_remove(at)).ok_or_else(|| {
        CliError::system(format!(
            "no host runs with the state in {}; start one with `wormhole host`, or name its --state-dir",
            state.path().display()
        ))
    })
}

fn list(state: &StateDir, json: bool) -> Result<(), CliError> {
    let (tickets, now) = (state.tickets().map_err(CliError::system)?, now());
    on_state::warn_of(state);
    let listed: Vec<Listed<'_>> =
        tickets.iter().map(|record| Listed { state: record.state(now), record }).collect();
    if json {
        return print_json(&listed);
    }
    let head = ("TICKET", "STATE", "EXPIRES", "KEYS", "RIGHTS", "USER", "EXPORT");
    println!(
        "{:<10} {:<8} {:<10} {:<7} {:<6} {:<12} {:<20} NAME",
        head.0, head.1, head.2, head.3, head.4, head.5, head.6
    );
    for Listed { state, record } in &listed {
        let expires = match (state, record.expires) {
            (TicketState::Good, Some(expires)) => format!("in {}", span(expires.saturating_sub(now))),
            (TicketState::Good, None) => "never".to_owned(),
            _ => "-".to_owned(),
        };
        let keys = format!("{}/{}", record.used_by.len(), record.keys_max);
        let state = format!("{state:?}").to_lowercase();
        let user = record.user.as_deref().unwrap_or("-");
        let (rights, TicketRecord { id, export, name, .. }) =
            (if record.read_only { "ro" } else { "rw" }, record);
        println!("{id:<10} {state:<8} {expires:<10} {keys:<7} {rights:<6} {user:<12} {export:<20} {name}");
    }
    Ok(())
}

fn revoke(state: &StateDir, id: &str) -> Result<(), CliError> {
    if state.update(|_, tickets| tickets.revoke(id)).map_err(CliError::system)? {
        return Ok(());
    }
    Err(CliError::usage(format!("there is no ticket {id}; `wormhole pair list` shows which there are")))
}

/// A length of time for people: its largest unit, rounded down.
fn span(seconds: u64) -> String {
    for (unit_seconds, unit) in [(24 * 3600, "d"), (3600, "h"), (60, "m")] {
        // A day is shown in hours: `24h` is what was asked for.
        if seconds > unit_seconds || (seconds == unit_seconds && unit != "d") {
            return format!("{}{unit}", seconds / unit_seconds);
        }
    }
    format!("{seconds}s")
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_read() {
        for (text, seconds) in [
            ("90s", Some(90)),
            ("30m", Some(1800)),
            ("24h", Some(86_400)),
            ("7d", Some(604_800)),
            ("never", None),
        ] {
            assert_eq!(text.parse(), Ok(Lifetime(seconds)), "{text}");
        }
        for text in ["", "h", "12", "0s", "-1h", "1.5h", "1w", "99999999999999999d", "é"] {
            assert!(text.parse::<Lifetime>().is_err(), "{text}");
        }
    }

    #[test]
    fn lengths_of_time_are_shown_in_their_largest_unit() {
        let shown = [5, 60, 3599, 3600, 86_400, 86_401, 700_000].map(span);
        assert_eq!(shown, ["5s", "1m", "59m", "1h", "24h", "1d", "8d"]);
    }
}
