//! What miners are paid for a claim: by how near its deadline is and by what it replaces, and never
//! more than a share of what was earned.

use bitcoin::{Amount, FeeRate, Script, Weight};

use super::{
    CAPACITY_MIN, CLAIM_DONE_BLOCKS, CLAIM_MARGIN_BLOCKS, ClaimRecord, CloseRecord, DUST, RESERVE,
};

/// Blocks that a claim has from the margin on: what "left" is counted from.
pub const CLAIM_WINDOW_BLOCKS: u32 = CLAIM_MARGIN_BLOCKS - CLAIM_DONE_BLOCKS;

/// Blocks left from which on the urgent estimate is paid.
pub const CLAIM_URGENT_BLOCKS: u32 = 36;

/// Blocks in which a claim should be mined that has time.
pub const NORMAL_TARGET_BLOCKS: u16 = 6;

/// Blocks in which a claim should be mined that has none left.
pub const URGENT_TARGET_BLOCKS: u16 = 2;

/// A channel is opened when claiming it costs at most one part in so many of what it can pay.
pub const FEE_SHARE_AT_OPENING: u64 = 4;

/// Longest payout script that opening reckons with, in octets: P2WSH and P2TR.
const PAYOUT_SCRIPT_OCTETS: usize = 34;

/// What nodes ask for each vbyte of a replacement beyond the fees of what it replaces (BIP125; the
/// highest of Bitcoin Core's defaults).
const INCREMENTAL_RATE: FeeRate = FeeRate::BROADCAST_MIN;

const _: () = assert!(CLAIM_URGENT_BLOCKS < CLAIM_WINDOW_BLOCKS);

/// What blocks take at present, as the chain source has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeeEstimates {
    /// For [`NORMAL_TARGET_BLOCKS`].
    pub normal: FeeRate,
    /// For [`URGENT_TARGET_BLOCKS`].
    pub urgent: FeeRate,
}

impl FeeEstimates {
    /// The least that nodes relay, where nobody knows better.
    pub const FLOOR: Self = Self { normal: FeeRate::BROADCAST_MIN, urgent: FeeRate::BROADCAST_MIN };

    /// The rate for a claim with so many blocks left.
    pub fn rate(&self, left: u32) -> FeeRate {
        let normal = self.normal.max(FeeRate::BROADCAST_MIN);
        if left < CLAIM_URGENT_BLOCKS { normal.max(self.urgent) } else { normal }
    }
}

/// Blocks until a claim must have confirmed.
pub fn blocks_left(expiry_height: u32, tip: u32) -> u32 {
    expiry_height.saturating_sub(CLAIM_DONE_BLOCKS).saturating_sub(tip)
}

/// The part of what was paid that miners may get, rounded down: half of it while there is time, all
/// of it when no block is left.
pub fn share(paid: Amount, left: u32) -> Amount {
    let window = u128::from(CLAIM_WINDOW_BLOCKS);
    let used = window - u128::from(left.min(CLAIM_WINDOW_BLOCKS));
    let share = u128::from(paid.to_sat()) * (window + used) / (2 * window);
    Amount::from_sat(u64::try_from(share).unwrap_or(u64::MAX))
}

/// Fee of a transaction: nodes judge by whole vbytes.
pub(super) fn fee_at(rate: FeeRate, weight: Weight) -> Amount {
    rate.fee_vb(weight.to_vbytes_ceil()).unwrap_or(Amount::MAX_MONEY)
}

/// A transaction that a claim would take the place of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replaced {
    /// What it pays in all.
    pub fee: Amount,
    /// What it pays for each unit of weight, rounded up.
    pub rate: FeeRate,
}

impl Replaced {
    /// A transaction of this weight that pays this.
    pub fn new(fee: Amount, weight: Weight) -> Self {
        Self { fee, rate: rate_of(fee, weight.to_wu()) }
    }

