//! The adapters around the rules in `bitmesh-core`: kernel, chain, wallet, store, API, terminal.

pub mod api;
pub mod bench;
pub mod chain;
pub mod cli;
pub mod config;
pub mod dataplane;
pub mod doctor;
mod footprint;
pub mod gateway;
pub mod guard;
pub mod http;
pub mod runloop;
pub mod secret;
pub mod store;
pub mod telemetry;
mod terminal;
pub mod wallet;
