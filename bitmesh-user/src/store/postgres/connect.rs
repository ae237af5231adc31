//! A connection to a server that takes writes, and what it means when there is none.

use std::{io, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use sqlx::{
    ConnectOptions as _, Connection as _, Executor as _, PgConnection, Row as _,
    postgres::PgConnectOptions,
};
use tokio::time::{Instant, timeout_at};

use super::{
    address::Address,
    history::{self, History, Server, Unused},
    sql,
};
use crate::store::StoreError;

/// How long a server has to answer to a new connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long others are waited for once one takes writes: one that was promoted later would be the right
/// one.
const OTHERS_TIMEOUT: Duration = Duration::from_millis(500);
/// How long it has for a statement; it gives up after as long by itself ([`sql::SESSION`]).
pub(super) const STATEMENT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the reads of a start may take.
pub(super) const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Who we were at the last commit that is known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    pub edge: i64,
    pub epoch: i64,
    pub committed: i64,
}

/// What a server has to have: no one that is behind that is used.
#[derive(Clone, Copy, Debug)]
pub(super) enum Known<'a> {
    /// At a start: what the witness of the edge of this name saw.
    Edge { name: &'a str, committed: i64 },
    /// Later.
    Standing(Standing),
}

/// Why one host is not used.
pub(super) enum Unfit {
    /// It only reads.
    ReadOnly,
    Sql(sqlx::Error),
}

impl From<sqlx::Error> for Unfit {
    fn from(error: sqlx::Error) -> Self {
        Self::Sql(error)
    }
}

/// Waits for something no longer than `limit`.
pub(super) async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(late(limit)))
}

/// What it means to have waited for as long in vain.
pub(super) fn late(limit: Duration) -> sqlx::Error {
    let what = format!("no answer within {} ms", limit.as_millis());
    sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, what))
}

/// A connection, and what the server at its other end says of itself.
#[derive(Debug)]
pub(super) struct Connected {
    pub connection: PgConnection,
    pub server: Server,
}

/// Connects to the host that takes writes and is not behind: of several, to the one that was promoted
/// last. None that is of an older history than `history` is used, or of another cluster.
pub(super) async fn connect(
    address: &Address,
    known: Known<'_>,
    history: Option<&History>,
) -> Result<Connected, StoreError> {
    let place = address.to_string();
    if let Some(path) = address.certificates()
        && let Err(error) = tokio::fs::read(path).await
    {
        return Err(StoreError::Unverified { place, why: format!("{}: {error}", path.display()) });
    }
    let mut reasons = Vec::new();
    let mut only_reading = true;
    let mut refusal = None;
    let mut writable = Vec::new();
    for (name, looked) in look_at_all(address).await {
        match looked {
            Ok(connected) => writable.push(connected),
            Err(Unfit::ReadOnly) => reasons.push(format!("{name}: it only reads")),
            Err(Unfit::Sql(error)) => {
                only_reading = false;
                let why = format!("{name}: {error}");
                refusal = refusal.or_else(|| refused(address, &error, &why));
                reasons.push(why);
            }
        }
    }
    let chosen = match history::choose(writable, history) {
        Ok(chosen) => chosen,
        Err(Unused::Other(why)) => return Err(StoreError::OtherServer { place, why }),
        Err(Unused::None) => {
            if let Some(refusal) = refusal {
                return Err(refusal);
            }
            let why = reasons.join("; ");
            return Err(if only_reading {
                StoreError::ReadOnly { place, why }
            } else {
                StoreError::Unreachable { place, why }
            });
        }
    };
    stand_up(chosen, known, place).await
}

/// Whether a server has what was acknowledged, and this edge is still who it was.
async fn stand_up(
    mut connected: Connected,
    known: Known<'_>,
    place: String,
) -> Result<Connected, StoreError> {
    let (epoch_known, ours) = match known {
        Known::Edge { committed, .. } => (None, committed),
        Known::Standing(standing) => (Some(standing.epoch), standing.committed),
    };
    let behind = |theirs| StoreError::Behind { place: place.clone(), theirs, ours };
    let Some((epoch, committed)) = stands(&mut connected.connection, known).await? else {
        // No table yet, or no row.
        return if ours > 0 { Err(behind(0)) } else { Ok(connected) };
    };
    if epoch_known.is_some_and(|known| epoch > known) {
        return Err(StoreError::Fenced(place));
    }
    if epoch_known.is_some_and(|known| epoch < known) || committed < ours {
        return Err(behind(committed));
    }
    Ok(connected)
}

