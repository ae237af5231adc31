//! The close that both sign, from both ends.

use super::*;

const TIP: u32 = 200;

fn payout_script() -> ScriptBuf {
    ScriptBuf::new_p2wpkh(&WPubkeyHash::hash(b"payout"))
}

fn rate(sat_per_vb: u64) -> FeeRate {
    FeeRate::from_sat_per_vb(sat_per_vb).unwrap()
}

/// A provider that was asked to close after these payments.
fn asked(payments: &[u64]) -> ProviderChannel {
    let paid: Vec<_> = payments.iter().map(|sum| paid(*sum)).collect();
    let asked = ProviderEvent::CloseRequested { payout_script: Some(payout_script()) };
    with(with(funded(), &paid), &[asked])
}

fn close(sum: u64, fee: u64) -> Close {
    Close::new(&params(), outpoint(&params()), sat(sum), &payout_script(), sat(fee)).unwrap()
}

fn judge_close(
    channel: &ProviderChannel,
    sum: u64,
    fee: u64,
    signature: &Signature,
    tip: u32,
) -> Result<Option<Close>, CloseError> {
    channel.close_proposed(&secp(), sat(sum), sat(fee), signature, tip)
}

fn signed_by(seed: u8, close: &Close) -> Signature {
    sign(seed, close.sighash().unwrap())
}

/// Signed by both, at a height.
fn agreed(sum: u64, fee: u64, height: u32) -> CloseRecord {
    let close = close(sum, fee);
    let signatures = (signed_by(SUBSCRIBER, &close), signed_by(PROVIDER, &close));
    close.finish(signatures.0, signatures.1, height).unwrap()
}

#[test]
fn a_wish_to_close_is_answered_once_with_where_the_payout_goes() {
    let digest = sign(SUBSCRIBER, close_digest(&params().id()));
    let script = payout_script();
    let wish = |channel: &ProviderChannel| channel.close(&secp(), &digest, Some(&script)).unwrap();
    let early = with(opened(), &[wish(&opened()).unwrap()]);
    assert_eq!(early.payout_script(), None, "nothing in a block");
    let later = with(early, &[ProviderEvent::Funded(funding())]);
    let told = with(later.clone(), &[wish(&later).unwrap()]);
    assert_eq!(told.payout_script(), Some(&script));
    assert_eq!(wish(&told), None);
}

#[test]
fn a_close_of_exactly_what_was_paid_is_signed_and_a_better_one_too() {
    let channel = asked(&[5_000]);
    for sum in [5_000, 5_001] {
        let signature = signed_by(SUBSCRIBER, &close(sum, 400));
        assert_eq!(judge_close(&channel, sum, 400, &signature, TIP), Ok(Some(close(sum, 400))));
    }
    let less = signed_by(SUBSCRIBER, &close(4_999, 400));
    let refused = CloseError::Underpaid { best: sat(5_000) };
    assert_eq!(judge_close(&channel, 4_999, 400, &less, TIP), Err(refused));
}

