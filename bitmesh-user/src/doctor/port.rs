//! Judges a port: the hook that it gets, and what could make frames pass uncounted.

use super::{
    finding::{Finding, PortHook},
    hook_name,
};
use crate::dataplane::{
    Choice, Flowtable, HookKind, Offloads, Port, Rings, SINGLE_BUFFER_MTU, Side, TcProgram,
};

/// Fewer descriptors than this lose frames of a burst at line rate while the CPU is elsewhere.
const RX_RING_MIN: u32 = 512;

/// What was read of a port.
#[derive(Clone, Debug, Default)]
pub(super) struct PortFacts {
    /// The port itself.
    pub(super) port: Port,
    /// The interfaces that its frames come through before it: the lower one of a VLAN, the ports of
    /// a bond.
    pub(super) below: Vec<Port>,
    /// The name of its driver.
    pub(super) driver: Option<String>,
    /// Its descriptors, where it has some.
    pub(super) rings: Option<Rings>,
    /// Where it is a port of a bridge: the bridge's other ports.
    pub(super) siblings: Vec<String>,
    /// Programs of others at TC; `None` where they can't be listed.
    pub(super) others: Option<Vec<TcProgram>>,
}

/// Everything about one LAN port. `choice` is what attaching decides, or why it refuses.
pub(super) fn judge(
    facts: &PortFacts,
    choice: &Result<Choice, String>,
    flowtables: Option<&[Flowtable]>,
) -> Vec<Finding> {
    let mut findings = vec![hook(choice)];
    if let Ok(choice) = choice {
        findings.push(link(&facts.port));
        findings.extend(facts.driver.is_some().then(|| xdp(facts)));
        findings.push(mtu(&facts.port, choice.hook));
        findings.extend(merging(facts, choice.hook));
        findings.push(offload(facts, flowtables));
        findings.extend(switch(&facts.port));
        findings.extend(facts.rings.map(rings));
        findings.push(others(facts));
    }
    findings.into_iter().map(|finding| finding.of_port(&facts.port.name)).collect()
}

/// The line of a port in the list of hooks.
pub(super) fn line(facts: &PortFacts, choice: &Result<Choice, String>) -> PortHook {
    let port = &facts.port;
    let kind = match &port.kind {
        Some(kind) => kind.as_str(),
        None if port.wireless => "radio",
        None => "device",
    };
    let (hook, why, warning) = match choice {
        Ok(choice) => (Some(hook_name(choice.hook)), why(choice), choice.warning.clone()),
        Err(refusal) => (None, refusal.clone(), None),
    };
    let (port, kind) = (port.name.clone(), kind.to_owned());
    PortHook { port, kind, driver: facts.driver.clone(), hook, why, warning }
}

fn hook(choice: &Result<Choice, String>) -> Finding {
    let choice = match choice {
        Ok(choice) => choice,
        Err(refusal) => return refused("hook", refusal),
    };
    let seen = format!("uploads by {}: {}", hook_name(choice.hook), why(choice));
    match &choice.warning {
        Some(warning) => Finding::warning("hook", seen).advice(warning),
        None => Finding::ok("hook", seen),
    }
}

fn why(choice: &Choice) -> String {
    let or_tc = if choice.or_tc { "; TC if the driver refuses when attaching" } else { "" };
    format!("{}{or_tc}", choice.why)
}

/// An error of the dataplane says first what is wrong and then what to do.
pub(super) fn refused(id: &str, refusal: &str) -> Finding {
    match refusal.split_once("; ").or_else(|| refusal.split_once(": ")) {
        Some((seen, advice)) => Finding::failure(id, seen).advice(advice),
        None => Finding::failure(id, refusal),
    }
}

fn link(port: &Port) -> Finding {
    if port.running {
        Finding::ok("link", "up")
    } else {
        Finding::note("link", "down, or without a carrier").advice(format!(
            "`ip link set {} up`, and look at the cable: it is metered from its start all the same",
            port.name
        ))
    }
}

