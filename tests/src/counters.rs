//! What nftables counts: L3 octets, by code that shares nothing with ours.
//!
//! What a host receives is counted as it was on the wire when its port doesn't merge. What it sends
//! is not: TCP hands over segments unsplit, whatever the port's offloads are, so that the far end
//! is where uploads are counted.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result};
use nftables::helper::{DEFAULT_ARGS, DEFAULT_NFT, apply_ruleset_raw, get_current_ruleset_raw};
use serde_json::{Value, json};

use crate::{
    daemon::eventually,
    netns::Namespace,
    topology::{EDGE_OWN, Topology, UPLINK},
};

const TABLE: &str = "bitmesh_lab";
/// Time in which what flows comes to its end.
const REST: Duration = Duration::from_secs(30);
/// In which a frame comes from one host to the next.
const MOMENT: Duration = Duration::from_millis(100);

/// L3 octets over one interface, those to and from some addresses left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Left by the interface.
    pub sent: u64,
    /// Came in by it.
    pub received: u64,
}

/// Starts to count in a namespace.
pub fn start(namespace: &Namespace, interface: &str, without: &[&str]) -> Result<()> {
    let mut commands = vec![
        json!({"add": {"table": {"family": "inet", "name": TABLE}}}),
        chain("received", "prerouting", -400),
        chain("sent", "postrouting", 400),
    ];
    for (name, direction, far) in [("received", "iifname", "saddr"), ("sent", "oifname", "daddr")] {
        commands
            .push(json!({"add": {"counter": {"family": "inet", "table": TABLE, "name": name}}}));
        let on_interface = matches(&json!({"meta": {"key": direction}}), &json!(interface));
        for field in ["saddr", "daddr"] {
            commands.push(left_out(name, "ip6", field, &link_local()));
        }
        commands.push(left_out(name, "ip", "daddr", &local_control()));
        for address in without {
            let protocol = if address.contains(':') { "ip6" } else { "ip" };
            commands.push(left_out(name, protocol, far, &json!(address)));
        }
        commands.push(rule(name, &[on_interface, json!({"counter": name})]));
    }
    let ruleset = json!({ "nftables": commands }).to_string();
    namespace.run(|| {
        let applied = apply_ruleset_raw(&ruleset, DEFAULT_NFT, DEFAULT_ARGS);
        applied.map(drop).context("nft takes the counters")
    })
}

/// Starts to count where a subscriber's downloads and uploads arrive: at itself and at the internet
/// host. Traffic with the edge is left out.
pub fn start_far_sides(topology: &Topology) -> Result<()> {
    start(&topology.subscriber, UPLINK, &EDGE_OWN)?;
    start(&topology.internet, UPLINK, &EDGE_OWN)
}

/// Neighbour discovery goes no further than the edge: link-local, multicast and, while an address
/// is being checked for duplicates, without a source.
fn link_local() -> Value {
    json!({"set": [
        "::",
        {"prefix": {"addr": "fe80::", "len": 10}},
        {"prefix": {"addr": "ff00::", "len": 8}},
    ]})
}

/// Nor does what hosts and bridges tell of the IPv4 groups that they listen to (RFC 5771,
/// section 4).
fn local_control() -> Value {
    json!({"prefix": {"addr": "224.0.0.0", "len": 24}})
}

fn left_out(chain: &str, protocol: &str, field: &str, addresses: &Value) -> Value {
    let field = json!({"payload": {"protocol": protocol, "field": field}});
    rule(chain, &[matches(&field, addresses), json!({"return": null})])
}

fn chain(name: &str, hook: &str, priority: i32) -> Value {
    json!({"add": {"chain": {
        "family": "inet", "table": TABLE, "name": name,
        "type": "filter", "hook": hook, "prio": priority, "policy": "accept",
    }}})
}

fn rule(chain: &str, expr: &[Value]) -> Value {
    json!({"add": {"rule": {"family": "inet", "table": TABLE, "chain": chain, "expr": expr}}})
}

fn matches(left: &Value, right: &Value) -> Value {
    json!({"match": {"op": "==", "left": left, "right": right}})
}

/// What `seen` gives while nothing flows, and what these hosts had counted then.
pub fn at_rest<T, const N: usize>(
    hosts: [&Namespace; N],
    mut seen: impl FnMut() -> Result<T>,
) -> Result<(T, [Counted; N])> {
    let counted = || hosts.iter().map(|host| read(host)).collect::<Result<Vec<_>>>();
    eventually("a moment in which nothing flows", REST, || {
        let before = counted()?;
        // What is counted at the edge is on its way for a moment.
        thread::sleep(MOMENT);
        if counted()? != before {
            return Ok(None);
        }
        let seen = seen()?;
        let after = counted()?;
        Ok(Some(seen).filter(|_| before == after).zip(after.try_into().ok()))
    })
}

/// What was counted so far.
pub fn read(namespace: &Namespace) -> Result<Counted> {
    let args = ["-j", "list", "counters"];
    let text = namespace
        .run(|| get_current_ruleset_raw(DEFAULT_NFT, args).context("nft lists the counters"))?;
    let listed: Value = serde_json::from_str(&text)?;
    let octets = |name: &str| {
        let objects = listed.get("nftables")?.as_array()?;
        let counters = objects.iter().filter_map(|object| object.get("counter"));
        let counter = counters.into_iter().find(|counter| {
            counter.get("name").and_then(Value::as_str) == Some(name)
                && counter.get("table").and_then(Value::as_str) == Some(TABLE)
        })?;
        counter.get("bytes")?.as_u64()
    };
    let missing = || format!("no counters in {}", namespace.name());
    Ok(Counted {
        sent: octets("sent").with_context(missing)?,
        received: octets("received").with_context(missing)?,
    })
}
