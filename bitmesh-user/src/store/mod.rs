//! The only SQL: channels' journals, the chain's newest blocks, usage, the wallet's changes.
//!
//! A batch is written in one transaction and synced before its proof is given out. Rows of the
//! journal are chained by hash, so that a changed or missing row is seen at the next start. The
//! store knows nothing of what the entries mean.

mod schema;
mod settled;

use std::{
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use bitcoin::{
    BlockHash, Network,
    hashes::{Hash, HashEngine, sha256},
};
use bitmesh_common::StationKey;
use bitmesh_core::{
    bitcoin,
    channel::{Durable, Entry, TIPS_KEPT},
    ledger::{Counts, Usage},
    station::Station,
    units::Octets,
};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};
use serde::{Serialize, de::DeserializeOwned};
use sqlx::{
    Connection, Row, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteRow, SqliteSynchronous},
};

/// Name of the database in the data directory.
const FILE: &str = "bitmesh.sqlite";
/// Name of the lock file in the data directory.
const LOCK: &str = "lock";

/// Name of the setting that says what the directory is for.
const PURPOSE: &str = "purpose";

/// What is in a data directory of this.
pub const FILES: [&str; 5] =
    [FILE, LOCK, "bitmesh.sqlite-wal", "bitmesh.sqlite-shm", "bitmesh.sqlite-journal"];

/// What can go wrong with the data on disk.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Not readable, not writable, full, or another file system trouble.
    #[error("{path}: {source}; check that the directory is writable and the disk has space", path = path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Another daemon has the directory.
    #[error("{} is in use by another bitmesh; stop that one, or choose another --data-dir", .0.display())]
    Locked(PathBuf),
    /// The engine refused.
    #[error("the database: {0}; nothing was acknowledged since; check the disk, then start again")]
    Sql(#[from] sqlx::Error),
    /// The schema is newer than this program, or was changed.
    #[error("the database's schema: {0}; was it written by a newer bitmesh? use that one")]
    Schema(#[from] sqlx::migrate::MigrateError),
    /// What is there doesn't add up.
    #[error("{} is damaged: {what}; restore the data directory from a backup", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// Written for something else.
    #[error("this data directory is for {found}, not for {wanted}; choose another --data-dir")]
    Foreign {
        /// What is there.
        found: String,
        /// What was asked for.
        wanted: String,
    },
}

/// Which end of channels a data directory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
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

/// An open data directory, locked for as long as this lives.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    connection: SqliteConnection,
    link: sha256::Hash,
    _lock: std::fs::File,
}

