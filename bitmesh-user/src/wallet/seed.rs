//! The seed of a data directory: its words, and the files that keep them.
//!
//! `seed` holds the words, sealed. What opens it is a passphrase, or a random key in `seed.key`
//! beside it: that one protects copies of the seed file alone, and nobody has to set it up.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use bdk_wallet::bitcoin::{Network, bip32::Fingerprint};
use rustix::{
    fs::{CWD, OFlags, RenameFlags, renameat_with},
    io::Errno,
};
use zeroize::Zeroizing;

use super::{
    Passphrase, Words, WordsError,
    keys::Keys,
    passphrase::PASSPHRASE_MIN_CHARS,
    vault::{KEY_OCTETS, Secret, Vault, VaultError},
};
use crate::secret::SecretError;

/// Name of the file in the data directory.
const FILE: &str = "seed";
/// Name of the file with the key to it, where no passphrase was set.
const KEY_FILE: &str = "seed.key";
/// What is in a data directory of this.
pub const FILES: [&str; 4] = [FILE, KEY_FILE, "seed.new", "seed.key.new"];
/// Longest file that is read.
const FILE_MAX_OCTETS: u64 = 4_096;

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
    /// It is not there.
    #[error(
        "{} is missing; put a copy of it there, or bring the wallet back from its words: `bitmesh wallet restore`",
        .0.display()
    )]
    Missing(PathBuf),
    /// One is there already.
    #[error(
        "{} is there already: this data directory has a wallet, and it stays. Choose another --data-dir for a second one",
        .0.display()
    )]
    Present(PathBuf),
    /// Its content.
    #[error("{} {source}", path.display())]
    Vault {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        source: VaultError,
    },
    /// It is too long to be one.
    #[error("{} is longer than a seed file can be; is it the right one?", .0.display())]
    TooLong(PathBuf),
    /// Others can read it.
    #[error("{} can be read by other users; `chmod 600` it, and think of who may have read it", .0.display())]
    Exposed(PathBuf),
    /// Of another chain.
    #[error("{} is for a wallet on {found}, not on {wanted}; choose --network {found}, or another --data-dir", path.display())]
    WrongNetwork {
        /// Which.
        path: PathBuf,
        /// The seed's.
        found: Network,
        /// Asked for.
        wanted: Network,
    },
    /// Nothing to open it with.
    #[error(
        "{} takes a passphrase: start on a terminal to be asked for it, or name a file that holds it with --passphrase-file (a service: LoadCredential=bitmesh-passphrase:FILE)",
        .0.display()
    )]
    Locked(PathBuf),
    /// The file with the passphrase.
    #[error("the passphrase: {0}")]
    PassphraseFile(#[from] SecretError),
    /// Too easy to guess.
    #[error(
        "a passphrase has {PASSPHRASE_MIN_CHARS} characters or more, and this one {0}; four words by chance are good ones"
    )]
    Short(usize),
    /// See [`WordsError`].
    #[error(transparent)]
    Words(#[from] WordsError),
}

/// Where the seed of a data directory is.
pub fn path(directory: &Path) -> PathBuf {
    directory.join(FILE)
}

/// An opened seed, or a new one that is on no disk yet.
#[derive(Debug)]
pub struct Seed {
    words: Words,
    kept: Kept,
}

#[derive(Debug)]
enum Kept {
    Since { birthday: u32 },
    NotYet { passphrase: Option<Passphrase> },
}

impl Seed {
    /// Words that [`Self::keep`] will seal with a passphrase, else with a key in a file.
    pub fn new(words: Words, passphrase: Option<Passphrase>) -> Result<Self, SeedError> {
        passphrase.as_ref().map_or(Ok(()), Passphrase::check_new)?;
        Ok(Self { words, kept: Kept::NotYet { passphrase } })
    }

    /// The words.
    pub fn words(&self) -> &Words {
        &self.words
    }

    /// Height of a block before which the wallet received nothing; `None` while it is on no disk.
    pub fn birthday(&self) -> Option<u32> {
        match self.kept {
            Kept::Since { birthday } => Some(birthday),
            Kept::NotYet { .. } => None,
        }
    }

    /// Writes a new seed into `directory`, which must have none; true when its key is in a file.
    pub fn keep(
        &mut self,
        directory: &Path,
        network: Network,
        birthday: u32,
    ) -> Result<bool, SeedError> {
        let Kept::NotYet { passphrase } = &self.kept else { return Ok(false) };
        let in_file = passphrase.is_none();
        write(directory, &self.words, passphrase.as_ref(), network, birthday, Over::Nothing)?;
        self.kept = Kept::Since { birthday };
        Ok(in_file)
    }
}

/// A seed file that was read and is shut.
#[derive(Debug)]
pub struct Sealed {
    directory: PathBuf,
    vault: Vault,
}

impl Sealed {
    /// Reads the seed of a data directory.
    pub fn read(directory: &Path) -> Result<Self, SeedError> {
        let path = path(directory);
        let text = read(&path)?;
        let vault = Vault::parse(&text).map_err(|source| SeedError::Vault { path, source })?;
        Ok(Self { directory: directory.to_owned(), vault })
    }

    /// Refuses a seed of another chain.
    pub fn on(self, wanted: Network) -> Result<Self, SeedError> {
        let found = self.vault.network();
        if found == wanted {
            return Ok(self);
        }
        Err(SeedError::WrongNetwork { path: path(&self.directory), found, wanted })
    }

    /// Whether a passphrase opens it, and not the key beside it.
    pub fn takes_passphrase(&self) -> bool {
        self.vault.takes_passphrase()
    }

    /// The chain that the wallet is on.
    pub fn network(&self) -> Network {
        self.vault.network()
    }

