//! Two edges on one ledger in memory: controllers that lose what was not committed, kernels that go on
//! without them, a chain that is seen late and reorganised.

use std::collections::BTreeMap;

use bitcoin::{BlockHash, OutPoint, TxIn};

use super::super::*;
use crate::{
    channel::{
        Binding, Durable, Nonce, TIPS_KEPT, payment_sighash,
        testing::{self, PROVIDER, public_key, secp, secret_key, sign},
    },
    fleet::{EdgeNumber, FleetEntry, Late, LateId, Member, Taken},
    ledger::Counts,
    offer::tests::offer,
    wire::StationsRequest,
};

pub(super) const MIB: u64 = 1 << 20;
/// Height of the first block of the lab's chain.
const FIRST: u32 = 100;

pub(super) fn edge(index: usize) -> EdgeNumber {
    EdgeNumber::new(u16::try_from(index).unwrap()).unwrap()
}

pub(super) fn down(octets: u64) -> Usage {
    let down = Counts { octets: Octets(octets), ..Counts::default() };
    Usage { down, ..Usage::default() }
}

/// Where an account is, and what it has seen if it is on its way there.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) edge: usize,
    pub(super) stand: Option<Vec<(u32, BlockHash)>>,
}

impl Row {
    pub(super) fn is_at(&self, edge: usize) -> bool {
        self.edge == edge && self.stand.is_none()
    }
}

/// What a fleet's store keeps.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger {
    pub(super) events: Vec<(ChannelId, ProviderEvent)>,
    pub(super) usage: BTreeMap<Station, Usage>,
    blocks: [Vec<(u32, BlockHash)>; 2],
    pub(super) accounts: BTreeMap<AccountId, Row>,
    pub(super) members: BTreeMap<Member, AccountId>,
    next_key: [u32; 2],
    epochs: [u64; 2],
    /// What edges that were taken over had written down by then, and what they had used, once they
    /// told.
    pub(super) late: BTreeMap<LateId, LateRow>,
    /// Octets of it that no credit was left for.
    pub(super) lost: BTreeMap<AccountId, u64>,
}

/// What a station had used when its edge was taken over, in octets.
#[derive(Clone, Copy, Debug)]
pub(super) struct LateRow {
    account: AccountId,
    written: u64,
    used_late: Option<u64>,
}

impl Ledger {
    /// All or nothing; what this edge does not have it can't change.
    fn commit(&mut self, by: usize, entries: &[Entry<ProviderEvent>]) {
        for entry in entries {
            match entry {
                Entry::Channel { channel, event } => {
                    if !matches!(event, ProviderEvent::Opened { .. }) {
                        let account = self.members[&Member::Channel(*channel)];
                        assert_eq!(self.accounts[&account].edge, by, "{event:?}");
                    }
                    self.events.push((*channel, event.clone()));
                }
                Entry::Usage { station, usage } => {
                    let known = self.usage.entry(*station).or_default();
                    assert!(known.billed() <= usage.billed(), "a counter that went back");
                    *known = *usage;
                }
                Entry::Block { height, hash } => {
                    self.blocks[by].push((*height, *hash));
                    let surplus = self.blocks[by].len().saturating_sub(TIPS_KEPT as usize);
                    self.blocks[by].drain(..surplus);
                }
                Entry::BlockGone { height } => self.blocks[by].retain(|(at, _)| at < height),
                Entry::Fleet(entry) => self.commit_fleet(by, entry),
            }
        }
    }

    fn commit_fleet(&mut self, by: usize, entry: &FleetEntry) {
        match entry {
            FleetEntry::Member { member, account } => {
                let own = Row { edge: by, stand: None };
                let row = self.accounts.entry(*account).or_insert(own);
                assert_eq!(row.edge, by, "a member of another edge's account");
                let before = self.members.insert(*member, *account);
                let before = before.and_then(|account| self.accounts.get(&account));
                assert!(before.is_none_or(|row| row.is_at(by)), "a member of another edge's");
            }
            FleetEntry::AccountGone { account, channels } => {
                self.accounts.remove(account);
                self.events.retain(|(of, _)| !channels.contains(of));
                self.members.retain(|_, of| of != account);
            }
            FleetEntry::KeyIndex { next } => self.next_key[by] = *next,
            FleetEntry::HandOver { account, to, tips } => {
                let row = self.accounts.get_mut(account).filter(|row| row.edge == by).unwrap();
                *row = Row { edge: to.get().into(), stand: Some(tips.clone()) };
            }
            FleetEntry::CaughtUp { account } => {
                let row = self.accounts.get_mut(account).filter(|row| row.edge == by).unwrap();
                row.stand = None;
            }
            FleetEntry::Settled { late } => {
                let row = self.late.remove(late).expect("settled once");
                assert_eq!(self.accounts[&row.account].edge, by, "another edge's account");
                let debited = self.events.iter().rev().find_map(|(_, event)| match event {
                    ProviderEvent::UsedLate { late: id, octets } if id == late => Some(octets.0),
                    _ => None,
                });
                let used = row.used_late.expect("told before it is settled");
                *self.lost.entry(row.account).or_default() += used - debited.unwrap_or(0);
            }
        }
    }

