//! Who has which account, and who is alive.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bitmesh_common::StationKey;
use bitmesh_core::{
    account::AccountId,
    channel::ChannelId,
    fleet::{EDGES_MAX, EdgeNumber, Late, LateId},
    station::Station,
    units::Octets,
};
use sqlx::{PgConnection, Row as _, postgres::PgRow};

use super::{
    PostgresEngine,
    connect::{STATEMENT_TIMEOUT, Standing, within},
    sql, usage_row,
    write::run,
};
use crate::store::{
    StoreError,
    engine::{ChannelRow, JournalRow, UsageRow},
    journal::Digest,
};

/// Accounts that one sign of life tells of, each way.
const TOLD_MAX: i64 = 256;
/// How often an edge asks for keys that another took at the same instant.
const TRIES: u32 = 8;
/// Octets of a block's hash.
const HASH_OCTETS: usize = 32;

/// What a commit changes about who has what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::store) enum FleetChange {
    /// A channel is an account's from now on; that is made if there is none.
    Channel { channel: Digest, account: Digest },
    /// The same of a station, by its key.
    Station { station: i64, account: Digest },
    /// An account is forgotten, with its members.
    AccountGone { account: Digest },
    /// The next key that this edge gives a channel.
    NextKey(i64),
    /// An account goes to another edge; the newest blocks that it saw, oldest first.
    HandOver { account: Digest, to: i64, tips: Vec<(i64, Digest)> },
    /// An account that came follows this edge's blocks from now on.
    CaughtUp { account: Digest },
    /// What a station used at an edge that was taken over is settled.
    Settled { edge: i64, epoch: i64, station: i64 },
}

/// An edge, as the fleet knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EdgeRow {
    /// Its number.
    pub number: EdgeNumber,
    /// Its name.
    pub name: String,
    /// Grows with each start, and when it is fenced.
    pub epoch: i64,
    /// Grows with each sign of life.
    pub beat: i64,
    /// How long what it granted may last after its last sign of life, in milliseconds.
    pub hold_ms: i64,
}

/// An account of ours that another edge wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Which.
    pub account: AccountId,
    /// Who wants it.
    pub by: EdgeNumber,
}

/// What is told in return for a sign of life.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Beat {
    /// Every edge of the fleet.
    pub edges: Vec<EdgeRow>,
    /// Accounts of ours that others want.
    pub wanted: Vec<Wanted>,
    /// Accounts that are ours, and that we have not caught up with.
    pub arriving: Vec<AccountId>,
    /// What stations of accounts of ours used at edges that were taken over.
    pub late: Vec<Late>,
}

/// Accounts that came from other edges, and that saw the same blocks.
#[derive(Debug, Default)]
pub(in crate::store) struct TakenRows {
    pub accounts: Vec<Digest>,
    pub channels: Vec<ChannelRow>,
    /// By channel, and in each channel's order.
    pub journal: Vec<JournalRow>,
    pub usage: Vec<UsageRow>,
    /// Oldest first.
    pub tips: Vec<(i64, Digest)>,
}

/// Does one change, in the transaction of a commit.
pub(super) async fn put(
    to: &mut PgConnection,
    change: &FleetChange,
    edge: i64,
    counted: i64,
) -> Result<(), StoreError> {
    match change {
        FleetChange::Channel { channel, account } => {
            own(to, account, edge).await?;
            let query = sqlx::query(sql::INSERT_CHANNEL_MEMBER).bind(&channel[..]);
            run(to, query.bind(&account[..])).await?;
        }
        FleetChange::Station { station, account } => {
            own(to, account, edge).await?;
            let query = sqlx::query(sql::INSERT_STATION_MEMBER).bind(station);
            if run(to, query.bind(&account[..])).await? == 0 {
                let query = sqlx::query(sql::UPDATE_STATION_MEMBER).bind(station);
                let changed = run(to, query.bind(&account[..]).bind(edge)).await?;
                if changed != 1 {
                    return Err(StoreError::Elsewhere);
                }
            }
        }
        FleetChange::AccountGone { account } => {
            let query = sqlx::query(sql::DELETE_ACCOUNT).bind(&account[..]).bind(edge);
            if run(to, query).await? == 1 {
                for statement in sql::DELETE_MEMBERS {
                    run(to, sqlx::query(statement).bind(&account[..])).await?;
                }
            }
        }
        FleetChange::NextKey(next) => {
            run(to, sqlx::query(sql::NEXT_KEY).bind(edge).bind(next)).await?;
        }
        FleetChange::HandOver { account, to: other, tips } => {
            let tip = stand(to, tips).await?;
            let query = sqlx::query(sql::HAND_OVER).bind(&account[..]).bind(edge);
            run(to, query.bind(other).bind(tip).bind(counted)).await?;
        }
        FleetChange::CaughtUp { account } => {
            run(to, sqlx::query(sql::CAUGHT_UP).bind(&account[..]).bind(edge)).await?;
        }
        FleetChange::Settled { edge: other, epoch, station } => {
            let query = sqlx::query(sql::DELETE_SETTLED).bind(other).bind(epoch).bind(station);
            // Settled a second time, it would be debited twice.
            if run(to, query).await? != 1 {
                return Err(StoreError::Elsewhere);
            }
        }
    }
    Ok(())
}

