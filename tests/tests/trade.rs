//! A provider and a subscriber trade over a real kernel and a real node.

use std::time::Duration;

use anyhow::Result;
use bitcoin::Amount;
use bitmesh_tests::{
    counters,
    daemon::eventually,
    topology::{EDGE_OWN, INTERNET_V4, INTERNET_V6, Topology, UPLINK},
    traffic::{Direction, Server, transfer},
    world::{Trade, World},
};

const COINS: Amount = Amount::from_sat(200_000);

/// Counters of both sides, once what is in flight has arrived.
fn billed_and_counted(topology: &Topology, world: &World<'_>) -> Result<[(u64, u64); 2]> {
    let mut last = None;
    eventually("counters at rest", Duration::from_secs(10), || {
        let usage = world.account()?.usage;
        let subscriber = counters::read(&topology.subscriber)?;
        let internet = counters::read(&topology.internet)?;
        let seen =
            [(usage.down.octets.0, subscriber.received), (usage.up.octets.0, internet.received)];
        let rests = last == Some(seen);
        last = Some(seen);
        std::thread::sleep(Duration::from_millis(300));
        Ok(rests.then_some(seen))
    })
}

#[test]
fn what_is_billed_is_what_arrives_in_both_directions() -> Result<()> {
    let topology = Topology::edge()?;
    let mut world = World::new(&topology, &Trade::default())?;
    let _server = Server::start(&topology.internet)?;
    counters::start(&topology.subscriber, UPLINK, &EDGE_OWN)?;
    counters::start(&topology.internet, UPLINK, &[])?;
    world.open_channel(COINS)?;
    for (host, direction) in [
        (INTERNET_V4, Direction::Download),
        (INTERNET_V6, Direction::Upload),
        (INTERNET_V6, Direction::Download),
        (INTERNET_V4, Direction::Upload),
    ] {
        transfer(&topology.subscriber, host, direction, 8, 200)?;
    }
    for (billed, counted) in billed_and_counted(&topology, &world)? {
        assert!(billed > 16 << 20, "{billed}");
        assert_eq!(billed, counted, "{}", world.logs());
    }
    Ok(())
}
