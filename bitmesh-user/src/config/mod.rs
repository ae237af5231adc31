//! Settings: flags, and a TOML file with the same names. A flag wins over the file.

mod buy;
mod fleet;
mod sell;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use bitcoin::Network;
use bitmesh_core::bitcoin;
use clap::Args;
use figment::{
    Figment,
    providers::{Format as _, Serialized, Toml},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    guard::{self, Cookies},
    store::Place,
    telemetry::LogFormat,
};

pub use self::{
    buy::{BuyArgs, BuyConfig},
    fleet::{FleetArgs, FleetConfig},
    sell::{BindArg, Reread, SellArgs, SellConfig, UploadHookArg},
};

/// Port of the payment API unless another is set.
pub const API_PORT: u16 = 8_434;
/// Longest name of an instance.
const INSTANCE_MAX: usize = 32;

/// Where data and the Bitcoin node are; the same for both roles.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
pub struct CommonArgs {
    /// TOML file with the same names as these flags, underscores for dashes
    #[arg(long, value_name = "FILE", global = false)]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Where keys, channels and the ledger are kept
    /// [default: /var/lib/bitmesh/sell or /var/lib/bitmesh/buy]
    #[arg(long, value_name = "DIR", env = "BITMESH_DATA_DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,
    /// Chain that channels are funded on: bitcoin, signet, testnet4 or regtest [default: bitcoin]
    #[arg(long, env = "BITMESH_NETWORK")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// Where blocks come from: `light` asks peers of the network, `node` your own Bitcoin Core or
    /// Knots, `esplora` a server
    /// [default: what is named below; then, to sell, the node whose cookie file is found; then light]
    #[arg(long, value_enum, value_name = "SOURCE", env = "BITMESH_CHAIN")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chain: Option<ChainArg>,
    /// Peer for the light client, as HOST or HOST:PORT; repeat it for more. It has to have filters
    /// (blockfilterindex=1, peerblockfilters=1) [default: found by the network's seeds]
    #[arg(long, value_name = "PEER")]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peer: Vec<String>,
    /// Esplora server, as <https://host/api>
    #[arg(long, value_name = "URL", env = "BITMESH_ESPLORA")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub esplora: Option<String>,
    /// File with the passphrase that opens the wallet's seed
    /// [default: systemd's credential bitmesh-passphrase, else asked for]
    #[arg(long, value_name = "FILE", env = "BITMESH_PASSPHRASE_FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passphrase_file: Option<PathBuf>,
    /// What the log tells: error, warn, info, debug, trace, or by module [default: info]
    #[arg(long, value_name = "FILTER", env = "BITMESH_LOG")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
    /// How the log's lines look [default: text]
    #[arg(long, value_enum, value_name = "FORMAT", env = "BITMESH_LOG_FORMAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_format: Option<LogFormat>,
    /// RPC address of your Bitcoin Core or Knots node
    /// [default: <http://127.0.0.1> and the network's port]
    #[arg(long, value_name = "URL", env = "BITMESH_NODE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The node's cookie file [default: ~/.bitcoin, in the network's folder]
    #[arg(long, value_name = "FILE", env = "BITMESH_NODE_COOKIE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_cookie: Option<PathBuf>,
    /// User for the node, instead of the cookie
    #[arg(long, value_name = "NAME", env = "BITMESH_NODE_USER", requires = "node_password")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_user: Option<String>,
    /// Password for the node; better in the environment than on the command line
    #[arg(long, value_name = "PASSWORD", env = "BITMESH_NODE_PASSWORD", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_password: Option<String>,
}

/// Kind of chain source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChainArg {
    /// Compact filters from peers.
    Light,
    /// A node's RPC.
    Node,
    /// An Esplora server.
    Esplora,
}

/// Where blocks come from.
#[derive(Clone)]
pub enum SourceConfig {
    /// Peers.
    Light {
        /// Those that were named.
        peers: Vec<String>,
    },
    /// A node.
    Node {
        /// Of its RPC.
        url: String,
        /// The way in.
        login: NodeLogin,
    },
    /// A server.
    Esplora {
        /// Where its paths start.
        url: String,
    },
}

/// How to log in to the node.
#[derive(Clone)]
pub enum NodeLogin {
    /// With the file that the node writes at each start.
    Cookie(PathBuf),
    /// With the same file, read by the guard: the daemon may not.
    Guarded {
        /// The file.
        path: PathBuf,
        /// Who reads it.
        cookies: Cookies,
    },
    /// With a name and a password.
    Password {
        /// The name.
        user: String,
        /// The password.
        password: String,
    },
}

