//! Keeps a client running: it ends when its peers are gone, and it remembers every header.

use std::{sync::Arc, time::Duration};

use bip157::{
    Builder, Client, Event, Info, Node, TrustedPeer, Warning,
    chain::{BlockHeaderChanges, ChainState},
};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::{ChainError, FILTERS_KEPT_BLOCKS, Shared};

/// Peers that have to agree on filters, when they were found and not named.
const FOUND_PEERS: u8 = 3;
/// How often each named peer is tried before the client ends.
const NAMED_TRIES: usize = 2;
/// Time that a peer has to answer.
const RESPONSE_DEADLINE: Duration = Duration::from_secs(20);
/// Time that it has to take a connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// Shortest and longest pause before a client that ended is followed by the next.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// A client that lasted so long had peers.
const LASTED: Duration = Duration::from_mins(1);
/// Headers that a client may have beyond what it needs before it makes room for one that starts
/// near the tip. Each takes it some 300 octets.
const SPARE_HEADERS: u32 = 20_000;

/// Why a client ended.
enum End {
    /// Its peers are gone.
    Alone,
    /// Its peers lie.
    Lie(ChainError),
    /// It remembers too much.
    Full,
}

/// Runs one client after the other.
pub(super) async fn supervise(shared: Arc<Shared>) {
    let mut pause = PAUSE_MIN;
    loop {
        let started = Instant::now();
        let (from, chain_state) = {
            let state = shared.state();
            state.headers.snapshot(state.floor)
        };
        let (node, client) = build(&shared, chain_state);
        let end = run(node, client, &shared, from).await;
        shared.state().requester = None;
        if started.elapsed() > LASTED {
            pause = PAUSE_MIN;
        }
        match end {
            End::Full => continue,
            End::Alone => debug!("no peer is left"),
            End::Lie(error) => warn!("{error}; looking for other peers"),
        }
        shared.alone();
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

fn build(shared: &Shared, chain_state: ChainState) -> (Node, Client) {
    let builder = Builder::new(shared.network)
        .chain_state(chain_state)
        .headers_only_sync()
        .fetch_witness_data()
        .response_timeout(RESPONSE_DEADLINE)
        .handshake_timeout(CONNECT_DEADLINE);
    if shared.peers.is_empty() {
        return builder.required_peers(FOUND_PEERS).build();
    }
    // The last is tried first.
    let named = shared.peers.iter().rev().filter_map(|peer| named(peer));
    let named: Vec<_> = named.collect();
    let tries = named.iter().cycle().take(named.len() * NAMED_TRIES).cloned();
    builder.required_peers(1).whitelist_only().add_peers(tries).build()
}

fn named(peer: &str) -> Option<TrustedPeer> {
    if let Ok(address) = peer.parse::<std::net::SocketAddr>() {
        return Some(TrustedPeer::from_socket_addr(address));
    }
    let (host, port) = peer.rsplit_once(':')?;
    Some(TrustedPeer::from_hostname(host, port.parse().ok()?))
}

/// Runs a client that remembers headers from a height on.
async fn run(node: Node, client: Client, shared: &Shared, from: u32) -> End {
    let Client { requester, mut info_rx, mut warn_rx, mut event_rx } = client;
    shared.state().requester = Some(requester);
    let mut node = std::pin::pin!(node.run());
    loop {
        let event = tokio::select! {
            biased;
            Some(event) = event_rx.recv() => event,
            Some(info) = info_rx.recv() => {
                if matches!(info, Info::SuccessfulHandshake) {
                    shared.state().alone = None;
                }
                continue;
            }
            Some(warning) = warn_rx.recv() => {
                match warning {
                    Warning::NeedConnections { connected: 0, .. } => shared.alone(),
                    Warning::NeedConnections { .. } => {}
                    warning => debug!("{warning}"),
                }
                continue;
            }
            () = shared.suspicion.notified() => return End::Lie(ChainError::Invalid {
                height: shared.state().floor,
                what: "and its filter don't fit",
            }),
            _ = &mut node => return End::Alone,
        };
        match shared.take(event) {
            Err(error) => return End::Lie(error),
            Ok(()) if shared.is_full(from) => return End::Full,
            Ok(()) => {}
        }
    }
}

impl Shared {
    fn alone(&self) {
        self.state().alone.get_or_insert_with(Instant::now);
    }

    fn take(&self, event: Event) -> Result<(), ChainError> {
        let mut state = self.state();
        match event {
            Event::ChainUpdate(changes) => {
                if let BlockHeaderChanges::Reorganized { reorganized, .. } = &changes {
                    debug!("{} blocks are replaced", reorganized.len());
                }
                state.headers.follow(changes)?;
            }
            Event::IndexedFilter(filter) => {
                let (height, hash) = (filter.height(), filter.block_hash());
                state.filters_at = Instant::now();
                if height >= state.floor.saturating_sub(FILTERS_KEPT_BLOCKS) {
                    // Without it the block waits until there is room, and its reader says so.
                    if let Err(error) = state.spool.put(height, hash, filter.into_contents()) {
                        warn!("a filter can't be kept: {error}");
                    }
                }
            }
            Event::FiltersSynced(_) => state.synced = true,
        }
        drop(state);
        self.news.notify_waiters();
        Ok(())
    }

    /// Whether a client that started at a height could be replaced by a much smaller one.
    fn is_full(&self, from: u32) -> bool {
        let state = self.state();
        let needed = state.headers.keep_from(state.floor);
        state.synced && needed.saturating_sub(from) > SPARE_HEADERS
    }
}
