//! Follows a source block by block, and tells of blocks that leave the chain as well.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bitcoin::{Block, BlockHash};
use bitmesh_core::{bitcoin, channel::TIPS_KEPT};
use tokio::sync::{mpsc, watch};

use super::{
    ChainError, ChainSource, Watched,
    verify::{Tip, verify, verify_header},
};

/// Events that wait for their reader; a block is up to 4 MB.
const MAILBOX_EVENTS: usize = 8;
/// How often a chain may change while it is being read before that is a failure.
const RACES_MAX: u32 = 3;

/// What happened to the chain.
#[derive(Clone, Debug)]
pub enum ChainEvent {
    /// A block on the tip.
    Connected {
        /// Its height.
        height: u32,
        /// Checked: it fits on the block before, has the work that it needs, and its transactions
        /// and witnesses are those that it commits to. Of one that concerns nothing that is
        /// watched the header alone, with no transactions.
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

/// What the follower tells, in order.
pub struct Events {
    source_height: Arc<AtomicU32>,
    mailbox: mpsc::Receiver<ChainEvent>,
    taken: u64,
    handled: watch::Sender<u64>,
}

impl Events {
    /// Height of the source's tip, as it said last; 0 before.
    pub fn source_height(&self) -> Arc<AtomicU32> {
        self.source_height.clone()
    }

    /// The next event; `None` when the follower has ended. To ask for it says that all before it
    /// were handled, and that what is to be watched for because of them is watched for.
    /// Nothing is lost when this is dropped while it waits.
    pub async fn recv(&mut self) -> Option<ChainEvent> {
        self.handled.send_replace(self.taken);
        let event = self.mailbox.recv().await?;
        self.taken += 1;
        Some(event)
    }
}

/// Follows `source` from the blocks in `tips`, oldest first, which must not be empty: the newest
/// of them that the source has, too, is where it goes on. Ends when the receiver is dropped.
///
/// From a source that has filters, blocks that concern nothing in `watched` are not fetched. What
/// is watched only after a block was passed must not be in it: a script that nobody knew before,
/// or one that came from an event, which the follower waits for to be handled.
pub fn follow(
    source: Arc<dyn ChainSource>,
    watched: Watched,
    tips: Vec<(u32, BlockHash)>,
    interval: Duration,
) -> Events {
    let (events, receiver) = mpsc::channel(MAILBOX_EVENTS);
    let (reports, handled) = watch::channel(0);
    let source_height = Arc::new(AtomicU32::new(0));
    let heights = source_height.clone();
    tokio::spawn(async move {
        let mut follower = Follower {
            source,
            watched,
            tips,
            header: None,
            events,
            sent: 0,
            handled,
            source_height: heights,
        };
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
                && !follower.tell(event).await
            {
                return;
            }
            tokio::time::sleep(interval).await;
        }
    });
    Events { source_height, mailbox: receiver, taken: 0, handled: reports }
}

struct Follower {
    source: Arc<dyn ChainSource>,
    watched: Watched,
    tips: Vec<(u32, BlockHash)>,
    /// The newest tip's, once it is known.
    header: Option<Tip>,
    events: mpsc::Sender<ChainEvent>,
    /// Events that were told, and how many of them were handled.
    sent: u64,
    handled: watch::Receiver<u64>,
    source_height: Arc<AtomicU32>,
}

impl Follower {
    /// Tells of every block between what was told and the source's tip; gives the tip's height.
    async fn catch_up(&mut self) -> Result<u32, ChainError> {
        for _ in 0..RACES_MAX {
            let remote = self.source.tip().await?;
            let error = match self.approach(remote).await {
                Ok(height) => return Ok(height),
                Err(error) => error,
            };
            // Answers from before and after a reorganisation don't fit together; nobody lied.
            if self.source.tip().await? == remote {
                return Err(error);
            }
        }
        Err(self.not_ready("its chain keeps changing".into()))
    }

    async fn approach(&mut self, remote: (u32, BlockHash)) -> Result<u32, ChainError> {
        let (remote_height, _) = remote;
        self.source_height.store(remote_height, Ordering::Relaxed);
        if self.tips.last() == Some(&remote) {
            return Ok(remote_height);
        }
        self.source.check().await?;
        self.unwind(remote_height).await?;
        loop {
            let tip = self.tip().await?;
            if tip.height >= remote_height {
                return Ok(tip.height);
            }
            let height = tip.height + 1;
            let hash = self.source.hash_at(height).await?;
            let block = self.next_block(&tip, hash).await?;
            self.tips.push((height, hash));
            if self.tips.len() > TIPS_KEPT as usize {
                self.tips.remove(0);
            }
            self.header = Some(Tip { height, header: block.header });
            let event = ChainEvent::Connected { height, block: Arc::new(block) };
            if !self.tell(event).await {
                return Ok(height);
            }
        }
    }

