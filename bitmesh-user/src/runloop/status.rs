//! What `bitmesh status` shows, as the daemons tell it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use bitcoin::{Network, secp256k1::XOnlyPublicKey};
use bitmesh_core::{
    alarm::Alarm,
    bitcoin,
    ledger::Usage,
    offer::SignedOffer,
    station::Station,
    units::Octets,
    wire::{AccountReport, ChannelReport},
};
use serde::{Deserialize, Serialize};

use crate::api::StoreStatus;

/// A daemon's state.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "kebab-case")]
pub enum Status {
    /// Of `bitmesh sell`.
    Provider(Box<ProviderStatus>),
    /// Of `bitmesh buy`.
    Subscriber(Box<SubscriberStatus>),
}

/// What both roles tell of the chain and their wallet.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChainStatus {
    /// Chain that channels are on.
    pub network: Network,
    /// Height of the newest block seen.
    pub height: u32,
    /// Whether the source answers and everything that it has was followed.
    pub synced: bool,
    /// Where blocks come from.
    #[serde(default)]
    pub source: String,
    /// Blocks that the source has and that were not followed yet, as far as it said.
    #[serde(default)]
    pub blocks_behind: u32,
    /// When the newest block was seen, in seconds since 1970, if one was since the start.
    #[serde(default)]
    pub block_seen_at: Option<u64>,
}

/// The wallet at a glance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalletStatus {
    /// In blocks.
    pub confirmed_sat: u64,
    /// Not in blocks yet.
    pub pending_sat: u64,
    /// In channels: what a subscriber has not paid away, what a provider was paid and has not claimed.
    #[serde(default)]
    pub in_channels_sat: u64,
    /// Names the seed words without telling them.
    pub fingerprint: String,
    /// Where to send money to.
    pub address: String,
}

/// A program on a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookStatus {
    /// The port.
    pub interface: String,
    /// `upload` or `download`.
    pub direction: String,
    /// What the program is attached to.
    pub hook: String,
    /// Why that.
    pub reason: String,
    /// What the operator should know about it, if anything.
    #[serde(default)]
    pub warning: Option<String>,
}

/// What the kernel told at once, since the daemon started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventStatus {
    /// Events by kind.
    pub told: BTreeMap<String, u64>,
    /// Events that found no place, by kind: they cost latency, never money.
    pub lost: BTreeMap<String, u64>,
    /// Stations that sent from elsewhere than they are bound to, the newest last.
    pub moved: Vec<MovedStation>,
}

/// A station that moved, or whose MAC another device uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovedStation {
    /// Which.
    pub station: Station,
    /// Index of the port that it was seen on.
    pub port: u32,
    /// The address that it sent from.
    pub ipv4: Option<Ipv4Addr>,
}

/// Something that the guard found and put right, or could not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardEvent {
    /// Seconds since 1970.
    pub at: u64,
    /// What it was, for people.
    pub what: String,
}

/// The process that keeps the programs on the ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardStatus {
    /// Its number.
    pub pid: u32,
    /// How often it put something back since the daemon started.
    pub put_back: u64,
    /// What happened last, oldest first.
    pub recent: Vec<GuardEvent>,
}

/// Of `bitmesh sell`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProviderStatus {
    /// The key that signs offers.
    pub provider: XOnlyPublicKey,
    /// The chain.
    #[serde(flatten)]
    pub chain: ChainStatus,
    /// What needs the operator, the worst first.
    #[serde(default)]
    pub alarms: Vec<Alarm>,
    /// The newest offer.
    pub offer: Option<SignedOffer>,
    /// The box's addresses: traffic with them is free.
    pub edge_addresses: Vec<IpAddr>,
    /// Programs on ports.
    pub hooks: Vec<HookStatus>,
    /// Who keeps them there.
    pub guard: GuardStatus,
    /// Frames that were dropped or passed free, by cause.
    pub causes: BTreeMap<String, u64>,
    /// What the kernel told.
    pub events: EventStatus,
    /// Stations that the kernel's table had otherwise than the ledger, by how, since the daemon
    /// started; all were put right.
    #[serde(default)]
    pub drift: BTreeMap<String, u64>,
    /// Stations with credit.
    pub stations_with_credit: u64,
    /// Stations in all.
    pub stations: u64,
    /// Accounts that pay, or paid, for them.
    pub accounts: u64,
    /// Channels that take payments.
    pub channels_open: u64,
    /// Channels in all.
    pub channels: u64,
    /// Sum of all payments, in satoshi.
    pub paid_sat: u64,
    /// Octets billed, both directions, all stations.
    pub billed_octets: Octets,
    /// The same by direction, with what was refused for want of credit.
    #[serde(default)]
    pub usage: Usage,
    /// Of what was paid, in satoshi: what claims and closes in blocks brought, miners' fees included.
    #[serde(default)]
    pub settled_sat: u64,
    /// Payments that were taken, in all.
    #[serde(default)]
    pub commitments: u64,
    /// The wallet.
    pub wallet: WalletStatus,
    /// Whether payments can be written down.
    #[serde(default)]
    pub store: StoreStatus,
    /// The fleet that this is an edge of, if it is.
    #[serde(default)]
    pub fleet: Option<FleetStatus>,
}

