//! One connection: the greeting, then one task a stream, until either side has enough.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};

use super::core::Core;
use super::greeting::{Guest, greet};
use super::requests;
use crate::proto::close;
use crate::transport::{CloseReason, Connection, Incoming};

/// What clients read then.
pub(super) const SHUTDOWN_TEXT: &str = "the host is shutting down";

/// Serves a client from its knock to its end. `ending` turns true when the daemon ends.
pub(super) async fn serve(core: Arc<Core>, incoming: Incoming, mut ending: watch::Receiver<bool>) {
    let handshake = async {
        match incoming.handshake().await {
            Ok(connection) => greet(&core, &connection).await.map(|guest| (connection, guest)),
            Err(error) => {
                tracing::info!("{error}");
                None
            }
        }
    };
    let greeted = tokio::select! {
        greeted = handshake => greeted,
        _ = ending.wait_for(|ends| *ends) => None,
    };
    if let Some((connection, guest)) = greeted {
        serve_requests(&connection, &guest, ending).await;
        if matches!(connection.close_reason(), Some(CloseReason::ByPeer { code, .. }) if code == u64::from(close::GOODBYE))
        {
            guest.listed.end_session();
        }
        // What the client still has open is closed where closing may wait. A failure has been logged as a panic.
        let _ = tokio::task::spawn_blocking(move || drop(guest)).await;
    }
}

async fn serve_requests(connection: &Connection, guest: &Guest, mut ending: watch::Receiver<bool>) {
    let mut requests = JoinSet::new();
    loop {
        tokio::select! {
            stream = connection.accept_stream() => match stream {
                Ok((send, receive)) => {
                    // The transport admits no more streams at a time than the tuning says.
                    requests.spawn(requests::serve(Arc::clone(&guest.context), send, receive));
                }
                Err(error) => {
                    tracing::info!("{}: {error}", connection.remote_address());
                    return;
                }
            },
            Some(ended) = requests.join_next() => report(ended),
            _ = ending.wait_for(|ends| *ends) => break,
        }
    }
    while let Some(ended) = requests.join_next().await {
        report(ended);
    }
    connection.close(close::SHUTDOWN, SHUTDOWN_TEXT);
}

/// A request that failed in an unforeseen way takes nothing else along.
fn report(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!("a request ended in disorder: {error}");
    }
}
