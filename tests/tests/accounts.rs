//! One account, several stations: they share one credit to the octet, and a new MAC takes over what
//! the old one left.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bitcoin::Amount;
use bitmesh_core::{
    units::Octets,
    wire::{AccountReport, ErrorBody},
};
use bitmesh_tests::{
    counters,
    daemon::eventually,
    netns::Namespace,
    topology::{EDGE_OWN, INTERNET_V4, Topology, UPLINK},
    traffic::{Direction, Server, Transfer, transfer},
    world::{Trade, World},
};
use bitmesh_user::{api::ShareCode, http, runloop::status::Phase};

const COINS: Amount = Amount::from_sat(200_000);
const MIB: u64 = 1 << 20;
/// A hundred satoshi a MiB, so that a budget is spent soon.
const DEAR: u64 = 100_000;
/// The largest frame that could have passed with the credit that is left.
const MTU: Octets = Octets(1_500);
/// What may be under way to a MAC at the moment that it changes.
const IN_FLIGHT: u64 = MIB;
/// Port of a second server.
const SECOND: u16 = 5_202;

/// Every station's row in a moment in which nothing flows, and what was counted then: octets that came to
/// subscriber and freeloader, and to the internet.
fn at_rest(topology: &Topology, world: &World<'_>) -> Result<(Vec<AccountReport>, u64, u64)> {
    let hosts = [&topology.subscriber, &topology.freeloader, &topology.internet];
    let (rows, [one, other, internet]) =
        counters::at_rest(hosts, || world.provider.json(&["stations"]))?;
    Ok((rows, one.received + other.received, internet.received))
}

/// Starts to count there.
fn count(topology: &Topology) -> Result<()> {
    let hosts = [&topology.subscriber, &topology.freeloader, &topology.internet];
    hosts.iter().try_for_each(|host| counters::start(host, UPLINK, &EDGE_OWN))
}

/// What `bitmesh share` prints.
fn code(world: &World<'_>) -> Result<ShareCode> {
    world.subscriber.json(&["share"])
}

/// Posts a code from a device, as its curl would.
fn present(from: &Namespace, code: &ShareCode) -> Result<Result<AccountReport, ErrorBody>> {
    let code = code.clone();
    from.block_on(async move || {
        let client = http::plain().timeout(Duration::from_secs(10)).build()?;
        let answer = client.post(&code.url).json(&code.body).send().await?;
        if answer.status().is_success() {
            return Ok(Ok(answer.json().await?));
        }
        Ok(Err(answer.json().await?))
    })
}

fn sum(rows: &[AccountReport], of: fn(&AccountReport) -> Octets) -> u64 {
    rows.iter().map(|row| of(row).0).sum()
}

#[test]
fn two_stations_share_one_credit_to_the_octet_and_neither_stalls() -> Result<()> {
    let topology = Topology::edge()?;
    let trade = Trade { price: DEAR, budget: 3_000, ..Trade::default() };
    let mut world = World::new(&topology, &trade)?;
    let _servers =
        (Server::start(&topology.internet)?, Server::start_at(&topology.internet, SECOND)?);
    count(&topology)?;
    world.open_channel(COINS)?;
    let code = code(&world)?;
    let bound = present(&topology.freeloader, &code)?;
    let bound = bound.map_err(|error| anyhow::anyhow!("{error:?}\n{}", world.logs()))?;
    ensure!(bound.bound && bound.stations == 2, "{bound:?}");
    let again = present(&topology.freeloader, &code)?.err().context("a code is for one")?;
    assert_eq!(again.error, "used");

    // 3,000 sat buy 30 MiB; both want 30, at the same time.
    let start = |namespace, port| {
        Transfer::start_at(namespace, INTERNET_V4, port, Direction::Download, 30, 80)
    };
    let mut one = start(&topology.subscriber, 5_201)?;
    let mut two = start(&topology.freeloader, SECOND)?;
    let mut most = 0;
    eventually("a spent budget", Duration::from_mins(1), || {
        let rows: Vec<AccountReport> = world.provider.json(&["stations"])?;
        let used = sum(&rows, |row| row.usage.billed());
        let bought = rows.first().map_or(0, |row| row.bought_octets.0);
        most = most.max(used.saturating_sub(bought));
        let spent = world.subscriber_status()?.phase == Phase::BudgetSpent;
        let credit = rows.first().map(|row| row.credit_octets);
        Ok((spent && credit.is_some_and(|credit| credit < MTU)).then_some(()))
    })
    .with_context(|| world.logs())?;
    assert_eq!(most, 0, "octets forwarded beyond what was bought");
    ensure!(!one.ended()? && !two.ended()?, "60 MiB were sent for 30 MiB paid");
    drop((one, two));

    let (rows, received, sent) = at_rest(&topology, &world)?;
    let [a, b] = rows.as_slice() else { anyhow::bail!("{rows:?}") };
    assert_eq!((a.account, a.bought_octets), (b.account, Octets(30 * MIB)));
    println!("{} and {} of {}", a.usage.billed(), b.usage.billed(), a.bought_octets);
    assert!(a.used_octets() <= a.bought_octets, "{rows:?}");
    assert_eq!(a.used_octets(), b.used_octets());
    for row in [a, b] {
        assert!(row.usage.down.octets > Octets(4 * MIB), "one of the two stalled: {rows:?}");
    }
    assert_eq!(sum(&rows, |row| row.usage.down.octets), received);
    assert_eq!(sum(&rows, |row| row.usage.up.octets), sent);
    Ok(())
}

