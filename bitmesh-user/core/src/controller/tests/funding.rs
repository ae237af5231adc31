//! Fundings that are presented, and credit before a block holds them.

use bitcoin::OutPoint;

use super::*;
use crate::channel::{FUNDINGS_OFFERED_MAX, FundingError, payment_sighash};

const CREDIT: u64 = 20;

impl Provider {
    /// A provider that gives [`CREDIT`] satoshi of credit before confirmation.
    fn generous() -> Self {
        let mut provider = Self::new();
        let mut offer = offer();
        offer.issued_at += 1;
        offer.terms.unconfirmed_max = Amount::from_sat(CREDIT);
        let keys = Keypair::from_secret_key(&secp(), &secret_key(7));
        let signature = secp().sign_schnorr_no_aux_rand(&offer.message(), &keys);
        provider.put(Input::Offer(SignedOffer { offer, signature }));
        provider
    }

    fn present(
        &mut self,
        channel: &ChannelReport,
        tx: &Transaction,
        taken: Taken,
    ) -> Result<ChannelReport, Refusal> {
        let (request, channel, tx) = (RequestId(8), channel.channel, tx.clone());
        let mut actions = self.put(Input::Fund { request, channel, tx });
        if let Some(Action::Present { request, channel, tx }) =
            actions.pop_if(|action| matches!(action, Action::Present { .. }))
        {
            actions = self.put(Input::Presented { request, channel, tx, taken });
        }
        match actions.pop() {
            Some(Action::Reply(RequestId(8), Ok(Answer::Channel(report)))) => Ok(*report),
            Some(Action::Reply(_, Err(refusal))) => Err(refusal),
            other => panic!("no reply but {other:?}"),
        }
    }

    /// A channel of a subscriber with this key whose funding, unique by `salt`, is in the mempool.
    fn offered(&mut self, key: u8) -> (ChannelReport, Transaction) {
        let report = self.open(key, self.request(key), NOW).unwrap();
        let tx = testing::funding_tx(&report.params, key);
        let report = self.present(&report, &tx, Taken::Yes).unwrap();
        (report, tx)
    }

    fn pay_on(
        &mut self,
        channel: &ChannelReport,
        key: u8,
        funding: &Transaction,
        sum: u64,
    ) -> Result<PaymentReply, Refusal> {
        let paid = Amount::from_sat(sum);
        let outpoint = OutPoint::new(funding.compute_txid(), 1);
        let message = payment_sighash(&channel.params, outpoint, paid).unwrap();
        let payment = PaymentRequest { paid, signature: sign(key, message) };
        let (request, channel) = (RequestId(9), channel.channel);
        match self
            .put(Input::Pay { request, channel, payment, verified: None, station: None })
            .pop()
        {
            Some(Action::Reply(RequestId(9), Ok(Answer::Payment(reply)))) => Ok(*reply),
            Some(Action::Reply(_, Err(refusal))) => Err(refusal),
            other => panic!("no reply but {other:?}"),
        }
    }

    /// The network takes a channel's funding no more.
    fn gone(&self, channel: &ChannelReport, funding: &Transaction) -> Input {
        let (_, tip) = self.controller.book().tips().last().unwrap();
        Input::OfferedGone { channel: channel.channel, txid: funding.compute_txid(), tip }
    }

    /// The channel as it is told now.
    fn now(&self, channel: &ChannelReport) -> ChannelReport {
        self.controller.channel(&channel.channel).unwrap()
    }
}

