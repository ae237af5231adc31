//! The provider's rules, without a kernel or a chain.

use std::{sync::Arc, time::Duration};

use bitcoin::{Amount, Block, Transaction, WPubkeyHash, hashes::Hash, secp256k1::Keypair};

use super::*;
use crate::{
    account::AccountId,
    channel::{
        ChannelParams, ChannelStatus, Durable, FUNDING_WINDOW_BLOCKS, PROTOCOL_VERSION,
        PaymentError, VerifiedPayment, close_digest,
        testing::{self, PROVIDER, SUBSCRIBER, public_key, secp, secret_key, sign},
    },
    ledger::Counts,
    offer::tests::offer,
    units::Msat,
    wire::{ChannelReport, CloseRequest, OpenRequest, PaymentReply, PaymentRequest},
};

mod claim;
mod close;
mod crowd;
mod fleet;
mod funding;
mod payment;
mod stations;

const NOW: u64 = 15_000;

fn station(last: u8) -> Station {
    Station::new([2, 0, 0, 0, 0, last], 0).unwrap()
}

fn block(transactions: Vec<Transaction>, salt: u32) -> Arc<Block> {
    Arc::new(testing::block(transactions, salt))
}

/// A controller that forgets nothing: its entries are kept and can be replayed.
struct Provider {
    controller: Controller,
    journal: Vec<Entry<ProviderEvent>>,
}

impl Provider {
    fn new() -> Self {
        let mut provider =
            Self { controller: Controller::new(Network::Regtest, vec![]), journal: vec![] };
        let offer = offer();
        let keys = Keypair::from_secret_key(&secp(), &secret_key(7));
        let signature = secp().sign_schnorr_no_aux_rand(&offer.message(), &keys);
        provider.put(Input::Offer(SignedOffer { offer, signature }));
        provider.put(Input::Chain { synced: true });
        provider.mine(100, vec![]);
        provider
    }

    fn put(&mut self, input: Input) -> Vec<Action> {
        let mut out = Out::default();
        self.controller.handle(input, &mut out);
        self.journal.extend(out.entries().iter().cloned());
        if self.controller.book.scripts().len() < 100 {
            self.controller.book.check_waiting();
            self.controller.check_crowd();
        }
        out.release(&Durable::committed())
    }

    fn mine(&mut self, height: u32, transactions: Vec<Transaction>) -> Vec<Action> {
        let connected = Input::BlockConnected { height, block: block(transactions, height) };
        let mut actions = self.put(connected);
        actions.extend(self.put(Input::Fees(None)));
        actions
    }

    /// The provider as a restart makes it of its journal.
    fn replayed(&self) -> Controller {
        let mut again = Controller::new(Network::Regtest, vec![]);
        for entry in &self.journal {
            again.replay(entry).unwrap();
        }
        again.check_crowd();
        again
    }

    fn request(&self, key: u8) -> OpenRequest {
        OpenRequest {
            version: PROTOCOL_VERSION,
            offer: self.controller.offer().unwrap().offer.id(),
            subscriber: public_key(key),
            capacity: Amount::from_sat(100_000),
            expiry_height: 1_000,
            remainder_script: ScriptBuf::new_p2wpkh(&WPubkeyHash::hash(b"remainder")),
        }
    }

    fn open(&mut self, from: u8, open: OpenRequest, now: u64) -> Result<ChannelReport, Refusal> {
        let provider_key = public_key(PROVIDER);
        let request = RequestId(1);
        let station = station(from);
        let input = Input::Open { request, station, open, provider_key, now };
        match self.put(input).pop() {
            Some(Action::Reply(RequestId(1), Ok(Answer::Channel(report)))) => Ok(*report),
            Some(Action::Reply(_, Err(refusal))) => Err(refusal),
            other => panic!("no reply but {other:?}"),
        }
    }

    /// A channel that takes payments at height 102.
    fn opened(&mut self) -> ChannelReport {
        let report = self.open(1, self.request(SUBSCRIBER), NOW).unwrap();
        self.mine(101, vec![testing::funding_tx(&report.params, 1)]);
        self.mine(102, vec![]);
        report
    }

    fn pay(&mut self, channel: &ChannelReport, sum: u64) -> Vec<Action> {
        let signature = testing::pay(&channel.params, sum);
        let payment = PaymentRequest { paid: Amount::from_sat(sum), signature };
        let (request, channel) = (RequestId(2), channel.channel);
        self.put(Input::Pay { request, channel, payment, verified: None, station: None })
    }
}

