//! Who pays for a frame: a MAC address on a VLAN.

use core::fmt;

const MAC_BITS: u32 = 48;
const MAC_MASK: u64 = (1 << MAC_BITS) - 1;
const GROUP_BIT: u64 = 1 << 40;
/// The highest VLAN id that a station can have (IEEE 802.1Q: 4095 is reserved).
const VLAN_MAX: u16 = 4_094;

/// A MAC address: its six octets, the first on the wire in bits 47..40.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Mac(u64);

impl Mac {
    /// From the octets in the order of the wire.
    #[inline(always)]
    pub const fn new(octets: [u8; 6]) -> Self {
        let [first, second, low @ ..] = octets;
        Self::from_parts(u16::from_be_bytes([first, second]), u32::from_be_bytes(low))
    }

    /// From the first two and the last four octets, each as a number in network order.
    #[inline(always)]
    pub const fn from_parts(high: u16, low: u32) -> Self {
        Self((high as u64) << 32 | low as u64)
    }

    /// The octets in the order of the wire.
    pub const fn octets(self) -> [u8; 6] {
        let [_, _, octets @ ..] = self.0.to_be_bytes();
        octets
    }

    /// The address as a number below 2^48.
    #[inline(always)]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Multicast or broadcast.
    #[inline(always)]
    pub const fn is_group(self) -> bool {
        self.0 & GROUP_BIT != 0
    }

    /// Neither multicast nor all zero: an address that one station can have.
    #[inline(always)]
    pub const fn is_station(self) -> bool {
        self.0 != 0 && !self.is_group()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, octet) in self.octets().iter().enumerate() {
            write!(f, "{}{octet:02x}", if i == 0 { "" } else { ":" })?;
        }
        Ok(())
    }
}

/// Key of the station table: the VLAN id (0: untagged) in the top 16 bits, the MAC address in the
/// low 48.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct StationKey(u64);

impl StationKey {
    /// A slot that never held a station: a search ends here.
    pub const EMPTY: u64 = 0;
    /// A slot whose station was taken off: a search goes on past it.
    pub const REMOVED: u64 = u64::MAX;

    /// The key of `mac` on `vlan`; `None` for a multicast or zero address or a VLAN id over 4094.
    #[inline(always)]
    pub const fn new(mac: Mac, vlan: u16) -> Option<Self> {
        if !mac.is_station() || vlan > VLAN_MAX {
            return None;
        }
        Some(Self((vlan as u64) << MAC_BITS | mac.0))
    }

    /// What a slot's key field would be; of an address that no station can have, a value that no
    /// slot has.
    #[inline(always)]
    pub const fn bits(mac: Mac, vlan: u16) -> u64 {
        (vlan as u64) << MAC_BITS | mac.0
    }

    /// From a slot's key field; `None` for the two reserved values and for what
    /// [`StationKey::new`] refuses.
    pub const fn from_raw(raw: u64) -> Option<Self> {
        let [vlan_high, vlan_low, ..] = raw.to_be_bytes();
        Self::new(Mac(raw & MAC_MASK), u16::from_be_bytes([vlan_high, vlan_low]))
    }

    /// The value of a slot's key field.
    #[inline(always)]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The MAC address.
    pub const fn mac(self) -> Mac {
        Mac(self.0 & MAC_MASK)
    }

    /// The VLAN id, 0 for an untagged station.
    pub const fn vlan(self) -> u16 {
        let [vlan_high, vlan_low, ..] = self.0.to_be_bytes();
        u16::from_be_bytes([vlan_high, vlan_low])
    }
}

impl fmt::Display for StationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.mac().fmt(f)?;
        match self.vlan() {
            0 => Ok(()),
            vlan => write!(f, "/{vlan}"),
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::string::ToString;

    use super::*;

    #[test]
    fn a_key_shows_its_mac_and_its_vlan_where_tagged() {
        let mac = Mac::new([0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0x0f]);
        assert_eq!(StationKey::new(mac, 0).unwrap().to_string(), "aa:bb:cc:dd:ee:0f");
        assert_eq!(StationKey::new(mac, 42).unwrap().to_string(), "aa:bb:cc:dd:ee:0f/42");
        assert_eq!(Mac::from_parts(0xaabb, 0xccdd_ee0f), mac);
    }

    #[test]
    fn a_key_comes_back_from_its_raw_form() {
        let key = StationKey::new(Mac::new([2, 0, 0, 0, 0, 9]), 4_094).unwrap();
        assert_eq!(StationKey::from_raw(key.raw()), Some(key));
        assert_eq!((key.mac().octets(), key.vlan()), ([2, 0, 0, 0, 0, 9], 4_094));
    }

    #[test]
    fn what_no_station_can_have_is_refused() {
        assert_eq!(StationKey::new(Mac::new([1, 0, 0x5e, 0, 0, 1]), 0), None);
        assert_eq!(StationKey::new(Mac::new([0xff; 6]), 0), None);
        assert_eq!(StationKey::new(Mac::new([0; 6]), 7), None);
        assert_eq!(StationKey::new(Mac::new([2, 0, 0, 0, 0, 1]), 4_095), None);
        assert_eq!(StationKey::from_raw(StationKey::EMPTY), None);
        assert_eq!(StationKey::from_raw(StationKey::REMOVED), None);
    }
}