/// An edge and its fleet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetStatus {
    /// This edge's name.
    pub edge: String,
    /// Its number.
    pub number: u16,
    /// Grows with each start, and when another edge takes it over.
    pub epoch: i64,
    /// How long what it granted lasts after a sign of life.
    pub hold_seconds: u64,
    /// Whether its last sign of life is young enough to grant.
    pub may_grant: bool,
    /// Accounts on their way here.
    pub accounts_arriving: u64,
    /// Accounts on their way to other edges.
    pub accounts_leaving: u64,
    /// Accounts that can't come: the log says why.
    pub accounts_lost: u64,
    /// Accounts that it has, as they were counted last.
    #[serde(default)]
    pub accounts: u64,
    /// Since its last sign of life, in milliseconds.
    #[serde(default)]
    pub silent_ms: u64,
    /// Its signs of life that came late, since the last start from the ledger.
    #[serde(default)]
    pub beats_late: u64,
    /// Accounts that came since the last start from the ledger.
    pub accounts_came: u64,
    /// Accounts that went since then.
    pub accounts_went: u64,
    /// Requests that wait for an account.
    pub requests_waiting: u64,
    /// Octets that stations used at edges that were taken over, and that were debited here since the
    /// last start from the ledger.
    #[serde(default)]
    pub late_settled_octets: Octets,
    /// The same, of those that no credit was left for: they are the provider's loss.
    #[serde(default)]
    pub late_lost_octets: Octets,
    /// The other edges.
    pub others: Vec<OtherEdge>,
}

/// Another edge of the fleet, as this one sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherEdge {
    /// Its number.
    pub number: u16,
    /// Its name.
    pub name: String,
    /// Its epoch.
    pub epoch: i64,
    /// Since when it gave no sign of life, in milliseconds.
    pub silent_ms: u64,
    /// Whether it was taken over by this one, and is silent since.
    pub taken_over: bool,
    /// Accounts that it has, as they were counted last.
    #[serde(default)]
    pub accounts: u64,
}

/// How far a subscriber is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The wallet is short of what a channel takes.
    NeedsFunds,
    /// The provider does not answer.
    ProviderUnreachable,
    /// The offer can't be taken; the message says why.
    OfferRefused,
    /// The funding waits for blocks.
    Confirming,
    /// Paying as it uses.
    Buying,
    /// What may be spent is spent.
    BudgetSpent,
    /// The channel is empty.
    ChannelSpent,
    /// The provider billed what was not counted.
    Disputed,
    /// Nothing more is paid; waits for the settlement.
    Closing,
    /// Settled in a block.
    Closed,
}

/// Of `bitmesh buy`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SubscriberStatus {
    /// The chain.
    #[serde(flatten)]
    pub chain: ChainStatus,
    /// The provider's API.
    pub url: String,
    /// The key that signed the offer.
    pub provider: Option<XOnlyPublicKey>,
    /// Where it stands.
    pub phase: Phase,
    /// The same for people, with what to do.
    pub message: String,
    /// The channel in use.
    pub channel: Option<ChannelReport>,
    /// May be spent, over all channels.
    pub budget_sat: u64,
    /// Was spent, over all channels.
    pub spent_sat: u64,
    /// What the provider said last.
    pub account: Option<AccountReport>,
    /// Octets counted here since the count was set up; it outlives the daemon.
    pub counted_octets: Octets,
    /// Paid ahead of use at the present rate.
    pub tick_octets: Octets,
    /// Mean round trip of a payment.
    pub round_trip_ms: u64,
    /// The wallet.
    pub wallet: WalletStatus,
}
