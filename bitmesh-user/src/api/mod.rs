//! HTTP, for stations on the LAN and for the operator on a socket of this machine.
//!
//! It parses, bounds and answers; it decides nothing. Every request becomes an [`Ask`] in the
//! runloop's mailbox, and the answer comes back through the envelope. It never sees a key, a file
//! descriptor of the kernel's or the store.

mod admin;
mod admitted;
mod checks;
mod client;
mod front;
mod gate;
mod lately;
mod ops;
mod paced;
mod payers;
mod places;
mod public;
mod server;
mod wallet;

pub use admin::{ADMIN_SOCKET, AdminError, ask_admin, serve_admin};
pub use checks::{Checks, Verdict};
pub use client::{ClientError, Provider};
pub use front::{Doing, Front, SLOW_STORE, StoreState, StoreStatus, Writing};
pub use gate::Gate;
pub use ops::{Ops, listen_for_ops, serve_ops};
pub use payers::Payers;
pub use public::router;
pub use server::{ServeError, listen_on, serve_lan};
pub use wallet::{
    AddressReport, FEE_RATE_MAX_SAT_PER_VB, FeeRateReport, HISTORY_MAX, PastKind, PastReport,
    RefundExport, SendOrder, SendReport, SendState, WalletAsk,
};

use std::{net::IpAddr, time::Duration};

use axum::{
    Json,
    body::Bytes,
    http::{
        HeaderValue, StatusCode,
        header::{CONTENT_TYPE, RETRY_AFTER},
    },
    response::{IntoResponse, Response},
};
use bitcoin::Amount;
use bitmesh_core::{
    bitcoin,
    channel::{ChannelId, FundingError, VerifiedPayment},
    controller::Refusal,
    station::Station,
    wire::{
        CloseRequest, ErrorBody, FundingRequest, OpenRequest, PaymentReply, PaymentRequest,
        StationsRequest,
    },
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::oneshot;

/// Requests that wait for the runloop; more are answered 503.
pub const MAILBOX_REQUESTS: usize = 1_024;
/// Time after which there may be room again.
const BUSY_RETRY: Duration = Duration::from_secs(1);
/// Time after which a daemon that stops may be back.
const STOPPING_RETRY: Duration = Duration::from_secs(5);
/// Time after which the chain may be seen again, or channels of others be over.
const CHAIN_RETRY: Duration = Duration::from_mins(1);
/// Time after which another funding may be handed to the network.
const FUNDING_RETRY: Duration = Duration::from_secs(30);

/// Where a station asks from.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// Index of the interface that answers it: of its port, or of the bridge above that.
    pub interface: u32,
    /// Its address.
    pub address: IpAddr,
}

/// What somebody wants of the runloop.
#[derive(Clone, Debug)]
pub enum Ask {
    /// The signed offer.
    Offer,
    /// A channel, for a station that asks from there.
    Open(Station, Origin, OpenRequest),
    /// How a channel stands.
    Channel(ChannelId),
    /// A payment.
    Pay(Pay),
    /// A station presents a change of which stations a channel's account pays for.
    ChangeStations(ChannelId, Station, StationsRequest),
    /// The subscriber presents its funding.
    Fund(ChannelId, FundingRequest),
    /// The subscriber closes.
    Close(ChannelId, CloseRequest),
    /// What a station has.
    Account(Station),
    /// The operator's: everything at a glance.
    Status,
    /// The operator's: every channel.
    Channels,
    /// The operator's: every station.
    Stations,
    /// The operator's: balance and an address to fund it.
    Wallet,
    /// The operator's: something else of the wallet.
    OfWallet(WalletAsk),
    /// The operator's, of a subscriber: what a stock wallet takes to refund channels.
    Refunds,
    /// The operator's: close, as the end that it runs.
    CloseOwn(ChannelId),
    /// The operator's: raise or set what may be spent.
    Budget(BudgetChange),
    /// The operator's, of a subscriber: let another station use this account's credit, or no more.
    Share(ShareChange),
}

/// A payment on its way to the loop.
#[derive(Clone, Debug)]
pub struct Pay {
    /// On which channel.
    pub channel: ChannelId,
    /// How much, signed.
    pub payment: PaymentRequest,
    /// Who sends it, where the neighbour table knows.
    pub station: Option<Station>,
    /// What is known of the signature.
    pub proof: Proof,
}

/// What is known of a payment's signature before the loop looks at it.
#[derive(Clone, Debug)]
pub enum Proof {
    /// Nothing yet.
    None,
    /// It is right.
    Verified(VerifiedPayment),
    /// The channel changed while it was looked at: the loop is to verify it itself.
    Missed,
}

/// What the operator of a subscriber changes of who may use its credit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ShareChange {
    /// Make a code for one station, good for so many seconds.
    Code {
        /// From now.
        seconds: u64,
    },
    /// Let a station use it no more.
    Remove(Station),
}

/// A code that lets the station that presents it use an account's credit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareCode {
    /// Where to post it.
    pub url: String,
    /// What to post, with `Content-Type: application/json`.
    pub body: StationsRequest,
}

