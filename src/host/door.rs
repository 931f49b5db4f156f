//! Strangers at the door: who may begin a handshake, and who gives up a place for it.
//!
//! Pure: random numbers come in, and how somebody is told to leave is up to the caller.
//!
//! A newcomer is let in as long as anybody else can go instead. An honest client needs its place for a few round trips, so it
//! has left before a flood pushes it out; one that connects and says nothing is what is pushed out.

use core::net::{IpAddr, Ipv6Addr};

/// How many strangers there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DoorLimits {
    /// At a time.
    pub(super) strangers_max: usize,
    /// At a time from one source.
    pub(super) per_source_max: usize,
    /// From so many on some of them are dropped early.
    pub(super) drop_from: usize,
    /// From so many on an address must be proved.
    pub(super) proof_from: usize,
}

impl DoorLimits {
    /// For at most `strangers_max` at a time. A quarter may come from one source; the other shares follow from the size, too.
    pub(super) const fn new(strangers_max: usize) -> Self {
        Self {
            strangers_max,
            per_source_max: strangers_max.div_ceil(4),
            drop_from: strangers_max / 2,
            proof_from: strangers_max / 8,
        }
    }
}

/// Where somebody comes from, as far as one owner is likely to have it: an IPv4 address, or the first 64 bits of an IPv6 one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Source(IpAddr);

impl Source {
    /// The source of an address.
    pub(super) fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
            address @ IpAddr::V4(_) => address,
        })
    }
}

/// A stranger's number at this door.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StrangerId(u64);

/// What is done about somebody who knocks.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict<T> {
    /// It proves its address and comes again.
    ProveAddress,
    /// It may begin its handshake; who is named here goes instead.
    Enter(StrangerId, Option<T>),
}

#[derive(Debug)]
struct Stranger<T> {
    id: StrangerId,
    source: Source,
    handle: T,
}

/// Those who began a handshake and were not admitted yet, the oldest first. `T` is how one of them is told to leave.
#[derive(Debug)]
pub(super) struct Door<T> {
    limits: DoorLimits,
    strangers: Vec<Stranger<T>>,
    next: u64,
}

impl<T> Door<T> {
    /// Nobody is there.
    pub(super) const fn new(limits: DoorLimits) -> Self {
        Self { limits, strangers: Vec::new(), next: 0 }
    }

    /// Somebody knocks. `is_proved`: it was heard at its address. `random` decides who is dropped early.
    pub(super) fn knock(&mut self, source: Source, is_proved: bool, random: u64, handle: T) -> Verdict<T> {
        if !is_proved && self.strangers.len() >= self.limits.proof_from {
            return Verdict::ProveAddress;
        }
        let dropped = self.to_drop(source, random).map(|index| self.strangers.remove(index).handle);
        let id = StrangerId(self.next);
        self.next += 1;
        self.strangers.push(Stranger { id, source, handle });
        Verdict::Enter(id, dropped)
    }

    /// Somebody is admitted, or gone.
    pub(super) fn leave(&mut self, id: StrangerId) {
        self.strangers.retain(|stranger| stranger.id != id);
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.strangers.len()
    }

    /// Whose place a newcomer gets. Of its own source the oldest, which had the most time; else anybody, the more likely the
    /// fuller it is.
    fn to_drop(&self, source: Source, random: u64) -> Option<usize> {
        let DoorLimits { strangers_max, per_source_max, drop_from, .. } = self.limits;
        let mut same = self.strangers.iter().enumerate().filter(|(_, stranger)| stranger.source == source);
        let oldest = same.next().map(|(index, _)| index);
        if same.count() + 1 >= per_source_max.max(1) && oldest.is_some() {
            return oldest;
        }
        let len = self.strangers.len();
        let above = len.saturating_sub(drop_from) as u64;
        let steps = strangers_max.saturating_sub(drop_from).max(1) as u64;
        let is_dropped = len > 0 && (len >= strangers_max || random % steps < above);
        is_dropped.then(|| (random / steps) as usize % len)
    }
}

#[cfg(test)]
mod tests {
    use core::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    const LIMITS: DoorLimits = DoorLimits::new(16);
    /// Honest clients that come during a flood.
    const ROUNDS: u32 = 40;

