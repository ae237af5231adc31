//! Keys of channels as they are kept: by their octets.

use std::{fmt, str::FromStr};

use bitcoin::secp256k1::{PublicKey, constants::PUBLIC_KEY_SIZE};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{IdParseError, hex_id};

/// A compressed public key (SEC 1). To find the point that it names takes longer than to read all
/// else of a channel, and a start reads every channel: it is found where it is needed.
/// [`ChannelParams::validate`](super::ChannelParams::validate) refuses terms with octets that name
/// none.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelKey([u8; PUBLIC_KEY_SIZE]);

hex_id!(ChannelKey, "a key is 66 hexadecimal digits");

impl ChannelKey {
    /// The point; `None` where the octets name none.
    pub fn point(&self) -> Option<PublicKey> {
        PublicKey::from_slice(&self.0).ok()
    }

    /// The 33 octets.
    pub fn as_bytes(&self) -> &[u8; PUBLIC_KEY_SIZE] {
        &self.0
    }
}

impl From<PublicKey> for ChannelKey {
    fn from(key: PublicKey) -> Self {
        Self(key.serialize())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::{super::testing::public_key, *};

    /// No square of the field is 5^3 + 7.
    pub(in crate::channel) const NO_POINT: &str =
        "020000000000000000000000000000000000000000000000000000000000000005";

    #[test]
    fn a_key_is_written_as_the_point_is_and_found_again() {
        let point = public_key(1);
        let key = ChannelKey::from(point);
        assert_eq!(key.point(), Some(point));
        assert_eq!(key.to_string(), point.to_string());
        assert_eq!(key.to_string().parse(), Ok(key));
        assert_eq!(serde_json::to_string(&key).unwrap(), serde_json::to_string(&point).unwrap());
    }

    #[test]
    fn octets_that_are_no_point_are_told_when_one_is_asked_for() {
        assert_eq!(NO_POINT.parse::<ChannelKey>().unwrap().point(), None);
    }
}
