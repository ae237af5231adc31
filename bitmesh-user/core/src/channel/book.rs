//! The channels of one end, followed through the chain together; the same for both roles.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use bitcoin::{BlockHash, OutPoint, ScriptBuf, Transaction};

use super::{ChannelId, ChannelParams, Compact, Funding, InvalidEvent};
use crate::{fleet::FleetEntry, ledger::Usage, station::Station};

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
    fn funding_script(&self) -> &ScriptBuf;
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
    /// Whether blocks alone can bring the end, as it stands.
    fn may_finish(&self) -> bool;
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
            fn funding_script(&self) -> &ScriptBuf {
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
            fn may_finish(&self) -> bool {
                self.may_finish()
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

/// All channels of one end, with the scripts and outpoints to watch for.
#[derive(Debug)]
pub struct Book<M> {
    /// Behind pointers: nodes of a tree are not full.
    channels: BTreeMap<ChannelId, Box<M>>,
    outpoints: HashMap<OutPoint, ChannelId>,
    /// Those that blocks alone can end.
    ending: BTreeSet<ChannelId>,
    script_changes: u64,
    tips: VecDeque<(u32, BlockHash)>,
}

impl<M> Default for Book<M> {
    fn default() -> Self {
        Self {
            channels: BTreeMap::new(),
            outpoints: HashMap::new(),
            ending: BTreeSet::new(),
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
        let before = if let Some(channel) = self.channels.get_mut(&id) {
            let before = channel.funding();
            channel.apply(event)?;
            before
        } else {
            let channel = M::open(event)?;
            if channel.params().id() != id {
                return Err(InvalidEvent("a channel under another's name"));
            }
            self.script_changes += 1;
            self.channels.insert(id, Box::new(channel));
            None
        };
        let channel = self.get(&id);
        if channel.is_some_and(M::may_finish) {
            self.ending.insert(id);
        } else {
            self.ending.remove(&id);
        }
        let after = self.get(&id).and_then(M::funding);
        if before != after {
            before.map(|funding| self.outpoints.remove(&funding.outpoint));
            after.map(|funding| self.outpoints.insert(funding.outpoint, id));
        }
        Ok(())
    }

    /// Lets a channel go: one that nothing came of, or one that another edge has from now on.
    pub(crate) fn forget(&mut self, id: &ChannelId) {
        if let Some(channel) = self.channels.remove(id) {
            channel.funding().map(|funding| self.outpoints.remove(&funding.outpoint));
            self.ending.remove(id);
            self.script_changes += 1;
        }
    }

    /// Takes in the channels of another book, which has seen the same blocks.
    pub(crate) fn absorb(&mut self, other: Self) {
        self.channels.extend(other.channels);
        self.ending.extend(other.ending);
        self.outpoints.extend(other.outpoints);
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
        let ending = self.ending.iter();
        let ends: Vec<_> =
            ending.filter_map(|id| Some((*id, self.channels.get(id)?.finish(height)?))).collect();
        for (id, event) in ends {
            self.record(id, event, batch);
        }
        self.record_entry(Entry::Block { height, hash }, batch);
    }

    fn connect_tx<A>(&mut self, height: u32, tx: &Transaction, batch: &mut Batch<M::Event, A>) {
        for input in &tx.input {
            let Some(id) = self.outpoints.get(&input.previous_output).copied() else { continue };
            let event = self.channels.get(&id).and_then(|channel| channel.spend_seen(tx, height));
            if let Some(event) = event {
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
    pub fn scripts(&self) -> impl ExactSizeIterator<Item = &ScriptBuf> {
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
        self.get(self.outpoints.get(outpoint)?)
    }

    /// Every channel, by id.
    pub fn iter(&self) -> impl Iterator<Item = (&ChannelId, &M)> {
        self.channels.iter().map(|(id, channel)| (id, channel.as_ref()))
    }
}
