//! The machines and the ways out, without a chain; `tests/` takes them to a real node.

use std::sync::Arc;

use bitcoin::{
    Amount, FeeRate, OutPoint, ScriptBuf, Sequence, Transaction, WPubkeyHash, Witness,
    absolute::LockTime,
    hashes::Hash,
    secp256k1::{Message, SecretKey, ecdsa::Signature},
};
use proptest::prelude::*;

use super::testing::{
    PROVIDER, SUBSCRIBER, funding_tx, outpoint, params, pay, public_key, secp, secret_key, sign,
};
use super::*;
use crate::{buyer::Buyer, ledger::Usage};

mod close;
mod compact;
mod funding;

fn sat(sat: u64) -> Amount {
    Amount::from_sat(sat)
}

fn station() -> crate::station::Station {
    "02:00:00:00:00:01".parse().unwrap()
}

fn opened() -> ProviderChannel {
    let params = Arc::new(params());
    let used = Usage::default();
    let station = station();
    let event = ProviderEvent::Opened { params, key_index: 0, station, height: 100, used };
    ProviderChannel::open(&event).unwrap()
}

fn funding() -> Funding {
    Funding { outpoint: outpoint(&params()), height: 101 }
}

fn with(mut channel: ProviderChannel, events: &[ProviderEvent]) -> ProviderChannel {
    for event in events {
        channel.apply(event).unwrap();
    }
    channel
}

fn funded() -> ProviderChannel {
    with(opened(), &[ProviderEvent::Funded(funding())])
}

fn paid(sum: u64) -> ProviderEvent {
    ProviderEvent::Paid { paid: sat(sum), signature: pay(&params(), sum), earlier: 0 }
}

fn judge(channel: &ProviderChannel, sum: u64, tip: u32) -> Result<bool, PaymentError> {
    let signature = pay(&params(), sum.min(params().payable().to_sat()));
    channel.pay(&secp(), sat(sum), &signature, None, tip).map(|event| event.is_some())
}

#[test]
fn a_payment_counts_from_the_last_confirmation_on() {
    assert_eq!(judge(&opened(), 5, 101), Err(PaymentError::Unfunded));
    assert_eq!(judge(&funded(), 5, 101), Err(PaymentError::Unconfirmed { have: 1, need: 2 }));
    assert_eq!(judge(&funded(), 5, 102), Ok(true));
}

#[test]
fn no_payment_counts_from_the_claim_margin_on() {
    let last = params().expiry_height - CLAIM_MARGIN_BLOCKS - 1;
    assert_eq!(judge(&funded(), 5, last), Ok(true));
    assert_eq!(judge(&funded(), 5, last + 1), Err(PaymentError::Closed));
    assert!(with(funded(), &[paid(5)]).claim_due(last).is_none());
    assert!(with(funded(), &[paid(5)]).claim_due(last + 1).is_some());
}

#[test]
fn p6_the_same_payment_again_changes_nothing_and_a_smaller_one_is_refused() {
    let channel = with(funded(), &[paid(5)]);
    assert_eq!(judge(&channel, 5, 110), Ok(false));
    assert_eq!(judge(&channel, 4, 110), Err(PaymentError::Stale { best: sat(5) }));
    assert_eq!(judge(&channel, 6, 110), Ok(true));
}

#[test]
fn p7_the_reserve_is_never_paid_away() {
    let payable = params().payable();
    assert_eq!(judge(&funded(), payable.to_sat(), 110), Ok(true));
    for sum in [payable.to_sat() + 1, params().capacity.to_sat() + 1, u64::MAX] {
        assert_eq!(judge(&funded(), sum, 110), Err(PaymentError::TooLarge { payable }), "{sum}");
    }
}

/// The other s that verifies, n - s: the one that BIP146 forbids.
fn high_s(signature: &Signature) -> Signature {
    let mut compact = signature.serialize_compact();
    let s = SecretKey::from_slice(&compact[32..]).unwrap().negate();
    compact[32..].copy_from_slice(&s.secret_bytes());
    Signature::from_compact(&compact).unwrap()
}

