//! What a block has to be before anything believes it.

use bitcoin::{
    Block, BlockHash, CompactTarget, Network, Target, block::Header, consensus::Params,
    hashes::Hash as _,
};
use bitmesh_core::bitcoin;

use super::{ChainError, ChainSource};

/// The block on which the next one has to fit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tip {
    pub(super) height: u32,
    pub(super) header: Header,
}

/// Checks that `block` is the one called `hash` and follows `tip`: its header's work is what the
/// one before allows, its transactions and their witnesses are those that it commits to.
///
/// Signet's signature and the scripts are not checked: who makes a false block pays for its work.
pub(super) fn verify(
    network: Network,
    tip: &Tip,
    block: &Block,
    hash: BlockHash,
) -> Result<(), ChainError> {
    verify_header(network, tip, &block.header, hash)?;
    verify_body(tip.height.saturating_add(1), block)
}

/// A block by its hash, whole. That it belongs to the chain is to be known from what follows it.
pub async fn whole_block(
    source: &dyn ChainSource,
    height: u32,
    hash: BlockHash,
) -> Result<Block, ChainError> {
    let block = source.block(hash).await?;
    let invalid = |what| ChainError::Invalid { height, what };
    if block.block_hash() != hash {
        return Err(invalid("is not the one that was asked for"));
    }
    if block.header.validate_pow(block.header.target()).is_err() {
        return Err(invalid("lacks the work that it claims"));
    }
    verify_body(height, &block)?;
    Ok(block)
}

fn verify_body(height: u32, block: &Block) -> Result<(), ChainError> {
    let invalid = |what| ChainError::Invalid { height, what };
    if !block.check_merkle_root() || repeats(block) {
        return Err(invalid("has other transactions than its header commits to"));
    }
    if !block.check_witness_commitment() {
        return Err(invalid("has other witnesses than its header commits to"));
    }
    Ok(())
}

/// The same, as far as the header tells.
pub(super) fn verify_header(
    network: Network,
    tip: &Tip,
    header: &Header,
    hash: BlockHash,
) -> Result<(), ChainError> {
    let height = tip.height.saturating_add(1);
    let invalid = |what| ChainError::Invalid { height, what };
    if header.block_hash() != hash {
        return Err(invalid("is not the one that was asked for"));
    }
    if header.prev_blockhash != tip.header.block_hash() {
        return Err(invalid("does not follow the one before"));
    }
    if !may_follow(network, height, tip.header.bits, header.bits) {
        return Err(invalid("has a difficulty that it can't have"));
    }
    if header.validate_pow(header.target()).is_err() {
        return Err(invalid("lacks the work that it claims"));
    }
    Ok(())
}

/// Whether a block at `height` may have `bits` after one of `before`.
///
/// Every 2,016 blocks the target changes by at most a factor of 4, and never in between. By how
/// much is left open: that needs headers from before the wallet's birthday.
fn may_follow(network: Network, height: u32, before: CompactTarget, bits: CompactTarget) -> bool {
    let params = Params::new(network);
    let target = Target::from_compact(bits);
    if target > params.max_attainable_target {
        return false;
    }
    if params.allow_min_difficulty_blocks && !params.no_pow_retargeting {
        return true; // test networks give in when nobody mines
    }
    let retargets = u64::from(height).is_multiple_of(params.difficulty_adjustment_interval());
    if !retargets || params.no_pow_retargeting {
        return bits == before;
    }
    let before = Target::from_compact(before);
    // A header has room for three octets of the target, the rest is cut off.
    let least = Target::from_compact(before.min_transition_threshold().to_compact_lossy());
    target >= least && target <= before.max_transition_threshold(&params)
}

/// Whether a transaction is in it twice: the same merkle root can be had so (CVE-2012-2459).
fn repeats(block: &Block) -> bool {
    let mut ids: Vec<_> = block.txdata.iter().map(|tx| tx.compute_txid().to_byte_array()).collect();
    ids.sort_unstable();
    ids.windows(2).any(|pair| pair.first() == pair.last())
}

#[cfg(test)]
pub(super) mod tests {
    use bitcoin::{
        Amount, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Txid, Witness,
        absolute::LockTime, constants::genesis_block, transaction::Version,
    };

    use super::*;

    fn coinbase(height: u32) -> Transaction {
        Transaction {
            version: Version::TWO,
            lock_time: LockTime::ZERO,
            input: vec![TxIn {
                previous_output: OutPoint::null(),
                script_sig: ScriptBuf::builder().push_int(i64::from(height)).into_script(),
                sequence: Sequence::MAX,
                witness: Witness::new(),
            }],
            output: vec![TxOut { value: Amount::ONE_BTC, script_pubkey: ScriptBuf::new() }],
        }
    }

    /// A block on top of another with regtest's work, which takes a hash or two.
    pub(in crate::chain) fn mine(tip: &Tip, salt: u32, more: Vec<Transaction>) -> Block {
        let mut txdata = vec![coinbase(tip.height + 1)];
        txdata.extend(more);
        let mut block = Block { header: tip.header, txdata };
        block.header.prev_blockhash = tip.header.block_hash();
        block.header.time += 600 + salt;
        work(block)
    }

