//! IPv4 and IPv6: how many L3 octets a frame is, between which addresses, and for which service.

use bitmesh_common::Cause;

use crate::{
    gso,
    packet::{Head, Packet},
};

/// IPv6 extension headers that are looked at before a frame is dropped as unreadable. Four are the
/// headers that RFC 8200 lets a host send in front of a fragment's payload.
const EXTENSION_LIMIT: u32 = 4;

/// Octets of a plain frame up to its ports: Ethernet, IPv4 without options, two ports.
pub(crate) const IPV4_PLAIN: usize = 38;
/// The same with IPv6.
const IPV6_PLAIN: usize = 58;
const ETHERNET_HEADER: u32 = 14;
const VERSION_AND_HEADER: u8 = 0x45;
const MORE_FRAGMENTS: u16 = 0x2000;

const IPV4_HEADER: u32 = 20;
const IPV4_OFFSET_MASK: u16 = 0x1fff;
const IPV6_HEADER: u32 = 40;
const IPV6_OFFSET_MASK: u16 = 0xfff8;
/// A hop-by-hop header with the jumbo option alone. The kernel adds it to IPv6 packets that it
/// means to segment, and takes it out again before the wire (`net/ipv6/ip6_output.c`).
const JUMBO_HEADER: u32 = 8;
const PORTS: u32 = 4;

const HOP_BY_HOP: u8 = 0;
const ICMPV4: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const ICMPV6: u8 = 58;
const DESTINATION_OPTIONS: u8 = 60;

/// An IP address as numbers, the first octet on the wire on top.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// IPv4.
    V4(u32),
    /// IPv6, the first eight octets first.
    V6(u64, u64),
}

impl Address {
    /// `ff02::1:2`, all `DHCPv6` relays and servers (RFC 8415).
    pub(crate) const DHCPV6_SERVERS: Self = Self::V6(0xff02 << 48, 0x0001_0002);

    /// Multicast, or IPv4's limited broadcast.
    #[inline(always)]
    pub fn is_group(self) -> bool {
        match self {
            Self::V4(bits) => bits >> 28 == 0xe || bits == u32::MAX,
            Self::V6(high, _) => high >> 56 == 0xff,
        }
    }

    /// The address as a number, if it is IPv4.
    #[inline(always)]
    pub fn v4(self) -> Option<u32> {
        match self {
            Self::V4(bits) => Some(bits),
            Self::V6(..) => None,
        }
    }

    /// IPv6 link-local unicast, `fe80::/10`.
    #[inline(always)]
    pub(crate) fn is_link_local(self) -> bool {
        matches!(self, Self::V6(high, _) if high >> 54 == 0xfe80 >> 6)
    }
}

/// What comes after the IP header, as far as the policy asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP ports.
    Tcp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
    },
    /// UDP ports.
    Udp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
    },
    /// ICMP for IPv4.
    Icmp {
        /// Message type.
        kind: u8,
    },
    /// ICMP for IPv6.
    Icmpv6 {
        /// Message type.
        kind: u8,
        /// Never forwarded (hop limit 255) and not a fragment, as neighbour discovery must be.
        on_link: bool,
    },
    /// Anything else: other protocols, later fragments, headers cut short.
    Other,
}

/// An IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// Sender.
    pub source: Address,
    /// Receiver.
    pub destination: Address,
    /// L3 octets on the wire, all segments of a GSO packet together.
    pub octets: u32,
    /// What is inside.
    pub transport: Transport,
}

