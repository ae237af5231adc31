//! What stations and the operator ask, and are told.

use std::collections::{BTreeMap, BTreeSet};

use bitmesh_core::{
    channel::{ChannelStatus, SpendKind},
    units::Octets,
    wire::ChannelReport,
};
use tracing::warn;

use super::{
    super::{
        no_refunds, starting,
        status::{HookStatus, ProviderStatus, Status},
        wrong_role,
    },
    Session,
};
use crate::{
    api::{Ask, Reply, value},
    dataplane,
};

impl Session<'_> {
    pub(super) fn answer(&mut self, ask: &Ask) -> Reply {
        match ask {
            Ask::Offer => self.controller.offer().map(value).ok_or_else(starting),
            Ask::Channel(id) => Ok(value(self.controller.channel(id)?)),
            Ask::Account(station) => Ok(value(self.controller.account(*station))),
            Ask::Status => Ok(value(Status::Provider(Box::new(self.status())))),
            Ask::Channels => Ok(value(self.controller.channels().collect::<Vec<_>>())),
            Ask::Stations => Ok(value(self.controller.accounts().collect::<Vec<_>>())),
            Ask::Wallet => {
                let channels: Vec<_> = self.controller.channels().collect();
                Ok(value(self.foundation.wallet_status(&channels)))
            }
            Ask::Refunds => Err(no_refunds()),
            Ask::CloseOwn(_) => Err(wrong_role(
                "a provider claims by itself when a subscriber closes or a channel ends",
            )),
            Ask::Budget(_) => Err(wrong_role("a provider has no budget: it is paid")),
            Ask::Share(_) => Err(wrong_role("a provider shares no credit: subscribers do")),
            Ask::Open(..)
            | Ask::Fund(..)
            | Ask::Pay(..)
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
        let accounts: Vec<_> = self.controller.accounts().collect();
        let channels: Vec<_> = self.controller.channels().collect();
        let open = |channel: &&ChannelReport| channel.status == ChannelStatus::Open;
        ProviderStatus {
            provider: self.foundation.wallet.node_public_key(),
            chain: self
                .foundation
                .chain_status(self.controller.book().tip(), self.controller.synced()),
            alarms: self.alarms(),
            offer: self.controller.offer().cloned(),
            edge_addresses: self.edge_addresses.clone(),
            hooks: hooks.collect(),
            guard: self.guarding.status(),
            causes,
            events: self.told.status(),
            stations_with_credit: count(
                accounts.iter().filter(|a| a.bound && a.credit_octets > Octets(0)),
            ),
            stations: count(accounts.iter()),
            accounts: count(accounts.iter().map(|a| a.account).collect::<BTreeSet<_>>().iter()),
            channels_open: count(channels.iter().filter(open)),
            channels: count(channels.iter()),
            paid_sat: channels.iter().map(|channel| channel.paid.to_sat()).sum(),
            billed_octets: self.controller.billed(),
            usage: self.controller.usage(),
            settled_sat: channels.iter().filter_map(settled).sum(),
            commitments: channels.iter().map(|channel| channel.commitments).sum(),
            wallet: self.foundation.wallet_status(&channels),
        }
    }
}

/// What a channel brought, once a block holds its claim or its close.
fn settled(channel: &ChannelReport) -> Option<u64> {
    let kind = match channel.status {
        ChannelStatus::Settled { kind, .. } => Some(kind),
        ChannelStatus::Closed { kind } => kind,
        _ => None,
    };
    kind.filter(|kind| *kind != SpendKind::Refund).map(|_| channel.paid.to_sat())
}

fn count(items: impl Iterator) -> u64 {
    items.fold(0, |count, _| count + 1)
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
