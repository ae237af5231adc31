//! Accounts that move between the edges of a fleet.
//!
//! *Leaving*: no request on the account is taken any more, what the kernel holds is reclaimed, what was
//! used is written down, its stations are taken off the table; then one batch holds the last
//! counters and the hand-over, and the account is gone from memory. So nothing is in force here when
//! another edge first reads the account. *Arriving*: its journal is folded apart from the others'; blocks
//! that are not on this edge's chain are undone for it, and those that it has not seen are followed,
//! until it has seen the same as this edge. Only then it takes its place, and limits are granted.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
    time::Duration,
};

use bitcoin::{Block, BlockHash};

use super::{Action, Controller, Out, Refusal};
use crate::{
    account::AccountId,
    channel::{ChannelId, Entry, InvalidEvent, ProviderEvent},
    fleet::{EdgeNumber, FleetEntry, Member, Taken, Unsettled},
    ledger::Usage,
    station::Station,
};

/// How long an account that has arrived stays at least. An account whose stations are at two edges
/// at once would else fly between them and serve nobody; so each edge serves it in turn, and half of the time
/// none of its stations at the other one gets anything.
pub const STAY_MIN: Duration = Duration::from_secs(2);

/// Blocks that this edge may be behind another: those are undone for an account that comes from there,
/// so that it is served at once. Further behind, it waits until this edge has followed.
const BEHIND_MAX_BLOCKS: u32 = 6;

/// What an edge of a fleet keeps beside what a lone one does.
#[derive(Debug)]
pub(super) struct Fleet {
    edge: EdgeNumber,
    keys: RangeInclusive<u32>,
    /// What the store has yet to be told.
    untold: Vec<FleetEntry>,
    /// Channels that nothing came of. What later ones belong to follows from them, so that their
    /// journals are kept as long as the account is.
    forgotten: BTreeMap<AccountId, BTreeSet<ChannelId>>,
    /// Accounts on their way to other edges.
    leaving: BTreeMap<AccountId, EdgeNumber>,
    /// Accounts on their way here.
    arrivals: Vec<Arrival>,
    /// When accounts came from other edges.
    arrived: BTreeMap<AccountId, Duration>,
    /// What was used late and is not settled yet.
    pub(super) late: Unsettled,
}

/// Accounts on their way here that have seen the same blocks.
#[derive(Debug)]
struct Arrival {
    accounts: BTreeSet<AccountId>,
    /// Their channels, stations and blocks.
    folded: Box<Controller>,
    /// What blocks came to for them. It is written when they take their place, not before: until then the
    /// ledger has them where the other edge left them, with the blocks that they saw there.
    passed: Vec<Entry<ProviderEvent>>,
    /// None of the blocks that they have seen is on this edge's chain.
    lost: bool,
}

/// Where something of an account's is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// At this edge.
    Here,
    /// At this edge, on its way to another.
    Leaving,
    /// On its way here.
    Arriving,
    /// At another edge, or nowhere.
    Elsewhere,
}

/// A block that accounts on their way here have not seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Its height.
    pub height: u32,
    /// Its hash; none, when it is older than what this edge remembers: the chain source's then.
    pub hash: Option<BlockHash>,
}

impl Arrival {
    fn tip(&self) -> Option<(u32, BlockHash)> {
        self.folded.book.tips().last()
    }

    /// Undoes its newest block, unless there is none before it.
    fn undo(&mut self) -> bool {
        let Some((height, _)) = self.tip().filter(|_| self.folded.book.tips().len() > 1) else {
            return false;
        };
        let mut undone = Out::default();
        self.folded.book.disconnect(height, &mut undone);
        self.folded.follow_new(0, &mut undone);
        self.folded.doubt();
        self.note(&undone);
        true
    }

    fn follow(&mut self, height: u32, block: &Block) {
        let mut followed = Out::default();
        self.folded.book.connect(height, block.block_hash(), &block.txdata, &mut followed);
        self.folded.follow_new(0, &mut followed);
        self.note(&followed);
    }

