//! An honest subscriber: the real buyer and payer, between a wallet, a store and a counter of its own.

use std::sync::Arc;

use bitmesh_core::{
    bitcoin::{Amount, Network, OutPoint, Transaction, TxOut},
    buyer::{Action, Buyer},
    channel::{
        Batch, CAPACITY_MIN, ChannelId, ChannelParams, ChannelStatus, DUST, Durable, Entry,
        PROTOCOL_VERSION, RESERVE, Refund, SubscriberChannel, SubscriberEvent, close_digest,
    },
    controller::Refusal,
    offer::SignedOffer,
    payer::{Next, Payer},
    succession::{Errand, Wants},
    units::Octets,
    wire::{
        AccountReport, ChannelReport, CloseProposal, CloseRequest, OpenRequest, PaymentRequest,
    },
};

use super::{
    Sabotage,
    audit::{Violation, violated},
    chain::least_fee,
    kernel::{FRAME_MAX, Kernel},
    keys::Owner,
    replay::{check_alike, replay},
    seller::{Crash, Step, hand_in, is_close, next_step, station, told},
    world::{Answer, Ask, Context, Event, coin},
};

type Out = Batch<SubscriberEvent, Action>;

/// How often the provider's view is fetched while nothing is paid, in milliseconds.
const ACCOUNT_INTERVAL_MS: u64 = 2_000;
/// Pause before a funding is presented again, in milliseconds.
const PRESENT_INTERVAL_MS: u64 = 30_000;
/// Channels that it opens at most, one after the other.
const CHANNELS_MAX: usize = 3;
/// Blocks after which it opens no more.
const OPENING_BLOCKS: u32 = 300;
/// Where the provider's API is.
const URL: &str = "http://[::1]:8434";
/// Virtual size of a funding transaction, in octets.
const FUNDING_VSIZE: u64 = 154;

/// A question that waits for its answer.
struct Asked {
    number: u64,
    ask: Ask,
    sent_ms: u64,
    counted: Octets,
}

/// The subscriber.
#[expect(clippy::struct_excessive_bools, reason = "each is a state of its own")]
pub struct Customer {
    index: usize,
    owner: Owner,
    buyer: Option<Buyer>,
    journal: Vec<Entry<SubscriberEvent>>,
    payer: Option<Payer>,
    /// Its count since it started last.
    counted: Octets,
    active: Option<ChannelId>,
    unacknowledged: bool,
    asked: Option<Asked>,
    /// The same, of what is done beside paying.
    aside: Option<Asked>,
    /// Height at which the provider was asked to close last.
    closing_asked: u32,
    next_number: u64,
    account_due_ms: u64,
    present_due_ms: u64,
    blind: bool,
    unsent: Vec<Transaction>,
    stepping: bool,
    /// Steps of use that are left before it leaves.
    steps: u32,
    /// How it leaves: asks for the close, or is just gone.
    vanishes: bool,
    budget: Amount,
}

impl Customer {
    /// One that has never bought.
    pub fn new(index: usize, context: &mut Context) -> Self {
        let capacity = context.plan.capacity;
        Self {
            index,
            owner: Owner(index + 1),
            buyer: None,
            journal: Vec::new(),
            payer: None,
            counted: Octets(0),
            active: None,
            unacknowledged: false,
            asked: None,
            aside: None,
            closing_asked: 0,
            next_number: 0,
            account_due_ms: 0,
            present_due_ms: 0,
            blind: false,
            unsent: Vec::new(),
            stepping: false,
            steps: context.rng.u32(0..40),
            vanishes: context.one_in(5),
            budget: capacity + Amount::from_sat(context.rng.u64(0..capacity.to_sat())),
        }
    }

    /// From what is durable.
    pub fn start(&mut self, context: &mut Context) -> Result<(), Violation> {
        let mut buyer = Buyer::new(Network::Regtest);
        replay(&self.journal, |entry| buyer.replay(entry))?;
        for (id, bought) in &context.audit.bought {
            let Some(channel) = buyer.book().get(id) else { continue };
            if channel.paid() < bought.sent && channel.owed() != Some(bought.sent) {
                return violated(
                    "a restart knows what was signed and sent",
                    format!("{} of {}", channel.paid(), bought.sent),
                );
            }
        }
        self.active = buyer.active(URL);
        let active = self.active.and_then(|id| buyer.book().get(&id));
        self.unacknowledged = active.is_some_and(|channel| channel.best().is_some());
        let resumed = buyer.resume();
        (self.payer, self.counted) = (None, Octets(0));
        self.buyer = Some(buyer);
        self.settle(resumed, context)?;
        self.follow(context)
    }

