//! Settings of an edge of a fleet.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use bitmesh_core::fleet::{HOLD_DEFAULT, HOLD_MAX, HOLD_MIN, Hold};
use clap::Args;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{Common, SourceConfig, merge};
use crate::{
    secret::{self, SecretError},
    store::{Address, Fleet, Place},
    wallet::{self, Seed},
};

/// Where the host's name is.
const HOST_NAME: &str = "/proc/sys/kernel/hostname";
/// Longest name of an edge.
const EDGE_NAME_MAX: usize = 64;
/// Name of systemd's credential with the database's password.
const CREDENTIAL: &str = "bitmesh-store-password";

/// Which fleet, and which edge of it.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
pub struct FleetArgs {
    /// PostgreSQL database that the edges of a fleet share, as `postgres://USER@HOST/DATABASE`; several
    /// hosts with commas between: the one that takes writes is used. With
    /// `?sslmode=verify-full&sslrootcert=FILE` hosts have to show a certificate. All edges have one seed
    /// [default: a file, for one box]
    #[arg(long, value_name = "URL", env = "BITMESH_STORE", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
    /// File with the database's password
    /// [default: systemd's credential bitmesh-store-password, else PGPASSFILE or ~/.pgpass]
    #[arg(long, value_name = "FILE", env = "BITMESH_STORE_PASSWORD_FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store_password_file: Option<PathBuf>,
    /// This edge's name in its fleet, which no other has [default: the host's name]
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub edge: Option<String>,
    /// Seconds after which other edges take over from one that is silent; it stops a little earlier
    /// [default: 30]
    #[arg(long, value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold: Option<u64>,
}

/// An edge of a fleet.
#[derive(Clone, Debug)]
pub struct FleetConfig {
    /// The database.
    pub address: Address,
    /// The edge's name.
    pub edge: String,
    /// For how long it holds accounts without a sign of life.
    pub hold: Hold,
}

impl FleetArgs {
    /// With what the file says that is named, below the flags.
    pub(crate) fn with_file(self, file: Option<&Path>) -> Result<Self> {
        merge(file, self)
    }

    /// Checks everything, and reads the password: to be done while there are rights to.
    pub(crate) fn resolve(&self) -> Result<Option<FleetConfig>> {
        let Some(mut fleet) = self.judge()? else { return Ok(None) };
        fleet.find_password(self.store_password_file.as_deref())?;
        Ok(Some(fleet))
    }

    /// The same, and touches nothing.
    pub(super) fn judge(&self) -> Result<Option<FleetConfig>> {
        let Some(store) = &self.store else {
            if self.edge.is_some() || self.hold.is_some() || self.store_password_file.is_some() {
                bail!(
                    "--edge, --hold and --store-password-file are of a fleet: name its database with \
                     --store"
                );
            }
            return Ok(None);
        };
        let address = store.parse().context("--store")?;
        let edge = match &self.edge {
            Some(edge) => edge.clone(),
            None => fs::read_to_string(HOST_NAME).unwrap_or_default().trim().to_owned(),
        };
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        if edge.is_empty() || edge.len() > EDGE_NAME_MAX || !edge.bytes().all(fits) {
            bail!(
                "{edge:?} is no name for an edge: give one with --edge, of up to {EDGE_NAME_MAX} \
                 letters, digits, dots and dashes"
            );
        }
        let seconds = self.hold.map_or(HOLD_DEFAULT, Duration::from_secs);
        let Some(hold) = Hold::new(seconds) else {
            bail!(
                "--hold {}: take {} to {} seconds",
                seconds.as_secs(),
                HOLD_MIN.as_secs(),
                HOLD_MAX.as_secs()
            );
        };
        Ok(Some(FleetConfig { address, edge, hold }))
    }
}

impl FleetConfig {
    /// Whether blocks from there do for an edge.
    pub(crate) fn check_source(source: &SourceConfig) -> Result<()> {
        if matches!(source, SourceConfig::Light { .. }) {
            bail!(
                "--store takes a source that gives every block whole, since accounts come with \
                 channels that were not watched before: name a node with --node"
            );
        }
        Ok(())
    }

    /// Finds the password that is kept apart from the address.
    fn find_password(&mut self, file: Option<&Path>) -> Result<()> {
        let password = match secret::find(file, CREDENTIAL) {
            // The unit hands in an empty one where a box has none.
            Err(SecretError::Empty(_)) if file.is_none() => None,
            found => found.context("the database's password")?,
        };
        if self.address.names_password() {
            warn!(
                "the database's password stands in --store, where others may read it: better put it \
                 into a file of mode 0600, and name that with --store-password-file"
            );
            if password.is_some() {
                bail!(
                    "--store names one password and a file holds another: take the one in --store out"
                );
            }
        }
        if let Some(password) = password {
            self.address = self.address.clone().with_password(&password);
        }
        Ok(())
    }

    /// Where the ledger is of the edge whose data directory and seed these are.
    pub fn ledger(&self, common: &Common, seed: &Seed) -> Place {
        let fleet = Fleet {
            address: self.address.clone(),
            edge: self.edge.clone(),
            hold: self.hold.get(),
            seed: wallet::fingerprint(seed.words(), common.network).to_string(),
        };
        Place { fleet: Some(fleet), ..common.ledger() }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn args(store: Option<&str>) -> FleetArgs {
        let edge = Some("one".into());
        FleetArgs { store: store.map(str::to_owned), edge, ..FleetArgs::default() }
    }

    #[test]
    fn a_password_comes_from_its_file_and_shows_nowhere() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("password");
        fs::write(&file, "hunter2\n").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let named = FleetArgs {
            store_password_file: Some(file.clone()),
            ..args(Some("postgres://me@one,two/fleet"))
        };
        let fleet = named.resolve().unwrap().unwrap();
        assert!(fleet.address.has_password("hunter2"));
        let shown = format!("{fleet:?} {}", fleet.address);
        assert!(!shown.contains("hunter2"), "{shown}");
        // Read again without rights, as a reload is.
        fs::remove_file(&file).unwrap();
        assert!(named.judge().is_ok());
        let error = format!("{:#}", named.resolve().unwrap_err());
        assert!(error.contains("the database's password"), "{error}");
    }

    #[test]
    fn what_is_wrong_with_a_fleet_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("password");
        fs::write(&file, "hunter2\n").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let url = "postgres://me@one/fleet";
        let other = "postgres://me:secret@one/fleet";
        let password = |store| FleetArgs { store_password_file: Some(file.clone()), ..args(store) };
        for (args, told) in [
            (args(None), "--store"),
            (password(None), "--store"),
            (password(Some(other)), "one password"),
            (FleetArgs { hold: Some(1), ..args(Some(url)) }, "--hold 1: take 2 to"),
            (FleetArgs { edge: Some("a b".into()), ..args(Some(url)) }, "--edge"),
            (args(Some("mysql://one")), "--store"),
        ] {
            let error = format!("{:#}", args.resolve().unwrap_err());
            assert!(error.contains(told) && !error.contains("secret"), "{args:?}: {error}");
        }
    }
}
