//! Which edge we are: a name in the database, and a secret in the data directory that says that the
//! name is ours. The secret is another after each start, so that of two copies of a data
//! directory one at most goes on.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use bitmesh_core::fleet::EDGES_MAX;
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, Row as _};
use tokio::time::{Instant, sleep};

use super::{
    connect::{STATEMENT_TIMEOUT, within},
    sql,
    write::run,
};
use crate::store::StoreError;

/// Name of the file with the secrets.
pub(in crate::store) const FILE: &str = "edge";
/// Where a machine's name is, which no two have.
const MACHINE: &str = "/etc/machine-id";
/// Octets of a secret.
const TOKEN_OCTETS: usize = 16;
/// What is waited beyond another's hold before its name is taken.
const MARGIN: Duration = Duration::from_secs(2);
/// How often it is looked whether another is alive: an edge beats twice a second.
const LOOK: Duration = Duration::from_millis(500);

/// What is in the file.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Secrets {
    name: String,
    /// Of the machine that it was written on: a copy on another may be of an edge that lives.
    machine: String,
    /// Newest first. The second is in force until the database has the first.
    tokens: Vec<String>,
}

/// An edge, entered into the database.
#[derive(Debug)]
pub(super) struct Entered {
    pub number: i64,
    pub epoch: i64,
    pub committed: i64,
    /// The highest that it counted to.
    pub seq: i64,
    /// Another edge took over this one's accounts since it was entered last.
    pub seized: bool,
}

/// Whether this directory has been this edge's: what its witness saw is of another ledger else.
pub(super) fn is_ours(directory: &Path, name: &str) -> Result<bool, StoreError> {
    let known = read(&directory.join(FILE))?;
    Ok(known.name == name && !known.tokens.is_empty())
}

/// Makes a directory an edge's that the database does not have yet: its secret, in hexadecimal digits.
pub(super) fn claim(directory: &Path, name: &str) -> Result<String, StoreError> {
    let path = directory.join(FILE);
    let token = hex::encode(fresh_token(&path)?);
    let tokens = vec![token.clone()];
    write(&path, &Secrets { name: name.to_owned(), machine: machine(), tokens })?;
    Ok(token)
}

fn fresh_token(path: &Path) -> Result<[u8; TOKEN_OCTETS], StoreError> {
    let mut token = [0; TOKEN_OCTETS];
    getrandom::fill(&mut token)
        .map_err(|error| StoreError::Io { path: path.into(), source: io::Error::other(error) })?;
    Ok(token)
}

/// Enters the edge, which fences whoever was it before.
pub(super) async fn enter(
    to: &mut PgConnection,
    directory: &Path,
    name: &str,
    hold: Duration,
) -> Result<Entered, StoreError> {
    let path = directory.join(FILE);
    let known = read(&path)?;
    let machine = machine();
    let here = known.name == name && known.machine == machine;
    let known = if here { known.tokens } else { Vec::new() };
    let token = fresh_token(&path)?;
    let fresh = hex::encode(token);
    let tokens = [fresh.clone()].into_iter().chain(known.iter().cloned()).take(3).collect();
    write(&path, &Secrets { name: name.to_owned(), machine: machine.clone(), tokens })?;
    let hold_ms = i64::try_from(hold.as_millis()).unwrap_or(i64::MAX);
    let mut row = find(to, name).await?;
    if row.is_none() {
        insert(to, name, &token, hold_ms).await?;
        row = find(to, name).await?;
    }
    let in_use = || StoreError::EdgeTaken(name.to_owned());
    let mut row = row.ok_or_else(in_use)?;
    let ours = hex::encode(&row.token);
    if ours != fresh && !known.contains(&ours) {
        row = be_silent(to, name, row).await?;
    }
    let query =
        sqlx::query(sql::ENTER).bind(&token[..]).bind(hold_ms).bind(row.number).bind(row.epoch);
    let query = query.bind(row.beat);
    let entered = within(STATEMENT_TIMEOUT, query.fetch_optional(to)).await?.ok_or_else(in_use)?;
    write(&path, &Secrets { name: name.to_owned(), machine, tokens: vec![fresh] })?;
    Ok(Entered {
        number: row.number,
        epoch: entered.try_get(0)?,
        committed: entered.try_get(1)?,
        seq: entered.try_get(2)?,
        seized: row.seized,
    })
}

/// Makes an edge that there is not yet, with a number of its own.
pub(super) async fn insert(
    to: &mut PgConnection,
    name: &str,
    token: &[u8],
    hold_ms: i64,
) -> Result<(), StoreError> {
    let query = sqlx::query(sql::INSERT_EDGE).bind(name).bind(token).bind(hold_ms);
    let made = run(to, query.bind(i64::from(EDGES_MAX))).await?;
    if made == 1 { Ok(()) } else { Err(StoreError::FleetFull) }
}

struct Known {
    number: i64,
    token: Vec<u8>,
    epoch: i64,
    beat: i64,
    hold: Duration,
    seized: bool,
}

async fn find(to: &mut PgConnection, name: &str) -> Result<Option<Known>, StoreError> {
    let query = sqlx::query(sql::SELECT_EDGE).bind(name);
    let Some(row) = within(STATEMENT_TIMEOUT, query.fetch_optional(to)).await? else {
        return Ok(None);
    };
    let hold: i64 = row.try_get(4)?;
    Ok(Some(Known {
        number: row.try_get(0)?,
        token: row.try_get(1)?,
        epoch: row.try_get(2)?,
        beat: row.try_get(3)?,
        hold: Duration::from_millis(hold.unsigned_abs()),
        seized: row.try_get::<i64, _>(5)? != 0,
    }))
}

/// The name was another machine's: it is ours if nothing is heard from that one for longer than
/// what it granted can last. Gives what the database has of it then: another edge may have taken its accounts
/// over meanwhile, which raises its epoch and is no sign of life.
async fn be_silent(
    to: &mut PgConnection,
    name: &str,
    mut then: Known,
) -> Result<Known, StoreError> {
    let wait = then.hold + MARGIN;
    tracing::warn!(
        "edge {name} was run from another data directory; waiting {} s to see that it is gone",
        wait.as_secs()
    );
    let until = Instant::now() + wait;
    while Instant::now() < until {
        sleep(LOOK).await;
        let now = find(to, name).await?.filter(|now| now.beat == then.beat);
        let now = now.filter(|now| now.token == then.token);
        then = now.ok_or_else(|| StoreError::EdgeTaken(name.to_owned()))?;
    }
    Ok(then)
}

/// Names the machine; nothing, where it has no name.
fn machine() -> String {
    fs::read_to_string(MACHINE).unwrap_or_default().trim().to_owned()
}

fn read(path: &PathBuf) -> Result<Secrets, StoreError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Secrets::default()),
        Err(source) => return Err(StoreError::Io { path: path.clone(), source }),
    };
    // Without it the edge is as one from another directory.
    Ok(serde_json::from_str(&text).unwrap_or_default())
}

fn write(path: &Path, secrets: &Secrets) -> Result<(), StoreError> {
    write_durably(path, &serde_json::to_string(secrets).map_err(StoreError::Encode)?)
}

/// Puts a file of ours in the place of what is there: whatever happens, one of the two is there whole.
pub(super) fn write_durably(path: &Path, text: &str) -> Result<(), StoreError> {
    let fresh = path.with_extension("new");
    let put = || {
        let mut options = fs::OpenOptions::new();
        let mut file = options.create(true).write(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, path)?;
        fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    put().map_err(|source| StoreError::Io { path: path.to_owned(), source })
}