fn xdp(facts: &PortFacts) -> Finding {
    let driver = facts.driver.as_deref().unwrap_or_default();
    match facts.port.xdp_features {
        Some(features) => {
            let what = match (features.native, features.multi_buffer) {
                (true, true) => "has native XDP, for frames over a page too",
                (true, false) => "has native XDP, for frames within a page",
                (false, _) => "has no native XDP",
            };
            Finding::ok("driver", format!("{driver} {what}"))
        }
        None => Finding::note("driver", format!("{driver}; before Linux 6.3 no driver tells more"))
            .advice("`bitmesh status` shows what became of it"),
    }
}

fn mtu(port: &Port, hook: HookKind) -> Finding {
    let mtu = port.mtu;
    let seen = format!("{mtu} octets");
    if mtu <= SINGLE_BUFFER_MTU || hook != HookKind::XdpNative {
        return Finding::ok("mtu", seen);
    }
    match port.xdp_features {
        Some(features) if features.multi_buffer => Finding::ok("mtu", seen),
        Some(_) => Finding::failure("mtu", format!("{seen}: more than the driver's XDP takes"))
            .advice(format!("`--upload-hook tc`, or an MTU of {SINGLE_BUFFER_MTU} at most")),
        None => Finding::note("mtu", format!("{seen}: not every driver's XDP takes as many"))
            .advice("where the driver refuses, uploads are metered at TC"),
    }
}

/// What merges frames before the meter, here and below.
fn merging(facts: &PortFacts, hook: HookKind) -> Vec<Finding> {
    let is_xdp = matches!(hook, HookKind::XdpNative | HookKind::XdpGeneric);
    let hardware = || std::iter::once(&facts.port).chain(&facts.below);
    let off = |feature: &str, ports: Vec<&Port>| {
        let each = ports.iter().map(|port| format!("`ethtool -K {} {feature} off`", port.name));
        each.collect::<Vec<_>>().join(", ")
    };
    let on = |which: fn(&Offloads) -> bool| -> Vec<&Port> {
        hardware().filter(|port| port.offloads.as_ref().is_some_and(which)).collect()
    };
    let (lro, gro_hw) = (on(|offloads| offloads.lro), on(|offloads| offloads.gro_hw));
    if let Some(silent) = hardware().find(|port| port.offloads.is_none()) {
        let seen = format!("the kernel does not tell what {} merges", silent.name);
        return vec![Finding::note("lro", seen).advice("`ethtool -k` may show it")];
    }
    vec![
        if lro.is_empty() {
            Finding::ok("lro", "off")
        } else {
            Finding::failure(
                "lro",
                "frames are merged before they are counted: too little is billed",
            )
            .advice(off("lro", lro))
        },
        match (gro_hw.is_empty(), is_xdp) {
            (true, _) => Finding::ok("gro-hw", "off"),
            (false, false) => Finding::ok("gro-hw", "on; TC counts each merged packet's parts"),
            // netdev-features.rst: the merged has to be what GSO can take apart. Drivers drop the
            // feature for XDP (virtio_net, bnxt) or refuse XDP (mlx5).
            (false, true) => Finding::note("gro-hw", "on; drivers end it for XDP, or refuse XDP")
                .advice(off("rx-gro-hw", gro_hw) + " makes sure"),
        },
    ]
}

