//! The wallet of a data directory whose daemon does not run: it follows the chain to its tip, then
//! does what was asked for. Channels are followed with it, and what a subscriber's hold after their
//! end is fetched back.

use anyhow::{Context as _, Result, bail};
use bitmesh_core::{
    buyer::Buyer,
    channel::{Batch, ProviderEvent, SubscriberEvent},
    controller::{Controller, Input},
    wire::ChannelReport,
};

use super::{Foundation, buy, fee_rate, no_refunds, source::first_tip};
use crate::{
    api::{ApiError, Ask, Body, Reply},
    chain::{Broadcast, ChainEvent},
    config::Common,
    store::StoreRole,
    wallet::Seed,
};

/// A data directory in the hands of a command.
pub struct Offline {
    foundation: Foundation,
    channels: Channels,
}

/// What the channels are to each role.
enum Channels {
    Provider(Box<Controller>),
    Subscriber(Box<Buyer>),
}

/// How far following the chain has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The newest block that was seen.
    pub height: u32,
    /// The newest that there is.
    pub tip: u32,
}

/// What following the chain has found beside the wallet's own money.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// For people, in order.
    pub told: Vec<String>,
}

impl Offline {
    /// Opens a data directory with its seed, and locks it. A new seed is written to the disk.
    pub async fn open(common: &Common, role: StoreRole, seed: &mut Seed) -> Result<Self> {
        let network = common.network;
        let (foundation, channels) = match role {
            StoreRole::Provider => {
                let (foundation, entries) =
                    Foundation::open::<ProviderEvent>(common, &common.ledger(), role, seed).await?;
                let mut controller = Controller::new(network, Vec::new());
                for entry in &entries {
                    controller.replay(entry)?;
                }
                (foundation, Channels::Provider(Box::new(controller)))
            }
            StoreRole::Subscriber => {
                let (foundation, entries) =
                    Foundation::open::<SubscriberEvent>(common, &common.ledger(), role, seed)
                        .await?;
                let mut buyer = Buyer::new(network);
                for entry in &entries {
                    buyer.replay(entry)?;
                }
                (foundation, Channels::Subscriber(Box::new(buyer)))
            }
        };
        Ok(Self { foundation, channels })
    }

    /// Follows the chain to its tip.
    pub async fn sync(&mut self, mut progress: impl FnMut(Progress)) -> Result<Findings> {
        let tip = first_tip(self.foundation.source.as_ref()).await?;
        let mut events = match &self.channels {
            Channels::Provider(controller) => self.foundation.follow(controller.book()),
            Channels::Subscriber(buyer) => self.foundation.follow(buyer.book()),
        };
        let mut findings = Findings::default();
        loop {
            let event = events.recv().await.context("the task that follows the chain has ended")?;
            self.foundation.follow_wallet(&event)?;
            match &event {
                ChainEvent::Connected { height, .. } => {
                    progress(Progress { height: *height, tip: tip.max(*height) });
                }
                ChainEvent::Disconnected { .. } => {}
                ChainEvent::Synced { .. } => break,
                ChainEvent::Lost { reason } => bail!("{reason}"),
            }
            self.follow(event).await?;
        }
        self.refund(&mut findings).await?;
        self.foundation.rebroadcast().await;
        Ok(findings)
    }

    /// What a daemon would record. What it would do is left to it: it starts from the record.
    async fn follow(&mut self, event: ChainEvent) -> Result<()> {
        match &mut self.channels {
            Channels::Provider(controller) => {
                let mut out = Batch::default();
                match event {
                    ChainEvent::Connected { height, block } => {
                        controller.handle(Input::BlockConnected { height, block }, &mut out);
                    }
                    ChainEvent::Disconnected { height } => {
                        controller.handle(Input::BlockDisconnected { height }, &mut out);
                    }
                    ChainEvent::Synced { .. } | ChainEvent::Lost { .. } => {}
                }
                self.foundation.commit(out, controller.book()).await?;
            }
            Channels::Subscriber(buyer) => {
                let mut out = Batch::default();
                match event {
                    ChainEvent::Connected { height, block } => {
                        buy::recover(&mut self.foundation.wallet, buyer, &block, &mut out);
                        buyer.connect(height, &block, &mut out);
                    }
                    ChainEvent::Disconnected { height } => buyer.disconnect(height, &mut out),
                    ChainEvent::Synced { .. } | ChainEvent::Lost { .. } => {}
                }
                self.foundation.commit(out, buyer.book()).await?;
            }
        }
        Ok(())
    }

    /// Fetches back what channels hold whose end has come.
    async fn refund(&mut self, findings: &mut Findings) -> Result<()> {
        let Channels::Subscriber(buyer) = &mut self.channels else { return Ok(()) };
        let due = buyer.refunds_due();
        if !due.is_empty() {
            let rate = fee_rate(self.foundation.source.as_ref()).await;
            let mut out = Batch::default();
            for due in due {
                let refund = buy::sign_refund(&mut self.foundation.wallet, buyer, &due, rate);
                findings.told.push(match refund {
                    Ok(tx) => {
                        let txid = tx.compute_txid();
                        buyer.refund_signed(due.channel, tx, &mut out);
                        format!("channel {} has ended: refunded in {txid}", due.channel)
                    }
                    Err(error) => format!("channel {} is not refunded yet: {error:#}", due.channel),
                });
            }
            self.foundation.commit(out, buyer.book()).await?;
        }
        for tx in buyer.unconfirmed() {
            if let Broadcast::Unreachable { reason } = self.foundation.source.broadcast(&tx).await {
                findings.told.push(format!("{} is not broadcast: {reason}", tx.compute_txid()));
            }
        }
        Ok(())
    }

    /// Answers what a daemon would.
    pub async fn ask(&mut self, ask: &Ask) -> Reply {
        let channels = self.reports();
        let answering = match ask {
            Ask::Wallet => {
                let inside = self.foundation.in_channels(&channels);
                let status = self.foundation.wallet_status(inside);
                Box::pin(std::future::ready(Ok(Body::of(status))))
            }
            Ask::OfWallet(ask) => self.foundation.of_wallet(ask, || channels),
            Ask::Refunds => match &self.channels {
                Channels::Provider(_) => return Err(no_refunds()),
                Channels::Subscriber(buyer) => {
                    let refunds = buy::export_refunds(&mut self.foundation.wallet, buyer);
                    Box::pin(std::future::ready(Ok(Body::of(refunds))))
                }
            },
            _ => return Err(super::wrong_role("that takes a daemon")),
        };
        self.store().await.map_err(|error| {
            ApiError::new(
                axum::http::StatusCode::INTERNAL_SERVER_ERROR,
                "store",
                format!("{error:#}"),
                "nothing was sent; try again",
            )
        })?;
        answering.await
    }

    fn reports(&self) -> Vec<ChannelReport> {
        match &self.channels {
            Channels::Provider(controller) => controller.channels().collect(),
            Channels::Subscriber(buyer) => buyer.channels().collect(),
        }
    }

    /// Writes down what the wallet has to remember.
    async fn store(&mut self) -> Result<()> {
        match &self.channels {
            Channels::Provider(controller) => {
                let none = Batch::<_, ()>::default();
                self.foundation.commit(none, controller.book()).await?;
            }
            Channels::Subscriber(buyer) => {
                let none = Batch::<_, ()>::default();
                self.foundation.commit(none, buyer.book()).await?;
            }
        }
        Ok(())
    }

    /// Lets the data directory go.
    pub async fn close(self) -> Result<()> {
        Ok(self.foundation.close().await?)
    }
}
