//! What systemd and an operator's machines see: the notify protocol, reload, a graceful end, units,
//! metrics.

use std::{
    fs,
    os::unix::{fs::MetadataExt as _, fs::PermissionsExt as _, net::UnixDatagram},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use bitcoin::Amount;
use bitmesh_core::offer::SignedOffer;
use bitmesh_tests::{
    daemon::{bitmesh, eventually},
    regtest::{Node, PASSWORD, USER},
    sweep::own_name,
    topology::{EDGE_V4, INTERNET_V4, LAN, NODE_FOR_EDGE, Topology, WAN},
    traffic::{Direction, Server, transfer},
    world::{Trade, World, ask},
};
use bitmesh_user::{config::API_PORT, dataplane};
use reqwest::Method;
use rustix::process::{Pid, Signal, kill_process};

const WAIT: Duration = Duration::from_secs(30);

/// A daemon that systemd would have started, with this test as systemd.
struct Service {
    process: Child,
    socket: UnixDatagram,
    told: Vec<String>,
    instance: String,
}

impl Service {
    /// Waits until it says something that starts so, and gives that.
    fn wait_for(&mut self, start: &str) -> Result<String> {
        let deadline = Instant::now() + WAIT;
        while Instant::now() < deadline {
            let mut octets = [0; 4_096];
            if let Ok(length) = self.socket.recv(&mut octets) {
                let text = String::from_utf8_lossy(octets.get(..length).unwrap_or_default());
                let text = text.into_owned();
                self.told.extend(text.lines().map(ToOwned::to_owned));
                if let Some(line) = text.lines().find(|line| line.starts_with(start)) {
                    return Ok(line.to_owned());
                }
            }
        }
        bail!("no {start} within {WAIT:?}, but {:?}", self.told)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.process), signal)?)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = dataplane::purge(&self.instance);
    }
}

fn offered_price(topology: &Topology) -> Result<u64> {
    let (status, offer) = ask(topology, &Method::GET, "/v1/offer", None)?;
    ensure!(status.is_success(), "{offer}");
    let offer: SignedOffer = serde_json::from_value(offer)?;
    Ok(offer.offer.schedule.tiers.first().context("a tier")?.msat_per_mib)
}

