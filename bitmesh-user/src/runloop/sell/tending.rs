//! What the operator and systemd want of a running provider: settings read again, a word on how it
//! does, and an end that leaves nobody without an answer.

use std::time::Duration;

use anyhow::Result;
use bitmesh_core::{channel::Batch, controller::Input};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{error, info, warn};

use super::{BATCH_REQUESTS, Session};
use crate::{
    config::{Reread, SellConfig},
    telemetry::{self, Notifier},
};

/// Time in which what waits in the mailbox, is being verified or waits for the node is answered at
/// the end.
const DRAIN_DEADLINE: Duration = Duration::from_secs(2);
/// Pause while payments are being verified.
const DRAIN_PAUSE: Duration = Duration::from_millis(2);
/// Time for the last answers to leave.
const DRAIN_FLUSH: Duration = Duration::from_millis(200);

impl Session<'_> {
    /// What `systemctl status` shows.
    pub(super) fn tend(&mut self) {
        self.desk.gate.payers.sweep(|station| self.controller.payer(station));
        let tip = self.controller.book().tip();
        let chain = if self.controller.synced() { "block" } else { "chain not seen since block" };
        let lan = self.config.lan.join(", ");
        self.notifier.status(&format!("selling on {lan}, {chain} {tip}"));
    }

    /// Reads the settings again and takes over what can change while it runs.
    pub(super) fn reload(&mut self) {
        self.notifier.reloading();
        if read_settings(&mut self.config, self.notifier) {
            self.renew_terms();
            self.issue_offer();
        }
        self.notifier.reloaded();
    }

    /// Nobody gets in any more; who is in is answered.
    pub(super) async fn drain(&mut self) -> Result<()> {
        self.notifier.stopping();
        self.desk.front.stop();
        self.draining = true;
        let deadline = Instant::now() + DRAIN_DEADLINE;
        // Payments that are being verified come back through the mailbox.
        while self.take_waiting().await? || self.verifies() {
            if Instant::now() >= deadline {
                break;
            }
            if self.verifies() {
                sleep(DRAIN_PAUSE).await;
            }
        }
        self.desk.mailbox.close();
        self.take_waiting().await?;
        while !(self.pending.is_empty() && self.answers.is_empty()) {
            let mut out = Batch::default();
            tokio::select! {
                Some(internal) = self.internals.recv() => {
                    let input = self.internal(internal);
                    self.controller.handle(input, &mut out);
                }
                Some(_) = self.answers.join_next() => {}
                () = sleep_until(deadline) => {
                    let owed = self.pending.len() + self.answers.len();
                    warn!("{owed} requests that wait for the node are left without an answer");
                    break;
                }
            }
            self.settle(out).await?;
        }
        let mut out = Batch::default();
        self.read_usage(&mut out);
        self.controller.handle(Input::Checkpoint, &mut out);
        self.settle(out).await?;
        sleep(DRAIN_FLUSH).await;
        Ok(())
    }

    /// Answers what waits in the mailbox, up to a batch; whether there was anything.
    async fn take_waiting(&mut self) -> Result<bool> {
        let mut out = Batch::default();
        let mut taken = 0;
        while taken < BATCH_REQUESTS
            && let Ok(envelope) = self.desk.mailbox.try_recv()
        {
            self.take(envelope, &mut out);
            taken += 1;
        }
        if taken > 0 {
            self.settle(out).await?;
        }
        Ok(taken > 0)
    }
}

/// Reads the settings again and takes over what can change while it runs; whether they could be
/// read.
pub(super) fn read_settings(config: &mut SellConfig, notifier: &mut Notifier) -> bool {
    let Reread { config: new, changed, restart } = match config.reread() {
        Ok(reread) => reread,
        Err(error) => {
            notifier.reload_failed(&format!("{error:#}"));
            error!("{error:#}; everything stays as it was");
            return false;
        }
    };
    *config = new;
    if changed.iter().any(|name| name == "log")
        && let Err(error) = telemetry::set_filter(config.settings.common.log.as_deref())
    {
        error!("{error:#}");
    }
    let list = if changed.is_empty() { "nothing".into() } else { changed.join(", ") };
    info!("settings were read again: {list} changed; earlier offers hold to their end");
    if !restart.is_empty() {
        warn!("{} changed in the settings and take a restart", restart.join(", "));
    }
    true
}
