//! Follows a source block by block, and tells of blocks that leave the chain as well.

use std::{sync::Arc, time::Duration};

use bitcoin::{Block, BlockHash};
use bitmesh_core::{bitcoin, channel::TIPS_KEPT};
use tokio::sync::mpsc;

use super::{ChainError, ChainSource};

/// Events that wait for their reader; a block is up to 4 MB.
const MAILBOX_EVENTS: usize = 8;

/// What happened to the chain.
#[derive(Clone, Debug)]
pub enum ChainEvent {
    /// A block on the tip.
    Connected {
        /// Its height.
        height: u32,
        /// Checked: it fits on the block before, meets its own target, and its transactions are
        /// those that its header commits to.
        block: Arc<Block>,
    },
    /// The tip left the chain.
    Disconnected {
        /// Its height.
        height: u32,
    },
    /// Everything that the source has was told.
    Synced {
        /// The tip's height.
        height: u32,
    },
    /// The source gives no answers that can be used; told once, until it is synced again.
    Lost {
        /// Why, and what to do.
        reason: String,
    },
}

/// Follows `source` from the blocks in `tips`, oldest first, which must not be empty: the newest
/// of them that the source has, too, is where it goes on. Ends when the receiver is dropped.
pub fn follow(
    source: Arc<dyn ChainSource>,
    tips: Vec<(u32, BlockHash)>,
    interval: Duration,
) -> mpsc::Receiver<ChainEvent> {
    let (events, receiver) = mpsc::channel(MAILBOX_EVENTS);
    tokio::spawn(async move {
        let mut follower = Follower { source, tips, events };
        let mut told_synced = false;
        let mut told_lost = false;
        while !follower.events.is_closed() {
            let event = match follower.catch_up().await {
                Ok(height) => {
                    let event = (!told_synced).then_some(ChainEvent::Synced { height });
                    (told_synced, told_lost) = (true, false);
                    event
                }
                Err(error) => {
                    let event = ChainEvent::Lost { reason: error.to_string() };
                    let event = (!told_lost).then_some(event);
                    (told_synced, told_lost) = (false, true);
                    event
                }
            };
            if let Some(event) = event
                && follower.events.send(event).await.is_err()
            {
                return;
            }
            tokio::time::sleep(interval).await;
        }
    });
    receiver
}

struct Follower {
    source: Arc<dyn ChainSource>,
    tips: Vec<(u32, BlockHash)>,
    events: mpsc::Sender<ChainEvent>,
}

impl Follower {
    /// Tells of every block between what was told and the source's tip; gives the tip's height.
    async fn catch_up(&mut self) -> Result<u32, ChainError> {
        let (remote_height, remote_hash) = self.source.tip().await?;
        if self.tips.last() == Some(&(remote_height, remote_hash)) {
            return Ok(remote_height);
        }
        self.source.check().await?;
        self.unwind(remote_height).await?;
        loop {
            let Some((height, hash)) = self.tips.last().copied() else {
                return Err(ChainError::TooDeep(TIPS_KEPT as usize));
            };
            if height >= remote_height {
                return Ok(height);
            }
            let next = self.source.hash_at(height + 1).await?;
            let block = self.source.block(next).await?;
            verify(&block, height + 1, next, hash)?;
            self.tips.push((height + 1, next));
            if self.tips.len() > TIPS_KEPT as usize {
                self.tips.remove(0);
            }
            let event = ChainEvent::Connected { height: height + 1, block: Arc::new(block) };
            if self.events.send(event).await.is_err() {
                return Ok(height + 1);
            }
        }
    }

    /// Takes back blocks that the source no longer has, newest first. Nothing is taken back before
    /// a common block is found: a source of another chain must not undo this one.
    async fn unwind(&mut self, remote_height: u32) -> Result<(), ChainError> {
        let mut kept = self.tips.len();
        while let Some((height, hash)) = kept.checked_sub(1).and_then(|i| self.tips.get(i)) {
            if *height <= remote_height && self.source.hash_at(*height).await? == *hash {
                break;
            }
            kept -= 1;
        }
        if kept == 0 {
            return Err(ChainError::TooDeep(self.tips.len()));
        }
        while self.tips.len() > kept {
            let Some((height, _)) = self.tips.pop() else { break };
            if self.events.send(ChainEvent::Disconnected { height }).await.is_err() {
                break;
            }
        }
        Ok(())
    }
}

fn verify(
    block: &Block,
    height: u32,
    hash: BlockHash,
    previous: BlockHash,
) -> Result<(), ChainError> {
    let invalid = |what| ChainError::Invalid { height, what };
    if block.block_hash() != hash {
        return Err(invalid("is not the one that was asked for"));
    }
    if block.header.prev_blockhash != previous {
        return Err(invalid("does not follow the one before"));
    }
    if block.header.validate_pow(block.header.target()).is_err() {
        return Err(invalid("lacks the work that it claims"));
    }
    if !block.check_merkle_root() {
        return Err(invalid("has other transactions than its header commits to"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bitcoin::{constants::genesis_block, hashes::Hash};

    use super::*;

    #[test]
    fn p17_a_block_has_to_be_what_its_hash_says_and_fit() {
        let block = genesis_block(bitcoin::Network::Regtest);
        let hash = block.block_hash();
        let previous = block.header.prev_blockhash;
        assert_eq!(verify(&block, 1, hash, previous), Ok(()));
        assert!(verify(&block, 1, previous, previous).is_err());
        assert!(verify(&block, 1, hash, hash).is_err());
        let mut emptied = block.clone();
        emptied.txdata.clear();
        assert!(verify(&emptied, 1, hash, previous).is_err());
        let mut lazy = block;
        lazy.header.bits = bitcoin::CompactTarget::from_consensus(0x1d00_ffff);
        let hash = lazy.block_hash();
        assert_ne!(hash, BlockHash::all_zeros());
        assert!(verify(&lazy, 1, hash, previous).is_err());
    }
}
