//! What the test says, and whether a descriptor is one that it means.

use std::{
    ffi::CStr,
    mem::zeroed,
    ptr,
    sync::atomic::{AtomicPtr, AtomicU64, Ordering},
};

use libc::c_int;

use crate::{
    image,
    layout::{
        API_PORT, DEED, DONE, Deed, FILES, FIRST, POINT_WORDS, Point, SEEN, TOTAL, VALUE, VARIABLE,
        WORDS, point,
    },
};

/// Longest path that is looked at, in octets.
const PATH_MAX: usize = 1_024;
/// What the name of a copy of the database has in it while it is made, and while it is put back.
const COPIES: [&str; 2] = [".part", ".restoring"];
/// Where the kernel says what a descriptor is.
const DESCRIPTORS: &[u8] = b"/proc/self/fd/";

static START: AtomicPtr<AtomicU64> = AtomicPtr::new(ptr::null_mut());

/// What is to become of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It goes on.
    Passes,
    /// It fails; the error number is set.
    Failed,
}

/// Runs before the program, which may give up its rights to open the files.
#[used]
#[unsafe(link_section = ".init_array")]
static INIT: extern "C" fn() = init;

extern "C" fn init() {
    let mut name = [0u8; 64];
    let Some(place) = name.get_mut(..VARIABLE.len()) else { return };
    place.copy_from_slice(VARIABLE.as_bytes());
    // SAFETY: the name ends with a zero; nobody changes the environment before the program runs.
    let path = unsafe { libc::getenv(name.as_ptr().cast()) };
    if path.is_null() {
        return;
    }
    // SAFETY: a variable's value ends with a zero and stays where it is.
    let path = unsafe { CStr::from_ptr(path) };
    // SAFETY: a plain call with a path.
    let fd = unsafe { libc::open(path.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
    if fd < 0 {
        return;
    }
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let octets = WORDS * size_of::<u64>();
    // SAFETY: the kernel chooses the address; the file is as long as that: the test made it so.
    let start = unsafe { libc::mmap(ptr::null_mut(), octets, protection, libc::MAP_SHARED, fd, 0) };
    if start != libc::MAP_FAILED {
        image::open(path.to_bytes());
        START.store(start.cast(), Ordering::Release);
    }
}

/// One of the shared words; `None` in a process that has no test.
pub(crate) fn word(index: usize) -> Option<&'static AtomicU64> {
    let start = START.load(Ordering::Acquire);
    if start.is_null() || index >= WORDS {
        return None;
    }
    // SAFETY: inside the mapping, which is never taken away, and aligned; all sides use atomics.
    Some(unsafe { &*start.add(index) })
}

/// The daemon is at a point: does there what the test wants.
pub(crate) fn at(place: Point) -> Verdict {
    let of = |field: usize| {
        debug_assert!(field < POINT_WORDS);
        word(point(place) + field)
    };
    let add = |field| of(field).map_or(0, |word| word.fetch_add(1, Ordering::SeqCst) + 1);
    let get = |field| of(field).map_or(0, |word| word.load(Ordering::SeqCst));
    add(TOTAL);
    let deed = get(DEED);
    if deed == Deed::Nothing as u64 || add(SEEN) < get(FIRST) {
        return Verdict::Passes;
    }
    add(DONE);
    let value = get(VALUE);
    if deed == Deed::Kill as u64 {
        // SAFETY: plain calls; the process ends here.
        unsafe {
            libc::kill(libc::getpid(), libc::SIGKILL);
            loop {
                libc::pause();
            }
        }
    }
    if deed == Deed::Delay as u64 {
        let seconds = libc::time_t::try_from(value / 1_000).unwrap_or(0);
        let nanos = libc::c_long::try_from(value % 1_000 * 1_000_000).unwrap_or(0);
        let pause = libc::timespec { tv_sec: seconds, tv_nsec: nanos };
        // SAFETY: the time outlives the call.
        unsafe { libc::nanosleep(&raw const pause, ptr::null_mut()) };
        return Verdict::Passes;
    }
    // SAFETY: the thread's own error number.
    unsafe { *libc::__errno_location() = c_int::try_from(value).unwrap_or(libc::EIO) };
    Verdict::Failed
}

/// Which of [`FILES`] a descriptor is.
pub(crate) fn file_of(fd: c_int) -> Option<usize> {
    let mut path = [0u8; PATH_MAX];
    file_named(path_of(fd, &mut path)?)
}

/// Whether a descriptor is a copy of the database.
pub(crate) fn is_copy(fd: c_int) -> bool {
    let mut path = [0u8; PATH_MAX];
    path_of(fd, &mut path).is_some_and(|path| {
        let has = |part: &str| path.windows(part.len()).any(|window| window == part.as_bytes());
        COPIES.into_iter().any(has)
    })
}

/// Whether a descriptor is a directory.
pub(crate) fn is_directory(fd: c_int) -> bool {
    // SAFETY: a status is plain data; all zero is one of nothing.
    let mut status: libc::stat = unsafe { zeroed() };
    // SAFETY: the status outlives the call.
    let told = unsafe { libc::fstat(fd, &raw mut status) };
    told == 0 && status.st_mode & libc::S_IFMT == libc::S_IFDIR
}

/// What the kernel says that a descriptor is; `None` in a process that has no test.
fn path_of(fd: c_int, path: &mut [u8; PATH_MAX]) -> Option<&[u8]> {
    word(0)?;
    let mut link = [0u8; 32];
    let mut digits = [0u8; 10];
    let mut rest = u32::try_from(fd).ok()?;
    let mut first = digits.len();
    loop {
        first -= 1;
        *digits.get_mut(first)? = b'0' + u8::try_from(rest % 10).ok()?;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    let digits = digits.get(first..)?;
    link.get_mut(..DESCRIPTORS.len())?.copy_from_slice(DESCRIPTORS);
    link.get_mut(DESCRIPTORS.len()..)?.get_mut(..digits.len())?.copy_from_slice(digits);
    // SAFETY: the link's name ends with a zero, and the buffer is as long as is said.
    let length =
        unsafe { libc::readlink(link.as_ptr().cast(), path.as_mut_ptr().cast(), path.len()) };
    path.get(..usize::try_from(length).ok()?)
}

/// Which of [`FILES`] a path is.
pub(crate) fn file_named(path: &[u8]) -> Option<usize> {
    let name = path.rsplit(|&octet| octet == b'/').next()?;
    FILES.iter().position(|file| file.as_bytes() == name)
}

/// Whether a descriptor is a socket of the API, at either end.
pub(crate) fn is_of_api(fd: c_int) -> bool {
    type Name = unsafe extern "C" fn(c_int, *mut libc::sockaddr, *mut libc::socklen_t) -> c_int;
    let Some(port) = word(API_PORT) else { return false };
    let port = port.load(Ordering::Relaxed);
    let is_port = |name: Name| {
        // SAFETY: an address is plain data; all zero is one of no family.
        let mut address: libc::sockaddr_in6 = unsafe { zeroed() };
        let mut length = libc::socklen_t::try_from(size_of_val(&address)).unwrap_or(0);
        // SAFETY: the buffer is as long as is said.
        let told = unsafe { name(fd, (&raw mut address).cast(), &raw mut length) };
        // Of IPv4, too, the port comes right after the family.
        let inet = [libc::AF_INET, libc::AF_INET6].contains(&address.sin6_family.into());
        told == 0 && inet && u64::from(u16::from_be(address.sin6_port)) == port
    };
    is_port(libc::getsockname) || is_port(libc::getpeername)
}
