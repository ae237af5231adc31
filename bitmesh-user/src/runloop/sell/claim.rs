//! Claims: built, signed, and made dearer until a block holds them.

use anyhow::{Context as _, Result};
use bitcoin::{Amount, FeeRate};
use bitmesh_core::{
    bitcoin,
    channel::{Batch, ChannelId, Claim, ProviderEvent},
    controller::{Action, CloseOwn, DueClaim, Input},
    wire::CloseRequest,
};
use tracing::{info, warn};

use super::{Internal, Session};
use crate::wallet::Role;

impl Session<'_> {
    pub(super) fn internal(&mut self, internal: Internal, out: &mut Batch<ProviderEvent, Action>) {
        let Internal::FeeRate(due, rate) = internal;
        let raised = due.iter().filter_map(|due| due.replaces).max().map(bumped);
        let rate = raised.map_or(rate, |raised| raised.max(rate));
        // Channels whose part of a claim costs more than it brings wait for lower fees.
        let (due, poor): (Vec<_>, Vec<_>) = due.into_iter().partition(|due| pays_off(due, rate));
        for due in poor {
            let paid = due.input.paid;
            info!("channel {} brings {paid}, less than claiming it costs now", due.channel);
        }
        if due.is_empty() {
            return;
        }
        match self.claim(due, rate) {
            Ok(claimed) => self.controller.handle(claimed, out),
            Err(error) => warn!("{error:#}; it is tried again at the next block"),
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

    pub(super) fn claim(&mut self, due: Vec<DueClaim>, rate: FeeRate) -> Result<Input> {
        let wallet = &mut self.foundation.wallet;
        let payout = wallet.unused_address().script_pubkey();
        let inputs = due.iter().map(|due| due.input.clone()).collect();
        let claim = Claim::new(inputs, &payout, rate)?;
        let fee = claim.fee();
        let signatures: Vec<_> = claim
            .sighashes()
            .into_iter()
            .zip(&due)
            .map(|(message, due)| wallet.sign_channel(Role::Provider, due.key_index, message))
            .collect();
        let tx = claim.finish(&signatures).context("a claim lacks a signature")?;
        info!(
            "claiming {} in {}, {fee} for miners",
            due.iter().map(|due| due.input.paid).sum::<Amount>(),
            tx.compute_txid()
        );
        let channels = due.into_iter().map(|due| due.channel).collect();
        Ok(Input::Claimed { channels, tx, fee, fee_rate: rate })
    }
}

fn pays_off(due: &DueClaim, rate: FeeRate) -> bool {
    let payout = due.input.params.remainder_script.as_script();
    Claim::new(vec![due.input.clone()], payout, rate).is_ok()
}

/// What the next claim of the same channels has to pay to replace the last (BIP125, with room).
fn bumped(last: FeeRate) -> FeeRate {
    FeeRate::from_sat_per_kwu(
        last.to_sat_per_kwu().saturating_mul(3).div_ceil(2).saturating_add(250),
    )
}
