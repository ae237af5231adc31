//! The provider's rules: who may open a channel, what a payment grants, when to claim.
//!
//! It takes requests, blocks and usage with the time they came at, and yields a batch: entries for
//! the store, and actions that only the store's proof of commit lets out. It never grants before
//! the payment is durable, and after a failed commit it is thrown away and replayed, never reused.

mod claim;
mod close;
mod crowd;
mod fleet;
mod funding;
mod late;
mod report;
mod stations;
#[cfg(test)]
mod tests;
mod totals;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use bitcoin::{
    Amount, Block, BlockHash, FeeRate, Network, Script, ScriptBuf, Transaction, Txid,
    secp256k1::{PublicKey, Secp256k1, VerifyOnly},
};

pub use claim::{CLAIM_BATCH_MAX, PlannedClaim};
pub use close::{CloseNeeds, CloseOwn};
pub use crowd::{UNFUNDED_MAX, UNFUNDED_PER_STATION_MAX};
pub use fleet::{Missing, Place, STAY_MIN};
pub use funding::{FUNDINGS_REFUSED_MAX, PRESENTED_AT_ONCE_MAX, Taken, UNCONFIRMED_CHANNELS_MAX};
pub use report::Refusal;
pub use stations::StationsAsk;
pub use totals::Totals;

use crate::{
    account::{AccountId, Accounts, Ahead},
    channel::{
        Batch, Book, ChannelId, ChannelParams, Entry, FeeEstimates, InvalidEvent, PaymentCheck,
        PaymentError, ProviderChannel, ProviderEvent, VerifiedPayment, Versioned, check_economic,
    },
    fleet::{EdgeNumber, Late},
    ledger::Usage,
    offer::{OfferId, SignedOffer},
    station::Station,
    units::Octets,
    wire::{AccountReport, ChannelReport, CloseRequest, OpenRequest, PaymentReply, PaymentRequest},
};

/// Channels that one station may have in all that are not closed.
pub const CHANNELS_PER_STATION_MAX: usize = 64;

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

type Out = Batch<ProviderEvent, Action>;

/// The state of a provider.
#[derive(Debug)]
pub struct Controller {
    secp: Secp256k1<VerifyOnly>,
    network: Network,
    edge_addresses: Vec<IpAddr>,
    payout: ScriptBuf,
    book: Book<ProviderChannel>,
    accounts: Accounts,
    /// Channels that are not over, by who opened them.
    by_station: BTreeSet<(Station, ChannelId)>,
    /// Channels that wait for their funding.
    unfunded: BTreeSet<ChannelId>,
    /// Channels that may have credit which no confirmation backs, and others.
    unsure: BTreeSet<ChannelId>,
    unwritten: BTreeSet<Station>,
    ungranted: BTreeSet<Station>,
    /// Stations on their way to another account, once what they hold is reclaimed.
    moves: BTreeMap<Station, StationsAsk>,
    offers: BTreeMap<OfferId, SignedOffer>,
    synced: bool,
    fees: Option<FeeEstimates>,
    /// Claims that the network did not take for their fee.
    refused: BTreeSet<Txid>,
    /// Channels whose funding is on its way to the network.
    presenting: BTreeSet<ChannelId>,
    /// How many fundings of a channel the network refused since the last block.
    fundings_refused: BTreeMap<ChannelId, usize>,
    next_key_index: u32,
    /// What an edge of a fleet keeps beside that.
    fleet: Option<fleet::Fleet>,
}

impl Controller {
    /// An empty provider on `network`, whose box has `edge_addresses`.
    pub fn new(network: Network, edge_addresses: Vec<IpAddr>) -> Self {
        Self {
            secp: Secp256k1::verification_only(),
            network,
            edge_addresses,
            payout: ScriptBuf::new(),
            book: Book::default(),
            accounts: Accounts::default(),
            by_station: BTreeSet::new(),
            unfunded: BTreeSet::new(),
            unsure: BTreeSet::new(),
            unwritten: BTreeSet::new(),
            ungranted: BTreeSet::new(),
            moves: BTreeMap::new(),
            offers: BTreeMap::new(),
            synced: false,
            fees: None,
            refused: BTreeSet::new(),
            presenting: BTreeSet::new(),
            fundings_refused: BTreeMap::new(),
            next_key_index: 0,
            fleet: None,
        }
    }

