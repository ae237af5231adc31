//! Leaving: the provider is asked to claim, or to sign a close.

use std::time::Duration;

use bitcoin::FeeRate;
use bitmesh_core::{
    bitcoin,
    buyer::Action,
    channel::{Batch, ChannelId, CloseError, SubscriberEvent, close_digest},
    wire::{ChannelReport, CloseProposal, CloseRequest},
};
use tracing::{debug, info, warn};

use super::{
    super::{fee_rate, status::Phase},
    Internal, Session,
};
use crate::{api::ClientError, wallet::Role};

/// How often a close is asked for until it is settled.
const CLOSE_INTERVAL: Duration = Duration::from_secs(5);
/// The same, of a channel that the provider doesn't know.
const LOST_INTERVAL: Duration = Duration::from_mins(10);

impl Session {
    pub(super) fn ask_to_close(&mut self, id: ChannelId, proposal: Option<CloseProposal>) {
        let Some(channel) = self.buyer.book().get(&id) else { return };
        let message = match channel.closed_by_both() {
            Some(close) => format!("both signed the close in {}", close.tx.compute_txid()),
            None => "the provider was asked to close".into(),
        };
        let index = channel.key_index();
        if self.active == Some(id) && self.obstacle().is_none() {
            self.say(Phase::Closing, format!("{message}; waiting for it to be in a block"));
        }
        self.aside.hold(id, CLOSE_INTERVAL);
        let signature =
            self.foundation.wallet.sign_channel(Role::Subscriber, index, close_digest(&id));
        let (provider, source) = (self.provider.clone(), self.foundation.source.clone());
        self.ask_aside(async move {
            let answer = provider.close(id, &CloseRequest { signature, proposal }).await;
            Internal::Closing(id, fee_rate(source.as_ref()).await, answer.map(Box::new))
        });
    }

    pub(super) fn close_failed(&mut self, id: ChannelId, error: &ClientError) {
        let told = match error {
            ClientError::Refused { body, .. } if body.error == "unknown-channel" => {
                self.aside.hold(id, LOST_INTERVAL);
                let channel = self.buyer.book().get(&id);
                let expiry = channel.map_or(0, |channel| channel.params().expiry_height);
                format!("the provider does not know channel {id}: refunded after block {expiry}")
            }
            _ => format!("channel {id} is not closed yet: {error}"),
        };
        if self.active == Some(id) && self.obstacle().is_none() {
            self.say(Phase::Closing, told);
        } else {
            debug!("{told}");
        }
    }

    pub(super) fn close_answered(
        &mut self,
        id: ChannelId,
        rate: FeeRate,
        report: ChannelReport,
        out: &mut Batch<SubscriberEvent, Action>,
    ) {
        if let Some(close) = report.closed_by_both {
            self.buyer.close_answered(id, close.tx, out);
        }
        let Some(payout_script) = report.payout_script else { return };
        match self.buyer.close_due(&id, &payout_script, rate) {
            Ok(Some(close)) => {
                let channel = self.buyer.book().get(&id);
                let (Some(channel), Some(message)) = (channel, close.sighash()) else { return };
                info!("proposing to close channel {id} for a fee of {}", close.fee());
                let index = channel.key_index();
                let signature =
                    self.foundation.wallet.sign_channel(Role::Subscriber, index, message);
                self.buyer.close_signed(id, close, signature, out);
            }
            Ok(None) => {}
            Err(error @ CloseError::FeeTooHigh { .. }) if self.active == Some(id) => self.say(
                Phase::Closing,
                format!("not closed yet: {error}, or for height {}", report.params.expiry_height),
            ),
            Err(error) => warn!("channel {id} is not closed yet: {error}"),
        }
    }
}
