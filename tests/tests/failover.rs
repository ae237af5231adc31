//! P11 and P13 of a fleet under load: the primary of its database dies and the standby takes its
//! place; payments are replayed at another edge. What was acknowledged, what is durable, what
//! the kernels of both edges honour and what subscribers signed is compared. As root.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use bitcoin::Amount;
use bitmesh_core::{
    channel::ChannelId,
    station::Station,
    wire::{PaymentReply, PaymentRequest},
};
use bitmesh_tests::{
    daemon::eventually,
    fleet::{Fabric, Fleet, INTERNET},
    ledgers::{Ledger, signed},
    payers::{Payer, Stand},
    pinned::Pinned,
    postgres::Server,
    till::{API_PORT, check_durable},
    traffic::{self, Direction, Transfer},
};
use bitmesh_user::api::{ClientError, Provider};

/// What a payer puts into its channel.
const CAPACITY: Amount = Amount::from_sat(500_000);
/// Ports of each edge beside the switch, a payer on each.
const PORTS: [&str; 2] = ["lan2", "lan3"];
/// Hold time of the edges, in seconds: longer than the standby needs.
const HOLD: u64 = 10;
/// How long payments go on before the fault and after it.
const LOAD: Duration = Duration::from_secs(3);
/// How long nobody promotes the standby: edges have given the database up by then.
const OUTAGE: Duration = Duration::from_secs(2);
/// Time in which payments are to be taken again once the standby was promoted.
const BACK: Duration = Duration::from_secs(20);
/// Time that an account has to come to where it is asked for. An edge keeps it for two seconds at least.
const MOVED: Duration = Duration::from_secs(20);
/// Turns of replays, of four moves each.
const REPLAYS: u32 = 2;

/// Payers on ports of both edges, those of the first edge first.
fn stands(fabric: &Fabric) -> Result<Vec<Stand>> {
    let ports = fabric.edges.iter().flat_map(|edge| PORTS.map(|port| (edge, port)));
    let stand =
        |(number, (edge, port)): (u8, (_, &str))| Stand::at(edge, number, port.into(), INTERNET);
    (0..).zip(ports).map(stand).collect()
}

fn flags() -> Vec<&'static str> {
    PORTS.into_iter().flat_map(|port| ["--lan", port]).collect()
}

/// Sums that a database has by channel, by an own reading of its rows.
fn sums(server: &Server<'_>) -> Result<BTreeMap<ChannelId, Amount>> {
    let paid = "SELECT encode(channel, 'hex'), max((body::json->>'paid_sat')::bigint) FROM journal \
        WHERE body::json->>'event' = 'paid' GROUP BY channel";
    let rows = server.sql("fleet", paid)?;
    let row = |row: &str| {
        let (channel, paid) = row.split_once('|').context("two columns")?;
        Ok((channel.parse()?, Amount::from_sat(paid.parse()?)))
    };
    rows.lines().map(row).collect()
}

/// Waits until a standby shows all that it has written down.
fn caught_up(standby: &Server<'_>) -> Result<()> {
    let is_done = "SELECT pg_last_wal_replay_lsn() = pg_last_wal_receive_lsn()";
    eventually("a standby that has caught up", BACK, || {
        Ok((standby.sql("fleet", is_done)? == "t").then_some(()))
    })
}

/// The longest time between two acknowledgements of each payer.
fn pauses(payers: &[Payer<'_>], over: &AtomicBool) -> Vec<Duration> {
    let mut seen: Vec<_> =
        payers.iter().map(|p| (p.acknowledged(), Instant::now(), Duration::ZERO)).collect();
    while !over.load(Ordering::SeqCst) {
        for (payer, (last, since, longest)) in payers.iter().zip(&mut seen) {
            let now = payer.acknowledged();
            if now > *last {
                *longest = (*longest).max(since.elapsed());
                (*last, *since) = (now, Instant::now());
            }
        }
        thread::sleep(Duration::from_millis(2));
    }
    seen.into_iter().map(|(.., longest)| longest).collect()
}

/// The primary dies while all pay: what was acknowledged is held against the standby before anybody
/// can have paid again, then it is promoted.
fn fail_over(fleet: &mut Fleet<'_>, payers: &[Payer<'_>]) -> Result<()> {
    thread::sleep(LOAD);
    let standby = fleet.standby.as_ref().context("a standby")?;
    fleet.database.kill();
    // The last answers are on their way.
    thread::sleep(Duration::from_millis(50));
    let acknowledged: Vec<_> = payers.iter().map(Payer::acknowledged).collect();
    caught_up(standby)?;
    let durable = sums(standby)?;
    for (payer, acknowledged) in payers.iter().zip(&acknowledged) {
        let paid = durable.get(&payer.channel()).context("a channel of the standby's")?;
        ensure!(acknowledged <= paid, "{acknowledged} acknowledged, the standby has {paid}");
        ensure!(*paid <= payer.signed(), "{paid} is known, {} was signed", payer.signed());
    }
    println!("{acknowledged:?} were acknowledged when the primary died");
    thread::sleep(OUTAGE);
    standby.promote()?;
    eventually("payments of all after the promotion", BACK, || {
        let mut pairs = payers.iter().zip(&acknowledged);
        Ok(pairs.all(|(payer, before)| payer.acknowledged() > *before).then_some(()))
    })?;
    thread::sleep(LOAD);
    Ok(())
}

