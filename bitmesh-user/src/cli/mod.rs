//! What people type and see. It parses, asks a daemon or becomes one, and prints; it decides
//! nothing about money.

mod bench;
mod channels;
mod moving;
mod service;
mod show;
mod store;
mod wallet;

use std::{
    io::{self, Write as _},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use bitmesh_core::{
    channel::ChannelId,
    station::Station,
    wire::{AccountReport, ChannelReport},
};
use clap::{Args, Parser, Subcommand};
use reqwest::Method;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    api::{ADMIN_SOCKET, BudgetChange, Provider, ShareChange, ShareCode, ask_admin, value},
    config::{BuyArgs, SellArgs, UploadHookArg, default_data_dir},
    dataplane::DEFAULT_TABLE_SLOTS,
    doctor::{self, Level},
    guard::{self, GuardArgs},
    runloop::{self, status::Status},
    telemetry::LogFormat,
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
        Both ask the Bitcoin network itself about the chain, or your own node (--node); a provider\n\
        is better off with one. Try everything without real money in network namespaces of this\n\
        machine: cargo xtask build-and-load --lab"
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
            `bitmesh sell --detach` takes them off.\n\nNeeds root to start, Linux 6.1 or newer, \
            nftables, and a source of blocks: your Bitcoin Core or Knots node if its cookie file is \
            found or it is named, else peers of the network. Once everything is open it becomes --user, without any \
            rights; a small second process keeps the programs on the ports. Forwarding and addresses are the box's own: set net.ipv4.ip_forward=1 \
            and, where wanted, NAT on the WAN port.",
        after_help = "Example:\n  bitmesh sell --lan eth1 --wan eth0 --price 400\n\n\
            The same in a file, with --config sell.toml:\n  lan = [\"eth1\"]\n  wan = \"eth0\"\n  price = 400"
    )]
    Sell(Box<SellArgs>),
    /// Buy: open a channel with the network's provider and pay as you use
    #[command(
        long_about = "Takes the provider's offer, funds a channel from its own wallet and pays \
            tick by tick for exactly what it counts on its own interface, never more than the \
            budget. Before a channel is spent, the next one is funded and takes over, as far as \
            budget and wallet go. Stopping it keeps the channel; `bitmesh close` settles it and \
            brings the rest back.\n\nNeeds root, to count on the interface. It has to see the chain \
            before it has paid, unless its wallet is known from earlier and the provider lets \
            payments count before confirmation. Blocks come from peers of the network, or \
            from the node or server that is named.",
        after_help = "Examples:\n  bitmesh buy                           from the default gateway\n  \
            bitmesh buy --budget 2000             spend at most 2,000 sat\n  \
            bitmesh buy --provider http://10.0.0.1:8434 --capacity 100000"
    )]
    Buy(Box<BuyArgs>),
    /// How the daemon on this machine is doing
    #[command(after_help = "Example:\n  bitmesh status --json | jq .synced")]
    Status(Query),
    /// Payment channels: state, paid, bought
    #[command(after_help = "Examples:\n  bitmesh channels\n  bitmesh channels export-refund")]
    Channels(Box<channels::ChannelsArgs>),
    /// Stations by account: bought, used, credit (provider)
    Stations(Query),
    /// The wallet: balance, address, history, send, create, restore
    #[command(
        long_about = "Without a command: balance, and an address to send bitcoin to. It asks the \
            daemon that runs; where none does, it opens the wallet itself and follows the chain \
            first.",
        after_help = "Examples:\n  bitmesh wallet\n  bitmesh wallet create\n  \
            bitmesh wallet address --amount 50000\n  bitmesh wallet send bc1q... 20000"
    )]
    Wallet(Box<wallet::WalletArgs>),
    /// The ledger: check it, copy it, put a copy back, take it into a fleet
    #[command(after_help = "Examples:\n  bitmesh store check\n  \
        bitmesh store backup /mnt/usb/ledger-monday\n  \
        bitmesh store restore /mnt/usb/ledger-monday\n  \
        bitmesh store move --store postgres://bitmesh@db1/fleet")]
    Store(store::StoreArgs),
    /// What may be spent (subscriber); without --add or --set, shows it
    #[command(after_help = "Example:\n  bitmesh budget --add 5000")]
    Budget(BudgetArgs),
    /// Let another device of yours use this subscriber's credit
    #[command(
        long_about = "Makes a code that lets one other device on the same provider's network use \
            up this subscriber's credit, within its budget. The device needs no bitmesh: it posts \
            the code, with curl or anything else, and the provider knows it by its MAC from then \
            on. Whoever has the code first can use it, once.",
        after_help = "Examples:\n  bitmesh share\n  bitmesh share --minutes 60\n  \
            bitmesh share --remove aa:bb:cc:dd:ee:ff"
    )]
    Share(ShareArgs),
    /// Close a channel: the provider claims what was paid, the rest comes back
    #[command(after_help = "Examples:\n  bitmesh close --all\n  bitmesh close 3f1c...")]
    Close(CloseArgs),
    /// The offer of a provider, checked
    #[command(after_help = "Example:\n  bitmesh offers http://192.168.1.1:8434 --network bitcoin")]
    Offers(OffersArgs),
    /// What this machine and its ports can do, what is wrong, and what to do about it
    #[command(
        long_about = "Looks at the kernel, the clock, forwarding, and at the ports that are named: \
            driver, XDP, merging and forwarding in hardware, MTU, programs of others. It says which \
            hook `bitmesh sell` takes on each port, and why. Without --lan it lists every port.\n\n\
            It changes nothing. Without root it checks what it can. The exit code is 1 where \
            something has to be repaired, else 0.",
        after_help = "Examples:\n  bitmesh doctor\n  bitmesh doctor --lan eth1 --wan eth0\n  \
            bitmesh doctor --lan eth1 --json | jq '.findings[] | select(.level == \"failure\")'"
    )]
    Doctor(DoctorArgs),
    /// The systemd unit of a daemon
    #[command(
        long_about = "Prints a unit for systemd that starts this program at boot, as its owner would \
            want it: it is told when payments are taken, starts the daemon again when its loop hangs, \
            hands in the passphrase as a credential, and leaves the processes no right that they \
            don't need. Settings come from /etc/bitmesh/sell.toml or buy.toml.",
        after_help = "Example:\n  bitmesh service print sell > /etc/systemd/system/bitmesh-sell.service\n  \
            systemctl daemon-reload\n  systemctl enable --now bitmesh-sell"
    )]
    Service(service::ServiceArgs),
    /// Beside `bitmesh sell`, which starts it: keeps the programs on the ports
    #[command(hide = true)]
    Guard(GuardArgs),
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
struct ShareArgs {
    /// How long the code is good for, in minutes
    #[arg(long, value_name = "MINUTES", default_value_t = 10)]
    minutes: u32,
    /// Take a station off instead, by its MAC
    #[arg(long, value_name = "MAC", conflicts_with = "minutes")]
    remove: Option<Station>,
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

#[derive(Args, Clone, Debug)]
struct DoctorArgs {
    /// Port that subscribers are on, or are to be; repeat for several
    #[arg(long, value_name = "IF")]
    lan: Vec<String>,
    /// Port that the internet is on; repeat for several
    #[arg(long, value_name = "IF")]
    wan: Vec<String>,
    /// Which program is to meter uploads, as for `bitmesh sell`
    #[arg(long, value_enum, default_value_t)]
    upload_hook: UploadHookArg,
    /// Slots of the station table, as for `bitmesh sell`
    #[arg(long, value_name = "SLOTS", default_value_t = DEFAULT_TABLE_SLOTS)]
    table_slots: u32,
    /// Name of the pinned programs, as for `bitmesh sell`
    #[arg(long, value_name = "NAME", default_value = "sell")]
    instance: String,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

/// How long threads that wait for something are waited for at the end.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

impl Cli {
    /// Does what was typed.
    pub fn run(self) -> Result<()> {
        match self.command {
            Command::Guard(args) => guard::serve(&args),
            Command::Sell(args) if args.detach => runloop::detach(args.instance.as_deref()),
            Command::Sell(args) => {
                // Rights are given up by the only thread, before a runtime makes more.
                let ready = runloop::prepare(args.resolve()?)?;
                let runtime = runtime()?;
                let ended = runtime.block_on(runloop::sell(ready));
                // A disk that hangs holds its thread.
                runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
                ended
            }
            Command::Doctor(args) => args.run(),
            Command::Bench(args) => args.run(),
            Command::Service(args) => args.run(),
            command => runtime()?.block_on(command.run()),
        }
    }

