//! What blocks are looked through for.

use std::{
    collections::HashSet,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};

use bitcoin::{Script, ScriptBuf};
use bitmesh_core::bitcoin;

/// Scripts that a block may concern: the wallet's, with those that it looks ahead for, and those
/// of channels' fundings. Shared.
#[derive(Clone, Debug, Default)]
pub struct Watched(Arc<RwLock<HashSet<ScriptBuf>>>);

impl Watched {
    /// Adds scripts that are not in it yet.
    pub fn add<S: AsRef<Script>>(&self, scripts: impl IntoIterator<Item = S>) {
        let mut watched = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for script in scripts {
            if !watched.contains(script.as_ref()) {
                watched.insert(script.as_ref().to_owned());
            }
        }
    }

    /// Takes these, and lets all others go.
    pub fn set(&self, scripts: impl Iterator<Item = ScriptBuf>) {
        let scripts = scripts.collect();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = scripts;
    }

    /// All of them, for as long as it takes to look something through; no others are added
    /// meanwhile.
    pub fn read(&self) -> RwLockReadGuard<'_, HashSet<ScriptBuf>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}