/// What both roles know once flags and file are read.
#[derive(Clone)]
pub struct Common {
    /// Exists, and only its owner can enter.
    pub data_dir: PathBuf,
    /// The chain.
    pub network: Network,
    /// Where blocks come from.
    pub source: SourceConfig,
    /// Why from there.
    pub source_reason: &'static str,
    /// Where the seed's passphrase is, if that was named.
    pub passphrase_file: Option<PathBuf>,
}

impl Common {
    /// Where the ledger is.
    pub fn ledger(&self) -> Place {
        Place::file(&self.data_dir)
    }
}

impl CommonArgs {
    /// With what the file says that is named, below the flags.
    pub(crate) fn with_file(self) -> Result<Self> {
        merge(self.config.clone().as_deref(), self)
    }

    /// How to log: by flags and, as far as it can be read, the file. What is wrong with it is said
    /// when it is read for everything else.
    pub(crate) fn logging(&self) -> (LogFormat, Option<String>) {
        let merged = self.clone().with_file().unwrap_or_else(|_| self.clone());
        (merged.log_format.unwrap_or_default(), merged.log)
    }

    pub(crate) fn resolve(self, role: &str) -> Result<Common> {
        let common = self.judge(role)?;
        make_private(&common.data_dir)?;
        Ok(common)
    }

    /// The same, and touches nothing.
    fn judge(self, role: &str) -> Result<Common> {
        let network = self.network.unwrap_or(Network::Bitcoin);
        let data_dir = self.data_dir.clone().unwrap_or_else(|| default_data_dir(role));
        let passphrase_file = self.passphrase_file.clone();
        let (source, source_reason) = self.source(network, role)?;
        Ok(Common { data_dir, network, source, source_reason, passphrase_file })
    }

    fn source(self, network: Network, role: &str) -> Result<(SourceConfig, &'static str)> {
        let (port, folder) = match network {
            Network::Bitcoin => (8_332, ""),
            Network::Testnet => (18_332, "testnet3"),
            Network::Testnet4 => (48_332, "testnet4"),
            Network::Signet => (38_332, "signet"),
            Network::Regtest => (18_443, "regtest"),
        };
        let names_node = self.node.is_some()
            || self.node_cookie.is_some()
            || self.node_user.is_some()
            || self.node_password.is_some();
        let default_cookie = home().join(".bitcoin").join(folder).join(".cookie");
        let named = [
            (ChainArg::Light, !self.peer.is_empty(), "--peer"),
            (ChainArg::Node, names_node, "--node"),
            (ChainArg::Esplora, self.esplora.is_some(), "--esplora"),
        ];
        let mut named = named.into_iter().filter(|(_, is_named, _)| *is_named);
        let (chosen, reason) = match (self.chain, named.next(), named.next()) {
            (_, Some((_, _, one)), Some((_, _, other))) => {
                bail!("{one} and {other} name two sources of blocks; name one")
            }
            (Some(chain), Some((kind, _, flag)), None) if chain != kind => {
                bail!("{flag} is of no use with that --chain; leave one of them out")
            }
            (Some(chain), ..) => (chain, "--chain says so"),
            (None, Some((kind, _, _)), None) => (kind, "it was named"),
            (None, ..) if role == "sell" && default_cookie.exists() => {
                (ChainArg::Node, "its cookie file was found")
            }
            (None, ..) => (ChainArg::Light, "no node and no server was named"),
        };
        let source = match chosen {
            ChainArg::Light if network == Network::Regtest && self.peer.is_empty() => {
                bail!(
                    "regtest has no seeds to find peers by; name one with --peer, or a node with --node"
                )
            }
            ChainArg::Light => SourceConfig::Light { peers: self.peer },
            ChainArg::Esplora => {
                let url = self
                    .esplora
                    .context("--chain esplora needs a server; name it with --esplora URL")?;
                SourceConfig::Esplora { url }
            }
            ChainArg::Node => {
                let url = self.node.unwrap_or_else(|| format!("http://127.0.0.1:{port}"));
                let login = match (self.node_user, self.node_password) {
                    (Some(user), Some(password)) => NodeLogin::Password { user, password },
                    (Some(_), None) => {
                        bail!("a node_user needs a node_password; set BITMESH_NODE_PASSWORD")
                    }
                    _ => NodeLogin::Cookie(self.node_cookie.unwrap_or(default_cookie)),
                };
                SourceConfig::Node { url, login }
            }
        };
        Ok((source, reason))
    }
}

