//! What both ends agree on before money moves, and the script that follows from it.

use std::{fmt, str::FromStr, sync::Arc};

use bitcoin::{
    Amount, Network, PublicKey, Script, ScriptBuf,
    hashes::{Hash, HashEngine, sha256},
    locktime::absolute,
    opcodes::all::{OP_CHECKSIG, OP_CHECKSIGVERIFY, OP_CLTV, OP_ENDIF, OP_IFDUP, OP_NOTIF},
    script::Builder,
};
use miniscript::{AbsLockTime, Descriptor, Miniscript, miniscript::decode::Terminal};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{CAPACITY_MIN, CONFIRMATIONS_MAX, ChannelKey, RESERVE, VersionError, Versioned};
use crate::{
    offer::OfferId,
    pricing::{Schedule, ScheduleError},
    units::Octets,
};

/// The terms of one channel, fixed for its life. Terms of another version are refused as such, and
/// not for the fields that this one doesn't know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct ChannelParams {
    /// [`PROTOCOL_VERSION`](super::PROTOCOL_VERSION).
    pub version: u16,
    /// Chain that the funding is on.
    pub network: Network,
    /// The signed offer that the price and the terms are from.
    pub offer: OfferId,
    /// The subscriber's key in the funding script.
    pub subscriber: ChannelKey,
    /// The provider's key in the funding script.
    pub provider: ChannelKey,
    /// Height from which the subscriber alone can spend.
    pub expiry_height: u32,
    /// Exact value of the funding output.
    #[serde(rename = "capacity_sat", with = "bitcoin::amount::serde::as_sat")]
    pub capacity: Amount,
    /// Where every commitment sends what is not paid: a segwit script of the subscriber's wallet.
    pub remainder_script: ScriptBuf,
    /// What payments buy.
    pub schedule: Schedule,
    /// Blocks, the funding's own included, before payments are taken.
    pub confirmations: u32,
    /// Most octets that the subscriber pays ahead of use.
    #[serde(rename = "tick_max_octets")]
    pub tick_max: Octets,
    /// Most that payments may come to before the funding has its confirmations; 0: none count.
    #[serde(rename = "unconfirmed_max_sat", with = "bitcoin::amount::serde::as_sat")]
    pub unconfirmed_max: Amount,
}

impl Serialize for ChannelParams {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for ChannelParams {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = serde_json::Value::deserialize(deserializer)?;
        let versioned = Versioned::deserialize(&json).map_err(de::Error::custom)?;
        versioned.check().map_err(de::Error::custom)?;
        Self::deserialize(json).map_err(de::Error::custom)
    }
}

/// Terms in a journal: this version wrote them, and to read them as such takes half the time.
pub(super) mod written {
    use super::{Arc, ChannelParams, Deserializer, Serializer};

    pub(in crate::channel) fn serialize<S: Serializer>(
        params: &Arc<ChannelParams>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        ChannelParams::serialize(params, serializer)
    }

    pub(in crate::channel) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Arc<ChannelParams>, D::Error> {
        ChannelParams::deserialize(deserializer).map(Arc::new)
    }
}

/// Why two parties can't open such a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParamsError {
    /// Of another protocol.
    #[error(transparent)]
    Version(#[from] VersionError),
    /// Under [`CAPACITY_MIN`] or over the money supply.
    #[error("a channel holds {} to {} sat; choose another capacity", CAPACITY_MIN.to_sat(), Amount::MAX_MONEY.to_sat())]
    Capacity,
    /// Not a block height.
    #[error("the expiry is a block height between 1 and 499999999")]
    Expiry,
    /// Octets that are no point of the curve.
    #[error("a key is no public key; make a new one")]
    Key,
    /// Both ends use one key.
    #[error("subscriber and provider have the same key; make a new one")]
    SameKey,
    /// Not a segwit output script of a standard kind.
    #[error("the remainder goes to a segwit address (P2WPKH, P2WSH or P2TR)")]
    RemainderScript,
    /// Over what the channel can pay.
    #[error("payments before confirmation can't exceed what the channel can pay")]
    Unconfirmed,
    /// Asks for none or too many confirmations.
    #[error("a funding needs 1 to {CONFIRMATIONS_MAX} confirmations")]
    Confirmations,
    /// See [`ScheduleError`].
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
}

