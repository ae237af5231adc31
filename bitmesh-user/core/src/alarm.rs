//! What an operator has to know before it costs money: the chain is not seen while a deadline
//! nears, or a settlement is late.

use bitcoin::Amount;
use serde::{Deserialize, Serialize};

use crate::channel::{
    CLAIM_DONE_BLOCKS, CLAIM_MARGIN_BLOCKS, CLAIM_URGENT_BLOCKS, ChannelId, ChannelStatus,
    ProviderChannel, blocks_left,
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
pub fn alarms<'a>(
    channels: impl Iterator<Item = (&'a ChannelId, &'a ProviderChannel)>,
    sight: Sight,
) -> Vec<Alarm> {
    let mut stakes = Stakes::default();
    let mut alarms = Vec::new();
    for (id, channel) in channels.filter(|(_, channel)| is_at_stake(channel)) {
        stakes.add(channel);
        alarms.extend(of_claim(*id, channel, sight.tip));
    }
    alarms.extend(of_source(stakes, sight));
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
    fn add(&mut self, channel: &ProviderChannel) {
        let expiry = channel.params().expiry_height;
        self.expiry_height = Some(self.expiry_height.map_or(expiry, |first| first.min(expiry)));
        self.paid = self.paid.checked_add(channel.paid()).unwrap_or(Amount::MAX_MONEY);
    }
}

fn of_source(stakes: Stakes, sight: Sight) -> Option<Alarm> {
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
        Funding, ProviderEvent,
        testing::{outpoint, params, pay},
    };

    fn channel(sum: u64, closing: bool) -> ProviderChannel {
        let opened = ProviderEvent::Opened {
            params: Arc::new(params()),
            key_index: 0,
            station: "02:00:00:00:00:01".parse().unwrap(),
            height: 100,
            used: crate::ledger::Usage::default(),
        };
        let mut channel = ProviderChannel::open(&opened).unwrap();
        let funding = Funding { outpoint: outpoint(&params()), height: 101 };
        channel.apply(&ProviderEvent::Funded(funding)).unwrap();
        let paid = ProviderEvent::Paid {
            paid: Amount::from_sat(sum),
            signature: pay(&params(), sum),
            earlier: 0,
        };
        channel.apply(&paid).unwrap();
        if closing {
            channel.apply(&ProviderEvent::CloseRequested { payout_script: None }).unwrap();
        }
        channel
    }

    fn of(channel: &ProviderChannel, sight: Sight) -> Vec<(Kind, Level)> {
        let id = channel.params().id();
        let told = alarms(std::iter::once((&id, channel)), sight);
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
        let channel = channel(500, false);
        let first = params().expiry_height - CLAIM_MARGIN_BLOCKS - ALARM_LEAD_BLOCKS - 1;
        assert_eq!(of(&channel, seen(first)), []);
        assert_eq!(of(&channel, lost(first - 1, LOST_GRACE_SECONDS - 1)), []);
        let grace = LOST_GRACE_SECONDS;
        assert_eq!(of(&channel, lost(first - 1, grace)), [(Kind::ChainLost, Level::Warning)]);
        assert_eq!(of(&channel, lost(first, grace)), [(Kind::ChainLost, Level::Error)]);
        // While it is lost, time passes: a day may be two days of blocks.
        let day = 24 * 3_600;
        assert_eq!(of(&channel, lost(first - 288, day)), [(Kind::ChainLost, Level::Warning)]);
        assert_eq!(of(&channel, lost(first - 287, day)), [(Kind::ChainLost, Level::Error)]);
        assert!(
            alarms(std::iter::empty(), lost(5, day))[0].message.contains("nothing is at stake")
        );
    }

    #[test]
    fn p16_a_source_without_new_blocks_is_told() {
        let channel = channel(500, false);
        let silent = |silent_seconds| Sight { silent_seconds, ..seen(200) };
        assert_eq!(of(&channel, silent(STALL_SECONDS - 1)), []);
        assert_eq!(of(&channel, silent(STALL_SECONDS)), [(Kind::ChainStalls, Level::Warning)]);
    }

    #[test]
    fn a_settlement_that_is_late_is_an_emergency() {
        let channel = channel(500, true);
        let id = params().id();
        let done = params().expiry_height - CLAIM_DONE_BLOCKS;
        let waits = [(Kind::ClaimWaits { channel: id }, Level::Warning)];
        assert_eq!(of(&channel, seen(done - CLAIM_URGENT_BLOCKS)), waits);
        let late = [(Kind::ClaimLate { channel: id }, Level::Error)];
        assert_eq!(of(&channel, seen(done - CLAIM_URGENT_BLOCKS + 1)), late);
        let both = of(&channel, lost(done, 60));
        assert_eq!(both.len(), 2);
        assert!(both.iter().all(|(_, level)| *level == Level::Error));
    }

    #[test]
    fn alarms_survive_json() {
        let id = params().id();
        let told = alarms(std::iter::once((&id, &channel(500, true))), lost(990, 60));
        let text = serde_json::to_string(&told).unwrap();
        assert!(text.contains("\"alarm\":\"claim-late\",\"channel\":"), "{text}");
        assert_eq!(serde_json::from_str::<Vec<Alarm>>(&text).unwrap(), told);
    }
}
