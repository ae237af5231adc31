//! What the operator asks of the wallet, and is told.

use bitcoin::{FeeRate, OutPoint, Txid};
use bitmesh_core::{bitcoin, channel::ChannelId};
use serde::{Deserialize, Serialize};

use crate::wallet::Sum;

/// Transactions that are told at most.
pub const HISTORY_MAX: u32 = 10_000;
/// Highest rate that a payment may ask for, in satoshi per vbyte: more is a slip of the finger.
pub const FEE_RATE_MAX_SAT_PER_VB: u64 = 5_000;

/// What the operator wants of the wallet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum WalletAsk {
    /// An address to be paid at.
    Address {
        /// One that was never given out, even if the one before was not used yet.
        new: bool,
    },
    /// What came and went, the newest first.
    History {
        /// At most so many, and [`HISTORY_MAX`].
        limit: u32,
    },
    /// What to pay miners to be in a block in time.
    FeeRate {
        /// Blocks from now.
        blocks: u16,
    },
    /// Pay somebody, or say what that would cost.
    Send(SendOrder),
}

/// A payment on chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SendOrder {
    /// To whom.
    pub address: String,
    /// How much.
    pub sum: Sum,
    /// What miners get.
    pub fee_sat_per_kwu: FeeRate,
    /// Nothing is signed: say what it would be.
    pub preview: bool,
}

/// An address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressReport {
    /// As people pass it on.
    pub address: String,
}

/// A rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeeRateReport {
    /// By weight, as [`SendOrder`] takes it.
    pub fee_sat_per_kwu: FeeRate,
}

/// A payment, made or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SendReport {
    /// To whom.
    pub address: String,
    /// What they get.
    pub amount_sat: u64,
    /// What miners get.
    pub fee_sat: u64,
    /// What comes back to the wallet.
    pub change_sat: u64,
    /// Size that the fee is for, once signed.
    pub vbytes: u64,
    /// Its name, once it is signed.
    pub txid: Option<Txid>,
    /// What became of it.
    pub state: SendState,
}

/// What became of a payment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SendState {
    /// Nothing was signed.
    Preview,
    /// The network has it.
    Sent,
    /// It is signed and will be handed to the network again, which did not take it yet.
    Waiting {
        /// Why.
        reason: String,
    },
}

/// What a transaction was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PastKind {
    /// From somebody.
    Received,
    /// To somebody.
    Sent,
    /// From this wallet to itself.
    Moved,
    /// Into a channel, to pay from there.
    Funding,
    /// Out of channels that somebody paid on.
    Claim,
    /// What a channel had left when it was claimed.
    Remainder,
    /// Everything that a channel held, after its end.
    Refund,
}

/// A transaction of the wallet's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastReport {
    /// Its name.
    pub txid: Txid,
    /// What it was.
    pub kind: PastKind,
    /// The channel that it was for, if any.
    pub channel: Option<ChannelId>,
    /// Block that holds it.
    pub height: Option<u32>,
    /// That block's time, else when it was first seen; in seconds since 1970.
    pub time: Option<u64>,
    /// What the wallet has more by it, or less; without the fee.
    pub amount_sat: i64,
    /// What miners got, where this wallet paid them.
    pub fee_sat: Option<u64>,
}

/// What a stock wallet takes to fetch back what a channel holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefundExport {
    /// Which.
    pub channel: ChannelId,
    /// The chain.
    pub network: bitcoin::Network,
    /// What it holds, in satoshi.
    pub capacity_sat: u64,
    /// Where it is.
    pub outpoint: OutPoint,
    /// Block that holds it.
    pub funding_height: u32,
    /// From the block after this one on, the refund is valid.
    pub expiry_height: u32,
    /// The newest block that was seen.
    pub tip: u32,
    /// With the private key in it, and a checksum.
    pub descriptor: String,
    /// Where to send it unless somebody says otherwise: this wallet's.
    pub address: String,
}
