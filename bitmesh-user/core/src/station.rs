//! A station as people and JSON see it: `aa:bb:cc:dd:ee:ff`, with `/VLAN` behind it where tagged.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

const MAC_BITS: u32 = 48;

/// A MAC address and a VLAN id (0: untagged) in the layout of the station table's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Station(u64);

impl Station {
    /// From the six octets of a unicast MAC address; `None` for a multicast or zero address or a
    /// VLAN id over 4094.
    pub fn new(mac: [u8; 6], vlan: u16) -> Option<Self> {
        let [first, ..] = mac;
        if first & 1 == 1 || mac == [0; 6] || vlan > 4_094 {
            return None;
        }
        let bits = mac.iter().fold(0u64, |bits, octet| bits << 8 | u64::from(*octet));
        Some(Self(u64::from(vlan) << MAC_BITS | bits))
    }

    /// The station table's key.
    pub fn key(self) -> u64 {
        self.0
    }

    /// From a station table's key; `None` for what [`Station::new`] refuses.
    pub fn from_key(key: u64) -> Option<Self> {
        let [vlan_high, vlan_low, mac @ ..] = key.to_be_bytes();
        Self::new(mac, u16::from_be_bytes([vlan_high, vlan_low]))
    }
}

impl fmt::Display for Station {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [vlan_high, vlan_low, mac @ ..] = self.0.to_be_bytes();
        for (i, octet) in mac.iter().enumerate() {
            write!(f, "{}{octet:02x}", if i == 0 { "" } else { ":" })?;
        }
        match u16::from_be_bytes([vlan_high, vlan_low]) {
            0 => Ok(()),
            vlan => write!(f, "/{vlan}"),
        }
    }
}

/// Not a station: `aa:bb:cc:dd:ee:ff` of a unicast address, optionally with `/VLAN`, is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a station: write a unicast MAC as aa:bb:cc:dd:ee:ff, with /VLAN if it is tagged")]
pub struct StationParseError;

/// Two hexadecimal digits; `from_str_radix` alone takes a sign, too.
fn is_octet(part: &str) -> bool {
    part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit())
}

impl FromStr for Station {
    type Err = StationParseError;

    fn from_str(text: &str) -> Result<Self, StationParseError> {
        let (mac, vlan) = match text.split_once('/') {
            Some((mac, vlan)) => (mac, vlan.parse().map_err(|_| StationParseError)?),
            None => (text, 0),
        };
        let mut octets = [0; 6];
        let mut parts = mac.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|part| is_octet(part)).ok_or(StationParseError)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| StationParseError)?;
        }
        if parts.next().is_some() {
            return Err(StationParseError);
        }
        Self::new(octets, vlan).ok_or(StationParseError)
    }
}

impl Serialize for Station {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Station {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_key_come_back_as_they_went() {
        for text in ["02:00:00:00:00:01", "aa:bb:cc:dd:ee:ff/42"] {
            let station: Station = text.parse().unwrap();
            assert_eq!(station.to_string(), text);
            assert_eq!(Station::from_key(station.key()), Some(station));
        }
    }

    #[test]
    fn what_is_no_unicast_mac_is_refused() {
        for text in [
            "",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
            "02:00:00:00:00:01/4095",
            "2:0:0:0:0:1",
            "02:00:00:00:00:01:02",
            "02:00:00:00:00:+1",
        ] {
            assert_eq!(text.parse::<Station>(), Err(StationParseError), "{text}");
        }
    }
}
