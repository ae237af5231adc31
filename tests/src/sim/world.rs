//! Time, the network between the parties, the chain's course, and what one history does.

use std::collections::BTreeMap;

use bitmesh_core::{
    bitcoin::{Amount, FeeRate, OutPoint, Transaction, TxOut, Txid, hashes::Hash},
    channel::{ChannelId, Entry, LIFETIME_MIN_BLOCKS},
    controller::Refusal,
    offer::SignedOffer,
    wire::{
        AccountReport, ChannelReport, CloseRequest, FundingRequest, OpenRequest, PaymentReply,
        PaymentRequest,
    },
};
use fastrand::Rng;
use serde::Serialize;

use super::{
    Sabotage,
    audit::{Audit, Violation},
    chain::{Chain, RELAY_RATE},
    cheat::Cheat,
    crook::Crook,
    customer::Customer,
    keys::Owner,
    offers,
    seller::Seller,
};

/// Seconds since 1970 at the beginning.
pub const EPOCH: u64 = 1_800_000_000;
/// Height of the first block.
const HEIGHT: u32 = 1_000;
/// Milliseconds between two blocks, on average.
const BLOCK_MS: u64 = 600_000;
/// How long a peer waits for an answer, in milliseconds.
const TIMEOUT_MS: u64 = 5_000;
/// Deepest reorganisation, in blocks.
const REORGANISATION_MAX_BLOCKS: u32 = 7;
/// Blocks after which a history has to be over.
const BLOCKS_MAX: u32 = 2_000;
/// Coins that each subscriber begins with.
pub const COINS: u32 = 4;

/// A question to the provider.
#[derive(Clone, Debug)]
pub enum Ask {
    /// `POST /v1/channels`.
    Open(OpenRequest),
    /// `POST /v1/channels/{id}/payments`.
    Pay(ChannelId, PaymentRequest),
    /// `POST /v1/channels/{id}/close`.
    Close(ChannelId, CloseRequest),
    /// `POST /v1/channels/{id}/funding`.
    Fund(ChannelId, Transaction),
    /// `GET /v1/account`.
    Account,
}

/// What comes back.
#[derive(Clone, Debug)]
pub enum Answer {
    /// A channel's state.
    Channel(Box<ChannelReport>),
    /// Of a payment.
    Paid(Box<PaymentReply>),
    /// What a station has.
    Account(Box<AccountReport>),
    /// A refusal.
    Refused(Refusal),
    /// Nobody there, or the answer was lost.
    Unreachable,
}

/// What happens next.
#[derive(Clone, Debug)]
pub enum Event {
    /// A block is found.
    Block,
    /// A subscriber does something.
    Step(usize),
    /// A question arrives.
    Ask {
        /// Whose.
        from: usize,
        /// Names it, for the answer.
        number: u64,
        /// What.
        ask: Ask,
    },
    /// An answer arrives.
    Answer {
        /// At whom.
        to: usize,
        /// To which question.
        number: u64,
        /// What.
        answer: Answer,
    },
    /// The provider reads and writes down counters.
    Checkpoint,
    /// Somebody who was down starts again: 0 is the provider.
    Restart(usize),
    /// Somebody sees the chain again.
    Sight(usize),
}

/// What a history is like.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The provider follows the rules.
    pub honest_provider: bool,
    /// For each subscriber, whether it does.
    pub subscribers: Vec<bool>,
    /// One in so many commits is a crash; 0: none.
    pub crash_in: u32,
    /// One in so many messages is lost, repeated or late; 0: none.
    pub trouble_in: u32,
    /// One in so many blocks is followed by a reorganisation; 0: none.
    pub reorganise_in: u32,
    /// One in so many blocks costs somebody its sight of the chain; 0: none.
    pub blind_in: u32,
    /// One in so many blocks starts a fee spike; 0: none.
    pub spike_in: u32,
    /// Of the offer.
    pub confirmations: u32,
    /// Of the offer, in msat per MiB.
    pub price: u64,
    /// Of the offer: what counts before confirmation.
    pub unconfirmed_max: Amount,
    /// Of every channel.
    pub capacity: Amount,
    /// Of every channel.
    pub lifetime: u32,
    /// What is done wrong on purpose.
    pub sabotage: Option<Sabotage>,
}

