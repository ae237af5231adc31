//! The life of channels between two daemons and a real node: left without a payment, followed by the
//! next one, funded again, deserted.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bitcoin::{Amount, Transaction, Txid};
use bitmesh_core::{
    channel::{CLAIM_DONE_BLOCKS, CLAIM_MARGIN_BLOCKS, ChannelStatus, SpendKind},
    units::Octets,
    wire::ChannelReport,
};
use bitmesh_tests::{
    counters,
    daemon::eventually,
    stalls::Stalls,
    topology::{INTERNET_V4, Topology},
    traffic::{Direction, Server, Transfer, transfer},
    world::{Trade, World},
};
use bitmesh_user::runloop::status::{Phase, WalletStatus};

const COINS: Amount = Amount::from_sat(200_000);
/// A hundred satoshi a MiB.
const DEAR: u64 = 100_000;
/// Longer than a funding is held back after it was presented.
const STEP: Duration = Duration::from_secs(90);

/// Gives the subscriber coins, and waits for its funding in the mempool.
fn funding(world: &mut World<'_>) -> Result<Transaction> {
    world.subscriber.start()?;
    let wallet: WalletStatus = world.subscriber.json(&["wallet"])?;
    world.node.send(&wallet.address, COINS)?;
    world.node.mine(1)?;
    in_mempool(world, &[])
}

/// A transaction in the mempool that is none of these.
fn in_mempool(world: &World<'_>, known: &[Txid]) -> Result<Transaction> {
    let txid = eventually("a transaction in the mempool", STEP, || {
        Ok(world.node.mempool()?.into_iter().find(|txid| !known.contains(txid)))
    })
    .with_context(|| world.logs())?;
    world.node.transaction(txid, None)
}

fn close_all(world: &World<'_>) -> Result<()> {
    let closed = world.subscriber.cli(&["close", "--all"])?;
    ensure!(closed.status.success(), "{}", String::from_utf8_lossy(&closed.stderr));
    Ok(())
}

fn channels(world: &World<'_>) -> Result<(Vec<ChannelReport>, Vec<ChannelReport>)> {
    Ok((world.subscriber.json(&["channels"])?, world.provider.json(&["channels"])?))
}

/// The close that both signed: its fee, and what it pays to the provider.
fn closes_together(world: &World<'_>) -> Result<(Amount, Amount)> {
    let close = in_mempool(world, &[])?;
    let (ours, _) = eventually("a close that both know", STEP, || {
        let (ours, theirs) = world.channel()?;
        let known = [ours.closing_txid, theirs.closing_txid] == [Some(close.compute_txid()); 2];
        Ok(known.then_some((ours, theirs)))
    })?;
    assert_eq!(close.version.0, 3);
    assert_eq!(close.lock_time.to_consensus_u32(), 0);
    let remainder = close.output.first().context("a remainder")?;
    assert_eq!(remainder.script_pubkey, ours.params.remainder_script);
    let payout = close.output.get(1).map_or(Amount::ZERO, |output| output.value);
    world.node.mine(1)?;
    let kind = SpendKind::Close;
    world.wait_for_status(ChannelStatus::Settled { kind, depth: 1 })?;
    world.node.mine(5)?;
    world.wait_for_status(ChannelStatus::Closed { kind: Some(kind) })?;
    let fee = ours.params.capacity - remainder.value - payout;
    let wallet: WalletStatus = world.subscriber.json(&["wallet"])?;
    assert_eq!(wallet.pending_sat, 0);
    assert!(wallet.confirmed_sat >= COINS.to_sat() - fee.to_sat() - 1_000, "{wallet:?}");
    Ok((fee, payout))
}

#[test]
fn a_channel_that_was_never_paid_on_gives_its_money_back_at_once() -> Result<()> {
    let topology = Topology::edge()?;
    let mut world = World::new(&topology, &Trade::default())?;
    funding(&mut world)?;
    close_all(&world)?;
    world.node.mine(1)?;
    let (fee, payout) = closes_together(&world)?;
    assert_eq!(payout, Amount::ZERO);
    assert!(fee < Amount::from_sat(1_000), "{fee}");
    Ok(())
}

