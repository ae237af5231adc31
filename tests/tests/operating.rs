//! Every command of `docs/OPERATING.md`, in its order, on a box of namespaces.
//!
//! Blocks marked `sh` are run on the box, those marked `sh subscriber` on a machine behind its port.
//! Nothing is left out: what is different here is declared in [`Stage::substitutes`]. systemd is not the
//! first process where tests run: a script in its place starts what the printed unit says, with its
//! credentials and no capability that the unit leaves out.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use bitmesh_tests::{
    daemon::{bitmesh, eventually},
    netns::Namespace,
    regtest::{Node, PASSWORD, USER},
    sweep::own_name,
    topology::{LAN, NODE_FOR_EDGE, NODE_FOR_SUBSCRIBER, Topology, WAN},
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
  sed -n 's/^LoadCredential=//p' $here | while IFS=: read -r id path; do cp "$path" "$credentials/$id"; chmod 0400 "$credentials/$id"; done
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

/// A block of the page.
struct Block {
    line: usize,
    on_subscriber: bool,
    script: String,
}

fn blocks() -> Result<Vec<Block>> {
    let mut found = Vec::new();
    let mut open: Option<Block> = None;
    for (number, line) in PAGE.lines().enumerate() {
        match (line.strip_prefix("```"), open.take()) {
            (Some(""), Some(block)) => found.push(block),
            (Some(kind @ ("sh" | "sh subscriber")), None) => {
                let on_subscriber = kind != "sh";
                open = Some(Block { line: number + 1, on_subscriber, script: String::new() });
            }
            (Some(kind), _) => bail!("line {}: a block that is not run: {kind}", number + 1),
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

/// Where the page's paths are here.
struct Stage {
    root: PathBuf,
    instance: String,
    program: PathBuf,
}

impl Stage {
    fn new() -> Result<Self> {
        let root = std::env::temp_dir().join(own_name("operating"));
        for folder in ["bin", "etc/systemd/system", "etc/sysctl.d", "data", "root"] {
            fs::create_dir_all(root.join(folder))?;
        }
        fs::set_permissions(&root, fs::Permissions::from_mode(0o711))?;
        let shown = |text: &str| {
            let etc = root.join("etc").display().to_string();
            text.replace("@ETC@", &etc).replace("@ROOT@", &root.display().to_string())
        };
        let script = |name: &str, text: &str| -> Result<()> {
            let path = root.join("bin").join(name);
            fs::write(&path, shown(text))?;
            Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
        };
        script("systemctl", SYSTEMCTL)?;
        script("journalctl", "#!/bin/bash\ntest -s @ROOT@/journal && tail -n 20 @ROOT@/journal\n")?;
        Ok(Self { root, instance: own_name("operating"), program: bitmesh()? })
    }

    /// All that is different from the page.
    fn substitutes(&self) -> Vec<(String, String)> {
        let here = |path: &str| self.root.join(path).display().to_string();
        let program = self.program.display().to_string();
        let of = |from: &str, to: String| (from.to_owned(), to);
        vec![
            of("target/release/bitmesh", program),
            of("/usr/local/bin/", here("bin/")),
            of("/etc/", here("etc/")),
            of("/var/lib/bitmesh", here("data")),
            of("/root/", here("root/")),
            // The pins are the machine's: each run has its own.
            of("wan = \"eth0\"", format!("wan = \"eth0\"\ninstance = \"{}\"", self.instance)),
            of("sell --detach", format!("sell --detach --instance {}", self.instance)),
            of("--role sell", format!("--role sell --data-dir {}", here("data/sell"))),
            of("eth0", WAN.into()),
            of("eth1", LAN.into()),
        ]
    }

    /// The node is regtest's, and named by the environment.
    fn run(&self, block: &Block, namespace: &Namespace, node: &str) -> Result<()> {
        let mut script = block.script.clone();
        for (from, to) in self.substitutes() {
            script = script.replace(&from, &to);
        }
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command: Command = namespace.command("bash")?;
        command
            .args(["-euxo", "pipefail", "-c", &script])
            .env("PATH", format!("{}:{path}", self.root.join("bin").display()))
            .env("BITMESH_NETWORK", "regtest")
            .env("BITMESH_NODE", node)
            .env("BITMESH_NODE_USER", USER)
            .env("BITMESH_NODE_PASSWORD", PASSWORD);
        if script.contains("bitmesh status") || script.contains("bitmesh wallet\n") {
            command.env("BITMESH_DATA_DIR", self.root.join("data/sell"));
        }
        let output = command.output()?;
        let said = |octets: &[u8]| String::from_utf8_lossy(octets).into_owned();
        ensure!(
            output.status.success(),
            "line {} of the page:\n{script}\n{}\n{}\n{}",
            block.line,
            said(&output.stdout),
            said(&output.stderr),
            fs::read_to_string(self.root.join("journal")).unwrap_or_default()
        );
        Ok(())
    }

    fn pid(&self) -> Option<i32> {
        fs::read_to_string(self.root.join("pid")).ok()?.trim().parse().ok()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some(pid) = self.pid().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            let gone = || Ok(rustix::process::test_kill_process(pid).is_err().then_some(()));
            let _ = eventually("its end", Duration::from_secs(5), gone);
        }
        let _ = dataplane::purge(&self.instance);
        let _ = fs::remove_dir_all(&self.root);
    }
}

#[test]
fn every_command_of_the_page_works_in_its_order() -> Result<()> {
    let blocks = blocks()?;
    let commands: usize = blocks.iter().map(|block| block.script.lines().count()).sum();
    ensure!(commands >= COMMANDS_MIN, "{commands} commands");
    let topology = Topology::edge()?;
    let node = Node::start(&topology.chain)?;
    let stage = Stage::new()?;
    for block in &blocks {
        let (namespace, address) = if block.on_subscriber {
            (&topology.subscriber, NODE_FOR_SUBSCRIBER)
        } else {
            (&topology.edge, NODE_FOR_EDGE)
        };
        stage.run(block, namespace, &node.url(address))?;
    }
    let log = fs::read_to_string(stage.root.join("journal")).context("its log")?;
    ensure!(log.contains("running as user"), "{log}");
    let secret = fs::read_to_string(Path::new(&stage.root).join("etc/bitmesh/passphrase"))?;
    ensure!(!log.contains(secret.trim()), "the passphrase is in the log");
    Ok(())
}