#[test]
fn a_payment_is_stored_then_granted_then_answered() {
    let mut provider = Provider::new();
    let channel = provider.opened();
    let before = provider.journal.len();
    let actions = provider.pay(&channel, 3);
    assert_eq!(provider.journal.len(), before + 1);
    let [Action::Grant { station: to, limit, .. }, Action::Reply(_, Ok(Answer::Payment(reply)))] =
        actions.as_slice()
    else {
        panic!("{actions:?}");
    };
    assert_eq!((*to, *limit), (station(1), Octets(3 << 20)));
    assert_eq!(reply.paid, Amount::from_sat(3));
    assert_eq!(reply.account.credit_octets, Octets(3 << 20));
}

#[test]
fn a_repeated_payment_is_answered_and_stores_and_grants_nothing() {
    let mut provider = Provider::new();
    let channel = provider.opened();
    provider.pay(&channel, 3);
    let before = provider.journal.len();
    let actions = provider.pay(&channel, 3);
    assert!(matches!(actions.as_slice(), [Action::Reply(_, Ok(_))]), "{actions:?}");
    assert_eq!(provider.journal.len(), before);
}

#[test]
fn a_replayed_journal_gives_the_same_provider() {
    let mut provider = Provider::new();
    let channel = provider.opened();
    provider.pay(&channel, 3);
    let up = Counts { octets: Octets(9), ..Counts::default() };
    let usage = Usage { up, ..Usage::default() };
    provider.put(Input::Usage(vec![(station(1), usage)]));
    provider.put(Input::Checkpoint);
    let mut again = Controller::new(Network::Regtest, vec![]);
    for entry in &provider.journal {
        again.replay(entry).unwrap();
    }
    let reports = |controller: &Controller| controller.channels().collect::<Vec<_>>();
    assert_eq!(reports(&again), reports(&provider.controller));
    assert_eq!(again.next_key_index(), 1);
    assert!(again.book().tips().eq(provider.controller.book().tips()));
    let actions = again.resume().release(&Durable::committed());
    let [Action::Grant { limit, usage: from, .. }] = actions.as_slice() else {
        panic!("{actions:?}");
    };
    assert_eq!((*limit, *from), (Octets(3 << 20), usage));
    assert_eq!(again.account(station(1)), provider.controller.account(station(1)));
}

#[test]
fn an_opening_of_another_version_is_refused_with_both_versions() {
    let mut provider = Provider::new();
    let open = OpenRequest { version: 2, ..provider.request(SUBSCRIBER) };
    let refused = provider.open(1, open, NOW).map(|_| ());
    let versions = crate::channel::VersionError { theirs: 2, ours: PROTOCOL_VERSION };
    assert_eq!(refused, Err(Refusal::Version(versions)));
}

#[test]
fn the_offers_bounds_hold_on_both_sides() {
    let mut provider = Provider::new();
    let with = |change: fn(&mut OpenRequest)| {
        let mut provider = Provider::new();
        let mut request = provider.request(SUBSCRIBER);
        change(&mut request);
        provider.open(1, request, NOW).map(|_| ())
    };
    let capacity =
        Err(Refusal::Capacity { min: Amount::from_sat(10_000), max: Amount::from_sat(1_000_000) });
    let expiry = Err(Refusal::Expiry { min: 400, max: 2_100 });
    assert_eq!(with(|o| o.capacity = Amount::from_sat(10_000)), Ok(()));
    assert_eq!(with(|o| o.capacity = Amount::from_sat(9_999)), capacity);
    assert_eq!(with(|o| o.capacity = Amount::from_sat(1_000_000)), Ok(()));
    assert_eq!(with(|o| o.capacity = Amount::from_sat(1_000_001)), capacity);
    assert_eq!(with(|o| o.expiry_height = 400), Ok(()));
    assert_eq!(with(|o| o.expiry_height = 399), expiry);
    assert_eq!(with(|o| o.expiry_height = 2_100), Ok(()));
    assert_eq!(with(|o| o.expiry_height = 2_101), expiry);
    assert!(matches!(with(|o| o.remainder_script = ScriptBuf::new()), Err(Refusal::Params(_))));
    assert!(matches!(with(|o| o.subscriber = public_key(PROVIDER)), Err(Refusal::Params(_))));
    assert_eq!(with(|o| o.offer = OfferId::of_bytes(b"other")), Err(Refusal::UnknownOffer));
    let late = provider.request(SUBSCRIBER);
    assert_eq!(provider.open(1, late, 20_001).map(|_| ()), Err(Refusal::UnknownOffer));
}

