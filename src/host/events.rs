//! A session's event stream: tells the client what has changed in the directories that it holds leases on.
//!
//! Attributes are looked up when an event is told, with the client's rights and by way of its tree. So the client hears of
//! nothing that it could not have asked for, and a directory that was moved out of the export is revoked.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::answer::{Answer, Gone};
use super::attributes;
use super::context::ClientContext;
use super::leases::{Overflow, Subscriber, Told};
use super::session::Session;
use super::tree::check_name;
use crate::proto::{Attributes, DirectoryChange, HostEvent, NodeId, Reply, WireError};
use crate::transport::Lane;

/// Longest silence of a stream. A client counts its leases as void a little after that.
const HEARTBEAT: Duration = Duration::from_millis(500);

/// Least time from one batch of events to the next. Changes of one name within it are told once.
const BATCH_PAUSE: Duration = Duration::from_millis(20);

/// Most messages of one batch; the bound on how long a batch takes.
const BATCH_MAX: usize = 64;

/// Serves the stream until the client ends it, the daemon ends, or changes were missed.
pub(super) async fn serve(context: &Arc<ClientContext>, answer: &mut Answer) -> Result<(), Gone> {
    let Some(subscriber) = context.session.subscribe() else {
        return answer.reply(&Err(WireError::system(crate::proto::Errno::EOPNOTSUPP))).await;
    };
    answer.set_lane(Lane::Metadata);
    answer.reply(&Ok(Reply::Events { epoch: subscriber.epoch() })).await?;
    let mut is_over = std::pin::pin!(context.session.events_over(&subscriber));
    loop {
        let unwanted = answer.unwanted();
        tokio::select! {
            biased;
            () = unwanted => return Err(Gone),
            () = &mut is_over => return Ok(()),
            () = subscriber.changed() => {}
            () = sleep(HEARTBEAT) => answer.frame(&HostEvent::Alive).await?,
        }
        match tell_batch(context, &subscriber, answer).await? {
            Ok(()) => sleep(BATCH_PAUSE).await,
            // The client opens another stream, and asks again for what it still wants to know.
            Err(Overflow) => return Ok(()),
        }
    }
}

async fn tell_batch(
    context: &Arc<ClientContext>,
    subscriber: &Subscriber,
    answer: &mut Answer,
) -> Result<Result<(), Overflow>, Gone> {
    for _ in 0..BATCH_MAX {
        let told = match subscriber.take() {
            Ok(Some(told)) => told,
            Ok(None) => return Ok(Ok(())),
            Err(overflow) => return Ok(Err(overflow)),
        };
        let event = match told {
            Told::Revoked(directory) => HostEvent::Revoked { directory },
            Told::Changed(directory, names) => {
                let look = context.blocking(move |session| look(session, directory, names));
                // A directory that cannot be reached any more has nothing to tell.
                look.await.map_or(HostEvent::Revoked { directory }, HostEvent::Changed)
            }
        };
        answer.frame(&event).await?;
    }
    // There may be more: the next round looks at once.
    subscriber.look_again();
    Ok(Ok(()))
}

/// Blocks.
fn look(session: &Session, directory: NodeId, names: Vec<Vec<u8>>) -> Result<DirectoryChange, WireError> {
    let folder = session.tree.folder(directory)?;
    let entries: Vec<(Vec<u8>, Option<Attributes>)> = names
        .into_iter()
        .map(|name| {
            let found =
                check_name(&name).and_then(|name| attributes::of_entry(folder.file.as_fd(), &name)).ok();
            (name, found)
        })
        .collect();
    let seen = entries.iter().filter_map(|(name, found)| Some(((*found)?.node, &name[..])));
    session.tree.record(directory, seen);
    Ok(DirectoryChange { directory, attributes: folder.attributes().ok(), entries })
}
