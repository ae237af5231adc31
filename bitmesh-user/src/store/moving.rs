//! A lone box's ledger moves into a fleet's database, once.
//!
//! First its file is marked: no daemon takes it from then on. Then one transaction writes everything
//! into the database, where it is read back as a daemon reads it and compared before it is
//! committed. Then the file gets another name. Killed at any step, the same command goes on: a row that the
//! transaction writes first tells whether it happened.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

use bitcoin::Network;
use bitmesh_core::{
    account::AccountId,
    bitcoin,
    channel::{Compact, Entry},
    fleet::Member,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    FLEET_FILES, Fleet, MOVING, PURPOSE, Place, StoreError, StoreRole, WENT_BACK, aside,
    engine::{ChannelRow, Engine as _},
    is_of_fleet,
    journal::{Digest, seal},
    known::Known,
    load::{self, unfold},
    lock::{self, Lock},
    open_file,
    postgres::{Entrance, Members, PostgresEngine},
    purpose,
    sqlite::{self, SqliteEngine},
    upkeep::{Anything, remove, sync_directory},
    witness::{self, Witness},
};

/// Rows that are copied at once.
const PAGE: i64 = 4_096;
/// Bits of a number in the order of a lone edge's events, so that a fleet's has place for it.
const SEQ_BITS: u32 = 50;

/// Where a file's rows are to go, or have gone: a setting of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    /// Which database. No password.
    to: String,
    edge: String,
    /// Names this move: the database has it once it has everything.
    token: String,
}

/// What was moved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// Which database it is in. No password.
    pub to: String,
    /// Name of the edge that this box is from now on.
    pub edge: String,
    /// Its number; 0 where the database had everything already.
    pub number: u16,
    /// Accounts.
    pub accounts: u64,
    /// Channels that anything is known of.
    pub channels: u64,
    /// Stations of accounts.
    pub stations: u64,
    /// Channels that nothing came of and that nobody knows any more: they were left behind.
    pub forgotten: u64,
    /// Rows of journals, folded ones counted once.
    pub rows: u64,
    /// Where the file is now; none, where nothing was changed.
    pub aside: Option<PathBuf>,
}

/// A lone box's ledger on its way.
#[derive(Debug)]
pub struct Moving {
    fleet: Fleet,
    lone: Lone,
    known: Known,
    mark: Option<Mark>,
    entrance: Entrance,
}

/// One whose rows are written, and not committed.
#[derive(Debug)]
pub struct Written {
    lone: Lone,
    engine: PostgresEngine,
    seq: i64,
    moved: Moved,
}

/// The file, in its directory, which is locked.
#[derive(Debug)]
struct Lone {
    directory: PathBuf,
    file: SqliteEngine,
    witness: Witness,
    _lock: Lock,
}

impl Moving {
    /// Locks the ledger of a provider on `network` and checks everything in it; then the database is
    /// asked whether it can take it. Nothing is changed, but that the database gets its tables. What is
    /// in the ledger, in order.
    pub async fn begin<E>(
        place: &Place,
        network: Network,
    ) -> Result<(Self, Vec<Entry<E>>), StoreError>
    where
        E: DeserializeOwned + Compact + Send + 'static,
    {
        let directory = place.directory.clone();
        let fleet = place.fleet.clone().ok_or(StoreError::NoFleet)?;
        let lock = lock::lock(&directory)?;
        if !directory.join(sqlite::FILE).exists() {
            let of_fleet = is_of_fleet(&directory);
            let missing = if of_fleet { StoreError::OfFleet } else { StoreError::Missing };
            return Err(missing(directory));
        }
        let mut file = open_file(&directory).await?;
        let mut known = Known::default();
        let entries = load::load::<E>(&mut file, &mut known).await?;
        let (witness, said) = Witness::open(&directory)?;
        if let Some(said) = said.filter(|said| !witness::agrees(&known.mark, said)) {
            let (found, last) = (known.mark.committed, said.committed);
            return Err(StoreError::RolledBack { place: file.place().to_owned(), found, last });
        }
        let wanted = purpose(StoreRole::Provider, network);
        let found = known.settings.get(PURPOSE).cloned().unwrap_or_default();
        if found != wanted {
            return Err(StoreError::Foreign { found, wanted });
        }
        if known.settings.contains_key(WENT_BACK) {
            let what = "it goes on from an older copy, and what follows from that is done at a start: \
                        start the daemon once without --store, and stop it";
            return Err(StoreError::Unmovable(what.into()));
        }
        let mark = mark_of(&known)?;
        let to = fleet.address.to_string();
        let other = |mark: &&Mark| mark.edge != fleet.edge || database(&mark.to) != database(&to);
        if let Some(mark) = mark.as_ref().filter(other) {
            return Err(mark.error(file.place()));
        }
        let entrance = Entrance::find(&fleet, &directory, &wanted).await?;
        let lone = Lone { directory, file, witness, _lock: lock };
        Ok((Self { fleet, lone, known, mark, entrance }, entries))
    }

