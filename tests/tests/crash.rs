//! P13: the real daemons are killed at every step of a payment, over and over, under load, and
//! everything is compared after each: what was signed, what is durable, what the kernel honours, what
//! was acknowledged, what passed. As root.

use std::{
    collections::BTreeMap,
    env,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use bitcoin::Amount;
use bitmesh_core::{station::Station, units::Octets, wire::AccountReport};
use bitmesh_tests::{
    counters,
    daemon::eventually,
    faults::{Faults, Point},
    ledgers::{self, Ledger},
    payers::{Payer, Stand},
    pinned::Pinned,
    sabotage::pins_of,
    till::{API_PORT, DEAR, FRAME, check_durable},
    topology::{EDGE_OWN, INTERNET_V4, Topology, UPLINK},
    traffic::{Direction, Server, Transfer},
    world::{Trade, World},
};
use bitmesh_user::runloop::status::Phase;

const CAPACITY: Amount = Amount::from_sat(500_000);
const COINS: Amount = Amount::from_sat(3_000_000);
/// Stations that do nothing but pay and send, and channels of each: its channels share an account.
const STANDS: u8 = 2;
const CHANNELS: u8 = 2;
/// Kills of the provider: a start takes a second, most of it in the kernel's verifier. For more, set
/// `BITMESH_KILLS`.
const KILLS: usize = 90;
/// Of these, the ones that come when payments had gone on: the others come while the daemon starts, or
/// at its first payments.
const EVERY_SETTLED: usize = 3;
/// Time that a kill, its check and the start after it may take on average: a test stops at its goal
/// times this, with fewer kills.
const KILL_BUDGET: Duration = Duration::from_secs(2);
/// How often a slow machine has to have killed at each step all the same.
const LEAST: usize = 3;
/// Kills of the subscriber, of three of the provider.
const SUBSCRIBER_KILLS: usize = 2;
/// Time that a payment takes to come to where the daemon is to be killed.
const HIT: Duration = Duration::from_secs(30);
/// Time until everything that was sent is counted on both sides.
const COUNTED: Duration = Duration::from_secs(30);
/// Time that a daemon has to answer payers again.
const BACK: Duration = Duration::from_secs(20);

/// Where to kill, in turn, and at which of the calls there at most: a transaction writes a few pages,
/// and a batch is answered payer by payer.
const STEPS: [(Point, u64); 10] = [
    (Point::LogWrite, 1),
    (Point::LogWrite, 12),
    (Point::LogSync, 2),
    (Point::LogSynced, 2),
    (Point::Answer, 1),
    (Point::Answer, 6),
    (Point::Answered, 1),
    (Point::Answered, 6),
    (Point::LogSynced, 1),
    (Point::LogSync, 1),
];

/// How often to kill, and how much time that may take.
struct Goal {
    kills: usize,
    budget: Duration,
}

impl Goal {
    /// For the provider.
    fn provider() -> Result<Self> {
        let kills = match env::var("BITMESH_KILLS") {
            Ok(kills) => kills.parse().context("BITMESH_KILLS: a number, like 500")?,
            Err(_) => KILLS,
        };
        Ok(Self { kills, budget: KILL_BUDGET * u32::try_from(kills)? })
    }

    /// For the subscriber.
    fn subscriber() -> Result<Self> {
        let Self { kills, budget } = Self::provider()?;
        Ok(Self { kills: kills * SUBSCRIBER_KILLS / 3, budget: budget * 2 / 3 })
    }

    /// Tells how much of it was reached; fails when a slow machine made too few to tell anything.
    fn check(&self, killed: &BTreeMap<String, usize>, took: Duration) -> Result<()> {
        let kills: usize = killed.values().sum();
        println!("{kills} kills of {} in {took:?}: {killed:?}", self.kills);
        // The steps come in turn.
        let least = (self.kills / 2).max(LEAST * STEPS.len()).min(self.kills);
        ensure!(kills >= least, "{kills} kills in {:?} are too few, {least} at least", self.budget);
        Ok(())
    }
}

/// Whether the power is cut, too: a kill leaves what was written, a power cut does not.
fn cuts_power(turn: usize) -> bool {
    turn % 4 == 3
}

fn count(killed: &mut BTreeMap<String, usize>, point: Point, power: bool) {
    let name = format!("{point:?}{}", if power { " + power" } else { "" });
    *killed.entry(name).or_default() += 1;
}

/// Everything that is compared.
struct Scene<'a> {
    faults: Faults,
    payers: Vec<Payer<'a>>,
    kernel: Pinned,
    scratch: tempfile::TempDir,
}

