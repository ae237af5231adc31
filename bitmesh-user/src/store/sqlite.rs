//! The ledger in a file of its own: what is SQLite's alone.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use sqlx::{
    Connection as _, Row as _, SqliteConnection,
    query::Query,
    sqlite::{
        Sqlite, SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqliteRow,
        SqliteSynchronous,
    },
};

use super::{
    Kept, StoreError,
    engine::{
        BlockChange, ChannelRow, Engine, JournalRow, Mark, REPLACED_OTHERS, Replaced, UsageRow,
        Work, Write,
    },
    journal::Digest,
    layout1, rows,
    schema::{self, Dialect},
    settled::settle,
};

/// Name of the database in the data directory.
pub(super) const FILE: &str = "bitmesh.sqlite";
/// Name of its write-ahead log.
pub(super) const LOG: &str = "bitmesh.sqlite-wal";
/// The only edge that writes a file.
const EDGE: i64 = 0;
/// Rows that the engine's thread may be ahead of their reader.
const ROWS_AHEAD: usize = 1_024;
/// How long another program's look into the file is waited for.
const BUSY: Duration = Duration::from_secs(5);
/// What the engine's own check tells at most.
const FINDINGS_MAX: u32 = 20;

const DIALECT: Dialect = Dialect {
    integer: "INTEGER",
    octets: "BLOB",
    serial: "INTEGER PRIMARY KEY AUTOINCREMENT",
    table: " STRICT",
    keyed: " STRICT, WITHOUT ROWID",
};

/// The last commit. One row.
const COMMITS: &str = "CREATE TABLE commits (edge INTEGER PRIMARY KEY, committed INTEGER NOT NULL, sum BLOB NOT NULL) STRICT";
const INSERT_MARK: &str = "INSERT INTO commits (edge, committed, sum) VALUES ($1, $2, $3)";
const SELECT_MARK: &str = "SELECT committed, sum FROM commits WHERE edge = $1";
const UPDATE_MARK: &str =
    "UPDATE commits SET committed = $1, sum = $2 WHERE edge = $3 AND committed = $1 - 1";

const RAISE_MARK: &str = "UPDATE commits SET committed = $1 WHERE edge = $2 AND committed < $1";

/// In the order in which they are in the file.
const SELECT_CHANNELS: &str = "SELECT channel, n, body, digest, seal FROM channels \
    WHERE rowid > COALESCE((SELECT rowid FROM channels WHERE channel = $1), 0) ORDER BY rowid LIMIT $2";
const SELECT_JOURNAL: &str =
    "SELECT seq, channel, n, body, digest FROM journal WHERE seq > $1 ORDER BY seq LIMIT $2";
const DELETE_FOLDED: &str = "DELETE FROM journal WHERE seq <= $1";

const NARROW: &str =
    "SELECT 1 FROM sqlite_schema WHERE name = 'channels' AND sql LIKE '%WITHOUT ROWID%'";
/// What is done before the table is made, and after.
const WIDEN: [&str; 3] = [
    "ALTER TABLE channels RENAME TO narrow_channels",
    "INSERT INTO channels SELECT channel, n, body, digest, seal FROM narrow_channels",
    "DROP TABLE narrow_channels",
];

/// Where the first layout's program notes its layout; a number that it does not know makes it say
/// that a newer one has to be used.
const FOR_LAYOUT_1: [&str; 2] = [
    "CREATE TABLE IF NOT EXISTS _sqlx_migrations (version BIGINT PRIMARY KEY, \
     description TEXT NOT NULL, installed_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP, \
     success BOOLEAN NOT NULL, checksum BLOB NOT NULL, execution_time BIGINT NOT NULL)",
    "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
     VALUES (2, 'see layout', TRUE, x'', 0)",
];

/// An open file.
#[derive(Debug)]
pub(super) struct SqliteEngine {
    place: String,
    version: String,
    connection: SqliteConnection,
    /// Whether a transaction holds what is read to one moment.
    looking: bool,
}

