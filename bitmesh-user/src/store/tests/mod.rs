//! One suite for every engine: `suite!(name, fresh)` runs it on the ledgers that `fresh` makes.

mod damage;
mod layout1;
mod pace;
mod postgres;
mod sqlite;

use std::{collections::BTreeMap, task::Poll};

use bitcoin::{Amount, BlockHash, hashes::Hash as _};
use bitmesh_core::{
    channel::{ChannelId, Tally},
    ledger::{Counts, Usage},
    station::Station,
    units::Octets,
};

use super::{tidy::Tidied, *};

/// Where the ledgers of a test are, for as long as it lives.
pub(super) trait Home: Sized {
    /// Whether a sum over everything is kept.
    const SUMS: bool = true;
    /// The same each time.
    fn place(&self) -> Place;
    /// Changes the closed ledger behind its back.
    async fn execute(&self, statement: &str);
}

/// An event of a channel as simple as can be: what was paid in all, or something else.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Event {
    Opened(u32),
    Paid(u64),
    Closed,
}

impl Compact for Event {
    fn tally(&self) -> Option<Tally> {
        match *self {
            Self::Paid(sum) => Some(Tally { paid: Amount::from_sat(sum), earlier: 0 }),
            _ => None,
        }
    }

    fn stand_for(&mut self, before: Tally) -> bool {
        matches!(*self, Self::Paid(sum) if before.paid.to_sat() < sum)
    }

    fn key_index(&self) -> Option<u32> {
        match self {
            Self::Opened(index) => Some(*index),
            _ => None,
        }
    }
}

pub(super) fn id(number: u32) -> ChannelId {
    let mut octets = [7; 32];
    octets[..4].copy_from_slice(&number.to_be_bytes());
    ChannelId::from_bytes(octets)
}

pub(super) fn event(channel: u32, event: Event) -> Entry<Event> {
    Entry::Channel { channel: id(channel), event }
}

pub(super) fn block(height: u32) -> Entry<Event> {
    let hash = BlockHash::from_byte_array([u8::try_from(height % 256).unwrap(); 32]);
    Entry::Block { height, hash }
}

pub(super) fn usage(number: u8, octets: u64) -> Entry<Event> {
    let station = Station::new([2, 0, 0, 0, 0, number], 7).unwrap();
    let up = Counts { octets: Octets(octets), frames: 1, ..Counts::default() };
    let down = Counts { refused_octets: Octets(2), refused_frames: 3, ..Counts::default() };
    Entry::Usage { station, usage: Usage { up, down } }
}

pub(super) async fn open(home: &impl Home) -> Result<Store, StoreError> {
    Store::open(&home.place(), StoreRole::Provider, Network::Regtest).await
}

/// A ledger that was loaded, and what it holds.
pub(super) async fn loaded(home: &impl Home) -> (Store, Vec<Entry<Event>>) {
    let mut store = open(home).await.unwrap();
    let entries = store.load().await.unwrap();
    (store, entries)
}

/// The error that a ledger is refused with.
pub(super) async fn refused(home: &impl Home) -> StoreError {
    match open(home).await {
        Ok(mut store) => store.load::<Event>().await.unwrap_err(),
        Err(error) => error,
    }
}

pub(super) async fn what_was_committed_is_there_after_a_restart(home: impl Home) {
    let entries = vec![
        event(1, Event::Opened(0)),
        event(2, Event::Opened(1)),
        event(1, Event::Paid(5)),
        block(10),
        usage(1, u64::MAX),
    ];
    let (mut store, nothing) = loaded(&home).await;
    assert!(nothing.is_empty());
    store.commit(&entries, Some("{}")).await.unwrap();
    store.set("budget", "5").await.unwrap();
    store.close().await.unwrap();
    let (mut store, found) = loaded(&home).await;
    assert_eq!(found, entries);
    assert_eq!(store.wallet_changes().await.unwrap(), ["{}"]);
    assert_eq!(store.setting("budget").await.unwrap().as_deref(), Some("5"));
    store.commit(&[event(3, Event::Opened(2)), usage(1, 1), usage(1, 9)], None).await.unwrap();
    store.commit::<Event>(&[], Some("more")).await.unwrap();
    store.close().await.unwrap();
    let (mut store, found) = loaded(&home).await;
    assert_eq!(found.len(), 6);
    assert_eq!(found.last(), Some(&usage(1, 9)));
    assert_eq!(store.wallet_changes().await.unwrap(), ["{}", "more"]);
    store.set_wallet("all".into()).await.unwrap();
    store.close().await.unwrap();
    let (mut store, _) = loaded(&home).await;
    assert_eq!(store.wallet_changes().await.unwrap(), ["all"]);
    store.close().await.unwrap();
}