#[test]
fn p8_only_the_agreed_close_is_signed() {
    let channel = asked(&[5_000]);
    let good = close(5_000, 400);
    let signature = signed_by(SUBSCRIBER, &good);
    let other = |change: fn(&mut ChannelParams, &mut OutPoint, &mut ScriptBuf)| {
        let (mut params, mut funding, mut script) =
            (params(), outpoint(&params()), payout_script());
        change(&mut params, &mut funding, &mut script);
        let close = Close::new(&params, funding, sat(5_000), &script, sat(400)).unwrap();
        signed_by(SUBSCRIBER, &close)
    };
    for (what, wrong) in [
        ("another key", signed_by(PROVIDER, &good)),
        ("another sum", signed_by(SUBSCRIBER, &close(4_000, 400))),
        ("another fee", signed_by(SUBSCRIBER, &close(5_000, 401))),
        ("another outpoint", other(|_, funding, _| funding.vout = 0)),
        ("another payout script", other(|params, _, s| s.clone_from(&params.remainder_script))),
        (
            "another remainder script",
            other(|params, _, _| params.remainder_script = payout_script()),
        ),
        ("another channel", other(|params, _, _| params.expiry_height += 1)),
        ("a commitment", pay(&params(), 5_000)),
        ("high S", high_s(&signature)),
    ] {
        let judged = judge_close(&channel, 5_000, 400, &wrong, TIP);
        assert_eq!(judged, Err(CloseError::Signature), "{what}");
    }
    // What the transaction says beside its outputs is not proposed, and can't be signed otherwise.
    let record = agreed(5_000, 400, TIP);
    for change in [
        (|tx| tx.version = bitcoin::transaction::Version::TWO) as fn(&mut Transaction),
        |tx| tx.lock_time = LockTime::from_consensus(1_000),
        |tx| tx.input[0].sequence = Sequence::MAX,
        |tx| tx.output.truncate(1),
        |tx| tx.output.push(tx.output[0].clone()),
    ] {
        let mut tx = record.tx.clone();
        change(&mut tx);
        let message = spend::sighash(&tx, 0, &params(), bitcoin::EcdsaSighashType::All).unwrap();
        let wrong = sign(SUBSCRIBER, message);
        let judged = judge_close(&channel, 5_000, 400, &wrong, TIP);
        assert_eq!(judged, Err(CloseError::Signature));
    }
}

#[test]
fn a_close_whose_fee_is_out_of_bounds_is_refused() {
    let channel = asked(&[5_000]);
    let signature = signed_by(SUBSCRIBER, &close(5_000, 400));
    let judge = |fee| judge_close(&channel, 5_000, fee, &signature, TIP).unwrap_err();
    assert!(matches!(judge(100), CloseError::FeeTooLow { .. }));
    for fee in [60_000, 95_000, u64::MAX] {
        assert!(matches!(judge(fee), CloseError::FeeTooHigh { .. }), "{fee}");
    }
}

#[test]
fn a_payment_before_the_close_raises_it_and_one_after_it_is_refused() {
    let proposed = close(5_000, 400);
    let signature = signed_by(SUBSCRIBER, &proposed);
    let raced = asked(&[5_000, 6_000]);
    let judged = judge_close(&raced, 5_000, 400, &signature, TIP);
    assert_eq!(judged, Err(CloseError::Underpaid { best: sat(6_000) }));
    let closed = with(asked(&[5_000]), &[ProviderEvent::CloseSigned(agreed(5_000, 400, TIP))]);
    assert_eq!(judge(&closed, 6_000, TIP), Err(PaymentError::Closed));
    assert!(closed.clone().apply(&paid(6_000)).is_err(), "not from a journal either");
}

#[test]
fn what_is_signed_is_signed_again_only_later_and_for_more() {
    let since = TIP;
    let closed = with(asked(&[5_000]), &[ProviderEvent::CloseSigned(agreed(5_000, 400, since))]);
    let again = |fee, tip| {
        let signature = signed_by(SUBSCRIBER, &close(5_000, fee));
        judge_close(&closed, 5_000, fee, &signature, tip).unwrap().is_some()
    };
    assert!(!again(400, since));
    assert!(!again(800, since + CLOSE_WAIT_BLOCKS - 1));
    assert!(!again(400, since + CLOSE_WAIT_BLOCKS));
    assert!(again(401, since + CLOSE_WAIT_BLOCKS));
}