    /// An edge's accounts are another's from now on.
    fn seize(&mut self, from: usize, by: usize) {
        self.epochs[from] += 1;
        let stand = self.blocks[from].clone();
        let ours = |account: &AccountId| self.accounts.get(account).is_some_and(|r| r.edge == from);
        for (member, account) in &self.members {
            if let Member::Station(station) = *member
                && ours(account)
            {
                let (edge, epoch) = (edge(from), self.epochs[from]);
                let (account, written) = (*account, self.written(station));
                let row = LateRow { account, written, used_late: None };
                self.late.insert(LateId { edge, epoch, station }, row);
            }
        }
        for row in self.accounts.values_mut().filter(|row| row.edge == from) {
            row.edge = by;
            row.stand.get_or_insert_with(|| stand.clone());
        }
    }

    /// An edge that was taken over tells what its kernel has.
    fn tell_late(&mut self, by: usize, kernel: &BTreeMap<Station, Slot>) {
        let untold = |id: &LateId, row: &LateRow| id.edge == edge(by) && row.used_late.is_none();
        for (id, row) in self.late.iter_mut().filter(|(id, row)| untold(id, row)) {
            let slot = kernel.get(&id.station).copied().unwrap_or_default();
            row.used_late = Some(LateId::used_late(Octets(row.written), Octets(slot.used)).0);
        }
        self.late.retain(|id, row| id.edge != edge(by) || row.used_late != Some(0));
    }

    /// What an edge is told of it.
    pub(super) fn told_late(&self, by: usize) -> Vec<Late> {
        let here = |row: &LateRow| self.accounts.get(&row.account).is_some_and(|r| r.is_at(by));
        let told = self.late.iter().filter(|(_, row)| here(row));
        let late = |(id, row): (&LateId, &LateRow)| {
            let octets = Octets(row.used_late?);
            Some(Late { id: *id, account: row.account, octets })
        };
        told.filter_map(late).collect()
    }

    fn of(&self, accounts: &BTreeSet<AccountId>, tips: Vec<(u32, BlockHash)>) -> Taken {
        let ours = |member| self.members.get(&member).is_some_and(|id| accounts.contains(id));
        let events = self.events.iter().filter(|(id, _)| ours(Member::Channel(*id))).cloned();
        let usage = self.usage.iter().filter(|(station, _)| ours(Member::Station(**station)));
        Taken {
            accounts: accounts.clone(),
            events: events.collect(),
            usage: usage.map(|(station, usage)| (*station, *usage)).collect(),
            tips,
        }
    }

    /// What an edge starts from.
    fn load(&self, by: usize) -> Taken {
        let own = self.accounts.iter().filter(|(_, row)| row.is_at(by));
        self.of(&own.map(|(id, _)| *id).collect(), self.blocks[by].clone())
    }

    /// What is on its way to an edge, but for what that knows.
    fn arriving(&self, to: usize, known: impl Fn(AccountId) -> bool) -> Vec<Taken> {
        let mut groups = BTreeMap::<_, BTreeSet<_>>::new();
        let on_the_way = |(id, row): &(&AccountId, &Row)| row.edge == to && !known(**id);
        for (id, row) in self.accounts.iter().filter(on_the_way) {
            if let Some(stand) = &row.stand {
                groups.entry(stand).or_default().insert(*id);
            }
        }
        groups.into_iter().map(|(stand, accounts)| self.of(&accounts, stand.clone())).collect()
    }

    /// Octets that a station is known to have used in its life.
    fn written(&self, station: Station) -> u64 {
        self.usage.get(&station).map_or(0, |usage| usage.billed().0)
    }

