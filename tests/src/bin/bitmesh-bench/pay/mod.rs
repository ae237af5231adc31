//! Payments at speed: over HTTP into a durable ledger beside the same server that stores nothing,
//! the core's step beside bare verifications, and what many accounts cost.

mod fixture;
mod load;
mod meanwhile;
mod over_http;
pub mod scale;
mod step;
mod town;

use std::time::Duration;

use anyhow::Result;
use bitmesh_user::bench::{Group, Measure};

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub struct Volume {
    pub rounds: usize,
    /// Payments of each connection, as fast as they go.
    closed_payments: usize,
    /// The same, at a fixed rate.
    open_payments: usize,
    /// Payments of a step's round.
    step_payments: usize,
    /// Stations of an idle controller, and channels of a restart.
    stations: u32,
    /// Accounts of the largest ledger in memory.
    accounts: u32,
    idle: Duration,
}

impl Volume {
    pub const FULL: Self = Self {
        rounds: 3,
        closed_payments: 150,
        open_payments: 200,
        step_payments: 40_000,
        stations: 100_000,
        accounts: 1_000_000,
        idle: Duration::from_secs(10),
    };
    pub const QUICK: Self = Self {
        rounds: 2,
        closed_payments: 60,
        open_payments: 60,
        step_payments: 10_000,
        stations: 100_000,
        accounts: 100_000,
        idle: Duration::from_secs(4),
    };

    /// Turns of contenders.
    pub fn steps(self) -> usize {
        self.rounds * 6 + 1
    }
}

/// Payments: of the core, durable, over HTTP.
pub fn run(volume: Volume, before: &dyn Fn(&str)) -> Result<Vec<(Group, Vec<Measure>)>> {
    let mut done = step::run(volume, before)?;
    done.extend(over_http::run(volume, before)?);
    Ok(done)
}
