//! The seed, opened before anything else: a daemon may give up what it takes to read it.

use std::io::IsTerminal as _;

use anyhow::Result;
use tracing::warn;

use crate::{
    config::Common,
    terminal::{ask_new_passphrase, ask_passphrase},
    wallet::{Passphrase, Sealed, Seed, SeedError, VaultError, Words, seed},
};

/// Passphrases that may be typed before the command ends.
const TRIES: u32 = 3;

/// The seed of a data directory; new words, on no disk yet, where there is none.
pub fn unlock(common: &Common) -> Result<Seed> {
    match Sealed::read(&common.data_dir) {
        Ok(sealed) => open(&sealed.on(common.network)?, given(common)?.as_ref()),
        Err(SeedError::Missing(path)) if path == seed::path(&common.data_dir) => {
            Ok(Seed::new(Words::generate()?, new_passphrase(common)?)?)
        }
        Err(error) => Err(error.into()),
    }
}

/// The passphrase for a new seed: one that was given, or is typed.
pub fn new_passphrase(common: &Common) -> Result<Option<Passphrase>> {
    match given(common)? {
        None if is_terminal() => ask_new_passphrase(),
        given => Ok(given),
    }
}

fn given(common: &Common) -> Result<Option<Passphrase>, SeedError> {
    Passphrase::find(common.passphrase_file.as_deref())
}

/// Opens a seed with what was given, or with what is typed.
fn open(sealed: &Sealed, given: Option<&Passphrase>) -> Result<Seed> {
    if !sealed.takes_passphrase() && given.is_some() {
        warn!(
            "a passphrase was given, and the seed is kept with a random key beside it: \
             `bitmesh wallet passphrase` changes that"
        );
    }
    if given.is_some() || !sealed.takes_passphrase() || !is_terminal() {
        return Ok(sealed.open(given)?);
    }
    let mut tries = TRIES;
    loop {
        tries -= 1;
        match sealed.open(Some(&ask_passphrase("Passphrase of the wallet: ")?)) {
            Err(SeedError::Vault { source: VaultError::WrongPassphrase, .. }) if tries > 0 => {
                eprintln!("That does not open it; try again.");
            }
            opened => return Ok(opened?),
        }
    }
}

/// Writes a new seed to the disk, and says what to do with it.
pub(super) fn keep(seed: &mut Seed, common: &Common, birthday: u32) -> Result<()> {
    let in_file = seed.keep(&common.data_dir, common.network, birthday)?;
    let directory = common.data_dir.display();
    warn!(
        "new seed words are sealed in {}: write them down, they bring back this wallet's money \
         (`bitmesh wallet words --data-dir {directory}`). Keep {directory} as well: channels are \
         closed with what it holds",
        seed::path(&common.data_dir).display(),
    );
    if in_file {
        warn!(
            "no passphrase was given: the key is in seed.key beside the seed, which protects copies \
             of the seed file alone. `bitmesh wallet passphrase --data-dir {directory}` sets one"
        );
    }
    Ok(())
}

fn is_terminal() -> bool {
    std::io::stdin().is_terminal()
}