pub(super) async fn batches_of_every_size_come_back_in_order(home: impl Home) {
    let (mut store, _) = loaded(&home).await;
    let mut written = Vec::new();
    let mut sums = BTreeMap::new();
    for size in [1_u32, 2, 15, 16, 17, 127, 128, 129, 300] {
        let entries: Vec<_> = (0..size)
            .map(|i| {
                let channel = i * 7 % 50;
                let sum = sums.entry(channel).or_insert(0_u64);
                *sum += 1;
                let what = if *sum == 1 { Event::Opened(channel) } else { Event::Paid(*sum) };
                event(channel, what)
            })
            .collect();
        store.commit(&entries, None).await.unwrap();
        written.extend(entries);
    }
    store.close().await.unwrap();
    let (store, found) = loaded(&home).await;
    // Payments that follow each other in one batch are one.
    assert!(found.len() < written.len() && told(&found) == told(&written));
    store.close().await.unwrap();
}

pub(super) async fn only_the_newest_blocks_are_kept_and_a_reorganisation_drops_them(
    home: impl Home,
) {
    let (mut store, _) = loaded(&home).await;
    let blocks: Vec<_> = (1..=150).map(block).collect();
    store.commit(&blocks, None).await.unwrap();
    assert_eq!(store.load::<Event>().await.unwrap(), blocks[50..]);
    store.commit(&[Entry::<Event>::BlockGone { height: 150 }], None).await.unwrap();
    assert_eq!(store.load::<Event>().await.unwrap(), blocks[50..149]);
    store.commit(&[block(150)], None).await.unwrap();
    assert_eq!(store.load::<Event>().await.unwrap(), blocks[50..]);
    store.close().await.unwrap();
}

pub(super) async fn a_failed_batch_leaves_nothing_behind(home: impl Home) {
    let (mut store, _) = loaded(&home).await;
    store.commit(&[block(1)], None).await.unwrap();
    let lost = [event(1, Event::Opened(0)), block(1)];
    assert!(store.commit(&lost, Some("lost")).await.is_err());
    drop(store);
    let (mut store, found) = loaded(&home).await;
    assert_eq!(found, [block(1)]);
    assert!(store.wallet_changes().await.unwrap().is_empty());
    store.close().await.unwrap();
}

