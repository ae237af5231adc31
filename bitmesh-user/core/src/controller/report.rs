//! Stations, channels and refusals, as the API tells them.

use bitcoin::{Address, Amount};

use super::Controller;
use crate::{
    account::AccountId,
    channel::{
        BindingError, ChannelId, CloseError, FundingError, ParamsError, PaymentError, Uneconomic,
        VersionError,
    },
    ledger::Usage,
    station::Station,
    units::Octets,
    wire::{AccountReport, ChannelReport, ClosedByBoth, ErrorBody},
};

impl Controller {
    /// Every station that an account pays or paid for, by account.
    pub fn accounts(&self) -> impl Iterator<Item = AccountReport> + '_ {
        let of = |id| self.accounts.stations(id).map(move |station| (id, station));
        self.accounts.ids().flat_map(of).map(|(id, station)| self.account_of(id, station))
    }

    /// What one station has; nothing, for a station that no account ever paid for.
    pub fn account(&self, station: Station) -> AccountReport {
        match self.accounts.seat(station) {
            Some(seat) => self.account_of(seat.account, station),
            None => AccountReport {
                station,
                account: None,
                bound: false,
                bought_octets: Octets(0),
                credit_octets: Octets(0),
                usage: Usage::default(),
                others_octets: Octets(0),
                stations: 0,
                lease_octets: Octets(0),
                edge_addresses: self.edge_addresses.clone(),
            },
        }
    }

    /// An account, as a station sees it that need not be its own.
    pub(super) fn account_of(&self, id: AccountId, station: Station) -> AccountReport {
        let seat = self.accounts.seat(station).filter(|seat| seat.account == id);
        let usage = seat.map(|seat| self.accounts.usage(station).since(seat.base));
        let usage = usage.unwrap_or_default();
        let (bought, used) = (self.accounts.bought(id), self.accounts.used(id));
        let lease = seat.map(|_| self.accounts.held(station));
        AccountReport {
            station,
            account: Some(id),
            bound: seat.is_some_and(|seat| seat.bound),
            bought_octets: bought,
            credit_octets: bought.saturating_sub(used),
            usage,
            others_octets: used.saturating_sub(usage.billed()),
            stations: u64::try_from(self.accounts.members(id)).unwrap_or(u64::MAX),
            lease_octets: lease.unwrap_or_default(),
            edge_addresses: self.edge_addresses.clone(),
        }
    }

    /// One channel.
    pub fn channel(&self, id: &ChannelId) -> Result<ChannelReport, Refusal> {
        let channel = self.book.get(id).ok_or(Refusal::UnknownChannel)?;
        let params = channel.params().clone();
        let address = Address::from_script(&channel.funding_script(), self.network);
        let claim = channel.claim().map(|claim| (&claim.tx, claim.fee));
        let close = channel.closed_by_both().map(|close| (&close.tx, close.fee));
        Ok(ChannelReport {
            channel: *id,
            status: channel.status(self.book.tip()),
            descriptor: params.descriptor().map(|it| it.to_string()).unwrap_or_default(),
            address: address.map(|address| address.to_string()).unwrap_or_default(),
            params,
            station: Some(channel.station()),
            account: self.accounts.of_channel(id),
            funding: channel.funding().map(|funding| funding.outpoint),
            offered: channel.offered(),
            payable: channel.payable(self.book.tip()),
            paid: channel.paid(),
            commitments: channel.commitments(),
            bought_octets: channel.bought(),
            closing_txid: claim.or(close).map(|(tx, _)| tx.compute_txid()),
            closing_fee_sat: claim.or(close).map(|(_, fee)| fee.to_sat()),
            payout_script: channel.payout_script().cloned(),
            closed_by_both: close.map(|(tx, _)| ClosedByBoth { tx: tx.clone() }),
            settled_txid: channel.spent().map(|spent| spent.txid),
            dispute: None,
        })
    }

    /// Every channel.
    pub fn channels(&self) -> impl Iterator<Item = ChannelReport> + '_ {
        self.book.iter().filter_map(|(id, _)| self.channel(id).ok())
    }
}

