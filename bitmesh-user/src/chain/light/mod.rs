//! The light client: headers, compact filters (BIP 157) and single blocks from peers of the network.
//!
//! Peers learn which whole blocks are asked for, not what for. A block is looked at when its filter
//! says that it may concern what is watched. What a filter leaves out is not seen: of peers that
//! were found, three have to agree on every filter; one that was named is believed as a node is.

mod courier;
mod headers;
mod run;
mod spool;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bip157::{AddrV2, Requester};
use bitcoin::{
    Amount, Block, BlockHash, FeeRate, Network, Transaction, VarInt, bip158::BlockFilter,
    block::Header, consensus::deserialize_partial, constants::SUBSIDY_HALVING_INTERVAL,
};
use bitmesh_core::bitcoin;
use tokio::{
    sync::Notify,
    task::{AbortHandle, JoinSet},
    time::{Instant, timeout},
};

use self::{
    courier::{Fate, deliver},
    headers::Headers,
    spool::Spool,
};
use super::{
    Answer, Broadcast, Cause, ChainError, ChainSource, FEE_RATE_MAX, Filters, Kind, Watched,
};

/// How long it is no trouble to have no peer: they leave, and others take their place.
const ALONE_MAX: Duration = Duration::from_secs(15);
/// How long the first connection may take.
const FIRST_CONNECTION: Duration = Duration::from_mins(1);
/// Time for a filter to come.
const FILTER_DEADLINE: Duration = Duration::from_mins(1);
/// Time after which a filter that does not come by itself is asked for.
const FILTER_PATIENCE: Duration = Duration::from_secs(2);
/// Blocks below the one that is followed whose filters are kept: a reorganisation may replace them.
const FILTERS_KEPT_BLOCKS: u32 = 8;
/// Time for a block to come.
const BLOCK_DEADLINE: Duration = Duration::from_mins(1);
/// Time for the client's task to answer.
const REQUEST_DEADLINE: Duration = Duration::from_secs(5);
/// Peers that a transaction is handed to.
const COURIERS: usize = 3;
/// One in so many blocks near the tip is fetched although its filter does not ask for it, to see
/// whether the filter is right.
const AUDIT_ONE_IN: u32 = 64;
/// Blocks below the tip that count as near it.
const AUDIT_DEPTH_BLOCKS: u32 = 144;
/// Blocks that an estimate of fees is made from, and holds for: it takes as much of the connection
/// as everything else together.
const FEE_BLOCKS: u32 = 2;
const FEE_HOLDS_BLOCKS: u32 = 6;
/// What a peer's say about fees can't raise them above, unless blocks are as expensive.
const FEE_FLOOR_MAX: FeeRate = FeeRate::from_sat_per_vb_u32(20);
/// Weight from which on a block counts as full: in others any fee is enough.
const FULL_BLOCK_WEIGHT: u64 = 3_600_000;
/// Outputs that start with it are in no filter.
const OP_RETURN: u8 = 0x6a;
/// Octets that an element of a filter takes at least.
const FILTER_ELEMENT_OCTETS: u64 = 2;

/// A light client, at work until it is dropped.
pub struct LightClient {
    shared: Arc<Shared>,
    task: AbortHandle,
}

/// What the client's task and those that ask it share.
struct Shared {
    network: Network,
    /// HOST:PORT each; empty to find some.
    peers: Vec<String>,
    state: Mutex<State>,
    /// Something came that somebody may wait for.
    news: Notify,
    /// The peers are not to be believed: others, please.
    suspicion: Notify,
    /// Which blocks are audited; nobody else knows.
    salt: u32,
}

struct State {
    headers: Headers,
    spool: Spool,
    /// Speaks to the client, while one runs.
    requester: Option<Requester>,
    /// The headers were once as far as the peers have them.
    synced: bool,
    started: Instant,
    /// Since when there is no peer.
    alone: Option<Instant>,
    /// Height of the block that was asked for last: filters below are of no use.
    floor: u32,
    /// When a filter came or was asked for.
    filters_at: Instant,
    /// The estimate, and the tip that it is for.
    fee: Option<(u32, FeeRate)>,
}

