//! The chain as the peers' headers tell it: what has the most work, from a base that is believed.

use bip157::{
    HashCheckpoint,
    chain::{BlockHeaderChanges, ChainState, IndexedHeader},
};
use bitcoin::{BlockHash, Network, block::Header, constants::genesis_block};
use bitmesh_core::bitcoin;

use super::super::{
    ChainError,
    verify::{Tip, verify_header},
};

/// Headers that are kept below the blocks that are followed: two periods of the difficulty, so that
/// its next change can be computed.
const KEPT_BLOCKS: u32 = 4_032;
/// Fewest blocks seen before that are enough to start from the oldest of them.
const BASE_DEPTH_BLOCKS: usize = 20;
/// A block of August 2025, to which many programs hold the chain (Bitcoin Core's assumed UTXO sets).
const MAINNET_BASE: (u32, &str) =
    (910_000, "0000000000000000000108970acb9522ffd516eae17acddcb1bd16469194a821");

/// A base, and the headers on it.
pub(super) struct Headers {
    network: Network,
    base: (u32, BlockHash),
    above: Vec<(BlockHash, Header)>,
}

impl Headers {
    /// None yet. `tips` are the newest blocks that were seen before, oldest first.
    pub(super) fn new(network: Network, tips: &[(u32, BlockHash)]) -> Self {
        let seen = tips.first().filter(|_| tips.len() >= BASE_DEPTH_BLOCKS).copied();
        let base = seen.unwrap_or_else(|| first_base(network));
        Self { network, base, above: Vec::new() }
    }

    pub(super) fn base(&self) -> u32 {
        self.base.0
    }

    pub(super) fn tip(&self) -> (u32, BlockHash) {
        self.above.last().map_or(self.base, |(hash, _)| (self.height(), *hash))
    }

    fn height(&self) -> u32 {
        self.base.0.saturating_add(u32::try_from(self.above.len()).unwrap_or(u32::MAX))
    }

    pub(super) fn hash_at(&self, height: u32) -> Option<BlockHash> {
        if height == self.base.0 {
            return Some(self.base.1);
        }
        self.at(height).map(|(hash, _)| *hash)
    }

    fn at(&self, height: u32) -> Option<&(BlockHash, Header)> {
        let above = height.checked_sub(self.base.0)?.checked_sub(1)?;
        self.above.get(usize::try_from(above).ok()?)
    }

    /// Height and header of a block of the chain above the base.
    pub(super) fn find(&self, hash: BlockHash) -> Option<(u32, Header)> {
        let newest_first = self.above.iter().rev().zip((0..=self.height()).rev());
        let mut found = newest_first.filter(|((known, _), _)| *known == hash);
        found.next().map(|((_, header), height)| (height, *header)).or_else(|| {
            let first = genesis_block(self.network).header;
            (self.base == (0, hash)).then_some((0, first))
        })
    }

    /// Follows what the client says of the chain; errs when its peers' headers can't be.
    pub(super) fn follow(&mut self, changes: BlockHeaderChanges) -> Result<(), ChainError> {
        match changes {
            BlockHeaderChanges::Connected(block) => self.connect(block),
            BlockHeaderChanges::Reorganized { mut accepted, .. } => {
                accepted.sort_unstable();
                let first = accepted.first().map_or(u32::MAX, |block| block.height);
                let kept = first.saturating_sub(self.base.0).saturating_sub(1);
                self.above.truncate(usize::try_from(kept).unwrap_or(usize::MAX));
                accepted.into_iter().try_for_each(|block| self.connect(block))
            }
            BlockHeaderChanges::ForkAdded(_) => Ok(()),
        }
    }

    fn connect(&mut self, block: IndexedHeader) -> Result<(), ChainError> {
        let IndexedHeader { height, header } = block;
        let hash = header.block_hash();
        if self.hash_at(height) == Some(hash) {
            return Ok(()); // told again after a start from a snapshot
        }
        let (tip_height, tip_hash) = self.tip();
        if height != tip_height + 1 || header.prev_blockhash != tip_hash {
            return Err(ChainError::Invalid { height, what: "does not follow the one before" });
        }
        let before = self.above.last().map(|(_, header)| *header);
        let genesis = genesis_block(self.network).header;
        let before = before.or_else(|| (self.base.0 == 0).then_some(genesis));
        // What is on a base that is no more than a hash has only its own work to show.
        let tip = Tip { height: tip_height, header: before.unwrap_or(header) };
        if before.is_some() {
            verify_header(self.network, &tip, &header, hash)?;
        }
        self.above.push((hash, header));
        Ok(())
    }

    /// Where the client is to start: no lower than it takes to give filters from `floor` on.
    pub(super) fn snapshot(&self, floor: u32) -> (u32, ChainState) {
        let from = self.keep_from(floor);
        let headers: Vec<_> = (from..=self.height())
            .filter_map(|height| Some(IndexedHeader { height, header: self.at(height)?.1 }))
            .collect();
        match headers.first() {
            Some(first) if headers.len() > 1 => (first.height, ChainState::Snapshot(headers)),
            _ => {
                let (height, hash) = self.base;
                (height, ChainState::Checkpoint(HashCheckpoint::new(height, hash)))
            }
        }
    }

