//! Every command of `docs/OPERATING.md`, in its order, on boxes of namespaces.
//!
//! Blocks marked `sh` are run on the first box and `sh second` on the second, where a real systemd is the first
//! process; `sh subscriber` on a machine behind their ports; `sh db1` and `sh db2` on the database's machines, by
//! a user without rights. Nothing is left out: what is different here is declared in [`Stage::substitutes`].

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use bitmesh_tests::{
    daemon::{bitmesh, eventually},
    fleet::{DATABASE_PORT, Fabric},
    postgres,
    regtest::{Node, PASSWORD, USER},
    sweep::own_name,
    systemd::{PROGRAM, Systemd, WAIT},
    topology::{LAN, WAN},
    world::instance,
};
use bitmesh_user::dataplane;
use tempfile::TempDir;

const PAGE: &str = include_str!("../../docs/OPERATING.md");
/// Commands that the page has at least: so many that a page which is not parsed is noticed.
const COMMANDS_MIN: usize = 30;

/// Who the database's machines run their commands as: `nobody`, who has no rights.
const NOBODY: u32 = 65_534;
/// What the page calls the database's machines.
const DATABASES: [&str; 2] = ["db1", "db2"];

/// Where a block of the page is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Host {
    /// The first box, and the second.
    Edge(usize),
    Subscriber,
    /// Machines of the database.
    Database(usize),
}

/// A block of the page.
struct Block {
    line: usize,
    host: Host,
    script: String,
}

fn blocks() -> Result<Vec<Block>> {
    let mut found = Vec::new();
    let mut open: Option<Block> = None;
    for (number, line) in PAGE.lines().enumerate() {
        match (line.strip_prefix("```"), open.take()) {
            (Some(""), Some(block)) => found.push(block),
            (Some(kind), None) => {
                let host = match kind {
                    "sh" => Host::Edge(0),
                    "sh second" => Host::Edge(1),
                    "sh subscriber" => Host::Subscriber,
                    "sh db1" => Host::Database(0),
                    "sh db2" => Host::Database(1),
                    _ => bail!("line {}: a block that is not run: {kind}", number + 1),
                };
                open = Some(Block { line: number + 1, host, script: String::new() });
            }
            (Some(kind), _) => bail!("line {}: a block in a block: {kind}", number + 1),
            (None, Some(mut block)) => {
                block.script.push_str(line);
                block.script.push('\n');
                open = Some(block);
            }
            (None, None) => {}
        }
    }
    ensure!(open.is_none(), "a block without an end");
    Ok(found)
}

/// The machines.
struct Stage<'a> {
    fabric: &'a Fabric,
    edges: [Systemd<'a>; 2],
    node: &'a Node<'a>,
    instances: [String; 2],
    folder: TempDir,
}