#[test]
fn systemd_is_told_when_payments_are_taken_and_of_each_reload_and_the_end() -> Result<()> {
    let topology = Topology::edge()?;
    let node = Node::start(&topology.chain)?;
    let data = tempfile::Builder::new().prefix(&own_name("service-")).tempdir()?;
    fs::set_permissions(data.path(), fs::Permissions::from_mode(0o711))?;
    let (config, log) = (data.path().join("sell.toml"), data.path().join("log"));
    fs::write(&config, "price = 1000\n")?;
    let socket = UnixDatagram::bind(data.path().join("notify"))?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    fs::set_permissions(data.path().join("notify"), fs::Permissions::from_mode(0o777))?;
    let (instance, url) = (own_name("service"), node.url(NODE_FOR_EDGE));
    let log_file = fs::File::create(&log)?;
    let journal = log_file.metadata()?;
    let start = |json: bool| -> Result<Service> {
        let mut command = topology.edge.command(bitmesh()?)?;
        command
            .args(["sell", "--lan", LAN, "--wan", WAN, "--network", "regtest", "--node", &url])
            .args(["--node-user", USER, "--node-password", PASSWORD, "--instance", &instance])
            .arg("--config")
            .arg(&config)
            .arg("--data-dir")
            .arg(data.path().join("data"))
            .env("NOTIFY_SOCKET", data.path().join("notify"))
            .env("WATCHDOG_USEC", "2000000")
            .env("JOURNAL_STREAM", format!("{}:{}", journal.dev(), journal.ino()))
            .stdin(Stdio::null())
            .stdout(log_file.try_clone()?)
            .stderr(log_file.try_clone()?);
        if json {
            command.args(["--log-format", "json"]);
        }
        let (process, socket) = (command.spawn()?, socket.try_clone()?);
        Ok(Service { process, socket, told: Vec::new(), instance: instance.clone() })
    };

    let mut service = start(false)?;
    service.wait_for("READY=1")?;
    ensure!(offered_price(&topology)? == 1_000);
    ensure!(service.told.iter().any(|line| line.starts_with("STATUS=selling on lan0")));
    for _ in 0..3 {
        service.wait_for("WATCHDOG=1")?;
    }
    // What can change does, what can't is named, and what is wrong changes nothing.
    fs::write(&config, "price = 2000\nspeed_down = 50\napi_port = 9000\n")?;
    service.signal(Signal::HUP)?;
    service.wait_for("RELOADING=1")?;
    service.wait_for("READY=1")?;
    ensure!(offered_price(&topology)? == 2_000);
    let said = fs::read_to_string(&log)?;
    ensure!(said.contains("read again: price, speed_down changed"), "{said}");
    ensure!(said.contains("api_port changed in the settings and take a restart"), "{said}");
    fs::write(&config, "prcie = 3000\n")?;
    service.signal(Signal::HUP)?;
    service.wait_for("READY=1")?;
    ensure!(offered_price(&topology)? == 2_000);
    let said = fs::read_to_string(&log)?;
    ensure!(said.contains("no setting prcie") && said.contains("stays as it was"), "{said}");
    // A loop that hangs gives no sign of life.
    service.signal(Signal::STOP)?;
    while service.socket.recv(&mut [0; 4_096]).is_ok() {}
    std::thread::sleep(Duration::from_secs(1));
    ensure!(service.socket.recv(&mut [0; 4_096]).is_err(), "it is told to be alive");
    service.signal(Signal::CONT)?;
    service.wait_for("WATCHDOG=1")?;
    service.signal(Signal::TERM)?;
    service.wait_for("STOPPING=1")?;
    let since = Instant::now();
    ensure!(service.process.wait()?.success());
    ensure!(since.elapsed() < Duration::from_secs(8), "it took {:?}", since.elapsed());
    // The journal has times and no colours.
    let said = fs::read_to_string(&log)?;
    ensure!(!said.contains('\u{1b}'), "{said}");
    let lines: Vec<_> = said.lines().collect();
    ensure!(lines.iter().all(|line| !line.starts_with("20")), "{said}");

    fs::write(&config, "price = 1000\n")?;
    log_file.set_len(0)?;
    let mut service = start(true)?;
    service.wait_for("READY=1")?;
    service.signal(Signal::TERM)?;
    ensure!(service.process.wait()?.success());
    let said = fs::read(&log)?;
    let said = String::from_utf8_lossy(&said);
    let lines: Vec<_> = said.trim_start_matches('\0').lines().collect();
    ensure!(lines.len() > 3, "{said}");
    for line in lines {
        let line: serde_json::Value =
            serde_json::from_str(line).with_context(|| line.to_owned())?;
        ensure!(line.get("level").is_some() && line.get("message").is_some(), "{line}");
    }
    ensure!(!said.contains(PASSWORD), "the node's password is in the log");
    Ok(())
}

