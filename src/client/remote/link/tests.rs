//! Random histories of a link, and the most important ones step by step.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A link with its environment, and the rules for its actions.
struct World {
    link: Link,
    now: Duration,
    datagrams: u64,
    waiting: usize,
    connected: bool,
    under_way: BTreeSet<u64>,
    last_start: Option<Duration>,
    log: Vec<(Duration, Action)>,
}

impl World {
    fn new(connected: bool) -> Self {
        let link =
            if connected { Link::connected(Duration::ZERO) } else { Link::unconnected(Duration::ZERO) };
        Self {
            link,
            now: Duration::ZERO,
            datagrams: 1,
            waiting: 0,
            connected,
            under_way: BTreeSet::new(),
            last_start: None,
            log: Vec::new(),
        }
    }

    fn sample(&mut self) {
        let sample = Sample { datagrams_received: self.datagrams, rtt: ms(20), waiting: self.waiting };
        self.handle(Event::Sampled(sample));
    }

    fn handle(&mut self, event: Event) {
        if event == Event::Lost {
            self.connected = false;
        }
        if let Event::Attempted { attempt, .. } = event {
            self.under_way.remove(&attempt);
        }
        let refused = self.link.phase(self.now) == Phase::Refused;
        for action in self.link.handle(self.now, event) {
            self.check(action, refused);
            self.log.push((self.now, action));
        }
        assert!(self.under_way.len() <= ATTEMPTS_MAX);
        let phase = self.link.phase(self.now);
        assert_eq!(self.connected, matches!(phase, Phase::Connected | Phase::Silent));
        if phase == Phase::Connected {
            assert!(self.under_way.is_empty(), "attempts in addition to a good connection");
        }
        assert_eq!(self.link.silent_since().is_none(), phase == Phase::Connected, "{phase:?}");
        assert!(self.link.silent_since().is_none_or(|since| since <= self.now));
        let wake = self.link.wake_at(self.now);
        assert!(wake.is_none_or(|at| at > self.now), "{wake:?} is not after {:?}", self.now);
        assert!(wake.is_some() || phase == Phase::Connected, "a link without a connection sleeps forever");
        assert!(wake.is_some() || self.waiting == 0 || !self.connected, "calls wait and no sample is due");
    }

    fn check(&mut self, action: Action, refused: bool) {
        match action {
            Action::Probe => assert!(self.connected && self.waiting > 0),
            Action::Attempt(number) => {
                let least = if refused && self.link.refused { ATTEMPT_EVERY_REFUSED } else { ATTEMPT_EVERY };
                assert!(self.last_start.is_none_or(|last| self.now >= last + least), "attempts too close");
                self.last_start = Some(self.now);
                assert!(self.under_way.insert(number), "a number used twice");
            }
            Action::Abandon(number) => assert!(self.under_way.remove(&number)),
            Action::Adopt(_) => {
                (self.connected, self.last_start) = (true, None);
                self.datagrams = 1;
            }
            Action::Drop => {
                assert!(self.connected);
                self.connected = false;
            }
        }
    }

    /// Lets time pass and samples at the times of the link. With `heard` datagrams arrive every millisecond,
    /// else never.
    fn pass(&mut self, time: Duration, heard: bool) {
        let end = self.now + time;
        while let Some(at) = self.link.wake_at(self.now).filter(|at| *at <= end) {
            self.now = at;
            self.datagrams += u64::from(heard);
            self.sample();
        }
        self.now = end;
    }

    fn started(&self) -> Vec<u64> {
        let starts = self.log.iter().filter(|(_, action)| matches!(action, Action::Attempt(_)));
        starts.map(|(at, _)| at.as_millis() as u64).collect()
    }
}

#[derive(Debug, Clone)]
enum Step {
    Pass { ms: u64, heard: bool },
    Wait(usize),
    Lost,
    End(usize, Outcome),
}

fn step() -> impl Strategy<Value = Step> {
    let outcome = prop_oneof![
        1 => Just(Outcome::Welcomed),
        4 => Just(Outcome::Failed),
        1 => Just(Outcome::Refused),
    ];
    prop_oneof![
        4 => (0u64..5_000, any::<bool>()).prop_map(|(ms, heard)| Step::Pass { ms, heard }),
        2 => (0usize..3).prop_map(Step::Wait),
        1 => Just(Step::Lost),
        2 => (0usize..3, outcome).prop_map(|(which, outcome)| Step::End(which, outcome)),
    ]
}