    /// The lowest height of those that are of use when nothing below `floor` is followed any more.
    pub(super) fn keep_from(&self, floor: u32) -> u32 {
        floor.min(self.height()).saturating_sub(KEPT_BLOCKS).max(self.base.0)
    }

    /// Forgets what is far below `floor`; now and then, not for each block.
    pub(super) fn forget_below(&mut self, floor: u32) {
        let from = self.keep_from(floor);
        if from.saturating_sub(self.base.0) < KEPT_BLOCKS {
            return;
        }
        let Some(hash) = self.hash_at(from) else { return };
        let gone = usize::try_from(from - self.base.0).unwrap_or(0);
        self.above.drain(..gone);
        self.above.shrink_to_fit();
        self.base = (from, hash);
    }
}

/// The block that a new wallet's headers start on.
fn first_base(network: Network) -> (u32, BlockHash) {
    let (height, hash) = MAINNET_BASE;
    match (network, hash.parse()) {
        (Network::Bitcoin, Ok(hash)) => (height, hash),
        _ => (0, genesis_block(network).block_hash()),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::super::verify::tests::{genesis, mine},
        *,
    };

    fn chain(from: &Tip, salt: u32, blocks: u32) -> Vec<IndexedHeader> {
        let mut tip = *from;
        let mut chain = Vec::new();
        for _ in 0..blocks {
            let header = mine(&tip, salt, Vec::new()).header;
            tip = Tip { height: tip.height + 1, header };
            chain.push(IndexedHeader { height: tip.height, header });
        }
        chain
    }

    fn following(chain: &[IndexedHeader]) -> Headers {
        let mut headers = Headers::new(Network::Regtest, &[]);
        for block in chain {
            headers.follow(BlockHeaderChanges::Connected(*block)).unwrap();
        }
        headers
    }

    #[test]
    fn the_chain_is_what_was_told_above_its_base() {
        let chain = chain(&genesis(), 0, 3);
        let mut headers = following(&chain);
        assert_eq!(headers.tip(), (3, chain[2].block_hash()));
        assert_eq!(headers.hash_at(0), Some(genesis().header.block_hash()));
        assert_eq!(headers.hash_at(2), Some(chain[1].block_hash()));
        assert_eq!(headers.hash_at(4), None);
        assert_eq!(headers.find(chain[0].block_hash()), Some((1, chain[0].header)));
        assert_eq!(headers.find(genesis().header.block_hash()), Some((0, genesis().header)));
        headers.follow(BlockHeaderChanges::Connected(chain[1])).unwrap();
        assert_eq!(headers.tip(), (3, chain[2].block_hash()));
    }

    #[test]
    fn p10_a_chain_with_more_work_replaces_what_it_leaves_out() {
        let (old, new) = (chain(&genesis(), 0, 3), chain(&genesis(), 1, 4));
        let fork = Tip { height: 1, header: old[0].header };
        let mut headers = following(&old);
        let mut accepted = chain(&fork, 2, 3);
        let tip = accepted[2].block_hash();
        accepted.reverse();
        let reorganized = old[1..].to_vec();
        headers.follow(BlockHeaderChanges::Reorganized { accepted, reorganized }).unwrap();
        assert_eq!(headers.tip(), (4, tip));
        assert_eq!(headers.find(old[2].block_hash()), None);
        let all = BlockHeaderChanges::Reorganized { accepted: new.clone(), reorganized: old };
        headers.follow(all).unwrap();
        assert_eq!(headers.tip(), (4, new[3].block_hash()));
    }

    #[test]
    fn p17_a_header_that_does_not_fit_is_a_lie() {
        let (ours, theirs) = (chain(&genesis(), 0, 3), chain(&genesis(), 1, 3));
        let mut headers = following(&ours[..1]);
        assert!(headers.follow(BlockHeaderChanges::Connected(theirs[1])).is_err());
        assert!(headers.follow(BlockHeaderChanges::Connected(ours[2])).is_err());
        assert!(headers.follow(BlockHeaderChanges::Connected(ours[1])).is_ok());
    }

    #[test]
    fn enough_blocks_seen_before_are_a_base() {
        let tips: Vec<_> =
            chain(&genesis(), 0, 20).iter().map(|b| (b.height, b.block_hash())).collect();
        assert_eq!(Headers::new(Network::Regtest, &tips[..19]).base(), 0);
        assert_eq!(Headers::new(Network::Regtest, &tips).tip(), tips[0]);
        assert_eq!(Headers::new(Network::Bitcoin, &[]).base(), 910_000);
    }

    #[test]
    fn a_start_from_a_snapshot_is_told_the_headers_that_are_kept() {
        let chain = chain(&genesis(), 0, 3);
        let (from, state) = following(&chain).snapshot(3);
        assert!(matches!(state, ChainState::Snapshot(headers) if headers == chain), "{from}");
        let (from, state) = following(&[]).snapshot(0);
        assert!(matches!(state, ChainState::Checkpoint(base) if base.height == 0), "{from}");
    }
}
