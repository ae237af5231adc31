//! The provider's rules: who may open a channel, what a payment grants, when to claim.
//!
//! It takes requests, blocks and usage with the time they came at, and yields a batch: entries for
//! the store, and actions that only the store's proof of commit lets out. It never grants before
//! the payment is durable, and after a failed commit it is thrown away and replayed, never reused.

mod report;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use bitcoin::{
    Amount, Block, FeeRate, Network, Transaction,
    secp256k1::{PublicKey, Secp256k1, VerifyOnly},
};

pub use report::Refusal;

use crate::{
    channel::{
        Batch, Book, ChannelId, ChannelParams, ClaimInput, ClaimRecord, Entry, InvalidEvent,
        PaymentError, ProviderChannel, ProviderEvent,
    },
    ledger::{Account, Usage},
    offer::{OfferId, SignedOffer},
    station::Station,
    units::Octets,
    wire::{ChannelReport, CloseRequest, OpenRequest, PaymentReply, PaymentRequest},
};

/// Channels that one station may have open without funding them.
pub const UNFUNDED_PER_STATION_MAX: usize = 4;
/// Channels that all stations together may have open without funding them: bounds the disk.
pub const UNFUNDED_MAX: usize = 10_000;
/// Channels that one station may have in all that are not closed.
pub const CHANNELS_PER_STATION_MAX: usize = 64;
/// Channels claimed in one transaction: 40 x 166 vB stay under TRUC's 10,000 vB.
pub const CLAIM_BATCH_MAX: usize = 40;

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
    },
    /// A subscriber wants its remainder back now.
    Close {
        /// For the answer.
        request: RequestId,
        /// Which channel.
        channel: ChannelId,
        /// Signed.
        close: CloseRequest,
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
    /// The kernel's counters.
    Usage(Vec<(Station, Usage)>),
    /// Time to write usage down and to try again what failed.
    Checkpoint,
    /// The kernel did not take a grant.
    GrantFailed(Station),
    /// A claim was built and signed.
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
}

/// What to do, once its cause is durable.
#[derive(Clone, Debug)]
pub enum Action {
    /// Let the station use what it bought, counting from `usage` if it is new to the kernel.
    Grant {
        /// Whom.
        station: Station,
        /// Octets bought, in its life.
        bought: Octets,
        /// Usage to start from.
        usage: Usage,
    },
    /// Answer a request.
    Reply(RequestId, Result<Answer, Refusal>),
    /// Build, sign and give back ([`Input::Claimed`]) a claim of these channels.
    Claim(Vec<DueClaim>),
    /// Hand a transaction to the network.
    Broadcast(Transaction),
}

/// A channel to claim.
#[derive(Clone, Debug)]
pub struct DueClaim {
    /// Its name.
    pub channel: ChannelId,
    /// Its part of the transaction.
    pub input: ClaimInput,
    /// Index of the key that signs.
    pub key_index: u32,
    /// Fee rate that the claim has to beat, if one was broadcast before.
    pub replaces: Option<FeeRate>,
}

/// A request's success.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// To opening and closing.
    Channel(Box<ChannelReport>),
    /// To a payment.
    Payment(Box<PaymentReply>),
}

type Out = Batch<ProviderEvent, Action>;

/// The state of a provider.
#[derive(Debug)]
pub struct Controller {
    secp: Secp256k1<VerifyOnly>,
    network: Network,
    edge_addresses: Vec<IpAddr>,
    book: Book<ProviderChannel>,
    accounts: BTreeMap<Station, Account>,
    by_station: BTreeMap<Station, BTreeSet<ChannelId>>,
    unwritten: BTreeSet<Station>,
    ungranted: BTreeSet<Station>,
    offers: BTreeMap<OfferId, SignedOffer>,
    synced: bool,
    next_key_index: u32,
}

impl Controller {
    /// An empty provider on `network`, whose box has `edge_addresses`.
    pub fn new(network: Network, edge_addresses: Vec<IpAddr>) -> Self {
        Self {
            secp: Secp256k1::verification_only(),
            network,
            edge_addresses,
            book: Book::default(),
            accounts: BTreeMap::new(),
            by_station: BTreeMap::new(),
            unwritten: BTreeSet::new(),
            ungranted: BTreeSet::new(),
            offers: BTreeMap::new(),
            synced: false,
            next_key_index: 0,
        }
    }

    /// Follows an entry read back from the store, before anything else is put in.
    pub fn replay(&mut self, entry: &Entry<ProviderEvent>) -> Result<(), InvalidEvent> {
        self.book.apply(entry)?;
        match entry {
            Entry::Channel { channel, event } => {
                if let ProviderEvent::Opened { key_index, .. } = event {
                    self.next_key_index = self.next_key_index.max(key_index + 1);
                }
                self.refresh(channel);
            }
            Entry::Usage { station, usage } => {
                let account = self.accounts.entry(*station).or_default();
                account.usage = account.usage.max(*usage);
            }
            Entry::Block { .. } | Entry::BlockGone { .. } => {}
        }
        Ok(())
    }

