//! What people type and see. It parses, asks a daemon or becomes one, and prints; it decides
//! nothing about money.

mod bench;
mod show;

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use bitmesh_core::{
    channel::ChannelId,
    wire::{AccountReport, ChannelReport},
};
use clap::{Args, Parser, Subcommand};
use reqwest::Method;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    api::{ADMIN_SOCKET, BudgetChange, ask_admin, value},
    config::{BuyArgs, SellArgs, default_data_dir},
    runloop::{
        self,
        status::{Status, WalletStatus},
    },
};

/// Share an internet connection and be paid for it in bitcoin, octet by octet; or buy one.
#[derive(Parser, Debug)]
#[command(
    name = "bitmesh",
    version,
    arg_required_else_help = true,
    after_help = "First steps:\n  \
        provider:    bitmesh sell --lan eth1 --wan eth0\n  \
        subscriber:  bitmesh buy\n  \
        both:        bitmesh status\n\n\
        Both need a Bitcoin Core or Knots node (--node). Try everything without real money in\n\
        network namespaces of this machine: cargo xtask build-and-load --lab"
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Sell: meter and guard LAN ports, take payments, claim them on chain
    #[command(
        long_about = "Loads the metering programs onto the LAN ports, answers subscribers on the \
            payment API and claims channels when they close. From the moment that it runs, \
            stations on these ports pass only what they paid for. The programs stay when it stops; \
            `bitmesh sell --detach` takes them off.\n\nNeeds root, Linux 6.1 or newer and a \
            Bitcoin node. Forwarding and addresses are the box's own: set net.ipv4.ip_forward=1 \
            and, where wanted, NAT on the WAN port.",
        after_help = "Example:\n  bitmesh sell --lan eth1 --wan eth0 --price 400\n\n\
            The same in a file, with --config sell.toml:\n  lan = [\"eth1\"]\n  wan = \"eth0\"\n  price = 400"
    )]
    Sell(Box<SellArgs>),
    /// Buy: open a channel with the network's provider and pay as you use
    #[command(
        long_about = "Takes the provider's offer, funds a channel from its own wallet and pays \
            tick by tick for exactly what it counts on its own interface, never more than the \
            budget. Stopping it keeps the channel; `bitmesh close` settles it and brings the rest \
            back.\n\nNeeds root, to count on the interface, and a Bitcoin node that it can reach \
            before it has paid.",
        after_help = "Examples:\n  bitmesh buy                           from the default gateway\n  \
            bitmesh buy --budget 2000             spend at most 2,000 sat\n  \
            bitmesh buy --provider http://10.0.0.1:8434 --capacity 100000"
    )]
    Buy(Box<BuyArgs>),
    /// How the daemon on this machine is doing
    #[command(after_help = "Example:\n  bitmesh status --json | jq .synced")]
    Status(Query),
    /// Payment channels: state, paid, bought
    Channels(Query),
    /// Stations: bought, used, credit (provider)
    Stations(Query),
    /// Balance, and an address to send bitcoin to
    Wallet(Query),
    /// What may be spent (subscriber); without --add or --set, shows it
    #[command(after_help = "Example:\n  bitmesh budget --add 5000")]
    Budget(BudgetArgs),
    /// Close a channel: the provider claims what was paid, the rest comes back
    #[command(after_help = "Examples:\n  bitmesh close --all\n  bitmesh close 3f1c...")]
    Close(CloseArgs),
    /// The offer of a provider, checked
    #[command(after_help = "Example:\n  bitmesh offers http://192.168.1.1:8434 --network bitcoin")]
    Offers(OffersArgs),
    /// What metering costs on this machine: a frame, a top-up, a scan
    #[command(
        long_about = "Measures our programs against empty ones by the kernel's own test runs, and \
            what userspace pays for top-ups and scans. Nothing is attached and no frame is sent: \
            it is safe beside a running provider, whose load will show in the figures. Peers, \
            forwarding and throughput need a lab: cargo xtask bench.\n\nNeeds root.",
        after_help = "Examples:\n  bitmesh bench\n  \
            bitmesh bench --quick --json | jq '.[] | {name, ours, ratio, met}'"
    )]
    Bench(bench::BenchArgs),
}

