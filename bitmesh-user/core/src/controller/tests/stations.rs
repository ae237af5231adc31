//! Accounts of several stations.

use super::*;
use crate::{
    channel::{BINDINGS_PER_CHANNEL_MAX, Binding, BindingError, STATIONS_PER_ACCOUNT_MAX},
    wire::{AccountReport, StationsRequest},
};

const MIB: u64 = 1 << 20;

fn down(octets: u64) -> Usage {
    let down = Counts { octets: Octets(octets), ..Counts::default() };
    Usage { down, ..Usage::default() }
}

fn binding(nonce: u16) -> Binding {
    let [high, low] = nonce.to_be_bytes();
    let nonce = [0, 0, 0, 0, 0, 0, high, low].into();
    Binding { station: None, remove: false, nonce, expires_at: None }
}

fn named(to: u8, nonce: u16) -> Binding {
    Binding { station: Some(station(to)), ..binding(nonce) }
}

impl Provider {
    /// What the API does, with a kernel that has used what `kernel` says.
    fn change(
        &mut self,
        channel: &ChannelReport,
        key: u8,
        peer: u8,
        binding: Binding,
        kernel: &[(Station, Usage)],
    ) -> (Vec<Action>, Result<AccountReport, Refusal>) {
        let signature = sign(key, binding.digest(&channel.channel));
        let (request, peer, channel) = (RequestId(9), station(peer), channel.channel);
        let change = StationsRequest { binding, signature };
        let ask = StationsAsk { request, peer, channel, change, now: NOW };
        let mut todo = self.put(Input::Stations(ask));
        let mut done = vec![];
        let mut answer = None;
        while !todo.is_empty() {
            let mut stations = vec![];
            for action in std::mem::take(&mut todo) {
                match &action {
                    Action::Reclaim { station, .. } => stations.push(*station),
                    Action::Reply(RequestId(9), Ok(Answer::Account(report))) => {
                        answer = Some(Ok((**report).clone()));
                    }
                    Action::Reply(RequestId(9), Err(refusal)) => {
                        answer = Some(Err(refusal.clone()));
                    }
                    _ => {}
                }
                done.push(action);
            }
            if !stations.is_empty() {
                todo = self.put(Input::Reclaimed { stations, readings: kernel.to_vec() });
            }
        }
        (done, answer.expect("every request is answered"))
    }

    fn bind(&mut self, channel: &ChannelReport, to: u8) -> Result<AccountReport, Refusal> {
        self.change(channel, SUBSCRIBER, to, named(to, to.into()), &[]).1
    }
}

fn refused(error: BindingError) -> Result<AccountReport, Refusal> {
    Err(Refusal::Stations(error))
}

#[test]
fn two_stations_share_one_credit_and_a_replay_knows_it() {
    let mut provider = Provider::new();
    let channel = provider.opened();
    provider.pay(&channel, 8);
    let report = provider.bind(&channel, 2).unwrap();
    assert_eq!((report.bought_octets, report.credit_octets), (Octets(8 * MIB), Octets(8 * MIB)));
    assert!(report.bound && report.stations == 2, "{report:?}");
    assert!(provider.controller.account(station(2)).lease_octets > Octets(0));
    provider.put(Input::Usage(vec![(station(1), down(MIB)), (station(2), down(2 * MIB))]));
    let one = provider.controller.account(station(1));
    assert_eq!(one.credit_octets, Octets(5 * MIB));
    assert_eq!((one.usage.billed(), one.others_octets), (Octets(MIB), Octets(2 * MIB)));
    provider.put(Input::Checkpoint);
    let again = provider.replayed();
    let facts = |controller: &Controller| -> Vec<_> {
        let of = |r: AccountReport| (r.station, r.account, r.bound, r.credit_octets, r.usage);
        controller.accounts().map(of).collect()
    };
    assert_eq!(facts(&again), facts(&provider.controller));
}

#[test]
fn d2_a_new_mac_gets_the_credit_that_the_old_one_left_and_not_what_it_used() {
    let mut provider = Provider::new();
    let channel = provider.opened();
    provider.pay(&channel, 8);
    provider.put(Input::Usage(vec![(station(1), down(3 * MIB))]));
    let kernel = [(station(1), down(3 * MIB))];
    provider.change(&channel, SUBSCRIBER, 2, named(2, 1), &kernel).1.unwrap();
    let remove = Binding { remove: true, ..named(1, 2) };
    provider.change(&channel, SUBSCRIBER, 2, remove, &kernel).1.unwrap();
    let new = provider.controller.account(station(2));
    assert_eq!((new.credit_octets, new.lease_octets), (Octets(5 * MIB), Octets(5 * MIB)));
    let old = provider.controller.account(station(1));
    assert!(!old.bound && old.lease_octets == Octets(0), "{old:?}");
}