/// Why a request was not granted. Nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Of another protocol.
    #[error("{0}")]
    Version(VersionError),
    /// No chain source: fundings can't be seen.
    #[error("this provider does not see the chain at the moment and opens no channels")]
    ChainLost,
    /// No such offer, or past its end.
    #[error("no such offer, or it has ended")]
    UnknownOffer,
    /// Out of the offer's bounds.
    #[error("the capacity is to be {min} to {max}")]
    Capacity {
        /// Smallest.
        min: Amount,
        /// Largest.
        max: Amount,
    },
    /// Out of the offer's bounds.
    #[error("the expiry is to be at height {min} to {max}")]
    Expiry {
        /// Soonest.
        min: u32,
        /// Latest.
        max: u32,
    },
    /// Terms that the protocol doesn't have.
    #[error("{0}")]
    Params(ParamsError),
    /// Its claim would cost too much of what it can pay.
    #[error("{0}")]
    Uneconomic(Uneconomic),
    /// Too many channels wait for their funding.
    #[error("too many channels wait for their funding")]
    TooManyUnfunded,
    /// The station has too many channels.
    #[error("this station has too many channels")]
    TooManyChannels,
    /// The same keys and terms were opened before.
    #[error("channel {0} exists")]
    Exists(ChannelId),
    /// No such channel.
    #[error("no such channel")]
    UnknownChannel,
    /// A payment or a close that can't be taken.
    #[error("{error}")]
    Payment {
        /// Why.
        error: PaymentError,
        /// What has been paid.
        best: Amount,
    },
    /// A funding that is not taken.
    #[error("{0}")]
    Funding(FundingError),
    /// A close that is not signed.
    #[error("{0}")]
    Close(CloseError),
    /// An account's stations stay as they are.
    #[error("{0}")]
    Stations(BindingError),
    /// Between two accounts at this moment.
    #[error("this station is changing accounts")]
    Moving,
    /// Between two edges at this moment.
    #[error("this account is on its way from one edge to another")]
    Underway,
    /// Every key that this edge has was used, and it waits for others.
    #[error("this edge has no key for another channel at present")]
    OutOfKeys,
    /// The station table is full.
    #[error("the payment is safe, but this edge serves as many stations as it can")]
    TableFull,
}

impl Refusal {
    /// Status code of the HTTP answer.
    pub fn status(&self) -> u16 {
        match self {
            Self::ChainLost | Self::TableFull | Self::Moving | Self::Underway | Self::OutOfKeys => {
                503
            }
            Self::UnknownOffer | Self::UnknownChannel => 404,
            Self::Version(_)
            | Self::Capacity { .. }
            | Self::Expiry { .. }
            | Self::Params(_)
            | Self::Uneconomic(_) => 422,
            Self::TooManyUnfunded | Self::TooManyChannels => 429,
            Self::Exists(_) => 409,
            Self::Stations(error) => match error {
                BindingError::Unfunded => 425,
                BindingError::Signature | BindingError::OtherStation { .. } => 403,
                BindingError::Used => 409,
                BindingError::Expired => 410,
                BindingError::TooManyChanges | BindingError::TooManyStations => 429,
                BindingError::NotBound => 404,
            },
            Self::Funding(error) => match error {
                FundingError::Closed => 410,
                FundingError::TooMany => 429,
                FundingError::Waiting => 503,
                FundingError::Other | FundingError::Refused(_) => 422,
            },
            Self::Close(error) => match error {
                CloseError::Unfunded => 425,
                CloseError::Settled => 410,
                CloseError::NoPayoutScript | CloseError::Underpaid { .. } => 409,
                CloseError::Signature => 403,
                _ => 422,
            },
            Self::Payment { error, .. } => match error {
                PaymentError::Unfunded
                | PaymentError::Unconfirmed { .. }
                | PaymentError::TooEarly { .. }
                | PaymentError::TooMuchUnconfirmed => 425,
                PaymentError::Closed => 410,
                PaymentError::Stale { .. } => 409,
                PaymentError::TooLarge { .. } => 422,
                PaymentError::Signature => 403,
            },
        }
    }