#[test]
fn p8_only_the_agreed_signature_is_taken() {
    let params = params();
    let good = pay(&params, 5);
    let mut flipped = good.serialize_compact();
    flipped[40] ^= 1;
    let other_channel = ChannelParams { expiry_height: 1_001, ..params.clone() };
    let wrong_key = sign(PROVIDER, payment_sighash(&params, outpoint(&params), sat(5)).unwrap());
    let other_funding = OutPoint { vout: 0, ..outpoint(&params) };
    let wrong_outpoint = sign(SUBSCRIBER, payment_sighash(&params, other_funding, sat(5)).unwrap());
    for (what, signature) in [
        ("another sum", pay(&params, 6)),
        ("another channel", pay(&other_channel, 5)),
        ("another key", wrong_key),
        ("another funding", wrong_outpoint),
        ("high S", high_s(&good)),
        ("a flipped bit", Signature::from_compact(&flipped).unwrap()),
        ("zero", Signature::from_compact(&[0; 64]).unwrap()),
    ] {
        let judged = funded().pay(&secp(), sat(5), &signature, None, 110);
        assert_eq!(judged, Err(PaymentError::Signature), "{what}");
    }
    assert!(funded().pay(&secp(), sat(5), &good, None, 110).unwrap().is_some());
}

#[test]
fn p8_every_other_sighash_flag_is_refused() {
    use bitcoin::{EcdsaSighashType as Kind, TxIn, TxOut, sighash::SighashCache, transaction};
    let params = params();
    let tx = |version: i32, lock_time: u32| Transaction {
        version: transaction::Version(version),
        lock_time: LockTime::from_consensus(lock_time),
        input: vec![TxIn {
            previous_output: outpoint(&params),
            script_sig: ScriptBuf::new(),
            sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
            witness: Witness::new(),
        }],
        output: vec![TxOut {
            value: params.capacity - sat(5),
            script_pubkey: params.remainder_script.clone(),
        }],
    };
    let judged = |tx: &Transaction, kind| {
        let mut cache = SighashCache::new(tx);
        let script = params.witness_script();
        let hash = cache.p2wsh_signature_hash(0, &script, params.capacity, kind).unwrap();
        let signature = sign(SUBSCRIBER, Message::from(hash));
        funded().pay(&secp(), sat(5), &signature, None, 110)
    };
    let agreed = Kind::SinglePlusAnyoneCanPay;
    assert!(judged(&tx(3, 0), agreed).is_ok());
    for kind in
        [Kind::All, Kind::None, Kind::Single, Kind::AllPlusAnyoneCanPay, Kind::NonePlusAnyoneCanPay]
    {
        assert_eq!(judged(&tx(3, 0), kind), Err(PaymentError::Signature), "{kind}");
    }
    assert_eq!(judged(&tx(2, 0), agreed), Err(PaymentError::Signature), "version 2");
    assert_eq!(judged(&tx(3, 1_000), agreed), Err(PaymentError::Signature), "a lock time");
}

#[test]
fn a_close_needs_the_subscribers_word_and_makes_the_claim_due() {
    let channel = with(funded(), &[paid(5)]);
    let digest = close_digest(&params().id());
    assert_eq!(channel.close(&secp(), &sign(PROVIDER, digest), None), Err(PaymentError::Signature));
    let event = channel.close(&secp(), &sign(SUBSCRIBER, digest), None).unwrap().unwrap();
    let channel = with(channel, &[event]);
    assert_eq!(channel.close(&secp(), &sign(SUBSCRIBER, digest), None), Ok(None));
    assert_eq!(judge(&channel, 6, 110), Err(PaymentError::Closed));
    assert_eq!(channel.claim_due(110).map(|claim| claim.paid), Some(sat(5)));
}