impl Store {
    /// Opens the store of `role` on `network` in `directory`, which must exist; makes one when
    /// there is none.
    pub async fn open(
        directory: &Path,
        role: StoreRole,
        network: Network,
    ) -> Result<Self, StoreError> {
        let lock = lock(directory)?;
        let path = directory.join(FILE);
        settled::settle(&directory.join(FILES[2]))?;
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full);
        let mut connection = SqliteConnection::connect_with(&options).await?;
        let found: String =
            sqlx::query("PRAGMA quick_check(1)").fetch_one(&mut connection).await?.try_get(0)?;
        if found != "ok" {
            return Err(StoreError::Damaged { path, what: found });
        }
        schema::migrator().run_direct(None, &mut connection, false).await?;
        let link = sha256::Hash::all_zeros();
        let mut store = Self { path, connection, link, _lock: lock };
        store.belongs_to(role, network).await?;
        Ok(store)
    }

    /// What a directory is for, if a daemon or a command has used it. Nothing is locked.
    pub async fn role_of(directory: &Path) -> Result<Option<StoreRole>, StoreError> {
        let path = directory.join(FILE);
        if !path.exists() {
            return Ok(None);
        }
        let options = SqliteConnectOptions::new().filename(path);
        let mut connection = SqliteConnection::connect_with(&options).await?;
        let row = sqlx::query(schema::SELECT_SETTING)
            .bind(PURPOSE)
            .fetch_optional(&mut connection)
            .await?;
        let purpose: Option<String> = row.map(|row| row.try_get(0)).transpose()?;
        connection.close().await?;
        let roles = [StoreRole::Provider, StoreRole::Subscriber];
        let of = |purpose: String| roles.into_iter().find(|role| purpose.starts_with(role.name()));
        Ok(purpose.and_then(of))
    }

    async fn belongs_to(&mut self, role: StoreRole, network: Network) -> Result<(), StoreError> {
        let wanted = format!("{} on {network}", role.name());
        let found = self.setting(PURPOSE).await?;
        match found {
            None => self.set(PURPOSE, &wanted).await,
            Some(found) if found == wanted => Ok(()),
            Some(found) => Err(StoreError::Foreign { found, wanted }),
        }
    }

    /// Everything that was committed, in order: channels' events, then blocks, then usage.
    pub async fn load<E: DeserializeOwned>(&mut self) -> Result<Vec<Entry<E>>, StoreError> {
        let mut entries = Vec::new();
        let mut link = sha256::Hash::all_zeros();
        let rows = sqlx::query(schema::SELECT_EVENTS).fetch_all(&mut self.connection).await?;
        for row in rows {
            let (channel, body): (String, String) = (row.try_get(1)?, row.try_get(2)?);
            link = chain(link, &channel, &body);
            let stored: Vec<u8> = row.try_get(3)?;
            if stored != link.to_byte_array() {
                let seq: i64 = row.try_get(0)?;
                return Err(self.damaged(format!("row {seq} of the journal was changed")));
            }
            let event =
                serde_json::from_str(&body).map_err(|error| self.damaged(error.to_string()))?;
            let channel = channel.parse().map_err(|_| self.damaged("a channel's id".into()))?;
            entries.push(Entry::Channel { channel, event });
        }
        self.link = link;
        for row in sqlx::query(schema::SELECT_BLOCKS).fetch_all(&mut self.connection).await? {
            let hash: Vec<u8> = row.try_get(1)?;
            let hash = BlockHash::from_slice(&hash);
            let hash = hash.map_err(|_| self.damaged("a block's hash".into()))?;
            entries.push(Entry::Block { height: self.u32(row.try_get(0)?)?, hash });
        }
        for row in sqlx::query(schema::SELECT_USAGE).fetch_all(&mut self.connection).await? {
            entries.push(self.usage(&row)?);
        }
        Ok(entries)
    }

    fn usage<E>(&self, row: &SqliteRow) -> Result<Entry<E>, StoreError> {
        let at = |column| row.try_get::<i64, _>(column).map(i64::cast_unsigned);
        let station = StationKey::from_raw(at(0)?).map(Station::from);
        let station = station.ok_or_else(|| self.damaged("a station".into()))?;
        let counts = |first| -> Result<Counts, sqlx::Error> {
            Ok(Counts {
                octets: Octets(at(first)?),
                frames: at(first + 1)?,
                refused_octets: Octets(at(first + 2)?),
                refused_frames: at(first + 3)?,
            })
        };
        let usage = Usage { up: counts(1)?, down: counts(5)? };
        Ok(Entry::Usage { station, usage })
    }

    /// Writes entries, and what the wallet has to remember, all or nothing, and syncs them.
    ///
    /// After an error nothing is known to be durable: start again from [`Store::load`].
    pub async fn commit<E: Serialize>(
        &mut self,
        entries: &[Entry<E>],
        wallet: Option<&str>,
    ) -> Result<Durable, StoreError> {
        if entries.is_empty() && wallet.is_none() {
            return Ok(Durable::committed());
        }
        let mut link = self.link;
        let mut transaction = self.connection.begin().await?;
        for entry in entries {
            match entry {
                Entry::Channel { channel, event } => {
                    let channel = channel.to_string();
                    let body = serde_json::to_string(event)
                        .map_err(|error| StoreError::Sql(sqlx::Error::Encode(error.into())))?;
                    link = chain(link, &channel, &body);
                    sqlx::query(schema::INSERT_EVENT)
                        .bind(channel)
                        .bind(body)
                        .bind(link.to_byte_array().to_vec())
                        .execute(&mut *transaction)
                        .await?;
                }
                Entry::Block { height, hash } => {
                    let forgotten = i64::from(*height) - i64::from(TIPS_KEPT);
                    sqlx::query(schema::INSERT_BLOCK)
                        .bind(i64::from(*height))
                        .bind(hash.to_byte_array().to_vec())
                        .execute(&mut *transaction)
                        .await?;
                    sqlx::query(schema::FORGET_BLOCKS)
                        .bind(forgotten)
                        .execute(&mut *transaction)
                        .await?;
                }
                Entry::BlockGone { height } => {
                    sqlx::query(schema::DELETE_BLOCKS)
                        .bind(i64::from(*height))
                        .execute(&mut *transaction)
                        .await?;
                }
                Entry::Usage { station, usage } => {
                    let mut query =
                        sqlx::query(schema::UPSERT_USAGE).bind(station.key().raw().cast_signed());
                    for counts in [usage.up, usage.down] {
                        query = query
                            .bind(counts.octets.0.cast_signed())
                            .bind(counts.frames.cast_signed())
                            .bind(counts.refused_octets.0.cast_signed())
                            .bind(counts.refused_frames.cast_signed());
                    }
                    query.execute(&mut *transaction).await?;
                }
            }
        }
        if let Some(change) = wallet {
            sqlx::query(schema::INSERT_WALLET).bind(change).execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        self.link = link;
        Ok(Durable::committed())
    }

    /// The wallet's changes, oldest first.
    pub async fn wallet_changes(&mut self) -> Result<Vec<String>, StoreError> {
        let rows = sqlx::query(schema::SELECT_WALLET).fetch_all(&mut self.connection).await?;
        rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
    }

    /// A setting that outlives the daemon.
    pub async fn setting(&mut self, name: &str) -> Result<Option<String>, StoreError> {
        let row = sqlx::query(schema::SELECT_SETTING)
            .bind(name)
            .fetch_optional(&mut self.connection)
            .await?;
        Ok(row.map(|row| row.try_get(0)).transpose()?)
    }

    /// Sets a setting, durably.
    pub async fn set(&mut self, name: &str, value: &str) -> Result<(), StoreError> {
        sqlx::query(schema::UPSERT_SETTING)
            .bind(name)
            .bind(value)
            .execute(&mut self.connection)
            .await?;
        Ok(())
    }

    /// Closes cleanly: one file is left, without a write-ahead log beside it.
    pub async fn close(self) -> Result<(), StoreError> {
        Ok(self.connection.close().await?)
    }

    fn u32(&self, value: i64) -> Result<u32, StoreError> {
        u32::try_from(value).map_err(|_| self.damaged(format!("a height of {value}")))
    }

    fn damaged(&self, what: String) -> StoreError {
        StoreError::Damaged { path: self.path.clone(), what }
    }
}

