//! Settings of a provider.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
};

use anyhow::{Context as _, Result, bail};
use bitcoin::Amount;
use bitmesh_core::{
    bitcoin,
    channel::{CAPACITY_MIN, LIFETIME_MAX_BLOCKS, LIFETIME_MIN_BLOCKS},
    offer::Terms,
    pricing::Schedule,
    units::Octets,
};
use clap::{Args, ValueEnum};
use nix::unistd::Group;
use serde::{Deserialize, Serialize};

use super::{
    API_PORT, ChainArg, Common, CommonArgs, FleetArgs, FleetConfig, SourceConfig, instance, merge,
};
use crate::{
    dataplane::{self, UploadHook},
    store::Place,
    telemetry,
    wallet::Seed,
};

/// Price unless another is set, in msat per MiB.
const PRICE_MSAT_PER_MIB: u64 = 500;
/// Stations' slots unless another number is set.
const TABLE_SLOTS: u32 = 65_536;
/// Most that subscribers are asked to pay ahead, in octets.
const TICK_MAX_OCTETS: u64 = 8 << 20;
/// Highest speed of a station, in Mbit/s.
const SPEED_MBIT_MAX: u64 = 100_000;

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
    /// Its port and the IPv4 address that it opened its channel from; others with its MAC drop
    Address,
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
    /// What a channel may pay, in satoshi, before its funding is confirmed: what you lose when it is
    /// spent elsewhere, up to 16 times in three days. Your own node has to see the network's
    /// transactions [default: 0]
    #[arg(long, value_name = "SAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unconfirmed_credit: Option<u64>,
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
    /// Members of this group may use the operator's commands, beside root and the daemon's own user.
    /// The daemon becomes a member, too
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin_group: Option<String>,
    /// Address and port for GET /metrics and GET /health, for example 127.0.0.1:9434; never one of a
    /// --lan port [default: on the operator's socket only]
    #[arg(long, value_name = "ADDR:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<SocketAddr>,
    /// Take programs, maps and enforcement off the ports and exit. Nothing is metered or blocked
    /// from then on
    #[arg(long)]
    #[serde(skip)]
    pub detach: bool,
    #[command(flatten)]
    #[serde(flatten)]
    #[allow(missing_docs)]
    pub fleet: FleetArgs,
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
    /// Number of the group that may administer.
    pub admin_group: Option<u32>,
    /// Where metrics are told, beside the operator's socket.
    pub metrics: Option<SocketAddr>,
    /// What was typed, for when the file is read again.
    pub flags: Box<SellArgs>,
    /// The same over the file, as it was read last.
    pub settings: Box<SellArgs>,
    /// The fleet that this is an edge of.
    pub fleet: Option<FleetConfig>,
}

impl SellArgs {
    /// Reads the file, if one is named, and checks everything.
    pub fn resolve(self) -> Result<SellConfig> {
        let mut config = self.judge()?;
        config.settings.common.clone().resolve("sell")?;
        config.fleet = config.settings.fleet.resolve()?;
        Ok(config)
    }

