//! The ledger in a database that the edges of a fleet share: PostgreSQL, or what speaks its protocol.
//!
//! A commit is one statement where it can be, and fenced by the edge's epoch. After a lost connection
//! it is asked whether it happened, by a write that has to wait for it. Servers are tried in the
//! order of the address; one that only reads, or that lacks what was acknowledged, is passed over.

mod address;
mod connect;
mod fleet;
mod history;
mod identity;
mod looking;
mod moving;
mod seizing;
mod sql;
mod watch;
mod write;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use sqlx::{
    Connection as _, PgConnection, Postgres, Row as _,
    postgres::{PgArguments, PgRow},
    query::Query,
};

pub use self::{
    address::{Address, AddressError},
    connect::is_passing,
    fleet::{Beat, EdgeRow, Wanted},
};
use self::{
    connect::{
        Connected, Known, READ_TIMEOUT, STATEMENT_TIMEOUT, Standing, connect, is_race, late, within,
    },
    history::{History, Server},
    watch::Watch,
};
pub(super) use self::{
    fleet::{FleetChange, TakenRows},
    history::FILE as CLUSTER,
    identity::FILE as IDENTITY,
    moving::{Entrance, Members},
};
use super::{
    Kept, StoreError, Trust,
    engine::{ChannelRow, Engine, JournalRow, Mark, UsageRow, Work, Write},
    journal::Digest,
    rows::{self, usage as usage_row},
    schema::LAYOUT,
};

/// Who joins a fleet.
#[derive(Clone, Debug)]
pub struct Fleet {
    /// The database.
    pub address: Address,
    /// The edge's name, which no other edge of the fleet has.
    pub edge: String,
    /// What the edge grants may last as long after its last sign of life.
    pub hold: Duration,
    /// Names the seed, which all edges of a fleet have, without telling it.
    pub seed: String,
}

/// How long a commit is tried when the server is gone, as a part of the hold time and in bounds: the loop
/// waits meanwhile.
const COMMIT_PART: u32 = 6;
const COMMIT_TIME: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(5));
/// The part of that for each try.
const TRIES: u32 = 2;
/// Signs of life in a hold time while a ledger is read.
const BEATS_PER_HOLD: u32 = 8;
/// How often other servers are looked at, as a part of the hold time and in bounds.
const LOOK_PART: u32 = 8;
const LOOK_TIME: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));
/// Between two tries.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// Tries to make the tables while others do.
const RACES_MAX: u32 = 10;
/// Low bits of `seq` that hold the edge's number, so that no two edges count alike.
const SEQ_SHIFT: u32 = 11;

/// A database, as one edge uses it.
#[derive(Debug)]
pub(super) struct PostgresEngine {
    place: String,
    address: Address,
    directory: PathBuf,
    connection: Option<PgConnection>,
    /// The server at the other end, or what was there last.
    server: Server,
    /// The newest that was seen of the cluster's life.
    history: Option<History>,
    standing: Standing,
    /// The highest that a `seq` counted to.
    counted: i64,
    seized: bool,
    /// Whether it reads what every edge has.
    all: bool,
    hold: Duration,
    /// When it gave a sign of life last.
    shown: Instant,
    watch: Watch,
}

