//! A chain in memory: blocks, coins, a mempool with the rules that a claim has to live with, and
//! reorganisations.
//!
//! What is not modelled: packages handed in together, the mempool's size, orphaned transactions.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bitmesh_core::{
    bitcoin::{
        Amount, Block, BlockHash, CompactTarget, FeeRate, OutPoint, Transaction, TxMerkleNode,
        TxOut, Txid, Wtxid,
        block::{Header, Version},
        hashes::Hash,
    },
    channel::FINAL_DEPTH_BLOCKS,
};

use super::spend::{self, Invalid};

/// What a replacement pays for its own relay, and the least that is relayed: 1 sat/vB.
pub const RELAY_RATE: FeeRate = FeeRate::from_sat_per_kwu(250);
/// Most virtual octets of a version 3 transaction (BIP431).
const TRUC_VSIZE_MAX: u64 = 10_000;
/// The same of one with an unconfirmed parent.
const TRUC_CHILD_VSIZE_MAX: u64 = 1_000;
/// Smallest output that is relayed to a P2WPKH script, in satoshi.
const DUST_P2WPKH: Amount = Amount::from_sat(294);

/// An output that nothing has spent.
#[derive(Clone, Debug)]
pub struct Coin {
    /// What it is.
    pub output: TxOut,
    /// Block that holds it.
    pub height: u32,
}

/// Why a node does not take a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reject {
    /// An input that is not there, or spent.
    Missing(OutPoint),
    /// A lock time that has not come.
    NotFinal,
    /// Outputs are worth more than inputs.
    Overspent,
    /// A signature or script that does not hold.
    Invalid(Invalid),
    /// Below what the mempool asks for.
    FeeTooLow,
    /// Against BIP431.
    Truc,
    /// An output that costs more to spend than it is worth.
    Dust,
    /// Conflicts with what pays as much.
    Replacement,
}

/// A transaction that waits for a block.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// The transaction.
    pub tx: Arc<Transaction>,
    /// Its name.
    pub txid: Txid,
    /// What it pays, in satoshi.
    pub fee: u64,
    /// Its virtual size.
    pub vsize: u64,
}

impl Waiting {
    fn spends(&self, outpoint: &OutPoint) -> bool {
        self.tx.input.iter().any(|input| input.previous_output == *outpoint)
    }

    fn is_child_of(&self, txid: &Txid) -> bool {
        self.tx.input.iter().any(|input| input.previous_output.txid == *txid)
    }
}

struct Mined {
    block: Arc<Block>,
    hash: BlockHash,
    spent: Vec<(OutPoint, Coin)>,
}

/// The chain, and the one mempool that everybody uses.
pub struct Chain {
    base: u32,
    blocks: Vec<Mined>,
    coins: BTreeMap<OutPoint, Coin>,
    confirmed: BTreeSet<Txid>,
    mempool: Vec<Waiting>,
    /// What was spent for good, until a reorganisation undid even that.
    reopened: BTreeSet<OutPoint>,
    /// Transactions whose witnesses were found good: they stay it, whatever happens to the chain.
    valid: RefCell<BTreeSet<Wtxid>>,
    salt: u32,
    /// What the next block asks for, in satoshi per 1,000 weight units.
    pub level: FeeRate,
}

impl Chain {
    /// A chain whose tip is at `height` and whose first coins are `coins`.
    pub fn new(height: u32, coins: Vec<(OutPoint, TxOut)>, time: u64) -> Self {
        let coins = coins
            .into_iter()
            .map(|(outpoint, output)| (outpoint, Coin { output, height }))
            .collect();
        let mut chain = Self {
            base: height,
            blocks: Vec::new(),
            coins,
            confirmed: BTreeSet::new(),
            mempool: Vec::new(),
            reopened: BTreeSet::new(),
            valid: RefCell::default(),
            salt: 0,
            level: RELAY_RATE,
        };
        chain.push(&[], Vec::new(), time);
        chain
    }

    /// Height of the tip.
    pub fn height(&self) -> u32 {
        self.base + u32::try_from(self.blocks.len()).unwrap_or(u32::MAX) - 1
    }

    /// Height of the first block.
    pub fn first(&self) -> u32 {
        self.base
    }

    /// The block at a height, with its hash.
    pub fn block(&self, height: u32) -> Option<(&Arc<Block>, BlockHash)> {
        let index = height.checked_sub(self.base)?;
        self.blocks.get(index as usize).map(|mined| (&mined.block, mined.hash))
    }

