//! Offers, and channels that are opened on them.

use std::sync::Arc;

use bitcoin::secp256k1::PublicKey;

use super::{Answer, Controller, Out, Refusal};
use crate::{
    channel::{ChannelParams, ProviderEvent, Versioned, check_economic},
    ledger::Usage,
    offer::SignedOffer,
    station::Station,
    units::Octets,
    wire::OpenRequest,
};

impl Controller {
    pub(super) fn take_offer(&mut self, offer: SignedOffer) {
        let issued_at = offer.offer.issued_at;
        self.offers.retain(|_, known| known.offer.valid_until >= issued_at);
        self.offers.insert(offer.offer.id(), offer);
    }

    pub(super) fn open(
        &mut self,
        station: Station,
        open: &OpenRequest,
        provider_key: PublicKey,
        now: u64,
        out: &mut Out,
    ) -> Result<Answer, Refusal> {
        Versioned { version: open.version }.check().map_err(Refusal::Version)?;
        if !self.synced {
            return Err(Refusal::ChainLost);
        }
        let offer = self.offers.get(&open.offer).ok_or(Refusal::UnknownOffer)?;
        if now > offer.offer.valid_until {
            return Err(Refusal::UnknownOffer);
        }
        let terms = offer.offer.terms;
        if open.capacity < terms.capacity_min || open.capacity > terms.capacity_max {
            return Err(Refusal::Capacity { min: terms.capacity_min, max: terms.capacity_max });
        }
        let tip = self.book.tip();
        let shortest = tip.saturating_add(terms.lifetime_min_blocks);
        let longest = tip.saturating_add(terms.lifetime_max_blocks);
        if !(shortest..=longest).contains(&open.expiry_height) {
            return Err(Refusal::Expiry { min: shortest, max: longest });
        }
        let params = ChannelParams {
            version: open.version,
            network: self.network,
            offer: open.offer,
            subscriber: open.subscriber.into(),
            provider: provider_key.into(),
            expiry_height: open.expiry_height,
            capacity: open.capacity,
            remainder_script: open.remainder_script.clone(),
            schedule: offer.offer.schedule.clone(),
            confirmations: terms.confirmations,
            tick_max: terms.tick_max,
            unconfirmed_max: terms.unconfirmed_of(open.capacity),
        };
        params.validate().map_err(Refusal::Params)?;
        if let Some(fees) = self.fees {
            check_economic(params.capacity, &params.remainder_script, fees.normal)
                .map_err(Refusal::Uneconomic)?;
        }
        self.check_caps(station)?;
        self.check_keys()?;
        let seat = self.accounts.seat(station);
        self.check_stays(seat.map(|seat| seat.account))?;
        self.check_not_arriving(station)?;
        if self.moves.contains_key(&station)
            || seat.is_some_and(|seat| !seat.bound) && self.accounts.held(station) > Octets(0)
        {
            return Err(Refusal::Moving);
        }
        let channel = params.id();
        if self.book.get(&channel).is_some() {
            return Err(Refusal::Exists(channel));
        }
        self.make_place(station, out)?;
        let key_index = self.next_key_index;
        let params = Arc::new(params);
        let bound = seat.is_some_and(|seat| seat.bound);
        let used = if bound { Usage::default() } else { self.accounts.usage(station) };
        if !bound {
            self.write_down(station, out);
            self.leave(station, out);
        }
        let event = ProviderEvent::Opened { params, key_index, station, height: tip, used };
        self.next_key_index += 1;
        self.record(channel, event, out);
        self.channel(&channel).map(|report| Answer::Channel(Box::new(report)))
    }
}