    /// Two that are replaced at once: a replacement pays for both, and beats either's rate.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let fee = self.fee.checked_add(other.fee).unwrap_or(Amount::MAX_MONEY);
        Self { fee, rate: self.rate.max(other.rate) }
    }

    /// One of two that can't both be in a mempool: a replacement beats either.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self { fee: self.fee.max(other.fee), rate: self.rate.max(other.rate) }
    }

    /// What the next attempt takes when the estimate is no help: half as much again and 1 sat/vB.
    pub fn bumped(self) -> FeeRate {
        let rate = self.rate.to_sat_per_kwu();
        FeeRate::from_sat_per_kwu(rate.saturating_mul(3).div_ceil(2).saturating_add(250))
    }
}

impl From<&ClaimRecord> for Replaced {
    fn from(claim: &ClaimRecord) -> Self {
        Self::new(claim.fee, claim.tx.weight())
    }
}

impl From<&CloseRecord> for Replaced {
    fn from(close: &CloseRecord) -> Self {
        Self::new(close.fee, close.tx.weight())
    }
}

/// The rate to sign a claim at: what is `wanted`, at least what it takes to replace what went
/// before, and at most what makes the fee `most`. `None` when the least is over the most.
pub fn claim_rate(
    weight: Weight,
    wanted: FeeRate,
    most: Amount,
    replaced: Option<Replaced>,
) -> Option<FeeRate> {
    let billed = weight.to_vbytes_ceil().checked_mul(4)?;
    let least = replaced.map_or(FeeRate::BROADCAST_MIN, |replaced| {
        let relay = fee_at(INCREMENTAL_RATE, weight);
        let fee = replaced.fee.checked_add(relay).unwrap_or(Amount::MAX_MONEY);
        let beats = replaced.rate.to_sat_per_kwu().saturating_add(1);
        rate_of(fee, billed).max(FeeRate::from_sat_per_kwu(beats))
    });
    let affordable = u128::from(most.to_sat()) * 1_000 / u128::from(billed.max(1));
    let affordable = FeeRate::from_sat_per_kwu(u64::try_from(affordable).unwrap_or(u64::MAX));
    (least <= affordable).then(|| wanted.clamp(least, affordable))
}

/// The least rate at which so many weight units pay `fee`.
fn rate_of(fee: Amount, weight_units: u64) -> FeeRate {
    let rate = (u128::from(fee.to_sat()) * 1_000).div_ceil(u128::from(weight_units.max(1)));
    FeeRate::from_sat_per_kwu(u64::try_from(rate).unwrap_or(u64::MAX))
}

/// Weight of one channel's part of a signed claim: its input and its remainder.
fn part_weight(remainder_script: &Script) -> Weight {
    // The witness: its count, two low-S signatures of at most 71 octets with their flags, and a
    // script of at most 79, each behind its length.
    let witness = 1 + 73 + 73 + 80;
    Weight::from_wu(4 * (41 + output_octets(remainder_script.len())) + witness)
}

/// Weight of a claim of one channel: its part, the payout, version, counts, lock time, and the
/// marker and flag of its witness.
fn claim_weight(remainder_script: &Script) -> Weight {
    let rest = Weight::from_wu(4 * (10 + output_octets(PAYOUT_SCRIPT_OCTETS)) + 2);
    part_weight(remainder_script) + rest
}

fn output_octets(script: usize) -> u64 {
    9 + u64::try_from(script).unwrap_or(u64::MAX)
}

/// Whether a channel's part of a claim costs no more than its share of what was paid.
pub fn pays_off_at(rate: FeeRate, remainder_script: &Script, paid: Amount, left: u32) -> bool {
    fee_at(rate, part_weight(remainder_script)) <= share(paid, left)
}

/// A channel that does not pay for its own claim at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "settling a channel costs about {fee} at {} sat/vB now, more than a quarter of the {payable} \
     that this one could pay", rate.to_sat_per_vb_ceil()
)]
pub struct Uneconomic {
    /// Present fee of a claim.
    pub fee: Amount,
    /// At this rate.
    pub rate: FeeRate,
    /// Most that the channel can pay.
    pub payable: Amount,
    /// Smallest capacity that would do.
    pub capacity_min: Amount,
}