    /// An output that is in a block and not spent by one.
    pub fn coin(&self, outpoint: &OutPoint) -> Option<&Coin> {
        self.coins.get(outpoint)
    }

    /// The transaction of the chain that spends an output, and its block's height.
    pub fn spender(&self, outpoint: &OutPoint) -> Option<(&Transaction, u32)> {
        (self.base..).zip(&self.blocks).find_map(|(height, mined)| {
            let spends =
                |tx: &&Transaction| tx.input.iter().any(|input| input.previous_output == *outpoint);
            Some((mined.block.txdata.iter().find(spends)?, height))
        })
    }

    /// The block that holds a transaction.
    pub fn height_of(&self, txid: &Txid) -> Option<u32> {
        let holds = |mined: &Mined| mined.block.txdata.iter().any(|tx| tx.compute_txid() == *txid);
        (self.base..).zip(&self.blocks).find_map(|(at, mined)| holds(mined).then_some(at))
    }

    /// What the inputs of a transaction are worth, as the blocks know them.
    pub fn input_value(&self, tx: &Transaction) -> Option<Amount> {
        let value = |outpoint: &OutPoint| {
            let coins = || self.blocks.iter().flat_map(|mined| &mined.spent);
            self.coins
                .get(outpoint)
                .or_else(|| coins().find(|(spent, _)| spent == outpoint).map(|(_, coin)| coin))
                .map(|coin| coin.output.value)
        };
        tx.input.iter().map(|input| value(&input.previous_output)).sum()
    }

    /// What waits for a block.
    pub fn mempool(&self) -> &[Waiting] {
        &self.mempool
    }

    /// Takes a transaction from somebody; one that is known is taken again.
    pub fn accept(&mut self, tx: &Transaction) -> Result<(), Reject> {
        let txid = tx.compute_txid();
        if self.mempool.iter().any(|known| known.txid == txid) || self.confirmed.contains(&txid) {
            return Ok(());
        }
        let prevouts = self.prevouts(tx)?;
        let fee = self.judge(tx, &prevouts)?;
        let vsize = tx.vsize() as u64;
        if fee < least_fee(self.mempool_min(), vsize) {
            return Err(Reject::FeeTooLow);
        }
        if tx.output.iter().any(is_dust) {
            return Err(Reject::Dust);
        }
        let siblings = self.check_truc(tx, vsize)?;
        self.make_way(tx, fee, vsize, &siblings)?;
        self.mempool.push(Waiting { tx: Arc::new(tx.clone()), txid, fee, vsize });
        Ok(())
    }

    /// The least that the mempool takes: with many waiting, a part of what blocks ask for.
    pub fn mempool_min(&self) -> FeeRate {
        RELAY_RATE.max(FeeRate::from_sat_per_kwu(self.level.to_sat_per_kwu() / 8))
    }

    fn prevouts(&self, tx: &Transaction) -> Result<Vec<TxOut>, Reject> {
        let find = |outpoint: &OutPoint| {
            let waiting = || {
                let parent = self.mempool.iter().find(|known| known.txid == outpoint.txid)?;
                parent.tx.output.get(outpoint.vout as usize).cloned()
            };
            let coin = self.coins.get(outpoint).map(|coin| coin.output.clone());
            coin.or_else(waiting).ok_or(Reject::Missing(*outpoint))
        };
        tx.input.iter().map(|input| find(&input.previous_output)).collect()
    }

    /// What consensus says of a transaction in the next block; its fee.
    fn judge(&self, tx: &Transaction, prevouts: &[TxOut]) -> Result<u64, Reject> {
        if !spend::is_final(tx, self.height() + 1) {
            return Err(Reject::NotFinal);
        }
        let sum = |outputs: &[TxOut]| outputs.iter().map(|output| output.value).sum::<Amount>();
        let fee = sum(prevouts).checked_sub(sum(&tx.output)).ok_or(Reject::Overspent)?;
        let name = tx.compute_wtxid();
        if !self.valid.borrow().contains(&name) {
            spend::verify(tx, prevouts).map_err(Reject::Invalid)?;
            self.valid.borrow_mut().insert(name);
        }
        Ok(fee.to_sat())
    }