    /// After a crash.
    pub fn restart(&mut self, context: &mut Context) -> Result<(), Violation> {
        if self.buyer.is_some() {
            return Ok(());
        }
        context.note(|| format!("subscriber {} starts again", self.index));
        self.start(context)
    }

    fn crash(&mut self, crash: Crash, context: &mut Context) -> Result<(), Violation> {
        context.note(|| format!("subscriber {} crashes: {crash:?}", self.index));
        let before = self.buyer.take();
        (self.asked, self.aside) = (None, None);
        self.unsent.clear();
        let down = if context.rng.bool() { 1_000 } else { context.rng.u64(1_000..6_000_000) };
        context.after(down, Event::Restart(self.index + 1));
        if let (Some(before), Crash::Amid(_)) = (before, crash) {
            let mut again = Buyer::new(Network::Regtest);
            replay(&self.journal, |entry| again.replay(entry))?;
            check_alike(
                (before.book(), before.next_key_index()),
                (again.book(), again.next_key_index()),
            )?;
        }
        Ok(())
    }

    fn settle(&mut self, out: Out, context: &mut Context) -> Result<(), Violation> {
        let entries = out.entries().to_vec();
        let actions = out.release(&Durable::committed());
        let crash = Crash::draw(context, &entries, actions.len());
        let early = context.plan.sabotage == Some(Sabotage::SendBeforeDurable);
        if !early {
            if crash == Some(Crash::BeforeCommit) {
                return self.crash(Crash::BeforeCommit, context);
            }
            self.commit(&entries, context);
        }
        for (i, action) in actions.into_iter().enumerate() {
            if crash == Some(Crash::Amid(i)) {
                return self.crash(Crash::Amid(i), context);
            }
            self.perform(action, context)?;
        }
        if early {
            if crash == Some(Crash::BeforeCommit) {
                return self.crash(Crash::BeforeCommit, context);
            }
            self.commit(&entries, context);
        }
        Ok(())
    }

    fn commit(&mut self, entries: &[Entry<SubscriberEvent>], context: &mut Context) {
        for entry in entries {
            if let Entry::Channel { event, .. } = entry {
                context.note(|| format!("subscriber {} stores {}", self.index, brief(event)));
            }
        }
        self.journal.extend_from_slice(entries);
        context.audit.subscriber_committed(self.index, entries);
    }

    fn perform(&mut self, action: Action, context: &mut Context) -> Result<(), Violation> {
        match action {
            Action::Broadcast(tx) if self.blind => self.unsent.push(tx),
            Action::Broadcast(tx) => {
                let who = format!("subscriber {}", self.index);
                let _ = hand_in(&who, &tx, context)?;
            }
            Action::Pay(channel, paid, signature) if Some(channel) == self.active => {
                self.send(channel, PaymentRequest { paid, signature }, context);
            }
            Action::Close(channel, proposal) if self.aside.is_none() => {
                self.ask_to_close(channel, Some(proposal), context);
            }
            Action::Pay(..) | Action::Close(..) => {}
        }
        Ok(())
    }

    fn send(&mut self, channel: ChannelId, payment: PaymentRequest, context: &mut Context) {
        if let Some(bought) = context.audit.bought.get_mut(&channel) {
            bought.sent = bought.sent.max(payment.paid);
        }
        self.ask(Ask::Pay(channel, payment), context);
    }

    fn ask(&mut self, ask: Ask, context: &mut Context) {
        let asked = self.asking(ask, context);
        self.asked = Some(asked);
    }

    fn ask_aside(&mut self, ask: Ask, context: &mut Context) {
        let asked = self.asking(ask, context);
        self.aside = Some(asked);
    }

    fn asking(&mut self, ask: Ask, context: &mut Context) -> Asked {
        let number = self.next_number;
        self.next_number += 1;
        context.ask(self.index, number, ask.clone());
        Asked { number, ask, sent_ms: context.now_ms, counted: self.counted }
    }