#[test]
fn p13_a_primary_that_dies_under_load_loses_nothing_that_two_edges_acknowledged() -> Result<()> {
    let fabric = Fabric::new()?;
    let stands = stands(&fabric)?;
    let mut fleet = Fleet::with_standby(&fabric, HOLD, &flags())?;
    let _server = traffic::Server::start(&fabric.internet)?;
    fleet.open_channel()?;
    let roams = fleet.subscriber_station()?;
    let mut payers = Vec::new();
    for (number, stand) in (0..).zip(&stands) {
        payers.push(Payer::open(stand, API_PORT, &fleet.node, number, CAPACITY)?);
    }
    let download = Transfer::start(&fabric.subscriber, INTERNET, Direction::Download, 4_000, 60)?;
    let over = AtomicBool::new(false);
    let pauses = thread::scope(|scope| -> Result<_> {
        let watch = scope.spawn(|| pauses(&payers, &over));
        let mut threads: Vec<_> =
            payers.iter().map(|payer| scope.spawn(|| payer.run(&over))).collect();
        threads.extend(stands.iter().map(|stand| scope.spawn(|| stand.send(&over))));
        let failed_over = fail_over(&mut fleet, &payers);
        over.store(true, Ordering::SeqCst);
        for thread in threads {
            thread.join().map_err(|_| anyhow::anyhow!("a payer's thread died"))??;
        }
        failed_over?;
        watch.join().map_err(|_| anyhow::anyhow!("the watching thread died"))
    })
    .with_context(|| fleet.logs())?;
    println!("payments were refused for {pauses:?}, {OUTAGE:?} of that until the promotion began");
    let longest = pauses.into_iter().max().unwrap_or_default();
    ensure!(longest > OUTAGE && longest < OUTAGE + BACK, "{longest:?}");

    // Each edge honours what it acknowledged, once.
    let kernels = [fleet.kernel(0)?, fleet.kernel(1)?];
    for (payer, kernel) in payers.iter().zip([0, 0, 1, 1]) {
        let key = payer.station()?.key();
        let honoured = kernels[kernel].station(key).context("a payer's lease")?;
        let (least, most) = (payer.acknowledged().to_sat() << 20, payer.signed().to_sat() << 20);
        ensure!((least..=most).contains(&honoured.limit), "{honoured:?}, {least} acknowledged");
        ensure!(kernels[1 - kernel].station(key).is_none(), "both edges honour {key}");
    }

    // The subscriber's download went on all the while; now it roams.
    drop(download);
    let download = |mib| {
        traffic::transfer(&fabric.subscriber, INTERNET, Direction::Download, mib, 200)
            .with_context(|| fleet.logs())
    };
    download(2)?;
    let moved = Instant::now();
    fabric.roam()?;
    // The first packet of a connection would be sent again each second only.
    while !fabric.answers()? {
        ensure!(moved.elapsed() < BACK, "{}", fleet.logs());
    }
    println!("an answer {} ms after the cable was moved", moved.elapsed().as_millis());
    download(13)?;
    ensure!(fleet.accounts(1)?.iter().any(|account| account.station == roams));
    ensure!(fleet.accounts(0)?.iter().all(|account| account.station != roams));

    // What is signed is on its way for a moment.
    eventually("the same books at both ends", BACK, || {
        let mut theirs = fleet.edges[0].channels()?;
        theirs.extend(fleet.edges[1].channels()?);
        let ours = fleet.subscriber.channels()?;
        let paid = |channel| theirs.get(channel).map(|report| report.paid);
        Ok(ours.iter().all(|(channel, own)| paid(channel) == Some(own.paid)).then_some(()))
    })
    .with_context(|| fleet.logs())?;
    fleet.subscriber.stop()?;
    for edge in &mut fleet.edges {
        edge.stop()?;
    }
    let ledgers = [fleet.ledger(0)?, fleet.ledger(1)?];
    for ((ledger, kernel), payers) in ledgers.iter().zip(&kernels).zip(payers.chunks(PORTS.len())) {
        check_durable(kernel.stations(), payers, ledger)?;
    }
    for (channel, signed) in signed(fleet.subscriber.directory())? {
        let ledger = only(&ledgers, &channel)?;
        ensure!(ledger.paid(&channel)? == signed, "{channel}: the books differ");
    }
    Ok(())
}