/// An account is ours, or is made: until the transaction ends nobody takes it.
async fn own(to: &mut PgConnection, account: &Digest, edge: i64) -> Result<(), StoreError> {
    run(to, sqlx::query(sql::INSERT_ACCOUNT).bind(&account[..]).bind(edge)).await?;
    let query = sqlx::query(sql::OWN_ACCOUNT).bind(&account[..]).bind(edge);
    match within(STATEMENT_TIMEOUT, query.fetch_optional(to)).await? {
        Some(_) => Ok(()),
        None => Err(StoreError::Elsewhere),
    }
}

/// Writes down which blocks were seen. A block's hash names all before it, so that accounts share
/// these rows.
pub(super) async fn stand(
    to: &mut PgConnection,
    tips: &[(i64, Digest)],
) -> Result<Vec<u8>, StoreError> {
    let Some((height, tip)) = tips.last() else { return Ok(Vec::new()) };
    let blocks: Vec<u8> = tips.iter().flat_map(|(_, hash)| *hash).collect();
    let query = sqlx::query(sql::INSERT_STAND).bind(&tip[..]).bind(height);
    run(to, query.bind(blocks)).await?;
    Ok(tip.to_vec())
}

impl PostgresEngine {
    /// Our number in the fleet.
    pub(in crate::store) fn edge_number(&self) -> Result<EdgeNumber, StoreError> {
        self.number(self.standing.edge)
    }

    /// An edge's number.
    pub(in crate::store) fn number(&self, number: i64) -> Result<EdgeNumber, StoreError> {
        let known = u16::try_from(number).ok().and_then(EdgeNumber::new);
        known.ok_or_else(|| self.damaged("an edge of a number that there is not"))
    }

    fn account(&self, row: &PgRow, column: usize) -> Result<AccountId, StoreError> {
        Ok(ChannelId::from_bytes(self.digest(row, column)?).into())
    }

    fn late(&self, row: &PgRow) -> Result<Late, StoreError> {
        let (edge, epoch) = (self.number(row.try_get(1)?)?, row.try_get::<i64, _>(2)?);
        let station = self.station(row.try_get(3)?)?;
        let id = LateId { edge, epoch: epoch.cast_unsigned(), station };
        let octets = Octets(row.try_get::<i64, _>(4)?.cast_unsigned());
        Ok(Late { id, account: self.account(row, 6)?, octets })
    }

    pub(super) fn station(&self, key: i64) -> Result<Station, StoreError> {
        let station = StationKey::from_raw(key.cast_unsigned()).map(Station::from);
        station.ok_or_else(|| self.damaged("a station"))
    }

    /// The next key that this edge may give a channel.
    pub(in crate::store) async fn next_key(&mut self) -> Result<i64, StoreError> {
        let rows = self.rows(sqlx::query(sql::SELECT_NEXT_KEY).bind(self.standing.edge)).await?;
        rows.first().map_or(Ok(0), |row| Ok(row.try_get(0)?))
    }

    /// The number whose keys this edge gives channels: its own, or the newest that it took.
    pub(in crate::store) async fn keys(&mut self) -> Result<EdgeNumber, StoreError> {
        let rows = self.rows(sqlx::query(sql::SELECT_KEYS).bind(self.standing.edge)).await?;
        let number: Option<i64> = rows.first().map(|row| row.try_get(0)).transpose()?.flatten();
        self.number(number.unwrap_or(self.standing.edge))
    }

    /// Takes another number for its keys; `None` when all are taken.
    pub(in crate::store) async fn fresh_keys(&mut self) -> Result<Option<EdgeNumber>, StoreError> {
        let numbers = i64::from(EDGES_MAX);
        for _ in 0..TRIES {
            let Standing { edge, epoch, .. } = self.standing;
            let query = sqlx::query(sql::FRESH_KEYS).bind(edge).bind(epoch).bind(numbers);
            if let Some(row) = self.rows(query).await?.first() {
                return Ok(Some(self.number(row.try_get(0)?)?));
            }
            let last = self.rows(sqlx::query(sql::SELECT_LAST_KEYS)).await?;
            let last: i64 = last.first().map_or(Ok(0), |row| row.try_get(0))?;
            if last + 1 >= numbers {
                return Ok(None);
            }
            // Another edge took that number at the same instant.
        }
        Err(self.fenced())
    }