    /// The block that follows the tip, checked; without its transactions where these can't matter.
    async fn next_block(&mut self, tip: &Tip, hash: BlockHash) -> Result<Block, ChainError> {
        let network = self.source.network();
        if let Some(filters) = self.source.filters() {
            let sent = self.sent;
            // It ends only with the receiver, which is noticed when the block is told.
            let _ = self.handled.wait_for(|handled| *handled >= sent).await;
            if !filters.may_concern(hash, &self.watched).await? {
                let header = self.source.header(hash).await?;
                verify_header(network, tip, &header, hash)?;
                return Ok(Block { header, txdata: Vec::new() });
            }
        }
        let block = self.source.block(hash).await?;
        verify(network, tip, &block, hash)?;
        Ok(block)
    }

    /// Whether somebody is still there to hear it.
    async fn tell(&mut self, event: ChainEvent) -> bool {
        self.sent += 1;
        self.events.send(event).await.is_ok()
    }

    fn not_ready(&self, reason: String) -> ChainError {
        ChainError::NotReady { kind: self.source.kind(), reason }
    }

    /// The newest tip with its header, which its hash vouches for.
    async fn tip(&mut self) -> Result<Tip, ChainError> {
        if let Some(tip) = self.header {
            return Ok(tip);
        }
        let Some((height, hash)) = self.tips.last().copied() else {
            return Err(ChainError::TooDeep(0));
        };
        let header = self.source.header(hash).await?;
        if header.block_hash() != hash {
            return Err(ChainError::Invalid { height, what: "has another block's header" });
        }
        Ok(*self.header.insert(Tip { height, header }))
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
        let common = kept.checked_sub(1).and_then(|i| self.tips.get(i)).map(|(height, _)| *height);
        if common == Some(remote_height) && kept < self.tips.len() {
            // A chain that replaces ours is longer: this node has yet to get the rest of ours.
            return Err(self.not_ready(format!("it went back to block {remote_height}")));
        }
        while self.tips.len() > kept {
            let Some((height, _)) = self.tips.pop() else { break };
            self.header = None;
            if !self.tell(ChainEvent::Disconnected { height }).await {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::Pin, sync::Mutex};

    use bitcoin::{FeeRate, Network, ScriptBuf, Transaction, block::Header};

    use super::{
        super::{
            Answer, Broadcast, Filters, Kind,
            verify::tests::{genesis, mine},
        },
        *,
    };

    /// A chain in memory that turns into another when a block is asked for, and so shows what a
    /// real node does only by chance.
    #[derive(Default)]
    struct Turning {
        chain: Mutex<Vec<Block>>,
        next: Mutex<Vec<Vec<Block>>>,
        /// Whether it has filters, which say what the blocks say.
        filters: bool,
    }

    impl Filters for Turning {
        fn may_concern<'a>(&'a self, hash: BlockHash, watched: &'a Watched) -> Answer<'a, bool> {
            Box::pin(async move {
                let chain = self.chain.lock().unwrap();
                let block = chain.iter().find(|block| block.block_hash() == hash).unwrap();
                let watched = watched.read();
                let mut outputs = block.txdata.iter().flat_map(|tx| &tx.output);
                Ok(outputs.any(|output| watched.contains(&output.script_pubkey)))
            })
        }
    }

    impl Turning {
        fn at(&self, height: u32) -> Result<Block, ChainError> {
            let chain = self.chain.lock().unwrap();
            let block = height.checked_sub(1).and_then(|i| chain.get(i as usize)).cloned();
            block.ok_or_else(none)
        }
    }

    fn none() -> ChainError {
        ChainError::NotReady { kind: Kind::Node, reason: "no such block".into() }
    }

    impl ChainSource for Turning {
        fn kind(&self) -> Kind {
            Kind::Node
        }
        fn name(&self) -> String {
            "a chain in memory".into()
        }
        fn network(&self) -> Network {
            Network::Regtest
        }
        fn check(&self) -> Answer<'_, ()> {
            Box::pin(async { Ok(()) })
        }
        fn tip(&self) -> Answer<'_, (u32, BlockHash)> {
            Box::pin(async {
                let height = u32::try_from(self.chain.lock().unwrap().len()).unwrap();
                Ok((height, self.at(height)?.block_hash()))
            })
        }
        fn hash_at(&self, height: u32) -> Answer<'_, BlockHash> {
            Box::pin(async move {
                if height == 0 {
                    return Ok(genesis().header.block_hash());
                }
                Ok(self.at(height)?.block_hash())
            })
        }
        fn header(&self, hash: BlockHash) -> Answer<'_, Header> {
            Box::pin(async move {
                let chain = self.chain.lock().unwrap();
                let found = chain.iter().find(|block| block.block_hash() == hash);
                Ok(found.map_or(genesis().header, |block| block.header))
            })
        }
        fn block(&self, hash: BlockHash) -> Answer<'_, Block> {
            Box::pin(async move {
                let mut chain = self.chain.lock().unwrap();
                let found = chain.iter().find(|block| block.block_hash() == hash).cloned();
                if let Some(next) = self.next.lock().unwrap().pop() {
                    *chain = next;
                }
                found.ok_or_else(none)
            })
        }
        fn filters(&self) -> Option<&dyn Filters> {
            self.filters.then_some(self)
        }
        fn fee_rate(&self, _: u16) -> Answer<'_, FeeRate> {
            Box::pin(async { Ok(FeeRate::BROADCAST_MIN) })
        }
        fn broadcast<'a>(
            &'a self,
            _: &'a Transaction,
        ) -> Pin<Box<dyn Future<Output = Broadcast> + Send + 'a>> {
            Box::pin(async { Broadcast::Accepted })
        }
    }

    fn chain(salt: u32, blocks: u32) -> Vec<Block> {
        let mut tip = genesis();
        let mut chain = Vec::new();
        for height in 1..=blocks {
            let block = mine(&tip, salt, Vec::new());
            tip = Tip { height, header: block.header };
            chain.push(block);
        }
        chain
    }

    async fn told(chains: Vec<Vec<Block>>) -> Vec<String> {
        let mut next = chains;
        next.reverse();
        let chain = Mutex::new(next.pop().unwrap());
        let source = Arc::new(Turning { chain, next: Mutex::new(next), filters: false });
        let tips = vec![(0, genesis().header.block_hash())];
        let mut events = follow(source, Watched::default(), tips, Duration::from_mins(1));
        let mut told = Vec::new();
        while let Some(event) = events.recv().await {
            match event {
                ChainEvent::Connected { height, .. } => told.push(format!("+{height}")),
                ChainEvent::Disconnected { height } => told.push(format!("-{height}")),
                ChainEvent::Synced { height } => {
                    told.push(format!("={height}"));
                    break;
                }
                ChainEvent::Lost { reason } => {
                    told.push(reason);
                    break;
                }
            }
        }
        told
    }

    #[tokio::test]
    async fn p10_a_reorganisation_between_two_answers_is_no_lie() {
        let told = told(vec![chain(0, 3), chain(1, 4)]).await;
        assert_eq!(told, ["+1", "-1", "+1", "+2", "+3", "+4", "=4"]);
    }

    #[tokio::test]
    async fn p10_a_chain_that_gets_shorter_between_two_answers_is_followed() {
        let told = told(vec![chain(0, 3), chain(1, 1)]).await;
        assert_eq!(told, ["+1", "-1", "+1", "=1"]);
    }

    #[tokio::test]
    async fn p17_a_chain_that_does_not_fit_together_is_a_lie() {
        let mut torn = chain(0, 3);
        torn[1] = chain(1, 3)[1].clone();
        let told = told(vec![torn]).await;
        assert_eq!(told.first().map(String::as_str), Some("+1"));
        assert!(told[1].contains("does not follow"), "{told:?}");
    }

    #[tokio::test]
    async fn p17_a_source_that_never_says_the_same_twice_is_lost() {
        let told = told((0..8).map(|salt| chain(salt, 3)).collect()).await;
        assert!(told.last().unwrap().contains("keeps changing"), "{told:?}");
    }

    /// A chain with a payment to each of the scripts, a block each.
    fn paying(scripts: &[ScriptBuf]) -> Vec<Block> {
        let mut tip = genesis();
        let mut chain = Vec::new();
        for (height, script) in (1..).zip(scripts) {
            let mut payment = mine(&tip, 7, Vec::new()).txdata.remove(0);
            payment.output[0].script_pubkey = script.clone();
            let block = mine(&tip, 0, vec![payment]);
            tip = Tip { height, header: block.header };
            chain.push(block);
        }
        chain
    }

    #[tokio::test]
    async fn blocks_that_concern_nothing_come_without_transactions() {
        let scripts = [1, 2, 3].map(|byte| ScriptBuf::from_bytes(vec![byte]));
        let chain = Mutex::new(paying(&scripts));
        let source = Arc::new(Turning { chain, filters: true, ..Turning::default() });
        let watched = Watched::default();
        watched.add([&scripts[0]]);
        let tips = vec![(0, genesis().header.block_hash())];
        let mut events = follow(source, watched.clone(), tips, Duration::from_mins(1));
        let mut told = Vec::new();
        while let Some(ChainEvent::Connected { height, block }) = events.recv().await {
            // What came in the first block is looked for in the one right behind it.
            tokio::time::sleep(Duration::from_millis(20)).await;
            watched.add([&scripts[1]]);
            told.push((height, block.txdata.len()));
        }
        assert_eq!(told, [(1, 2), (2, 2), (3, 0)]);
    }

    #[tokio::test]
    async fn p17_a_header_that_does_not_fit_is_a_lie_without_its_block_too() {
        let mut torn = chain(0, 3);
        torn[1] = chain(1, 3)[1].clone();
        let chain = Mutex::new(torn);
        let source = Arc::new(Turning { chain, filters: true, ..Turning::default() });
        let tips = vec![(0, genesis().header.block_hash())];
        let mut events = follow(source, Watched::default(), tips, Duration::from_mins(1));
        assert!(matches!(events.recv().await, Some(ChainEvent::Connected { height: 1, .. })));
        let told = events.recv().await;
        let Some(ChainEvent::Lost { reason }) = told else { panic!("{told:?}") };
        assert!(reason.contains("does not follow"), "{reason}");
    }
}