#[test]
fn a_payment_that_is_not_worth_a_claim_does_not_keep_the_rest() -> Result<()> {
    let topology = Topology::edge()?;
    let trade = Trade { price: 400_000, budget: 400, ..Trade::default() };
    let mut world = World::new(&topology, &trade)?;
    let _server = Server::start(&topology.internet)?;
    funding(&mut world)?;
    world.node.mine(1)?;
    let has_paid = |least| {
        let paid = || Ok(Some(world.channel()?.1.paid).filter(|paid| *paid >= least));
        eventually("a payment", STEP, paid).with_context(|| world.logs())
    };
    has_paid(Amount::ONE_SAT)?;
    let download = Transfer::start(&topology.subscriber, INTERNET_V4, Direction::Download, 4, 20)?;
    // A MiB: more than dust, less than twice a claim's fee.
    let paid = has_paid(Amount::from_sat(400))?;
    drop(download);
    close_all(&world)?;
    let (_, payout) = closes_together(&world)?;
    assert_eq!(payout, paid, "exactly what was paid");
    let wallet: WalletStatus = world.provider.json(&["wallet"])?;
    assert_eq!(wallet.confirmed_sat, paid.to_sat());
    Ok(())
}

#[test]
fn the_next_channel_takes_over_without_a_pause() -> Result<()> {
    let topology = Topology::edge()?;
    let trade = Trade { price: DEAR, budget: 20_000, capacity: 6_000, ..Trade::default() };
    let mut world = World::new(&topology, &trade)?;
    let _server = Server::start(&topology.internet)?;
    counters::start_far_sides(&topology)?;
    world.open_channel(COINS)?;
    // 56 MiB to a channel: the next one has to be there when 14 are left, at 2.5 MiB/s.
    let download = Transfer::start(&topology.subscriber, INTERNET_V4, Direction::Download, 80, 20)?;
    let next = in_mempool(&world, &[])?;
    let (ours, _) = channels(&world)?;
    assert_eq!(ours.len(), 2);
    assert!(ours.iter().all(|channel| channel.params.capacity == trade_capacity()));
    world.node.mine(1)?;
    takes_over(&world, next.compute_txid())?;
    assert!(download.finish(Duration::from_mins(2))? >= 80 << 20);

    world.usage_as_counted(&topology)?;
    world.wait_for_same_books()?;
    let (ours, theirs) = channels(&world)?;
    let full = ours.iter().filter(|c| c.paid == c.params.payable()).count();
    assert_eq!(full, 1, "{ours:?}");
    let bought: u64 = theirs.iter().map(|channel| channel.bought_octets.0).sum();
    let account = world.account()?;
    assert_eq!(account.bought_octets, Octets(bought), "one account has both");
    assert!(account.bought_octets >= account.usage.billed());
    let paid = ours.iter().map(|channel| channel.paid).sum::<Amount>();
    assert_eq!(world.subscriber_status()?.spent_sat, paid.to_sat());

    // The first is closed by itself.
    let claim = in_mempool(&world, &[])?;
    let full = ours.iter().find(|c| c.paid == c.params.payable()).context("a full one")?;
    let spent = full.funding.context("its funding")?;
    assert!(claim.input.iter().any(|input| input.previous_output == spent));
    world.node.mine(1)?;
    world.wait_for(Phase::Buying)
}

/// How long a download may rest, as far as it can be seen from outside: without a channel to pay on it rests until
/// the next block.
const PAUSE: Duration = Duration::from_secs(1);

/// Waits until the channel that is funded by this transaction is paid on, and looks at the download meanwhile.
fn takes_over(world: &World<'_>, funding: Txid) -> Result<()> {
    let stalls = Stalls::watch();
    let (mut octets, mut since, mut longest) = (Octets(0), Instant::now(), Duration::ZERO);
    let (mut looked, mut look) = (Instant::now(), Duration::ZERO);
    eventually("payments on the next channel", STEP, || {
        look = look.max(looked.elapsed());
        looked = Instant::now();
        let now = world.account()?.usage.down.octets;
        longest = longest.max(since.elapsed());
        if now > octets {
            (octets, since) = (now, Instant::now());
        }
        let (ours, _) = channels(world)?;
        let is_next = |it: &&ChannelReport| it.funding.is_some_and(|it| it.txid == funding);
        let next = ours.iter().find(is_next);
        Ok(next.filter(|next| next.paid > Amount::ZERO).map(drop))
    })?;
    let stalled = stalls.longest();
    // A rest begins after one look and ends before another.
    ensure!(look < PAUSE + stalled, "a look took {look:?}, stalled for {stalled:?}");
    ensure!(
        longest < PAUSE + look * 2 + stalled,
        "it rested for {longest:?}, seen each {look:?}, stalled for {stalled:?}"
    );
    Ok(())
}

