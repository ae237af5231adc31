//! A wallet that follows a source of blocks, and keeps what a store would.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use bitcoin::{
    Amount, BlockHash, FeeRate, Network, ScriptBuf, Transaction, WScriptHash, hashes::Hash as _,
};
use bitmesh_user::{
    chain::{ChainEvent, ChainSource, Events, Watched, follow},
    wallet::{Sum, Wallet, WalletError, Words},
};

use crate::regtest::Node;

/// How often a source is asked for blocks.
pub const INTERVAL: Duration = Duration::from_millis(20);
/// Time that an event may take.
pub const PATIENCE: Duration = Duration::from_mins(2);

/// The wallet, and how far it has come.
pub struct Follower {
    /// Where blocks come from.
    pub source: Arc<dyn ChainSource>,
    /// Scripts that the source looks for.
    pub watched: Watched,
    /// The wallet.
    pub wallet: Wallet,
    /// Its words.
    pub words: Words,
    /// What the wallet has to remember, oldest first.
    pub changes: Vec<String>,
    /// What happens on the chain.
    pub events: Events,
    /// Blocks that were seen, oldest first.
    pub tips: Vec<(u32, BlockHash)>,
    /// Heights in the order in which they left the chain.
    pub undone: Vec<u32>,
    /// Blocks that came without their transactions.
    pub passed_over: u32,
}

impl Follower {
    /// A new wallet, which begins at `tip`.
    pub fn new(source: Arc<dyn ChainSource>, tip: (u32, BlockHash)) -> Result<Self> {
        let words = Words::generate()?;
        let wallet = Wallet::create(&words, Network::Regtest, tip)?;
        let watched = Watched::default();
        watched.add(wallet.scripts());
        let events = follow(Arc::clone(&source), watched.clone(), vec![tip], INTERVAL);
        let (tips, changes, undone) = (vec![tip], Vec::new(), Vec::new());
        let passed_over = 0;
        let mut follower =
            Self { source, watched, wallet, words, changes, events, tips, undone, passed_over };
        follower.store()?;
        Ok(follower)
    }

    /// Keeps what the wallet has to remember.
    pub fn store(&mut self) -> Result<()> {
        self.changes.extend(self.wallet.take_changes()?);
        Ok(())
    }

    /// Follows again, from the blocks that it remembers.
    pub fn follow(&mut self, source: Arc<dyn ChainSource>) {
        self.source = source;
        let (watched, tips) = (self.watched.clone(), self.tips.clone());
        self.events = follow(Arc::clone(&self.source), watched, tips, INTERVAL);
    }

    /// Forgets all but its words, and begins anew at `birthday`.
    pub fn begin_again(&mut self, birthday: (u32, BlockHash)) -> Result<()> {
        self.wallet = Wallet::create(&self.words, Network::Regtest, birthday)?;
        self.tips = vec![birthday];
        self.watched = Watched::default();
        self.watched.add(self.wallet.scripts());
        Ok(())
    }

    /// The next thing that happens, taken in.
    pub async fn event(&mut self) -> Result<ChainEvent> {
        let event = tokio::time::timeout(PATIENCE, self.events.recv()).await;
        let event = event.context("no event")?.context("the follower ended")?;
        match &event {
            ChainEvent::Connected { height, block } => {
                ensure!(self.tips.last() == Some(&(height - 1, block.header.prev_blockhash)));
                self.tips.push((*height, block.block_hash()));
                self.wallet.connect_block(block, *height)?;
                self.store()?;
                self.watched.add(self.wallet.scripts());
                self.passed_over += u32::from(block.txdata.is_empty());
            }
            ChainEvent::Disconnected { height } => {
                ensure!(self.tips.pop().is_some_and(|(at, _)| at == *height));
                self.undone.push(*height);
            }
            ChainEvent::Synced { .. } | ChainEvent::Lost { .. } => {}
        }
        Ok(event)
    }

    /// Follows until it is where the node is.
    pub async fn reach(&mut self, node: &Node<'_>) -> Result<()> {
        match self.recover(node).await? {
            Some(reason) => bail!("lost: {reason}"),
            None => Ok(()),
        }
    }

    /// The same, even if the source is lost on the way; tells why it was.
    pub async fn recover(&mut self, node: &Node<'_>) -> Result<Option<String>> {
        let height = node.height()?;
        let tip = (height, node.hash_at(height)?);
        let mut lost = None;
        while self.tips.last() != Some(&tip) {
            let event = self.event().await;
            let at = || format!("at {:?} on the way to {tip:?}, lost: {lost:?}", self.tips.last());
            if let ChainEvent::Lost { reason } = event.with_context(at)? {
                lost = Some(reason);
            }
        }
        Ok(lost)
    }

    /// Follows until the source is lost: why.
    pub async fn lost(&mut self) -> Result<String> {
        loop {
            if let ChainEvent::Lost { reason } = self.event().await? {
                return Ok(reason);
            }
        }
    }

    /// Follows until it has seen all: the height.
    pub async fn synced(&mut self) -> Result<u32> {
        loop {
            if let ChainEvent::Synced { height } = self.event().await? {
                return Ok(height);
            }
        }
    }

    /// Is sent coins, in a block.
    pub async fn receive(&mut self, node: &Node<'_>, coins: Amount) -> Result<()> {
        let address = self.wallet.next_address();
        self.store()?;
        node.send(&address.to_string(), coins)?;
        node.mine(1)?;
        self.reach(node).await
    }

    /// Signs a payment to [`channel_script`].
    pub fn fund(&mut self, value: Amount, rate: FeeRate) -> Result<Transaction, WalletError> {
        Ok(self.wallet.pay(&channel_script(), Sum::Sat(value.to_sat()), rate, 1)?.tx)
    }
}

/// Where a channel's money goes.
pub fn channel_script() -> ScriptBuf {
    ScriptBuf::new_p2wsh(&WScriptHash::hash(b"a channel's descriptor"))
}