impl ChannelParams {
    /// Checks terms that came from outside.
    pub fn validate(&self) -> Result<(), ParamsError> {
        self.validate_again()?;
        if self.subscriber.point().is_none() || self.provider.point().is_none() {
            return Err(ParamsError::Key);
        }
        Ok(())
    }

    /// Checks terms that were checked before they were written down: all but whether the keys are
    /// points, which takes longer than everything else, and shows when they are used.
    pub fn validate_again(&self) -> Result<(), ParamsError> {
        Versioned { version: self.version }.check()?;
        self.schedule.validate()?;
        let script = &self.remainder_script;
        if !(script.is_p2wpkh() || script.is_p2wsh() || script.is_p2tr()) {
            return Err(ParamsError::RemainderScript);
        }
        if self.capacity < CAPACITY_MIN || self.capacity > Amount::MAX_MONEY {
            return Err(ParamsError::Capacity);
        }
        if self.expiry_height == 0 || absolute::Height::from_consensus(self.expiry_height).is_err()
        {
            return Err(ParamsError::Expiry);
        }
        if !(1..=CONFIRMATIONS_MAX).contains(&self.confirmations) {
            return Err(ParamsError::Confirmations);
        }
        if self.unconfirmed_max > self.payable() {
            return Err(ParamsError::Unconfirmed);
        }
        if self.subscriber == self.provider {
            return Err(ParamsError::SameKey);
        }
        Ok(())
    }

    /// The funding output's descriptor: `wsh(and_v(v:pk(S),or_d(pk(P),after(T))))`. Both keys spend
    /// at any time, the subscriber's alone from height T. `None` where a key is no point.
    ///
    /// # Panics
    /// When the expiry is no block height, which [`Self::validate`] refuses.
    pub fn descriptor(&self) -> Option<Descriptor<PublicKey>> {
        let (subscriber, provider) = self.points()?;
        let descriptor = self.compile(subscriber, provider);
        let descriptor = descriptor.expect("validated terms give a descriptor");
        descriptor.sanity_check().expect("the template is sane for every key and height");
        Some(descriptor)
    }

    /// The subscriber's key and the provider's.
    pub(super) fn points(&self) -> Option<(PublicKey, PublicKey)> {
        Some((PublicKey::new(self.subscriber.point()?), PublicKey::new(self.provider.point()?)))
    }

    /// Of its parts, not of text: reading keys from text takes as long as signing.
    fn compile(
        &self,
        subscriber: PublicKey,
        provider: PublicKey,
    ) -> Result<Descriptor<PublicKey>, miniscript::Error> {
        let part = Miniscript::from_ast;
        let key = |key| {
            let key = part(Terminal::PkK(key))?;
            part(Terminal::Check(Arc::new(key)))
        };
        let subscriber = part(Terminal::Verify(Arc::new(key(subscriber)?)))?;
        let expiry = AbsLockTime::from_consensus(self.expiry_height);
        let expiry = expiry.map_err(miniscript::Error::AbsoluteLockTime)?;
        let refund = part(Terminal::After(expiry))?;
        let either = Terminal::OrD(Arc::new(key(provider)?), Arc::new(refund));
        let script = Terminal::AndV(Arc::new(subscriber), Arc::new(part(either)?));
        Descriptor::new_wsh(part(script)?)
    }

    /// The script that the funding pays.
    pub fn funding_script(&self) -> ScriptBuf {
        self.witness_script().to_p2wsh()
    }

