//! Every command of `docs/OPERATING.md`, in its order, on a box of namespaces.
//!
//! Blocks marked `sh` are run on the box, those marked `sh subscriber` on a machine behind its port, `sh
//! second` on another box, `sh db1` and `sh db2` on the database's machines by a user without rights. Nothing is left out: what is different here is declared in [`Stage::substitutes`]. systemd is not the
//! first process where tests run: a script in its place starts what the printed unit says, with its
//! credentials and no capability that the unit leaves out.

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
    topology::{LAN, WAN},
};
use bitmesh_user::dataplane;

const PAGE: &str = include_str!("../../docs/OPERATING.md");
/// Commands that the page has at least: so many that a page which is not parsed is noticed.
const COMMANDS_MIN: usize = 30;

const SYSTEMCTL: &str = r#"#!/bin/bash
# systemctl's stand-in: starts what the unit says.
set -euo pipefail
unit=@ETC@/systemd/system/bitmesh-sell.service
pidfile=@ROOT@/pid
log=@ROOT@/journal
start() {
  here=@ROOT@/unit
  sed 's#/etc/#@ETC@/#g; s#/var/lib/bitmesh#@ROOT@/data#g' $unit > $here
  program=$(sed -n 's/^ExecStart=//p' $here)
  caps=$(sed -n 's/^CapabilityBoundingSet=//p' $here | tr '\n' ' ' | tr 'A-Z' 'a-z' | sed 's/cap_/+/g; s/ *$//; s/  */,/g')
  credentials=@ROOT@/credentials; mkdir -p $credentials
  rm -f $credentials/*
  sed -n 's/^SetCredential=//p' $here | while IFS=: read -r id text; do printf "$text" > "$credentials/$id"; done
  sed -n 's/^LoadCredential=//p' $here | while IFS=: read -r id path; do
    # What can't be read has to have a default.
    [ -e "$path" ] || [ -e "$credentials/$id" ] || { echo "no $path" >&2; exit 1; }
    [ ! -e "$path" ] || cp "$path" "$credentials/$id"
  done
  chmod 0400 $credentials/*
  export CREDENTIALS_DIRECTORY=$credentials
  setsid setpriv --bounding-set="-all,$caps" $program >> $log 2>&1 < /dev/null &
  echo $! > $pidfile
  for _ in $(seq 300); do
    grep -q 'selling on' <(tail -n +$(cat @ROOT@/mark 2>/dev/null || echo 1) $log) && return 0
    kill -0 $(cat $pidfile) 2>/dev/null || { cat $log >&2; return 1; }
    sleep 0.1
  done
  cat $log >&2; return 1
}
stop() {
  kill -TERM $(cat $pidfile)
  for _ in $(seq 200); do kill -0 $(cat $pidfile) 2>/dev/null || break; sleep 0.1; done
  ! kill -0 $(cat $pidfile) 2>/dev/null
  echo $(( $(wc -l < $log) + 1 )) > @ROOT@/mark
}
case $1 in
  daemon-reload) systemd-analyze verify $unit ;;
  enable | start) start ;;
  stop) stop ;;
  restart) stop; start ;;
  reload) kill -HUP $(cat $pidfile); sleep 1; grep -q 'settings were read again: price changed' $log ;;
  status) kill -0 $(cat $pidfile) ;;
  *) echo "no $1 here" >&2; exit 2 ;;
esac
"#;

/// Who the database's machines run their commands as: `nobody`, who has no rights.
const NOBODY: u32 = 65_534;

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

/// Where the page's paths are here: a folder for each machine, and one that stands for what is carried
/// between them.
struct Stage {
    root: PathBuf,
    instances: [String; 2],
    program: PathBuf,
}

impl Stage {
    fn new() -> Result<Self> {
        let root = std::env::temp_dir().join(own_name("operating"));
        for database in [0, 1] {
            let folder = root.join(format!("db{}", database + 1));
            fs::create_dir_all(&folder)?;
            chown(&folder, Some(NOBODY), Some(NOBODY))?;
        }
        fs::create_dir_all(root.join("root"))?;
        fs::set_permissions(&root, fs::Permissions::from_mode(0o711))?;
        let instances = [own_name("operating"), own_name("operating2")];
        let stage = Self { root, instances, program: bitmesh()? };
        for edge in [0, 1] {
            Self::equip(&stage.edge(edge))?;
        }
        Ok(stage)
    }

    /// A box's folder.
    fn edge(&self, edge: usize) -> PathBuf {
        self.root.join(format!("tower-{}", edge + 1))
    }

    fn equip(folder: &Path) -> Result<()> {
        for name in ["bin", "etc/systemd/system", "etc/sysctl.d", "data"] {
            fs::create_dir_all(folder.join(name))?;
        }
        fs::set_permissions(folder, fs::Permissions::from_mode(0o711))?;
        let (etc, here) = (folder.join("etc"), folder.display().to_string());
        let script = |name: &str, text: &str| -> Result<()> {
            let path = folder.join("bin").join(name);
            let shown = text.replace("@ETC@", &etc.display().to_string()).replace("@ROOT@", &here);
            fs::write(&path, shown)?;
            Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
        };
        script("systemctl", SYSTEMCTL)?;
        script("journalctl", "#!/bin/bash\ntest -s @ROOT@/journal && tail -n 20 @ROOT@/journal\n")
    }

    /// All that is different from the page.
    fn substitutes(&self, host: Host) -> Vec<(String, String)> {
        let of = |from: &str, to: String| (from.to_owned(), to);
        let carried = self.root.join("root").display().to_string() + "/";
        let mut all = vec![of("target/release/bitmesh", self.program.display().to_string())];
        let near = match host {
            Host::Edge(edge) => {
                let folder = self.edge(edge);
                let here = |path: &str| folder.join(path).display().to_string();
                let [instance, other] = &self.instances;
                let own = if edge == 0 { instance } else { other };
                all.extend([
                    of("/usr/local/bin/", here("bin/")),
                    of("-C /etc ", format!("-C {} ", here("etc"))),
                    of("/etc/", here("etc/")),
                    of("/var/lib/bitmesh", here("data")),
                    // The pins are the machine's: each run and each box has its own.
                    of("wan = \"eth0\"", format!("wan = \"eth0\"\ninstance = \"{own}\"")),
                    of(
                        "tower-2\"/'",
                        format!("tower-2\"/; s/{instance}/{other}/; s/10[.]79[.]20/10.79.21/g'"),
                    ),
                    of("sell --detach", format!("sell --detach --instance {own}")),
                    of("--role sell", format!("--role sell --data-dir {}", here("data/sell"))),
                ]);
                edge
            }
            Host::Subscriber => 0,
            Host::Database(at) => {
                let folder = self.root.join(format!("db{}", at + 1)).display().to_string();
                for name in ["db1", "db2"] {
                    let at = |edge| database_address(name, edge);
                    let addresses = format!("{},{}", at(0), at(1));
                    // Both machines are one here.
                    let socket = format!("unix_socket_directories = '{folder}'");
                    all.push(of(
                        &format!("listen_addresses = '{name}'\n"),
                        format!("listen_addresses = '{addresses}'\n{socket}\n"),
                    ));
                    all.push(of(
                        &format!("listen_addresses = '{name}'/"),
                        format!("listen_addresses = '{addresses}'/; s#^unix_socket.*#{socket}#"),
                    ));
                }
                all.push(of("/var/lib/postgresql", folder));
                0
            }
        };
        all.extend([
            of("/root/", carried),
            of("eth0", WAN.into()),
            of("eth1", LAN.into()),
            of("db1", database_address("db1", near)),
            of("db2", database_address("db2", near)),
        ]);
        all
    }

    /// The node is regtest's, and named by the environment.
    fn run(&self, block: &Block, fabric: &Fabric, node: &Node<'_>) -> Result<()> {
        let mut script = block.script.clone();
        // What has the name of a machine in a path of ours is put in last.
        for (from, to) in self.substitutes(block.host) {
            script = script.replace(&from, &to.replace("db1", "@1@").replace("db2", "@2@"));
        }
        let script = script.replace("@1@", "db1").replace("@2@", "db2");
        let shell = ["-euxo", "pipefail", "-c", &script];
        let path = std::env::var("PATH").unwrap_or_default();
        let (namespace, address, bin) = match block.host {
            Host::Edge(edge) => {
                let folder = self.edge(edge);
                let namespace = fabric.edges.get(edge).context("a box")?;
                (namespace, format!("10.79.1{edge}.1"), folder.join("bin"))
            }
            Host::Subscriber => {
                (&fabric.subscriber, "10.79.2.1".to_owned(), self.edge(0).join("bin"))
            }
            Host::Database(_) => (&fabric.chain, String::new(), postgres::programs()?),
        };
        let mut command: Command;
        if let Host::Database(at) = block.host {
            command = namespace.command("setpriv")?;
            command.args([&format!("--reuid={NOBODY}"), &format!("--regid={NOBODY}")]);
            let folder = self.root.join(format!("db{}", at + 1));
            command.args(["--clear-groups", "bash"]).env("PGHOST", &folder).current_dir(folder);
        } else {
            command = namespace.command("bash")?;
            command
                .env("BITMESH_NETWORK", "regtest")
                .env("BITMESH_NODE", node.url(&address))
                .env("BITMESH_NODE_USER", USER)
                .env("BITMESH_NODE_PASSWORD", PASSWORD);
        }
        command.args(shell).env("PATH", format!("{}:{path}", bin.display()));
        if let Host::Edge(edge) = block.host
            && (script.contains("bitmesh status") || script.contains("bitmesh wallet\n"))
        {
            command.env("BITMESH_DATA_DIR", self.edge(edge).join("data/sell"));
        }
        let output = command.output()?;
        let said = |octets: &[u8]| String::from_utf8_lossy(octets).into_owned();
        ensure!(
            output.status.success(),
            "line {} of the page:\n{script}\n{}\n{}\n{}",
            block.line,
            said(&output.stdout),
            said(&output.stderr),
            self.journal(block.host)
        );
        self.check(block, &said(&output.stdout))
    }

    /// What a person would look at.
    fn check(&self, block: &Block, told: &str) -> Result<()> {
        let shows = |what: &str, has: bool| {
            ensure!(has, "line {}: {what} in what it says:\n{told}", block.line);
            Ok(())
        };
        if block.script.contains("pg_stat_replication") {
            shows("no synchronous standby", told.contains("sync"))?;
        }
        if block.script.contains("--abandon") || !block.script.contains("bitmesh status") {
            return Ok(());
        }
        let fleet =
            fs::read_to_string(self.edge(0).join("etc/bitmesh/sell.toml"))?.contains("store =");
        shows("no engine", told.contains(if fleet { "PostgreSQL" } else { "SQLite" }))?;
        shows("a password", !told.contains("choose-one"))
    }

    fn journal(&self, host: Host) -> String {
        let path = match host {
            Host::Database(at) => self.root.join(format!("db{}/log", at + 1)),
            Host::Edge(edge) => self.edge(edge).join("journal"),
            Host::Subscriber => self.edge(0).join("journal"),
        };
        fs::read_to_string(path).unwrap_or_default()
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

impl Drop for Stage {
    fn drop(&mut self) {
        let of_edges = [0, 1].map(|edge| self.edge(edge).join("pid"));
        let of_databases =
            ["db1", "db2"].map(|name| self.root.join(name).join("fleet/postmaster.pid"));
        for pid in of_edges.iter().chain(&of_databases).filter_map(|file| process(file)) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            let gone = || Ok(rustix::process::test_kill_process(pid).is_err().then_some(()));
            let _ = eventually("its end", Duration::from_secs(5), gone);
        }
        for instance in &self.instances {
            let _ = dataplane::purge(instance);
        }
        let _ = fs::remove_dir_all(&self.root);
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
    let stage = Stage::new()?;
    for block in &blocks {
        stage.run(block, &fabric, &node)?;
    }
    for edge in [0, 1] {
        let log = stage.journal(Host::Edge(edge));
        ensure!(log.contains("running as user"), "{log}");
        for secret in ["passphrase", "store-password"] {
            let secret = fs::read_to_string(stage.edge(edge).join("etc/bitmesh").join(secret))?;
            ensure!(!log.contains(secret.trim()), "a secret is in the log");
        }
    }
    Ok(())
}