    /// Ends a move that happened and was not finished; itself, where it did not happen.
    pub async fn finish(mut self) -> Result<Result<Moved, Box<Self>>, StoreError> {
        let Some(mark) = self.mark.clone() else { return Ok(Err(Box::new(self))) };
        // The first time its answer was lost, so that the standbys may lack it: this waits for them.
        if !self.entrance.confirm(&mark.token).await? {
            return Ok(Err(Box::new(self)));
        }
        let moved = Moved { to: mark.to, edge: mark.edge, ..Moved::default() };
        self.lone.put_aside(moved).await.map(Ok)
    }

    /// Gives a move up of which nothing has come: the box goes on by itself.
    pub async fn abandon(mut self) -> Result<(), StoreError> {
        if let Some(mark) = &self.mark {
            if self.entrance.has_happened(&mark.token).await? {
                let what =
                    format!("it is in {} already: `bitmesh store move` finishes it", mark.to);
                return Err(StoreError::Unmovable(what));
            }
            self.set(None).await?;
        }
        // The mark is gone: without these it is a lone box's directory again.
        for name in FLEET_FILES {
            remove(&self.lone.directory.join(name))?;
        }
        Box::new(self.lone.file).close().await
    }

    /// Writes everything into the database, where it is read back and compared. `members` says whose
    /// every channel and station is; `progress` is told how many rows of how many are there. With `dry`
    /// the file is not marked, and what is written is not to be committed.
    pub async fn write<E: Serialize + DeserializeOwned>(
        mut self,
        members: impl Iterator<Item = (Member, AccountId)>,
        dry: bool,
        progress: impl Fn(u64, u64),
    ) -> Result<Written, StoreError> {
        let members = collect(members);
        let token = match &self.mark {
            Some(mark) => mark.token.clone(),
            None if dry => hex::encode([0; 16]),
            None => self.set_mark().await?,
        };
        let committed = self.known.mark.committed;
        let Self { fleet, mut lone, known, entrance, .. } = self;
        let mut engine = entrance.enter(&fleet, &lone.directory, &token, committed).await?;
        engine.put_members(&members).await?;
        let channels: HashSet<Digest> =
            members.channels.iter().map(|(channel, _)| *channel).collect();
        let all = known.journal_rows.saturating_add(known.tails.len() as u64);
        let mut copying = Copying { moved: &channels, rows: 0, seq: 0 };
        let tell = |rows| progress(rows, all);
        copying.channels::<E>(&mut lone.file, &mut engine, tell).await?;
        copying.journal(&mut lone.file, &mut engine, tell).await?;
        let Copying { rows, seq, .. } = copying;
        let mut settings = known.settings.clone();
        settings.remove(MOVING);
        let (blocks, wallet) = (lone.file.blocks().await?, lone.file.wallet().await?);
        engine.put_own(&settings, &blocks, &wallet).await?;
        let stations: HashSet<i64> = members.stations.iter().map(|(key, _)| *key).collect();
        let mut usage = lone.file.usage().await?;
        usage.retain(|row| stations.contains(&row[0]));
        // Last: edges that run write these rows, and wait.
        engine.put_stations(&members, &usage).await?;
        progress(all, all);
        let moved = Moved {
            to: fleet.address.to_string(),
            edge: fleet.edge,
            number: engine.edge_number()?.get(),
            accounts: members.accounts().len() as u64,
            channels: channels.len() as u64,
            stations: members.stations.len() as u64,
            forgotten: known.tails.keys().filter(|id| !channels.contains(*id)).count() as u64,
            rows,
            aside: None,
        };
        let mut known = Known { settings, ..known };
        known.tails.retain(|channel, _| channels.contains(channel));
        known.usage.retain(|station, _| stations.contains(station));
        compare(&known, &mut engine).await?;
        Ok(Written { lone, engine, seq, moved })
    }