/// How a file is opened.
pub(super) fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new().filename(path).row_buffer_size(ROWS_AHEAD).busy_timeout(BUSY)
}

impl SqliteEngine {
    /// Opens a file, or makes it; brings an older layout forward, and keeps a copy of what it was
    /// where `keep`.
    pub(super) async fn open(path: &Path, keep: bool) -> Result<Self, StoreError> {
        let options = options(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full);
        let mut engine = Self::connect(path, &options).await?;
        engine.quick_check().await?;
        match layout(&mut engine.connection).await? {
            None => engine.make().await?,
            Some(schema::LAYOUT) => engine.widen().await?,
            Some(1) => layout1::upgrade(&mut engine.connection, path, keep).await?,
            Some(found) => return Err(engine.newer(found)),
        }
        Ok(engine)
    }

    /// Opens a file as it is at this moment, to read it.
    pub(super) async fn look(path: &Path) -> Result<Self, StoreError> {
        let mut engine = Self::look_at_any(path).await?;
        sqlx::query("BEGIN").execute(&mut engine.connection).await?;
        engine.looking = true;
        match layout(&mut engine.connection).await? {
            Some(found @ schema::LAYOUT) if engine.is_narrow().await? => {
                Err(StoreError::OldLayout { place: engine.place, found })
            }
            Some(schema::LAYOUT) => Ok(engine),
            None => Err(engine.damaged("it has no tables")),
            Some(found) if found < schema::LAYOUT => {
                Err(StoreError::OldLayout { place: engine.place, found })
            }
            Some(found) => Err(engine.newer(found)),
        }
    }

    /// The same, of whatever layout, and as it is at each moment.
    pub(super) async fn look_at_any(path: &Path) -> Result<Self, StoreError> {
        Self::connect(path, &options(path).read_only(true)).await
    }

    async fn connect(path: &Path, options: &SqliteConnectOptions) -> Result<Self, StoreError> {
        let mut connection = SqliteConnection::connect_with(options).await?;
        let row = sqlx::query("SELECT sqlite_version()").fetch_one(&mut connection).await?;
        let (place, version) = (path.display().to_string(), row.try_get(0)?);
        Ok(Self { place, version, connection, looking: false })
    }

    fn newer(self, found: i64) -> StoreError {
        StoreError::Newer { place: self.place, found, known: schema::LAYOUT }
    }

    /// Digests say whether what is read is what was written; this says whether what is written next
    /// could damage it.
    async fn quick_check(&mut self) -> Result<(), StoreError> {
        let row = sqlx::query("PRAGMA quick_check(1)").fetch_one(&mut self.connection).await?;
        let found: String = row.try_get(0)?;
        if found == "ok" { Ok(()) } else { Err(self.damaged(&found)) }
    }

    /// Whether folded journals are in a table as this layout had it at first, into whose pages their rows
    /// do not fit.
    async fn is_narrow(&mut self) -> Result<bool, StoreError> {
        Ok(sqlx::query(NARROW).fetch_optional(&mut self.connection).await?.is_some())
    }

    async fn widen(&mut self) -> Result<(), StoreError> {
        if !self.is_narrow().await? {
            return Ok(());
        }
        let mut transaction = self.connection.begin().await?;
        let [set_aside, copy, drop] = WIDEN;
        sqlx::query(set_aside).execute(&mut *transaction).await?;
        let make = schema::channels(&DIALECT);
        sqlx::query(sqlx::AssertSqlSafe(make)).execute(&mut *transaction).await?;
        for statement in [copy, drop] {
            sqlx::query(statement).execute(&mut *transaction).await?;
        }
        Ok(transaction.commit().await?)
    }

    async fn make(&mut self) -> Result<(), StoreError> {
        let mut transaction = self.connection.begin().await?;
        make_tables(&mut transaction, Mark::default()).await?;
        Ok(transaction.commit().await?)
    }

    fn damaged(&self, what: &str) -> StoreError {
        StoreError::Damaged { place: self.place.clone(), what: what.into() }
    }

    fn digest(&self, row: &SqliteRow, column: usize) -> Result<Digest, StoreError> {
        rows::digest(row, column, &self.place)
    }

