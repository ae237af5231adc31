//! Word to systemd, where it started us and asks for it (`sd_notify(3)`); else to nobody.

use std::time::Duration;

use sd_notify::NotifyState;
use tracing::{error, warn};

/// How often it is looked whether the loop lives, where systemd wants no sign of life.
const PULSE_INTERVAL: Duration = Duration::from_secs(10);
/// By how much a start that goes on has its time extended, in microseconds.
const START_EXTENSION_USEC: u32 = 60_000_000;

/// How a daemon's loop does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It reads its ledger.
    Starting,
    /// It works, or waits for a disk that is slow.
    Well,
    /// It hangs, and is to be started again.
    Hung,
}

/// Tells systemd that a loop lives, for as long as `life` says so. It runs beside the loop, which may
/// wait for its disk or be deep in its ledger for longer than the watchdog waits.
pub async fn pulse(life: impl Fn() -> Life) {
    let interval = sd_notify::watchdog_enabled().map_or(PULSE_INTERVAL, |watchdog| watchdog / 4);
    let mut pulse = tokio::time::interval(interval);
    let mut before = Life::Starting;
    loop {
        pulse.tick().await;
        let now = life();
        match now {
            Life::Starting => {
                let more = NotifyState::ExtendTimeoutUsec(START_EXTENSION_USEC);
                tell(&[NotifyState::Watchdog, more]);
            }
            Life::Well => tell(&[NotifyState::Watchdog]),
            Life::Hung if before != Life::Hung => {
                error!("the loop hangs: systemd is told no more that it lives");
            }
            Life::Hung => {}
        }
        before = now;
    }
}

/// What systemd was told.
#[derive(Debug, Default)]
pub struct Notifier {
    status: String,
    /// Why settings could not be read again.
    trouble: Option<String>,
    ready: bool,
}

impl Notifier {
    /// Payments are taken from now on.
    pub fn ready(&mut self) {
        if !std::mem::replace(&mut self.ready, true) {
            tell(&[NotifyState::Ready]);
        }
    }

    /// What `systemctl status` shows.
    pub fn status(&mut self, status: &str) {
        let status = match &self.trouble {
            Some(trouble) => format!("{status}; the settings were not taken: {trouble}"),
            None => status.to_owned(),
        };
        if self.status != status {
            tell(&[NotifyState::Status(&status)]);
            self.status = status;
        }
    }

    /// Settings could not be read again: `systemctl reload` doesn't tell, so the status does from now
    /// on, until they can.
    pub fn reload_failed(&mut self, why: &str) {
        // One line is what systemd takes.
        self.trouble = Some(why.replace('\n', " "));
    }

    /// Settings are read again; [`Self::reloaded`] ends it.
    pub fn reloading(&mut self) {
        self.trouble = None;
        match NotifyState::monotonic_usec_now() {
            Ok(now) => tell(&[NotifyState::Reloading, now]),
            Err(_) => tell(&[NotifyState::Reloading]),
        }
    }

    /// Settings were read again.
    pub fn reloaded(&mut self) {
        tell(&[NotifyState::Ready]);
    }

    /// It is ending.
    pub fn stopping(&mut self) {
        tell(&[NotifyState::Stopping]);
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!("systemd was not told: {error}");
    }
}
