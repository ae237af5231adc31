//! Signatures of payments, verified on the runtime's threads before the controller sees them.

use std::sync::Arc;

use bitmesh_core::{
    bitcoin::Amount,
    channel::{Batch, ChannelId, Entry, ProviderChannel, ProviderEvent},
    controller::Action,
    fleet::FleetEntry,
};
use tokio::sync::{Semaphore, oneshot};

use super::Session;
use crate::api::{ApiError, Front, Pay, Proof, Reply, Verdict};

/// Payments on channels that nobody paid on lately which may wait to be verified; more are told to
/// come again.
const VERIFICATIONS_WAITING_MAX: usize = 1_024;

/// The bound on what waits to be verified.
pub(super) fn places() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(VERIFICATIONS_WAITING_MAX))
}

impl Session<'_> {
    /// Has a payment verified on another thread, from where it comes back, if its channel was not
    /// known there and its sum is none to refuse; else it is to be judged now.
    pub(super) fn verify_elsewhere(
        &mut self,
        pay: Pay,
        reply: oneshot::Sender<Reply>,
    ) -> Option<(Pay, oneshot::Sender<Reply>)> {
        if self.draining || !matches!(pay.proof, Proof::None) {
            return Some((pay, reply));
        }
        let Some(check) = self.controller.payment_check(&pay.channel, pay.payment.paid) else {
            return Some((pay, reply));
        };
        let Ok(place) = self.verifying.clone().try_acquire_owned() else {
            let _ = reply.send(Err(ApiError::busy()));
            return None;
        };
        let best = self.controller.book().get(&pay.channel).map(ProviderChannel::paid);
        self.desk.front.checks().put(pay.channel, check, best.unwrap_or_default());
        let front = self.desk.front.clone();
        self.tasks.spawn(async move {
            verify(&front, pay, reply).await;
            drop(place);
        });
        None
    }

    /// Whether payments are on their way back from being verified.
    pub(super) fn verifies(&self) -> bool {
        self.verifying.available_permits() < VERIFICATIONS_WAITING_MAX
    }

    /// Lets no check outlive what it says: to be called before anything of a batch is told. Gives
    /// the new sums, to be told once they are durable.
    pub(super) fn forget_checks(
        &self,
        out: &Batch<ProviderEvent, Action>,
    ) -> Vec<(ChannelId, Amount)> {
        let checks = self.desk.front.checks();
        let mut sums = Vec::new();
        let mut outdated = false;
        for entry in out.entries() {
            match entry {
                Entry::Channel { channel, event: ProviderEvent::Paid { paid, .. } } => {
                    sums.push((*channel, *paid));
                }
                Entry::Channel { channel, .. } => checks.forget(channel),
                Entry::Block { .. }
                | Entry::BlockGone { .. }
                | Entry::Fleet(FleetEntry::HandOver { .. }) => outdated = true,
                Entry::Usage { .. } | Entry::Fleet(_) => {}
            }
        }
        if outdated {
            let book = self.controller.book();
            checks.retain(|channel, check| {
                let now = book.get(channel).and_then(|channel| channel.payment_check(book.tip()));
                now.is_some_and(|now| now.agrees(check))
            });
        }
        sums
    }
}

async fn verify(front: &Front, mut pay: Pay, reply: oneshot::Sender<Reply>) {
    pay.proof = match front.checks().judge(&pay.channel, &pay.payment) {
        Verdict::Verified(proof) => Proof::Verified(proof),
        Verdict::Unknown => Proof::Missed,
        Verdict::Wrong(refusal) => {
            let _ = reply.send(Err(refusal.into()));
            return;
        }
    };
    front.again(pay, reply).await;
}