    /// The next commit has a higher number than `committed`.
    pub(super) async fn count_from(&mut self, committed: i64) -> Result<(), StoreError> {
        let query = sqlx::query(RAISE_MARK).bind(committed).bind(EDGE);
        query.execute(&mut self.connection).await?;
        Ok(())
    }

    async fn put(&mut self, write: &Write) -> Result<i64, StoreError> {
        let place = &self.place;
        let mut transaction = self.connection.begin().await?;
        let to = &mut *transaction;
        let mut last = 0;
        for (statement, events) in schema::INSERT_EVENTS.cut(&write.journal) {
            let mut query = sqlx::query(statement);
            for event in events {
                query = query
                    .bind(&event.channel[..])
                    .bind(event.n)
                    .bind(write.body(event))
                    .bind(&event.digest[..]);
            }
            last = query.execute(&mut *to).await?.last_insert_rowid();
        }
        for (statement, rows) in schema::REPLACE_EVENTS.cut(&write.replaced) {
            let mut query = sqlx::query(statement);
            for Replaced { seq, event } in rows {
                query = query
                    .bind(seq)
                    .bind(&event.channel[..])
                    .bind(event.n)
                    .bind(write.body(event))
                    .bind(&event.digest[..]);
            }
            let replaced = query.execute(&mut *to).await?.rows_affected();
            if replaced != rows.len() as u64 {
                let (place, what) = (place.clone(), REPLACED_OTHERS.into());
                return Err(StoreError::Damaged { place, what });
            }
        }
        for change in &write.blocks {
            put_block(&mut *to, change).await?;
        }
        for (statement, rows) in schema::UPSERT_USAGE.cut(&write.usage) {
            let query = rows.iter().flatten().fold(sqlx::query(statement), Query::bind);
            query.execute(&mut *to).await?;
        }
        for (name, value) in &write.settings {
            let query = match value {
                Some(value) => sqlx::query(schema::UPSERT_SETTING).bind(name).bind(value),
                None => sqlx::query(schema::DELETE_SETTING).bind(name),
            };
            query.execute(&mut *to).await?;
        }
        if let Some((number, body)) = &write.wallet {
            if *number == 0 {
                sqlx::query(schema::DELETE_WALLET).bind(EDGE).execute(&mut *to).await?;
            }
            let query = sqlx::query(schema::INSERT_WALLET).bind(EDGE).bind(number).bind(body);
            query.execute(&mut *to).await?;
        }
        for (statement, rows) in schema::UPSERT_CHANNELS.cut(&write.folded) {
            rows.iter().fold(sqlx::query(statement), bind_channel).execute(&mut *to).await?;
        }
        for channel in &write.forgotten {
            sqlx::query(schema::DELETE_CHANNEL).bind(&channel[..]).execute(&mut *to).await?;
        }
        if let Some(seq) = write.folded_to {
            sqlx::query(DELETE_FOLDED).bind(seq).execute(&mut *to).await?;
        }
        let Mark { committed, sum } = &write.mark;
        let query = sqlx::query(UPDATE_MARK).bind(committed).bind(&sum[..]).bind(EDGE);
        if query.execute(&mut *to).await?.rows_affected() != 1 {
            return Err(StoreError::Fenced(place.clone()));
        }
        transaction.commit().await?;
        Ok(last.saturating_add(1).saturating_sub_unsigned(write.journal.len() as u64))
    }
}

type Bound<'q> = Query<'q, Sqlite, SqliteArguments>;

fn bind_channel<'q>(query: Bound<'q>, row: &'q ChannelRow) -> Bound<'q> {
    query
        .bind(&row.channel[..])
        .bind(row.n)
        .bind(&row.body)
        .bind(&row.digest[..])
        .bind(&row.seal[..])
}