#[test]
fn the_claim_follows_a_close_that_does_not_confirm_and_nothing_delays_it_twice() {
    let closed = with(asked(&[5_000]), &[ProviderEvent::CloseSigned(agreed(5_000, 400, TIP))]);
    assert!(closed.claim_due(TIP + CLOSE_WAIT_BLOCKS - 1).is_none());
    assert!(closed.claim_due(TIP + CLOSE_WAIT_BLOCKS).is_some());
    let later = ProviderEvent::CloseSigned(agreed(5_000, 800, TIP + CLOSE_WAIT_BLOCKS));
    assert!(with(closed, &[later]).claim_due(TIP + CLOSE_WAIT_BLOCKS).is_some());
    let margin = params().expiry_height - CLAIM_MARGIN_BLOCKS;
    let late = ProviderEvent::CloseSigned(agreed(5_000, 400, margin - 1));
    let late = with(asked(&[5_000]), &[late]);
    assert!(late.claim_due(margin - 1).is_none());
    assert!(late.claim_due(margin).is_some());
}

#[test]
fn p1_a_close_of_a_replaced_funding_is_void() {
    let closed = with(asked(&[5_000]), &[ProviderEvent::CloseSigned(agreed(5_000, 400, TIP))]);
    let other = Funding { outpoint: OutPoint { vout: 0, ..outpoint(&params()) }, height: 210 };
    let replaced = with(closed, &[ProviderEvent::Unfunded, ProviderEvent::Funded(other)]);
    assert_eq!(replaced.closed_by_both(), None);
    assert!(!replaced.awaits_close(TIP));
}

#[test]
fn a_close_in_a_block_is_told_from_a_claim_and_a_refund() {
    let found = Spent::find(&agreed(5_000, 400, TIP).tx, &outpoint(&params()), 210).unwrap();
    assert_eq!(found.kind, SpendKind::Close);
    let none = Spent::find(&agreed(0, 400, TIP).tx, &outpoint(&params()), 210).unwrap();
    assert_eq!(none.kind, SpendKind::Close);
    let claim = signed_claim(&asked(&[5]));
    assert_eq!(Spent::find(&claim, &outpoint(&params()), 210).unwrap().kind, SpendKind::Claim);
}

mod subscriber {
    use super::*;

    fn funded(payments: &[u64]) -> SubscriberChannel {
        let params = Box::new(params());
        let (provider, _) = secret_key(PROVIDER).x_only_public_key(&secp());
        let url = "http://[::1]".into();
        let event =
            SubscriberEvent::Negotiated { params, key_index: 0, provider, url, height: 100 };
        let mut channel = SubscriberChannel::open(&event).unwrap();
        let tx = funding_tx(&super::params(), 1);
        let mut events = vec![
            SubscriberEvent::FundingSigned { tx, height: 100 },
            SubscriberEvent::Funded(funding()),
        ];
        events.extend(payments.iter().map(|sum| SubscriberEvent::PaymentSigned {
            paid: sat(*sum),
            signature: pay(&super::params(), *sum),
            earlier: 0,
        }));
        for event in &events {
            channel.apply(event).unwrap();
        }
        channel
    }

    fn leaving(payments: &[u64]) -> SubscriberChannel {
        let mut channel = funded(payments);
        channel.apply(&SubscriberEvent::CloseRequested { height: TIP }).unwrap();
        channel
    }

    fn due(channel: &SubscriberChannel, rate: FeeRate, tip: u32) -> Option<Close> {
        channel.close_due(&payout_script(), rate, tip).unwrap()
    }

    fn proposed(mut channel: SubscriberChannel, rate: FeeRate, tip: u32) -> SubscriberChannel {
        let close = due(&channel, rate, tip).unwrap();
        let signature = signed_by(SUBSCRIBER, &close);
        channel.apply(&SubscriberEvent::CloseSigned(close.proposed(signature, tip))).unwrap();
        channel
    }

