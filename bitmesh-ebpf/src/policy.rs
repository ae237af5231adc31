//! Who may do what before paying: one table for each direction.

use bitmesh_common::{Cause, EdgeConfig, ISOLATE, own_bit_v4, own_bit_v6};

use crate::{
    frame::{Content, Frame},
    network::{Address, Network, Transport},
};

const PORT_DNS: u16 = 53;
const PORT_DHCP_SERVER: u16 = 67;
const PORT_DHCPV6_SERVER: u16 = 547;

const ICMP_ECHO_REPLY: u8 = 0;
const ICMP_ECHO: u8 = 8;
const ICMPV6_ECHO: u8 = 128;
const ICMPV6_ECHO_REPLY: u8 = 129;
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;

/// What to do with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Forward it, unbilled.
    Pass(Cause),
    /// Drop it.
    Drop(Cause),
    /// Forward it unbilled if the station has credit left, else drop it.
    ForPayers,
    /// Forward it if the station's limit covers this many L3 octets, and bill them.
    Bill(u32),
}

/// A frame that a station sent.
#[inline(always)]
pub fn upload(frame: &Frame, edge: &EdgeConfig) -> Step {
    if !frame.source.is_station() {
        return Step::Drop(Cause::BadSource);
    }
    let ip = match &frame.content {
        Content::Arp => return Step::Pass(Cause::Arp),
        Content::Eapol => return Step::Pass(Cause::Eapol),
        Content::Ip(ip) => ip,
    };
    if let Transport::Icmpv6 { kind, on_link } = ip.transport {
        match kind {
            ROUTER_ADVERTISEMENT | REDIRECT => return Step::Drop(Cause::RogueRouter),
            // To anyone beyond the link it would be forwarded: a hop limit of 255 only says that it
            // was not yet.
            ROUTER_SOLICITATION | NEIGHBOUR_SOLICITATION | NEIGHBOUR_ADVERTISEMENT
                if on_link
                    && (ip.destination.is_group()
                        || ip.destination.is_link_local()
                        || is_edge(ip.destination, edge)) =>
            {
                return Step::Pass(Cause::Neighbour);
            }
            _ => {}
        }
    }
    if is_edge(ip.destination, edge) {
        return if is_service_request(ip, edge) {
            Step::Pass(Cause::Service)
        } else {
            Step::ForPayers
        };
    }
    if frame.destination.is_group() || ip.destination.is_group() {
        return if is_dhcp_request(ip) {
            Step::Pass(Cause::Service)
        } else {
            Step::Drop(Cause::Group)
        };
    }
    Step::Bill(ip.octets)
}

/// A frame for a station, which came into the box by the port with index `from`, 0 for the box's own.
#[inline(always)]
pub fn download(frame: &Frame, from: u32, edge: &EdgeConfig) -> Step {
    if edge.flags & ISOLATE != 0 && is_lan(from, edge) {
        return Step::Drop(Cause::Isolated);
    }
    let ip = match &frame.content {
        Content::Arp => return Step::Pass(Cause::Arp),
        Content::Eapol => return Step::Pass(Cause::Eapol),
        Content::Ip(ip) => ip,
    };
    if let Transport::Icmpv6 { kind, on_link: true } = ip.transport {
        match kind {
            ROUTER_SOLICITATION | NEIGHBOUR_SOLICITATION | NEIGHBOUR_ADVERTISEMENT => {
                return Step::Pass(Cause::Neighbour);
            }
            // No station's own gets this far, and a hop limit of 255 was not forwarded: it is the
            // edge's, whose link-local address need not be in the list.
            ROUTER_ADVERTISEMENT | REDIRECT if ip.source.is_link_local() => {
                return Step::Pass(Cause::Neighbour);
            }
            _ => {}
        }
    }
    let group = frame.destination.is_group() || ip.destination.is_group();
    if is_edge(ip.source, edge) {
        // What came in by a port is not the edge's. Billed, it would not be in the subscriber's count.
        if from != 0 {
            return Step::Drop(Cause::Spoofed);
        }
        return if is_service_reply(ip, edge) {
            Step::Pass(Cause::Service)
        } else if group {
            Step::Pass(Cause::EdgeGroup)
        } else {
            Step::ForPayers
        };
    }
    if group {
        return Step::Drop(Cause::Group);
    }
    Step::Bill(ip.octets)
}