#[test]
fn p1_commitments_to_a_funding_that_was_replaced_are_void() {
    let replaced = OutPoint::new(funding_tx(&params(), 2).compute_txid(), 1);
    let channel = with(funded(), &[paid(5), ProviderEvent::Unfunded]);
    assert_eq!(judge(&channel, 6, 110), Err(PaymentError::Unfunded));
    let same =
        with(channel.clone(), &[ProviderEvent::Funded(Funding { height: 103, ..funding() })]);
    assert_eq!(same.paid(), sat(5));
    let other = Funding { outpoint: replaced, height: 103 };
    let other = with(channel, &[ProviderEvent::Funded(other)]);
    assert_eq!(other.paid(), Amount::ZERO);
    assert_eq!(judge(&other, 6, 110), Err(PaymentError::Signature));
}

#[test]
fn a_spend_is_final_at_depth_six_and_a_reorganisation_before_that_takes_it_back() {
    let channel = with(funded(), &[paid(5), ProviderEvent::CloseRequested { payout_script: None }]);
    let claim = signed_claim(&channel);
    let spent = channel.spend_seen(&claim, 120).unwrap();
    let channel = with(channel, &[spent]);
    let kind = SpendKind::Claim;
    assert_eq!(channel.status(124), ChannelStatus::Settled { kind, depth: 5 });
    assert_eq!(channel.finish(124), None);
    assert_eq!(channel.finish(125), Some(ProviderEvent::Finished));
    assert_eq!(channel.block_gone(121), None);
    let gone = channel.block_gone(120).unwrap();
    assert_eq!(with(channel, &[gone]).status(119), ChannelStatus::Closing);
}

#[test]
fn a_channel_that_is_never_funded_ends() {
    assert_eq!(opened().finish(100 + FUNDING_WINDOW_BLOCKS - 1), None);
    assert_eq!(opened().finish(100 + FUNDING_WINDOW_BLOCKS), Some(ProviderEvent::Finished));
    assert_eq!(funded().finish(100 + FUNDING_WINDOW_BLOCKS), None);
}

#[test]
fn p15_a_journal_that_does_not_add_up_is_refused() {
    let mut channel = funded();
    assert!(channel.apply(&ProviderEvent::Funded(funding())).is_err());
    assert!(channel.apply(&ProviderEvent::Unspent).is_err());
    channel.apply(&paid(5)).unwrap();
    assert!(channel.apply(&paid(5)).is_err());
    assert!(channel.apply(&paid(4)).is_err());
    assert!(opened().apply(&paid(5)).is_err());
    assert!(ProviderChannel::open(&paid(5)).is_err());
    channel.apply(&ProviderEvent::Finished).unwrap();
    assert!(channel.apply(&paid(6)).is_err());
}

fn signed_claim(channel: &ProviderChannel) -> Transaction {
    let claim = Claim::new(
        vec![channel.claim_due(119).unwrap()],
        &ScriptBuf::new_p2wpkh(&WPubkeyHash::hash(b"payout")),
        FeeRate::from_sat_per_kwu(0),
    );
    // A payout of 5 sat is dust: the shape is what counts here.
    assert!(matches!(claim, Err(ClaimError::Uneconomic { .. })));
    let mut input = channel.claim_due(119).unwrap();
    input.paid = sat(50_000);
    input.signature = pay(&params(), 50_000);
    let claim = Claim::new(
        vec![input],
        &ScriptBuf::new_p2wpkh(&WPubkeyHash::hash(b"payout")),
        FeeRate::from_sat_per_vb(1).unwrap(),
    )
    .unwrap();
    let own: Vec<_> =
        claim.sighashes().into_iter().map(|message| sign(PROVIDER, message)).collect();
    claim.finish(&own).unwrap()
}

