//! PostgreSQL: the suite on a real server, and what is a fleet's alone.

mod faults;
mod late;
mod looking;
mod moving;
mod roaming;
mod seizing;
#[path = "../../../../tests/src/postgres.rs"]
mod server;

use std::{
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tempfile::TempDir;

use self::server::{PASSWORD, Server, USER, here};
use super::*;
use crate::store::postgres::FleetChange;

/// One server for all tests that do it no harm; gone with the last of them.
static SHARED: Mutex<Weak<Server<'static>>> = Mutex::new(Weak::new());
/// Each test has a database of its own.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// A prefix that `bitmesh-tests` sweeps away after a run that was killed.
fn prefix() -> String {
    format!("bm-{}-unit-", std::process::id())
}

fn shared() -> Arc<Server<'static>> {
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(server) = shared.upgrade() {
        return server;
    }
    let server = Arc::new(Server::start(&prefix(), here(), "").unwrap());
    *shared = Arc::downgrade(&server);
    server
}

/// A database of its own, and an edge's directory.
pub(super) struct Database {
    server: Arc<Server<'static>>,
    name: String,
    directory: TempDir,
    edge: &'static str,
}

impl Database {
    pub(super) fn fresh() -> Self {
        tokio::task::block_in_place(|| {
            let server = shared();
            let name = format!("fleet_{}", NEXT.fetch_add(1, Ordering::Relaxed));
            server.create(&name).unwrap();
            Self { server, name, directory: tempfile::tempdir().unwrap(), edge: "one" }
        })
    }

    /// Another edge of the same fleet.
    fn edge(&self, edge: &'static str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self { server: Arc::clone(&self.server), name: self.name.clone(), directory, edge }
    }

    fn sql(&self, statement: &str) -> String {
        tokio::task::block_in_place(|| self.server.sql(&self.name, statement).unwrap())
    }

    /// Does something in a transaction that ends after a while; it has begun when this returns.
    async fn hold(&self, statement: &str, time: Duration) -> tokio::task::JoinHandle<()> {
        let (server, name) = (Arc::clone(&self.server), self.name.clone());
        let held = format!("BEGIN; {statement}; SELECT pg_sleep({}); COMMIT", time.as_secs());
        let holding = tokio::task::spawn_blocking(move || drop(server.sql(&name, &held).unwrap()));
        let sleeps = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' \
            AND datname = current_database()";
        while self.sql(sleeps) != "1" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        holding
    }

    fn url(&self) -> String {
        let socket = self.server.socket().display();
        format!("postgres://{USER}:{PASSWORD}@localhost/{}?host={socket}", self.name)
    }
}

fn fleet(url: &str, edge: &str) -> Fleet {
    Fleet {
        address: url.parse().unwrap(),
        edge: edge.into(),
        hold: Duration::from_millis(500),
        seed: "the same words".into(),
    }
}

impl Home for Database {
    const SUMS: bool = false;

    fn place(&self) -> Place {
        let fleet = Some(fleet(&self.url(), self.edge));
        Place { directory: self.directory.path().to_owned(), fleet }
    }

    async fn execute(&self, statement: &str) {
        self.sql(statement);
    }
}

#[expect(clippy::unused_async, reason = "the suite awaits what makes a ledger")]
async fn fresh() -> Option<Database> {
    Some(Database::fresh())
}

super::suite!(suite, super::fresh);

/// An edge as it is once it was fenced.
fn since(edge: &EdgeRow) -> EdgeRow {
    EdgeRow { epoch: edge.epoch + 1, ..edge.clone() }
}

/// Fences an edge that was not heard of since, and takes all its accounts.
async fn take_over(store: &mut Store, edge: &EdgeRow) -> Result<bool, StoreError> {
    let fenced = store.fence(edge).await?;
    let edge = since(edge);
    while fenced && store.seize(&edge, 1).await? > 0 {}
    Ok(fenced)
}

async fn refusal(home: &Database, change: impl FnOnce(&mut Fleet)) -> String {
    let mut place = home.place();
    change(place.fleet.as_mut().unwrap());
    Store::open(&place, StoreRole::Provider, Network::Regtest).await.unwrap_err().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_database_is_told_with_what_to_do() {
    let home = Database::fresh();
    let socket = home.server.socket().display().to_string();
    let at = |user: &str, database: &str, host: &str| {
        format!("postgres://{user}@localhost/{database}?host={host}").parse().unwrap()
    };
    let wrong = at("bitmesh:wrong", &home.name, &socket);
    let error = refusal(&home, |fleet| fleet.address = wrong).await;
    assert!(error.contains(".pgpass") && !error.contains("wrong"), "{error}");
    let missing = at("bitmesh:lab", "nowhere", &socket);
    let error = refusal(&home, |fleet| fleet.address = missing).await;
    assert!(error.contains("createdb --owner=bitmesh nowhere"), "{error}");
    let unreachable = at("bitmesh:lab", &home.name, "/nowhere");
    let error = refusal(&home, |fleet| fleet.address = unreachable).await;
    assert!(error.contains("Start the server"), "{error}");
    let store = open(&home).await.unwrap();
    let kept = store.kept();
    assert_eq!((kept.engine.as_str(), kept.warnings.len()), ("PostgreSQL", 0), "{kept:?}");
    assert!(kept.version.starts_with(|c: char| c.is_ascii_digit()), "{kept:?}");
    assert!(kept.place.ends_with(&home.name) && !kept.place.contains(PASSWORD), "{kept:?}");
    store.close().await.unwrap();
    let error = refusal(&home, |fleet| fleet.seed = "other words".into()).await;
    assert!(error.contains("another seed"), "{error}");
    home.sql(&format!("ALTER DATABASE {} SET default_transaction_read_only = on", home.name));
    let error = refusal(&home, |_| {}).await;
    assert!(error.contains("promote a standby"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn edges_that_start_at_once_make_the_tables_once_and_get_numbers_of_their_own() {
    let home = Database::fresh();
    let homes = ["one", "two", "three", "four"].map(|name| home.edge(name));
    let stores: Vec<_> = futures_util::future::join_all(homes.iter().map(open)).await;
    let mut numbers = Vec::new();
    for store in stores {
        let mut store = store.unwrap();
        numbers.push(store.edge().unwrap().get());
        store.close().await.unwrap();
    }
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 2, 3, 4]);
}