async fn put_block(to: &mut SqliteConnection, change: &BlockChange) -> Result<(), StoreError> {
    match change {
        BlockChange::Connected(height, hash, forgotten) => {
            let query = sqlx::query(schema::INSERT_BLOCK).bind(EDGE).bind(height).bind(&hash[..]);
            query.execute(&mut *to).await?;
            let query = sqlx::query(schema::FORGET_BLOCKS).bind(EDGE).bind(forgotten);
            query.execute(&mut *to).await?;
        }
        BlockChange::Gone(height) => {
            let query = sqlx::query(schema::DELETE_BLOCKS).bind(EDGE).bind(height);
            query.execute(&mut *to).await?;
        }
    }
    Ok(())
}

/// The layout of a file: of none, when it has no tables yet.
async fn layout(connection: &mut SqliteConnection) -> Result<Option<i64>, StoreError> {
    let mut has = async |table: &str| {
        let query = sqlx::query("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = $1");
        Ok::<_, sqlx::Error>(query.bind(table).fetch_optional(&mut *connection).await?.is_some())
    };
    if has("layout").await? {
        let row = sqlx::query(schema::SELECT_LAYOUT).fetch_one(connection).await?;
        return Ok(Some(row.try_get(0)?));
    }
    Ok(has("events").await?.then_some(1))
}

/// Makes the tables of the present layout.
pub(super) async fn make_tables(to: &mut SqliteConnection, mark: Mark) -> Result<(), StoreError> {
    for statement in schema::tables(&DIALECT) {
        sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&mut *to).await?;
    }
    for statement in [COMMITS, FOR_LAYOUT_1[0], FOR_LAYOUT_1[1]] {
        sqlx::query(statement).execute(&mut *to).await?;
    }
    sqlx::query(schema::INSERT_LAYOUT).bind(schema::LAYOUT).execute(&mut *to).await?;
    let query = sqlx::query(INSERT_MARK).bind(EDGE).bind(mark.committed).bind(&mark.sum[..]);
    query.execute(&mut *to).await?;
    Ok(())
}

/// One setting of a file, without more ado. Nothing is locked or written.
pub(super) async fn setting_of(directory: &Path, name: &str) -> Result<Option<String>, StoreError> {
    let path: PathBuf = directory.join(FILE);
    if !path.exists() {
        return Ok(None);
    }
    // Who could write would write the log back when it leaves, and that before it was made durable.
    let options = options(&path).read_only(true);
    let mut connection = SqliteConnection::connect_with(&options).await?;
    let query = sqlx::query(schema::SELECT_SETTING).bind(name);
    let row = query.fetch_optional(&mut connection).await?;
    let value = row.map(|row| row.try_get(0)).transpose()?;
    connection.close().await?;
    Ok(value)
}

impl Engine for SqliteEngine {
    fn place(&self) -> &str {
        &self.place
    }

    fn kept(&self) -> Kept {
        let (version, place) = (self.version.clone(), self.place.clone());
        Kept { engine: "SQLite".into(), version, place, warnings: Vec::new() }
    }

