//! What a daemon tells of itself: figures for Prometheus, health, logs, and word to systemd.
//!
//! It reads and tells; it decides nothing. Money and octets are told as the ledger has them, so that
//! they go on over restarts; what is counted while running (requests, connections) starts at zero
//! with the process, as Prometheus expects of counters.

mod figures;
mod health;
mod log;
mod notify;

pub use figures::{figures, float, install, render, upkeep};
pub use health::Health;
pub use log::{LogFormat, check_filter, set_filter, start_log};
pub use notify::{Life, Notifier, pulse};