/// What the operator of a subscriber changes of its budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum BudgetChange {
    /// So much more.
    AddSat(u64),
    /// So much in all.
    SetSat(u64),
}

impl BudgetChange {
    /// The new budget; `None` when it is more money than there is.
    pub fn apply(self, budget: Amount) -> Option<Amount> {
        let changed = match self {
            Self::AddSat(sat) => budget.checked_add(Amount::from_sat(sat))?,
            Self::SetSat(sat) => Amount::from_sat(sat),
        };
        (changed <= Amount::MAX_MONEY).then_some(changed)
    }
}

/// A request with the way back.
#[derive(Debug)]
pub struct Envelope {
    /// What is wanted.
    pub ask: Ask,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Reply>,
}

impl Envelope {
    /// Whether nobody waits for the answer any more, and asks again if it is still wanted. A payment
    /// and a wish to close are good whoever waits.
    pub fn is_given_up(&self) -> bool {
        self.reply.is_closed() && !matches!(self.ask, Ask::Pay(_) | Ask::Close(..))
    }
}

/// An answer's body, or why there is none.
pub type Reply = Result<Body, ApiError>;

/// What is answered: text already, or, where there are thousands a second, what becomes text on the
/// thread that sends it.
#[derive(Clone, Debug)]
pub enum Body {
    /// JSON.
    Text(Bytes),
    /// To a payment.
    Paid(Box<PaymentReply>),
}

impl Body {
    /// Serializes what always can be.
    pub fn of(body: impl Serialize) -> Self {
        Self::Text(serde_json::to_vec(&body).unwrap_or_else(|_| b"null".to_vec()).into())
    }

    fn text(self) -> Bytes {
        match self {
            Self::Text(text) => text,
            Self::Paid(paid) => serde_json::to_vec(&paid).unwrap_or_default().into(),
        }
    }

    /// The same, to look into.
    pub fn value(self) -> Value {
        serde_json::from_slice(&self.text()).unwrap_or(Value::Null)
    }
}

impl IntoResponse for Body {
    fn into_response(self) -> Response {
        let json = HeaderValue::from_static("application/json");
        ([(CONTENT_TYPE, json)], self.text()).into_response()
    }
}

/// An answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// Of the HTTP answer.
    pub status: StatusCode,
    /// Of the HTTP answer.
    pub body: ErrorBody,
    /// Seconds after which it makes sense to try again, where that is known.
    pub retry_after: Option<u16>,
}

impl ApiError {
    /// A refusal with a code for programs, a sentence and what to try.
    pub fn new(status: StatusCode, code: &str, message: impl Into<String>, advice: &str) -> Self {
        let body = ErrorBody { error: code.into(), message: message.into(), r#try: advice.into() };
        Self { status, body, retry_after: None }
    }

    /// Not now: whoever asks is told when to ask again.
    pub fn unavailable(
        code: &str,
        message: impl Into<String>,
        advice: &str,
        retry_after: Duration,
    ) -> Self {
        let seconds = whole_seconds(retry_after);
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message, advice).after(seconds)
    }

    /// The same, with when to try again.
    #[must_use]
    pub fn after(self, seconds: u16) -> Self {
        Self { retry_after: Some(seconds), ..self }
    }

    /// The daemon is ending.
    fn stopping() -> Self {
        Self::unavailable(
            "stopping",
            "this edge is being stopped or restarted; credit stays good meanwhile",
            "try again in a few seconds",
            STOPPING_RETRY,
        )
    }

    /// More is asked than can be answered.
    pub fn busy() -> Self {
        Self::unavailable(
            "busy",
            "this edge has more requests than it can answer, or is starting",
            "try again in a second",
            BUSY_RETRY,
        )
    }
}

/// Rounded up, one at least: what a Retry-After header takes.
fn whole_seconds(wait: Duration) -> u16 {
    let seconds = wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0));
    u16::try_from(seconds).unwrap_or(u16::MAX).max(1)
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let status = StatusCode::from_u16(refusal.status());
        let retry_after = match &refusal {
            Refusal::Moving | Refusal::Underway | Refusal::TableFull => Some(BUSY_RETRY),
            Refusal::ChainLost | Refusal::TooManyUnfunded => Some(CHAIN_RETRY),
            Refusal::Funding(FundingError::Waiting | FundingError::TooMany) => Some(FUNDING_RETRY),
            _ => None,
        };
        let status = status.unwrap_or(StatusCode::BAD_REQUEST);
        Self { status, body: refusal.body(), retry_after: retry_after.map(whole_seconds) }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let code = ErrorCode(self.body.error.clone());
        let mut answer = (self.status, Json(self.body)).into_response();
        if let Some(seconds) = self.retry_after {
            answer.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        answer.extensions_mut().insert(code);
        answer
    }
}

/// Goes with an answer that is not a success, for who counts them.
#[derive(Clone, Debug)]
struct ErrorCode(String);

/// Serializes what always can be.
pub fn value(body: impl Serialize) -> Value {
    serde_json::to_value(body).unwrap_or(Value::Null)
}

#[cfg(test)]
mod tests;
