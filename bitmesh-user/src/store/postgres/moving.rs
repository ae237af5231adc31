//! A lone edge's ledger is written into a fleet's database, in one transaction.

use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
    time::{Duration, Instant},
};

use sqlx::{Connection as _, Executor as _, PgConnection, Row as _};

use super::{
    Fleet, History, PostgresEngine, RACES_MAX, RETRY_PAUSE, SEQ_SHIFT, Server, Watch, belongs,
    connect::{self, Connected, Known, STATEMENT_TIMEOUT, Standing, is_race, timed_out, within},
    history, identity, prepare, sql,
    write::{put_folded, put_usage, run},
};
use crate::store::{
    StoreError,
    engine::{ChannelRow, JournalRow, UsageRow},
    journal::Digest,
    schema,
};

/// How long the standbys have for all of it.
const COMMIT_TIMEOUT: Duration = Duration::from_mins(2);
/// Accounts and members that one statement writes.
const AT_ONCE: usize = 4_096;

/// A fleet's database, before an edge is entered.
#[derive(Debug)]
pub(in crate::store) struct Entrance {
    connection: PgConnection,
    server: Server,
    history: Option<History>,
    place: String,
}

/// Whose everything is that is written.
#[derive(Debug, Default)]
pub(in crate::store) struct Members {
    pub channels: Vec<(Digest, Digest)>,
    pub stations: Vec<(i64, Digest)>,
}

impl Members {
    /// Every account, once.
    pub(in crate::store) fn accounts(&self) -> HashSet<&Digest> {
        let of_channels = self.channels.iter().map(|(_, account)| account);
        of_channels.chain(self.stations.iter().map(|(_, account)| account)).collect()
    }
}