/// Octets that a subscriber counts for `frame` by the provider's rule, `None` for what is free:
/// anything but unicast IP, neighbour discovery, and traffic with
/// the provider itself.
#[inline(always)]
pub fn own_count(frame: &Frame, far: Far, provider: &EdgeConfig) -> Option<u32> {
    let Content::Ip(ip) = &frame.content else {
        return None;
    };
    if let Transport::Icmpv6 { kind, on_link: true } = ip.transport
        && matches!(kind, ROUTER_SOLICITATION | NEIGHBOUR_SOLICITATION | NEIGHBOUR_ADVERTISEMENT)
    {
        return None;
    }
    let remote = match far {
        Far::Source => ip.source,
        Far::Destination => ip.destination,
    };
    if frame.destination.is_group() || ip.destination.is_group() || is_edge(remote, provider) {
        return None;
    }
    Some(ip.octets)
}

/// Which end of a frame is the far side of a subscriber's link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Far {
    /// The frame was received.
    Source,
    /// The frame is being sent.
    Destination,
}

#[inline(always)]
fn is_edge(address: Address, edge: &EdgeConfig) -> bool {
    // All places are gone through: Linux 6.1's verifier can't follow a loop that ends at a count.
    match address {
        Address::V4(bits) => {
            let mut own = edge.ipv4.iter().zip(0u8..);
            edge.own_bits & own_bit_v4(bits) != 0
                && own.any(|(own, place)| place < edge.ipv4_count && *own == bits)
        }
        Address::V6(high, low) => {
            let mut own = edge.ipv6.iter().zip(0u8..);
            edge.own_bits & own_bit_v6(high, low) != 0
                && own.any(|(own, place)| place < edge.ipv6_count && *own == [high, low])
        }
    }
}

#[inline(always)]
fn is_lan(port: u32, edge: &EdgeConfig) -> bool {
    // No port has index 0, which free places hold and the box itself sends from.
    port != 0 && edge.lan.contains(&port)
}

#[inline(always)]
fn is_dhcp_request(ip: &Network) -> bool {
    match (ip.destination, ip.transport) {
        (Address::V4(u32::MAX), Transport::Udp { destination, .. }) => {
            destination == PORT_DHCP_SERVER
        }
        (Address::DHCPV6_SERVERS, Transport::Udp { destination, .. }) => {
            destination == PORT_DHCPV6_SERVER
        }
        _ => false,
    }
}

#[inline(always)]
fn is_service_request(ip: &Network, edge: &EdgeConfig) -> bool {
    match ip.transport {
        Transport::Tcp { destination, .. } => is_tcp_service(destination, edge),
        Transport::Udp { destination, .. } => is_udp_service(destination),
        Transport::Icmp { kind } => is_echo(kind),
        Transport::Icmpv6 { kind, .. } => is_echo_v6(kind),
        Transport::Other => false,
    }
}

#[inline(always)]
fn is_service_reply(ip: &Network, edge: &EdgeConfig) -> bool {
    match ip.transport {
        Transport::Tcp { source, .. } => is_tcp_service(source, edge),
        Transport::Udp { source, .. } => is_udp_service(source),
        Transport::Icmp { kind } => is_echo(kind),
        Transport::Icmpv6 { kind, .. } => is_echo_v6(kind),
        Transport::Other => false,
    }
}

#[inline(always)]
fn is_tcp_service(port: u16, edge: &EdgeConfig) -> bool {
    port == PORT_DNS || port == edge.api_port
}

#[inline(always)]
fn is_udp_service(port: u16) -> bool {
    matches!(port, PORT_DNS | PORT_DHCP_SERVER | PORT_DHCPV6_SERVER)
}

#[inline(always)]
fn is_echo(kind: u8) -> bool {
    matches!(kind, ICMP_ECHO | ICMP_ECHO_REPLY)
}

#[inline(always)]
fn is_echo_v6(kind: u8) -> bool {
    matches!(kind, ICMPV6_ECHO | ICMPV6_ECHO_REPLY)
}