    /// Octets that an account's payments bought: a satoshi buys a MiB.
    pub(super) fn bought(&self, account: AccountId) -> u64 {
        let mut best = BTreeMap::new();
        for (id, event) in &self.events {
            if let ProviderEvent::Paid { paid, .. } = event
                && self.members.get(&Member::Channel(*id)) == Some(&account)
            {
                best.insert(*id, paid.to_sat());
            }
        }
        best.values().sum::<u64>() * MIB
    }
}

/// What a kernel honours.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Slot {
    pub(super) limit: u64,
    pub(super) used: u64,
}

/// Where the next commit of an edge is interrupted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Crash {
    BeforeCommit,
    AfterCommit,
    /// After so many of the actions that came of it.
    AfterActions(usize),
}

/// Where a start after a takeover is interrupted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Halt {
    /// Nothing passes any more.
    Voided,
    /// What was used late is in the ledger.
    Told,
    /// The kernel has nothing of it.
    Removed,
}

#[derive(Default)]
pub(super) struct Edge {
    pub(super) controller: Option<Controller>,
    pub(super) kernel: BTreeMap<Station, Slot>,
    pub(super) crash: Option<Crash>,
    pub(super) seized: bool,
}

/// A channel that the lab opened.
#[derive(Clone, Debug)]
pub(super) struct Opened {
    pub(super) id: ChannelId,
    pub(super) account: AccountId,
    params: ChannelParams,
    key: u8,
    /// Most that was acknowledged, in satoshi.
    pub(super) acknowledged: u64,
}

pub(super) struct Lab {
    pub(super) ledger: Ledger,
    pub(super) edges: [Edge; 2],
    chain: Vec<Arc<Block>>,
    salt: u32,
    pub(super) channels: Vec<Opened>,
    pub(super) now: Duration,
    nonce: u64,
    /// Octets that each account's stations were let through.
    pub(super) forwarded: BTreeMap<AccountId, u64>,
}

impl Lab {
    /// Both edges have seen the first block.
    pub(super) fn new() -> Self {
        let mut lab = Self {
            ledger: Ledger::default(),
            edges: Default::default(),
            chain: Vec::new(),
            salt: 0,
            channels: Vec::new(),
            now: Duration::ZERO,
            nonce: 0,
            forwarded: BTreeMap::new(),
        };
        lab.mine(vec![]);
        for edge in 0..2 {
            lab.start(edge);
            lab.see(edge, 1);
        }
        lab
    }

    pub(super) fn controller(&self, edge: usize) -> &Controller {
        self.edges[edge].controller.as_ref().expect("an edge that runs")
    }

    /// One more block, which nobody has seen yet.
    pub(super) fn mine(&mut self, transactions: Vec<Transaction>) {
        self.salt += 1;
        let mut block = testing::block(transactions, self.salt);
        if let Some(before) = self.chain.last() {
            block.header.prev_blockhash = before.block_hash();
        }
        self.chain.push(Arc::new(block));
    }

    /// The newest blocks leave the chain, and as many and one more come, with the same in them.
    pub(super) fn reorganise(&mut self, depth: usize) {
        let kept = self.chain.len().saturating_sub(depth).max(1);
        let gone = self.chain.split_off(kept);
        let mut transactions: Vec<_> = gone.iter().flat_map(|block| block.txdata.clone()).collect();
        for _ in 0..=gone.len() {
            self.mine(std::mem::take(&mut transactions));
        }
    }

    /// The newest blocks leave the chain.
    pub(super) fn lose(&mut self, depth: usize) {
        self.chain.truncate(self.chain.len().saturating_sub(depth).max(1));
    }

    /// An edge sees up to so many blocks of the chain.
    pub(super) fn see(&mut self, edge: usize, most: usize) {
        for _ in 0..most {
            let Some(controller) = &self.edges[edge].controller else { return };
            let tip = controller.book().tips().last();
            let at = |height: u32| self.chain.get(height.checked_sub(FIRST)? as usize).cloned();
            let next = match tip {
                None => Input::BlockConnected { height: FIRST, block: at(FIRST).unwrap() },
                Some((height, hash)) if at(height).is_none_or(|b| b.block_hash() != hash) => {
                    Input::BlockDisconnected { height }
                }
                Some((height, _)) => {
                    let Some(block) = at(height + 1) else { return };
                    Input::BlockConnected { height: height + 1, block }
                }
            };
            self.put(edge, next);
        }
    }

