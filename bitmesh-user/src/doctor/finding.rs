//! What the doctor found, in one form for people and for programs.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Good to know, or could not be checked.
    Note,
    /// Works, but worse than it could.
    Warning,
    /// Does not work, or counts wrongly.
    Failure,
}

/// One check and its outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Names the check; stays the same from version to version.
    pub id: String,
    /// The port that it is about; `None` for the machine.
    pub port: Option<String>,
    /// How bad it is.
    pub level: Level,
    /// What was seen.
    pub seen: String,
    /// What to do about it, if anything.
    pub advice: Option<String>,
}

impl Finding {
    /// All is well.
    pub(super) fn ok(id: &str, seen: impl Into<String>) -> Self {
        Self::new(Level::Ok, id, seen)
    }

    /// Something to know.
    pub(super) fn note(id: &str, seen: impl Into<String>) -> Self {
        Self::new(Level::Note, id, seen)
    }

    /// Something to improve.
    pub(super) fn warning(id: &str, seen: impl Into<String>) -> Self {
        Self::new(Level::Warning, id, seen)
    }

    /// Something to repair.
    pub(super) fn failure(id: &str, seen: impl Into<String>) -> Self {
        Self::new(Level::Failure, id, seen)
    }

    /// A check that needs root, without it.
    pub(super) fn unchecked(id: &str, why: impl fmt::Display) -> Self {
        Self::note(id, format!("could not be checked: {why}"))
            .advice("run `bitmesh doctor` as root")
    }

    pub(super) fn advice(self, advice: impl Into<String>) -> Self {
        Self { advice: Some(advice.into()), ..self }
    }

    pub(super) fn of_port(self, port: &str) -> Self {
        Self { port: Some(port.to_owned()), ..self }
    }

    fn new(level: Level, id: &str, seen: impl Into<String>) -> Self {
        Self { id: id.to_owned(), port: None, level, seen: seen.into(), advice: None }
    }
}

/// A port and the hook for what its stations send.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortHook {
    /// The port.
    pub port: String,
    /// What it is: `device`, `radio`, or the kernel's kind.
    pub kind: String,
    /// Its driver, as far as it says.
    pub driver: Option<String>,
    /// The hook for uploads; `None` where `bitmesh sell` refuses the port.
    pub hook: Option<String>,
    /// Why this hook, or why none.
    pub why: String,
    /// What to know about the hook, if anything.
    pub warning: Option<String>,
}

/// All that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Whether nothing failed.
    pub healthy: bool,
    /// The checks, the machine's first.
    pub findings: Vec<Finding>,
    /// The ports that were named, or every one that stations could be on.
    pub ports: Vec<PortHook>,
}

impl Report {
    pub(super) fn new(findings: Vec<Finding>, ports: Vec<PortHook>) -> Self {
        let healthy = findings.iter().all(|finding| finding.level < Level::Failure);
        Self { healthy, findings, ports }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failure_makes_it_unhealthy_and_any_number_of_warnings_does_not() {
        let warnings = vec![Finding::warning("x", ""), Finding::note("y", "")];
        assert!(Report::new(warnings.clone(), Vec::new()).healthy);
        let worse = [warnings, vec![Finding::failure("z", "")]].concat();
        assert!(!Report::new(worse, Vec::new()).healthy);
    }
}
