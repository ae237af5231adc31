//! The payment channel: unidirectional, funded on chain, paid tick by tick off chain, settled once.
//!
//! A channel is a fold over its journal of events. What may happen is decided from the state
//! (`ProviderChannel::pay`, ...), which yields an event; only `apply` changes the state, and it
//! checks every event again, so that a journal that was damaged or edited is refused instead of
//! followed. Nothing here holds a private key, reads a clock or talks to anyone: signatures come in
//! as arguments, transactions go out as values.

mod binding;
mod book;
mod close;
mod compact;
mod course;
mod fees;
mod key;
mod params;
mod payment;
mod provider;
mod rare;
mod recovery;
mod spend;
mod subscriber;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod version;
mod waiting;

use bitcoin::{Amount, EcdsaSighashType};
use serde::{Deserialize, Serialize};

pub use binding::{
    BINDINGS_PER_CHANNEL_MAX, Binding, BindingError, Nonce, STATIONS_PER_ACCOUNT_MAX,
};
pub use book::{Batch, Book, Durable, Entry, Machine, TIPS_KEPT};
pub use close::{CLOSE_WAIT_BLOCKS, Close, CloseError, CloseRecord, claim_pays_off};
pub use compact::{Compact, Tally};
pub use course::ChannelStatus;
pub use fees::{
    CLAIM_URGENT_BLOCKS, CLAIM_WINDOW_BLOCKS, FEE_SHARE_AT_OPENING, FeeEstimates,
    NORMAL_TARGET_BLOCKS, Replaced, URGENT_TARGET_BLOCKS, Uneconomic, blocks_left, check_economic,
    claim_rate, most_for, pays_off_at, share,
};
pub use key::ChannelKey;
pub use params::{ChannelId, ChannelParams, IdParseError, ParamsError};
pub(crate) use params::{hex_id, tagged_hash};
pub use payment::{PaymentCheck, PaymentError, VerifiedPayment};
pub use provider::{
    ClaimRecord, FUNDING_WINDOW_BLOCKS, FUNDINGS_OFFERED_MAX, FundingError, ProviderChannel,
    ProviderEvent,
};
pub use recovery::{RECOVERY_OCTETS, Recovery};
pub use spend::{
    CLAIM_WEIGHT_MAX, Claim, ClaimError, ClaimInput, Refund, RefundError, close_digest,
    payment_sighash, verify_payment,
};
pub use subscriber::{
    AGREED_WINDOW_BLOCKS, FUNDING_BUMP_BLOCKS, FUNDINGS_MAX, PayError, SubscriberChannel,
    SubscriberEvent, funding_outpoint,
};
pub use version::{PROTOCOL_VERSION, VersionError, Versioned};
pub use waiting::{Wait, Waits};

/// The part of the capacity that is never paid away, in satoshi: it keeps the remainder output at
/// or above the dust limit of every segwit script (330 sat for P2WSH and P2TR, Bitcoin Core's
/// `GetDustThreshold` at 3 sat/vB), so that a claim is always relayed.
pub const RESERVE: Amount = Amount::from_sat(330);

/// Smallest output that a claim or refund makes, in satoshi: the same dust limit.
pub const DUST: Amount = Amount::from_sat(330);

/// Smallest capacity of a channel, in satoshi. Below it fees eat what is sold.
pub const CAPACITY_MIN: Amount = Amount::from_sat(5_000);

/// Blocks before expiry at which the provider takes no more payments and claims: the claim has a
/// day to confirm, at any fee, before the subscriber could take the refund branch.
pub const CLAIM_MARGIN_BLOCKS: u32 = 144;

/// Blocks before expiry by which the claim must have confirmed.
pub const CLAIM_DONE_BLOCKS: u32 = 36;

/// Depth at which a spend is final; a deeper reorganisation can cost funds.
pub const FINAL_DEPTH_BLOCKS: u32 = 6;

/// Blocks after which an unconfirmed claim is signed again with a higher fee.
pub const CLAIM_BUMP_BLOCKS: u32 = 3;

/// Shortest life of a channel, in blocks from its opening: a day of use before the claim margin.
pub const LIFETIME_MIN_BLOCKS: u32 = CLAIM_MARGIN_BLOCKS + 144;

/// Longest life of a channel, in blocks: about a year; what a vanished provider can lock up.
pub const LIFETIME_MAX_BLOCKS: u32 = 52_560;

/// Deepest confirmation count that an offer may ask of a funding.
pub const CONFIRMATIONS_MAX: u32 = 100;

const _: () = assert!(CLAIM_MARGIN_BLOCKS > CLAIM_DONE_BLOCKS);
const _: () = assert!(CLAIM_DONE_BLOCKS > FINAL_DEPTH_BLOCKS + CLAIM_BUMP_BLOCKS);
const _: () = assert!(AGREED_WINDOW_BLOCKS < FUNDING_WINDOW_BLOCKS);
const _: () = assert!(LIFETIME_MIN_BLOCKS > CLAIM_MARGIN_BLOCKS + CONFIRMATIONS_MAX / 10);

/// A confirmed output of exactly the channel's capacity, paying the channel's script.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Funding {
    /// Where the money is.
    pub outpoint: bitcoin::OutPoint,
    /// Block that holds it.
    pub height: u32,
}

/// How the funding left the channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SpendKind {
    /// By both keys: the provider's claim of a commitment.
    Claim,
    /// By both keys: a close that both signed.
    Close,
    /// By the subscriber alone, after expiry.
    Refund,
}

/// The transaction that spent the funding, in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spent {
    /// The spending transaction.
    pub txid: bitcoin::Txid,
    /// Block that holds it.
    pub height: u32,
    /// Which branch it took.
    pub kind: SpendKind,
}

impl Spent {
    /// Reads from a confirmed transaction how it spent `outpoint`; `None` when it doesn't. The
    /// refund branch is the only one that the provider's signature is absent (empty) from; in a
    /// close the subscriber signed every output (`ALL`).
    pub fn find(
        tx: &bitcoin::Transaction,
        outpoint: &bitcoin::OutPoint,
        height: u32,
    ) -> Option<Self> {
        let input = tx.input.iter().find(|input| input.previous_output == *outpoint)?;
        let all = EcdsaSighashType::All.to_u32();
        let kind = match (input.witness.nth(0), input.witness.nth(1).and_then(<[u8]>::last)) {
            (Some([]), _) => SpendKind::Refund,
            (_, Some(flag)) if u32::from(*flag) == all => SpendKind::Close,
            _ => SpendKind::Claim,
        };
        Some(Self { txid: tx.compute_txid(), height, kind })
    }
}

/// An event that doesn't follow from the state it is applied to: the journal is damaged, or not
/// this channel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the journal does not add up: {0}; restore the data directory from a backup")]
pub struct InvalidEvent(pub &'static str);