/// Whether a channel can pay for its claim at `rate`: the fee may be a part in
/// [`FEE_SHARE_AT_OPENING`] of what it can pay, rounded down.
pub fn check_economic(
    capacity: Amount,
    remainder_script: &Script,
    rate: FeeRate,
) -> Result<(), Uneconomic> {
    let fee = fee_at(rate, claim_weight(remainder_script));
    let payable = capacity.checked_sub(RESERVE).unwrap_or(Amount::ZERO);
    if fee <= payable / FEE_SHARE_AT_OPENING {
        return Ok(());
    }
    let least = fee.checked_mul(FEE_SHARE_AT_OPENING).and_then(|sum| sum.checked_add(RESERVE));
    let capacity_min = least.unwrap_or(Amount::MAX_MONEY).clamp(CAPACITY_MIN, Amount::MAX_MONEY);
    Err(Uneconomic { fee, rate, payable, capacity_min })
}

/// Most that miners may get of a claim of several channels, each with what it paid and the blocks
/// that it has left: their shares, and never so much that no output can hold the rest.
pub fn most_for(channels: impl Iterator<Item = (Amount, u32)>) -> Amount {
    let (mut shares, mut paid) = (Amount::ZERO, Amount::ZERO);
    for (sum, left) in channels {
        shares = shares.checked_add(share(sum, left)).unwrap_or(Amount::MAX_MONEY);
        paid = paid.checked_add(sum).unwrap_or(Amount::MAX_MONEY);
    }
    shares.min(paid.checked_sub(DUST).unwrap_or(Amount::ZERO))
}

#[cfg(test)]
mod tests {
    use bitcoin::{ScriptBuf, WPubkeyHash, WScriptHash, hashes::Hash as _};
    use proptest::prelude::*;

    use super::{
        super::{ChannelParams, Claim, ClaimInput, testing},
        *,
    };

    fn sat(sat: u64) -> Amount {
        Amount::from_sat(sat)
    }

    fn vb(rate: u64) -> FeeRate {
        FeeRate::from_sat_per_vb(rate).unwrap()
    }

    #[test]
    fn miners_may_get_half_while_there_is_time_and_all_at_the_end() {
        assert_eq!(share(sat(1_001), u32::MAX), sat(500));
        assert_eq!(share(sat(1_001), CLAIM_WINDOW_BLOCKS), sat(500));
        assert_eq!(share(sat(1_000), CLAIM_WINDOW_BLOCKS / 2), sat(750));
        assert_eq!(share(sat(1_001), 1), sat(996));
        assert_eq!(share(sat(1_001), 0), sat(1_001));
        assert_eq!(share(Amount::MAX_MONEY, 0), Amount::MAX_MONEY);
    }

    #[test]
    fn blocks_are_left_until_36_before_the_expiry() {
        assert_eq!(blocks_left(1_000, 1_000 - CLAIM_MARGIN_BLOCKS), CLAIM_WINDOW_BLOCKS);
        assert_eq!(blocks_left(1_000, 1_000 - CLAIM_DONE_BLOCKS - 1), 1);
        assert_eq!(blocks_left(1_000, 1_000 - CLAIM_DONE_BLOCKS), 0);
        assert_eq!(blocks_left(10, 1_000), 0);
    }

    #[test]
    fn the_urgent_estimate_is_paid_when_time_is_short_and_never_less_than_the_normal() {
        let fees = FeeEstimates { normal: vb(5), urgent: vb(20) };
        assert_eq!(fees.rate(CLAIM_URGENT_BLOCKS), vb(5));
        assert_eq!(fees.rate(CLAIM_URGENT_BLOCKS - 1), vb(20));
        let odd = FeeEstimates { normal: vb(5), urgent: vb(2) };
        assert_eq!(odd.rate(0), vb(5));
        let none = FeeEstimates { normal: FeeRate::ZERO, urgent: FeeRate::ZERO };
        assert_eq!(none.rate(0), FeeRate::BROADCAST_MIN);
    }

