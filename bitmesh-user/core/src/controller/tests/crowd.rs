//! Floods of openings: a bound on all, and who goes first at it.

use super::*;
use crate::controller::{UNFUNDED_MAX, UNFUNDED_PER_STATION_MAX};

/// A station of a flood; none of those that [`station`] names.
fn flooder(number: usize) -> Station {
    let [.., a, b, c] = number.to_be_bytes();
    Station::new([2, 9, 0, a, b, c], 0).unwrap()
}

impl Provider {
    fn flood(&mut self, from: Station, number: usize) -> Result<ChannelId, Refusal> {
        // The id follows from keys and expiry, and the wallet's key is another for each.
        let (key, expiry) = (number / 1_000, number % 1_000);
        let expiry_height = 1_001 + u32::try_from(expiry).unwrap();
        let open = OpenRequest { expiry_height, ..self.request(SUBSCRIBER) };
        let (request, provider_key) = (RequestId(1), public_key(100 + u8::try_from(key).unwrap()));
        let input = Input::Open { request, station: from, open, provider_key, now: NOW };
        match self.put(input).pop() {
            Some(Action::Reply(_, Ok(Answer::Channel(report)))) => Ok(report.channel),
            Some(Action::Reply(_, Err(refusal))) => Err(refusal),
            other => panic!("no reply but {other:?}"),
        }
    }

    fn knows(&self, id: &ChannelId) -> bool {
        self.controller.channel(id).is_ok()
    }
}

#[test]
fn a4_a_flood_from_many_stations_pushes_out_itself_and_no_newcomer_waits_for_its_end() {
    let mut provider = Provider::new();
    let payer = provider.opened();
    provider.pay(&payer, 3);
    let beside = provider.open(1, provider.request(20), NOW).unwrap();
    let presented = provider.open(2, provider.request(21), NOW).unwrap();
    let tx = testing::funding_tx(&presented.params, 2);
    let (request, channel) = (RequestId(3), presented.channel);
    provider.put(Input::Fund { request, channel, tx: tx.clone() });
    provider.put(Input::Presented { request, channel, tx, taken: Taken::Yes });
    let early = provider.open(3, provider.request(22), NOW).unwrap();

    // One station has more than the others: its channels go before theirs.
    let greedy: Vec<_> = (0..UNFUNDED_PER_STATION_MAX)
        .map(|number| provider.flood(station(4), number).unwrap())
        .collect();
    let mut number = greedy.len();
    let mut crowd = Vec::new();
    while provider.controller.crowd.unfunded() < UNFUNDED_MAX {
        crowd.push(provider.flood(flooder(number), number).unwrap());
        number += 1;
    }
    let before = provider.controller.book.scripts().len();
    let newcomer = provider.open(5, provider.request(23), NOW).unwrap();
    assert!(!provider.knows(&greedy[0]) && provider.knows(&greedy[1]));
    assert_eq!(provider.controller.crowd.unfunded(), UNFUNDED_MAX);
    assert_eq!(provider.controller.book.scripts().len(), before);
    for _ in 0..8 {
        provider.flood(flooder(number), number).unwrap();
        number += 1;
    }
    let left = greedy.iter().filter(|id| provider.knows(id)).count();
    assert_eq!(left, 0, "then the oldest of those with one each");
    assert!(!provider.knows(&early.channel) && !provider.knows(&crowd[0]));
    assert!(provider.knows(&newcomer.channel), "who came last is there for the whole crowd's time");
    assert!(provider.knows(&presented.channel), "a funding was seen");
    assert!(provider.knows(&beside.channel), "its station pays");
    assert_eq!(provider.pay(&payer, 4).len(), 2);

    let again = provider.replayed();
    assert_eq!(again.crowd, provider.controller.crowd);
    assert_eq!(again.book.scripts().len(), before);
    assert_eq!(again.next_key_index(), provider.controller.next_key_index());
}

#[test]
fn a4_a_funding_of_a_channel_that_was_pushed_out_is_nobodys_and_changes_nothing() {
    let mut provider = Provider::new();
    let first = provider.open(1, provider.request(20), NOW).unwrap();
    let event = provider.controller.book.get(&first.channel).unwrap().crowd_out().unwrap();
    let mut out = Out::default();
    provider.controller.record(first.channel, event, &mut out);
    provider.journal.extend(out.entries().iter().cloned());
    assert_eq!(provider.controller.channel(&first.channel), Err(Refusal::UnknownChannel));
    // Its output is spendable by the subscriber alone from the channel's end on: nothing is claimed.
    let actions = provider.mine(101, vec![testing::funding_tx(&first.params, 1)]);
    assert!(actions.iter().all(|action| !matches!(action, Action::Claim(_))), "{actions:?}");
    assert_eq!(provider.pay(&first, 3).len(), 1);
    assert_eq!(provider.controller.account(station(1)).bought_octets, Octets(0));
    provider.replayed();
}

#[test]
fn a4_what_a_block_or_a_mempool_has_shown_money_of_is_never_pushed_out() {
    let mut provider = Provider::new();
    let channel = provider.opened();
    let funded = provider.controller.book.get(&channel.channel).unwrap();
    assert!(!funded.costless() && funded.crowd_out().is_none());
    provider.put(Input::BlockDisconnected { height: 102 });
    provider.put(Input::BlockDisconnected { height: 101 });
    let unfunded = provider.controller.book.get(&channel.channel).unwrap();
    assert!(unfunded.speculative() && !unfunded.costless(), "it may be mined again");
}

#[test]
fn a_payer_is_known_by_its_account_after_a_restart_too_and_by_whether_it_has_credit() {
    let mut provider = Provider::new();
    let paid = provider.opened();
    let waiting = provider.open(2, provider.request(20), NOW).unwrap();
    let (payer, stranger) = (paid.station.unwrap(), waiting.station.unwrap());
    assert_eq!((provider.controller.payer(payer), provider.controller.payers().count()), (None, 0));
    provider.pay(&paid, 3);
    let account = AccountId::from(paid.channel);
    for controller in [&provider.controller, &provider.replayed()] {
        assert_eq!(controller.payers().collect::<Vec<_>>(), [(payer, account)]);
        assert_eq!(controller.payer(payer), Some((account, true)));
        assert_eq!(controller.payer(stranger), None);
    }
}
