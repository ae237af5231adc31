//! A Bitcoin node for a chain of its own: the user's, or Debian's Knots beside the system's files.

use std::{env, path::PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::{
    setup::Installed,
    shell::find,
    suite::{extract, launcher, write_launcher},
};

/// The suite that has one.
const SUITE: &str = "sid";
const PACKAGE: &str = "bitcoin-knots";

/// The node's program: `BITCOIND`, then PATH, then the one that was fetched.
pub fn bitcoind() -> Option<PathBuf> {
    let named = env::var_os("BITCOIND").map(PathBuf::from);
    named.or_else(|| find("bitcoind")).or_else(|| {
        let fetched = launcher("bitcoind");
        fetched.is_file().then_some(fetched)
    })
}

/// Finds or fetches a node.
pub fn install() -> Result<(PathBuf, Installed)> {
    if let Some(program) = bitcoind() {
        if !program.is_file() {
            bail!("BITCOIND names {}, which is no program", program.display());
        }
        return Ok((program, Installed::Found));
    }
    let folder = extract(SUITE, PACKAGE, "knots", "a regtest node").context(
        "no bitcoind can be fetched here; install Bitcoin Core or Knots, or set BITCOIND to its \
         program",
    )?;
    for program in ["bitcoind", "bitcoin-cli"] {
        write_launcher(&folder, program)?;
    }
    Ok((launcher("bitcoind"), Installed::Now))
}
