//! What a port's driver and hardware do: XDP (netdev), offloads and rings (ethtool), radio (nl80211).

use netlink_packet_core::{DefaultNla, Emitable as _, NLA_F_NESTED, Nla as _};

use super::netlink::{Family, Plain, nested, payload, string};

/// Family `netdev` since Linux 6.3 (linux/netdev.h).
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const NETDEV_XDP_ACT_BASIC: u64 = 1;
const NETDEV_XDP_ACT_RX_SG: u64 = 32;

/// Family `ethtool` (`linux/ethtool_netlink.h`).
const ETHTOOL_MSG_FEATURES_GET: u8 = 11;
const ETHTOOL_MSG_RINGS_GET: u8 = 15;
/// The header's place in every request.
const ETHTOOL_A_HEADER: u16 = 1;
const ETHTOOL_A_HEADER_DEV_INDEX: u16 = 1;
const ETHTOOL_A_FEATURES_ACTIVE: u16 = 4;
const ETHTOOL_A_BITSET_BITS: u16 = 3;
const ETHTOOL_A_BITSET_BITS_BIT: u16 = 1;
const ETHTOOL_A_BITSET_BIT_NAME: u16 = 2;
const ETHTOOL_A_RINGS_RX_MAX: u16 = 2;
const ETHTOOL_A_RINGS_RX: u16 = 6;

/// Family `nl80211` (linux/nl80211.h).
const NL80211_CMD_GET_INTERFACE: u8 = 5;
const NL80211_ATTR_IFINDEX: u16 = 3;

/// What a driver says about native XDP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XdpFeatures {
    /// It runs programs.
    pub native: bool,
    /// It hands them frames that are larger than a page (`xdp.frags`).
    pub multi_buffer: bool,
}

/// What happens to frames before the programs, or instead of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// The driver merges what it receives, not to be taken apart again (`rx-lro`).
    pub lro: bool,
    /// The device merges what it receives; GSO can take it apart (`rx-gro-hw`).
    pub gro_hw: bool,
    /// The device may forward by itself what TC and flowtables tell it to (`hw-tc-offload`).
    pub hw_tc: bool,
}

/// Descriptors for what is received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rings {
    /// In use.
    pub rx: u32,
    /// That the device could have.
    pub rx_max: u32,
}

/// `None` where the kernel does not tell, as before Linux 6.3.
pub(super) fn xdp_features(index: u32) -> Option<XdpFeatures> {
    let asked = DefaultNla::new(NETDEV_A_DEV_IFINDEX, index.to_ne_bytes().to_vec());
    let answer = ask("netdev", NETDEV_CMD_DEV_GET, asked)?;
    let bits = u64::from_ne_bytes(answer.attribute(NETDEV_A_DEV_XDP_FEATURES)?.try_into().ok()?);
    Some(XdpFeatures {
        native: bits & NETDEV_XDP_ACT_BASIC != 0,
        multi_buffer: bits & NETDEV_XDP_ACT_RX_SG != 0,
    })
}

/// `None` where the kernel does not tell.
pub(super) fn offloads(index: u32) -> Option<Offloads> {
    let active = active_features(&ask("ethtool", ETHTOOL_MSG_FEATURES_GET, header(index))?);
    let on = |name: &str| active.iter().any(|feature| feature == name);
    Some(Offloads { lro: on("rx-lro"), gro_hw: on("rx-gro-hw"), hw_tc: on("hw-tc-offload") })
}

/// The rings of the interface with this index; `None` where it has none.
pub fn rings(index: u32) -> Option<Rings> {
    let answer = ask("ethtool", ETHTOOL_MSG_RINGS_GET, header(index))?;
    let number = |kind| {
        let octets: [u8; 4] = answer.attribute(kind)?.try_into().ok()?;
        Some(u32::from_ne_bytes(octets))
    };
    Some(Rings { rx: number(ETHTOOL_A_RINGS_RX)?, rx_max: number(ETHTOOL_A_RINGS_RX_MAX)? })
}

/// Whether this is an interface of a radio.
pub(super) fn is_wireless(index: u32) -> bool {
    let asked = DefaultNla::new(NL80211_ATTR_IFINDEX, index.to_ne_bytes().to_vec());
    ask("nl80211", NL80211_CMD_GET_INTERFACE, asked).is_some()
}

/// `None` for every reason that the kernel has not to answer: what hangs on it is a better choice or
/// a warning, never whether frames are metered.
fn ask(family: &str, command: u8, attribute: DefaultNla) -> Option<Plain> {
    Family::find(family).ok()??.get(command, vec![attribute]).ok()
}

fn header(index: u32) -> DefaultNla {
    let index = DefaultNla::new(ETHTOOL_A_HEADER_DEV_INDEX, index.to_ne_bytes().to_vec());
    let mut octets = vec![0; index.buffer_len()];
    index.emit(&mut octets);
    DefaultNla::new(ETHTOOL_A_HEADER | NLA_F_NESTED, octets)
}

/// The names in the list of what is on: bits that are off are not in it.
fn active_features(answer: &Plain) -> Vec<String> {
    let within = |octets: &[u8], kind| -> Vec<Vec<u8>> {
        nested(octets).iter().filter(|nla| nla.kind() == kind).map(payload).collect()
    };
    answer
        .attribute(ETHTOOL_A_FEATURES_ACTIVE)
        .iter()
        .flat_map(|active| within(active, ETHTOOL_A_BITSET_BITS))
        .flat_map(|bits| within(&bits, ETHTOOL_A_BITSET_BITS_BIT))
        .flat_map(|bit| within(&bit, ETHTOOL_A_BITSET_BIT_NAME))
        .map(|name| string(&name))
        .collect()
}
