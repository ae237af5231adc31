//! A write-ahead log that is on the disk, and not only in the kernel.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
};

use super::StoreError;

/// Octets that are rewritten at once.
const CHUNK_OCTETS: usize = 256 << 10;

/// Has everything in a log synced that an earlier process, or an earlier connection, wrote. To be
/// done under the lock, before the database is opened: what is read back from the log is then
/// durable.
///
/// A commit that was written and not synced (a kill at that moment, a sync that failed) is read back as
/// committed, and credit would be given on it. After a failed sync it is not enough to sync again:
/// the kernel calls the pages clean that it could not write, and what is appended behind them would
/// be behind a hole. So the log is written once more, as it is, and synced. Where the kernel has
/// dropped such pages it reads the old ones from the disk: the engine's recovery ends there.
pub(super) fn settle(log: &Path) -> Result<(), StoreError> {
    match rewrite(log) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::Io { path: log.to_owned(), source })
        }
        _ => Ok(()),
    }
}

fn rewrite(path: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let log = options.read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
    let mut chunk = vec![0; CHUNK_OCTETS];
    let mut at = 0;
    loop {
        let count = log.read_at(&mut chunk, at)?;
        let Some(octets) = chunk.get(..count).filter(|octets| !octets.is_empty()) else { break };
        log.write_all_at(octets, at)?;
        at += u64::try_from(count).map_err(io::Error::other)?;
    }
    log.sync_all()?;
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_stays_as_it_is_and_need_not_be_there() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        settle(&log).unwrap();
        let held: Vec<u8> =
            (0..3 * CHUNK_OCTETS + 7).map(|i| u8::try_from(i % 251).unwrap()).collect();
        std::fs::write(&log, &held).unwrap();
        settle(&log).unwrap();
        assert_eq!(std::fs::read(&log).unwrap(), held);
    }
}
