//! The printed units under a real systemd: notify, credentials, sandbox, reload, restarts, watchdog.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use bitmesh_tests::{
    daemon::eventually,
    regtest::{Node, PASSWORD, USER},
    sweep::own_name,
    systemd::{PROGRAM, Systemd, WAIT},
    topology::{LAN, NODE_FOR_EDGE, NODE_FOR_SUBSCRIBER, Topology, WAN},
    world::instance,
};
use bitmesh_user::dataplane;

const SELL: &str = "bitmesh-sell";
const PASSPHRASE: &str = "correct horse";

/// Takes the programs off at the end.
struct Pins(String);

impl Drop for Pins {
    fn drop(&mut self) {
        let _ = dataplane::purge(&self.0);
    }
}

fn wait_active(systemd: &Systemd<'_>, other_than: &str) -> Result<String> {
    eventually("the unit back in its place", WAIT, || {
        let pid = systemd.property(SELL, "MainPID")?;
        let active = systemd.property(SELL, "ActiveState")? == "active";
        Ok((active && pid != "0" && pid != other_than).then_some(pid))
    })
    .with_context(|| systemd.journal())
}

/// Does what `docs/OPERATING.md` says, for a role with these settings.
fn install(systemd: &Systemd<'_>, role: &str, settings: &str) -> Result<()> {
    systemd.sh(&format!(
        "install -m 0755 {PROGRAM} /usr/local/bin/bitmesh
         install -d -m 0755 /etc/bitmesh
         cat > /etc/bitmesh/{role}.toml <<'END'
{settings}
END
         (umask 077
         echo BITMESH_NODE_PASSWORD={PASSWORD} > /etc/bitmesh/environment
         echo {PASSPHRASE} > /etc/bitmesh/passphrase)
         set -a; . /etc/bitmesh/environment; set +a
         bitmesh wallet create --role {role} --config /etc/bitmesh/{role}.toml \
           --passphrase-file /etc/bitmesh/passphrase --words-file ~/words
         bitmesh service print {role} > /etc/systemd/system/bitmesh-{role}.service
         systemctl daemon-reload
         systemctl enable --now bitmesh-{role}"
    ))?;
    Ok(())
}

#[test]
fn a_subscribers_unit_starts_and_may_pin_its_counters() -> Result<()> {
    let topology = Topology::edge()?;
    let node = Node::start(&topology.chain)?;
    let (pins, root) = (Pins(instance()), tempfile::tempdir()?);
    let systemd = Systemd::boot(&topology.subscriber, root.path())?;
    let url = node.url(NODE_FOR_SUBSCRIBER);
    let settings = format!(
        "budget = 1000\nnetwork = \"regtest\"\nnode = \"{url}\"\nnode_user = \"{USER}\"\n\
         instance = \"{}\"",
        pins.0
    );
    install(&systemd, "buy", &settings)?;
    systemd.sh("for _ in $(seq 300); do bitmesh status && exit; sleep 0.1; done; exit 1")?;
    ensure!(systemd.property("bitmesh-buy", "NRestarts")? == "0", "{}", systemd.journal());
    let pid = systemd.property("bitmesh-buy", "MainPID")?;
    let pin = format!("/sys/fs/bpf/{}", own_name("pin"));
    systemd
        .sh(&format!("nsenter --target {pid} --mount -- bash -c 'mkdir {pin} && rmdir {pin}'"))?;
    systemd.sh("systemctl stop bitmesh-buy")?;
    ensure!(systemd.property("bitmesh-buy", "Result")? == "success");
    Ok(())
}

#[test]
fn a_providers_unit_sells_without_rights_reloads_and_comes_back() -> Result<()> {
    let topology = Topology::edge()?;
    let node = Node::start(&topology.chain)?;
    let (pins, root) = (Pins(instance()), tempfile::tempdir()?);
    let systemd = Systemd::boot(&topology.edge, root.path())?;
    let url = node.url(NODE_FOR_EDGE);
    let settings = format!(
        "lan = [\"{LAN}\"]\nwan = \"{WAN}\"\nprice = 500\nnetwork = \"regtest\"\nnode = \"{url}\"\n\
         node_user = \"{USER}\"\ninstance = \"{}\"",
        pins.0
    );
    install(&systemd, "sell", &settings)?;
    // `systemctl enable --now` has waited for the daemon's own word.
    ensure!(systemd.property(SELL, "ActiveState")? == "active");
    let status = systemd.property(SELL, "StatusText")?;
    ensure!(status.starts_with("selling on lan0"), "{status}");
    systemd.sh("bitmesh status; curl -sS --fail --unix-socket /var/lib/bitmesh/sell/admin.sock http://bitmesh/health")?;

    // What the daemon may, and what it sees.
    let first = systemd.property(SELL, "MainPID")?;
    let kernel = systemd.sh(&format!("cat /proc/{first}/status"))?;
    let line = |name: &str| {
        let found = kernel.lines().find_map(|line| line.strip_prefix(name));
        found.map(str::trim).with_context(|| format!("{name} in {kernel}"))
    };
    ensure!(!line("Uid:")?.split_whitespace().any(|id| id == "0"), "{kernel}");
    for capabilities in ["CapEff:", "CapPrm:", "CapInh:", "CapAmb:"] {
        ensure!(u64::from_str_radix(line(capabilities)?, 16)? == 0, "{kernel}");
    }
    ensure!(line("NoNewPrivs:")? == "1" && line("Seccomp:")? == "2", "{kernel}");
    let inside = format!("nsenter --target {first} --mount --");
    ensure!(systemd.sh(&format!("! {inside} touch /etc/written 2>&1"))?.contains("Read-only"));
    systemd.wait_for("selling on")?;
    let journal = systemd.sh(&format!("journalctl -u {SELL} --no-pager"))?;
    ensure!(!journal.contains(PASSPHRASE) && !journal.contains(PASSWORD), "a secret was told");

    systemd.sh(&format!(
        "sed -i 's/^price = .*/price = 600/' /etc/bitmesh/sell.toml; systemctl reload {SELL}"
    ))?;
    systemd.wait_for("settings were read again: price changed")?;
    ensure!(systemd.property(SELL, "MainPID")? == first, "a reload is no restart");

    systemd.sh(&format!("kill -KILL {first}"))?;
    let second = wait_active(&systemd, &first)?;
    ensure!(systemd.property(SELL, "NRestarts")? == "1");

    // One that hangs is ended and started again.
    systemd.sh(&format!(
        "mkdir -p /etc/systemd/system/{SELL}.service.d
         printf '[Service]\\nWatchdogSec=5\\nRestartSec=100ms\\n' > /etc/systemd/system/{SELL}.service.d/quick.conf
         systemctl daemon-reload
         systemctl restart {SELL}"
    ))?;
    let third = wait_active(&systemd, &second)?;
    systemd.sh(&format!(
        "sleep 8; test $(systemctl show --value --property=MainPID {SELL}) = {third}"
    ))?;
    systemd.sh(&format!("kill -STOP {third}"))?;
    wait_active(&systemd, &third)?;
    systemd.wait_for("Watchdog timeout")?;

    systemd.sh(&format!("systemctl stop {SELL}"))?;
    ensure!(systemd.property(SELL, "ActiveState")? == "inactive");
    ensure!(systemd.property(SELL, "Result")? == "success");
    ensure!(
        dataplane::instances().contains(&pins.0),
        "the programs stay, and shut out who has not paid"
    );
    ensure!(fs::metadata("/etc/bitmesh").is_err(), "the box wrote on the machine");
    Ok(())
}