/// What forwards past the meter.
///
/// A flowtable looks at frames at netfilter's ingress hook, which comes after XDP and TC of the same
/// interface, and sends by `neigh_xmit` or straight to a device, where TC egress comes last
/// (`Documentation/networking/nf_flowtable.rst`, `nft_dev_forward_path`). So a port that is in it
/// itself is metered; one whose *lower* interface is in it is passed by in both directions. With the
/// flag `offload` the device forwards, and no program of any interface sees a frame.
fn offload(facts: &PortFacts, flowtables: Option<&[Flowtable]>) -> Finding {
    let id = "flow-offload";
    let port = &facts.port.name;
    let Some(flowtables) = flowtables else {
        return Finding::unchecked(id, "listing flowtables needs CAP_NET_ADMIN");
    };
    let here = |table: &&Flowtable| table.covers(port);
    let below = |table: &&Flowtable| facts.below.iter().any(|lower| table.covers(&lower.name));
    let remedy = |table: &Flowtable| {
        format!("`nft list flowtable` shows {} in table {}", table.name, table.table)
    };
    let in_hardware = flowtables.iter().filter(|table| table.hardware);
    if let Some(table) = in_hardware.clone().find(|table| here(table) || below(table)) {
        return Finding::failure(
            id,
            "devices forward known flows by themselves: nothing counts them",
        )
        .advice(format!("take `flags offload` out of the flowtable; {}", remedy(table)));
    }
    if let Some(table) = flowtables.iter().find(below) {
        let seen = format!("known flows are forwarded below {port}, past its programs");
        let advice = "name the lower interface as --lan, or take it out of the flowtable";
        return Finding::failure(id, seen).advice(format!("{advice}; {}", remedy(table)));
    }
    let devices = || std::iter::once(&facts.port).chain(&facts.below);
    if let Some(device) = devices().find(|device| device.offloads.is_some_and(|o| o.hw_tc)) {
        let seen = format!("{} may carry out rules of TC by itself (hw-tc-offload)", device.name);
        return Finding::warning(id, seen).advice(format!(
            "`ethtool -K {} hw-tc-offload off`: what a rule forwards there, nothing counts",
            device.name
        ));
    }
    if flowtables.iter().any(|table| here(&table)) {
        return Finding::note(id, "in a flowtable of the kernel: metered all the same")
            .advice("known flows skip the forward chain and `ip rule`, not the meter");
    }
    Finding::ok(id, "none")
}

fn switch(port: &Port) -> Option<Finding> {
    let bridged = port.master.as_ref().is_some_and(|master| master.kind == "bridge");
    (port.kind.as_deref() == Some("dsa") && bridged).then(|| {
        Finding::warning("switch", "the chip forwards between its own ports, unseen").advice(
            format!(
                "`bridge link set dev {} isolated on` keeps its stations from each other",
                port.name
            ),
        )
    })
}

/// Stations on a port that nobody named reach the uplink through the bridge without paying.
pub(super) fn siblings(facts: &PortFacts, lan: &[String], wan: &[String]) -> Option<Finding> {
    let bridge = facts.port.master.as_ref()?;
    let named = |name: &&String| lan.contains(name) || wan.contains(name);
    let others: Vec<_> = facts.siblings.iter().filter(|name| !named(name)).cloned().collect();
    (!others.is_empty()).then(|| {
        let (bridge, others) = (&bridge.interface.name, others.join(", "));
        Finding::warning("bridge", format!("{bridge} has ports that are not metered: {others}"))
            .advice("name them as --lan too, unless only your own devices are on them")
            .of_port(&facts.port.name)
    })
}

fn rings(rings: Rings) -> Finding {
    let Rings { rx, rx_max } = rings;
    let seen = format!("{rx} of {rx_max} descriptors for what is received");
    if rx < RX_RING_MIN && rx < rx_max {
        let more = rx_max.min(RX_RING_MIN);
        Finding::note("rings", seen)
            .advice(format!("bursts can be lost: `ethtool -G` with `rx {more}` gives it more"))
    } else {
        Finding::ok("rings", seen)
    }
}

fn others(facts: &PortFacts) -> Finding {
    let id = "other-programs";
    let Some(others) = &facts.others else {
        return Finding::unchecked(id, "listing programs at TC needs root");
    };
    if others.is_empty() {
        return Finding::ok(id, "none at TC");
    }
    let names: Vec<_> = others
        .iter()
        .map(|other| {
            let side = if other.side == Side::Ingress { "ingress" } else { "egress" };
            format!("{} ({} {side})", other.name, hook_name(other.hook))
        })
        .collect();
    Finding::note(id, names.join(", "))
        .advice("the meter runs after links of others: what they redirect is not counted")
}

#[cfg(test)]
mod tests;
