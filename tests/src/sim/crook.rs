//! A provider that answers what it likes and claims what and when it likes.

use bitmesh_core::{
    bitcoin::{Amount, Network, OutPoint, Transaction},
    channel::{
        ChannelId, ChannelParams, ChannelStatus, Claim, ClaimInput, Close, PaymentError,
        funding_outpoint, verify_payment,
    },
    controller::Refusal,
    ledger::{Counts, Usage},
    units::Octets,
    wire::{
        AccountReport, ChannelReport, CloseRequest, ClosedByBoth, PaymentReply, PaymentRequest,
    },
};

use super::{
    audit::octets_for,
    kernel::{CPUS, FRAME_MAX, Kernel},
    keys::PROVIDER,
    offers,
    seller::station,
    spend::secp,
    world::{Answer, Ask, Context},
};

/// How it treats its customers.
#[derive(Clone, Copy, Debug)]
struct Manners {
    /// It lets frames through as they are paid for; else none.
    serves: bool,
    /// Octets that it adds to what it reports as used, for each that was.
    overcharges: u64,
    /// It reports less bought than was paid for.
    forgets: bool,
    /// Blocks after the opening at which it is gone; never, for none.
    vanishes: Option<u32>,
    /// One in so many blocks it claims something.
    claims_in: u32,
}

/// A channel, and every commitment that it was given.
struct Held {
    params: ChannelParams,
    key: u32,
    commitments: Vec<PaymentRequest>,
    funding: Option<OutPoint>,
    opened: u32,
}

/// The provider.
pub struct Crook {
    /// Its kernel.
    pub kernel: Kernel,
    manners: Manners,
    channels: Vec<Held>,
    next_key: u32,
}

impl Crook {
    /// One with manners at random.
    pub fn new(context: &mut Context) -> Self {
        let rng = &mut context.rng;
        let manners = Manners {
            serves: rng.u32(0..4) > 0,
            overcharges: if rng.bool() { 0 } else { rng.u64(1..4) },
            forgets: rng.u32(0..3) == 0,
            vanishes: rng.bool().then(|| rng.u32(0..200)),
            claims_in: rng.u32(1..400),
        };
        context.note(|| format!("the provider is a crook: {manners:?}"));
        offers::renew(context);
        Self { kernel: Kernel::default(), manners, channels: Vec::new(), next_key: 0 }
    }

    fn is_gone(&self, context: &Context) -> bool {
        let opened = self.channels.first().map(|held| held.opened);
        let after = opened.zip(self.manners.vanishes).map(|(opened, after)| opened + after);
        after.is_some_and(|height| context.chain.height() > height)
    }

    /// A question arrives.
    pub fn asked(&mut self, from: usize, number: u64, ask: Ask, context: &mut Context) {
        if self.is_gone(context) {
            return;
        }
        let answer = match ask {
            Ask::Open(open) => {
                let key = self.next_key;
                self.next_key += 1;
                let offer = context.offer.offer.clone();
                let params = ChannelParams {
                    version: open.version,
                    unconfirmed_max: offer.terms.unconfirmed_of(open.capacity),
                    network: Network::Regtest,
                    offer: open.offer,
                    subscriber: open.subscriber.into(),
                    provider: PROVIDER.public_key(key).into(),
                    expiry_height: open.expiry_height + u32::from(context.one_in(20)),
                    capacity: open.capacity,
                    remainder_script: open.remainder_script,
                    schedule: offer.schedule,
                    confirmations: offer.terms.confirmations,
                    tick_max: offer.terms.tick_max,
                };
                let report = report(&params, from);
                let opened = context.chain.height();
                let (commitments, funding) = (Vec::new(), None);
                self.channels.push(Held { params, key, commitments, funding, opened });
                Answer::Channel(Box::new(report))
            }
            Ask::Pay(id, payment) => self.paid(&id, payment, from, context),
            Ask::Close(id, close) => self.closed(&id, &close, from, context),
            Ask::Fund(id, tx) => match self.channels.iter().find(|held| held.params.id() == id) {
                Some(held) => {
                    let mut report = report(&held.params, from);
                    report.offered = funding_outpoint(&held.params, &tx);
                    Answer::Channel(Box::new(report))
                }
                None => Answer::Refused(Refusal::UnknownChannel),
            },
            Ask::Account => Answer::Account(Box::new(self.account(from, context))),
        };
        context.answer(from, number, answer);
    }

    fn paid(
        &mut self,
        id: &ChannelId,
        payment: PaymentRequest,
        from: usize,
        context: &mut Context,
    ) -> Answer {
        let Some(held) = self.channels.iter_mut().find(|held| held.params.id() == *id) else {
            return Answer::Refused(Refusal::UnknownChannel);
        };
        let paid = payment.paid;
        held.commitments.push(payment);
        if self.manners.serves {
            let limit = octets_for(&held.params, paid);
            self.kernel.set(station(from), limit, Usage::default());
        }
        if context.one_in(20) {
            let best = Amount::ZERO;
            return Answer::Refused(Refusal::Payment { error: PaymentError::Closed, best });
        }
        Answer::Paid(Box::new(PaymentReply { paid, account: self.account(from, context) }))
    }

