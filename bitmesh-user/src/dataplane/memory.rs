//! Memory that the kernel writes too: the only unsafe code of the dataplane.

use std::{
    io,
    os::fd::BorrowedFd,
    ptr::{self, NonNull},
    sync::atomic::AtomicU64,
};

use aya::Pod;
use bitmesh_common::{EdgeConfig, ObserverConfig};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

const WORD: usize = size_of::<u64>();

/// A shared mapping, seen as 64-bit words that another writer may change at any time.
pub(super) struct Memory {
    start: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is only seen as atomics.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Maps the first `words` of an array map's values.
    pub(super) fn of_map(map: BorrowedFd<'_>, words: usize) -> io::Result<Self> {
        let octets = octets(words)?;
        // SAFETY: the kernel chooses the address, so that nothing else is there.
        let start = unsafe {
            mmap(
                ptr::null_mut(),
                octets,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                map,
                0,
            )?
        };
        Self::new(start.cast(), words)
    }

    /// Zeroed memory of the same kind without a kernel behind it.
    #[cfg(test)]
    pub(super) fn anonymous(words: usize) -> io::Result<Self> {
        let octets = octets(words)?;
        // SAFETY: the kernel chooses the address, so that nothing else is there.
        let start = unsafe {
            rustix::mm::mmap_anonymous(
                ptr::null_mut(),
                octets,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )?
        };
        Self::new(start.cast(), words)
    }

    fn new(start: *mut AtomicU64, words: usize) -> io::Result<Self> {
        let start = NonNull::new(start).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, words })
    }

    /// How many words there are.
    pub(super) fn words(&self) -> usize {
        self.words
    }

    /// The word at `index`; `None` past the end.
    pub(super) fn word(&self, index: usize) -> Option<&AtomicU64> {
        if index >= self.words {
            return None;
        }
        // SAFETY: the index is inside the mapping, which lives as long as `self`; page alignment
        // makes every word aligned; everyone who writes it writes whole words.
        Some(unsafe { self.start.add(index).as_ref() })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `start` and the length are those of the mapping, and nothing borrows from it.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.words * WORD) };
        debug_assert!(unmapped.is_ok());
    }
}

fn octets(words: usize) -> io::Result<usize> {
    words.checked_mul(WORD).filter(|&octets| octets > 0).ok_or(io::ErrorKind::InvalidInput.into())
}

/// The value of the edge's map.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct EdgeValue(pub(super) EdgeConfig);

// SAFETY: integers only, laid out by repr(C) without padding: the size is asserted to be the sum.
unsafe impl Pod for EdgeValue {}

/// The value of the observer's map.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct ObserverValue(pub(super) ObserverConfig);

// SAFETY: as for the edge's, with one more word.
unsafe impl Pod for ObserverValue {}

const _: () = assert!(size_of::<ObserverConfig>() == size_of::<EdgeConfig>() + WORD);