    /// The same, and touches nothing.
    fn judge(self) -> Result<SellConfig> {
        let flags = Box::new(self.clone());
        let args: Self = merge(self.common.config.clone().as_deref(), self)?;
        let settings = Box::new(args.clone());
        let schedule = Schedule::flat(args.price.unwrap_or(PRICE_MSAT_PER_MIB));
        schedule.validate().context("--price")?;
        let terms = Terms {
            capacity_min: args.capacity_min.map_or(CAPACITY_MIN, Amount::from_sat),
            capacity_max: Amount::from_sat(args.capacity_max.unwrap_or(10_000_000)),
            lifetime_min_blocks: LIFETIME_MIN_BLOCKS,
            lifetime_max_blocks: LIFETIME_MAX_BLOCKS,
            confirmations: args.confirmations.unwrap_or(1),
            tick_max: Octets(args.tick_max.unwrap_or(TICK_MAX_OCTETS)),
            unconfirmed_max: Amount::from_sat(args.unconfirmed_credit.unwrap_or(0)),
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
        let common = args.common.judge("sell")?;
        let admin_group = args.admin_group.as_deref().map(group).transpose()?;
        if terms.unconfirmed_max > Amount::ZERO
            && matches!(common.source, SourceConfig::Light { .. })
        {
            bail!(
                "--unconfirmed-credit takes a source that sees transactions which spend a funding \
                 elsewhere, and the light client sees blocks alone: name your node with --node"
            );
        }
        let fleet = args.fleet.judge()?;
        if fleet.is_some() {
            FleetConfig::check_source(&common.source)?;
        }
        Ok(SellConfig {
            common,
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
            admin_group,
            metrics: args.metrics,
            flags,
            settings,
            fleet,
        })
    }
}

/// What can change while it runs, by its name in the file.
const RELOADED: [&str; 10] = [
    "bind",
    "capacity_max",
    "capacity_min",
    "confirmations",
    "log",
    "price",
    "speed_down",
    "speed_up",
    "tick_max",
    "unconfirmed_credit",
];

/// What reading the file again came to.
pub struct Reread {
    /// Settings with everything that can change while it runs.
    pub config: SellConfig,
    /// Names of those that changed and hold.
    pub changed: Vec<String>,
    /// Names of those that changed and take a restart.
    pub restart: Vec<String>,
}

impl SellConfig {
    /// Reads flags and file again, and takes over what can change while it runs.
    pub fn reread(&self) -> Result<Reread> {
        let mut flags = (*self.flags).clone();
        // Its cookie, which chose it, may be out of sight by now.
        if matches!(self.common.source, SourceConfig::Node { .. }) {
            flags.common.chain = Some(ChainArg::Node);
        }
        let mut new = flags.judge()?;
        telemetry::check_filter(new.settings.common.log.as_deref())?;
        new.settings.common.chain = self.settings.common.chain;
        let names = |settings: &SellArgs| match serde_json::to_value(settings) {
            Ok(serde_json::Value::Object(names)) => names,
            _ => serde_json::Map::new(),
        };
        let (before, after) = (names(&self.settings), names(&new.settings));
        let all: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
        let differ = all.into_iter().filter(|name| before.get(*name) != after.get(*name)).cloned();
        let (changed, restart) = differ.partition(|name| RELOADED.contains(&name.as_str()));
        let settings = (*self.settings).clone();
        let settings = SellArgs {
            bind: new.settings.bind,
            capacity_max: new.settings.capacity_max,
            capacity_min: new.settings.capacity_min,
            confirmations: new.settings.confirmations,
            price: new.settings.price,
            speed_down: new.settings.speed_down,
            speed_up: new.settings.speed_up,
            tick_max: new.settings.tick_max,
            unconfirmed_credit: new.settings.unconfirmed_credit,
            common: CommonArgs { log: new.settings.common.log.clone(), ..settings.common },
            ..settings
        };
        let config = Self {
            schedule: new.schedule,
            terms: new.terms,
            speed_up: new.speed_up,
            speed_down: new.speed_down,
            bind: new.bind,
            settings: Box::new(settings),
            ..self.clone()
        };
        Ok(Reread { config, changed, restart })
    }

    /// Where the ledger is.
    pub fn ledger(&self, seed: &Seed) -> Place {
        match &self.fleet {
            Some(fleet) => fleet.ledger(&self.common, seed),
            None => self.common.ledger(),
        }
    }

    /// Terms of a station's lease: the port that it was first seen on, the address that it opened a
    /// channel from.
    pub fn terms_of(&self, port: Option<u32>, ipv4: Option<Ipv4Addr>) -> dataplane::Terms {
        dataplane::Terms {
            up: self.speed_up,
            down: self.speed_down,
            port: port.filter(|_| self.bind != BindArg::None),
            ipv4: ipv4.filter(|_| self.bind == BindArg::Address),
            strict: matches!(self.bind, BindArg::Strict | BindArg::Address),
            ..dataplane::Terms::default()
        }
    }
}

/// A group's number.
fn group(name: &str) -> Result<u32> {
    let found = Group::from_name(name).context("asking for a group")?;
    let group = found.with_context(|| {
        format!(
            "--admin-group {name}: there is no such group; `groupadd --system {name}` makes one"
        )
    })?;
    Ok(group.gid.as_raw())
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
