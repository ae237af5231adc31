//! Real faults in a real daemon: the handle of the library that is preloaded into it
//! (`tests/faultlib`), which makes system calls fail, wait or be the last one.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    ptr::{self, NonNull},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use tempfile::TempDir;

use crate::{daemon::Daemon, sweep::own_name};

#[path = "../faultlib/src/layout.rs"]
mod layout;

pub use layout::Point;
use layout::{
    API_PORT, DEED, DONE, Deed, FILES, FIRST, IMAGES, POINTS, SEEN, TOTAL, VALUE, VARIABLE, WORDS,
    dirty, point,
};

/// The library, as cargo names it.
const LIBRARY: &str = "libbitmesh_faultlib.so";
/// The shared file's name.
const FILE: &str = "faults";

/// What a daemon's system calls are to do, and what they did. One daemon, however often it starts.
pub struct Faults {
    directory: TempDir,
    data: PathBuf,
    start: NonNull<AtomicU64>,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is only seen as atomics.
unsafe impl Send for Faults {}
// SAFETY: as above.
unsafe impl Sync for Faults {}

impl Faults {
    /// For a daemon that does not run now and is started next. Sockets of `port` are its API's.
    pub fn prepare(daemon: &mut Daemon<'_>, port: u16) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix(&own_name("faults-")).tempdir()?;
        let path = directory.path().join(FILE);
        let file = fs::File::options().create_new(true).read(true).write(true).open(&path)?;
        let octets = WORDS * size_of::<u64>();
        file.set_len(octets.try_into()?)?;
        let flags = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses the address, so that nothing else is there.
        let start = unsafe { mmap(ptr::null_mut(), octets, flags, MapFlags::SHARED, &file, 0)? };
        let start = NonNull::new(start.cast()).context("a mapping")?;
        let data = daemon.directory().to_owned();
        let faults = Self { directory, data, start };
        faults.word(API_PORT).store(port.into(), Ordering::SeqCst);
        faults.all_is_durable()?;
        daemon.preload(&library()?, VARIABLE, &path);
        Ok(faults)
    }

    /// A command, too, has its system calls fail.
    pub fn meddle_with(&self, command: &mut Command) -> Result<()> {
        command.env("LD_PRELOAD", library()?).env(VARIABLE, self.directory.path().join(FILE));
        Ok(())
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < WORDS, "a word of the shared file");
        // SAFETY: inside the mapping, which lives as long as `self`, and aligned.
        unsafe { self.start.add(index).as_ref() }
    }

    fn of(&self, place: Point, field: usize) -> &AtomicU64 {
        self.word(point(place) + field)
    }

    fn arm(&self, place: Point, deed: Deed, first: u64, value: u64) {
        self.of(place, DEED).store(Deed::Nothing as u64, Ordering::SeqCst);
        for (field, value) in [(FIRST, first), (VALUE, value), (SEEN, 0), (DONE, 0)] {
            self.of(place, field).store(value, Ordering::SeqCst);
        }
        self.of(place, DEED).store(deed as u64, Ordering::SeqCst);
    }

    /// The process kills itself at the `nth` call from now on.
    pub fn kill_at(&self, place: Point, nth: u64) {
        self.arm(place, Deed::Kill, nth, 0);
    }

    /// Calls fail with an error number, from the `nth` from now on.
    pub fn fail(&self, place: Point, nth: u64, error: i32) {
        self.arm(place, Deed::Fail, nth, error.unsigned_abs().into());
    }

    /// Calls wait before they are made.
    pub fn delay(&self, place: Point, by: Duration) {
        self.arm(place, Deed::Delay, 1, u64::try_from(by.as_millis()).unwrap_or(u64::MAX));
    }

    /// Everything works from now on.
    pub fn end(&self) {
        for place in POINTS {
            self.of(place, DEED).store(Deed::Nothing as u64, Ordering::SeqCst);
        }
    }

    /// How many calls something was done to since the point was armed.
    pub fn done(&self, place: Point) -> u64 {
        self.of(place, DONE).load(Ordering::SeqCst)
    }

    /// Calls at a point since the test began.
    pub fn calls(&self, place: Point) -> u64 {
        self.of(place, TOTAL).load(Ordering::SeqCst)
    }

    /// Waits until something was done at a point.
    pub fn wait(&self, place: Point, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        while self.done(place) == 0 {
            if Instant::now() > deadline {
                bail!("nothing came to {place:?} within {within:?}");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Octets of the write-ahead log and the database that were written and are on no disk.
    pub fn unsynced(&self) -> bool {
        (0..FILES.len()).any(|file| self.word(dirty(file)).load(Ordering::SeqCst) > 0)
    }

    /// Writes what a power cut would leave at this moment into a directory, as a database.
    /// The daemon may run: no sync may be under way in it.
    pub fn power_cut(&self, into: &Path) -> Result<()> {
        fs::create_dir_all(into)?;
        for (name, suffix) in FILES.into_iter().zip(IMAGES) {
            fs::copy(self.image(suffix), into.join(name))?;
        }
        Ok(())
    }

    /// The daemon does not run: puts what a power cut leaves in the place of what it wrote.
    pub fn cut_power(&self) -> Result<()> {
        for (name, suffix) in FILES.into_iter().zip(IMAGES) {
            fs::write(self.data.join(name), fs::read(self.image(suffix))?)?;
        }
        let _ = fs::remove_file(self.data.join("bitmesh.sqlite-shm"));
        self.forget_dirty();
        Ok(())
    }

    /// The daemon does not run: what it left counts as durable.
    pub fn all_is_durable(&self) -> Result<()> {
        for (name, suffix) in FILES.into_iter().zip(IMAGES) {
            let held = fs::read(self.data.join(name)).unwrap_or_default();
            fs::write(self.image(suffix), held)?;
        }
        self.forget_dirty();
        Ok(())
    }

    fn forget_dirty(&self) {
        for file in 0..FILES.len() {
            self.word(dirty(file)).store(0, Ordering::SeqCst);
        }
    }

    fn image(&self, suffix: &str) -> PathBuf {
        self.directory.path().join(format!("{FILE}{suffix}"))
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        // SAFETY: start and length are those of the mapping, and nothing borrows from it.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), WORDS * size_of::<u64>()) };
        debug_assert!(unmapped.is_ok());
    }
}

/// The library beside the programs.
fn library() -> Result<PathBuf> {
    let own = env::current_exe()?;
    let mut places = own.ancestors().skip(1).take(2).map(|folder| folder.join(LIBRARY));
    places.find(|path| path.is_file()).with_context(|| format!("no {LIBRARY}; run `cargo build`"))
}
