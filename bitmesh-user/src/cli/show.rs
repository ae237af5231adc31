//! Tables and sentences for a terminal.

use std::{
    collections::BTreeMap,
    fmt::{Display, Write as _},
    time::{SystemTime, UNIX_EPOCH},
};

use bitcoin::{Amount, Network};
use bitmesh_core::{
    alarm::Level,
    bitcoin,
    channel::{ChannelStatus, SpendKind},
    offer::SignedOffer,
    pricing::Schedule,
    units::Octets,
    wire::{AccountReport, ChannelReport},
};
use comfy_table::{ContentArrangement, Table, presets};
use serde_json::json;

use crate::{
    api::{RefundExport, ShareCode, StoreState, StoreStatus},
    bench::grouped,
    runloop::status::{
        ChainStatus, FleetStatus, GuardStatus, ProviderStatus, Status, SubscriberStatus,
    },
    store::Kept,
    terminal::table,
};

/// Of an input whose lock time counts and that can be replaced (BIP65, BIP125).
const REFUND_SEQUENCE: u32 = 0xFFFF_FFFD;

/// Two columns without lines between them.
pub(super) fn facts(rows: &[(&str, String)]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    for (name, value) in rows {
        table.add_row([(*name).to_owned(), value.clone()]);
    }
    table.to_string()
}

pub(super) fn short(id: impl Display) -> String {
    id.to_string().chars().take(12).collect()
}

pub(super) fn sat(sat: u64) -> String {
    format!("{} sat", grouped(sat))
}

fn price(schedule: &Schedule) -> String {
    let tiers: Vec<_> = schedule
        .tiers
        .iter()
        .map(|tier| match tier.from_octets {
            Octets(0) => format!("{} msat/MiB", grouped(tier.msat_per_mib)),
            from => format!("{} msat/MiB from {from} on", grouped(tier.msat_per_mib)),
        })
        .collect();
    tiers.join(", ")
}

pub(super) fn is_live(channel: &ChannelReport) -> bool {
    !matches!(
        channel.status,
        ChannelStatus::Closed { .. } | ChannelStatus::Settled { .. } | ChannelStatus::Closing
    )
}

fn state(channel: &ChannelReport) -> String {
    let by = |kind: SpendKind| match kind {
        SpendKind::Claim => "claimed",
        SpendKind::Close => "closed by both",
        SpendKind::Refund => "refunded",
    };
    match channel.status {
        _ if channel.dispute.is_some() => "disputed".into(),
        ChannelStatus::Unfunded => "waiting for funding".into(),
        ChannelStatus::Confirming { have, need } => format!("confirming {have}/{need}"),
        ChannelStatus::Open => "open".into(),
        ChannelStatus::Closing => "closing".into(),
        ChannelStatus::Settled { kind, depth } => format!("{}, {depth} deep", by(kind)),
        ChannelStatus::Closed { kind: Some(kind) } => by(kind).into(),
        ChannelStatus::Closed { kind: None } => "never funded".into(),
    }
}

pub(super) fn channels(channels: &[ChannelReport]) -> String {
    if channels.is_empty() {
        return "no channels yet".into();
    }
    let mut rows = table(&[
        "channel", "state", "station", "capacity", "paid", "payments", "bought", "expires",
    ]);
    for channel in channels {
        rows.add_row([
            short(channel.channel),
            state(channel),
            channel.station.map_or_else(|| "-".into(), |station| station.to_string()),
            sat(channel.params.capacity.to_sat()),
            sat(channel.paid.to_sat()),
            grouped(channel.commitments),
            channel.bought_octets.to_string(),
            format!("block {}", grouped(channel.params.expiry_height.into())),
        ]);
    }
    rows.to_string()
}

/// Commands that fetch back what channels hold, with a stock Bitcoin Core wallet.
pub(super) fn refunds(exports: &[RefundExport], fee_rate: u64) -> String {
    if exports.is_empty() {
        return "no channel holds anything; `bitmesh channels` lists all".into();
    }
    let all: Vec<_> = exports.iter().map(|export| refund(export, fee_rate)).collect();
    all.join("\n\n")
}

