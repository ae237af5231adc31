//! What a provider sells, signed: price, terms, and how long both hold.

use std::{fmt, str::FromStr};

use bitcoin::{
    Amount, Network,
    secp256k1::{Message, Secp256k1, Verification, XOnlyPublicKey, schnorr},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{
    channel::{
        CAPACITY_MIN, CONFIRMATIONS_MAX, IdParseError, LIFETIME_MAX_BLOCKS, LIFETIME_MIN_BLOCKS,
        RESERVE, hex_id, tagged_hash,
    },
    pricing::{Schedule, ScheduleError},
    units::Octets,
};

/// Version of the offer and of the protocol behind it.
pub const OFFER_VERSION: u32 = 1;

/// Longest that an offer may hold, in seconds: a day.
pub const OFFER_LIFETIME_MAX_SECONDS: u64 = 86_400;

/// How far ahead of ours a provider's clock may be, in seconds, before its offer is refused.
pub const CLOCK_SKEW_SECONDS: u64 = 600;

/// Tagged hash of the offer's JSON (tag `bitmesh/offer`): what the provider signs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OfferId([u8; 32]);

impl OfferId {
    /// Of no offer: its channel was brought back without one.
    pub const NONE: Self = Self([0; 32]);

    pub(crate) fn of_bytes(bytes: &[u8]) -> Self {
        Self(tagged_hash("bitmesh/offer", &[bytes]))
    }
}

hex_id!(OfferId, "an id is 64 hexadecimal digits");

/// What is for sale.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offer {
    /// [`OFFER_VERSION`].
    pub version: u32,
    /// Chain that channels are funded on.
    pub network: Network,
    /// The key that signs this offer: who the provider is.
    pub provider: XOnlyPublicKey,
    /// When it was made, in seconds since 1970.
    pub issued_at: u64,
    /// Until when channels can be opened on it, in seconds since 1970.
    pub valid_until: u64,
    /// The provider's tip when it was made: a hint for who sees no chain.
    pub height: u32,
    /// The price.
    pub schedule: Schedule,
    /// Everything else that a channel must keep to.
    pub terms: Terms,
}

/// Bounds on the channels that a provider accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Terms {
    /// Smallest capacity.
    #[serde(rename = "capacity_min_sat", with = "bitcoin::amount::serde::as_sat")]
    pub capacity_min: Amount,
    /// Largest capacity.
    #[serde(rename = "capacity_max_sat", with = "bitcoin::amount::serde::as_sat")]
    pub capacity_max: Amount,
    /// Shortest life in blocks from the tip at opening.
    pub lifetime_min_blocks: u32,
    /// Longest life in blocks.
    pub lifetime_max_blocks: u32,
    /// Blocks, the funding's own included, before payments are taken.
    pub confirmations: u32,
    /// Most that the provider asks to be paid ahead of use, in octets: what a subscriber risks.
    #[serde(rename = "tick_max_octets")]
    pub tick_max: Octets,
    /// Most that payments on one channel may come to before its funding has its confirmations.
    #[serde(rename = "unconfirmed_max_sat", with = "bitcoin::amount::serde::as_sat")]
    pub unconfirmed_max: Amount,
}

impl Terms {
    /// What counts before confirmation on a channel of `capacity`: never more than it can pay.
    pub fn unconfirmed_of(&self, capacity: Amount) -> Amount {
        self.unconfirmed_max.min(capacity.checked_sub(RESERVE).unwrap_or(Amount::ZERO))
    }
}

/// An offer with its signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedOffer {
    /// What is signed.
    pub offer: Offer,
    /// BIP340 over the [`OfferId`].
    pub signature: schnorr::Signature,
}

/// Why an offer is not one to buy from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OfferError {
    /// Made by a newer or older program.
    #[error(
        "the offer is of version {0}, this program speaks {OFFER_VERSION}: update the older side"
    )]
    Version(u32),
    /// For another chain.
    #[error("the provider sells on {0}, this wallet is on another chain: start with --network {0}")]
    Network(Network),
    /// The signature is not the provider's.
    #[error("the offer's signature is wrong: somebody changed it on the way, don't buy here")]
    Signature,
    /// Past its end, or issued in the future.
    #[error("the offer is not valid at this time: check this machine's clock, then ask again")]
    Time,
    /// Bounds that no channel fits.
    #[error("the offer's terms contradict themselves or the protocol's limits: {0}")]
    Terms(&'static str),
    /// See [`ScheduleError`].
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
}

impl Offer {
    /// What the provider signs and channels refer to.
    pub fn id(&self) -> OfferId {
        let json = serde_json::to_vec(self).expect("an offer has no maps and no floats");
        OfferId::of_bytes(&json)
    }

    /// The message for BIP340.
    pub fn message(&self) -> Message {
        Message::from_digest(self.id().0)
    }

