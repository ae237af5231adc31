//! Histories of channels, by seed: the real rules of provider and subscriber, real keys, signatures
//! and transactions, between a model of the kernel, of a store that crashes, of a network that loses
//! and repeats, and of a chain that reorganises; with peers that cheat.
//!
//! A seed decides everything, so that a history that goes wrong can be told again. What must hold is
//! in [`audit`], which reads journals and blocks by itself.

pub mod audit;
pub mod chain;
mod cheat;
mod crook;
mod customer;
mod kernel;
mod keys;
mod offers;
mod replay;
mod seller;
mod settle;
mod spend;
#[cfg(test)]
mod tests;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

pub use audit::Violation;
pub use world::Summary;
use world::World;

/// A rule that is broken on purpose: the simulation has to notice each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// The provider acts before the store has committed.
    ActBeforeDurable,
    /// The provider forgets the newest payment at a restart.
    ForgetNewest,
    /// The provider grants twice what was bought.
    GrantTwice,
    /// The provider doesn't see blocks from the claim margin until shortly before the expiry.
    SleepThroughMargin,
    /// The provider never raises the fee of a claim.
    NeverBump,
    /// The subscriber signs twice what it owes.
    PayDouble,
    /// The subscriber sends before the store has committed.
    SendBeforeDurable,
}

/// A history that went wrong.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Its seed.
    pub seed: u64,
    /// What was violated.
    pub violation: Violation,
}

/// Runs the history of a seed.
pub fn run(seed: u64, sabotage: Option<Sabotage>) -> Result<Summary, Failure> {
    let ran = catch_unwind(AssertUnwindSafe(|| World::new(seed, sabotage, false).run()));
    judged(seed, ran)
}

/// Runs the history of a seed, and tells it line by line.
pub fn tell(seed: u64, sabotage: Option<Sabotage>) -> (Result<Summary, Failure>, Vec<String>) {
    let mut world = World::new(seed, sabotage, true);
    let ran = catch_unwind(AssertUnwindSafe(|| world.run()));
    (judged(seed, ran), world.history())
}

/// What peers sent and stored in the history of a seed: the fuzz target that it is a seed for, a
/// name, and the octets.
pub fn samples(seed: u64) -> Vec<(&'static str, String, String)> {
    let mut world = World::new(seed, None, true);
    // A history that goes wrong has samples, too.
    drop(world.run());
    world.samples()
}

fn judged(
    seed: u64,
    ran: std::thread::Result<Result<Summary, Violation>>,
) -> Result<Summary, Failure> {
    match ran {
        Ok(ended) => ended.map_err(|violation| Failure { seed, violation }),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            let detail = text.unwrap_or_default();
            let violation = Violation { invariant: "nobody panics", detail };
            Err(Failure { seed, violation })
        }
    }
}