/// IPv4 behind an untagged Ethernet header, without options and not a fragment.
#[inline(always)]
pub(crate) fn plain_ipv4(packet: &impl Packet, head: &impl Head<IPV4_PLAIN>) -> Option<Network> {
    let total = u32::from(head.u16::<16>());
    if head.u8::<14>() != VERSION_AND_HEADER
        || head.u16::<20>() & (IPV4_OFFSET_MASK | MORE_FRAGMENTS) != 0
        || total < IPV4_HEADER + PORTS
        || !packet.holds(ETHERNET_HEADER + total)
    {
        return None;
    }
    let transport = match head.u8::<23>() {
        TCP => Transport::Tcp { source: head.u16::<34>(), destination: head.u16::<36>() },
        UDP => Transport::Udp { source: head.u16::<34>(), destination: head.u16::<36>() },
        ICMPV4 => Transport::Icmp { kind: head.u8::<34>() },
        _ => Transport::Other,
    };
    Some(Network {
        source: Address::V4(head.u32::<26>()),
        destination: Address::V4(head.u32::<30>()),
        octets: total,
        transport,
    })
}

/// IPv6 behind an untagged Ethernet header, with TCP, UDP or ICMP right behind it.
#[inline(always)]
pub(crate) fn plain_ipv6(packet: &impl Packet) -> Option<Network> {
    let head = packet.head::<IPV6_PLAIN>()?;
    let stated = u32::from(head.u16::<18>());
    if head.u8::<14>() >> 4 != 6
        || stated < PORTS
        || !packet.holds(ETHERNET_HEADER + IPV6_HEADER + stated)
    {
        return None;
    }
    let transport = match head.u8::<20>() {
        TCP => Transport::Tcp { source: head.u16::<54>(), destination: head.u16::<56>() },
        UDP => Transport::Udp { source: head.u16::<54>(), destination: head.u16::<56>() },
        ICMPV6 => Transport::Icmpv6 { kind: head.u8::<54>(), on_link: head.u8::<21>() == u8::MAX },
        _ => return None,
    };
    Some(Network {
        source: Address::V6(head.u64::<22>(), head.u64::<30>()),
        destination: Address::V6(head.u64::<38>(), head.u64::<46>()),
        octets: IPV6_HEADER + stated,
        transport,
    })
}

#[inline(always)]
pub(crate) fn ipv4(packet: &impl Packet, offset: u32) -> Result<Network, Cause> {
    let first = packet.u8(offset).ok_or(Cause::Truncated)?;
    let header = u32::from(first & 0x0f) * 4;
    if first >> 4 != 4 || header < IPV4_HEADER {
        return Err(Cause::Malformed);
    }
    let held = packet.frame_len().checked_sub(offset).ok_or(Cause::Truncated)?;
    let total = packet.u16(offset + 2).ok_or(Cause::Truncated)?;
    let fragment = packet.u16(offset + 6).ok_or(Cause::Truncated)?;
    let protocol = packet.u8(offset + 9).ok_or(Cause::Truncated)?;
    let source = packet.u32(offset + 12).ok_or(Cause::Truncated)?;
    let destination = packet.u32(offset + 16).ok_or(Cause::Truncated)?;

    let gso = packet.gso_size() != 0;
    let length = if gso { held } else { u32::from(total) };
    if length < header || length > held {
        return Err(Cause::Malformed);
    }
    let payload = offset + header;
    let whole = fragment & IPV4_OFFSET_MASK == 0;
    let octets = if gso { gso::octets(packet, protocol, length, header, payload)? } else { length };
    let transport = if whole && length >= header + PORTS {
        match protocol {
            TCP | UDP => ports(packet, protocol, payload)?,
            ICMPV4 => Transport::Icmp { kind: packet.u8(payload).ok_or(Cause::Truncated)? },
            _ => Transport::Other,
        }
    } else {
        Transport::Other
    };
    Ok(Network {
        source: Address::V4(source),
        destination: Address::V4(destination),
        octets,
        transport,
    })
}