pub(super) async fn p15_a_changed_or_missing_row_is_noticed(home: impl Home) {
    let (mut store, _) = loaded(&home).await;
    let entries =
        [event(1, Event::Opened(0)), event(1, Event::Paid(1)), event(2, Event::Opened(1))];
    store.commit(&entries, Some("{}")).await.unwrap();
    store.commit(&[event(1, Event::Paid(2)), block(7), usage(1, 3)], Some("{1}")).await.unwrap();
    store.close().await.unwrap();
    for (damage, repair) in [
        ("UPDATE journal SET body = '{\"paid\":9}' WHERE n = 1", "{\"paid\":1}"),
        ("UPDATE journal SET n = 4 WHERE n = 2", ""),
        ("UPDATE journal SET n = 2 WHERE n = 4", "repair"),
        ("UPDATE blocks SET height = 8", ""),
        ("UPDATE blocks SET height = 7", "repair"),
        ("UPDATE usage SET up_octets = 4", ""),
        ("UPDATE usage SET up_octets = 3", "repair"),
        ("UPDATE settings SET value = 'selling on regtest, twice'", ""),
        ("UPDATE settings SET value = 'selling on regtest'", "repair"),
        ("UPDATE wallet_changes SET body = '{2}' WHERE number = 1", ""),
        ("UPDATE wallet_changes SET body = '{1}' WHERE number = 1", "repair"),
        ("DELETE FROM wallet_changes WHERE number = 0", "last"),
        ("DELETE FROM usage", "last"),
        ("DELETE FROM blocks", "last"),
        ("DELETE FROM journal WHERE n = 2", "last"),
        ("DELETE FROM journal WHERE n = 0", "last"),
    ] {
        if needs_sum(damage, &home) {
            continue;
        }
        home.execute(damage).await;
        if repair == "repair" {
            let (store, _) = loaded(&home).await;
            store.close().await.unwrap();
            continue;
        }
        let error = refused(&home).await;
        let known = matches!(error, StoreError::Damaged { .. } | StoreError::Foreign { .. });
        assert!(known, "{damage}: {error}");
        if repair.starts_with('{') {
            home.execute(&format!("UPDATE journal SET body = '{repair}' WHERE n = 1")).await;
        }
    }
}

/// Whether damage can't be seen without a sum over everything.
fn needs_sum<H: Home>(damage: &str, _: &H) -> bool {
    let alone = ["blocks", "usage", "UPDATE wallet_changes", "DELETE FROM channels"];
    !H::SUMS && alone.iter().any(|what| damage.contains(what))
}

/// What a journal comes to: each channel's events, with payments that follow each other as one, and
/// the order of all others.
fn told(entries: &[Entry<Event>]) -> (BTreeMap<ChannelId, Vec<Event>>, Vec<Entry<Event>>) {
    let mut channels: BTreeMap<ChannelId, Vec<Event>> = BTreeMap::new();
    for entry in entries {
        let Entry::Channel { channel, event } = entry else { panic!("{entry:?}") };
        let events = channels.entry(*channel).or_default();
        let left = match events.last_mut() {
            Some(last) => last.absorb(event.clone()),
            None => Some(event.clone()),
        };
        events.extend(left);
    }
    let is_payment =
        |entry: &Entry<Event>| matches!(entry, Entry::Channel { event: Event::Paid(_), .. });
    (channels, entries.iter().filter(|entry| !is_payment(entry)).cloned().collect())
}

/// So many channels that are opened and paid on in turns, with something else on another one after
/// each turn, so that payments get rows of their own.
fn turns(channels: u32, payments: u64) -> Vec<Entry<Event>> {
    let mut entries: Vec<_> = (0..channels).map(|i| event(i, Event::Opened(i))).collect();
    for sum in 1..=payments {
        entries.extend((0..channels).map(|i| event(i, Event::Paid(sum))));
        entries.push(event(channels, Event::Closed));
        if sum == payments / 2 {
            entries.extend((0..channels).step_by(3).map(|i| event(i, Event::Opened(i))));
        }
    }
    entries
}

pub(super) async fn a_folded_journal_comes_to_the_same(home: impl Home) {
    let (mut store, _) = loaded(&home).await;
    let entries = turns(40, 100);
    for batch in entries.chunks(31) {
        store.commit(batch, None).await.unwrap();
    }
    // In several steps, with a rest that stays, a restart between and payments after.
    let step = store.tidy_beyond::<Event>(500, |_| false).await.unwrap();
    assert!(step.left > 0 && step.folded > 0, "{step:?}");
    store.close().await.unwrap();
    let (mut store, found) = loaded(&home).await;
    assert!(told(&found) == told(&entries));
    while store.tidy_beyond::<Event>(500, |_| false).await.unwrap().left > 0 {}
    assert_eq!(store.tidy_beyond::<Event>(500, |_| false).await.unwrap(), Tidied::default());
    let more: Vec<_> = (0..40).map(|i| event(i, Event::Paid(1_000))).collect();
    store.commit(&more, None).await.unwrap();
    store.tidy_beyond::<Event>(10, |_| false).await.unwrap();
    store.close().await.unwrap();
    let (store, found) = loaded(&home).await;
    let all = [entries, more].concat();
    assert!(told(&found) == told(&all));
    assert!(found.len() < 300, "{} events are left", found.len());
    store.close().await.unwrap();
}

