//! A provider and a subscriber trade over a real kernel and a real node.

use std::{
    io::ErrorKind,
    net::{TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use bitcoin::Amount;
use bitmesh_core::{
    channel::{ChannelStatus, SpendKind},
    offer::SignedOffer,
    units::Octets,
};
use bitmesh_tests::{
    counters,
    daemon::eventually,
    topology::{EDGE_FREELOADER_V4, INTERNET_V4, INTERNET_V6, SUBSCRIBER_V4, Topology},
    traffic::{Direction, Server, Transfer, transfer},
    world::{Trade, World},
};
use bitmesh_user::{
    http,
    runloop::status::{Phase, WalletStatus},
};

const COINS: Amount = Amount::from_sat(200_000);
/// A hundred satoshi a MiB, so that a claim is worth its fee.
const DEAR: u64 = 100_000;
/// The largest frame that could have passed with the credit that is left.
const MTU: Octets = Octets(1_500);

fn exact_to_the_octet(sell: &[&str]) -> Result<()> {
    let topology = Topology::edge()?;
    let mut world = World::new(&topology, &Trade { sell, ..Trade::default() })?;
    let _server = Server::start(&topology.internet)?;
    counters::start_far_sides(&topology)?;
    world.open_channel(COINS)?;
    for (host, direction) in [
        (INTERNET_V4, Direction::Download),
        (INTERNET_V6, Direction::Upload),
        (INTERNET_V6, Direction::Download),
        (INTERNET_V4, Direction::Upload),
    ] {
        transfer(&topology.subscriber, host, direction, 8, 200)?;
    }
    let usage = world.usage_as_counted(&topology)?;
    assert!(usage.up.octets.0 > 16 << 20 && usage.down.octets.0 > 16 << 20, "{usage:?}");
    let own = world.subscriber_status()?.counted_octets;
    let sent_and_received = usage.billed().saturating_add(usage.up.refused_octets);
    assert_eq!(own, sent_and_received, "the subscriber's own count");
    Ok(())
}

#[test]
fn what_is_billed_is_what_arrives_with_uploads_metered_by_xdp() -> Result<()> {
    exact_to_the_octet(&["--upload-hook", "xdp"])
}

#[test]
fn what_is_billed_is_what_arrives_with_uploads_metered_by_tc() -> Result<()> {
    exact_to_the_octet(&["--upload-hook", "tc"])
}

#[test]
fn who_asks_is_told_what_was_counted_until_now_however_long_all_rested() -> Result<()> {
    let topology = Topology::edge()?;
    let mut world = World::new(&topology, &Trade::default())?;
    let _server = Server::start(&topology.internet)?;
    counters::start_far_sides(&topology)?;
    world.open_channel(COINS)?;
    for _ in 0..3 {
        // By then counters are read once a second.
        thread::sleep(Duration::from_secs(3));
        transfer(&topology.subscriber, INTERNET_V4, Direction::Download, 1, 200)?;
        world.usage_as_counted(&topology)?;
    }
    Ok(())
}

#[test]
fn a_spent_budget_cuts_off_to_the_octet_and_the_claim_pays_to_the_satoshi() -> Result<()> {
    let topology = Topology::edge()?;
    let trade = Trade { price: DEAR, budget: 2_000, ..Trade::default() };
    let mut world = World::new(&topology, &trade)?;
    let _server = Server::start(&topology.internet)?;
    counters::start_far_sides(&topology)?;
    world.open_channel(COINS)?;

    let mut download =
        Transfer::start(&topology.subscriber, INTERNET_V4, Direction::Download, 40, 200)?;
    world.wait_for(Phase::BudgetSpent)?;
    eventually("cut off", Duration::from_secs(10), || {
        let account = world.account()?;
        let refused = account.usage.down.refused_octets > Octets(0);
        Ok((refused && account.credit_octets < MTU).then_some(()))
    })?;
    let account = world.account()?;
    assert_eq!(account.bought_octets, Octets(20 << 20), "2,000 sat buy 20 MiB");
    assert!(account.usage.billed() <= account.bought_octets, "{account:?}");
    assert!(!download.ended()?, "40 MiB were sent for 20 MiB paid");

    let added = world.subscriber.cli(&["budget", "--add", "3000"])?;
    ensure!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
    assert!(download.finish(Duration::from_mins(1))? >= 40 << 20);
    world.usage_as_counted(&topology)?;

    settles_to_the_satoshi(&mut world)
}

fn settles_to_the_satoshi(world: &mut World<'_>) -> Result<()> {
    let closed = world.subscriber.cli(&["close", "--all"])?;
    ensure!(closed.status.success(), "{}", String::from_utf8_lossy(&closed.stderr));
    let txid = eventually("a claim", Duration::from_secs(20), || {
        Ok(world.node.mempool()?.first().copied())
    })
    .with_context(|| world.logs())?;
    let claim = world.node.transaction(txid, None)?;
    let (ours, theirs) = world.channel()?;
    assert_eq!((ours.paid, ours.commitments), (theirs.paid, theirs.commitments));
    let remainder = claim.output.first().context("a remainder")?;
    assert_eq!(remainder.script_pubkey, ours.params.remainder_script);
    assert_eq!(remainder.value, ours.params.capacity - ours.paid);
    let fee = Amount::from_sat(theirs.closing_fee_sat.context("the claim's fee")?);
    let payout = claim.output.get(1).context("a payout")?;
    assert_eq!(payout.value, ours.paid - fee);
    assert_eq!(claim.version.0, 3);

    world.node.mine(1)?;
    let settled = |depth| ChannelStatus::Settled { kind: SpendKind::Claim, depth };
    world.wait_for_status(settled(1))?;
    let wallet: WalletStatus = world.provider.json(&["wallet"])?;
    assert_eq!(wallet.confirmed_sat, payout.value.to_sat());
    world.node.mine(5)?;
    world.wait_for_status(ChannelStatus::Closed { kind: Some(SpendKind::Claim) })
}

#[test]
fn who_never_pays_reaches_the_offer_and_the_api_and_nothing_else() -> Result<()> {
    let topology = Topology::edge()?;
    let mut world = World::new(&topology, &Trade::default())?;
    let _server = Server::start(&topology.internet)?;
    world.open_channel(COINS)?;
    transfer(&topology.subscriber, INTERNET_V4, Direction::Download, 4, 200)?;

    let offer = topology.freeloader.block_on(async || {
        let url = format!("http://{EDGE_FREELOADER_V4}:8434/v1/offer");
        Ok(http::plain()
            .build()?
            .get(url)
            .send()
            .await?
            .error_for_status()?
            .json::<SignedOffer>()
            .await?)
    })?;
    offer.offer.validate()?;

    let receiver = topology.internet.run(|| Ok(UdpSocket::bind((INTERNET_V4, 9_000))?))?;
    receiver.set_read_timeout(Some(Duration::from_millis(500)))?;
    let heard = || receiver.recv_from(&mut [0; 64]);
    let send = |namespace: &bitmesh_tests::netns::Namespace| {
        namespace.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            for _ in 0..100 {
                socket.send_to(b"unpaid", (INTERNET_V4, 9_000))?;
            }
            Ok(())
        })
    };
    send(&topology.freeloader)?;
    assert_eq!(heard().map_err(|error| error.kind()), Err(ErrorKind::WouldBlock));
    send(&topology.subscriber)?;
    assert_eq!(heard()?.1.ip().to_string(), SUBSCRIBER_V4, "who pays is heard");

    let connected = topology.freeloader.run(|| {
        let host = format!("{INTERNET_V4}:5201").parse()?;
        Ok(TcpStream::connect_timeout(&host, Duration::from_secs(2)).is_ok())
    })?;
    assert!(!connected);
    Ok(())
}
