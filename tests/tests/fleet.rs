//! A fleet: edges that share accounts through PostgreSQL.

use std::{
    net::UdpSocket,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use bitmesh_tests::{
    counters,
    daemon::eventually,
    fleet::{Fabric, Fleet, INTERNET},
    postgres::{Server, here},
    stalls::Stalls,
    sweep::own_name,
    traffic::{self, Direction, Transfer, transfer},
};

const MIB: u64 = 1 << 20;
/// In which one whose edge was taken over is to be served again.
const BACK: Duration = Duration::from_secs(20);
/// In which a subscriber that moved is to be served again.
const ROAMED: Duration = Duration::from_secs(2);
/// In which a step of a takeover is to succeed or to fail.
const STEP: Duration = Duration::from_secs(30);
/// How long it is watched that an edge that was taken over grants nothing.
const WATCHED: Duration = Duration::from_secs(1);
/// Port of a server whose client is ended in the middle of a download.
const BUSY_PORT: u16 = 5_202;

/// Has a session hold the rows that a query locks while `work` is done.
fn holding<T>(database: &Server<'_>, rows: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    std::thread::scope(|scope| {
        let held = format!("BEGIN; {rows}; SELECT pg_sleep(90)");
        let session = scope.spawn(move || database.sql("fleet", &held));
        let sessions =
            "FROM pg_stat_activity WHERE query LIKE '%pg_sleep(90)%' AND pid <> pg_backend_pid()";
        let done = eventually("rows that are held", STEP, || {
            let sleeping = format!("SELECT count(*) {sessions} AND wait_event = 'PgSleep'");
            let sleep = database.sql("fleet", &sleeping)?;
            Ok((sleep == "1").then_some(()))
        })
        .and_then(|()| work());
        database.sql("fleet", &format!("SELECT pg_terminate_backend(pid) {sessions}"))?;
        let ended = session.join().map_err(|_| anyhow::anyhow!("the session panicked"))?;
        ensure!(ended.is_err(), "rows were let go before all was done");
        done
    })
}

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

    let (moved, stalls) = (Instant::now(), Stalls::watch());
    fabric.roam()?;
    // A connection would be tried again each second only.
    while !fabric.answers()? {
        ensure!(moved.elapsed() < BACK, "{}", fleet.logs());
    }
    let roamed = moved.elapsed();
    println!("an answer from the internet {} ms after the cable was moved", roamed.as_millis());
    let stalled = stalls.longest();
    ensure!(roamed < ROAMED + stalled, "{roamed:?}, stalled for {stalled:?}\n{}", fleet.logs());

    transfer(&fabric.subscriber, INTERNET, Direction::Download, 12, 200)
        .with_context(|| fleet.logs())?;
    let after = fleet.accounts(1)?;
    let [there] = after.as_slice() else { anyhow::bail!("{after:?}") };
    assert_eq!(there.account, account.account);
    // It was read before the last of the first transfer may have been counted.
    let both = account.usage.down.octets.0 + 12 * MIB;
    ensure!(there.usage.down.octets.0 >= both, "what was used at the first edge counts: {there:?}");
    ensure!(there.used_octets() <= there.bought_octets, "{there:?}");
    assert!(fleet.accounts(0)?.is_empty(), "the first edge honours nothing any more");
    assert_eq!((fleet.status(0)?.accounts_went, fleet.status(1)?.accounts_came), (1, 1));
    Ok(())
}