    /// What an edge that was taken over does first, up to a point.
    pub(super) fn settle_seizure(&mut self, by: usize, halt: Option<Halt>) {
        let Edge { kernel, seized, .. } = &mut self.edges[by];
        if !*seized {
            return;
        }
        for slot in kernel.values_mut() {
            slot.limit = slot.limit.min(slot.used);
        }
        if halt == Some(Halt::Voided) {
            return;
        }
        self.ledger.tell_late(by, kernel);
        if halt == Some(Halt::Told) {
            return;
        }
        kernel.clear();
        *seized = halt == Some(Halt::Removed);
    }

    /// From what is in the ledger.
    pub(super) fn start(&mut self, by: usize) {
        if self.edges[by].controller.is_some() {
            return;
        }
        self.settle_seizure(by, None);
        let mut controller = Controller::new(Network::Regtest, vec![]);
        controller.join(edge(by), self.ledger.next_key[by]);
        let own = self.ledger.load(by);
        for (channel, event) in own.events {
            controller.replay(&Entry::Channel { channel, event }).unwrap();
        }
        for (height, hash) in own.tips {
            controller.replay(&Entry::Block { height, hash }).unwrap();
        }
        for (station, usage) in own.usage {
            controller.replay(&Entry::Usage { station, usage }).unwrap();
        }
        let kernel = self.edges[by].kernel.iter();
        let kernel = kernel.map(|(station, slot)| (*station, Octets(slot.limit), down(slot.used)));
        controller.adopt(&kernel.collect::<Vec<_>>()).unwrap();
        let keys = bitcoin::secp256k1::Keypair::from_secret_key(&secp(), &secret_key(7));
        let offer = offer();
        let signature = secp().sign_schnorr_no_aux_rand(&offer.message(), &keys);
        let mut out = controller.resume();
        controller.handle(Input::Offer(SignedOffer { offer, signature }), &mut out);
        controller.handle(Input::Chain { synced: true }, &mut out);
        self.edges[by].controller = Some(controller);
        self.settle(by, out);
    }

    pub(super) fn put(&mut self, edge: usize, input: Input) -> Vec<Result<Answer, Refusal>> {
        let Some(controller) = &mut self.edges[edge].controller else { return vec![] };
        let mut out = Out::default();
        controller.handle(input, &mut out);
        controller.check_crowd();
        self.settle(edge, out)
    }

    /// Commits, then acts, as the loop does; gives the answers.
    pub(super) fn settle(&mut self, edge: usize, mut out: Out) -> Vec<Result<Answer, Refusal>> {
        let mut answers = Vec::new();
        loop {
            let crash = self.edges[edge].crash.take_if(|_| !out.entries().is_empty());
            if crash == Some(Crash::BeforeCommit) {
                self.edges[edge].controller = None;
                return answers;
            }
            self.ledger.commit(edge, out.entries());
            if crash == Some(Crash::AfterCommit) {
                self.edges[edge].controller = None;
                return answers;
            }
            let actions = out.release(&Durable::committed());
            if actions.is_empty() {
                return answers;
            }
            out = Out::default();
            let Edge { controller: Some(controller), kernel, .. } = &mut self.edges[edge] else {
                return answers;
            };
            let mut reclaimed = Vec::new();
            for (done, action) in actions.into_iter().enumerate() {
                if crash == Some(Crash::AfterActions(done)) {
                    self.edges[edge].controller = None;
                    return answers;
                }
                match action {
                    Action::Grant { station, limit, usage, .. } => {
                        let used = usage.billed().0;
                        kernel.entry(station).or_insert(Slot { limit: 0, used }).limit = limit.0;
                    }
                    Action::Reclaim { station, limit } => {
                        if let Some(slot) = kernel.get_mut(&station) {
                            slot.limit = limit.0;
                        }
                        reclaimed.push(station);
                    }
                    Action::TakeOff { account, stations } => {
                        let off = |station| {
                            let used = kernel.remove(&station)?.used;
                            assert_eq!(self.ledger.written(station), used, "forgotten by a crash");
                            Some((station, down(used)))
                        };
                        let readings = stations.into_iter().filter_map(off).collect();
                        controller.handle(Input::TakenOff { account, readings }, &mut out);
                    }
                    Action::Reply(_, answer) => answers.push(answer),
                    _ => {}
                }
            }
            if !reclaimed.is_empty() {
                let company = reclaimed.iter().flat_map(|station| controller.company(*station));
                let reading = |station| Some((station, down(kernel.get(&station)?.used)));
                let readings = company.filter_map(reading).collect();
                controller.handle(Input::Reclaimed { stations: reclaimed, readings }, &mut out);
            }
        }
    }

