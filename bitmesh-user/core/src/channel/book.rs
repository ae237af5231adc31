//! The channels of one end, followed through the chain together; the same for both roles.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque, btree_map},
    mem,
    sync::Arc,
};

use bitcoin::{BlockHash, OutPoint, ScriptBuf, Transaction};

use super::{
    ChannelId, ChannelParams, Compact, Funding, InvalidEvent, Wait, Waits, waiting::Waiting,
};
use crate::{dense::Pack, fleet::FleetEntry, ledger::Usage, pricing::Schedules, station::Station};

/// Blocks that are remembered so that a reorganisation is seen after a restart, too.
pub const TIPS_KEPT: u32 = 100;

/// What both roles' channels have in common.
pub trait Machine: Sized {
    /// What its journal holds.
    type Event: Compact;

    /// Starts from the first event.
    fn open(event: &Self::Event) -> Result<Self, InvalidEvent>;
    /// Follows an event.
    fn apply(&mut self, event: &Self::Event) -> Result<(), InvalidEvent>;
    /// The terms.
    fn params(&self) -> &ChannelParams;
    /// The script that the funding pays.
    fn funding_script(&self) -> ScriptBuf;
    /// The funding, once it is in a block.
    fn funding(&self) -> Option<Funding>;
    /// What an output of the right script and value in a block means.
    fn funding_seen(&self, outpoint: OutPoint, height: u32) -> Option<Self::Event>;
    /// What a transaction in a block that spends the funding means.
    fn spend_seen(&self, tx: &Transaction, height: u32) -> Option<Self::Event>;
    /// What it means that a block left the chain.
    fn block_gone(&self, height: u32) -> Option<Self::Event>;
    /// The end, when the tip has come far enough.
    fn finish(&self, tip: u32) -> Option<Self::Event>;
    /// What it waits for, as it stands.
    fn waits(&self) -> Waits;
    /// Makes its terms anew, and shares prices with others that have the same. What it had before is
    /// to be kept until all have: the next would be put where it was.
    fn pack(&mut self, schedules: &mut Schedules) -> Arc<ChannelParams>;
}

macro_rules! machine {
    ($machine:ty, $event:ty) => {
        impl $crate::channel::Machine for $machine {
            type Event = $event;
            fn open(event: &$event) -> Result<Self, InvalidEvent> {
                Self::open(event)
            }
            fn apply(&mut self, event: &$event) -> Result<(), InvalidEvent> {
                self.apply(event)
            }
            fn params(&self) -> &ChannelParams {
                self.params()
            }
            fn funding_script(&self) -> ScriptBuf {
                self.funding_script()
            }
            fn funding(&self) -> Option<Funding> {
                self.funding()
            }
            fn funding_seen(&self, outpoint: OutPoint, height: u32) -> Option<$event> {
                self.funding_seen(outpoint, height)
            }
            fn spend_seen(&self, tx: &Transaction, height: u32) -> Option<$event> {
                self.spend_seen(tx, height)
            }
            fn block_gone(&self, height: u32) -> Option<$event> {
                self.block_gone(height)
            }
            fn finish(&self, tip: u32) -> Option<$event> {
                self.finish(tip)
            }
            fn waits(&self) -> $crate::channel::Waits {
                self.waits()
            }
            fn pack(
                &mut self,
                schedules: &mut $crate::pricing::Schedules,
            ) -> std::sync::Arc<ChannelParams> {
                self.course.pack(schedules)
            }
        }
    };
}
pub(super) use machine;

/// One thing to be made durable.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry<E> {
    /// Append to a channel's journal.
    Channel {
        /// Whose.
        channel: ChannelId,
        /// What.
        event: E,
    },
    /// The chain has this block at this height; nothing is known above it.
    Block {
        /// Its height.
        height: u32,
        /// Its hash.
        hash: BlockHash,
    },
    /// The chain no longer has a block at this height or above.
    BlockGone {
        /// Its height.
        height: u32,
    },
    /// The newest usage of a station; replaces the one before.
    Usage {
        /// Whose.
        station: Station,
        /// Cumulative.
        usage: Usage,
    },
    /// Who belongs to whom, and which edge has it. Only a fleet's store keeps it.
    Fleet(FleetEntry),
}

/// Proof that entries are on disk. Only the store makes one, after its commit has returned.
#[derive(Debug)]
pub struct Durable(());

impl Durable {
    /// To be called by the store alone, once every entry of a batch has been synced.
    pub fn committed() -> Self {
        Self(())
    }
}

/// What came of some inputs: entries to make durable, then actions to take.
#[derive(Debug)]
#[must_use = "what is not committed is lost on restart"]
pub struct Batch<E, A> {
    entries: Vec<Entry<E>>,
    actions: Vec<A>,
}

impl<E, A> Default for Batch<E, A> {
    fn default() -> Self {
        Self { entries: Vec::new(), actions: Vec::new() }
    }
}

impl<E, A> Batch<E, A> {
    /// What the store has to write, in order, all or nothing.
    pub fn entries(&self) -> &[Entry<E>] {
        &self.entries
    }

