//! Which edge may grant, by time. No clock is compared with another one: each edge measures spans by
//! its own, and the ledger keeps no time at all.
//!
//! An edge proves that it lives by raising its beat in the ledger. It may grant until its hold time,
//! less a margin, after the *start* of the last renewal that succeeded. Who watches it may take its
//! accounts over when its beat has not changed for its hold time, and the margin, since the *answer*
//! in which it was first seen; the ledger grants that only if the beat is still the same. The renewal began
//! before its beat was written, and the beat was written before it was seen, so that the first span
//! ends two margins before the second: what clocks may differ by in speed.

use std::time::Duration;

/// How long an edge holds its accounts without a sign of life, unless it is told otherwise.
pub const HOLD_DEFAULT: Duration = Duration::from_secs(30);
/// Least hold time: shorter than this, a slow disk of the database would cut edges off.
pub const HOLD_MIN: Duration = Duration::from_secs(2);
/// Most: for so long nobody serves the accounts of an edge that is gone.
pub const HOLD_MAX: Duration = Duration::from_hours(1);
/// The margin's share of the hold time: clocks may differ by twice that in speed.
const MARGIN_DIVISOR: u32 = 15;

/// For how long an edge holds its accounts without a sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold(Duration);

impl Default for Hold {
    fn default() -> Self {
        Self(HOLD_DEFAULT)
    }
}

impl Hold {
    /// `None` unless it is from [`HOLD_MIN`] to [`HOLD_MAX`].
    pub fn new(hold: Duration) -> Option<Self> {
        (HOLD_MIN..=HOLD_MAX).contains(&hold).then_some(Self(hold))
    }

    /// The whole time.
    pub fn get(self) -> Duration {
        self.0
    }

    /// What an edge stops earlier, and others wait for longer.
    pub fn margin(self) -> Duration {
        self.0 / MARGIN_DIVISOR
    }

    /// How long an edge may grant after the start of a renewal.
    pub fn granting(self) -> Duration {
        self.0.saturating_sub(self.margin())
    }

    /// How long others wait.
    pub fn waiting(self) -> Duration {
        self.0 + self.margin()
    }
}

/// An edge's own right to grant, on its own clock.
#[derive(Clone, Copy, Debug)]
pub struct Lease {
    hold: Hold,
    renewed: Option<Duration>,
}

impl Lease {
    /// Nothing may be granted before the first renewal.
    pub fn new(hold: Hold) -> Self {
        Self { hold, renewed: None }
    }

    /// A renewal that began at `started` has succeeded.
    pub fn renew(&mut self, started: Duration) {
        self.renewed = self.renewed.max(Some(started));
    }

    /// Until when may be granted, and leases in the kernel may hold.
    pub fn ends(&self) -> Option<Duration> {
        self.renewed.map(|renewed| renewed + self.hold.granting())
    }

    /// Whether something may be granted.
    pub fn may_grant(&self, now: Duration) -> bool {
        self.ends().is_some_and(|ends| now < ends)
    }
}

/// What is seen of another edge's life, on the clock of who sees it.
#[derive(Clone, Copy, Debug)]
pub struct Silence {
    hold: Hold,
    epoch: u64,
    beat: u64,
    since: Duration,
}

impl Silence {
    /// An answer that came at `now` shows this epoch and beat, and the hold time that the edge itself
    /// goes by.
    pub fn new(hold: Hold, epoch: u64, beat: u64, now: Duration) -> Self {
        Self { hold, epoch, beat, since: now }
    }

    /// Another answer.
    pub fn see(&mut self, hold: Hold, epoch: u64, beat: u64, now: Duration) {
        if (self.hold, self.epoch, self.beat) != (hold, epoch, beat) {
            *self = Self::new(hold, epoch, beat, now);
        }
    }

    /// Its epoch and beat, which must still be the same when it is taken over.
    pub fn last(&self) -> (u64, u64) {
        (self.epoch, self.beat)
    }

    /// The hold time that the edge goes by.
    pub fn hold(&self) -> Hold {
        self.hold
    }