impl PostgresEngine {
    /// Connects to a server that has `known` commits of the edge at least, makes the tables where there are none, and enters the edge.
    pub(super) async fn open(
        fleet: &Fleet,
        directory: &Path,
        purpose: &str,
        known: i64,
        trust: Trust,
    ) -> Result<Self, StoreError> {
        let address = fleet.address.clone();
        let place = address.to_string();
        let is_ours = trust == Trust::Seen && identity::is_ours(directory, &fleet.edge)?;
        let known = if is_ours { known } else { 0 };
        let known = Known::Edge { name: &fleet.edge, committed: known };
        let history = if trust == Trust::Seen { history::read(directory)? } else { None };
        let Connected { mut connection, server } =
            connect(&address, known, history.as_ref()).await?;
        let mut tries = 1;
        let entered = loop {
            let entered = async {
                prepare(&mut connection, &place).await?;
                belongs(&mut connection, &place, purpose, &fleet.seed).await?;
                identity::enter(&mut connection, directory, &fleet.edge, fleet.hold).await
            };
            match entered.await {
                Err(error) if is_race(&error) && tries < RACES_MAX => tries += 1,
                entered => break entered?,
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        };
        // In vain where one of them is named meanwhile: the next start does it.
        let cleanup = sqlx::query(sql::DELETE_STANDS).execute(&mut connection);
        if let Err(error) = within(STATEMENT_TIMEOUT, cleanup).await {
            tracing::debug!("old blocks stay: {error}");
        }
        let standing =
            Standing { edge: entered.number, epoch: entered.epoch, committed: entered.committed };
        let look = (fleet.hold / LOOK_PART).clamp(LOOK_TIME.0, LOOK_TIME.1);
        let mut engine = Self {
            watch: Watch::begin(&address, look),
            all: false,
            hold: fleet.hold,
            shown: Instant::now(),
            place,
            address,
            directory: directory.to_owned(),
            connection: Some(connection),
            server,
            history,
            standing,
            counted: entered.seq,
            seized: entered.seized,
        };
        if trust == Trust::Seen {
            engine.trust()?;
        }
        for warning in engine.kept().warnings {
            tracing::warn!("{warning}");
        }
        Ok(engine)
    }

    /// How long a commit is tried.
    fn commit_time(&self) -> Duration {
        (self.hold / COMMIT_PART).clamp(COMMIT_TIME.0, COMMIT_TIME.1)
    }

    /// How long one try of it may take: a server that vanished says nothing.
    fn try_time(&self) -> Duration {
        self.commit_time() / TRIES
    }

    /// Gives a sign of life while a large ledger is read: it is no sign that anything is granted.
    async fn show_life(&mut self) -> Result<(), StoreError> {
        if self.shown.elapsed() < self.hold / BEATS_PER_HOLD {
            return Ok(());
        }
        let Standing { edge, epoch, .. } = self.standing;
        let rows = self.rows(sqlx::query(sql::SHOW_LIFE).bind(edge).bind(epoch)).await?;
        self.shown = Instant::now();
        if rows.is_empty() { Err(self.fenced()) } else { Ok(()) }
    }

    /// Goes to the server that was promoted after the one that is used, if there is one.
    fn follow_promotion(&mut self) {
        if self.watch.is_replaced(&self.server) {
            self.connection = None;
        }
    }

    /// Remembers the newest server that was used, before anything is acknowledged by it.
    pub(super) fn trust(&mut self) -> Result<(), StoreError> {
        if let Some(history) = &self.server.history
            && self.history.as_ref() != Some(history)
        {
            history::note(&self.directory, history)?;
            self.history = Some(history.clone());
        }
        Ok(())
    }

    async fn connected(&mut self) -> Result<&mut PgConnection, StoreError> {
        let connection = if let Some(connection) = self.connection.take() {
            connection
        } else {
            let known = Known::Standing(self.standing);
            let connected = connect(&self.address, known, self.history.as_ref()).await?;
            self.server = connected.server;
            if self.history.is_some() {
                self.trust()?;
            }
            connected.connection
        };
        Ok(self.connection.insert(connection))
    }

    fn fenced(&self) -> StoreError {
        StoreError::Fenced(self.place.clone())
    }

    /// Reads rows. After an error the connection is not used again.
    async fn rows(
        &mut self,
        query: Query<'_, Postgres, PgArguments>,
    ) -> Result<Vec<PgRow>, StoreError> {
        let connection = self.connected().await?;
        let rows = within(READ_TIMEOUT, query.fetch_all(connection)).await;
        rows.map_err(|error| {
            self.connection = None;
            self.said(error.into())
        })
    }

    /// What to do about a connection that broke is another thing than about a statement that was refused.
    fn said(&self, error: StoreError) -> StoreError {
        match error {
            StoreError::Sql(
                error @ (sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_)),
            ) => StoreError::Unreachable { place: self.place.clone(), why: error.to_string() },
            error => error,
        }
    }

    fn damaged(&self, what: &str) -> StoreError {
        StoreError::Damaged { place: self.place.clone(), what: what.into() }
    }

    fn digest(&self, row: &PgRow, column: usize) -> Result<Digest, StoreError> {
        rows::digest(row, column, &self.place)
    }

