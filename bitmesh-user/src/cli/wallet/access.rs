//! The way to a wallet: its daemon's socket, else its data directory.

use std::{
    io::IsTerminal as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use reqwest::Method;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::RoleArg;
use crate::{
    api::{ADMIN_SOCKET, AdminError, ApiError, Ask, Body, Reply, WalletAsk, ask_admin, value},
    config::{Common, CommonArgs, default_data_dir},
    runloop::{Findings, Offline, Progress, unlock},
    store::{self, Store, StoreRole},
    wallet::{Sealed, Seed, SeedError, seed},
};

/// Blocks from which on following the chain is shown.
const PROGRESS_FROM_BLOCKS: u32 = 20;

/// Which wallet, and how to print.
#[derive(Args, Clone, Debug)]
pub(in crate::cli) struct Place {
    /// Whose wallet [default: that of the daemon that runs, else of the one that there is]
    #[arg(long, value_enum)]
    role: Option<RoleArg>,
    #[command(flatten)]
    common: CommonArgs,
    /// Print JSON, for programs
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

/// Where a wallet is, or is to be.
#[derive(Debug)]
pub(super) struct Home {
    pub(super) role: StoreRole,
    pub(super) directory: PathBuf,
    common: CommonArgs,
}

impl Place {
    /// Where the ledger is that belongs to it.
    pub(in crate::cli) async fn ledger(&self) -> Result<store::Place> {
        Ok(store::Place::file(&self.home().await?.directory))
    }

    /// Settings of a provider whose wallet is there.
    pub(in crate::cli) async fn provider(&self) -> Result<Common> {
        let home = self.home().await?;
        if home.role != StoreRole::Provider {
            bail!("only providers are edges of a fleet: name one's directory with --role sell");
        }
        home.common()
    }

    /// The file with more settings, if one is named.
    pub(in crate::cli) fn config(&self) -> Option<&Path> {
        self.common.config.as_deref()
    }

    /// Finds out which wallet is meant.
    pub(super) async fn home(&self) -> Result<Home> {
        let common = self.common.clone().with_file()?;
        let (role, directory) = match (self.role, common.data_dir.clone()) {
            (Some(role), Some(directory)) => (role, directory),
            (Some(role), None) => (role, default_data_dir(role.name())),
            (None, Some(directory)) => (role_of(&directory).await?, directory),
            (None, None) => {
                let role = default_role()?;
                (role, default_data_dir(role.name()))
            }
        };
        Ok(Home { role: role.into(), directory, common })
    }
}

impl Home {
    /// Settings for a wallet that is there. Its chain is the seed's, if none is named.
    pub(super) fn common(self) -> Result<Common> {
        let sealed = match Sealed::read(&self.directory) {
            Err(SeedError::Missing(path)) if path == seed::path(&self.directory) => bail!(
                "there is no wallet in {}: `bitmesh wallet create` makes one, `bitmesh wallet restore` brings \
                 one back, and --role or --data-dir names another place",
                self.directory.display()
            ),
            sealed => sealed?,
        };
        let network = self.common.network.or(Some(sealed.network()));
        let data_dir = Some(self.directory);
        CommonArgs { data_dir, network, ..self.common }.resolve(role_name(self.role))
    }

    /// Settings for a wallet that is to be made; refuses where one is.
    pub(super) fn vacant(self) -> Result<Common> {
        let path = seed::path(&self.directory);
        if path.exists() {
            return Err(SeedError::Present(path).into());
        }
        let data_dir = Some(self.directory);
        CommonArgs { data_dir, ..self.common }.resolve(role_name(self.role))
    }
}

fn role_name(role: StoreRole) -> &'static str {
    match role {
        StoreRole::Provider => RoleArg::Sell.name(),
        StoreRole::Subscriber => RoleArg::Buy.name(),
    }
}

/// What a directory says of itself, else its name.
async fn role_of(directory: &Path) -> Result<RoleArg> {
    Ok(match Store::role_of(directory).await? {
        Some(StoreRole::Provider) => RoleArg::Sell,
        None if directory.file_name().is_some_and(|name| name == "sell") => RoleArg::Sell,
        None | Some(StoreRole::Subscriber) => RoleArg::Buy,
    })
}

/// The role whose daemon runs, else the one that has a wallet, else a subscriber's.
fn default_role() -> Result<RoleArg> {
    let has = |role: RoleArg, name: &str| default_data_dir(role.name()).join(name).exists();
    let [sell, buy] = [RoleArg::Sell, RoleArg::Buy];
    for name in [ADMIN_SOCKET, "seed"] {
        match (has(sell, name), has(buy, name)) {
            (true, true) if name == "seed" => {
                bail!("there are two wallets: name one with --role sell or --role buy")
            }
            (true, false) => return Ok(sell),
            (false, true) => return Ok(buy),
            _ => {}
        }
    }
    Ok(buy)
}

/// A wallet that answers.
pub(in crate::cli) enum Access {
    /// Its daemon does.
    Daemon(PathBuf),
    /// No daemon runs.
    Offline(Box<Offline>),
}

impl Access {
    /// Finds the daemon, else opens the data directory and follows the chain to its tip.
    pub(in crate::cli) async fn open(place: &Place) -> Result<Self> {
        let home = place.home().await?;
        match ask_admin(&home.directory, Method::GET, "/v1/wallet", None).await {
            Err(AdminError::NotRunning(_)) => {}
            answered => return answered.map(|_| Self::Daemon(home.directory)).map_err(Into::into),
        }
        if store::is_of_fleet(&home.directory) {
            bail!(
                "{} is of an edge of a fleet, and its wallet is its daemon's: start that, or ask another \
                 edge; all have the same money",
                home.directory.display()
            );
        }
        let role = home.role;
        let common = home.common()?;
        let mut seed = unlock(&common)?;
        Self::open_offline(&common, role, &mut seed).await
    }

    /// Opens a data directory that has no daemon, and follows the chain to its tip.
    pub(super) async fn open_offline(
        common: &Common,
        role: StoreRole,
        seed: &mut Seed,
    ) -> Result<Self> {
        let bar = connecting();
        let opened = Self::follow(common, role, seed, &bar).await;
        bar.finish_and_clear();
        let (offline, findings) = opened?;
        for told in findings.told {
            eprintln!("{told}");
        }
        Ok(Self::Offline(Box::new(offline)))
    }

    async fn follow(
        common: &Common,
        role: StoreRole,
        seed: &mut Seed,
        bar: &ProgressBar,
    ) -> Result<(Offline, Findings)> {
        let mut offline = Offline::open(common, role, seed).await?;
        let blocks = ProgressStyle::with_template(
            "following the chain {bar:30} block {pos} of {len}, {eta} left",
        )?;
        let mut start = None;
        let progress = |Progress { height, tip }| {
            let first = *start.get_or_insert(height);
            if tip.saturating_sub(first) >= PROGRESS_FROM_BLOCKS {
                bar.set_style(blocks.clone());
                bar.set_length(tip.into());
                bar.set_position(height.into());
            }
        };
        let findings = offline.sync(progress).await?;
        Ok((offline, findings))
    }

    /// Asks the daemon, or the wallet itself.
    pub(in crate::cli) async fn ask(&mut self, ask: Ask) -> Result<Value> {
        match (self, ask) {
            (Self::Daemon(directory), ask) => {
                let (method, path, body) = match ask {
                    Ask::OfWallet(ask) => (Method::POST, "/v1/wallet", Some(value(ask))),
                    Ask::Refunds => (Method::GET, "/v1/refunds", None),
                    _ => (Method::GET, "/v1/wallet", None),
                };
                Ok(ask_admin(directory, method, path, body).await?)
            }
            (Self::Offline(offline), ask) => told(offline.ask(&ask).await),
        }
    }

    /// Asks for something of the wallet.
    pub(super) async fn of_wallet<T: DeserializeOwned>(&mut self, ask: WalletAsk) -> Result<T> {
        typed(&self.ask(Ask::OfWallet(ask)).await?)
    }

    /// Lets the data directory go.
    pub(in crate::cli) async fn close(self) -> Result<()> {
        match self {
            Self::Daemon(_) => Ok(()),
            Self::Offline(offline) => offline.close().await,
        }
    }
}

fn told(reply: Reply) -> Result<Value> {
    // The same as a daemon's refusal is told.
    reply.map(Body::value).map_err(|ApiError { body, .. }| AdminError::Refused(body).into())
}

/// What an answer holds.
pub(in crate::cli) fn typed<T: DeserializeOwned>(raw: &Value) -> Result<T> {
    serde_json::from_value(raw.clone())
        .context("the daemon is of another version; restart it with this one")
}

/// Shown on a terminal until the chain is there.
pub(super) fn connecting() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(ProgressStyle::default_spinner());
    bar.set_message("connecting to the chain");
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// Whether somebody can be asked.
pub(super) fn is_terminal() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}