    /// The script that signatures commit to (BIP143's scriptCode): what [`Self::descriptor`]
    /// compiles to, without compiling it for each payment.
    pub fn witness_script(&self) -> ScriptBuf {
        Builder::new()
            .push_slice(self.subscriber.as_bytes())
            .push_opcode(OP_CHECKSIGVERIFY)
            .push_slice(self.provider.as_bytes())
            .push_opcode(OP_CHECKSIG)
            .push_opcode(OP_IFDUP)
            .push_opcode(OP_NOTIF)
            .push_int(self.expiry_height.into())
            .push_opcode(OP_CLTV)
            .push_opcode(OP_ENDIF)
            .into_script()
    }

    /// The channel's name: the same at both ends, before and after it is funded.
    pub fn id(&self) -> ChannelId {
        ChannelId::of_script(&self.funding_script())
    }

    /// Most that can be paid: the capacity without the reserve.
    pub fn payable(&self) -> Amount {
        self.capacity.checked_sub(RESERVE).unwrap_or(Amount::ZERO)
    }
}

/// Tagged hash of the funding script (BIP340's construction, tag `bitmesh/channel`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelId([u8; 32]);

impl ChannelId {
    /// Before or at every other.
    pub(crate) const FIRST: Self = Self([0; 32]);

    /// Of the channel that a funding script is of, if there is one.
    pub(crate) fn of_script(script: &Script) -> Self {
        Self(tagged_hash("bitmesh/channel", &[script.as_bytes()]))
    }

    /// From what [`Self::as_bytes`] gave.
    pub fn from_bytes(octets: [u8; 32]) -> Self {
        Self(octets)
    }

    /// The 32 octets.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// SHA256(SHA256(tag) || SHA256(tag) || parts...), BIP340.
pub(crate) fn tagged_hash(tag: &str, parts: &[&[u8]]) -> [u8; 32] {
    let tag = sha256::Hash::hash(tag.as_bytes());
    let mut engine = sha256::Hash::engine();
    engine.input(tag.as_ref());
    engine.input(tag.as_ref());
    for part in parts {
        engine.input(part);
    }
    sha256::Hash::from_engine(engine).to_byte_array()
}

/// Not the right number of hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct IdParseError(pub(crate) &'static str);

macro_rules! hex_id {
    ($name:ident, $expected:literal) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
        impl FromStr for $name {
            type Err = IdParseError;
            fn from_str(text: &str) -> Result<Self, IdParseError> {
                let mut id = Self([0; size_of::<Self>()]);
                hex::decode_to_slice(text, &mut id.0).map_err(|_| IdParseError($expected))?;
                Ok(id)
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    };
}
pub(crate) use hex_id;

hex_id!(ChannelId, "an id is 64 hexadecimal digits");

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::{key::tests::NO_POINT, testing},
        *,
    };

    #[test]
    fn the_script_is_the_one_the_design_names() {
        let params = testing::params();
        let asm = params.witness_script().to_asm_string();
        let expected = format!(
            "OP_PUSHBYTES_33 {} OP_CHECKSIGVERIFY OP_PUSHBYTES_33 {} OP_CHECKSIG OP_IFDUP OP_NOTIF \
             OP_PUSHBYTES_2 e803 OP_CLTV OP_ENDIF",
            params.subscriber, params.provider
        );
        assert_eq!(asm, expected);
    }

    proptest! {
        #[test]
        fn the_script_is_what_the_descriptor_compiles_to(
            subscriber in 1..u8::MAX, provider in 1..u8::MAX, expiry in 1u32..500_000_000,
            small in 1u32..70_000, choose: bool,
        ) {
            prop_assume!(subscriber != provider);
            let params = ChannelParams {
                subscriber: testing::public_key(subscriber).into(),
                provider: testing::public_key(provider).into(),
                expiry_height: if choose { small } else { expiry },
                ..testing::params()
            };
            let descriptor = params.descriptor().unwrap();
            let (s, p, t) = (params.subscriber, params.provider, params.expiry_height);
            let text = format!("wsh(and_v(v:pk({s}),or_d(pk({p}),after({t}))))");
            prop_assert_eq!(&Descriptor::from_str(&text).unwrap(), &descriptor);
            prop_assert_eq!(params.witness_script(), descriptor.explicit_script().unwrap());
            prop_assert_eq!(params.funding_script(), descriptor.script_pubkey());
        }
    }

