//! A station as people and JSON see it: `aa:bb:cc:dd:ee:ff`, with `/VLAN` behind it where tagged.

use std::{fmt, str::FromStr};

use bitmesh_common::{Mac, StationKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A MAC address and a VLAN id (0: untagged), as the station table's key has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Station(StationKey);

impl Station {
    /// From the six octets of a unicast MAC address; `None` for a multicast or zero address or a
    /// VLAN id over 4094.
    pub fn new(mac: [u8; 6], vlan: u16) -> Option<Self> {
        StationKey::new(Mac::new(mac), vlan).map(Self)
    }

    /// The station table's key.
    pub fn key(self) -> StationKey {
        self.0
    }
}

impl From<StationKey> for Station {
    fn from(key: StationKey) -> Self {
        Self(key)
    }
}

impl fmt::Display for Station {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
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
            assert_eq!(Station::from(station.key()), station);
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