    fn channel_row(&self, row: &PgRow) -> Result<ChannelRow, StoreError> {
        rows::channel(row, &self.place)
    }

    fn journal_row(&self, row: &PgRow) -> Result<JournalRow, StoreError> {
        rows::journal(row, &self.place)
    }
}

/// Makes the tables, unless they are there.
async fn prepare(to: &mut PgConnection, place: &str) -> Result<(), StoreError> {
    let row = within(STATEMENT_TIMEOUT, sqlx::query(sql::HAS_LAYOUT).fetch_one(&mut *to)).await?;
    if row.try_get::<i64, _>(0)? == 0 {
        let mut transaction = to.begin().await?;
        for statement in sql::TABLES.iter().chain(&sql::OWN_TABLES) {
            let query = sqlx::query(*statement).persistent(false);
            within(STATEMENT_TIMEOUT, query.execute(&mut *transaction)).await?;
        }
        let query = sqlx::query(sql::INSERT_LAYOUT).bind(LAYOUT);
        within(STATEMENT_TIMEOUT, query.execute(&mut *transaction)).await?;
        within(STATEMENT_TIMEOUT, transaction.commit()).await?;
        return Ok(());
    }
    let query = sqlx::query(super::schema::SELECT_LAYOUT);
    let row = within(STATEMENT_TIMEOUT, query.fetch_one(to)).await?;
    let found: i64 = row.try_get(0)?;
    if found != LAYOUT {
        return Err(StoreError::Newer { place: place.to_owned(), found, known: LAYOUT });
    }
    Ok(())
}

/// Whether the database is of this fleet; it is, when it is of none yet.
async fn belongs(
    to: &mut PgConnection,
    place: &str,
    purpose: &str,
    seed: &str,
) -> Result<(), StoreError> {
    let query = sqlx::query(sql::INSERT_FLEET).bind(purpose).bind(seed);
    within(STATEMENT_TIMEOUT, query.execute(&mut *to)).await?;
    let row = within(STATEMENT_TIMEOUT, sqlx::query(sql::SELECT_FLEET).fetch_one(to)).await?;
    let (found, its_seed): (String, String) = (row.try_get(0)?, row.try_get(1)?);
    if found != purpose {
        return Err(StoreError::Foreign { found, wanted: purpose.to_owned() });
    }
    if its_seed != seed {
        return Err(StoreError::OtherFleet(place.to_owned()));
    }
    Ok(())
}

impl Engine for PostgresEngine {
    fn place(&self) -> &str {
        &self.place
    }

    fn kept(&self) -> Kept {
        // Settings may have changed since the connection was made.
        let server = self.watch.last(&self.server.host).unwrap_or_else(|| self.server.clone());
        let Server { host, engine, version, synchronous, writes_through, .. } = &server;
        let mut warnings = Vec::new();
        if *writes_through == Some(false) {
            warnings.push(format!(
                "{host} does not bring what it writes to the disk: payments that were acknowledged are lost \
                 with its power. Turn fsync and full_page_writes on there"
            ));
        }
        if self.address.hosts().len() > 1 && *synchronous == Some(false) {
            warnings.push(format!(
                "{host} waits for no standby: payments that were acknowledged are lost with it. Set \
                 synchronous_standby_names there"
            ));
        }
        let unverified: Vec<_> = self.address.unverified().collect();
        if !unverified.is_empty() {
            warnings.push(format!(
                "{} need not show who they are: who is in between can read and change the ledger. Add \
                 ?sslmode=verify-full&sslrootcert=FILE to --store, unless a tunnel keeps others out",
                unverified.join(", ")
            ));
        }
        for old in self.watch.replaced() {
            warnings.push(format!(
                "{old} takes writes although another server was promoted after it: stop it"
            ));
        }
        Kept {
            engine: engine.clone(),
            version: version.clone(),
            place: format!("{host}/{}", self.address.database()),
            warnings,
        }
    }

    fn sums(&self) -> bool {
        false
    }