    #[test]
    fn terms_survive_json_and_unknown_fields_do_not() {
        let params = testing::params();
        let mut json = serde_json::to_value(&params).unwrap();
        assert_eq!(serde_json::from_value::<ChannelParams>(json.clone()).unwrap(), params);
        json["surprise"] = 1.into();
        assert!(serde_json::from_value::<ChannelParams>(json).is_err());
    }

    #[test]
    fn terms_of_another_version_are_told_by_their_version_and_not_by_a_field() {
        let params = ChannelParams { version: 2, ..testing::params() };
        let error = VersionError { theirs: 2, ours: 1 };
        assert_eq!(params.validate(), Err(ParamsError::Version(error)));
        let mut json = serde_json::to_value(&params).unwrap();
        json["surprise"] = 1.into();
        let text = serde_json::from_value::<ChannelParams>(json).unwrap_err().to_string();
        assert_eq!(text, error.to_string());
        assert!(text.contains("version 2") && text.contains("version 1"), "{text}");
    }

    #[test]
    fn terms_are_checked_on_both_sides_of_each_edge() {
        let with = |change: fn(&mut ChannelParams)| {
            let mut params = testing::params();
            change(&mut params);
            params.validate()
        };
        assert_eq!(with(|_| ()), Ok(()));
        assert_eq!(with(|p| p.capacity = CAPACITY_MIN), Ok(()));
        assert_eq!(
            with(|p| p.capacity = CAPACITY_MIN - Amount::ONE_SAT),
            Err(ParamsError::Capacity)
        );
        assert_eq!(
            with(|p| p.capacity = Amount::MAX_MONEY + Amount::ONE_SAT),
            Err(ParamsError::Capacity)
        );
        assert_eq!(with(|p| p.expiry_height = 0), Err(ParamsError::Expiry));
        assert_eq!(with(|p| p.expiry_height = 499_999_999), Ok(()));
        assert_eq!(with(|p| p.expiry_height = 500_000_000), Err(ParamsError::Expiry));
        assert_eq!(with(|p| p.confirmations = 0), Err(ParamsError::Confirmations));
        assert_eq!(
            with(|p| p.confirmations = CONFIRMATIONS_MAX + 1),
            Err(ParamsError::Confirmations)
        );
        assert_eq!(with(|p| p.unconfirmed_max = p.payable()), Ok(()));
        assert_eq!(
            with(|p| p.unconfirmed_max = p.payable() + Amount::ONE_SAT),
            Err(ParamsError::Unconfirmed)
        );
        assert_eq!(with(|p| p.provider = p.subscriber), Err(ParamsError::SameKey));
        assert_eq!(with(|p| p.provider = NO_POINT.parse().unwrap()), Err(ParamsError::Key));
        assert_eq!(with(|p| p.subscriber = NO_POINT.parse().unwrap()), Err(ParamsError::Key));
        assert_eq!(
            with(|p| p.remainder_script = ScriptBuf::new()),
            Err(ParamsError::RemainderScript)
        );
        assert_eq!(
            with(|p| p.schedule.tiers = Vec::new().into()),
            Err(ParamsError::Schedule(ScheduleError::TierCount))
        );
    }

    #[test]
    fn every_term_of_the_script_changes_the_id() {
        let params = testing::params();
        let later = ChannelParams { expiry_height: params.expiry_height + 1, ..params.clone() };
        let other = ChannelParams { provider: testing::public_key(9).into(), ..params.clone() };
        assert_ne!(params.id(), later.id());
        assert_ne!(params.id(), other.id());
        assert_eq!(params.id().to_string().parse(), Ok(params.id()));
    }
}