    /// How long others have to wait from now on, once nothing that was granted lasts longer.
    pub(in crate::store) async fn note_hold(&mut self, hold: Duration) -> Result<(), StoreError> {
        let millis = i64::try_from(hold.as_millis()).unwrap_or(i64::MAX);
        let Standing { edge, epoch, .. } = self.standing;
        let query = sqlx::query(sql::NOTE_HOLD).bind(edge).bind(epoch).bind(millis);
        let noted = self.rows(query).await?;
        if noted.is_empty() { Err(self.fenced()) } else { Ok(()) }
    }

    /// Gives a sign of life. [`StoreError::Fenced`] when another took over.
    pub(in crate::store) async fn renew(&mut self) -> Result<Beat, StoreError> {
        self.follow_promotion();
        let query = sqlx::query(sql::RENEW).bind(self.standing.edge).bind(self.standing.epoch);
        let mut beat = Beat::default();
        for row in self.rows(query.bind(TOLD_MAX)).await? {
            match row.try_get::<i64, _>(0)? {
                0 => beat.edges.push(EdgeRow {
                    number: self.number(row.try_get(1)?)?,
                    epoch: row.try_get(2)?,
                    beat: row.try_get(3)?,
                    hold_ms: row.try_get(4)?,
                    name: row.try_get(5)?,
                }),
                1 => beat.wanted.push(Wanted {
                    account: self.account(&row, 6)?,
                    by: self.number(row.try_get(1)?)?,
                }),
                2 => beat.arriving.push(self.account(&row, 6)?),
                _ => beat.late.push(self.late(&row)?),
            }
        }
        self.shown = Instant::now();
        if beat.edges.is_empty() { Err(self.fenced()) } else { Ok(beat) }
    }

    /// Whose these channels and stations are, and which edge has them: `(member, account, edge)`.
    pub(in crate::store) async fn look_up(
        &mut self,
        channels: &[Digest],
        stations: &[i64],
    ) -> Result<(Vec<(Digest, Digest, i64)>, Vec<(i64, Digest, i64)>), StoreError> {
        let keys: Vec<&[u8]> = channels.iter().map(|channel| &channel[..]).collect();
        let rows = self.rows(sqlx::query(sql::LOOK_UP_CHANNELS).bind(&keys[..])).await?;
        let of_channels = rows
            .iter()
            .map(|row| Ok((self.digest(row, 0)?, self.digest(row, 1)?, row.try_get(2)?)))
            .collect::<Result<_, StoreError>>()?;
        let rows = self.rows(sqlx::query(sql::LOOK_UP_STATIONS).bind(stations)).await?;
        let of_stations = rows
            .iter()
            .map(|row| Ok((row.try_get(0)?, self.digest(row, 1)?, row.try_get(2)?)))
            .collect::<Result<_, StoreError>>()?;
        Ok((of_channels, of_stations))
    }

    /// What stations used in their lives, whoever has them.
    pub(in crate::store) async fn usage_of(
        &mut self,
        stations: &[i64],
    ) -> Result<Vec<UsageRow>, StoreError> {
        let rows = self.rows(sqlx::query(sql::LOOK_UP_USAGE).bind(stations)).await?;
        rows.iter().map(usage_row).collect()
    }

    /// Asks the edges that have these accounts to hand them over: how many were asked for.
    pub(in crate::store) async fn want(&mut self, accounts: &[Digest]) -> Result<u64, StoreError> {
        let (edge, epoch) = (self.standing.edge, self.standing.epoch);
        let keys: Vec<&[u8]> = accounts.iter().map(|account| &account[..]).collect();
        let query = sqlx::query(sql::WANT).bind(&keys[..]).bind(edge).bind(epoch);
        let done = run(self.connected().await?, query).await;
        self.passed_on(done)
    }