/// Asks all hosts at once, in the order of the address. Once one takes writes, others are waited for
/// no longer than [`OTHERS_TIMEOUT`].
pub(super) async fn look_at_all(address: &Address) -> Vec<(&str, Result<Connected, Unfit>)> {
    let mut asked = FuturesUnordered::new();
    for (at, (name, options)) in address.hosts().iter().enumerate() {
        asked.push(async move { (at, name, look_at(name, options).await) });
    }
    let mut answers = Vec::new();
    let mut until = Instant::now() + CONNECT_TIMEOUT * 2;
    while let Ok(Some((at, name, answer))) = timeout_at(until, asked.next()).await {
        if answer.is_ok() {
            until = until.min(Instant::now() + OTHERS_TIMEOUT);
        }
        answers.push((at, name.as_str(), answer));
    }
    answers.sort_by_key(|(at, ..)| *at);
    answers.into_iter().map(|(_, name, answer)| (name, answer)).collect()
}

/// Connects to one host, if it takes writes.
async fn look_at(name: &str, options: &PgConnectOptions) -> Result<Connected, Unfit> {
    let mut connection = within(CONNECT_TIMEOUT, options.connect()).await?;
    let to = &mut connection;
    within(CONNECT_TIMEOUT, to.execute(sqlx::raw_sql(sql::SESSION))).await?;
    let row = within(CONNECT_TIMEOUT, to.fetch_one(sqlx::raw_sql(sql::READ_ONLY))).await?;
    let read_only: String = row.try_get(0)?;
    if read_only != "off" {
        return Err(Unfit::ReadOnly);
    }
    let server = history::ask(to, name).await?;
    Ok(Connected { connection, server })
}

/// Epoch and commits of this edge at a server.
async fn stands(
    to: &mut PgConnection,
    known: Known<'_>,
) -> Result<Option<(i64, i64)>, sqlx::Error> {
    let query = match known {
        Known::Standing(standing) => sqlx::query(sql::SELECT_STANDING).bind(standing.edge),
        Known::Edge { name, .. } => {
            let has = sqlx::query(sql::HAS_LAYOUT).fetch_one(&mut *to);
            if within(STATEMENT_TIMEOUT, has).await?.try_get::<i64, _>(0)? == 0 {
                return Ok(None);
            }
            sqlx::query(sql::SELECT_STANDING_OF).bind(name)
        }
    };
    let row = within(STATEMENT_TIMEOUT, query.fetch_optional(to)).await?;
    row.map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).transpose()
}

/// Whether what a server shows of itself is not enough for the address.
fn is_unverified(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Tls(_) => true,
        sqlx::Error::Io(error) => {
            error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>()).is_some()
        }
        _ => false,
    }
}

/// An error that a person has to do something about, and no other host makes good.
fn refused(address: &Address, error: &sqlx::Error, told: &str) -> Option<StoreError> {
    let (place, why) = (address.to_string(), error.to_string());
    if is_unverified(error) {
        return Some(StoreError::Unverified { place, why: told.to_owned() });
    }
    match code(error)?.as_str() {
        "28P01" | "28000" => {
            Some(StoreError::Credentials { place, user: address.user().to_owned(), why })
        }
        "3D000" => Some(StoreError::NoDatabase {
            place,
            user: address.user().to_owned(),
            name: address.database().to_owned(),
        }),
        "42501" => Some(StoreError::Credentials { place, user: address.user().to_owned(), why }),
        _ => None,
    }
}

fn code(error: &sqlx::Error) -> Option<String> {
    match error {
        sqlx::Error::Database(error) => error.code().map(String::from),
        _ => None,
    }
}

/// Whether it may go well when it is done again: the server is gone, changes its role, or could not
/// put transactions into an order. What is wrong with a statement itself stays wrong.
pub fn is_passing(error: &StoreError) -> bool {
    match error {
        StoreError::Sql(error) => match code(error) {
            Some(code) => {
                let class = code.get(..2).unwrap_or_default();
                matches!(class, "08" | "40" | "53" | "57" | "58")
                    || matches!(code.as_str(), "25006" | "55P03")
            }
            None => {
                matches!(error, sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_))
            }
        },
        StoreError::Unreachable { .. }
        | StoreError::Unverified { .. }
        | StoreError::ReadOnly { .. }
        | StoreError::Behind { .. }
        | StoreError::OtherServer { .. } => true,
        _ => false,
    }
}

/// Whether somebody else did the same at the same time.
pub(super) fn is_race(error: &StoreError) -> bool {
    let StoreError::Sql(error) = error else { return false };
    code(error).is_some_and(|code| matches!(code.as_str(), "23505" | "42P07" | "40001" | "40P01"))
}

/// Whether it waited for too long: for a lock, as a rule.
pub(super) fn timed_out(error: &StoreError) -> bool {
    let StoreError::Sql(error) = error else { return false };
    match error {
        sqlx::Error::Io(error) => error.kind() == io::ErrorKind::TimedOut,
        error => code(error).is_some_and(|code| matches!(code.as_str(), "57014" | "55P03")),
    }
}

/// Says goodbye.
pub(super) async fn close(connection: PgConnection) -> Result<(), StoreError> {
    Ok(within(STATEMENT_TIMEOUT, connection.close()).await?)
}