impl<'a> Stage<'a> {
    fn new(fabric: &'a Fabric, node: &'a Node<'a>) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix(&own_name("operating-")).tempdir()?;
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711))?;
        for name in DATABASES {
            let data = folder.path().join(name);
            fs::create_dir_all(&data)?;
            chown(&data, Some(NOBODY), Some(NOBODY))?;
        }
        // What one box puts into its `/root`, a person carries to the other.
        let root = folder.path().join("root");
        fs::create_dir_all(&root)?;
        let [first, second] = &fabric.edges;
        let edges = [Systemd::boot(first, &root)?, Systemd::boot(second, &root)?];
        let instances = [instance(), instance()];
        let stage = Self { fabric, edges, node, instances, folder };
        for (at, edge) in stage.edges.iter().enumerate() {
            let settings = stage.environment(at).map(|(name, value)| format!("{name}={value}"));
            let hosts = DATABASES.map(|name| format!("{} {name}", database_address(name, at)));
            edge.sh(&format!(
                "systemctl set-environment {}; printf '%s\\n' '{}' >> /etc/hosts",
                settings.join(" "),
                hosts.join("' '")
            ))?;
        }
        Ok(stage)
    }

    /// The node is regtest's.
    fn environment(&self, edge: usize) -> [(&'static str, String); 4] {
        self.environment_at(&format!("10.79.1{edge}.1"))
    }

    fn environment_at(&self, node: &str) -> [(&'static str, String); 4] {
        [
            ("BITMESH_NETWORK", "regtest".into()),
            ("BITMESH_NODE", self.node.url(node)),
            ("BITMESH_NODE_USER", USER.into()),
            ("BITMESH_NODE_PASSWORD", PASSWORD.into()),
        ]
    }

    fn database(&self, at: usize) -> Result<PathBuf> {
        Ok(self.folder.path().join(DATABASES.get(at).context("a database")?))
    }

    /// All that is different from the page.
    fn substitutes(&self, host: Host) -> Result<Vec<(String, String)>> {
        let of = |from: &str, to: String| (from.to_owned(), to);
        let mut all = Vec::new();
        match host {
            Host::Edge(edge) => {
                let [first, second] = &self.instances;
                let own = if edge == 0 { first } else { second };
                all.extend([
                    of("target/release/bitmesh", PROGRAM.into()),
                    // The pins are the machine's: each run and each box has its own.
                    of("wan = \"eth0\"", format!("wan = \"eth0\"\ninstance = \"{own}\"")),
                    of("tower-2\"/'", format!("tower-2\"/; s/{first}/{second}/'")),
                    of("sell --detach", format!("sell --detach --instance {own}")),
                ]);
            }
            Host::Subscriber => {
                all.push(of("bitmesh ", format!("{} ", bitmesh()?.display())));
            }
            Host::Database(at) => {
                let data = self.database(at)?.display().to_string();
                for name in DATABASES {
                    let at = |edge| database_address(name, edge);
                    let addresses = format!("{},{}", at(0), at(1));
                    // Both machines are one here.
                    let socket = format!("unix_socket_directories = '{data}'");
                    all.push(of(
                        &format!("listen_addresses = '{name}'\n"),
                        format!("listen_addresses = '{addresses}'\n{socket}\n"),
                    ));
                    all.push(of(
                        &format!("listen_addresses = '{name}'/"),
                        format!("listen_addresses = '{addresses}'/; s#^unix_socket.*#{socket}#"),
                    ));
                }
                all.push(of("/var/lib/postgresql", data));
                // Names are an edge's: this machine has no hosts file of its own.
                all.extend(DATABASES.map(|name| {
                    let address = database_address(name, 0);
                    of(&format!("host={name} "), format!("host={name} hostaddr={address} "))
                }));
            }
        }
        all.extend([of("eth0", WAN.into()), of("eth1", LAN.into())]);
        Ok(all)
    }

    fn run(&self, block: &Block) -> Result<()> {
        if !block.script.contains("pg_stat_replication") {
            return self.check(block, &self.execute(block)?);
        }
        // The standby may need longer than the page waits: who reads it asks again.
        eventually("a synchronous standby", WAIT, || {
            let told = self.execute(block)?;
            let states = told.lines().filter_map(|line| line.split('|').nth(1));
            Ok(states.into_iter().any(|state| state.trim() == "sync").then_some(()))
        })
    }

    /// What it says.
    fn execute(&self, block: &Block) -> Result<String> {
        let mut script = block.script.clone();
        for (from, to) in self.substitutes(block.host)? {
            script = script.replace(&from, &to);
        }
        let mut command: Command = match block.host {
            Host::Edge(edge) => {
                let mut command = self.edge(edge)?.command("bash")?;
                command.envs(self.environment(edge));
                command
            }
            Host::Subscriber => {
                let mut command = self.fabric.subscriber.command("bash")?;
                command.envs(self.environment_at("10.79.2.1"));
                command
            }
            Host::Database(at) => {
                let data = self.database(at)?;
                let path = std::env::var("PATH").unwrap_or_default();
                let mut command = self.fabric.chain.command("setpriv")?;
                command
                    .args([&format!("--reuid={NOBODY}"), &format!("--regid={NOBODY}")])
                    .args(["--clear-groups", "bash"])
                    .env("PATH", format!("{}:{path}", postgres::programs()?.display()))
                    .envs([("PGHOST", &data), ("HOME", &data)]);
                command
            }
        };
        let output =
            command.args(["-euxo", "pipefail", "-c", &format!("cd /\n{script}")]).output()?;
        self.carry_certificates()?;
        let said = |octets: &[u8]| String::from_utf8_lossy(octets).into_owned();
        ensure!(
            output.status.success(),
            "line {} of the page:\n{script}\n{}\n{}\n{}",
            block.line,
            said(&output.stdout),
            said(&output.stderr),
            self.journal(block.host)?
        );
        Ok(said(&output.stdout))
    }

    /// What a person brings from the database's machines to the others.
    fn carry_certificates(&self) -> Result<()> {
        let folders: Vec<_> =
            ["root"].iter().chain(&DATABASES).map(|name| self.folder.path().join(name)).collect();
        for name in DATABASES.map(|name| format!("{name}.crt")) {
            let made = folders.iter().map(|folder| folder.join(&name)).find(|path| path.exists());
            let Some(made) = made else { continue };
            for to in folders.iter().map(|folder| folder.join(&name)).filter(|to| !to.exists()) {
                fs::copy(&made, to)?;
            }
        }
        Ok(())
    }

    /// What a person would look at.
    fn check(&self, block: &Block, told: &str) -> Result<()> {
        let shows = |what: &str, has: bool| {
            ensure!(has, "line {}: {what} in what it says:\n{told}", block.line);
            Ok(())
        };
        if block.script.contains("systemctl reload") {
            let Host::Edge(edge) = block.host else { bail!("a reload of what?") };
            self.edge(edge)?.wait_for("settings were read again: price changed")?;
        }
        if block.script.contains("--abandon") || !block.script.contains("bitmesh status") {
            return Ok(());
        }
        let fleet = self.edge(0)?.sh("cat /etc/bitmesh/sell.toml")?.contains("store =");
        shows("no engine", told.contains(if fleet { "PostgreSQL" } else { "SQLite" }))?;
        shows("no verified database", !told.contains("need not show who they are"))?;
        shows("a password", !told.contains("choose-one"))
    }

    fn edge(&self, edge: usize) -> Result<&Systemd<'a>> {
        self.edges.get(edge).context("a box")
    }

    fn journal(&self, host: Host) -> Result<String> {
        Ok(match host {
            Host::Database(at) => {
                fs::read_to_string(self.database(at)?.join("log")).unwrap_or_default()
            }
            Host::Edge(edge) => self.edge(edge)?.journal(),
            Host::Subscriber => self.edge(0)?.journal(),
        })
    }
}

