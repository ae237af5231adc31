//! Which program meters uploads on which port. One decision: attaching carries it out, and `bitmesh
//! doctor` shows it.

use std::io::ErrorKind::PermissionDenied;

use super::{
    DataplaneError, UploadHook,
    hooks::HookKind,
    host,
    pins::{self, Holder},
    ports::Port,
};

/// Largest MTU at which a frame with two VLAN tags and its checksum fits into one XDP buffer: a page
/// of 4 KiB less `XDP_PACKET_HEADROOM` and `skb_shared_info`, as most drivers reckon.
pub const SINGLE_BUFFER_MTU: u32 = 4_096 - 256 - 320 - (14 + 2 * 4 + 4);

/// The hook for a port's uploads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The kind of hook.
    pub hook: HookKind,
    /// Why this kind, in words for the operator.
    pub why: String,
    /// What the operator should know about it, if anything.
    pub warning: Option<String>,
    /// Whether it is TC after all if the driver refuses its program: only attaching shows whether it
    /// has the queues.
    pub or_tc: bool,
}

/// What `bitmesh sell` of this instance would do, or does, with uploads on a port.
pub fn choose(port: &Port, wish: UploadHook, instance: &str) -> Result<Choice, DataplaneError> {
    let held = match pins::held(instance, host::namespace()?, port.index) {
        // bpffs is closed to others than root: what is in place can't be seen.
        Err(DataplaneError::System { source, .. }) if source.kind() == PermissionDenied => None,
        held => held?,
    };
    upload(port, wish, held)
}

/// Decides, where `held` has held our program on this port since an earlier run.
pub(super) fn upload(
    port: &Port,
    wish: UploadHook,
    held: Option<Holder>,
) -> Result<Choice, DataplaneError> {
    check(port)?;
    let generic = port.xdp.as_ref().is_some_and(|xdp| xdp.generic);
    let xdp = if generic { HookKind::XdpGeneric } else { HookKind::XdpNative };
    let (hook, why, or_tc) = match (wish, held) {
        (UploadHook::Auto, Some(Holder::Xdp)) => (xdp, kept(), false),
        (UploadHook::Auto, Some(held)) => (tc(Some(held)), kept(), false),
        (UploadHook::Auto, None) => by_kind(port),
        (UploadHook::XdpNative, None) => (native(port)?, asked_for(), false),
        (UploadHook::XdpGeneric, None) => (HookKind::XdpGeneric, asked_for(), false),
        (UploadHook::XdpNative | UploadHook::XdpGeneric, Some(Holder::Xdp)) => {
            (xdp, asked_for(), false)
        }
        (UploadHook::Tc, None | Some(Holder::Tcx | Holder::Clsact)) => {
            (tc(held), asked_for(), false)
        }
        (_, Some(found)) => {
            let interface = port.name.clone();
            return Err(DataplaneError::OtherHook { interface, found: found.name() });
        }
    };
    let is_xdp = matches!(hook, HookKind::XdpNative | HookKind::XdpGeneric);
    if let (true, None, Some(other)) = (is_xdp, held, &port.xdp) {
        let (interface, id, name) = (port.name.clone(), other.id, other.name.clone());
        return Err(DataplaneError::ForeignXdp { interface, id, name });
    }
    Ok(Choice { hook, why, warning: warning(port, hook), or_tc })
}

/// Refuses ports on which no hook sees every frame of their stations once.
pub(super) fn check(port: &Port) -> Result<(), DataplaneError> {
    let interface = port.name.clone();
    if port.kind.as_deref() == Some("bridge") {
        return Err(DataplaneError::BridgeItself { interface, instead: instead(&port.ports) });
    }
    if !port.switch_ports.is_empty() {
        let instead = instead(&port.switch_ports);
        return Err(DataplaneError::SwitchConduit { interface, instead });
    }
    match &port.master {
        Some(master) if is_aggregate(&master.kind) => Err(DataplaneError::PortOfAggregate {
            interface,
            kind: master.kind.clone(),
            instead: instead(std::slice::from_ref(&master.interface.name)),
        }),
        _ => Ok(()),
    }
}

