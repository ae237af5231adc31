//! The subscriber's fundings: replaced, taken before they confirm, void when another one confirms.

use super::*;

fn negotiated(params: ChannelParams) -> SubscriberChannel {
    let (provider, _) = secret_key(PROVIDER).x_only_public_key(&secp());
    let (params, url) = (Box::new(params), "http://[::1]".into());
    let event = SubscriberEvent::Negotiated { params, key_index: 0, provider, url, height: 100 };
    SubscriberChannel::open(&event).unwrap()
}

/// A funding that spends the same output as others, and is unique by its change.
fn funding_by(fee: u64) -> Transaction {
    let mut tx = funding_tx(&params(), 1);
    tx.output[0].value -= sat(fee);
    tx
}

fn signed(fee: u64, height: u32) -> SubscriberEvent {
    SubscriberEvent::FundingSigned { tx: funding_by(fee), height }
}

fn output_of(fee: u64) -> OutPoint {
    OutPoint::new(funding_by(fee).compute_txid(), 1)
}

fn funded_by(fee: u64) -> SubscriberEvent {
    SubscriberEvent::Funded(Funding { outpoint: output_of(fee), height: 110 })
}

fn follow(mut channel: SubscriberChannel, events: &[SubscriberEvent]) -> SubscriberChannel {
    for event in events {
        channel.apply(event).unwrap();
    }
    channel
}

fn pay_on(sum: u64) -> SubscriberEvent {
    SubscriberEvent::PaymentSigned { paid: sat(sum), signature: pay(&params(), sum), earlier: 0 }
}

fn with_credit(sum: u64) -> ChannelParams {
    ChannelParams { unconfirmed_max: sat(sum), ..params() }
}

#[test]
fn p1_whichever_funding_confirms_counts_and_no_two_can() {
    let channel = follow(negotiated(params()), &[signed(0, 100)]);
    assert!(!channel.funding_bump_due(100 + FUNDING_BUMP_BLOCKS - 1));
    assert!(channel.funding_bump_due(100 + FUNDING_BUMP_BLOCKS));
    let elsewhere = funding_tx(&params(), 2);
    assert!(!channel.is_fundable_by(&elsewhere), "it could confirm, too");
    let stranger = SubscriberEvent::FundingSigned { tx: elsewhere, height: 106 };
    assert!(channel.clone().apply(&stranger).is_err(), "not from a journal either");
    let channel = follow(channel, &[signed(1, 106)]);
    assert!(!channel.funding_bump_due(106 + FUNDING_BUMP_BLOCKS - 1));
    for fee in [0, 1] {
        let event = channel.funding_seen(output_of(fee), 110);
        assert_eq!(event, Some(funded_by(fee)));
        let funded = follow(channel.clone(), &[funded_by(fee)]);
        assert!(!funded.funding_bump_due(200) && funded.funding_waits(200).is_none());
        let message = payment_sighash(&params(), output_of(fee), sat(5));
        assert_eq!(funded.payment(sat(5), 111).ok(), message);
    }
}

#[test]
fn p1_fundings_are_not_replaced_without_end_or_when_it_is_too_late() {
    let mut channel = negotiated(params());
    for fee in 0..u64::try_from(FUNDINGS_MAX).unwrap() {
        assert!(channel.is_fundable_by(&{
            let mut tx = funding_tx(&params(), 1);
            tx.output.push(tx.output[0].clone());
            tx.output[2].value = sat(fee);
            tx
        }));
        let mut tx = funding_tx(&params(), 1);
        tx.output[0].value = sat(100 + fee);
        channel.apply(&SubscriberEvent::FundingSigned { tx, height: 100 }).unwrap();
    }
    assert!(!channel.is_fundable_by(&funding_by(3)));
    assert!(!channel.funding_bump_due(110));
    let one = follow(negotiated(params()), &[signed(0, 100)]);
    let late = 100 + FUNDING_WINDOW_BLOCKS - 36;
    assert!(one.funding_waits(late - 1).is_some() && one.funding_bump_due(late - 1));
    assert!(one.funding_waits(late).is_none() && !one.funding_bump_due(late));
    let leaving = follow(one, &[SubscriberEvent::CloseRequested { height: 105 }]);
    assert!(!leaving.funding_bump_due(110));
}

#[test]
fn nothing_is_signed_for_a_channel_that_is_left_ended_or_waits_for_the_last_funding() {
    let agreed = negotiated(params());
    assert!(agreed.funding_due(100));
    let leaving = follow(agreed.clone(), &[SubscriberEvent::CloseRequested { height: 100 }]);
    assert!(!leaving.funding_due(100));
    let ended = follow(agreed.clone(), &[SubscriberEvent::Finished]);
    assert!(!ended.funding_due(100));
    let signed = follow(agreed, &[signed(0, 100)]);
    assert!(!signed.funding_due(100 + FUNDING_BUMP_BLOCKS - 1));
    assert!(signed.funding_due(100 + FUNDING_BUMP_BLOCKS));
    let funded = follow(signed, &[funded_by(0)]);
    assert!(!funded.funding_due(110));
}

#[test]
fn p9_pays_before_confirmation_only_what_the_provider_counts_on() {
    let channel = follow(negotiated(with_credit(50)), &[signed(0, 100)]);
    assert_eq!(channel.payment(sat(5), 101), Err(PayError::Unconfirmed));
    assert_eq!(channel.funding_taken(output_of(3)), None, "not one of ours");
    let taken = channel.funding_taken(output_of(0)).unwrap();
    let none = follow(negotiated(params()), &[signed(0, 100), taken.clone()]);
    assert_eq!(none.payment(sat(5), 101), Err(PayError::Unconfirmed), "terms without credit");
    let channel = follow(channel, &[taken]);
    assert!(channel.payment(sat(50), 101).is_ok());
    assert_eq!(channel.payment(sat(51), 101), Err(PayError::Spent(sat(50))));
    let funded = follow(channel, &[funded_by(0)]);
    assert_eq!(funded.payment(sat(51), 110), Err(PayError::Spent(sat(50))), "one of two blocks");
    assert!(funded.payment(sat(51), 111).is_ok());
}

#[test]
fn p9_what_was_signed_for_a_funding_that_did_not_confirm_is_void_and_owed_on_the_one_that_did() {
    let taken = |fee| SubscriberEvent::FundingTaken { outpoint: output_of(fee) };
    let events = [signed(0, 100), taken(0), pay_on(40), signed(1, 106)];
    let channel = follow(negotiated(with_credit(50)), &events);
    assert_eq!(channel.paid(), sat(40));
    let other = follow(channel.clone(), &[funded_by(1)]);
    assert_eq!((other.paid(), other.best(), other.owed()), (Amount::ZERO, None, Some(sat(40))));
    let paid = follow(other, &[pay_on(40)]);
    assert_eq!((paid.paid(), paid.owed()), (sat(40), None));
    // A reorganisation can bring the first one back: what was signed on it is not forgotten.
    let back = follow(paid, &[SubscriberEvent::Unfunded, funded_by(0)]);
    assert_eq!((back.paid(), back.owed()), (sat(40), None));
    let same = follow(channel, &[funded_by(0)]);
    assert_eq!((same.paid(), same.owed()), (sat(40), None));
}
