//! Secrets that a person puts into a file, or hands in through the system's manager of services.

use std::{
    fs::File,
    io::{self, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

/// Longest file that is read as a secret, in octets.
const FILE_MAX_OCTETS: usize = 1_024;
/// Where systemd puts credentials (systemd.exec(5), `LoadCredential=`).
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

/// What is wrong with a secret's file.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// Not readable.
    #[error("{}: {source}; check the file and its directory", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Others can read it.
    #[error("{} can be read by other users; `chmod 600` it, and think of who may have read it", .0.display())]
    Exposed(PathBuf),
    /// It holds nothing.
    #[error("{} is empty; it should hold the secret on one line", .0.display())]
    Empty(PathBuf),
    /// Its content.
    #[error("{} {what}; it should hold the secret on one line", path.display())]
    Wrong {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// The first line of the file that is named, else of systemd's credential of this name, if there is
/// one. Overwritten in memory when dropped.
pub fn find(
    file: Option<&Path>,
    credential: &str,
) -> Result<Option<Zeroizing<String>>, SecretError> {
    if let Some(path) = file {
        return read(path).map(Some);
    }
    let Some(folder) = std::env::var_os(CREDENTIALS) else { return Ok(None) };
    let path = PathBuf::from(folder).join(credential);
    if path.exists() { read(&path).map(Some) } else { Ok(None) }
}

fn read(path: &Path) -> Result<Zeroizing<String>, SecretError> {
    let io = |source| SecretError::Io { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(io)?;
    if file.metadata().map_err(io)?.permissions().mode() & 0o007 != 0 {
        return Err(SecretError::Exposed(path.to_owned()));
    }
    let mut text = Zeroizing::new(Vec::with_capacity(FILE_MAX_OCTETS + 1));
    let more = (FILE_MAX_OCTETS as u64).saturating_add(1);
    let read = (&mut file).take(more).read_to_end(&mut text).map_err(io)?;
    let wrong = |what| SecretError::Wrong { path: path.to_owned(), what };
    if read > FILE_MAX_OCTETS {
        return Err(wrong("is longer than a secret can be"));
    }
    let text = str::from_utf8(&text).map_err(|_| wrong("is no text"))?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() {
        return Err(SecretError::Empty(path.to_owned()));
    }
    Ok(Zeroizing::new(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_a_files_first_line_and_what_is_wrong_with_the_file_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        let with = |content: &[u8], mode| {
            std::fs::write(&path, content).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            find(Some(&path), "none")
        };
        let given = |text: &str| Some(Zeroizing::new(text.to_owned()));
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
            assert!(error.contains(told) && error.contains("/secret"), "{error}");
        }
        let none = find(Some(&directory.path().join("none")), "none").unwrap_err();
        assert!(none.to_string().contains("/none"), "{none}");
    }
}