fn refund(export: &RefundExport, fee_rate: u64) -> String {
    let RefundExport { channel, network, outpoint, funding_height, expiry_height, .. } = export;
    let chain = match network {
        Network::Bitcoin => "main".into(),
        Network::Testnet => "test".into(),
        other => other.to_string(),
    };
    let cli = format!("bitcoin-cli -chain={chain}");
    let wallet = format!("refund-{}", short(channel));
    let with = format!("{cli} -rpcwallet={wallet}");
    let wait = match expiry_height.saturating_sub(export.tip) {
        0 => "The end of the channel has come: it works now.".to_owned(),
        blocks => format!(
            "It works once block {expiry_height} is there: {} more, {} days or so. Before that, nodes\n\
             # refuse the last command (non-final).",
            grouped(blocks.into()),
            u64::from(blocks).div_ceil(144)
        ),
    };
    let amount = Amount::from_sat(export.capacity_sat).to_btc();
    let import = json!([{"desc": export.descriptor, "timestamp": "now"}]);
    let inputs =
        json!([{"txid": outpoint.txid, "vout": outpoint.vout, "sequence": REFUND_SEQUENCE}]);
    let outputs = json!([{&export.address: format!("{amount:.8}")}]);
    let options = json!({"add_inputs": false, "subtractFeeFromOutputs": [0], "fee_rate": fee_rate});
    format!(
        "# Channel {channel}:\n\
         # {} in {outpoint}\n\
         # {wait}\n\
         # If the provider claims what it was paid before, there is nothing to refund: the rest of\n\
         # the channel has come back then.\n\
         # SECRET: the second command holds a private key. Whoever reads it can take the money.\n\
         {cli} -named createwallet wallet_name={wallet} blank=true\n\
         {with} importdescriptors '{import}'\n\
         {with} rescanblockchain {funding_height}\n\
         PSBT=$({with} walletcreatefundedpsbt '{inputs}' '{outputs}' {expiry_height} '{options}' | jq -r .psbt)\n\
         PSBT=$({with} walletprocesspsbt \"$PSBT\" | jq -r .psbt)\n\
         TX=$({cli} finalizepsbt \"$PSBT\" | jq -r .hex)\n\
         {cli} sendrawtransaction \"$TX\"",
        sat(export.capacity_sat)
    )
}

pub(super) fn closed(closed: &[ChannelReport]) -> String {
    if closed.is_empty() {
        return "no channel is open; `bitmesh channels` lists all".into();
    }
    channels(closed)
}

pub(super) fn stations(stations: &[AccountReport]) -> String {
    if stations.is_empty() {
        return "no station has bought anything yet".into();
    }
    let mut rows = table(&[
        "account",
        "bought",
        "credit",
        "station",
        "sent",
        "received",
        "refused",
        "usable now",
    ]);
    let mut last = None;
    for report in stations {
        // What an account's stations share is told once.
        let first = last != Some(report.account);
        last = Some(report.account);
        let once = |text: String| if first { text } else { String::new() };
        rows.add_row([
            once(report.account.map_or_else(|| "-".into(), short)),
            once(report.bought_octets.to_string()),
            once(report.credit_octets.to_string()),
            report.station.to_string(),
            report.usage.up.octets.to_string(),
            report.usage.down.octets.to_string(),
            report.usage.refused().to_string(),
            if report.bound { report.lease_octets.to_string() } else { "has left".into() },
        ]);
    }
    rows.to_string()
}

/// How another device comes to use the credit.
pub(super) fn share(code: &ShareCode, seconds: u64) -> String {
    let body = serde_json::to_string(&code.body).unwrap_or_default();
    format!(
        "Good for one device and {} minutes. On that device, on the same provider's network, run:\n\n  \
         curl -H 'Content-Type: application/json' -d '{body}' {}\n\n\
         It then uses up the same credit and budget as this machine, until you take it off:\n  \
         bitmesh share --remove MAC",
        seconds.div_ceil(60),
        code.url
    )
}

pub(super) fn removed(report: &AccountReport) -> String {
    format!("{} no longer uses this account's credit", report.station)
}

pub(super) fn offer(offer: &SignedOffer) -> String {
    let terms = &offer.offer.terms;
    let range =
        format!("{} to {}", sat(terms.capacity_min.to_sat()), sat(terms.capacity_max.to_sat()));
    facts(&[
        ("provider", offer.offer.provider.to_string()),
        ("price", price(&offer.offer.schedule)),
        ("paid ahead", format!("at most {}", terms.tick_max)),
        ("channel", range),
        ("confirmations", terms.confirmations.to_string()),
        ("network", offer.offer.network.to_string()),
        ("signature", "good".into()),
    ])
}

