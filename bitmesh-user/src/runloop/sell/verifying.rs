//! Signatures of payments, verified on the runtime's threads before the controller sees them.

use std::sync::Arc;

use bitmesh_core::{
    channel::{Batch, Entry, ProviderChannel, ProviderEvent},
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
        if !matches!(pay.proof, Proof::None) {
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

    /// Lets no check outlive what it says: to be called before anything of a batch is told.
    pub(super) fn keep_checks(&self, out: &Batch<ProviderEvent, Action>) {
        let checks = self.desk.front.checks();
        let mut outdated = false;
        for entry in out.entries() {
            match entry {
                Entry::Channel { channel, event: ProviderEvent::Paid { paid, .. } } => {
                    checks.paid(channel, *paid);
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
