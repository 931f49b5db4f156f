//! Supervisor of one connection to the host. It waits for an event and executes the actions of [`Link`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::active_connection::ActiveConnection;
use super::config::ConnectError;
use super::dial::{Dialer, Established};
use super::link::{Action, Event, Link, Outcome, Phase, Sample};
use super::shared::{Shared, SlotState, add};
use super::stream::Exchange;
use crate::proto::{Reply, Request, WireError, close, encode_frame};
use crate::transport::Lane;

/// Deadline of a probe. Later answers do not matter.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// Time for closing the connection in order. Otherwise the host notices by silence.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

/// Supervisor of one connection slot.
pub(super) struct ConnectionSupervisor {
    shared: Arc<Shared>,
    slot: usize,
    dialer: Arc<Dialer>,
    link: Link,
    live: Option<Arc<ActiveConnection>>,
    refusal: Option<WireError>,
    attempts: Attempts,
    handles: HashMap<u64, AbortHandle>,
    /// True once this slot has had a connection. Each later one is a reconnect.
    was_connected: bool,
    reported: Option<Phase>,
    /// True if the connection or the refusal changed since the last publication.
    changed: bool,
}

type Attempts = JoinSet<(u64, Result<Established, ConnectError>)>;

enum SupervisorEvent {
    Woken,
    Lost,
    Attempted(u64, Result<Box<Established>, ConnectError>),
    Closing,
}

impl ConnectionSupervisor {
    /// Returns a supervisor for `slot`, with the first connection if there is one.
    pub(super) fn new(
        shared: Arc<Shared>,
        slot: usize,
        dialer: Arc<Dialer>,
        first: Option<Established>,
    ) -> Self {
        let mut supervisor = Self {
            link: Link::unconnected(shared.now()),
            shared,
            slot,
            dialer,
            live: None,
            refusal: None,
            attempts: JoinSet::new(),
            handles: HashMap::new(),
            was_connected: false,
            reported: None,
            changed: true,
        };
        if let Some(first) = first {
            supervisor.link = Link::connected(supervisor.shared.now());
            supervisor.take(first);
        }
        supervisor.publish();
        supervisor
    }

    /// Runs until the client is closed.
    pub(super) async fn run(mut self) {
        loop {
            let event = self.next().await;
            if matches!(event, SupervisorEvent::Closing) {
                break;
            }
            self.apply(event);
        }
        self.close_connection().await;
    }

    async fn next(&mut self) -> SupervisorEvent {
        let now = self.shared.now();
        let wake_at = self.link.wake_at(now);
        let nap = async {
            match wake_at {
                Some(at) => sleep(at.saturating_sub(now)).await,
                None => std::future::pending().await,
            }
        };
        let live = self.live.clone();
        let lost = async {
            match &live {
                Some(live) => drop(live.connection.closed().await),
                None => std::future::pending().await,
            }
        };
        let wake = &self.shared.slots[self.slot].wake;
        tokio::select! {
            biased;
            () = self.shared.closed() => SupervisorEvent::Closing,
            (number, result) = attempted(&mut self.attempts) => {
                SupervisorEvent::Attempted(number, result.map(Box::new))
            }
            () = lost => SupervisorEvent::Lost,
            () = wake.notified() => SupervisorEvent::Woken,
            () = nap => SupervisorEvent::Woken,
        }
    }

    /// Applies an event without waiting. Slow work runs in tasks of its own.
    fn apply(&mut self, event: SupervisorEvent) {
        let mut established = None;
        let link_event = match event {
            SupervisorEvent::Closing => return,
            SupervisorEvent::Woken => Event::Sampled(self.sample()),
            SupervisorEvent::Lost => {
                self.drop_connection("the connection is over");
                Event::Lost
            }
            SupervisorEvent::Attempted(attempt, result) => {
                self.handles.remove(&attempt);
                let outcome = self.outcome(attempt, &result);
                established = result.ok().map(|established| (attempt, *established));
                Event::Attempted { attempt, outcome }
            }
        };
        let actions = self.link.handle(self.shared.now(), link_event);
        for action in actions {
            self.act(action, &mut established);
        }
        if let Some((_, late)) = established {
            late.connection.close(close::REPLACED, "another connection was faster");
        }
        self.publish();
    }

