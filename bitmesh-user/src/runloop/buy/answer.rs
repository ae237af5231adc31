//! What the operator asks, and is told.

use std::time::{Duration, Instant};

use axum::http::StatusCode;
use bitmesh_core::{
    buyer::Action,
    channel::{Batch, ChannelId, SubscriberEvent},
    controller::Refusal,
    payer::Payer,
};
use tracing::info;

use super::{
    super::{
        status::{Phase, Status, SubscriberStatus},
        wrong_role,
    },
    BUDGET, Intent, Session, export_refunds, is_usable,
};
use crate::api::{ApiError, Ask, Body, Reply};

impl Session {
    pub(super) async fn answer(
        &mut self,
        ask: &Ask,
        out: &mut Batch<SubscriberEvent, Action>,
    ) -> Reply {
        match ask {
            Ask::Status => Ok(Body::of(Status::Subscriber(Box::new(self.status())))),
            Ask::Channels => Ok(Body::of(self.buyer.channels().collect::<Vec<_>>())),
            Ask::Wallet => {
                let channels: Vec<_> = self.buyer.channels().collect();
                let inside = self.foundation.in_channels(&channels);
                Ok(Body::of(self.foundation.wallet_status(inside)))
            }
            Ask::Refunds => Ok(Body::of(export_refunds(&mut self.foundation.wallet, &self.buyer))),
            Ask::Stations => Err(wrong_role("a subscriber has no stations: it is one")),
            Ask::Budget(change) => {
                let budget = change.apply(self.budget).ok_or_else(|| {
                    ApiError::new(
                        StatusCode::UNPROCESSABLE_ENTITY,
                        "budget",
                        "that is more bitcoin than there is",
                        "choose a smaller budget",
                    )
                })?;
                let stored = budget.to_sat().to_string();
                self.foundation.store.set(BUDGET, &stored).await.map_err(|error| {
                    ApiError::new(
                        StatusCode::INTERNAL_SERVER_ERROR,
                        "store",
                        error.to_string(),
                        "free some disk space, then try again",
                    )
                })?;
                self.budget = budget;
                Ok(Body::of(Status::Subscriber(Box::new(self.status()))))
            }
            Ask::Share(change) => self.share(*change).await,
            Ask::CloseOwn(id) => self.close_own(*id, out),
            _ => Err(wrong_role("a subscriber sells nothing")),
        }
    }

    pub(super) fn close_own(
        &mut self,
        id: ChannelId,
        out: &mut Batch<SubscriberEvent, Action>,
    ) -> Reply {
        let channel = self.buyer.book().get(&id).ok_or(Refusal::UnknownChannel)?;
        if is_usable(channel, self.buyer.book().tip()) {
            self.buyer.close(id, out);
        }
        self.intent = Intent::Leave;
        self.not_before = Instant::now();
        self.aside.hold(id, Duration::ZERO);
        let report = self.buyer.channels().find(|report| report.channel == id);
        Ok(Body::of(report))
    }

    pub(super) fn say(&mut self, phase: Phase, message: impl Into<String>) {
        let message = message.into();
        if message != self.message {
            info!("{message}");
            self.message = message;
        }
        self.phase = phase;
    }

    pub(super) fn status(&mut self) -> SubscriberStatus {
        self.count();
        let inside = self.foundation.in_channels(&self.buyer.channels().collect::<Vec<_>>());
        let tip = self.buyer.book().tip();
        let payer = self.payer.as_ref();
        SubscriberStatus {
            chain: self.foundation.chain_status(tip, self.synced),
            url: self.provider.url().to_owned(),
            provider: self.offer.as_ref().map(|offer| offer.offer.provider).or_else(|| {
                Some(self.active.and_then(|id| self.buyer.book().get(&id))?.provider())
            }),
            phase: self.phase,
            message: self.message.clone(),
            channel: self
                .active
                .and_then(|id| self.buyer.channels().find(|report| report.channel == id)),
            budget_sat: self.budget.to_sat(),
            spent_sat: self.buyer.spent().to_sat(),
            account: self.account.clone(),
            counted_octets: self.counted,
            tick_octets: payer.map(Payer::tick).unwrap_or_default(),
            round_trip_ms: u64::try_from(self.round_trip.as_millis()).unwrap_or(u64::MAX),
            wallet: self.foundation.wallet_status(inside),
        }
    }
}
