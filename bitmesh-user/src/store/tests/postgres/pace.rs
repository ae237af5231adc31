//! How fast both engines are, by the same driver.

use std::time::Instant;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn pace() {
    let file = tempfile::tempdir().unwrap();
    let sqlite = Place::file(file.path());
    let database = Database::fresh();
    let postgres = database.place();
    let mut stores = Vec::new();
    for (name, place) in [("SQLite", sqlite), ("PostgreSQL", postgres)] {
        let mut store = Store::open(&place, StoreRole::Provider, Network::Regtest).await.unwrap();
        store.load::<Event>().await.unwrap();
        let opened: Vec<_> = (0..1_000).map(|i| event(i, Event::Opened(i))).collect();
        store.commit(&opened, None).await.unwrap();
        stores.push((name, store));
    }
    let body = 1_000_000_000_000_u64;
    for round in 0..3 {
        for (size, times) in [(1_u32, 1_000_u32), (100, 100), (500, 60)] {
            for (name, store) in &mut stores {
                let start = Instant::now();
                for k in 0..times {
                    let batch: Vec<_> = (0..size)
                        .map(|i| event((k * size + i) % 1_000, Event::Paid(body + u64::from(k))))
                        .collect();
                    store.commit(&batch, None).await.unwrap();
                }
                let took = start.elapsed();
                let rate = f64::from(size * times) / took.as_secs_f64();
                println!("{round} {name} {size}: {rate:.0}/s, {:?} a batch", took / times);
            }
        }
    }
}