    /// From now on no daemon takes the file, until the move is done or given up.
    pub(super) async fn set_mark(&mut self) -> Result<String, StoreError> {
        let token = self.entrance.claim(&self.lone.directory, &self.fleet.edge)?;
        let (to, edge) = (self.fleet.address.to_string(), self.fleet.edge.clone());
        let mark = Mark { to, edge, token: token.clone() };
        let text = serde_json::to_string(&mark).map_err(StoreError::Encode)?;
        self.set(Some(&text)).await?;
        self.mark = Some(mark);
        Ok(token)
    }

    async fn set(&mut self, mark: Option<&str>) -> Result<(), StoreError> {
        let (write, changes) = self.known.set(&[(MOVING, mark)]);
        let first = self.lone.file.write(&write).await?;
        self.known.accept(changes, first);
        self.lone.witness.note(&self.known.mark);
        Ok(())
    }
}

impl Mark {
    fn error(&self, place: &str) -> StoreError {
        StoreError::Moving { place: place.to_owned(), to: self.to.clone(), edge: self.edge.clone() }
    }
}

/// Refuses a file that was moved, or is about to be.
pub(super) fn check_stays(known: &Known, place: &str) -> Result<(), StoreError> {
    mark_of(known)?.map_or(Ok(()), |mark| Err(mark.error(place)))
}

/// Refuses a directory whose ledger was moved, or is about to be, whatever became of its file.
pub(super) async fn check_lone(directory: &Path) -> Result<(), StoreError> {
    if !is_of_fleet(directory) {
        return Ok(());
    }
    let of_fleet = || StoreError::OfFleet(directory.to_owned());
    if !directory.join(sqlite::FILE).exists() {
        return Err(of_fleet());
    }
    let Some(text) = sqlite::setting_of(directory, MOVING).await.map_err(|_| of_fleet())? else {
        return Ok(());
    };
    let mark: Mark = serde_json::from_str(&text).map_err(|_| of_fleet())?;
    Err(mark.error(&directory.join(sqlite::FILE).display().to_string()))
}

fn mark_of(known: &Known) -> Result<Option<Mark>, StoreError> {
    let text = known.settings.get(MOVING);
    text.map(|text| serde_json::from_str(text).map_err(StoreError::Encode)).transpose()
}

/// Of an address as it is shown: servers may change, the database's name does not.
fn database(shown: &str) -> &str {
    shown.rsplit_once('/').map_or(shown, |(_, name)| name)
}

fn collect(members: impl Iterator<Item = (Member, AccountId)>) -> Members {
    let mut all = Members::default();
    for (member, account) in members {
        let account = *account.channel().as_bytes();
        match member {
            Member::Channel(channel) => all.channels.push((*channel.as_bytes(), account)),
            Member::Station(station) => {
                all.stations.push((station.key().raw().cast_signed(), account));
            }
        }
    }
    all
}

impl Written {
    /// What it comes to.
    pub fn moved(&self) -> &Moved {
        &self.moved
    }

    /// What a kill right after the commit leaves.
    #[cfg(test)]
    pub(super) async fn conclude_alone(self) -> Result<(), StoreError> {
        self.engine.conclude(self.seq).await
    }

    /// Makes it the fleet's, durably, and puts the file aside.
    pub async fn commit(self) -> Result<Moved, StoreError> {
        self.engine.conclude(self.seq).await?;
        self.lone.put_aside(self.moved).await
    }
}