impl LightClient {
    /// Starts a client. `peers` are named as HOST:PORT; without any, some are found where the
    /// network has seeds. `tips` are the newest blocks that were seen before, oldest first.
    /// Filters that wait are in a nameless file in `directory`.
    ///
    /// # Panics
    /// Outside a runtime.
    pub fn start(
        network: Network,
        peers: &[String],
        tips: &[(u32, BlockHash)],
        directory: PathBuf,
    ) -> Result<Self, ChainError> {
        let port = default_port(network);
        let peers =
            peers.iter().map(|peer| with_port(peer, port)).collect::<Result<Vec<_>, _>>()?;
        let headers = Headers::new(network, tips);
        let now = Instant::now();
        let state = State {
            floor: tips.last().map_or(headers.base(), |(height, _)| *height),
            headers,
            spool: Spool::new(directory),
            requester: None,
            synced: false,
            started: now,
            alone: Some(now),
            filters_at: now,
            fee: None,
        };
        let salt = getrandom::u32().unwrap_or_default();
        let (news, suspicion) = (Notify::new(), Notify::new());
        let state = Mutex::new(state);
        let shared = Arc::new(Shared { network, peers, state, news, suspicion, salt });
        let task = tokio::spawn(run::supervise(shared.clone())).abort_handle();
        Ok(Self { shared, task })
    }

    fn requester(&self) -> Result<Requester, ChainError> {
        self.shared.state().requester.clone().ok_or_else(|| not_ready("it is connecting".into()))
    }

    /// Whether a filter that is here, or can be had, says that its block may matter.
    async fn look(&self, hash: BlockHash, watched: &Watched) -> Result<bool, ChainError> {
        let end = Instant::now() + FILTER_DEADLINE;
        loop {
            let news = self.shared.news.notified();
            if let Some(filter) = self.filter(hash)? {
                let matches = {
                    let watched = watched.read();
                    let scripts = watched.iter().map(|script| script.as_bytes());
                    filter.match_any(&hash, scripts)
                };
                return matches.map_err(|_| self.suspect("has a filter that is none", hash));
            }
            if Instant::now() > end {
                return Err(not_ready(format!(
                    "the filter of block {hash} does not come; do the peers have filters?"
                )));
            }
            let _ = timeout(FILTER_PATIENCE, news).await;
        }
    }

    /// A block's filter, if it is here; has it fetched if nothing comes by itself.
    fn filter(&self, hash: BlockHash) -> Result<Option<BlockFilter>, ChainError> {
        let state = &mut *self.shared.state();
        let Some((height, _)) = state.headers.find(hash) else {
            return Err(not_ready(format!("block {hash} is not in the chain any more")));
        };
        if state.floor != height {
            state.floor = height;
            state.spool.forget_below(height.saturating_sub(FILTERS_KEPT_BLOCKS));
            state.headers.forget_below(height);
        }
        if let Some(filter) = state.spool.get(hash).map_err(|error| disk(&error))? {
            if !plausible(&filter) {
                state.spool.clear();
                self.shared.suspicion.notify_one();
                return Err(ChainError::Invalid { height, what: "has a filter that can't be" });
            }
            return Ok(Some(BlockFilter::new(&filter)));
        }
        if state.filters_at.elapsed() > FILTER_PATIENCE
            && let Some(requester) = &state.requester
        {
            state.filters_at = Instant::now();
            // It fails only when the client has ended, and then there will be another.
            let _ = requester.rescan_from(height.saturating_sub(1));
        }
        Ok(None)
    }

    /// Whether to see for ourselves that a filter is right.
    fn audits(&self, hash: BlockHash) -> bool {
        let state = self.shared.state();
        let near = state.headers.tip().0.saturating_sub(state.floor) < AUDIT_DEPTH_BLOCKS;
        let octets: [u8; 32] = *hash.as_ref();
        let [a, b, c, d, ..] = octets;
        let chance =
            (u32::from_le_bytes([a, b, c, d]) ^ self.shared.salt).wrapping_mul(0x9e37_79b1);
        near && chance >> 16 & (AUDIT_ONE_IN - 1) == 0
    }

