//! A commit: once, whatever becomes of the connection.

use std::{collections::HashSet, time::Instant};

use sqlx::{
    Connection as _, PgConnection, Postgres, Row as _,
    postgres::{PgArguments, PgRow},
    query::Query,
};

use super::{
    FleetChange, PostgresEngine, RETRY_PAUSE, SEQ_SHIFT,
    connect::{STATEMENT_TIMEOUT, Standing, is_passing, within},
    fleet, sql,
};
use crate::store::{
    StoreError,
    engine::{BlockChange, ChannelRow, NewEvent, REPLACED_OTHERS, UsageRow, Write},
    schema,
};

impl PostgresEngine {
    /// Does a write, and does it again for as long as that may help, until then at most. Given up in
    /// between, it is not known whether it happened.
    pub(super) async fn write_through(
        &mut self,
        write: &Write,
        until: Instant,
    ) -> Result<(), StoreError> {
        let mut done = self.put(write).await;
        while let Err(error) = &done
            && is_passing(error)
            && Instant::now() < until
        {
            tracing::warn!("a commit is tried again: {error}");
            tokio::time::sleep(RETRY_PAUSE).await;
            done = self.resolve(write).await;
        }
        done
    }

    /// What is counted to once a write is done.
    pub(super) fn counted_after(&self, write: &Write) -> i64 {
        let events = i64::try_from(write.journal.len()).unwrap_or(i64::MAX);
        self.counted.saturating_add(events)
    }

    /// Does a write whose fate is not known, unless it was done. The write that asks waits for an
    /// earlier one that is still under way, and for the standbys that have to have it.
    pub(in crate::store) async fn resolve(&mut self, write: &Write) -> Result<(), StoreError> {
        let Standing { edge, epoch, .. } = self.standing;
        let limit = self.try_time();
        let connection = self.connected().await?;
        let query = sqlx::query(sql::TOUCH).bind(edge).bind(epoch);
        let row = match within(limit, query.fetch_optional(connection)).await {
            Ok(row) => row.ok_or_else(|| self.fenced())?,
            Err(error) => {
                self.connection = None;
                return Err(error.into());
            }
        };
        if row.try_get::<i64, _>(0)? == write.mark.committed {
            return Ok(());
        }
        match self.put(write).await {
            // The earlier one came through between the two.
            Err(StoreError::Fenced(place)) => {
                let (now, committed) = self.stands().await?;
                if now == epoch && committed == write.mark.committed {
                    return Ok(());
                }
                Err(StoreError::Fenced(place))
            }
            done => done,
        }
    }

    async fn stands(&mut self) -> Result<(i64, i64), StoreError> {
        let rows = self.rows(sqlx::query(sql::SELECT_STANDING).bind(self.standing.edge)).await?;
        let row = rows.first().ok_or_else(|| self.fenced())?;
        Ok((row.try_get(0)?, row.try_get(1)?))
    }

    /// Does a write. After an error the connection is not used again.
    pub(super) async fn put(&mut self, write: &Write) -> Result<(), StoreError> {
        let (standing, counted) = (self.standing, self.counted_after(write));
        let first = self.counted.saturating_add(1);
        let place = self.place.clone();
        let limit = self.try_time();
        let connection = self.connected().await?;
        let work = async {
            let Standing { edge, epoch, .. } = standing;
            let seqs = (first..).take(write.journal.len()).map(|at| (at << SEQ_SHIFT) | edge);
            let seqs: Vec<_> = seqs.collect();
            let appended = Columns::of(write, write.journal.iter());
            let replaced = Columns::of(write, write.replaced.iter().map(|row| &row.event));
            let fenced = |statement| {
                let query = sqlx::query(statement).bind(edge).bind(epoch);
                query.bind(write.mark.committed).bind(counted)
            };
            let append = appended.bind(fenced(sql::COMMIT), Some(&seqs));
            if is_plain(write) {
                let replace = || replaced.bind(fenced(sql::COMMIT_REPLACED), None);
                let query = if write.replaced.is_empty() { append } else { replace() };
                return passed(&within(limit, query.fetch_one(connection)).await?, place);
            }
            let mut transaction = within(STATEMENT_TIMEOUT, connection.begin()).await?;
            let to = &mut *transaction;
            let row = within(limit, append.fetch_one(&mut *to)).await?;
            passed(&row, place.clone())?;
            if !write.replaced.is_empty() {
                let rows = run(to, replaced.bind(sqlx::query(sql::REPLACE), None)).await?;
                if rows != write.replaced.len() as u64 {
                    return Err(StoreError::Damaged { place, what: REPLACED_OTHERS.into() });
                }
            }
            put_rest(to, write, edge, counted).await?;
            within(limit, transaction.commit()).await?;
            Ok(())
        };
        let done = work.await;
        if done.is_err() {
            self.connection = None;
        }
        done
    }
}

/// Nothing but events of channels that are known, all new or all in the places of others: one statement
/// does it.
fn is_plain(write: &Write) -> bool {
    (write.journal.is_empty() || write.replaced.is_empty())
        && write.journal.iter().all(|event| event.n > 0)
        && write.blocks.is_empty()
        && write.usage.is_empty()
        && write.settings.is_empty()
        && write.wallet.is_none()
        && write.folded.is_empty()
        && write.forgotten.is_empty()
        && write.fleet.is_empty()
}

fn passed(row: &PgRow, place: String) -> Result<(), StoreError> {
    if row.try_get::<i64, _>(0)? == 1 { Ok(()) } else { Err(StoreError::Fenced(place)) }
}

type Bound<'q> = Query<'q, Postgres, PgArguments>;