impl Scene<'_> {
    /// The provider is dead: what is in force and was said is held against what is durable.
    fn check_dead(&self) -> Result<()> {
        let cut = self.scratch.path();
        self.faults.power_cut(cut)?;
        check_durable(self.kernel.stations(), &self.payers, &Ledger::of(cut)?)
    }

    /// Each payer has been answered once more.
    fn wait_for_payers(&self) -> Result<()> {
        let before: Vec<_> = self.payers.iter().map(Payer::acknowledged).collect();
        let deadline = Instant::now() + BACK;
        let pairs = || self.payers.iter().zip(&before);
        while !pairs().all(|(payer, before)| payer.acknowledged() > *before) {
            ensure!(Instant::now() < deadline, "payers are not answered within {BACK:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Payers rest, the provider runs: both ledgers, the kernel and the counts agree.
    fn check_at_rest(&self, world: &World<'_>) -> Result<()> {
        for payer in &self.payers {
            payer.rest(true, BACK)?;
        }
        let accounts: Vec<AccountReport> = world.provider.json(&["stations"])?;
        for payer in &self.payers {
            let account = accounts.iter().find(|a| Some(a.station) == payer.station().ok());
            let account = account.context("a payer's account")?;
            let honoured = self.kernel.station(account.station.key()).context("its lease")?;
            ensure!(honoured.limit == account.bought_octets.0, "{honoured:?}, {account:?}");
            let of_station = |p: &&Payer<'_>| p.station().ok() == Some(account.station);
            let sums = self.payers.iter().filter(of_station).map(Payer::acknowledged);
            // One satoshi buys 1 KiB at this price: each payment is credited once.
            let bought = sums.map(|sum| sum.to_sat() << 10).sum::<u64>();
            ensure!(bought == account.bought_octets.0, "{bought} acknowledged: {account:?}");
        }
        for payer in &self.payers {
            payer.rest(false, BACK)?;
        }
        Ok(())
    }
}

/// What passed at each place where it is counted by others: no more than was bought.
fn check_counts(topology: &Topology, stands: &[Stand], bought: Octets) -> Result<u64> {
    let mut passed = counters::read(&topology.internet)?.received;
    passed += counters::read(&topology.subscriber)?.received;
    for stand in stands {
        passed += counters::read(&stand.namespace)?.received;
    }
    let frames = FRAME * u64::try_from(stands.len() + 1)?;
    ensure!(passed <= bought.0 + frames, "{passed} octets passed, {bought} were bought");
    Ok(passed)
}

#[test]
fn p13_kills_of_the_provider_at_every_step_lose_and_invent_nothing() -> Result<()> {
    let (began, goal) = (Instant::now(), Goal::provider()?);
    let topology = Topology::edge()?;
    let stands: Vec<_> =
        (0..STANDS).map(|number| Stand::new(&topology, number)).collect::<Result<_>>()?;
    let sell: Vec<_> = stands.iter().flat_map(|stand| ["--lan", &stand.lan]).collect();
    let trade = Trade {
        price: DEAR,
        budget: 1_000_000,
        capacity: 1_500_000,
        sell: &sell,
        ..Trade::default()
    };
    let mut world = World::new(&topology, &trade)?;
    world.provider.stop()?;
    let faults = Faults::prepare(&mut world.provider, API_PORT)?;
    world.provider.start()?;
    let _server = Server::start(&topology.internet)?;
    counters::start_far_sides(&topology)?;
    for stand in &stands {
        let own: Vec<_> = EDGE_OWN.into_iter().chain([stand.edge.as_str()]).collect();
        counters::start(&stand.namespace, UPLINK, &own)?;
    }
    world.open_channel(COINS)?;
    let mut payers = Vec::new();
    for number in 0..STANDS * CHANNELS {
        let stand = stands.get(usize::from(number / CHANNELS)).context("a stand")?;
        payers.push(Payer::open(stand, API_PORT, &world.node, number, CAPACITY)?);
    }
    let kernel = Pinned::open(&pins_of(world.instance()))?;
    let scene = Scene { faults, payers, kernel, scratch: tempfile::tempdir()? };
    let running =
        Transfer::start(&topology.subscriber, INTERNET_V4, Direction::Download, 2_000, 6)?;
    println!("ready after {:?}", began.elapsed());

    let over = AtomicBool::new(false);
    let killed = std::thread::scope(|scope| -> Result<_> {
        let mut threads: Vec<_> =
            scene.payers.iter().map(|payer| scope.spawn(|| payer.run(&over))).collect();
        threads.extend(stands.iter().map(|stand| scope.spawn(|| stand.send(&over))));
        let killed = kill_in_turn(&scene, &mut world, &goal);
        over.store(true, Ordering::SeqCst);
        for thread in threads {
            thread.join().map_err(|_| anyhow::anyhow!("a payer's thread died"))??;
        }
        killed
    })
    .with_context(|| world.provider.log().lines().rev().take(20).collect::<Vec<_>>().join("\n"))?;
    drop(running);

    goal.check(&killed, began.elapsed())?;
    world.wait_for(Phase::Buying)?;
    // What is signed is on its way for a moment.
    eventually("the same books at both ends", COUNTED, || {
        let (ours, theirs) = world.channel()?;
        Ok((ours.paid == theirs.paid).then_some(()))
    })
    .with_context(|| world.logs())?;
    world.subscriber.stop()?;
    world.provider.stop()?;
    let ledger = Ledger::of(world.provider.directory())?;
    let signed = ledgers::signed(world.subscriber.directory())?;
    for (channel, signed) in signed {
        ensure!(ledger.paid(&channel)? == signed, "{channel}: both journals differ");
    }
    for payer in &scene.payers {
        ensure!(ledger.paid(&payer.channel())? == payer.acknowledged());
    }
    // The far side may send once more what had no answer before: seconds later.
    let (passed, bought) = eventually("counts that agree", COUNTED, || {
        let stations = scene.kernel.stations();
        let bought = stations.iter().map(|honoured| ledger.bought(Station::from(honoured.key)).0);
        let bought = Octets(bought.sum());
        let passed = check_counts(&topology, &stands, bought)?;
        let used: u64 = stations.iter().map(|honoured| honoured.used).sum();
        ensure!(used == passed, "{used} counted, {passed} passed");
        Ok(Some((passed, bought)))
    })?;
    println!("{passed} octets passed of {bought} bought");
    Ok(())
}

fn kill_in_turn(
    scene: &Scene<'_>,
    world: &mut World<'_>,
    goal: &Goal,
) -> Result<BTreeMap<String, usize>> {
    let (began, mut killed) = (Instant::now(), BTreeMap::<String, usize>::new());
    let (mut dead, mut back, mut settled) = (Duration::ZERO, Duration::ZERO, 0);
    scene.wait_for_payers()?;
    for (turn, (point, most)) in (0..goal.kills).zip(STEPS.into_iter().cycle()) {
        if began.elapsed() > goal.budget {
            break;
        }
        let context = || format!("{point:?}, turn {turn}");
        let starts = Instant::now();
        let settles = turn % EVERY_SETTLED == 0;
        if settles && turn > 0 {
            world.provider.spawn()?;
            scene.wait_for_payers().with_context(context)?;
            (back, settled) = (back + starts.elapsed(), settled + 1);
            if turn % 4 == 0 {
                scene.check_at_rest(world).with_context(context)?;
            }
        }
        scene.faults.kill_at(point, fastrand::u64(1..=most));
        if !settles {
            world.provider.spawn()?;
        }
        world.provider.wait_for_end(HIT).with_context(context)?;
        scene.faults.end();
        let died = Instant::now();
        scene.check_dead().with_context(context)?;
        let power = cuts_power(turn);
        if power {
            scene.faults.cut_power()?;
        }
        count(&mut killed, point, power);
        dead += died.elapsed();
    }
    let starts = Instant::now();
    world.provider.spawn()?;
    scene.wait_for_payers()?;
    (back, settled) = (back + starts.elapsed(), settled + 1);
    scene.check_at_rest(world)?;
    let kills = u32::try_from(killed.values().sum::<usize>())?.max(1);
    println!(
        "a check took {:?}, a start until all were answered {:?}",
        dead / kills,
        back / settled
    );
    Ok(killed)
}

#[test]
fn p13_kills_of_the_subscriber_at_every_step_never_leave_a_payment_that_it_does_not_know()
-> Result<()> {
    let goal = Goal::subscriber()?;
    let topology = Topology::edge()?;
    let trade = Trade { price: DEAR, budget: 1_000_000, capacity: 1_500_000, ..Trade::default() };
    let mut world = World::new(&topology, &trade)?;
    let faults = Faults::prepare(&mut world.subscriber, API_PORT)?;
    let _server = Server::start(&topology.internet)?;
    counters::start_far_sides(&topology)?;
    world.open_channel(COINS)?;
    let running =
        Transfer::start(&topology.subscriber, INTERNET_V4, Direction::Download, 2_000, 6)?;
    let scratch = tempfile::tempdir()?;
    let (began, mut last, mut killed) =
        (Instant::now(), Amount::ZERO, BTreeMap::<String, usize>::new());
    for (turn, (point, most)) in (0..goal.kills).zip(STEPS.into_iter().cycle()) {
        if began.elapsed() > goal.budget {
            break;
        }
        let context = || format!("{point:?}, turn {turn}");
        faults.kill_at(point, fastrand::u64(1..=most));
        if turn > 0 {
            world.subscriber.spawn()?;
        }
        let ended = world.subscriber.wait_for_end(HIT);
        ended.with_context(context).with_context(|| world.logs())?;
        faults.end();
        faults.power_cut(scratch.path())?;
        let channels = world.provider.channels()?;
        for (channel, signed) in ledgers::signed(scratch.path())? {
            let theirs = channels.get(&channel);
            let paid = theirs.context("a channel that both know").with_context(context)?.paid;
            ensure!(paid <= signed, "{channel}: {paid} was sent, {signed} is durable");
            ensure!(paid >= last, "{paid} is known, {last} was before");
            last = paid;
        }
        let power = cuts_power(turn);
        if power {
            faults.cut_power()?;
        }
        count(&mut killed, point, power);
    }
    drop(running);
    println!("{last} paid");
    goal.check(&killed, began.elapsed())?;
    ensure!(last > Amount::from_sat(1_000), "{last} is too little to tell anything");

    world.subscriber.start()?;
    world.wait_for(Phase::Buying)?;
    world.usage_as_counted(&topology)?;
    world.wait_for_same_books()?;
    world.subscriber.stop()?;
    world.provider.stop()?;
    let ledger = Ledger::of(world.provider.directory())?;
    for (channel, signed) in ledgers::signed(world.subscriber.directory())? {
        ensure!(ledger.paid(&channel)? == signed, "{channel}: both journals differ");
    }
    Ok(())
}