impl Plan {
    fn draw(rng: &mut Rng, sabotage: Option<Sabotage>) -> Self {
        let mut one_in = |usual: u32| if rng.bool() { 0 } else { rng.u32(usual..usual * 8) };
        let (crash_in, trouble_in) = (one_in(6), one_in(4));
        let (reorganise_in, blind_in, spike_in) = (one_in(20), one_in(20), one_in(60));
        let honest_provider = rng.u32(0..4) > 0;
        let count = if honest_provider { rng.usize(1..=3) } else { 1 };
        let subscribers = (0..count).map(|_| !honest_provider || rng.u32(0..3) > 0).collect();
        let capacity = rng.u64(10_000..300_000);
        let unconfirmed_max = if rng.bool() { 0 } else { rng.u64(0..capacity / 2) };
        Self {
            honest_provider,
            subscribers,
            crash_in,
            trouble_in,
            reorganise_in,
            blind_in,
            spike_in,
            confirmations: rng.u32(1..=6),
            price: 1_000 * rng.u64(1..1_000),
            unconfirmed_max: Amount::from_sat(unconfirmed_max),
            capacity: Amount::from_sat(capacity),
            lifetime: LIFETIME_MIN_BLOCKS + rng.u32(0..60),
            sabotage,
        }
    }
}

/// What every party can reach.
pub struct Context {
    /// Decides everything.
    pub rng: Rng,
    /// Milliseconds since the beginning.
    pub now_ms: u64,
    /// The chain.
    pub chain: Chain,
    /// What must hold.
    pub audit: Audit,
    /// What this history is like.
    pub plan: Plan,
    /// What the provider offers at this time.
    pub offer: SignedOffer,
    queue: BTreeMap<(u64, u64), Event>,
    sequence: u64,
    history: Option<Vec<String>>,
    samples: BTreeMap<&'static str, String>,
    spike_left: u32,
    calm: FeeRate,
}

impl Context {
    /// One line of the history, when it is kept.
    pub fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(history) = &mut self.history {
            let seconds = self.now_ms / 1_000;
            let millis = self.now_ms % 1_000;
            let height = self.chain.height();
            history.push(format!("{seconds:>8}.{millis:03} s, block {height}: {}", line()));
        }
    }

    /// Keeps the first message of each kind, as it is on the wire, beside the history.
    fn sample(&mut self, kind: &'static str, body: &impl Serialize) {
        if self.history.is_some() && !self.samples.contains_key(kind) {
            self.samples.insert(kind, serde_json::to_string(body).unwrap_or_default());
        }
    }

    fn sample_ask(&mut self, ask: &Ask) {
        match ask {
            Ask::Open(body) => self.sample("open", body),
            Ask::Pay(_, body) => self.sample("pay", body),
            Ask::Close(_, body) if body.proposal.is_some() => self.sample("propose", body),
            Ask::Close(_, body) => self.sample("close", body),
            Ask::Fund(_, tx) => self.sample("fund", &FundingRequest { tx: tx.clone() }),
            Ask::Account => {}
        }
    }

    fn sample_answer(&mut self, answer: &Answer) {
        match answer {
            Answer::Channel(body) if body.closed_by_both.is_some() => self.sample("closed", body),
            Answer::Channel(body) => self.sample("channel", body),
            Answer::Paid(body) => self.sample("paid", body),
            Answer::Account(body) => self.sample("account", body),
            Answer::Refused(refusal) => self.sample("refused", &refusal.body()),
            Answer::Unreachable => {}
        }
    }

    /// Puts an event into the future.
    pub fn after(&mut self, ms: u64, event: Event) {
        self.sequence += 1;
        self.queue.insert((self.now_ms + ms, self.sequence), event);
    }

    /// Once in so many times; never for 0.
    pub fn one_in(&mut self, times: u32) -> bool {
        times > 0 && self.rng.u32(0..times) == 0
    }

    fn delay(&mut self) -> u64 {
        if self.one_in(self.plan.trouble_in) {
            self.rng.u64(1_000..1_200_000)
        } else {
            self.rng.u64(1..40)
        }
    }

    /// Sends a question; it may be lost, late or doubled.
    pub fn ask(&mut self, from: usize, number: u64, ask: Ask) {
        self.sample_ask(&ask);
        self.after(TIMEOUT_MS, Event::Answer { to: from, number, answer: Answer::Unreachable });
        if self.one_in(self.plan.trouble_in) {
            self.note(|| format!("a question of subscriber {from} is lost"));
            return;
        }
        if self.one_in(self.plan.trouble_in) {
            let delay = self.delay();
            self.after(delay, Event::Ask { from, number, ask: ask.clone() });
        }
        let delay = self.delay();
        self.after(delay, Event::Ask { from, number, ask });
    }

    /// Sends an answer; it may be lost or late.
    pub fn answer(&mut self, to: usize, number: u64, answer: Answer) {
        self.sample_answer(&answer);
        if !self.one_in(self.plan.trouble_in) {
            let delay = self.delay();
            self.after(delay, Event::Answer { to, number, answer });
        }
    }

    /// What a node estimates, which lags behind what blocks ask for.
    pub fn estimate(&mut self) -> FeeRate {
        let level = self.chain.level.to_sat_per_kwu();
        FeeRate::from_sat_per_kwu(level * self.rng.u64(90..150) / 100).max(RELAY_RATE)
    }

    /// Seconds since 1970.
    pub fn seconds(&self) -> u64 {
        EPOCH + self.now_ms / 1_000
    }

    fn drift_fees(&mut self) {
        if self.spike_left > 0 {
            self.spike_left -= 1;
        } else if self.one_in(self.plan.spike_in) {
            self.spike_left = self.rng.u32(1..90);
            let factor = self.rng.u64(3..60);
            let level = FeeRate::from_sat_per_kwu(self.calm.to_sat_per_kwu() * factor);
            self.chain.level = level;
            return self.note(|| format!("blocks ask for {level} now"));
        }
        if self.spike_left == 0 {
            let calm = self.calm.to_sat_per_kwu() * self.rng.u64(85..118) / 100;
            self.calm = FeeRate::from_sat_per_kwu(calm.clamp(250, 2_500));
            self.chain.level = self.calm;
        }
    }
}