    #[test]
    fn a_claim_weighs_what_opening_reckons_with() {
        for remainder in [
            ScriptBuf::new_p2wpkh(&WPubkeyHash::hash(b"remainder")),
            ScriptBuf::new_p2wsh(&WScriptHash::hash(b"remainder")),
        ] {
            let params = ChannelParams {
                expiry_height: 499_999_999,
                remainder_script: remainder.clone(),
                ..testing::params()
            };
            let funding = testing::outpoint(&params);
            let signature = testing::pay(&params, 5);
            let input = ClaimInput { params, funding, paid: sat(5_000), signature };
            let payout = ScriptBuf::new_p2wsh(&WScriptHash::hash(b"payout"));
            let claim = Claim::new(vec![input], &payout, vb(1)).unwrap();
            assert_eq!(claim_weight(&remainder), claim.weight());
        }
    }

    #[test]
    fn a_channel_opens_when_a_quarter_of_it_pays_for_the_claim_and_not_a_satoshi_below() {
        let script = testing::params().remainder_script;
        let fee = fee_at(vb(20), claim_weight(&script));
        let least = fee * 4 + RESERVE;
        assert_eq!(check_economic(least, &script, vb(20)), Ok(()));
        let refused = check_economic(least - Amount::ONE_SAT, &script, vb(20)).unwrap_err();
        assert_eq!((refused.fee, refused.capacity_min), (fee, least));
        assert_eq!(check_economic(CAPACITY_MIN, &script, vb(1)), Ok(()));
        let dear = check_economic(Amount::MAX_MONEY, &script, FeeRate::MAX).unwrap_err();
        assert_eq!(dear.capacity_min, Amount::MAX_MONEY);
    }

    proptest! {
        /// What a replacement is signed at takes the place of what went before, by BIP125: more in
        /// all, by its own relay, and more for each unit of weight; and it is never over the most.
        #[test]
        fn a_replacement_pays_more_than_all_that_it_replaces(
            weight in 500u64..40_000,
            wanted in 0u64..1_000_000,
            most in 0u64..10_000_000,
            replaced in prop::collection::vec((0u64..1_000_000, 400u64..40_000), 0..4),
        ) {
            let weight = Weight::from_wu(weight);
            let earlier: Vec<_> = replaced
                .iter()
                .map(|(fee, weight)| (sat(*fee), Weight::from_wu(*weight)))
                .collect();
            let all = earlier.iter().map(|(fee, weight)| Replaced::new(*fee, *weight));
            let all = all.reduce(Replaced::and);
            let wanted = FeeRate::from_sat_per_kwu(wanted);
            let Some(rate) = claim_rate(weight, wanted, sat(most), all) else { return Ok(()) };
            let fee = fee_at(rate, weight);
            prop_assert!(fee <= sat(most));
            prop_assert!(rate >= FeeRate::BROADCAST_MIN);
            let sum: Amount = earlier.iter().map(|(fee, _)| *fee).sum();
            if !earlier.is_empty() {
                prop_assert!(fee >= sum + sat(weight.to_vbytes_ceil()));
            }
            for (before, before_weight) in earlier {
                // fee / vbytes > before / vbytes before, as a node divides.
                let (now, then) = (weight.to_vbytes_ceil(), before_weight.to_vbytes_ceil());
                let (now, then) = (u128::from(now), u128::from(then));
                prop_assert!(
                    u128::from(fee.to_sat()) * then > u128::from(before.to_sat()) * now
                );
            }
        }

        #[test]
        fn the_share_grows_as_the_deadline_nears(paid in 0u64..2_100_000_000_000_000, left in 0u32..500) {
            let (now, later) = (share(sat(paid), left + 1), share(sat(paid), left));
            prop_assert!(now <= later && later <= sat(paid));
        }
    }
}
