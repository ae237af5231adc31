//! One daemon a directory: two would sign from one journal.

use std::{fs::File, os::unix::fs::OpenOptionsExt as _, path::Path};

use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};

use super::StoreError;

/// Name of the lock file in the data directory.
pub(super) const FILE: &str = "lock";

/// Whether a daemon could take a directory: to be asked before anything in it is changed.
pub fn check_unlocked(directory: &Path) -> Result<(), StoreError> {
    let path = directory.join(FILE);
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::open(&path, flags, Mode::empty()) {
        Ok(file) => take(&File::from(file), directory),
        Err(Errno::NOENT) => Ok(()),
        Err(source) => Err(StoreError::Io { path, source: source.into() }),
    }
}

/// Takes a directory, for as long as the file lives.
pub(super) fn lock(directory: &Path) -> Result<File, StoreError> {
    let path = directory.join(FILE);
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(|source| StoreError::Io { path, source })?;
    take(&file, directory)?;
    Ok(file)
}

fn take(file: &File, directory: &Path) -> Result<(), StoreError> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(std::fs::TryLockError::WouldBlock) => Err(StoreError::Locked(directory.to_owned())),
        Err(std::fs::TryLockError::Error(source)) => {
            Err(StoreError::Io { path: directory.join(FILE), source })
        }
    }
}