impl Entrance {
    /// Connects, and makes the tables where there are none.
    pub(in crate::store) async fn find(
        fleet: &Fleet,
        directory: &Path,
        purpose: &str,
    ) -> Result<Self, StoreError> {
        let place = fleet.address.to_string();
        let seen = history::read(directory)?;
        let known = Known::Edge { name: &fleet.edge, committed: 0 };
        let Connected { mut connection, server } =
            connect::connect(&fleet.address, known, seen.as_ref()).await?;
        let mut tries = 1;
        loop {
            let made = async {
                prepare(&mut connection, &place).await?;
                belongs(&mut connection, &place, purpose, &fleet.seed).await
            };
            match made.await {
                Err(error) if is_race(&error) && tries < RACES_MAX => tries += 1,
                made => break made?,
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        Ok(Self { connection, server, history: seen, place })
    }

    /// Which lone edge's ledger was moved here.
    pub(in crate::store) async fn lone(&mut self) -> Result<Option<String>, StoreError> {
        let query = sqlx::query(sql::SELECT_LONE).fetch_optional(&mut self.connection);
        let row = within(STATEMENT_TIMEOUT, query).await?;
        Ok(row.map(|row| row.try_get(0)).transpose()?)
    }

    /// Whether this lone edge's ledger was moved here; if so, it is on the disks of those that have to have it.
    pub(in crate::store) async fn confirm(&mut self, token: &str) -> Result<bool, StoreError> {
        let query = sqlx::query(sql::TOUCH_LONE).bind(token);
        Ok(run(&mut self.connection, query).await? == 1)
    }

    /// Makes the directory that of an edge that the database does not have yet: its secret, which names
    /// the move, too. The server is remembered there.
    pub(in crate::store) fn claim(
        &self,
        directory: &Path,
        edge: &str,
    ) -> Result<String, StoreError> {
        if let Some(history) = &self.server.history {
            history::note(directory, history)?;
        }
        identity::claim(directory, edge)
    }

    /// Waits for a transaction of this lone edge's that may still be under way: whether it happened.
    pub(in crate::store) async fn has_happened(&mut self, token: &str) -> Result<bool, StoreError> {
        let mut transaction = within(STATEMENT_TIMEOUT, self.connection.begin()).await?;
        let put = run(&mut transaction, sqlx::query(sql::INSERT_LONE).bind(token)).await;
        // What it waited for in vain may be the answer to this, too.
        let ended = within(STATEMENT_TIMEOUT, transaction.rollback()).await;
        match put {
            Err(error) if timed_out(&error) => Err(self.unfinished()),
            Err(error) if !is_race(&error) => Err(error),
            put => {
                ended?;
                Ok(put.is_err() && self.lone().await?.is_some_and(|it| it == token))
            }
        }
    }

    /// An earlier try has the row, and is not over.
    fn unfinished(&self) -> StoreError {
        StoreError::Unmovable(format!(
            "a move into {} may be under way already, which waits for the standbys that have to have it, \
             as a rule: start them, then run the same command again",
            self.place
        ))
    }

    /// Begins the transaction, and enters the edge in it. The row of the lone edge comes first: who
    /// writes another waits for it.
    pub(in crate::store) async fn enter(
        mut self,
        fleet: &Fleet,
        directory: &Path,
        token: &str,
        committed: i64,
    ) -> Result<PostgresEngine, StoreError> {
        let to = &mut self.connection;
        within(STATEMENT_TIMEOUT, to.execute(sqlx::raw_sql(sql::BEGIN_MOVE))).await?;
        match run(to, sqlx::query(sql::INSERT_LONE).bind(token)).await {
            Err(error) if timed_out(&error) => return Err(self.unfinished()),
            Err(error) if is_race(&error) => {
                return Err(StoreError::Unmovable(format!(
                    "another lone box's was moved to {} before, and their channels would have the same \
                     keys. Let this box sell without --store until its channels are closed and claimed",
                    self.place
                )));
            }
            put => put?,
        };
        let octets = hex::decode(token).map_err(|_| StoreError::NoFleet)?;
        let hold = i64::try_from(fleet.hold.as_millis()).unwrap_or(i64::MAX);
        match identity::insert(to, &fleet.edge, &octets, hold).await {
            Err(error) if is_race(&error) => {
                return Err(StoreError::Unmovable(format!(
                    "{} has an edge that is called {} already; give this box a name of its own with \
                     --edge",
                    self.place, fleet.edge
                )));
            }
            put => put?,
        }
        let query = sqlx::query(sql::SELECT_EDGE).bind(&fleet.edge).fetch_one(&mut *to);
        let row = within(STATEMENT_TIMEOUT, query).await?;
        let standing = Standing { edge: row.try_get(0)?, epoch: row.try_get(2)?, committed };
        Ok(PostgresEngine {
            place: self.place,
            address: fleet.address.clone(),
            directory: directory.to_owned(),
            connection: Some(self.connection),
            server: self.server,
            history: self.history,
            standing,
            counted: 0,
            seized: false,
            all: false,
            hold: fleet.hold,
            shown: Instant::now(),
            watch: Watch::default(),
        })
    }
}

impl PostgresEngine {
    /// The connection of the transaction in which everything is written.
    fn under_way(&mut self) -> Result<&mut PgConnection, StoreError> {
        self.connection.as_mut().ok_or_else(|| StoreError::Unreachable {
            place: self.place.clone(),
            why: "the connection broke".into(),
        })
    }

    /// Writes what stations used, and whose they are. What is somebody's in the fleet already is refused.
    pub(in crate::store) async fn put_stations(
        &mut self,
        members: &Members,
        usage: &[UsageRow],
    ) -> Result<(), StoreError> {
        let stations: Vec<_> = members.stations.iter().map(|(station, _)| *station).collect();
        for some in stations.chunks(AT_ONCE) {
            let (_, taken) = self.look_up(&[], some).await?;
            if !taken.is_empty() {
                return Err(StoreError::Unmovable(format!(
                    "{} of its stations have accounts in {} already. Let this box sell without --store \
                     until their channels are closed and claimed",
                    taken.len(),
                    self.place
                )));
            }
        }
        let edge = self.standing.edge;
        let to = self.under_way()?;
        for some in members.stations.chunks(AT_ONCE) {
            let stations: Vec<i64> = some.iter().map(|(station, _)| *station).collect();
            let accounts: Vec<&[u8]> = some.iter().map(|(_, account)| &account[..]).collect();
            let query = sqlx::query(sql::INSERT_STATION_MEMBERS).bind(stations).bind(accounts);
            run(to, query).await?;
        }
        for some in usage.chunks(AT_ONCE) {
            put_usage(to, some, edge).await?;
        }
        Ok(())
    }

    /// Writes accounts, and whose every channel is.
    pub(in crate::store) async fn put_members(
        &mut self,
        members: &Members,
    ) -> Result<(), StoreError> {
        let edge = self.standing.edge;
        let accounts: Vec<&[u8]> = members.accounts().into_iter().map(|id| &id[..]).collect();
        let to = self.under_way()?;
        for some in accounts.chunks(AT_ONCE) {
            run(to, sqlx::query(sql::INSERT_ACCOUNTS).bind(edge).bind(some)).await?;
        }
        for some in members.channels.chunks(AT_ONCE) {
            let channels: Vec<&[u8]> = some.iter().map(|(channel, _)| &channel[..]).collect();
            let accounts: Vec<&[u8]> = some.iter().map(|(_, account)| &account[..]).collect();
            let query = sqlx::query(sql::INSERT_CHANNEL_MEMBERS).bind(channels).bind(accounts);
            run(to, query).await?;
        }
        Ok(())
    }

    /// A number in a lone edge's order, as a fleet has it.
    pub(in crate::store) fn fleets(&self, seq: i64) -> i64 {
        (seq << SEQ_SHIFT) | self.standing.edge
    }

    /// Writes journals that are folded.
    pub(in crate::store) async fn put_channels(
        &mut self,
        rows: &[ChannelRow],
    ) -> Result<(), StoreError> {
        put_folded(self.under_way()?, rows).await
    }

    /// Writes rows of the journal.
    pub(in crate::store) async fn put_journal(
        &mut self,
        rows: &[JournalRow],
    ) -> Result<(), StoreError> {
        let seqs: Vec<i64> = rows.iter().map(|row| self.fleets(row.seq)).collect();
        let channels: Vec<&[u8]> = rows.iter().map(|row| &row.channel[..]).collect();
        let numbers: Vec<i64> = rows.iter().map(|row| row.n).collect();
        let bodies: Vec<&str> = rows.iter().map(|row| row.body.as_str()).collect();
        let digests: Vec<&[u8]> = rows.iter().map(|row| &row.digest[..]).collect();
        let query = sqlx::query(sql::INSERT_JOURNAL).bind(channels).bind(numbers).bind(seqs);
        run(self.under_way()?, query.bind(bodies).bind(digests)).await?;
        Ok(())
    }

    /// Writes what an edge has for itself.
    pub(in crate::store) async fn put_own(
        &mut self,
        settings: &BTreeMap<String, String>,
        blocks: &[(i64, Digest)],
        wallet: &[(i64, String)],
    ) -> Result<(), StoreError> {
        let edge = self.standing.edge;
        let to = self.under_way()?;
        for (name, value) in settings {
            run(to, sqlx::query(sql::UPSERT_SETTING).bind(edge).bind(name).bind(value)).await?;
        }
        for (height, hash) in blocks {
            let query = sqlx::query(schema::INSERT_BLOCK).bind(edge).bind(height);
            run(to, query.bind(&hash[..])).await?;
        }
        for (number, body) in wallet {
            let query = sqlx::query(schema::INSERT_WALLET).bind(edge).bind(number);
            run(to, query.bind(body)).await?;
        }
        Ok(())
    }

    /// Ends the transaction, which is durable then. `seq` is the highest number of the lone edge's.
    pub(in crate::store) async fn conclude(mut self, seq: i64) -> Result<(), StoreError> {
        let Standing { edge, committed, .. } = self.standing;
        let to = self.under_way()?;
        run(to, sqlx::query(sql::RAISE_EDGE).bind(edge).bind(committed).bind(seq)).await?;
        within(COMMIT_TIMEOUT, to.execute(sqlx::raw_sql("COMMIT"))).await?;
        if let Some(connection) = self.connection.take() {
            let _ = connect::close(connection).await;
        }
        Ok(())
    }
}
