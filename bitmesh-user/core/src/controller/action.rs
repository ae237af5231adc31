//! What goes out, once its cause is durable.

use bitcoin::Transaction;

use super::{PlannedClaim, Refusal, RequestId};
use crate::{
    account::AccountId,
    channel::ChannelId,
    ledger::Usage,
    station::Station,
    units::Octets,
    wire::{AccountReport, ChannelReport, PaymentReply},
};

/// What to do, once its cause is durable.
#[derive(Clone, Debug)]
pub enum Action {
    /// Let the station use more, counting from `usage` if it is new to the kernel.
    Grant {
        /// Whom.
        station: Station,
        /// Octets that it may use in its life.
        limit: Octets,
        /// Octets left under the limit at which an [`Input::Reading`] helps; 0: none does.
        low: Octets,
        /// Usage to start from.
        usage: Usage,
    },
    /// Let the station use less, then tell by [`Input::Reclaimed`] what it used until then.
    Reclaim {
        /// Whom.
        station: Station,
        /// Octets that it may use in its life.
        limit: Octets,
    },
    /// Take stations off the kernel's table, then tell by [`Input::TakenOff`] what they used.
    TakeOff {
        /// Whose.
        account: AccountId,
        /// Which.
        stations: Vec<Station>,
    },
    /// Answer a request.
    Reply(RequestId, Result<Answer, Refusal>),
    /// Sign a claim and give it back ([`Input::Claimed`]).
    Claim(PlannedClaim),
    /// Hand a funding to the network, once, and tell by [`Input::Presented`].
    Present {
        /// For the answer.
        request: RequestId,
        /// Of which channel.
        channel: ChannelId,
        /// The transaction.
        tx: Transaction,
    },
    /// Hand fundings to the network again; one that it refuses is told by [`Input::OfferedGone`].
    CheckOffered(Vec<(ChannelId, Transaction)>),
    /// Hand a transaction to the network.
    Broadcast(Transaction),
}

/// A request's success.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// To opening and closing.
    Channel(Box<ChannelReport>),
    /// To a payment.
    Payment(Box<PaymentReply>),
    /// To a change of stations.
    Account(Box<AccountReport>),
}
