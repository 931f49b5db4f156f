//! What the daemon does once a second: lets go of what is over, and shows out whom the keys no longer let in.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::admission::Standing;
use super::core::{Core, LiveClient, who};
use super::keys::AuthorizedKeys;
use super::session::Session;
use super::state::{Stamp, StateError};
use crate::io::Slack;
use crate::io::sys::return_free_memory;
use crate::proto::close;

/// How often. A right that was taken away is gone within this and what one look at the files takes.
const INTERVAL: Duration = Duration::from_secs(1);

/// Lets go of what is over, for as long as the daemon runs; drop it to end it.
pub(super) async fn run(core: Arc<Core>) {
    let mut ticks = tokio::time::interval(INTERVAL);
    let mut slack = Slack::default();
    for seconds in 0u64.. {
        ticks.tick().await;
        let is_due = seconds % Slack::LOOK_EVERY_SECONDS == 0 && slack.look(core.table_bytes());
        let keeper = Arc::clone(&core);
        let work = move || {
            let_go(&keeper, Instant::now());
            if is_due {
                return_free_memory();
            }
        };
        // A failure has been logged as a panic.
        let _ = tokio::task::spawn_blocking(work).await;
    }
}

/// Looks at the files of keys and tickets whenever they change, and at once when `reload` says so; beside [`run`], which may wait for a
/// disk. Drop it to end it.
pub(super) async fn watch(core: Arc<Core>, reload: Arc<Notify>) {
    let mut ticks = tokio::time::interval(INTERVAL);
    let mut stamp = None;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = reload.notified() => stamp = None,
        }
        let keeper = Arc::clone(&core);
        let looked = tokio::task::spawn_blocking(move || {
            show_moved_out(&keeper);
            look(&keeper, stamp)
        });
        if let Ok(seen) = looked.await {
            stamp = seen;
        }
    }
}

/// Ends sessions that nobody came back to, closes what was not used lately, and writes down what was hashed. Blocks.
fn let_go(core: &Core, now: Instant) {
    core.entry.tell(now);
    let over = core.sessions().expire(now);
    over.into_iter().for_each(end_elsewhere);
    core.known.expire(now);
    core.index.flush();
}

/// Says what is wrong with the files and shows out whom they no longer let in, if they changed since `stamp`. Blocks.
fn look(core: &Core, stamp: Option<Stamp>) -> Option<Stamp> {
    let seen = core.state.stamp();
    if stamp == Some(seen) {
        return stamp;
    }
    core.state.problems().iter().for_each(|problem| tracing::warn!("{problem}"));
    match show_out(core) {
        Ok(()) => Some(seen),
        Err(error) => {
            tracing::error!("cannot tell whose key was revoked: {error}");
            stamp
        }
    }
}

/// Closes the connections of clients whose mounted folder was moved out of the export.
fn show_moved_out(core: &Core) {
    for client in core.clients().into_iter().filter(|client| !client.sub_path.is_empty()) {
        let export = core.export(&client.export).map(|export| &core.exports[export]);
        if export.is_some_and(|export| export.has(&client.tree)) {
            continue;
        }
        let who = who(client.key, client.connection.remote_address());
        tracing::warn!("{who} was disconnected: its folder is not in the export {} any more", client.export);
        client.connection.close(close::RIGHTS_CHANGED, "the mounted folder was moved out of the export");
        core.sessions().end(client.key, client.session).into_iter().for_each(end_elsewhere);
    }
}

/// Closes the connections of keys whose rights are no longer those that they came in with. Blocks.
fn show_out(core: &Core) -> Result<(), StateError> {
    let keys = core.state.keys()?;
    core.entry.set_known(keys.iter().map(|known| (known.key, known.rights.limits.max_connections)));
    for client in core.clients() {
        show_one_out(core, &client, &keys);
    }
    Ok(())
}

fn show_one_out(core: &Core, client: &LiveClient, keys: &AuthorizedKeys) {
    let known = keys.find(client.key);
    let standing = Standing::of(known.as_ref(), &client.export, &client.rights);
    let ends_sessions = match &standing {
        Standing::AsBefore => return,
        Standing::Changed { words, is_other_user } => {
            client.connection.close(close::RIGHTS_CHANGED, words);
            *is_other_user
        }
        Standing::Revoked => {
            client.connection.close(close::REVOKED, "this key was revoked on the host");
            true
        }
    };
    let who = who(client.key, client.connection.remote_address());
    tracing::warn!("{who} was disconnected: {standing}");
    if ends_sessions {
        // What is open there was opened by one who may no longer, or as another user.
        core.sessions().remove_key(client.key).into_iter().for_each(end_elsewhere);
    }
}

/// Ends a session on a thread of its own: what it has open and locked may lie on a file system that hangs. Called where that may wait.
fn end_elsewhere(session: Arc<Session>) {
    tokio::task::spawn_blocking(move || drop(session));
}
