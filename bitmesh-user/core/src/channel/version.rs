//! Which protocol two ends speak, told before anything else of it is read.

use serde::Deserialize;

/// Version of scripts, signatures and messages. Whoever changes what a channel's ends sign or send
/// counts it up.
pub const PROTOCOL_VERSION: u16 = 1;

/// The other end, or who wrote a journal, speaks another version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is version {theirs} of the channel protocol, and this program speaks version {ours}: \
     update the older side"
)]
pub struct VersionError {
    /// What was found.
    pub theirs: u16,
    /// [`PROTOCOL_VERSION`].
    pub ours: u16,
}

/// The one field that a message of every version has: read alone first, so that another version is
/// told from a mistake.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Versioned {
    /// See [`PROTOCOL_VERSION`].
    pub version: u16,
}

impl Versioned {
    /// Refuses what another version wrote.
    pub fn check(self) -> Result<(), VersionError> {
        let (theirs, ours) = (self.version, PROTOCOL_VERSION);
        if theirs == ours { Ok(()) } else { Err(VersionError { theirs, ours }) }
    }
}
