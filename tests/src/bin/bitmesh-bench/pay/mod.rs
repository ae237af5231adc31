//! Payments at speed: over HTTP into a durable ledger beside the same server that stores nothing,
//! the core's step beside bare verifications and in each kind of ledger, and what many accounts,
//! channels and stations cost.

mod fixture;
mod folding;
mod growth;
mod ledger;
mod lines;
mod load;
mod over_http;
mod process;
mod scale;
mod step;
mod town;
mod usage;

use std::time::Duration;

use anyhow::Result;
use bitmesh_user::bench::{Group, Measure};

pub use self::{growth::run as growth, scale::run as stations};

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
    /// Time of a round of payments at a fixed rate that are folded.
    paced: Duration,
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
        paced: Duration::from_secs(5),
    };
    pub const QUICK: Self = Self {
        rounds: 2,
        closed_payments: 60,
        open_payments: 60,
        step_payments: 10_000,
        stations: 100_000,
        accounts: 100_000,
        idle: Duration::from_secs(4),
        paced: Duration::from_secs(2),
    };

    /// Turns of contenders of [`payments`].
    pub fn payment_steps(self) -> usize {
        self.rounds * 6
    }

    /// Of [`growth`].
    pub fn growth_steps(self) -> usize {
        self.rounds * 2
    }

    /// Of [`keeping`].
    pub fn keeping_steps(self) -> usize {
        self.rounds * folding::CONTENDERS + (self.rounds + 1) * 2
    }

    /// Of [`stations`].
    pub fn station_steps(self) -> usize {
        self.rounds * 2 + 2
    }
}

/// Payments: of the core, durable, over HTTP.
pub fn payments(volume: Volume, before: &dyn Fn(&str)) -> Result<Vec<(Group, Vec<Measure>)>> {
    let mut done = vec![step::run(volume, before)?];
    done.extend(over_http::run(volume, before)?);
    Ok(done)
}

/// What keeping the ledger costs beside payments: folding, and usage.
pub fn keeping(volume: Volume, before: &dyn Fn(&str)) -> Result<Vec<(Group, Vec<Measure>)>> {
    let mut done = folding::run(volume, before)?;
    done.push(usage::run(volume, before)?);
    Ok(done)
}
