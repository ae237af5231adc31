//! The adapters around the rules in `bitmesh-core`: kernel, chain, wallet, store, API, terminal.

pub mod api;
pub mod gateway;
pub mod store;
