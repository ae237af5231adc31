//! An honest subscriber: the real buyer and payer, between a wallet, a store and a counter of its own.

mod chain;
mod errands;
mod paying;

use bitmesh_core::{
    bitcoin::{Amount, Network, Transaction},
    buyer::{Action, Buyer},
    channel::{Batch, ChannelId, Entry, SubscriberEvent},
    payer::Payer,
    units::Octets,
    wire::PaymentRequest,
};

use super::{
    Sabotage,
    audit::{Violation, violated},
    kernel::{FRAME_MAX, Kernel},
    keys::Owner,
    replay::{check_alike, replay},
    seller::{hand_in, station, told},
    settle::{Crash, End, settle},
    world::{Answer, Ask, Context, Event},
};

type Out = Batch<SubscriberEvent, Action>;

/// Channels that it opens at most, one after the other.
const CHANNELS_MAX: usize = 3;
/// Where the provider's API is.
const URL: &str = "http://[::1]:8434";

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

    fn settle(&mut self, out: Out, context: &mut Context) -> Result<(), Violation> {
        settle(self, out, context).map(drop)
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
}

impl End for Customer {
    type Event = SubscriberEvent;
    type Action = Action;
    const EARLY: Sabotage = Sabotage::SendBeforeDurable;

    fn store(
        &mut self,
        entries: &[Entry<SubscriberEvent>],
        context: &mut Context,
    ) -> Result<(), Violation> {
        for entry in entries {
            if let Entry::Channel { event, .. } = entry {
                context.note(|| format!("subscriber {} stores {}", self.index, brief(event)));
            }
        }
        self.journal.extend_from_slice(entries);
        context.audit.subscriber_committed(self.index, entries);
        Ok(())
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
