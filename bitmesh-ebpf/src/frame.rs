//! The Ethernet header: who sends, who receives, on which VLAN, and what is inside.

use bitmesh_common::{Cause, Mac};

use crate::{
    network::{self, Network},
    packet::{Head, Packet, TAG_PRESENT},
};

const ETHERTYPE_OFFSET: u32 = 12;
const HEADER: u32 = 14;
/// Payload of the shortest frame (IEEE 802.3).
const PAYLOAD_MIN: u32 = 46;
const TAG: u32 = 4;
/// Tags that a frame may have: a customer's inside a service provider's (IEEE 802.1ad).
const TAGS: u32 = 2;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_EAPOL: u16 = 0x888e;
const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8;
const ETHERTYPE_OLD_SERVICE_VLAN: u16 = 0x9100;

const VLAN_TCI_MASK: u32 = 0xffff;
const VLAN_ID_MASK: u32 = 0x0fff;
const VLAN_ID_RESERVED: u16 = 0x0fff;

/// A frame whose headers were all there and agreed with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Receiver.
    pub destination: Mac,
    /// Sender.
    pub source: Mac,
    /// VLAN id; 0 for an untagged or priority-tagged frame.
    pub vlan: u16,
    /// What the frame carries.
    pub content: Content,
    /// Octets that it takes out of a budget where it is free: of IP, those that would be billed; else
    /// those behind the Ethernet header, padding included. Beside `content` and not in it: Linux 6.1
    /// lets no program touch the part of an enum that is not set.
    pub weight: u32,
}

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Address resolution (RFC 826).
    Arp,
    /// EAP over LAN (IEEE 802.1X).
    Eapol,
    /// IPv4 or IPv6.
    Ip(Network),
}

impl Frame {
    /// Reads the headers of the usual frame: IP without options, extension headers or fragments, not
    /// tagged and not to be segmented. `None` is for [`Frame::parse`], which reads the same from it
    /// and every other frame.
    #[inline(always)]
    pub fn plain(packet: &impl Packet) -> Option<Self> {
        if packet.tag() != 0 || packet.gso_size() != 0 {
            return None;
        }
        let head = packet.head::<{ network::IPV4_PLAIN }>()?;
        let network = match head.u16::<{ ETHERTYPE_OFFSET as usize }>() {
            ETHERTYPE_IPV4 => network::plain_ipv4(packet, &head)?,
            ETHERTYPE_IPV6 => network::plain_ipv6(packet)?,
            _ => return None,
        };
        Some(Self {
            destination: Mac::from_parts(head.u16::<0>(), head.u32::<2>()),
            source: Mac::from_parts(head.u16::<6>(), head.u32::<8>()),
            vlan: 0,
            weight: network.octets,
            content: Content::Ip(network),
        })
    }

    /// Reads the headers of any frame; the error says why it must be dropped. `service_vlan` is the
    /// id of the outer of two tags, 0 where there are never two.
    #[inline(always)]
    pub fn parse(packet: &impl Packet, service_vlan: u16) -> Result<Self, Cause> {
        let destination = mac(packet, 0)?;
        let source = mac(packet, 6)?;
        let mut tags = Tags { outer: None, inner: None };
        let beside = packet.tag();
        if beside & TAG_PRESENT != 0 {
            tags.add(beside & VLAN_TCI_MASK)?;
        }
        let mut ethertype = packet.u16(ETHERTYPE_OFFSET).ok_or(Cause::Truncated)?;
        let mut offset = HEADER;
        for _ in 0..TAGS {
            if !is_tag(ethertype) {
                break;
            }
            tags.add(u32::from(packet.u16(offset).ok_or(Cause::Truncated)?))?;
            ethertype = packet.u16(offset + 2).ok_or(Cause::Truncated)?;
            offset += TAG;
        }
        let vlan = tags.station_vlan(service_vlan)?;
        let content = match ethertype {
            ETHERTYPE_IPV4 => Content::Ip(network::ipv4(packet, offset)?),
            ETHERTYPE_IPV6 => Content::Ip(network::ipv6(packet, offset)?),
            ETHERTYPE_ARP => Content::Arp,
            ETHERTYPE_EAPOL => Content::Eapol,
            _ if is_tag(ethertype) => return Err(Cause::Vlan),
            _ => return Err(Cause::NotIp),
        };
        let weight = match &content {
            Content::Ip(ip) => ip.octets,
            Content::Arp | Content::Eapol => payload(packet),
        };
        Ok(Self { destination, source, vlan, content, weight })
    }
}

/// The tags of a frame, the outer first.
struct Tags {
    outer: Option<u16>,
    inner: Option<u16>,
}

impl Tags {
    #[inline(always)]
    fn add(&mut self, tci: u32) -> Result<(), Cause> {
        let vlan = (tci & VLAN_ID_MASK) as u16;
        let place = if self.outer.is_none() { &mut self.outer } else { &mut self.inner };
        if place.is_some() || vlan == VLAN_ID_RESERVED {
            return Err(Cause::Vlan);
        }
        *place = Some(vlan);
        Ok(())
    }

    /// The VLAN that the station is on: of two tags, the inner, where the outer is the expected.
    #[inline(always)]
    fn station_vlan(&self, service_vlan: u16) -> Result<u16, Cause> {
        match (self.outer, self.inner) {
            (None, _) => Ok(0),
            (Some(vlan), None) => Ok(vlan),
            (Some(outer), Some(inner)) if outer == service_vlan && outer != 0 => Ok(inner),
            _ => Err(Cause::Vlan),
        }
    }
}

/// Octets of a frame's payload, as many as the shortest Ethernet frame has at least.
#[inline(always)]
fn payload(packet: &impl Packet) -> u32 {
    packet.frame_len().saturating_sub(HEADER).max(PAYLOAD_MIN)
}

#[inline(always)]
fn mac(packet: &impl Packet, offset: u32) -> Result<Mac, Cause> {
    let high = packet.u16(offset).ok_or(Cause::Truncated)?;
    let low = packet.u32(offset + 2).ok_or(Cause::Truncated)?;
    Ok(Mac::from_parts(high, low))
}

#[inline(always)]
fn is_tag(ethertype: u16) -> bool {
    matches!(ethertype, ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN | ETHERTYPE_OLD_SERVICE_VLAN)
}
