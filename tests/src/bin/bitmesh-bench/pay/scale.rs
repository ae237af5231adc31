//! What the daemon itself takes with many stations, while nothing happens, and how long until it
//! takes payments again after it was killed; meanwhile what was paid for passes, and nothing else.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use bitcoin::secp256k1::Secp256k1;
use bitmesh_user::bench::{Better, Contender, Group, Measure, Target};

use super::{
    Volume,
    fixture::{Account, accounts},
    load::{self, Script},
    meanwhile::Meanwhile,
    town::{EDGE, PAID_BEFORE, Provider, Town},
};
use crate::plan::go_on;

/// Most memory, in MiB.
const MEMORY_MIB: f64 = 200.0;
/// Most of a core, in percent.
const CORE_PERCENT: f64 = 1.0;
/// Most time until payments are taken after a kill, in seconds.
const RESTART_SECONDS: f64 = 2.0;
/// Time that a start may take before the run fails.
const DEADLINE: Duration = Duration::from_mins(1);
/// Time for a daemon to come to rest after its start.
const REST: Duration = Duration::from_secs(5);

/// The clock ticks that the kernel tells a process's times in.
fn ticks_per_second() -> f64 {
    // SAFETY: it takes a number and gives one.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    f64::from(i32::try_from(ticks).unwrap_or(100))
}

fn memory_mib(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    Ok(kib.context("no VmRSS")? / 1_024.0)
}

/// Seconds of processor time, in the program and in the kernel.
fn processor(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = text.rsplit_once(')').map(|(_, fields)| fields).unwrap_or_default();
    let times = fields.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<f64>().ok());
    Ok(times.sum::<f64>() / ticks_per_second())
}

struct Running<'a> {
    town: &'a Town,
    provider: Provider<'a>,
    accounts: Vec<Account>,
    sum: u64,
}

impl Running<'_> {
    /// Pays once; an error while nobody answers.
    fn pay(&mut self) -> Result<()> {
        let account = self.accounts.first().context("no accounts")?;
        let script = Script::new(&Secp256k1::new(), account, self.sum, 1)?;
        let scripts = vec![(0, script)];
        self.town.stations.block_on(async || load::run(EDGE, scripts, None).await)?;
        self.sum += 1;
        Ok(())
    }

    /// Seconds from the start of the process to the first payment that is acknowledged.
    fn start(&mut self) -> Result<f64> {
        let started = Instant::now();
        self.provider.daemon.spawn()?;
        while let Err(error) = self.pay() {
            go_on()?;
            if started.elapsed() > DEADLINE {
                bail!("no payment was taken: {error:#}\n{}", self.provider.daemon.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(started.elapsed().as_secs_f64())
    }

    fn pid(&self) -> Result<u32> {
        self.provider.daemon.pid().context("the daemon runs")
    }
}

/// Memory, idling and restarts.
pub fn run(volume: Volume, before: &dyn Fn(&str)) -> Result<Vec<(Group, Vec<Measure>)>> {
    let town = Town::new(1)?;
    let provider = Provider::new(&town)?;
    let height = provider.height()?;
    let accounts = accounts(volume.stations, height)?;
    provider.write(&Secp256k1::new(), &accounts, height)?;
    let running = Running { town: &town, provider, accounts, sum: PAID_BEFORE + 1 };
    let running = std::cell::RefCell::new(running);
    running.borrow_mut().start()?;
    std::thread::sleep(REST);

    let stations = format!("{} stations", volume.stations);
    let one = |title: &str, unit, contender| {
        Group::race(title, (unit, Better::Lower), 1, vec![contender], before)
    };
    let name = format!("{stations}, idle");
    let memory = Contender::new(name.clone(), || memory_mib(running.borrow().pid()?));
    let memory = one("memory of the daemon", "MiB", memory)?;
    let least = memory.alone(&name, Some(Target::AtMost(MEMORY_MIB)));

    let busy = Contender::new(name.clone(), || {
        let pid = running.borrow().pid()?;
        let (from, started) = (processor(pid)?, Instant::now());
        std::thread::sleep(volume.idle);
        Ok((processor(pid)? - from) / started.elapsed().as_secs_f64() * 100.0)
    });
    let busy = one("processor of the daemon", "% of a core", busy)?;
    let idle = busy.alone(&name, Some(Target::AtMost(CORE_PERCENT)));

    let name = format!("until a payment is taken, {} channels", volume.stations);
    let again = Contender::new(name.clone(), || {
        let mut running = running.borrow_mut();
        let meanwhile = Meanwhile::start(running.town)?;
        running.provider.daemon.kill();
        let took = running.start()?;
        meanwhile.end()?;
        Ok(took)
    });
    let restart = Group::race("restart", ("s", Better::Lower), volume.rounds, vec![again], before)?;
    let soon = restart.alone(&name, Some(Target::AtMost(RESTART_SECONDS)));
    Ok(vec![(memory, vec![least]), (busy, vec![idle]), (restart, vec![soon])])
}