    /// Names the words without telling them.
    pub fn fingerprint(&self) -> Fingerprint {
        self.vault.fingerprint()
    }

    /// Height of a block before which the wallet received nothing.
    pub fn birthday(&self) -> u32 {
        self.vault.birthday()
    }

    /// Opens it with a passphrase, or with the key beside it where it takes none.
    pub fn open(&self, passphrase: Option<&Passphrase>) -> Result<Seed, SeedError> {
        let path = path(&self.directory);
        let opened = if self.takes_passphrase() {
            let passphrase = passphrase.ok_or_else(|| SeedError::Locked(path.clone()))?;
            self.vault.open(&Secret::Passphrase(passphrase.text()))
        } else {
            let key = read_key(&self.directory.join(KEY_FILE))?;
            self.vault.open(&Secret::Key(&key))
        };
        let malformed = |what: &str| VaultError::Malformed(what.into());
        let words = opened.and_then(|words| {
            let text = str::from_utf8(&words).map_err(|_| malformed("no text in it"))?;
            Words::parse(text).map_err(|_| malformed("no words in it"))
        });
        let words = words.map_err(|source| SeedError::Vault { path, source })?;
        Ok(Seed { words, kept: Kept::Since { birthday: self.vault.birthday() } })
    }

    /// Seals an opened seed anew: with a passphrase, or with a key in a file.
    pub fn change(&self, seed: &Seed, passphrase: Option<&Passphrase>) -> Result<(), SeedError> {
        passphrase.map_or(Ok(()), Passphrase::check_new)?;
        let (network, birthday) = (self.vault.network(), self.vault.birthday());
        write(&self.directory, &seed.words, passphrase, network, birthday, Over::Old)?;
        if passphrase.is_some() {
            remove(&self.directory.join(KEY_FILE))?;
        }
        Ok(())
    }
}

/// What a new file may replace.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Over {
    Nothing,
    Old,
}

/// Both files, the key's first: the other is of no use without it.
fn write(
    directory: &Path,
    words: &Words,
    passphrase: Option<&Passphrase>,
    network: Network,
    birthday: u32,
    over: Over,
) -> Result<(), SeedError> {
    let path = path(directory);
    if over == Over::Nothing && path.exists() {
        return Err(SeedError::Present(path));
    }
    let fingerprint = Keys::new(words, network).fingerprint();
    let key = match passphrase {
        Some(_) => None,
        None => Some(random_key(&path)?),
    };
    let secret = match (passphrase, &key) {
        (Some(passphrase), _) => Secret::Passphrase(passphrase.text()),
        (None, Some(key)) => Secret::Key(key),
        (None, None) => return Err(SeedError::Locked(path)),
    };
    let vault = Vault::seal(words.text(), &secret, network, fingerprint, birthday)
        .map_err(|source| SeedError::Vault { path: path.clone(), source })?;
    if let Some(key) = &key {
        let text = Zeroizing::new(hex::encode(key.as_slice()) + "\n");
        write_private(&directory.join(KEY_FILE), text.as_bytes(), Over::Old)?;
    }
    write_private(&path, vault.text().as_bytes(), over)
}

fn random_key(path: &Path) -> Result<Zeroizing<[u8; KEY_OCTETS]>, SeedError> {
    let mut key = Zeroizing::new([0; KEY_OCTETS]);
    getrandom::fill(key.as_mut_slice()).map_err(|error| SeedError::Vault {
        path: path.to_owned(),
        source: VaultError::Random(error),
    })?;
    Ok(key)
}

fn read_key(path: &Path) -> Result<Zeroizing<[u8; KEY_OCTETS]>, SeedError> {
    let text = read(path)?;
    let mut key = Zeroizing::new([0; KEY_OCTETS]);
    hex::decode_to_slice(text.trim_ascii(), key.as_mut_slice())
        .map_err(|_| SeedError::Vault { path: path.to_owned(), source: VaultError::WrongKey })?;
    Ok(key)
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, SeedError> {
    let io = |source| SeedError::Io { path: path.to_owned(), source };
    // The directory is a daemon's that has no rights; who reads here may be root.
    let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).unwrap_or(0);
    let mut file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(SeedError::Missing(path.to_owned()));
        }
        file => file.map_err(io)?,
    };
    if file.metadata().map_err(io)?.permissions().mode() & 0o077 != 0 {
        return Err(SeedError::Exposed(path.to_owned()));
    }
    let mut text = Zeroizing::new(Vec::with_capacity(4_097));
    let read = (&mut file).take(FILE_MAX_OCTETS + 1).read_to_end(&mut text).map_err(io)?;
    if read > 4_096 {
        return Err(SeedError::TooLong(path.to_owned()));
    }
    Ok(text)
}

/// All or nothing, and on the disk before anything is received to it.
fn write_private(path: &Path, text: &[u8], over: Over) -> Result<(), SeedError> {
    let io = |source| SeedError::Io { path: path.to_owned(), source };
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    // One that a crash left may have another mode.
    remove(&new)?;
    let written = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(text)?;
        file.sync_all()
    };
    written().map_err(io)?;
    let renamed = match over {
        Over::Old => fs::rename(&new, path),
        Over::Nothing => match renameat_with(CWD, &new, CWD, path, RenameFlags::NOREPLACE) {
            // A file system that does not know this kind; nothing was there just now.
            Err(Errno::INVAL) => fs::rename(&new, path),
            renamed => renamed.map_err(io::Error::from),
        },
    };
    renamed.map_err(io)?;
    let directory = path.parent().unwrap_or(Path::new("."));
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(io)
}

fn remove(path: &Path) -> Result<(), SeedError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(SeedError::Io { path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}
