//! Memory that a start takes and that nothing needs afterwards.

use std::{ptr, slice, sync::Once};

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

/// A start runs through most of the program. The first time that this is called, the program's pages are
/// let go of; what is used later is mapped again, from what the kernel keeps of the file. Once alone, since
/// the kernel may keep nothing of it while memory is short.
pub(crate) fn give_back_program() {
    static FIRST: Once = Once::new();
    // SAFETY: the function is of the kind that is asked for, and nothing keeps what it is lent.
    FIRST.call_once(|| unsafe {
        libc::dl_iterate_phdr(Some(give_back_segments), ptr::null_mut());
    });
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
        if object.dlpi_phdr.is_null() {
            return 0;
        }
        let count = usize::from(object.dlpi_phnum);
        (object.dlpi_addr, slice::from_raw_parts(object.dlpi_phdr, count))
    };
    // SAFETY: it takes a number and gives one.
    let page = u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).ok();
    let loaded = headers.iter().filter(|header| header.p_type == libc::PT_LOAD);
    for header in loaded.filter(|header| header.p_flags & libc::PF_W == 0) {
        let segment = (base.wrapping_add(header.p_vaddr), header.p_memsz);
        let Some((from, octets)) = page.and_then(|page| pages(segment, page)) else { continue };
        // SAFETY: these pages are a file's or the kernel's, nothing else is in them, and the program
        // never writes to them: what is read there later is the same.
        unsafe {
            libc::madvise(ptr::without_provenance_mut(from), octets, libc::MADV_DONTNEED);
        }
    }
    0
}

/// The first address and the octets of the pages of which all belongs to so many octets from an address on.
fn pages((address, octets): (u64, u64), page: u64) -> Option<(usize, usize)> {
    let from = address.checked_next_multiple_of(page)?;
    let end = address.checked_add(octets)?;
    let octets = (end - end.checked_rem(page)?).checked_sub(from)?;
    Some((usize::try_from(from).ok()?, usize::try_from(octets).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_whole() {
        assert_eq!(pages((4_096, 4_096), 4_096), Some((4_096, 4_096)));
        assert_eq!(pages((4_095, 8_194), 4_096), Some((4_096, 8_192)));
        assert_eq!(pages((4_096, 4_095), 4_096), Some((4_096, 0)));
        assert_eq!(pages((4_097, 4_096), 4_096), Some((8_192, 0)));
        assert_eq!(pages((4_097, 1), 4_096), None);
    }

    #[test]
    fn what_was_given_back_is_there_again() {
        static TOLD: [u8; 8] = *b"the same";
        give_back_heap();
        give_back_program();
        assert_eq!(std::hint::black_box(&TOLD), b"the same");
    }
}