    /// The blocks themselves are this edge's already.
    fn note(&mut self, decided: &Out) {
        let of_blocks =
            |entry: &&Entry<_>| matches!(entry, Entry::Block { .. } | Entry::BlockGone { .. });
        self.passed.extend(decided.entries().iter().filter(|entry| !of_blocks(entry)).cloned());
    }
}

impl Controller {
    /// Makes this the controller of one edge of a fleet, whose next key has at least this index. To
    /// be called before anything else; what is then put in is what this edge has.
    pub fn join(&mut self, edge: EdgeNumber, next_key_index: u32) {
        let keys = edge.keys();
        self.next_key_index = next_key_index.max(*keys.start());
        self.fleet = Some(Fleet {
            edge,
            keys,
            untold: Vec::new(),
            forgotten: BTreeMap::new(),
            leaving: BTreeMap::new(),
            arrivals: Vec::new(),
            arrived: BTreeMap::new(),
            late: Unsettled::default(),
        });
    }

    /// Channels get the keys of this number from now on, which no other edge has.
    pub fn use_keys(&mut self, number: EdgeNumber) {
        if let Some(fleet) = &mut self.fleet {
            fleet.keys = number.keys();
            self.next_key_index = self.next_key_index.max(*fleet.keys.start());
        }
    }

    /// Takes in accounts that another edge gave up. They are granted nothing before they have seen
    /// what this edge has ([`Self::missing`]). Those that are here already are refused.
    pub fn take(&mut self, taken: Taken, now: Duration, out: &mut Out) -> Result<(), InvalidEvent> {
        let Some(fleet) = &self.fleet else { return Err(InvalidEvent("no edge of a fleet")) };
        let edge = fleet.edge;
        let known = |id: &AccountId| self.place(*id) != Place::Elsewhere;
        if taken.accounts.iter().any(known) {
            return Err(InvalidEvent("an account that is here already"));
        }
        if taken.tips.is_empty() {
            return Err(InvalidEvent("an account that has seen no block"));
        }
        let mut folded = Box::new(Self::new(self.network, Vec::new()));
        folded.join(edge, 0);
        for (channel, event) in taken.events {
            folded.replay(&Entry::Channel { channel, event })?;
        }
        for (height, hash) in taken.tips {
            folded.replay(&Entry::Block { height, hash })?;
        }
        for (station, usage) in taken.usage {
            folded.replay(&Entry::Usage { station, usage })?;
        }
        if !folded.accounts.ids().all(|id| taken.accounts.contains(&id)) {
            return Err(InvalidEvent("an account that was not asked for"));
        }
        let arrival = Arrival { accounts: taken.accounts, folded, passed: Vec::new(), lost: false };
        if let Some(fleet) = &mut self.fleet {
            fleet.arrivals.push(arrival);
        }
        self.look_at_arrivals(now, out);
        Ok(())
    }

    /// A block that accounts on their way here wait for, to be given by [`super::Input::Passed`].
    pub fn missing(&self) -> Option<Missing> {
        let arrivals = self.fleet.iter().flat_map(|fleet| &fleet.arrivals);
        let tips = arrivals.filter(|arrival| !arrival.lost).filter_map(Arrival::tip);
        let height = tips.map(|(height, _)| height + 1).min()?;
        (height <= self.book.tip()).then(|| Missing { height, hash: self.hash_at(height) })
    }

    fn hash_at(&self, height: u32) -> Option<BlockHash> {
        let mut tips = self.book.tips();
        tips.find(|(known, _)| *known == height).map(|(_, hash)| hash)
    }

    /// Accounts on their way here.
    pub fn arriving(&self) -> usize {
        let arrivals = self.fleet.iter().flat_map(|fleet| &fleet.arrivals);
        arrivals.map(|arrival| arrival.accounts.len()).sum()
    }

    /// Accounts that saw none of the newest blocks that this edge saw: they can't come.
    pub fn lost(&self) -> usize {
        let arrivals = self.fleet.iter().flat_map(|fleet| &fleet.arrivals);
        arrivals.filter(|arrival| arrival.lost).map(|arrival| arrival.accounts.len()).sum()
    }

    /// Accounts on their way to other edges.
    pub fn leaving(&self) -> usize {
        self.fleet.as_ref().map_or(0, |fleet| fleet.leaving.len())
    }

