//! How the accounts of an edge that is silent are taken.

use std::time::Instant;

use bitmesh_core::{
    account::AccountId,
    fleet::{EdgeNumber, FleetEntry, Member},
};

use super::*;

/// An edge that has opened as many channels, each with an account and a station of its own; then a second edge,
/// which has fenced the first. What the first edge was by then.
async fn fenced(first: &Database, second: &Database, channels: u8) -> (Store, EdgeRow) {
    let (mut store, _) = loaded(first).await;
    let mut opened = vec![block(7)];
    for channel in 1..=channels {
        let Entry::Usage { station, .. } = usage(channel, 0) else { panic!("usage") };
        let (member, account) = (Member::Station(station), id(channel.into()).into());
        opened.push(event(channel.into(), Event::Opened(channel.into())));
        opened.push(Entry::Fleet(FleetEntry::Member { member, account }));
        opened.push(usage(channel, 5));
    }
    store.commit(&opened, None).await.unwrap();
    let (mut other, _) = loaded(second).await;
    let edges = other.edges().await.unwrap();
    let one = edges.into_iter().find(|edge| edge.name == "one").unwrap();
    assert!(other.fence(&one).await.unwrap());
    (other, one)
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_accounts_are_taken_in_steps_and_who_comes_back_keeps_the_rest() {
    let first = Database::fresh();
    let second = first.edge("two");
    let (mut other, one) = fenced(&first, &second, 5).await;
    let one = since(&one);
    // Those first that somebody waits for.
    let account = |number: u32| AccountId::from(id(number));
    other.want(&[account(4)]).await.unwrap();
    assert_eq!(other.seize(&one, 1).await.unwrap(), 2);
    let mut taken = other.renew().await.unwrap().arriving;
    taken.sort_unstable();
    assert!(taken.contains(&account(4)) && taken.len() == 2, "{taken:?}");
    for wrong in [
        EdgeRow { epoch: one.epoch - 1, ..one.clone() },
        EdgeRow { beat: one.beat + 1, ..one.clone() },
        EdgeRow { number: EdgeNumber::new(9).unwrap(), ..one.clone() },
    ] {
        assert_eq!(other.seize(&wrong, 10).await.unwrap(), 0);
    }

    let (mut store, found) = loaded(&first).await;
    assert!(store.seized().unwrap());
    let is_taken = |number: u32| taken.contains(&account(number));
    let opened = (1..=5).filter(|number| !is_taken(*number));
    let opened: Vec<_> = opened.map(|number| event(number, Event::Opened(number))).collect();
    assert_eq!(found.iter().filter(|entry| opened.contains(entry)).count(), 3, "{found:?}");
    assert_eq!(other.seize(&one, 10).await.unwrap(), 0, "it is back");
    assert_eq!(store.untold().await.unwrap().len(), 2, "of what was taken");
    let kept = (1..=5).find(|number| !is_taken(*number)).unwrap();
    store.commit(&[event(kept, Event::Paid(1))], None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_waits_for_too_long_fails_may_be_done_again_and_leaves_no_lock() {
    let first = Database::fresh();
    let second = first.edge("two");
    let (mut other, one) = fenced(&first, &second, 3).await;
    let one = since(&one);
    let locked = first.hold("SELECT 1 FROM accounts FOR UPDATE", Duration::from_secs(15)).await;
    let began = Instant::now();
    let error = other.seize(&one, 10).await.unwrap_err();
    assert!(is_passing(&error), "{error}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    // Nothing of it waits at the server: a sign of life goes through at once.
    let began = Instant::now();
    other.renew().await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(other.seize(&one, 10).await.is_err(), "they are locked yet");
    locked.await.unwrap();
    assert_eq!(other.seize(&one, 10).await.unwrap(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_an_edge_that_is_back_again_is_not_the_one_that_was_to_be_fenced() {
    let first = Database::fresh();
    let second = first.edge("two");
    let (mut other, one) = fenced(&first, &second, 3).await;
    // Back, and gone before it was done with what was taken.
    let (store, _) = loaded(&first).await;
    drop(store);
    let edges = other.edges().await.unwrap();
    let seen = edges.into_iter().find(|edge| edge.number == one.number).unwrap();
    // Back again before it is fenced a second time: who was about to do that must not take what it reads now.
    let (mut store, _) = loaded(&first).await;
    assert!(!other.fence(&seen).await.unwrap());
    assert_eq!(other.seize(&since(&seen), 10).await.unwrap(), 0);
    assert!(store.seized().unwrap());
    store.commit(&[event(1, Event::Paid(1))], None).await.unwrap();
}
