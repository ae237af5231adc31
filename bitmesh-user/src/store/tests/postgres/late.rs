//! What stations used at an edge that was taken over, and what they are claimed for.

use bitmesh_core::{
    fleet::{FleetEntry, Late, LateId, Member},
    station::Station,
    units::Octets,
};

use super::*;
use crate::store::journal::Tail;

const STATION: u8 = 1;

fn station(number: u8) -> Station {
    let Entry::Usage { station, .. } = usage(number, 0) else { panic!("usage") };
    station
}

/// An edge opens an account of a station that used 5 octets, and is taken over by a second one, which
/// gets the account.
async fn seized(first: &Database, second: &Database) -> Store {
    let (mut store, _) = loaded(first).await;
    let account = id(1).into();
    let belongs = |member| Entry::Fleet(FleetEntry::Member { member, account });
    let opened = [
        event(1, Event::Opened(0)),
        block(7),
        belongs(Member::Channel(id(1))),
        belongs(Member::Station(station(STATION))),
        belongs(Member::Station(station(2))),
    ];
    store.commit(&opened, None).await.unwrap();
    store.commit(&[usage(STATION, 5)], None).await.unwrap();
    let (mut other, _) = loaded(second).await;
    let edges = other.edges().await.unwrap();
    let one = edges.iter().find(|edge| edge.name == "one").unwrap();
    assert!(take_over(&mut other, one).await.unwrap());
    let taken = other.engine.fleet().unwrap().take(&[*id(1).as_bytes()]).await.unwrap();
    for row in taken.iter().flat_map(|taken| &taken.journal) {
        let n = u32::try_from(row.n).unwrap() + 1;
        other.known.tails.insert(row.channel, Tail { n, digest: row.digest });
    }
    let caught_up = Entry::Fleet(FleetEntry::CaughtUp { account });
    other.commit::<Event>(&[caught_up], None).await.unwrap();
    other
}

