//! A look at what every edge has, at one moment. Nothing is entered or written.

use std::{path::Path, time::Instant};

use sqlx::{Executor as _, Row as _};

use super::{
    Address, PostgresEngine, Watch,
    connect::{self, Connected, Known, STATEMENT_TIMEOUT, Standing, within},
    history, sql,
};
use crate::store::{
    StoreError,
    schema::{self, LAYOUT},
};

/// Of no edge.
const NONE: Standing = Standing { edge: -1, epoch: 0, committed: 0 };

impl PostgresEngine {
    /// Looks at a database, which may be used meanwhile. `directory` may be an edge's, which knows which
    /// servers are old.
    pub(in crate::store) async fn look(
        address: &Address,
        directory: &Path,
    ) -> Result<Self, StoreError> {
        let place = address.to_string();
        let history = history::read(directory)?;
        let known = Known::Edge { name: "", committed: 0 };
        let has = connect::connect(address, known, history.as_ref()).await?;
        let Connected { mut connection, server } = has;
        let row = sqlx::query(sql::HAS_LAYOUT).fetch_one(&mut connection);
        if within(STATEMENT_TIMEOUT, row).await?.try_get::<i64, _>(0)? == 0 {
            return Err(StoreError::Damaged { place, what: "it has no tables".into() });
        }
        within(STATEMENT_TIMEOUT, connection.execute(sqlx::raw_sql(sql::LOOK))).await?;
        let row = sqlx::query(schema::SELECT_LAYOUT).fetch_one(&mut connection);
        let found: i64 = within(STATEMENT_TIMEOUT, row).await?.try_get(0)?;
        if found != LAYOUT {
            return Err(StoreError::Newer { place, found, known: LAYOUT });
        }
        Ok(Self {
            place,
            address: address.clone(),
            directory: directory.to_owned(),
            connection: Some(connection),
            server,
            history,
            standing: NONE,
            counted: 0,
            seized: false,
            all: true,
            hold: std::time::Duration::MAX,
            shown: Instant::now(),
            watch: Watch::default(),
        })
    }

    /// What the database is for.
    pub(in crate::store) async fn fleets_purpose(&mut self) -> Result<String, StoreError> {
        let rows = self.rows(sqlx::query(sql::SELECT_FLEET)).await?;
        let row = rows.first().ok_or_else(|| self.damaged("it does not say what it is for"))?;
        Ok(row.try_get(0)?)
    }

    /// What is read from now on is one edge's.
    pub(in crate::store) async fn look_at(&mut self, edge: i64) -> Result<(), StoreError> {
        let rows = self.rows(sqlx::query(sql::SELECT_STANDING).bind(edge)).await?;
        let row = rows.first().ok_or_else(|| self.damaged("an edge is gone"))?;
        self.standing = Standing { edge, epoch: row.try_get(0)?, committed: row.try_get(1)? };
        self.all = false;
        Ok(())
    }

    /// What is nobody's, or of something that is not there.
    pub(super) async fn loose(&mut self) -> Result<Vec<String>, StoreError> {
        let mut found = Vec::new();
        for (what, statement) in sql::LOOSE {
            let rows = self.rows(sqlx::query(statement)).await?;
            let count: i64 = rows.first().map_or(Ok(0), |row| row.try_get(0))?;
            if count != 0 {
                found.push(format!("{count} {what}"));
            }
        }
        Ok(found)
    }
}