    /// The actions, once their causes are durable.
    pub fn release(self, _proof: &Durable) -> Vec<A> {
        self.actions
    }

    pub(crate) fn record(&mut self, entry: Entry<E>) {
        self.entries.push(entry);
    }

    pub(crate) fn act(&mut self, action: A) {
        self.actions.push(action);
    }
}

/// The part of an outpoint that tells most of them apart.
type Nickname = u64;

fn nickname(outpoint: &OutPoint) -> Nickname {
    let txid: &[u8; 32] = outpoint.txid.as_ref();
    let first = txid.first_chunk().map_or(0, |octets| u64::from_le_bytes(*octets));
    first ^ u64::from(outpoint.vout)
}

/// All channels of one end, with the scripts and outpoints to watch for.
#[derive(Debug)]
pub struct Book<M> {
    /// Behind pointers: nodes of a tree are not full.
    channels: BTreeMap<ChannelId, Box<M>>,
    /// Channels by their fundings.
    funded: BTreeSet<(Nickname, ChannelId)>,
    waiting: Waiting,
    script_changes: u64,
    tips: VecDeque<(u32, BlockHash)>,
}

impl<M> Default for Book<M> {
    fn default() -> Self {
        Self {
            channels: BTreeMap::new(),
            funded: BTreeSet::new(),
            waiting: Waiting::default(),
            script_changes: 0,
            tips: VecDeque::new(),
        }
    }
}

impl<M: Machine> Book<M> {
    /// Follows an entry of the journal: one just decided, or one read back.
    pub fn apply(&mut self, entry: &Entry<M::Event>) -> Result<(), InvalidEvent> {
        match entry {
            Entry::Channel { channel, event } => self.apply_event(*channel, event)?,
            Entry::Block { height, hash } => {
                self.tips.push_back((*height, *hash));
                if self.tips.len() > TIPS_KEPT as usize {
                    self.tips.pop_front();
                }
            }
            Entry::BlockGone { height } => self.tips.retain(|(at, _)| at < height),
            Entry::Usage { .. } | Entry::Fleet(_) => {}
        }
        Ok(())
    }

    fn apply_event(&mut self, id: ChannelId, event: &M::Event) -> Result<(), InvalidEvent> {
        let mut before = (None, Waits::default());
        let channel = match self.channels.entry(id) {
            btree_map::Entry::Occupied(channel) => {
                let channel = channel.into_mut();
                before = (channel.funding(), channel.waits());
                channel.apply(event)?;
                channel
            }
            btree_map::Entry::Vacant(place) => {
                let channel = M::open(event)?;
                if ChannelId::of_script(&channel.funding_script()) != id {
                    return Err(InvalidEvent("a channel under another's name"));
                }
                self.script_changes += 1;
                place.insert(Box::new(channel))
            }
        };
        let after = (channel.funding(), channel.waits());
        if before.0 != after.0 {
            before.0.map(|funding| self.funded.remove(&(nickname(&funding.outpoint), id)));
            after.0.map(|funding| self.funded.insert((nickname(&funding.outpoint), id)));
        }
        self.waiting.change(id, &before.1, &after.1);
        Ok(())
    }

    /// Lets a channel go: one that nothing came of, or one that another edge has from now on.
    pub(crate) fn forget(&mut self, id: &ChannelId) {
        if let Some(channel) = self.channels.remove(id) {
            channel
                .funding()
                .map(|funding| self.funded.remove(&(nickname(&funding.outpoint), *id)));
            self.waiting.change(*id, &channel.waits(), &Waits::default());
            self.script_changes += 1;
        }
    }

    /// Takes in the channels of another book, which has seen the same blocks.
    pub(crate) fn absorb(&mut self, other: Self) {
        self.channels.extend(other.channels);
        self.waiting.absorb(other.waiting);
        self.funded.extend(other.funded);
        self.script_changes += 1;
    }

    /// Decides an event: applies it and puts it into the batch.
    ///
    /// # Panics
    /// When the event contradicts the state it was decided from.
    pub(crate) fn record<A>(
        &mut self,
        channel: ChannelId,
        event: M::Event,
        batch: &mut Batch<M::Event, A>,
    ) {
        self.record_entry(Entry::Channel { channel, event }, batch);
    }

    fn record_entry<A>(&mut self, entry: Entry<M::Event>, batch: &mut Batch<M::Event, A>) {
        self.apply(&entry).expect("an event follows from the state that decided it");
        batch.record(entry);
    }

    /// Follows a new block on the tip. Of one that can't concern [`Self::scripts`] there need not be
    /// any transactions.
    pub(crate) fn connect<A>(
        &mut self,
        height: u32,
        hash: BlockHash,
        transactions: &[Transaction],
        batch: &mut Batch<M::Event, A>,
    ) {
        for tx in transactions {
            self.connect_tx(height, tx, batch);
        }
        let ending = self.waiting(Wait::End, Wait::End);
        let ends: Vec<_> =
            ending.filter_map(|(id, channel)| Some((id, channel.finish(height)?))).collect();
        for (id, event) in ends {
            self.record(id, event, batch);
        }
        self.record_entry(Entry::Block { height, hash }, batch);
    }

