//! What the daemon itself takes with many stations, while nothing happens, and how long until it
//! takes payments again after it was killed; what is metered goes on meanwhile, and stays metered.

use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use bitcoin::secp256k1::Secp256k1;
use bitmesh_user::bench::{Better, Contender, Group, Measure, Series, Target};

use super::{
    Volume,
    fixture::{Account, accounts},
    lines::{Line, Tally, during},
    load::{self, Script},
    process::{family, memory_octets, memory_octets_most, processor_seconds},
    town::{EDGE, PAID_BEFORE, Provider, Town},
};
use crate::{plan::go_on, profile};

/// Most memory, in MB of 10^6 octets.
const MEMORY_MB: f64 = 200.0;
/// Most of a core, in percent.
const CORE_PERCENT: f64 = 1.0;
/// Most time until payments are taken after a kill, in seconds.
const RESTART_SECONDS: f64 = 2.0;
/// Time that a start may take before the run fails.
const DEADLINE: Duration = Duration::from_mins(1);
/// Time for a daemon to come to rest after its start.
const REST: Duration = Duration::from_secs(5);
/// Time that frames pass before a kill.
const BEFORE_KILL: Duration = Duration::from_millis(300);
/// The station that pays, and one that has no channel.
const PAYER: u32 = 0;
const STRANGER: u32 = 1;
/// What the payer pays beforehand, in satoshi: 256 MiB, more than it uses.
const AHEAD: u64 = 256;

struct Running<'a> {
    town: &'a Town,
    provider: Provider<'a>,
    payer: Account,
    /// What the payer has paid in all.
    sum: u64,
    lines: Vec<Line>,
    /// Of each restart: the payer's, the stranger's.
    tallies: [Vec<Tally>; 2],
}

impl<'a> Running<'a> {
    /// With so many stations that have channels, and one that has none.
    fn new(town: &'a Town, stations: u32) -> Result<Self> {
        let provider = Provider::new(town)?;
        let height = provider.height()?;
        let mut accounts = accounts(PAYER..PAYER + 1, height)?;
        accounts.extend(self::accounts(STRANGER + 1..STRANGER + stations, height)?);
        provider.write(&Secp256k1::new(), &accounts, height)?;
        let payer = accounts.into_iter().next().context("no accounts")?;
        let lines = vec![Line::new(town, PAYER)?, Line::new(town, STRANGER)?];
        let tallies = [Vec::new(), Vec::new()];
        Ok(Self { town, provider, payer, sum: PAID_BEFORE, lines, tallies })
    }

    /// Pays so much more; an error while nobody answers.
    fn pay(&mut self, sat: u64) -> Result<()> {
        let script = Script::new(&Secp256k1::new(), &self.payer, self.sum + sat, 1)?;
        let scripts = vec![(PAYER, script)];
        self.town.stations.block_on(async || load::run(EDGE, scripts, None).await)?;
        self.sum += sat;
        Ok(())
    }

    /// Seconds from the start of the process to the first payment that is acknowledged.
    fn start(&mut self) -> Result<f64> {
        let started = Instant::now();
        self.provider.daemon.spawn()?;
        while let Err(error) = self.pay(1) {
            go_on()?;
            if started.elapsed() > DEADLINE {
                bail!("no payment was taken: {error:#}\n{}", self.provider.daemon.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(started.elapsed().as_secs_f64())
    }

    /// The same after a kill, while both stations send and are sent to.
    fn restart(&mut self) -> Result<f64> {
        let lines = std::mem::take(&mut self.lines);
        let done = during(&lines, || {
            std::thread::sleep(BEFORE_KILL);
            self.provider.daemon.kill();
            self.start()
        });
        self.lines = lines;
        let (took, tallies) = done?;
        for (all, tally) in self.tallies.iter_mut().zip(tallies) {
            ensure!(tally.sent > 0, "nothing was sent during a restart");
            all.push(tally);
        }
        Ok(took)
    }

    fn family(&self) -> Result<Vec<u32>> {
        Ok(family(self.provider.daemon.pid().context("the daemon runs")?))
    }

    fn sum_of(&self, what: fn(u32) -> Result<f64>) -> Result<f64> {
        self.family()?.into_iter().map(what).sum()
    }
}

/// Memory, idling and restarts.
pub fn run(volume: Volume, before: &dyn Fn(&str)) -> Result<Vec<(Group, Vec<Measure>)>> {
    let town = Town::new(STRANGER + 1)?;
    let running = RefCell::new(Running::new(&town, volume.stations)?);
    running.borrow_mut().start()?;
    running.borrow_mut().pay(AHEAD)?;
    std::thread::sleep(REST);

    let stations = format!("{} stations", volume.stations);
    let (idle, most) = (format!("{stations}, idle"), "at most since its start");
    let megabytes = |what| running.borrow().sum_of(what).map(|octets| octets / 1e6);
    let contenders = vec![
        Contender::new(idle.clone(), || megabytes(memory_octets)),
        Contender::new(most, || megabytes(memory_octets_most)),
    ];
    let unit = ("MB", Better::Lower);
    let memory = Group::race("memory of daemon and guard", unit, 1, contenders, before)?;
    let taken =
        vec![memory.alone(&idle, Some(Target::AtMost(MEMORY_MB))), memory.alone(most, None)];

    let busy = Contender::new(idle.clone(), || {
        let running = running.borrow();
        let (from, started) = (running.sum_of(processor_seconds)?, Instant::now());
        std::thread::sleep(volume.idle);
        let used = running.sum_of(processor_seconds)? - from;
        Ok(used / started.elapsed().as_secs_f64() * 100.0)
    });
    let unit = ("% of a core", Better::Lower);
    let title = "processor of daemon and guard";
    let busy = Group::race(title, unit, volume.rounds, vec![busy], before)?;
    let mut rests = [busy.alone(&idle, Some(Target::AtMost(CORE_PERCENT)))];
    profile::explain_all(&mut rests, || {
        std::thread::sleep(volume.idle);
        Ok(())
    });

    let name = format!("until a payment is taken, {} channels", volume.stations);
    let again = Contender::new(name.clone(), || running.borrow_mut().restart());
    let restart = Group::race("restart", ("s", Better::Lower), volume.rounds, vec![again], before)?;
    let mut soon = [restart.alone(&name, Some(Target::AtMost(RESTART_SECONDS)))];
    profile::explain_all(&mut soon, || running.borrow_mut().restart().map(drop));
    let passed = enforced(&running.borrow());
    Ok(vec![(memory, taken), (busy, rests.into()), (restart, soon.into()), passed])
}

/// What passed from the kill until payments were taken again.
fn enforced(running: &Running<'_>) -> (Group, Vec<Measure>) {
    let names = ["of who paid, lost", "of who did not pay, forwarded"];
    let [payer, stranger] = &running.tallies;
    let frames = |count: u64| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    let lost = payer.iter().map(|tally| frames(tally.sent.saturating_sub(tally.arrived)));
    let leaked = stranger.iter().map(|tally| frames(tally.arrived));
    let series = names.iter().zip([lost.collect(), leaked.collect()]);
    let series = series.map(|(name, rounds)| Series { name: (*name).into(), rounds }).collect();
    let sent: u64 = payer.iter().chain(stranger).map(|tally| tally.sent).sum();
    let group = Group {
        title: format!("frames during restarts, {sent} sent"),
        unit: "frames",
        better: Better::Lower,
        series,
        missing: Vec::new(),
    };
    let none = Some(Target::AtMost(0.0));
    let measures = names.iter().map(|name| group.alone(name, none)).collect();
    (group, measures)
}
