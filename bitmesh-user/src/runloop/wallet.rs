//! What the operator does with the wallet, the same for both roles and without a daemon.

use std::{collections::HashMap, pin::Pin};

use axum::http::StatusCode;
use bitcoin::{Address, Amount, FeeRate, OutPoint, Transaction};
use bitmesh_core::{
    bitcoin,
    channel::{ChannelId, ChannelStatus, SpendKind, Spent, funding_outpoint},
    wire::ChannelReport,
};

use super::{Foundation, broadcast, now, status::WalletStatus};
use crate::{
    api::{
        AddressReport, ApiError, Body, FEE_RATE_MAX_SAT_PER_VB, FeeRateReport, HISTORY_MAX,
        PastKind, PastReport, Reply, SendOrder, SendReport, SendState, WalletAsk,
    },
    chain::Broadcast,
    store::StoreRole,
    wallet::{Past, Payment, WalletError},
};

/// An answer that may take the chain's; to be waited for only after the wallet's changes are
/// durable.
pub(super) type Answering = Pin<Box<dyn Future<Output = Reply> + Send>>;

fn at_once(reply: Reply) -> Answering {
    Box::pin(std::future::ready(reply))
}

impl Foundation {
    /// Balance, an address, and what is inside channels.
    pub(super) fn wallet_status(&mut self, inside: Amount) -> WalletStatus {
        let balance = self.wallet.balance();
        WalletStatus {
            confirmed_sat: balance.confirmed.to_sat(),
            pending_sat: balance.pending.to_sat(),
            in_channels_sat: inside.to_sat(),
            fingerprint: self.wallet.fingerprint().to_string(),
            address: self.wallet.unused_address().to_string(),
        }
    }

    /// What of channels' money is this end's.
    pub(super) fn in_channels(&self, channels: &[ChannelReport]) -> Amount {
        let unfunded = channels.iter().any(|channel| channel.status == ChannelStatus::Unfunded);
        let waiting = if unfunded { self.wallet.unconfirmed() } else { Vec::new() };
        channels.iter().map(|channel| self.inside(channel, &waiting)).sum()
    }

    /// What of a channel's money is this end's, fundings that wait for a block included.
    fn inside(&self, channel: &ChannelReport, waiting: &[Transaction]) -> Amount {
        let own = channel.params.capacity.checked_sub(channel.paid).unwrap_or_default();
        let funded = || waiting.iter().any(|tx| funding_outpoint(&channel.params, tx).is_some());
        match (self.role, channel.status) {
            (_, ChannelStatus::Closed { .. } | ChannelStatus::Settled { .. }) => Amount::ZERO,
            (StoreRole::Provider, _) => channel.paid,
            (StoreRole::Subscriber, _) if channel.funding.is_some() || funded() => own,
            (StoreRole::Subscriber, _) => Amount::ZERO,
        }
    }

    /// What the operator wants.
    pub(super) fn of_wallet(
        &mut self,
        ask: &WalletAsk,
        channels: impl FnOnce() -> Vec<ChannelReport>,
    ) -> Answering {
        match ask {
            WalletAsk::Address { new } => {
                let address =
                    if *new { self.wallet.next_address() } else { self.wallet.unused_address() };
                at_once(Ok(Body::of(AddressReport { address: address.to_string() })))
            }
            WalletAsk::History { limit } => {
                let limit = (*limit).min(HISTORY_MAX) as usize;
                let labels = Labels::new(&channels(), self.role);
                let past = self.wallet.history().into_iter().take(limit);
                at_once(Ok(Body::of(past.map(|past| labels.report(&past)).collect::<Vec<_>>())))
            }
            WalletAsk::FeeRate { blocks } => {
                let (source, blocks) = (self.source.clone(), *blocks);
                Box::pin(async move {
                    let rate = source.fee_rate(blocks).await;
                    let rate = rate.unwrap_or(FeeRate::BROADCAST_MIN).max(FeeRate::BROADCAST_MIN);
                    Ok(Body::of(FeeRateReport { fee_sat_per_kwu: rate }))
                })
            }
            WalletAsk::Send(order) => self.send(order),
        }
    }

    fn send(&mut self, order: &SendOrder) -> Answering {
        let (tx, report) = match self.pay(order) {
            Ok((payment, report)) => (payment.tx, report),
            Err(error) => return at_once(Err(refused(&error))),
        };
        if order.preview {
            return at_once(Ok(Body::of(report)));
        }
        let source = self.source.clone();
        Box::pin(async move {
            let state = match source.broadcast(&tx).await {
                Broadcast::Accepted | Broadcast::Known => SendState::Sent,
                Broadcast::Rejected { reason, .. } | Broadcast::Unreachable { reason } => {
                    tokio::spawn(async move { broadcast(source.as_ref(), &tx).await });
                    SendState::Waiting { reason }
                }
            };
            Ok(Body::of(SendReport { state, ..report }))
        })
    }

