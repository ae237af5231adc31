//! A look at what every edge has.

use super::*;

async fn problems(home: &Database) -> Vec<String> {
    let address = home.url().parse().unwrap();
    let mut look = FleetLook::open(&address, home.directory.path()).await.unwrap();
    let problems = look.problems::<Event>().await.unwrap();
    look.close().await.unwrap();
    problems
}

#[tokio::test(flavor = "multi_thread")]
async fn every_edges_rows_are_checked_at_one_moment_while_they_write() {
    let first = Database::fresh();
    let second = first.edge("two");
    let (mut one, _) = loaded(&first).await;
    let (mut two, _) = loaded(&second).await;
    one.commit(&[event(1, Event::Opened(0)), event(1, Event::Paid(1)), block(7)], None)
        .await
        .unwrap();
    one.tidy_beyond::<Event>(0, |_| false).await.unwrap();
    two.commit(&[event(2, Event::Opened(1)), event(2, Event::Paid(3))], None).await.unwrap();
    let address = first.url().parse().unwrap();
    let mut look = FleetLook::open(&address, first.directory.path()).await.unwrap();
    assert_eq!(look.purpose().await.unwrap(), (StoreRole::Provider, Network::Regtest));
    let edges = look.edges().await.unwrap();
    two.commit(&[event(2, Event::Paid(4))], None).await.unwrap();
    assert!(look.problems::<Event>().await.unwrap().is_empty());
    let mut found = Vec::new();
    for edge in &edges {
        let (entries, facts) = look.entries::<Event>(edge).await.unwrap();
        assert!(facts.ledger.ends_with(&edge.name) && facts.commits > 0, "{facts:?}");
        found.extend(entries);
    }
    let paid = |channel, sum| event(channel, Event::Paid(sum));
    let one_has = [event(1, Event::Opened(0)), paid(1, 1), block(7)];
    assert_eq!(found, [&one_has[..], &[event(2, Event::Opened(1)), paid(2, 3)]].concat());
    look.close().await.unwrap();
    // On its way to another edge, and seen all the same.
    first.sql(
        "INSERT INTO stands VALUES ('a', 1, ''); UPDATE accounts SET tip = 'a' WHERE edge = 2",
    );
    assert!(problems(&first).await.is_empty());
    first.sql("UPDATE journal SET body = '{\"paid\":9}' WHERE n = 1");
    let changed = problems(&first).await;
    assert!(changed.len() == 1 && changed[0].contains("was changed"), "{changed:?}");
    first.sql("UPDATE journal SET body = '{\"paid\":3}' WHERE n = 1");
    first.sql(
        "DELETE FROM accounts WHERE edge = 2; DELETE FROM channel_members WHERE channel = \
        (SELECT channel FROM channels)",
    );
    let loose = problems(&first).await.join("\n");
    assert!(loose.contains("1 folded journals of channels that are nobody's"), "{loose}");
    assert!(loose.contains("1 channels of accounts that there are not"), "{loose}");
}
