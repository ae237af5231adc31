//! A PostgreSQL server, of which tests and benches make clusters of their own.

use std::{
    env, fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    setup::{Installed, apt_install},
    shell::{as_root, run_quietly},
};

/// Debian's package of the newest version that it has.
const PACKAGE: &str = "postgresql";
/// Where Debian keeps the programs of each version.
const DEBIAN: &str = "/usr/lib/postgresql";
/// Keeps the package from making a cluster of its own, and starting it with the machine.
const NO_CLUSTER: &str = "mkdir -p /etc/postgresql-common/createcluster.d && \
    echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.d/bitmesh.conf";
/// What is installed later is the user's own affair again.
const CLUSTERS_AGAIN: &str = "rm -f /etc/postgresql-common/createcluster.d/bitmesh.conf";

/// Finds or installs a server: the folder of its programs, as tests find it.
pub fn install() -> Result<(PathBuf, Installed)> {
    if let Some(named) = env::var_os("PG_BIN").map(PathBuf::from) {
        if !named.join("initdb").is_file() {
            bail!("PG_BIN names {}, where there is no initdb", named.display());
        }
        return Ok((named, Installed::Found));
    }
    if let Some(found) = programs() {
        return Ok((found, Installed::Found));
    }
    let mut shell = as_root("sh")?;
    run_quietly("no cluster by default", shell.args(["-c", NO_CLUSTER]))?;
    let installed = apt_install(&[PACKAGE]);
    run_quietly("clusters by default", as_root("sh")?.args(["-c", CLUSTERS_AGAIN]))?;
    installed?;
    let found = programs();
    let found =
        found.context("the package postgresql brought no initdb; set PG_BIN to its folder")?;
    Ok((found, Installed::Now))
}

fn programs() -> Option<PathBuf> {
    let told = Command::new("pg_config").arg("--bindir").stderr(Stdio::null()).output().ok();
    let told = told.and_then(|output| String::from_utf8(output.stdout).ok());
    let told = told.map(|text| PathBuf::from(text.trim()));
    let debian = fs::read_dir(DEBIAN).into_iter().flatten().flatten();
    let debian = debian.map(|version| version.path().join("bin"));
    told.into_iter().chain(debian).find(|folder| folder.join("initdb").is_file())
}
