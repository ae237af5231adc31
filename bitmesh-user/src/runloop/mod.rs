//! The daemons. The only readers of the clock; the owners of the core's state.
//!
//! A loop takes what comes from the API, the chain and the kernel, hands it to the core with the
//! time, has the store commit what was decided, and only then acts. It never decides about money
//! itself.

mod audit;
mod buy;
mod moving;
mod offline;
mod sell;
mod source;
pub mod status;
mod unlock;
mod wallet;

use std::{
    net::IpAddr,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use axum::http::StatusCode;
use bitcoin::{FeeRate, Network, Transaction, secp256k1::Secp256k1};
use bitmesh_core::{
    alarm::{self, Alarm, Level},
    bitcoin,
    channel::{Batch, Book, Compact, Entry, Machine},
    offer::SignedOffer,
};
use metrics::{counter, histogram};
use serde::{Serialize, de::DeserializeOwned};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

pub use audit::{Audit, audit, audit_fleet};
pub use buy::buy;
pub use moving::{Step, abandon_move, move_ledger};
pub use offline::{Findings, Offline, Progress};
pub use sell::{Ready, detach, prepare, sell};
pub use unlock::{new_passphrase, unlock};

use self::{
    source::{first_tip, open_source},
    status::ChainStatus,
    unlock::keep,
};
use crate::{
    api::{ApiError, Provider},
    chain::{Broadcast, ChainEvent, ChainSource, Events, Watched, follow},
    config::{API_PORT, Common},
    gateway::Gateway,
    store::{Place, Store, StoreError, StoreRole},
    telemetry::float,
    wallet::{Seed, SeedError, Wallet, seed},
};

/// How often the source is asked for new blocks.
const CHAIN_INTERVAL: Duration = Duration::from_millis(500);
/// Blocks in which a claim or a funding should confirm.
const FEE_TARGET_BLOCKS: u16 = 6;
/// Changes of what is watched after which all of it is taken anew.
const WATCHED_ANEW_CHANGES: u64 = 4_096;
/// How often a broadcast is tried while the source does not answer.
const BROADCAST_TRIES: u32 = 20;
/// Pause between them.
const BROADCAST_PAUSE: Duration = Duration::from_secs(3);
/// Blocks below the tip from which a new wallet follows the chain: a reorganisation of the newest
/// ones must not leave it without a block to go on from.
const BIRTHDAY_DEPTH_BLOCKS: u32 = 10;

/// How long it is told that the ledger went back, in seconds: subscribers that come once a week have paid
/// again by then.
const WENT_BACK_TOLD_SECONDS: u64 = 8 * 24 * 3_600;
/// Changes of the wallet that are kept one by one.
const WALLET_CHANGES_MAX: usize = 64;

/// What both roles stand on: the disk, the keys and the chain.
struct Foundation {
    role: StoreRole,
    data_dir: PathBuf,
    store: Store,
    wallet: Wallet,
    source: Arc<dyn ChainSource>,
    /// Of channels, nothing where the source has no filters: every block of it is looked through.
    watched: Watched,
    /// The book's channels that are watched.
    channels_watched: u64,
    /// The same, when all of them were taken anew.
    watched_anew: u64,
    /// Height of the source's tip, as it said last.
    source_height: Arc<AtomicU32>,
    block_seen_at: Option<u64>,
}

impl Foundation {
    /// Opens, or makes, the data directory's seed, store and wallet, and reads the journal.
    async fn open<E>(
        common: &Common,
        place: &Place,
        role: StoreRole,
        seed: &mut Seed,
    ) -> Result<(Self, Vec<Entry<E>>)>
    where
        E: Serialize + DeserializeOwned + Compact + Send + 'static,
    {
        let mut store = Store::open(place, role, common.network).await?;
        let mut entries = store.load::<E>().await?;
        if let Some(from) = store.went_back() {
            warn!("{}", went_back(role, from));
        }
        let changes = store.wallet_changes().await?;
        let source = open_source(common, &entries)?;
        let wallet = if changes.is_empty() {
            let tip =
                first_tip(source.as_ref()).await.context("the first start needs the chain")?;
            let height = match seed.birthday() {
                Some(birthday) => birthday,
                None => tip.saturating_sub(BIRTHDAY_DEPTH_BLOCKS),
            };
            let hash = source.hash_at(height).await?;
            if seed.birthday().is_none() {
                keep(seed, common, height)?;
            }
            let mut wallet = Wallet::create(seed.words(), common.network, (height, hash))?;
            let birthday = [Entry::Block { height, hash }];
            store.commit(&birthday, wallet.take_changes()?.as_deref()).await?;
            entries.extend(birthday);
            wallet
        } else {
            if seed.birthday().is_none() {
                return Err(SeedError::Missing(seed::path(&common.data_dir)).into());
            }
            if changes.len() > WALLET_CHANGES_MAX {
                store.set_wallet(Wallet::merge(&changes)?).await?;
            }
            Wallet::load(seed.words(), common.network, &changes)?
        };
        let watched = Watched::default();
        watched.add(wallet.scripts());
        let data_dir = common.data_dir.clone();
        let foundation = Self {
            role,
            data_dir,
            store,
            wallet,
            source,
            watched,
            channels_watched: 0,
            watched_anew: 0,
            source_height: Arc::default(),
            block_seen_at: None,
        };
        Ok((foundation, entries))
    }

    /// Follows the chain from the blocks that a book's channels saw last.
    fn follow<M: Machine>(&mut self, book: &Book<M>) -> Events {
        self.watch(book);
        let (source, watched, tips) =
            (self.source.clone(), self.watched.clone(), book.tips().collect());
        let events = follow(source, watched, tips, CHAIN_INTERVAL);
        self.source_height = events.source_height();
        events
    }

    /// Tells for a while that the ledger goes on from an older copy.
    fn went_back(&self, now: u64) -> Option<Alarm> {
        let (since, from) = self.store.gone_on_from()?;
        let message = went_back(self.role, from);
        let told = now < since.saturating_add(WENT_BACK_TOLD_SECONDS);
        told.then_some(Alarm { kind: alarm::Kind::WentBack, level: Level::Warning, message })
    }

    fn chain_status(&self, height: u32, synced: bool) -> ChainStatus {
        ChainStatus {
            network: self.source.network(),
            height,
            synced,
            source: self.source.name(),
            blocks_behind: self.source_height.load(Ordering::Relaxed).saturating_sub(height),
            block_seen_at: self.block_seen_at,
        }
    }

    fn watch<M: Machine>(&mut self, book: &Book<M>) {
        self.channels_watched = book.script_changes();
        self.watched_anew = self.channels_watched;
        if self.source.filters().is_some() {
            self.watched.set(self.wallet.scripts().cloned().chain(book.scripts()));
        }
    }

    /// Adds the scripts of channels that are new in a batch. Those of channels that were forgotten
    /// stay until all are taken anew: they cost a look at a block now and then.
    fn watch_more<M: Machine, A>(&self, out: &Batch<M::Event, A>, book: &Book<M>) {
        if self.source.filters().is_none() {
            return;
        }
        let scripts = out.entries().iter().filter_map(|entry| match entry {
            Entry::Channel { channel, .. } => book.get(channel).map(M::funding_script),
            _ => None,
        });
        self.watched.add(scripts);
    }

    /// Shows the wallet what happened on chain; stored with the next commit.
    fn follow_wallet(&mut self, event: &ChainEvent) -> Result<()> {
        if let ChainEvent::Connected { height, block } = event {
            self.wallet.connect_block(block, *height)?;
            self.block_seen_at = Some(now());
        }
        Ok(())
    }

    /// Makes a batch durable, with what the wallet has to remember, and gives out its actions. The
    /// chain is watched for what is new by then: nobody else knows of it yet.
    async fn commit<M: Machine<Event: Serialize>, A>(
        &mut self,
        out: Batch<M::Event, A>,
        book: &Book<M>,
    ) -> Result<Vec<A>> {
        let wallet = self.wallet.take_changes()?;
        let since = Instant::now();
        let entries = out.entries().len();
        let durable = self.store.commit(out.entries(), wallet.as_deref()).await;
        let durable =
            durable.inspect_err(|_| counter!("bitmesh_commits_failed_total").increment(1))?;
        if entries > 0 {
            histogram!("bitmesh_commit_seconds").record(since.elapsed());
            histogram!("bitmesh_commit_entries").record(float(entries));
        }
        if wallet.is_some() {
            self.watched.add(self.wallet.scripts());
        }
        let changes = book.script_changes();
        if changes >= self.watched_anew + WATCHED_ANEW_CHANGES {
            self.watch(book);
        } else if changes != self.channels_watched {
            self.channels_watched = changes;
            self.watch_more(&out, book);
        }
        Ok(out.release(&durable))
    }

    async fn close(self) -> Result<(), StoreError> {
        self.store.close().await
    }
}

/// What it means to go on from an older copy of the ledger.
fn went_back(role: StoreRole, from: &str) -> String {
    let means = match role {
        StoreRole::Provider => {
            "what was paid after that is not known until each subscriber sends its next sum, which \
             takes its place; what was used is known from the kernel, unless the box was started anew; \
             channels that were opened after it are lost"
        }
        StoreRole::Subscriber => {
            "the provider may have been paid more after that than is known here; it keeps what it was \
             paid. Close the channels (`bitmesh close --all`) to begin anew"
        }
    };
    format!("the ledger goes on from {from}: {means}")
}

/// The only clock: seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// What to pay miners now; a floor when the source has no estimate.
async fn fee_rate(source: &dyn ChainSource) -> FeeRate {
    source.fee_rate(FEE_TARGET_BLOCKS).await.unwrap_or_else(|error| {
        warn!("no fee estimate ({error}); taking {}", FeeRate::BROADCAST_MIN);
        FeeRate::BROADCAST_MIN
    })
}

/// Hands a transaction to the network; while the source does not answer, again and again.
async fn broadcast(source: &dyn ChainSource, tx: &Transaction) -> Broadcast {
    let txid = tx.compute_txid();
    let mut outcome = source.broadcast(tx).await;
    for _ in 1..BROADCAST_TRIES {
        let Broadcast::Unreachable { reason } = &outcome else { break };
        warn!("{txid} is not broadcast yet: {reason}");
        tokio::time::sleep(BROADCAST_PAUSE).await;
        outcome = source.broadcast(tx).await;
    }
    match &outcome {
        Broadcast::Accepted => info!("broadcast {txid}"),
        Broadcast::Known => {}
        Broadcast::Rejected { reason, .. } => warn!("the network does not take {txid}: {reason}"),
        Broadcast::Unreachable { reason } => warn!("{txid} was not broadcast: {reason}"),
    }
    outcome
}

/// Ends when the process is asked to stop.
fn stop_signal() -> Result<Pin<Box<dyn Future<Output = ()> + Send>>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(Box::pin(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }))
}

fn starting() -> ApiError {
    ApiError::unavailable(
        "starting",
        "this daemon is still starting",
        "try again in a second",
        Duration::from_secs(1),
    )
}

fn wrong_role(message: &str) -> ApiError {
    ApiError::new(
        StatusCode::CONFLICT,
        "wrong-role",
        message,
        "name the other daemon's directory with --data-dir",
    )
}

fn no_refunds() -> ApiError {
    wrong_role("a provider has no refunds: it claims what it was paid")
}

/// Gets a provider's offer and checks it.
pub async fn offer(provider: Option<&str>, network: Network) -> Result<SignedOffer> {
    let url = match provider {
        Some(url) => url.trim_end_matches('/').to_owned(),
        None => provider_url(Gateway::open()?.default_gateway().await?),
    };
    let offer = Provider::new(url)?.offer().await?;
    offer.verify(&Secp256k1::verification_only(), network, now())?;
    Ok(offer)
}

fn provider_url(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => format!("http://{address}:{API_PORT}"),
        IpAddr::V6(address) => format!("http://[{address}]:{API_PORT}"),
    }
}