#[test]
fn a_shared_credit_survives_kill_9_and_ends_with_who_is_taken_off() -> Result<()> {
    let topology = Topology::edge()?;
    let mut world = World::new(&topology, &Trade::default())?;
    let _server = Server::start(&topology.internet)?;
    count(&topology)?;
    world.open_channel(COINS)?;
    present(&topology.freeloader, &code(&world)?)?.map_err(|error| anyhow::anyhow!("{error:?}"))?;
    let download =
        |mib| Transfer::start(&topology.freeloader, INTERNET_V4, Direction::Download, mib, 100);
    let running = download(24)?;
    for pause in [400, 700] {
        std::thread::sleep(Duration::from_millis(pause));
        world.provider.kill();
        std::thread::sleep(Duration::from_millis(100));
        world.provider.start()?;
    }
    running.finish(Duration::from_mins(1)).with_context(|| world.logs())?;
    let (rows, received, _) = at_rest(&topology, &world)?;
    assert_eq!(sum(&rows, |row| row.usage.down.octets), received);
    assert!(rows.iter().all(|row| row.used_octets() <= row.bought_octets), "{rows:?}");

    let other =
        rows.iter().find(|row| row.usage.down.octets > Octets(8 * MIB)).context("the other")?;
    let mac = other.station.to_string();
    let removed = world.subscriber.cli(&["share", "--remove", &mac])?;
    ensure!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
    let before = counters::read(&topology.freeloader)?.received;
    let refused = download(1)?.finish(Duration::from_mins(1));
    ensure!(refused.is_err(), "{refused:?} octets were downloaded unpaid");
    assert_eq!(counters::read(&topology.freeloader)?.received, before, "unpaid octets arrived");
    Ok(())
}

#[test]
fn d2_a_new_mac_is_unpaid_until_the_account_key_rebinds_it_and_keeps_its_credit() -> Result<()> {
    let topology = Topology::edge()?;
    let mut world = World::new(&topology, &Trade::default())?;
    let _server = Server::start(&topology.internet)?;
    count(&topology)?;
    world.open_channel(COINS)?;
    transfer(&topology.subscriber, INTERNET_V4, Direction::Download, 8, 100)?;
    let exact = |world: &World<'_>| -> Result<_> {
        let (rows, received, sent) = at_rest(&topology, world)?;
        assert_eq!(sum(&rows, |row| row.usage.down.octets), received);
        assert_eq!(sum(&rows, |row| row.usage.up.octets), sent);
        Ok(rows)
    };
    // A payment that is under way would be granted later.
    world.wait_for_same_books()?;
    let before = exact(&world)?;
    let [row] = before.as_slice() else { anyhow::bail!("{before:?}") };
    let (old, credit) = (row.station, row.credit_octets);
    assert!(credit > MTU, "there is credit that could be used wrongly: {row:?}");

    // Without the key at hand, the new MAC is a stranger.
    world.subscriber.kill();
    topology.subscriber.set_mac(UPLINK, [0x02, 0xd2, 0, 0, 0, 1])?;
    let refused = transfer(&topology.subscriber, INTERNET_V4, Direction::Download, 1, 100);
    assert!(refused.is_err(), "{refused:?} octets were downloaded without payment");
    let rows = exact(&world)?;
    assert_eq!(rows.iter().map(|row| row.credit_octets).collect::<Vec<_>>(), [credit]);

    // With it, the credit is there again.
    world.subscriber.start()?;
    eventually("a new MAC that is bound", Duration::from_secs(20), || {
        let rows: Vec<AccountReport> = world.provider.json(&["stations"])?;
        let bound: Vec<_> = rows.iter().filter(|row| row.bound).collect();
        let [row] = bound.as_slice() else { return Ok(None) };
        let new = row.station != old && row.lease_octets >= credit;
        Ok(new.then_some(()))
    })
    .with_context(|| world.logs())?;
    transfer(&topology.subscriber, INTERNET_V4, Direction::Download, 8, 100)?;
    exact(&world)?;

    // And a MAC that changes in the middle of a download is rebound by itself.
    let running = Transfer::start(&topology.subscriber, INTERNET_V4, Direction::Download, 24, 100)?;
    eventually("some of a download", Duration::from_secs(20), || {
        let rows: Vec<AccountReport> = world.provider.json(&["stations"])?;
        Ok((sum(&rows, |row| row.usage.down.octets) > 20 * MIB).then_some(()))
    })?;
    topology.subscriber.set_mac(UPLINK, [0x02, 0xd2, 0, 0, 0, 2])?;
    assert!(running.finish(Duration::from_mins(2)).with_context(|| world.logs())? >= 24 * MIB);

    let (rows, received, sent) = at_rest(&topology, &world)?;
    let bound: Vec<_> = rows.iter().filter(|row| row.bound).collect();
    let [now] = bound.as_slice() else { anyhow::bail!("{rows:?}\n{}", world.logs()) };
    assert_eq!(now.station.to_string(), "02:d2:00:00:00:02");
    assert_eq!(rows.len(), 3, "what every MAC used stays paid for: {rows:?}");
    assert!(now.used_octets() <= now.bought_octets, "{rows:?}");
    // What was on its way to the old MAC was sent, and nobody took it.
    let lost = sum(&rows, |row| row.usage.down.octets).checked_sub(received);
    assert!(lost.is_some_and(|lost| lost < IN_FLIGHT), "{lost:?}: {rows:?}");
    assert_eq!(sum(&rows, |row| row.usage.up.octets), sent);
    world.wait_for(Phase::Buying)?;
    world.wait_for_same_books()?;
    assert_eq!(world.channel()?.0.dispute, None);
    Ok(())
}
