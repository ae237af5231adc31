//! The seed words and the file that they are in. It is not encrypted yet: its mode keeps it from
//! other users of the machine, nothing from who has the disk.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use bip39::Mnemonic;
use zeroize::Zeroizing;

/// Name of the file in the data directory.
const FILE: &str = "seed";
/// Entropy of 12 words, in octets.
const ENTROPY_OCTETS: usize = 16;
/// Longest file that is read as one of words.
const FILE_MAX_OCTETS: u64 = 1_024;

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
    /// Others can read it.
    #[error("{} can be read by other users; `chmod 600` it, and think of who may have read it", .0.display())]
    Exposed(PathBuf),
    /// Not words of the list.
    #[error("word {0} is not on BIP39's English list; check its spelling")]
    UnknownWord(usize),
    /// Words that don't belong together.
    #[error("the words are all on the list but do not fit together; check their order")]
    Checksum,
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
        let words = Zeroizing::new(
            text.split_whitespace().map(str::to_lowercase).collect::<Vec<_>>().join(" "),
        );
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
    let path = path(directory);
    let io = |source| SeedError::Io { path: path.clone(), source };
    match fs::metadata(&path) {
        Ok(metadata) => {
            if metadata.permissions().mode() & 0o077 != 0 {
                return Err(SeedError::Exposed(path));
            }
            if metadata.len() > FILE_MAX_OCTETS {
                return Err(SeedError::WordCount(0));
            }
            let text = Zeroizing::new(fs::read_to_string(&path).map_err(io)?);
            Ok((Words::parse(&text)?, false))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let words = Words::generate()?;
            write(directory, &path, &words).map_err(io)?;
            Ok((words, true))
        }
        Err(error) => Err(io(error)),
    }
}

/// All or nothing, and on the disk before anything is received to it.
fn write(directory: &Path, path: &Path, words: &Words) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(words.0.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(directory)?.sync_all()
}