    /// What a restart has to do again: grants, and claims that are not in a block.
    pub fn resume(&mut self) -> Out {
        let mut out = Out::default();
        let stations: Vec<_> = self.accounts.keys().copied().collect();
        for station in stations {
            self.grant(station, &mut out);
        }
        for (_, channel) in self.book.iter().filter(|(_, channel)| channel.spent().is_none()) {
            if let Some(claim) = channel.claim() {
                out.act(Action::Broadcast(claim.tx.clone()));
            }
        }
        self.claim_due(&mut out);
        out
    }

    /// Takes one input; adds to the batch what has to be stored and done.
    pub fn handle(&mut self, input: Input, out: &mut Out) {
        match input {
            Input::Offer(offer) => self.take_offer(offer),
            Input::Open { request, station, open, provider_key, now } => {
                let answer = self.open(station, &open, provider_key, now, out);
                out.act(Action::Reply(request, answer));
            }
            Input::Pay { request, channel, payment } => {
                let answer = self.pay(&channel, &payment, out);
                out.act(Action::Reply(request, answer));
            }
            Input::Close { request, channel, close } => {
                let answer = self.close(&channel, &close, out);
                out.act(Action::Reply(request, answer));
                self.claim_due(out);
            }
            Input::BlockConnected { height, block } => {
                self.book.connect(height, &block, out);
                self.claim_due(out);
            }
            Input::BlockDisconnected { height } => self.book.disconnect(height, out),
            Input::Chain { synced } => self.synced = synced,
            Input::Usage(readings) => self.take_usage(readings),
            Input::Checkpoint => self.checkpoint(out),
            Input::GrantFailed(station) => {
                self.ungranted.insert(station);
            }
            Input::Claimed { channels, tx, fee, fee_rate } => {
                self.claimed(channels, tx, fee, fee_rate, out);
            }
        }
    }

    fn take_offer(&mut self, offer: SignedOffer) {
        let issued_at = offer.offer.issued_at;
        self.offers.retain(|_, known| known.offer.valid_until >= issued_at);
        self.offers.insert(offer.offer.id(), offer);
    }

    fn open(
        &mut self,
        station: Station,
        open: &OpenRequest,
        provider_key: PublicKey,
        now: u64,
        out: &mut Out,
    ) -> Result<Answer, Refusal> {
        if !self.synced {
            return Err(Refusal::ChainLost);
        }
        let offer = self.offers.get(&open.offer).ok_or(Refusal::UnknownOffer)?;
        if now > offer.offer.valid_until {
            return Err(Refusal::UnknownOffer);
        }
        let terms = offer.offer.terms;
        if open.capacity < terms.capacity_min || open.capacity > terms.capacity_max {
            return Err(Refusal::Capacity { min: terms.capacity_min, max: terms.capacity_max });
        }
        let tip = self.book.tip();
        let shortest = tip.saturating_add(terms.lifetime_min_blocks);
        let longest = tip.saturating_add(terms.lifetime_max_blocks);
        if !(shortest..=longest).contains(&open.expiry_height) {
            return Err(Refusal::Expiry { min: shortest, max: longest });
        }
        let params = ChannelParams {
            network: self.network,
            offer: open.offer,
            subscriber: open.subscriber,
            provider: provider_key,
            expiry_height: open.expiry_height,
            capacity: open.capacity,
            remainder_script: open.remainder_script.clone(),
            schedule: offer.offer.schedule.clone(),
            confirmations: terms.confirmations,
            tick_max: terms.tick_max,
        };
        params.validate().map_err(Refusal::Params)?;
        self.check_caps(station)?;
        let channel = params.id();
        if self.book.get(&channel).is_some() {
            return Err(Refusal::Exists(channel));
        }
        let key_index = self.next_key_index;
        let params = Box::new(params);
        let event = ProviderEvent::Opened { params, key_index, station, height: tip };
        self.next_key_index += 1;
        self.record(channel, event, out);
        self.channel(&channel).map(|report| Answer::Channel(Box::new(report)))
    }

    fn check_caps(&self, station: Station) -> Result<(), Refusal> {
        let own = self.by_station.get(&station);
        let own = || own.into_iter().flatten().filter_map(|id| self.book.get(id));
        let unfunded = own().filter(|channel| channel.speculative()).count();
        let live = own().filter(|channel| !channel.finished()).count();
        let all = self.book.iter().filter(|(_, channel)| channel.speculative()).count();
        if unfunded >= UNFUNDED_PER_STATION_MAX || all >= UNFUNDED_MAX {
            return Err(Refusal::TooManyUnfunded);
        }
        if live >= CHANNELS_PER_STATION_MAX {
            return Err(Refusal::TooManyChannels);
        }
        Ok(())
    }

