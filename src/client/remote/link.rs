//! (P) Decides when a connection counts as dead, and when to make the next one.
//!
//! QUIC alone recovers too late. Its probe intervals double during a failure. A connection that was silent
//! for ten seconds may stay silent for ten more after the link is back. So new connections race against the
//! old one as soon as it falls silent, and the first that answers is used.

use std::time::Duration;

/// Silence after which the peer is probed, while calls wait. Half of [`SILENT_AFTER`].
const PROBE_AFTER: Duration = Duration::from_millis(500);
/// Silence after which a connection with waiting calls counts as dead. It allows one lost packet to be
/// repeated, and is short enough that users do not notice.
const SILENT_AFTER: Duration = Duration::from_secs(1);
/// Interval at which a connection is sampled while calls wait on it.
const SAMPLE_EVERY: Duration = Duration::from_millis(250);
/// Time between the starts of two attempts. Retransmissions within one attempt become rare. A new attempt
/// each second keeps the longest gap below a second.
const ATTEMPT_EVERY: Duration = Duration::from_secs(1);
/// The same after [`DOWN_AFTER`] while no call waits. The host of a sleeping laptop need not be tried every
/// second.
const ATTEMPT_EVERY_IDLE: Duration = Duration::from_secs(5);
/// The same after a refusal. It will hardly change, but a key may be admitted later.
const ATTEMPT_EVERY_REFUSED: Duration = Duration::from_secs(30);
/// Largest number of attempts under way.
pub(super) const ATTEMPTS_MAX: usize = 3;
/// Age at which an attempt is abandoned. It covers two attempts over a route with a round trip of one second.
const ATTEMPT_LIFE: Duration = Duration::from_secs(6);
/// Time without a connection after which the host counts as down.
const DOWN_AFTER: Duration = Duration::from_secs(30);

/// Phase of the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The connection works.
    Connected,
    /// The connection is silent. New attempts are under way.
    Silent,
    /// There is no connection. Attempts are under way.
    Reconnecting,
    /// There has been no connection for long.
    Down,
    /// The host refused.
    Refused,
}

/// Input of the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// A sample of the connection. Comes at [`Link::wake_at`] and when a call begins to wait.
    Sampled(Sample),
    /// The connection is closed.
    Lost,
    /// An attempt ended.
    Attempted { attempt: u64, outcome: Outcome },
}

/// Measurements of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Sample {
    /// Datagrams received since the connection began.
    pub(super) datagrams_received: u64,
    /// Round-trip time of the connection.
    pub(super) rtt: Duration,
    /// Calls that wait for the host.
    pub(super) waiting: usize,
}

/// Result of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The host welcomed the client.
    Welcomed,
    /// No answer, or an unusable one.
    Failed,
    /// The host refused, or its key did.
    Refused,
}

/// Output of the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Send a probe to the peer.
    Probe,
    /// Start the attempt with this number.
    Attempt(u64),
    /// Abandon an attempt.
    Abandon(u64),
    /// Use the connection of this attempt and close the one before.
    Adopt(u64),
    /// Close the connection.
    Drop,
}

/// State of one connection slot.
#[derive(Debug)]
pub(super) struct Link {
    health: Option<Health>,
    attempts: Vec<Attempt>,
    attempts_made: u64,
    last_attempt: Option<Duration>,
    without_since: Duration,
    silent_since: Option<Duration>,
    refused: bool,
    waiting: usize,
}

#[derive(Debug, Clone, Copy)]
struct Health {
    datagrams_received: u64,
    rtt: Duration,
    /// Time of the last sign of life, or the time at which calls began to wait if that is later.
    heard_at: Duration,
    probed: bool,
    silent: bool,
}

#[derive(Debug, Clone, Copy)]
struct Attempt {
    number: u64,
    started_at: Duration,
}

impl Link {
    /// Returns a link that was connected just now.
    pub(super) const fn connected(now: Duration) -> Self {
        let mut link = Self::unconnected(now);
        link.health = Some(Health::new(now));
        link.silent_since = None;
        link
    }

    /// Returns a link without a connection.
    pub(super) const fn unconnected(now: Duration) -> Self {
        Self {
            health: None,
            attempts: Vec::new(),
            attempts_made: 0,
            last_attempt: None,
            without_since: now,
            silent_since: Some(now),
            refused: false,
            waiting: 0,
        }
    }

    /// Returns the start of the host's silence, `None` while it answers.
    pub(super) const fn silent_since(&self) -> Option<Duration> {
        self.silent_since
    }

    /// Returns the phase of the link.
    pub(super) fn phase(&self, now: Duration) -> Phase {
        match self.health {
            Some(health) if health.silent => Phase::Silent,
            Some(_) => Phase::Connected,
            None if self.refused => Phase::Refused,
            None if now.saturating_sub(self.without_since) >= DOWN_AFTER => Phase::Down,
            None => Phase::Reconnecting,
        }
    }