    /// Follows an entry read back from the store, before anything else is put in.
    pub fn replay(&mut self, entry: &Entry<ProviderEvent>) -> Result<(), InvalidEvent> {
        self.book.apply(entry)?;
        match entry {
            Entry::Channel { channel, event } => {
                if let ProviderEvent::Opened { key_index, .. } = event {
                    self.key_used(*key_index);
                }
                self.follow(channel, event)?;
                self.forget_untold();
            }
            Entry::Usage { station, usage } => {
                self.accounts.read(*station, *usage);
            }
            Entry::Block { .. } | Entry::BlockGone { .. } | Entry::Fleet(_) => {}
        }
        Ok(())
    }

    /// What a restart has to do again: grants, and claims that are not in a block. It goes on
    /// watching where it was: claims are replaced as if it had never stopped.
    pub fn resume(&mut self) -> Out {
        let mut out = Out::default();
        let accounts: Vec<_> = self.accounts.ids().collect();
        for account in accounts {
            self.share(account, &mut out);
        }
        for (_, channel) in self.book.iter().filter(|(_, channel)| channel.spent().is_none()) {
            if let Some(claim) = channel.claim() {
                out.act(Action::Broadcast(claim.tx.clone()));
            }
        }
        self.closes_due(&mut out);
        // A ledger is read before the chain: while it was, no funding had a confirmation.
        self.forget_sure();
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
            Input::Pay { request, channel, payment, verified, station } => {
                let answer = self.pay(&channel, &payment, verified.as_ref(), station, out);
                out.act(Action::Reply(request, answer));
            }
            Input::Close { request, channel, close, own } => {
                let before = out.entries().len();
                let answer = self.close(&channel, &close, &own, out);
                out.act(Action::Reply(request, answer));
                if out.entries().len() > before {
                    self.plan_claims(out);
                }
            }
            Input::Fund { request, channel, tx } => self.fund(request, channel, tx, out),
            Input::Presented { request, channel, tx, taken } => {
                self.presented(request, channel, &tx, taken, out);
            }
            Input::OfferedGone { channel, txid, tip } => {
                self.offered_gone(channel, txid, tip, out);
            }
            Input::BlockConnected { height, block } => {
                let from = out.entries().len();
                self.book.connect(height, block.block_hash(), &block.txdata, out);
                self.follow_chain(from, out);
                self.fundings_refused.clear();
                self.forget_sure();
                self.closes_due(out);
                self.broadcast_claims(out);
                self.check_offered(out);
            }
            Input::BlockDisconnected { height } => {
                self.book.disconnect(height, out);
                self.doubt();
            }
            Input::Stations(ask) => self.change_stations(ask, out),
            Input::Chain { synced } => self.synced = synced,
            Input::Usage(readings) => self.take_usage(readings, out),
            Input::Reading(station, usage) => self.take_reading(station, usage, out),
            Input::Reclaimed { stations, readings } => self.reclaimed(stations, readings, out),
            Input::Checkpoint => self.checkpoint(out),
            Input::GrantFailed(station) => {
                self.accounts.set_room(station, false);
                self.ungranted.insert(station);
            }
            Input::Fees(estimates) => self.take_fees(estimates, out),
            Input::Refused { txid } => self.refused(txid),
            Input::Claimed { channels, tx, fee, fee_rate } => {
                self.claimed(channels, tx, fee, fee_rate, out);
            }
            Input::Wanted { account, by, now } => self.wanted(account, by, now, out),
            Input::TakenOff { account, readings } => self.taken_off(account, readings, out),
            Input::Passed { height, block, now } => self.passed(height, &block, now, out),
            Input::UsedLate(late) => self.used_late(late, out),
            Input::Beat { now } => self.look_at_arrivals(now, out),
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
        Versioned { version: open.version }.check().map_err(Refusal::Version)?;
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
            version: open.version,
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
            unconfirmed_max: terms.unconfirmed_of(open.capacity),
        };
        params.validate().map_err(Refusal::Params)?;
        if let Some(fees) = self.fees {
            check_economic(params.capacity, &params.remainder_script, fees.normal)
                .map_err(Refusal::Uneconomic)?;
        }
        self.check_caps(station)?;
        self.check_keys()?;
        let seat = self.accounts.seat(station);
        self.check_stays(seat.map(|seat| seat.account))?;
        self.check_not_arriving(station)?;
        if self.moves.contains_key(&station)
            || seat.is_some_and(|seat| !seat.bound) && self.accounts.held(station) > Octets(0)
        {
            return Err(Refusal::Moving);
        }
        let channel = params.id();
        if self.book.get(&channel).is_some() {
            return Err(Refusal::Exists(channel));
        }
        self.make_place(station, out)?;
        let key_index = self.next_key_index;
        let params = Box::new(params);
        let bound = seat.is_some_and(|seat| seat.bound);
        let used = if bound { Usage::default() } else { self.accounts.usage(station) };
        if !bound {
            self.write_down(station, out);
            self.leave(station, out);
        }
        let event = ProviderEvent::Opened { params, key_index, station, height: tip, used };
        self.next_key_index += 1;
        self.record(channel, event, out);
        self.channel(&channel).map(|report| Answer::Channel(Box::new(report)))
    }

    /// Channels that a station opened and that are not over.
    fn channels_of(&self, station: Station) -> impl Iterator<Item = ChannelId> {
        let from = (station, ChannelId::FIRST);
        let own = self.by_station.range(from..).take_while(move |(of, _)| *of == station);
        own.map(|(_, channel)| *channel)
    }

    fn pay(
        &mut self,
        id: &ChannelId,
        payment: &PaymentRequest,
        verified: Option<&VerifiedPayment>,
        station: Option<Station>,
        out: &mut Out,
    ) -> Result<Answer, Refusal> {
        let channel = self.book.get(id).ok_or(Refusal::UnknownChannel)?;
        let station = station.unwrap_or(channel.station());
        let account = self.accounts.of_channel(id).ok_or(Refusal::UnknownChannel)?;
        self.check_stays(Some(account))?;
        let (paid, signature, tip) = (payment.paid, &payment.signature, self.book.tip());
        let judged = channel.pay(&self.secp, paid, signature, verified, tip);
        if let Some(event) = judged.map_err(|error| self.refused_payment(id, error))? {
            self.check_unconfirmed(id, payment.paid)
                .map_err(|error| self.refused_payment(id, error))?;
            self.record(*id, event, out);
            self.share(account, out);
        }
        let paid = self.book.get(id).map_or(Amount::ZERO, ProviderChannel::paid);
        let account = self.account_of(account, station);
        Ok(Answer::Payment(Box::new(PaymentReply { paid, account })))
    }

    /// What a payment of this sum is to be verified against before it is put in ([`Input::Pay`]), on
    /// any thread; `None` for one that is refused without looking at its signature.
    pub fn payment_check(&self, id: &ChannelId, paid: Amount) -> Option<PaymentCheck> {
        let (channel, tip) = (self.book.get(id)?, self.book.tip());
        channel.judge_sum(paid, tip).ok()?;
        channel.payment_check(tip)
    }

    fn refused_payment(&self, id: &ChannelId, error: PaymentError) -> Refusal {
        let best = self.book.get(id).map_or(Amount::ZERO, ProviderChannel::paid);
        Refusal::Payment { error, best }
    }

    fn record(&mut self, channel: ChannelId, event: ProviderEvent, out: &mut Out) {
        let from = out.entries().len();
        self.book.record(channel, event, out);
        self.follow_new(from, out);
    }

    /// Follows in the accounts what the book recorded, and names the channels that it was about.
    fn follow_new(&mut self, from: usize, out: &mut Out) -> BTreeSet<ChannelId> {
        let mut channels = BTreeSet::new();
        for entry in out.entries().get(from..).unwrap_or_default() {
            if let Entry::Channel { channel, event } = entry {
                self.follow(channel, event).expect("an event follows from what decided it");
                channels.insert(*channel);
            }
        }
        self.tell(out);
        channels
    }

    /// Another funding voids what the last one paid for.
    fn follow_chain(&mut self, from: usize, out: &mut Out) {
        for channel in self.follow_new(from, out) {
            if let Some(account) = self.accounts.of_channel(&channel) {
                self.share(account, out);
            }
        }
    }

    /// Follows an event of a channel, which the book has followed, in the accounts.
    fn follow(&mut self, id: &ChannelId, event: &ProviderEvent) -> Result<(), InvalidEvent> {
        match event {
            ProviderEvent::Opened { station, used, .. } => {
                self.by_station.insert((*station, *id));
                self.accounts.open(*id, *station, *used);
                self.note_opened(*id, *station);
            }
            ProviderEvent::Bound { station, used, .. } => {
                self.accounts.bind(id, *station, *used)?;
                self.note_bound(*station);
            }
            ProviderEvent::Left { station, used } => self.accounts.left(id, *station, *used)?,
            ProviderEvent::Unbound { station, .. } => {
                self.accounts.unbind(id, *station)?;
            }
            ProviderEvent::UsedLate { late, octets } => {
                self.accounts.used_late(id, *late, *octets)?;
            }
            ProviderEvent::Finished => self.let_go(id),
            _ => {}
        }
        if self.book.get(id).is_some_and(ProviderChannel::speculative) {
            self.unfunded.insert(*id);
        } else {
            self.unfunded.remove(id);
        }
        if !self.is_sure(id) {
            self.unsure.insert(*id);
        }
        let bought = self.book.get(id).map_or(Octets(0), ProviderChannel::bought);
        self.accounts.set_bought(*id, bought);
        Ok(())
    }

    /// A channel is over: it counts no more, and is forgotten when nothing ever came of it. Who opens
    /// channels without funding them takes no memory for long.
    fn let_go(&mut self, id: &ChannelId) {
        let Some(channel) = self.book.get(id) else { return };
        let (station, forgettable) = (channel.station(), channel.forgettable());
        self.by_station.remove(&(station, *id));
        if forgettable {
            self.book.forget(id);
            let gone = self.accounts.forget(id);
            self.note_forgotten(*id, gone);
        }
    }

    /// The box has other addresses now.
    pub fn set_edge_addresses(&mut self, edge_addresses: Vec<IpAddr>) {
        self.edge_addresses = edge_addresses;
    }

    /// The wallet wants what is earned at this script from now on.
    pub fn set_payout(&mut self, payout: ScriptBuf) {
        self.payout = payout;
    }

    /// Where what is earned goes.
    pub fn payout(&self) -> &Script {
        &self.payout
    }

    /// What all stations used, in their lives.
    pub fn billed(&self) -> Octets {
        self.accounts.billed()
    }

    /// The same by direction, with what was refused for want of credit.
    pub fn usage(&self) -> Usage {
        self.accounts.total()
    }

    /// What an earlier controller left in the kernel: each station's limit and usage. It is refused
    /// when it is more than what was bought.
    pub fn adopt(&mut self, kernel: &[(Station, Octets, Usage)]) -> Result<(), Ahead> {
        for (station, _, usage) in kernel {
            self.read(*station, *usage);
        }
        self.accounts.adopt(kernel)
    }

    /// The same, after the ledger went back ([`Accounts::adopt_beyond`]). [`Self::resume`] reclaims what
    /// is too much, and the next checkpoint writes down what was used.
    pub fn adopt_beyond(
        &mut self,
        kernel: &[(Station, Octets, Usage)],
    ) -> Vec<(Station, Octets, Octets)> {
        for (station, _, usage) in kernel {
            self.read(*station, *usage);
        }
        self.accounts.adopt_beyond(kernel)
    }

    /// Index of the wallet key that the next channel uses.
    pub fn next_key_index(&self) -> u32 {
        self.next_key_index
    }

    /// Whether nothing here knows of a channel: its journal may be forgotten, too, if its key index
    /// is not needed to know the next.
    pub fn is_forgotten(&self, channel: &ChannelId) -> bool {
        self.arriving() == 0
            && self.book.get(channel).is_none()
            && self.accounts.of_channel(channel).is_none()
            && !self.accounts.is_named_after(channel)
    }

    /// The newest offer.
    pub fn offer(&self) -> Option<&SignedOffer> {
        self.offers.values().max_by_key(|offer| (offer.offer.issued_at, offer.offer.height))
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
