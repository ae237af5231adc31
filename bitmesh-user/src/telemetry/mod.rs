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

/// An error with its causes; a cause that is told already is not told again.
pub fn told(error: &anyhow::Error) -> String {
    let mut told = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !told.contains(&cause) {
            let colon = if told.is_empty() { "" } else { ": " };
            told.push_str(colon);
            told.push_str(&cause);
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreError;

    #[test]
    fn what_failed_is_told_once_with_all_causes() {
        let failed = sqlx::Error::Io(std::io::Error::other("the disk burns"));
        let failed = anyhow::Error::from(StoreError::from(failed)).context("a commit");
        let failed = told(&failed);
        assert_eq!(failed.matches("burns").count(), 1, "{failed}");
        assert!(failed.starts_with("a commit: the database: "), "{failed}");
        assert_eq!(told(&anyhow::anyhow!("no place").context("a probe")), "a probe: no place");
    }
}
