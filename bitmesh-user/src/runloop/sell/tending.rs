//! What the operator and systemd want of a running provider: settings read again, a sign of life, and
//! an end that leaves nobody without an answer.

use std::time::{Duration, Instant};

use anyhow::Result;
use bitmesh_core::{channel::Batch, controller::Input};
use tracing::{error, info, warn};

use super::{BATCH_REQUESTS, Session};
use crate::{config::Reread, telemetry};

/// Time in which what waits in the mailbox is answered at the end.
const DRAIN_DEADLINE: Duration = Duration::from_secs(2);
/// Time for the last answers to leave.
const DRAIN_FLUSH: Duration = Duration::from_millis(200);

impl Session<'_> {
    /// A sign of life, by the loop between two commits.
    pub(super) fn tend(&mut self) {
        self.notifier.alive();
        self.desk.gate.payers.sweep(|station| self.controller.payer(station));
        let tip = self.controller.book().tip();
        let chain = if self.controller.synced() { "block" } else { "chain not seen since block" };
        let lan = self.config.lan.join(", ");
        self.notifier.status(&format!("selling on {lan}, {chain} {tip}"));
    }

    /// Reads the settings again and takes over what can change while it runs.
    pub(super) fn reload(&mut self) {
        self.notifier.reloading();
        match self.config.reread() {
            Ok(Reread { config, changed, restart }) => {
                let log = config.settings.common.log.clone();
                self.config = config;
                if changed.iter().any(|name| name == "log")
                    && let Err(error) = telemetry::set_filter(log.as_deref())
                {
                    error!("{error:#}");
                }
                self.renew_terms();
                self.issue_offer();
                let list = if changed.is_empty() { "nothing".into() } else { changed.join(", ") };
                info!("settings were read again: {list} changed; earlier offers hold to their end");
                if !restart.is_empty() {
                    warn!("{} changed in the settings and take a restart", restart.join(", "));
                }
            }
            Err(error) => {
                self.notifier.reload_failed(&format!("{error:#}"));
                error!("{error:#}; everything stays as it was");
            }
        }
        self.notifier.reloaded();
    }

    /// Nobody gets in any more; who is in is answered.
    pub(super) async fn drain(&mut self) -> Result<()> {
        self.notifier.stopping();
        self.desk.mailbox.close();
        let since = Instant::now();
        let mut envelopes = Vec::with_capacity(BATCH_REQUESTS);
        while since.elapsed() < DRAIN_DEADLINE {
            let mut out = Batch::default();
            while envelopes.len() < BATCH_REQUESTS
                && let Ok(envelope) = self.desk.mailbox.try_recv()
            {
                envelopes.push(envelope);
            }
            if envelopes.is_empty() {
                break;
            }
            for envelope in envelopes.drain(..) {
                self.take(envelope, &mut out);
            }
            self.settle(out).await?;
        }
        let mut out = Batch::default();
        self.read_usage(&mut out);
        self.controller.handle(Input::Checkpoint, &mut out);
        self.settle(out).await?;
        tokio::time::sleep(DRAIN_FLUSH).await;
        Ok(())
    }
}