fn trade_capacity() -> Amount {
    Amount::from_sat(6_000)
}

#[test]
fn without_more_budget_no_second_channel_is_opened() -> Result<()> {
    let topology = Topology::edge()?;
    let trade = Trade { price: 1_000_000, budget: 6_000, capacity: 6_000, ..Trade::default() };
    let mut world = World::new(&topology, &trade)?;
    let _server = Server::start(&topology.internet)?;
    world.open_channel(COINS)?;
    let download = Transfer::start(&topology.subscriber, INTERNET_V4, Direction::Download, 8, 20)?;
    world.wait_for(Phase::ChannelSpent)?;
    assert!(world.node.mempool()?.is_empty());
    let added = world.subscriber.cli(&["budget", "--add", "12000"])?;
    ensure!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
    // The claim of the first, and the funding of the next, which goes on where it ended.
    eventually("a claim and a funding", STEP, || {
        Ok((world.node.mempool()?.len() == 2).then_some(()))
    })
    .with_context(|| world.logs())?;
    world.node.mine(1)?;
    assert!(download.finish(Duration::from_mins(2))? >= 8 << 20);
    Ok(())
}

#[test]
fn p1_a_funding_that_does_not_confirm_is_replaced_and_the_replacement_is_the_channel() -> Result<()>
{
    let topology = Topology::edge()?;
    let mut world = World::new(&topology, &Trade::default())?;
    let first = funding(&mut world)?;
    world.node.mine_empty(6)?;
    let second = in_mempool(&world, &[first.compute_txid()])?;
    assert_eq!(world.node.mempool()?, [second.compute_txid()], "the first one is replaced");
    let refused = world.node.refuses(&first)?;
    ensure!(refused.is_some(), "both could be in a mempool");
    world.node.mine(1)?;
    world.wait_for(Phase::Buying)?;
    let (ours, theirs) = world.channel()?;
    assert_eq!(ours.funding.map(|funding| funding.txid), Some(second.compute_txid()));
    assert_eq!(theirs.funding, ours.funding);
    Ok(())
}

#[test]
fn p19_when_the_subscriber_vanishes_the_provider_settles_the_best_state() -> Result<()> {
    let topology = Topology::edge()?;
    let mut world = World::new(&topology, &Trade { price: DEAR, ..Trade::default() })?;
    let _server = Server::start(&topology.internet)?;
    world.open_channel(COINS)?;
    let _cut = Transfer::start(&topology.subscriber, INTERNET_V4, Direction::Download, 200, 40)?;
    eventually("some payments", STEP, || {
        Ok((world.own_channel()?.paid > Amount::from_sat(1_000)).then_some(()))
    })?;
    world.subscriber.kill();
    let provider = |world: &World<'_>| -> Result<ChannelReport> {
        world.provider.channels()?.into_values().next().context("a channel")
    };
    let margin = provider(&world)?.params.expiry_height - CLAIM_MARGIN_BLOCKS;
    world.node.mine(margin - world.node.height()?)?;
    let claim = in_mempool(&world, &[])?;
    let best = provider(&world)?;
    let remainder = claim.output.first().context("a remainder")?;
    assert_eq!(remainder.value, best.params.capacity - best.paid, "the best state");
    assert_eq!(remainder.script_pubkey, best.params.remainder_script);
    world.node.mine(6)?;
    let closed = ChannelStatus::Closed { kind: Some(SpendKind::Claim) };
    eventually("the end", STEP, || Ok((provider(&world)?.status == closed).then_some(())))?;
    ensure!(world.node.height()? + CLAIM_DONE_BLOCKS < best.params.expiry_height);
    Ok(())
}