#[test]
fn p11_an_edge_that_is_cut_off_ends_to_grant_before_another_takes_over() -> Result<()> {
    let fabric = Fabric::new()?;
    let mut fleet = Fleet::new(&fabric, 3, &[])?;
    let _server = traffic::Server::start(&fabric.internet)?;
    // What the edge itself sends there for want of its database does not count: connections that it opens, and
    // what it sends again on the one that it had.
    counters::start(&fabric.internet, "edge-0", &["10.78.0.1", "10.79.20.2"])?;
    fleet.open_channel()?;
    transfer(&fabric.subscriber, INTERNET, Direction::Download, 12, 200)
        .with_context(|| fleet.logs())?;
    // A little all the time, so that what was bought lasts for longer than the lease.
    let ended = Arc::new(AtomicBool::new(false));
    let stop = ended.clone();
    let sending = fabric.subscriber.thread(move || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        while !stop.load(Ordering::Relaxed) {
            // The port is closed: that is told now and then.
            let _ = socket.send_to(&[0; 100], (INTERNET, 9));
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    })?;
    std::thread::sleep(Duration::from_secs(1));
    let accounts = fleet.accounts(0)?;
    let [account] = accounts.as_slice() else { anyhow::bail!("{accounts:?}") };
    ensure!(account.credit_octets.0 > 100_000, "{account:?}");

    let cut = Instant::now();
    fabric.reach_database(0, false)?;
    let sent = || Ok::<_, anyhow::Error>(counters::read(&fabric.internet)?.received);
    let before = sent()?;
    let seen = AtomicBool::new(false);
    let (taken, (last, ended_by, newest)) = std::thread::scope(|scope| {
        // Looked at more often than a command can be asked.
        let watching = scope.spawn(|| {
            let (mut looked, mut last, mut ended_by, mut newest) = (cut, cut, cut, before);
            loop {
                // The last look begins long after the takeover was seen.
                let is_last = seen.load(Ordering::Relaxed);
                let looks = Instant::now();
                let now = sent()?;
                if now > newest {
                    // It may have passed at any time since the look before.
                    (last, ended_by, newest) = (looked, Instant::now(), now);
                }
                if is_last {
                    return Ok::<_, anyhow::Error>((last, ended_by, newest));
                }
                looked = looks;
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        let taken = eventually("a takeover", Duration::from_secs(20), || {
            Ok((fleet.status(1)?.accounts_came > 0).then(Instant::now))
        });
        std::thread::sleep(WATCHED);
        seen.store(true, Ordering::Relaxed);
        let watched = watching.join().map_err(|_| anyhow::anyhow!("the watcher panicked"))?;
        Ok::<_, anyhow::Error>((taken.with_context(|| fleet.logs())?, watched?))
    })?;
    println!(
        "cut off, the edge ended after {} ms and {} octets; the other took over after {} ms",
        last.duration_since(cut).as_millis(),
        newest - before,
        taken.duration_since(cut).as_millis()
    );
    ensure!(last < taken, "both granted\n{}", fleet.logs());
    ensure!(ended_by.duration_since(cut) > Duration::from_secs(1), "its lease was not over yet");
    assert_eq!(sent()?, newest, "it ended for good");

    fabric.roam()?;
    ended.store(true, Ordering::Relaxed);
    sending.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
    transfer(&fabric.subscriber, INTERNET, Direction::Download, 2, 100)
        .with_context(|| fleet.logs())?;
    let there = fleet.accounts(1)?;
    let [there] = there.as_slice() else { anyhow::bail!("{there:?}") };
    let bought = account.bought_octets;
    ensure!(there.bought_octets >= bought, "what was acknowledged is forgotten: {there:?}");

    // Who was taken over comes back with nothing, under a new epoch.
    fabric.reach_database(0, true)?;
    eventually("the edge's return", Duration::from_mins(1), || {
        Ok((fleet.accounts(0)?.is_empty() && fleet.status(0)?.may_grant).then_some(()))
    })
    .with_context(|| fleet.logs())?;
    // What it forwarded and could not write down is debited where the account is now.
    let settled = eventually("what was used late", Duration::from_secs(10), || {
        let late = fleet.status(1)?.late_settled_octets.0;
        Ok((late > 0).then_some(late))
    })
    .with_context(|| fleet.logs())?;
    println!("{settled} octets that were used late are debited");
    ensure!(settled >= newest - before, "{} were forwarded\n{}", newest - before, fleet.logs());
    let there = fleet.accounts(1)?;
    let [there] = there.as_slice() else { anyhow::bail!("{there:?}") };
    assert_eq!(there.others_octets.0, settled);
    assert_eq!(fleet.status(1)?.late_lost_octets.0, 0);
    // The subscriber counted it, too.
    transfer(&fabric.subscriber, INTERNET, Direction::Download, 2, 100)
        .with_context(|| fleet.logs())?;
    Ok(())
}

#[test]
fn p11_an_edge_that_is_back_before_its_accounts_were_taken_keeps_them_and_what_it_counted()
-> Result<()> {
    let fabric = Fabric::new()?;
    let mut fleet = Fleet::new(&fabric, 3, &[])?;
    let _server = traffic::Server::start(&fabric.internet)?;
    fleet.open_channel()?;
    let station = fleet.subscriber_station()?;
    let counted = |fleet: &Fleet<'_>| -> Result<u64> {
        let kernel = fleet.kernel(0)?;
        Ok(kernel.station(station.key()).context("a station in the table")?.used)
    };
    // In the middle of it, so that the last is not written down yet.
    let _busy = traffic::Server::start_at(&fabric.internet, BUSY_PORT)?;
    let (host, download) = (INTERNET, Direction::Download);
    let running = Transfer::start_at(&fabric.subscriber, host, BUSY_PORT, download, 200, 50)?;
    eventually("a download", BACK, || Ok((counted(&fleet)? > 4 * MIB).then_some(())))
        .with_context(|| fleet.logs())?;
    fleet.edges[0].kill();
    drop(running);
    let used = counted(&fleet)?;
    let written = "SELECT coalesce(sum(up_octets + down_octets), 0) FROM usage";
    let written: u64 = fleet.database.sql("fleet", written)?.parse()?;
    ensure!(written < used, "{used} octets are all written down: there is nothing to lose");
    // Nobody can take an account while its row is somebody else's.
    let (database, edge) = (&fleet.database, &mut fleet.edges[0]);
    holding(database, "SELECT 1 FROM accounts FOR UPDATE", || {
        eventually("a fenced edge", BACK, || {
            let seized = database.sql("fleet", "SELECT seized FROM edges WHERE number = 1")?;
            Ok((seized == "1").then_some(()))
        })?;
        edge.start()
    })?;
    eventually("the edge's return", BACK, || Ok(fleet.status(0)?.may_grant.then_some(())))
        .with_context(|| fleet.logs())?;
    let log = fleet.edges[0].log();
    ensure!(log.contains("another edge took this one's accounts over"), "{log}");
    assert!(fleet.accounts(1)?.is_empty());
    let accounts = fleet.accounts(0)?;
    let [account] = accounts.as_slice() else { anyhow::bail!("{accounts:?}") };
    let billed = account.usage.down.octets.0 + account.usage.up.octets.0;
    ensure!(billed >= used, "{used} octets were counted, and {billed} are billed");
    ensure!(counted(&fleet)? >= used);
    transfer(&fabric.subscriber, INTERNET, Direction::Download, 2, 100)
        .with_context(|| fleet.logs())?;
    Ok(())
}

#[test]
fn an_edge_with_very_many_accounts_is_taken_over_in_steps_and_who_waits_comes_first() -> Result<()>
{
    let fabric = Fabric::new()?;
    let mut fleet = Fleet::new(&fabric, 3, &[])?;
    let _server = traffic::Server::start(&fabric.internet)?;
    fleet.open_channel()?;
    transfer(&fabric.subscriber, INTERNET, Direction::Download, 2, 200)
        .with_context(|| fleet.logs())?;
    // Of these nothing came, so that they are forgotten where they arrive.
    let many = "INSERT INTO accounts (account, edge, seq) \
        SELECT sha256(n::text::bytea), 1, 0 FROM generate_series(1, 20000) AS n";
    fleet.database.sql("fleet", many)?;
    let count = |condition: &str| -> Result<u32> {
        let count = format!("SELECT count(*) FROM accounts WHERE {condition}");
        Ok(fleet.database.sql("fleet", &count)?.parse()?)
    };
    fleet.edges[0].kill();
    fabric.roam()?;
    // The first steps wait for rows that somebody else has, for longer than they may.
    let rows = "SELECT 1 FROM accounts WHERE NOT EXISTS (SELECT 1 FROM channel_members m \
        WHERE m.account = accounts.account) FOR UPDATE";
    holding(&fleet.database, rows, || {
        eventually("a step that failed", STEP, || {
            let log = fleet.edges[1].log();
            Ok(log.contains("a step of a takeover is done again").then_some(()))
        })
    })
    .with_context(|| fleet.logs())?;
    let taken = eventually("a step", STEP, || Ok((count("edge = 2")? > 0).then(Instant::now)))
        .with_context(|| fleet.logs())?;
    let mut served = None;
    while served.is_none() && taken.elapsed() < BACK {
        served = fabric.answers()?.then(Instant::now);
    }
    let served = served.context("served again").with_context(|| fleet.logs())?;
    let left = count("edge = 1 OR tip IS NOT NULL")?;
    println!(
        "served {} ms after the first step, with {left} accounts still to come",
        served.duration_since(taken).as_millis()
    );
    ensure!(left > 10_000, "{left} were left: it was their turn\n{}", fleet.logs());
    eventually("all accounts", Duration::from_mins(2), || {
        Ok((count("edge = 1 OR tip IS NOT NULL")? == 0).then_some(()))
    })
    .with_context(|| fleet.logs())?;
    let log = fleet.edges[1].log();
    ensure!(!log.contains("nothing is acknowledged until it works again"), "{log}");
    println!("all came {} ms after the first step", taken.elapsed().as_millis());
    Ok(())
}