    /// Where an account is.
    pub fn place(&self, account: AccountId) -> Place {
        let fleet = self.fleet.as_ref();
        if fleet.is_some_and(|fleet| fleet.leaving.contains_key(&account)) {
            Place::Leaving
        } else if self.accounts.has(account) {
            Place::Here
        } else if fleet
            .is_some_and(|fleet| fleet.arrivals.iter().any(|it| it.accounts.contains(&account)))
        {
            Place::Arriving
        } else {
            Place::Elsewhere
        }
    }

    /// Where a channel or a station is, as far as this edge can tell.
    pub fn place_of(&self, member: Member) -> Place {
        let of = |controller: &Self| match member {
            Member::Channel(channel) => controller.accounts.of_channel(&channel),
            Member::Station(station) => controller.accounts.seat(station).map(|seat| seat.account),
        };
        let arrivals = self.fleet.iter().flat_map(|fleet| &fleet.arrivals);
        match of(self) {
            Some(account) => self.place(account),
            None if arrivals.into_iter().any(|it| of(&it.folded).is_some()) => Place::Arriving,
            None => Place::Elsewhere,
        }
    }

    pub(super) fn check_stays(&self, account: Option<AccountId>) -> Result<(), Refusal> {
        let leaving = account.is_some_and(|account| self.place(account) == Place::Leaving);
        if leaving { Err(Refusal::Underway) } else { Ok(()) }
    }

    /// A station that is on its way here with its account can't be given to another one.
    pub(super) fn check_not_arriving(&self, station: Station) -> Result<(), Refusal> {
        let arriving = self.place_of(Member::Station(station)) == Place::Arriving;
        if arriving { Err(Refusal::Underway) } else { Ok(()) }
    }

    /// Whether there is a key for one more channel.
    pub fn has_keys(&self) -> bool {
        self.fleet.as_ref().is_none_or(|fleet| fleet.keys.contains(&self.next_key_index))
    }

    pub(super) fn check_keys(&self) -> Result<(), Refusal> {
        if self.has_keys() { Ok(()) } else { Err(Refusal::OutOfKeys) }
    }

    /// A channel has the key at this index, which need not be one of this edge's.
    pub(super) fn key_used(&mut self, index: u32) {
        if self.fleet.as_ref().is_none_or(|fleet| fleet.keys.contains(&index)) {
            self.next_key_index = self.next_key_index.max(index.saturating_add(1));
        }
    }

    /// Another edge wants an account. It goes once it has stayed for [`STAY_MIN`]: until then the wish
    /// is to be told again and again.
    pub(super) fn wanted(
        &mut self,
        account: AccountId,
        by: EdgeNumber,
        now: Duration,
        out: &mut Out,
    ) {
        let place = self.place(account);
        let Some(fleet) = &mut self.fleet else { return };
        let arrived = fleet.arrived.get(&account);
        if place != Place::Here
            || by == fleet.edge
            || arrived.is_some_and(|at| now.saturating_sub(*at) < STAY_MIN)
        {
            return;
        }
        fleet.leaving.insert(account, by);
        let stations: Vec<_> = self.accounts.stations(account).collect();
        for station in stations {
            self.accounts.retire(station);
        }
        self.stop_moves(account, out);
        self.leave_late(account);
        self.share(account, out);
        self.take_off(account, out);
    }

    /// Stations that were about to change to or from an account that leaves stay where they are.
    fn stop_moves(&mut self, account: AccountId, out: &mut Out) {
        let from = |station| self.accounts.seat(station).map(|seat| seat.account);
        let concerns = |(station, ask): (&Station, &super::StationsAsk)| {
            let to = self.accounts.of_channel(&ask.channel);
            (from(*station) == Some(account) || to == Some(account)).then_some(*station)
        };
        let stopped: Vec<_> = self.moves.iter().filter_map(concerns).collect();
        for station in stopped {
            if from_other(self, station, account) {
                self.accounts.keep(station);
            }
            if let Some(ask) = self.moves.remove(&station) {
                out.act(Action::Reply(ask.request, Err(Refusal::Underway)));
            }
        }
    }

