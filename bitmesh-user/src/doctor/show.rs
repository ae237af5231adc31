//! The report as tables for a terminal.

use super::finding::{Finding, Level, Report};
use crate::terminal::table;

/// Checks, then ports with their hooks, then the sum.
pub(super) fn report(report: &Report) -> String {
    let mut checks = table(&["", "check", "seen", "what to do"]);
    for finding in &report.findings {
        let check = match &finding.port {
            Some(port) => format!("{port} {}", finding.id),
            None => finding.id.clone(),
        };
        let advice = finding.advice.clone().unwrap_or_default();
        checks.add_row([symbol(finding.level).to_owned(), check, finding.seen.clone(), advice]);
    }
    let mut ports = table(&["port", "is", "driver", "uploads by", "why"]);
    for port in &report.ports {
        let why = match &port.warning {
            Some(warning) => format!("{}; WARNING: {warning}", port.why),
            None => port.why.clone(),
        };
        ports.add_row([
            port.port.clone(),
            port.kind.clone(),
            port.driver.clone().unwrap_or_else(|| "-".to_owned()),
            port.hook.clone().unwrap_or_else(|| "refused".to_owned()),
            why,
        ]);
    }
    let sum = sum(&report.findings);
    if report.ports.is_empty() {
        return format!("{checks}\n\n{sum}");
    }
    format!("{checks}\n\n{ports}\n\n{sum}")
}

fn symbol(level: Level) -> &'static str {
    match level {
        Level::Ok => "✓",
        Level::Note => "i",
        Level::Warning => "!",
        Level::Failure => "✗",
    }
}

fn sum(findings: &[Finding]) -> String {
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    format!(
        "✓ {} as they should be, i {} to know, ! {} to improve, ✗ {} to repair",
        count(Level::Ok),
        count(Level::Note),
        count(Level::Warning),
        count(Level::Failure)
    )
}
