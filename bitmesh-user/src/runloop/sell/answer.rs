//! What stations and the operator ask, and are told.

use std::collections::BTreeMap;

use tracing::warn;

use super::{
    super::{
        no_refunds, starting,
        status::{HookStatus, ProviderStatus},
        wrong_role,
    },
    Session,
};
use crate::{
    api::{Ask, Body, Reply, value},
    dataplane,
};

impl Session<'_> {
    pub(super) fn answer(&mut self, ask: &Ask) -> Reply {
        match ask {
            Ask::Offer => self.controller.offer().map(Body::of).ok_or_else(starting),
            Ask::Channel(id) => Ok(Body::of(self.controller.channel(id)?)),
            Ask::Account(station) => Ok(Body::of(self.controller.account(*station))),
            Ask::Status => Ok(Body::of(self.keep_status())),
            Ask::Channels => Ok(Body::of(self.controller.channels().collect::<Vec<_>>())),
            Ask::Stations => Ok(Body::of(self.controller.accounts().collect::<Vec<_>>())),
            Ask::Wallet => {
                let inside = self.controller.totals().unsettled;
                Ok(Body::of(self.foundation.wallet_status(inside)))
            }
            Ask::Refunds => Err(no_refunds()),
            Ask::CloseOwn(_) => Err(wrong_role(
                "a provider claims by itself when a subscriber closes or a channel ends",
            )),
            Ask::Budget(_) => Err(wrong_role("a provider has no budget: it is paid")),
            Ask::Share(_) => Err(wrong_role("a provider shares no credit: subscribers do")),
            Ask::Open(..)
            | Ask::Fund(..)
            | Ask::Pay(_)
            | Ask::ChangeStations(..)
            | Ask::Close(..)
            | Ask::OfWallet(_) => Err(starting()),
        }
    }

    pub(super) fn status(&mut self) -> ProviderStatus {
        let hooks = self.guarding.hooks().iter().map(|hook| HookStatus {
            interface: hook.interface.clone(),
            direction: direction(hook.side).into(),
            hook: hook_name(hook),
            reason: hook.why.clone(),
            warning: hook.warning.clone(),
        });
        let mut causes = BTreeMap::new();
        match self.dataplane.stats() {
            Ok(stats) => causes.extend(stats.iter().map(|(c, n)| (c.name().to_owned(), n))),
            Err(error) => warn!("the kernel's causes can't be read: {error}"),
        }
        let totals = self.controller.totals();
        ProviderStatus {
            provider: self.foundation.wallet.node_public_key(),
            chain: self
                .foundation
                .chain_status(self.controller.book().tip(), self.controller.synced()),
            alarms: self.alarms(),
            offer: self.controller.offer().cloned(),
            edge_addresses: self.desk.edge_addresses.clone(),
            hooks: hooks.collect(),
            guard: self.guarding.status(),
            causes,
            events: self.told.status(),
            drift: self.told.drifted.status(),
            stations_with_credit: totals.stations_with_credit,
            stations: totals.stations,
            accounts: totals.accounts,
            channels_open: totals.channels_open,
            channels: totals.channels,
            paid_sat: totals.paid.to_sat(),
            billed_octets: self.controller.billed(),
            usage: self.controller.usage(),
            settled_sat: totals.settled.to_sat(),
            commitments: totals.commitments,
            wallet: self.foundation.wallet_status(totals.unsettled),
            store: {
                self.desk.front.kept(self.foundation.store.kept());
                self.desk.front.store()
            },
            fleet: self.fleet.as_ref().map(|fleet| fleet.status(&self.controller)),
        }
    }
}

pub(super) fn direction(side: dataplane::Side) -> &'static str {
    match side {
        dataplane::Side::Ingress => "upload",
        dataplane::Side::Egress => "download",
    }
}

pub(super) fn hook_name(hook: &dataplane::Hook) -> String {
    value(hook.kind).as_str().unwrap_or_default().to_owned()
}
