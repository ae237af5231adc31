//! The chain, from a source that is not trusted: blocks are checked against their headers and their
//! predecessors before anything believes them. The only user of node protocols; it holds no key.

mod follower;
mod rpc;
mod verify;
mod watched;

use std::{future::Future, pin::Pin};

use bitcoin::{Block, BlockHash, FeeRate, Network, Transaction, block::Header};
use bitmesh_core::bitcoin;

pub use follower::{ChainEvent, Events, follow};
pub use rpc::NodeRpc;
pub use watched::Watched;

/// An answer on its way from a source.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, ChainError>> + Send + 'a>>;

/// Where blocks come from and transactions go to.
pub trait ChainSource: Send + Sync {
    /// The chain that it should follow.
    fn network(&self) -> Network;
    /// Whether it answers, and follows the chain that it should.
    fn check(&self) -> Answer<'_, ()>;
    /// Height and hash of its best block.
    fn tip(&self) -> Answer<'_, (u32, BlockHash)>;
    /// Hash of its block at a height up to the tip's.
    fn hash_at(&self, height: u32) -> Answer<'_, BlockHash>;
    /// The header of a block that it has, or had before a reorganisation. Not checked yet.
    fn header(&self, hash: BlockHash) -> Answer<'_, Header>;
    /// A block by its hash. Not checked yet.
    fn block(&self, hash: BlockHash) -> Answer<'_, Block>;
    /// Its filters, if it can tell what a block concerns without the block.
    fn filters(&self) -> Option<&dyn Filters> {
        None
    }
    /// What to pay miners to be in a block within `blocks`.
    fn fee_rate(&self, blocks: u16) -> Answer<'_, FeeRate>;
    /// Hands a transaction to the network.
    fn broadcast<'a>(
        &'a self,
        tx: &'a Transaction,
    ) -> Pin<Box<dyn Future<Output = Broadcast> + Send + 'a>>;
}

/// Tells what a block may concern (BIP 158).
pub trait Filters: Send + Sync {
    /// Whether a block pays to a script in `watched`, or spends what was paid to one. It may err
    /// in saying yes, never in saying no.
    fn may_concern<'a>(&'a self, hash: BlockHash, watched: &'a Watched) -> Answer<'a, bool>;
}

/// What became of a transaction. Accepted is not confirmed: watch the blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Broadcast {
    /// In the source's mempool, now or before.
    Accepted,
    /// In a block already.
    Known,
    /// Not taken: for its fee, or because what it spends is spent or not there. The same again is
    /// of use only once the mempool has become cheaper or the chain has changed.
    Rejected {
        /// What the source said.
        reason: String,
    },
    /// Not known whether it got there; send it again.
    Unreachable {
        /// What went wrong.
        reason: String,
    },
}

/// Why a source gave no answer that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// Not an address.
    #[error("{url:?} is not the address of a node ({reason}); write it as http://127.0.0.1:8332")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No connection.
    #[error(
        "the node at {url} does not answer ({reason}); is it running, with server=1, and is --node right?"
    )]
    Unreachable {
        /// Where it was looked for.
        url: String,
        /// What went wrong.
        reason: String,
    },
    /// Wrong name or password.
    #[error("the node at {url} refuses the login ({login}); is it that node's?")]
    Login {
        /// Where.
        url: String,
        /// With what.
        login: String,
    },
    /// It talks only to others.
    #[error("the node at {url} does not accept this machine; add its address as rpcallowip there")]
    Forbidden {
        /// Where.
        url: String,
    },
    /// A block was deleted to save space.
    #[error(
        "the node no longer has block {0}; give it more room (prune=...) and have it fetch the block \
         (getblockfrompeer), or use one that prunes nothing"
    )]
    Pruned(BlockHash),
    /// Starting up or catching up.
    #[error("the node is not ready ({0}); wait until it has caught up")]
    NotReady(String),
    /// It follows another chain.
    #[error(
        "the node is on {found}, not on {wanted}; name the right one with --node, or choose --network {found}"
    )]
    WrongChain {
        /// What it said.
        found: String,
        /// What was asked for.
        wanted: Network,
    },
    /// It refused.
    #[error("the node answers {code} to {method}: {message}")]
    Refused {
        /// What was asked.
        method: &'static str,
        /// Bitcoin Core's `RPCErrorCode`.
        code: i64,
        /// In its words.
        message: String,
    },
    /// It said what can't be.
    #[error("the node's answer to {method} makes no sense: {reason}; is --node a Bitcoin node?")]
    Broken {
        /// What was asked.
        method: &'static str,
        /// What was wrong.
        reason: String,
    },
    /// A block that doesn't fit where it should, or isn't what its hash says.
    #[error("the node lies: the block at height {height} {what}; use another node")]
    Invalid {
        /// Where.
        height: u32,
        /// What was wrong.
        what: &'static str,
    },
    /// More blocks left the chain than are remembered.
    #[error(
        "the node's chain has none of the last {0} blocks that were seen; is it the right chain? if it is, restore the data directory from a backup"
    )]
    TooDeep(usize),
}