#[test]
fn figures_are_the_ledgers_and_outlive_a_restart() -> Result<()> {
    let topology = Topology::edge()?;
    let trade = Trade { sell: &["--metrics", "127.0.0.1:9434"], ..Trade::default() };
    let mut world = World::new(&topology, &trade)?;
    let _server = Server::start(&topology.internet)?;
    world.open_channel(Amount::from_sat(200_000))?;
    transfer(&topology.subscriber, INTERNET_V4, Direction::Download, 8, 200)?;
    world.usage_at_rest()?;
    let read = || {
        topology.edge.block_on(async || {
            let get = async |path: &str| -> Result<(u16, String)> {
                let answer = reqwest_get(path).await?;
                Ok(answer)
            };
            Ok((get("metrics").await?, get("health").await?))
        })
    };
    let figure = |text: &str, name: &str| -> Result<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok()).with_context(|| format!("{name} in {text}"))
    };
    // Figures may be two seconds old.
    std::thread::sleep(Duration::from_secs(3));
    let ((code, text), (health, said)) = read()?;
    ensure!(code == 200 && health == 200, "{health} {said}");
    let status = world.provider_status()?;
    ensure!(status.paid_sat > 0 && figure(&text, "bitmesh_paid_sat_total")? == status.paid_sat);
    let down = figure(&text, "bitmesh_billed_octets_total{direction=\"down\"}")?;
    ensure!(down > 8 << 20 && down == status.usage.down.octets.0, "{down}");
    ensure!(figure(&text, "bitmesh_commitments_total")? == status.commitments);
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let name = line.split(['{', ' ']).next().context("a name")?;
        let plain = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        let described = |name: &str| {
            text.contains(&format!("# HELP {name} ")) && text.contains(&format!("# TYPE {name} "))
        };
        ensure!(described(name) || plain.is_some_and(described), "{name} is not described");
    }
    // Nobody on the LAN reads it.
    let reached = topology.subscriber.run(|| {
        let host = format!("{EDGE_V4}:9434").parse()?;
        Ok(std::net::TcpStream::connect_timeout(&host, Duration::from_secs(1)).is_ok())
    })?;
    ensure!(!reached, "a station reaches the metrics");
    world.provider.stop()?;
    world.provider.start()?;
    let ((_, text), _) = eventually("figures", WAIT, || Ok(read().ok()))?;
    ensure!(figure(&text, "bitmesh_paid_sat_total")? >= status.paid_sat);
    ensure!(figure(&text, "bitmesh_store_working")? == 1);
    // Who paid before the restart is no stranger after it, although nothing was granted since.
    let _asks =
        topology.subscriber.run(|| Ok(std::net::TcpStream::connect((EDGE_V4, API_PORT))?))?;
    let text = eventually("a payer's connection", WAIT, || {
        let ((_, text), _) = read()?;
        let seated = figure(&text, "bitmesh_connections{kind=\"payer\"}")? >= 1;
        Ok(seated.then_some(text))
    })?;
    ensure!(figure(&text, "bitmesh_connections{kind=\"stranger\"}").is_err(), "{text}");
    Ok(())
}

async fn reqwest_get(path: &str) -> Result<(u16, String)> {
    let client = bitmesh_user::http::plain().timeout(Duration::from_secs(5)).build()?;
    let answer = client.get(format!("http://127.0.0.1:9434/{path}")).send().await?;
    Ok((answer.status().as_u16(), answer.text().await?))
}

#[test]
fn metrics_are_never_told_on_a_lan_port() -> Result<()> {
    let topology = Topology::edge()?;
    let address = format!("{EDGE_V4}:9434");
    let trade = Trade { sell: &["--metrics", &address], ..Trade::default() };
    let Err(error) = World::new(&topology, &trade) else { bail!("it started") };
    let error = format!("{error:#}");
    ensure!(error.contains("LAN port lan0") && error.contains("127.0.0.1"), "{error}");
    Ok(())
}

#[test]
fn the_units_are_what_systemd_takes_and_leave_little_exposed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for (role, most) in [("sell", "40"), ("buy", "35")] {
        let printed = Command::new(bitmesh()?).args(["service", "print", role]).output()?;
        ensure!(printed.status.success());
        let text = String::from_utf8(printed.stdout.clone())?;
        let says = |line: &str| text.lines().any(|own| own == line);
        // It is never given up, and the guard outlives the daemon for as long as it has to clean up.
        ensure!(says("StartLimitIntervalSec=0") && says("RestartSec=5"), "{text}");
        ensure!(role == "buy" || says("KillMode=control-group"), "{text}");
        let unit = folder.path().join(format!("bitmesh-{role}.service"));
        fs::write(&unit, &printed.stdout)?;
        analyze(&["verify"], &unit)?;
        analyze(&["security", "--offline=true", "--threshold", most], &unit)?;
    }
    Ok(())
}

fn analyze(args: &[&str], unit: &Path) -> Result<()> {
    let output = Command::new("systemd-analyze").args(args).arg(unit).output();
    let output = output.context("systemd-analyze; it comes with systemd: `cargo xtask setup`")?;
    let said = [output.stdout, output.stderr].concat();
    ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&said));
    Ok(())
}
