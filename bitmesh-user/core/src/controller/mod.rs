//! The provider's rules: who may open a channel, what a payment grants, when to claim.
//!
//! It takes requests, blocks and usage with the time they came at, and yields a batch: entries for
//! the store, and actions that only the store's proof of commit lets out. It never grants before
//! the payment is durable, and after a failed commit it is thrown away and replayed, never reused.

mod action;
mod claim;
mod close;
mod crowd;
mod fleet;
mod funding;
mod input;
mod late;
mod open;
mod pay;
mod report;
mod stations;
#[cfg(test)]
mod tests;
mod totals;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use bitcoin::{
    Amount, Network, Script, ScriptBuf, Txid,
    secp256k1::{Secp256k1, VerifyOnly},
};

pub use action::{Action, Answer};
pub use claim::{CLAIM_BATCH_MAX, PlannedClaim};
pub use close::{CloseNeeds, CloseOwn};
use crowd::Crowd;
pub use crowd::{UNFUNDED_MAX, UNFUNDED_PER_STATION_MAX};
pub use fleet::{Missing, Place, STAY_MIN};
pub use funding::{FUNDINGS_REFUSED_MAX, PRESENTED_AT_ONCE_MAX, Taken, UNCONFIRMED_CHANNELS_MAX};
pub use input::{Input, RequestId};
pub use report::Refusal;
pub use stations::StationsAsk;
pub use totals::Totals;

use crate::{
    account::{Accounts, Ahead},
    channel::{
        Batch, Book, ChannelId, Entry, FeeEstimates, InvalidEvent, ProviderChannel, ProviderEvent,
        Wait,
    },
    dense::Pack as _,
    ledger::Usage,
    offer::{OfferId, SignedOffer},
    station::Station,
    units::Octets,
};

/// Channels that one station may have in all that are not closed.
pub const CHANNELS_PER_STATION_MAX: usize = 64;

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
    /// Channels that are not over.
    crowd: Crowd,
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
            crowd: Crowd::default(),
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
        self.pack();
        let accounts: Vec<_> = self.accounts.ids().collect();
        for account in accounts {
            self.share(account, &mut out);
        }
        for (_, channel) in self.book.waiting(Wait::Settlement, Wait::Settlement) {
            if let Some(claim) = channel.claim() {
                out.act(Action::Broadcast(claim.tx.clone()));
            }
        }
        self.closes_due(&mut out);
        // A ledger is read before the chain: while it was, no funding had a confirmation.
        self.forget_sure();
        out
    }

    /// Takes as little memory as what is known can take, for the price of making it anew.
    fn pack(&mut self) {
        let (book, accounts) = (self.book.take_apart(), self.accounts.take_apart());
        let crowd = self.crowd.take_apart();
        self.book.put_together(book);
        self.accounts.put_together(accounts);
        self.crowd.put_together(crowd);
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
                self.crowd.opened(*station);
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
        let Some(channel) = self.book.get(id) else { return Ok(()) };
        self.crowd.set_unfunded(channel.station(), *id, channel.speculative());
        if channel.at_risk(self.book.tip()) > Amount::ZERO {
            self.unsure.insert(*id);
        }
        self.accounts.set_bought(*id, channel.bought());
        Ok(())
    }

    /// A channel is over: it counts no more, and is forgotten when nothing ever came of it. Who opens
    /// channels without funding them takes no memory for long.
    fn let_go(&mut self, id: &ChannelId) {
        let Some(channel) = self.book.get(id) else { return };
        let (station, forgettable) = (channel.station(), channel.forgettable());
        self.crowd.over(station, *id);
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