    /// How it logs, if it becomes a daemon.
    pub fn logging(&self) -> Option<(LogFormat, Option<String>)> {
        match &self.command {
            Command::Sell(args) => Some(args.common.logging()),
            Command::Buy(args) => Some(args.common.logging()),
            Command::Guard(args) => Some((args.log_format.unwrap_or_default(), args.log.clone())),
            _ => None,
        }
    }
}

impl Command {
    async fn run(self) -> Result<()> {
        match self {
            Self::Sell(_)
            | Self::Guard(_)
            | Self::Doctor(_)
            | Self::Bench(_)
            | Self::Service(_) => Ok(()),
            Self::Buy(args) => Box::pin(runloop::buy(args.resolve()?)).await,
            Self::Status(query) => query.show::<Status>("/v1/status", show::status).await,
            Self::Channels(args) => Box::pin(args.run()).await,
            Self::Stations(query) => {
                query.show::<Vec<AccountReport>>("/v1/stations", |s| show::stations(s)).await
            }
            Self::Wallet(args) => Box::pin(args.run()).await,
            Self::Store(args) => Box::pin(args.run()).await,
            Self::Budget(args) => args.run().await,
            Self::Share(args) => args.run().await,
            Self::Close(args) => args.run().await,
            Self::Offers(args) => {
                let offer = runloop::offer(args.provider.as_deref(), args.network).await?;
                print(args.json, &value(&offer), &offer, show::offer)
            }
        }
    }
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}

fn print<T>(json: bool, raw: &Value, typed: &T, table: impl FnOnce(&T) -> String) -> Result<()> {
    let text = if json { serde_json::to_string_pretty(raw)? } else { table(typed) };
    match writeln!(io::stdout(), "{text}") {
        // Who reads through `head` has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => Ok(done?),
    }
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

impl DoctorArgs {
    fn run(self) -> Result<()> {
        let report = doctor::examine(&doctor::Options {
            lan: self.lan,
            wan: self.wan,
            upload_hook: self.upload_hook.into(),
            instance: self.instance,
            table_slots: self.table_slots,
        })?;
        print(self.json, &value(&report), &report, doctor::table)?;
        let failed = report.findings.iter().filter(|finding| finding.level == Level::Failure);
        match failed.count() {
            0 => Ok(()),
            failed => bail!("{failed} of the checks failed; what to do stands beside each"),
        }
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

impl ShareArgs {
    async fn run(self) -> Result<()> {
        let seconds = u64::from(self.minutes) * 60;
        let change = match self.remove {
            Some(station) => ShareChange::Remove(station),
            None => ShareChange::Code { seconds },
        };
        let directory = self.query.directory();
        let raw = ask_admin(&directory, Method::POST, "/v1/share", Some(value(change))).await?;
        let code: ShareCode = serde_json::from_value(raw.clone())
            .context("the daemon is of another version; restart it with this one")?;
        if self.remove.is_none() {
            return print(self.query.json, &raw, &code, |code| show::share(code, seconds));
        }
        let (url, path) = code.url.split_once("/v1/").context("the daemon's URL")?;
        let channel = path.split('/').nth(1).context("the daemon's URL")?.parse()?;
        let report = Provider::new(url)?.change_stations(channel, &code.body).await?;
        print(self.query.json, &value(&report), &report, show::removed)
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
