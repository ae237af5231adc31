//! What a trade survives. Named after the rows of the project's list of faults.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bitcoin::Amount;
use bitmesh_core::{
    channel::{ChannelStatus, SpendKind},
    units::Octets,
};
use bitmesh_tests::{
    counters,
    daemon::eventually,
    pinned::Pinned,
    sabotage::pins_of,
    topology::{INTERNET_V4, Topology},
    traffic::{Direction, Server, Transfer, transfer},
    world::{Trade, World},
};
use bitmesh_user::runloop::status::Phase;

const COINS: Amount = Amount::from_sat(200_000);
const MIB: u64 = 1 << 20;

/// Both sides name the same payment, and the provider's count is what arrived.
fn ledgers_agree(topology: &Topology, world: &World<'_>) -> Result<()> {
    world.wait_for(Phase::Buying)?;
    world.wait_for_same_books()?;
    let usage = world.usage_as_counted(topology)?;
    let account = world.account()?;
    assert!(usage.billed() <= account.bought_octets, "{account:?}");
    Ok(())
}

#[test]
fn p13_d14_kill_9_of_either_side_in_mid_download_loses_nothing() -> Result<()> {
    let topology = Topology::edge()?;
    let mut world = World::new(&topology, &Trade::default())?;
    let _server = Server::start(&topology.internet)?;
    counters::start_far_sides(&topology)?;
    world.open_channel(COINS)?;

    let half = |world: &World<'_>, from: u64| {
        eventually("half of a download", Duration::from_secs(20), || {
            let used = world.account()?.usage.down.octets.0;
            Ok((used > from + 12 * MIB).then_some(()))
        })
    };
    let download =
        |mib| Transfer::start(&topology.subscriber, INTERNET_V4, Direction::Download, mib, 100);
    let running = download(24)?;
    half(&world, 0)?;
    let before = world.account()?;
    world.provider.kill();
    std::thread::sleep(Duration::from_millis(500));
    world.provider.start()?;
    let after = world.account()?;
    assert!(after.bought_octets >= before.bought_octets, "an acknowledged payment was forgotten");
    assert!(after.usage.down.octets >= before.usage.down.octets, "a count was lost");
    running.finish(Duration::from_mins(1))?;
    ledgers_agree(&topology, &world)?;

    let from = world.account()?.usage.down.octets.0;
    let running = download(24)?;
    half(&world, from)?;
    world.subscriber.kill();
    std::thread::sleep(Duration::from_millis(500));
    world.subscriber.start()?;
    running.finish(Duration::from_mins(1))?;
    ledgers_agree(&topology, &world)
}

#[test]
fn p13_kill_9_at_many_moments_forgets_no_payment_and_no_octet() -> Result<()> {
    let topology = Topology::edge()?;
    let mut world = World::new(&topology, &Trade::default())?;
    let _server = Server::start(&topology.internet)?;
    counters::start_far_sides(&topology)?;
    world.open_channel(COINS)?;
    let running = Transfer::start(&topology.subscriber, INTERNET_V4, Direction::Download, 36, 200)?;
    let mut acknowledged = Octets(0);
    // Payments come every few milliseconds: each kill meets another step of one.
    for pause in [211, 97, 153, 49, 301, 123, 77, 17] {
        std::thread::sleep(Duration::from_millis(pause));
        let told = world.subscriber_status()?.account;
        acknowledged = acknowledged.max(told.map_or(Octets(0), |account| account.bought_octets));
        let daemon = if pause % 3 == 0 { &mut world.subscriber } else { &mut world.provider };
        daemon.kill();
        daemon.start()?;
        let kept = world.account()?.bought_octets;
        assert!(kept >= acknowledged, "{acknowledged} was acknowledged, {kept} is known");
    }
    running.finish(Duration::from_mins(1))?;
    ledgers_agree(&topology, &world)
}

