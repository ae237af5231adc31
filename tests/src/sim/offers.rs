//! What is for sale: one offer at a time, renewed before it ends.

use bitmesh_core::{
    bitcoin::{Amount, Network},
    channel::{LIFETIME_MAX_BLOCKS, LIFETIME_MIN_BLOCKS},
    offer::{OFFER_VERSION, Offer, SignedOffer, Terms},
    pricing::Schedule,
    units::Octets,
};

use super::{
    keys::PROVIDER,
    spend::secp,
    world::{Context, EPOCH, Plan},
};

/// How long an offer holds, in seconds.
const OFFER_SECONDS: u64 = 86_400;
/// Most that is paid ahead, in octets.
const TICK_MAX: Octets = Octets(4 << 20);

/// An offer of a plan's terms from a time on.
pub fn make(plan: &Plan, issued_at: u64) -> SignedOffer {
    let keys = PROVIDER.node();
    let offer = Offer {
        version: OFFER_VERSION,
        network: Network::Regtest,
        provider: keys.x_only_public_key().0,
        issued_at,
        valid_until: issued_at + OFFER_SECONDS,
        height: 0,
        schedule: Schedule::flat(plan.price),
        terms: Terms {
            capacity_min: bitmesh_core::channel::CAPACITY_MIN,
            capacity_max: Amount::from_sat(1_000_000),
            lifetime_min_blocks: LIFETIME_MIN_BLOCKS,
            lifetime_max_blocks: LIFETIME_MAX_BLOCKS,
            confirmations: plan.confirmations,
            tick_max: TICK_MAX,
            unconfirmed_max: plan.unconfirmed_max,
        },
    };
    let signature = secp().sign_schnorr_no_aux_rand(&offer.message(), &keys);
    SignedOffer { offer, signature }
}

/// The first offer.
pub fn first(plan: &Plan) -> SignedOffer {
    make(plan, EPOCH)
}

/// Makes the next offer when the present one ends soon.
pub fn renew(context: &mut Context) {
    let now = context.seconds();
    if context.offer.offer.valid_until < now + OFFER_SECONDS / 2 {
        context.offer = make(&context.plan, now);
    }
}