/// Which daemon, and how to print.
#[derive(Args, Clone, Debug)]
struct Query {
    /// The daemon's data directory [default: whichever daemon runs on this machine]
    #[arg(long, value_name = "DIR", env = "BITMESH_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

#[derive(Args, Clone, Debug)]
struct BudgetArgs {
    /// Allow so many satoshi more
    #[arg(long, value_name = "SAT", conflicts_with = "set")]
    add: Option<u64>,
    /// Allow so many satoshi in all
    #[arg(long, value_name = "SAT")]
    set: Option<u64>,
    #[command(flatten)]
    query: Query,
}

#[derive(Args, Clone, Debug)]
struct CloseArgs {
    /// The channel's id, as `bitmesh channels --json` has it
    #[arg(required_unless_present = "all")]
    channel: Option<ChannelId>,
    /// Every channel that is open
    #[arg(long, conflicts_with = "channel")]
    all: bool,
    #[command(flatten)]
    query: Query,
}

#[derive(Args, Clone, Debug)]
struct OffersArgs {
    /// The provider's API [default: port 8434 of the default gateway]
    provider: Option<String>,
    /// Chain that you would pay on
    #[arg(long, env = "BITMESH_NETWORK", default_value = "bitcoin")]
    network: bitmesh_core::bitcoin::Network,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

impl Cli {
    /// Does what was typed.
    pub async fn run(self) -> Result<()> {
        match self.command {
            Command::Sell(args) if args.detach => runloop::detach(args.instance.as_deref()),
            Command::Sell(args) => Box::pin(runloop::sell(args.resolve()?)).await,
            Command::Buy(args) => Box::pin(runloop::buy(args.resolve()?)).await,
            Command::Status(query) => query.show::<Status>("/v1/status", show::status).await,
            Command::Channels(query) => {
                query.show::<Vec<ChannelReport>>("/v1/channels", |c| show::channels(c)).await
            }
            Command::Stations(query) => {
                query.show::<Vec<AccountReport>>("/v1/stations", |s| show::stations(s)).await
            }
            Command::Wallet(query) => query.show::<WalletStatus>("/v1/wallet", show::wallet).await,
            Command::Budget(args) => args.run().await,
            Command::Close(args) => args.run().await,
            Command::Bench(args) => args.run(),
            Command::Offers(args) => {
                let offer = runloop::offer(args.provider.as_deref(), args.network).await?;
                print(args.json, &value(&offer), &offer, show::offer)
            }
        }
    }

    /// Whether it becomes a daemon, which logs.
    pub fn is_daemon(&self) -> bool {
        matches!(self.command, Command::Sell(_) | Command::Buy(_))
    }
}

fn print<T>(json: bool, raw: &Value, typed: &T, table: impl FnOnce(&T) -> String) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(raw)?);
    } else {
        println!("{}", table(typed));
    }
    Ok(())
}

impl Query {
    /// The directory that was named, else the one whose daemon runs.
    fn directory(&self) -> PathBuf {
        let runs = |role: &str| default_data_dir(role).join(ADMIN_SOCKET).exists();
        let role = if runs("buy") && !runs("sell") { "buy" } else { "sell" };
        self.data_dir.clone().unwrap_or_else(|| default_data_dir(role))
    }

    async fn show<T: DeserializeOwned>(
        &self,
        path: &str,
        table: impl FnOnce(&T) -> String,
    ) -> Result<()> {
        let raw = ask_admin(&self.directory(), Method::GET, path, None).await?;
        let typed = serde_json::from_value(raw.clone())
            .context("the daemon is of another version; restart it with this one")?;
        print(self.json, &raw, &typed, table)
    }
}

impl BudgetArgs {
    async fn run(self) -> Result<()> {
        let change = match (self.add, self.set) {
            (Some(sat), _) => Some(BudgetChange::AddSat(sat)),
            (None, Some(sat)) => Some(BudgetChange::SetSat(sat)),
            (None, None) => None,
        };
        if let Some(change) = change {
            let directory = self.query.directory();
            ask_admin(&directory, Method::POST, "/v1/budget", Some(value(change))).await?;
        }
        self.query.show::<Status>("/v1/status", show::budget).await
    }
}

impl CloseArgs {
    async fn run(self) -> Result<()> {
        let directory = self.query.directory();
        let ids = if let Some(id) = self.channel {
            vec![id]
        } else {
            let raw = ask_admin(&directory, Method::GET, "/v1/channels", None).await?;
            let channels: Vec<ChannelReport> = serde_json::from_value(raw)?;
            channels.iter().filter(|c| show::is_live(c)).map(|c| c.channel).collect()
        };
        let mut closed: Vec<ChannelReport> = Vec::new();
        for id in ids {
            let path = format!("/v1/channels/{id}/close");
            let answer = ask_admin(&directory, Method::POST, &path, None).await?;
            closed.push(serde_json::from_value(answer)?);
        }
        print(self.query.json, &value(&closed), &closed, |closed| show::closed(closed))
    }
}