pub(super) fn budget(status: &Status) -> String {
    match status {
        Status::Provider(_) => "a provider has no budget: it is paid".into(),
        Status::Subscriber(status) => facts(&[
            ("budget", sat(status.budget_sat)),
            ("spent", sat(status.spent_sat)),
            ("left", sat(status.budget_sat.saturating_sub(status.spent_sat))),
        ]),
    }
}

pub(super) fn status(status: &Status) -> String {
    match status {
        Status::Provider(status) => provider(status),
        Status::Subscriber(status) => subscriber(status),
    }
}

fn chain(chain: &ChainStatus) -> String {
    let state = match (chain.synced, chain.blocks_behind) {
        (true, 0) => "synced".into(),
        (_, 0) => format!("NOT synced: no new channels; is {} there?", chain.source),
        (_, behind) => format!("{} blocks behind", grouped(behind.into())),
    };
    let height = grouped(chain.height.into());
    format!("{}, block {height}, {state}; from {}", chain.network, chain.source)
}

fn provider(status: &ProviderStatus) -> String {
    let mut rows =
        vec![("selling as", status.provider.to_string()), ("chain", chain(&status.chain))];
    if let Some(offer) = &status.offer {
        rows.push(("price", price(&offer.offer.schedule)));
    }
    rows.extend([
        (
            "stations",
            format!("{} with credit, {} known", status.stations_with_credit, status.stations),
        ),
        ("accounts", grouped(status.accounts)),
        ("channels", format!("{} open, {} in all", status.channels_open, status.channels)),
        ("earned", format!("{} for {}", sat(status.paid_sat), status.billed_octets)),
        (
            "wallet",
            format!(
                "{} + {} pending",
                sat(status.wallet.confirmed_sat),
                sat(status.wallet.pending_sat)
            ),
        ),
        ("ledger", store(&status.store)),
    ]);
    if let Some(status) = &status.fleet {
        rows.push(("fleet", fleet(status)));
    }
    let mut hooks = table(&["port", "direction", "program", "why"]);
    for hook in &status.hooks {
        let why = match &hook.warning {
            Some(warning) => format!("{}; WARNING: {warning}", hook.reason),
            None => hook.reason.clone(),
        };
        hooks.add_row([&hook.interface, &hook.direction, &hook.hook, &why]);
    }
    let mut causes = table(&["frames", "cause"]);
    for (cause, frames) in status.causes.iter().filter(|(_, frames)| **frames > 0) {
        causes.add_row([grouped(*frames), cause.clone()]);
    }
    let mut events = table(&["events", "lost", "kind"]);
    for (kind, told) in &status.events.told {
        let lost = status.events.lost.get(kind).copied().unwrap_or(0);
        if *told > 0 || lost > 0 {
            events.add_row([grouped(*told), grouped(lost), kind.clone()]);
        }
    }
    let guard = format!("{}\n{}", guard(&status.guard), drift(&status.drift));
    let alarms = status.alarms.iter().map(|alarm| {
        let level = if alarm.level == Level::Error { "ALARM" } else { "warning" };
        format!("{level}: {}\n", alarm.message)
    });
    let alarms = alarms.collect::<String>();
    let mut text = format!("{alarms}{}\n\n{hooks}\n{guard}\n\n{causes}\n\n{events}", facts(&rows));
    if let Some(status) = &status.fleet {
        let _ = write!(text, "\n\n{}", edges(status));
    }
    for moved in &status.events.moved {
        let address = moved.ipv4.map_or_else(String::new, |ipv4| format!(" with {ipv4}"));
        let _ = write!(text, "\n! {} was seen on port {}{address}", moved.station, moved.port);
    }
    text
}

/// Whether payments can be written down.
fn store(status: &StoreStatus) -> String {
    let why = status.error.as_deref().unwrap_or("no reason known");
    let since = ago(status.since);
    let Kept { engine, version, place, warnings } = &status.kept;
    let kept = format!("{engine} {version} at {place}");
    let mut text = match status.state {
        StoreState::Working => {
            format!("{kept}, slowest commit {} ms", grouped(status.slowest_commit_ms))
        }
        StoreState::Slow => format!("{kept}: SLOW: {why}"),
        StoreState::Failed => {
            format!("{kept}: FAILED {since}: {why}; no payments are taken, credit stays good")
        }
    };
    for warning in warnings {
        let _ = write!(text, "\nwarning: {warning}");
    }
    text
}