proptest! {
    #[test]
    fn any_history_keeps_the_rules(connected: bool, steps in proptest::collection::vec(step(), 0..60)) {
        let mut world = World::new(connected);
        world.sample();
        for step in steps {
            match step {
                Step::Pass { ms: time, heard } => world.pass(ms(time), heard),
                Step::Wait(waiting) => {
                    world.waiting = waiting;
                    world.sample();
                }
                Step::Lost if world.connected => world.handle(Event::Lost),
                Step::Lost => {}
                Step::End(which, outcome) => {
                    let attempt = world.under_way.iter().nth(which).copied();
                    // An unknown attempt is ignored.
                    let attempt = attempt.unwrap_or(u64::MAX);
                    world.handle(Event::Attempted { attempt, outcome });
                }
            }
        }
        // After any history: if calls wait for a lost host, an attempt begins within the longest interval.
        world.waiting = 1;
        world.sample();
        let before = world.started().len();
        world.pass(ATTEMPT_EVERY_REFUSED + ATTEMPT_LIFE, false);
        prop_assert!(world.started().len() > before);
    }

    #[test]
    fn a_peer_that_answers_is_never_silent(waits in proptest::collection::vec((0usize..3, 0u64..3_000), 1..30)) {
        let mut world = World::new(true);
        for (waiting, time) in waits {
            world.waiting = waiting;
            world.datagrams += 1;
            world.sample();
            world.pass(ms(time), true);
        }
        prop_assert_eq!(world.log, vec![]);
    }
}

#[test]
fn silence_is_probed_then_raced_and_the_first_welcome_is_used() {
    let mut world = World::new(true);
    world.sample();
    world.pass(ms(10_000), false);
    assert_eq!(world.log, [], "no call waits, so silence does not count");
    world.waiting = 1;
    world.sample();
    world.pass(ms(2_999), false);
    let expected = [(10_500, Action::Probe), (11_000, Action::Attempt(1)), (12_000, Action::Attempt(2))];
    assert_eq!(world.log, expected.map(|(at, action)| (ms(at), action)));
    assert_eq!(world.link.phase(world.now), Phase::Silent);
    world.log.clear();
    world.handle(Event::Attempted { attempt: 2, outcome: Outcome::Welcomed });
    assert_eq!(
        world.log.iter().map(|(_, action)| *action).collect::<Vec<_>>(),
        [Action::Adopt(2), Action::Abandon(1)]
    );
    assert_eq!(world.link.phase(world.now), Phase::Connected);
}

#[test]
fn an_old_connection_that_comes_back_ends_the_race() {
    let mut world = World::new(true);
    world.waiting = 1;
    world.sample();
    world.pass(ms(1_500), false);
    assert_eq!(world.link.phase(world.now), Phase::Silent);
    world.datagrams += 1;
    world.sample();
    assert_eq!(world.log.last().map(|(_, action)| *action), Some(Action::Abandon(1)));
    assert_eq!(world.link.phase(world.now), Phase::Connected);
}

#[test]
fn silence_lasts_from_the_last_sign_of_life_to_the_next() {
    let mut world = World::new(true);
    world.waiting = 1;
    world.sample();
    world.pass(ms(1_500), false);
    assert_eq!(world.link.silent_since(), Some(ms(0)));
    world.handle(Event::Lost);
    world.pass(ms(60_000), false);
    assert_eq!(world.link.silent_since(), Some(ms(0)), "also without a connection");
    let attempt = *world.under_way.first().unwrap();
    world.handle(Event::Attempted { attempt, outcome: Outcome::Welcomed });
    assert_eq!(world.link.silent_since(), None);
    world.handle(Event::Lost);
    assert_eq!(world.link.silent_since(), Some(ms(61_500)));
}

#[test]
fn a_lost_connection_is_retried_at_once_then_every_second_then_rarely() {
    let mut world = World::new(true);
    world.sample();
    world.handle(Event::Lost);
    world.pass(ms(8_500), false);
    assert_eq!(world.started(), [0, 1_000, 2_000, 6_000, 7_000, 8_000]);
    world.log.clear();
    world.pass(ms(31_500), false);
    assert_eq!(world.link.phase(world.now), Phase::Down);
    assert_eq!(
        world.started(),
        [12_000, 13_000, 14_000, 18_000, 19_000, 20_000, 24_000, 25_000, 26_000, 31_000, 36_000]
    );
    world.log.clear();
    world.waiting = 1;
    world.sample();
    assert_eq!(world.started(), [40_000], "a waiting call shortens the interval");
}

#[test]
fn a_refusal_ends_the_race_and_lengthens_the_interval() {
    let mut world = World::new(false);
    world.sample();
    world.pass(ms(1_500), false);
    world.handle(Event::Attempted { attempt: 1, outcome: Outcome::Refused });
    assert_eq!(world.link.phase(world.now), Phase::Refused);
    assert!(world.under_way.is_empty());
    world.pass(ms(40_000), false);
    assert_eq!(world.started(), [0, 1_000, 31_000]);
}

#[test]
fn a_refusal_while_the_old_connection_is_silent_closes_it() {
    let mut world = World::new(true);
    world.waiting = 1;
    world.sample();
    world.pass(ms(1_100), false);
    world.handle(Event::Attempted { attempt: 1, outcome: Outcome::Refused });
    assert_eq!(world.log.last().map(|(_, action)| *action), Some(Action::Drop));
}