pub(super) async fn a_payment_takes_the_place_of_the_one_before(home: impl Home) {
    let paid = |channel, sum| event(channel, Event::Paid(sum));
    let (mut store, _) = loaded(&home).await;
    let opened: Vec<_> = (0..3).map(|i| event(i, Event::Opened(i))).collect();
    store.commit(&opened, None).await.unwrap();
    for sum in 1..=50 {
        for channel in 0..3 {
            store.commit(&[paid(channel, sum)], None).await.unwrap();
        }
    }
    assert_eq!(store.journal_rows(), 6);
    // Never before what was written in between.
    store.commit(&[event(1, Event::Closed)], None).await.unwrap();
    store.commit(&[paid(0, 51), paid(1, 51)], None).await.unwrap();
    store.commit(&[paid(0, 52), event(2, Event::Closed), paid(1, 52)], None).await.unwrap();
    store.commit(&[paid(0, 53), paid(1, 53), paid(2, 53)], None).await.unwrap();
    store.commit(&[paid(2, 52)], None).await.unwrap();
    let mut all = opened;
    all.extend([paid(0, 50), paid(1, 50), paid(2, 50), event(1, Event::Closed)]);
    all.extend([paid(0, 52), paid(1, 51), event(2, Event::Closed), paid(1, 53)]);
    all.extend([paid(0, 53), paid(2, 53), paid(2, 52)]);
    store.close().await.unwrap();
    let (mut store, found) = loaded(&home).await;
    assert_eq!(found, all);
    // Which row was the last is not known after a start, nor once it was folded.
    for sum in 54..=60 {
        store.commit(&[paid(0, sum), paid(1, sum)], None).await.unwrap();
        if sum == 57 {
            assert_eq!(store.tidy_beyond::<Event>(1, |_| false).await.unwrap().left, 0);
        }
    }
    assert_eq!(store.journal_rows(), 3);
    store.close().await.unwrap();
    let (store, found) = loaded(&home).await;
    all.extend([paid(0, 60), paid(1, 60)]);
    assert_eq!(told(&found), told(&all));
    store.close().await.unwrap();
}

/// What `future` comes to, unless it has to be asked more than `times`: then it is dropped.
async fn asked<F: Future>(future: F, mut times: usize) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|context| {
        if times == 0 {
            return Poll::Ready(None);
        }
        times -= 1;
        future.as_mut().poll(context).map(Some)
    })
    .await
}

pub(super) async fn a_fold_that_ends_early_changes_nothing(home: impl Home) {
    let (mut store, _) = loaded(&home).await;
    let entries = turns(5, 20);
    for batch in entries.chunks(9) {
        store.commit(batch, None).await.unwrap();
    }
    store.close().await.unwrap();
    let mut early = 0;
    for times in 1.. {
        let (mut store, found) = loaded(&home).await;
        assert!(told(&found) == told(&entries), "ended after {times} looks");
        let done = asked(store.tidy_beyond::<Event>(7, |_| false), times).await;
        drop(store);
        if let Some(done) = done {
            // It may have come to its end before, with nobody left to hear of it.
            assert_eq!(done.unwrap().left, 0);
            break;
        }
        early += 1;
    }
    assert!(early > 0, "it never ended early");
    let (store, found) = loaded(&home).await;
    assert!(told(&found) == told(&entries));
    assert_eq!(store.known.journal_rows, 7);
    store.close().await.unwrap();
}