#[test]
fn a_claim_is_version_three_with_each_remainder_at_its_own_index() {
    let other = ChannelParams { expiry_height: 2_000, ..params() };
    let input = |params: &ChannelParams, sum| ClaimInput {
        params: params.clone(),
        funding: outpoint(params),
        paid: sat(sum),
        signature: pay(params, sum),
    };
    let payout = ScriptBuf::new_p2wpkh(&WPubkeyHash::hash(b"payout"));
    let rate = FeeRate::from_sat_per_vb(2).unwrap();
    let claim =
        Claim::new(vec![input(&params(), 40_000), input(&other, 20_000)], &payout, rate).unwrap();
    let fee = claim.fee();
    let own: Vec<_> =
        claim.sighashes().into_iter().map(|message| sign(PROVIDER, message)).collect();
    let tx = claim.finish(&own).unwrap();
    assert_eq!(tx.version.0, 3);
    let values: Vec<_> = tx.output.iter().map(|output| output.value.to_sat()).collect();
    assert_eq!(values, [60_000, 80_000, 60_000 - fee.to_sat()]);
    assert_eq!(tx.output[2].script_pubkey, payout);
    let vbytes = u64::try_from(tx.vsize()).unwrap();
    assert!((vbytes * 2..vbytes * 2 + 10).contains(&fee.to_sat()), "{fee} for {vbytes} vB");
}

#[test]
fn p5_a_payout_of_exactly_dust_is_claimed_and_one_less_is_not() {
    let rate = FeeRate::from_sat_per_vb(1).unwrap();
    let claim = |sum| {
        let signature = pay(&params(), sum);
        let input = ClaimInput {
            params: params(),
            funding: outpoint(&params()),
            paid: sat(sum),
            signature,
        };
        Claim::new(vec![input], &ScriptBuf::new_p2wpkh(&WPubkeyHash::hash(b"payout")), rate)
    };
    let fee = claim(50_000).unwrap().fee().to_sat();
    assert!(claim(fee + DUST.to_sat()).is_ok());
    let refused = claim(fee + DUST.to_sat() - 1).unwrap_err();
    assert_eq!(refused, ClaimError::Uneconomic { paid: sat(fee + 329), fee: sat(fee) });
}

#[test]
fn a_refund_takes_the_branch_without_the_provider() {
    let params = params();
    let script = ScriptBuf::new_p2wpkh(&WPubkeyHash::hash(b"refund"));
    let rate = FeeRate::from_sat_per_vb(1).unwrap();
    let refund = Refund::new(&params, outpoint(&params), &script, rate).unwrap();
    let signature = sign(SUBSCRIBER, refund.sighash().unwrap());
    let tx = refund.finish(signature).unwrap();
    assert_eq!(tx.lock_time, LockTime::from_consensus(1_000));
    let spent = Spent::find(&tx, &outpoint(&params), 1_001).unwrap();
    assert_eq!(spent.kind, SpendKind::Refund);
    assert!(tx.output[0].value < params.capacity);
    let broke = Refund::new(&params, outpoint(&params), &script, FeeRate::MAX);
    assert!(broke.is_err());
}

mod subscriber {
    use bitcoin::secp256k1::XOnlyPublicKey;

    use super::*;

    fn negotiated() -> SubscriberChannel {
        let provider = XOnlyPublicKey::from(public_key(7));
        let params = Box::new(params());
        let url = "http://10.77.0.1:8434".into();
        let height = 100;
        let event = SubscriberEvent::Negotiated { params, key_index: 0, provider, url, height };
        SubscriberChannel::open(&event).unwrap()
    }

    fn with(mut channel: SubscriberChannel, events: &[SubscriberEvent]) -> SubscriberChannel {
        for event in events {
            channel.apply(event).unwrap();
        }
        channel
    }

    fn funded() -> SubscriberChannel {
        let tx = funding_tx(&params(), 1);
        let events = [
            SubscriberEvent::FundingSigned { tx, height: 100 },
            SubscriberEvent::Funded(funding()),
        ];
        with(negotiated(), &events)
    }

    fn signed(sum: u64) -> SubscriberEvent {
        SubscriberEvent::PaymentSigned {
            paid: sat(sum),
            signature: pay(&params(), sum),
            earlier: 0,
        }
    }

