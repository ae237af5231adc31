//! Folding follows what comes in.

use std::{
    fs,
    time::{Duration, Instant},
};

use bitmesh_core::{
    bitcoin::Amount,
    channel::{Entry, ProviderEvent},
};

use super::{Event, Network, Place, Store, StoreRole, event, id, loaded, sqlite::directory};
use crate::store::{sqlite::FILE, tidy::ROWS_KEPT};

const FIXTURE: &[u8] = include_bytes!("../fixtures/layout-1-provider.sqlite");

#[tokio::test]
async fn the_more_rows_wait_the_more_are_folded_at_once() {
    let home = directory();
    let (mut store, _) = loaded(&home).await;
    for sum in 0..80 {
        let batch: Vec<_> = (0..100).map(|channel| event(channel, Event::Paid(sum))).collect();
        store.commit(&batch, None).await.unwrap();
    }
    let mut steps = Vec::new();
    loop {
        let step = store.tidy_beyond::<Event>(0, |_| false).await.unwrap();
        if step.folded == 0 {
            break;
        }
        steps.push(step.folded);
    }
    assert_eq!(steps.first(), Some(&1_000), "{steps:?}");
    assert!(steps.is_sorted_by(|a, b| a >= b), "{steps:?}");
    assert_eq!(steps.iter().sum::<usize>(), 8_000, "{steps:?}");
    store.close().await.unwrap();
}

/// Payments a second.
const RATE: u32 = 10_000;
/// Payments of a batch.
const BATCH: u32 = 100;

/// What one channel of a real provider has in its journal up to its first payment.
async fn example() -> Vec<ProviderEvent> {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join(FILE), FIXTURE).unwrap();
    let place = Place::file(home.path());
    let mut store = Store::open(&place, StoreRole::Provider, Network::Regtest).await.unwrap();
    let mut events = Vec::new();
    let mut first = None;
    for entry in store.load::<ProviderEvent>().await.unwrap() {
        let Entry::Channel { channel, event } = entry else { continue };
        if *first.get_or_insert(channel) != channel {
            continue;
        }
        let paid = matches!(event, ProviderEvent::Paid { .. });
        events.push(event);
        if paid {
            break;
        }
    }
    store.close().await.unwrap();
    events
}

/// Pays for so long, folds as a daemon does, and tells what it cost.
async fn pay(channels: u32, time: Duration) {
    let home = directory();
    let place = Place::file(home.path());
    let mut store = Store::open(&place, StoreRole::Provider, Network::Regtest).await.unwrap();
    store.load::<ProviderEvent>().await.unwrap();
    let mut opening = example().await;
    let Some(ProviderEvent::Paid { signature, .. }) = opening.pop() else { panic!("no payment") };
    let entry = |channel: u32, event| Entry::Channel { channel: id(channel), event };
    for first in (0..channels).step_by(100) {
        let batch: Vec<_> = (first..first + 100)
            .flat_map(|channel| opening.iter().map(move |event| entry(channel, event.clone())))
            .collect();
        store.commit(&batch, None).await.unwrap();
    }
    let start = Instant::now();
    let (mut paid, mut most, mut late) = (0_u32, 0, Duration::ZERO);
    let (mut committing, mut folding, mut longest) =
        (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    let mut look = start;
    while start.elapsed() < time {
        let due = start + Duration::from_secs(1) * paid / RATE;
        late = late.max(due.elapsed());
        tokio::time::sleep_until(due.into()).await;
        let batch: Vec<_> = (paid..paid + BATCH)
            .map(|number| {
                let sum = Amount::from_sat(u64::from(number / channels) + 1);
                let event = ProviderEvent::Paid { paid: sum, signature, earlier: 0 };
                entry(number % channels, event)
            })
            .collect();
        let since = Instant::now();
        store.commit(&batch, None).await.unwrap();
        committing += since.elapsed();
        paid += BATCH;
        if look <= Instant::now() {
            let since = Instant::now();
            let pause = store.tidy::<ProviderEvent>(|_| false).await.unwrap();
            folding += since.elapsed();
            longest = longest.max(since.elapsed());
            look = Instant::now() + pause;
        }
        most = most.max(store.known.journal_rows);
    }
    let rows = store.known.journal_rows;
    let size = fs::metadata(home.path().join(FILE)).unwrap().len() >> 20;
    println!(
        "{channels} channels: {paid} payments in {:?}, at most {late:?} late; each {:?} to write and \
         {:?} to fold, at most {longest:?} at once; {rows} rows at the end, {most} at most; {size} MiB",
        start.elapsed(),
        committing / paid,
        folding / paid,
    );
    assert!(most < 8 * ROWS_KEPT.max(u64::from(channels)), "{most} rows");
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures, with --release and --nocapture: takes two minutes of a quiet machine"]
async fn folding_keeps_up_with_ten_thousand_payments_a_second() {
    for channels in [1_000, 10_000] {
        pay(channels, Duration::from_mins(1)).await;
    }
}