/// Refuses ports that would meter the same frame twice.
pub(super) fn check_together(ports: &[Port]) -> Result<(), DataplaneError> {
    for (i, port) in ports.iter().enumerate() {
        check(port)?;
        if ports.iter().skip(i + 1).any(|other| other.index == port.index) {
            return Err(DataplaneError::NamedTwice { interface: port.name.clone() });
        }
        let below = port.lower.as_ref();
        if let Some(lower) = below.filter(|l| ports.iter().any(|other| other.index == l.index)) {
            let (interface, lower) = (port.name.clone(), lower.name.clone());
            return Err(DataplaneError::MeteredTwice { interface, lower });
        }
    }
    Ok(())
}

/// Native XDP where the port is real and its driver can; TC elsewhere.
fn by_kind(port: &Port) -> (HookKind, String, bool) {
    let through_tc = |why: String| (tc(None), why, false);
    let Some(kind) = port.kind.as_deref() else {
        return if port.wireless {
            through_tc("a radio: XDP there would turn segmentation offload off".to_owned())
        } else {
            by_driver(port)
        };
    };
    through_tc(match kind {
        "vlan" => "a VLAN device has no native XDP, and its frames come untagged to TC".to_owned(),
        "bond" | "team" => {
            format!("a {kind} has one count for all of its ports at TC, whichever is in use")
        }
        "dsa" => "a port of a switch chip has no native XDP; its frames come untagged to TC".into(),
        _ => format!("{kind} is virtual: XDP there would turn segmentation offload off"),
    })
}

fn by_driver(port: &Port) -> (HookKind, String, bool) {
    let xdp = |why: &str| (HookKind::XdpNative, why.to_owned(), true);
    match port.xdp_features {
        None => xdp("a real port; this kernel shows only when attaching whether it has native XDP"),
        Some(features) if !features.native => {
            (tc(None), "the driver has no native XDP".to_owned(), false)
        }
        Some(features) if !features.multi_buffer && port.mtu > SINGLE_BUFFER_MTU => {
            let mtu = port.mtu;
            (tc(None), format!("the driver's XDP takes no frames as large as MTU {mtu}"), false)
        }
        Some(_) => xdp("a real port whose driver has native XDP"),
    }
}

/// Native XDP as it was asked for, unless the driver says that it has none.
fn native(port: &Port) -> Result<HookKind, DataplaneError> {
    match port.xdp_features {
        Some(features) if !features.native => {
            Err(DataplaneError::NoNativeXdp { interface: port.name.clone() })
        }
        _ => Ok(HookKind::XdpNative),
    }
}

/// The kind of hook at TC: the one in place, else links where the kernel has them.
pub(super) fn tc(held: Option<Holder>) -> HookKind {
    match held {
        Some(Holder::Tcx) => HookKind::Tcx,
        Some(Holder::Clsact) => HookKind::Clsact,
        _ if host::has_tcx() => HookKind::Tcx,
        _ => HookKind::Clsact,
    }
}

/// What the operator should know of a hook on a port.
fn warning(port: &Port, hook: HookKind) -> Option<String> {
    let is_xdp = matches!(hook, HookKind::XdpNative | HookKind::XdpGeneric);
    let mut warnings = Vec::new();
    if hook == HookKind::XdpGeneric {
        warnings.push(
            "generic XDP sees merged packets as one and counts fewer headers than were on the \
             wire; use `--upload-hook tc` unless this is a test"
                .to_owned(),
        );
    }
    if let (HookKind::XdpNative, Some(kind)) = (hook, &port.kind) {
        warnings.push(format!(
            "native XDP on {kind} turns segmentation offload off; TC is faster there"
        ));
    }
    if port.offloads.is_some_and(|offloads| offloads.lro) {
        warnings.push(format!(
            "LRO merges frames before they are counted, and their headers go uncounted: `ethtool \
             -K {} lro off`",
            port.name
        ));
    }
    if let (false, Some(other)) = (is_xdp, &port.xdp) {
        warnings.push(format!(
            "XDP program {} ({}) runs before the meter: what it redirects or answers is not \
             counted",
            other.id, other.name
        ));
    }
    (!warnings.is_empty()).then(|| warnings.join("; "))
}

fn is_aggregate(kind: &str) -> bool {
    matches!(kind, "bond" | "team")
}

fn kept() -> String {
    "kept from an earlier run".to_owned()
}

fn asked_for() -> String {
    "asked for".to_owned()
}

/// The flags to type, in place of what was typed.
fn instead(names: &[String]) -> String {
    if names.is_empty() {
        return "its ports, when it has some".to_owned();
    }
    let flags: Vec<_> = names.iter().map(|name| format!("--lan {name}")).collect();
    format!("`{}`", flags.join(" "))
}

#[cfg(test)]
mod tests;