    /// BIP431's limits; the siblings that the transaction would have to replace.
    fn check_truc(&self, tx: &Transaction, vsize: u64) -> Result<Vec<Txid>, Reject> {
        let is_parent = |known: &&Waiting| {
            tx.input.iter().any(|input| input.previous_output.txid == known.txid)
        };
        let parents: Vec<_> = self.mempool.iter().filter(is_parent).collect();
        if tx.version.0 != 3 {
            let fits = parents.iter().all(|parent| parent.tx.version.0 != 3);
            return if fits { Ok(Vec::new()) } else { Err(Reject::Truc) };
        }
        let Some(parent) = parents.first() else {
            return if vsize <= TRUC_VSIZE_MAX { Ok(Vec::new()) } else { Err(Reject::Truc) };
        };
        let grandparent = self.mempool.iter().any(|known| parent.is_child_of(&known.txid));
        if parents.len() > 1
            || grandparent
            || parent.tx.version.0 != 3
            || vsize > TRUC_CHILD_VSIZE_MAX
        {
            return Err(Reject::Truc);
        }
        let siblings = self.mempool.iter().filter(|known| known.is_child_of(&parent.txid));
        Ok(siblings.map(|sibling| sibling.txid).collect())
    }

    /// Replacement by fee: what conflicts goes, with its descendants, if the newcomer pays more than
    /// all of them, for its own relay, and at a higher rate.
    fn make_way(
        &mut self,
        tx: &Transaction,
        fee: u64,
        vsize: u64,
        siblings: &[Txid],
    ) -> Result<(), Reject> {
        let conflicts = |known: &&Waiting| {
            siblings.contains(&known.txid)
                || tx.input.iter().any(|input| known.spends(&input.previous_output))
        };
        let direct: Vec<_> = self.mempool.iter().filter(conflicts).cloned().collect();
        if direct.is_empty() {
            return Ok(());
        }
        let slower = |known: &Waiting| fee * known.vsize > known.fee * vsize;
        let gone = self.with_descendants(direct.iter().map(|known| known.txid).collect());
        let sum: u64 =
            self.mempool.iter().filter(|known| gone.contains(&known.txid)).map(|k| k.fee).sum();
        let spends_gone = tx.input.iter().any(|input| gone.contains(&input.previous_output.txid));
        if spends_gone || !direct.iter().all(slower) || fee < sum + least_fee(RELAY_RATE, vsize) {
            return Err(Reject::Replacement);
        }
        self.mempool.retain(|known| !gone.contains(&known.txid));
        Ok(())
    }

    fn with_descendants(&self, mut txids: Vec<Txid>) -> Vec<Txid> {
        let mut looked = 0;
        while let Some(txid) = txids.get(looked).copied() {
            looked += 1;
            for known in self.mempool.iter().filter(|known| known.is_child_of(&txid)) {
                if !txids.contains(&known.txid) {
                    txids.push(known.txid);
                }
            }
        }
        txids
    }

    /// A block on the tip, of what pays for it, parents with their children.
    pub fn mine(&mut self, time: u64) {
        let chosen = self.choose();
        self.push(&chosen, Vec::new(), time);
    }

    fn choose(&self) -> Vec<Arc<Transaction>> {
        let mut chosen: Vec<&Waiting> = Vec::new();
        // Each with its ancestors, as a miner sees it: at most one of each here.
        for waiting in &self.mempool {
            let mut package = vec![waiting];
            while let Some(parent) = self.mempool.iter().find(|known| {
                package.iter().any(|tx| tx.is_child_of(&known.txid))
                    && !package.iter().any(|tx| tx.txid == known.txid)
            }) {
                package.push(parent);
            }
            package.retain(|tx| !chosen.iter().any(|known| known.txid == tx.txid));
            let fee: u64 = package.iter().map(|tx| tx.fee).sum();
            let vsize: u64 = package.iter().map(|tx| tx.vsize).sum();
            if fee >= least_fee(self.level, vsize) {
                chosen.extend(package.into_iter().rev());
            }
        }
        chosen.into_iter().map(|waiting| Arc::clone(&waiting.tx)).collect()
    }

    fn push(&mut self, transactions: &[Arc<Transaction>], first: Vec<Transaction>, time: u64) {
        let height = self.base + u32::try_from(self.blocks.len()).unwrap_or(u32::MAX);
        let mut spent = Vec::new();
        let mut txdata = first;
        txdata.extend(transactions.iter().map(|tx| Transaction::clone(tx)));
        for tx in &txdata {
            let txid = tx.compute_txid();
            self.confirmed.insert(txid);
            for input in &tx.input {
                if let Some(coin) = self.coins.remove(&input.previous_output) {
                    spent.push((input.previous_output, coin));
                }
            }
            for (vout, output) in (0..).zip(&tx.output) {
                let coin = Coin { output: output.clone(), height };
                self.coins.insert(OutPoint::new(txid, vout), coin);
            }
        }
        if !self.mempool.is_empty() && !txdata.is_empty() {
            self.settle(&txdata);
        }
        self.salt += 1;
        let header = Header {
            version: Version::TWO,
            prev_blockhash: self.blocks.last().map_or(BlockHash::all_zeros(), |last| last.hash),
            merkle_root: TxMerkleNode::all_zeros(),
            time: u32::try_from(time).unwrap_or(u32::MAX),
            bits: CompactTarget::from_consensus(0),
            nonce: self.salt,
        };
        let hash = header.block_hash();
        self.blocks.push(Mined { block: Arc::new(Block { header, txdata }), hash, spent });
    }

