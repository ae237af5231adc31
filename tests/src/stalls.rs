//! How long this machine and its disk kept everything waiting: a limit by the clock on the wall is longer
//! by that.

use std::{
    os::unix::fs::FileExt as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// What the thread sleeps for that does nothing else.
const SLEEP: Duration = Duration::from_millis(50);
/// The same, of the one that writes: its own writes are to keep nobody waiting.
const WRITES: Duration = Duration::from_millis(200);
/// Syncs that an answer waits for: of the commit that it came during, and of its own.
const SYNCS: u32 = 2;

/// A thread that does nothing but sleep, and notes how much too late it woke, and one that syncs a small
/// file where the ledgers are. Ended when dropped.
pub struct Stalls {
    sleeper: Arc<Mutex<Seen>>,
    writer: Arc<Mutex<Seen>>,
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// What a thread saw, each of whose rounds takes so long where nothing keeps it waiting.
struct Seen {
    round: Duration,
    began: Instant,
    longest: Duration,
}

impl Seen {
    fn of(round: Duration) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self { round, began: Instant::now(), longest: Duration::ZERO }))
    }

    /// The longest, with the one that may be under way.
    fn longest(&self) -> Duration {
        self.longest.max(self.began.elapsed().saturating_sub(self.round))
    }
}

/// The longest that a thread was kept waiting.
fn longest(seen: &Mutex<Seen>) -> Duration {
    seen.lock().unwrap_or_else(PoisonError::into_inner).longest()
}

/// Does something after each pause, and notes how long a round took, until it is over.
fn rounds(
    seen: &Arc<Mutex<Seen>>,
    over: &Arc<AtomicBool>,
    work: impl Fn() + Send + 'static,
) -> JoinHandle<()> {
    let (seen, over) = (seen.clone(), over.clone());
    thread::spawn(move || {
        let pause = seen.lock().unwrap_or_else(PoisonError::into_inner).round;
        while !over.load(Ordering::Relaxed) {
            thread::sleep(pause);
            work();
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.longest = seen.longest();
            seen.began = Instant::now();
        }
    })
}

impl Stalls {
    /// From now on.
    ///
    /// # Panics
    /// When no file can be made.
    pub fn watch() -> Self {
        let (sleeper, writer) = (Seen::of(SLEEP), Seen::of(WRITES));
        let over = Arc::new(AtomicBool::new(false));
        let file = tempfile::tempfile().expect("a file where the ledgers are");
        let sleeping = rounds(&sleeper, &over, || {});
        let writing = rounds(&writer, &over, move || {
            let _ = file.write_all_at(b"written", 0).and_then(|()| file.sync_data());
        });
        Self { sleeper, writer, over, threads: vec![sleeping, writing] }
    }

    /// The longest time that something had to wait for the machine, with the disk as often as an answer
    /// may have to.
    pub fn longest(&self) -> Duration {
        longest(&self.sleeper) + longest(&self.writer) * SYNCS
    }
}

impl Drop for Stalls {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
