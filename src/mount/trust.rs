//! Identity of the host that answered: an error if it is not the expected one, else a record of it.

use super::{MountConfig, MountError};
use crate::client::remote::{ConnectError, RemoteClient};
use crate::transport::interfaces::address_kind;
use crate::transport::{ExpectedHost, HostContact, Notice, PublicKey, TransportError};

/// Returns the keys that the host may have, if it cannot be asked.
pub(super) fn candidates(config: &MountConfig) -> Result<Vec<PublicKey>, MountError> {
    Ok(match &config.remote.expected {
        ExpectedHost::Key(key) => vec![*key],
        ExpectedHost::OneOf(keys) => keys.iter().copied().collect(),
        ExpectedHost::Any => config.known_hosts.keys()?.into_iter().collect(),
    })
}

/// Explains a refused key with the known hosts: its owner, and a remedy. Errors with a ticket stay unchanged.
pub(super) fn explain(config: &MountConfig, error: ConnectError) -> MountError {
    let wrong_key = match &error {
        ConnectError::Transport(error) => TransportError::wrong_key(error),
        _ => None,
    };
    let by_ticket = config.remote.secret.is_some();
    let (Some(presented), Some(query), false) = (wrong_key, &config.remote.query, by_ticket) else {
        return error.into();
    };
    // The key is accepted by now: another process has recorded it meanwhile.
    config.known_hosts.check(query, presented).map_or_else(MountError::Trust, |_| error.into())
}

/// Records the host under every name at which it answered, so that any of them is enough next time.
pub(super) fn remember(config: &MountConfig, client: &RemoteClient) {
    let query = config.remote.query.clone();
    let answered_at = match query {
        Some(_) => Vec::new(),
        None => client.answered_at().iter().map(|address| (address.clone(), address_kind(address))).collect(),
    };
    let vouched = query.is_some() && config.remote.secret.is_some();
    let contact = HostContact { key: client.host_key(), query, vouched, answered_at };
    match config.known_hosts.record(&contact) {
        Ok(notices) => notices.iter().for_each(|notice| tell(config, notice)),
        Err(error) => tracing::warn!("{error}; without its ticket this host will be unknown next time"),
    }
}

fn tell(config: &MountConfig, notice: &Notice) {
    let file = config.known_hosts.path().display();
    match notice {
        Notice::NewName { name, known_as } => {
            tracing::info!("{name} is the host known here as {known_as}; noted in {file}");
        }
        Notice::NameTaken { name, known, line } => tracing::warn!(
            "the ticket's host answers to the name {name}, which line {line} of {file} gives to the key {known}: that name \
             stays with it. If {name} was set up anew, remove that line"
        ),
    }
}