/// Of one of the database's machines, as an edge reaches it.
fn database_address(name: &str, edge: usize) -> String {
    let host = if name == "db1" { 1 } else { 5 };
    format!("10.79.2{edge}.{host}")
}

/// The process whose number stands in a file's first line.
fn process(file: &Path) -> Option<rustix::process::Pid> {
    let text = fs::read_to_string(file).ok()?;
    rustix::process::Pid::from_raw(text.lines().next()?.trim().parse().ok()?)
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        for name in DATABASES {
            let Some(pid) = process(&self.folder.path().join(name).join("fleet/postmaster.pid"))
            else {
                continue;
            };
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            let gone = || Ok(rustix::process::test_kill_process(pid).is_err().then_some(()));
            let _ = eventually("its end", Duration::from_secs(5), gone);
        }
        for edge in &self.edges {
            let _ = edge.sh("systemctl kill --signal=KILL bitmesh-sell");
        }
        for instance in &self.instances {
            let _ = dataplane::purge(instance);
        }
    }
}

#[test]
fn every_command_of_the_page_works_in_its_order() -> Result<()> {
    let blocks = blocks()?;
    let commands: usize = blocks.iter().map(|block| block.script.lines().count()).sum();
    ensure!(commands >= COMMANDS_MIN, "{commands} commands");
    let fabric = Fabric::new()?;
    for (i, edge) in fabric.edges.iter().enumerate() {
        edge.address(DATABASE_PORT, &format!("10.79.2{i}.6"), 30)?;
        fabric.chain.address(&format!("db-{i}"), &database_address("db2", i), 30)?;
    }
    let node = Node::start(&fabric.chain)?;
    let stage = Stage::new(&fabric, &node)?;
    for block in &blocks {
        stage.run(block)?;
    }
    for edge in &stage.edges {
        let journal = edge.journal();
        ensure!(journal.contains("running as user"), "{journal}");
        ensure!(journal.contains("net.ipv4.ip_forward = 1"), "{journal}");
        for secret in ["passphrase", "store-password"] {
            let secret = edge.sh(&format!("cat /etc/bitmesh/{secret}"))?;
            ensure!(!journal.contains(secret.trim()), "a secret is in the journal");
        }
    }
    Ok(())
}
