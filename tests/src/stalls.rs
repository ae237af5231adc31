//! How long this machine kept everything waiting: a limit by the clock on the wall is longer by that.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// What the thread sleeps for.
const SLEEP: Duration = Duration::from_millis(50);

/// A thread that does nothing but sleep, and notes how much too late it woke. Ended when dropped.
pub struct Stalls {
    seen: Arc<Mutex<Seen>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

struct Seen {
    awake: Instant,
    longest: Duration,
}

impl Seen {
    /// The longest, with the one that may be under way.
    fn longest(&self) -> Duration {
        self.longest.max(self.awake.elapsed().saturating_sub(SLEEP))
    }
}

impl Stalls {
    /// From now on.
    pub fn watch() -> Self {
        let seen = Arc::new(Mutex::new(Seen { awake: Instant::now(), longest: Duration::ZERO }));
        let over = Arc::new(AtomicBool::new(false));
        let (theirs, ends) = (seen.clone(), over.clone());
        let thread = thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                thread::sleep(SLEEP);
                let mut seen = theirs.lock().unwrap_or_else(PoisonError::into_inner);
                *seen = Seen { awake: Instant::now(), longest: seen.longest() };
            }
        });
        Self { seen, over, thread: Some(thread) }
    }

    /// The longest time that it woke too late by.
    pub fn longest(&self) -> Duration {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).longest()
    }
}

impl Drop for Stalls {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