#[test]
fn a_download_goes_on_after_both_were_killed_while_a_second_channel_was_opened() -> Result<()> {
    let topology = Topology::edge()?;
    let trade = Trade { price: DEAR, budget: 20_000, capacity: 6_000, ..Trade::default() };
    let mut world = World::new(&topology, &trade)?;
    let _server = Server::start(&topology.internet)?;
    world.open_channel(COINS)?;
    transfer(&topology.subscriber, INTERNET_V4, Direction::Download, 44, 200)?;
    in_mempool(&world, &[])?;
    world.subscriber.kill();
    world.provider.kill();
    world.node.mine(1)?;
    world.provider.start()?;
    world.subscriber.start()?;
    world.wait_for(Phase::Buying)?;
    transfer(&topology.subscriber, INTERNET_V4, Direction::Download, 20, 200)?;
    world.wait_for_same_books()?;
    assert_eq!(channels(&world)?.0.len(), 2, "no third one");
    Ok(())
}

/// A thousand satoshi before confirmation: 10 MiB.
const CREDIT: [&str; 2] = ["--unconfirmed-credit", "1000"];

#[test]
fn payments_count_before_the_funding_confirms_up_to_what_the_provider_allows() -> Result<()> {
    let topology = Topology::edge()?;
    let mut world =
        World::new(&topology, &Trade { price: DEAR, sell: &CREDIT, ..Trade::default() })?;
    let _server = Server::start(&topology.internet)?;
    funding(&mut world)?;
    world.wait_for(Phase::Buying)?;
    let download = Transfer::start(&topology.subscriber, INTERNET_V4, Direction::Download, 40, 40)?;
    world.wait_for(Phase::Confirming)?;
    world.wait_for_same_books()?;
    let (ours, theirs) = world.channel()?;
    assert_eq!((ours.funding, theirs.funding), (None, None));
    assert_eq!(theirs.paid, Amount::from_sat(1_000));
    assert!(world.subscriber_status()?.message.contains("1000 sat"));
    world.node.mine(1)?;
    assert!(download.finish(Duration::from_mins(2))? >= 40 << 20);
    world.wait_for_same_books()?;
    let (ours, theirs) = world.channel()?;
    assert!(ours.funding.is_some());
    assert_eq!(ours.funding, theirs.funding);
    Ok(())
}

#[test]
fn who_sees_no_chain_buys_with_what_it_has() -> Result<()> {
    let topology = Topology::edge()?;
    let trade = Trade { price: DEAR, budget: 0, sell: &CREDIT, ..Trade::default() };
    let mut world = World::new(&topology, &trade)?;
    let _server = Server::start(&topology.internet)?;
    world.subscriber.start()?;
    let wallet: WalletStatus = world.subscriber.json(&["wallet"])?;
    world.node.send(&wallet.address, COINS)?;
    world.node.mine(1)?;
    eventually("the coins", STEP, || {
        let wallet: WalletStatus = world.subscriber.json(&["wallet"])?;
        Ok((wallet.confirmed_sat == COINS.to_sat()).then_some(()))
    })?;
    topology.chain.set_up("subscriber0", false)?;
    world.node.mine(3)?;
    let added = world.subscriber.cli(&["budget", "--add", "40000"])?;
    ensure!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
    world.wait_for(Phase::Buying)?;
    in_mempool(&world, &[])?;
    transfer(&topology.subscriber, INTERNET_V4, Direction::Download, 4, 40)?;
    world.wait_for_same_books()?;
    let (ours, _) = world.channel()?;
    assert_eq!(ours.funding, None);
    assert!(ours.paid >= Amount::from_sat(400), "{}", ours.paid);

    topology.chain.set_up("subscriber0", true)?;
    world.node.mine(1)?;
    transfer(&topology.subscriber, INTERNET_V4, Direction::Download, 12, 40)?;
    world.wait_for_same_books()?;
    let (ours, theirs) = world.channel()?;
    assert_eq!(ours.funding, theirs.funding);
    assert!(ours.funding.is_some());
    Ok(())
}