    fn act(&mut self, action: Action, established: &mut Option<(u64, Established)>) {
        match action {
            Action::Probe => self.probe(),
            Action::Attempt(number) => {
                let dialer = Arc::clone(&self.dialer);
                let handle = self.attempts.spawn(async move { (number, dialer.dial(number).await) });
                self.handles.insert(number, handle);
            }
            Action::Abandon(number) => {
                if let Some(handle) = self.handles.remove(&number) {
                    handle.abort();
                }
            }
            Action::Adopt(number) => {
                if let Some((_, new)) = established.take_if(|(attempt, _)| *attempt == number) {
                    self.drop_connection("a newer connection takes over");
                    self.take(new);
                }
            }
            Action::Drop => self.drop_connection("the host refuses"),
        }
    }

    fn take(&mut self, established: Established) {
        let Established { endpoint, connection, welcome, .. } = established;
        self.shared.welcomed(&welcome);
        if std::mem::replace(&mut self.was_connected, true) {
            add(&self.shared.totals.reconnects, 1);
        }
        let wake = Arc::clone(&self.shared.slots[self.slot].wake);
        self.live = Some(Arc::new(ActiveConnection::new(endpoint, connection, welcome.session, wake)));
        (self.refusal, self.changed) = (None, true);
    }

    /// Closes the connection, if any. Its calls continue on another one.
    fn drop_connection(&mut self, why: &str) {
        let Some(live) = self.live.take() else { return };
        self.changed = true;
        self.shared.totals.retire(&live.connection.stats());
        live.connection.close(close::REPLACED, why);
    }

    fn outcome(&mut self, attempt: u64, result: &Result<Box<Established>, ConnectError>) -> Outcome {
        match result {
            Ok(_) => Outcome::Welcomed,
            Err(error) => {
                debug!(attempt, %error, "attempt to connect failed");
                match error.refusal() {
                    Some(refusal) => {
                        (self.refusal, self.changed) = (Some(refusal), true);
                        Outcome::Refused
                    }
                    None => Outcome::Failed,
                }
            }
        }
    }

    fn sample(&self) -> Sample {
        let mut sample = self.live.as_ref().map(|live| live.sample()).unwrap_or_default();
        if self.live.is_none() {
            sample.waiting = self.shared.unassigned();
        }
        sample
    }

    fn probe(&self) {
        let Some(live) = self.live.clone() else { return };
        tokio::spawn(timeout(PROBE_TIMEOUT, async move {
            let frame = encode_frame(&Request::Ping);
            let mut exchange = Exchange::begin(&live.connection, &frame, Lane::Metadata).await?;
            let _: Result<Reply, WireError> = exchange.frame().await?;
            exchange.complete();
            Ok::<_, super::stream::Fault>(())
        }));
    }

    fn publish(&mut self) {
        let phase = self.link.phase(self.shared.now());
        let moved = self.reported.replace(phase) != Some(phase);
        if moved {
            self.log_phase(phase);
        }
        if !std::mem::take(&mut self.changed) && !moved {
            return;
        }
        let silent_since = self.link.silent_since();
        let state = SlotState { phase, silent_since, live: self.live.clone(), refusal: self.refusal.clone() };
        self.shared.publish(self.slot, state);
    }

    fn log_phase(&self, phase: Phase) {
        let connection = self.slot;
        match (phase, &self.refusal) {
            (Phase::Connected, _) => {
                let address = self.live.as_ref().map(|live| live.connection.remote_address());
                info!(connection, ?address, "connected to the host");
            }
            (Phase::Refused, Some(refusal)) => warn!(connection, %refusal, "the host refuses"),
            _ => warn!(connection, state = ?phase, "the host does not answer"),
        }
    }

    async fn close_connection(mut self) {
        self.attempts.abort_all();
        let Some(live) = self.live.take() else { return };
        self.shared.totals.retire(&live.connection.stats());
        let silent_since = Some(self.shared.now());
        self.shared
            .publish(self.slot, SlotState { phase: Phase::Down, silent_since, live: None, refusal: None });
        live.connection.close(close::GOODBYE, "the client unmounted");
        // Best effort: an unreachable host must not delay us.
        let _ = timeout(CLOSE_TIMEOUT, live.endpoint.wait_idle()).await;
    }
}

/// Returns the next attempt that ended by itself. Aborted attempts are skipped.
async fn attempted(attempts: &mut Attempts) -> (u64, Result<Established, ConnectError>) {
    loop {
        match attempts.join_next().await {
            Some(Ok(ended)) => return ended,
            Some(Err(_)) => {}
            None => std::future::pending().await,
        }
    }
}