    #[test]
    fn signs_what_the_provider_takes() {
        let message = funded().payment(sat(5), 110).unwrap();
        let signature = sign(SUBSCRIBER, message);
        assert!(super::funded().pay(&secp(), sat(5), &signature, None, 110).unwrap().is_some());
    }

    #[test]
    fn signs_more_each_time_and_never_the_reserve() {
        let channel = with(funded(), &[signed(5)]);
        assert_eq!(channel.payment(sat(5), 110), Err(PayError::NotMore(sat(5))));
        let payable = params().payable();
        assert!(channel.payment(payable, 110).is_ok());
        assert_eq!(channel.payment(payable + sat(1), 110), Err(PayError::Spent(payable)));
    }

    #[test]
    fn signs_nothing_before_confirmation_in_a_dispute_or_when_leaving() {
        assert_eq!(funded().payment(sat(5), 101), Err(PayError::Unconfirmed));
        let dispute = SubscriberEvent::Disputed {
            reported_octets: crate::units::Octets(2),
            counted_octets: crate::units::Octets(1),
        };
        assert_eq!(with(funded(), &[dispute]).payment(sat(5), 110), Err(PayError::Closed));
        let leaving = with(funded(), &[SubscriberEvent::CloseRequested { height: 110 }]);
        assert_eq!(leaving.payment(sat(5), 110), Err(PayError::Closed));
        assert_eq!(funded().payment(sat(5), 856), Err(PayError::Closed));
        assert!(funded().payment(sat(5), 855).is_ok());
    }

    #[test]
    fn terms_that_were_not_funded_soon_are_given_up() {
        let last = 100 + AGREED_WINDOW_BLOCKS;
        assert_eq!(negotiated().finish(last), None);
        assert_eq!(negotiated().finish(last + 1), Some(SubscriberEvent::Finished));
        assert_eq!(funded().finish(last + 1), None);
    }

    #[test]
    fn only_the_own_funding_counts() {
        let tx = funding_tx(&params(), 1);
        let waiting = with(negotiated(), &[SubscriberEvent::FundingSigned { tx, height: 100 }]);
        let foreign = OutPoint::new(funding_tx(&params(), 2).compute_txid(), 1);
        assert_eq!(waiting.funding_seen(foreign, 101), None);
        assert!(waiting.funding_seen(outpoint(&params()), 101).is_some());
    }

    #[test]
    fn p18_the_refund_is_due_at_the_expiry_and_not_a_block_before() {
        assert_eq!(funded().refund_due(999), None);
        assert_eq!(funded().refund_due(1_000), Some(outpoint(&params())));
        let tx = funding_tx(&params(), 3);
        let waiting = with(funded(), &[SubscriberEvent::RefundSigned { tx, height: 1_000 }]);
        assert_eq!(waiting.refund_due(1_000 + CLAIM_BUMP_BLOCKS - 1), None);
        assert!(waiting.refund_due(1_000 + CLAIM_BUMP_BLOCKS).is_some());
    }

    #[test]
    fn p18_a_channel_that_was_found_again_pays_nothing_and_comes_back_at_the_expiry() {
        let event = |key_index| {
            let params = Box::new(params());
            SubscriberEvent::Restored { params, key_index, height: 100 }
        };
        let found = SubscriberChannel::open(&event(4)).unwrap();
        assert!(found.restored() && !negotiated().restored());
        assert_eq!(found.key_index(), 4);
        assert_eq!(found.finish(100 + AGREED_WINDOW_BLOCKS + 1), None, "it is not given up");
        let seen = found.funding_seen(outpoint(&params()), 101).unwrap();
        let found = with(found, &[seen]);
        assert_eq!(found.status(150), ChannelStatus::Closing);
        assert_eq!(found.payment(sat(5), 150), Err(PayError::Closed));
        assert_eq!(found.refund_due(999), None);
        assert_eq!(found.refund_due(1_000), Some(outpoint(&params())));
        let mut twice = negotiated();
        assert!(twice.apply(&event(4)).is_err(), "only as the first event");

        let mut buyer = Buyer::new(params().network);
        let mut out = Batch::default();
        assert!(buyer.restored(params(), 4, &mut out));
        assert!(!buyer.restored(params(), 4, &mut out), "it is known now");
        assert_eq!(buyer.next_key_index(), 5, "no key is used twice");
        let mut replayed = Buyer::new(params().network);
        for entry in out.entries() {
            replayed.replay(entry).unwrap();
        }
        assert_eq!(replayed.next_key_index(), 5);
    }
}

