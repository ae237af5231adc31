//! Terms of channels that are only measured.

use bitmesh_core::{
    bitcoin::{Amount, Network, ScriptBuf, WPubkeyHash, hashes::Hash as _, secp256k1::PublicKey},
    channel::{ChannelParams, PROTOCOL_VERSION},
    offer::OfferId,
    pricing::Schedule,
    units::Octets,
};

/// What a channel holds: enough for a payment of a satoshi at a time.
pub const CAPACITY: Amount = Amount::from_sat(1_000_000);
/// Price of a MiB.
const MSAT_PER_MIB: u64 = 1_000;
const TICK_MAX: Octets = Octets(8 << 20);

/// Between these keys until this height, on regtest: a satoshi buys a MiB.
pub fn terms(subscriber: PublicKey, provider: PublicKey, expiry_height: u32) -> ChannelParams {
    ChannelParams {
        version: PROTOCOL_VERSION,
        network: Network::Regtest,
        offer: OfferId::NONE,
        subscriber: subscriber.into(),
        provider: provider.into(),
        expiry_height,
        capacity: CAPACITY,
        remainder_script: ScriptBuf::new_p2wpkh(&WPubkeyHash::all_zeros()),
        schedule: Schedule::flat(MSAT_PER_MIB),
        confirmations: 1,
        tick_max: TICK_MAX,
        unconfirmed_max: Amount::ZERO,
    }
}