/// An edge among others.
fn fleet(status: &FleetStatus) -> String {
    let grants =
        if status.may_grant { "" } else { ", MAY NOT GRANT: its database does not answer" };
    let mut text = format!(
        "edge {} (number {}, epoch {}), {} accounts came and {} went, {} on the way{grants}",
        status.edge,
        status.number,
        status.epoch,
        grouped(status.accounts_came),
        grouped(status.accounts_went),
        grouped(status.accounts_arriving + status.accounts_leaving),
    );
    if status.accounts_lost > 0 {
        let lost = grouped(status.accounts_lost);
        let _ = write!(text, "; {lost} ACCOUNTS CAN'T COME: the log says why");
    }
    if status.late_settled_octets.0 > 0 || status.late_lost_octets.0 > 0 {
        let (settled, lost) = (status.late_settled_octets, status.late_lost_octets);
        let _ = write!(text, "; {settled} used at edges that were taken over debited, {lost} lost");
    }
    if status.beats_late > 0 {
        let _ = write!(text, "; {} signs of life came late", grouped(status.beats_late));
    }
    text
}

/// Every edge of a fleet.
fn edges(status: &FleetStatus) -> Table {
    let mut edges = table(&["number", "edge", "last sign of life", "accounts"]);
    let row = |number: u16, name: &str, silent_ms: u64, state: &str, accounts: u64| {
        let silent = format!("{} ms ago{state}", grouped(silent_ms));
        [number.to_string(), name.to_owned(), silent, grouped(accounts)]
    };
    let (own, silent) = (", this one", status.silent_ms);
    edges.add_row(row(status.number, &status.edge, silent, own, status.accounts));
    for other in &status.others {
        let state = if other.taken_over { ", TAKEN OVER" } else { "" };
        edges.add_row(row(other.number, &other.name, other.silent_ms, state, other.accounts));
    }
    edges
}

/// How long ago it was.
fn ago(seconds: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    format!("{} s ago", grouped(now.saturating_sub(seconds)))
}

/// What had to be put right on the ports.
fn guard(status: &GuardStatus) -> String {
    let times = match status.put_back {
        0 => "nothing had to be put back on a port".to_owned(),
        1 => "something was put back once".to_owned(),
        times => format!("something was put back {} times", grouped(times)),
    };
    let recent =
        status.recent.iter().map(|event| format!("\n  {}: {}", clock(event.at), event.what));
    format!("guard: {times}{}", recent.collect::<String>())
}

/// What had to be put right in the kernel's table.
fn drift(found: &BTreeMap<String, u64>) -> String {
    let found = found.iter().filter(|(_, times)| **times > 0);
    let found: Vec<_> = found.map(|(kind, times)| format!("{} {kind}", grouped(*times))).collect();
    match found.as_slice() {
        [] => "table: the kernel's limits are the ledger's".to_owned(),
        found => format!(
            "table: somebody else changed the kernel's limits, which were put right: {}",
            found.join(", ")
        ),
    }
}

/// Time of day, UTC.
fn clock(at: u64) -> String {
    let day = at % 86_400;
    format!("{:02}:{:02}:{:02} UTC", day / 3_600, day / 60 % 60, day % 60)
}

fn subscriber(status: &SubscriberStatus) -> String {
    let mut rows = vec![
        ("buying from", status.url.clone()),
        ("state", status.message.clone()),
        ("chain", chain(&status.chain)),
        ("budget", format!("{} of {} spent", sat(status.spent_sat), sat(status.budget_sat))),
    ];
    if let Some(channel) = &status.channel {
        rows.push(("price", price(&channel.params.schedule)));
        rows.push((
            "channel",
            format!(
                "{}, {} of {} paid in {} payments",
                state(channel),
                sat(channel.paid.to_sat()),
                sat(channel.params.capacity.to_sat()),
                grouped(channel.commitments)
            ),
        ));
    }
    if let Some(account) = &status.account {
        rows.push(("used", account.usage.billed().to_string()));
        if account.stations > 1 || account.others_octets > Octets(0) {
            let others = account.others_octets;
            rows.push((
                "used by others",
                format!("{others}; {} share the credit", account.stations),
            ));
        }
        rows.push(("credit", account.credit_octets.to_string()));
    }
    rows.push(("tick", format!("{} in {} ms", status.tick_octets, status.round_trip_ms)));
    rows.push((
        "wallet",
        format!(
            "{} + {} pending",
            sat(status.wallet.confirmed_sat),
            sat(status.wallet.pending_sat)
        ),
    ));
    facts(&rows)
}