pub(super) async fn what_is_over_is_forgotten_but_for_the_last_key(home: impl Home) {
    let (mut store, _) = loaded(&home).await;
    let mut entries: Vec<_> = (0..5).map(|i| event(i, Event::Opened(i))).collect();
    entries.extend((0..5).map(|i| event(i, Event::Closed)));
    // Of another edge: the one below is not needed for its next key.
    entries.extend([event(8, Event::Opened(1 << 20)), event(9, Event::Opened((1 << 20) + 1))]);
    store.commit(&entries, None).await.unwrap();
    // Not whole yet: its last event is beyond what is folded.
    let step = store.tidy_beyond::<Event>(3, |_| true).await.unwrap();
    assert_eq!(step, Tidied { folded: 9, forgotten: 4, left: 0 });
    let step = store.tidy_beyond::<Event>(0, |id_of| *id_of != id(9)).await.unwrap();
    assert_eq!(step.forgotten, 1);
    store.close().await.unwrap();
    let (mut store, found) = loaded(&home).await;
    let left = [
        event(4, Event::Opened(4)),
        event(4, Event::Closed),
        event(9, Event::Opened((1 << 20) + 1)),
    ];
    assert_eq!(found, left);
    store.commit(&[event(4, Event::Paid(1))], None).await.unwrap();
    store.close().await.unwrap();
    let (store, found) = loaded(&home).await;
    assert_eq!(found.len(), 4);
    store.close().await.unwrap();
}

pub(super) async fn p15_a_changed_folded_row_is_noticed(home: impl Home) {
    let (mut store, _) = loaded(&home).await;
    store.commit(&turns(3, 5), None).await.unwrap();
    store.tidy_beyond::<Event>(0, |_| false).await.unwrap();
    store.close().await.unwrap();
    for damage in [
        "UPDATE channels SET body = '[[1,{\"opened\":0}],[2,{\"paid\":9}]]'",
        "UPDATE channels SET n = n + 1",
        "DELETE FROM channels",
    ] {
        if needs_sum(damage, &home) {
            continue;
        }
        home.execute(damage).await;
        let error = refused(&home).await;
        assert!(matches!(error, StoreError::Damaged { .. }), "{damage}: {error}");
    }
}

pub(super) async fn a_ledger_has_one_role_on_one_chain(home: impl Home) {
    let store = open(&home).await.unwrap();
    assert!(matches!(open(&home).await, Err(StoreError::Locked(_))));
    store.close().await.unwrap();
    let place = home.place();
    let role = Store::open(&place, StoreRole::Subscriber, Network::Regtest).await;
    assert!(matches!(role, Err(StoreError::Foreign { .. })));
    let network = Store::open(&place, StoreRole::Provider, Network::Bitcoin).await;
    assert!(matches!(network, Err(StoreError::Foreign { .. })));
}

pub(super) async fn a_newer_layout_is_refused_with_what_to_do(home: impl Home) {
    open(&home).await.unwrap().close().await.unwrap();
    home.execute("UPDATE layout SET number = 99").await;
    let error = open(&home).await.unwrap_err();
    assert!(matches!(error, StoreError::Newer { found: 99, .. }), "{error}");
    assert!(error.to_string().contains("bitmesh store restore"), "{error}");
}

/// Runs every test on homes that `$fresh` makes; it is a future of one, or of none where the engine
/// is not there.
macro_rules! suite {
    ($name:ident, $fresh:path) => {
        mod $name {
            $crate::store::tests::suite!(@tests $fresh,
                what_was_committed_is_there_after_a_restart
                batches_of_every_size_come_back_in_order
                only_the_newest_blocks_are_kept_and_a_reorganisation_drops_them
                a_failed_batch_leaves_nothing_behind
                p15_a_changed_or_missing_row_is_noticed
                a_folded_journal_comes_to_the_same
                a_payment_takes_the_place_of_the_one_before
                a_fold_that_ends_early_changes_nothing
                what_is_over_is_forgotten_but_for_the_last_key
                p15_a_changed_folded_row_is_noticed
                a_ledger_has_one_role_on_one_chain
                a_newer_layout_is_refused_with_what_to_do
            );
        }
    };
    (@tests $fresh:path, $($test:ident)*) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $test() {
            if let Some(home) = $fresh().await {
                $crate::store::tests::$test(home).await;
            }
        })*
    };
}
use suite;
