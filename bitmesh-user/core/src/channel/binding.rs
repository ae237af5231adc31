//! Which stations a channel's account pays for: what its subscriber signs, and how that is judged.

use std::{fmt, str::FromStr};

use bitcoin::secp256k1::{Message, Secp256k1, Verification, ecdsa::Signature};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{ChannelId, IdParseError, ProviderChannel, params::hex_id, tagged_hash};
use crate::station::Station;

/// Stations that one account pays for at a time.
pub const STATIONS_PER_ACCOUNT_MAX: usize = 16;

/// Changes of an account's stations that one channel's key can sign: each is kept for good.
pub const BINDINGS_PER_CHANNEL_MAX: usize = 1_024;

/// Chosen by the subscriber at random, taken once: what was signed can't be presented again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nonce([u8; 8]);

hex_id!(Nonce, "a nonce is 16 hexadecimal digits");

impl From<[u8; 8]> for Nonce {
    fn from(octets: [u8; 8]) -> Self {
        Self(octets)
    }
}

/// A change that a subscriber signs. The channel's name stands for both ends' keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Binding {
    /// Which station; absent: whichever presents it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub station: Option<Station>,
    /// The account pays no more for it, instead of from now on.
    #[serde(default)]
    pub remove: bool,
    /// Taken once.
    pub nonce: Nonce,
    /// Seconds since 1970 after which it is not taken; absent: always.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<u64>,
}

impl Binding {
    /// What is signed: the tagged hash (`bitmesh/stations`) of the channel's name, a flag octet (1: a
    /// station is named, 2: it is removed, 4: it expires), the station's key (8 octets, big endian, 0
    /// when none is named), the nonce, and the expiry (8 octets, big endian, 0 when there is none).
    pub fn digest(&self, channel: &ChannelId) -> Message {
        let flags = u8::from(self.station.is_some())
            | u8::from(self.remove) << 1
            | u8::from(self.expires_at.is_some()) << 2;
        let station = self.station.map_or(0, |station| station.key().raw()).to_be_bytes();
        let expires_at = self.expires_at.unwrap_or(0).to_be_bytes();
        let parts: [&[u8]; 5] =
            [channel.as_bytes(), &[flags], &station, &self.nonce.0, &expires_at];
        Message::from_digest(tagged_hash("bitmesh/stations", &parts))
    }
}

/// Why an account's stations stay as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BindingError {
    /// Costs nothing to open, so that it could fill the disk.
    #[error("the channel is not funded yet")]
    Unfunded,
    /// Not by the key that the channel was opened with.
    #[error("the signature is not the subscriber's over this change of stations")]
    Signature,
    /// Presented before.
    #[error("this was used before")]
    Used,
    /// Too late.
    #[error("this has expired")]
    Expired,
    /// Too many over the channel's life.
    #[error("a channel's stations can change {BINDINGS_PER_CHANNEL_MAX} times, and did")]
    TooManyChanges,
    /// Made for another.
    #[error("this is for {wanted}, and you are {asking}")]
    OtherStation {
        /// Named in it.
        wanted: Station,
        /// Who presents it, as the edge sees it.
        asking: Station,
    },
    /// Too many at a time.
    #[error("an account pays for {STATIONS_PER_ACCOUNT_MAX} stations at most")]
    TooManyStations,
    /// Nothing to remove.
    #[error("the account does not pay for that station")]
    NotBound,
}

impl ProviderChannel {
    /// Judges a change of stations as far as the channel can: who signed it, and whether it is new.
    pub fn judge_binding<C: Verification>(
        &self,
        secp: &Secp256k1<C>,
        binding: &Binding,
        signature: &Signature,
        now: u64,
    ) -> Result<(), BindingError> {
        let digest = binding.digest(&self.params().id());
        let key = self.params().subscriber.point().ok_or(BindingError::Signature)?;
        secp.verify_ecdsa(&digest, signature, &key).map_err(|_| BindingError::Signature)?;
        if self.funding().is_none() {
            return Err(BindingError::Unfunded);
        }
        if self.nonces().contains(&binding.nonce) {
            return Err(BindingError::Used);
        }
        if binding.expires_at.is_some_and(|expires_at| now > expires_at) {
            return Err(BindingError::Expired);
        }
        if self.nonces().len() >= BINDINGS_PER_CHANNEL_MAX {
            return Err(BindingError::TooManyChanges);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_signed() {
        let channel = super::super::testing::params().id();
        let station = Station::new([2, 0, 0, 0, 0, 1], 0);
        let plain =
            Binding { station: None, remove: false, nonce: Nonce([1; 8]), expires_at: None };
        let all = [
            plain,
            Binding { station, ..plain },
            Binding { station: Station::new([2, 0, 0, 0, 0, 1], 1), ..plain },
            Binding { remove: true, ..plain },
            Binding { nonce: Nonce([2; 8]), ..plain },
            Binding { expires_at: Some(0), ..plain },
            Binding { expires_at: Some(1), ..plain },
        ];
        let digests: std::collections::BTreeSet<_> =
            all.iter().map(|binding| *binding.digest(&channel).as_ref()).collect();
        assert_eq!(digests.len(), all.len());
    }

    #[test]
    fn a_nonce_is_sixteen_digits() {
        assert_eq!("0102030405060708".parse(), Ok(Nonce([1, 2, 3, 4, 5, 6, 7, 8])));
        assert!("01".parse::<Nonce>().is_err());
    }
}