    /// Something is sent and received, and then whatever is due is done.
    pub fn step(&mut self, kernel: &mut Kernel, context: &mut Context) -> Result<(), Violation> {
        self.stepping = false;
        if self.buyer.is_none() {
            return Ok(());
        }
        if self.payer.is_some() && self.steps > 0 {
            self.steps -= 1;
            let frame = if context.rng.bool() { 1_500 } else { FRAME_MAX };
            let wanted = context.rng.u64(0..3 << 20);
            let race = context.rng.bool();
            let passed = kernel.forward(station(self.index), wanted, frame, race);
            // Of what was refused, some had been sent already.
            let lost = if context.one_in(8) { context.rng.u64(0..frame) } else { 0 };
            self.count(passed + lost.min(wanted.saturating_sub(passed)), context);
        }
        self.drive(context)?;
        self.plan_step(context);
        Ok(())
    }

    fn count(&mut self, octets: u64, context: &mut Context) {
        self.counted = self.counted.saturating_add(Octets(octets));
        context.audit.counts.entry(self.index).or_default().octets += octets;
        if let Some(payer) = &mut self.payer {
            payer.count(self.counted, context.now_ms);
        }
    }

    /// Steps follow each other quickly while there is something to use, and rest otherwise.
    fn plan_step(&mut self, context: &mut Context) {
        if self.stepping || !self.pays() {
            return;
        }
        self.stepping = true;
        let burst = self.steps > 0 && !context.one_in(12);
        let wait = if burst { context.rng.u64(10..300) } else { context.rng.u64(1..4_000_000) };
        context.after(wait, Event::Step(self.index));
    }

    /// Whether there is a channel that payments are taken on.
    fn pays(&self) -> bool {
        let Some(buyer) = &self.buyer else { return false };
        let channel = self.active.and_then(|id| buyer.book().get(&id));
        channel.is_some_and(|channel| channel.payable(buyer.book().tip()) > Amount::ZERO)
    }

    /// One step of whatever comes next.
    fn drive(&mut self, context: &mut Context) -> Result<(), Violation> {
        self.take_turns();
        self.run_errand(context)?;
        match self.active {
            Some(id) if self.asked.is_none() && self.pays() && self.steps > 0 => {
                self.pay(id, context)
            }
            _ => Ok(()),
        }
    }

    /// The channel to pay on is another one when the last is spent, ends or has ended.
    fn take_turns(&mut self) {
        let Some(buyer) = &self.buyer else { return };
        let tip = buyer.book().tip();
        let last = self.active.and_then(|last| buyer.book().get(&last));
        let owing =
            self.unacknowledged && last.is_some_and(|channel| channel.payable(tip) > Amount::ZERO);
        let next = buyer.active(URL);
        if self.active == next || owing {
            return;
        }
        let channel = next.and_then(|id| buyer.book().get(&id));
        if let (Some(payer), Some(channel)) = (&mut self.payer, channel) {
            payer.go_on(channel.params().tick_max);
        }
        self.unacknowledged = channel.is_some_and(|channel| channel.best().is_some());
        self.active = next;
    }

    /// The most urgent thing to do beside paying.
    fn run_errand(&mut self, context: &mut Context) -> Result<(), Violation> {
        let leaving = self.steps == 0;
        let Some(buyer) = &mut self.buyer else { return Ok(()) };
        if self.aside.is_some() || self.blind {
            return Ok(());
        }
        if leaving && !self.vanishes {
            let tip = buyer.book().tip();
            let open =
                |status| matches!(status, ChannelStatus::Open | ChannelStatus::Confirming { .. });
            let stays = buyer.book().iter().find(|(_, channel)| open(channel.status(tip)));
            if let Some(id) = stays.map(|(id, _)| *id) {
                let mut out = Out::default();
                buyer.close(id, &mut out);
                return self.settle(out, context);
            }
        }
        let (budget, acknowledged) = (self.budget, !self.unacknowledged);
        let errands = buyer.errands(&Wants { url: URL, budget, acknowledged });
        let height = context.chain.height();
        let may_open = !leaving && buyer.book().iter().count() < CHANNELS_MAX;
        let errand = errands.into_iter().find(|errand| match errand {
            Errand::Fund(_) => true,
            Errand::Close(_) => !(leaving && self.vanishes) && height > self.closing_asked,
            Errand::Leave(_) => !leaving,
            Errand::Open | Errand::OpenNext(_) => may_open,
        });
        match errand {
            Some(Errand::Fund(id)) => self.fund(id, context)?,
            Some(Errand::Leave(id)) => {
                let mut out = Out::default();
                if let Some(buyer) = &mut self.buyer {
                    buyer.close(id, &mut out);
                }
                self.settle(out, context)?;
            }
            Some(Errand::Open) => self.open(context.plan.capacity, context),
            Some(Errand::OpenNext(payable)) => {
                let capacity = (payable + RESERVE).clamp(CAPACITY_MIN, context.plan.capacity);
                self.open(capacity, context);
            }
            Some(Errand::Close(id)) => {
                // Now and then: it costs a signature, and the claim comes by itself.
                self.closing_asked = height + context.rng.u32(0..4);
                let known = self.buyer.as_ref().and_then(|buyer| buyer.book().get(&id));
                let proposal = known.and_then(|channel| channel.proposed_close());
                self.ask_to_close(id, proposal.map(CloseProposal::from), context);
            }
            None => self.present(context),
        }
        Ok(())
    }