#[test]
fn p16_without_a_chain_no_channel_is_opened_and_credit_is_honoured() {
    let mut provider = Provider::new();
    let channel = provider.opened();
    provider.put(Input::Chain { synced: false });
    let request = provider.request(5);
    assert_eq!(provider.open(1, request, NOW).map(|_| ()), Err(Refusal::ChainLost));
    assert_eq!(provider.pay(&channel, 3).len(), 2);
}

#[test]
fn a4_a_station_can_not_fill_the_disk_with_channels_it_never_funds() {
    let mut provider = Provider::new();
    for key in 0..4 {
        let request = provider.request(20 + key);
        provider.open(1, request, NOW).unwrap();
    }
    let request = provider.request(30);
    let refused = provider.open(1, request.clone(), NOW).map(|_| ());
    assert_eq!(refused, Err(Refusal::TooManyUnfunded));
    provider.open(2, request, NOW).unwrap();
    provider.mine(100 + FUNDING_WINDOW_BLOCKS, vec![]);
    let mut request = provider.request(31);
    request.expiry_height += 500;
    provider.open(1, request, NOW).unwrap();
}

#[test]
fn a4_channels_that_nothing_came_of_are_forgotten_and_others_are_not() {
    let mut provider = Provider::new();
    let paid = provider.opened();
    provider.pay(&paid, 3);
    let beside = provider.open(1, provider.request(20), NOW).unwrap();
    let stranger = provider.open(2, provider.request(21), NOW).unwrap();
    let all = |provider: &Controller| {
        let channels: Vec<_> = provider.book.iter().map(|(id, _)| *id).collect();
        let scripts = provider.book.scripts().len();
        let stations: Vec<_> = provider.accounts().map(|account| account.station).collect();
        (channels, scripts, provider.crowd.clone(), stations)
    };
    provider.mine(101 + FUNDING_WINDOW_BLOCKS, vec![]);
    let before = provider.controller.book.script_changes();
    assert_eq!(provider.controller.book.scripts().len(), 3);
    provider.mine(102 + FUNDING_WINDOW_BLOCKS, vec![]);
    let mut own = Crowd::default();
    own.opened(station(1));
    let left = (vec![paid.channel], 1, own, vec![station(1)]);
    assert_eq!(all(&provider.controller), left);
    assert_ne!(provider.controller.book.script_changes(), before);
    assert_eq!(provider.controller.account(station(1)).bought_octets, Octets(3 << 20));
    for id in [beside.channel, stranger.channel] {
        assert_eq!(provider.controller.channel(&id), Err(Refusal::UnknownChannel));
    }
    let again = provider.replayed();
    assert_eq!(all(&again), left);
    assert_eq!(again.next_key_index(), 3);
    // Who comes back begins anew.
    let open = OpenRequest { expiry_height: 1_200, ..provider.request(22) };
    let report = provider.open(2, open, NOW).unwrap();
    assert_eq!(provider.controller.account(station(2)).account, report.account);
}

#[test]
fn opening_the_same_channel_twice_is_refused() {
    let mut provider = Provider::new();
    let first = provider.open(1, provider.request(SUBSCRIBER), NOW).unwrap();
    let again = provider.open(1, provider.request(SUBSCRIBER), NOW).map(|_| ());
    assert_eq!(again, Err(Refusal::Exists(first.channel)));
}

#[test]
fn p10_a_reorganisation_freezes_the_channel_until_it_is_mined_again() {
    let mut provider = Provider::new();
    let channel = provider.opened();
    provider.pay(&channel, 3);
    provider.put(Input::BlockDisconnected { height: 102 });
    provider.put(Input::BlockDisconnected { height: 101 });
    let actions = provider.pay(&channel, 4);
    let [Action::Reply(_, Err(Refusal::Payment { error, best }))] = actions.as_slice() else {
        panic!("{actions:?}");
    };
    assert_eq!((*error, *best), (PaymentError::Unfunded, Amount::from_sat(3)));
    provider.mine(101, vec![]);
    provider.mine(102, vec![testing::funding_tx(&channel.params, 1)]);
    provider.mine(103, vec![]);
    assert_eq!(provider.pay(&channel, 4).len(), 2);
}

#[test]
fn a_close_asks_for_the_claim_at_once() {
    let mut provider = Provider::new();
    let channel = provider.opened();
    provider.pay(&channel, 5_000);
    let close = CloseRequest {
        signature: sign(SUBSCRIBER, close_digest(&channel.channel)),
        proposal: None,
    };
    let request = RequestId(3);
    let actions = provider.put(Input::Close {
        request,
        channel: channel.channel,
        close,
        own: CloseOwn::default(),
    });
    let [Action::Reply(_, Ok(_)), Action::Claim(planned)] = actions.as_slice() else {
        panic!("{actions:?}");
    };
    assert_eq!(planned.paid(), Amount::from_sat(5_000));
}

