//! A lone box's ledger moves into a fleet's database: whose everything is follows from its events.

use anyhow::{Context as _, Result};
use bitmesh_core::{
    bitcoin::Network, channel::ProviderEvent, controller::Controller, fleet::EdgeNumber,
};

use crate::store::{Moved, Moving, Place};

/// What a move is at, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The ledger is read and checked.
    Checking,
    /// So many rows of so many are copied.
    Copying(u64, u64),
    /// It is made the fleet's.
    Concluding,
}

/// Moves a provider's ledger, or finishes a move that was begun. With `dry` nothing is changed, but that
/// the database gets its tables.
pub async fn move_ledger(
    place: &Place,
    network: Network,
    dry: bool,
    progress: impl Fn(Step),
) -> Result<Moved> {
    progress(Step::Checking);
    let (mut moving, entries) = Moving::begin::<ProviderEvent>(place, network).await?;
    if !dry {
        match moving.finish().await? {
            Ok(moved) => return Ok(moved),
            Err(unfinished) => moving = *unfinished,
        }
    }
    // An edge of a fleet keeps whose channels were that nothing came of; its number does not matter here.
    let edge = EdgeNumber::new(1).context("edges count from 1")?;
    let mut controller = Controller::new(network, Vec::new());
    controller.join(edge, 0);
    for entry in &entries {
        controller.replay(entry)?;
    }
    let copying = |rows, all| progress(Step::Copying(rows, all));
    let written = moving.write::<ProviderEvent>(controller.members(), dry, copying).await?;
    if dry {
        return Ok(written.moved().clone());
    }
    progress(Step::Concluding);
    Ok(written.commit().await?)
}

/// Gives a move up that was begun, and of which nothing has come.
pub async fn abandon_move(place: &Place, network: Network) -> Result<()> {
    let (moving, _) = Moving::begin::<ProviderEvent>(place, network).await?;
    Ok(moving.abandon().await?)
}
