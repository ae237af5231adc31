//! The rules of money and access.
//!
//! Everything here is a function of its arguments: inputs and the time come in, events and actions
//! go out. It may use the types of the Bitcoin protocol and nothing that reads a clock, a random
//! number, a file, a socket or a database; adapters in `bitmesh-user` do that. It never decides on
//! a value that was not checked, and never lets an action out before its cause is durable.

pub mod account;
pub mod alarm;
mod arena;
pub mod buyer;
pub mod channel;
pub mod controller;
mod dense;
pub mod drift;
mod few;
pub mod fleet;
mod hexadecimal;
pub mod leasing;
pub mod ledger;
pub mod offer;
pub mod payer;
pub mod pricing;
pub mod station;
pub mod succession;
pub mod units;
pub mod wire;

pub use bitcoin;