#[inline(always)]
pub(crate) fn ipv6(packet: &impl Packet, offset: u32) -> Result<Network, Cause> {
    let first = packet.u8(offset).ok_or(Cause::Truncated)?;
    if first >> 4 != 6 {
        return Err(Cause::Malformed);
    }
    let held = packet.frame_len().checked_sub(offset).ok_or(Cause::Truncated)?;
    let stated = packet.u16(offset + 4).ok_or(Cause::Truncated)?;
    let next = packet.u8(offset + 6).ok_or(Cause::Truncated)?;
    let hop_limit = packet.u8(offset + 7).ok_or(Cause::Truncated)?;
    let source = address(packet, offset + 8)?;
    let destination = address(packet, offset + 24)?;

    let gso = packet.gso_size() != 0;
    // A jumbogram on the wire has both too (RFC 2675); no link that a station is on carries one.
    let jumbo = stated == 0 && next == HOP_BY_HOP;
    let length = if gso { held } else { IPV6_HEADER + u32::from(stated) };
    if length < IPV6_HEADER || length > held || (jumbo && !gso) {
        return Err(Cause::Malformed);
    }
    let upper = upper_layer(packet, next, offset)?;
    let octets = if gso {
        let hidden = if jumbo { JUMBO_HEADER } else { 0 };
        let header = upper.offset.saturating_sub(offset).saturating_sub(hidden);
        let on_wire = length.saturating_sub(hidden);
        gso::octets(packet, upper.protocol, on_wire, header, upper.offset)?
    } else {
        length
    };
    let end = offset + length;
    let transport = if upper.later_fragment || upper.offset + PORTS > end {
        Transport::Other
    } else {
        match upper.protocol {
            TCP | UDP => ports(packet, upper.protocol, upper.offset)?,
            ICMPV6 => Transport::Icmpv6 {
                kind: packet.u8(upper.offset).ok_or(Cause::Truncated)?,
                on_link: hop_limit == u8::MAX && !upper.fragment,
            },
            _ => Transport::Other,
        }
    };
    Ok(Network { source, destination, octets, transport })
}

struct Upper {
    protocol: u8,
    offset: u32,
    fragment: bool,
    later_fragment: bool,
}

#[inline(always)]
fn upper_layer(packet: &impl Packet, first: u8, ip: u32) -> Result<Upper, Cause> {
    let mut upper =
        Upper { protocol: first, offset: ip + IPV6_HEADER, fragment: false, later_fragment: false };
    for _ in 0..EXTENSION_LIMIT {
        let length = match upper.protocol {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => {
                let units = packet.u8(upper.offset + 1).ok_or(Cause::Truncated)?;
                (u32::from(units) + 1) * 8
            }
            AUTHENTICATION => {
                let units = packet.u8(upper.offset + 1).ok_or(Cause::Truncated)?;
                (u32::from(units) + 2) * 4
            }
            FRAGMENT => {
                let position = packet.u16(upper.offset + 2).ok_or(Cause::Truncated)?;
                upper.fragment = true;
                upper.later_fragment = position & IPV6_OFFSET_MASK != 0;
                8
            }
            _ => return Ok(upper),
        };
        upper.protocol = packet.u8(upper.offset).ok_or(Cause::Truncated)?;
        upper.offset += length;
        if upper.later_fragment {
            return Ok(upper);
        }
    }
    if is_extension(upper.protocol) { Err(Cause::HeaderChain) } else { Ok(upper) }
}

#[inline(always)]
fn is_extension(protocol: u8) -> bool {
    matches!(protocol, HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | AUTHENTICATION | FRAGMENT)
}

#[inline(always)]
fn ports(packet: &impl Packet, protocol: u8, offset: u32) -> Result<Transport, Cause> {
    let source = packet.u16(offset).ok_or(Cause::Truncated)?;
    let destination = packet.u16(offset + 2).ok_or(Cause::Truncated)?;
    Ok(if protocol == TCP {
        Transport::Tcp { source, destination }
    } else {
        Transport::Udp { source, destination }
    })
}

#[inline(always)]
fn address(packet: &impl Packet, offset: u32) -> Result<Address, Cause> {
    let high = packet.u64(offset).ok_or(Cause::Truncated)?;
    let low = packet.u64(offset + 8).ok_or(Cause::Truncated)?;
    Ok(Address::V6(high, low))
}
