//! Whether a daemon does its work: for load balancers, and for people who look once.

use bitmesh_core::alarm::Level;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::runloop::status::Status;

/// The answer to `GET /health`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Payments are taken (provider), or the loop runs (subscriber).
    pub ok: bool,
    /// Why not.
    pub failures: Vec<String>,
    /// What needs somebody, and stops nothing yet.
    pub warnings: Vec<String>,
}

impl Health {
    /// Of what the loop told just now; `None` when it told nothing.
    pub fn judge(figures: Option<&Value>) -> Self {
        let mut health = Self::default();
        let parsed = figures.map(|figures| serde_json::from_value(figures.clone()));
        match parsed {
            None => health.failures.push("the loop does not answer; look at its log".into()),
            Some(Err(error)) => health.failures.push(format!("its status can't be read: {error}")),
            Some(Ok(Status::Provider(status))) => {
                if status.offer.is_none() {
                    health.failures.push("there is no offer yet: it is starting".into());
                }
                for alarm in &status.alarms {
                    let of = match alarm.level {
                        Level::Warning => "warning",
                        Level::Error => "money is at stake",
                    };
                    health.warnings.push(format!("{of}: {}", alarm.message));
                }
                if !status.chain.synced && status.alarms.is_empty() {
                    health.warnings.push(
                        "the chain is not followed at present: no channels are opened, credit stays \
                         good"
                            .into(),
                    );
                }
            }
            Some(Ok(Status::Subscriber(status))) => health.warnings.push(status.message),
        }
        // Whatever engine it has: a store that takes nothing is the end of selling.
        let store = figures.and_then(|figures| figures.get("store"));
        let state = store.and_then(|store| store.get("state")).and_then(Value::as_str);
        if let (Some(store), Some(state)) = (store, state)
            && !matches!(state, "working" | "ok")
        {
            let error = store.get("error").and_then(Value::as_str).unwrap_or("no reason is known");
            health.failures.push(format!("the store is {state}: {error}"));
        }
        health.ok = health.failures.is_empty();
        health
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_loop_that_is_silent_or_can_not_store_is_not_healthy() {
        assert!(!Health::judge(None).ok);
        assert!(!Health::judge(Some(&json!({"role": "other"}))).ok);
        let store = json!({"store": {"state": "failed", "error": "no space"}});
        let health = Health::judge(Some(&store));
        assert!(health.failures.iter().any(|why| why.contains("no space")), "{health:?}");
    }
}
