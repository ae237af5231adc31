//! What an engine has to do. It moves rows; what they mean, and whether they are whole, is judged
//! above it.

use std::{fmt, future::Future, ops::Range, path::Path, pin::Pin};

use super::{
    Kept, StoreError,
    journal::Digest,
    postgres::{FleetChange, PostgresEngine},
};

/// What an engine does, under way.
pub(super) type Work<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Where the ledger's rows are. Everything is of one edge: what it writes, and what it reads back.
pub(super) trait Engine: Send + fmt::Debug {
    /// What it is and where, for people. No password.
    fn place(&self) -> &str;
    /// The same in full.
    fn kept(&self) -> Kept;
    /// Whether it keeps [`Mark::sum`]. A fleet's database does not: rows move between edges, and its
    /// server guards them.
    fn sums(&self) -> bool {
        true
    }
    /// What only a fleet's can do.
    fn fleet(&mut self) -> Option<&mut PostgresEngine> {
        None
    }
    /// Settings by name.
    fn settings(&mut self) -> Work<'_, Vec<(String, String)>>;
    /// The last commit; all zero before the first.
    fn mark(&mut self) -> Work<'_, Mark>;
    /// Folded journals in some order, those that come after the one of `after`, at most `limit`.
    fn channels(&mut self, after: Option<Digest>, limit: i64) -> Work<'_, Vec<ChannelRow>>;
    /// The folded journals of these channels, where there are any.
    fn folded<'a>(&'a mut self, channels: &'a [Digest]) -> Work<'a, Vec<ChannelRow>>;
    /// The journal, oldest first, of the rows after `after`, at most `limit`.
    fn journal(&mut self, after: i64, limit: i64) -> Work<'_, Vec<JournalRow>>;
    /// Heights and hashes, lowest first.
    fn blocks(&mut self) -> Work<'_, Vec<(i64, Digest)>>;
    /// Usage by station.
    fn usage(&mut self) -> Work<'_, Vec<UsageRow>>;
    /// The wallet's changes by number, oldest first.
    fn wallet(&mut self) -> Work<'_, Vec<(i64, String)>>;
    /// Writes all of it in one transaction, durably, or nothing. [`StoreError::Fenced`] when the
    /// last commit is not the one before [`Write::mark`]. After another error it is not known
    /// whether it happened. The number of the first row that was appended, from which the others
    /// count on; 0 where an engine finds rows by channel and event.
    fn write<'a>(&'a mut self, write: &'a Write) -> Work<'a, i64>;
    /// What the engine's own check of the whole database finds.
    fn integrity(&mut self) -> Work<'_, Vec<String>>;
    /// Writes a copy of the database, as of the last commit, into a file that does not exist yet.
    fn back_up<'a>(&'a mut self, to: &'a Path) -> Work<'a, ()>;
    /// Closes cleanly.
    fn close(self: Box<Self>) -> Work<'static, ()>;
}

/// Which commit was the last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark {
    /// How many there were.
    pub committed: i64,
    /// Of everything that is stored ([`super::journal::Sum`]).
    pub sum: Digest,
}

/// An event of a channel as it is stored.
#[derive(Debug)]
pub(super) struct JournalRow {
    /// Order over all channels.
    pub seq: i64,
    pub channel: Digest,
    /// Which of the channel's events, from 0.
    pub n: i64,
    pub body: String,
    pub digest: Digest,
}

/// A channel's events up to one, folded.
#[derive(Debug)]
pub(super) struct ChannelRow {
    pub channel: Digest,
    /// Events of its journal that are in here.
    pub n: i64,
    /// A JSON list of `[seq, event]`.
    pub body: String,
    /// Of the last of those events, as the journal had it.
    pub digest: Digest,
    /// Of this row.
    pub seal: Digest,
}

/// A station's key, then octets, frames, refused octets and refused frames, up and down: each by
/// its bits.
pub(super) type UsageRow = [i64; 9];

/// An event to be appended.
#[derive(Debug)]
pub(super) struct NewEvent {
    pub channel: Digest,
    pub n: i64,
    /// Where in [`Write::bodies`].
    pub body: Range<usize>,
    pub digest: Digest,
}

/// An event in the place of one that it stands for, too.
#[derive(Debug)]
pub(super) struct Replaced {
    /// Number of the row.
    pub seq: i64,
    /// What is there from now on. Channel and `n` are what was there.
    pub event: NewEvent,
}

/// What it means that fewer rows were written over than there are.
pub(super) const REPLACED_OTHERS: &str = "rows of payments are not where they were written";

/// What happened to the chain.
#[derive(Clone, Copy, Debug)]
pub(super) enum BlockChange {
    /// This block is at this height; those at the second height and below it are forgotten.
    Connected(i64, Digest, i64),
    /// Those at this height and above are gone.
    Gone(i64),
}

/// One transaction.
#[derive(Debug, Default)]
pub(super) struct Write {
    /// The last commit, once this is written.
    pub mark: Mark,
    pub bodies: String,
    /// To be appended in this order.
    pub journal: Vec<NewEvent>,
    /// Each of another row.
    pub replaced: Vec<Replaced>,
    /// In this order.
    pub blocks: Vec<BlockChange>,
    /// To be put in the place of what is there.
    pub usage: Vec<UsageRow>,
    /// The same; `None` deletes.
    pub settings: Vec<(String, Option<String>)>,
    /// The wallet's change of this number; those before it are deleted where it is 0.
    pub wallet: Option<(i64, String)>,
    /// To be put in the place of what is there. Every row of the journal up to `folded_to` is in
    /// one of these, or of a channel in `forgotten`, and is deleted.
    pub folded: Vec<ChannelRow>,
    pub folded_to: Option<i64>,
    pub forgotten: Vec<Digest>,
    /// In this order; nothing where there is one edge.
    pub fleet: Vec<FleetChange>,
}

impl Write {
    /// The text of an event.
    pub(super) fn body(&self, event: &NewEvent) -> &str {
        self.bodies.get(event.body.clone()).unwrap_or_default()
    }
}
