//! An honest provider: the real controller between a kernel, a store that forgets what was not
//! committed, and a chain source that comes and goes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bitmesh_core::{
    bitcoin::{Amount, FeeRate, Network, OutPoint, ScriptBuf, Transaction, TxOut, Txid},
    channel::{
        Batch, CLAIM_DONE_BLOCKS, CLAIM_MARGIN_BLOCKS, ChannelId, DUST, Entry, FeeEstimates,
        ProviderChannel, ProviderEvent,
    },
    controller::{self, Action, CloseOwn, Controller, Input, RequestId, Taken},
    station::Station,
    units::Octets,
    wire::CloseRequest,
};

use super::{
    Sabotage,
    audit::{Sold, Violation, violated},
    chain::Reject,
    kernel::Kernel,
    keys::PROVIDER,
    offers,
    replay::{check_alike, replay},
    settle::{Crash, End, Settled, settle},
    world::{Answer, Ask, Context, Event},
};

type Out = Batch<ProviderEvent, Action>;

/// How often counters are written down, in milliseconds.
const CHECKPOINT_MS: u64 = 3_600_000;

/// Who waits for an answer, and what about.
struct Waiting {
    subscriber: usize,
    number: u64,
    paying: Option<ChannelId>,
}

/// What came of the actions of a batch.
#[derive(Default)]
struct Done {
    signed: Vec<Input>,
    reclaimed: Vec<Station>,
}

/// The provider while it takes the actions of a batch.
struct Acting<'a> {
    seller: &'a mut Seller,
    done: Done,
}

impl End for Acting<'_> {
    type Event = ProviderEvent;
    type Action = Action;
    const EARLY: Sabotage = Sabotage::ActBeforeDurable;

    fn store(
        &mut self,
        entries: &[Entry<ProviderEvent>],
        context: &mut Context,
    ) -> Result<(), Violation> {
        self.seller.commit(entries, context)
    }

    fn perform(&mut self, action: Action, context: &mut Context) -> Result<(), Violation> {
        self.seller.perform(action, &mut self.done, context)
    }

    fn crash(&mut self, crash: Crash, context: &mut Context) -> Result<(), Violation> {
        self.seller.crash(crash, context)
    }
}

/// The provider.
pub struct Seller {
    controller: Option<Controller>,
    journal: Vec<Entry<ProviderEvent>>,
    /// The kernel's table.
    pub kernel: Kernel,
    waiting: BTreeMap<RequestId, Waiting>,
    next_request: u64,
    unsent: Vec<Transaction>,
    /// Transactions that were not taken for their fee.
    refused: Vec<Txid>,
    /// Channels that a claim was signed for.
    claimed: BTreeSet<ChannelId>,
    blind: bool,
    /// For each block, whether it was able to act, and the fee rate that blocks asked for.
    abilities: BTreeMap<u32, (bool, FeeRate)>,
}

/// The station that a subscriber uses.
pub fn station(subscriber: usize) -> Station {
    let last = u8::try_from(subscriber + 1).unwrap_or(u8::MAX);
    Station::new([2, 0, 0, 0, 0, last], 0).expect("a unicast address")
}

fn payout_script() -> ScriptBuf {
    PROVIDER.script()
}

impl Seller {
    /// One that has never sold.
    pub fn new(context: &mut Context) -> Self {
        offers::renew(context);
        context.after(CHECKPOINT_MS, Event::Checkpoint);
        Self {
            controller: None,
            journal: Vec::new(),
            kernel: Kernel::default(),
            waiting: BTreeMap::new(),
            next_request: 0,
            unsent: Vec::new(),
            refused: Vec::new(),
            claimed: BTreeSet::new(),
            blind: false,
            abilities: BTreeMap::new(),
        }
    }

