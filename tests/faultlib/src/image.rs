//! What a power cut would leave of the files.

use std::{
    cell::UnsafeCell,
    hint,
    sync::atomic::{AtomicBool, AtomicI32, Ordering},
};

use libc::{c_int, off_t};

use crate::{
    control::word,
    layout::{DIRTY_WORDS, FILES, IMAGES, dirty},
};

/// Most ranges that are told apart.
const RANGES_MAX: usize = (DIRTY_WORDS - 1) / 2;
/// Octets that are copied at once.
const CHUNK: usize = 64 << 10;
/// Longest path of an image, in octets.
const PATH_MAX: usize = 1_024;

/// What became of one of the files.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Change {
    /// Pages are in the kernel.
    Written {
        /// From here.
        offset: u64,
        /// So many octets.
        octets: u64,
    },
    /// They are on the disk.
    Synced,
    /// They will never be: a sync failed.
    Lost,
    /// The file has this length.
    Cut {
        /// In octets.
        octets: u64,
    },
}

static IMAGE: [AtomicI32; 2] = [AtomicI32::new(-1), AtomicI32::new(-1)];
static BUSY: AtomicBool = AtomicBool::new(false);
static BUFFER: Buffer = Buffer(UnsafeCell::new([0; CHUNK]));

struct Buffer(UnsafeCell<[u8; CHUNK]>);

// SAFETY: it is used by who holds `BUSY` alone.
unsafe impl Sync for Buffer {}

/// Opens the images beside the test's file; they hold what the files held when the test began.
pub(crate) fn open(beside: &[u8]) {
    for (image, suffix) in IMAGE.iter().zip(IMAGES) {
        let mut path = [0u8; PATH_MAX];
        let length = beside.len() + suffix.len();
        let Some((place, rest)) = path.split_at_mut_checked(beside.len()) else { return };
        let Some(rest) = rest.get_mut(..suffix.len()).filter(|_| length < PATH_MAX) else { return };
        place.copy_from_slice(beside);
        rest.copy_from_slice(suffix.as_bytes());
        // SAFETY: the path ends with a zero.
        let fd = unsafe { libc::open(path.as_ptr().cast(), libc::O_RDWR | libc::O_CLOEXEC) };
        image.store(fd, Ordering::Relaxed);
    }
}

/// Follows what became of a file, seen through `fd`.
pub(crate) fn changed(fd: c_int, file: usize, change: Change) {
    while BUSY.swap(true, Ordering::Acquire) {
        hint::spin_loop();
    }
    // SAFETY: the thread's own error number, which the caller is to see as the call left it.
    let error = unsafe { *libc::__errno_location() };
    follow(fd, file, change);
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = error };
    BUSY.store(false, Ordering::Release);
}

fn follow(fd: c_int, file: usize, change: Change) {
    debug_assert!(file < FILES.len());
    let Some(image) = IMAGE.get(file).map(|image| image.load(Ordering::Relaxed)) else { return };
    let Some(count) = word(dirty(file)) else { return };
    let range = |index: usize| {
        let first = dirty(file) + 1 + 2 * index;
        Some((word(first)?, word(first + 1)?))
    };
    let ranges = usize::try_from(count.load(Ordering::Relaxed)).unwrap_or(0);
    match change {
        Change::Written { offset, octets } if ranges < RANGES_MAX => {
            if let Some((from, length)) = range(ranges) {
                from.store(offset, Ordering::Relaxed);
                length.store(octets, Ordering::Relaxed);
                count.fetch_add(1, Ordering::Release);
            }
        }
        // More than can be told apart: all of the file.
        Change::Written { .. } => {
            if let Some((from, length)) = range(0) {
                from.store(0, Ordering::Relaxed);
                length.store(u64::MAX, Ordering::Relaxed);
            }
        }
        Change::Synced => {
            for (from, length) in (0..ranges).filter_map(range) {
                copy(fd, image, from.load(Ordering::Relaxed), length.load(Ordering::Relaxed));
            }
            count.store(0, Ordering::Release);
        }
        Change::Lost => count.store(0, Ordering::Release),
        Change::Cut { octets } => {
            let octets = off_t::try_from(octets).unwrap_or(off_t::MAX);
            // SAFETY: the library's own descriptor. It goes through the hook, which sees no file.
            unsafe { libc::syscall(libc::SYS_ftruncate, image, octets) };
        }
    }
}

fn copy(from: c_int, to: c_int, offset: u64, octets: u64) {
    let end = offset.saturating_add(octets);
    let mut at = offset;
    while at < end {
        let count = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
        let Ok(place) = off_t::try_from(at) else { return };
        let buffer = BUFFER.0.get().cast::<libc::c_void>();
        // SAFETY: the buffer is as long as the chunk, and this thread holds it; a system call, since
        // the function of that name is the hook.
        let copied = unsafe {
            let got = libc::syscall(libc::SYS_pread64, from, buffer, count, place);
            if got <= 0 {
                return;
            }
            libc::syscall(libc::SYS_pwrite64, to, buffer, got, place)
        };
        let Ok(copied @ 1..) = u64::try_from(copied) else { return };
        at = at.saturating_add(copied);
    }
}