    /// For how long nothing has changed.
    pub fn lasted(&self, now: Duration) -> Duration {
        now.saturating_sub(self.since)
    }

    /// Whether it has ended to grant, whatever it knows.
    pub fn is_over(&self, now: Duration) -> bool {
        self.lasted(now) >= self.hold.waiting()
    }
}

#[cfg(test)]
mod tests {
    use std::{cmp::Reverse, collections::BinaryHeap};

    use proptest::prelude::*;

    use super::*;

    const TICK: Duration = Duration::from_nanos(1);

    fn just_before(instant: Duration) -> Duration {
        instant.saturating_sub(TICK)
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_lease_ends_a_margin_before_the_hold_time() {
        let mut lease = Lease::new(Hold::default());
        assert!(!lease.may_grant(Duration::ZERO), "never renewed");
        lease.renew(seconds(100));
        assert!(lease.may_grant(just_before(seconds(128))));
        assert!(!lease.may_grant(seconds(128)));
        assert_eq!(lease.ends(), Some(seconds(128)));
        // An answer that comes late takes nothing back.
        lease.renew(seconds(99));
        assert_eq!(lease.ends(), Some(seconds(128)));
    }

    #[test]
    fn a_silent_edge_is_waited_for_a_margin_longer_than_it_holds() {
        let hold = Hold::default();
        let mut silence = Silence::new(hold, 1, 7, seconds(100));
        assert!(!silence.is_over(just_before(seconds(132))));
        assert!(silence.is_over(seconds(132)));
        silence.see(hold, 1, 7, seconds(131));
        assert!(silence.is_over(seconds(132)), "the same again is no sign of life");
        silence.see(hold, 1, 8, seconds(132));
        assert!(!silence.is_over(just_before(seconds(164))));
        // A new daemon of the same name begins at some beat of its own.
        silence.see(hold, 2, 8, seconds(133));
        assert!(!silence.is_over(just_before(seconds(165))));
        assert_eq!(silence.last(), (2, 8));
        // Who holds for longer is waited for longer.
        let longer = Hold::new(seconds(60)).unwrap();
        silence.see(longer, 2, 8, seconds(134));
        assert!(!silence.is_over(just_before(seconds(198))));
        assert!(silence.is_over(seconds(198)));
    }

    #[test]
    fn a_hold_time_has_bounds() {
        assert_eq!(Hold::new(just_before(HOLD_MIN)), None);
        assert!(Hold::new(HOLD_MIN).is_some() && Hold::new(HOLD_MAX).is_some());
        assert_eq!(Hold::new(HOLD_MAX + TICK), None);
    }

    /// One round of an edge, in milliseconds of its own clock: it rests, sends, and gets an answer, if it does; then it may
    /// be paused before it does what it decided.
    #[derive(Clone, Copy, Debug)]
    struct Round {
        rest: u64,
        there: u64,
        back: u64,
        arrives: bool,
        returns: bool,
        pause: u64,
    }

    fn round() -> impl Strategy<Value = Round> {
        let span = prop_oneof![4 => 0..200u64, 1 => 0..3_000u64];
        let pause = prop_oneof![8 => Just(0), 1 => 0..20_000u64];
        let often = || prop_oneof![6 => Just(true), 1 => Just(false)];
        let times = (0..600u64, span.clone(), span, pause);
        (times, often(), often()).prop_map(|((rest, there, back, pause), arrives, returns)| Round {
            rest,
            there,
            back,
            arrives,
            returns,
            pause,
        })
    }

    /// What the ledger has of an edge.
    #[derive(Clone, Copy, Debug, Default, PartialEq)]
    struct Row {
        epoch: u64,
        beat: u64,
    }

    struct Edge {
        /// Its clock's speed, in thousandths of the world's.
        speed: u64,
        offset: u64,
        epoch: u64,
        lease: Lease,
        other: Option<Silence>,
        rounds: Vec<Round>,
    }

    impl Edge {
        fn clock(&self, world: u64) -> Duration {
            Duration::from_micros(self.offset * 1_000 + world * self.speed)
        }

        /// When, in microseconds of the world, its own right to grant ends.
        fn ends(&self) -> u128 {
            let ends = self.lease.ends().unwrap_or_default();
            let span = ends.saturating_sub(Duration::from_millis(self.offset));
            span.as_micros() * 1_000 / u128::from(self.speed)
        }
    }

    /// What happens at an instant of the world, in milliseconds.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    enum Step {
        Begin,
        Written { started: u64 },
        Answered { started: u64, seen: (u64, u64) },
        Seize { seen: (u64, u64) },
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        /// Two edges renew and watch each other through delays, losses and pauses, on clocks that
        /// differ: whoever is taken over has ended to grant by then.
        #[test]
        fn never_do_two_edges_grant_at_the_same_time(
            speeds in prop::array::uniform2(950..=1_050u64),
            offsets in prop::array::uniform2(0..100_000u64),
            rounds in prop::array::uniform2(prop::collection::vec(round(), 40..120)),
        ) {
            let hold = Hold::new(Duration::from_secs(3)).unwrap();
            let mut rows = [Row::default(); 2];
            let mut edges: Vec<_> = (0..2).map(|i| {
                let mut rounds = rounds[i].clone();
                rounds.reverse();
                let (lease, other) = (Lease::new(hold), None);
                Edge { speed: speeds[i], offset: offsets[i], epoch: 0, lease, other, rounds }
            }).collect();
            let mut steps = BinaryHeap::from([Reverse((0, 0, Step::Begin)), Reverse((0, 1, Step::Begin))]);
            let mut plans = [None::<Round>; 2];
            let mut seized = [None::<u64>; 2];
            while let Some(Reverse((now, i, step))) = steps.pop() {
                let mut next = |at: u64, step| steps.push(Reverse((at, i, step)));
                match step {
                    Step::Begin => {
                        let Some(round) = edges[i].rounds.pop() else { continue };
                        plans[i] = Some(round);
                        let started = now + round.rest;
                        if round.arrives {
                            next(started + round.there, Step::Written { started });
                        } else {
                            next(started + round.there + round.back, Step::Begin);
                        }
                    }
                    Step::Written { started } => {
                        let round = plans[i].unwrap();
                        // Who was fenced begins anew, under a new epoch.
                        if rows[i].epoch != edges[i].epoch {
                            edges[i].epoch = rows[i].epoch;
                            edges[i].lease = Lease::new(hold);
                            seized[i] = None;
                        }
                        rows[i].beat += 1;
                        let seen = (rows[1 - i].epoch, rows[1 - i].beat);
                        let answered = Step::Answered { started, seen };
                        next(now + round.back, if round.returns { answered } else { Step::Begin });
                    }
                    Step::Answered { started, seen: (epoch, beat) } => {
                        let round = plans[i].unwrap();
                        let edge = &mut edges[i];
                        let (at, started) = (edge.clock(now), edge.clock(started));
                        edge.lease.renew(started);
                        let late = seized[i].is_some_and(|at| edge.ends() > u128::from(at) * 1_000);
                        prop_assert!(!late, "an answer that came after it was taken over");
                        let silence = edge.other.get_or_insert(Silence::new(hold, epoch, beat, at));
                        silence.see(hold, epoch, beat, at);
                        let seen = silence.last();
                        let over = silence.is_over(at);
                        next(now + round.pause, if over { Step::Seize { seen } } else { Step::Begin });
                    }
                    Step::Seize { seen } => {
                        let row = &mut rows[1 - i];
                        if (row.epoch, row.beat) == seen {
                            row.epoch += 1;
                            seized[1 - i] = Some(now);
                            let ends = edges[1 - i].ends();
                            prop_assert!(
                                ends <= u128::from(now) * 1_000,
                                "taken over at {now} ms, and it grants until {ends} us"
                            );
                        }
                        next(now, Step::Begin);
                    }
                }
            }
        }
    }
}