    /// From what is durable.
    pub fn start(&mut self, context: &mut Context) -> Result<(), Violation> {
        let mut controller = Controller::new(Network::Regtest, Vec::new());
        let forget = match context.plan.sabotage {
            Some(Sabotage::ForgetNewest) => self.journal.iter().rposition(|entry| {
                matches!(entry, Entry::Channel { event: ProviderEvent::Paid { .. }, .. })
            }),
            _ => None,
        };
        let kept = self.journal.iter().enumerate().filter(|(i, _)| Some(*i) != forget);
        replay(kept.map(|(_, entry)| entry), |entry| controller.replay(entry))?;
        let held: Vec<_> = self
            .kernel
            .slots()
            .map(|(station, slot)| (station, Octets(slot.limit), slot.usage()))
            .collect();
        if let Err(ahead) = controller.adopt(&held) {
            return violated("the kernel honours what is durably paid", format!("{ahead:?}"));
        }
        let mut none = Out::default();
        controller.handle(Input::Offer(context.offer.clone()), &mut none);
        controller.handle(Input::Chain { synced: !self.blind }, &mut none);
        self.controller = Some(controller);
        self.check_memory(context)?;
        let Some(controller) = &mut self.controller else { return Ok(()) };
        let resumed = controller.resume();
        self.settle(resumed, context)?;
        self.follow(context)
    }

    /// What was acknowledged is known, and nothing else is.
    fn check_memory(&self, context: &Context) -> Result<(), Violation> {
        let Some(controller) = &self.controller else { return Ok(()) };
        for (id, sold) in &context.audit.sold {
            // One that nothing was paid on is forgotten when it is over.
            let known = controller.book().get(id).map_or(Amount::ZERO, ProviderChannel::paid);
            if known != sold.paid() {
                return violated(
                    "a restart knows the newest durable commitment",
                    format!("{known} instead of {} on {id}", sold.paid()),
                );
            }
            if sold.forgot() {
                return violated("what was acknowledged is durable", id.to_string());
            }
        }
        Ok(())
    }

    /// After a crash.
    pub fn restart(&mut self, context: &mut Context) -> Result<(), Violation> {
        if self.controller.is_some() {
            return Ok(());
        }
        context.note(|| "the provider starts again".into());
        self.start(context)
    }

    fn crash(&mut self, crash: Crash, context: &mut Context) -> Result<(), Violation> {
        context.note(|| format!("the provider crashes: {crash:?}"));
        let before = self.controller.take();
        self.unsent.clear();
        let down = if context.rng.bool() { 1_000 } else { context.rng.u64(1_000..6_000_000) };
        context.after(down, Event::Restart(0));
        for (_, waiting) in std::mem::take(&mut self.waiting) {
            context.answer(waiting.subscriber, waiting.number, Answer::Unreachable);
        }
        // What is durable gives the same provider again.
        if let (Some(before), Crash::Amid(_)) = (before, crash) {
            let mut again = Controller::new(Network::Regtest, Vec::new());
            replay(&self.journal, |entry| again.replay(entry))?;
            check_alike(
                (before.book(), before.next_key_index()),
                (again.book(), again.next_key_index()),
            )?;
        }
        Ok(())
    }

    fn put(&mut self, input: Input, context: &mut Context) -> Result<(), Violation> {
        let Some(controller) = &mut self.controller else { return Ok(()) };
        let mut out = Out::default();
        controller.handle(input, &mut out);
        self.settle(out, context)
    }

    /// Stores what was decided, then lets it happen, and then what follows from that.
    fn settle(&mut self, mut out: Out, context: &mut Context) -> Result<(), Violation> {
        loop {
            let mut acting = Acting { seller: self, done: Done::default() };
            let settled = settle(&mut acting, out, context)?;
            let done = acting.done;
            match settled {
                Settled::Crashed => return Ok(()),
                Settled::Nothing => return context.audit.check_kernel(&self.kernel),
                Settled::Done => {}
            }
            out = Out::default();
            self.tell_done(done, &mut out);
        }
    }

