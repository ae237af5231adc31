//! Filters that wait to be looked through. The peers send them faster than blocks are followed, so
//! that many at once go to a file that has no name and takes no memory.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::PathBuf,
};

use bitcoin::BlockHash;
use bitmesh_core::bitcoin;

/// Most that is held in memory, in octets: a hundred blocks' filters.
const MEMORY_MAX_OCTETS: usize = 2 << 20;
/// Most that is held in the file, in octets: a year of them. What comes after that is not kept, and
/// asked for again when its turn comes.
const FILE_MAX_OCTETS: u64 = 1 << 30;
/// Largest filter that is kept: a block of nothing but outputs has a smaller one.
const FILTER_MAX_OCTETS: usize = 1 << 20;
/// The file's name, for as long as it takes to open it.
const FILE: &str = "filters.tmp";

enum Place {
    Memory(Vec<u8>),
    File { offset: u64, length: usize },
}

/// Filters by their blocks.
pub(super) struct Spool {
    directory: PathBuf,
    filters: HashMap<BlockHash, (u32, Place)>,
    in_memory: usize,
    file: Option<File>,
    in_file: u64,
}

impl Spool {
    /// An empty one, whose file is made in `directory` when it is needed.
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory, filters: HashMap::new(), in_memory: 0, file: None, in_file: 0 }
    }

    /// Keeps a filter, if there is room.
    pub(super) fn put(&mut self, height: u32, hash: BlockHash, filter: Vec<u8>) -> io::Result<()> {
        let length = filter.len();
        if self.filters.contains_key(&hash) || length > FILTER_MAX_OCTETS {
            return Ok(());
        }
        let place = if self.in_memory + length <= MEMORY_MAX_OCTETS {
            self.in_memory += length;
            Place::Memory(filter)
        } else if self.in_file + length as u64 <= FILE_MAX_OCTETS {
            let offset = self.in_file;
            self.file()?.write_all_at(&filter, offset)?;
            self.in_file += length as u64;
            Place::File { offset, length }
        } else {
            return Ok(());
        };
        self.filters.insert(hash, (height, place));
        Ok(())
    }

    fn file(&mut self) -> io::Result<&File> {
        if self.file.is_none() {
            let path = self.directory.join(FILE);
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(true).mode(0o600);
            let file = options.open(&path)?;
            fs::remove_file(path)?;
            self.file = Some(file);
        }
        self.file.as_ref().ok_or_else(|| io::Error::other("no file"))
    }

    /// A block's filter.
    pub(super) fn get(&self, hash: BlockHash) -> io::Result<Option<Vec<u8>>> {
        match self.filters.get(&hash) {
            None => Ok(None),
            Some((_, Place::Memory(filter))) => Ok(Some(filter.clone())),
            Some((_, Place::File { offset, length })) => {
                let mut filter = vec![0; *length];
                let file = self.file.as_ref().ok_or_else(|| io::Error::other("no file"))?;
                file.read_exact_at(&mut filter, *offset)?;
                Ok(Some(filter))
            }
        }
    }

    /// Lets go of what is of blocks below a height.
    pub(super) fn forget_below(&mut self, floor: u32) {
        let in_memory = &mut self.in_memory;
        self.filters.retain(|_, (height, place)| {
            if let (true, Place::Memory(filter)) = (*height < floor, &place) {
                *in_memory -= filter.len();
            }
            *height >= floor
        });
        let waits = |(_, place): &(u32, Place)| matches!(place, Place::File { .. });
        if self.in_file > 0 && !self.filters.values().any(waits) {
            (self.file, self.in_file) = (None, 0);
        }
    }

    /// Lets go of everything.
    pub(super) fn clear(&mut self) {
        self.forget_below(u32::MAX);
    }
}

#[cfg(test)]
mod tests {
    use bitcoin::hashes::Hash as _;

    use super::*;

    fn hash(height: u32) -> BlockHash {
        BlockHash::hash(&height.to_le_bytes())
    }

    fn filter(height: u32) -> Vec<u8> {
        height.to_le_bytes().repeat(64 * 1_024)
    }

    #[test]
    fn what_does_not_fit_into_memory_waits_in_a_file_without_a_name() {
        let directory = tempfile::tempdir().unwrap();
        let mut spool = Spool::new(directory.path().into());
        for height in 1..=20 {
            spool.put(height, hash(height), filter(height)).unwrap();
        }
        assert_eq!((spool.in_memory, spool.in_file), (8 << 18, 12 << 18));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        for height in 1..=20 {
            assert_eq!(spool.get(hash(height)).unwrap(), Some(filter(height)), "{height}");
        }
        spool.forget_below(20);
        assert_eq!((spool.in_memory, spool.in_file), (0, 12 << 18));
        assert_eq!(spool.get(hash(19)).unwrap(), None);
        assert_eq!(spool.get(hash(20)).unwrap(), Some(filter(20)));
        spool.clear();
        assert_eq!((spool.in_file, spool.file.is_none()), (0, true));
        spool.put(21, hash(21), vec![7]).unwrap();
        assert_eq!(spool.get(hash(21)).unwrap(), Some(vec![7]));
    }

    #[test]
    fn what_no_block_can_have_is_not_kept() {
        let directory = tempfile::tempdir().unwrap();
        let mut spool = Spool::new(directory.path().into());
        spool.put(1, hash(1), vec![0; FILTER_MAX_OCTETS + 1]).unwrap();
        assert_eq!(spool.get(hash(1)).unwrap(), None);
        spool.put(1, hash(1), vec![0; FILTER_MAX_OCTETS]).unwrap();
        assert!(spool.get(hash(1)).unwrap().is_some());
    }
}
