//! The seed words and the file that they are in. It is not encrypted yet: its mode keeps it from
//! other users of the machine, nothing from who has the disk.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use bip39::Mnemonic;
use zeroize::Zeroizing;

/// Name of the file in the data directory.
const FILE: &str = "seed";
/// What is in a data directory of this.
pub const FILES: [&str; 2] = [FILE, "seed.new"];
/// Entropy of 12 words, in octets.
const ENTROPY_OCTETS: usize = 16;
/// Longest file that is read as one of words.
const FILE_MAX_OCTETS: usize = 1_024;

/// What is wrong with the seed.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// Not readable or writable.
    #[error("{}: {source}; check the file and its directory", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is gone.
    #[error(
        "{} is missing, and the wallet in this directory can't be opened without it; write the seed words into it again and `chmod 600` it",
        .0.display()
    )]
    Missing(PathBuf),
    /// What it holds are no seed words.
    #[error("{}: {source}; it should hold the words as they were written down, on one line", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong with them.
        source: Box<SeedError>,
    },
    /// It is too long to be one of seed words.
    #[error("{} is longer than seed words can be; is it the right file?", .0.display())]
    TooLong(PathBuf),
    /// Others can read it.
    #[error("{} can be read by other users; `chmod 600` it, and think of who may have read it", .0.display())]
    Exposed(PathBuf),
    /// Not words of the list.
    #[error("word {0} is not on BIP39's English list; check its spelling")]
    UnknownWord(usize),
    /// Words that don't belong together.
    #[error("the words are all on the list but do not fit together; check their order")]
    Checksum,
    /// Not even letters.
    #[error("that is no text")]
    NotText,
    /// Too many or too few.
    #[error("seed words are 12 or 24, these are {0}")]
    WordCount(usize),
    /// The system has no random numbers.
    #[error("the system gives no random numbers: {0}")]
    Random(getrandom::Error),
}

/// Seed words (BIP39, English). Overwritten in memory when dropped; never shown by `Debug`.
pub struct Words(Zeroizing<String>);

impl fmt::Debug for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Words(..)")
    }
}

impl Words {
    /// 12 new words.
    pub fn generate() -> Result<Self, SeedError> {
        let mut entropy = Zeroizing::new([0; ENTROPY_OCTETS]);
        getrandom::fill(entropy.as_mut_slice()).map_err(SeedError::Random)?;
        let words = Mnemonic::from_entropy(entropy.as_slice()).map_err(|_| SeedError::Checksum)?;
        Ok(Self(Zeroizing::new(words.to_string())))
    }

    /// Words that a person wrote down.
    pub fn parse(text: &str) -> Result<Self, SeedError> {
        // Room for all, so that no half of it is left behind when it grows.
        let mut words = Zeroizing::new(String::with_capacity(text.len()));
        for word in text.split_whitespace() {
            if !words.is_empty() {
                words.push(' ');
            }
            words.extend(word.chars().flat_map(char::to_lowercase));
        }
        match Mnemonic::parse_normalized(&words) {
            Ok(_) => Ok(Self(words)),
            Err(bip39::Error::UnknownWord(index)) => Err(SeedError::UnknownWord(index + 1)),
            Err(bip39::Error::BadWordCount(count)) => Err(SeedError::WordCount(count)),
            Err(_) => Err(SeedError::Checksum),
        }
    }

    /// BIP39's seed, without a passphrase.
    pub(super) fn seed(&self) -> Zeroizing<[u8; 64]> {
        let words = Mnemonic::parse_normalized(&self.0).expect("the words were checked");
        Zeroizing::new(words.to_seed_normalized(""))
    }
}

/// Where the words of a data directory are.
pub fn path(directory: &Path) -> PathBuf {
    directory.join(FILE)
}

/// The words of a data directory; new ones, and true, when there are none.
pub fn open(directory: &Path) -> Result<(Words, bool), SeedError> {
    match load(directory) {
        Ok(words) => Ok((words, false)),
        Err(SeedError::Missing(path)) => {
            let words = Words::generate()?;
            write(directory, &path, &words).map_err(|source| SeedError::Io { path, source })?;
            Ok((words, true))
        }
        Err(error) => Err(error),
    }
}

/// The words of a data directory that must have some, as one with a wallet does.
pub fn load(directory: &Path) -> Result<Words, SeedError> {
    let path = path(directory);
    let io = |source| SeedError::Io { path: path.clone(), source };
    let mut file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(SeedError::Missing(path));
        }
        file => file.map_err(io)?,
    };
    if file.metadata().map_err(io)?.permissions().mode() & 0o077 != 0 {
        return Err(SeedError::Exposed(path));
    }
    let mut text = Zeroizing::new([0; FILE_MAX_OCTETS + 1]);
    let mut length = 0;
    while let Some(rest) = text.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match file.read(rest).map_err(io)? {
            0 => break,
            read => length += read,
        }
    }
    if length > FILE_MAX_OCTETS {
        return Err(SeedError::TooLong(path));
    }
    let content = |source| SeedError::Content { path: path.clone(), source: Box::new(source) };
    let text = text.get(..length).and_then(|text| str::from_utf8(text).ok());
    Words::parse(text.ok_or_else(|| content(SeedError::NotText))?).map_err(content)
}

/// All or nothing, and on the disk before anything is received to it.
fn write(directory: &Path, path: &Path, words: &Words) -> io::Result<()> {
    let new = path.with_extension("new");
    // One that a crash left may have another mode.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(words.0.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(directory)?.sync_all()
}
