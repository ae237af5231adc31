//! P13 where a ledger is kept in order: the daemon is killed while its log is written back and while
//! rows are folded, the command while a copy is made and put back. What is there after that is
//! whole, and comes to the same. As root.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use bitcoin::Amount;
use bitmesh_tests::{
    daemon::{Daemon, eventually},
    faults::{Faults, Point},
    ledgers,
    payers::Stand,
    till::Till,
    topology::Topology,
};
use bitmesh_user::{runloop::Audit, store::Restored};
use serde::de::DeserializeOwned;

/// Time that a daemon has to come to where it is to be killed.
const HIT: Duration = Duration::from_secs(30);
/// Time that it has to answer again.
const BACK: Duration = Duration::from_secs(20);

/// What `bitmesh store` prints for a daemon's directory.
fn store<T: DeserializeOwned>(daemon: &Daemon<'_>, args: &[&str]) -> Result<T> {
    daemon.json(&[&["store"], args].concat())
}

fn check(daemon: &Daemon<'_>) -> Result<Audit> {
    let output = daemon.cli(&["store", "check", "--json"])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let audit: Audit = serde_json::from_slice(&output.stdout).context(said)?;
    ensure!(audit.problems.is_empty(), "{audit:?}");
    Ok(audit)
}

/// Kills while the log is written into the database, each at another of the calls that do it.
const CHECKPOINTS: [(Point, u64); 6] = [
    (Point::DatabaseWrite, 1),
    (Point::DatabaseWrite, 7),
    (Point::DatabaseSync, 1),
    (Point::DatabaseWrite, 30),
    (Point::DatabaseSync, 1),
    (Point::DatabaseWrite, 2),
];

#[test]
fn p13_kills_while_the_log_is_written_back_lose_nothing() -> Result<()> {
    let topology = Topology::edge()?;
    let stands = [Stand::new(&topology, 0)?, Stand::new(&topology, 1)?];
    let mut till = Till::open(&topology, &stands)?;
    for (turn, (point, nth)) in CHECKPOINTS.into_iter().enumerate() {
        let over = AtomicBool::new(false);
        till.faults.kill_at(point, nth);
        let (faults, payers, provider) = (&till.faults, &till.payers, &mut till.world.provider);
        std::thread::scope(|scope| -> Result<()> {
            let paying: Vec<_> =
                payers.iter().map(|payer| scope.spawn(|| payer.run(&over))).collect();
            let ended = provider.wait_for_end(HIT).with_context(|| format!("{point:?} {nth}"));
            over.store(true, Ordering::SeqCst);
            for payer in paying {
                payer.join().map_err(|_| anyhow::anyhow!("a payer's thread died"))??;
            }
            ended.map(drop)
        })?;
        ensure!(faults.done(point) == 1, "it died elsewhere");
        till.faults.end();
        till.check_durable()?;
        // Every second time the power goes, too.
        if turn % 2 == 1 {
            till.faults.cut_power()?;
        }
        till.world.provider.start()?;
        for payer in &till.payers {
            eventually("payments that are taken", BACK, || Ok(payer.pay()?.ok()))?;
        }
        till.check_durable()?;
        till.check_credited_once()?;
    }
    Ok(())
}

/// Payments of which some thousand wait to be folded: the newest 32,768 stay.
const PAYMENTS: u64 = 44_000;
const KEPT: u64 = 32_768;
/// Kills while rows are folded: a step is about a hundred writes to the log and one sync. Some may come
/// before the first step is done; these have to be in the middle.
const FOLDINGS: [(Point, u64); 8] = [
    (Point::LogSync, 3),
    (Point::LogSynced, 3),
    (Point::LogWrite, 350),
    (Point::LogSynced, 2),
    (Point::LogSync, 3),
    (Point::LogWrite, 300),
    (Point::LogSync, 2),
    (Point::LogSynced, 2),
];
const FOLDED: usize = 4;
/// Time in which all is folded.
const FOLDING: Duration = Duration::from_secs(8);

#[test]
fn p13_kills_while_rows_are_folded_change_nothing_of_what_they_come_to() -> Result<()> {
    let topology = Topology::edge()?;
    let stands = [Stand::new(&topology, 0)?];
    let mut till = Till::open(&topology, &stands)?;
    let payer = till.payer(0)?;
    payer.pay()??;
    let (channel, last) = (payer.channel(), Amount::from_sat(PAYMENTS));
    let payments = [payer.payment(Amount::from_sat(2))?, payer.payment(last)?];
    till.world.provider.stop()?;
    ledgers::append(till.world.provider.directory(), channel, &payments)?;
    till.faults.all_is_durable()?;
    let mut rows = check(&till.world.provider)?.facts.journal_rows;
    ensure!(rows > PAYMENTS, "{rows}");
    let mut hits = Vec::new();
    for (turn, (point, nth)) in FOLDINGS.into_iter().enumerate() {
        if rows <= KEPT + 512 {
            break;
        }
        till.faults.kill_at(point, nth);
        till.world.provider.spawn()?;
        let hit = till.world.provider.wait_for_end(FOLDING).is_ok();
        ensure!(hit == (till.faults.done(point) == 1), "{}", till.world.provider.log());
        // What is left to be folded does not take so many calls.
        till.world.provider.kill();
        till.faults.end();
        if turn % 2 == 1 {
            till.faults.cut_power()?;
        }
        let audit =
            check(&till.world.provider).with_context(|| format!("{point:?} {nth}, turn {turn}"))?;
        ensure!((audit.payments, audit.paid) == (PAYMENTS, last), "{point:?} {nth}: {audit:?}");
        let now = audit.facts.journal_rows;
        ensure!(now <= rows && now >= KEPT, "{now} rows, {rows} before");
        if hit && now < rows && now > KEPT {
            hits.push((point, nth, rows - now));
        }
        rows = now;
    }
    println!("killed in the middle of folding, after so many rows: {hits:?}; {rows} are left");
    ensure!(hits.len() >= FOLDED, "too few kills came in the middle of it");
    // In the end all are folded, and payments go on from there.
    till.world.provider.start()?;
    let payer = till.payer(0)?;
    eventually("a payment", BACK, || Ok(payer.pay_to(last + Amount::ONE_SAT)?.ok()))?;
    eventually("all that can be folded", BACK, || {
        let rows = check(&till.world.provider)?.facts.journal_rows;
        Ok((rows <= KEPT + 1).then_some(()))
    })?;
    till.check_durable()?;
    till.check_credited_once()
}