    /// Shows the provider a funding that no block holds, where payments count on it.
    fn present(&mut self, context: &mut Context) {
        let Some(buyer) = &self.buyer else { return };
        let tip = buyer.book().tip();
        let waiting = buyer.book().iter().find_map(|(id, channel)| {
            let wanted = channel.params().unconfirmed_max > Amount::ZERO
                && channel.status(tip) == ChannelStatus::Unfunded;
            let tx = channel.funding_waits(tip).filter(|_| wanted)?;
            Some((*id, tx.clone()))
        });
        let Some((id, tx)) = waiting.filter(|_| context.now_ms >= self.present_due_ms) else {
            return;
        };
        self.present_due_ms = context.now_ms + PRESENT_INTERVAL_MS;
        self.ask_aside(Ask::Fund(id, tx), context);
    }

    fn presented(
        &mut self,
        id: ChannelId,
        report: &ChannelReport,
        context: &mut Context,
    ) -> Result<(), Violation> {
        let mut out = Out::default();
        if let (Some(buyer), Some(outpoint)) = (&mut self.buyer, report.offered) {
            buyer.funding_taken(id, outpoint, &mut out);
        }
        self.settle(out, context)
    }

    fn ask_to_close(
        &mut self,
        id: ChannelId,
        proposal: Option<CloseProposal>,
        context: &mut Context,
    ) {
        let known = self.buyer.as_ref().and_then(|buyer| buyer.book().get(&id));
        let key = known.map_or(0, SubscriberChannel::key_index);
        let signature = self.owner.sign(key, close_digest(&id));
        self.ask_aside(Ask::Close(id, CloseRequest { signature, proposal }), context);
    }

    fn close_answered(
        &mut self,
        id: ChannelId,
        report: ChannelReport,
        context: &mut Context,
    ) -> Result<(), Violation> {
        let Some(buyer) = &mut self.buyer else { return Ok(()) };
        let mut out = Out::default();
        if let Some(close) = report.closed_by_both {
            buyer.close_answered(id, close.tx, &mut out);
        }
        if let Some(payout_script) = report.payout_script {
            let due = buyer.close_due(&id, &payout_script, context.estimate());
            let known = buyer.book().get(&id);
            if let (Ok(Some(close)), Some(channel)) = (due, known)
                && let Some(message) = close.sighash()
            {
                let signature = self.owner.sign(channel.key_index(), message);
                buyer.close_signed(id, close, signature, &mut out);
            }
        }
        self.settle(out, context)
    }

    fn open(&mut self, capacity: Amount, context: &mut Context) {
        let Some(buyer) = &self.buyer else { return };
        if context.chain.height() > context.chain.first() + OPENING_BLOCKS {
            self.steps = 0;
            return;
        }
        let offer = context.offer.clone();
        let verified = offer.verify(super::spend::secp(), Network::Regtest, context.seconds());
        if verified.is_err() || buyer.book().tip() == 0 {
            return;
        }
        let open = OpenRequest {
            version: PROTOCOL_VERSION,
            offer: offer.offer.id(),
            subscriber: self.owner.public_key(buyer.next_key_index()),
            capacity,
            expiry_height: buyer.book().tip() + context.plan.lifetime,
            remainder_script: self.owner.script(),
        };
        self.ask_aside(Ask::Open(open), context);
    }

