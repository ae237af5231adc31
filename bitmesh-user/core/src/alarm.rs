//! What an operator has to know before it costs money: the chain is not seen while a deadline
//! nears, a settlement is late, or an edge of the fleet is silent.

use std::time::Duration;

use bitcoin::Amount;
use serde::{Deserialize, Serialize};

use crate::{
    channel::{
        Book, CLAIM_DONE_BLOCKS, CLAIM_MARGIN_BLOCKS, CLAIM_URGENT_BLOCKS, ChannelId,
        ChannelStatus, ProviderChannel, Wait, blocks_left,
    },
    fleet::{EdgeNumber, Hold},
};

/// Blocks before the margin at which a chain that is not seen becomes an emergency: a day to repair
/// it in.
pub const ALARM_LEAD_BLOCKS: u32 = 144;

/// Seconds that a source may be silent before that is told: it may be starting.
pub const LOST_GRACE_SECONDS: u64 = 5;

/// Seconds without a block that only one hour in 160,000 sees by chance: six times the mean.
pub const STALL_SECONDS: u64 = 2 * 3_600;

/// Seconds in which a block may have come unseen: half the mean, so that an estimate of the height
/// is rather too high.
const FAST_BLOCK_SECONDS: u64 = 300;

/// How much haste there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Nothing is lost if it is repaired.
    Warning,
    /// Money is lost if nothing is done.
    Error,
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "alarm", rename_all = "kebab-case")]
pub enum Kind {
    /// The chain source gives no answers that can be used.
    ChainLost,
    /// It answers, and has no new block for a time that is very long.
    ChainStalls,
    /// The ledger goes on from an older copy.
    WentBack,
    /// A channel is to be claimed, and its claim costs more than its share of what was paid.
    ClaimWaits {
        /// Which channel.
        channel: ChannelId,
    },
    /// A claim is in no block, and time is short.
    ClaimLate {
        /// Which channel.
        channel: ChannelId,
    },
    /// Another edge of the fleet gives no sign of life.
    EdgeSilent {
        /// Which.
        edge: EdgeNumber,
    },
    /// This edge's own signs of life come late.
    BeatLate,
}

/// What is seen of an edge of the fleet.
#[derive(Clone, Copy, Debug)]
pub struct EdgeSight<'a> {
    /// Which.
    pub edge: EdgeNumber,
    /// Its name.
    pub name: &'a str,
    /// How long it holds its accounts without a sign of life.
    pub hold: Hold,
    /// For how long it has given none.
    pub silent: Duration,
    /// Accounts that it has.
    pub accounts: u64,
    /// Whether it was taken over since.
    pub taken_over: bool,
}

/// Of its hold time, what an edge may be silent for before that is told.
const SILENT_DIVISOR: u32 = 2;
/// The same, of this edge itself: it is told earlier, since it is here that something can be done.
const LATE_DIVISOR: u32 = 4;

/// Whether a sign of life came so long after the one before that something holds it up.
pub fn is_late(hold: Hold, since_last: Duration) -> bool {
    since_last >= hold.get() / LATE_DIVISOR
}

/// What is wrong with a fleet, by its own edge's last sign of life and what is seen of the others. Who
/// is silent, has no account and was not taken over while this edge looked is gone for good.
pub fn of_fleet<'a>(
    hold: Hold,
    since_last: Duration,
    others: impl Iterator<Item = EdgeSight<'a>>,
) -> Vec<Alarm> {
    let mut alarms: Vec<_> = others.filter_map(of_edge).collect();
    if is_late(hold, since_last) {
        let message = format!(
            "this edge gave its last sign of life {} ago; after {} it grants nothing, and others take its \
             accounts over. Look at its database and the way there",
            time(since_last.as_secs()),
            time(hold.granting().as_secs())
        );
        alarms.push(Alarm { kind: Kind::BeatLate, level: Level::Error, message });
    }
    alarms
}

