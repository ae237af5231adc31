//! A Bitcoin node for a chain of its own: the user's, or Debian's Knots beside the system's files.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    setup::{Installed, apt_install},
    shell::{cache, find, run_quietly},
};

/// Where the suite's packages are signed and stored; the system's own mirror where it has one.
const SUITE: &str = "sid";

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
    if find("mmdebstrap").is_none() {
        apt_install(&["mmdebstrap"]).context(
            "no bitcoind here; install Bitcoin Core or Knots, or set BITCOIND to its program",
        )?;
    }
    let folder = cache().join("knots");
    // What an interrupted run left is not whole.
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(cache())?;
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--variant=extract", "--aptopt=Acquire::Check-Valid-Until \"false\""])
        .args(["--include=bitcoin-knots", SUITE])
        .arg(&folder);
    run_quietly("fetching a regtest node, Debian's bitcoin-knots", &mut command).context(
        "no bitcoind can be fetched here; install Bitcoin Core or Knots, or set BITCOIND to its \
         program",
    )?;
    for program in ["bitcoind", "bitcoin-cli"] {
        write_launcher(&folder, program)?;
    }
    Ok((launcher("bitcoind"), Installed::Now))
}

fn launcher(program: &str) -> PathBuf {
    cache().join("bin").join(program)
}

/// The program needs its own libraries, and those the program loader that they were made for.
fn write_launcher(folder: &Path, program: &str) -> Result<()> {
    let loader = ["usr/lib64/ld-linux-x86-64.so.2", "usr/lib/ld-linux-aarch64.so.1"]
        .map(|path| folder.join(path))
        .into_iter()
        .find(|path| path.exists())
        .context("the fetched node has no program loader that is known")?;
    let libraries = fs::read_dir(folder.join("usr/lib"))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().ends_with("-linux-gnu"))
        })
        .context("the fetched node has no libraries")?;
    let script = format!(
        "#!/bin/sh\nexec '{}' --library-path '{}' '{}' \"$@\"\n",
        loader.display(),
        libraries.display(),
        folder.join("usr/bin").join(program).display()
    );
    let path = launcher(program);
    fs::create_dir_all(cache().join("bin"))?;
    fs::write(&path, script)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}