    /// Takes out of the mempool what a block holds and what contradicts it.
    fn settle(&mut self, txdata: &[Transaction]) {
        let txids: Vec<_> = txdata.iter().map(Transaction::compute_txid).collect();
        self.mempool.retain(|known| !txids.contains(&known.txid));
        let spent = |known: &Waiting| {
            let mut inputs = txdata.iter().flat_map(|tx| &tx.input);
            inputs.any(|input| known.spends(&input.previous_output))
        };
        let direct = self.mempool.iter().filter(|known| spent(known)).map(|known| known.txid);
        let gone = self.with_descendants(direct.collect());
        self.mempool.retain(|known| !gone.contains(&known.txid));
    }

    /// Whether a spend of this was final, and undone.
    pub fn was_reopened(&self, outpoint: &OutPoint) -> bool {
        self.reopened.contains(outpoint)
    }

    /// The last `depth` blocks give way to one more than that, of which the first holds `favoured`
    /// as far as it is valid; what was in them waits again. How deep it went.
    pub fn reorganise(&mut self, depth: u32, favoured: &[Transaction], time: u64) -> u32 {
        let mut back = Vec::new();
        let mut undone = 0;
        while undone < depth && self.blocks.len() > 1 {
            let Some(mined) = self.blocks.pop() else { break };
            for tx in mined.block.txdata.iter().rev() {
                let txid = tx.compute_txid();
                if undone + 1 >= FINAL_DEPTH_BLOCKS {
                    self.reopened.extend(tx.input.iter().map(|input| input.previous_output));
                }
                self.confirmed.remove(&txid);
                for vout in (0..).take(tx.output.len()) {
                    self.coins.remove(&OutPoint::new(txid, vout));
                }
            }
            self.coins.extend(mined.spent);
            back.splice(0..0, mined.block.txdata.iter().cloned());
            undone += 1;
        }
        let mut first = Vec::new();
        for tx in favoured {
            let valid = self.prevouts(tx).and_then(|prevouts| self.judge(tx, &prevouts));
            let confirmed = |input: &OutPoint| self.coins.contains_key(input);
            if valid.is_ok() && tx.input.iter().all(|input| confirmed(&input.previous_output)) {
                first.push(tx.clone());
            }
        }
        self.push(&[], first, time);
        self.restore(back);
        for _ in 0..undone {
            self.mine(time);
        }
        undone
    }

    /// What left the chain waits again, ahead of what depends on it, unless it is contradicted.
    fn restore(&mut self, back: Vec<Transaction>) {
        let waiting = std::mem::take(&mut self.mempool);
        let back = back.into_iter().map(Arc::new);
        for tx in back.chain(waiting.into_iter().map(|known| known.tx)) {
            let taken = tx
                .input
                .iter()
                .any(|input| self.mempool.iter().any(|known| known.spends(&input.previous_output)));
            let txid = tx.compute_txid();
            if taken || self.confirmed.contains(&txid) {
                continue;
            }
            let Ok(prevouts) = self.prevouts(&tx) else { continue };
            let sum =
                |outputs: &[TxOut]| outputs.iter().map(|output| output.value.to_sat()).sum::<u64>();
            let Some(fee) = sum(&prevouts).checked_sub(sum(&tx.output)) else { continue };
            if spend::is_final(&tx, self.height() + 1) {
                let vsize = tx.vsize() as u64;
                self.mempool.push(Waiting { tx, txid, fee, vsize });
            }
        }
    }
}

/// What a transaction of a size pays at least at a rate, in satoshi.
pub fn least_fee(rate: FeeRate, vsize: u64) -> u64 {
    rate.to_sat_per_kwu().saturating_mul(vsize * 4).div_ceil(1_000)
}

fn is_dust(output: &TxOut) -> bool {
    let script = &output.script_pubkey;
    let least = if script.is_op_return() {
        Amount::ZERO
    } else if script.is_p2wpkh() {
        DUST_P2WPKH
    } else {
        bitmesh_core::channel::DUST
    };
    output.value < least
}
