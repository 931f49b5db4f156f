//! Event stream of a session. It is opened again on the next connection whenever it ends.

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

/// Longest silence of a stream. The host sends a sign of life every 0.5 s.
const SILENCE_MAX: Duration = Duration::from_secs(3);

/// Pause before the next stream. It protects a host that ends each stream at once.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// Pause after a host refused event streams.
const REFUSED_PAUSE: Duration = Duration::from_secs(60);

type Sender = mpsc::Sender<ClientEvent>;

/// Reason for the end of a stream.
enum StreamEnd {
    /// There is no receiver any more.
    NoReceiver,
    /// The host has no event streams.
    Refused,
    /// Any other reason. Another stream may work.
    Lost,
}

impl From<Fault> for StreamEnd {
    fn from(_: Fault) -> Self {
        Self::Lost
    }
}

/// Keeps an event stream open until the client is closed or the receiver is dropped.
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
        if sender.send(ClientEvent::Ended).await.is_err() {
            return;
        }
        match end {
            StreamEnd::NoReceiver => return,
            StreamEnd::Refused => sleep(REFUSED_PAUSE).await,
            StreamEnd::Lost => sleep(RETRY_PAUSE).await,
        }
    }
}

async fn follow_one(shared: &Shared, sender: &Sender) -> StreamEnd {
    let (mut exchange, epoch) = match open(shared).await {
        Ok(opened) => opened,
        Err(end) => return end,
    };
    if sender.send(ClientEvent::Started(epoch)).await.is_err() {
        return StreamEnd::NoReceiver;
    }
    loop {
        let event = match timeout(SILENCE_MAX, exchange.frame::<HostEvent>()).await {
            Ok(Ok(event)) if is_sound(&event) => event,
            _ => return StreamEnd::Lost,
        };
        if sender.send(ClientEvent::Event(event)).await.is_err() {
            return StreamEnd::NoReceiver;
        }
    }
}

async fn open(shared: &Shared) -> Result<(Exchange, LeaseEpoch), StreamEnd> {
    let live = shared.usable().await.map_err(|_| StreamEnd::Lost)?;
    let frame = encode_frame(&Request::Events);
    let mut exchange = Exchange::begin(&live.connection, &frame, Lane::Metadata).await?;
    let reply = timeout(shared.deadline, exchange.frame::<Result<Reply, WireError>>());
    match reply.await.map_err(|_| StreamEnd::Lost)?? {
        Ok(Reply::Events { epoch }) => Ok((exchange, epoch)),
        Err(refusal) if refusal.code != ErrorCode::Busy => Err(StreamEnd::Refused),
        _ => Err(StreamEnd::Lost),
    }
}

/// Returns true if an honest host can have sent this event.
fn is_sound(event: &HostEvent) -> bool {
    match event {
        HostEvent::Changed(change) => {
            change.entries.len() <= EVENT_ENTRIES_MAX && change.entries.iter().all(|(name, _)| is_name(name))
        }
        HostEvent::Alive | HostEvent::Revoked { .. } => true,
    }
}
