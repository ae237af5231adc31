//! Taking over the accounts of an edge that is silent, in steps that are short: who waits for a row of ours
//! or for one of an account waits for one step, and a step that fails is done again.
//!
//! The edge is fenced first, so that what it wrote down stays as it is. From then on each step moves some of
//! its accounts, as long as the edge has not begun anew: what it still has by then stays there.

use bitmesh_core::{fleet::LateId, units::Octets};
use sqlx::{Connection as _, Executor as _, PgConnection, Row as _, postgres::PgRow};

use super::{
    PostgresEngine,
    connect::{Standing, late},
    fleet::stand,
    sql,
    write::run,
};
use crate::store::StoreError;

/// Stations whose late usage is told at once: each step of it ends soon.
const TOLD_AT_ONCE: usize = 4_096;

impl PostgresEngine {
    /// Does some work in one transaction as who we are: until it ends nobody fences us. It ends within the
    /// time that a try of a commit has, at the server, too, since others wait for what it locks.
    async fn as_ourselves<T>(
        &mut self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let Standing { edge, epoch, .. } = self.standing;
        let (limit, fenced) = (self.try_time(), self.fenced());
        let connection = self.connected().await?;
        let done = async {
            let mut transaction = connection.begin().await?;
            let to = &mut *transaction;
            to.execute(sqlx::raw_sql(sql::bounded(limit))).await?;
            if run(to, sqlx::query(sql::TOUCH).bind(edge).bind(epoch)).await? != 1 {
                return Err(fenced);
            }
            let done = work(to).await?;
            transaction.commit().await?;
            Ok(done)
        };
        let done = tokio::time::timeout(limit, done).await;
        let done = done.unwrap_or_else(|_| Err(late(limit).into()));
        self.passed_on(done)
    }

    /// Fences an edge that was not heard of since `(epoch, beat)`: its epoch is one more then. Nothing is
    /// done, and `false` returned, when it gave a sign of life.
    pub(in crate::store) async fn fence(
        &mut self,
        edge: i64,
        epoch: i64,
        beat: i64,
    ) -> Result<bool, StoreError> {
        let fence = async move |to: &mut PgConnection| {
            Ok(run(to, sqlx::query(sql::FENCE).bind(edge).bind(epoch).bind(beat)).await? == 1)
        };
        self.as_ourselves(fence).await
    }

    /// Takes some accounts of an edge that was fenced and has this epoch and beat since, those first that
    /// somebody waits for: they come by [`Self::take`]. How many: less than `limit`, when there are no more
    /// of them.
    pub(in crate::store) async fn seize(
        &mut self,
        edge: i64,
        (epoch, beat): (i64, i64),
        limit: i64,
    ) -> Result<u64, StoreError> {
        let us = self.standing.edge;
        let seize = async move |to: &mut PgConnection| {
            let query = sqlx::query(sql::SEIZABLE).bind(edge).bind(epoch).bind(beat);
            let Some(row) = query.fetch_optional(&mut *to).await? else { return Ok(0) };
            let seq: i64 = row.try_get(0)?;
            let query = sqlx::query(super::super::schema::SELECT_BLOCKS).bind(edge);
            let mut tips = Vec::new();
            for row in query.fetch_all(&mut *to).await? {
                let hash: &[u8] = row.try_get(1)?;
                let hash = hash.try_into().map_err(|_| sqlx::Error::Decode("a hash".into()))?;
                tips.push((row.try_get(0)?, hash));
            }
            let tip = stand(to, &tips).await?;
            let query = sqlx::query(sql::SEIZE).bind(edge).bind(epoch).bind(us).bind(tip);
            run(to, query.bind(seq).bind(limit)).await
        };
        self.as_ourselves(seize).await
    }

    /// Whether another edge took over our accounts, and what the kernel still has of them was not
    /// settled yet.
    pub(in crate::store) fn seized(&self) -> bool {
        self.seized
    }

    /// What stations had used by what was written down when we were taken over, as far as it was not
    /// told what their kernel has.
    pub(in crate::store) async fn untold(&mut self) -> Result<Vec<(LateId, Octets)>, StoreError> {
        let rows = self.rows(sqlx::query(sql::SELECT_UNTOLD).bind(self.standing.edge)).await?;
        let edge = self.edge_number()?;
        let untold = |row: &PgRow| {
            let (epoch, written): (i64, i64) = (row.try_get(0)?, row.try_get(2)?);
            let station = self.station(row.try_get(1)?)?;
            let id = LateId { edge, epoch: epoch.cast_unsigned(), station };
            Ok((id, Octets(written.cast_unsigned())))
        };
        rows.iter().map(untold).collect()
    }

    /// Tells what was used beyond that; of all others, nothing was.
    pub(in crate::store) async fn tell_late(
        &mut self,
        late: &[(LateId, Octets)],
    ) -> Result<(), StoreError> {
        let edge = self.standing.edge;
        for some in late.chunks(TOLD_AT_ONCE) {
            let epochs: Vec<i64> = some.iter().map(|(id, _)| id.epoch.cast_signed()).collect();
            let stations: Vec<i64> =
                some.iter().map(|(id, _)| id.station.key().raw().cast_signed()).collect();
            let octets: Vec<i64> = some.iter().map(|(_, octets)| octets.0.cast_signed()).collect();
            let tell = async move |to: &mut PgConnection| {
                let query = sqlx::query(sql::TELL_LATE).bind(edge).bind(epochs).bind(stations);
                run(to, query.bind(octets)).await
            };
            self.as_ourselves(tell).await?;
        }
        let forget = async move |to: &mut PgConnection| {
            run(to, sqlx::query(sql::DELETE_UNTOLD).bind(edge)).await
        };
        self.as_ourselves(forget).await?;
        Ok(())
    }

    /// The kernel has nothing any more of what was taken over.
    pub(in crate::store) async fn seizure_over(&mut self) -> Result<(), StoreError> {
        let (edge, epoch) = (self.standing.edge, self.standing.epoch);
        let query = sqlx::query(sql::SEIZURE_OVER).bind(edge).bind(epoch);
        let done = run(self.connected().await?, query).await;
        if self.passed_on(done)? != 1 {
            return Err(self.fenced());
        }
        self.seized = false;
        Ok(())
    }
}