#[test]
fn a_station_moves_to_another_account_with_what_it_used_left_behind() {
    let mut provider = Provider::new();
    let first = provider.opened();
    provider.pay(&first, 8);
    let mut open = provider.request(7);
    open.expiry_height += 1;
    let second = provider.open(2, open, NOW).unwrap();
    provider.mine(103, vec![testing::funding_tx(&second.params, 9)]);
    let funding = provider.controller.channel(&second.channel).unwrap().funding.unwrap();
    provider.mine(104, vec![]);
    let paid = Amount::from_sat(4);
    let message = crate::channel::payment_sighash(&second.params, funding, paid).unwrap();
    let payment = PaymentRequest { paid, signature: sign(7, message) };
    let (request, channel) = (RequestId(4), second.channel);
    provider.put(Input::Pay { request, channel, payment, verified: None, station: None });
    provider.put(Input::Usage(vec![(station(2), down(MIB))]));
    // The kernel is a frame ahead of the last reading.
    let kernel = [(station(2), down(MIB + 1_500))];
    let (actions, moved) = provider.change(&first, SUBSCRIBER, 2, named(2, 1), &kernel);
    assert!(matches!(actions[0], Action::Reclaim { limit: Octets(MIB), .. }), "{actions:?}");
    let moved = moved.unwrap();
    assert_eq!(moved.account, provider.controller.account(station(1)).account);
    assert_eq!((moved.usage, moved.credit_octets), (Usage::default(), Octets(8 * MIB)));
    // The old account keeps its credit, less every octet that was used of it.
    let back = provider.change(&second, 7, 2, named(2, 1), &kernel).1.unwrap();
    assert_eq!(back.credit_octets, Octets(3 * MIB - 1_500));
    assert_eq!(back.others_octets, Octets(MIB + 1_500));
    assert_eq!(provider.replayed().account(station(2)).credit_octets, back.credit_octets);
}

#[test]
fn only_the_channels_key_binds_and_only_the_station_itself() {
    let mut provider = Provider::new();
    let channel = provider.opened();
    let before = provider.journal.len();
    let mut put = |key, peer, binding| provider.change(&channel, key, peer, binding, &[]).1;
    assert_eq!(put(PROVIDER, 2, named(2, 1)), refused(BindingError::Signature));
    let (wanted, asking) = (station(2), station(3));
    let other = BindingError::OtherStation { wanted, asking };
    assert_eq!(put(SUBSCRIBER, 3, named(2, 1)), refused(other));
    let remove = Binding { remove: true, ..named(2, 1) };
    assert_eq!(put(SUBSCRIBER, 2, remove), refused(BindingError::NotBound));
    let late = Binding { expires_at: Some(NOW - 1), ..binding(1) };
    assert_eq!(put(SUBSCRIBER, 2, late), refused(BindingError::Expired));
    assert_eq!(provider.journal.len(), before);
    let just = Binding { expires_at: Some(NOW), ..binding(1) };
    provider.change(&channel, SUBSCRIBER, 2, just, &[]).1.unwrap();
}

#[test]
fn what_was_signed_is_taken_once() {
    let mut provider = Provider::new();
    let channel = provider.opened();
    let mut put = |peer, binding| provider.change(&channel, SUBSCRIBER, peer, binding, &[]).1;
    put(2, binding(1)).unwrap();
    assert_eq!(put(3, binding(1)), refused(BindingError::Used));
    put(2, Binding { remove: true, ..named(2, 2) }).unwrap();
    assert_eq!(put(2, binding(1)), refused(BindingError::Used));
    put(2, named(2, 3)).unwrap();
}

#[test]
fn before_it_is_funded_a_channel_binds_nothing() {
    let mut provider = Provider::new();
    let channel = provider.open(1, provider.request(SUBSCRIBER), NOW).unwrap();
    assert_eq!(provider.bind(&channel, 2), refused(BindingError::Unfunded));
}

