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
        Ok(file) => take(File::from(file), directory).map(drop),
        Err(Errno::NOENT) => Ok(()),
        Err(source) => Err(StoreError::Io { path, source: source.into() }),
    }
}

/// A directory that was taken, until this is dropped.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // By itself it would last for as long as anybody has the open file: a process that is being started at
        // this moment, too, until it runs its program.
        let _ = self.0.unlock();
    }
}

/// Takes a directory.
pub(super) fn lock(directory: &Path) -> Result<Lock, StoreError> {
    let path = directory.join(FILE);
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(|source| StoreError::Io { path, source })?;
    take(file, directory)
}

fn take(file: File, directory: &Path) -> Result<Lock, StoreError> {
    match file.try_lock() {
        Ok(()) => Ok(Lock(file)),
        Err(std::fs::TryLockError::WouldBlock) => Err(StoreError::Locked(directory.to_owned())),
        Err(std::fs::TryLockError::Error(source)) => {
            Err(StoreError::Io { path: directory.join(FILE), source })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_free_at_once_whoever_still_has_the_open_file() {
        let directory = tempfile::tempdir().unwrap();
        check_unlocked(directory.path()).unwrap();
        let taken = lock(directory.path()).unwrap();
        // As a child has it between fork and exec.
        let inherited = taken.0.try_clone().unwrap();
        assert!(matches!(check_unlocked(directory.path()), Err(StoreError::Locked(_))));
        drop(taken);
        check_unlocked(directory.path()).unwrap();
        drop((lock(directory.path()).unwrap(), inherited));
    }
}