    fn settings(&mut self) -> Work<'_, Vec<(String, String)>> {
        Box::pin(async {
            let rows = sqlx::query(schema::SELECT_SETTINGS).fetch_all(&mut self.connection).await?;
            rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
        })
    }

    fn mark(&mut self) -> Work<'_, Mark> {
        Box::pin(async {
            let query = sqlx::query(SELECT_MARK).bind(EDGE);
            let row = query.fetch_optional(&mut self.connection).await?;
            let row = row.ok_or_else(|| self.damaged("the last commit's number is gone"))?;
            Ok(Mark { committed: row.try_get(0)?, sum: self.digest(&row, 1)? })
        })
    }

    fn channels(&mut self, after: Option<Digest>, limit: i64) -> Work<'_, Vec<ChannelRow>> {
        Box::pin(async move {
            let after = after.map(Vec::from).unwrap_or_default();
            let query = sqlx::query(SELECT_CHANNELS).bind(after).bind(limit);
            let rows = query.fetch_all(&mut self.connection).await?;
            rows.iter().map(|row| rows::channel(row, &self.place)).collect()
        })
    }

    fn folded<'a>(&'a mut self, channels: &'a [Digest]) -> Work<'a, Vec<ChannelRow>> {
        Box::pin(async move {
            let mut found = Vec::new();
            for (statement, channels) in schema::SELECT_FOLDED.cut(channels) {
                let bind = |query: Bound<'a>, channel: &'a Digest| query.bind(&channel[..]);
                let query = channels.iter().fold(sqlx::query(statement), bind);
                for row in query.fetch_all(&mut self.connection).await? {
                    found.push(rows::channel(&row, &self.place)?);
                }
            }
            Ok(found)
        })
    }

    fn journal(&mut self, after: i64, limit: i64) -> Work<'_, Vec<JournalRow>> {
        Box::pin(async move {
            let query = sqlx::query(SELECT_JOURNAL).bind(after).bind(limit);
            let rows = query.fetch_all(&mut self.connection).await?;
            rows.iter().map(|row| rows::journal(row, &self.place)).collect()
        })
    }

    fn blocks(&mut self) -> Work<'_, Vec<(i64, Digest)>> {
        Box::pin(async {
            let query = sqlx::query(schema::SELECT_BLOCKS).bind(EDGE);
            let rows = query.fetch_all(&mut self.connection).await?;
            rows.iter().map(|row| Ok((row.try_get(0)?, self.digest(row, 1)?))).collect()
        })
    }

    fn usage(&mut self) -> Work<'_, Vec<UsageRow>> {
        Box::pin(async {
            let query = sqlx::query(schema::SELECT_USAGE.as_str());
            let rows = query.fetch_all(&mut self.connection).await?;
            rows.iter().map(rows::usage).collect()
        })
    }

    fn wallet(&mut self) -> Work<'_, Vec<(i64, String)>> {
        Box::pin(async {
            let query = sqlx::query(schema::SELECT_WALLET).bind(EDGE);
            let rows = query.fetch_all(&mut self.connection).await?;
            rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
        })
    }

    fn write<'a>(&'a mut self, write: &'a Write) -> Work<'a, i64> {
        Box::pin(self.put(write))
    }

    fn integrity(&mut self) -> Work<'_, Vec<String>> {
        Box::pin(async {
            let statement = format!("PRAGMA integrity_check({FINDINGS_MAX})");
            let query = sqlx::query(sqlx::AssertSqlSafe(statement));
            let rows = query.fetch_all(&mut self.connection).await?;
            let told: Result<Vec<String>, sqlx::Error> =
                rows.iter().map(|row| row.try_get(0)).collect();
            Ok(told?.into_iter().filter(|line| line != "ok").collect())
        })
    }

    fn back_up<'a>(&'a mut self, to: &'a Path) -> Work<'a, ()> {
        Box::pin(async {
            // Copying is a transaction of its own.
            if self.looking {
                sqlx::query("COMMIT").execute(&mut self.connection).await?;
                self.looking = false;
            }
            copy(&mut self.connection, to).await
        })
    }

    fn close(self: Box<Self>) -> Work<'static, ()> {
        Box::pin(async { Ok(self.connection.close().await?) })
    }
}

/// Takes the log of a directory's own file, which has to be locked, into it: one file is left.
pub(super) async fn merge_log(directory: &Path) -> Result<(), StoreError> {
    settle(&directory.join(LOG))?;
    let mut connection = SqliteConnection::connect_with(&options(&directory.join(FILE))).await?;
    sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut connection).await?;
    Ok(connection.close().await?)
}

/// Writes a copy of what a connection sees into a new file.
pub(super) async fn copy(from: &mut SqliteConnection, to: &Path) -> Result<(), StoreError> {
    let io = |source| StoreError::Io { path: to.to_owned(), source };
    let name = to.to_str().ok_or_else(|| {
        io(std::io::Error::new(std::io::ErrorKind::InvalidInput, "a name that is not UTF-8"))
    })?;
    sqlx::query("VACUUM INTO $1").bind(name).execute(from).await?;
    // The engine does not sync what it copies.
    std::fs::File::open(to).and_then(|file| file.sync_all()).map_err(io)
}