impl Lone {
    /// The file gets another name, its log taken into it. The witness has seen the mark, which is the last
    /// commit that the edge has.
    async fn put_aside(self, moved: Moved) -> Result<Moved, StoreError> {
        Box::new(self.file).close().await?;
        sqlite::merge_log(&self.directory).await?;
        let path = self.directory.join(sqlite::FILE);
        let aside = aside::vacant(&path, "moved");
        let renamed = fs::rename(&path, &aside);
        renamed.map_err(|source| StoreError::Io { path, source })?;
        sync_directory(&self.directory)?;
        Ok(Moved { aside: Some(aside), ..moved })
    }
}

/// How far copying is, and the highest number in the file's order.
struct Copying<'a> {
    moved: &'a HashSet<Digest>,
    rows: u64,
    seq: i64,
}

impl Copying<'_> {
    fn note(&mut self, seq: i64) -> Result<(), StoreError> {
        if seq >> SEQ_BITS != 0 {
            let what = format!("its order has number {seq}, and a fleet counts up to 2^{SEQ_BITS}");
            return Err(StoreError::Unmovable(what));
        }
        self.seq = self.seq.max(seq);
        Ok(())
    }

    async fn channels<E: Serialize + DeserializeOwned>(
        &mut self,
        file: &mut SqliteEngine,
        engine: &mut PostgresEngine,
        tell: impl Fn(u64),
    ) -> Result<(), StoreError> {
        let mut after = None;
        loop {
            let rows = file.channels(after, PAGE).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = Some(last.channel);
            let mut renumbered = Vec::with_capacity(rows.len());
            for row in rows.iter().filter(|row| self.moved.contains(&row.channel)) {
                let events = unfold::<E>(row).map_err(|what| load::damaged(file, what))?;
                renumbered.push(self.renumber(row, events, engine)?);
            }
            engine.put_channels(&renumbered).await?;
            self.rows = self.rows.saturating_add(rows.len() as u64);
            tell(self.rows);
        }
    }

    /// A folded journal with its events' numbers in the fleet's order.
    fn renumber<E: Serialize>(
        &mut self,
        row: &ChannelRow,
        events: Vec<(i64, E)>,
        engine: &PostgresEngine,
    ) -> Result<ChannelRow, StoreError> {
        let mut numbered = Vec::with_capacity(events.len());
        for (seq, event) in events {
            self.note(seq)?;
            numbered.push((engine.fleets(seq), event));
        }
        let body = serde_json::to_string(&numbered).map_err(StoreError::Encode)?;
        let ChannelRow { channel, n, digest, .. } = *row;
        let mut row = ChannelRow { channel, n, body, digest, seal: Digest::default() };
        row.seal = seal(&row);
        Ok(row)
    }

    async fn journal(
        &mut self,
        file: &mut SqliteEngine,
        engine: &mut PostgresEngine,
        tell: impl Fn(u64),
    ) -> Result<(), StoreError> {
        let mut after = 0;
        loop {
            let mut rows = file.journal(after, PAGE).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = last.seq;
            self.note(after)?;
            self.rows = self.rows.saturating_add(rows.len() as u64);
            rows.retain(|row| self.moved.contains(&row.channel));
            engine.put_journal(&rows).await?;
            tell(self.rows);
        }
    }
}

/// Reads everything back as a daemon does, before it is committed.
async fn compare(known: &Known, engine: &mut PostgresEngine) -> Result<(), StoreError> {
    let mut there = Known::default();
    load::load::<Anything>(engine, &mut there).await?;
    let differs = [
        ("channels", known.tails != there.tails),
        ("usage", known.usage != there.usage),
        ("blocks", known.blocks != there.blocks),
        ("the wallet", known.wallet != there.wallet),
        ("settings", known.settings != there.settings),
    ];
    match differs.into_iter().find(|(_, differs)| *differs) {
        Some((what, _)) => Err(StoreError::Unmovable(format!(
            "{what} read back from {} are not what was written",
            engine.place()
        ))),
        None => Ok(()),
    }
}
