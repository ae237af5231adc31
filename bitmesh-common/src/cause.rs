//! Why a frame that was not billed passed or was dropped.

use crate::counted::counted;

counted! {
    /// Why a frame that was not billed passed or was dropped; the index of its counter.
    Cause,
    /// How many causes there are.
    CAUSES:
    /// Passed: ARP, in either direction.
    Arp = "arp",
    /// Passed: EAP over LAN (IEEE 802.1X).
    Eapol = "eapol",
    /// Passed: IPv6 neighbour discovery (RFC 4861) with a hop limit of 255.
    Neighbour = "neighbour",
    /// Passed: DHCP, DNS, the payment API or an echo, with the edge itself.
    Service = "service",
    /// Passed: other traffic of a station with credit with the edge itself.
    EdgeOfPayer = "edge_of_payer",
    /// Passed: multicast or broadcast that the edge itself sent.
    EdgeGroup = "edge_group",
    /// Dropped: the frame ends inside a header.
    Truncated = "truncated",
    /// Dropped: a header contradicts itself or the frame that holds it.
    Malformed = "malformed",
    /// Dropped: a reserved VLAN id, or two tags where the edge expects none or others.
    Vlan = "vlan",
    /// Dropped: neither IP nor ARP nor EAPOL.
    NotIp = "not_ip",
    /// Dropped: more IPv6 extension headers than are looked at.
    HeaderChain = "header_chain",
    /// Dropped: a source MAC that no station can have.
    BadSource = "bad_source",
    /// Dropped: from outside, with the edge's own address as its source.
    Spoofed = "spoofed",
    /// Dropped: a router advertisement or redirect from a station.
    RogueRouter = "rogue_router",
    /// Dropped: multicast or broadcast that is not a service of the edge.
    Group = "group",
    /// Dropped: traffic with the edge itself that takes credit.
    EdgeClosed = "edge_closed",
    /// Dropped: the station is not in the table.
    Unknown = "unknown",
    /// Dropped: the station's limit is reached.
    Spent = "spent",
    /// Dropped: the station's time is over.
    Expired = "expired",
    /// Dropped: faster than the speed that the station bought.
    TooFast = "too_fast",
    /// Dropped: from another port or address than the station is bound to.
    Moved = "moved",
    /// Dropped: what is free before payment is used up for now.
    FreeSpent = "free_spent",
    /// Dropped: from one LAN port to another, which the provider does not allow.
    Isolated = "isolated",
    /// Dropped: the controller has not set the programs up yet.
    NotReady = "not_ready",
}

impl Cause {
    /// Whether a frame with this cause was forwarded.
    #[inline(always)]
    pub const fn passes(self) -> bool {
        matches!(
            self,
            Self::Arp
                | Self::Eapol
                | Self::Neighbour
                | Self::Service
                | Self::EdgeOfPayer
                | Self::EdgeGroup
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_the_index_of_its_counter() {
        for (i, cause) in Cause::ALL.iter().enumerate() {
            assert_eq!(*cause as usize, i);
        }
    }

    #[test]
    fn names_are_unique() {
        for (i, a) in Cause::ALL.iter().enumerate() {
            assert!(Cause::ALL.iter().skip(i + 1).all(|b| a.name() != b.name()), "{}", a.name());
        }
    }
}
