//! A library that is preloaded into a daemon and makes real calls fail, wait or be its last: the
//! product has not a line for it.
//!
//! It stands between the program and libc, sees what goes to the database, to its write-ahead log
//! to copies of the database and to the API's sockets, and obeys a file that the test has mapped, too. Beside it, it keeps
//! images of both files as a power cut would leave them: what was synced, without what was written
//! since, and without what was lost because a sync failed: after that the kernel calls pages clean that
//! it never wrote (`fsync(2)`, EIO).
//!
//! Nothing is allocated. In a process that has neither of the files nor such sockets it does nothing.

mod control;
mod image;
#[allow(dead_code, reason = "the test's half of it is not used here")]
mod layout;

use std::{
    mem::transmute_copy,
    sync::atomic::{AtomicUsize, Ordering},
};

use libc::{c_char, c_int, c_void, iovec, msghdr, off_t, size_t, sockaddr, socklen_t, ssize_t};

use crate::{
    control::{Verdict, at, file_of, is_copy, is_directory, is_of_api},
    image::Change,
    layout::Point,
};

/// Index of the write-ahead log in [`layout::FILES`].
const LOG: usize = 1;

/// The next library's function of a name.
struct Next {
    name: &'static [u8],
    found: AtomicUsize,
}

impl Next {
    const fn of(name: &'static [u8]) -> Self {
        Self { name, found: AtomicUsize::new(0) }
    }

    /// # Safety
    /// `F` has to be the type of the function that is named.
    unsafe fn get<F: Copy>(&self) -> F {
        let mut found = self.found.load(Ordering::Relaxed);
        if found == 0 {
            // SAFETY: the name ends with a zero.
            found = unsafe { libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr().cast()) } as usize;
            if found == 0 {
                // SAFETY: it takes nothing, and gives nothing back.
                unsafe { libc::abort() };
            }
            self.found.store(found, Ordering::Relaxed);
        }
        // SAFETY: a function's address; the caller vouches for its type.
        unsafe { transmute_copy(&found) }
    }
}

/// Declares what stands in the place of a function of libc.
macro_rules! hook {
    ($name:ident($($arg:ident: $type:ty),*) -> $out:ty, $next:ident => $body:block) => {
        /// In the place of libc's function of this name.
        ///
        /// # Safety
        /// As of that.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $type),*) -> $out {
            static NEXT: Next = Next::of(concat!(stringify!($name), "\0").as_bytes());
            // SAFETY: the type is that of the function, which is called with what it was given.
            let $next = || unsafe {
                NEXT.get::<unsafe extern "C" fn($($type),*) -> $out>()($($arg),*)
            };
            $body
        }
    };
}

/// A write to one of the files, at an offset.
fn written(fd: c_int, offset: off_t, next: impl FnOnce() -> ssize_t) -> ssize_t {
    let Some(file) = file_of(fd) else {
        let failed = is_copy(fd) && at(Point::CopyWrite) == Verdict::Failed;
        return if failed { -1 } else { next() };
    };
    let point = if file == LOG { Point::LogWrite } else { Point::DatabaseWrite };
    if at(point) == Verdict::Failed {
        return -1;
    }
    let written = next();
    if let (Ok(octets), Ok(offset)) = (u64::try_from(written), u64::try_from(offset)) {
        image::changed(fd, file, Change::Written { offset, octets });
    }
    written
}

/// A sync of one of the files.
fn synced(fd: c_int, next: impl FnOnce() -> c_int) -> c_int {
    let Some(file) = file_of(fd) else {
        let failed = (is_copy(fd) || is_directory(fd)) && at(Point::CopySync) == Verdict::Failed;
        return if failed { -1 } else { next() };
    };
    let point = if file == LOG { Point::LogSync } else { Point::DatabaseSync };
    let failed = at(point) == Verdict::Failed || next() != 0;
    image::changed(fd, file, if failed { Change::Lost } else { Change::Synced });
    if failed {
        return -1;
    }
    if file == LOG && at(Point::LogSynced) == Verdict::Failed {
        return -1;
    }
    0
}

/// A file gets another name, or one more.
fn named(next: impl FnOnce() -> c_int) -> c_int {
    if at(Point::Name) == Verdict::Failed { -1 } else { next() }
}

/// Something that leaves through a socket.
fn sent(fd: c_int, next: impl FnOnce() -> ssize_t) -> ssize_t {
    if !is_of_api(fd) {
        return next();
    }
    if at(Point::Answer) == Verdict::Failed {
        return -1;
    }
    let sent = next();
    if sent > 0 && at(Point::Answered) == Verdict::Failed {
        return -1;
    }
    sent
}

hook!(pwrite64(fd: c_int, from: *const c_void, count: size_t, offset: off_t) -> ssize_t, next => {
    written(fd, offset, next)
});
hook!(pwrite(fd: c_int, from: *const c_void, count: size_t, offset: off_t) -> ssize_t, next => {
    written(fd, offset, next)
});
hook!(fsync(fd: c_int) -> c_int, next => { synced(fd, next) });
hook!(fdatasync(fd: c_int) -> c_int, next => { synced(fd, next) });
hook!(ftruncate64(fd: c_int, length: off_t) -> c_int, next => {
    let done = next();
    if let (0, Some(file), Ok(octets)) = (done, file_of(fd), u64::try_from(length)) {
        image::changed(fd, file, Change::Cut { octets });
    }
    done
});
hook!(ftruncate(fd: c_int, length: off_t) -> c_int, next => {
    let done = next();
    if let (0, Some(file), Ok(octets)) = (done, file_of(fd), u64::try_from(length)) {
        image::changed(fd, file, Change::Cut { octets });
    }
    done
});
hook!(rename(from: *const c_char, to: *const c_char) -> c_int, next => { named(next) });
hook!(linkat(
    from_fd: c_int, from: *const c_char, to_fd: c_int, to: *const c_char, flags: c_int
) -> c_int, next => { named(next) });
hook!(unlink(path: *const c_char) -> c_int, next => {
    if at(Point::Name) == Verdict::Failed {
        return -1;
    }
    // SAFETY: the caller's path ends with a zero.
    let name = unsafe { std::ffi::CStr::from_ptr(path) };
    let file = control::file_named(name.to_bytes());
    let done = next();
    if let (0, Some(file)) = (done, file) {
        image::changed(-1, file, Change::Cut { octets: 0 });
    }
    done
});
hook!(write(fd: c_int, from: *const c_void, count: size_t) -> ssize_t, next => { sent(fd, next) });
hook!(writev(fd: c_int, from: *const iovec, count: c_int) -> ssize_t, next => { sent(fd, next) });
hook!(send(fd: c_int, from: *const c_void, count: size_t, flags: c_int) -> ssize_t, next => {
    sent(fd, next)
});
hook!(sendto(
    fd: c_int, from: *const c_void, count: size_t, flags: c_int, to: *const sockaddr, length: socklen_t
) -> ssize_t, next => { sent(fd, next) });
hook!(sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t, next => {
    sent(fd, next)
});
