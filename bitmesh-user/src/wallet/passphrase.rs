//! What a person, a file or the system's manager of services gives to open the seed.

use std::{fmt, path::Path};

use zeroize::Zeroizing;

use super::SeedError;
use crate::secret;

/// Shortest passphrase that is set, in characters.
pub const PASSPHRASE_MIN_CHARS: usize = 8;
/// Name of systemd's credential (systemd.exec(5), `LoadCredential=`).
const CREDENTIAL: &str = "bitmesh-passphrase";

/// Opens the seed. Overwritten in memory when dropped; never shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Passphrase(Zeroizing<String>);

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(..)")
    }
}

impl Passphrase {
    /// As it was typed.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The file that is named, else systemd's credential, if there is one.
    pub fn find(file: Option<&Path>) -> Result<Option<Self>, SeedError> {
        Ok(secret::find(file, CREDENTIAL)?.map(Self))
    }

    /// Whether it may be set: it holds off who has the file, for as long as it is hard to guess.
    pub fn check_new(&self) -> Result<(), SeedError> {
        let chars = self.0.chars().count();
        if chars < PASSPHRASE_MIN_CHARS { Err(SeedError::Short(chars)) } else { Ok(()) }
    }

    /// Whether nothing was typed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn text(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_characters_are_enough_and_seven_are_not() {
        assert!(Passphrase::new("ääääääää".into()).check_new().is_ok());
        assert!(matches!(Passphrase::new("aaaaaaa".into()).check_new(), Err(SeedError::Short(7))));
        assert_eq!(format!("{:?}", Passphrase::new("secret".into())), "Passphrase(..)");
    }
}
