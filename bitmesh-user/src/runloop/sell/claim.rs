//! Claims: signed as the controller decides, on a fee that is asked for with each block.

use bitcoin::Transaction;
use bitmesh_core::{
    bitcoin,
    channel::{ChannelId, FeeEstimates, NORMAL_TARGET_BLOCKS, URGENT_TARGET_BLOCKS},
    controller::{CloseOwn, Input, PlannedClaim, RequestId, Taken},
    wire::CloseRequest,
};
use tracing::{debug, info, warn};

use super::{super::broadcast, Internal, Session};
use crate::{
    chain::{Broadcast, Cause, ChainError, ChainSource},
    wallet::Role,
};

impl Session<'_> {
    /// Asks what miners take now; once at a time, so that many blocks at once are one question.
    pub(super) fn ask_fees(&mut self) {
        if std::mem::replace(&mut self.fees_asked, true) {
            return;
        }
        let (source, internal) = (self.foundation.source.clone(), self.internal.clone());
        self.tasks.spawn(async move {
            let estimates = estimates(source.as_ref()).await;
            if let Err(error) = &estimates {
                debug!("no fee estimate ({error}); taking the last, or the least that is relayed");
            }
            let _ = internal.send(Internal::Fees(estimates.ok())).await;
        });
    }

    pub(super) fn internal(&mut self, internal: Internal) -> Input {
        match internal {
            Internal::Fees(estimates) => {
                self.fees_asked = false;
                let payout = self.foundation.wallet.unused_address().script_pubkey();
                self.controller.set_payout(payout);
                Input::Fees(estimates)
            }
            Internal::Told(input) => *input,
            Internal::Passed(found) => self.passed(found),
        }
    }

    /// What the wallet adds to a wish to close: where the payout goes, and a signature.
    pub(super) fn own_for_close(&mut self, channel: &ChannelId, close: &CloseRequest) -> CloseOwn {
        let needs = self.controller.close_needs(channel, close);
        let wallet = &mut self.foundation.wallet;
        CloseOwn {
            payout_script: needs.payout_script.then(|| wallet.remainder_script()),
            signature: needs
                .signature
                .map(|(index, message)| wallet.sign_channel(Role::Provider, index, message)),
        }
    }

    pub(super) fn sign_claim(&self, planned: PlannedClaim) -> Option<Input> {
        let (paid, fee, channels) = (planned.paid(), planned.fee(), planned.channels().len());
        let wallet = &self.foundation.wallet;
        let signed = planned
            .sign(|key_index, message| wallet.sign_channel(Role::Provider, key_index, message));
        if let Some(Input::Claimed { tx, .. }) = &signed {
            let txid = tx.compute_txid();
            info!("claiming {paid} of {channels} channels in {txid}, {fee} for miners");
        } else {
            warn!("a claim of {paid} lacks a signature; it is tried again at the next block");
        }
        signed
    }

    /// Hands a transaction to the network; one that is refused for its fee is told.
    pub(super) fn broadcast(&mut self, tx: Transaction) {
        let (source, internal) = (self.foundation.source.clone(), self.internal.clone());
        self.tasks.spawn(async move {
            let outcome = broadcast(source.as_ref(), &tx).await;
            if matches!(outcome, Broadcast::Rejected { cause: Cause::Fee, .. }) {
                let refused = Input::Refused { txid: tx.compute_txid() };
                let _ = internal.send(Internal::Told(Box::new(refused))).await;
            }
        });
    }

    /// Hands a funding to the network, for a subscriber that waits for the answer.
    pub(super) fn present(&mut self, request: RequestId, channel: ChannelId, tx: Transaction) {
        let (source, internal) = (self.foundation.source.clone(), self.internal.clone());
        self.tasks.spawn(async move {
            let taken = match source.broadcast(&tx).await {
                Broadcast::Accepted | Broadcast::Known => Taken::Yes,
                Broadcast::Rejected { reason, .. } => Taken::No(reason),
                Broadcast::Unreachable { .. } => Taken::Unknown,
            };
            info!("funding {} of channel {channel} was presented: {taken:?}", tx.compute_txid());
            let told = Input::Presented { request, channel, tx, taken };
            let _ = internal.send(Internal::Told(Box::new(told))).await;
        });
    }

    /// Hands fundings to the network again, one by one.
    pub(super) fn check_offered(&mut self, offered: Vec<(ChannelId, Transaction)>) {
        let (source, internal) = (self.foundation.source.clone(), self.internal.clone());
        self.tasks.spawn(async move {
            for (channel, tx) in offered {
                if let Broadcast::Rejected { reason, .. } = source.broadcast(&tx).await {
                    let txid = tx.compute_txid();
                    let Ok((_, tip)) = source.tip().await else { continue };
                    warn!("funding {txid} of channel {channel} is taken no more: {reason}");
                    let gone = Input::OfferedGone { channel, txid, tip };
                    let _ = internal.send(Internal::Told(Box::new(gone))).await;
                }
            }
        });
    }
}

async fn estimates(source: &dyn ChainSource) -> Result<FeeEstimates, ChainError> {
    let normal = source.fee_rate(NORMAL_TARGET_BLOCKS).await?;
    let urgent = source.fee_rate(URGENT_TARGET_BLOCKS).await?;
    Ok(FeeEstimates { normal, urgent })
}