    /// What is to be known of accounts that came here, by the blocks that they saw.
    pub(in crate::store) async fn take(
        &mut self,
        accounts: &[Digest],
    ) -> Result<Vec<TakenRows>, StoreError> {
        let keys: Vec<&[u8]> = accounts.iter().map(|account| &account[..]).collect();
        let query = sqlx::query(sql::TAKE_ACCOUNTS).bind(&keys[..]).bind(self.standing.edge);
        let mut taken: BTreeMap<Digest, TakenRows> = BTreeMap::new();
        let mut of: BTreeMap<Digest, Digest> = BTreeMap::new();
        for row in self.rows(query).await? {
            let (account, tip) = (self.digest(&row, 0)?, self.digest(&row, 1)?);
            self.counted = self.counted.max(row.try_get(2)?);
            let group = taken.entry(tip).or_default();
            group.accounts.push(account);
            of.insert(account, tip);
            if group.tips.is_empty() {
                let (height, blocks): (Option<i64>, Option<Vec<u8>>) =
                    (row.try_get(3)?, row.try_get(4)?);
                let (Some(height), Some(blocks)) = (height, blocks) else {
                    return Err(self.damaged("the blocks that an account saw are gone"));
                };
                group.tips = self.tips(height, &blocks)?;
            }
        }
        let keys: Vec<&[u8]> = of.keys().map(|account| &account[..]).collect();
        let group = |engine: &Self, row: &PgRow, column| {
            Ok::<_, StoreError>(of.get(&engine.digest(row, column)?).copied().unwrap_or_default())
        };
        for row in self.rows(sqlx::query(sql::TAKE_CHANNELS).bind(&keys[..])).await? {
            let tip = group(self, &row, 5)?;
            taken.entry(tip).or_default().channels.push(self.channel_row(&row)?);
        }
        for row in self.rows(sqlx::query(sql::TAKE_JOURNAL).bind(&keys[..])).await? {
            let tip = group(self, &row, 5)?;
            taken.entry(tip).or_default().journal.push(self.journal_row(&row)?);
        }
        for row in self.rows(sqlx::query(sql::TAKE_USAGE).bind(&keys[..])).await? {
            let tip = group(self, &row, 9)?;
            taken.entry(tip).or_default().usage.push(usage_row(&row)?);
        }
        Ok(taken.into_values().collect())
    }

    fn tips(&self, height: i64, blocks: &[u8]) -> Result<Vec<(i64, Digest)>, StoreError> {
        let count = i64::try_from(blocks.len() / HASH_OCTETS).unwrap_or_default();
        let hashes = blocks.chunks_exact(HASH_OCTETS);
        let tips = (height - count + 1..).zip(hashes).map(|(height, hash)| {
            let hash = hash.try_into().map_err(|_| self.damaged("a block's hash"))?;
            Ok((height, hash))
        });
        tips.collect()
    }

    /// Claims stations that nobody pays for, sorted by their keys: those that no other edge has
    /// claimed.
    pub(in crate::store) async fn claim(
        &mut self,
        stations: &[i64],
    ) -> Result<Vec<i64>, StoreError> {
        let (edge, epoch) = (self.standing.edge, self.standing.epoch);
        let done = run(self.connected().await?, sqlx::query(sql::DELETE_CLAIMS).bind(edge)).await;
        self.passed_on(done)?;
        let rows = self.rows(sqlx::query(sql::CLAIM).bind(edge).bind(epoch).bind(stations)).await?;
        rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
    }

    /// Every edge of the fleet.
    pub(in crate::store) async fn edges(&mut self) -> Result<Vec<EdgeRow>, StoreError> {
        let rows = self.rows(sqlx::query(sql::SELECT_EDGES)).await?;
        let edge = |row: &PgRow| {
            Ok(EdgeRow {
                number: self.number(row.try_get(0)?)?,
                epoch: row.try_get(1)?,
                beat: row.try_get(2)?,
                hold_ms: row.try_get(3)?,
                name: row.try_get(4)?,
            })
        };
        rows.iter().map(edge).collect()
    }

    /// How many rows of the journal this edge has.
    pub(in crate::store) async fn journal_rows(&mut self) -> Result<u64, StoreError> {
        let query = sqlx::query(sql::COUNT_JOURNAL).bind(self.standing.edge);
        let rows = self.rows(query).await?;
        let count: i64 = rows.first().map_or(Ok(0), |row| row.try_get(0))?;
        Ok(count.unsigned_abs())
    }

    /// How many accounts each edge has.
    pub(in crate::store) async fn counts(&mut self) -> Result<Vec<(EdgeNumber, u64)>, StoreError> {
        let rows = self.rows(sqlx::query(sql::COUNT_ACCOUNTS)).await?;
        let count = |row: &PgRow| {
            let count: i64 = row.try_get(1)?;
            Ok((self.number(row.try_get(0)?)?, count.unsigned_abs()))
        };
        rows.iter().map(count).collect()
    }

    /// After an error the connection is not used again.
    pub(super) fn passed_on<T>(&mut self, done: Result<T, StoreError>) -> Result<T, StoreError> {
        if done.is_err() {
            self.connection = None;
        }
        done
    }
}
