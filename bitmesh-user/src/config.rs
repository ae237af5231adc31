//! Settings: flags, and a TOML file with the same names. A flag wins over the file.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use bitcoin::{Amount, Network};
use bitmesh_core::{
    bitcoin,
    channel::{CAPACITY_MIN, LIFETIME_MAX_BLOCKS, LIFETIME_MIN_BLOCKS},
    offer::Terms,
    pricing::Schedule,
    units::Octets,
};
use clap::{Args, ValueEnum};
use figment::{
    Figment,
    providers::{Format as _, Serialized, Toml},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    dataplane::{self, UploadHook},
    guard::{self, Cookies},
};

/// Port of the payment API unless another is set.
pub const API_PORT: u16 = 8_434;
/// Price unless another is set, in msat per MiB.
const PRICE_MSAT_PER_MIB: u64 = 500;
/// Stations' slots unless another number is set.
const TABLE_SLOTS: u32 = 65_536;
/// Most that subscribers are asked to pay ahead, in octets.
const TICK_MAX_OCTETS: u64 = 8 << 20;
/// What a subscriber puts into a channel unless it says otherwise, in satoshi.
const CAPACITY_SAT: u64 = 50_000;
/// Highest speed of a station, in Mbit/s.
const SPEED_MBIT_MAX: u64 = 100_000;
/// Longest name of an instance.
const INSTANCE_MAX: usize = 32;
/// How long a channel lives unless the subscriber says otherwise, in blocks: two weeks.
const LIFETIME_BLOCKS: u32 = 2_016;

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
    /// The node's RPC.
    pub node: String,
    /// The way in.
    pub node_login: NodeLogin,
}

impl CommonArgs {
    fn resolve(self, role: &str) -> Result<Common> {
        let network = self.network.unwrap_or(Network::Bitcoin);
        let data_dir = self.data_dir.unwrap_or_else(|| default_data_dir(role));
        make_private(&data_dir)?;
        let (port, folder) = match network {
            Network::Bitcoin => (8_332, ""),
            Network::Testnet => (18_332, "testnet3"),
            Network::Testnet4 => (48_332, "testnet4"),
            Network::Signet => (38_332, "signet"),
            Network::Regtest => (18_443, "regtest"),
        };
        let node = self.node.unwrap_or_else(|| format!("http://127.0.0.1:{port}"));
        let node_login = match (self.node_user, self.node_password) {
            (Some(user), Some(password)) => NodeLogin::Password { user, password },
            (Some(_), None) => {
                bail!("a node_user needs a node_password; set BITMESH_NODE_PASSWORD")
            }
            _ => NodeLogin::Cookie(
                self.node_cookie
                    .unwrap_or_else(|| home().join(".bitcoin").join(folder).join(".cookie")),
            ),
        };
        Ok(Common { data_dir, network, node, node_login })
    }
}

/// Which program meters what stations send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UploadHookArg {
    /// XDP on physical ports, TC on virtual and wireless ones
    #[default]
    Auto,
    /// XDP in the driver
    Xdp,
    /// XDP behind the driver, for ports that have no other; slow
    XdpGeneric,
    /// TC ingress
    Tc,
}

impl From<UploadHookArg> for UploadHook {
    fn from(hook: UploadHookArg) -> Self {
        match hook {
            UploadHookArg::Auto => Self::Auto,
            UploadHookArg::Xdp => Self::XdpNative,
            UploadHookArg::XdpGeneric => Self::XdpGeneric,
            UploadHookArg::Tc => Self::Tc,
        }
    }
}

/// What a station is bound to once it has bought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BindArg {
    /// Its port; frames with its MAC from another port pass, and are told
    #[default]
    Port,
    /// Its port; frames with its MAC from another port drop
    Strict,
    /// Nothing: a station may roam between ports
    None,
}