    /// Has the peers replaced: what they sent can't be right.
    fn suspect(&self, what: &'static str, hash: BlockHash) -> ChainError {
        let mut state = self.shared.state();
        state.spool.clear();
        self.shared.suspicion.notify_one();
        let height = state.headers.find(hash).map_or(0, |(height, _)| height);
        ChainError::Invalid { height, what }
    }

    async fn fetch(&self, hash: BlockHash) -> Result<Block, ChainError> {
        let answer = timeout(BLOCK_DEADLINE, self.requester()?.get_block(hash)).await;
        let answer = answer.map_err(|_| not_ready(format!("block {hash} does not come")))?;
        let block = answer.map_err(|error| not_ready(error.to_string()))?.block;
        // Its commitments are checked by who asked. A filter holds every output's script.
        let filter = self.shared.state().spool.get(hash).map_err(|error| disk(&error))?;
        if let Some(filter) = filter.filter(|filter| plausible(filter))
            && block.check_merkle_root()
        {
            let outputs = block.txdata.iter().flat_map(|tx| &tx.output);
            let scripts = outputs.map(|output| output.script_pubkey.as_bytes());
            let scripts =
                scripts.filter(|script| !matches!(script.first(), None | Some(&OP_RETURN)));
            if !BlockFilter::new(&filter).match_all(&hash, scripts).unwrap_or(false) {
                return Err(self.suspect("has more in it than its filter says", hash));
            }
        }
        Ok(block)
    }

    /// What the newest blocks took on average, where they were full.
    async fn block_rate(&self, tip: u32) -> Result<FeeRate, ChainError> {
        let mut most = FeeRate::BROADCAST_MIN;
        for height in (0..=tip).rev().take(FEE_BLOCKS as usize) {
            let hash = self.shared.state().headers.hash_at(height);
            let Some(hash) = hash else { break };
            let block = self.fetch(hash).await?;
            let is_right = block.check_merkle_root() && block.check_witness_commitment();
            if !is_right || block.weight().to_wu() < FULL_BLOCK_WEIGHT {
                continue;
            }
            let taken: Amount =
                block.txdata.iter().take(1).flat_map(|tx| &tx.output).map(|o| o.value).sum();
            let fees = taken.checked_sub(subsidy(height)).unwrap_or(Amount::ZERO);
            let per_kwu = fees.to_sat().saturating_mul(1_000) / block.weight().to_wu();
            most = most.max(FeeRate::from_sat_per_kwu(per_kwu));
        }
        Ok(most.min(FEE_RATE_MAX))
    }

    /// Where a transaction can be handed over.
    async fn couriers(&self) -> Result<Vec<SocketAddr>, ChainError> {
        let mut found = Vec::new();
        for peer in &self.shared.peers {
            if let Ok(addresses) = tokio::net::lookup_host(peer).await {
                found.extend(addresses.take(1));
            }
        }
        if self.shared.peers.is_empty() {
            let answer = timeout(REQUEST_DEADLINE, self.requester()?.peer_info()).await;
            let peers = answer.ok().and_then(Result::ok).unwrap_or_default();
            let port = default_port(self.shared.network);
            found.extend(peers.into_iter().filter_map(|(address, _)| match address {
                AddrV2::Ipv4(ip) => Some(SocketAddr::new(IpAddr::V4(ip), port)),
                AddrV2::Ipv6(ip) => Some(SocketAddr::new(IpAddr::V6(ip), port)),
                _ => None,
            }));
        }
        found.truncate(COURIERS);
        Ok(found)
    }
}

impl Drop for LightClient {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn name(&self) -> String {
        match &self.peers[..] {
            [] => "peers of the network".into(),
            [one] => format!("the peer {one}"),
            [first, rest @ ..] => format!("the peer {first} and {} more", rest.len()),
        }
    }
}

impl ChainSource for LightClient {
    fn kind(&self) -> Kind {
        Kind::Peers
    }

    fn name(&self) -> String {
        self.shared.name()
    }

    fn network(&self) -> Network {
        self.shared.network
    }