/// What is tried of the calls of a command, from the first on: each, then ever fewer.
fn calls() -> impl Iterator<Item = u64> {
    (1..=8).chain((10..=30).step_by(5)).chain((40..).step_by(20))
}

/// Runs a command that is killed at a call, or comes to its end before it: whether it was killed.
fn killed(daemon: &Daemon<'_>, faults: &Faults, args: &[&str], at: (Point, u64)) -> Result<bool> {
    let (point, nth) = at;
    let mut command = daemon.cli_command(args)?;
    faults.meddle_with(&mut command)?;
    faults.kill_at(point, nth);
    let output = command.output()?;
    faults.end();
    let was_killed = faults.done(point) > 0;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(was_killed != output.status.success(), "{at:?}: {said}");
    Ok(was_killed)
}

/// A directory's files, to be put back.
struct Kept(Vec<(PathBuf, Vec<u8>)>);

impl Kept {
    fn of(directory: &Path) -> Result<Self> {
        let files = fs::read_dir(directory)?.flatten();
        let files = files.filter(|file| file.file_type().is_ok_and(|kind| kind.is_file()));
        let read = |file: fs::DirEntry| Ok((file.path(), fs::read(file.path())?));
        Ok(Self(files.map(read).collect::<Result<_>>()?))
    }

    fn put_back(&self, directory: &Path) -> Result<()> {
        for file in fs::read_dir(directory)?.flatten() {
            if file.file_type()?.is_file() {
                fs::remove_file(file.path())?;
            }
        }
        self.0.iter().try_for_each(|(path, content)| Ok(fs::write(path, content)?))
    }
}

#[test]
fn p13_kills_of_backup_and_restore_leave_a_whole_ledger_and_no_half_copy() -> Result<()> {
    let topology = Topology::edge()?;
    let stands = [Stand::new(&topology, 0)?];
    let mut till = Till::open(&topology, &stands)?;
    for _ in 0..5 {
        till.payer(0)?.pay()??;
    }
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name).display().to_string();
    let backup = path("backup");
    let older: Audit = store(&till.world.provider, &["backup", &backup])?;
    for _ in 0..5 {
        till.payer(0)?.pay()??;
    }
    till.world.provider.stop()?;
    let provider = &till.world.provider;
    let newest = check(provider)?;
    ensure!(newest.paid > older.paid && older.paid > Amount::ZERO);
    let kept = Kept::of(provider.directory())?;
    let mut hits = Vec::new();
    for point in [Point::CopyWrite, Point::CopySync, Point::Name] {
        let before = hits.len();
        for nth in calls() {
            let copy = path(&format!("copy-{point:?}-{nth}"));
            if !killed(provider, &till.faults, &["store", "backup", &copy], (point, nth))? {
                break;
            }
            hits.push(("backup", point, nth));
            ensure!(check(provider)?.paid == newest.paid);
            if fs::exists(&copy)? {
                let whole: Audit = store(provider, &["check", "--file", &copy])?;
                ensure!(whole.problems.is_empty() && whole.paid == newest.paid, "{whole:?}");
                fs::remove_file(&copy)?;
            }
            let again: Audit = store(provider, &["backup", &copy])?;
            ensure!(again.paid == newest.paid);
        }
        for nth in calls() {
            let restore = ["store", "restore", "--older", &backup];
            if !killed(provider, &till.faults, &restore, (point, nth))? {
                break;
            }
            hits.push(("restore", point, nth));
            let found = check(provider).with_context(|| format!("{point:?} {nth}"))?;
            ensure!([older.paid, newest.paid].contains(&found.paid), "{point:?} {nth}: {found:?}");
            let restored: Restored = store(provider, &restore[1..])?;
            ensure!(restored.aside.is_some_and(|aside| aside.exists()));
            ensure!(check(provider)?.paid == older.paid);
            kept.put_back(provider.directory())?;
        }
        kept.put_back(provider.directory())?;
        ensure!(hits.len() > before, "{point:?} was never met");
    }
    println!("{} kills: {hits:?}", hits.len());
    for (command, point) in [
        ("backup", Point::CopyWrite),
        ("backup", Point::CopySync),
        ("backup", Point::Name),
        ("restore", Point::CopyWrite),
        ("restore", Point::CopySync),
        ("restore", Point::Name),
    ] {
        let met = hits.iter().any(|(what, at, _)| (*what, *at) == (command, point));
        ensure!(met, "{command} was not killed at {point:?}");
    }
    Ok(())
}