enum Provider {
    Honest(Box<Seller>),
    Crook(Box<Crook>),
}

enum Subscriber {
    Honest(Box<Customer>),
    Cheat(Box<Cheat>),
}

/// One history on its way.
pub struct World {
    context: Context,
    provider: Provider,
    subscribers: Vec<Subscriber>,
}

/// What a history came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    /// Payments that became durable at an honest provider.
    pub payments: u64,
    /// Blocks.
    pub blocks: u32,
}

impl World {
    /// The history of a seed; its lines are kept when `keep`.
    pub fn new(seed: u64, sabotage: Option<Sabotage>, keep: bool) -> Self {
        let mut rng = Rng::with_seed(seed);
        let plan = Plan::draw(&mut rng, sabotage);
        let mut coins = Vec::new();
        for (i, _) in plan.subscribers.iter().enumerate() {
            for n in 0..COINS {
                coins.push(coin(i + 1, n, plan.capacity + Amount::from_sat(2_000_000)));
            }
        }
        for n in 0..COINS {
            coins.push(coin(0, n, Amount::from_sat(1_000_000)));
        }
        let calm = FeeRate::from_sat_per_kwu(rng.u64(250..1_500));
        let mut chain = Chain::new(HEIGHT, coins, EPOCH);
        chain.level = calm;
        let mut context = Context {
            rng,
            now_ms: 0,
            chain,
            audit: Audit::default(),
            offer: offers::first(&plan),
            plan,
            queue: BTreeMap::new(),
            sequence: 0,
            history: keep.then(Vec::new),
            samples: BTreeMap::new(),
            spike_left: 0,
            calm,
        };
        let plan = context.plan.clone();
        context.note(|| format!("{plan:?}"));
        let provider = if plan.honest_provider {
            Provider::Honest(Box::new(Seller::new(&mut context)))
        } else {
            Provider::Crook(Box::new(Crook::new(&mut context)))
        };
        let subscribers = plan.subscribers.iter().enumerate().map(|(i, honest)| {
            if *honest {
                Subscriber::Honest(Box::new(Customer::new(i, &mut context)))
            } else {
                Subscriber::Cheat(Box::new(Cheat::new(i, &mut context)))
            }
        });
        let subscribers = subscribers.collect();
        context.after(1, Event::Block);
        Self { context, provider, subscribers }
    }

