//! The event stream of a session: opened again on the next connection whenever it ends.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::list::is_name;
use super::shared::Shared;
use super::stream::{Exchange, Fault};
use crate::client::ClientEvent;
use crate::proto::{
    EVENT_ENTRIES_MAX, ErrorCode, HostEvent, LeaseEpoch, Reply, Request, WireError, encode_frame,
};
use crate::transport::Lane;

/// Longest silence of a stream: the host says every 0.5 s that nothing has happened.
const SILENCE_MAX: Duration = Duration::from_secs(3);

/// Pause before the next stream, so that a host which ends each at once is not asked without a break.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// The same after a host that has no events to tell.
const REFUSED_PAUSE: Duration = Duration::from_secs(60);

type Sender = mpsc::Sender<ClientEvent>;

/// Why a stream is over.
enum End {
    /// Nobody listens any more.
    Unheard,
    /// The host has no event streams.
    Refused,
    /// Anything else: another stream may do.
    Lost,
}

impl From<Fault> for End {
    fn from(_: Fault) -> Self {
        Self::Lost
    }
}

/// Keeps an event stream open until the client is closed or nobody listens.
pub(super) async fn follow(shared: Arc<Shared>, sender: Sender) {
    tokio::select! {
        () = shared.closed() => {}
        () = sender.closed() => {}
        () = follow_streams(&shared, &sender) => {}
    }
}

async fn follow_streams(shared: &Shared, sender: &Sender) {
    loop {
        let end = follow_one(shared, sender).await;
        if sender.send(ClientEvent::Over).await.is_err() {
            return;
        }
        match end {
            End::Unheard => return,
            End::Refused => sleep(REFUSED_PAUSE).await,
            End::Lost => sleep(RETRY_PAUSE).await,
        }
    }
}

async fn follow_one(shared: &Shared, sender: &Sender) -> End {
    let (mut exchange, epoch) = match open(shared).await {
        Ok(opened) => opened,
        Err(end) => return end,
    };
    if sender.send(ClientEvent::Begun(epoch)).await.is_err() {
        return End::Unheard;
    }
    loop {
        let event = match timeout(SILENCE_MAX, exchange.frame::<HostEvent>()).await {
            Ok(Ok(event)) if is_sound(&event) => event,
            _ => return End::Lost,
        };
        if sender.send(ClientEvent::Told(event)).await.is_err() {
            return End::Unheard;
        }
    }
}

async fn open(shared: &Shared) -> Result<(Exchange, LeaseEpoch), End> {
    let live = shared.usable().await.map_err(|_| End::Lost)?;
    let frame = encode_frame(&Request::Events);
    let mut exchange = Exchange::begin(&live.connection, &frame, Lane::Metadata).await?;
    let reply = timeout(shared.deadline, exchange.frame::<Result<Reply, WireError>>());
    match reply.await.map_err(|_| End::Lost)?? {
        Ok(Reply::Events { epoch }) => Ok((exchange, epoch)),
        Err(refusal) if refusal.code != ErrorCode::Busy => Err(End::Refused),
        _ => Err(End::Lost),
    }
}

/// Tells whether a host that keeps to the protocol can have sent this.
fn is_sound(event: &HostEvent) -> bool {
    match event {
        HostEvent::Changed(change) => {
            change.entries.len() <= EVENT_ENTRIES_MAX && change.entries.iter().all(|(name, _)| is_name(name))
        }
        HostEvent::Alive | HostEvent::Revoked { .. } => true,
    }
}