    /// Headers that were followed from the base are of the right chain.
    fn check(&self) -> Answer<'_, ()> {
        Box::pin(async { self.shared.state().ready(&self.shared) })
    }

    fn tip(&self) -> Answer<'_, (u32, BlockHash)> {
        Box::pin(async {
            let state = self.shared.state();
            state.ready(&self.shared)?;
            Ok(state.headers.tip())
        })
    }

    fn hash_at(&self, height: u32) -> Answer<'_, BlockHash> {
        Box::pin(async move {
            let found = self.shared.state().headers.hash_at(height);
            found.ok_or_else(|| not_ready(format!("block {height} is not known")))
        })
    }

    fn header(&self, hash: BlockHash) -> Answer<'_, Header> {
        Box::pin(async move {
            let found = self.shared.state().headers.find(hash);
            let (_, header) =
                found.ok_or_else(|| not_ready(format!("block {hash} is not known")))?;
            Ok(header)
        })
    }

    fn block(&self, hash: BlockHash) -> Answer<'_, Block> {
        Box::pin(self.fetch(hash))
    }

    fn filters(&self) -> Option<&dyn Filters> {
        Some(self)
    }

    /// What the newest full blocks took on average, and no less than the peers relay, as far as
    /// they can be believed in that. The number of blocks makes no difference.
    fn fee_rate(&self, _: u16) -> Answer<'_, FeeRate> {
        Box::pin(async {
            let (tip, known) = {
                let state = self.shared.state();
                (state.headers.tip().0, state.fee)
            };
            let holds = |(at, _): &(u32, FeeRate)| tip.abs_diff(*at) < FEE_HOLDS_BLOCKS;
            let of_blocks = match known.filter(holds) {
                Some((_, rate)) => rate,
                None => self.block_rate(tip).await?,
            };
            if !known.is_some_and(|known| holds(&known)) {
                self.shared.state().fee = Some((tip, of_blocks));
            }
            let answer = timeout(REQUEST_DEADLINE, self.requester()?.broadcast_min_feerate()).await;
            let relayed = answer.ok().and_then(Result::ok).unwrap_or(FeeRate::BROADCAST_MIN);
            let believed = relayed.min(FEE_FLOOR_MAX.max(of_blocks));
            Ok(of_blocks.max(believed).clamp(FeeRate::BROADCAST_MIN, FEE_RATE_MAX))
        })
    }

    /// Accepted is what can be fetched back from a peer: it is in its mempool, or in the newest
    /// block. Rejected is what none of those that had the chance has, so that what is in an older
    /// block looks rejected.
    fn broadcast<'a>(
        &'a self,
        tx: &'a Transaction,
    ) -> Pin<Box<dyn Future<Output = Broadcast> + Send + 'a>> {
        Box::pin(async move {
            let couriers = match self.couriers().await {
                Ok(couriers) => couriers,
                Err(error) => return Broadcast::Unreachable { reason: error.to_string() },
            };
            let mut deliveries = JoinSet::new();
            for address in couriers {
                let (network, tx) = (self.shared.network, tx.clone());
                deliveries.spawn(async move { (address, deliver(address, network, &tx).await) });
            }
            let mut refused = false;
            let mut failures = BTreeMap::new();
            while let Some(delivery) = deliveries.join_next().await {
                match delivery {
                    Ok((_, Ok(Fate::Taken))) => return Broadcast::Accepted,
                    Ok((_, Ok(Fate::NotTaken))) => refused = true,
                    Ok((address, Err(reason))) => drop(failures.insert(address, reason)),
                    Err(_) => {}
                }
            }
            if refused {
                let reason = "no peer keeps it: its fee is too low, what it spends is spent or not \
                              there, or it is in a block already";
                return Broadcast::Rejected { cause: Cause::Unknown, reason: reason.into() };
            }
            let told = failures.iter().map(|(address, reason)| format!("{address}: {reason}"));
            let told = told.collect::<Vec<_>>().join(", ");
            let reason = if told.is_empty() { "there is no peer".into() } else { told };
            Broadcast::Unreachable { reason }
        })
    }
}

impl Filters for LightClient {
    fn may_concern<'a>(&'a self, hash: BlockHash, watched: &'a Watched) -> Answer<'a, bool> {
        Box::pin(async move { Ok(self.look(hash, watched).await? || self.audits(hash)) })
    }
}

