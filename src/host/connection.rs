//! One connection: the greeting, then one task a stream, until either side has enough.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};

use super::budget::Place;
use super::core::Core;
use super::entry::{StrangerPlace, named};
use super::greeting::{Guest, greet};
use super::requests;
use crate::proto::close;
use crate::transport::{CloseReason, Connection, Incoming};

/// What clients read then.
pub(super) const SHUTDOWN_TEXT: &str = "the host is shutting down";

/// Serves a client from its knock to its end. `ending` turns true when the daemon ends.
pub(super) async fn serve(
    core: Arc<Core>,
    incoming: Incoming,
    place: StrangerPlace,
    mut ending: watch::Receiver<bool>,
) {
    let welcomed = tokio::select! {
        welcomed = welcome(&core, incoming, place) => welcomed,
        () = ends(&mut ending) => None,
    };
    if let Some((connection, guest, _place)) = welcomed {
        serve_requests(&connection, &guest, ending).await;
        if matches!(connection.close_reason(), Some(CloseReason::ByPeer { code, .. }) if code == u64::from(close::GOODBYE))
        {
            guest.listed.end_session();
        }
        // What the client still has open is closed where closing may wait. A failure has been logged as a panic.
        let _ = tokio::task::spawn_blocking(move || drop(guest)).await;
    }
}

/// Does the handshake and greets the client, which has a stranger's place until its key is known, and then one of its key.
async fn welcome(
    core: &Arc<Core>,
    incoming: Incoming,
    place: StrangerPlace,
) -> Option<(Connection, Guest, Place)> {
    const DROPPED: &str = "others came while it did not get on";
    let address = incoming.remote_address();
    let connection = tokio::select! {
        connection = incoming.handshake() => connection.map_err(|error| error.to_string()),
        () = place.dropped() => Err(named(address, DROPPED)),
    };
    let connection = connection.map_err(|text| core.entry.refused(text, false)).ok()?;
    let key = connection.peer_key();
    if let Some(connections_max) = core.entry.known(key) {
        drop(place);
        let place = place_of_key(core, &connection, connections_max)?;
        let guest = greet(core, &connection).await?;
        return Some((connection, guest, place));
    }
    let guest = tokio::select! {
        guest = greet(core, &connection) => guest?,
        () = place.dropped() => {
            core.entry.refused(named(address, DROPPED), false);
            connection.close(close::REFUSED, DROPPED);
            return None;
        }
    };
    let place = place_of_key(core, &connection, guest.context.budget.limits.max_connections)?;
    Some((connection, guest, place))
}

/// A place among the connections of the client's key. A client that gets none is told.
fn place_of_key(core: &Core, connection: &Connection, own_max: u32) -> Option<Place> {
    const NONE_LEFT: &str = "this key has as many connections as it may have now";
    let place = core.entry.place(connection.peer_key(), own_max);
    if place.is_none() {
        core.entry.refused(format!("refused {}: {NONE_LEFT}", who(connection)), true);
        connection.close(close::REFUSED, NONE_LEFT);
    }
    place
}

fn who(connection: &Connection) -> String {
    super::core::who(connection.peer_key(), connection.remote_address())
}

async fn serve_requests(connection: &Connection, guest: &Guest, mut ending: watch::Receiver<bool>) {
    let mut requests = JoinSet::new();
    loop {
        let stream = tokio::select! {
            stream = connection.accept_stream() => stream,
            Some(ended) = requests.join_next() => {
                report(ended);
                continue;
            }
            () = ends(&mut ending) => break,
        };
        match stream {
            Ok((send, receive)) => {
                // The transport's bounded number of streams waits there meanwhile, and not among the tasks of all keys.
                let turn = guest.context.budget.turn().await;
                requests.spawn(requests::serve(Arc::clone(&guest.context), turn, send, receive));
            }
            Err(error) => {
                tracing::info!("{}: {error}", connection.remote_address());
                return;
            }
        }
    }
    guest.context.session.end_events();
    while let Some(ended) = requests.join_next().await {
        report(ended);
    }
    connection.close(close::SHUTDOWN, SHUTDOWN_TEXT);
}

/// Waits until the daemon ends.
async fn ends(ending: &mut watch::Receiver<bool>) {
    // Nobody who could tell is there any more when the daemon has ended.
    let _ = ending.wait_for(|ends| *ends).await;
}

/// A request that failed in an unforeseen way takes nothing else along.
fn report(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!("a request ended in disorder: {error}");
    }
}
