//! The first layout, as it was released, brought forward: one journal whose rows were chained by
//! hash over all channels.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use bitcoin::hashes::{Hash as _, HashEngine as _, sha256};
use bitmesh_core::{bitcoin, channel::ChannelId};
use sqlx::{Connection as _, Row as _, SqliteConnection};
use tracing::info;

use super::{
    StoreError,
    aside::with,
    engine::Mark,
    journal::{Digest, Sum, Tail, block_digest, setting_digest, usage_digest, wallet_digest},
    known::Tails,
    rows, schema,
    sqlite::{copy, make_tables},
};

/// Tables that have the same name in the next layout.
const SAME_NAMES: [&str; 4] = ["settings", "blocks", "usage", "wallet_changes"];
/// Rows that are read at once.
const PAGE: i64 = 4_096;

const SELECT_EVENTS: &str =
    "SELECT seq, channel, body, link FROM events WHERE seq > $1 ORDER BY seq LIMIT $2";
const INSERT_EVENT: &str =
    "INSERT INTO journal (seq, channel, n, body, digest) VALUES ($1, $2, $3, $4, $5)";
const COPY_SETTINGS: &str = "INSERT INTO settings SELECT name, value FROM settings_1";
const COPY_BLOCKS: &str = "INSERT INTO blocks SELECT 0, height, hash FROM blocks_1";
const COPY_USAGE: &str = "INSERT INTO usage SELECT * FROM usage_1";
const COPY_WALLET: &str = "INSERT INTO wallet_changes \
    SELECT 0, row_number() OVER (ORDER BY seq) - 1, body FROM wallet_changes_1";
const SET_SUM: &str = "UPDATE commits SET committed = 1, sum = $1";

/// Keeps a copy of the file, where `keep`, then changes it in one transaction.
pub(super) async fn upgrade(
    connection: &mut SqliteConnection,
    path: &Path,
    keep: bool,
) -> Result<(), StoreError> {
    if keep {
        let aside = keep_aside(connection, path).await?;
        info!(
            "{} gets a new layout; what it was is in {}, to be deleted when all is well",
            path.display(),
            aside.display()
        );
    }
    let mut upgrade = Upgrade { place: path.display().to_string(), sum: Sum::default() };
    let mut transaction = connection.begin().await?;
    for table in SAME_NAMES {
        let statement = format!("ALTER TABLE {table} RENAME TO {table}_1");
        sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&mut *transaction).await?;
    }
    make_tables(&mut transaction, Mark::default()).await?;
    for statement in [COPY_SETTINGS, COPY_BLOCKS, COPY_USAGE, COPY_WALLET] {
        sqlx::query(statement).execute(&mut *transaction).await?;
    }
    upgrade.journal(&mut transaction).await?;
    upgrade.add_rows(&mut transaction).await?;
    for table in SAME_NAMES {
        let statement = format!("DROP TABLE {table}_1");
        sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&mut *transaction).await?;
    }
    sqlx::query("DROP TABLE events").execute(&mut *transaction).await?;
    sqlx::query(SET_SUM).bind(&upgrade.sum.0[..]).execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(())
}

/// One copy, however often it is tried.
async fn keep_aside(connection: &mut SqliteConnection, path: &Path) -> Result<PathBuf, StoreError> {
    let aside = with(path, ".layout-1");
    if !aside.exists() {
        let part = with(path, ".layout-1.part");
        let io = |source| StoreError::Io { path: part.clone(), source };
        match fs::remove_file(&part) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            done => done.map_err(io)?,
        }
        copy(connection, &part).await?;
        fs::rename(&part, &aside).map_err(io)?;
    }
    Ok(aside)
}

struct Upgrade {
    place: String,
    sum: Sum,
}

impl Upgrade {
    fn damaged(&self, what: String) -> StoreError {
        StoreError::Damaged { place: self.place.clone(), what }
    }

    /// Checks the chain over all rows, and makes a chain for each channel.
    async fn journal(&mut self, connection: &mut SqliteConnection) -> Result<(), StoreError> {
        let mut tails = Tails::default();
        let mut chain = sha256::Hash::all_zeros();
        let mut last = 0;
        loop {
            let query = sqlx::query(SELECT_EVENTS).bind(last).bind(PAGE);
            let rows = query.fetch_all(&mut *connection).await?;
            let Some(end) = rows.last() else { break };
            let end: i64 = end.try_get(0)?;
            for row in &rows {
                let (seq, id, body): (i64, &str, &str) =
                    (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
                chain = link(chain, id, body);
                let stored: &[u8] = row.try_get(3)?;
                if stored != chain.to_byte_array() {
                    return Err(self.damaged(format!("row {seq} of the journal was changed")));
                }
                let channel: ChannelId =
                    id.parse().map_err(|_| self.damaged("a channel's id".into()))?;
                let channel = channel.as_bytes();
                let before = tails.get(channel).copied().unwrap_or_else(|| Tail::start(channel));
                let tail = before.after(body.as_bytes());
                let tail = tail.ok_or_else(|| self.damaged("too many events".into()))?;
                let query = sqlx::query(INSERT_EVENT)
                    .bind(seq)
                    .bind(&channel[..])
                    .bind(i64::from(before.n))
                    .bind(body)
                    .bind(&tail.digest[..]);
                query.execute(&mut *connection).await?;
                tails.insert(*channel, tail);
            }
            last = end;
        }
        for tail in tails.values() {
            self.sum.toggle_tail(tail);
        }
        Ok(())
    }

    async fn add_rows(&mut self, connection: &mut SqliteConnection) -> Result<(), StoreError> {
        for row in sqlx::query(schema::SELECT_SETTINGS).fetch_all(&mut *connection).await? {
            self.sum.toggle(&setting_digest(row.try_get(0)?, row.try_get(1)?));
        }
        for row in sqlx::query(schema::SELECT_BLOCKS).bind(0).fetch_all(&mut *connection).await? {
            let hash: &[u8] = row.try_get(1)?;
            let hash: Digest =
                hash.try_into().map_err(|_| self.damaged("a block's hash".into()))?;
            self.sum.toggle(&block_digest(row.try_get(0)?, &hash));
        }
        for row in sqlx::query(schema::SELECT_USAGE.as_str()).fetch_all(&mut *connection).await? {
            self.sum.toggle(&usage_digest(&rows::usage(&row)?));
        }
        for row in sqlx::query(schema::SELECT_WALLET).bind(0).fetch_all(&mut *connection).await? {
            self.sum.toggle(&wallet_digest(row.try_get(0)?, row.try_get(1)?));
        }
        Ok(())
    }
}

fn link(previous: sha256::Hash, channel: &str, body: &str) -> sha256::Hash {
    let mut engine = sha256::Hash::engine();
    engine.input(previous.as_ref());
    engine.input(channel.as_bytes());
    engine.input(body.as_bytes());
    sha256::Hash::from_engine(engine)
}
