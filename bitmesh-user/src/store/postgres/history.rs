//! Which server a ledger is at: the cluster's identity and how often one of it was promoted. An edge keeps
//! what it saw last in its data directory, and goes on with nothing older: of two servers that both
//! take writes, the one that was promoted later has what was acknowledged.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, Row as _};

use super::{
    connect::{Connected, STATEMENT_TIMEOUT, within},
    identity, sql,
};
use crate::store::StoreError;

/// Name of the file in the data directory.
pub(in crate::store) const FILE: &str = "bitmesh.cluster";

/// What the only engine calls itself that tells its history.
const POSTGRESQL: &str = "PostgreSQL";
/// A function that there is not, or that is not supported (SQLSTATE).
const UNKNOWN: [&str; 2] = ["42883", "0A000"];

/// Where in a cluster's life something was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct History {
    /// Of the cluster: its copies have the same (`pg_control_system()`).
    pub system: String,
    /// Grows with each promotion (PostgreSQL's documentation, chapter on continuous archiving,
    /// "Timelines").
    pub timeline: i64,
}

/// What a server that takes writes says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Server {
    pub host: String,
    /// What it is, as `PostgreSQL`, and its version.
    pub engine: String,
    pub version: String,
    /// None, where it is no PostgreSQL: what speaks its protocol has its own way to agree.
    pub history: Option<History>,
    /// Whether a commit waits for a standby. None, where it is no PostgreSQL.
    pub synchronous: Option<bool>,
    /// Whether what is written is on its disk, whole, once it says so. None, where it is no PostgreSQL.
    pub writes_through: Option<bool>,
}

/// Why no server is used.
pub(super) enum Unused {
    /// There is none.
    None,
    /// There is one, which can't be the right one.
    Other(String),
}

/// Asks a server what it is.
pub(super) async fn ask(to: &mut PgConnection, host: &str) -> Result<Server, sqlx::Error> {
    let row = within(STATEMENT_TIMEOUT, sqlx::query(sql::SERVER).fetch_one(&mut *to)).await?;
    let told: String = row.try_get(0)?;
    let standbys: Option<String> = row.try_get(1)?;
    let disk: [Option<String>; 2] = [row.try_get(2)?, row.try_get(3)?];
    let (engine, version) = split_version(&told);
    let mut server = Server { host: host.to_owned(), engine, version, ..Server::default() };
    let history = sqlx::query(sql::HISTORY).persistent(false).fetch_one(to);
    match within(STATEMENT_TIMEOUT, history).await {
        Ok(row) => {
            server.history = Some(History { system: row.try_get(0)?, timeline: row.try_get(1)? });
            server.synchronous = standbys.map(|names| !names.is_empty());
            server.writes_through = Some(disk.iter().flatten().all(|setting| setting == "on"));
        }
        // It has no such functions.
        Err(sqlx::Error::Database(error))
            if server.engine != POSTGRESQL
                || error.code().is_some_and(|code| UNKNOWN.contains(&code.as_ref())) => {}
        Err(error) => return Err(error),
    }
    Ok(server)
}

/// `PostgreSQL 17.4 (Debian 17.4-1) on x86_64...` comes to the first two words.
fn split_version(told: &str) -> (String, String) {
    let mut words = told.split_whitespace();
    let engine = words.next().unwrap_or(POSTGRESQL).to_owned();
    let version = words.find(|word| word.contains(|c: char| c.is_ascii_digit()));
    (engine, version.unwrap_or_default().trim_end_matches(',').to_owned())
}

/// Of servers that take writes, the one to use.
pub(super) fn choose(
    writable: Vec<Connected>,
    seen: Option<&History>,
) -> Result<Connected, Unused> {
    let mut others = Vec::new();
    let mut fit: Vec<Connected> = Vec::new();
    for connected in writable {
        match why_not(&connected.server, seen) {
            Some(why) => others.push(format!("{}: {why}", connected.server.host)),
            None => fit.push(connected),
        }
    }
    let systems = fit.iter().filter_map(|one| one.server.history.as_ref());
    let mut systems: Vec<_> = systems.map(|history| &history.system).collect();
    systems.sort_unstable();
    systems.dedup();
    if systems.len() > 1 {
        return Err(Unused::Other("the hosts that it names are of different clusters".into()));
    }
    // The first of those that were promoted last.
    let timeline = |one: &Connected| one.server.history.as_ref().map(|history| history.timeline);
    let newest = fit.iter().map(timeline).max();
    let at = newest.and_then(|newest| fit.iter().position(|one| timeline(one) == newest));
    match at {
        Some(at) => Ok(fit.swap_remove(at)),
        None if others.is_empty() => Err(Unused::None),
        None => Err(Unused::Other(others.join("; "))),
    }
}

/// Why a server can't be the one that `seen` was seen of, or one that follows it.
fn why_not(server: &Server, seen: Option<&History>) -> Option<String> {
    let seen = seen?;
    match &server.history {
        None => Some(format!("it is {}, and the ledger was at a PostgreSQL server", server.engine)),
        Some(now) if now.system != seen.system => Some("it is of another cluster".into()),
        Some(now) if now.timeline < seen.timeline => Some(format!(
            "it is on timeline {}, and another server was promoted to {} meanwhile",
            now.timeline, seen.timeline
        )),
        Some(_) => None,
    }
}

/// What was seen last from a data directory.
pub(super) fn read(directory: &Path) -> Result<Option<History>, StoreError> {
    let path = directory.join(FILE);
    match fs::read_to_string(&path) {
        Ok(text) => {
            let source = |error| io::Error::new(io::ErrorKind::InvalidData, error);
            let history = serde_json::from_str(&text).map_err(source);
            history.map(Some).map_err(|source| StoreError::Io { path, source })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StoreError::Io { path, source }),
    }
}

/// Notes what is seen from a data directory now, durably, before anything is written there.
pub(super) fn note(directory: &Path, history: &History) -> Result<(), StoreError> {
    let path: PathBuf = directory.join(FILE);
    identity::write_durably(&path, &serde_json::to_string(history).map_err(StoreError::Encode)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_named_with_its_version() {
        let of = |told| split_version(told);
        let told =
            "PostgreSQL 17.4 (Debian 17.4-1.pgdg120+2) on x86_64-pc-linux-gnu, compiled by gcc";
        assert_eq!(of(told), ("PostgreSQL".into(), "17.4".into()));
        let told = "CockroachDB CCL v24.1.2 (x86_64-pc-linux-gnu, built 2024/07/03)";
        assert_eq!(of(told), ("CockroachDB".into(), "v24.1.2".into()));
        assert_eq!(of(""), ("PostgreSQL".into(), String::new()));
    }

    #[test]
    fn a_server_of_an_older_history_is_not_used() {
        let seen = History { system: "7".into(), timeline: 3 };
        let at = |system: &str, timeline| Server {
            history: Some(History { system: system.into(), timeline }),
            ..Server::default()
        };
        assert_eq!(why_not(&at("7", 3), Some(&seen)), None);
        assert_eq!(why_not(&at("7", 4), Some(&seen)), None);
        assert!(why_not(&at("7", 2), Some(&seen)).unwrap().contains("promoted to 3"));
        assert!(why_not(&at("8", 3), Some(&seen)).unwrap().contains("another cluster"));
        assert!(why_not(&Server::default(), Some(&seen)).is_some());
        assert_eq!(why_not(&at("8", 1), None), None);
    }
}
