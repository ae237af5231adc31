//! SQLite: the suite, and what is a file's alone.

use std::path::Path;

use sqlx::{Connection as _, SqliteConnection};
use tempfile::TempDir;

use super::{Home, Place, open, refused};
use crate::store::sqlite::{FILE, options};

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
