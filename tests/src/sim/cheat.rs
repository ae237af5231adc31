//! A subscriber that sends whatever it can sign, and uses whatever it can get.

use bitmesh_core::{
    bitcoin::{
        Amount, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Witness,
        absolute::LockTime, transaction::Version,
    },
    channel::{
        ChannelParams, ChannelStatus, Close, PROTOCOL_VERSION, Refund, close_digest,
        funding_outpoint, payment_sighash,
    },
    offer::SignedOffer,
    wire::{CloseProposal, CloseRequest, OpenRequest, PaymentRequest},
};

use super::{
    chain::{Waiting, least_fee},
    kernel::{FRAME_MAX, Kernel},
    keys::{Owner, PROVIDER},
    seller::station,
    world::{Answer, Ask, COINS, Context, Event, coin},
};

/// What it does in all before it leaves only its refund to be fetched.
const DEEDS_MAX: u32 = 50;
/// Questions that it remembers, to repeat them.
const REMEMBERED: usize = 32;

/// A channel that it opened.
struct Opened {
    params: ChannelParams,
    key: u32,
    fundings: Vec<Transaction>,
}

/// The subscriber.
pub struct Cheat {
    index: usize,
    owner: Owner,
    next_key: u32,
    next_number: u64,
    opening: Option<(u32, OpenRequest, SignedOffer)>,
    channels: Vec<Opened>,
    asked: Vec<Ask>,
    paid: u64,
    deeds: u32,
    coins_used: u32,
    /// Transactions that a miner who is its friend takes in a reorganisation.
    rivals: Vec<Transaction>,
}

impl Cheat {
    /// One that has done nothing yet.
    pub fn new(index: usize, context: &mut Context) -> Self {
        context.after(1, Event::Step(index));
        Self {
            index,
            owner: Owner(index + 1),
            next_key: 0,
            next_number: 0,
            opening: None,
            channels: Vec::new(),
            asked: Vec::new(),
            paid: 0,
            deeds: DEEDS_MAX,
            coins_used: 0,
            rivals: Vec::new(),
        }
    }

    fn ask(&mut self, ask: Ask, context: &mut Context) {
        if self.asked.len() < REMEMBERED {
            self.asked.push(ask.clone());
        }
        let number = self.next_number;
        self.next_number += 1;
        context.ask(self.index, number, ask);
    }

    fn hand_in(&self, what: &str, tx: &Transaction, context: &mut Context) {
        let taken = context.chain.accept(tx);
        let index = self.index;
        context
            .note(|| format!("cheat {index} broadcasts {what} {}: {taken:?}", tx.compute_txid()));
    }

    /// Something, at random.
    pub fn step(&mut self, kernel: &mut Kernel, context: &mut Context) {
        if self.deeds == 0 {
            return;
        }
        self.deeds -= 1;
        let burst = context.rng.u32(0..8) > 0;
        let wait = if burst { context.rng.u64(10..2_000) } else { context.rng.u64(1..9_000_000) };
        context.after(wait, Event::Step(self.index));

        let frame = if context.rng.bool() { 1_500 } else { FRAME_MAX };
        let race = context.rng.bool();
        kernel.forward(station(self.index), context.rng.u64(0..8 << 20), frame, race);
        match context.rng.u32(0..16) {
            0 | 1 if self.channels.len() < COINS as usize => self.open(context),
            0..=2 => self.fund(context),
            3..=8 => self.pay(context),
            9 => self.pay_wrongly(context),
            10 => self.repeat(context),
            11 => self.refund(context),
            12 if context.one_in(6) => self.close(context),
            13 => self.rival(context),
            14 => self.pin(context),
            _ => {}
        }
    }

    fn open(&mut self, context: &mut Context) {
        let offer = context.offer.clone();
        let key = self.next_key;
        self.next_key += context.rng.u32(0..2);
        let open = OpenRequest {
            version: PROTOCOL_VERSION,
            offer: offer.offer.id(),
            subscriber: self.owner.public_key(key),
            capacity: context.plan.capacity,
            expiry_height: context.chain.height() + context.plan.lifetime,
            remainder_script: self.owner.script(),
        };
        self.opening = Some((key, open.clone(), offer));
        self.ask(Ask::Open(open), context);
    }