#[test]
fn an_account_has_a_bounded_number_of_stations_and_of_changes() {
    let mut provider = Provider::new();
    let channel = provider.opened();
    let most = u8::try_from(STATIONS_PER_ACCOUNT_MAX).unwrap();
    for n in 2..=most {
        provider.bind(&channel, n).unwrap();
    }
    assert_eq!(provider.bind(&channel, most + 1), refused(BindingError::TooManyStations));
    provider.bind(&channel, most).unwrap_err();
    let mut nonce = 1_000;
    let mut changes = u16::from(most) - 1;
    while usize::from(changes) < BINDINGS_PER_CHANNEL_MAX {
        let remove = Binding { remove: changes % 2 == u16::from(most - 1) % 2, ..named(2, nonce) };
        provider.change(&channel, SUBSCRIBER, 2, remove, &[]).1.unwrap();
        (nonce, changes) = (nonce + 1, changes + 1);
    }
    let refused_at_last = provider.change(&channel, SUBSCRIBER, 2, named(2, nonce), &[]).1;
    assert_eq!(refused_at_last, refused(BindingError::TooManyChanges));
}

#[test]
fn channels_that_a_bound_station_opens_are_the_accounts() {
    let mut provider = Provider::new();
    let channel = provider.opened();
    provider.bind(&channel, 2).unwrap();
    let open = provider.request(7);
    let second = provider.open(2, open, NOW).unwrap();
    assert_eq!(second.account, channel.account);
    assert!(second.account.is_some());
}

#[test]
fn credit_of_a_closed_channel_can_still_be_bound() {
    let mut provider = Provider::new();
    let channel = provider.opened();
    provider.pay(&channel, 8);
    let mut tx = testing::funding_tx(&channel.params, 8);
    tx.input[0].previous_output = testing::outpoint(&channel.params);
    provider.mine(103, vec![tx]);
    for height in 104..=108 {
        provider.mine(height, vec![]);
    }
    let status = provider.controller.channel(&channel.channel).unwrap().status;
    assert!(matches!(status, ChannelStatus::Closed { .. }), "{status:?}");
    assert_eq!(provider.bind(&channel, 2).unwrap().credit_octets, Octets(8 * MIB));
    provider.replayed();
}

#[test]
fn limits_that_a_kernel_kept_are_taken_over_and_more_than_was_bought_is_not() {
    let mut provider = Provider::new();
    let channel = provider.opened();
    provider.pay(&channel, 8);
    provider.bind(&channel, 2).unwrap();
    let kernel = |two: u64| {
        vec![(station(1), Octets(5 * MIB), down(MIB)), (station(2), Octets(two), down(0))]
    };
    let mut again = provider.replayed();
    again.adopt(&kernel(3 * MIB)).unwrap();
    assert!(again.resume().release(&Durable::committed()).is_empty(), "all is leased out");
    let mut again = provider.replayed();
    let ahead = again.adopt(&kernel(3 * MIB + 1)).unwrap_err();
    assert_eq!((ahead.honoured, ahead.known), (Octets(8 * MIB + 1), Octets(8 * MIB)));
    let stranger = [(station(5), Octets(1), down(0))];
    assert!(provider.replayed().adopt(&stranger).is_err());
}

#[test]
fn another_funding_voids_the_payments_and_what_is_left_of_them_is_reclaimed() {
    let mut provider = Provider::new();
    let channel = provider.opened();
    provider.pay(&channel, 8);
    provider.put(Input::Usage(vec![(station(1), down(MIB))]));
    provider.put(Input::BlockDisconnected { height: 102 });
    provider.put(Input::BlockDisconnected { height: 101 });
    let actions = provider.mine(101, vec![testing::funding_tx(&channel.params, 2)]);
    assert!(matches!(actions[..], [Action::Reclaim { limit: Octets(MIB), .. }]), "{actions:?}");
    assert_eq!(provider.controller.account(station(1)).credit_octets, Octets(0));
    // A crash before the limit was lowered: the next start lowers it, and one after that starts too.
    for honoured in [8 * MIB, MIB] {
        let mut next = provider.replayed();
        next.adopt(&[(station(1), Octets(honoured), down(MIB))]).unwrap();
        let actions = next.resume().release(&Durable::committed());
        let lowered = actions
            .iter()
            .any(|action| matches!(action, Action::Reclaim { limit, .. } if *limit == Octets(MIB)));
        assert_eq!(lowered, honoured > MIB, "{actions:?}");
        let more = [(station(1), Octets(8 * MIB + 1), down(MIB))];
        assert!(provider.replayed().adopt(&more).is_err(), "more than was ever bought");
    }
}