    /// What was done goes back to the controller.
    fn tell_done(&mut self, done: Done, out: &mut Out) {
        let Some(controller) = &mut self.controller else { return };
        for signed in done.signed {
            controller.handle(signed, out);
        }
        for txid in std::mem::take(&mut self.refused) {
            controller.handle(Input::Refused { txid }, out);
        }
        let stations = done.reclaimed;
        if stations.is_empty() {
            return;
        }
        let company = stations.iter().flat_map(|station| controller.company(*station));
        let readings =
            company.map(|station| (station, self.kernel.slot(station).usage())).collect();
        controller.handle(Input::Reclaimed { stations, readings }, out);
    }

    fn commit(
        &mut self,
        entries: &[Entry<ProviderEvent>],
        context: &mut Context,
    ) -> Result<(), Violation> {
        for entry in entries {
            if let Entry::Channel { event, .. } = entry {
                context.note(|| format!("the provider stores {}", brief(event)));
            }
        }
        self.journal.extend_from_slice(entries);
        context.audit.provider_committed(entries)
    }

    fn perform(
        &mut self,
        action: Action,
        done: &mut Done,
        context: &mut Context,
    ) -> Result<(), Violation> {
        match action {
            Action::Grant { station, mut limit, usage, .. } => {
                if context.plan.sabotage == Some(Sabotage::GrantTwice) {
                    limit = limit.saturating_add(limit);
                }
                context.note(|| format!("{station} may use {limit}"));
                context.audit.granted(station, limit)?;
                self.kernel.set(station, limit, usage);
            }
            Action::Reclaim { station, limit } => {
                context.note(|| format!("{station} may use no more than {limit}"));
                let usage = self.kernel.slot(station).usage();
                self.kernel.set(station, limit, usage);
                done.reclaimed.push(station);
            }
            // The simulation has one edge.
            Action::TakeOff { .. } => {}
            Action::Reply(request, answer) => self.reply(request, answer, context)?,
            Action::Claim(planned) => {
                let sabotaged = context.plan.sabotage == Some(Sabotage::NeverBump);
                let first = planned.channels().all(|id| self.claimed.insert(id));
                if first || !sabotaged {
                    done.signed.extend(planned.sign(|key, message| PROVIDER.sign(key, message)));
                }
            }
            Action::Broadcast(tx) => self.broadcast(tx, context)?,
            Action::Present { request, channel, tx } => {
                let taken = if self.blind {
                    Taken::Unknown
                } else {
                    match context.chain.accept(&tx) {
                        Ok(()) => Taken::Yes,
                        Err(reject) => Taken::No(format!("{reject:?}")),
                    }
                };
                context.note(|| format!("funding {}: {taken:?}", tx.compute_txid()));
                done.signed.push(Input::Presented { request, channel, tx, taken });
            }
            Action::CheckOffered(offered) => {
                let height = context.chain.height();
                let tip = context.chain.block(height).map(|(_, hash)| hash);
                for (channel, tx) in offered {
                    if !self.blind && context.chain.accept(&tx).is_err() {
                        let txid = tx.compute_txid();
                        let gone = tip.map(|tip| Input::OfferedGone { channel, txid, tip });
                        done.signed.extend(gone);
                    }
                }
            }
        }
        Ok(())
    }

    fn reply(
        &mut self,
        request: RequestId,
        answer: Result<controller::Answer, controller::Refusal>,
        context: &mut Context,
    ) -> Result<(), Violation> {
        let Some(waiting) = self.waiting.remove(&request) else { return Ok(()) };
        let answer = match answer {
            Ok(controller::Answer::Payment(reply)) => {
                if let Some(channel) = waiting.paying {
                    context.audit.acknowledged(&channel, reply.paid)?;
                }
                Answer::Paid(reply)
            }
            Ok(controller::Answer::Channel(report)) => Answer::Channel(report),
            Ok(controller::Answer::Account(report)) => Answer::Account(report),
            Err(refusal) => Answer::Refused(refusal),
        };
        context.note(|| format!("the provider answers {}: {}", waiting.subscriber, told(&answer)));
        context.answer(waiting.subscriber, waiting.number, answer);
        Ok(())
    }