fn settled(late: LateId) -> Entry<Event> {
    Entry::Fleet(FleetEntry::Settled { late })
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_what_was_used_before_a_takeover_is_told_once_and_settled_once() {
    let first = Database::fresh();
    let second = first.edge("two");
    let mut other = seized(&first, &second).await;
    assert_eq!(other.renew().await.unwrap().late, [], "nobody has told it yet");
    // Each start finds it again until all is done.
    for _ in 0..2 {
        let (mut store, _) = loaded(&first).await;
        assert!(store.seized().unwrap());
        let written = store.untold().await.unwrap();
        let written: Vec<_> = written.iter().map(|(id, written)| (id.station, *written)).collect();
        assert_eq!(written.len(), 2);
        assert!(written.contains(&(station(STATION), Octets(5))));
        assert!(written.contains(&(station(2), Octets(0))));
        store.close().await.unwrap();
    }
    let (mut store, _) = loaded(&first).await;
    let untold = store.untold().await.unwrap();
    let (late, _) = *untold.iter().find(|(id, _)| id.station == station(STATION)).unwrap();
    store.tell_late(&[(late, Octets(3))]).await.unwrap();
    assert_eq!(store.untold().await.unwrap(), [], "of the other station there is nothing to tell");
    // Killed before the table is empty, it does the same again.
    store.close().await.unwrap();
    let (mut store, _) = loaded(&first).await;
    assert!(store.seized().unwrap());
    store.tell_late(&[(late, Octets(1_000))]).await.unwrap();
    let told = Late { id: late, account: id(1).into(), octets: Octets(3) };
    assert_eq!(other.renew().await.unwrap().late, [told]);
    assert_eq!(store.renew().await.unwrap().late, [], "it is who has the account that pays");
    other.commit(&[event(1, Event::Paid(1)), settled(late)], None).await.unwrap();
    assert_eq!(other.renew().await.unwrap().late, []);
    store.tell_late(&[(late, Octets(1_000))]).await.unwrap();
    assert_eq!(other.renew().await.unwrap().late, [], "settled is settled");
    let error = other.commit(&[event(1, Event::Paid(2)), settled(late)], None).await.unwrap_err();
    assert!(matches!(error, StoreError::Elsewhere), "{error}");
    assert_eq!(first.sql("SELECT COUNT(*) FROM journal"), "2", "nothing of it was written");
    store.seizure_over().await.unwrap();
    store.close().await.unwrap();
    let (mut store, _) = loaded(&first).await;
    assert!(!store.seized().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_is_taken_over_again_tells_nothing() {
    let first = Database::fresh();
    let second = first.edge("two");
    let mut other = seized(&first, &second).await;
    let (mut store, _) = loaded(&first).await;
    let (late, _) = store.untold().await.unwrap()[0];
    let edges = other.edges().await.unwrap();
    let one = edges.iter().find(|edge| edge.name == "one").unwrap();
    assert!(take_over(&mut other, one).await.unwrap());
    let error = store.tell_late(&[(late, Octets(3))]).await.unwrap_err();
    assert!(matches!(error, StoreError::Fenced(_)), "{error}");
    assert!(matches!(store.seizure_over().await, Err(StoreError::Fenced(_))));
    drop(store);
    let (mut store, _) = loaded(&first).await;
    assert!(store.seized().unwrap());
    assert_eq!(store.untold().await.unwrap().len(), 2, "what was there is there");
    store.tell_late(&[(late, Octets(3))]).await.unwrap();
    assert_eq!(other.renew().await.unwrap().late.len(), 1);
    // An account that is forgotten takes it along.
    let gone = FleetEntry::AccountGone { account: id(1).into(), channels: [id(1)].into() };
    other.commit::<Event>(&[Entry::Fleet(gone)], None).await.unwrap();
    assert_eq!(first.sql("SELECT COUNT(*) FROM late"), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_outlasts_a_commit_that_is_tried_again_and_again() {
    let first = Database::fresh();
    let second = first.edge("two");
    let (mut one, _) = loaded(&first).await;
    let (mut two, _) = loaded(&second).await;
    let free = [station(5)];
    assert_eq!(one.claim(&free).await.unwrap(), free);
    let (write, _) = one.known.batch(&[event(1, Event::Opened(0))], None).unwrap();
    let database = one.engine.fleet().unwrap();
    for _ in 0..20 {
        database.resolve(&write).await.unwrap();
    }
    assert_eq!(two.claim(&free).await.unwrap(), [], "it is about to be given an account");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_station_is_claimed_by_one_edge_until_that_has_gone_on() {
    let first = Database::fresh();
    let second = first.edge("two");
    let (mut one, _) = loaded(&first).await;
    let (mut two, _) = loaded(&second).await;
    let stations = [station(3), station(4)];
    let (at_one, at_two) = tokio::join!(one.claim(&stations), two.claim(&stations));
    let (mut all, at_two) = (at_one.unwrap(), at_two.unwrap());
    assert!(all.is_empty() || at_two.is_empty(), "both got some: {all:?}, {at_two:?}");
    all.extend(at_two);
    assert_eq!(all.len(), 2, "each is claimed once");
    let free = [station(5)];
    assert_eq!(one.claim(&free).await.unwrap(), free);
    assert_eq!(one.claim(&free).await.unwrap(), free, "as often as it likes");
    for _ in 0..8 {
        assert_eq!(two.claim(&free).await.unwrap(), [], "it could open a channel for it yet");
        one.renew().await.unwrap();
    }
    assert_eq!(two.claim(&free).await.unwrap(), free);
    assert_eq!(one.claim(&free).await.unwrap(), []);
    // An edge that begins anew has claimed nothing.
    two.close().await.unwrap();
    let (mut two, _) = loaded(&second).await;
    assert_eq!(one.claim(&free).await.unwrap(), free);
    // Whose account it is is not claimed, but asked for.
    let account = id(1).into();
    let belongs = |member| Entry::Fleet(FleetEntry::Member { member, account });
    let opened = [
        event(1, Event::Opened(0)),
        belongs(Member::Channel(id(1))),
        belongs(Member::Station(free[0])),
    ];
    one.commit(&opened, None).await.unwrap();
    for _ in 0..9 {
        one.renew().await.unwrap();
    }
    assert_eq!(two.claim(&free).await.unwrap(), []);
}
