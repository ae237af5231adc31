//! A small file beside the ledger that says which commit was the last: a ledger that is older was
//! put back, and what was acknowledged since is not in it.
//!
//! It is written after each commit and not synced, so that it costs nothing: after a power cut it
//! may lag behind the ledger, which is synced; it is never ahead of it.

use std::{
    fs::File,
    io::{self, ErrorKind},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use tracing::warn;

use super::{
    StoreError,
    engine::Mark,
    journal::{Digest, sha256},
};

/// Name of the file in the data directory.
pub(super) const FILE: &str = "bitmesh.witness";
/// Octets of it: the commit's number, the sum, and a digest of both.
const SIZE: usize = 8 + 32 + 32;

/// The open file.
#[derive(Debug)]
pub(super) struct Witness {
    path: PathBuf,
    file: File,
    /// Whether it was told that it can't be written.
    told: bool,
}

impl Witness {
    /// Opens the one in a directory, or makes it. What it says; nothing, where it is new or can't
    /// be understood.
    pub(super) fn open(directory: &Path) -> Result<(Self, Option<Mark>), StoreError> {
        let path = directory.join(FILE);
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file =
            options.open(&path).map_err(|source| StoreError::Io { path: path.clone(), source })?;
        let said = match read(&file) {
            Ok(said) => said,
            Err(source) => return Err(StoreError::Io { path, source }),
        };
        if said.is_none() && file.metadata().is_ok_and(|metadata| metadata.len() > 0) {
            warn!(
                "{} can't be understood; whether the ledger is an old copy is not known this time",
                path.display()
            );
        }
        Ok((Self { path, file, told: false }, said))
    }

    /// Notes a commit. What can't be noted is told once: money does not depend on it.
    pub(super) fn note(&mut self, mark: &Mark) {
        if let Err(error) = self.file.write_all_at(&encode(mark), 0)
            && !std::mem::replace(&mut self.told, true)
        {
            warn!(
                "{}: {error}; an old copy of the ledger would not be noticed",
                self.path.display()
            );
        }
    }

    /// Brings it to the disk.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

/// What the witness in a directory says, if there is one. Nothing is changed.
pub(super) fn said(directory: &Path) -> Option<Mark> {
    File::open(directory.join(FILE)).ok().and_then(|file| read(&file).ok().flatten())
}

fn read(file: &File) -> io::Result<Option<Mark>> {
    let mut octets = [0; SIZE];
    match file.read_exact_at(&mut octets, 0) {
        Ok(()) => Ok(decode(&octets)),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

fn encode(mark: &Mark) -> Vec<u8> {
    let said = [&mark.committed.to_be_bytes()[..], &mark.sum].concat();
    let digest = sha256(&[b"witness", &said]);
    [said, digest.to_vec()].concat()
}

fn decode(octets: &[u8; SIZE]) -> Option<Mark> {
    let (committed, rest) = octets.split_first_chunk()?;
    let sum: &Digest = rest.first_chunk()?;
    let mark = Mark { committed: i64::from_be_bytes(*committed), sum: *sum };
    (encode(&mark) == octets).then_some(mark)
}

/// Whether a ledger is what its witness saw, or newer.
pub(super) fn agrees(ledger: &Mark, witness: &Mark) -> bool {
    ledger.committed > witness.committed || ledger == witness
}