    fn opened(
        &mut self,
        open: OpenRequest,
        offer: &SignedOffer,
        report: &ChannelReport,
        context: &mut Context,
    ) -> Result<(), Violation> {
        let params = ChannelParams {
            version: PROTOCOL_VERSION,
            unconfirmed_max: offer.offer.terms.unconfirmed_of(open.capacity),
            network: offer.offer.network,
            offer: open.offer,
            subscriber: open.subscriber.into(),
            provider: report.params.provider,
            expiry_height: open.expiry_height,
            capacity: open.capacity,
            remainder_script: open.remainder_script,
            schedule: offer.offer.schedule.clone(),
            confirmations: offer.offer.terms.confirmations,
            tick_max: offer.offer.terms.tick_max,
        };
        let Some(buyer) = &mut self.buyer else { return Ok(()) };
        if params.validate().is_err()
            || params.id() != report.channel
            || offer.offer.id() != open.offer
            || buyer.book().get(&params.id()).is_some()
        {
            return Ok(());
        }
        let mut out = Out::default();
        buyer.negotiated(params, offer.offer.provider, URL.into(), buyer.book().tip(), &mut out);
        self.settle(out, context)
    }

    /// Signs the first funding, or one of the same coin that replaces the last.
    fn fund(&mut self, id: ChannelId, context: &mut Context) -> Result<(), Violation> {
        let Some(buyer) = &mut self.buyer else { return Ok(()) };
        let Some(channel) = buyer.book().get(&id) else { return Ok(()) };
        let params = channel.params();
        let funded = buyer.book().iter().filter(|(_, channel)| channel.funding_tx().is_some());
        let fresh = u32::try_from(funded.count()).unwrap_or(u32::MAX);
        let last = channel.funding_tx();
        let spent = last.and_then(|tx| tx.input.first()).map(|input| input.previous_output.vout);
        let value = context.plan.capacity + Amount::from_sat(2_000_000);
        let from = coin(self.index + 1, spent.unwrap_or(fresh), value);
        let bumped = last.map_or(0, |last| {
            let given: Amount = last.output.iter().map(|output| output.value).sum();
            let fee = value.checked_sub(given).unwrap_or_default().to_sat();
            fee * 3 / 2 + 2 * FUNDING_VSIZE
        });
        let fee = least_fee(context.estimate(), FUNDING_VSIZE).max(bumped);
        let change = (value - params.capacity).checked_sub(Amount::from_sat(fee));
        let output = vec![
            TxOut { value: params.capacity, script_pubkey: params.funding_script() },
            TxOut { value: change.unwrap_or(DUST).max(DUST), script_pubkey: self.owner.script() },
        ];
        let tx = self.owner.spend(2, (from.0, &from.1), output);
        let mut out = Out::default();
        if !buyer.funding_signed(id, tx, &mut out) {
            return violated("a wallet's funding funds the channel", id.to_string());
        }
        self.settle(out, context)
    }

    fn pay(&mut self, id: ChannelId, context: &mut Context) -> Result<(), Violation> {
        let Some(buyer) = &mut self.buyer else { return Ok(()) };
        let Some(channel) = buyer.book().get(&id) else { return Ok(()) };
        if channel.disputed().is_some() {
            (self.steps, self.vanishes) = (0, false);
            return Ok(());
        }
        if let (true, Some((paid, signature))) = (self.unacknowledged, channel.best()) {
            self.send(id, PaymentRequest { paid, signature }, context);
            return Ok(());
        }
        if self.payer.is_none() || context.now_ms >= self.account_due_ms {
            self.account_due_ms = context.now_ms + ACCOUNT_INTERVAL_MS;
            self.ask(Ask::Account, context);
            return Ok(());
        }
        let Some(payer) = &self.payer else { return Ok(()) };
        let budget = buyer.budget_of(&id, self.budget);
        let (params, payable) = (channel.params(), channel.payable(buyer.book().tip()));
        // What was used on credit for a funding that another one took the place of is paid first.
        let next = match channel.owed().filter(|owed| *owed <= payable) {
            Some(owed) if owed > budget => Next::BudgetSpent,
            Some(owed) => Next::Pay(owed),
            None => payer.next(buyer.bought(), channel.paid(), payable, budget, &params.schedule),
        };
        match next {
            Next::Wait | Next::ChannelSpent => Ok(()),
            Next::BudgetSpent => {
                self.steps = 0;
                Ok(())
            }
            Next::Pay(mut sum) => {
                if context.plan.sabotage == Some(Sabotage::PayDouble) {
                    sum = (sum + sum).min(params.payable());
                }
                let Ok(message) = channel.payment(sum, buyer.book().tip()) else { return Ok(()) };
                let signature = self.owner.sign(channel.key_index(), message);
                let mut out = Out::default();
                self.unacknowledged = true;
                buyer.payment_signed(id, sum, signature, &mut out);
                self.settle(out, context)?;
                context.audit.check_spent(self.index)
            }
        }
    }

