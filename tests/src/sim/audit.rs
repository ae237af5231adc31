//! What must hold, checked by an own reading of the journals and of the chain: nothing here asks the
//! rules under test what they think.

use std::{collections::BTreeMap, fmt};

use bitmesh_core::{
    bitcoin::{Amount, OutPoint},
    channel::{ChannelId, ChannelParams, Entry, ProviderEvent, SubscriberEvent, funding_outpoint},
    ledger::Usage,
    station::Station,
    units::{Msat, Octets},
};

use super::kernel::{Kernel, OVERSHOOT_MAX};

/// Something happened that must not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which invariant.
    pub invariant: &'static str,
    /// The numbers.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.detail)
    }
}

/// An error of the invariant's name.
pub fn violated<T>(invariant: &'static str, detail: impl Into<String>) -> Result<T, Violation> {
    Err(Violation { invariant, detail: detail.into() })
}

/// A channel as its provider's durable journal has it.
#[derive(Clone, Debug)]
pub struct Sold {
    /// The terms.
    pub params: ChannelParams,
    /// Who opened it.
    pub station: Station,
    base: Usage,
    /// The funding, in a block or presented, that payments spend.
    basis: Option<OutPoint>,
    confirmed: bool,
    /// The best commitment on each funding.
    pub best: BTreeMap<OutPoint, Amount>,
    /// What was acknowledged on each.
    acknowledged: BTreeMap<OutPoint, Amount>,
}

impl Sold {
    /// Sum of the durable payments on the funding that counts.
    pub fn paid(&self) -> Amount {
        let best = self.basis.and_then(|basis| self.best.get(&basis));
        best.copied().unwrap_or(Amount::ZERO)
    }

    /// Whether payments on this funding count.
    pub fn counts(&self, outpoint: &OutPoint) -> bool {
        self.basis.as_ref() == Some(outpoint)
    }

    /// Whether something that was acknowledged is not durable.
    pub fn forgot(&self) -> bool {
        let durable = |outpoint: &OutPoint| self.best.get(outpoint).copied().unwrap_or_default();
        self.acknowledged.iter().any(|(outpoint, paid)| durable(outpoint) < *paid)
    }

    fn bought(&self) -> Octets {
        octets_for(&self.params, self.paid())
    }
}

/// A channel as its subscriber's durable journal has it.
#[derive(Clone, Debug)]
pub struct Bought {
    /// The terms.
    pub params: ChannelParams,
    /// Sum of the payments that were signed.
    pub signed: Amount,
    /// The newest payment that left the subscriber.
    pub sent: Amount,
    /// Whose.
    pub subscriber: usize,
}

/// What a subscriber counted by itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Count {
    /// Octets, restarts included.
    pub octets: u64,
    /// Times that it began to count anew.
    pub starts: u64,
}

/// Everything that is watched.
#[derive(Debug, Default)]
pub struct Audit {
    /// Of an honest provider.
    pub sold: BTreeMap<ChannelId, Sold>,
    /// Of honest subscribers.
    pub bought: BTreeMap<ChannelId, Bought>,
    /// Of honest subscribers.
    pub counts: BTreeMap<usize, Count>,
    most_bought: BTreeMap<Station, u64>,
    /// The deepest reorganisation so far, in blocks.
    pub deepest: u32,
    /// Payments that became durable.
    pub payments: u64,
}

/// What a sum buys.
pub fn octets_for(params: &ChannelParams, paid: Amount) -> Octets {
    let bought = Msat::from_amount(paid).and_then(|paid| params.schedule.octets_for(paid));
    bought.unwrap_or_default()
}

impl Audit {
    /// Entries of the provider's journal became durable.
    pub fn provider_committed(
        &mut self,
        entries: &[Entry<ProviderEvent>],
    ) -> Result<(), Violation> {
        for entry in entries {
            let Entry::Channel { channel, event } = entry else { continue };
            if let ProviderEvent::Opened { params, station, used, .. } = event {
                let sold = Sold {
                    params: (**params).clone(),
                    station: *station,
                    base: *used,
                    basis: None,
                    confirmed: false,
                    best: BTreeMap::new(),
                    acknowledged: BTreeMap::new(),
                };
                self.sold.insert(*channel, sold);
                continue;
            }
            let Some(sold) = self.sold.get_mut(channel) else {
                return violated("a journal begins with the opening", format!("{channel}"));
            };
            match event {
                ProviderEvent::Funded(funding) => {
                    (sold.basis, sold.confirmed) = (Some(funding.outpoint), true);
                }
                ProviderEvent::FundingOffered { tx } => {
                    sold.basis = funding_outpoint(&sold.params, tx);
                }
                ProviderEvent::FundingRevoked => sold.basis = None,
                ProviderEvent::Unfunded => sold.confirmed = false,
                ProviderEvent::Paid { paid, .. } => {
                    let payable = sold.params.payable();
                    let most = if sold.confirmed { payable } else { sold.params.unconfirmed_max };
                    if *paid <= sold.paid() || *paid > most {
                        return violated(
                            "the best state only grows, within what counts",
                            format!("{paid} after {} of {most}", sold.paid()),
                        );
                    }
                    let Some(basis) = sold.basis else {
                        return violated("a payment spends a funding", format!("{channel}"));
                    };
                    sold.best.insert(basis, *paid);
                    self.payments += 1;
                }
                _ => {}
            }
            let station = sold.station;
            let bought = self.bought_by(station);
            let most = self.most_bought.entry(station).or_default();
            *most = bought.max(*most);
        }
        Ok(())
    }

