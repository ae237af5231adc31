//! The Ethernet header: who sends, who receives, on which VLAN, and what is inside.

use bitmesh_common::{Cause, Mac};

use crate::{
    network::{self, Network},
    packet::{Packet, TAG_PRESENT},
};

const ETHERTYPE_OFFSET: u32 = 12;
const HEADER: u32 = 14;
const TAGGED_HEADER: u32 = 18;

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
    /// Reads the headers of `packet`; the error says why it must be dropped.
    #[inline(always)]
    pub fn parse(packet: &impl Packet) -> Result<Self, Cause> {
        let destination = mac(packet, 0)?;
        let source = mac(packet, 6)?;
        let outer = packet.u16(ETHERTYPE_OFFSET).ok_or(Cause::Truncated)?;
        let beside = packet.tag();
        let mut tci = beside & VLAN_TCI_MASK;
        let mut ethertype = outer;
        let mut offset = HEADER;
        if is_tag(outer) {
            let inner = packet.u16(HEADER + 2).ok_or(Cause::Truncated)?;
            if beside & TAG_PRESENT != 0 || is_tag(inner) {
                return Err(Cause::Vlan);
            }
            tci = u32::from(packet.u16(HEADER).ok_or(Cause::Truncated)?);
            ethertype = inner;
            offset = TAGGED_HEADER;
        }
        let vlan = (tci & VLAN_ID_MASK) as u16;
        if vlan == VLAN_ID_RESERVED {
            return Err(Cause::Vlan);
        }
        let content = match ethertype {
            ETHERTYPE_IPV4 => Content::Ip(network::ipv4(packet, offset)?),
            ETHERTYPE_IPV6 => Content::Ip(network::ipv6(packet, offset)?),
            ETHERTYPE_ARP => Content::Arp,
            ETHERTYPE_EAPOL => Content::Eapol,
            _ => return Err(Cause::NotIp),
        };
        Ok(Self { destination, source, vlan, content })
    }
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
