//! Memory that a start takes and that nothing needs afterwards.

use std::{ptr, slice};

/// Gives it back: what was freed between what was not, and the parts of the program that were only
/// needed so far.
pub(crate) fn give_back() {
    give_back_heap();
    give_back_program();
}

/// Replaying a large ledger takes far more memory than what comes of it. The C library keeps what was
/// freed unless it is told.
pub(crate) fn give_back_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number and returns whether memory was given back; it may be called at any
    // time, from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// A start runs through most of the program. What is used later is mapped again, from what the kernel
/// keeps of the file.
fn give_back_program() {
    // SAFETY: the function is of the kind that is asked for, and nothing keeps what it is lent.
    unsafe {
        libc::dl_iterate_phdr(Some(give_back_segments), ptr::null_mut());
    }
}

/// Lets go of the segments of the program, or of a library, that can't be written to.
unsafe extern "C" fn give_back_segments(
    object: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    _data: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: the C library lends what it knows of an object that is loaded, and as many headers as
    // it says.
    let (base, headers) = unsafe {
        let object = &*object;
        let count = usize::from(object.dlpi_phnum);
        (object.dlpi_addr, slice::from_raw_parts(object.dlpi_phdr, count))
    };
    let loaded = headers.iter().filter(|header| header.p_type == libc::PT_LOAD);
    for header in loaded.filter(|header| header.p_flags & libc::PF_W == 0) {
        let Some((from, octets)) = pages(base.wrapping_add(header.p_vaddr), header.p_memsz) else {
            continue;
        };
        // SAFETY: these pages are a file's, nothing else is in them, and nothing was ever written to
        // them: what is read there later is the same.
        unsafe {
            libc::madvise(ptr::without_provenance_mut(from), octets, libc::MADV_DONTNEED);
        }
    }
    0
}

/// The first address and the octets of the pages that hold `octets` from an address on.
fn pages(address: u64, octets: u64) -> Option<(usize, usize)> {
    // SAFETY: it takes a number and gives one.
    let page = u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).ok()?;
    let from = address.checked_sub(address.checked_rem(page)?)?;
    let end = address.checked_add(octets)?.checked_next_multiple_of(page)?;
    Some((usize::try_from(from).ok()?, usize::try_from(end - from).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_whole() {
        let page = 4_096;
        assert_eq!(pages(page, 1), Some((4_096, 4_096)));
        assert_eq!(pages(page - 1, 2), Some((0, 8_192)));
        assert_eq!(pages(page, 0), Some((4_096, 0)));
    }

    #[test]
    fn what_was_given_back_is_there_again() {
        static TOLD: [u8; 8] = *b"the same";
        give_back();
        assert_eq!(std::hint::black_box(&TOLD), b"the same");
    }
}