    /// The node answers with its estimates, once per block that is the newest.
    fn take_fees(&mut self, context: &mut Context) -> Result<(), Violation> {
        if let Some(controller) = &mut self.controller {
            controller.set_payout(payout_script());
        }
        let normal = context.estimate();
        let urgent = normal.max(context.estimate());
        let fees = (!context.one_in(50)).then_some(FeeEstimates { normal, urgent });
        self.put(Input::Fees(fees), context)
    }

    fn broadcast(&mut self, tx: Transaction, context: &mut Context) -> Result<(), Violation> {
        if self.blind {
            self.unsent.push(tx);
            return Ok(());
        }
        let taken = hand_in("the provider", &tx, context)?;
        if matches!(taken, Err(Reject::FeeTooLow | Reject::Replacement)) {
            self.refused.push(tx.compute_txid());
        }
        Ok(())
    }

    /// A question arrives.
    pub fn asked(
        &mut self,
        from: usize,
        number: u64,
        ask: Ask,
        context: &mut Context,
    ) -> Result<(), Violation> {
        if self.controller.is_none() {
            return Ok(());
        }
        let request = RequestId(self.next_request);
        self.next_request += 1;
        let paying = if let Ask::Pay(channel, _) = &ask { Some(*channel) } else { None };
        self.waiting.insert(request, Waiting { subscriber: from, number, paying });
        let peer = station(from);
        let input = match ask {
            Ask::Open(open) => {
                let index = self.controller.as_ref().map_or(0, Controller::next_key_index);
                let provider_key = PROVIDER.public_key(index);
                Input::Open { request, station: peer, open, provider_key, now: context.seconds() }
            }
            Ask::Pay(channel, payment) => {
                self.low_credit(from, context)?;
                Input::Pay { request, channel, payment, verified: None, station: Some(peer) }
            }
            Ask::Fund(channel, tx) => Input::Fund { request, channel, tx },
            Ask::Close(channel, close) => {
                let own = self.own_for_close(&channel, &close);
                Input::Close { request, channel, close, own }
            }
            Ask::Account => {
                self.low_credit(from, context)?;
                self.waiting.remove(&request);
                if let Some(controller) = &self.controller {
                    let report = Box::new(controller.account(peer));
                    context.answer(from, number, Answer::Account(report));
                }
                return Ok(());
            }
        };
        self.put(input, context)
    }

    /// What the wallet adds to a wish to close.
    fn own_for_close(&self, channel: &ChannelId, close: &CloseRequest) -> CloseOwn {
        let Some(controller) = &self.controller else { return CloseOwn::default() };
        let needs = controller.close_needs(channel, close);
        CloseOwn {
            payout_script: needs.payout_script.then(payout_script),
            signature: needs.signature.map(|(index, message)| PROVIDER.sign(index, message)),
        }
    }

    /// A station's counters are read out of turn.
    pub fn low_credit(
        &mut self,
        subscriber: usize,
        context: &mut Context,
    ) -> Result<(), Violation> {
        let station = station(subscriber);
        let usage = self.kernel.slot(station).usage();
        self.put(Input::Reading(station, usage), context)
    }

    /// Counters are written down, and the offer renewed.
    pub fn checkpoint(&mut self, context: &mut Context) -> Result<(), Violation> {
        context.after(CHECKPOINT_MS, Event::Checkpoint);
        offers::renew(context);
        self.put(Input::Offer(context.offer.clone()), context)?;
        let readings = self.kernel.slots().map(|(station, slot)| (station, slot.usage())).collect();
        self.put(Input::Usage(readings), context)?;
        self.put(Input::Checkpoint, context)
    }

    /// The chain source answers again, or no longer.
    pub fn sees(&mut self, sees: bool, context: &mut Context) -> Result<(), Violation> {
        self.blind = !sees;
        if sees {
            for tx in std::mem::take(&mut self.unsent) {
                self.broadcast(tx, context)?;
            }
            self.follow(context)?;
        }
        self.put(Input::Chain { synced: sees }, context)
    }