    /// An answer arrives.
    pub fn answered(&mut self, _number: u64, answer: Answer, context: &mut Context) {
        match answer {
            Answer::Paid(reply) => self.paid = self.paid.max(reply.paid.to_sat()),
            Answer::Channel(report) if report.status == ChannelStatus::Unfunded => {
                let known = |opened: &Opened| opened.params.id() == report.channel;
                let ours = self
                    .opening
                    .as_ref()
                    .filter(|(_, open, _)| report.params.subscriber == open.subscriber.into());
                if let (Some((key, ..)), false) = (ours, self.channels.iter().any(known)) {
                    let (params, key) = (report.params, *key);
                    self.channels.push(Opened { params, key, fundings: Vec::new() });
                    self.fund(context);
                }
            }
            _ => {}
        }
    }

    fn any(&self, context: &mut Context) -> Option<&Opened> {
        if self.channels.is_empty() {
            return None;
        }
        self.channels.get(context.rng.usize(0..self.channels.len()))
    }

    fn funding(&self, n: u32, script: ScriptBuf, context: &mut Context) -> Transaction {
        let capacity = context.plan.capacity;
        let (from, coin) = coin(self.index + 1, n, capacity + Amount::from_sat(2_000_000));
        let rate = if context.one_in(3) { context.chain.mempool_min() } else { context.estimate() };
        let fee = least_fee(rate, 160) + context.rng.u64(0..3_000);
        let change = Amount::from_sat(2_000_000u64.saturating_sub(fee));
        let own = self.owner.script();
        let output = vec![
            TxOut { value: capacity, script_pubkey: script },
            TxOut { value: change, script_pubkey: own },
        ];
        self.owner.spend(2, (from, &coin), output)
    }

    fn fund(&mut self, context: &mut Context) {
        if self.coins_used >= COINS || self.channels.is_empty() {
            return;
        }
        let at = context.rng.usize(0..self.channels.len());
        let Some(script) = self.channels.get(at).map(|opened| opened.params.funding_script())
        else {
            return;
        };
        let n = self.coins_used;
        let tx = self.funding(n, script, context);
        let rival = self.funding(n, self.owner.script(), context);
        self.coins_used += 1;
        if context.one_in(4) {
            self.hand_in("a rival funding", &rival, context);
        }
        if context.one_in(3) {
            let shown = if context.one_in(4) { rival.clone() } else { tx.clone() };
            let id = self.channels.get(at).map(|opened| opened.params.id());
            if let Some(id) = id {
                self.ask(Ask::Fund(id, shown), context);
            }
        }
        if !context.one_in(6) {
            self.hand_in("a funding", &tx, context);
        }
        self.rivals.push(rival);
        if let Some(opened) = self.channels.get_mut(at) {
            opened.fundings.push(tx);
        }
    }

    fn pay(&mut self, context: &mut Context) {
        let paid = self.paid;
        let Some(opened) = self.any(context) else { return };
        let Some(outpoint) =
            opened.fundings.first().and_then(|tx| funding_outpoint(&opened.params, tx))
        else {
            return;
        };
        let payable = opened.params.payable().to_sat();
        let step = payable / 10 + 1;
        let sum = match context.rng.u32(0..12) {
            0 => paid.saturating_sub(context.rng.u64(1..step)),
            1 => payable,
            2 => payable + 1,
            3 => u64::MAX,
            4 => paid,
            _ => paid + context.rng.u64(1..step),
        };
        let signed = Amount::from_sat(sum.min(payable));
        let Some(message) = payment_sighash(&opened.params, outpoint, signed) else { return };
        let signature = self.owner.sign(opened.key, message);
        let payment = PaymentRequest { paid: Amount::from_sat(sum), signature };
        let id = opened.params.id();
        self.ask(Ask::Pay(id, payment), context);
    }