    fn connect_tx<A>(&mut self, height: u32, tx: &Transaction, batch: &mut Batch<M::Event, A>) {
        for input in &tx.input {
            let funded = self.funded_by(&input.previous_output);
            let event =
                funded.and_then(|(id, channel)| Some((id, channel.spend_seen(tx, height)?)));
            if let Some((id, event)) = event {
                self.record(id, event, batch);
            }
        }
        for (vout, output) in (0u32..).zip(&tx.output) {
            if !output.script_pubkey.is_p2wsh() {
                continue;
            }
            // A channel's name is a hash of its script.
            let id = ChannelId::of_script(&output.script_pubkey);
            let outpoint = OutPoint::new(tx.compute_txid(), vout);
            let event = self
                .channels
                .get(&id)
                .filter(|channel| channel.params().capacity == output.value)
                .and_then(|channel| channel.funding_seen(outpoint, height));
            if let Some(event) = event {
                self.record(id, event, batch);
            }
        }
    }

    /// Follows the tip's leaving the chain.
    pub(crate) fn disconnect<A>(&mut self, height: u32, batch: &mut Batch<M::Event, A>) {
        let undone: Vec<_> = self
            .channels
            .iter()
            .filter_map(|(id, channel)| Some((*id, channel.block_gone(height)?)))
            .collect();
        for (id, event) in undone {
            self.record(id, event, batch);
        }
        self.record_entry(Entry::BlockGone { height }, batch);
    }

    /// Height of the newest block; 0 before the first.
    pub fn tip(&self) -> u32 {
        self.tips.back().map_or(0, |(height, _)| *height)
    }

    /// The newest blocks, oldest first.
    pub fn tips(&self) -> impl ExactSizeIterator<Item = (u32, BlockHash)> + '_ {
        self.tips.iter().copied()
    }

    /// The script of every channel's funding, which is all that a block can concern a channel by:
    /// of what pays to it, and of what spends from it.
    pub fn scripts(&self) -> impl ExactSizeIterator<Item = ScriptBuf> {
        self.channels.values().map(|channel| channel.funding_script())
    }

    /// Another number whenever [`Self::scripts`] are others.
    pub fn script_changes(&self) -> u64 {
        self.script_changes
    }

    /// One channel.
    pub fn get(&self, id: &ChannelId) -> Option<&M> {
        self.channels.get(id).map(Box::as_ref)
    }

    /// The channel that an outpoint funds.
    pub(crate) fn at(&self, outpoint: &OutPoint) -> Option<&M> {
        self.funded_by(outpoint).map(|(_, channel)| channel)
    }

    fn funded_by(&self, outpoint: &OutPoint) -> Option<(ChannelId, &M)> {
        let name = nickname(outpoint);
        let named = self.funded.range((name, ChannelId::FIRST)..);
        let named = named.take_while(|(other, _)| *other == name);
        let mut channels = named.filter_map(|(_, id)| Some((*id, self.get(id)?)));
        channels.find(|(_, channel)| channel.funding().is_some_and(|it| it.outpoint == *outpoint))
    }

    /// Channels that wait for something between two waits, both included, by that and by id. One that
    /// waits for several things comes several times.
    pub(crate) fn waiting(&self, first: Wait, last: Wait) -> impl Iterator<Item = (ChannelId, &M)> {
        let waiting = self.waiting.between(first, last);
        waiting.filter_map(|id| Some((id, self.get(&id)?)))
    }

    /// Who waits for what is what channels say.
    #[cfg(test)]
    pub(crate) fn check_waiting(&self) {
        let mut waiting = Waiting::default();
        for (id, channel) in self.iter() {
            waiting.change(*id, &Waits::default(), &channel.waits());
        }
        assert_eq!(self.waiting, waiting);
    }

    /// Every channel, by id.
    pub fn iter(&self) -> impl Iterator<Item = (&ChannelId, &M)> {
        self.channels.iter().map(|(id, channel)| (id, channel.as_ref()))
    }
}

/// The large trees of it.
pub(crate) struct Apart<M> {
    channels: Vec<(ChannelId, M)>,
    funded: Vec<(Nickname, ChannelId)>,
    waiting: Vec<(Wait, ChannelId)>,
}

impl<M: Machine> Pack for Book<M> {
    type Apart = Apart<M>;

    fn take_apart(&mut self) -> Self::Apart {
        let channels = mem::take(&mut self.channels).into_iter();
        Apart {
            channels: channels.map(|(id, channel)| (id, *channel)).collect(),
            funded: self.funded.take_apart(),
            waiting: self.waiting.take_apart(),
        }
    }

    fn put_together(&mut self, apart: Self::Apart) {
        let Apart { channels, funded, waiting } = apart;
        let (mut schedules, mut before) =
            (Schedules::default(), Vec::with_capacity(channels.len()));
        let channels = channels.into_iter().map(|(id, mut channel)| {
            before.push(channel.pack(&mut schedules));
            (id, Box::new(channel))
        });
        self.channels = channels.collect();
        drop(before);
        self.funded.put_together(funded);
        self.waiting.put_together(waiting);
    }
}
