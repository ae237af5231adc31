//! The chain, from a source that is not trusted: blocks are checked against their headers and their
//! predecessors before anything believes them. The only user of node protocols; it holds no key.

mod esplora;
mod follower;
mod light;
mod rpc;
mod verify;
mod watched;

use std::{fmt, future::Future, pin::Pin};

use bitcoin::{Block, BlockHash, FeeRate, Network, Transaction, block::Header};
use bitmesh_core::bitcoin;

pub use esplora::Esplora;
pub use follower::{ChainEvent, Events, follow};
pub use light::LightClient;
pub use rpc::NodeRpc;
pub use verify::whole_block;
pub use watched::Watched;

/// No estimate makes us pay more: 1,000 sat/vB.
const FEE_RATE_MAX: FeeRate = FeeRate::from_sat_per_vb_u32(1_000);

/// An answer on its way from a source.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, ChainError>> + Send + 'a>>;

/// Where blocks come from and transactions go to.
pub trait ChainSource: Send + Sync {
    /// What it is.
    fn kind(&self) -> Kind;
    /// What it is and where, for people.
    fn name(&self) -> String;
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
    /// Not taken: the same again is of use only once the mempool or the chain has changed.
    Rejected {
        /// Why.
        cause: Cause,
        /// What the source said.
        reason: String,
    },
    /// Not known whether it got there; send it again.
    Unreachable {
        /// What went wrong.
        reason: String,
    },
}

/// Why a source does not take a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It pays miners too little.
    Fee,
    /// What it spends is spent or not there.
    Inputs,
    /// Something else.
    Other,
    /// The source does not tell.
    Unknown,
}

impl Cause {
    /// By Bitcoin Core's words (`src/validation.cpp`, `src/policy/rbf.cpp`), whoever passes them on.
    fn of(reason: &str) -> Self {
        const FEE: [&str; 4] = ["fee not met", "insufficient fee", "mempool full", "fee-too-low"];
        const INPUTS: [&str; 4] =
            ["missingorspent", "missing-inputs", "mempool-conflict", "spends-conflicting-tx"];
        let reason = reason.to_lowercase();
        let says = |signs: &[&str]| signs.iter().any(|sign| reason.contains(sign));
        if says(&FEE) {
            Self::Fee
        } else if says(&INPUTS) {
            Self::Inputs
        } else {
            Self::Other
        }
    }
}

/// What a source is, in the words of errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A node's RPC.
    Node,
    /// A server of blocks over HTTP.
    Esplora,
    /// Peers of the network, which the light client asks.
    Peers,
}

impl Kind {
    /// The flag that names another one.
    fn flag(self) -> &'static str {
        match self {
            Self::Node => "--node",
            Self::Esplora => "--esplora",
            Self::Peers => "--peer",
        }
    }

    fn example(self) -> &'static str {
        match self {
            Self::Node => "http://127.0.0.1:8332",
            Self::Esplora => "https://blocks.example/api",
            Self::Peers => "192.0.2.1:8333",
        }
    }

    fn advice(self) -> &'static str {
        match self {
            Self::Node => "is it running, with server=1, and is --node right?",
            Self::Esplora => "is --esplora right, and does this machine reach it?",
            Self::Peers => {
                "does this machine reach the internet, and do those named with --peer run, with \
                 blockfilterindex=1 and peerblockfilters=1?"
            }
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Node => "the node",
            Self::Esplora => "the Esplora server",
            Self::Peers => "the network's peers",
        })
    }
}

/// Why a source gave no answer that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// Not an address.
    #[error("{address:?} is no address for {flag} ({reason}); write it as {example}", flag = .kind.flag(), example = .kind.example())]
    Address {
        /// Of what.
        kind: Kind,
        /// What was given.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No connection.
    #[error("no answer from {at} ({reason}); {advice}", advice = .kind.advice())]
    Unreachable {
        /// From what.
        kind: Kind,
        /// Where it was looked for.
        at: String,
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
    #[error("{kind} can't tell yet ({reason}); wait")]
    NotReady {
        /// What.
        kind: Kind,
        /// What it waits for.
        reason: String,
    },
    /// It follows another chain.
    #[error(
        "{kind} is on {found}, not on {wanted}; name the right one with {flag}, or choose another --network",
        flag = .kind.flag()
    )]
    WrongChain {
        /// What.
        kind: Kind,
        /// What it said.
        found: String,
        /// What was asked for.
        wanted: Network,
    },
    /// It refused.
    #[error("{kind} answers {code} to {method}: {message}")]
    Refused {
        /// What.
        kind: Kind,
        /// What was asked.
        method: &'static str,
        /// Bitcoin Core's `RPCErrorCode`, or HTTP's status.
        code: i64,
        /// In its words.
        message: String,
    },
    /// It said what can't be.
    #[error("the answer of {kind} to {method} makes no sense: {reason}; is {flag} right?", flag = .kind.flag())]
    Broken {
        /// What.
        kind: Kind,
        /// What was asked.
        method: &'static str,
        /// What was wrong.
        reason: String,
    },
    /// A block that doesn't fit where it should, or isn't what its hash says.
    #[error("a lie: the block at height {height} {what}; name another source")]
    Invalid {
        /// Where.
        height: u32,
        /// What was wrong.
        what: &'static str,
    },
    /// More blocks left the chain than are remembered.
    #[error(
        "the source's chain has none of the last {0} blocks that were seen; is it the right chain? if it is, restore the data directory from a backup"
    )]
    TooDeep(usize),
    /// The disk.
    #[error("filters can't be kept for a while: {0}; make room where temporary files go")]
    Disk(String),
}

#[cfg(test)]
mod tests {
    use super::Cause;

    #[test]
    fn a_refusal_is_for_its_fee_only_when_the_fee_is_too_low() {
        for (reason, cause) in [
            ("min relay fee not met, 100 < 110", Cause::Fee),
            ("mempool min fee not met, 100 < 500", Cause::Fee),
            (
                "insufficient fee, rejecting replacement 00aa; new feerate 1 <= old feerate 2",
                Cause::Fee,
            ),
            (
                "replacement-failed, insufficient feerate: does not improve feerate diagram",
                Cause::Fee,
            ),
            ("mempool full", Cause::Fee),
            ("bad-txns-inputs-missingorspent", Cause::Inputs),
            ("txn-mempool-conflict", Cause::Inputs),
            (
                "bad-txns-spends-conflicting-tx, 00aa spends conflicting transaction 00bb",
                Cause::Inputs,
            ),
            ("Fee exceeds maximum configured by user (e.g. -maxtxfee, maxfeerate)", Cause::Other),
            ("bad-txns-in-belowout, value in (1) < value out (2)", Cause::Other),
            ("too many potential replacements", Cause::Other),
            ("TRUC-violation, tx 00aa would exceed descendant count limit", Cause::Other),
            ("", Cause::Other),
        ] {
            assert_eq!(Cause::of(reason), cause, "{reason}");
        }
    }
}