    /// Entries of a subscriber's journal became durable.
    pub fn subscriber_committed(&mut self, subscriber: usize, entries: &[Entry<SubscriberEvent>]) {
        for entry in entries {
            let Entry::Channel { channel, event } = entry else { continue };
            match event {
                SubscriberEvent::Negotiated { params, .. } => {
                    let bought = Bought {
                        params: (**params).clone(),
                        signed: Amount::ZERO,
                        sent: Amount::ZERO,
                        subscriber,
                    };
                    self.bought.insert(*channel, bought);
                }
                SubscriberEvent::PaymentSigned { paid, .. } => {
                    if let Some(bought) = self.bought.get_mut(channel) {
                        bought.signed = bought.signed.max(*paid);
                    }
                }
                _ => {}
            }
        }
    }

    /// Octets that a station may have used by what is durably paid, in its life.
    fn bought_by(&self, station: Station) -> u64 {
        let own = || self.sold.values().filter(|sold| sold.station == station);
        let base = own().map(|sold| sold.base.billed().0).min().unwrap_or(0);
        own().fold(base, |sum, sold| sum.saturating_add(sold.bought().0))
    }

    /// A limit is about to be raised.
    pub fn granted(&self, station: Station, limit: Octets) -> Result<(), Violation> {
        let bought = self.bought_by(station);
        if limit.0 > bought {
            return violated(
                "no credit without a durable payment",
                format!("{station} is granted {limit} and bought {}", Octets(bought)),
            );
        }
        Ok(())
    }

    /// A payment is about to be acknowledged.
    pub fn acknowledged(&mut self, channel: &ChannelId, paid: Amount) -> Result<(), Violation> {
        match self.sold.get_mut(channel) {
            Some(sold) if sold.paid() >= paid => {
                if let Some(basis) = sold.basis {
                    let known = sold.acknowledged.entry(basis).or_default();
                    *known = paid.max(*known);
                }
                Ok(())
            }
            _ => violated(
                "no acknowledgement before the payment is durable",
                format!("{paid} on {channel}"),
            ),
        }
    }

    /// What the kernel honours and forwarded, against what is durably paid.
    pub fn check_kernel(&self, kernel: &Kernel) -> Result<(), Violation> {
        for (station, slot) in kernel.slots() {
            let bought = self.bought_by(station);
            if slot.limit > bought.max(slot.used) {
                return violated(
                    "credit is a function of the durable journal",
                    format!(
                        "{station} may use {} and bought {}",
                        Octets(slot.limit),
                        Octets(bought)
                    ),
                );
            }
        }
        Ok(())
    }

    /// What was forwarded, against the most that was ever paid for.
    pub fn check_forwarded(&self, kernel: &Kernel) -> Result<(), Violation> {
        for (station, slot) in kernel.slots() {
            let most = self.most_bought.get(&station).copied().unwrap_or(0);
            if slot.used > most.saturating_add(OVERSHOOT_MAX) {
                return violated(
                    "nothing unpaid is forwarded but a frame for each CPU",
                    format!("{station} used {} and bought {}", Octets(slot.used), Octets(most)),
                );
            }
        }
        Ok(())
    }

    /// What a subscriber signed on all channels, against what it counted.
    pub fn check_spent(&self, subscriber: usize) -> Result<(), Violation> {
        let count = self.counts.get(&subscriber).copied().unwrap_or_default();
        let own = || self.bought.values().filter(|bought| bought.subscriber == subscriber);
        let signed = own().map(|bought| octets_for(&bought.params, bought.signed));
        let signed = signed.fold(Octets(0), Octets::saturating_add);
        let tick = own().map(|bought| bought.params.tick_max.0).max().unwrap_or(0);
        let ahead = tick.saturating_mul(count.starts);
        // Sums are whole satoshis, rounded up after each start.
        let sats = Amount::from_sat(2 + count.starts);
        let rounding = own().map(|bought| octets_for(&bought.params, sats));
        let rounding = rounding.fold(Octets(0), Octets::saturating_add);
        let most = Octets(count.octets.saturating_add(ahead)).saturating_add(rounding);
        if signed > most {
            return violated(
                "a subscriber pays for what it used and one tick",
                format!(
                    "{signed} paid for, {} counted, {} ahead at most",
                    Octets(count.octets),
                    Octets(ahead)
                ),
            );
        }
        Ok(())
    }
}
