//! What is done beside paying: channels opened, funded, presented and left. No payment waits for
//! it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bitcoin::Amount;
use bitmesh_core::{
    bitcoin,
    buyer::Action,
    channel::{Batch, ChannelId, ChannelStatus, SubscriberEvent},
    succession::{Errand, Wants},
    wire::{ChannelReport, CloseProposal, FundingRequest},
};
use tracing::{info, warn};

use super::{super::status::Phase, Intent, Internal, RETRY, Session, phase_of};
use crate::api::ClientError;

/// How long the chain is waited for before a channel is opened without it.
const CHAIN_PATIENCE: Duration = Duration::from_secs(10);
/// Pause before a funding is presented or replaced again.
const PRESENT_INTERVAL: Duration = Duration::from_secs(30);

/// The state of what is done beside paying.
#[derive(Default)]
pub(super) struct Aside {
    /// A request is on its way; the next one waits for its answer.
    pub(super) busy: bool,
    /// Pause after what failed, before another channel is opened.
    pub(super) open_not_before: Option<Instant>,
    /// The same for each channel.
    not_before: BTreeMap<ChannelId, Instant>,
    /// What keeps the next channel from being opened or funded.
    said: Option<(Phase, String)>,
}

impl Aside {
    pub(super) fn hold(&mut self, id: ChannelId, pause: Duration) {
        self.not_before.insert(id, Instant::now() + pause);
    }

    fn held(&self, id: &ChannelId) -> bool {
        self.not_before.get(id).is_some_and(|due| Instant::now() < *due)
    }
}

impl Session {
    /// Whether the chain is seen, or has been waited for long enough and is known from earlier.
    fn may_act(&self) -> bool {
        let known = self.buyer.book().tip() > 0;
        self.synced || known && self.unseen_since.elapsed() >= CHAIN_PATIENCE
    }

    /// Starts the most urgent thing to do beside paying, if nothing is under way.
    pub(super) fn run_errand(&mut self, out: &mut Batch<SubscriberEvent, Action>) {
        if self.aside.busy || !self.may_act() {
            return;
        }
        let url = self.provider.url().to_owned();
        let (budget, acknowledged) = (self.budget, !self.unacknowledged);
        let errands = self.buyer.errands(&Wants { url: &url, budget, acknowledged });
        let due = errands.into_iter().find(|errand| match errand {
            Errand::Fund(id) | Errand::Close(id) => !self.aside.held(id),
            Errand::Leave(_) => self.intent == Intent::Buy,
            Errand::Open | Errand::OpenNext(_) => {
                let due = self.aside.open_not_before.is_none_or(|due| Instant::now() >= due);
                self.intent == Intent::Buy && due
            }
        });
        match due {
            Some(Errand::Fund(id)) => self.ask_funding_rate(id),
            Some(Errand::Leave(id)) => {
                info!("channel {id} is spent, and left");
                self.buyer.close(id, out);
            }
            Some(Errand::Open) => self.open(None),
            Some(Errand::OpenNext(payable)) => self.open(Some(payable)),
            Some(Errand::Close(id)) => {
                let channel = self.buyer.book().get(&id);
                let proposal = channel.and_then(|it| it.proposed_close()).map(CloseProposal::from);
                self.ask_to_close(id, proposal);
            }
            None => self.present(),
        }
    }

    /// Starts a request beside paying.
    pub(super) fn ask_aside(&mut self, request: impl Future<Output = Internal> + Send + 'static) {
        self.aside.busy = true;
        self.start_request(request);
    }

    /// Shows the provider a funding that no block holds: it waits for what it has seen longer than for
    /// what it was only told of; where it counts on it, payments begin; and it broadcasts it, for who
    /// can't.
    fn present(&mut self) {
        let tip = self.buyer.book().tip();
        let waiting = self.buyer.book().iter().find_map(|(id, channel)| {
            let counts = channel.params().unconfirmed_max > Amount::ZERO;
            let wanted = counts || !self.synced || channel.taken().is_none();
            let unfunded = channel.status(tip) == ChannelStatus::Unfunded;
            let here = channel.url() == self.provider.url() && !self.aside.held(id);
            let tx = channel.funding_waits(tip).filter(|_| wanted && unfunded && here)?;
            Some((*id, tx.clone()))
        });
        let Some((id, tx)) = waiting else { return };
        self.aside.hold(id, PRESENT_INTERVAL);
        let provider = self.provider.clone();
        self.ask_aside(async move {
            let answer = provider.fund(id, &FundingRequest { tx }).await;
            Internal::Presented(id, answer.map(Box::new))
        });
    }

    pub(super) fn presented(
        &mut self,
        id: ChannelId,
        answer: Result<ChannelReport, ClientError>,
        out: &mut Batch<SubscriberEvent, Action>,
    ) {
        match answer {
            Ok(report) => {
                if let Some(outpoint) = report.offered {
                    self.buyer.funding_taken(id, outpoint, out);
                }
                if let Some(channel) = self.buyer.book().get(&id) {
                    let credit = channel.payable(self.buyer.book().tip());
                    info!("the provider has the funding; {credit} count before it is confirmed");
                }
            }
            Err(error) => warn!("the provider does not take the funding before a block: {error}"),
        }
    }

    pub(super) fn errand_failed(&mut self, error: &ClientError) {
        self.aside.open_not_before = Some(Instant::now() + RETRY);
        let phase = phase_of(error);
        if phase == Phase::OfferRefused {
            // It may be the offer that ended.
            self.offer = None;
        }
        if self.phase != Phase::Closing {
            self.tell(phase, error.to_string());
        }
    }

    /// Whether the channel in use can be paid on.
    pub(super) fn pays(&self) -> bool {
        let tip = self.buyer.book().tip();
        let channel = self.active.and_then(|id| self.buyer.book().get(&id));
        channel.is_some_and(|channel| channel.payable(tip) > channel.paid())
    }

    /// Says what keeps the next channel from being used, beside what is said of the one in use.
    pub(super) fn tell(&mut self, phase: Phase, message: impl Into<String>) {
        let message = message.into();
        let said = Some((phase, message.clone()));
        if self.pays() {
            if self.aside.said != said {
                info!("the next channel: {message}");
            }
        } else {
            self.say(phase, message);
        }
        self.aside.said = said;
    }

    /// Nothing keeps the next channel any more.
    pub(super) fn told(&mut self) {
        self.aside.said = None;
    }

    /// What keeps the next channel from being used.
    pub(super) fn obstacle(&self) -> Option<(Phase, String)> {
        self.aside.said.clone()
    }
}