    fn source(number: u8) -> Source {
        Source::of(Ipv4Addr::new(10, 0, 0, number).into())
    }

    fn enter(door: &mut Door<u64>, source: Source, random: u64, handle: u64) -> (StrangerId, Option<u64>) {
        match door.knock(source, true, random, handle) {
            Verdict::Enter(id, dropped) => (id, dropped),
            Verdict::ProveAddress => panic!("it is proved"),
        }
    }

    #[test]
    fn a_source_is_an_address_or_a_network_of_64_bits() {
        let of = |text: &str| Source::of(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2:3::4"), of("2001:db8:1:2::"));
        assert_ne!(of("2001:db8:1:2::"), of("2001:db8:1:3::"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.2"), of("10.0.0.1"));
    }

    #[test]
    fn one_source_pushes_out_nobody_but_itself() {
        let mut door = Door::new(LIMITS);
        let (other, _) = enter(&mut door, source(2), 0, 999);
        let dropped: Vec<u64> =
            (0..1_000).filter_map(|number| enter(&mut door, source(1), number * 7_919, number).1).collect();
        let oldest_first: Vec<u64> = (0..1_000 - LIMITS.per_source_max as u64).collect();
        assert_eq!(dropped, oldest_first);
        assert_eq!(door.len(), LIMITS.per_source_max + 1);
        door.leave(other);
        assert_eq!(door.len(), LIMITS.per_source_max);
    }

    #[test]
    fn an_address_is_to_be_proved_only_while_many_are_there() {
        let mut door = Door::new(LIMITS);
        let mut entered = Vec::new();
        while let Verdict::Enter(id, _) = door.knock(source(1), false, 0, ()) {
            entered.push(id);
        }
        assert_eq!(entered.len(), LIMITS.proof_from);
        door.leave(entered[0]);
        assert!(matches!(door.knock(source(1), false, 0, ()), Verdict::Enter(..)));
    }

    proptest! {
        /// Whatever comes and goes: nobody is turned away, who is there was not dropped, and no bound is passed.
        #[test]
        fn places_are_bounded_and_every_newcomer_gets_one(
            steps in proptest::collection::vec((any::<bool>(), 0u8..24, any::<u64>()), 0..400),
        ) {
            let (mut door, mut there) = (Door::new(LIMITS), Vec::<(u64, StrangerId, u8)>::new());
            for (number, (comes, from, random)) in steps.into_iter().enumerate() {
                let handle = number as u64;
                if comes {
                    let (id, dropped) = enter(&mut door, source(from), random, handle);
                    if let Some(dropped) = dropped {
                        prop_assert!(there.iter().any(|(handle, ..)| *handle == dropped));
                        there.retain(|(handle, ..)| *handle != dropped);
                    }
                    there.push((handle, id, from));
                } else if !there.is_empty() {
                    let (_, id, _) = there.remove(random as usize % there.len());
                    door.leave(id);
                }
                prop_assert_eq!(door.len(), there.len());
                prop_assert!(there.len() <= LIMITS.strangers_max);
                for source in 0..24 {
                    let of_source = there.iter().filter(|(_, _, from)| *from == source).count();
                    prop_assert!(of_source <= LIMITS.per_source_max);
                }
            }
        }

        /// A client that needs its place for `needs` newcomers keeps it more often than not while a flood from many sources is as
        /// large as half of all places.
        #[test]
        fn a_flood_from_everywhere_leaves_most_of_the_quick(seed: u64) {
            let limits = DoorLimits::new(256);
            let (mut door, mut kept, mut random) = (Door::new(limits), 0, seed | 1);
            let mut next = || {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random
            };
            for _ in 0..ROUNDS {
                let (honest, _) = enter(&mut door, source(255), next(), u64::MAX);
                let mut is_there = true;
                for _ in 0..64 {
                    is_there &= enter(&mut door, source((next() % 200) as u8), next(), 0).1 != Some(u64::MAX);
                }
                kept += u32::from(is_there);
                door.leave(honest);
            }
            prop_assert!(kept > ROUNDS / 2, "{} of {}", kept, ROUNDS);
        }
    }
}
