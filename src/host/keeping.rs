//! What the daemon does once a second: lets go of what is over, and shows out whom the keys no longer let in.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::core::{Core, who};
use super::state::KeysStamp;
use crate::proto::close;

/// How often. A key that was revoked is out within this and what one look at the file takes.
const INTERVAL: Duration = Duration::from_secs(1);

/// Runs for as long as the daemon does; drop it to end it.
pub(super) async fn run(core: Arc<Core>) {
    let mut ticks = tokio::time::interval(INTERVAL);
    let mut stamp = None;
    loop {
        ticks.tick().await;
        let keeper = Arc::clone(&core);
        let looked = tokio::task::spawn_blocking(move || {
            let_go(&keeper, Instant::now());
            show_out(&keeper, stamp)
        });
        if let Ok(seen) = looked.await {
            stamp = seen;
        }
    }
}

/// Ends sessions that nobody came back to, closes what was not used lately, and writes down what was hashed. Blocks.
fn let_go(core: &Core, now: Instant) {
    let over = core.sessions().expire(now);
    // Their files are closed outside of the lock.
    drop(over);
    core.known.expire(now);
    core.index.flush();
}

/// Closes the connections of keys that may no longer come in, if the file changed since `stamp`. Blocks.
fn show_out(core: &Core, stamp: KeysStamp) -> KeysStamp {
    let seen = core.state.keys_stamp();
    if seen == stamp {
        return stamp;
    }
    let keys = match core.state.keys() {
        Ok(keys) => keys,
        Err(error) => {
            tracing::error!("cannot tell whose key was revoked: {error}");
            return stamp;
        }
    };
    for client in core.clients() {
        if let Some(known) = keys.find(client.key).filter(|known| known.may_mount(&client.export)) {
            if known.read_only && !client.read_only {
                client.connection.close(close::RIGHTS_CHANGED, "this key may only read from now on");
            }
            if known.user != client.user {
                client.connection.close(close::RIGHTS_CHANGED, "this key acts as another user from now on");
                // What is open there was opened by the one before.
                drop(core.sessions().remove_key(client.key));
            }
            continue;
        }
        tracing::warn!("{} was revoked", who(client.key, client.connection.remote_address()));
        client.connection.close(close::REVOKED, "this key was revoked on the host");
        let theirs = core.sessions().remove_key(client.key);
        drop(theirs);
    }
    seen
}