    /// Runs to the end.
    pub fn run(&mut self) -> Result<Summary, Violation> {
        self.start()?;
        while let Some(((at, _), event)) = self.context.queue.pop_first() {
            self.context.now_ms = at;
            let block = matches!(event, Event::Block);
            self.happen(event)?;
            if block && self.is_over() {
                break;
            }
        }
        self.settle_accounts()?;
        let first = self.context.chain.first();
        let blocks = self.context.chain.height() - first;
        Ok(Summary { payments: self.context.audit.payments, blocks })
    }

    /// What was sent and stored in a history that was kept: for each fuzz target, by name.
    pub fn samples(&self) -> Vec<(&'static str, String, String)> {
        let wire = self.context.samples.iter();
        let mut samples: Vec<_> =
            wire.map(|(kind, body)| ("wire", (*kind).to_owned(), body.clone())).collect();
        let offer = serde_json::to_string(&self.context.offer).unwrap_or_default();
        samples.push(("offer", "offer".into(), offer));
        if let Provider::Honest(seller) = &self.provider {
            samples.extend(journals("sold", seller.journal()));
        }
        for subscriber in &self.subscribers {
            if let Subscriber::Honest(customer) = subscriber {
                samples.extend(journals("bought", customer.journal()));
            }
        }
        samples
    }

    /// The lines of the history.
    pub fn history(self) -> Vec<String> {
        self.context.history.unwrap_or_default()
    }

    fn start(&mut self) -> Result<(), Violation> {
        if let Provider::Honest(seller) = &mut self.provider {
            seller.start(&mut self.context)?;
        }
        for subscriber in &mut self.subscribers {
            if let Subscriber::Honest(customer) = subscriber {
                customer.start(&mut self.context)?;
            }
        }
        Ok(())
    }

    fn happen(&mut self, event: Event) -> Result<(), Violation> {
        let context = &mut self.context;
        match event {
            Event::Block => self.block()?,
            Event::Step(i) => match (self.subscribers.get_mut(i), &mut self.provider) {
                (Some(Subscriber::Honest(customer)), Provider::Honest(seller)) => {
                    customer.step(&mut seller.kernel, context)?;
                }
                (Some(Subscriber::Honest(customer)), Provider::Crook(crook)) => {
                    customer.step(&mut crook.kernel, context)?;
                }
                (Some(Subscriber::Cheat(cheat)), Provider::Honest(seller)) => {
                    cheat.step(&mut seller.kernel, context);
                    seller.low_credit(i, context)?;
                }
                _ => {}
            },
            Event::Ask { from, number, ask } => match &mut self.provider {
                Provider::Honest(seller) => seller.asked(from, number, ask, context)?,
                Provider::Crook(crook) => crook.asked(from, number, ask, context),
            },
            Event::Answer { to, number, answer } => match self.subscribers.get_mut(to) {
                Some(Subscriber::Honest(customer)) => customer.answered(number, answer, context)?,
                Some(Subscriber::Cheat(cheat)) => cheat.answered(number, answer, context),
                None => {}
            },
            Event::Checkpoint => {
                if let Provider::Honest(seller) = &mut self.provider {
                    seller.checkpoint(context)?;
                }
            }
            Event::Restart(party) => self.restart(party)?,
            Event::Sight(party) => self.sight(party)?,
        }
        if let Provider::Honest(seller) = &self.provider {
            self.context.audit.check_forwarded(&seller.kernel)?;
        }
        Ok(())
    }

