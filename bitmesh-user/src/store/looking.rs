//! A look at a fleet's database: every edge's ledger, as it is at one moment.

use std::path::Path;

use bitcoin::Network;
use bitmesh_core::{
    bitcoin,
    channel::{Compact, Entry},
};
use serde::de::DeserializeOwned;

use super::{
    Address, EdgeRow, StoreError, StoreRole,
    engine::Engine as _,
    known::Known,
    load,
    postgres::PostgresEngine,
    schema,
    upkeep::{Facts, parse_purpose},
};

/// A fleet's database. Nothing of it is changed, and its edges may go on writing.
#[derive(Debug)]
pub struct FleetLook {
    engine: PostgresEngine,
}

impl FleetLook {
    /// Looks at a database; from an edge's data directory, or another.
    pub async fn open(address: &Address, directory: &Path) -> Result<Self, StoreError> {
        Ok(Self { engine: PostgresEngine::look(address, directory).await? })
    }

    /// What it is for.
    pub async fn purpose(&mut self) -> Result<(StoreRole, Network), StoreError> {
        let purpose = self.engine.fleets_purpose().await?;
        let what = "it does not say what it is for";
        parse_purpose(&purpose).ok_or_else(|| load::damaged(&self.engine, what.into()))
    }

    /// Every edge.
    pub async fn edges(&mut self) -> Result<Vec<EdgeRow>, StoreError> {
        self.engine.edges().await
    }

    /// What is wrong with it as a whole: every chain and digest is checked, also of accounts that are on
    /// their way, and what is nobody's is looked for. To be done first.
    pub async fn problems<E>(&mut self) -> Result<Vec<String>, StoreError>
    where
        E: DeserializeOwned + Compact + Send + 'static,
    {
        let mut problems = self.engine.integrity().await?;
        match load::load::<E>(&mut self.engine, &mut Known::default()).await {
            Ok(_) => {}
            Err(StoreError::Damaged { what, .. }) => problems.push(what),
            Err(error) => return Err(error),
        }
        Ok(problems)
    }

    /// Everything that an edge has.
    pub async fn entries<E>(&mut self, edge: &EdgeRow) -> Result<(Vec<Entry<E>>, Facts), StoreError>
    where
        E: DeserializeOwned + Compact + Send + 'static,
    {
        self.engine.look_at(edge.number.get().into()).await?;
        let mut known = Known::default();
        let entries = load::load(&mut self.engine, &mut known).await?;
        let facts = Facts {
            ledger: format!("{}, edge {}", self.engine.place(), edge.name),
            layout: schema::LAYOUT,
            commits: known.mark.committed,
            witness: None,
            newest: true,
            journal_rows: known.journal_rows,
            channels: known.tails.len(),
            wallet_changes: known.wallet.0,
        };
        Ok((entries, facts))
    }

    /// What was found, where there is no edge to tell it of.
    pub fn damaged(&self, what: String) -> StoreError {
        load::damaged(&self.engine, what)
    }

    /// Lets it go.
    pub async fn close(self) -> Result<(), StoreError> {
        Box::new(self.engine).close().await
    }
}
