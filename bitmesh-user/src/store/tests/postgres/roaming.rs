//! Who may write what, and how accounts move.

use bitcoin::hashes::Hash as _;
use bitmesh_core::{
    account::AccountId,
    fleet::{EdgeNumber, FleetEntry},
};

use super::*;
use crate::store::tidy::Tidied;

/// Commits entries with changes that only a fleet has.
async fn commit(
    store: &mut Store,
    entries: &[Entry<Event>],
    fleet: Vec<FleetChange>,
) -> Result<(), StoreError> {
    let (mut write, changes) = store.known.batch(entries, None)?;
    write.fleet = fleet;
    store.write(&write, changes).await
}

fn account(number: u32) -> [u8; 32] {
    *id(number).as_bytes()
}

fn tips(heights: std::ops::RangeInclusive<u32>) -> Vec<(i64, [u8; 32])> {
    let tip = |height| match block(height) {
        Entry::Block { height, hash } => (i64::from(height), hash.to_byte_array()),
        _ => panic!("a block"),
    };
    heights.map(tip).collect()
}

async fn take(store: &mut Store, accounts: &[[u8; 32]]) -> Vec<crate::store::postgres::TakenRows> {
    store.engine.fleet().unwrap().take(accounts).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_a_fenced_edge_commits_nothing() {
    let first = Database::fresh();
    let (mut store, _) = loaded(&first).await;
    store.commit(&[event(1, Event::Opened(0)), block(7)], None).await.unwrap();
    let second = first.edge("two");
    let (mut other, found) = loaded(&second).await;
    assert!(found.is_empty(), "accounts are at one edge: {found:?}");
    let edges = other.edges().await.unwrap();
    let mut one = edges.iter().find(|edge| edge.name == "one").unwrap().clone();
    store.renew().await.unwrap();
    let over = take_over(&mut other, &one).await;
    assert!(!over.unwrap(), "an edge that gave a sign of life was taken over");
    store.commit(&[event(1, Event::Paid(1))], None).await.unwrap();
    one.beat += 1;
    let over = take_over(&mut other, &one).await;
    assert!(over.unwrap());
    let error = store.commit(&[event(1, Event::Paid(2))], None).await.unwrap_err();
    assert!(matches!(error, StoreError::Fenced(_)), "{error}");
    let error = store.renew().await.unwrap_err();
    assert!(matches!(error, StoreError::Fenced(_)), "{error}");
    let told = other.renew().await.unwrap();
    assert_eq!(told.arriving, [AccountId::from(id(1))]);
    let taken = take(&mut other, &[account(1)]).await;
    let [taken] = taken.as_slice() else { panic!("one group: {taken:?}") };
    let bodies: Vec<_> = taken.journal.iter().map(|row| row.body.as_str()).collect();
    assert_eq!(bodies, ["{\"opened\":0}", "{\"paid\":1}"]);
    assert_eq!(taken.tips, tips(7..=7));
    drop(store);
    let (mut store, found) = loaded(&first).await;
    assert!(store.seized().unwrap());
    assert_eq!(found, [block(7)], "what was taken over is not at the first edge again");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_moves_with_its_journal_and_usage_and_comes_back_in_order() {
    let first = Database::fresh();
    let second = first.edge("two");
    let (mut one, _) = loaded(&first).await;
    let (mut two, _) = loaded(&second).await;
    let Entry::Usage { station, .. } = usage(1, 5) else { panic!("usage") };
    let station = station.key().raw().cast_signed();
    let opened = [event(1, Event::Opened(0)), event(2, Event::Opened(1)), block(7), block(8)];
    let members = vec![
        FleetChange::Channel { channel: account(1), account: account(1) },
        FleetChange::Channel { channel: account(2), account: account(1) },
        FleetChange::Station { station, account: account(1) },
        FleetChange::NextKey(2),
    ];
    commit(&mut one, &opened, members).await.unwrap();
    one.commit(&[event(2, Event::Paid(1)), event(1, Event::Paid(1))], None).await.unwrap();
    let fleet = two.engine.fleet().unwrap();
    let (channels, stations) = fleet.look_up(&[account(2)], &[station]).await.unwrap();
    assert_eq!(channels, [(account(2), account(1), 1)]);
    assert_eq!(stations, [(station, account(1), 1)]);
    assert_eq!(fleet.want(&[account(1)]).await.unwrap(), 1);
    assert_eq!(fleet.want(&[account(1)]).await.unwrap(), 0, "it was asked for");
    let wanted = one.renew().await.unwrap().wanted;
    assert_eq!(wanted, [Wanted { account: id(1).into(), by: EdgeNumber::new(2).unwrap() }]);
    let over = FleetChange::HandOver { account: account(1), to: 2, tips: tips(7..=8) };
    commit(&mut one, &[usage(1, 9)], vec![over.clone()]).await.unwrap();
    // Once more it says nothing.
    commit(&mut one, &[], vec![over]).await.unwrap();

    let told = two.renew().await.unwrap();
    assert_eq!(told.arriving, [AccountId::from(id(1))]);
    let taken = take(&mut two, &[account(1)]).await;
    let [taken] = taken.as_slice() else { panic!("one group: {taken:?}") };
    assert_eq!(taken.accounts, [account(1)]);
    assert_eq!(taken.journal.len(), 4);
    assert_eq!(taken.usage.iter().map(|row| (row[0], row[1])).collect::<Vec<_>>(), [(station, 9)]);
    assert_eq!(taken.tips, tips(7..=8));
    two.close().await.unwrap();
    // On its way, it is not what the edge has; nor is it the other's.
    let (mut two, found) = loaded(&second).await;
    assert!(found.is_empty(), "{found:?}");
    let taken = take(&mut two, &[account(1)]).await;
    for row in &taken[0].journal {
        let tail = crate::store::journal::Tail {
            n: u32::try_from(row.n).unwrap() + 1,
            digest: row.digest,
        };
        two.known.tails.insert(row.channel, tail);
    }
    let caught_up = vec![FleetChange::CaughtUp { account: account(1) }];
    commit(&mut two, &[event(1, Event::Paid(2)), event(2, Event::Paid(2))], caught_up)
        .await
        .unwrap();
    // Who does not have the station, or lags, takes nothing back.
    one.commit(&[usage(1, 100)], None).await.unwrap();
    two.commit(&[usage(1, 4)], None).await.unwrap();
    assert_eq!(first.sql("SELECT up_octets FROM usage"), "9");
    two.close().await.unwrap();
    let (two, found) = loaded(&second).await;
    assert_eq!(
        found,
        [
            event(1, Event::Opened(0)),
            event(2, Event::Opened(1)),
            event(2, Event::Paid(1)),
            event(1, Event::Paid(1)),
            event(1, Event::Paid(2)),
            event(2, Event::Paid(2)),
            usage(1, 9),
        ]
    );
    two.close().await.unwrap();
    one.close().await.unwrap();
    let (mut one, found) = loaded(&first).await;
    assert_eq!(found, [block(7), block(8)]);
    assert_eq!(one.next_key_index().await.unwrap(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_an_account_that_left_are_not_waited_for_to_be_folded() {
    let first = Database::fresh();
    let second = first.edge("two");
    let (mut one, _) = loaded(&first).await;
    let (mut two, _) = loaded(&second).await;
    let opened = [event(1, Event::Opened(0)), event(2, Event::Opened(1)), block(7)];
    one.commit(&opened, None).await.unwrap();
    one.commit(&[event(1, Event::Paid(1))], None).await.unwrap();
    assert_eq!(two.want(&[id(1).into()]).await.unwrap(), 1);
    one.renew().await.unwrap();
    let Entry::Block { height, hash } = block(7) else { panic!("a block") };
    let (account, to) = (id(1).into(), EdgeNumber::new(2).unwrap());
    let over = FleetEntry::HandOver { account, to, tips: vec![(height, hash)] };
    one.commit::<Event>(&[Entry::Fleet(over)], None).await.unwrap();
    assert_eq!(two.renew().await.unwrap().arriving, [account]);
    let tidied = one.tidy_beyond::<Event>(1, |_| false).await.unwrap();
    assert_eq!((tidied, one.journal_rows()), (Tidied::default(), 1));
    let tidied = one.tidy_beyond::<Event>(0, |_| false).await.unwrap();
    assert_eq!((tidied.folded, one.journal_rows()), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_station_that_opens_channels_at_two_edges_at_once_is_at_one() {
    let first = Database::fresh();
    let second = first.edge("two");
    let (mut one, _) = loaded(&first).await;
    let (mut two, _) = loaded(&second).await;
    let open = |number: u32| {
        let channel = account(number);
        let of = FleetChange::Channel { channel, account: channel };
        vec![of, FleetChange::Station { station: 77, account: channel }]
    };
    let (opened_one, opened_two) = ([event(1, Event::Opened(0))], [event(2, Event::Opened(1))]);
    let (at_one, at_two) = tokio::join!(
        commit(&mut one, &opened_one, open(1)),
        commit(&mut two, &opened_two, open(2))
    );
    let refused =
        [&at_one, &at_two].iter().filter(|done| matches!(done, Err(StoreError::Elsewhere))).count();
    assert_eq!(refused, 1, "{at_one:?}, {at_two:?}");
    assert_eq!(first.sql("SELECT COUNT(*) FROM journal"), "1");
    assert_eq!(first.sql("SELECT COUNT(*) FROM accounts"), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_copies_of_an_edge_one_goes_on() {
    let home = Database::fresh();
    let (mut store, _) = loaded(&home).await;
    let copy = home.edge("one");
    std::fs::copy(
        home.directory.path().join(crate::store::postgres::IDENTITY),
        copy.directory.path().join(crate::store::postgres::IDENTITY),
    )
    .unwrap();
    let (mut copied, _) = loaded(&copy).await;
    let error = store.commit(&[event(1, Event::Opened(0))], None).await.unwrap_err();
    assert!(matches!(error, StoreError::Fenced(_)), "{error}");
    drop(store);
    // The copy lives, and has the name now.
    let alive = tokio::spawn(async move {
        loop {
            if copied.renew().await.is_err() {
                return copied;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    let error = open(&home).await.unwrap_err();
    assert!(matches!(error, StoreError::EdgeTaken(_)), "{error}");
    assert!(error.to_string().contains("--edge"), "{error}");
    // Once it is silent for longer than its hold, a machine that replaces it may come.
    alive.abort();
    let _ = alive.await;
    let (mut store, _) = loaded(&home).await;
    store.commit(&[event(1, Event::Opened(0))], None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_edge_is_replaced_also_when_another_takes_it_over_meanwhile() {
    let first = Database::fresh();
    let second = first.edge("two");
    let (mut one, _) = loaded(&first).await;
    let (lost, _) = loaded(&second).await;
    drop(lost);
    let seen = one.edges().await.unwrap().into_iter().find(|edge| edge.name == "two").unwrap();
    let replacement = first.edge("two");
    let replacing = tokio::spawn(async move { (open(&replacement).await, replacement) });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(take_over(&mut one, &seen).await.unwrap());
    let (mut replaced, _home) = replacing.await.unwrap();
    let replaced = replaced.as_mut().unwrap();
    assert_eq!(replaced.edge().unwrap().get(), 2);
    assert!(replaced.seized().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shorter_hold_counts_once_nothing_is_in_force_for_longer() {
    let home = Database::fresh();
    let (store, _) = loaded(&home).await;
    store.close().await.unwrap();
    let hold = || home.sql("SELECT hold_ms FROM edges");
    let own = hold();
    home.sql("UPDATE edges SET hold_ms = 3600000");
    let (mut store, _) = loaded(&home).await;
    assert_eq!(hold(), "3600000");
    store.note_hold(Duration::from_millis(own.parse().unwrap())).await.unwrap();
    assert_eq!(hold(), own);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_whose_keys_are_used_up_takes_a_number_that_no_other_edge_gets() {
    let first = Database::fresh();
    let second = first.edge("two");
    let (mut one, _) = loaded(&first).await;
    let (mut two, _) = loaded(&second).await;
    let number = |number| EdgeNumber::new(number).unwrap();
    assert_eq!(one.keys().await.unwrap(), number(1));
    let (at_one, at_two) = tokio::join!(one.fresh_keys(), two.fresh_keys());
    // Of two at the same instant one has to ask again.
    let taken: Vec<_> = [at_one, at_two].into_iter().flatten().flatten().collect();
    assert!(!taken.is_empty() && (taken.len() == 1 || taken[0] != taken[1]), "{taken:?}");
    let last = one.fresh_keys().await.unwrap().unwrap();
    assert!(!taken.contains(&last));
    assert_eq!(one.keys().await.unwrap(), last);
    one.close().await.unwrap();
    let (mut one, _) = loaded(&first).await;
    assert_eq!((one.edge().unwrap(), one.keys().await.unwrap()), (number(1), last));
    let third = first.edge("three");
    let (mut three, _) = loaded(&third).await;
    let next = number(last.get() + 1);
    assert_eq!((three.edge().unwrap(), three.keys().await.unwrap()), (next, next));
    first.sql("INSERT INTO key_ranges VALUES (2047, 9)");
    assert_eq!(one.fresh_keys().await.unwrap(), None);
    let fourth = first.edge("four");
    let error = open(&fourth).await.unwrap_err();
    assert!(matches!(error, StoreError::FleetFull), "{error}");
}