#[test]
fn events_survive_json() {
    let channel = with(funded(), &[paid(5), ProviderEvent::CloseRequested { payout_script: None }]);
    let tx = signed_claim(&channel);
    let claim = ClaimRecord { tx, fee_rate_sat_per_kwu: 250, fee: sat(190), height: 120 };
    let opened = ProviderEvent::Opened {
        params: Arc::new(params()),
        key_index: 0,
        station: station(),
        height: 100,
        used: Usage::default(),
    };
    let (nonce, used) = (Nonce::from([1; 8]), Usage::default());
    let bound = ProviderEvent::Bound { station: station(), nonce, used };
    let unbound = ProviderEvent::Unbound { station: station(), nonce };
    let funding = ProviderEvent::Funded(funding());
    for event in [opened, funding, bound, unbound, paid(5), ProviderEvent::ClaimSigned(claim)] {
        let json = serde_json::to_string(&event).unwrap();
        assert_eq!(serde_json::from_str::<ProviderEvent>(&json).unwrap(), event);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// P6: payments in any order, repeated: what counts is the largest, and each is taken once.
    #[test]
    fn p6_the_best_state_only_grows(sums in prop::collection::vec(1u64..120_000, 1..12)) {
        let mut channel = funded();
        let mut best = 0;
        for sum in sums {
            let before = channel.paid();
            let payable = params().payable();
            let signature = pay(&params(), sum.min(payable.to_sat()));
            match channel.pay(&secp(), sat(sum), &signature, None, 110) {
                Ok(Some(event)) => {
                    channel.apply(&event).unwrap();
                    prop_assert!(sum > best && sat(sum) <= payable);
                    best = sum;
                }
                Ok(None) => prop_assert_eq!(sum, best),
                Err(PaymentError::Stale { .. }) => prop_assert!(sum < best),
                Err(error) => {
                    prop_assert_eq!(error, PaymentError::TooLarge { payable });
                    prop_assert!(sat(sum) > payable);
                }
            }
            prop_assert!(channel.paid() >= before);
            prop_assert_eq!(channel.paid(), sat(best));
        }
    }

    /// The subscriber's remainder and the provider's payment are the whole funding.
    #[test]
    fn no_satoshi_is_made_or_lost(sum in 1_000u64..99_670, rate in 1u64..5) {
        let input = ClaimInput {
            params: params(),
            funding: outpoint(&params()),
            paid: sat(sum),
            signature: pay(&params(), sum),
        };
        let rate = FeeRate::from_sat_per_vb(rate).unwrap();
        let payout = ScriptBuf::new_p2wpkh(&WPubkeyHash::hash(b"payout"));
        if let Ok(claim) = Claim::new(vec![input], &payout, rate) {
            let fee = claim.fee();
            let own: Vec<_> = claim.sighashes().into_iter().map(|m| sign(PROVIDER, m)).collect();
            let tx = claim.finish(&own).unwrap();
            let out: Amount = tx.output.iter().map(|output| output.value).sum();
            prop_assert_eq!(out + fee, params().capacity);
            prop_assert_eq!(tx.output[0].value, params().capacity - sat(sum));
        }
    }
}

#[test]
fn the_smallest_channel_can_be_settled() {
    assert!(CAPACITY_MIN > RESERVE + DUST + sat(200));
    assert_eq!(params().subscriber, secret_key(SUBSCRIBER).public_key(&secp()).into());
}
