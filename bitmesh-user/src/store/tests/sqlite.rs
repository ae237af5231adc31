//! SQLite: the suite, and what is a file's alone.

use std::path::Path;

use sqlx::{Connection as _, SqliteConnection};
use tempfile::TempDir;

use super::{Event, Home, Place, loaded, open, refused, turns};
use crate::store::{
    Look, StoreError,
    sqlite::{FILE, options},
};

/// A directory of its own.
pub(super) struct Directory(TempDir);

impl Directory {
    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Home for Directory {
    fn place(&self) -> Place {
        Place::file(self.path())
    }

    async fn execute(&self, statement: &str) {
        let path = self.path().join(FILE);
        let mut connection = SqliteConnection::connect_with(&options(&path)).await.unwrap();
        let statement = sqlx::AssertSqlSafe(statement.to_owned());
        sqlx::query(statement).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    }
}

pub(super) fn directory() -> Directory {
    Directory(tempfile::tempdir().unwrap())
}

fn fresh() -> impl Future<Output = Option<Directory>> {
    std::future::ready(Some(directory()))
}

super::suite!(suite, super::fresh);

#[tokio::test]
async fn p15_a_file_of_garbage_is_refused() {
    let home = directory();
    open(&home).await.unwrap().close().await.unwrap();
    std::fs::write(home.path().join(FILE), [0x5a; 8_192]).unwrap();
    let error = refused(&home).await.to_string();
    assert!(error.contains("database"), "{error}");
}

#[tokio::test]
async fn a_file_with_folded_journals_as_they_were_at_first_is_brought_forward() {
    let home = directory();
    let (mut store, _) = loaded(&home).await;
    store.commit(&turns(20, 5), None).await.unwrap();
    store.tidy_beyond::<Event>(0, |_| false).await.unwrap();
    store.close().await.unwrap();
    let (store, before) = loaded(&home).await;
    store.close().await.unwrap();
    for statement in [
        "ALTER TABLE channels RENAME TO wide",
        "CREATE TABLE channels (channel BLOB PRIMARY KEY NOT NULL, n INTEGER NOT NULL, \
         body TEXT NOT NULL, digest BLOB NOT NULL, seal BLOB NOT NULL) STRICT, WITHOUT ROWID",
        "INSERT INTO channels SELECT * FROM wide",
        "DROP TABLE wide",
    ] {
        home.execute(statement).await;
    }
    let place = home.place();
    let look = || Look::open(&place);
    assert!(matches!(look().await, Err(StoreError::OldLayout { found: 2, .. })));
    let (store, after) = loaded(&home).await;
    assert!(before.len() > 40 && after == before);
    store.close().await.unwrap();
    look().await.unwrap().close().await.unwrap();
}