/// The one ledger that has a channel.
fn only<'a>(ledgers: &'a [Ledger; 2], channel: &ChannelId) -> Result<&'a Ledger> {
    match ledgers.each_ref().map(|ledger| ledger.knows(channel)) {
        [true, false] => Ok(&ledgers[0]),
        [false, true] => Ok(&ledgers[1]),
        both => bail!("{channel} is at these edges: {both:?}"),
    }
}

/// What a station may still use at an edge.
fn left(kernel: &Pinned, station: Station) -> u64 {
    let honoured = kernel.station(station.key());
    honoured.map_or(0, |honoured| honoured.limit.saturating_sub(honoured.used))
}

/// Sends a payment as somebody else who overheard it.
fn replay(
    from: &Stand,
    channel: ChannelId,
    payment: &PaymentRequest,
) -> Result<Result<PaymentReply, ClientError>> {
    let url = format!("http://{}:{API_PORT}", from.edge);
    from.namespace.block_on(async || Ok(Provider::new(&url)?.pay(channel, payment).await))
}

/// Until it is over: no moment at which both edges honour credit of one account. How often was looked.
fn never_both(kernels: &[Pinned; 2], station: Station, over: &AtomicBool) -> Result<u64> {
    let mut looks = 0;
    while !over.load(Ordering::SeqCst) {
        // The first again, since it may move between two looks.
        let first = left(&kernels[0], station);
        let second = left(&kernels[1], station);
        let again = left(&kernels[0], station);
        ensure!(first.min(again) == 0 || second == 0, "{first} and {second} octets are left");
        looks += 1;
        thread::sleep(Duration::from_micros(200));
    }
    Ok(looks)
}

#[test]
fn p11_a_payment_that_is_replayed_at_another_edge_is_granted_once() -> Result<()> {
    let fabric = Fabric::new()?;
    let stands = stands(&fabric)?;
    let mut fleet = Fleet::new(&fabric, 3, &flags())?;
    let payer = Payer::open(&stands[0], API_PORT, &fleet.node, 0, CAPACITY)?;
    let (channel, station) = (payer.channel(), payer.station()?);
    let kernels = [fleet.kernel(0)?, fleet.kernel(1)?];
    for _ in 0..5 {
        payer.pay()?.with_context(|| fleet.logs())?;
    }
    let bought = |payer: &Payer<'_>| payer.acknowledged().to_sat() << 20;
    let in_force = || left(&kernels[0], station) + left(&kernels[1], station);
    ensure!(in_force() == bought(&payer), "what was acknowledged is in force at once");
    let over = AtomicBool::new(false);
    let looks = thread::scope(|scope| -> Result<u64> {
        let watch = scope.spawn(|| never_both(&kernels, station, &over));
        let done = (|| -> Result<()> {
            for turn in 0..REPLAYS {
                // At the edge where it was not made, at that where it was, and again.
                let made = payer.payment(payer.acknowledged())?;
                for stand in [&stands[2], &stands[1], &stands[3]] {
                    let known = eventually("an answer to a replay", MOVED, || {
                        match replay(stand, channel, &made)? {
                            Ok(reply) => Ok(Some(reply)),
                            Err(ClientError::Refused { status: 503, body }) => {
                                ensure!(body.error == "moving", "{body:?}");
                                Ok(None)
                            }
                            Err(other) => bail!("{other}"),
                        }
                    })?;
                    ensure!(known.paid == made.paid, "{known:?}");
                    ensure!(known.account.bought_octets.0 == bought(&payer), "{known:?}");
                    ensure!(in_force() <= bought(&payer), "turn {turn}: granted twice");
                }
                let paid = payer.acknowledged();
                eventually("a payment that is taken", MOVED, || Ok(payer.pay()?.ok()))?;
                ensure!(payer.acknowledged() == paid + Amount::ONE_SAT);
                ensure!(in_force() == bought(&payer), "turn {turn}: {} in force", in_force());
            }
            Ok(())
        })();
        over.store(true, Ordering::SeqCst);
        let looks = watch.join().map_err(|_| anyhow::anyhow!("the watching thread died"))?;
        done.and(looks)
    })
    .with_context(|| fleet.logs())?;
    let moves = fleet.status(0)?.accounts_came + fleet.status(1)?.accounts_came;
    println!("{moves} moves, {looks} looks at both kernels");
    ensure!(moves >= 4 * u64::from(REPLAYS), "{moves} moves: it was not replayed elsewhere");
    for edge in &mut fleet.edges {
        edge.stop()?;
    }
    let ledgers = [fleet.ledger(0)?, fleet.ledger(1)?];
    let ledger = only(&ledgers, &channel)?;
    ensure!(ledger.paid(&channel)? == payer.acknowledged());
    ensure!(ledger.bought(station).0 == bought(&payer));
    Ok(())
}