    fn settings(&mut self) -> Work<'_, Vec<(String, String)>> {
        Box::pin(async {
            let edge = self.standing.edge;
            let rows = self.rows(sqlx::query(sql::SELECT_SETTINGS).bind(edge)).await?;
            rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
        })
    }

    fn mark(&mut self) -> Work<'_, Mark> {
        Box::pin(async { Ok(Mark { committed: self.standing.committed, sum: Digest::default() }) })
    }

    fn channels(&mut self, after: Option<Digest>, limit: i64) -> Work<'_, Vec<ChannelRow>> {
        Box::pin(async move {
            let after = after.map(Vec::from).unwrap_or_default();
            self.show_life().await?;
            let edge = self.standing.edge;
            let query = if self.all {
                sqlx::query(sql::SELECT_ALL_CHANNELS).bind(after).bind(limit)
            } else {
                sqlx::query(sql::SELECT_CHANNELS).bind(edge).bind(after).bind(limit)
            };
            let rows = self.rows(query).await?;
            rows.iter().map(|row| self.channel_row(row)).collect()
        })
    }

    fn folded<'a>(&'a mut self, channels: &'a [Digest]) -> Work<'a, Vec<ChannelRow>> {
        Box::pin(async move {
            let keys: Vec<&[u8]> = channels.iter().map(|channel| &channel[..]).collect();
            let rows = self.rows(sqlx::query(sql::SELECT_FOLDED).bind(&keys[..])).await?;
            rows.iter().map(|row| self.channel_row(row)).collect()
        })
    }

    fn journal(&mut self, after: i64, limit: i64) -> Work<'_, Vec<JournalRow>> {
        Box::pin(async move {
            self.show_life().await?;
            let edge = self.standing.edge;
            let query = if self.all {
                sqlx::query(sql::SELECT_ALL_JOURNAL).bind(after).bind(limit)
            } else {
                sqlx::query(sql::SELECT_JOURNAL).bind(edge).bind(after).bind(limit)
            };
            let rows = self.rows(query).await?;
            rows.iter().map(|row| self.journal_row(row)).collect()
        })
    }

    fn blocks(&mut self) -> Work<'_, Vec<(i64, Digest)>> {
        Box::pin(async {
            let query = sqlx::query(super::schema::SELECT_BLOCKS).bind(self.standing.edge);
            let rows = self.rows(query).await?;
            rows.iter().map(|row| Ok((row.try_get(0)?, self.digest(row, 1)?))).collect()
        })
    }

    fn usage(&mut self) -> Work<'_, Vec<UsageRow>> {
        Box::pin(async {
            let query = sqlx::query(sql::SELECT_USAGE).bind(self.standing.edge);
            self.rows(query).await?.iter().map(usage_row).collect()
        })
    }

    fn wallet(&mut self) -> Work<'_, Vec<(i64, String)>> {
        Box::pin(async {
            let query = sqlx::query(super::schema::SELECT_WALLET).bind(self.standing.edge);
            let rows = self.rows(query).await?;
            rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
        })
    }

    fn write<'a>(&'a mut self, write: &'a Write) -> Work<'a, i64> {
        Box::pin(async {
            let until = Instant::now() + self.commit_time();
            let limit = self.commit_time() + self.try_time();
            let work = self.write_through(write, until);
            let Ok(done) = tokio::time::timeout(limit, work).await else {
                self.connection = None;
                return Err(self.said(late(limit).into()));
            };
            done.map_err(|error| self.said(error))?;
            self.standing.committed = write.mark.committed;
            self.counted = self.counted_after(write);
            Ok(0)
        })
    }

    fn integrity(&mut self) -> Work<'_, Vec<String>> {
        // Its pages are checked by its own tools, at the server: pg_amcheck, pg_checksums.
        Box::pin(self.loose())
    }

    fn back_up<'a>(&'a mut self, _to: &'a Path) -> Work<'a, ()> {
        Box::pin(async { Err(StoreError::BackUpByItself(self.place.clone())) })
    }

    fn close(mut self: Box<Self>) -> Work<'static, ()> {
        Box::pin(async move {
            match self.connection.take() {
                Some(connection) => connect::close(connection).await,
                None => Ok(()),
            }
        })
    }

    fn fleet(&mut self) -> Option<&mut PostgresEngine> {
        Some(self)
    }
}