    /// Signed by another key, for another sum, or over another output.
    fn pay_wrongly(&mut self, context: &mut Context) {
        let paid = self.paid;
        let Some(opened) = self.any(context) else { return };
        let Some(tx) = opened.fundings.last() else { return };
        let Some(outpoint) = funding_outpoint(&opened.params, tx) else { return };
        let payable = opened.params.payable();
        let sum = Amount::from_sat(paid + context.rng.u64(1..5_000)).min(payable);
        let (outpoint, signed, key) = match context.rng.u32(0..3) {
            0 => (OutPoint { vout: outpoint.vout ^ 1, ..outpoint }, sum, opened.key),
            1 => (outpoint, sum.checked_sub(Amount::ONE_SAT).unwrap_or_default(), opened.key),
            _ => (outpoint, sum, opened.key + 1),
        };
        let Some(message) = payment_sighash(&opened.params, outpoint, signed) else { return };
        let payment = PaymentRequest { paid: sum, signature: self.owner.sign(key, message) };
        let id = opened.params.id();
        self.ask(Ask::Pay(id, payment), context);
    }

    fn repeat(&mut self, context: &mut Context) {
        if self.asked.is_empty() {
            return;
        }
        let at = context.rng.usize(0..self.asked.len());
        if let Some(ask) = self.asked.get(at).cloned() {
            self.ask(ask, context);
        }
    }

    /// Asks for the close, and proposes one of any sum.
    fn close(&mut self, context: &mut Context) {
        let paid = self.paid;
        let Some(opened) = self.any(context) else { return };
        let id = opened.params.id();
        let signature = self.owner.sign(opened.key, close_digest(&id));
        let outpoint = opened.fundings.first().and_then(|tx| funding_outpoint(&opened.params, tx));
        let proposal = outpoint.and_then(|outpoint| {
            let paid = match context.rng.u32(0..4) {
                0 => Amount::from_sat(paid / 2),
                1 => Amount::ZERO,
                _ => Amount::from_sat(paid),
            };
            let fee = Amount::from_sat(context.rng.u64(100..20_000));
            let payout = PROVIDER.script();
            let close = Close::new(&opened.params, outpoint, paid, &payout, fee).ok()?;
            let signature = self.owner.sign(opened.key, close.sighash()?);
            Some(CloseProposal { paid, fee, signature })
        });
        let proposal = proposal.filter(|_| context.rng.bool());
        self.ask(Ask::Close(id, CloseRequest { signature, proposal }), context);
    }

    /// Too early, or not: the chain has to tell.
    fn refund(&mut self, context: &mut Context) {
        let rate = context.estimate();
        let height = context.chain.height();
        let early = context.rng.usize(0..self.channels.len().max(1));
        for (i, opened) in self.channels.iter().enumerate() {
            if i != early && height < opened.params.expiry_height {
                continue;
            }
            for tx in &opened.fundings {
                let Some(outpoint) = funding_outpoint(&opened.params, tx) else { continue };
                if context.chain.coin(&outpoint).is_none() {
                    continue;
                }
                let script = self.owner.script();
                let Ok(refund) = Refund::new(&opened.params, outpoint, &script, rate) else {
                    continue;
                };
                let Some(message) = refund.sighash() else { continue };
                if let Some(tx) = refund.finish(self.owner.sign(opened.key, message)) {
                    self.hand_in("a refund", &tx, context);
                    self.refund_without_lock(opened, tx, context);
                }
            }
        }
    }

    /// The same with a lock time that has come: its signature is over another.
    fn refund_without_lock(&self, opened: &Opened, mut tx: Transaction, context: &mut Context) {
        if context.chain.height() < opened.params.expiry_height {
            tx.lock_time = LockTime::ZERO;
            self.hand_in("a refund without its lock time", &tx, context);
        }
    }

    /// Spends a funding that is not in a block to itself, at a higher fee.
    fn rival(&mut self, context: &mut Context) {
        let waits = |tx: &&Transaction| {
            tx.input
                .first()
                .is_some_and(|input| context.chain.coin(&input.previous_output).is_some())
        };
        let rival = self.rivals.iter().find(waits).cloned();
        if let Some(mut rival) = rival {
            let more = context.rng.u64(1_000..60_000);
            if let Some(output) = rival.output.get_mut(1) {
                output.value = output.value.checked_sub(Amount::from_sat(more)).unwrap_or_default();
            }
            let Some(from) = rival.input.first().map(|input| input.previous_output) else { return };
            let Some(coin) = context.chain.coin(&from).map(|coin| coin.output.clone()) else {
                return;
            };
            let rival = self.owner.spend(2, (from, &coin), rival.output);
            self.hand_in("a rival of its funding", &rival, context);
        }
    }