    /// A station opens a channel, which is not funded yet.
    pub(super) fn open(&mut self, edge: usize, from: u8, key: u8) -> Result<usize, Refusal> {
        let offer = self.controller(edge).offer().unwrap().offer.id();
        let open = OpenRequest {
            version: crate::channel::PROTOCOL_VERSION,
            offer,
            subscriber: public_key(key),
            capacity: Amount::from_sat(100_000),
            expiry_height: 1_000 + u32::from(key),
            remainder_script: testing::params().remainder_script,
        };
        let (request, station, provider_key) = (RequestId(1), station(from), public_key(PROVIDER));
        let input = Input::Open { request, station, open, provider_key, now: NOW };
        match self.put(edge, input).pop().expect("an answer") {
            Ok(Answer::Channel(report)) => {
                let (id, account) = (report.channel, report.account.unwrap());
                let params = report.params;
                self.channels.push(Opened { id, account, params, key, acknowledged: 0 });
                Ok(self.channels.len() - 1)
            }
            Ok(other) => panic!("{other:?}"),
            Err(refusal) => Err(refusal),
        }
    }

    pub(super) fn funding(&self, channel: usize) -> Transaction {
        let opened = &self.channels[channel];
        testing::funding_tx(&opened.params, opened.key)
    }

    /// A transaction that spends a channel's funding.
    pub(super) fn spend(&self, channel: usize) -> Transaction {
        let previous_output = OutPoint::new(self.funding(channel).compute_txid(), 1);
        let mut tx = self.funding(channel);
        tx.input = vec![TxIn { previous_output, ..TxIn::default() }];
        tx.output.truncate(1);
        tx
    }

    /// Channels of these stations at these edges, which take payments.
    pub(super) fn funded(stations: &[(usize, u8)]) -> Self {
        let mut lab = Self::new();
        for (edge, from) in stations {
            lab.open(*edge, *from, 20 + from).unwrap();
        }
        let fundings = (0..stations.len()).map(|channel| lab.funding(channel)).collect();
        lab.mine(fundings);
        lab.mine(vec![]);
        lab.see(0, 2);
        lab.see(1, 2);
        lab
    }

    pub(super) fn pay(&mut self, edge: usize, channel: usize, sum: u64) -> Result<(), Refusal> {
        let opened = &self.channels[channel];
        let outpoint = OutPoint::new(self.funding(channel).compute_txid(), 1);
        let paid = Amount::from_sat(sum);
        let message = payment_sighash(&opened.params, outpoint, paid).unwrap();
        let payment = PaymentRequest { paid, signature: sign(opened.key, message) };
        let (request, id) = (RequestId(2), opened.id);
        let input = Input::Pay { request, channel: id, payment, verified: None, station: None };
        match self.put(edge, input).pop() {
            Some(Ok(_)) => {
                let opened = &mut self.channels[channel];
                opened.acknowledged = opened.acknowledged.max(sum);
                Ok(())
            }
            Some(Err(refusal)) => Err(refusal),
            None => Err(Refusal::ChainLost),
        }
    }

    /// A channel's account pays for a station from now on.
    pub(super) fn bind(&mut self, edge: usize, channel: usize, to: u8) -> Result<(), Refusal> {
        self.nonce += 1;
        let opened = &self.channels[channel];
        let nonce: Nonce = self.nonce.to_be_bytes().into();
        let binding = Binding { station: None, remove: false, nonce, expires_at: None };
        let signature = sign(opened.key, binding.digest(&opened.id));
        let change = StationsRequest { binding, signature };
        let (request, peer, channel) = (RequestId(3), station(to), opened.id);
        let ask = StationsAsk { request, peer, channel, change, now: NOW };
        let answer = self.put(edge, Input::Stations(ask)).pop();
        answer.map_or(Err(Refusal::ChainLost), |answer| answer.map(drop))
    }

    /// A station sends as much as it can of so many octets.
    pub(super) fn consume(&mut self, edge: usize, from: u8, octets: u64) -> u64 {
        // Its leases had ended when it was taken over.
        if self.edges[edge].seized {
            return 0;
        }
        let Some(slot) = self.edges[edge].kernel.get_mut(&station(from)) else { return 0 };
        let passed = octets.min(slot.limit.saturating_sub(slot.used));
        slot.used += passed;
        let account = self.ledger.members[&Member::Station(station(from))];
        *self.forwarded.entry(account).or_default() += passed;
        passed
    }