/// Whether a daemon could take a directory: to be asked before anything in it is changed.
pub fn check_unlocked(directory: &Path) -> Result<(), StoreError> {
    let path = directory.join(LOCK);
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(&path, flags, Mode::empty()) {
        Ok(file) => std::fs::File::from(file),
        Err(Errno::NOENT) => return Ok(()),
        Err(source) => return Err(StoreError::Io { path, source: source.into() }),
    };
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(std::fs::TryLockError::WouldBlock) => Err(StoreError::Locked(directory.to_owned())),
        Err(std::fs::TryLockError::Error(source)) => Err(StoreError::Io { path, source }),
    }
}

/// One daemon a directory: two would sign from one journal.
fn lock(directory: &Path) -> Result<std::fs::File, StoreError> {
    let path = directory.join(LOCK);
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(|source| StoreError::Io { path: path.clone(), source })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(StoreError::Locked(directory.to_owned())),
        Err(std::fs::TryLockError::Error(source)) => Err(StoreError::Io { path, source }),
    }
}

fn chain(previous: sha256::Hash, channel: &str, body: &str) -> sha256::Hash {
    let mut engine = sha256::Hash::engine();
    engine.input(previous.as_ref());
    engine.input(channel.as_bytes());
    engine.input(body.as_bytes());
    sha256::Hash::from_engine(engine)
}

#[cfg(test)]
mod tests;
