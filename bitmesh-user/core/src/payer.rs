//! When a subscriber pays, and how much: as little ahead of use as the line allows, never over the
//! budget, and only for what it counted itself.

use bitcoin::Amount;

use crate::{
    pricing::Schedule,
    units::{Msat, Octets},
};

/// Smallest tick, in octets: what is paid ahead on a slow link.
pub const TICK_MIN_OCTETS: Octets = Octets(256 << 10);
/// First tick, in octets, before a rate is known.
pub const TICK_FIRST_OCTETS: Octets = Octets(1 << 20);
/// Most that is ever paid ahead, in octets, whatever a provider asks.
pub const TICK_MAX_OCTETS: Octets = Octets(64 << 20);
/// How long a measured rate is believed, in milliseconds.
const RATE_MEMORY_MS: u64 = 1_000;
/// Round trip that is assumed before one was measured, in milliseconds.
const ROUND_TRIP_FIRST_MS: u64 = 50;

/// The provider bills more than was counted here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the provider reports {reported} where {counted} were counted here, over one tick of {tolerance} apart"
)]
pub struct Dispute {
    /// Octets that the provider reports since both began to count.
    pub reported: Octets,
    /// Octets counted here since.
    pub counted: Octets,
    /// What they may differ by.
    pub tolerance: Octets,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Enough credit.
    Wait,
    /// Sign this sum.
    Pay(Amount),
    /// More is needed, and the budget is spent.
    BudgetSpent,
    /// More is needed, and the channel has no more.
    ChannelSpent,
}

/// Decides the payments of one subscriber on one interface.
#[derive(Clone, Debug)]
pub struct Payer {
    tick_max: Octets,
    round_trip_ms: u64,
    counted: Octets,
    /// Count and time of the newest reading that the rate was taken from.
    sampled: Option<(u64, Octets)>,
    /// Octets per millisecond, and when it was seen.
    rate: Option<(u64, u64)>,
    /// What the provider reported and what was known here, when both began to count.
    baseline: Option<Baseline>,
    reported: Option<Reported>,
}

/// Both sides' numbers at the first report: from then on only what is added is compared.
#[derive(Clone, Copy, Debug)]
struct Baseline {
    /// Reported.
    bought: Octets,
    used: Octets,
    /// Ours.
    own: Octets,
    counted: Octets,
}

/// The newest report, which was true at some time between the request and the answer.
#[derive(Clone, Copy, Debug)]
struct Reported {
    bought: Octets,
    used: Octets,
    /// Our count when it was asked for.
    counted_before: Octets,
    /// Our count when it came.
    counted_after: Octets,
}

impl Payer {
    /// For terms that ask for at most `tick_max` to be paid ahead.
    pub fn new(tick_max: Octets) -> Self {
        Self {
            tick_max: tick_max.min(TICK_MAX_OCTETS),
            round_trip_ms: ROUND_TRIP_FIRST_MS,
            counted: Octets(0),
            sampled: None,
            rate: None,
            baseline: None,
            reported: None,
        }
    }

    /// Goes on on a channel whose terms ask for at most `tick_max` to be paid ahead. What was counted
    /// and reported stays: it is the account's, not a channel's.
    pub fn go_on(&mut self, tick_max: Octets) {
        self.tick_max = tick_max.min(TICK_MAX_OCTETS);
    }

    /// Takes a reading of our own counter, cumulative, at a monotonic time in milliseconds.
    pub fn count(&mut self, octets: Octets, now_ms: u64) {
        self.counted = self.counted.max(octets);
        let Some((then_ms, then)) = self.sampled else {
            self.sampled = Some((now_ms, octets));
            return;
        };
        let elapsed = now_ms.saturating_sub(then_ms);
        if elapsed < self.round_trip_ms.max(10) {
            return;
        }
        let rate = octets.saturating_sub(then).0 / elapsed;
        let faster = self.rate.is_none_or(|(known, seen)| {
            rate >= known || now_ms.saturating_sub(seen) > RATE_MEMORY_MS
        });
        if faster {
            self.rate = Some((rate, now_ms));
        }
        self.sampled = Some((now_ms, octets));
    }

