//! Journals told in fewer events come to the same.

use super::*;
use crate::{
    controller::Controller,
    ledger::{Counts, Usage},
    units::Octets,
};

/// What happens to a channel, more or less likely.
#[derive(Clone, Copy, Debug)]
enum Step {
    Pay(u64),
    Fund(u8),
    Unfund,
    Offer(u8),
    Revoke,
    Ask,
    Spend,
    Unspend,
    Finish,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (1u64..40).prop_map(Step::Pay),
        2 => (1u8..4).prop_map(Step::Fund),
        1 => Just(Step::Unfund),
        2 => (1u8..4).prop_map(Step::Offer),
        1 => Just(Step::Revoke),
        1 => Just(Step::Ask),
        1 => Just(Step::Spend),
        1 => Just(Step::Unspend),
        1 => Just(Step::Finish),
    ]
}

fn funded_by(number: u8) -> Funding {
    let tx = funding_tx(&params(), number);
    let outpoint = funding_outpoint(&params(), &tx).unwrap();
    Funding { outpoint, height: 101 + u32::from(number) }
}

fn spent(number: u8) -> Spent {
    let txid = funded_by(number).outpoint.txid;
    Spent { txid, height: 120, kind: SpendKind::Claim }
}

/// Takes steps from where a channel is: those that it refuses don't happen.
fn journal<M: Machine + Clone>(
    first: M::Event,
    steps: &[Step],
    event: impl Fn(Step, u64) -> M::Event,
) -> Vec<M::Event> {
    let mut channel = M::open(&first).unwrap();
    let mut events = vec![first];
    let mut sum = 0;
    for step in steps {
        let more = if let Step::Pay(more) = step { *more } else { 0 };
        let event = event(*step, sum + more);
        let before = channel.clone();
        if channel.apply(&event).is_ok() {
            sum += more;
            events.push(event);
        } else {
            channel = before;
        }
    }
    events
}

/// Folds pieces of a journal one after the other, as a store does.
fn folded<E: Compact + Clone>(events: &[E], pieces: &[usize]) -> Vec<E> {
    let mut folded: Vec<E> = Vec::new();
    let mut left = events;
    for piece in pieces {
        let (now, later) = left.split_at((*piece).min(left.len()));
        for event in now {
            let over = match folded.last_mut() {
                Some(last) => last.absorb(event.clone()),
                None => Some(event.clone()),
            };
            folded.extend(over);
        }
        left = later;
    }
    folded.extend_from_slice(left);
    folded
}

fn fold<M: Machine>(events: &[M::Event]) -> M {
    let (first, rest) = events.split_first().unwrap();
    let mut channel = M::open(first).unwrap();
    for event in rest {
        channel.apply(event).unwrap();
    }
    channel
}

fn provider_event(step: Step, sum: u64) -> ProviderEvent {
    match step {
        Step::Pay(_) => paid(sum),
        Step::Fund(number) => ProviderEvent::Funded(funded_by(number)),
        Step::Unfund => ProviderEvent::Unfunded,
        Step::Offer(number) => ProviderEvent::FundingOffered { tx: funding_tx(&params(), number) },
        Step::Revoke => ProviderEvent::FundingRevoked,
        Step::Ask => ProviderEvent::CloseRequested { payout_script: None },
        Step::Spend => ProviderEvent::Spent(spent(1)),
        Step::Unspend => ProviderEvent::Unspent,
        Step::Finish => ProviderEvent::Finished,
    }
}

fn subscriber_event(step: Step, sum: u64) -> SubscriberEvent {
    match step {
        Step::Pay(_) => SubscriberEvent::PaymentSigned {
            paid: sat(sum),
            signature: pay(&params(), sum),
            earlier: 0,
        },
        Step::Fund(number) => SubscriberEvent::Funded(funded_by(number)),
        Step::Unfund => SubscriberEvent::Unfunded,
        Step::Offer(number) => {
            SubscriberEvent::FundingSigned { tx: funding_tx(&params(), number), height: 100 }
        }
        Step::Revoke => SubscriberEvent::FundingTaken { outpoint: funded_by(1).outpoint },
        Step::Ask => SubscriberEvent::CloseRequested { height: 110 },
        Step::Spend => SubscriberEvent::Spent(spent(1)),
        Step::Unspend => SubscriberEvent::Unspent,
        Step::Finish => SubscriberEvent::Finished,
    }
}

fn first_of_provider() -> ProviderEvent {
    let counts = Counts { octets: Octets(7), ..Counts::default() };
    ProviderEvent::Opened {
        params: Arc::new(params()),
        key_index: 3,
        station: station(),
        height: 100,
        used: Usage { up: counts, down: Counts::default() },
    }
}

fn first_of_subscriber() -> SubscriberEvent {
    SubscriberEvent::Negotiated {
        params: Box::new(params()),
        key_index: 3,
        provider: public_key(PROVIDER).into(),
        url: "http://10.0.0.1:8434".into(),
        height: 100,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_folded_journal_of_a_provider_comes_to_the_same(
        steps in prop::collection::vec(step(), 1..40),
        pieces in prop::collection::vec(1usize..12, 0..8),
    ) {
        let events = journal::<ProviderChannel>(first_of_provider(), &steps, provider_event);
        let folded = folded(&events, &pieces);
        prop_assert_eq!(fold::<ProviderChannel>(&folded), fold::<ProviderChannel>(&events));
        let replayed = |events: &[ProviderEvent]| {
            let mut controller = Controller::new(params().network, Vec::new());
            for event in events {
                let channel = params().id();
                controller.replay(&Entry::Channel { channel, event: event.clone() }).unwrap();
            }
            let accounts: Vec<_> = controller.accounts().collect();
            (accounts, controller.next_key_index())
        };
        prop_assert_eq!(replayed(&folded), replayed(&events));
    }

    #[test]
    fn a_folded_journal_of_a_subscriber_comes_to_the_same(
        steps in prop::collection::vec(step(), 1..40),
        pieces in prop::collection::vec(1usize..12, 0..8),
    ) {
        let events = journal::<SubscriberChannel>(first_of_subscriber(), &steps, subscriber_event);
        let folded = folded(&events, &pieces);
        prop_assert_eq!(fold::<SubscriberChannel>(&folded), fold::<SubscriberChannel>(&events));
    }
}

#[test]
fn payments_that_follow_each_other_are_one_and_are_counted() {
    let events: Vec<_> =
        [ProviderEvent::Funded(funding())].into_iter().chain((1..=9).map(paid)).collect();
    let folded = folded(&events, &[3, 4, 3]);
    assert_eq!(folded.len(), 2);
    let channel = with(opened(), &folded);
    assert_eq!(channel.commitments(), 9);
    assert_eq!(channel, with(opened(), &events));
}

#[test]
fn what_stands_for_one_payment_is_written_as_before() {
    let written = serde_json::to_string(&paid(5)).unwrap();
    assert!(!written.contains("earlier"), "{written}");
    let mut two = paid(5);
    assert_eq!(two.absorb(paid(6)), None);
    let written = serde_json::to_value(&two).unwrap();
    assert_eq!(written["earlier"], 1);
    assert_eq!(serde_json::from_value::<ProviderEvent>(written).unwrap(), two);
    // Not one after the other: both stay.
    assert_eq!(two.absorb(paid(6)), Some(paid(6)));
}