fn error(refused: Result<PaymentReply, Refusal>) -> PaymentError {
    match refused {
        Err(Refusal::Payment { error, .. }) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_funding_is_handed_on_and_counts_once_the_network_took_it() {
    let mut provider = Provider::generous();
    let channel = provider.open(1, provider.request(SUBSCRIBER), NOW).unwrap();
    let tx = testing::funding_tx(&channel.params, 1);
    let refused = provider.present(&channel, &tx, Taken::No("min relay fee not met".into()));
    assert!(matches!(refused, Err(Refusal::Funding(FundingError::Refused(_)))), "{refused:?}");
    assert_eq!(provider.present(&channel, &tx, Taken::Unknown), Err(Refusal::ChainLost));
    assert_eq!(error(provider.pay_on(&channel, SUBSCRIBER, &tx, 1)), PaymentError::Unfunded);
    let before = provider.journal.len();
    let report = provider.present(&channel, &tx, Taken::Yes).unwrap();
    assert_eq!(report.offered, Some(OutPoint::new(tx.compute_txid(), 1)));
    assert_eq!(
        (report.payable, report.status),
        (Amount::from_sat(CREDIT), ChannelStatus::Unfunded)
    );
    assert_eq!(provider.journal.len(), before + 1);
    // Again, it is answered and nothing more.
    provider.present(&channel, &tx, Taken::No("never asked".into())).unwrap();
    assert_eq!(provider.journal.len(), before + 1);
    let mut short = tx;
    short.output[1].value -= Amount::ONE_SAT;
    let refused = provider.present(&channel, &short, Taken::Yes);
    assert_eq!(refused, Err(Refusal::Funding(FundingError::Other)));
}

#[test]
fn without_credit_before_confirmation_a_funding_is_handed_on_all_the_same() {
    let mut provider = Provider::new();
    let (channel, tx) = provider.offered(SUBSCRIBER);
    assert_eq!(channel.payable, Amount::ZERO);
    assert_eq!(error(provider.pay_on(&channel, SUBSCRIBER, &tx, 1)), PaymentError::Unfunded);
    // It goes to the network again with each block until one holds it.
    let actions = provider.mine(101, vec![]);
    assert!(matches!(actions.as_slice(), [Action::CheckOffered(all)] if all.len() == 1));
    provider.mine(102, vec![tx.clone()]);
    let unconfirmed = PaymentError::Unconfirmed { have: 1, need: 2 };
    assert_eq!(error(provider.pay_on(&channel, SUBSCRIBER, &tx, 1)), unconfirmed);
    assert!(provider.mine(103, vec![]).is_empty());
    provider.pay_on(&channel, SUBSCRIBER, &tx, 1).unwrap();
}

#[test]
fn p9_credit_before_confirmation_is_bounded_and_taken_back_when_the_funding_is_spent_elsewhere() {
    let mut provider = Provider::generous();
    let (channel, tx) = provider.offered(SUBSCRIBER);
    let reply = provider.pay_on(&channel, SUBSCRIBER, &tx, CREDIT).unwrap();
    assert_eq!(reply.account.credit_octets, Octets(CREDIT << 20));
    let early = PaymentError::TooEarly { payable: Amount::from_sat(CREDIT) };
    assert_eq!(error(provider.pay_on(&channel, SUBSCRIBER, &tx, CREDIT + 1)), early);

    let other = bitcoin::Txid::all_zeros();
    let gone = provider.gone(&channel, &tx);
    let Input::OfferedGone { channel: id, txid, tip } = gone.clone() else { panic!() };
    let nothing = provider.put(Input::OfferedGone { channel: id, txid: other, tip });
    assert!(nothing.is_empty(), "{nothing:?}");
    // A block that was not followed yet may hold it.
    let tip = block(vec![tx.clone()], 101).block_hash();
    let nothing = provider.put(Input::OfferedGone { channel: id, txid, tip });
    assert!(nothing.is_empty(), "{nothing:?}");
    let actions = provider.put(gone.clone());
    let [Action::Reclaim { station: from, limit }] = actions.as_slice() else {
        panic!("{actions:?}");
    };
    assert_eq!((*from, *limit), (station(SUBSCRIBER), Octets(0)));
    let after = provider.now(&channel);
    assert_eq!((after.paid, after.payable, after.offered), (Amount::ZERO, Amount::ZERO, None));
    assert_eq!(error(provider.pay_on(&channel, SUBSCRIBER, &tx, 5)), PaymentError::Unfunded);
    assert!(provider.put(gone).is_empty(), "it is taken back once");
    let reports = |controller: &Controller| controller.channels().collect::<Vec<_>>();
    assert_eq!(reports(&provider.replayed()), reports(&provider.controller));

    // The mempool was wrong: a block has it. What was paid counts again, without a new signature.
    provider.mine(101, vec![tx.clone()]);
    assert_eq!(provider.now(&channel).paid, Amount::from_sat(CREDIT));
    provider.mine(102, vec![]);
    provider.pay_on(&channel, SUBSCRIBER, &tx, CREDIT + 1).unwrap();
    assert_eq!(reports(&provider.replayed()), reports(&provider.controller));
}

#[test]
fn p1_p9_what_was_paid_on_a_funding_counts_no_more_when_another_is_in_a_block() {
    let mut provider = Provider::generous();
    let (channel, tx) = provider.offered(SUBSCRIBER);
    provider.pay_on(&channel, SUBSCRIBER, &tx, 10).unwrap();
    let other = testing::funding_tx(&channel.params, 99);
    let actions = provider.mine(101, vec![other.clone()]);
    assert!(
        matches!(actions.as_slice(), [Action::Reclaim { limit: Octets(0), .. }]),
        "{actions:?}"
    );
    let report = provider.now(&channel);
    assert_eq!((report.paid, report.offered), (Amount::ZERO, None));
    provider.mine(102, vec![]);
    assert_eq!(error(provider.pay_on(&channel, SUBSCRIBER, &tx, 11)), PaymentError::Signature);
    provider.pay_on(&channel, SUBSCRIBER, &other, 11).unwrap();
}

#[test]
fn p9_p13_a_restart_takes_back_what_was_granted_on_a_funding_that_counts_no_more() {
    let mut provider = Provider::generous();
    let (channel, tx) = provider.offered(SUBSCRIBER);
    provider.pay_on(&channel, SUBSCRIBER, &tx, 10).unwrap();
    provider.mine(101, vec![testing::funding_tx(&channel.params, 99)]);
    // It crashed before the limit was lowered.
    let mut again = provider.replayed();
    let kernel = (station(SUBSCRIBER), Octets(10 << 20), Usage::default());
    again.adopt(&[kernel]).unwrap();
    let actions = again.resume().release(&Durable::committed());
    assert!(
        actions.iter().any(|it| matches!(it, Action::Reclaim { limit: Octets(0), .. })),
        "{actions:?}"
    );
    let more = (station(SUBSCRIBER), Octets((10 << 20) + 1), Usage::default());
    assert!(provider.replayed().adopt(&[more]).is_err());
}

#[test]
fn after_a_restart_only_what_is_at_risk_is_counted_as_such() {
    let mut provider = Provider::generous();
    let (sure, tx) = provider.offered(SUBSCRIBER);
    provider.mine(101, vec![tx.clone()]);
    provider.mine(102, vec![]);
    provider.pay_on(&sure, SUBSCRIBER, &tx, 10).unwrap();
    let (risky, tx) = provider.offered(3);
    provider.pay_on(&risky, 3, &tx, 10).unwrap();
    // As it is read from the disk: channels first, then blocks.
    let mut again = Controller::new(Network::Regtest, vec![]);
    let (blocks, channels): (Vec<_>, Vec<_>) =
        provider.journal.iter().partition(|entry| matches!(entry, Entry::Block { .. }));
    for entry in channels.into_iter().chain(blocks) {
        again.replay(entry).unwrap();
    }
    assert_eq!(again.unsure.len(), 2);
    let _ = again.resume().release(&Durable::committed());
    assert_eq!(again.unsure.into_iter().collect::<Vec<_>>(), [risky.channel]);
}

#[test]
fn a_funding_that_replaces_another_takes_its_place_and_either_may_confirm() {
    let mut provider = Provider::generous();
    let (channel, first) = provider.offered(SUBSCRIBER);
    provider.pay_on(&channel, SUBSCRIBER, &first, 10).unwrap();
    let second = testing::funding_tx(&channel.params, 98);
    provider.present(&channel, &second, Taken::Yes).unwrap();
    assert_eq!(provider.now(&channel).paid, Amount::ZERO);
    provider.pay_on(&channel, SUBSCRIBER, &second, 12).unwrap();
    // The first is mined after all: its commitment was kept.
    provider.mine(101, vec![first]);
    assert_eq!(provider.now(&channel).paid, Amount::from_sat(10));
    for salt in 0..FUNDINGS_OFFERED_MAX {
        let salt = 100 + u8::try_from(salt).unwrap();
        let late = testing::funding_tx(&channel.params, salt);
        let refused = provider.present(&channel, &late, Taken::Yes);
        assert_eq!(refused, Err(Refusal::Funding(FundingError::Closed)));
    }
}

#[test]
fn fundings_of_one_channel_are_counted() {
    let mut provider = Provider::generous();
    let channel = provider.open(1, provider.request(SUBSCRIBER), NOW).unwrap();
    for salt in 0..FUNDINGS_OFFERED_MAX {
        let tx = testing::funding_tx(&channel.params, 100 + u8::try_from(salt).unwrap());
        provider.present(&channel, &tx, Taken::Yes).unwrap();
    }
    let tx = testing::funding_tx(&channel.params, 99);
    let refused = provider.present(&channel, &tx, Taken::Yes);
    assert_eq!(refused, Err(Refusal::Funding(FundingError::TooMany)));
}

#[test]
fn fundings_that_the_network_refuses_are_counted_until_the_next_block() {
    let mut provider = Provider::generous();
    let channel = provider.open(1, provider.request(SUBSCRIBER), NOW).unwrap();
    let tx = testing::funding_tx(&channel.params, 1);
    for _ in 0..2 * FUNDINGS_REFUSED_MAX {
        // What the chain source can't tell is nobody's fault.
        assert_eq!(provider.present(&channel, &tx, Taken::Unknown), Err(Refusal::ChainLost));
    }
    for _ in 0..FUNDINGS_REFUSED_MAX {
        let refused = provider.present(&channel, &tx, Taken::No("mempool full".into()));
        assert!(matches!(refused, Err(Refusal::Funding(FundingError::Refused(_)))), "{refused:?}");
    }
    let refused = provider.present(&channel, &tx, Taken::Yes);
    assert_eq!(refused, Err(Refusal::Funding(FundingError::TooMany)));
    provider.mine(101, vec![]);
    provider.present(&channel, &tx, Taken::Yes).unwrap();
}

#[test]
fn fundings_go_to_the_network_one_by_one_for_a_channel_and_so_many_for_all() {
    let mut provider = Provider::generous();
    let waits = |actions: Vec<Action>| {
        let error = Err(Refusal::Funding(FundingError::Waiting));
        matches!(actions.as_slice(), [Action::Reply(_, answer)] if *answer == error)
    };
    let mut on_their_way = Vec::new();
    for key in 10..=10 + u8::try_from(PRESENTED_AT_ONCE_MAX).unwrap() {
        let report = provider.open(key, provider.request(key), NOW).unwrap();
        let tx = testing::funding_tx(&report.params, key);
        on_their_way.push(Input::Fund { request: RequestId(8), channel: report.channel, tx });
    }
    let late = on_their_way.pop().unwrap();
    let mut presented = Vec::new();
    for fund in &on_their_way {
        presented.extend(provider.put(fund.clone()));
        assert!(waits(provider.put(fund.clone())));
    }
    assert_eq!(presented.len(), PRESENTED_AT_ONCE_MAX);
    assert!(waits(provider.put(late.clone())));
    let Some(Action::Present { request, channel, tx }) = presented.pop() else { panic!() };
    provider.put(Input::Presented { request, channel, tx, taken: Taken::Yes });
    assert!(matches!(provider.put(late).as_slice(), [Action::Present { .. }]));
}

#[test]
fn p9_all_channels_together_have_so_much_credit_before_confirmation_even_after_it_was_lost() {
    let mut provider = Provider::generous();
    let full = u8::try_from(UNCONFIRMED_CHANNELS_MAX).unwrap();
    let mut channels: Vec<_> = (10..10 + full).map(|key| (key, provider.offered(key))).collect();
    for (key, (channel, tx)) in &channels {
        provider.pay_on(channel, *key, tx, CREDIT).unwrap();
    }
    let (late, tx) = provider.offered(100);
    let refused = error(provider.pay_on(&late, 100, &tx, 1));
    assert_eq!(refused, PaymentError::TooMuchUnconfirmed);
    // Fraud frees nothing.
    let (_, (cheat, spent)) = channels.pop().unwrap();
    let gone = provider.gone(&cheat, &spent);
    provider.put(gone);
    assert_eq!(error(provider.pay_on(&late, 100, &tx, 1)), PaymentError::TooMuchUnconfirmed);
    // A confirmation does.
    let (_, (_, confirmed)) = channels.pop().unwrap();
    provider.mine(101, vec![confirmed]);
    assert_eq!(error(provider.pay_on(&late, 100, &tx, 1)), PaymentError::TooMuchUnconfirmed);
    provider.mine(102, vec![]);
    provider.pay_on(&late, 100, &tx, CREDIT).unwrap();
    let (later, tx) = provider.offered(101);
    assert_eq!(error(provider.pay_on(&later, 101, &tx, 1)), PaymentError::TooMuchUnconfirmed);
    // Closing frees nothing.
    let close = |key, channel: &ChannelReport| CloseRequest {
        signature: sign(key, close_digest(&channel.channel)),
        proposal: None,
    };
    for (key, (channel, _)) in &channels {
        let (channel, close) = (channel.channel, close(*key, channel));
        let own = CloseOwn::default();
        provider.put(Input::Close { request: RequestId(7), channel, close, own });
    }
    assert_eq!(error(provider.pay_on(&later, 101, &tx, 1)), PaymentError::TooMuchUnconfirmed);
    // Time frees what was lost, and not what may still be.
    provider.mine(100 + FUNDING_WINDOW_BLOCKS, vec![]);
    provider.pay_on(&later, 101, &tx, CREDIT).unwrap();
    let (latest, tx) = provider.offered(102);
    assert_eq!(error(provider.pay_on(&latest, 102, &tx, 1)), PaymentError::TooMuchUnconfirmed);
    for (_, (channel, tx)) in channels {
        let gone = provider.gone(&channel, &tx);
        provider.put(gone);
    }
    provider.pay_on(&latest, 102, &tx, 1).unwrap();
}

#[test]
fn p10_after_a_reorganisation_the_credit_stands_until_the_funding_is_spent_elsewhere() {
    let mut provider = Provider::generous();
    let (channel, tx) = provider.offered(SUBSCRIBER);
    provider.mine(101, vec![tx.clone()]);
    provider.mine(102, vec![]);
    provider.pay_on(&channel, SUBSCRIBER, &tx, 500).unwrap();
    provider.put(Input::BlockDisconnected { height: 102 });
    provider.put(Input::BlockDisconnected { height: 101 });
    let early = PaymentError::TooEarly { payable: Amount::from_sat(CREDIT) };
    assert_eq!(error(provider.pay_on(&channel, SUBSCRIBER, &tx, 501)), early);
    assert_eq!(provider.now(&channel).paid, Amount::from_sat(500));
    let actions = provider.mine(101, vec![]);
    assert!(matches!(actions.as_slice(), [Action::CheckOffered(_)]), "{actions:?}");
    let gone = provider.gone(&channel, &tx);
    let actions = provider.put(gone);
    assert!(matches!(actions.as_slice(), [Action::Reclaim { .. }]), "{actions:?}");
}