    /// Takes what the provider says that this station bought and used in its life, the answer to a
    /// request that was sent when our counter stood at `counted` and took `round_trip_ms`. All own
    /// payments bought `own` octets, on every channel.
    pub fn report(
        &mut self,
        own: Octets,
        bought: Octets,
        used: Octets,
        counted: Octets,
        round_trip_ms: u64,
    ) -> Result<(), Dispute> {
        self.round_trip_ms = (self.round_trip_ms * 3 + round_trip_ms.min(10_000)) / 4;
        let then = *self.baseline.get_or_insert(Baseline { bought, used, own, counted });
        let reported = used.saturating_sub(then.used);
        let here = self.counted.saturating_sub(then.counted);
        if reported > here.saturating_add(self.tick_max) {
            return Err(Dispute { reported, counted: here, tolerance: self.tick_max });
        }
        let (counted_before, counted_after) = (counted, self.counted);
        self.reported = Some(Reported { bought, used, counted_before, counted_after });
        Ok(())
    }

    /// What to do, with `paid` signed so far on a channel that can pay `payable`, of a budget of
    /// `budget`, all in sums for the channel. All own payments bought `own` octets, on every
    /// channel: they are not paid again because the provider doesn't own up to them, or refused
    /// what it may still claim.
    pub fn next(
        &self,
        own: Octets,
        paid: Amount,
        payable: Amount,
        budget: Amount,
        schedule: &Schedule,
    ) -> Next {
        let (Some(reported), Some(then)) = (self.reported, self.baseline) else {
            return Next::Wait;
        };
        let signed = then.bought.saturating_add(own.saturating_sub(then.own));
        let reported = Reported { bought: reported.bought.max(signed), ..reported };
        let since = |then| reported.used.saturating_add(self.counted.saturating_sub(then));
        let (at_most, at_least) = (since(reported.counted_before), since(reported.counted_after));
        let credit = reported.bought.saturating_sub(at_most);
        let tick = self.tick();
        if credit.0 > tick.0 / 2 {
            return Next::Wait;
        }
        // What was used without credit (a kernel's overshoot, a count before a crash) is paid too.
        let debt = at_most.saturating_sub(reported.bought);
        let missing = tick.saturating_sub(credit).saturating_add(debt.min(tick));
        // Whatever was in flight while the report was, and whatever it says: never more than a full
        // tick ahead of what was counted here. What was used before that, more than was bought, is
        // the provider's word alone.
        let here =
            then.used.min(then.bought).saturating_add(self.counted.saturating_sub(then.counted));
        let room = at_least.min(here).saturating_add(self.tick_max).saturating_sub(reported.bought);
        let missing = missing.min(room);
        if missing == Octets(0) {
            return Next::Wait;
        }
        let already = Msat::from_amount(paid).and_then(|paid| schedule.octets_for(paid));
        let wanted = already.unwrap_or_default().saturating_add(missing);
        let Some(cost) = schedule.cost_of(wanted).map(Msat::to_amount_ceil) else {
            return Next::ChannelSpent;
        };
        let sum = cost.max(paid + Amount::ONE_SAT).min(payable).min(budget);
        if sum > paid {
            Next::Pay(sum)
        } else if budget <= paid && budget < payable {
            Next::BudgetSpent
        } else {
            Next::ChannelSpent
        }
    }

    /// Octets to be paid ahead at the present rate: two round trips' worth, twice, so that the
    /// next payment, sent at half a tick, arrives before the rest is used.
    pub fn tick(&self) -> Octets {
        let wanted = match self.rate {
            None => TICK_FIRST_OCTETS,
            Some((rate, _)) => Octets(rate.saturating_mul(self.round_trip_ms.max(10) * 4)),
        };
        wanted.clamp(TICK_MIN_OCTETS.min(self.tick_max), self.tick_max)
    }