    fn work(mut block: Block) -> Block {
        block.header.merkle_root = block.compute_merkle_root().unwrap();
        while block.header.validate_pow(block.header.target()).is_err() {
            block.header.nonce += 1;
        }
        block
    }

    pub(in crate::chain) fn genesis() -> Tip {
        Tip { height: 0, header: genesis_block(Network::Regtest).header }
    }

    fn spend(witness: &[u8]) -> Transaction {
        let mut tx = coinbase(7);
        tx.input[0].previous_output = OutPoint::new(Txid::all_zeros(), 1);
        tx.input[0].witness = Witness::from_slice(&[witness]);
        tx
    }

    fn verdict(block: &Block) -> Result<(), ChainError> {
        verify(Network::Regtest, &genesis(), block, block.block_hash())
    }

    #[test]
    fn p17_a_block_has_to_be_what_its_hash_says_and_fit() {
        let tip = genesis();
        let block = mine(&tip, 0, vec![coinbase(7)]);
        let hash = block.block_hash();
        assert_eq!(verify(Network::Regtest, &tip, &block, hash), Ok(()));
        assert!(verify(Network::Regtest, &tip, &block, tip.header.block_hash()).is_err());
        let next = Tip { height: 1, header: block.header };
        assert!(verify(Network::Regtest, &next, &block, hash).is_err());
        let mut emptied = block.clone();
        emptied.txdata.clear();
        assert!(verdict(&emptied).is_err());
        let mut lazy = block;
        while lazy.header.validate_pow(lazy.header.target()).is_ok() {
            lazy.header.nonce += 1;
        }
        let error = verdict(&lazy).unwrap_err().to_string();
        assert!(error.contains("work"), "{error}");
    }

    #[test]
    fn p17_a_transaction_that_is_repeated_is_seen_through() {
        let block = mine(&genesis(), 0, vec![coinbase(7), coinbase(8)]);
        assert_eq!(verdict(&block), Ok(()));
        let mut doubled = block.clone();
        doubled.txdata.push(block.txdata[2].clone());
        assert_eq!(doubled.compute_merkle_root(), Some(block.header.merkle_root));
        assert!(verdict(&doubled).is_err());
    }

    #[test]
    fn p17_a_witness_that_is_changed_is_seen_through() {
        let mut block = mine(&genesis(), 0, vec![spend(b"signature")]);
        assert!(verdict(&block).is_err(), "nothing commits to the witness");
        let reserved = [0; 32];
        block.txdata[0].input[0].witness = Witness::from_slice(&[reserved]);
        let root = block.witness_root().unwrap();
        let commitment = Block::compute_witness_commitment(&root, &reserved);
        let mut script = vec![0x6a, 0x24, 0xaa, 0x21, 0xa9, 0xed];
        script.extend(commitment.to_byte_array());
        let output = TxOut { value: Amount::ZERO, script_pubkey: script.into() };
        block.txdata[0].output.push(output);
        let mut block = work(block);
        assert_eq!(verdict(&block), Ok(()));
        block.txdata[1].input[0].witness = Witness::from_slice(&[b"forgery"]);
        assert!(verdict(&block).is_err());
    }

    #[test]
    fn p17_work_gets_cheaper_only_when_it_may_and_by_no_more_than_it_may() {
        let may = |network, height, before, bits| {
            let [before, bits] = [before, bits].map(CompactTarget::from_consensus);
            may_follow(network, height, before, bits)
        };
        let mainnet = |height, before, bits| may(Network::Bitcoin, height, before, bits);
        // The chain's first change.
        assert!(mainnet(32_256, 0x1d00_ffff, 0x1d00_d86a));
        assert!(!mainnet(32_257, 0x1d00_ffff, 0x1d00_d86a));
        assert!(mainnet(32_257, 0x1d00_d86a, 0x1d00_d86a));
        assert!(!mainnet(201_600, 0x1a05_7e08, 0x1d00_ffff), "the least work there is");
        assert!(mainnet(201_600, 0x1a05_7e08, 0x1a15_f820), "four times the target");
        assert!(!mainnet(201_600, 0x1a05_7e08, 0x1a15_f821));
        assert!(mainnet(201_600, 0x1a05_7e0b, 0x1a01_5f82), "a quarter, rounded down");
        assert!(!mainnet(201_600, 0x1a05_7e0b, 0x1a01_5f81));
        assert!(!mainnet(32_256, 0x1d00_ffff, 0x1d01_ffff), "beyond the chain's limit");
        assert!(may(Network::Testnet4, 100, 0x1c00_ffff, 0x1d00_ffff));
        assert!(!may(Network::Testnet4, 100, 0x1d00_ffff, 0x207f_ffff));
        assert!(may(Network::Regtest, 2_016, 0x207f_ffff, 0x207f_ffff));
        assert!(!may(Network::Regtest, 2_016, 0x207f_ffff, 0x1d00_ffff));
    }
}
