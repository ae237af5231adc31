//! P14 on a disk that is really full, for longer than systemd waits for a sign of life: what everybody
//! is told meanwhile, and that all goes on by itself. As root.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, net::UnixDatagram},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use bitcoin::Amount;
use bitmesh_tests::{
    counters,
    daemon::eventually,
    pinned::Pinned,
    sabotage::pins_of,
    small_disk::SmallDisk,
    stalls::Stalls,
    topology::{INTERNET_V4, Topology},
    traffic::{Direction, Server, Transfer, transfer},
    world::{Trade, World, ask},
};
use bitmesh_user::{api::StoreState, http, runloop::status::Phase, telemetry::Health};
use reqwest::Method;

const COINS: Amount = Amount::from_sat(200_000);
/// After which systemd would kill a daemon that says nothing.
const WATCHDOG: Duration = Duration::from_secs(2);
/// How long the disk is full.
const OUTAGE: Duration = Duration::from_secs(7);
/// Time in which a fault, or its end, is to be seen.
const SEEN: Duration = Duration::from_secs(30);
/// Age of figures at most, and some for a busy machine.
const FIGURES: Duration = Duration::from_secs(4);
const METRICS: &str = "127.0.0.1:9434";

/// What a daemon says to systemd.
struct Notified {
    socket: UnixDatagram,
}

impl Notified {
    /// From a provider's next start on.
    fn by(world: &mut World<'_>) -> Result<Self> {
        let path = world.data().join("notify");
        let socket = UnixDatagram::bind(&path)?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777))?;
        world.provider.set_environment("NOTIFY_SOCKET", path);
        world.provider.set_environment("WATCHDOG_USEC", WATCHDOG.as_micros().to_string());
        Ok(Self { socket })
    }

    /// Listens until it is over: the longest time without a sign of life, and all that was said.
    fn listen(&self, over: &AtomicBool) -> (Duration, Vec<String>) {
        let (mut said, mut longest, mut last) = (Vec::new(), Duration::ZERO, Instant::now());
        while !over.load(Ordering::SeqCst) {
            let mut octets = [0; 4_096];
            if let Ok(length) = self.socket.recv(&mut octets) {
                let text = String::from_utf8_lossy(octets.get(..length).unwrap_or_default());
                if text.contains("WATCHDOG=1") {
                    last = Instant::now();
                }
                said.extend(text.lines().map(ToOwned::to_owned));
            }
            longest = longest.max(last.elapsed());
        }
        (longest, said)
    }
}

/// What monitoring sees: the status of `/health` with what it says, and figures by name.
struct Seen {
    code: u16,
    health: Health,
    metrics: String,
}

impl Seen {
    fn look(topology: &Topology) -> Result<Self> {
        topology.edge.block_on(async || {
            let client = http::plain().timeout(Duration::from_secs(5)).build()?;
            let get =
                async |path: &str| client.get(format!("http://{METRICS}/{path}")).send().await;
            let health = get("health").await?;
            let (code, health) = (health.status().as_u16(), health.json().await?);
            Ok(Self { code, health, metrics: get("metrics").await?.text().await? })
        })
    }

    fn figure(&self, name: &str) -> Result<u64> {
        let line = self.metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok()).with_context(|| name.to_owned())
    }

    /// All is well, after so many failures of the store.
    fn is_well(&self, failures: u64) -> Result<()> {
        ensure!(self.code == 200 && self.health.ok, "{:?}", self.health);
        ensure!(self.figure("bitmesh_up")? == 1 && self.figure("bitmesh_store_working")? == 1);
        ensure!(self.figure("bitmesh_store_failures_total")? == failures);
        Ok(())
    }
}