#[test]
fn d14_without_a_controller_traffic_ends_exactly_at_the_credit() -> Result<()> {
    let topology = Topology::edge()?;
    let mut world = World::new(&topology, &Trade::default())?;
    let _server = Server::start(&topology.internet)?;
    counters::start_far_sides(&topology)?;
    world.open_channel(COINS)?;
    let mut running =
        Transfer::start(&topology.subscriber, INTERNET_V4, Direction::Download, 200, 100)?;
    eventually("a download under way", Duration::from_secs(20), || {
        Ok((world.account()?.usage.down.octets.0 > 4 * MIB).then_some(()))
    })?;
    world.provider.kill();
    let mut last = counters::read(&topology.subscriber)?;
    eventually("traffic that has ended", Duration::from_secs(30), || {
        std::thread::sleep(Duration::from_secs(1));
        let now = counters::read(&topology.subscriber)?;
        let rests = now.received == last.received;
        last = now;
        Ok(rests.then_some(()))
    })?;
    assert!(!running.ended()?);
    drop(running);
    world.subscriber.kill();
    // A payment that was durable and not yet granted counts only once the controller is back.
    let granted = Pinned::open(&pins_of(world.instance()))?.stations();
    let [station] = granted.as_slice() else { bail!("stations in the kernel: {granted:?}") };
    assert!(station.used <= station.limit, "{station:?}");
    assert!(station.limit < station.used + 1_500, "credit was withheld: {station:?}");
    world.provider.start()?;
    let account = world.account()?;
    assert!(account.usage.billed() <= account.bought_octets, "{account:?}");
    assert!(Octets(station.limit) <= account.bought_octets, "granted before paid: {account:?}");
    // What the ended client still exchanged is counted, too.
    world.usage_as_counted(&topology)?;
    Ok(())
}

#[test]
fn p18_when_the_provider_vanishes_the_subscriber_refunds_alone() -> Result<()> {
    let topology = Topology::edge()?;
    let mut world = World::new(&topology, &Trade::default())?;
    world.open_channel(COINS)?;
    world.provider.kill();
    let ours = world.own_channel()?;
    let blocks = ours.params.expiry_height - world.node.height()?;
    // A block before the expiry nothing may happen; in steps, as a wallet sees them.
    world.node.mine(blocks - 1)?;
    eventually("the block before the expiry", Duration::from_mins(1), || {
        let height = world.subscriber_status()?.chain.height;
        Ok((height + 1 == ours.params.expiry_height).then_some(()))
    })?;
    assert!(world.node.mempool()?.is_empty());
    world.node.mine(1)?;
    let txid = eventually("a refund", Duration::from_secs(20), || {
        Ok(world.node.mempool()?.first().copied())
    })
    .with_context(|| world.logs())?;
    let refund = world.node.transaction(txid, None)?;
    assert_eq!(refund.lock_time.to_consensus_u32(), ours.params.expiry_height);
    world.node.mine(6)?;
    eventually("refunded", Duration::from_secs(20), || {
        let channel = world.own_channel()?;
        let closed = ChannelStatus::Closed { kind: Some(SpendKind::Refund) };
        Ok((channel.status == closed).then_some(()))
    })
    .with_context(|| world.logs())
}

#[test]
fn p10_a_reorganisation_of_the_funding_freezes_the_channel_until_it_is_mined_again() -> Result<()> {
    let topology = Topology::edge()?;
    let mut world = World::new(&topology, &Trade::default())?;
    let _server = Server::start(&topology.internet)?;
    world.open_channel(COINS)?;
    transfer(&topology.subscriber, INTERNET_V4, Direction::Download, 4, 200)?;
    let paid = world.channel()?.1.paid;
    let height = world.node.height()?;
    world.node.invalidate_from(height)?;
    // Another block of that height, without the funding.
    world.node.mine_empty(1)?;
    eventually("frozen", Duration::from_secs(20), || {
        let (ours, theirs) = world.channel()?;
        let frozen = ChannelStatus::Unfunded;
        Ok((ours.status == frozen && theirs.status == frozen).then_some(()))
    })
    .with_context(|| world.logs())?;
    world.node.mine(1)?;
    world.wait_for(Phase::Buying)?;
    // More than a tick that was paid ahead can cover.
    transfer(&topology.subscriber, INTERNET_V4, Direction::Download, 24, 200)?;
    // A payment may be on its way between the two looks.
    eventually("two ledgers that agree on more than before", Duration::from_secs(20), || {
        let (ours, theirs) = world.channel()?;
        Ok((theirs.paid > paid && ours.paid == theirs.paid).then_some(()))
    })
    .with_context(|| world.logs())?;
    Ok(())
}

#[test]
fn p16_without_the_node_credit_is_honoured_and_payments_go_on() -> Result<()> {
    let topology = Topology::edge()?;
    let mut world = World::new(&topology, &Trade::default())?;
    let _server = Server::start(&topology.internet)?;
    world.open_channel(COINS)?;
    world.node.stop()?;
    eventually("a provider that misses its node", Duration::from_secs(20), || {
        let status = world.provider_status()?;
        Ok((!status.chain.synced).then_some(()))
    })?;
    let paid = world.channel()?.1.paid;
    transfer(&topology.subscriber, INTERNET_V4, Direction::Download, 16, 200)?;
    assert!(world.channel()?.1.paid > paid);
    world.node.launch()?;
    eventually("a provider that has its node back", Duration::from_secs(20), || {
        Ok(world.provider_status()?.chain.synced.then_some(()))
    })
}
