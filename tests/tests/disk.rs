//! P14, by real system calls that fail: no acknowledgement and no credit that a power cut could take
//! back, and everything by itself again when the fault ends. As root.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use bitcoin::Amount;
use bitmesh_core::wire::{AccountReport, ErrorBody, PaymentReply};
use bitmesh_tests::{
    daemon::eventually,
    faults::Point,
    payers::Stand,
    pinned::Pinned,
    sabotage::pins_of,
    stalls::Stalls,
    till::{API_PORT, Till},
    topology::Topology,
};
use bitmesh_user::{
    api::{ClientError, StoreState},
    dataplane, http,
};

/// How long a fault lasts.
const FAULT: Duration = Duration::from_secs(3);
/// Time that a provider has to take payments again.
const BACK: Duration = Duration::from_secs(20);
/// Time after which a commit counts as slow, and some for a busy machine.
const SLOW: Duration = Duration::from_millis(2_500);
/// Time that `status` takes at most, whatever the disk does.
const TOLD: Duration = Duration::from_secs(2);
/// What a power cut may make a provider forget: the usage of a second, and some for a busy machine. To
/// that comes the longest pause between two looks, in which it may have rested as well.
const FORGOTTEN: Duration = Duration::from_millis(1_600);
/// Power cuts, what lasts for the traffic before all of them, and what it uses before each at least, in
/// octets.
const CUTS: u32 = 3;
const LASTING: Amount = Amount::from_sat(12_000);
const MOVING: u64 = 200_000;
/// A log is written into the database at about a thousand pages.
const CHECKPOINT_PAYMENTS: u32 = 600;

fn scene<'a>(topology: &'a Topology, stands: &'a [Stand]) -> Result<Till<'a>> {
    let till = Till::open(topology, stands)?;
    pay(&till, 20)?;
    till.check_durable()?;
    till.check_credited_once()?;
    Ok(till)
}

/// So many payments that are all good.
fn pay(till: &Till<'_>, payments: u32) -> Result<()> {
    for _ in 0..payments {
        till.payer(0)?.pay()?.with_context(|| till.world.provider.log())?;
    }
    Ok(())
}

/// A payment that is refused with a code, and nothing else.
fn refused(answer: Result<PaymentReply, ClientError>, code: &str) -> Result<()> {
    match answer {
        Ok(reply) => bail!("acknowledged on a disk that does not work: {reply:?}"),
        Err(ClientError::Refused { status: 503, body }) if body.error == code => Ok(()),
        Err(other) => bail!("{other:?}, and not {code}"),
    }
}

/// Whoever asks is told what is wrong and when to come again; `status` says it, too.
fn all_are_told(till: &Till<'_>, stand: &Stand, code: &str, state: StoreState) -> Result<()> {
    let url = format!("http://{}:{API_PORT}/v1/account", stand.edge);
    let (status, wait, body) = stand.namespace.block_on(async || {
        let answer = http::plain().build()?.get(&url).send().await?;
        let wait = answer.headers().get("Retry-After").context("no Retry-After")?;
        let wait: u64 = wait.to_str()?.parse()?;
        Ok((answer.status(), wait, answer.json::<ErrorBody>().await?))
    })?;
    ensure!(status == 503 && body.error == code, "{status}, {body:?}");
    ensure!((1..60).contains(&wait), "to be tried again after {wait} s");
    let asked = Instant::now();
    let store = till.world.provider_status()?.store;
    ensure!(asked.elapsed() < TOLD, "status took {:?}", asked.elapsed());
    ensure!(
        store.state == state && store.error.is_some() && store.kept.engine == "SQLite",
        "{store:?}"
    );
    Ok(())
}

/// While something fails: no payment is acknowledged, nothing is credited, stations are held to
/// what they have.
fn nothing_is_taken(till: &Till<'_>, stand: &Stand) -> Result<()> {
    let over = AtomicBool::new(false);
    let before = till.honoured(0)?.limit;
    std::thread::scope(|scope| {
        let traffic = scope.spawn(|| stand.send(&over));
        let until = Instant::now() + FAULT;
        let met = (|| -> Result<()> {
            while Instant::now() < until {
                refused(till.payer(0)?.pay()?, "store")?;
                all_are_told(till, stand, "store", StoreState::Failed)?;
                till.check_durable()?;
                std::thread::sleep(Duration::from_millis(100));
            }
            Ok(())
        })();
        over.store(true, Ordering::SeqCst);
        traffic.join().map_err(|_| anyhow::anyhow!("the traffic's thread died"))??;
        met
    })?;
    let after = till.honoured(0)?;
    ensure!(after.limit == before, "{after:?}, it was {before}");
    ensure!(after.limit - after.used.min(after.limit) < 600, "credit was withheld: {after:?}");
    Ok(())
}

