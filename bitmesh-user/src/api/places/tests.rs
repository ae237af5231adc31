use std::time::Duration;

use bitmesh_core::channel::ChannelId;
use futures_util::FutureExt as _;

use super::*;

fn station(number: usize) -> Option<Station> {
    let [.., a, b] = number.to_be_bytes();
    Station::new([2, 0, 0, 0, a, b], 0)
}

fn address(number: usize) -> IpAddr {
    IpAddr::from(u128::try_from(number).unwrap().to_be_bytes())
}

fn account(number: usize) -> AccountId {
    let id: ChannelId = format!("{number:064x}").parse().unwrap();
    id.into()
}

/// As many strangers as get in at one moment, sixteen connections each.
fn strangers(places: &Places) -> Vec<Seated> {
    let seated = (0..PLACES).map(|n| places.enter_at(station(n / 16), address(n / 16), None, 1));
    seated.map_while(Result::ok).collect()
}

/// So many connections of payers, eight each, an account each.
fn payers(places: &Places, connections: usize) -> Vec<Seated> {
    let seated = (0..connections).map(|n| {
        let who = 30_000 + n / 8;
        places.enter_at(station(who), address(who), Some(account(who)), 1).unwrap()
    });
    seated.collect()
}

fn left(seated: &[Seated]) -> Vec<usize> {
    let left =
        seated.iter().enumerate().filter(|(_, one)| one.pushed_out().now_or_never().is_some());
    left.map(|(number, _)| number).collect()
}

fn pause() {
    std::thread::sleep(Duration::from_millis(3));
}

#[test]
fn a1_strangers_leave_the_payers_share_free() {
    let places = Places::default();
    let crowd = strangers(&places);
    assert_eq!(crowd.len(), PLACES - PLACES_OF_PAYERS);
    let paying = payers(&places, PLACES_OF_PAYERS);
    drop((crowd, paying));
    let taken = places.lock();
    assert!(taken.all.is_empty() && taken.by_address.is_empty() && taken.by_station.is_empty());
    assert!(taken.by_account.is_empty() && taken.sizes.is_empty() && taken.strangers.is_empty());
}

#[test]
fn a1_the_newest_payer_gets_the_place_that_a_stranger_has_not_used_for_longest() {
    let places = Places::default();
    let crowd = strangers(&places);
    let paying = payers(&places, PLACES_OF_PAYERS);
    let asking = crowd[0].busy();
    pause();
    drop(crowd[1].busy());
    let one_more =
        places.enter_at(station(65_000), address(65_000), Some(account(65_000)), 1).unwrap();
    assert_eq!(left(&crowd[..3]), [2], "one is being answered, one was just now");
    assert!(left(&paying).is_empty());
    assert_eq!(
        places.enter_at(station(65_001), address(65_001), None, 1).err(),
        Some(NoPlace::Full),
        "all were used within the second"
    );
    drop((asking, one_more));
}

#[test]
fn a1_strangers_that_are_idle_give_way_to_strangers_and_those_in_use_do_not() {
    let places = Places::default();
    let crowd = strangers(&places);
    let asking: Vec<_> = crowd[..crowd.len() - 2].iter().map(Seated::busy).collect();
    let newer: Vec<_> = (0..3)
        .map(|n| places.enter_at(station(60_000 + n), address(60_000 + n), None, 1 + GRACE_MILLIS))
        .collect();
    assert_eq!(newer.iter().filter(|seated| seated.is_ok()).count(), 2);
    assert_eq!(left(&crowd), [crowd.len() - 2, crowd.len() - 1]);
    drop(asking);
}

#[test]
fn a1_payers_that_hold_all_places_give_way_to_another_the_largest_account_first() {
    let places = Places::default();
    let (stations, large) = (2 * PLACES_PER_ACCOUNT / PLACES_PER_STATION, PLACES_PER_ACCOUNT);
    // One account of four stations tries for twice its bound: it pushes out itself.
    let most: Vec<_> = (0..2 * large)
        .map(|n| places.enter_at(station(n % stations), address(n), Some(account(1)), 1).unwrap())
        .collect();
    assert_eq!(left(&most), (0..large).collect::<Vec<_>>());
    let others = payers(&places, PLACES - large);
    assert_eq!(places.lock().all.len(), PLACES);
    let busy: Vec<_> = most[large..large + 2].iter().map(Seated::busy).collect();
    let newest =
        places.enter_at(station(65_000), address(65_000), Some(account(65_000)), 1).unwrap();
    assert!(left(&others).is_empty() && left(&[newest]).is_empty());
    assert_eq!(left(&most), [large + 2], "the idle one that it has not used for longest");
    drop(busy);
}

#[test]
fn a1_a_station_with_many_addresses_is_one_station() {
    let places = Places::default();
    let own: Vec<_> = (0..PLACES_PER_STATION)
        .map(|n| places.enter_at(station(1), address(n), None, 1).unwrap())
        .collect();
    let asking: Vec<_> = own.iter().map(Seated::busy).collect();
    let more = places.enter_at(station(1), address(99), None, 1);
    assert_eq!(more.err(), Some(NoPlace::Station));
    assert!(places.enter_at(station(2), address(100), None, 1).is_ok());
    let unknown: Vec<_> =
        (200..).map(|n| places.enter_at(None, address(n), None, 1)).map_while(Result::ok).collect();
    assert_eq!(unknown.len(), PLACES_OF_UNKNOWN);
    drop(asking);
}

#[test]
fn a1_guests_behind_a_subscribers_address_do_not_keep_it_out() {
    let places = Places::default();
    let (of, at) = (station(1), address(1));
    let guests: Vec<_> = (0..PLACES_PER_ADDRESS)
        .map(|_| places.enter_at(of, at, Some(account(1)), 1).unwrap())
        .collect();
    pause();
    drop(guests[0].busy());
    let own = places.enter_at(of, at, Some(account(1)), 1).unwrap();
    assert_eq!(left(&guests), [1], "an idle one made room");
    // Another station's use of the address is not the subscriber's.
    let thief: Vec<_> = (0..PLACES_PER_ADDRESS)
        .map(|_| places.enter_at(station(2), at, None, 1).unwrap())
        .collect();
    let asking: Vec<_> = thief.iter().map(Seated::busy).collect();
    assert_eq!(places.enter_at(station(2), at, None, 1).err(), Some(NoPlace::Address));
    assert!(places.enter_at(of, at, Some(account(1)), 1).is_ok());
    drop((own, asking));
}