/// Flags of `bitmesh sell`.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
pub struct SellArgs {
    /// Port that subscribers are on; repeat for several. Of a bridge, name its ports
    #[arg(long, value_name = "IF")]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lan: Vec<String>,
    /// Port that the internet is on; never metered, named so that mistakes are noticed
    #[arg(long, value_name = "IF")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wan: Option<String>,
    /// Price in millisatoshi per MiB [default: 500]
    #[arg(long, value_name = "MSAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub price: Option<u64>,
    /// Blocks on a funding, its own included, before payments count [default: 1]
    #[arg(long, value_name = "BLOCKS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confirmations: Option<u32>,
    /// Smallest channel in satoshi [default: 5000]
    #[arg(long, value_name = "SAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity_min: Option<u64>,
    /// Largest channel in satoshi [default: 10000000]
    #[arg(long, value_name = "SAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity_max: Option<u64>,
    /// Most octets that a subscriber pays ahead of use [default: 8 MiB]
    #[arg(long, value_name = "OCTETS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tick_max: Option<u64>,
    /// TCP port of the payment API on every --lan port [default: 8434]
    #[arg(long, value_name = "PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_port: Option<u16>,
    /// Which program meters uploads [default: auto]
    #[arg(long, value_enum)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upload_hook: Option<UploadHookArg>,
    /// Slots of the station table, twice the stations to serve, a power of two [default: 65536]
    #[arg(long, value_name = "SLOTS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table_slots: Option<u32>,
    /// Fastest upload of each station, in Mbit/s [default: any]
    #[arg(long, value_name = "MBIT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub speed_up: Option<u64>,
    /// Fastest download of each station, in Mbit/s [default: any]
    #[arg(long, value_name = "MBIT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub speed_down: Option<u64>,
    /// What a station is bound to once it has bought [default: port]
    #[arg(long, value_enum)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bind: Option<BindArg>,
    /// Keep stations from each other: frames from one --lan port to another drop
    #[arg(long)]
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub isolate: bool,
    /// Outer VLAN id of stations behind two tags (802.1ad); the inner names the station's VLAN
    /// [default: none, frames with two tags drop]
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u16).range(1..=4094))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_vlan: Option<u16>,
    /// Name of the pinned programs and maps under /sys/fs/bpf/bitmesh, for several on one machine
    /// [default: sell]
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// Who the daemon becomes once everything is open; it needs root only to start
    /// [default: the user bitmesh if there is one, else a number of nobody's]
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Take programs, maps and enforcement off the ports and exit. Nothing is metered or blocked
    /// from then on
    #[arg(long)]
    #[serde(skip)]
    pub detach: bool,
    #[command(flatten)]
    #[serde(flatten)]
    #[allow(missing_docs)]
    pub common: CommonArgs,
}

/// What `bitmesh sell` works with.
#[derive(Clone)]
pub struct SellConfig {
    /// Data and node.
    pub common: Common,
    /// Ports of stations.
    pub lan: Vec<String>,
    /// Port of the internet.
    pub wan: Option<String>,
    /// The price.
    pub schedule: Schedule,
    /// Bounds on channels.
    pub terms: Terms,
    /// Of the API.
    pub api_port: u16,
    /// For uploads.
    pub upload_hook: UploadHookArg,
    /// Of the station table.
    pub table_slots: u32,
    /// Of each station, in octets per second.
    pub speed_up: Option<u64>,
    /// The same for downloads.
    pub speed_down: Option<u64>,
    /// Of stations that bought.
    pub bind: BindArg,
    /// Whether stations are kept from each other.
    pub isolate: bool,
    /// The outer tag of two.
    pub service_vlan: Option<u16>,
    /// Of the pins.
    pub instance: String,
    /// Who to become.
    pub user: Option<String>,
}

impl SellArgs {
    /// Reads the file, if one is named, and checks everything.
    pub fn resolve(self) -> Result<SellConfig> {
        let args: Self = merge(self.common.config.clone().as_deref(), self)?;
        let schedule = Schedule::flat(args.price.unwrap_or(PRICE_MSAT_PER_MIB));
        schedule.validate().context("--price")?;
        let terms = Terms {
            capacity_min: args.capacity_min.map_or(CAPACITY_MIN, Amount::from_sat),
            capacity_max: Amount::from_sat(args.capacity_max.unwrap_or(10_000_000)),
            lifetime_min_blocks: LIFETIME_MIN_BLOCKS,
            lifetime_max_blocks: LIFETIME_MAX_BLOCKS,
            confirmations: args.confirmations.unwrap_or(1),
            tick_max: Octets(args.tick_max.unwrap_or(TICK_MAX_OCTETS)),
        };
        let instance = instance(args.instance, "sell")?;
        if args.lan.is_empty() {
            bail!(
                "--lan is missing: name the port that subscribers are on, as `ip link` shows it, \
                 for example `bitmesh sell --lan eth1 --wan eth0`"
            );
        }
        if args.wan.as_ref().is_some_and(|wan| args.lan.contains(wan)) {
            bail!("--wan and --lan name the same port; subscribers and the internet need two");
        }
        Ok(SellConfig {
            common: args.common.resolve("sell")?,
            lan: args.lan,
            wan: args.wan,
            schedule,
            terms,
            api_port: args.api_port.unwrap_or(API_PORT),
            upload_hook: args.upload_hook.unwrap_or_default(),
            table_slots: args.table_slots.unwrap_or(TABLE_SLOTS),
            speed_up: speed("--speed-up", args.speed_up)?,
            speed_down: speed("--speed-down", args.speed_down)?,
            bind: args.bind.unwrap_or_default(),
            isolate: args.isolate,
            service_vlan: args.service_vlan,
            instance,
            user: args.user,
        })
    }
}

impl SellConfig {
    /// Terms of a station's lease, first seen on a port.
    pub fn terms_of(&self, port: Option<u32>) -> dataplane::Terms {
        dataplane::Terms {
            up: self.speed_up,
            down: self.speed_down,
            port: port.filter(|_| self.bind != BindArg::None),
            strict: self.bind == BindArg::Strict,
            ..dataplane::Terms::default()
        }
    }
}

