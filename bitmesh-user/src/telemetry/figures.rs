//! Figures in Prometheus's text form.

use std::{sync::OnceLock, time::Duration};

use bitmesh_core::alarm::{Kind, Level};
use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, set_global_recorder,
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::{
    api::{StoreState, StoreStatus},
    runloop::status::{
        ChainStatus, FleetStatus, ProviderStatus, Status, SubscriberStatus, WalletStatus,
    },
};

/// How often what histograms recorded is added up. Until then each sample takes 8 octets: a second of
/// 100,000 requests takes less than 1 MiB.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(1);

static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();

/// Bounds of the histograms of times, in seconds.
const SECONDS: [f64; 13] =
    [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
/// Bounds of the histogram of what one transaction holds.
const ENTRIES: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

const COUNTERS: [(&str, Unit, &str); 21] = [
    (
        "bitmesh_paid_sat_total",
        Unit::Count,
        "Paid by subscribers on all channels, in satoshi, as the ledger has it",
    ),
    (
        "bitmesh_settled_sat_total",
        Unit::Count,
        "Of that, what claims and closes in blocks brought, miners' fees included",
    ),
    ("bitmesh_commitments_total", Unit::Count, "Payments that the ledger holds"),
    ("bitmesh_billed_octets_total", Unit::Count, "L3 octets forwarded and billed, by direction"),
    (
        "bitmesh_refused_octets_total",
        Unit::Count,
        "L3 octets dropped for want of credit, by direction",
    ),
    (
        "bitmesh_spent_sat_total",
        Unit::Count,
        "Paid by this subscriber, in satoshi, as its ledger has it",
    ),
    (
        "bitmesh_counted_octets_total",
        Unit::Count,
        "Octets that this subscriber counted on its interface",
    ),
    (
        "bitmesh_frames_total",
        Unit::Count,
        "Frames that the kernel dropped or passed free, by cause",
    ),
    ("bitmesh_events_total", Unit::Count, "Events that the kernel told, by kind"),
    (
        "bitmesh_events_lost_total",
        Unit::Count,
        "Events that found no place in the ring buffer, by kind",
    ),
    (
        "bitmesh_guard_put_back_total",
        Unit::Count,
        "Programs, ports and belts that the guard put back",
    ),
    (
        "bitmesh_drift_repaired_total",
        Unit::Count,
        "Stations that the kernel's table had otherwise than the ledger, by how; all were put right",
    ),
    (
        "bitmesh_payments_total",
        Unit::Count,
        "Requests to pay, by result: accepted, or the error's code",
    ),
    ("bitmesh_api_answers_total", Unit::Count, "Answers to stations, by route and status"),
    (
        "bitmesh_connections_refused_total",
        Unit::Count,
        "Connections of stations that got no place, by reason",
    ),
    (
        "bitmesh_connections_pushed_out_total",
        Unit::Count,
        "Idle connections that gave their place to another",
    ),
    (
        "bitmesh_store_failures_total",
        Unit::Count,
        "Times that the store stopped working since the daemon started",
    ),
    ("bitmesh_commits_failed_total", Unit::Count, "Transactions that the store did not take"),
    (
        "bitmesh_fleet_accounts_total",
        Unit::Count,
        "Accounts that came from other edges and went to them, by direction: came, went",
    ),
    (
        "bitmesh_fleet_late_octets_total",
        Unit::Count,
        "L3 octets used at edges that were taken over, by outcome: settled, lost for want of credit",
    ),
    ("bitmesh_fleet_beats_late_total", Unit::Count, "Signs of life of this edge that came late"),
];

const GAUGES: [(&str, &str); 23] = [
    ("bitmesh_up", "1 when the loop told these figures itself, 0 when they are older"),
    ("bitmesh_build_info", "Always 1; the version is a label"),
    (
        "bitmesh_in_channels_sat",
        "In channels: paid and not claimed (provider), or not paid away (subscriber)",
    ),
    ("bitmesh_wallet_sat", "In the wallet, by state: confirmed, pending"),
    ("bitmesh_channels", "Channels, by state: open, all"),
    ("bitmesh_stations", "Stations, by state: with credit, all"),
    ("bitmesh_accounts", "Accounts"),
    ("bitmesh_chain_height", "Height of the newest block that was followed"),
    ("bitmesh_chain_lag_blocks", "Blocks that the source has and that were not followed yet"),
    ("bitmesh_chain_synced", "1 when the source answers and everything was followed"),
    ("bitmesh_chain_block_seen_timestamp_seconds", "When the newest block was seen, since 1970"),
    ("bitmesh_store_working", "1 when payments can be written down"),
    ("bitmesh_slowest_commit_seconds", "The longest transaction since the daemon started"),
    ("bitmesh_alarms", "What needs the operator, by kind and level"),
    ("bitmesh_price_msat_per_mib", "The price asked for, first tier"),
    ("bitmesh_budget_sat", "What this subscriber may spend"),
    ("bitmesh_mailbox_requests", "Requests that wait for the loop"),
    ("bitmesh_connections", "Connections of stations, by kind: payer, stranger"),
    ("bitmesh_selling", "1 when this provider takes payments"),
    ("bitmesh_fleet_may_grant", "1 when this edge's last sign of life is young enough to grant"),
    ("bitmesh_fleet_silent_seconds", "Since another edge's last sign of life, by edge"),
    ("bitmesh_fleet_edge_accounts", "Accounts of each edge, by edge"),
    ("bitmesh_start_timestamp_seconds", "When this process started, since 1970"),
];

const HISTOGRAMS: [(&str, &str); 3] = [
    ("bitmesh_api_request_seconds", "From a request's head to its answer, by route"),
    ("bitmesh_commit_seconds", "A transaction of the store, synced"),
    ("bitmesh_commit_entries", "Entries in a transaction of the store"),
];

/// Starts to count; to be called once, before anything that counts.
pub fn install() {
    let builder = PrometheusBuilder::new();
    let buckets = [
        ("bitmesh_api_request_seconds", &SECONDS[..]),
        ("bitmesh_commit_seconds", &SECONDS),
        ("bitmesh_commit_entries", &ENTRIES),
    ];
    let builder = buckets.into_iter().fold(builder, |builder, (name, bounds)| {
        let set = builder.set_buckets_for_metric(Matcher::Full(name.into()), bounds);
        set.expect("there are bounds")
    });
    let recorder = builder.build_recorder();
    let handle = recorder.handle();
    if set_global_recorder(recorder).is_err() || HANDLE.set(handle).is_err() {
        return;
    }
    for (name, unit, help) in COUNTERS {
        describe_counter!(name, unit, help);
    }
    for (name, help) in GAUGES {
        describe_gauge!(name, help);
    }
    for (name, help) in HISTOGRAMS {
        describe_histogram!(name, help);
    }
    gauge!("bitmesh_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    gauge!("bitmesh_start_timestamp_seconds").set(since.map_or(0.0, |since| since.as_secs_f64()));
    // What is looked for by alerts is there from the start.
    for reason in ["address", "station", "full", "lookups"] {
        counter!("bitmesh_connections_refused_total", "reason" => reason).absolute(0);
    }
    counter!("bitmesh_connections_pushed_out_total").absolute(0);
    counter!("bitmesh_commits_failed_total").absolute(0);
    counter!("bitmesh_payments_total", "result" => "accepted").absolute(0);
}

/// Adds up what was recorded, for as long as it is polled: samples are kept one by one until somebody
/// does, and nobody may ever ask for them.
pub async fn upkeep() {
    loop {
        tokio::time::sleep(UPKEEP_INTERVAL).await;
        if let Some(handle) = HANDLE.get() {
            handle.run_upkeep();
        }
    }
}

/// Everything, as text.
pub fn render() -> String {
    HANDLE.get().map(PrometheusHandle::render).unwrap_or_default()
}

/// Takes over what the ledger, the kernel and the chain say.
pub fn figures(status: &Status) {
    match status {
        Status::Provider(status) => provider(status),
        Status::Subscriber(status) => subscriber(status),
    }
}

fn provider(status: &ProviderStatus) {
    chain(&status.chain);
    wallet(&status.wallet);
    store(&status.store);
    if let Some(status) = &status.fleet {
        fleet(status);
    }
    // The ledger never forgets a channel that was paid on: these only grow.
    counter!("bitmesh_paid_sat_total").absolute(status.paid_sat);
    counter!("bitmesh_settled_sat_total").absolute(status.settled_sat);
    counter!("bitmesh_commitments_total").absolute(status.commitments);
    for (direction, counts) in [("up", &status.usage.up), ("down", &status.usage.down)] {
        counter!("bitmesh_billed_octets_total", "direction" => direction).absolute(counts.octets.0);
        counter!("bitmesh_refused_octets_total", "direction" => direction)
            .absolute(counts.refused_octets.0);
    }
    for (cause, frames) in &status.causes {
        counter!("bitmesh_frames_total", "cause" => cause.clone()).absolute(*frames);
    }
    for (kind, events) in &status.events.told {
        counter!("bitmesh_events_total", "kind" => kind.clone()).absolute(*events);
    }
    for (kind, events) in &status.events.lost {
        counter!("bitmesh_events_lost_total", "kind" => kind.clone()).absolute(*events);
    }
    for (kind, stations) in &status.drift {
        counter!("bitmesh_drift_repaired_total", "kind" => kind.clone()).absolute(*stations);
    }
    counter!("bitmesh_guard_put_back_total").absolute(status.guard.put_back);
    for (state, number) in [("open", status.channels_open), ("all", status.channels)] {
        gauge!("bitmesh_channels", "state" => state).set(float(number));
    }
    for (state, number) in [("with_credit", status.stations_with_credit), ("all", status.stations)]
    {
        gauge!("bitmesh_stations", "state" => state).set(float(number));
    }
    gauge!("bitmesh_accounts").set(float(status.accounts));
    let price = status.offer.as_ref().and_then(|offer| offer.offer.schedule.tiers.first());
    gauge!("bitmesh_price_msat_per_mib").set(float(price.map_or(0, |tier| tier.msat_per_mib)));
    gauge!("bitmesh_selling").set(float(u8::from(status.offer.is_some())));
    let names = [
        "chain-lost",
        "chain-stalls",
        "went-back",
        "claim-waits",
        "claim-late",
        "edge-silent",
        "beat-late",
    ];
    for (name, level) in
        names.iter().flat_map(|name| [(name, Level::Warning), (name, Level::Error)])
    {
        let is = |kind: &Kind| kind_name(kind) == *name;
        let number = status.alarms.iter().filter(|a| is(&a.kind) && a.level == level).count();
        let level = if level == Level::Error { "error" } else { "warning" };
        gauge!("bitmesh_alarms", "kind" => *name, "level" => level).set(float(number));
    }
}

fn fleet(fleet: &FleetStatus) {
    gauge!("bitmesh_fleet_may_grant").set(float(u8::from(fleet.may_grant)));
    for (direction, accounts) in [("came", fleet.accounts_came), ("went", fleet.accounts_went)] {
        counter!("bitmesh_fleet_accounts_total", "direction" => direction).absolute(accounts);
    }
    let late = [("settled", fleet.late_settled_octets), ("lost", fleet.late_lost_octets)];
    for (outcome, octets) in late {
        counter!("bitmesh_fleet_late_octets_total", "outcome" => outcome).absolute(octets.0);
    }
    counter!("bitmesh_fleet_beats_late_total").absolute(fleet.beats_late);
    gauge!("bitmesh_fleet_edge_accounts", "edge" => fleet.edge.clone()).set(float(fleet.accounts));
    for other in &fleet.others {
        let silent = Duration::from_millis(other.silent_ms);
        gauge!("bitmesh_fleet_silent_seconds", "edge" => other.name.clone())
            .set(silent.as_secs_f64());
        gauge!("bitmesh_fleet_edge_accounts", "edge" => other.name.clone())
            .set(float(other.accounts));
    }
}

fn store(store: &StoreStatus) {
    let works = store.state == StoreState::Working;
    gauge!("bitmesh_store_working").set(if works { 1.0 } else { 0.0 });
    counter!("bitmesh_store_failures_total").absolute(store.failures);
    let slowest = Duration::from_millis(store.slowest_commit_ms);
    gauge!("bitmesh_slowest_commit_seconds").set(slowest.as_secs_f64());
}

fn kind_name(kind: &Kind) -> &'static str {
    match kind {
        Kind::ChainLost => "chain-lost",
        Kind::ChainStalls => "chain-stalls",
        Kind::ClaimWaits { .. } => "claim-waits",
        Kind::WentBack => "went-back",
        Kind::ClaimLate { .. } => "claim-late",
        Kind::EdgeSilent { .. } => "edge-silent",
        Kind::BeatLate => "beat-late",
    }
}

fn subscriber(status: &SubscriberStatus) {
    chain(&status.chain);
    wallet(&status.wallet);
    counter!("bitmesh_spent_sat_total").absolute(status.spent_sat);
    counter!("bitmesh_counted_octets_total").absolute(status.counted_octets.0);
    gauge!("bitmesh_budget_sat").set(float(status.budget_sat));
}

fn chain(chain: &ChainStatus) {
    gauge!("bitmesh_chain_height").set(f64::from(chain.height));
    gauge!("bitmesh_chain_lag_blocks").set(f64::from(chain.blocks_behind));
    gauge!("bitmesh_chain_synced").set(float(u8::from(chain.synced)));
    gauge!("bitmesh_chain_block_seen_timestamp_seconds")
        .set(float(chain.block_seen_at.unwrap_or(0)));
}

fn wallet(wallet: &WalletStatus) {
    gauge!("bitmesh_in_channels_sat").set(float(wallet.in_channels_sat));
    for (state, sat) in [("confirmed", wallet.confirmed_sat), ("pending", wallet.pending_sat)] {
        gauge!("bitmesh_wallet_sat", "state" => state).set(float(sat));
    }
}

/// As Prometheus has numbers: exact up to 2^53, which is more than there are satoshi.
#[allow(clippy::cast_precision_loss)]
pub fn float(number: impl TryInto<u64>) -> f64 {
    number.try_into().unwrap_or(u64::MAX) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_follows_the_custom_and_is_described_once() {
        let names = COUNTERS.map(|(name, ..)| name).into_iter();
        let names: Vec<_> = names
            .chain(GAUGES.map(|(name, _)| name))
            .chain(HISTOGRAMS.map(|(name, _)| name))
            .collect();
        for name in &names {
            assert!(name.starts_with("bitmesh_"), "{name}");
            assert_eq!(names.iter().filter(|other| *other == name).count(), 1, "{name}");
        }
        assert!(COUNTERS.iter().all(|(name, ..)| name.ends_with("_total")));
        assert!(GAUGES.iter().all(|(name, _)| !name.ends_with("_total")));
    }
}