/// A name that can be a folder's.
fn instance(named: Option<String>, default: &str) -> Result<String> {
    let name = named.unwrap_or_else(|| default.into());
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || name.len() > INSTANCE_MAX || !name.chars().all(plain) {
        bail!("--instance takes 1 to {INSTANCE_MAX} letters, digits, - and _");
    }
    Ok(name)
}

/// The file below, the flags above.
fn merge<T: Serialize + DeserializeOwned>(file: Option<&Path>, flags: T) -> Result<T> {
    let mut figment = Figment::new();
    if let Some(path) = file {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("reading {}: does it exist?", path.display()))?;
        check_names(&text).with_context(|| path.display().to_string())?;
        figment = figment.merge(Toml::string(&text));
    }
    figment
        .merge(Serialized::defaults(flags))
        .extract()
        .context("the configuration: every name is a flag of the same command, with _ for -")
}

/// A name that no flag has is a mistake: serde can't refuse it behind `flatten`.
fn check_names(text: &str) -> Result<()> {
    let table: toml::Table = text.parse()?;
    for name in table.keys() {
        let known = KNOWN.contains(&name.as_str());
        if !known {
            bail!("there is no setting {name}; `--help` lists them, with - for _");
        }
    }
    Ok(())
}

const KNOWN: &[&str] = &[
    "admin_group",
    "api_port",
    "bind",
    "budget",
    "capacity",
    "capacity_max",
    "capacity_min",
    "chain",
    "confirmations",
    "data_dir",
    "edge",
    "esplora",
    "hold",
    "instance",
    "isolate",
    "lan",
    "lifetime",
    "log",
    "log_format",
    "metrics",
    "network",
    "node",
    "node_cookie",
    "node_password",
    "node_user",
    "passphrase_file",
    "peer",
    "price",
    "price_max",
    "provider",
    "service_vlan",
    "speed_down",
    "speed_up",
    "store",
    "store_password_file",
    "table_slots",
    "tick_max",
    "unconfirmed_credit",
    "upload_hook",
    "user",
    "wan",
];

fn home() -> PathBuf {
    std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from)
}

/// Where a role keeps its data unless told otherwise: the system's place for root, the user's else.
pub fn default_data_dir(role: &str) -> PathBuf {
    let base = if rustix::process::geteuid().is_root() {
        PathBuf::from("/var/lib")
    } else {
        std::env::var_os("XDG_DATA_HOME").map_or_else(|| home().join(".local/share"), PathBuf::from)
    };
    base.join("bitmesh").join(role)
}

