//! A connection to a server that takes writes, and what it means when there is none.

use std::{io, time::Duration};

use sqlx::{
    ConnectOptions as _, Connection as _, Executor as _, PgConnection, Row as _,
    postgres::PgConnectOptions,
};

use super::{address::Address, sql};
use crate::store::StoreError;

/// How long a server has to answer to a new connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long it has for a statement; it gives up after as long by itself ([`sql::SESSION`]).
pub(super) const STATEMENT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the reads of a start may take.
pub(super) const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Who we were at the last commit that is known: no server may be behind that.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    pub edge: i64,
    pub epoch: i64,
    pub committed: i64,
}

/// Why one host is not used.
enum Unfit {
    /// It only reads.
    ReadOnly,
    /// It has fewer commits than were acknowledged.
    Behind(i64),
    Sql(sqlx::Error),
    /// Nothing else will do, either.
    Fatal(StoreError),
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
    let late = || {
        let what = format!("no answer within {} s", limit.as_secs());
        sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, what))
    };
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(late()))
}

/// Connects to the first host that takes writes and is not behind.
pub(super) async fn connect(
    address: &Address,
    standing: Option<Standing>,
) -> Result<PgConnection, StoreError> {
    let mut reasons = Vec::new();
    let mut only_reading = true;
    let mut behind = None;
    for (name, options) in address.hosts() {
        let why = match connect_to(options, standing).await {
            Ok(connection) => return Ok(connection),
            Err(Unfit::Fatal(error)) => return Err(error),
            Err(Unfit::ReadOnly) => "it only reads".to_owned(),
            Err(Unfit::Behind(theirs)) => {
                behind = behind.max(Some(theirs));
                format!("it has {theirs} commits")
            }
            Err(Unfit::Sql(error)) => {
                only_reading = false;
                if let Some(error) = refused(address, &error) {
                    return Err(error);
                }
                error.to_string()
            }
        };
        reasons.push(format!("{name}: {why}"));
    }
    let (place, why) = (address.to_string(), reasons.join("; "));
    Err(match (behind, standing) {
        (Some(theirs), Some(standing)) => {
            StoreError::Behind { place, theirs, ours: standing.committed }
        }
        _ if only_reading => StoreError::ReadOnly { place, why },
        _ => StoreError::Unreachable { place, why },
    })
}

async fn connect_to(
    options: &PgConnectOptions,
    standing: Option<Standing>,
) -> Result<PgConnection, Unfit> {
    let mut connection = within(CONNECT_TIMEOUT, options.connect()).await?;
    let to = &mut connection;
    within(STATEMENT_TIMEOUT, to.execute(sqlx::raw_sql(sql::SESSION))).await?;
    let row = within(STATEMENT_TIMEOUT, to.fetch_one(sqlx::raw_sql(sql::READ_ONLY))).await?;
    let read_only: String = row.try_get(0)?;
    if read_only != "off" {
        return Err(Unfit::ReadOnly);
    }
    let Some(standing) = standing else { return Ok(connection) };
    let query = sqlx::query(sql::SELECT_STANDING).bind(standing.edge);
    let row = within(STATEMENT_TIMEOUT, query.fetch_optional(&mut connection)).await?;
    let row = row.map(|row| Ok::<(i64, i64), sqlx::Error>((row.try_get(0)?, row.try_get(1)?)));
    let (epoch, committed) = row.transpose()?.unwrap_or_default();
    if epoch > standing.epoch {
        let place = options.get_database().unwrap_or_default().to_owned();
        return Err(Unfit::Fatal(StoreError::Fenced(place)));
    }
    if epoch < standing.epoch || committed < standing.committed {
        return Err(Unfit::Behind(committed));
    }
    Ok(connection)
}

/// An error that a person has to do something about, and no other host makes good.
fn refused(address: &Address, error: &sqlx::Error) -> Option<StoreError> {
    let (place, why) = (address.to_string(), error.to_string());
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
pub(super) fn is_passing(error: &StoreError) -> bool {
    match error {
        StoreError::Sql(error) => match code(error) {
            Some(code) => {
                let class = code.get(..2).unwrap_or_default();
                matches!(class, "08" | "40" | "53" | "57" | "58") || code == "25006"
            }
            None => {
                matches!(error, sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_))
            }
        },
        StoreError::Unreachable { .. } | StoreError::ReadOnly { .. } => true,
        _ => false,
    }
}

/// Whether somebody else did the same at the same time.
pub(super) fn is_race(error: &StoreError) -> bool {
    let StoreError::Sql(error) = error else { return false };
    code(error).is_some_and(|code| matches!(code.as_str(), "23505" | "42P07" | "40001" | "40P01"))
}

/// Says goodbye.
pub(super) async fn close(connection: PgConnection) -> Result<(), StoreError> {
    Ok(within(STATEMENT_TIMEOUT, connection.close()).await?)
}