    /// An edge's ledger has what a station used by the time at which it is told of its account: what
    /// another edge that takes over finds there is all that it can know.
    pub(super) fn write_down(&mut self, station: Station, out: &mut Out) {
        if self.fleet.is_some() && self.unwritten.remove(&station) {
            let usage = self.accounts.usage(station);
            out.record(Entry::Usage { station, usage });
        }
    }

    /// Once an account that leaves holds nothing any more, its stations go off the table. The table is
    /// all that remembers what was not written down: that is done first.
    pub(super) fn take_off(&mut self, account: AccountId, out: &mut Out) {
        if self.place(account) != Place::Leaving || !self.accounts.is_idle(account) {
            return;
        }
        let stations: Vec<_> = self.accounts.stations(account).collect();
        for station in &stations {
            self.write_down(*station, out);
        }
        out.act(Action::TakeOff { account, stations });
    }

    /// The last counters are read: the account is the other edge's from this batch on.
    pub(super) fn taken_off(
        &mut self,
        account: AccountId,
        readings: Vec<(Station, Usage)>,
        out: &mut Out,
    ) {
        let Some(fleet) = &mut self.fleet else { return };
        let Some(to) = fleet.leaving.remove(&account) else { return };
        fleet.arrived.remove(&account);
        fleet.forgotten.remove(&account);
        for (station, usage) in readings {
            self.accounts.read(station, usage);
        }
        let (channels, stations) = self.accounts.release(account);
        for (station, usage) in stations {
            self.unwritten.remove(&station);
            self.ungranted.remove(&station);
            out.record(Entry::Usage { station, usage });
        }
        for channel in channels {
            self.let_leave(&channel);
        }
        let tips = self.book.tips().collect();
        out.record(Entry::Fleet(FleetEntry::HandOver { account, to, tips }));
    }

    fn let_leave(&mut self, id: &ChannelId) {
        let Some(channel) = self.book.get(id) else { return };
        if !channel.finished() {
            self.crowd.over(channel.station(), *id);
        }
        self.unsure.remove(id);
        self.fundings_refused.remove(id);
        self.book.forget(id);
    }

    /// A block of this edge's chain reaches accounts on their way here. One that does not follow on
    /// what they have seen shows that they saw another chain.
    pub(super) fn passed(&mut self, height: u32, block: &Block, now: Duration, out: &mut Out) {
        let (hash, known) = (block.block_hash(), self.hash_at(height));
        if known.is_some_and(|known| known != hash) {
            return;
        }
        for arrival in self.fleet.iter_mut().flat_map(|fleet| &mut fleet.arrivals) {
            let Some((at, tip)) = arrival.tip().filter(|(at, _)| at + 1 == height) else {
                continue;
            };
            let follows = block.header.prev_blockhash == tip
                || known.is_some() && self.book.tips().any(|seen| seen == (at, tip));
            if follows {
                arrival.follow(height, block);
            } else {
                arrival.lost = !arrival.undo();
            }
        }
        self.look_at_arrivals(now, out);
    }

    /// Undoes what is not on this edge's chain for accounts on their way here, and lets those take
    /// their place that have seen the same.
    pub(super) fn look_at_arrivals(&mut self, now: Duration, out: &mut Out) {
        let Some(fleet) = &mut self.fleet else { return };
        let own: BTreeMap<_, _> = self.book.tips().collect();
        let Some((oldest, newest)) = own
            .first_key_value()
            .zip(own.last_key_value())
            .map(|(first, last)| (*first.0, *last.0))
        else {
            return;
        };
        let mut waiting = Vec::new();
        let mut ready = Vec::new();
        for mut arrival in std::mem::take(&mut fleet.arrivals) {
            let near = oldest..=newest.saturating_add(BEHIND_MAX_BLOCKS);
            let strays = |tip: Option<(u32, BlockHash)>| {
                tip.is_some_and(|(height, hash)| {
                    near.contains(&height) && own.get(&height) != Some(&hash)
                })
            };
            while strays(arrival.tip()) && !arrival.lost {
                arrival.lost = !arrival.undo();
            }
            let same = arrival
                .tip()
                .is_some_and(|(height, hash)| height == newest && own.get(&height) == Some(&hash));
            if same { ready.push(arrival) } else { waiting.push(arrival) }
        }
        fleet.arrivals = waiting;
        for arrival in ready {
            self.settle_in(arrival, now, out);
        }
    }