    fn restart(&mut self, party: usize) -> Result<(), Violation> {
        let context = &mut self.context;
        match (party.checked_sub(1), &mut self.provider) {
            (None, Provider::Honest(seller)) => seller.restart(context),
            (Some(i), _) => match self.subscribers.get_mut(i) {
                Some(Subscriber::Honest(customer)) => customer.restart(context),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn sight(&mut self, party: usize) -> Result<(), Violation> {
        let context = &mut self.context;
        match (party.checked_sub(1), &mut self.provider) {
            (None, Provider::Honest(seller)) => seller.sees(true, context),
            (Some(i), _) => match self.subscribers.get_mut(i) {
                Some(Subscriber::Honest(customer)) => customer.sees(true, context),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn block(&mut self) -> Result<(), Violation> {
        let context = &mut self.context;
        let time = context.seconds();
        context.drift_fees();
        if context.one_in(context.plan.reorganise_in) {
            let depth = context.rng.u32(1..=REORGANISATION_MAX_BLOCKS);
            // Most are shallow.
            let depth = depth.min(context.rng.u32(1..=REORGANISATION_MAX_BLOCKS));
            let mut favoured = Vec::new();
            for subscriber in &self.subscribers {
                if let Subscriber::Cheat(cheat) = subscriber {
                    favoured.extend(cheat.favoured());
                }
            }
            if !context.rng.bool() {
                favoured.clear();
            }
            let undone = context.chain.reorganise(depth, &favoured, time);
            context.audit.deepest = context.audit.deepest.max(undone);
            context.note(|| format!("a reorganisation of {undone} blocks"));
        } else if context.rng.u32(0..20) > 0 {
            context.chain.mine(time);
        } else {
            let level = std::mem::replace(&mut context.chain.level, FeeRate::MAX);
            context.chain.mine(time);
            context.chain.level = level;
        }
        if context.one_in(context.plan.blind_in) {
            let party = context.rng.usize(0..=self.subscribers.len());
            let blocks = context.rng.u64(1..30);
            context.note(|| format!("party {party} sees no chain for {blocks} blocks"));
            match (party.checked_sub(1), &mut self.provider) {
                (None, Provider::Honest(seller)) => seller.sees(false, context)?,
                (Some(i), _) => {
                    if let Some(Subscriber::Honest(customer)) = self.subscribers.get_mut(i) {
                        customer.sees(false, context)?;
                    }
                }
                _ => {}
            }
            context.after(blocks * BLOCK_MS, Event::Sight(party));
        }
        match &mut self.provider {
            Provider::Honest(seller) => seller.follow(context)?,
            Provider::Crook(crook) => crook.follow(context),
        }
        for subscriber in &mut self.subscribers {
            match subscriber {
                Subscriber::Honest(customer) => customer.follow(context)?,
                Subscriber::Cheat(cheat) => cheat.follow(context),
            }
        }
        // Exponentially distributed, as blocks are.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let wait = (-context.rng.f64().max(1e-6).ln() * 600_000.0) as u64;
        context.after(wait.max(1), Event::Block);
        Ok(())
    }

    fn is_over(&self) -> bool {
        let height = self.context.chain.height();
        if height > HEIGHT + BLOCKS_MAX {
            return true;
        }
        let provider = match &self.provider {
            Provider::Honest(seller) => seller.is_done(),
            Provider::Crook(_) => self.context.chain.mempool().is_empty(),
        };
        provider
            && self.subscribers.iter().all(|subscriber| match subscriber {
                Subscriber::Honest(customer) => customer.is_done(),
                Subscriber::Cheat(cheat) => cheat.is_done(&self.context),
            })
    }

    fn settle_accounts(&mut self) -> Result<(), Violation> {
        if let Provider::Honest(seller) = &mut self.provider {
            seller.settle_accounts(&mut self.context)?;
        }
        for subscriber in &self.subscribers {
            if let Subscriber::Honest(customer) = subscriber {
                customer.settle_accounts(&self.context)?;
            }
        }
        Ok(())
    }
}

/// The n-th coin that a party begins with.
pub fn coin(party: usize, n: u32, value: Amount) -> (OutPoint, TxOut) {
    let mut txid = [0; 32];
    txid[0] = u8::try_from(party).unwrap_or(u8::MAX);
    txid[31] = 1;
    let script_pubkey = Owner(party).script();
    (OutPoint::new(Txid::from_byte_array(txid), n), TxOut { value, script_pubkey })
}

/// Each channel's journal, an event a line.
fn journals<E: Serialize>(name: &str, entries: &[Entry<E>]) -> Vec<(&'static str, String, String)> {
    let mut journals: BTreeMap<ChannelId, String> = BTreeMap::new();
    for entry in entries {
        if let Entry::Channel { channel, event } = entry {
            let journal = journals.entry(*channel).or_default();
            journal.push_str(&serde_json::to_string(event).unwrap_or_default());
            journal.push('\n');
        }
    }
    let named = |(i, journal)| ("journal", format!("{name}-{i}"), journal);
    journals.into_values().enumerate().map(named).collect()
}
