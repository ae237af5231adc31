//! What a person, a file or the system's manager of services gives to open the seed.

use std::{
    fmt,
    fs::File,
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use super::SeedError;

/// Shortest passphrase that is set, in characters.
pub const PASSPHRASE_MIN_CHARS: usize = 8;
/// Longest file that is read as a passphrase, in octets.
const FILE_MAX_OCTETS: u64 = 1_024;
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
        if let Some(path) = file {
            return Self::read(path).map(Some);
        }
        let Some(folder) = std::env::var_os("CREDENTIALS_DIRECTORY") else { return Ok(None) };
        let path = PathBuf::from(folder).join(CREDENTIAL);
        if path.exists() { Self::read(&path).map(Some) } else { Ok(None) }
    }

    fn read(path: &Path) -> Result<Self, SeedError> {
        let io = |source| SeedError::Io { path: path.to_owned(), source };
        let mut file = File::open(path).map_err(io)?;
        if file.metadata().map_err(io)?.permissions().mode() & 0o007 != 0 {
            return Err(SeedError::Exposed(path.to_owned()));
        }
        let mut text = Zeroizing::new(Vec::with_capacity(1_025));
        let read = (&mut file).take(FILE_MAX_OCTETS + 1).read_to_end(&mut text).map_err(io)?;
        let bad = |what| SeedError::PassphraseFile { path: path.to_owned(), what };
        if read > 1_024 {
            return Err(bad("is longer than a passphrase can be"));
        }
        let text = str::from_utf8(&text).map_err(|_| bad("is no text"))?;
        let text = text.strip_suffix('\n').unwrap_or(text);
        let text = text.strip_suffix('\r').unwrap_or(text);
        if text.is_empty() {
            return Err(bad("is empty"));
        }
        Ok(Self::new(text.to_owned()))
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
    fn a_passphrase_is_a_files_first_line_and_what_is_wrong_with_the_file_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("passphrase");
        let with = |content: &[u8], mode| {
            std::fs::write(&path, content).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            Passphrase::find(Some(&path))
        };
        let given = |text: &str| Some(Passphrase::new(text.into()));
        assert_eq!(with(b"two words\n", 0o600).unwrap(), given("two words"));
        assert_eq!(with(b" two words\r\n", 0o640).unwrap(), given(" two words"));
        assert_eq!(with(&[b'a'; 1_024], 0o400).unwrap(), given(&"a".repeat(1_024)));
        let wrong: [(&[u8], u32, &str); 5] = [
            (b"", 0o600, "empty"),
            (b"\n", 0o600, "empty"),
            (b"\xff", 0o600, "no text"),
            (&[b'a'; 1_025], 0o600, "longer"),
            (b"two words", 0o604, "chmod 600"),
        ];
        for (content, mode, told) in wrong {
            let error = with(content, mode).unwrap_err().to_string();
            assert!(error.contains(told) && error.contains("/passphrase"), "{error}");
        }
        let none = Passphrase::find(Some(&directory.path().join("none"))).unwrap_err();
        assert!(none.to_string().contains("/none"), "{none}");
    }

    #[test]
    fn eight_characters_are_enough_and_seven_are_not() {
        assert!(Passphrase::new("ääääääää".into()).check_new().is_ok());
        assert!(matches!(Passphrase::new("aaaaaaa".into()).check_new(), Err(SeedError::Short(7))));
        assert_eq!(format!("{:?}", Passphrase::new("secret".into())), "Passphrase(..)");
    }
}
