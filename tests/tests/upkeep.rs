//! P13 where a ledger is kept in order: the daemon is killed while its log is written back and while
//! rows are folded, the commands while a copy is made and put back, and while a ledger moves into a fleet. What
//! is there after that is whole, and comes to the same. As root.

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use bitcoin::Amount;
use bitmesh_core::channel::ChannelId;
use bitmesh_tests::{
    daemon::{Daemon, eventually},
    faults::{Faults, Point},
    ledgers::{self, Ledger},
    payers::Stand,
    postgres::{PASSWORD, Server, USER, here},
    sweep::own_name,
    till::Till,
    topology::Topology,
};
use bitmesh_user::{
    runloop::Audit,
    store::{self, Place, Restored},
};
use serde::de::DeserializeOwned;

/// Time that a daemon has to come to where it is to be killed.
const HIT: Duration = Duration::from_mins(2);
/// Time that it has to answer again.
const BACK: Duration = Duration::from_secs(20);

/// What `bitmesh store` prints for a daemon's directory.
fn of_store<T: DeserializeOwned>(daemon: &Daemon<'_>, args: &[&str]) -> Result<T> {
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
const FOLDING: Duration = Duration::from_secs(30);

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
        let ended = till.world.provider.wait_for_end(FOLDING).is_ok();
        // What is left to be folded does not take so many calls.
        till.world.provider.kill();
        let hit = till.faults.done(point) == 1;
        ensure!(hit || !ended, "{}", till.world.provider.log());
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
    eventually("all that can be folded", FOLDING, || {
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

/// Where the file of a lone box is met while its ledger moves.
const MOVES: [Point; 7] = [
    Point::LogWrite,
    Point::LogSync,
    Point::LogSynced,
    Point::DatabaseWrite,
    Point::DatabaseSync,
    Point::CopySync,
    Point::Name,
];
/// Kills between: at so many parts of the time that the command takes.
const PARTS: u32 = 12;

/// A box whose ledger moves into an empty database, again and again.
struct Mover<'a> {
    till: Till<'a>,
    server: Server<'a>,
    kept: Kept,
    sums: Vec<(ChannelId, Amount)>,
    /// The database of this turn.
    name: String,
}

impl<'a> Mover<'a> {
    /// A box that was paid, and stopped.
    fn new(topology: &'a Topology, stands: &'a [Stand]) -> Result<Self> {
        let mut till = Till::open(topology, stands)?;
        for payer in &till.payers {
            for _ in 0..3 {
                payer.pay()??;
            }
        }
        till.world.provider.stop()?;
        let payers = till.payers.iter();
        let sums = payers.map(|payer| (payer.channel(), payer.acknowledged())).collect();
        let server = Server::start(&own_name("moves-"), here(), "")?;
        let kept = Kept::of(till.world.provider.directory())?;
        Ok(Self { till, server, kept, sums, name: String::new() })
    }

    /// The box as it was, and a database of which it knows nothing.
    fn again(&mut self, turn: usize) -> Result<()> {
        self.kept.put_back(self.directory())?;
        self.till.faults.all_is_durable()?;
        self.name = format!("turn_{turn}");
        self.server.create(&self.name)
    }

    fn directory(&self) -> &Path {
        self.till.world.provider.directory()
    }

    fn url(&self) -> String {
        let socket = self.server.socket().display();
        format!("postgres://{USER}:{PASSWORD}@localhost/{}?host={socket}", self.name)
    }

    /// No source is asked for anything.
    fn arguments(&self) -> Vec<String> {
        self.arguments_with(&["--esplora", "http://127.0.0.1:1"])
    }

    fn arguments_with(&self, source: &[&str]) -> Vec<String> {
        let args = [&["store", "move", "--edge", "tower", "--json"], source, &["--store"]].concat();
        args.into_iter().map(str::to_owned).chain([self.url()]).collect()
    }

    fn command(&self, more: &[&str]) -> Result<Command> {
        let args = self.arguments();
        let args: Vec<_> = args.iter().map(String::as_str).chain(more.iter().copied()).collect();
        self.till.world.provider.cli_command(&args)
    }

    /// Runs it: what it is refused with, if it is.
    fn run(&self, more: &[&str]) -> Result<Result<(), String>> {
        let output = self.command(more)?.output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok(if output.status.success() { Ok(()) } else { Err(said) })
    }

    fn has_file(&self) -> Result<bool> {
        Ok(fs::exists(self.directory().join("bitmesh.sqlite"))?)
    }

    fn fleet_has_it(&self) -> Result<bool> {
        let made = "SELECT to_regclass('edges') IS NOT NULL";
        let edges = "SELECT count(*) FROM edges";
        let sql = |statement| self.server.sql(&self.name, statement);
        Ok(sql(made)? == "t" && sql(edges)? == "1")
    }

    fn check_sums(&self, ledger: &Ledger) -> Result<()> {
        for (channel, paid) in &self.sums {
            ensure!(ledger.paid(channel)? == *paid, "{channel}: {paid} were acknowledged");
        }
        Ok(())
    }

    /// Whether it was killed or not: the box or the fleet has the ledger, and the same command ends well.
    fn check(&self, turn: usize) -> Result<()> {
        let (by_itself, moved) = (Ledger::of(self.directory()), self.fleet_has_it()?);
        match &by_itself {
            Ok(ledger) => {
                ensure!(!moved, "both have it");
                self.check_sums(ledger)?;
            }
            Err(error) => {
                let told = format!("{error:#}");
                ensure!(told.contains("store move") || moved, "{told}");
            }
        }
        ensure!(moved || self.has_file()?, "nobody has it");
        if turn % 3 == 1 && self.has_file()? {
            match self.run(&["--abandon"])? {
                Ok(()) => {
                    ensure!(!self.fleet_has_it()?, "it was given up, and the fleet has it");
                    self.check_sums(&Ledger::of(self.directory())?)?;
                }
                Err(told) => ensure!(moved && told.contains("finishes it"), "{told}"),
            }
        }
        match self.run(&[])? {
            Ok(()) => {}
            Err(told) => ensure!(moved && !self.has_file()?, "{told}"),
        }
        ensure!(Ledger::of(self.directory()).is_err() && !self.has_file()?, "both have it");
        let seed = self.server.sql(&self.name, "SELECT seed FROM fleet")?;
        let (edge, hold) = ("tower".to_owned(), Duration::from_secs(3));
        let fleet = store::Fleet { address: self.url().parse()?, edge, hold, seed };
        let place = Place { directory: self.directory().to_owned(), fleet: Some(fleet) };
        self.check_sums(&Ledger::at(&place)?)
    }
}

#[test]
fn p13_kills_of_a_move_leave_the_ledger_to_the_box_or_to_the_fleet_and_it_goes_on() -> Result<()> {
    let topology = Topology::edge()?;
    let stands = [Stand::new(&topology, 0)?, Stand::new(&topology, 1)?];
    let mut mover = Mover::new(&topology, &stands)?;
    mover.again(0)?;
    let light = mover.arguments_with(&["--peer", "127.0.0.1"]);
    let light: Vec<_> = light.iter().map(String::as_str).collect();
    let refused = mover.till.world.provider.cli(&light)?;
    let told = String::from_utf8_lossy(&refused.stderr);
    ensure!(told.contains("name a node with --node") && !mover.fleet_has_it()?, "{told}");
    let began = Instant::now();
    mover.run(&[])?.map_err(|told| anyhow::anyhow!("{told}"))?;
    let takes = began.elapsed();
    mover.check(0)?;
    let mut turn = 0;
    let (mut hits, mut ends) = (Vec::new(), BTreeMap::<_, u32>::new());
    for point in MOVES {
        for nth in calls() {
            turn += 1;
            mover.again(turn)?;
            let args = mover.arguments();
            let args: Vec<_> = args.iter().map(String::as_str).collect();
            if !killed(&mover.till.world.provider, &mover.till.faults, &args, (point, nth))? {
                break;
            }
            // Every second time the power goes, too.
            if turn % 2 == 1 && mover.has_file()? {
                mover.till.faults.cut_power()?;
            }
            *ends.entry((mover.has_file()?, mover.fleet_has_it()?)).or_default() += 1;
            mover.check(turn).with_context(|| format!("{point:?} {nth}, turn {turn}"))?;
            hits.push((point, nth));
        }
    }
    for part in 1..PARTS {
        turn += 1;
        mover.again(turn)?;
        let mut command = mover.command(&[])?;
        let mut running = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        std::thread::sleep(takes * part / PARTS);
        running.kill()?;
        running.wait()?;
        *ends.entry((mover.has_file()?, mover.fleet_has_it()?)).or_default() += 1;
        mover.check(turn).with_context(|| format!("after {part} parts of {takes:?}"))?;
    }
    println!("{} kills at calls, {} between: {hits:?}", hits.len(), PARTS - 1);
    println!("(the box has its file, the fleet has the ledger): {ends:?}");
    ensure!(hits.len() >= MOVES.len(), "too few");
    for end in [(true, false), (true, true), (false, true)] {
        ensure!(ends.contains_key(&end), "it was never killed so that {end:?}");
    }
    Ok(())
}

/// How long a move is watched that can't go on.
const STUCK: Duration = Duration::from_secs(2);

#[test]
fn p13_a_move_ends_once_the_standby_has_it_and_goes_on_after_a_kill_while_it_waits() -> Result<()> {
    let topology = Topology::edge()?;
    let stands = [Stand::new(&topology, 0)?, Stand::new(&topology, 1)?];
    let mut mover = Mover::new(&topology, &stands)?;
    let primary = mover.server.socket().display().to_string();
    let mut standby = mover.server.standby(&own_name("moves-standby-"), here(), &primary, "")?;
    for (turn, is_killed) in [false, true].into_iter().enumerate() {
        mover.again(turn)?;
        // The tables wait for it, too.
        mover.run(&["--dry-run"])?.map_err(|told| anyhow::anyhow!("{told}"))?;
        standby.stop()?;
        let mut command = mover.command(&[])?;
        let mut running = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let waiting = "SELECT count(*) FROM pg_stat_activity \
            WHERE datname = current_database() AND wait_event = 'SyncRep'";
        eventually("a commit that waits for the standby", HIT, || {
            Ok((mover.server.sql(&mover.name, waiting)? == "1").then_some(()))
        })?;
        std::thread::sleep(STUCK);
        ensure!(running.try_wait()?.is_none(), "it ended without the standby");
        ensure!(mover.has_file()? && !mover.fleet_has_it()?, "it is the fleet's too early");
        if is_killed {
            running.kill()?;
            running.wait()?;
            let told = mover.run(&[])?.err().context("it ended without the standby")?;
            ensure!(told.contains("standbys") && mover.has_file()?, "{told}");
            let told = mover.run(&["--abandon"])?.err().context("it was given up")?;
            ensure!(told.contains("standbys") && mover.has_file()?, "{told}");
        }
        standby.launch()?;
        if is_killed {
            eventually("the commit", BACK, || Ok(mover.fleet_has_it()?.then_some(())))?;
        } else {
            let ended = eventually("the move's end", BACK, || Ok(running.try_wait()?))?;
            ensure!(ended.success() && !mover.has_file()?, "{ended}");
        }
        mover.check(turn)?;
        // It is on the standby's disk, and shown there soon.
        eventually("the standby's copy", BACK, || {
            let there = standby.sql(&mover.name, "SELECT count(*) FROM edges")?;
            Ok((there == "1").then_some(()))
        })?;
    }
    Ok(())
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
struct Kept(Vec<(PathBuf, Vec<u8>, Permissions)>);

impl Kept {
    fn of(directory: &Path) -> Result<Self> {
        let files = fs::read_dir(directory)?.flatten();
        let files = files.filter(|file| file.file_type().is_ok_and(|kind| kind.is_file()));
        let read = |file: fs::DirEntry| {
            Ok((file.path(), fs::read(file.path())?, file.metadata()?.permissions()))
        };
        Ok(Self(files.map(read).collect::<Result<_>>()?))
    }

    fn put_back(&self, directory: &Path) -> Result<()> {
        for file in fs::read_dir(directory)?.flatten() {
            if file.file_type()?.is_file() {
                fs::remove_file(file.path())?;
            }
        }
        for (path, content, permissions) in &self.0 {
            fs::write(path, content)?;
            fs::set_permissions(path, permissions.clone())?;
        }
        Ok(())
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
    let older: Audit = of_store(&till.world.provider, &["backup", &backup])?;
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
                let whole: Audit = of_store(provider, &["check", "--file", &copy])?;
                ensure!(whole.problems.is_empty() && whole.paid == newest.paid, "{whole:?}");
                fs::remove_file(&copy)?;
            }
            let again: Audit = of_store(provider, &["backup", &copy])?;
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
            let restored: Restored = of_store(provider, &restore[1..])?;
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