fn of_edge(edge: EdgeSight<'_>) -> Option<Alarm> {
    let at_stake = edge.accounts > 0 || edge.taken_over;
    if edge.silent < edge.hold.get() / SILENT_DIVISOR || !at_stake {
        return None;
    }
    let meanwhile = if edge.taken_over {
        "its accounts are at other edges, and what its stations used last is debited when it is back"
            .to_owned()
    } else {
        let waiting = time(edge.hold.waiting().as_secs());
        format!("after {waiting} other edges take its {} accounts over", edge.accounts)
    };
    let message = format!(
        "edge {} (number {}) has given no sign of life for {}: {meanwhile}. Look whether it runs and \
         reaches its database",
        edge.name,
        edge.edge,
        time(edge.silent.as_secs())
    );
    let kind = Kind::EdgeSilent { edge: edge.edge };
    Some(Alarm { kind, level: Level::Warning, message })
}

/// Something to be told to the operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alarm {
    /// What is wrong.
    #[serde(flatten)]
    pub kind: Kind,
    /// How much haste there is.
    pub level: Level,
    /// The same for people, with the figures and what to do.
    pub message: String,
}

/// How the source of blocks is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sight {
    /// Height of the newest block that was seen.
    pub tip: u32,
    /// Seconds for which the source has given no answers; `None` when it does.
    pub lost_seconds: Option<u64>,
    /// Seconds since the newest block was seen.
    pub silent_seconds: u64,
}

impl Sight {
    /// The height that the chain may have by now.
    fn height_at_most(&self) -> u32 {
        let unseen = self.silent_seconds.div_ceil(FAST_BLOCK_SECONDS);
        self.tip.saturating_add(u32::try_from(unseen).unwrap_or(u32::MAX))
    }
}

/// Everything that is wrong now, the worst first.
pub fn alarms(book: &Book<ProviderChannel>, sight: Sight) -> Vec<Alarm> {
    // No other channel is closing that was paid on.
    let due = book.waiting(Wait::Claim { from: 0 }, Wait::Claim { from: sight.tip });
    let due = due.filter(|(_, channel)| is_at_stake(channel));
    let mut alarms: Vec<_> =
        due.filter_map(|(id, channel)| of_claim(id, channel, sight.tip)).collect();
    alarms.extend(of_source(book, sight));
    alarms.sort_by(|a, b| (b.level, &a.kind).cmp(&(a.level, &b.kind)));
    alarms
}

fn is_at_stake(channel: &ProviderChannel) -> bool {
    channel.paid() > Amount::ZERO && channel.spent().is_none() && !channel.finished()
}

/// What is lost if no claim is made in time.
#[derive(Clone, Copy, Default)]
struct Stakes {
    paid: Amount,
    /// The first expiry of them.
    expiry_height: Option<u32>,
}

impl Stakes {
    fn of(book: &Book<ProviderChannel>) -> Self {
        let mut stakes = Self::default();
        for (_, channel) in book.iter().filter(|(_, channel)| is_at_stake(channel)) {
            stakes.add(channel);
        }
        stakes
    }

    fn add(&mut self, channel: &ProviderChannel) {
        let expiry = channel.params().expiry_height;
        self.expiry_height = Some(self.expiry_height.map_or(expiry, |first| first.min(expiry)));
        self.paid = self.paid.checked_add(channel.paid()).unwrap_or(Amount::MAX_MONEY);
    }
}