    /// Hangs a descendant on its remainder in a claim that waits.
    fn pin(&mut self, context: &mut Context) {
        let own = self.owner.script();
        let of = |waiting: &Waiting| {
            let vout = waiting.tx.output.iter().position(|output| output.script_pubkey == own)?;
            let output = waiting.tx.output.get(vout)?.clone();
            let vout = u32::try_from(vout).ok()?;
            let claim = waiting.tx.version.0 == 3 && waiting.tx.output.len() > 1;
            claim.then_some((OutPoint::new(waiting.txid, vout), output))
        };
        let Some((from, coin)) = context.chain.mempool().iter().find_map(of) else { return };
        let large = context.rng.bool();
        let data = context.rng.usize(0..if large { 3_000 } else { 800 });
        let fee = least_fee(context.chain.mempool_min(), data as u64 + 130) + 10;
        let Some(value) = coin.value.checked_sub(Amount::from_sat(fee)) else { return };
        // One output to itself, one of ballast.
        let mut ballast = vec![0x6a];
        ballast.resize(data.max(1), 0);
        let version = if context.one_in(6) { 2 } else { 3 };
        let output = vec![
            TxOut { value, script_pubkey: own },
            TxOut { value: Amount::ZERO, script_pubkey: ScriptBuf::from(ballast) },
        ];
        let tx = self.owner.spend(version, (from, &coin), output);
        self.hand_in("a descendant", &tx, context);
    }

    /// What a miner who is its friend prefers.
    pub fn favoured(&self) -> Vec<Transaction> {
        self.rivals.clone()
    }

    /// A block was found: what can be refunded is, and nonsense is tried now and then.
    pub fn follow(&mut self, context: &mut Context) {
        let height = context.chain.height();
        let due = |opened: &Opened| {
            height >= opened.params.expiry_height && height % 3 == opened.params.expiry_height % 3
        };
        if self.channels.iter().any(due) {
            self.refund(context);
        }
        if context.one_in(200) {
            self.take_all(context);
        }
        if context.one_in(30) {
            self.pin(context);
        }
    }

    /// Spends a funding by its own signature alone, before the expiry.
    fn take_all(&self, context: &mut Context) {
        let Some(opened) = self.any(context) else { return };
        let Some(funding) = opened.fundings.first() else { return };
        let Some(outpoint) = funding_outpoint(&opened.params, funding) else { return };
        let Some(message) = payment_sighash(&opened.params, outpoint, Amount::ZERO) else { return };
        let mut signature = self.owner.sign(opened.key, message).serialize_der().to_vec();
        signature.push(0x83);
        let script = opened.params.witness_script().into_bytes();
        let witness = Witness::from_slice(&[Vec::new(), signature, script]);
        let sequence = Sequence::ENABLE_RBF_NO_LOCKTIME;
        let tx = Transaction {
            version: Version(3),
            lock_time: LockTime::ZERO,
            input: vec![TxIn { previous_output: outpoint, sequence, witness, ..TxIn::default() }],
            output: vec![TxOut {
                value: opened.params.capacity,
                script_pubkey: opened.params.remainder_script.clone(),
            }],
        };
        self.hand_in("a commitment that nobody else signed", &tx, context);
    }

    /// Whether nothing of its can change any more.
    pub fn is_done(&self, context: &Context) -> bool {
        let settled = |opened: &Opened| {
            opened.fundings.iter().all(|tx| {
                let Some(outpoint) = funding_outpoint(&opened.params, tx) else { return true };
                context.chain.coin(&outpoint).is_none()
            })
        };
        self.deeds == 0 && (self.channels.iter().all(settled) || context.chain.mempool().is_empty())
    }
}
