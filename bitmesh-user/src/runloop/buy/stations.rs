//! Whose credit it is: this machine's, under whatever MAC it has now, and that of others that it
//! shares with.

use std::time::Instant;

use anyhow::{Context as _, Result, anyhow};
use axum::http::StatusCode;
use bitmesh_core::{
    account::AccountId,
    channel::{Binding, ChannelId},
    station::Station,
    units::Octets,
    wire::{AccountReport, StationsRequest},
};
use tracing::{info, warn};

use super::{super::now, Internal, Session, pay::host_of};
use crate::{
    api::{ApiError, Body, Provider, Reply, ShareChange, ShareCode},
    store::Store,
    wallet::Role,
};

/// Name under which the station that was bound last is stored.
const STATION: &str = "station";
/// Name under which it is stored that the credit is shared.
const SHARING: &str = "sharing";
/// Longest that a code for another station can be good for, in seconds: a month.
const CODE_SECONDS_MAX: u64 = 30 * 24 * 3_600;

/// How this machine belongs to its account.
#[derive(Default)]
pub(super) struct Membership {
    /// The channel's account at the provider.
    pub(super) account: Option<AccountId>,
    /// The station that was bound last.
    station: Option<Station>,
    /// The MAC of the interface towards the provider.
    own_mac: Option<Station>,
    /// Others were let use the credit, too.
    pub(super) sharing: bool,
    /// What they used of it.
    pub(super) others: Octets,
}

impl Membership {
    /// What an earlier daemon knew of it.
    pub(super) async fn load(store: &mut Store) -> Result<Self> {
        let station = store.setting(STATION).await?;
        let station = station.map(|mac| mac.parse().context("the stored station")).transpose()?;
        let sharing = store.setting(SHARING).await?.is_some();
        Ok(Self { station, sharing, ..Self::default() })
    }
}

impl Session {
    /// Takes what the provider says of this station. True when it may use the account's credit;
    /// else that is being seen to.
    pub(super) async fn belongs(&mut self, account: &AccountReport) -> Result<bool> {
        let Some(id) = self.active else { return Ok(true) };
        let address = host_of(self.provider.url()).context("the provider's URL has no address")?;
        let own = self.gateway.own_station(address).await.unwrap_or_default();
        let before = self.membership.own_mac;
        self.membership.own_mac = own.or(before);
        if let (Some(before), Some(own)) = (before, own)
            && before != own
        {
            info!("this machine's MAC is {own} now, it was {before}");
            // The provider knows the old connection by the old MAC.
            self.provider = Provider::new(self.provider.url())?;
            return Ok(false);
        }
        if self.membership.account.is_none() {
            let provider = self.provider.clone();
            self.ask(async move { Internal::Channel(provider.channel(id).await.map(Box::new)) });
            return Ok(false);
        }
        if account.account != self.membership.account || !account.bound {
            info!("{} can't use what was paid for yet; binding it to the account", account.station);
            self.bind(id, account.station)?;
            return Ok(false);
        }
        let before = self.membership.station.replace(account.station);
        if before != self.membership.station {
            self.foundation.store.set(STATION, &account.station.to_string()).await?;
        }
        if let Some(before) = before.filter(|before| *before != account.station) {
            info!("this machine was {before} before; what that used stays paid for");
            self.unbind(id, before)?;
        }
        Ok(true)
    }

    fn bind(&mut self, id: ChannelId, station: Station) -> Result<()> {
        let change = self.signed(id, Some(station), false, None)?;
        let provider = self.provider.clone();
        self.ask(
            async move { Internal::Bound(provider.change_stations(id, &change).await.map(drop)) },
        );
        Ok(())
    }

    fn unbind(&mut self, id: ChannelId, station: Station) -> Result<()> {
        let change = self.signed(id, Some(station), true, None)?;
        let provider = self.provider.clone();
        self.tasks.spawn(async move {
            if let Err(error) = provider.change_stations(id, &change).await {
                warn!("{station} may go on using this account's credit: {error}");
            }
        });
        Ok(())
    }

    fn signed(
        &self,
        id: ChannelId,
        station: Option<Station>,
        remove: bool,
        expires_at: Option<u64>,
    ) -> Result<StationsRequest> {
        let channel = self.buyer.book().get(&id).context("a channel of this wallet")?;
        let mut nonce = [0; 8];
        getrandom::fill(&mut nonce).map_err(|error| anyhow!("reading random numbers: {error}"))?;
        let binding = Binding { station, remove, nonce: nonce.into(), expires_at };
        let index = channel.key_index();
        let signature =
            self.foundation.wallet.sign_channel(Role::Subscriber, index, binding.digest(&id));
        Ok(StationsRequest { binding, signature })
    }

    /// What to post so that a station is bound, or is no more.
    pub(super) async fn share(&mut self, change: ShareChange) -> Reply {
        let failed = |code, message: String, advice| {
            Err(ApiError::new(StatusCode::CONFLICT, code, message, advice))
        };
        let Some(id) = self.active else {
            let message = "there is no channel yet whose credit could be shared".into();
            return failed("no-channel", message, "`bitmesh status` says what is missing");
        };
        let signed = match change {
            ShareChange::Code { seconds } => {
                let expires_at = now().saturating_add(seconds.min(CODE_SECONDS_MAX));
                if let Err(error) = self.foundation.store.set(SHARING, "yes").await {
                    return failed("store", error.to_string(), "free some disk space");
                }
                self.membership.sharing = true;
                // What others use is asked for from now on, and not at the end of a longer rest.
                self.account_due = Instant::now();
                self.signed(id, None, false, Some(expires_at))
            }
            ShareChange::Remove(station) => self.signed(id, Some(station), true, None),
        };
        match signed {
            Ok(body) => {
                let url = format!("{}/v1/channels/{id}/stations", self.provider.url());
                Ok(Body::of(ShareCode { url, body }))
            }
            Err(error) => failed("not-signed", format!("{error:#}"), "try again"),
        }
    }

    /// What others used of this account's credit, as far as they were let.
    pub(super) fn take_others(&mut self, account: &AccountReport) {
        // Who shares with nobody takes the provider's word for nothing.
        let others = if self.membership.sharing { account.others_octets } else { Octets(0) };
        self.membership.others = self.membership.others.max(others);
    }
}
