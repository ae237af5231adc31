//! A fleet: edges that share accounts through PostgreSQL.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bitmesh_tests::{
    daemon::eventually,
    fleet::{Fabric, Fleet, INTERNET},
    postgres::{Server, here},
    sweep::own_name,
    topology::UPLINK,
    traffic::{self, Direction, Transfer, transfer},
};

const MIB: u64 = 1 << 20;
/// In which a subscriber that moved is to be served again.
const ROAMED: Duration = Duration::from_secs(2);

/// What the tests of a fleet stand on.
#[test]
fn a_standby_has_what_the_primary_acknowledged() -> Result<()> {
    let mut primary = Server::start(&own_name("primary-"), here(), "")?;
    let socket = primary.socket().display().to_string();
    let mut standby = primary.standby(&own_name("standby-"), here(), &socket, "")?;
    primary.create("fleet")?;
    primary.sql("fleet", "CREATE TABLE paid AS SELECT 1 AS sum")?;
    primary.kill();
    standby.promote()?;
    assert_eq!(standby.sql("fleet", "SELECT sum FROM paid")?, "1");
    standby.sql("fleet", "INSERT INTO paid VALUES (2)")?;
    standby.stop()?;
    standby.launch()?;
    assert_eq!(standby.sql("fleet", "SELECT max(sum) FROM paid")?, "2");
    let left = (primary.socket().to_owned(), standby.socket().to_owned());
    drop((primary, standby));
    assert!(!left.0.exists() && !left.1.exists());
    Ok(())
}

#[test]
fn p11_a_subscriber_that_roams_takes_its_credit_along_and_one_edge_grants() -> Result<()> {
    let fabric = Fabric::new()?;
    let mut fleet = Fleet::new(&fabric, 3, &[])?;
    let _server = traffic::Server::start(&fabric.internet)?;
    fleet.open_channel()?;
    transfer(&fabric.subscriber, INTERNET, Direction::Download, 12, 200)
        .with_context(|| fleet.logs())?;
    let before = fleet.accounts(0)?;
    let [account] = before.as_slice() else { anyhow::bail!("{before:?}") };
    ensure!(account.usage.down.octets.0 >= 12 * MIB, "{account:?}");
    assert!(fleet.accounts(1)?.is_empty());

    let moved = Instant::now();
    fabric.roam()?;
    let download = Transfer::start(&fabric.subscriber, INTERNET, Direction::Download, 1, 200)?;
    download.finish(Duration::from_secs(20)).with_context(|| fleet.logs())?;
    let roamed = moved.elapsed();
    println!("downloading again {} ms after the cable was moved", roamed.as_millis());
    ensure!(roamed < ROAMED, "{roamed:?}\n{}", fleet.logs());

    transfer(&fabric.subscriber, INTERNET, Direction::Download, 12, 200)
        .with_context(|| fleet.logs())?;
    let after = fleet.accounts(1)?;
    let [there] = after.as_slice() else { anyhow::bail!("{after:?}") };
    assert_eq!(there.account, account.account);
    ensure!(there.usage.down.octets.0 >= 25 * MIB, "what was used at the first edge counts");
    ensure!(there.used_octets() <= there.bought_octets, "{there:?}");
    assert!(fleet.accounts(0)?.is_empty(), "the first edge honours nothing any more");
    assert_eq!((fleet.status(0)?.accounts_went, fleet.status(1)?.accounts_came), (1, 1));
    Ok(())
}

#[test]
fn p11_an_edge_that_is_cut_off_ends_to_grant_before_another_takes_over() -> Result<()> {
    let fabric = Fabric::new()?;
    // Slow, so that what was bought lasts for longer than the lease.
    let mut fleet = Fleet::new(&fabric, 3, &["--speed-down", "8"])?;
    let _server = traffic::Server::start(&fabric.internet)?;
    fleet.open_channel()?;
    transfer(&fabric.subscriber, INTERNET, Direction::Download, 2, 100)
        .with_context(|| fleet.logs())?;
    let mut download = Transfer::start(&fabric.subscriber, INTERNET, Direction::Download, 60, 100)?;
    std::thread::sleep(Duration::from_secs(1));
    let credit = fleet.accounts(0)?.first().map_or(0, |account| account.credit_octets.0);
    let bought = fleet.accounts(0)?.first().map_or(0, |account| account.bought_octets.0);
    ensure!(credit > 4 * MIB, "{credit} octets are no credit for four seconds");

    let cut = Instant::now();
    fabric.reach_database(0, false)?;
    let (mut last, mut received) = (cut, fabric.subscriber.received(UPLINK)?);
    let taken = eventually("a takeover", Duration::from_secs(20), || {
        let now = fabric.subscriber.received(UPLINK)?;
        if now > received + 2_000 {
            (last, received) = (Instant::now(), now);
        }
        Ok((fleet.status(1)?.accounts_came > 0).then(Instant::now))
    })
    .with_context(|| fleet.logs())?;
    println!(
        "the edge that was cut off ended after {} ms, the other took over after {} ms",
        last.duration_since(cut).as_millis(),
        taken.duration_since(cut).as_millis()
    );
    ensure!(last < taken, "both granted\n{}", fleet.logs());
    ensure!(last.duration_since(cut) > Duration::from_secs(1), "its lease was not over yet");
    ensure!(!download.ended()?, "60 MiB were sent");
    drop(download);

    fabric.roam()?;
    transfer(&fabric.subscriber, INTERNET, Direction::Download, 2, 100)
        .with_context(|| fleet.logs())?;
    let there = fleet.accounts(1)?;
    let [there] = there.as_slice() else { anyhow::bail!("{there:?}") };
    ensure!(there.bought_octets.0 >= bought, "what was acknowledged is forgotten: {there:?}");

    // Who was taken over comes back with nothing, under a new epoch.
    fabric.reach_database(0, true)?;
    eventually("the edge's return", Duration::from_secs(60), || {
        let status = fleet.status(0)?;
        Ok((status.may_grant && status.others.iter().all(|other| other.silent_ms < 2_000))
            .then_some(()))
    })
    .with_context(|| fleet.logs())?;
    assert!(fleet.accounts(0)?.is_empty());
    Ok(())
}