/// What all are told while the disk is full.
fn all_are_told(topology: &Topology, world: &World<'_>) -> Result<()> {
    let store = world.provider_status()?.store;
    ensure!(store.state == StoreState::Failed && store.since > 0, "{store:?}");
    ensure!(store.error.as_ref().is_some_and(|error| error.contains("disk")), "{store:?}");
    let text = String::from_utf8(world.provider.cli(&["status"])?.stdout)?;
    ensure!(text.contains("FAILED") && text.contains("disk"), "{text}");
    let (status, told) = ask(topology, &Method::GET, "/v1/offer", None)?;
    ensure!(
        status.as_u16() == 503 && told.get("error").is_some_and(|code| code == "store"),
        "{status} {told}"
    );
    let seen = Seen::look(topology)?;
    ensure!(seen.code == 503 && !seen.health.ok, "{:?}", seen.health);
    let says = |what: &str| seen.health.failures.iter().any(|failure| failure.contains(what));
    ensure!(says("the store is failed") && says("disk"), "{:?}", seen.health);
    ensure!(!says("does not answer"), "the loop does answer: {:?}", seen.health);
    ensure!(seen.figure("bitmesh_store_working")? == 0, "{}", seen.metrics);
    ensure!(seen.figure("bitmesh_store_failures_total")? == 1, "{}", seen.metrics);
    Ok(())
}

#[test]
fn p14_on_a_full_disk_nothing_is_acknowledged_all_are_told_and_the_watchdog_is_fed() -> Result<()> {
    let topology = Topology::edge()?;
    let trade = Trade { sell: &["--metrics", METRICS], ..Trade::default() };
    let mut world = World::new(&topology, &trade)?;
    let _server = Server::start(&topology.internet)?;
    counters::start_far_sides(&topology)?;
    world.open_channel(COINS)?;
    world.provider.stop()?;
    let mut disk = SmallDisk::over(world.provider.directory())?;
    let notified = Notified::by(&mut world)?;
    world.provider.start()?;
    transfer(&topology.subscriber, INTERNET_V4, Direction::Download, 4, 200)?;
    let kernel = Pinned::open(&pins_of(world.instance()))?;
    let limits = || kernel.stations().iter().map(|honoured| honoured.limit).collect::<Vec<_>>();
    Seen::look(&topology)?.is_well(0)?;

    let (over, stalls) = (AtomicBool::new(false), Stalls::watch());
    let (longest, said) = thread::scope(|scope| -> Result<_> {
        let listening = scope.spawn(|| notified.listen(&over));
        let done = (|| -> Result<()> {
            disk.fill("filler")?;
            let running =
                Transfer::start(&topology.subscriber, INTERNET_V4, Direction::Download, 24, 200)?;
            eventually("a store that fails", SEEN, || {
                let state = world.provider_status()?.store.state;
                Ok((state == StoreState::Failed).then_some(()))
            })?;
            // What a log left that was taken back.
            disk.fill("more")?;
            let (failed, before) = (Instant::now(), limits());
            thread::sleep(FIGURES);
            all_are_told(&topology, &world)?;
            thread::sleep(OUTAGE.saturating_sub(failed.elapsed()));
            all_are_told(&topology, &world)?;
            ensure!(limits() == before, "something was granted: {before:?}, {:?}", limits());
            disk.free()?;
            running.finish(Duration::from_mins(1))?;
            world.wait_for(Phase::Buying)
        })();
        over.store(true, Ordering::SeqCst);
        done?;
        listening.join().map_err(|_| anyhow::anyhow!("the listening thread died"))
    })
    .with_context(|| world.logs())?;
    let stalled = stalls.longest();
    println!("systemd heard nothing for {longest:?} at most, stalled for {stalled:?}");
    ensure!(
        longest < WATCHDOG + stalled,
        "systemd would have killed it after {WATCHDOG:?}: {longest:?}, stalled for {stalled:?}"
    );
    let place = |start: &str| said.iter().rposition(|line| line.starts_with(start));
    let (failed, sells) = (place("STATUS=the store can't write"), place("STATUS=selling"));
    ensure!(failed.is_some() && sells > failed, "{said:?}");

    let usage = world.usage_as_counted(&topology)?;
    let account = world.account()?;
    ensure!(usage.billed() <= account.bought_octets, "{account:?}");
    world.wait_for_same_books()?;
    let store = world.provider_status()?.store;
    ensure!(store.state == StoreState::Working && store.error.is_none(), "{store:?}");
    thread::sleep(FIGURES);
    Seen::look(&topology)?.is_well(1)?;
    // It has to be gone before its disk is.
    world.provider.kill();
    Ok(())
}