    fn settle_in(&mut self, arrival: Arrival, now: Duration, out: &mut Out) {
        for entry in arrival.passed {
            out.record(entry);
        }
        let folded = *arrival.folded;
        self.book.absorb(folded.book);
        self.accounts.absorb(folded.accounts);
        self.crowd.absorb(folded.crowd);
        self.unsure.extend(folded.unsure);
        let mut forgotten = folded.fleet.map(|fleet| fleet.forgotten).unwrap_or_default();
        for account in arrival.accounts {
            if self.accounts.a_channel_of(account).is_none() {
                self.accounts.release(account);
                let channels = forgotten.remove(&account).unwrap_or_default();
                out.record(Entry::Fleet(FleetEntry::AccountGone { account, channels }));
                continue;
            }
            if let Some(fleet) = &mut self.fleet {
                fleet.arrived.insert(account, now);
                fleet.forgotten.extend(forgotten.remove_entry(&account));
            }
            out.record(Entry::Fleet(FleetEntry::CaughtUp { account }));
            self.share(account, out);
        }
        self.closes_due(out);
        self.broadcast_claims(out);
    }
}

/// Whether a station belongs to another account than this one.
fn from_other(controller: &Controller, station: Station, account: AccountId) -> bool {
    controller.accounts.seat(station).is_some_and(|seat| seat.account != account)
}

/// What the store is told of who belongs to whom.
impl Controller {
    /// Whose every channel and every station is that anything is known of: what the store of a fleet
    /// has to be told of a ledger that was a lone edge's.
    pub fn members(&self) -> impl Iterator<Item = (Member, AccountId)> + '_ {
        let of = |id: &ChannelId| self.accounts.of_channel(id).unwrap_or((*id).into());
        let channels = self.book.iter().map(move |(id, _)| (Member::Channel(*id), of(id)));
        let forgotten = self.fleet.iter().flat_map(|fleet| &fleet.forgotten);
        let forgotten = forgotten.flat_map(|(account, channels)| {
            channels.iter().map(|channel| (Member::Channel(*channel), *account))
        });
        let stations = self.accounts.seats();
        let stations = stations.map(|(station, account)| (Member::Station(station), account));
        channels.chain(forgotten).chain(stations)
    }

    fn note(&mut self, entry: FleetEntry) {
        if let Some(fleet) = &mut self.fleet {
            fleet.untold.push(entry);
        }
    }

    pub(super) fn note_opened(&mut self, channel: ChannelId, station: Station) {
        let next = self.next_key_index;
        self.note(FleetEntry::KeyIndex { next });
        if let Some(account) = self.accounts.of_channel(&channel) {
            self.note(FleetEntry::Member { member: Member::Channel(channel), account });
        }
        self.note_bound(station);
    }

    pub(super) fn note_bound(&mut self, station: Station) {
        if let Some(account) = self.accounts.seat(station).map(|seat| seat.account) {
            self.note(FleetEntry::Member { member: Member::Station(station), account });
        }
    }

    /// A channel is forgotten: of which account, and whether that has another one.
    pub(super) fn note_forgotten(&mut self, channel: ChannelId, of: Option<(AccountId, bool)>) {
        let (Some(fleet), Some((account, others))) = (&mut self.fleet, of) else { return };
        fleet.forgotten.entry(account).or_default().insert(channel);
        if !others {
            let channels = fleet.forgotten.remove(&account).unwrap_or_default();
            self.note(FleetEntry::AccountGone { account, channels });
        }
    }

    /// What was read back from the store is known there.
    pub(super) fn forget_untold(&mut self) {
        if let Some(fleet) = &mut self.fleet {
            fleet.untold.clear();
        }
    }

    /// Puts what the store has to be told into the batch.
    pub(super) fn tell(&mut self, out: &mut Out) {
        for entry in self.fleet.iter_mut().flat_map(|fleet| fleet.untold.drain(..)) {
            out.record(Entry::Fleet(entry));
        }
    }
}