/// The columns of events.
struct Columns<'a> {
    channels: Vec<&'a [u8]>,
    numbers: Vec<i64>,
    bodies: Vec<&'a str>,
    digests: Vec<&'a [u8]>,
}

impl<'a> Columns<'a> {
    fn of(write: &'a Write, events: impl Iterator<Item = &'a NewEvent> + Clone) -> Self {
        Self {
            channels: events.clone().map(|event| &event.channel[..]).collect(),
            numbers: events.clone().map(|event| event.n).collect(),
            bodies: events.clone().map(|event| write.body(event)).collect(),
            digests: events.map(|event| &event.digest[..]).collect(),
        }
    }

    /// With the numbers of their rows, where those are new.
    fn bind(&'a self, query: Bound<'a>, seqs: Option<&'a [i64]>) -> Bound<'a> {
        let query = query.bind(&self.channels[..]).bind(&self.numbers[..]);
        let query = match seqs {
            Some(seqs) => query.bind(seqs),
            None => query,
        };
        query.bind(&self.bodies[..]).bind(&self.digests[..])
    }
}

async fn put_rest(
    to: &mut PgConnection,
    write: &Write,
    edge: i64,
    counted: i64,
) -> Result<(), StoreError> {
    for change in &write.blocks {
        put_block(to, edge, change).await?;
    }
    if !write.usage.is_empty() {
        put_usage(to, &write.usage, edge).await?;
    }
    for (name, value) in &write.settings {
        run(
            to,
            match value {
                Some(value) => sqlx::query(sql::UPSERT_SETTING).bind(edge).bind(name).bind(value),
                None => sqlx::query(sql::DELETE_SETTING).bind(edge).bind(name),
            },
        )
        .await?;
    }
    if let Some((number, body)) = &write.wallet {
        if *number == 0 {
            run(to, sqlx::query(schema::DELETE_WALLET).bind(edge)).await?;
        }
        run(to, sqlx::query(schema::INSERT_WALLET).bind(edge).bind(number).bind(body)).await?;
    }
    if !write.folded.is_empty() {
        put_folded(to, &write.folded).await?;
    }
    if !write.forgotten.is_empty() {
        let channels: Vec<&[u8]> = write.forgotten.iter().map(|channel| &channel[..]).collect();
        for statement in sql::FORGET {
            run(to, sqlx::query(statement).bind(&channels[..])).await?;
        }
    }
    put_new_channels(to, write, edge).await?;
    for change in &write.fleet {
        fleet::put(to, change, edge, counted).await?;
    }
    Ok(())
}

/// Writes what stations used.
pub(super) async fn put_usage(
    to: &mut PgConnection,
    rows: &[UsageRow],
    edge: i64,
) -> Result<(), StoreError> {
    let mut query = sqlx::query(sql::UPSERT_USAGE).bind(edge);
    for column in 0..UsageRow::default().len() {
        let values = rows.iter().filter_map(|row| row.get(column).copied());
        query = query.bind(values.collect::<Vec<i64>>());
    }
    run(to, query).await?;
    Ok(())
}

pub(super) async fn put_folded(
    to: &mut PgConnection,
    rows: &[ChannelRow],
) -> Result<(), StoreError> {
    let channels: Vec<&[u8]> = rows.iter().map(|row| &row.channel[..]).collect();
    let numbers: Vec<i64> = rows.iter().map(|row| row.n).collect();
    let bodies: Vec<&str> = rows.iter().map(|row| row.body.as_str()).collect();
    let digests: Vec<&[u8]> = rows.iter().map(|row| &row.digest[..]).collect();
    let seals: Vec<&[u8]> = rows.iter().map(|row| &row.seal[..]).collect();
    let query = sqlx::query(sql::UPSERT_CHANNELS).bind(&channels[..]).bind(&numbers[..]);
    run(to, query.bind(&bodies[..]).bind(&digests[..]).bind(&seals[..])).await?;
    let query = sqlx::query(sql::DELETE_FOLDED).bind(&channels[..]).bind(&numbers[..]);
    run(to, query).await?;
    Ok(())
}

/// A channel of which nobody says whose it is has an account of its own.
async fn put_new_channels(
    to: &mut PgConnection,
    write: &Write,
    edge: i64,
) -> Result<(), StoreError> {
    let told: HashSet<_> = write
        .fleet
        .iter()
        .filter_map(|change| match change {
            FleetChange::Channel { channel, .. } => Some(channel),
            _ => None,
        })
        .collect();
    let new = write.journal.iter().filter(|event| event.n == 0 && !told.contains(&event.channel));
    for event in new {
        let (channel, account) = (event.channel, event.channel);
        fleet::put(to, &FleetChange::Channel { channel, account }, edge, 0).await?;
    }
    Ok(())
}

async fn put_block(
    to: &mut PgConnection,
    edge: i64,
    change: &BlockChange,
) -> Result<(), StoreError> {
    match change {
        BlockChange::Connected(height, hash, forgotten) => {
            let query = sqlx::query(schema::INSERT_BLOCK).bind(edge).bind(height);
            run(to, query.bind(&hash[..])).await?;
            run(to, sqlx::query(schema::FORGET_BLOCKS).bind(edge).bind(forgotten)).await?;
        }
        BlockChange::Gone(height) => {
            run(to, sqlx::query(schema::DELETE_BLOCKS).bind(edge).bind(height)).await?;
        }
    }
    Ok(())
}

/// Runs a statement: how many rows it changed.
pub(super) async fn run(
    to: &mut PgConnection,
    query: Query<'_, Postgres, PgArguments>,
) -> Result<u64, StoreError> {
    Ok(within(STATEMENT_TIMEOUT, query.execute(to)).await?.rows_affected())
}