fn of_source(book: &Book<ProviderChannel>, sight: Sight) -> Option<Alarm> {
    let lost = sight.lost_seconds.filter(|seconds| *seconds >= LOST_GRACE_SECONDS);
    let (kind, what) = match lost {
        Some(seconds) => {
            (Kind::ChainLost, format!("the chain source has not answered for {}", time(seconds)))
        }
        None if sight.lost_seconds.is_none() && sight.silent_seconds >= STALL_SECONDS => {
            let since = time(sight.silent_seconds);
            (Kind::ChainStalls, format!("the chain source has told of no block for {since}"))
        }
        None => return None,
    };
    let stakes = Stakes::of(book);
    let Some(expiry) = stakes.expiry_height else {
        let message = format!("{what}: no channels are opened; nothing is at stake");
        return Some(Alarm { kind, level: Level::Warning, message });
    };
    let margin = expiry.saturating_sub(CLAIM_MARGIN_BLOCKS);
    let near = sight.height_at_most().saturating_add(ALARM_LEAD_BLOCKS) >= margin;
    let (level, haste) = if near { (Level::Error, "at once") } else { (Level::Warning, "soon") };
    let message = format!(
        "{what} since block {}: {} sat wait to be claimed, the first of it from block {margin} on. \
         Repair it {haste}; at block {expiry} subscribers can take it back",
        sight.tip,
        stakes.paid.to_sat()
    );
    Some(Alarm { kind, level, message })
}

fn of_claim(id: ChannelId, channel: &ProviderChannel, tip: u32) -> Option<Alarm> {
    if channel.status(tip) != ChannelStatus::Closing || channel.funding().is_none() {
        return None;
    }
    let (paid, expiry) = (channel.paid(), channel.params().expiry_height);
    let left = blocks_left(expiry, tip);
    let offered = match channel.claim() {
        Some(claim) => {
            format!("a claim that pays miners {} sat is in no block", claim.fee.to_sat())
        }
        None => "claiming it costs more than its share of that at present".into(),
    };
    let (kind, level) = if left < CLAIM_URGENT_BLOCKS {
        (Kind::ClaimLate { channel: id }, Level::Error)
    } else if channel.claim().is_none() && !channel.awaits_close(tip) {
        (Kind::ClaimWaits { channel: id }, Level::Warning)
    } else {
        return None;
    };
    let done = expiry.saturating_sub(CLAIM_DONE_BLOCKS);
    let message = format!(
        "channel {id} paid {} sat, and {offered}; it should be settled by block {done}, {left} \
         blocks from now. The fee is raised as time runs out; check that the chain source relays",
        paid.to_sat()
    );
    Some(Alarm { kind, level, message })
}