    #[test]
    fn proposes_at_once_where_a_claim_would_not_pay_off_and_else_when_none_came() {
        assert_eq!(due(&funded(&[]), rate(1), TIP), None, "it is in use");
        let close = due(&leaving(&[]), rate(2), TIP).unwrap();
        assert_eq!(close.payout(), Amount::ZERO);
        assert!(due(&leaving(&[499]), rate(1), TIP).is_some(), "170 vB and dust are more");
        assert!(due(&leaving(&[500]), rate(1), TIP).is_none());
        let enough = leaving(&[5_000]);
        assert_eq!(due(&enough, rate(1), TIP + CLOSE_WAIT_BLOCKS - 1), None);
        let close = due(&enough, rate(1), TIP + CLOSE_WAIT_BLOCKS).unwrap();
        assert_eq!(close.payout(), sat(5_000));
        assert!(due(&enough, rate(40), TIP).is_some(), "fees rose");
    }

    #[test]
    fn proposes_near_the_expiry_without_being_asked_and_not_after_it() {
        let margin = params().expiry_height - CLAIM_MARGIN_BLOCKS;
        let channel = funded(&[5_000]);
        assert_eq!(due(&channel, rate(1), margin + CLOSE_WAIT_BLOCKS - 1), None);
        assert!(due(&channel, rate(1), margin + CLOSE_WAIT_BLOCKS).is_some());
        assert_eq!(due(&channel, rate(1), params().expiry_height), None);
    }

    #[test]
    fn signs_no_payment_after_a_close_and_none_before_it_is_left_out() {
        let channel = proposed(leaving(&[400]), rate(2), TIP);
        assert_eq!(channel.proposed_close().unwrap().paid, sat(400));
        assert_eq!(channel.payment(sat(500), TIP), Err(PayError::Closed));
        let signature = pay(&params(), 500);
        let payment = SubscriberEvent::PaymentSigned { paid: sat(500), signature, earlier: 0 };
        assert!(channel.clone().apply(&payment).is_err());
    }

    #[test]
    fn a_withheld_proposal_is_not_followed_by_a_dearer_one() {
        let channel = proposed(leaving(&[]), rate(2), TIP);
        assert_eq!(due(&channel, rate(50), TIP + 100), None);
        assert_eq!(channel.refund_due(params().expiry_height), Some(outpoint(&params())));
    }

    #[test]
    fn an_agreed_close_that_does_not_confirm_is_followed_by_one_that_replaces_it() {
        let mut channel = proposed(leaving(&[]), rate(2), TIP);
        let first = channel.proposed_close().unwrap().clone();
        let tx = agreed(0, first.fee.to_sat(), TIP).tx;
        channel.apply(&channel.close_answered(&secp(), &tx).unwrap()).unwrap();
        assert_eq!(due(&channel, rate(2), TIP + CLOSE_WAIT_BLOCKS - 1), None);
        let next = due(&channel, rate(2), TIP + CLOSE_WAIT_BLOCKS).unwrap();
        assert!(next.fee() >= first.fee + first.fee / 2, "{}", next.fee());
        let dear = due(&channel, rate(30), TIP + CLOSE_WAIT_BLOCKS).unwrap();
        assert!(dear.fee() > next.fee());
    }

    #[test]
    fn an_answer_that_is_not_the_proposal_with_the_providers_signature_is_thrown_away() {
        let channel = proposed(leaving(&[]), rate(2), TIP);
        let fee = channel.proposed_close().unwrap().fee.to_sat();
        let good = agreed(0, fee, TIP).tx;
        let mut unsigned = good.clone();
        unsigned.input[0].witness = Witness::new();
        let mut padded = good.clone();
        padded.input[0].witness.push([0; 1_000]);
        let close = close(0, fee);
        let own = signed_by(SUBSCRIBER, &close);
        let forged = close.finish(own, own, TIP).unwrap().tx;
        for (what, tx) in [
            ("another fee", agreed(0, fee + 1, TIP).tx),
            ("no signature", unsigned),
            ("more in the witness", padded),
            ("not the provider's", forged),
        ] {
            assert_eq!(channel.close_answered(&secp(), &tx), None, "{what}");
        }
        assert!(channel.close_answered(&secp(), &good).is_some());
        assert_eq!(funded(&[]).close_answered(&secp(), &good), None, "nothing was proposed");
    }
}