fn make_private(directory: &Path) -> Result<()> {
    use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
    guard::check_directory(directory).context("--data-dir")?;
    // Those above it are only passed through, by whoever the daemon becomes.
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(directory)
        .with_context(|| format!("making {}; choose another --data-dir", directory.display()))?;
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700))
        .with_context(|| format!("{} belongs to somebody else", directory.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use bitmesh_core::pricing::Schedule;

    use super::*;

    fn sell(directory: &Path, toml: &str, flags: SellArgs) -> Result<SellConfig> {
        let file = directory.join("bitmesh.toml");
        std::fs::write(&file, toml).unwrap();
        let data_dir = flags.common.data_dir.clone().or(Some(directory.join("data")));
        let common = CommonArgs { config: Some(file), data_dir, ..flags.common };
        SellArgs { common, ..flags }.resolve()
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let directory = tempfile::tempdir().unwrap();
        let flags = SellArgs { price: Some(7), ..SellArgs::default() };
        let toml = "lan = [\"eth1\"]\nprice = 5\nconfirmations = 3\nnetwork = \"regtest\"\nchain = \"node\"\n";
        let config = sell(directory.path(), toml, flags).unwrap();
        assert_eq!(config.schedule, Schedule::flat(7));
        assert_eq!(config.terms.confirmations, 3);
        assert_eq!(config.lan, ["eth1"]);
        assert_eq!(config.api_port, API_PORT);
        assert_eq!(named(&config.common.source), "http://127.0.0.1:18443");
        let mode = std::fs::metadata(config.common.data_dir).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn a_file_that_is_read_again_holds_as_a_whole_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let toml = "lan = [\"eth1\"]\nprice = 5\n";
        let config = sell(directory.path(), toml, SellArgs::default()).unwrap();
        let file = directory.path().join("bitmesh.toml");
        std::fs::write(&file, "lan = [\"eth1\"]\nprice = 6\nlog = \"info,=,\"\n").unwrap();
        let error = config.reread().err().unwrap();
        assert!(format!("{error:#}").contains("--log"), "{error:#}");
        std::fs::write(&file, "lan = [\"eth1\"]\nprice = 6\nlog = \"warn\"\n").unwrap();
        let reread = config.reread().unwrap();
        assert_eq!(reread.changed, ["log", "price"]);
        assert_eq!(reread.config.schedule, Schedule::flat(6));
    }

    fn named(source: &SourceConfig) -> String {
        match source {
            SourceConfig::Light { peers } => peers.join(" "),
            SourceConfig::Node { url, .. } | SourceConfig::Esplora { url } => url.clone(),
        }
    }

    #[test]
    fn what_is_named_chooses_the_source() {
        let directory = tempfile::tempdir().unwrap();
        for (toml, source) in [
            ("peer = [\"a\", \"b:1\"]", "a b:1"),
            ("esplora = \"https://blocks.example/api\"", "https://blocks.example/api"),
            ("node = \"http://a:1\"", "http://a:1"),
            ("node_cookie = \"/cookie\"", "http://127.0.0.1:8332"),
            ("chain = \"node\"\nnetwork = \"signet\"", "http://127.0.0.1:38332"),
            ("chain = \"light\"", ""),
        ] {
            let toml = format!("lan = [\"eth1\"]\n{toml}\n");
            let config = sell(directory.path(), &toml, SellArgs::default()).unwrap();
            assert_eq!(named(&config.common.source), source, "{toml}");
        }
    }

    #[test]
    fn a_station_is_bound_as_far_as_was_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let (port, ipv4) = (Some(3), Some([10, 0, 0, 2].into()));
        for (bind, expected) in [
            ("port", (port, None, false)),
            ("strict", (port, None, true)),
            ("address", (port, ipv4, true)),
            ("none", (None, None, false)),
        ] {
            let toml = format!("lan = [\"eth1\"]\nbind = \"{bind}\"\nspeed_down = 8\n");
            let config = sell(directory.path(), &toml, SellArgs::default()).unwrap();
            let terms = config.terms_of(port, ipv4);
            assert_eq!((terms.port, terms.ipv4, terms.strict), expected, "{bind}");
            assert_eq!((terms.up, terms.down), (None, Some(1_000_000)));
        }
    }

    #[test]
    fn what_is_wrong_with_a_configuration_is_said() {
        let directory = tempfile::tempdir().unwrap();
        for (toml, told) in [
            ("", "--lan is missing"),
            ("lan = [\"a\"]\nwan = \"a\"\n", "same port"),
            ("lan = [\"a\"]\nprice = 0\n", "--price"),
            ("lan = [\"a\"]\nspeed_up = 0\n", "--speed-up"),
            ("lan = [\"a\"]\nprcie = 1\n", "no setting prcie"),
            ("lan = 5\n", "lan"),
            ("lan = [\"a\"", "bitmesh.toml"),
            ("lan = [\"a\"]\ninstance = \"../x\"\n", "--instance"),
            ("lan = [\"a\"]\nnetwork = \"moon\"\n", "moon"),
            ("lan = [\"a\"]\nnode_user = \"x\"\n", "node_password"),
            ("lan = [\"a\"]\nnode = \"x\"\npeer = [\"y\"]\n", "two sources"),
            ("lan = [\"a\"]\nchain = \"light\"\nnode = \"x\"\n", "no use"),
            ("lan = [\"a\"]\nchain = \"esplora\"\n", "--esplora URL"),
            ("lan = [\"a\"]\nchain = \"light\"\nnetwork = \"regtest\"\n", "--peer"),
        ] {
            let error = sell(directory.path(), toml, SellArgs::default()).err().unwrap();
            let error = format!("{error:#}");
            assert!(error.contains(told), "{toml:?}: {error}");
        }
    }

    #[test]
    fn every_name_in_the_list_is_a_flag() {
        let flags = |command: clap::Command| -> Vec<String> {
            command.get_arguments().map(|arg| arg.get_id().to_string()).collect()
        };
        let sell = flags(SellArgs::augment_args(clap::Command::new("sell")));
        let buy = flags(BuyArgs::augment_args(clap::Command::new("buy")));
        for name in KNOWN {
            assert!(sell.iter().chain(&buy).any(|flag| flag == name), "{name}");
        }
        for flag in sell.iter().chain(&buy) {
            let listed = KNOWN.contains(&flag.as_str());
            assert!(listed || flag == "config" || flag == "detach", "{flag}");
        }
    }
}
