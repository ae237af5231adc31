//! The ledger: channels' journals, the chain's newest blocks, usage, the wallet's changes. The only
//! SQL.
//!
//! A batch is written in one transaction and synced before its proof is given out. Each channel's
//! journal is chained by hash, and a sum over everything is kept along with each commit, so that
//! what was changed, is missing or came back is seen at the next start. The store knows nothing of
//! what the entries mean. What an engine does is behind [`engine::Engine`].

mod aside;
mod engine;
mod error;
mod fleet;
mod journal;
mod known;
mod layout1;
mod load;
mod lock;
mod looking;
mod moving;
mod newest;
mod postgres;
mod rows;
mod schema;
mod settled;
mod sqlite;
mod tidy;
mod upkeep;
mod witness;

use std::path::{Path, PathBuf};

use bitcoin::Network;
use bitmesh_core::{
    bitcoin,
    channel::{Compact, Durable, Entry},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use self::{
    engine::{Engine, Write},
    known::{Changes, Known},
    lock::Lock,
    postgres::PostgresEngine,
    sqlite::SqliteEngine,
    witness::Witness,
};
pub use self::{
    error::StoreError,
    fleet::Found,
    lock::check_unlocked,
    looking::FleetLook,
    moving::{Moved, Moving, Written},
    postgres::{Address, AddressError, Beat, EdgeRow, Fleet, Wanted, is_passing},
    tidy::TIDY_INTERVAL_IDLE,
    upkeep::{Facts, Look, Restore, Restored, accept, accept_server},
};

/// Name of the setting that says what the ledger is for.
const PURPOSE: &str = "purpose";
/// Name of the setting that says that it goes on from an older copy, which the next start tells.
const WENT_BACK: &str = "went-back";
/// Name of the setting that says the same once all follows from it: since when, in seconds since
/// 1970, and what it goes on from.
const GONE_ON: &str = "gone-on-from";

/// Name of the setting that says that the ledger is about to be in a fleet's database.
const MOVING: &str = "moved-to";

/// What an edge of a fleet has in its data directory.
const FLEET_FILES: [&str; 2] = [postgres::IDENTITY, postgres::CLUSTER];

/// What is in a data directory of this.
pub const FILES: [&str; 8] = [
    sqlite::FILE,
    postgres::IDENTITY,
    postgres::CLUSTER,
    lock::FILE,
    witness::FILE,
    sqlite::LOG,
    "bitmesh.sqlite-shm",
    "bitmesh.sqlite-journal",
];

/// Which end of channels a ledger is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StoreRole {
    /// `bitmesh sell`.
    Provider,
    /// `bitmesh buy`.
    Subscriber,
}

impl StoreRole {
    fn name(self) -> &'static str {
        match self {
            Self::Provider => "selling",
            Self::Subscriber => "buying",
        }
    }
}

/// What keeps a ledger, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Which kind of database.
    pub engine: String,
    /// Its version.
    #[serde(default)]
    pub version: String,
    /// The file, or the server that is used at present. No password.
    #[serde(default)]
    pub place: String,
    /// What the operator should change about it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Where a ledger is.
#[derive(Clone, Debug)]
pub struct Place {
    /// The data directory. Whoever uses the ledger from here locks it.
    pub directory: PathBuf,
    /// The fleet whose database has the ledger; none, where it is a file in the directory.
    pub fleet: Option<Fleet>,
}

impl Place {
    /// A file in a data directory.
    pub fn file(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), fleet: None }
    }
}

/// What a fleet's server is held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trust {
    /// What was seen last.
    Seen,
    /// Nothing: it was accepted as it is.
    Server,
}

/// An open ledger, its directory locked for as long as this lives.
#[derive(Debug)]
pub struct Store {
    engine: Box<dyn Engine>,
    known: Known,
    /// Whether [`Self::load`] has read what is there.
    loaded: bool,
    witness: Witness,
    _lock: Lock,
}

impl Store {
    /// Opens the ledger of `role` on `network` at a place whose directory must exist; makes one
    /// when there is none. To be followed by [`Self::load`].
    pub async fn open(
        place: &Place,
        role: StoreRole,
        network: Network,
    ) -> Result<Self, StoreError> {
        Self::open_as(place, role, network, Trust::Seen).await
    }

    async fn open_as(
        place: &Place,
        role: StoreRole,
        network: Network,
        trust: Trust,
    ) -> Result<Self, StoreError> {
        let lock = lock::lock(&place.directory)?;
        let (mut witness, said) = Witness::open(&place.directory)?;
        let purpose = purpose(role, network);
        let mut engine: Box<dyn Engine> = match &place.fleet {
            Some(_) if place.directory.join(sqlite::FILE).exists() => {
                return Err(StoreError::Lone(place.directory.clone()));
            }
            Some(fleet) => {
                let known = said.map_or(0, |mark| mark.committed);
                Box::new(
                    PostgresEngine::open(fleet, &place.directory, &purpose, known, trust).await?,
                )
            }
            None if is_of_fleet(&place.directory)
                && !place.directory.join(sqlite::FILE).exists() =>
            {
                return Err(StoreError::OfFleet(place.directory.clone()));
            }
            None => Box::new(open_file(&place.directory).await?),
        };
        let mark = engine.mark().await?;
        if let Some(said) = said.filter(|said| engine.sums() && !witness::agrees(&mark, said)) {
            let (found, last) = (mark.committed, said.committed);
            return Err(StoreError::RolledBack { place: engine.place().to_owned(), found, last });
        }
        let settings = engine.settings().await?.into_iter().collect();
        let known = Known { mark, settings, ..Known::default() };
        moving::check_stays(&known, engine.place())?;
        if trust == Trust::Seen {
            witness.note(&mark);
        }
        let loaded = mark.committed == 0;
        let mut store = Self { engine, known, loaded, witness, _lock: lock };
        store.belongs_to(purpose).await?;
        Ok(store)
    }