    /// Catches up with the chain.
    pub fn follow(&mut self, context: &mut Context) -> Result<(), Violation> {
        let able = self.controller.is_some() && !self.blind;
        self.abilities.insert(context.chain.height(), (able, context.chain.level));
        if self.blind {
            return Ok(());
        }
        while let Some(controller) = &self.controller {
            let step = next_step(controller.book().tips().last(), context);
            if let (Some(Sabotage::SleepThroughMargin), Some(Step::Connect(height))) =
                (context.plan.sabotage, &step)
                && let Some(sold) = context.audit.sold.values().next()
            {
                let expiry = sold.params.expiry_height;
                if (expiry - 150..expiry - 20).contains(height)
                    && context.chain.height() < expiry - 20
                {
                    return Ok(());
                }
            }
            match step {
                None => return self.take_fees(context),
                Some(Step::Disconnect(height)) => {
                    self.put(Input::BlockDisconnected { height }, context)?;
                }
                Some(Step::Connect(height)) => {
                    let Some((block, _)) = context.chain.block(height) else { return Ok(()) };
                    let block = Arc::clone(block);
                    self.put(Input::BlockConnected { height, block }, context)?;
                }
            }
        }
        Ok(())
    }

    /// What is durable.
    pub fn journal(&self) -> &[Entry<ProviderEvent>] {
        &self.journal
    }

    /// Whether nothing can change any more.
    pub fn is_done(&self) -> bool {
        let channels = |controller: &Controller| {
            controller.book().iter().all(|(_, channel)| channel.finished())
        };
        !self.blind && self.controller.as_ref().is_some_and(channels)
    }

    /// At the end: what was paid durably is in the wallet, less fees.
    pub fn settle_accounts(&mut self, context: &mut Context) -> Result<(), Violation> {
        for (id, sold) in &context.audit.sold {
            for (outpoint, paid) in &sold.best {
                self.settle_one(id, sold, *outpoint, *paid, context)?;
            }
        }
        Ok(())
    }

    fn settle_one(
        &self,
        id: &ChannelId,
        sold: &Sold,
        outpoint: OutPoint,
        paid: Amount,
        context: &Context,
    ) -> Result<(), Violation> {
        let expiry = sold.params.expiry_height;
        let lost =
            |how: &str| violated("what was paid is claimed", format!("{paid} on {id}, {how}"));
        // Nothing is done any more about a claim that was final.
        let could = !context.chain.was_reopened(&outpoint)
            && self.could_claim(expiry, paid, context.chain.height_of(&outpoint.txid));
        // Another funding confirmed, or none: what was paid before confirmation is lost, and more
        // only in a reorganisation that is deeper than the terms ask.
        let bounded = paid <= sold.params.unconfirmed_max
            || context.audit.deepest >= sold.params.confirmations;
        let replaced = !sold.counts(&outpoint);
        let Some((tx, height)) = context.chain.spender(&outpoint) else {
            let there = context.chain.coin(&outpoint).is_some();
            let lost_there = there && could && !(bounded && replaced);
            return if lost_there || !there && !bounded { lost("never spent") } else { Ok(()) };
        };
        let spends = |(known, _): &(&OutPoint, &Amount)| {
            tx.input.iter().any(|input| input.previous_output == **known)
        };
        let sold_by = context.audit.sold.values();
        let due = sold_by.flat_map(|sold| sold.best.iter().filter(spends));
        let due: u64 = due.map(|(_, paid)| paid.to_sat()).sum();
        let own = |output: &&TxOut| output.script_pubkey == payout_script();
        let payout: u64 = tx.output.iter().filter(own).map(|output| output.value.to_sat()).sum();
        if is_close(tx) {
            return if payout < due && due >= DUST.to_sat() {
                violated("a close pays the provider what was paid", format!("{payout} of {due}"))
            } else {
                Ok(())
            };
        }
        if payout == 0 {
            return if could && !(bounded && replaced) { lost("refunded") } else { Ok(()) };
        }
        let given: u64 = tx.output.iter().map(|output| output.value.to_sat()).sum();
        let fee = context.chain.input_value(tx).map_or(0, |value| value.to_sat() - given);
        if payout + fee != due {
            return violated(
                "payout and fee are the best commitments' sum",
                format!("{payout} + {fee} of {due}"),
            );
        }
        if height + CLAIM_DONE_BLOCKS > expiry && could {
            return violated(
                "claims are in a block 36 blocks before the expiry",
                format!("{id} at {height}, expiry {expiry}"),
            );
        }
        Ok(())
    }