impl State {
    /// Whether what is known of the chain is what the network knows.
    fn ready(&self, shared: &Shared) -> Result<(), ChainError> {
        let patience = if self.synced { ALONE_MAX } else { FIRST_CONNECTION };
        if self.alone.is_some_and(|since| since.elapsed() > patience) {
            return Err(ChainError::Unreachable {
                kind: Kind::Peers,
                at: shared.name(),
                reason: "no connection".into(),
            });
        }
        if !self.synced {
            let (height, _) = self.headers.tip();
            let seconds = self.started.elapsed().as_secs();
            return Err(not_ready(format!("headers up to block {height} after {seconds} s")));
        }
        Ok(())
    }
}

fn not_ready(reason: String) -> ChainError {
    ChainError::NotReady { kind: Kind::Peers, reason }
}

fn disk(error: &std::io::Error) -> ChainError {
    ChainError::Disk(error.to_string())
}

/// Whether a filter has room for what it says that it holds.
fn plausible(filter: &[u8]) -> bool {
    let count = deserialize_partial::<VarInt>(filter).map_or(u64::MAX, |(count, _)| count.0);
    count.saturating_mul(FILTER_ELEMENT_OCTETS) <= filter.len() as u64
}

/// What a block's miner may make, besides fees.
fn subsidy(height: u32) -> Amount {
    let halvings = height / SUBSIDY_HALVING_INTERVAL;
    let first = Amount::from_int_btc(50).to_sat();
    Amount::from_sat(first.checked_shr(halvings).unwrap_or(0))
}

/// The network's port for peers.
pub fn default_port(network: Network) -> u16 {
    match network {
        Network::Bitcoin => 8_333,
        Network::Testnet => 18_333,
        Network::Testnet4 => 48_333,
        Network::Signet => 38_333,
        Network::Regtest => 18_444,
    }
}

/// HOST:PORT of what may be a host alone.
fn with_port(peer: &str, port: u16) -> Result<String, ChainError> {
    if peer.parse::<SocketAddr>().is_ok() {
        return Ok(peer.into());
    }
    if let Ok(ip) = peer.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, port).to_string());
    }
    let wrong = |reason: &str| ChainError::Address {
        kind: Kind::Peers,
        address: peer.into(),
        reason: reason.into(),
    };
    let (host, port) = match peer.split_once(':') {
        Some((host, port)) => (host, port.parse().map_err(|_| wrong("what follows : is no port"))?),
        None => (peer, port),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    if host.is_empty() || !host.chars().all(plain) {
        return Err(wrong("it is neither an address nor a name"));
    }
    Ok(format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_an_address_or_a_name_with_or_without_a_port() {
        for (given, read) in [
            ("192.0.2.1", "192.0.2.1:8333"),
            ("192.0.2.1:18444", "192.0.2.1:18444"),
            ("2001:db8::1", "[2001:db8::1]:8333"),
            ("[2001:db8::1]", "[2001:db8::1]:8333"),
            ("[2001:db8::1]:1", "[2001:db8::1]:1"),
            ("node.example", "node.example:8333"),
            ("node.example:1", "node.example:1"),
        ] {
            assert_eq!(with_port(given, 8_333).as_deref(), Ok(read));
        }
        for given in ["", ":1", "a b", "http://node.example", "node.example:port", "a:1:2"] {
            assert!(with_port(given, 8_333).is_err(), "{given}");
        }
    }

    #[test]
    fn p17_a_filter_that_claims_more_than_it_holds_is_none() {
        assert!(!plausible(&[]));
        assert!(plausible(&[0]));
        assert!(plausible(&[1, 0]));
        assert!(!plausible(&[1]));
        assert!(!plausible(&[0xff; 9]));
    }

    #[test]
    fn the_subsidy_halves_until_there_is_none() {
        assert_eq!(subsidy(0), Amount::from_int_btc(50));
        assert_eq!(subsidy(839_999), Amount::from_sat(625_000_000));
        assert_eq!(subsidy(840_000), Amount::from_sat(312_500_000));
        assert_eq!(subsidy(u32::MAX), Amount::ZERO);
    }
}