    pub(super) fn look(&mut self, edge: usize) {
        let kernel = self.edges[edge].kernel.iter();
        let readings = kernel.map(|(station, slot)| (*station, down(slot.used))).collect();
        self.put(edge, Input::Usage(readings));
    }

    /// An edge asks for an account that the other one has.
    pub(super) fn want(&mut self, by: usize, account: AccountId) {
        let now = self.now;
        self.put(1 - by, Input::Wanted { account, by: edge(by), now });
    }

    /// An edge is told what was used late.
    pub(super) fn hear_late(&mut self, by: usize) {
        let late = self.ledger.told_late(by);
        self.put(by, Input::UsedLate(late));
    }

    /// Octets that accounts' stations used at edges that were taken over, and that are not settled;
    /// some of that only the kernels know as yet.
    fn unsettled(&self, account: AccountId) -> u64 {
        let of = self.ledger.late.iter().filter(|(_, row)| row.account == account);
        let octets = of.map(|(id, row)| {
            let kernel = &self.edges[usize::from(id.edge.get())].kernel;
            let used = kernel.get(&id.station).map_or(0, |slot| slot.used);
            row.used_late.unwrap_or(used.saturating_sub(row.written))
        });
        octets.sum()
    }

    /// An edge takes in what is on its way there, with up to so many blocks.
    pub(super) fn take(&mut self, to: usize, blocks: usize) {
        let Some(controller) = &self.edges[to].controller else { return };
        let known = |id| controller.place(id) != Place::Elsewhere;
        for taken in self.ledger.arriving(to, known) {
            let Some(controller) = &mut self.edges[to].controller else { return };
            let mut out = Out::default();
            controller.take(taken, self.now, &mut out).unwrap();
            self.settle(to, out);
        }
        self.put(to, Input::Beat { now: self.now });
        for _ in 0..blocks {
            let controller = self.edges[to].controller.as_ref();
            let Some(Missing { height, hash }) = controller.and_then(Controller::missing) else {
                break;
            };
            let at = height.checked_sub(FIRST).and_then(|at| self.chain.get(at as usize));
            // The source may have forgotten a block that left its chain, and says nothing then.
            let fits = |block: &&Arc<Block>| hash.is_none_or(|hash| block.block_hash() == hash);
            let Some(block) = at.filter(fits).cloned() else { break };
            self.put(to, Input::Passed { height, block, now: self.now });
        }
    }

    /// An edge takes over the other one, whose leases have ended by then.
    pub(super) fn seize(&mut self, by: usize) {
        let from = 1 - by;
        self.ledger.seize(from, by);
        let fenced = &mut self.edges[from];
        (fenced.controller, fenced.crash, fenced.seized) = (None, None, true);
    }

    /// Whatever kernels honour was bought, and what was acknowledged is in the ledger.
    pub(super) fn check(&self) -> Result<(), String> {
        for account in self.ledger.accounts.keys() {
            let slots = self.edges.iter().filter(|edge| !edge.seized).flat_map(|edge| &edge.kernel);
            let own = slots.filter(|(station, _)| {
                self.ledger.members.get(&Member::Station(**station)) == Some(account)
            });
            let held: u64 = own.map(|(_, slot)| slot.limit.saturating_sub(slot.used)).sum();
            let of = |map: &BTreeMap<AccountId, u64>| map.get(account).copied().unwrap_or(0);
            let (forwarded, lost) = (of(&self.forwarded), of(&self.ledger.lost));
            let (bought, unsettled) = (self.ledger.bought(*account), self.unsettled(*account));
            if forwarded + held > bought + unsettled + lost {
                return Err(format!(
                    "{account}: {forwarded} forwarded and {held} held of {bought}, \
                     {unsettled} unsettled and {lost} lost"
                ));
            }
        }
        for opened in &self.channels {
            let paid = self.ledger.events.iter().filter_map(|(id, event)| match event {
                ProviderEvent::Paid { paid, .. } if *id == opened.id => Some(paid.to_sat()),
                _ => None,
            });
            let paid = paid.max().unwrap_or(0);
            if paid < opened.acknowledged {
                return Err(format!("{paid} of {} acknowledged", opened.acknowledged));
            }
        }
        Ok(())
    }
}
