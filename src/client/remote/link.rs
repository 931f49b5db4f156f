//! (P) When a connection counts as dead, and when to try for the next one.
//!
//! QUIC alone would come back too late: its probes double their distance during a cut, so a connection that was mute
//! for ten seconds may stay mute for ten more after the link's return. So new connections are raced against the old
//! one as soon as it falls silent, and whichever answers first carries on.

use std::time::Duration;

/// Silence after which the peer is asked for a sign of life, while calls wait. Half of [`SILENT_AFTER`].
const PROBE_AFTER: Duration = Duration::from_millis(500);
/// Silence after which a connection that calls wait on is taken for dead: long enough for one lost packet to be
/// repeated, short enough that a person does not yet wonder.
const SILENT_AFTER: Duration = Duration::from_secs(1);
/// How often a connection is looked at while calls wait on it.
const SAMPLE_EVERY: Duration = Duration::from_millis(250);
/// Time between the starts of two attempts. An attempt's own repetitions come ever more rarely; a fresh one a second
/// keeps the longest gap below a second.
const ATTEMPT_EVERY: Duration = Duration::from_secs(1);
/// The same after [`DOWN_AFTER`] while nobody waits: a sleeping laptop's host need not be called every second.
const ATTEMPT_EVERY_IDLE: Duration = Duration::from_secs(5);
/// The same after the host said no: it will hardly change its mind, but a key may be let in again.
const ATTEMPT_EVERY_REFUSED: Duration = Duration::from_secs(30);
/// Attempts under way at once.
pub(super) const ATTEMPTS_MAX: usize = 3;
/// Age at which an attempt is given up; leaves a path of one second's round trip the time for two of them.
const ATTEMPT_LIFE: Duration = Duration::from_secs(6);
/// Time without a connection after which the host is called down.
const DOWN_AFTER: Duration = Duration::from_secs(30);

/// How things stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// There is a connection, and no reason to doubt it.
    Connected,
    /// There is a connection, but it does not answer; others are being tried.
    Silent,
    /// There is no connection; some are being tried.
    Reconnecting,
    /// As `Reconnecting`, for long.
    Down,
    /// The host said no.
    Refused,
}

/// Something happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// Somebody looked; comes at [`Link::wake_at`] and whenever a call begins to wait.
    Sampled(Sample),
    /// The connection is over.
    Lost,
    /// An attempt ended.
    Attempted { attempt: u64, outcome: Outcome },
}

/// What there is to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Sample {
    /// Datagrams that the connection has received since it began.
    pub(super) datagrams_received: u64,
    /// Round-trip time of the connection.
    pub(super) rtt: Duration,
    /// Calls that wait for the host.
    pub(super) waiting: usize,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The host let us in.
    Welcomed,
    /// No answer, or none to be used.
    Failed,
    /// The host, or the check of its key, said no.
    Refused,
}

/// Something to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Ask the peer for a sign of life.
    Probe,
    /// Start an attempt with this number.
    Attempt(u64),
    /// Give up an attempt.
    Abandon(u64),
    /// Take the connection that this attempt made, close the one before.
    Adopt(u64),
    /// Close the connection.
    Drop,
}

/// One connection's worth of state.
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
    /// When the peer was last heard, or began to be waited for if that is later.
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
    /// A link whose connection was made just now.
    pub(super) const fn connected(now: Duration) -> Self {
        let mut link = Self::unconnected(now);
        link.health = Some(Health::new(now));
        link.silent_since = None;
        link
    }

    /// A link that is to be made.
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

    /// Since when the host has not been heard; `None` while there is no reason to doubt it.
    pub(super) const fn silent_since(&self) -> Option<Duration> {
        self.silent_since
    }

    /// How things stand.
    pub(super) fn phase(&self, now: Duration) -> Phase {
        match self.health {
            Some(health) if health.silent => Phase::Silent,
            Some(_) => Phase::Connected,
            None if self.refused => Phase::Refused,
            None if now.saturating_sub(self.without_since) >= DOWN_AFTER => Phase::Down,
            None => Phase::Reconnecting,
        }
    }

    /// Takes in what happened and says what to do, in this order.
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

    /// When to look again, if nothing happens before. `None`: not before a call waits.
    pub(super) fn wake_at(&self, now: Duration) -> Option<Duration> {
        let sample =
            self.health.filter(|health| health.silent || self.waiting > 0).map(|_| now + SAMPLE_EVERY);
        let expiry = self.attempts.iter().map(|attempt| attempt.started_at + ATTEMPT_LIFE).min();
        // Going from Reconnecting to Down changes the pace.
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
            // Silence means nothing while nothing is asked; what is already suspect stays so.
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
                // It answered.
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

    /// When the next attempt is due; `None` while none is wanted or as many as may be are under way.
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

    /// Goes one step further in doubting a peer that is waited for and not heard.
    fn check_silence(&mut self, now: Duration, actions: &mut Vec<Action>) {
        let silence = now.saturating_sub(self.heard_at);
        if silence >= PROBE_AFTER && !self.probed {
            self.probed = true;
            actions.push(Action::Probe);
        }
        // A far peer's answer to the probe takes its time.
        if silence >= SILENT_AFTER.max(PROBE_AFTER + 2 * self.rtt) {
            self.silent = true;
        }
    }
}

#[cfg(test)]
mod tests;
