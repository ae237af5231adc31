//! Any octets as an offer: refused or taken, and what is taken can be reckoned with and signed.
#![no_main]

use bitmesh_core::{
    bitcoin::secp256k1::{Keypair, Secp256k1, SecretKey},
    offer::{CLOCK_SKEW_SECONDS, OfferError, SignedOffer},
    units::{Msat, Octets},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Ok(mut offer) = serde_json::from_slice::<SignedOffer>(input) else { return };
    let secp = Secp256k1::new();
    let network = offer.offer.network;
    let now = offer.offer.issued_at;
    let verified = offer.verify(&secp, network, now);
    if offer.offer.validate().is_err() {
        assert!(verified.is_err());
        return;
    }
    let written = serde_json::to_vec(&offer).expect("what was read can be written");
    let again: SignedOffer = serde_json::from_slice(&written).expect("and read again");
    assert_eq!(again, offer);
    assert_eq!(again.offer.id(), offer.offer.id());

    // Prices: what is paid for is bought, and an octet more is not.
    let schedule = &offer.offer.schedule;
    for volume in [0, 1, 1 << 20, (1 << 44) + 1, now, u64::MAX] {
        let Some(cost) = schedule.cost_of(Octets(volume)) else { continue };
        let bought = schedule.octets_for(cost);
        assert!(bought.is_none_or(|bought| bought >= Octets(volume)), "{volume} for {cost}");
        if let Some(less) = cost.0.checked_sub(1) {
            let bought = schedule.octets_for(Msat(less));
            assert!(bought.is_some_and(|bought| bought < Octets(volume)), "{volume} for {less}");
        }
    }

    // The same by another provider, whose signature is good.
    let key = SecretKey::from_slice(&[7; 32]).expect("a constant");
    let keys = Keypair::from_secret_key(&secp, &key);
    offer.offer.provider = keys.x_only_public_key().0;
    offer.signature = secp.sign_schnorr_no_aux_rand(&offer.offer.message(), &keys);
    let end = offer.offer.valid_until;
    assert_eq!(offer.verify(&secp, network, end), Ok(()));
    if let Some(after) = end.checked_add(1) {
        assert_eq!(offer.verify(&secp, network, after), Err(OfferError::Time));
    }
    if let Some(before) = now.checked_sub(CLOCK_SKEW_SECONDS + 1) {
        assert_eq!(offer.verify(&secp, network, before), Err(OfferError::Time));
    }
});