    fn pay(&mut self, order: &SendOrder) -> Result<(Payment, SendReport), WalletError> {
        let most = FeeRate::from_sat_per_vb(FEE_RATE_MAX_SAT_PER_VB).unwrap_or(FeeRate::MAX);
        let rate = order.fee_sat_per_kwu;
        if rate < FeeRate::BROADCAST_MIN || rate > most {
            return Err(WalletError::Create(format!(
                "nodes relay from {} on, and more than {most} is a mistake",
                FeeRate::BROADCAST_MIN
            )));
        }
        let script = self.wallet.payee(&order.address)?;
        let payment = if order.preview {
            self.wallet.preview(&script, order.sum, rate)?
        } else {
            self.wallet.pay(&script, order.sum, rate, now())?
        };
        let report = SendReport {
            address: order.address.clone(),
            amount_sat: payment.amount.to_sat(),
            fee_sat: payment.fee.to_sat(),
            change_sat: payment.change.to_sat(),
            vbytes: self.wallet.signed_vbytes(&payment.tx),
            txid: (!order.preview).then(|| payment.tx.compute_txid()),
            state: SendState::Preview,
        };
        Ok((payment, report))
    }

    /// Hands own transactions that no block holds to the network again: it may have forgotten them.
    /// Not those that fund channels: the channels know until when those are of use.
    pub(super) fn rebroadcast(&self) -> impl Future<Output = ()> + Send + use<> {
        let (source, mut waiting) = (self.source.clone(), self.wallet.unconfirmed());
        waiting.retain(|tx| !self.wallet.funds_channel(tx));
        async move {
            for tx in waiting {
                source.broadcast(&tx).await;
            }
        }
    }
}

fn refused(error: &WalletError) -> ApiError {
    let (status, code, advice) = match error {
        WalletError::Insufficient { .. } => {
            (StatusCode::CONFLICT, "insufficient-funds", "send less, or `all`")
        }
        WalletError::Address(_) => {
            (StatusCode::UNPROCESSABLE_ENTITY, "address", "nothing was sent; ask for another one")
        }
        _ => (StatusCode::UNPROCESSABLE_ENTITY, "payment", "nothing was sent"),
    };
    ApiError::new(status, code, error.to_string(), advice)
}

/// What is known of channels, to say what a transaction was.
struct Labels {
    role: StoreRole,
    addresses: HashMap<String, ChannelId>,
    fundings: HashMap<OutPoint, ChannelId>,
    network: Option<bitcoin::Network>,
}

impl Labels {
    fn new(channels: &[ChannelReport], role: StoreRole) -> Self {
        let addresses = channels.iter().map(|known| (known.address.clone(), known.channel));
        let fundings = channels.iter().filter_map(|known| Some((known.funding?, known.channel)));
        let network = channels.first().map(|known| known.params.network);
        Self { role, addresses: addresses.collect(), fundings: fundings.collect(), network }
    }

    fn report(&self, past: &Past) -> PastReport {
        let spent = past.tx.input.iter().find_map(|input| {
            let channel = *self.fundings.get(&input.previous_output)?;
            let spent = Spent::find(&past.tx, &input.previous_output, 0)?;
            Some((channel, spent.kind))
        });
        let own_fee = past.fee.filter(|_| past.sent > Amount::ZERO);
        let fee = own_fee.unwrap_or_default();
        let (kind, channel) = match (spent, self.funded(&past.tx)) {
            (Some((id, SpendKind::Refund)), _) => (PastKind::Refund, Some(id)),
            (Some((id, _)), _) if self.role == StoreRole::Provider => (PastKind::Claim, Some(id)),
            (Some((id, _)), _) => (PastKind::Remainder, Some(id)),
            (None, Some(id)) if past.sent > Amount::ZERO => (PastKind::Funding, Some(id)),
            _ if past.sent == Amount::ZERO => (PastKind::Received, None),
            _ if past.received + fee == past.sent => (PastKind::Moved, None),
            _ => (PastKind::Sent, None),
        };
        let signed = |amount: Amount| i64::try_from(amount.to_sat()).unwrap_or(i64::MAX);
        PastReport {
            txid: past.tx.compute_txid(),
            kind,
            channel,
            height: past.height,
            time: past.time,
            amount_sat: signed(past.received + fee) - signed(past.sent),
            fee_sat: own_fee.map(Amount::to_sat),
        }
    }

    /// The channel that a transaction pays into.
    fn funded(&self, tx: &Transaction) -> Option<ChannelId> {
        let network = self.network?;
        tx.output.iter().find_map(|output| {
            let address = Address::from_script(&output.script_pubkey, network).ok()?;
            self.addresses.get(&address.to_string()).copied()
        })
    }
}