    /// An answer arrives.
    pub fn answered(
        &mut self,
        number: u64,
        answer: Answer,
        context: &mut Context,
    ) -> Result<(), Violation> {
        let paying = self.asked.take_if(|asked| asked.number == number);
        let Some(asked) = paying.or_else(|| self.aside.take_if(|asked| asked.number == number))
        else {
            return Ok(());
        };
        context.note(|| format!("subscriber {} is told {}", self.index, told(&answer)));
        let asked_again = answer.clone();
        match (answer, asked.ask) {
            (Answer::Channel(report), Ask::Open(open)) => {
                let offer = context.offer.clone();
                self.opened(open, &offer, &report, context)?;
            }
            (Answer::Paid(reply), Ask::Pay(_, payment)) => {
                if reply.paid >= payment.paid {
                    self.unacknowledged = false;
                }
                self.report(&reply.account, asked.counted, asked.sent_ms, context)?;
            }
            (Answer::Account(report), _) => {
                if self.payer.is_none() {
                    self.observe(context);
                    self.account_due_ms = context.now_ms;
                } else {
                    self.report(&report, asked.counted, asked.sent_ms, context)?;
                }
            }
            (Answer::Channel(report), Ask::Fund(id, _)) => self.presented(id, &report, context)?,
            (Answer::Channel(report), Ask::Close(id, _)) => {
                self.close_answered(id, *report, context)?;
            }
            (Answer::Refused(_), Ask::Open(_)) if context.one_in(3) => self.steps = 0,
            (Answer::Refused(refusal), Ask::Pay(id, _)) => {
                self.steps = self.steps.saturating_sub(1);
                self.payment_refused(id, &refusal, context)?;
            }
            _ => {}
        }
        if !matches!(asked_again, Answer::Refused(_) | Answer::Unreachable) {
            self.drive(context)?;
        }
        self.plan_step(context);
        Ok(())
    }

    fn payment_refused(
        &mut self,
        id: ChannelId,
        refusal: &Refusal,
        context: &mut Context,
    ) -> Result<(), Violation> {
        let mut out = Out::default();
        if let Some(buyer) = &mut self.buyer
            && buyer.payment_refused(id, refusal.code(), &mut out)
            && self.active == Some(id)
        {
            self.unacknowledged = false;
        }
        self.settle(out, context)
    }

    /// Starts to count.
    fn observe(&mut self, context: &mut Context) {
        let active = self.active.and_then(|id| context.audit.bought.get(&id));
        let Some(bought) = active else { return };
        context.audit.counts.entry(self.index).or_default().starts += 1;
        let mut payer = Payer::new(bought.params.tick_max);
        payer.count(self.counted, context.now_ms);
        self.payer = Some(payer);
    }

    fn report(
        &mut self,
        account: &AccountReport,
        counted: Octets,
        sent_ms: u64,
        context: &mut Context,
    ) -> Result<(), Violation> {
        self.account_due_ms = context.now_ms + ACCOUNT_INTERVAL_MS;
        let (Some(payer), Some(buyer)) = (&mut self.payer, &mut self.buyer) else { return Ok(()) };
        payer.count(self.counted, context.now_ms);
        let round_trip = (context.now_ms - sent_ms).max(1);
        let (bought, used) = (account.bought_octets, account.used_octets());
        let judged = payer.report(buyer.bought(), bought, used, counted, round_trip);
        let mut out = Out::default();
        if let (Err(dispute), Some(id)) = (judged, self.active) {
            if context.plan.honest_provider {
                return violated("honest peers agree on what was used", dispute.to_string());
            }
            buyer.disputed(id, dispute, &mut out);
        }
        self.settle(out, context)
    }

    /// The chain source answers again, or no longer.
    pub fn sees(&mut self, sees: bool, context: &mut Context) -> Result<(), Violation> {
        self.blind = !sees;
        if sees {
            let who = format!("subscriber {}", self.index);
            for tx in std::mem::take(&mut self.unsent) {
                let _ = hand_in(&who, &tx, context)?;
            }
            self.follow(context)?;
        }
        Ok(())
    }