    /// Whether there was a time after the margin, long enough for a claim, at fees that left
    /// something of it.
    fn could_claim(&self, expiry: u32, paid: Amount, funded: Option<u32>) -> bool {
        /// Blocks in a row that a claim needs: to be seen, raised and mined.
        const RUN: u32 = 12;
        let (margin, last) = (expiry - CLAIM_MARGIN_BLOCKS, expiry - CLAIM_DONE_BLOCKS);
        let mut run = 0;
        // From the margin on, and once the funding is in a block to stay.
        let from = margin.max(funded.unwrap_or(last)) + 1;
        for (_, (able, level)) in self.abilities.range(from.min(last)..last) {
            // A claim of one channel has 194 vB; an estimate is half too high at most.
            let fee = level.to_sat_per_kwu() * 194 * 4 * 2 / 1_000;
            let pays = paid.to_sat() > fee + DUST.to_sat();
            run = if *able && pays { run + 1 } else { 0 };
            if run >= RUN {
                return true;
            }
        }
        false
    }
}

/// What a follower of the chain does next.
pub enum Step {
    /// The block at this height left the chain.
    Disconnect(u32),
    /// This one is new.
    Connect(u32),
}

/// Where a party goes whose newest block is `tip`.
pub fn next_step(
    tip: Option<(u32, bitmesh_core::bitcoin::BlockHash)>,
    context: &Context,
) -> Option<Step> {
    let newest = context.chain.height();
    let Some((height, hash)) = tip else { return Some(Step::Connect(newest)) };
    let same = context.chain.block(height).is_some_and(|(_, there)| there == hash);
    if !same {
        return Some(Step::Disconnect(height));
    }
    (height < newest).then_some(Step::Connect(height + 1))
}

/// An honest party's transaction: a node may not take it, but never because it is not valid.
pub fn hand_in(
    who: &str,
    tx: &Transaction,
    context: &mut Context,
) -> Result<Result<(), Reject>, Violation> {
    let taken = context.chain.accept(tx);
    context.note(|| format!("{who} broadcasts {}: {taken:?}", tx.compute_txid()));
    match taken {
        Err(error @ (Reject::Invalid(_) | Reject::Overspent | Reject::NotFinal | Reject::Dust)) => {
            violated("honest transactions are valid", format!("{who}: {error:?}"))
        }
        taken => Ok(taken),
    }
}

/// Whether both ends signed every output: not a claim, which only the provider signs as a whole.
pub fn is_close(tx: &Transaction) -> bool {
    let witness = tx.input.first().map(|input| &input.witness);
    let flags = |at| witness.and_then(|witness| witness.nth(at)).and_then(|w| w.last().copied());
    (flags(0), flags(1)) == (Some(1), Some(1))
}

fn brief(event: &ProviderEvent) -> String {
    match event {
        ProviderEvent::Opened { station, params, .. } => {
            format!("opened {} by {station}", params.id())
        }
        ProviderEvent::ClaimSigned(claim) => {
            format!("a claim {} with {} for miners", claim.tx.compute_txid(), claim.fee)
        }
        ProviderEvent::Paid { paid, .. } => format!("{paid} paid"),
        other => format!("{other:?}"),
    }
}

/// An answer in a line.
pub fn told(answer: &Answer) -> String {
    match answer {
        Answer::Channel(report) => format!("channel {}, {:?}", report.channel, report.status),
        Answer::Paid(reply) => {
            format!("{} paid, {} credit", reply.paid, reply.account.credit_octets)
        }
        Answer::Account(report) => {
            let (bought, used) = (report.bought_octets, report.used_octets());
            format!("{bought} bought, {used} used")
        }
        Answer::Refused(refusal) => refusal.to_string(),
        Answer::Unreachable => "nothing".into(),
    }
}