#[test]
fn a_station_pays_through_two_channels_and_has_the_sum() {
    let mut provider = Provider::new();
    let first = provider.opened();
    provider.pay(&first, 3);
    let request = provider.request(5);
    let second = provider.open(1, request, NOW).unwrap();
    let funding = testing::funding_tx(&second.params, 5);
    let outpoint = bitcoin::OutPoint::new(funding.compute_txid(), 1);
    provider.mine(103, vec![funding]);
    provider.mine(104, vec![]);
    let paid = Amount::from_sat(2);
    let message = crate::channel::payment_sighash(&second.params, outpoint, paid).unwrap();
    let payment = PaymentRequest { paid, signature: sign(5, message) };
    let (request, channel) = (RequestId(4), second.channel);
    provider.put(Input::Pay { request, channel, payment, verified: None, station: None });
    assert_eq!(provider.controller.account(station(1)).bought_octets, Octets(5 << 20));
    let schedule = &first.params.schedule;
    assert_eq!(schedule.octets_for(Msat(5_000)), Some(Octets(5 << 20)));
}

#[test]
fn a_failed_grant_is_tried_again_at_the_next_checkpoint() {
    let mut provider = Provider::new();
    let channel = provider.opened();
    provider.pay(&channel, 3);
    provider.put(Input::GrantFailed(station(1)));
    let actions = provider.put(Input::Checkpoint);
    assert!(matches!(actions.as_slice(), [Action::Grant { .. }]), "{actions:?}");
    assert!(provider.put(Input::Checkpoint).is_empty());
}

#[test]
fn only_the_exact_capacity_funds_a_channel() {
    let mut provider = Provider::new();
    let report = provider.open(1, provider.request(SUBSCRIBER), NOW).unwrap();
    let mut short = testing::funding_tx(&report.params, 1);
    short.output[1].value -= Amount::ONE_SAT;
    provider.mine(101, vec![short]);
    let status = provider.controller.channel(&report.channel).unwrap().status;
    assert_eq!(status, ChannelStatus::Unfunded);
}

#[test]
fn p12_a_clock_that_is_off_by_a_day_moves_no_deadline() {
    const DAY: u64 = 86_400;
    let mut provider = Provider::new();
    let channel = provider.opened();
    let margin = channel.params.expiry_height - crate::channel::CLAIM_MARGIN_BLOCKS;
    // Block times, too, say what they like: only heights count.
    let mut block = |height: u32, time: u64| {
        let mut block = (*block(vec![], height)).clone();
        block.header.time = u32::try_from(time).unwrap();
        provider.put(Input::BlockConnected { height, block: Arc::new(block) });
    };
    for height in 103..margin {
        block(height, if height % 2 == 0 { NOW + DAY } else { NOW.saturating_sub(DAY) });
    }
    assert_eq!(provider.pay(&channel, 3).len(), 2);
    let late = provider.open(2, provider.request(9), NOW + DAY).map(|_| ());
    assert_eq!(late, Err(Refusal::UnknownOffer), "the offer's end is the clock's to judge");
    provider.mine(margin, vec![]);
    let actions = provider.pay(&channel, 4);
    let [Action::Reply(_, Err(Refusal::Payment { error, .. }))] = actions.as_slice() else {
        panic!("{actions:?}");
    };
    assert_eq!(*error, PaymentError::Closed);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(24))]

    /// P6: payments shuffled and repeated, and restarts between them: the best one counts, once.
    #[test]
    fn p6_shuffled_and_repeated_payments_grant_the_best_once(
        sums in proptest::collection::vec((1u64..60, proptest::bool::ANY), 1..16),
    ) {
        let mut provider = Provider::new();
        let channel = provider.opened();
        let mut best = 0;
        for (sum, restart) in sums {
            if restart {
                let mut again = Controller::new(Network::Regtest, vec![]);
                for entry in &provider.journal {
                    again.replay(entry).unwrap();
                }
                provider.controller = again;
            }
            let before = provider.journal.len();
            let actions = provider.pay(&channel, sum);
            let stored = provider.journal.len() - before;
            proptest::prop_assert_eq!(stored, usize::from(sum > best), "{:?}", actions);
            best = best.max(sum);
            let limits = actions.iter().filter_map(|action| match action {
                Action::Grant { limit, .. } => Some(*limit),
                _ => None,
            });
            for limit in limits {
                proptest::prop_assert!(limit <= Octets(best << 20));
            }
            let account = provider.controller.account(station(1));
            proptest::prop_assert_eq!(account.bought_octets, Octets(best << 20));
        }
    }
}