/// The fault is over: payments are good by themselves, and stay so over a power cut.
fn all_is_well_again(till: &mut Till<'_>) -> Result<()> {
    till.faults.end();
    eventually("payments that are taken again", BACK, || Ok(till.payer(0)?.pay()?.ok()))
        .with_context(|| till.world.provider.log())?;
    let store = till.world.provider_status()?.store;
    ensure!(store.state == StoreState::Working && store.error.is_none(), "{store:?}");
    pay(till, 30)?;
    till.check_durable()?;
    till.check_credited_once()?;
    till.world.provider.kill();
    till.faults.cut_power()?;
    till.world.provider.start()?;
    till.check_durable()?;
    pay(till, 5)?;
    till.check_credited_once()
}

#[test]
fn p14_when_syncs_fail_nothing_is_taken_and_what_the_kernel_dropped_is_not_believed() -> Result<()>
{
    let topology = Topology::edge()?;
    let stands = [Stand::new(&topology, 0)?];
    let mut till = scene(&topology, &stands)?;
    till.faults.fail(Point::LogSync, 1, libc::EIO);
    nothing_is_taken(&till, &stands[0])?;
    ensure!(till.faults.done(Point::LogSync) > 1, "it tried once and no more");
    all_is_well_again(&mut till)
}

#[test]
fn p14_a_sync_that_fails_once_leaves_no_hole_before_what_is_acknowledged_later() -> Result<()> {
    let topology = Topology::edge()?;
    let stands = [Stand::new(&topology, 0)?];
    let mut till = scene(&topology, &stands)?;
    for _ in 0..5 {
        till.faults.fail(Point::LogSync, 1, libc::EIO);
        till.payer(0)?.pay()?.err().context("acknowledged without a sync")?;
        // From the next one on the disk works, and the kernel calls the lost pages clean.
        till.faults.wait(Point::LogSync, BACK)?;
        till.faults.end();
        eventually("payments that are taken again", BACK, || Ok(till.payer(0)?.pay()?.ok()))?;
        pay(&till, 10)?;
        till.check_durable()?;
    }
    all_is_well_again(&mut till)
}

#[test]
fn p14_when_the_log_finds_no_space_nothing_is_taken() -> Result<()> {
    let topology = Topology::edge()?;
    let stands = [Stand::new(&topology, 0)?];
    let mut till = scene(&topology, &stands)?;
    till.faults.fail(Point::LogWrite, 2, libc::ENOSPC);
    nothing_is_taken(&till, &stands[0])?;
    all_is_well_again(&mut till)
}

#[test]
fn p14_when_a_checkpoint_fails_payments_are_good_in_the_log_alone() -> Result<()> {
    let topology = Topology::edge()?;
    let stands = [Stand::new(&topology, 0)?];
    let mut till = scene(&topology, &stands)?;
    for (point, error) in [(Point::DatabaseWrite, libc::ENOSPC), (Point::DatabaseSync, libc::EIO)] {
        till.faults.fail(point, 1, error);
        let deadline = Instant::now() + Duration::from_mins(1);
        while till.faults.done(point) < 3 {
            pay(&till, CHECKPOINT_PAYMENTS / 8)?;
            till.check_durable()?;
            ensure!(Instant::now() < deadline, "no checkpoint was tried");
        }
        till.faults.end();
        let (synced, deadline) =
            (till.faults.calls(Point::DatabaseSync), Instant::now() + Duration::from_mins(1));
        while till.faults.calls(Point::DatabaseSync) == synced {
            pay(&till, CHECKPOINT_PAYMENTS / 8)?;
            ensure!(Instant::now() < deadline, "no checkpoint came after the fault");
        }
        till.check_durable()?;
        till.check_credited_once()?;
    }
    all_is_well_again(&mut till)
}

