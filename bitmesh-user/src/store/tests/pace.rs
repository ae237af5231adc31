//! Folding follows what comes in.

use super::{Event, event, loaded, sqlite::directory};

#[tokio::test]
async fn the_more_rows_wait_the_more_are_folded_at_once() {
    let home = directory();
    let (mut store, _) = loaded(&home).await;
    for sum in 0..80 {
        // What is no payment keeps those after it from taking the places of those before.
        let payments = (0..99).map(|channel| event(channel, Event::Paid(sum)));
        let batch: Vec<_> = payments.chain([event(99, Event::Closed)]).collect();
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