    /// Says where it wants to be paid; signs a proposal, and tells or keeps it.
    fn closed(
        &mut self,
        id: &ChannelId,
        close: &CloseRequest,
        from: usize,
        context: &mut Context,
    ) -> Answer {
        let Some(held) = self.channels.iter().find(|held| held.params.id() == *id) else {
            return Answer::Refused(Refusal::UnknownChannel);
        };
        let mut report = report(&held.params, from);
        report.payout_script = Some(PROVIDER.script());
        let signed = close.proposal.as_ref().zip(held.funding).and_then(|(proposal, funding)| {
            let (paid, fee, payout) = (proposal.paid, proposal.fee, PROVIDER.script());
            let close = Close::new(&held.params, funding, paid, &payout, fee).ok()?;
            let own = PROVIDER.sign(held.key, close.sighash()?);
            close.finish(proposal.signature, own, 0)
        });
        if let Some(mut signed) = signed {
            if context.one_in(4) {
                let taken = context.chain.accept(&signed.tx);
                context.note(|| format!("the crook broadcasts the close: {taken:?}"));
            }
            if context.one_in(4) {
                cheapen(&mut signed.tx);
            }
            if context.rng.bool() {
                report.closed_by_both = Some(ClosedByBoth { tx: signed.tx });
            }
        }
        Answer::Channel(Box::new(report))
    }

    /// What it says that a station bought and used.
    fn account(&self, from: usize, context: &mut Context) -> AccountReport {
        let station = station(from);
        let slot = self.kernel.slot(station);
        let bought = self
            .channels
            .iter()
            .filter_map(|held| Some(octets_for(&held.params, held.commitments.last()?.paid)))
            .fold(Octets(0), Octets::saturating_add);
        let more = match self.manners.overcharges {
            0 => 0,
            1 => slot.used / 20,
            _ => context.rng.u64(0..5 << 20),
        };
        let used = Octets(slot.used + more);
        let down = Counts { octets: used, ..Counts::default() };
        let bought = if self.manners.forgets { Octets(0) } else { bought };
        AccountReport {
            station,
            account: None,
            bound: true,
            bought_octets: bought,
            credit_octets: bought.saturating_sub(used),
            usage: Usage { down, ..Usage::default() },
            others_octets: Octets(0),
            stations: 1,
            lease_octets: Octets(FRAME_MAX * CPUS),
            edge_addresses: Vec::new(),
        }
    }

    /// A block was found: it may claim any commitment that it holds.
    pub fn follow(&mut self, context: &mut Context) {
        offers::renew(context);
        let height = context.chain.height();
        if let Some((block, _)) = context.chain.block(height) {
            for tx in &block.txdata {
                for held in &mut self.channels {
                    let outpoint = funding_outpoint(&held.params, tx);
                    held.funding = outpoint.or(held.funding);
                }
            }
        }
        if !self.is_gone(context) && context.one_in(self.manners.claims_in) {
            self.claim(context);
        }
    }

    fn claim(&mut self, context: &mut Context) {
        let rate = context.estimate();
        for held in &self.channels {
            let Some(funding) = held.funding else { continue };
            if held.commitments.is_empty() {
                continue;
            }
            let which = context.rng.usize(0..held.commitments.len());
            let Some(payment) = held.commitments.get(which) else { continue };
            let (paid, signature) = (payment.paid, payment.signature);
            if !verify_payment(secp(), &held.params, funding, paid, &signature) {
                continue;
            }
            let input = ClaimInput { params: held.params.clone(), funding, paid, signature };
            let Ok(claim) = Claim::new(vec![input], &PROVIDER.script(), rate) else { continue };
            let own: Vec<_> = claim
                .sighashes()
                .into_iter()
                .map(|message| PROVIDER.sign(held.key, message))
                .collect();
            let Some(mut tx) = claim.finish(&own) else { continue };
            if context.one_in(3) {
                cheapen(&mut tx);
            }
            let taken = context.chain.accept(&tx);
            context.note(|| format!("the crook claims {paid}: {taken:?}"));
        }
    }
}

/// Takes a satoshi of the remainder for itself: the subscriber did not sign that.
fn cheapen(tx: &mut Transaction) {
    if let Some(output) = tx.output.first_mut() {
        output.value = output.value.checked_sub(Amount::ONE_SAT).unwrap_or_default();
    }
}

fn report(params: &ChannelParams, from: usize) -> ChannelReport {
    ChannelReport {
        channel: params.id(),
        status: ChannelStatus::Unfunded,
        params: params.clone(),
        descriptor: String::new(),
        address: String::new(),
        station: Some(station(from)),
        account: None,
        funding: None,
        paid: Amount::ZERO,
        commitments: 0,
        bought_octets: Octets(0),
        closing_txid: None,
        settled_txid: None,
        closing_fee_sat: None,
        dispute: None,
        offered: None,
        payable: params.payable(),
        payout_script: None,
        closed_by_both: None,
    }
}