#[test]
fn p14_on_a_slow_disk_payments_wait_and_none_is_good_before_it_is_durable() -> Result<()> {
    let topology = Topology::edge()?;
    let stands = [Stand::new(&topology, 0)?];
    let mut till = scene(&topology, &stands)?;
    till.faults.delay(Point::LogSync, Duration::from_millis(300));
    for _ in 0..5 {
        let began = Instant::now();
        pay(&till, 1)?;
        ensure!(began.elapsed() > Duration::from_millis(300), "acknowledged before its sync");
        till.check_credited_once()?;
    }
    // Longer than a payer waits, and all that is looked at meanwhile takes.
    till.faults.delay(Point::LogSync, Duration::from_secs(12));
    let before = till.honoured(0)?.limit;
    let payer = till.payer(0)?;
    std::thread::scope(|scope| -> Result<()> {
        let waits = scope.spawn(|| payer.pay());
        till.faults.wait(Point::LogSync, BACK)?;
        std::thread::sleep(SLOW);
        all_are_told(&till, &stands[0], "slow-store", StoreState::Slow)?;
        refused(payer.pay()?, "slow-store")?;
        let answer = waits.join().map_err(|_| anyhow::anyhow!("the payer's thread died"))??;
        answer.err().context("acknowledged before its sync").map(drop)
    })?;
    ensure!(till.honoured(0)?.limit == before, "credited before its sync");
    till.check_durable()?;
    all_is_well_again(&mut till)
}

#[test]
fn p13_p14_what_was_written_and_never_synced_is_synced_before_credit_is_given_on_it() -> Result<()>
{
    let topology = Topology::edge()?;
    let stands = [Stand::new(&topology, 0)?];
    let mut till = scene(&topology, &stands)?;
    for _ in 0..4 {
        till.faults.kill_at(Point::LogSync, 1);
        till.payer(0)?.pay()?.err().context("acknowledged without a sync")?;
        till.world.provider.wait_for_end(BACK)?;
        till.faults.end();
        ensure!(till.faults.unsynced(), "the kill came when nothing was to be synced");
        till.check_durable()?;
        till.world.provider.start()?;
        till.check_durable()?;
        pay(&till, 3)?;
        till.check_credited_once()?;
    }
    all_is_well_again(&mut till)
}

#[test]
fn p14_a_power_cut_forgets_at_most_the_usage_since_the_last_checkpoint() -> Result<()> {
    let topology = Topology::edge()?;
    let stands = [Stand::new(&topology, 0)?];
    let mut till = scene(&topology, &stands)?;
    // Credit for longer than all of this takes.
    till.payer(0)?.pay_to(LASTING)??;
    let station = till.payer(0)?.station()?;
    let mut lost = Vec::new();
    for cut in 0..CUTS {
        let (over, stalls) = (AtomicBool::new(false), Stalls::watch());
        let seen = std::thread::scope(|scope| -> Result<_> {
            let traffic = scope.spawn(|| stands[0].send(&over));
            let seen = watch_usage(&till);
            till.world.provider.kill();
            over.store(true, Ordering::SeqCst);
            traffic.join().map_err(|_| anyhow::anyhow!("the traffic's thread died"))??;
            seen
        })?;
        let stalled = stalls.longest();
        let (used, (ended, _)) = (till.honoured(0)?.used, *seen.last().context("looks")?);
        ensure!(used > seen[0].1 + MOVING, "nothing was used meanwhile");
        till.faults.cut_power()?;
        // Of the kernel nothing is left, either.
        dataplane::purge(till.world.instance())?;
        till.world.provider.start()?;
        till.kernel = Pinned::open(&pins_of(till.world.instance()))?;
        let accounts: Vec<AccountReport> = till.world.provider.json(&["stations"])?;
        let account = accounts.iter().find(|account| account.station == station);
        let known = account.context("the payer's account")?.usage.billed().0;
        let forgotten = FORGOTTEN + longest_pause(&seen) + stalled;
        let bound = seen.iter().rev().find(|(at, _)| ended.duration_since(*at) >= forgotten);
        let (_, bound) = bound.context("looks before the bound")?;
        ensure!(known >= *bound, "cut {cut}: {known} is known, {bound} was used {forgotten:?} ago");
        ensure!(known <= used, "cut {cut}: {known} is known, {used} was used");
        lost.push(used - known);
        pay(&till, 1)?;
        till.check_credited_once()?;
    }
    println!("octets that {CUTS} power cuts forgot: {lost:?}");
    ensure!(lost.iter().any(|lost| *lost > 0), "there was nothing to forget");
    Ok(())
}

/// The longest time between two looks.
fn longest_pause(seen: &[(Instant, u64)]) -> Duration {
    let pairs = seen.iter().zip(seen.iter().skip(1));
    pairs.map(|((a, _), (b, _))| b.duration_since(*a)).max().unwrap_or_default()
}

/// Looks at what the payer's station used for a while.
fn watch_usage(till: &Till<'_>) -> Result<Vec<(Instant, u64)>> {
    let until = Instant::now() + FORGOTTEN * 2 + Duration::from_millis(fastrand::u64(0..1_000));
    let mut seen = Vec::new();
    while Instant::now() < until + longest_pause(&seen) {
        seen.push((Instant::now(), till.honoured(0)?.used));
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(seen)
}