fn time(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} seconds"),
        120..7_200 => format!("{} minutes", seconds / 60),
        _ => format!("{} hours", seconds / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::channel::{
        Entry, Funding, ProviderEvent,
        testing::{outpoint, params, pay},
    };

    /// One channel that was paid on.
    fn book(sum: u64, closing: bool) -> Book<ProviderChannel> {
        let opened = ProviderEvent::Opened {
            params: Arc::new(params()),
            key_index: 0,
            station: "02:00:00:00:00:01".parse().unwrap(),
            height: 100,
            used: crate::ledger::Usage::default(),
        };
        let funding = Funding { outpoint: outpoint(&params()), height: 101 };
        let paid = ProviderEvent::Paid {
            paid: Amount::from_sat(sum),
            signature: pay(&params(), sum),
            earlier: 0,
        };
        let mut events = vec![opened, ProviderEvent::Funded(funding), paid];
        if closing {
            events.push(ProviderEvent::CloseRequested { payout_script: None });
        }
        let mut book = Book::default();
        for event in events {
            book.apply(&Entry::Channel { channel: params().id(), event }).unwrap();
        }
        book
    }

    fn of(book: &Book<ProviderChannel>, sight: Sight) -> Vec<(Kind, Level)> {
        let told = alarms(book, sight);
        told.into_iter().map(|alarm| (alarm.kind, alarm.level)).collect()
    }

    fn seen(tip: u32) -> Sight {
        Sight { tip, lost_seconds: None, silent_seconds: 0 }
    }

    fn lost(tip: u32, seconds: u64) -> Sight {
        Sight { tip, lost_seconds: Some(seconds), silent_seconds: seconds }
    }

    #[test]
    fn p16_a_lost_source_is_told_and_is_an_emergency_a_day_before_the_margin() {
        let book = book(500, false);
        let first = params().expiry_height - CLAIM_MARGIN_BLOCKS - ALARM_LEAD_BLOCKS - 1;
        assert_eq!(of(&book, seen(first)), []);
        assert_eq!(of(&book, lost(first - 1, LOST_GRACE_SECONDS - 1)), []);
        let grace = LOST_GRACE_SECONDS;
        assert_eq!(of(&book, lost(first - 1, grace)), [(Kind::ChainLost, Level::Warning)]);
        assert_eq!(of(&book, lost(first, grace)), [(Kind::ChainLost, Level::Error)]);
        // While it is lost, time passes: a day may be two days of blocks.
        let day = 24 * 3_600;
        assert_eq!(of(&book, lost(first - 288, day)), [(Kind::ChainLost, Level::Warning)]);
        assert_eq!(of(&book, lost(first - 287, day)), [(Kind::ChainLost, Level::Error)]);
        assert!(alarms(&Book::default(), lost(5, day))[0].message.contains("nothing is at stake"));
    }

    #[test]
    fn p16_a_source_without_new_blocks_is_told() {
        let book = book(500, false);
        let silent = |silent_seconds| Sight { silent_seconds, ..seen(200) };
        assert_eq!(of(&book, silent(STALL_SECONDS - 1)), []);
        assert_eq!(of(&book, silent(STALL_SECONDS)), [(Kind::ChainStalls, Level::Warning)]);
    }

    #[test]
    fn a_settlement_that_is_late_is_an_emergency() {
        let book = book(500, true);
        let id = params().id();
        let done = params().expiry_height - CLAIM_DONE_BLOCKS;
        let waits = [(Kind::ClaimWaits { channel: id }, Level::Warning)];
        assert_eq!(of(&book, seen(done - CLAIM_URGENT_BLOCKS)), waits);
        let late = [(Kind::ClaimLate { channel: id }, Level::Error)];
        assert_eq!(of(&book, seen(done - CLAIM_URGENT_BLOCKS + 1)), late);
        let both = of(&book, lost(done, 60));
        assert_eq!(both.len(), 2);
        assert!(both.iter().all(|(_, level)| *level == Level::Error));
    }

    #[test]
    fn an_edge_that_is_silent_is_told_as_long_as_something_depends_on_it() {
        let (hold, edge) = (Hold::default(), EdgeNumber::new(2).unwrap());
        let sight = |silent, accounts, taken_over| {
            let silent = Duration::from_millis(silent);
            let sight = EdgeSight { edge, name: "two", hold, silent, accounts, taken_over };
            let told = of_fleet(hold, Duration::ZERO, std::iter::once(sight));
            told.into_iter().map(|alarm| (alarm.kind, alarm.message)).next()
        };
        assert_eq!(sight(14_999, 5, false), None);
        let (kind, message) = sight(15_000, 5, false).unwrap();
        assert_eq!(kind, Kind::EdgeSilent { edge });
        assert!(message.contains("its 5 accounts"), "{message}");
        assert!(sight(90_000, 0, true).unwrap().1.contains("is debited when it is back"));
        assert_eq!(sight(90_000, 0, false), None, "gone for good");
    }

    #[test]
    fn an_edges_own_sign_of_life_that_is_late_is_told_before_it_may_not_grant() {
        let hold = Hold::default();
        let at = |millis| of_fleet(hold, Duration::from_millis(millis), std::iter::empty());
        assert_eq!(at(7_499), []);
        assert_eq!(at(7_500)[0].kind, Kind::BeatLate);
        assert!(Duration::from_millis(7_500) < hold.granting());
    }

    #[test]
    fn alarms_survive_json() {
        let told = alarms(&book(500, true), lost(990, 60));
        let text = serde_json::to_string(&told).unwrap();
        assert!(text.contains("\"alarm\":\"claim-late\",\"channel\":"), "{text}");
        assert_eq!(serde_json::from_str::<Vec<Alarm>>(&text).unwrap(), told);
    }
}