    /// Our own count.
    pub fn counted(&self) -> Octets {
        self.counted
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn sat(sat: u64) -> Amount {
        Amount::from_sat(sat)
    }

    fn mib(mib: u64) -> Octets {
        Octets(mib * MIB)
    }

    /// A satoshi buys a MiB.
    fn schedule() -> Schedule {
        Schedule::flat(1_000)
    }

    fn payer() -> Payer {
        let mut payer = Payer::new(Octets(8 * MIB));
        payer.count(Octets(0), 0);
        payer.report(Octets(0), Octets(0), Octets(0), Octets(0), 20).unwrap();
        payer
    }

    /// With nothing signed but what is reported.
    fn next(payer: &Payer, paid: u64, budget: u64) -> Next {
        next_of(payer, Octets(0), paid, budget)
    }

    fn next_of(payer: &Payer, own: Octets, paid: u64, budget: u64) -> Next {
        payer.next(own, sat(paid), sat(1_000), sat(budget), &schedule())
    }

    #[test]
    fn nothing_is_paid_before_the_provider_has_reported() {
        assert_eq!(next(&Payer::new(Octets(MIB)), 0, 100), Next::Wait);
    }

    #[test]
    fn the_first_tick_is_small_and_the_next_is_paid_when_half_is_used() {
        let mut payer = payer();
        assert_eq!(next(&payer, 0, 100), Next::Pay(sat(1)));
        payer.report(Octets(MIB), Octets(MIB), Octets(0), Octets(0), 20).unwrap();
        assert_eq!(next(&payer, 1, 100), Next::Wait);
        payer.count(Octets(MIB / 2 - 1), 1);
        assert_eq!(next(&payer, 1, 100), Next::Wait);
        payer.count(Octets(MIB / 2), 2);
        assert_eq!(next(&payer, 1, 100), Next::Pay(sat(2)));
    }

    #[test]
    fn a_faster_line_is_paid_further_ahead_up_to_what_the_offer_asks() {
        let mut payer = payer();
        payer.count(Octets(2 * MIB), 100);
        let tick = payer.tick();
        assert!(tick > Octets(MIB) && tick <= Octets(8 * MIB), "{tick}");
        payer.count(Octets(2_000 * MIB), 200);
        assert_eq!(payer.tick(), Octets(8 * MIB));
    }

    #[test]
    fn an_idle_line_falls_back_to_small_ticks() {
        let mut payer = payer();
        payer.count(Octets(100 * MIB), 100);
        payer.count(Octets(100 * MIB), 100 + RATE_MEMORY_MS + 1);
        assert_eq!(payer.tick(), TICK_MIN_OCTETS);
    }

    #[test]
    fn the_budget_and_the_channel_are_never_exceeded() {
        let mut payer = payer();
        payer.count(Octets(MIB), 100);
        assert_eq!(next(&payer, 100, 100), Next::BudgetSpent);
        assert!(matches!(next(&payer, 100, 102), Next::Pay(sum) if sum <= sat(102)));
        assert_eq!(next(&payer, 1_000, 5_000), Next::ChannelSpent);
    }

    #[test]
    fn one_tick_more_than_was_counted_is_agreed_to_and_an_octet_more_is_not() {
        let mut payer = payer();
        payer.count(Octets(MIB), 100);
        let report = |payer: &mut Payer, used| {
            payer.report(Octets(0), Octets(20 * MIB), Octets(used), Octets(MIB), 20)
        };
        assert_eq!(report(&mut payer, 9 * MIB), Ok(()));
        let dispute = report(&mut payer, 9 * MIB + 1).unwrap_err();
        assert_eq!(dispute.reported, Octets(9 * MIB + 1));
        assert_eq!(dispute.counted, Octets(MIB));
    }

    #[test]
    fn what_was_in_flight_during_a_report_is_not_paid_twice() {
        let mut payer = payer();
        payer.count(Octets(100 * MIB), 100);
        // Asked for at 80 MiB, answered at 100 MiB, true at the end.
        payer.report(mib(100), mib(100), mib(100), mib(80), 20).unwrap();
        let Next::Pay(sum) = next(&payer, 100, 1_000) else { panic!("credit is low") };
        assert_eq!(sum, sat(108), "a full tick of 8 MiB, and no more");
    }

    #[test]
    fn a_payment_that_the_provider_does_not_own_up_to_is_not_made_again() {
        let mut payer = payer();
        assert_eq!(next(&payer, 0, 1_000), Next::Pay(sat(1)));
        payer.report(mib(1), Octets(0), Octets(0), Octets(0), 20).unwrap();
        assert_eq!(next_of(&payer, mib(1), 1, 1_000), Next::Wait);
        // What somebody else paid into the account counts as it is told.
        payer.report(mib(1), mib(3), Octets(0), Octets(0), 20).unwrap();
        payer.count(mib(2), 1);
        assert_eq!(next_of(&payer, mib(1), 1, 1_000), Next::Wait);
    }

    #[test]
    fn a_payment_that_was_refused_is_not_made_again_on_another_channel() {
        let mut payer = payer();
        payer.report(mib(1), mib(1), Octets(0), Octets(0), 20).unwrap();
        payer.count(mib(1), 1);
        // 8 MiB were signed, and the answer was that the channel is closed: no report came.
        assert_eq!(next_of(&payer, mib(9), 0, 1_000), Next::Wait);
        payer.count(mib(9), 2);
        assert!(matches!(next_of(&payer, mib(9), 0, 1_000), Next::Pay(_)));
    }

    #[test]
    fn nothing_is_paid_ahead_of_what_the_provider_alone_counted() {
        let mut payer = payer();
        payer.count(mib(100), 100);
        // A full tick more than was counted here: not disputed, and not paid for either.
        payer.report(mib(108), mib(108), mib(108), mib(100), 20).unwrap();
        assert_eq!(next(&payer, 108, 1_000), Next::Wait);
        payer.count(mib(101), 101);
        assert_eq!(next(&payer, 108, 1_000), Next::Pay(sat(109)));
    }

    #[test]
    fn a_debt_from_before_the_count_is_not_paid_on_top_of_a_tick() {
        let mut payer = Payer::new(mib(2));
        payer.count(Octets(0), 0);
        let mut paid = 0;
        while paid < 100 {
            payer.report(mib(paid), mib(paid), mib(2), Octets(0), 20).unwrap();
            let Next::Pay(sum) = next(&payer, paid, 1_000) else { break };
            paid = sum.to_sat();
        }
        assert_eq!(paid, 2);
    }

    #[test]
    fn small_lies_do_not_add_up() {
        let mut payer = payer();
        let mut used = 0;
        let lied = (1..20).find(|_| {
            used += MIB;
            payer.report(Octets(0), Octets(1 << 40), Octets(used), Octets(0), 20).is_err()
        });
        assert_eq!(lied, Some(9));
    }

    #[test]
    fn what_the_provider_refused_is_not_paid_for() {
        let mut payer = payer();
        payer.count(Octets(4 * MIB), 100);
        payer.report(mib(2), mib(2), mib(1), mib(4), 20).unwrap();
        let Next::Pay(sum) = next(&payer, 2, 100) else { panic!("credit is low") };
        let most = payer.tick().0.div_ceil(MIB) + 2;
        assert!(sum <= sat(most), "{sum} for a tick of {}", payer.tick());
    }

    proptest! {
        #[test]
        fn never_more_than_a_tick_is_at_risk(
            steps in prop::collection::vec((0u64..4 * MIB, 1u64..200), 1..60),
            budget in 1u64..2_000,
        ) {
            let mut payer = payer();
            let (mut paid, mut used, mut now) = (0u64, 0u64, 0u64);
            for (octets, elapsed) in steps {
                now += elapsed;
                let bought = paid * MIB;
                used = (used + octets).min(bought);
                payer.count(Octets(used), now);
                if let Next::Pay(sum) = next(&payer, paid, budget) {
                    prop_assert!(sum > sat(paid) && sum <= sat(budget.min(1_000)));
                    paid = sum.to_sat();
                    let ahead = (paid * MIB).saturating_sub(used);
                    // Whole satoshis: up to one more MiB than the tick.
                    prop_assert!(ahead <= payer.tick().0 + MIB, "{ahead}");
                    payer.report(Octets(paid * MIB), Octets(paid * MIB), Octets(used), Octets(used), 20).unwrap();
                }
            }
        }
    }
}