/// Mbit/s as octets per second.
fn speed(flag: &str, mbit: Option<u64>) -> Result<Option<u64>> {
    match mbit {
        Some(mbit) if !(1..=SPEED_MBIT_MAX).contains(&mbit) => {
            bail!("{flag} {mbit}: take 1 to {SPEED_MBIT_MAX} Mbit/s, or leave it out for any speed")
        }
        mbit => Ok(mbit.map(|mbit| mbit * 125_000)),
    }
}

/// Flags of `bitmesh buy`.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
pub struct BuyArgs {
    /// The provider's API [default: port 8434 of the default gateway]
    #[arg(long, value_name = "URL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// Most to spend in all, in satoshi; `bitmesh budget` changes it later
    /// [default: what the channel holds]
    #[arg(long, value_name = "SAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<u64>,
    /// What to put into a channel, in satoshi; what isn't spent comes back [default: 50000]
    #[arg(long, value_name = "SAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity: Option<u64>,
    /// Blocks until a channel's money comes back by itself if the provider vanishes
    /// [default: 2016, two weeks]
    #[arg(long, value_name = "BLOCKS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lifetime: Option<u32>,
    /// Name of the pinned count under /sys/fs/bpf/bitmesh, for several on one machine
    /// [default: buy]
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// Highest price to accept, in millisatoshi per MiB [default: any]
    #[arg(long, value_name = "MSAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub price_max: Option<u64>,
    #[command(flatten)]
    #[serde(flatten)]
    #[allow(missing_docs)]
    pub common: CommonArgs,
}

/// What `bitmesh buy` works with.
#[derive(Clone)]
pub struct BuyConfig {
    /// Data and node.
    pub common: Common,
    /// The provider's API, without a slash at the end.
    pub provider: Option<String>,
    /// What may be spent, if it was said.
    pub budget: Option<Amount>,
    /// Of a new channel.
    pub capacity: Amount,
    /// Of a new channel, in blocks.
    pub lifetime: u32,
    /// In msat per MiB.
    pub price_max: Option<u64>,
    /// Of the pins.
    pub instance: String,
}

impl BuyArgs {
    /// Reads the file, if one is named, and checks everything.
    pub fn resolve(self) -> Result<BuyConfig> {
        let args: Self = merge(self.common.config.clone().as_deref(), self)?;
        let capacity = Amount::from_sat(args.capacity.unwrap_or(CAPACITY_SAT));
        if capacity < CAPACITY_MIN || capacity > Amount::MAX_MONEY {
            bail!("--capacity is at least {} sat: below that, fees eat it", CAPACITY_MIN.to_sat());
        }
        let lifetime = args.lifetime.unwrap_or(LIFETIME_BLOCKS);
        if !(LIFETIME_MIN_BLOCKS..=LIFETIME_MAX_BLOCKS).contains(&lifetime) {
            bail!("--lifetime is {LIFETIME_MIN_BLOCKS} to {LIFETIME_MAX_BLOCKS} blocks");
        }
        let provider = args.provider.map(|url| url.trim_end_matches('/').to_owned());
        if provider.as_ref().is_some_and(|url| !url.starts_with("http://")) {
            bail!("--provider is a URL like http://192.168.1.1:{API_PORT}");
        }
        Ok(BuyConfig {
            common: args.common.resolve("buy")?,
            provider,
            budget: args.budget.map(Amount::from_sat),
            capacity,
            lifetime,
            price_max: args.price_max,
            instance: instance(args.instance, "buy")?,
        })
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
    "api_port",
    "bind",
    "budget",
    "capacity",
    "capacity_max",
    "capacity_min",
    "confirmations",
    "data_dir",
    "instance",
    "isolate",
    "lan",
    "lifetime",
    "network",
    "node",
    "node_cookie",
    "node_password",
    "node_user",
    "price",
    "price_max",
    "provider",
    "service_vlan",
    "speed_down",
    "speed_up",
    "table_slots",
    "tick_max",
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
        let toml = "lan = [\"eth1\"]\nprice = 5\nconfirmations = 3\nnetwork = \"regtest\"\n";
        let config = sell(directory.path(), toml, flags).unwrap();
        assert_eq!(config.schedule, Schedule::flat(7));
        assert_eq!(config.terms.confirmations, 3);
        assert_eq!(config.lan, ["eth1"]);
        assert_eq!(config.api_port, API_PORT);
        assert_eq!(config.common.node, "http://127.0.0.1:18443");
        let mode = std::fs::metadata(config.common.data_dir).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn what_is_wrong_with_a_configuration_is_said() {
        let directory = tempfile::tempdir().unwrap();
        for (toml, told) in [
            ("", "--lan is missing"),
            ("lan = [\"a\"]\nwan = \"a\"\n", "same port"),
            ("lan = [\"a\"]\nprice = 0\n", "--price"),
            ("lan = [\"a\"]\nprcie = 1\n", "no setting prcie"),
            ("lan = 5\n", "lan"),
            ("lan = [\"a\"", "bitmesh.toml"),
            ("lan = [\"a\"]\ninstance = \"../x\"\n", "--instance"),
            ("lan = [\"a\"]\nnetwork = \"moon\"\n", "moon"),
            ("lan = [\"a\"]\nnode_user = \"x\"\n", "node_password"),
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