    /// Checks that the terms can be met at all.
    pub fn validate(&self) -> Result<(), OfferError> {
        if self.version != OFFER_VERSION {
            return Err(OfferError::Version(self.version));
        }
        self.schedule.validate()?;
        let terms = &self.terms;
        if terms.capacity_min < CAPACITY_MIN || terms.capacity_max > Amount::MAX_MONEY {
            return Err(OfferError::Terms("capacity"));
        }
        if terms.capacity_min > terms.capacity_max {
            return Err(OfferError::Terms("capacity_min is over capacity_max"));
        }
        if terms.lifetime_min_blocks < LIFETIME_MIN_BLOCKS
            || terms.lifetime_max_blocks > LIFETIME_MAX_BLOCKS
            || terms.lifetime_min_blocks > terms.lifetime_max_blocks
        {
            return Err(OfferError::Terms("lifetime"));
        }
        if !(1..=CONFIRMATIONS_MAX).contains(&terms.confirmations) {
            return Err(OfferError::Terms("confirmations"));
        }
        if terms.tick_max == Octets(0) {
            return Err(OfferError::Terms("tick"));
        }
        if terms.unconfirmed_max > terms.capacity_max {
            return Err(OfferError::Terms("more before confirmation than a channel holds"));
        }
        let lifetime = self.valid_until.checked_sub(self.issued_at);
        if lifetime.is_none_or(|seconds| seconds > OFFER_LIFETIME_MAX_SECONDS) {
            return Err(OfferError::Terms("valid for less than nothing or more than a day"));
        }
        Ok(())
    }
}

impl SignedOffer {
    /// Checks an offer from a provider at `now`, in seconds since 1970, for a wallet on `network`.
    pub fn verify<C: Verification>(
        &self,
        secp: &Secp256k1<C>,
        network: Network,
        now: u64,
    ) -> Result<(), OfferError> {
        let offer = &self.offer;
        offer.validate()?;
        secp.verify_schnorr(&self.signature, &offer.message(), &offer.provider)
            .map_err(|_| OfferError::Signature)?;
        if offer.network != network {
            return Err(OfferError::Network(offer.network));
        }
        if now > offer.valid_until || now.saturating_add(CLOCK_SKEW_SECONDS) < offer.issued_at {
            return Err(OfferError::Time);
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use bitcoin::secp256k1::Keypair;

    use super::*;
    use crate::channel::testing::{secp, secret_key};

    pub(crate) fn offer() -> Offer {
        let (provider, _) = secret_key(7).x_only_public_key(&secp());
        Offer {
            version: OFFER_VERSION,
            network: Network::Regtest,
            provider,
            issued_at: 10_000,
            valid_until: 20_000,
            height: 100,
            schedule: Schedule::flat(1_000),
            terms: Terms {
                capacity_min: Amount::from_sat(10_000),
                capacity_max: Amount::from_sat(1_000_000),
                lifetime_min_blocks: 300,
                lifetime_max_blocks: 2_000,
                confirmations: 2,
                tick_max: Octets(8 << 20),
                unconfirmed_max: Amount::ZERO,
            },
        }
    }

    fn signed() -> SignedOffer {
        let offer = offer();
        let keys = Keypair::from_secret_key(&secp(), &secret_key(7));
        let signature = secp().sign_schnorr_no_aux_rand(&offer.message(), &keys);
        SignedOffer { offer, signature }
    }

    #[test]
    fn a_signed_offer_holds_through_json_until_its_end() {
        let text = serde_json::to_string(&signed()).unwrap();
        let offer: SignedOffer = serde_json::from_str(&text).unwrap();
        let check = |network, now| offer.verify(&secp(), network, now);
        assert_eq!(check(Network::Regtest, 20_000), Ok(()));
        assert_eq!(check(Network::Regtest, 20_001), Err(OfferError::Time));
        assert_eq!(check(Network::Regtest, 10_000 - CLOCK_SKEW_SECONDS), Ok(()));
        assert_eq!(check(Network::Regtest, 9_999 - CLOCK_SKEW_SECONDS), Err(OfferError::Time));
        assert_eq!(check(Network::Bitcoin, 15_000), Err(OfferError::Network(Network::Regtest)));
    }

    #[test]
    fn a_changed_offer_is_refused() {
        let mut offer = signed();
        offer.offer.terms.confirmations += 1;
        assert_eq!(offer.verify(&secp(), Network::Regtest, 15_000), Err(OfferError::Signature));
    }

    #[test]
    fn terms_that_contradict_themselves_are_refused() {
        let with = |change: fn(&mut Offer)| {
            let mut offer = offer();
            change(&mut offer);
            offer.validate().is_err()
        };
        assert!(!with(|_| ()));
        assert!(with(|o| o.version = 2));
        assert!(with(|o| o.terms.capacity_min = o.terms.capacity_max + Amount::ONE_SAT));
        assert!(with(|o| o.terms.capacity_min = Amount::from_sat(1)));
        assert!(with(|o| o.terms.capacity_max = Amount::MAX));
        assert!(with(|o| o.terms.lifetime_min_blocks = LIFETIME_MIN_BLOCKS - 1));
        assert!(with(|o| o.terms.lifetime_max_blocks = LIFETIME_MAX_BLOCKS + 1));
        assert!(with(|o| o.terms.confirmations = 0));
        assert!(with(|o| o.terms.tick_max = Octets(0)));
        assert!(with(|o| o.terms.unconfirmed_max = Amount::from_sat(1_000_001)));
        assert!(with(|o| o.valid_until = o.issued_at - 1));
        assert!(with(|o| o.valid_until = o.issued_at + OFFER_LIFETIME_MAX_SECONDS + 1));
        assert!(with(|o| o.schedule.tiers = Vec::new().into()));
    }
}
