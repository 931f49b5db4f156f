//! `wormhole key`: the host's own key, and those that it lets in.

use std::os::unix::fs::MetadataExt;

use clap::Subcommand;
use serde::Serialize;

use super::CliError;
use super::on_state::{self, OnState, print_json};
use crate::host::{self, AuthorizedKey, AuthorizedKeys, KeyLimits, Rights, StateDir};
use crate::transport::PublicKey;

/// Fewest characters by which a key is named: 40 bits, which no two keys of a host share by chance.
const PREFIX_CHARACTERS_MIN: usize = 8;

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
    /// List the keys that may connect, with what they may do
    List,
    /// Let a key in no longer, and end its connections
    Revoke {
        /// The key, or its first characters
        key: String,
    },
    /// Show this host's own key
    Show,
}

#[derive(Debug, Serialize)]
struct Listed {
    key: String,
    read_only: bool,
    /// Whether it chooses owners on a host that runs as root.
    owners: bool,
    /// Whether it is as good as root on this machine, in one of its exports.
    as_root: bool,
    /// As whom it acts; absent for the user who runs the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    /// How much it may use at a time.
    limits: KeyLimits,
    /// Absent for all.
    exports: Option<Vec<String>>,
    /// What people call it; empty where it has no name.
    name: String,
    comment: String,
}

#[derive(Debug, Serialize)]
struct Shown {
    identity: String,
}

pub(super) fn run(arguments: Arguments) -> Result<(), CliError> {
    let (json, state) = (arguments.on.json, arguments.on.open()?);
    match arguments.action {
        Action::List => list(&state, json),
        Action::Revoke { key } => revoke(&state, &key),
        Action::Show => show(&state, json),
    }
}

fn list(state: &StateDir, json: bool) -> Result<(), CliError> {
    let keys = state.keys().map_err(CliError::system)?;
    on_state::warn_of(state);
    let running = state.running().map_err(CliError::system)?;
    let root_exports: Vec<_> = running.into_iter().flat_map(|host| host.root_exports).collect();
    // Whoever runs the host owns its state.
    let root_runs = state.path().metadata().is_ok_and(|found| found.uid() == 0);
    let as_root = |key: &AuthorizedKey| root_runs && host::is_as_root(key, &root_exports);
    let listed: Vec<Listed> = keys.iter().map(|key| listed(as_root(&key), key)).collect();
    if json {
        return print_json(&listed);
    }
    println!("{:<52} {:<14} {:<12} {:<20} {:<16} COMMENT", "KEY", "RIGHTS", "USER", "EXPORTS", "NAME");
    for key in listed {
        let rights = if key.read_only { "ro" } else { "rw" };
        let owners = if key.owners { ",owners" } else { "" };
        let root = if key.as_root { ",root" } else { "" };
        let rights = format!("{rights}{owners}{root}{}", key.limits.to_words(","));
        let exports = key.exports.map_or_else(|| "all".to_owned(), |exports| exports.join(","));
        let user = key.user.as_deref().unwrap_or("-");
        println!("{:<52} {rights:<14} {user:<12} {exports:<20} {:<16} {}", key.key, key.name, key.comment);
    }
    Ok(())
}

fn listed(as_root: bool, key: AuthorizedKey) -> Listed {
    let AuthorizedKey { key, rights, exports, name, comment } = key;
    let Rights { read_only, owners, user, limits } = rights;
    Listed { key: key.to_string(), read_only, owners, as_root, user, limits, exports, name, comment }
}

fn revoke(state: &StateDir, named: &str) -> Result<(), CliError> {
    let revoked = state.update(|keys, _| {
        let key = find(keys, named)?;
        keys.revoke(key);
        Ok::<_, CliError>(())
    });
    revoked.map_err(CliError::system)?
}

/// The one key whose text begins so.
fn find(keys: &AuthorizedKeys, named: &str) -> Result<PublicKey, CliError> {
    if named.len() < PREFIX_CHARACTERS_MIN {
        let text =
            format!("{named:?} is too short to name a key: give {PREFIX_CHARACTERS_MIN} characters or more");
        return Err(CliError::usage(text));
    }
    let prefix = named.to_ascii_lowercase();
    let mut found: Vec<PublicKey> =
        keys.iter().map(|known| known.key).filter(|key| key.to_string().starts_with(&prefix)).collect();
    found.dedup();
    match found.as_slice() {
        [key] => Ok(*key),
        [] => Err(CliError::usage(format!("no key begins with {named:?}; see `wormhole key list`"))),
        _ => Err(CliError::usage(format!("several keys begin with {named:?}; give more of it"))),
    }
}

fn show(state: &StateDir, json: bool) -> Result<(), CliError> {
    let identity = state.identity().map_err(CliError::system)?.public_key().to_string();
    if json {
        return print_json(&Shown { identity });
    }
    println!("identity: {identity}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_named_by_its_beginning() {
        let (one, two) = (PublicKey([1; 32]), PublicKey([2; 32]));
        let mut mixed = [1; 32];
        mixed[31] = 9;
        let near = PublicKey(mixed);
        let (keys, _) = AuthorizedKeys::parse(&format!("{one}\n{one} ro\n{two}\n{near}\n"));
        let begin = |key: PublicKey, len: usize| key.to_string()[..len].to_owned();
        assert_eq!(find(&keys, &begin(two, 8)).unwrap(), two);
        assert_eq!(find(&keys, &one.to_string().to_uppercase()).unwrap(), one);
        for wrong in [begin(one, 8), begin(two, 7), begin(PublicKey([3; 32]), 52)] {
            assert!(find(&keys, &wrong).is_err(), "{wrong}");
        }
    }
}
