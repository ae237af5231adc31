//! The packet fixtures, by the same test program that the host runs.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::report::tail;

const PROGRAM: &str = "/tests/packets";
const FIXTURES: &str = "/tests/fixtures";
/// How the test program's verdict begins.
const VERDICT: &str = "test result: ok. ";

pub fn run() -> Result<String> {
    let output = Command::new(PROGRAM)
        .arg("--test-threads=1")
        .env("BITMESH_PACKETS", FIXTURES)
        .output()
        .context(PROGRAM)?;
    let said = String::from_utf8_lossy(&output.stdout);
    let verdict = said.lines().find_map(|line| line.strip_prefix(VERDICT));
    match verdict {
        Some(counts) if output.status.success() && !counts.starts_with("0 passed") => {
            Ok(counts.split(';').next().unwrap_or(counts).replace("passed", "tests"))
        }
        _ => bail!("{}\n{}", output.status, tail(&said)),
    }
}