    /// Catches up with the chain.
    pub fn follow(&mut self, context: &mut Context) -> Result<(), Violation> {
        if self.blind {
            return Ok(());
        }
        while let Some(buyer) = &mut self.buyer {
            let mut out = Out::default();
            match next_step(buyer.book().tips().last(), context) {
                None => break,
                Some(Step::Disconnect(height)) => buyer.disconnect(height, &mut out),
                Some(Step::Connect(height)) => {
                    let Some((block, _)) = context.chain.block(height) else { break };
                    let block = Arc::clone(block);
                    buyer.connect(height, &block, &mut out);
                }
            }
            self.settle(out, context)?;
        }
        if let Some(buyer) = &self.buyer {
            let who = format!("subscriber {}", self.index);
            for tx in buyer.unconfirmed() {
                let _ = hand_in(&who, &tx, context)?;
            }
        }
        self.refund(context)?;
        self.drive(context)?;
        self.plan_step(context);
        Ok(())
    }

    fn refund(&mut self, context: &mut Context) -> Result<(), Violation> {
        let Some(buyer) = &mut self.buyer else { return Ok(()) };
        let mut out = Out::default();
        for due in buyer.refunds_due() {
            let Some(channel) = buyer.book().get(&due.channel) else { continue };
            let script = self.owner.script();
            let rate = context.estimate();
            let Ok(refund) = Refund::new(channel.params(), due.outpoint, &script, rate) else {
                continue;
            };
            let Some(message) = refund.sighash() else { continue };
            let own = self.owner.sign(due.key_index, message);
            if let Some(tx) = refund.finish(own) {
                buyer.refund_signed(due.channel, tx, &mut out);
            }
        }
        self.settle(out, context)
    }

    /// What is durable.
    pub fn journal(&self) -> &[Entry<SubscriberEvent>] {
        &self.journal
    }

    /// Whether nothing can change any more.
    pub fn is_done(&self) -> bool {
        let Some(buyer) = &self.buyer else { return false };
        let over = buyer.book().iter().all(|(_, channel)| channel.finished());
        let full = buyer.book().iter().count() >= CHANNELS_MAX;
        over && !self.blind && (self.steps == 0 || full)
    }

    /// At the end: what was not paid came back.
    pub fn settle_accounts(&self, context: &Context) -> Result<(), Violation> {
        let Some(buyer) = &self.buyer else { return Ok(()) };
        for (id, channel) in buyer.book().iter() {
            let Some(funding) = channel.funding() else { continue };
            context.audit.check_spent(self.index)?;
            let Some((tx, _)) = context.chain.spender(&funding.outpoint) else {
                if context.chain.was_reopened(&funding.outpoint) {
                    continue;
                }
                return violated("the rest comes back", format!("{id} is never spent"));
            };
            let own = |outpoint: &OutPoint| *outpoint == funding.outpoint;
            let at = tx.input.iter().position(|input| own(&input.previous_output));
            let back = at.and_then(|at| tx.output.get(at));
            let back = back.filter(|output| output.script_pubkey == self.owner.script());
            let back = back.map_or(Amount::ZERO, |output| output.value);
            let refunded = tx.input.len() == 1 && tx.output.len() == 1;
            let capacity = channel.params().capacity;
            let signed = context.audit.bought.get(id).map_or(Amount::ZERO, |bought| bought.signed);
            let least = capacity - signed;
            let fee = context.chain.input_value(tx).map_or(Amount::ZERO, |value| {
                value - tx.output.iter().map(|output| output.value).sum::<Amount>()
            });
            let whole = refunded && back + fee == capacity;
            let closed = is_close(tx) && {
                let payout = tx.output.get(1).map_or(Amount::ZERO, |output| output.value);
                back + fee + payout == capacity && payout <= signed && back >= least / 2
            };
            if back < least && !whole && !closed {
                return violated(
                    "the rest comes back",
                    format!("{back} of {capacity} with {signed} signed on {id}"),
                );
            }
        }
        Ok(())
    }
}

fn brief(event: &SubscriberEvent) -> String {
    match event {
        SubscriberEvent::Negotiated { params, .. } => format!("terms of {}", params.id()),
        SubscriberEvent::FundingSigned { tx, .. } => format!("the funding {}", tx.compute_txid()),
        SubscriberEvent::PaymentSigned { paid, .. } => format!("{paid} signed"),
        SubscriberEvent::RefundSigned { tx, .. } => format!("the refund {}", tx.compute_txid()),
        other => format!("{other:?}"),
    }
}