    /// What a directory is for, if a daemon or a command has used it. Nothing is locked.
    pub async fn role_of(directory: &Path) -> Result<Option<StoreRole>, StoreError> {
        let purpose = sqlite::setting_of(directory, PURPOSE).await?;
        let roles = [StoreRole::Provider, StoreRole::Subscriber];
        let of = |purpose: String| roles.into_iter().find(|role| purpose.starts_with(role.name()));
        Ok(purpose.and_then(of))
    }

    async fn belongs_to(&mut self, wanted: String) -> Result<(), StoreError> {
        match self.known.settings.get(PURPOSE) {
            None => self.set(PURPOSE, &wanted).await,
            Some(found) if *found == wanted => Ok(()),
            Some(found) => Err(StoreError::Foreign { found: found.clone(), wanted }),
        }
    }

    /// Everything that was committed, in order: channels' events, then blocks, then usage.
    pub async fn load<E>(&mut self) -> Result<Vec<Entry<E>>, StoreError>
    where
        E: DeserializeOwned + Compact + Send + 'static,
    {
        let entries = load::load(self.engine.as_mut(), &mut self.known).await?;
        self.loaded = true;
        Ok(entries)
    }

    /// Writes entries, and what the wallet has to remember, all or nothing, and syncs them.
    ///
    /// After an error nothing is known to be durable: start again from [`Store::open`].
    ///
    /// # Panics
    /// When what is there was not loaded.
    pub async fn commit<E: Serialize + Compact>(
        &mut self,
        entries: &[Entry<E>],
        wallet: Option<&str>,
    ) -> Result<Durable, StoreError> {
        assert!(self.loaded, "a ledger is loaded before it is written");
        if !entries.is_empty() || wallet.is_some() {
            let (write, changes) = self.known.batch(entries, wallet)?;
            self.write(&write, changes).await?;
        }
        Ok(Durable::committed())
    }

    async fn write(&mut self, write: &Write, changes: Changes) -> Result<(), StoreError> {
        let first = self.engine.write(write).await?;
        self.known.accept(changes, first);
        self.witness.note(&self.known.mark);
        Ok(())
    }

    /// What it goes on from, where an older copy was put in its place: until [`Self::goes_on`].
    pub fn went_back(&self) -> Option<&str> {
        self.known.settings.get(WENT_BACK).map(String::as_str)
    }

    /// All that follows from an older copy was done, at `now` in seconds since 1970.
    pub async fn goes_on(&mut self, now: u64) -> Result<(), StoreError> {
        let Some(from) = self.went_back() else { return Ok(()) };
        let told = format!("{now} {from}");
        let (write, changes) = self.known.set(&[(WENT_BACK, None), (GONE_ON, Some(&told))]);
        self.write(&write, changes).await
    }

    /// Since when it goes on from an older copy, and from which: the last, if there was one.
    pub fn gone_on_from(&self) -> Option<(u64, &str)> {
        let (since, from) = self.known.settings.get(GONE_ON)?.split_once(' ')?;
        Some((since.parse().ok()?, from))
    }

    /// The wallet's changes, oldest first.
    pub async fn wallet_changes(&mut self) -> Result<Vec<String>, StoreError> {
        Ok(self.engine.wallet().await?.into_iter().map(|(_, body)| body).collect())
    }

    /// Puts one change of the wallet, which says the same, in the place of all.
    ///
    /// # Panics
    /// When what is there was not loaded.
    pub async fn set_wallet(&mut self, change: String) -> Result<(), StoreError> {
        assert!(self.loaded, "a ledger is loaded before it is written");
        let (write, changes) = self.known.whole_wallet(change);
        self.write(&write, changes).await
    }

    /// Rows of the journal that are not folded yet.
    pub fn journal_rows(&self) -> u64 {
        self.known.journal_rows
    }

    /// What keeps it at present.
    pub fn kept(&self) -> Kept {
        self.engine.kept()
    }

    /// A setting that outlives the daemon.
    #[expect(clippy::unused_async, reason = "where settings are kept is the engine's to choose")]
    pub async fn setting(&mut self, name: &str) -> Result<Option<String>, StoreError> {
        Ok(self.known.settings.get(name).cloned())
    }

    /// Sets a setting, durably.
    pub async fn set(&mut self, name: &str, value: &str) -> Result<(), StoreError> {
        let (write, changes) = self.known.set(&[(name, Some(value))]);
        self.write(&write, changes).await
    }

    /// Closes cleanly: of SQLite one file is left, without a write-ahead log beside it.
    pub async fn close(self) -> Result<(), StoreError> {
        self.engine.close().await?;
        // Without it a start after a power cut knows less, no more.
        let _ = self.witness.sync();
        Ok(())
    }
}

fn purpose(role: StoreRole, network: Network) -> String {
    format!("{} on {network}", role.name())
}

/// Whether a directory is an edge's of a fleet.
pub fn is_of_fleet(directory: &Path) -> bool {
    directory.join(postgres::IDENTITY).exists()
}

/// Opens a directory's own file, which has to be locked: what is read back from it is durable.
async fn open_file(directory: &Path) -> Result<SqliteEngine, StoreError> {
    settled::settle(&directory.join(sqlite::LOG))?;
    SqliteEngine::open(&directory.join(sqlite::FILE), true).await
}

#[cfg(test)]
mod tests;
