//! What comes in.

use std::{sync::Arc, time::Duration};

use bitcoin::{Amount, Block, BlockHash, FeeRate, Transaction, Txid, secp256k1::PublicKey};

use super::{CloseOwn, StationsAsk, Taken};
use crate::{
    account::AccountId,
    channel::{ChannelId, FeeEstimates, VerifiedPayment},
    fleet::{EdgeNumber, Late},
    ledger::Usage,
    offer::SignedOffer,
    station::Station,
    wire::{CloseRequest, OpenRequest, PaymentRequest},
};

/// Names the request that an answer belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// What happened outside.
#[derive(Clone, Debug)]
pub enum Input {
    /// A new offer holds; earlier ones stay good until their end.
    Offer(SignedOffer),
    /// A station wants a channel.
    Open {
        /// For the answer.
        request: RequestId,
        /// Who asks.
        station: Station,
        /// What for.
        open: OpenRequest,
        /// The key at [`Controller::next_key_index`] of the provider's wallet.
        provider_key: PublicKey,
        /// Seconds since 1970, to judge the offer's age.
        now: u64,
    },
    /// A payment.
    Pay {
        /// For the answer.
        request: RequestId,
        /// On which channel.
        channel: ChannelId,
        /// How much, signed.
        payment: PaymentRequest,
        /// Proof of the signature, where it was verified before ([`Controller::payment_check`]).
        verified: Option<VerifiedPayment>,
        /// Who sent it, if that is known: the answer is told as it sees its account.
        station: Option<Station>,
    },
    /// A change of an account's stations.
    Stations(StationsAsk),
    /// A subscriber wants its remainder back now.
    Close {
        /// For the answer.
        request: RequestId,
        /// Which channel.
        channel: ChannelId,
        /// Signed.
        close: CloseRequest,
        /// What [`Controller::close_needs`] asked the wallet for.
        own: CloseOwn,
    },
    /// A subscriber presents its signed funding.
    Fund {
        /// For the answer.
        request: RequestId,
        /// Of which channel.
        channel: ChannelId,
        /// The transaction.
        tx: Transaction,
    },
    /// What became of [`Action::Present`].
    Presented {
        /// For the answer.
        request: RequestId,
        /// Of which channel.
        channel: ChannelId,
        /// The transaction.
        tx: Transaction,
        /// Whether the network has it.
        taken: Taken,
    },
    /// The network takes a funding no more that it took ([`Action::CheckOffered`]).
    OfferedGone {
        /// Of which channel.
        channel: ChannelId,
        /// The funding.
        txid: Txid,
        /// The chain source's newest block after it refused: a funding in a block that was not
        /// followed yet is refused, too.
        tip: BlockHash,
    },
    /// A block on the tip.
    BlockConnected {
        /// Its height.
        height: u32,
        /// The block.
        block: Arc<Block>,
    },
    /// The tip left the chain.
    BlockDisconnected {
        /// Its height.
        height: u32,
    },
    /// Whether the chain source answers and is caught up.
    Chain {
        /// True when it does.
        synced: bool,
    },
    /// All of the kernel's counters.
    Usage(Vec<(Station, Usage)>),
    /// One station's counters out of turn: before an answer, or because its lease runs low.
    Reading(Station, Usage),
    /// Limits were lowered, and after the last of them counters were read.
    Reclaimed {
        /// Whose limits.
        stations: Vec<Station>,
        /// Counters of these and of all that share an account with them
        /// ([`Controller::company`]).
        readings: Vec<(Station, Usage)>,
    },
    /// Time to write usage down and to try again what failed.
    Checkpoint,
    /// The kernel did not take a grant.
    GrantFailed(Station),
    /// What blocks take at present, asked for with each block; `None` when the source can't tell.
    /// Claims are decided on it.
    Fees(Option<FeeEstimates>),
    /// The network did not take a transaction, for its fee.
    Refused {
        /// Which.
        txid: Txid,
    },
    /// A claim was signed ([`PlannedClaim::sign`]).
    Claimed {
        /// The channels in it.
        channels: Vec<ChannelId>,
        /// The transaction.
        tx: Transaction,
        /// Its fee.
        fee: Amount,
        /// Its fee rate.
        fee_rate: FeeRate,
    },
    /// Another edge of the fleet wants an account that this one has.
    Wanted {
        /// Which.
        account: AccountId,
        /// Who.
        by: EdgeNumber,
        /// Time that has passed since some instant.
        now: Duration,
    },
    /// Stations are off the kernel's table ([`Action::TakeOff`]).
    TakenOff {
        /// Whose.
        account: AccountId,
        /// What they have used; of those that were not on it there need not be anything.
        readings: Vec<(Station, Usage)>,
    },
    /// A block that accounts on their way here have not seen ([`Controller::missing`]).
    Passed {
        /// Its height.
        height: u32,
        /// The block.
        block: Arc<Block>,
        /// Time that has passed since some instant.
        now: Duration,
    },
    /// What stations of accounts that are here used at edges that were taken over, as far as it is
    /// not settled.
    UsedLate(Vec<Late>),
    /// The chain or the time went on: accounts on their way here are looked at again.
    Beat {
        /// Time that has passed since some instant.
        now: Duration,
    },
}