    /// Applies an event and returns the actions, in order.
    pub(super) fn handle(&mut self, now: Duration, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Sampled(sample) => self.sample(now, sample, &mut actions),
            Event::Lost => self.lose(now),
            Event::Attempted { attempt, outcome } => self.attempted(now, attempt, outcome, &mut actions),
        }
        self.expire(now, &mut actions);
        if self.next_attempt_at(now).is_some_and(|at| at <= now) {
            self.attempts_made += 1;
            self.last_attempt = Some(now);
            self.attempts.push(Attempt { number: self.attempts_made, started_at: now });
            actions.push(Action::Attempt(self.attempts_made));
        }
        actions
    }

    /// Returns the time of the next sample if no event comes before. `None` means not until a call waits.
    pub(super) fn wake_at(&self, now: Duration) -> Option<Duration> {
        let sample =
            self.health.filter(|health| health.silent || self.waiting > 0).map(|_| now + SAMPLE_EVERY);
        let expiry = self.attempts.iter().map(|attempt| attempt.started_at + ATTEMPT_LIFE).min();
        // The change from Reconnecting to Down changes the interval.
        let down = (self.health.is_none() && !self.refused).then_some(self.without_since + DOWN_AFTER);
        let down = down.filter(|at| *at > now);
        [sample, expiry, down, self.next_attempt_at(now)].into_iter().flatten().min()
    }

    fn sample(&mut self, now: Duration, sample: Sample, actions: &mut Vec<Action>) {
        let began_to_wait = self.waiting == 0 && sample.waiting > 0;
        self.waiting = sample.waiting;
        let Some(health) = &mut self.health else { return };
        health.rtt = sample.rtt;
        if sample.datagrams_received != health.datagrams_received {
            health.datagrams_received = sample.datagrams_received;
            (health.heard_at, health.probed, health.silent) = (now, false, false);
            self.silent_since = None;
            self.abandon_all(actions);
        } else if sample.waiting == 0 {
            // Silence has no meaning while nothing is requested. A silent connection stays silent.
        } else if began_to_wait && !health.silent {
            (health.heard_at, health.probed) = (now, false);
        } else {
            health.check_silence(now, actions);
            if health.silent {
                self.silent_since = self.silent_since.or(Some(health.heard_at));
            }
        }
    }

    fn lose(&mut self, now: Duration) {
        if self.health.take().is_some() {
            self.without_since = now;
            self.silent_since = self.silent_since.or(Some(now));
        }
    }

    fn attempted(&mut self, now: Duration, number: u64, outcome: Outcome, actions: &mut Vec<Action>) {
        let Some(position) = self.attempts.iter().position(|attempt| attempt.number == number) else {
            return;
        };
        self.attempts.swap_remove(position);
        match outcome {
            Outcome::Failed => self.refused = false,
            Outcome::Welcomed => {
                actions.push(Action::Adopt(number));
                self.abandon_all(actions);
                self.refused = false;
                self.last_attempt = None;
                self.health = Some(Health::new(now));
                self.silent_since = None;
            }
            Outcome::Refused => {
                // A refusal is an answer.
                self.silent_since = Some(now);
                self.abandon_all(actions);
                self.refused = true;
                if self.health.is_some() {
                    actions.push(Action::Drop);
                    self.lose(now);
                }
            }
        }
    }

    fn expire(&mut self, now: Duration, actions: &mut Vec<Action>) {
        self.attempts.retain(|attempt| {
            let keep = now < attempt.started_at + ATTEMPT_LIFE;
            if !keep {
                actions.push(Action::Abandon(attempt.number));
            }
            keep
        });
    }

    fn abandon_all(&mut self, actions: &mut Vec<Action>) {
        actions.extend(self.attempts.drain(..).map(|attempt| Action::Abandon(attempt.number)));
    }

    /// Returns the time of the next attempt. `None` if no attempt is wanted or the maximum is under way.
    fn next_attempt_at(&self, now: Duration) -> Option<Duration> {
        let phase = self.phase(now);
        if phase == Phase::Connected || self.attempts.len() >= ATTEMPTS_MAX {
            return None;
        }
        let every = match phase {
            Phase::Refused => ATTEMPT_EVERY_REFUSED,
            Phase::Down if self.waiting == 0 => ATTEMPT_EVERY_IDLE,
            _ => ATTEMPT_EVERY,
        };
        Some(self.last_attempt.map_or(now, |last| last + every))
    }
}

impl Health {
    const fn new(now: Duration) -> Self {
        Self { datagrams_received: 0, rtt: Duration::ZERO, heard_at: now, probed: false, silent: false }
    }

    /// Checks the silence of a peer for which calls wait: probes it, then marks it as silent.
    fn check_silence(&mut self, now: Duration, actions: &mut Vec<Action>) {
        let silence = now.saturating_sub(self.heard_at);
        if silence >= PROBE_AFTER && !self.probed {
            self.probed = true;
            actions.push(Action::Probe);
        }
        // The answer of a far peer to the probe takes a round trip.
        if silence >= SILENT_AFTER.max(PROBE_AFTER + 2 * self.rtt) {
            self.silent = true;
        }
    }
}

#[cfg(test)]
mod tests;