    /// For programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Version(_) => "version",
            Self::ChainLost => "chain-lost",
            Self::UnknownOffer => "unknown-offer",
            Self::Capacity { .. } => "capacity",
            Self::Expiry { .. } => "expiry",
            Self::Params(_) => "terms",
            Self::Uneconomic(_) => "uneconomic",
            Self::TooManyUnfunded => "too-many-unfunded",
            Self::TooManyChannels => "too-many-channels",
            Self::Exists(_) => "exists",
            Self::UnknownChannel => "unknown-channel",
            Self::TableFull => "station-table-full",
            Self::Moving => "station-moving",
            Self::Underway => "moving",
            Self::OutOfKeys => "out-of-keys",
            Self::Stations(error) => match error {
                BindingError::Unfunded => "unfunded",
                BindingError::Signature => "wrong-signature",
                BindingError::Used => "used",
                BindingError::Expired => "expired",
                BindingError::TooManyChanges => "too-many-changes",
                BindingError::OtherStation { .. } => "other-station",
                BindingError::TooManyStations => "too-many-stations",
                BindingError::NotBound => "not-bound",
            },
            Self::Funding(error) => match error {
                FundingError::Other => "other-funding",
                FundingError::Closed => "closed",
                FundingError::TooMany => "too-many-fundings",
                FundingError::Waiting => "funding-waits",
                FundingError::Refused(_) => "funding-refused",
            },
            Self::Close(error) => match error {
                CloseError::Unfunded => "unfunded",
                CloseError::Settled => "settled",
                CloseError::NoPayoutScript => "no-payout-script",
                CloseError::PayoutScript => "payout-script",
                CloseError::Underpaid { .. } => "stale-payment",
                CloseError::Overpaid { .. } => "payment-too-large",
                CloseError::FeeTooLow { .. } => "fee-too-low",
                CloseError::FeeTooHigh { .. } => "fee-too-high",
                CloseError::Signature => "wrong-signature",
            },
            Self::Payment { error, .. } => match error {
                PaymentError::Unfunded => "unfunded",
                PaymentError::Unconfirmed { .. } => "unconfirmed",
                PaymentError::TooEarly { .. } => "too-early",
                PaymentError::TooMuchUnconfirmed => "too-much-unconfirmed",
                PaymentError::Closed => "closed",
                PaymentError::Stale { .. } => "stale-payment",
                PaymentError::TooLarge { .. } => "payment-too-large",
                PaymentError::Signature => "wrong-signature",
            },
        }
    }

    fn advice(&self) -> String {
        match self {
            Self::Version(_) => {
                "take the version of BitMesh that this edge runs, or have it updated".into()
            }
            Self::ChainLost => "try again in a minute; existing credit stays good".into(),
            Self::UnknownOffer => "get /v1/offer and open on that".into(),
            Self::Capacity { .. } | Self::Expiry { .. } | Self::Params(_) => {
                "choose within the terms of /v1/offer".into()
            }
            Self::Uneconomic(why) => format!(
                "open one of {} sat or more, or wait for lower fees",
                why.capacity_min.to_sat()
            ),
            Self::TooManyUnfunded => "fund the ones you opened, or wait".into(),
            Self::TooManyChannels => "close one first".into(),
            Self::Exists(id) => format!("get /v1/channels/{id}, or open with a new key"),
            Self::UnknownChannel => "check the id; post to /v1/channels to open one".into(),
            Self::TableFull => "credit becomes usable as soon as there is room".into(),
            Self::Moving | Self::Underway => "try again in a second".into(),
            Self::OutOfKeys => {
                "try again in a few seconds, or at another edge; what is bought is safe".into()
            }
            Self::Stations(error) => match error {
                BindingError::Unfunded => "wait until the funding is in a block, then try again",
                BindingError::Signature => "sign with the key that the channel was opened with",
                BindingError::Used | BindingError::Expired => {
                    "have who pays make a new one: `bitmesh share`"
                }
                BindingError::TooManyChanges => "open a new channel, and use that one's key",
                BindingError::OtherStation { .. } => "send it from the station that it names",
                BindingError::TooManyStations => "remove one first: `bitmesh share --remove MAC`",
                BindingError::NotBound => {
                    "`bitmesh stations` on the edge lists who belongs to whom"
                }
            }
            .into(),
            Self::Funding(error) => match error {
                FundingError::Other => "fund the address and the amount of its report".into(),
                FundingError::Closed => "open a new channel".into(),
                FundingError::TooMany => "wait for a block, then try again".into(),
                FundingError::Waiting => "try again in half a minute".into(),
                FundingError::Refused(_) => {
                    "sign another one: with a higher fee, or of coins that are not spent".into()
                }
            },
            Self::Close(_) => "propose another one, or wait for the claim".into(),
            Self::Payment { error: PaymentError::Signature, .. } => {
                "sign with the key that the channel was opened with".into()
            }
            Self::Payment { error: PaymentError::Closed, .. } => "open a new channel".into(),
            Self::Payment { best, .. } => {
                format!("get /v1/channels/{{id}}; {} sat are paid so far", best.to_sat())
            }
        }
    }

    /// The answer's body.
    pub fn body(&self) -> ErrorBody {
        ErrorBody { error: self.code().into(), message: self.to_string(), r#try: self.advice() }
    }
}
