//! Word to systemd, where it started us and asks for it (`sd_notify(3)`); else to nobody.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tracing::warn;

/// What systemd was told.
#[derive(Debug)]
pub struct Notifier {
    /// How often it wants a sign of life.
    watchdog: Option<Duration>,
    last: Option<Instant>,
    status: String,
    /// Why settings could not be read again.
    trouble: Option<String>,
    ready: bool,
}

impl Default for Notifier {
    fn default() -> Self {
        let watchdog = sd_notify::watchdog_enabled();
        Self { watchdog, last: None, status: String::new(), trouble: None, ready: false }
    }
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

    /// The loop itself is alive. To be called from nowhere else: a loop that hangs is to be started
    /// again.
    pub fn alive(&mut self) {
        let Some(interval) = self.watchdog else { return };
        if self.last.is_none_or(|last| last.elapsed() >= interval / 4) {
            self.last = Some(Instant::now());
            tell(&[NotifyState::Watchdog]);
        }
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