    fn pay(
        &mut self,
        id: &ChannelId,
        payment: &PaymentRequest,
        out: &mut Out,
    ) -> Result<Answer, Refusal> {
        let channel = self.book.get(id).ok_or(Refusal::UnknownChannel)?;
        let station = channel.station();
        let judged = channel.pay(&self.secp, payment.paid, &payment.signature, self.book.tip());
        if let Some(event) = judged.map_err(|error| self.refused_payment(id, error))? {
            self.record(*id, event, out);
            self.grant(station, out);
        }
        let paid = self.book.get(id).map_or(Amount::ZERO, ProviderChannel::paid);
        let account = self.account(station);
        Ok(Answer::Payment(Box::new(PaymentReply { paid, account })))
    }

    fn refused_payment(&self, id: &ChannelId, error: PaymentError) -> Refusal {
        let best = self.book.get(id).map_or(Amount::ZERO, ProviderChannel::paid);
        Refusal::Payment { error, best }
    }

    fn close(
        &mut self,
        id: &ChannelId,
        close: &CloseRequest,
        out: &mut Out,
    ) -> Result<Answer, Refusal> {
        let channel = self.book.get(id).ok_or(Refusal::UnknownChannel)?;
        let event = channel
            .close(&self.secp, &close.signature)
            .map_err(|error| self.refused_payment(id, error))?;
        if let Some(event) = event {
            self.record(*id, event, out);
        }
        self.channel(id).map(|report| Answer::Channel(Box::new(report)))
    }

    fn take_usage(&mut self, readings: Vec<(Station, Usage)>) {
        for (station, usage) in readings {
            let account = self.accounts.entry(station).or_default();
            let newest = account.usage.max(usage);
            if newest != account.usage {
                account.usage = newest;
                self.unwritten.insert(station);
            }
        }
    }

    fn checkpoint(&mut self, out: &mut Out) {
        for station in std::mem::take(&mut self.unwritten) {
            let usage = self.accounts.get(&station).map(|account| account.usage);
            out.record(Entry::Usage { station, usage: usage.unwrap_or_default() });
        }
        for station in std::mem::take(&mut self.ungranted) {
            self.grant(station, out);
        }
    }

    fn claimed(
        &mut self,
        channels: Vec<ChannelId>,
        tx: Transaction,
        fee: Amount,
        fee_rate: FeeRate,
        out: &mut Out,
    ) {
        let claim = ClaimRecord {
            tx: tx.clone(),
            fee_rate_sat_per_kwu: fee_rate.to_sat_per_kwu(),
            fee,
            height: self.book.tip(),
        };
        // Blocks may have come while the fee was asked for: what they settled is not claimed again.
        let tip = self.book.tip();
        let due = |id: &ChannelId| self.book.get(id).and_then(|channel| channel.claim_due(tip));
        if !channels.iter().all(|id| due(id).is_some()) {
            return;
        }
        for channel in channels {
            self.record(channel, ProviderEvent::ClaimSigned(claim.clone()), out);
        }
        out.act(Action::Broadcast(tx));
    }

    fn claim_due(&self, out: &mut Out) {
        let tip = self.book.tip();
        let due: Vec<_> = self
            .book
            .iter()
            .filter_map(|(id, channel)| {
                let rate =
                    |claim: &ClaimRecord| FeeRate::from_sat_per_kwu(claim.fee_rate_sat_per_kwu);
                Some(DueClaim {
                    channel: *id,
                    input: channel.claim_due(tip)?,
                    key_index: channel.key_index(),
                    replaces: channel.claim().map(rate),
                })
            })
            .collect();
        for batch in due.chunks(CLAIM_BATCH_MAX) {
            out.act(Action::Claim(batch.to_vec()));
        }
    }

    fn grant(&self, station: Station, out: &mut Out) {
        let Account { bought, usage } = self.accounts.get(&station).copied().unwrap_or_default();
        if bought > Octets(0) {
            out.act(Action::Grant { station, bought, usage });
        }
    }

    fn record(&mut self, channel: ChannelId, event: ProviderEvent, out: &mut Out) {
        self.book.record(channel, event, out);
        self.refresh(&channel);
    }

    fn refresh(&mut self, id: &ChannelId) {
        let Some(channel) = self.book.get(id) else { return };
        let station = channel.station();
        let channels = self.by_station.entry(station).or_default();
        channels.insert(*id);
        let bought = channels
            .iter()
            .filter_map(|id| self.book.get(id))
            .fold(Octets(0), |sum, channel| sum.saturating_add(channel.bought()));
        self.accounts.entry(station).or_default().bought = bought;
    }

    /// The box has other addresses now.
    pub fn set_edge_addresses(&mut self, edge_addresses: Vec<IpAddr>) {
        self.edge_addresses = edge_addresses;
    }

    /// Index of the wallet key that the next channel uses.
    pub fn next_key_index(&self) -> u32 {
        self.next_key_index
    }

    /// The newest offer.
    pub fn offer(&self) -> Option<&SignedOffer> {
        self.offers.values().max_by_key(|offer| offer.offer.issued_at)
    }

    /// The channels and the chain as this side knows it.
    pub fn book(&self) -> &Book<ProviderChannel> {
        &self.book
    }

    /// Whether the chain source answers and is caught up.
    pub fn synced(&self) -> bool {
        self.synced
    }
}
