//! One suite for every source of blocks, each with a real node behind it: what happens on the chain
//! is told, what is sent arrives, and what is made up is seen through.

use std::{
    ops::{Deref, DerefMut},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use bitcoin::{
    Amount, Block, BlockHash, FeeRate, Network, Transaction,
    bip158::BlockFilter,
    consensus::encode::{deserialize_hex, serialize, serialize_hex},
    hashes::Hash as _,
    p2p::message::NetworkMessage,
};
use bitmesh_tests::{
    daemon::eventually,
    esplora::Server,
    follower::{Follower, INTERVAL, PATIENCE},
    liar::Liar,
    netns::Namespace,
    regtest::{Node, PASSWORD, USER},
    topology::{INTERNET_V4, Topology},
    traffic::{self, Direction, transfer},
    world::{Trade, World},
};
use bitmesh_user::{
    chain::{Broadcast, ChainEvent, ChainSource, Esplora, LightClient, NodeRpc, Watched, follow},
    config::NodeLogin,
    runloop::status::Phase,
};
use serde_json::{Value, json};
use tempfile::TempDir;

const LOCALHOST: &str = "127.0.0.1";
const COINS: Amount = Amount::from_sat(200_000);
/// Time in which a peer is asked for what it lies about.
const TOLD: Duration = Duration::from_mins(1);
/// Time in which a lie that is believed is seen to be.
const UNMOVED: Duration = Duration::from_secs(3);

/// A kind of source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Via {
    Node,
    Esplora,
    Light,
}

const ALL: [Via; 3] = [Via::Node, Via::Esplora, Via::Light];

/// A source, what stands between it and the node, and who follows it.
struct Sourced {
    via: Via,
    server: Option<Server>,
    liar: Option<Liar>,
    directory: TempDir,
    follower: Follower,
}

impl Deref for Sourced {
    type Target = Follower;

    fn deref(&self) -> &Follower {
        &self.follower
    }
}

impl DerefMut for Sourced {
    fn deref_mut(&mut self) -> &mut Follower {
        &mut self.follower
    }
}

impl Sourced {
    async fn new(via: Via, node: &Node<'_>) -> Result<Self> {
        let rpc = node.url(LOCALHOST);
        let (server, liar) = match via {
            Via::Node => (Some(Server::rpc(rpc).await?), None),
            Via::Esplora => (Some(Server::esplora(rpc).await?), None),
            Via::Light => (None, Some(Liar::before(node.peer(LOCALHOST)).await?)),
        };
        let directory = tempfile::tempdir()?;
        let url = server.as_ref().map(Server::url).unwrap_or_default();
        let peer = liar.as_ref().map(Liar::address).unwrap_or_default();
        let source = source(via, &url, &peer, &[], &directory)?;
        let tip = ready(source.as_ref()).await?;
        let follower = Follower::new(source, tip)?;
        Ok(Self { via, server, liar, directory, follower })
    }

    fn fund(&mut self, value: u64) -> Result<Transaction> {
        let rate = FeeRate::from_sat_per_vb(2).context("a rate")?;
        Ok(self.follower.fund(Amount::from_sat(value), rate)?)
    }

    /// Ends, and starts again from the blocks that it remembers.
    async fn restart(&mut self) -> Result<()> {
        let url = self.server.as_ref().map(Server::url).unwrap_or_default();
        let peer = self.liar.as_ref().map(Liar::address).unwrap_or_default();
        // Until it has a successor the earlier one writes where it did.
        let directory = tempfile::tempdir()?;
        let source = source(self.via, &url, &peer, &self.tips, &directory)?;
        ready(source.as_ref()).await?;
        self.follow(source);
        self.directory = directory;
        Ok(())
    }
}

fn source(
    via: Via,
    url: &str,
    peer: &str,
    tips: &[(u32, BlockHash)],
    directory: &TempDir,
) -> Result<Arc<dyn ChainSource>> {
    let network = Network::Regtest;
    let login = NodeLogin::Password { user: USER.into(), password: PASSWORD.into() };
    let directory = directory.path().to_owned();
    Ok(match via {
        Via::Node => Arc::new(NodeRpc::new(url, login, network)?),
        Via::Esplora => Arc::new(Esplora::new(url, network)?),
        Via::Light => Arc::new(LightClient::start(network, &[peer.into()], tips, directory)?),
    })
}

async fn ready(source: &dyn ChainSource) -> Result<(u32, BlockHash)> {
    let mut last = String::new();
    for _ in 0..PATIENCE.as_millis() / INTERVAL.as_millis() {
        match source.tip().await {
            Ok(tip) => return Ok(tip),
            Err(error) => last = error.to_string(),
        }
        tokio::time::sleep(INTERVAL).await;
    }
    bail!("{} is not ready: {last}", source.name())
}

fn block_at(node: &Node<'_>, height: u32) -> Result<Block> {
    let hex: String = node.call("getblock", json!([node.hash_at(height)?, 0]))?;
    Ok(deserialize_hex(&hex)?)
}

/// Runs a test with each kind of source, each with a node of its own.
fn with_each(
    name: &str,
    test: impl AsyncFn(&mut Sourced, &mut Node<'_>) -> Result<()> + Send + Sync,
) -> Result<()> {
    for via in ALL {
        with(via, name, &test).with_context(|| format!("via {via:?}"))?;
    }
    Ok(())
}

fn with(
    via: Via,
    name: &str,
    test: impl AsyncFn(&mut Sourced, &mut Node<'_>) -> Result<()> + Send + Sync,
) -> Result<()> {
    let namespace = Namespace::create(name)?;
    let mut node = Node::start(&namespace)?;
    namespace.block_on(async || {
        let mut follower = Sourced::new(via, &node).await?;
        test(&mut follower, &mut node).await
    })
}

#[test]
fn what_happens_on_the_chain_is_told() -> Result<()> {
    with_each("told", async |follower, node| {
        assert_eq!(follower.synced().await?, node.height()?);
        follower.receive(node, COINS).await?;
        assert_eq!(follower.wallet.balance().confirmed, COINS);
        for _ in 0..4 {
            node.mine(1)?;
        }
        follower.reach(node).await?;
        // All but what is looked at by chance, to see that filters are right.
        let filtered = follower.via == Via::Light;
        assert!((follower.passed_over > 1) == filtered, "{}", follower.passed_over);

        let tx = follower.fund(50_000)?;
        let script = tx.output.iter().find(|output| output.value.to_sat() == 50_000);
        follower.watched.add(script.map(|output| &output.script_pubkey));
        node.broadcast(&tx)?;
        node.mine(1)?;
        let mut seen = false;
        while !seen {
            let ChainEvent::Connected { block, .. } = follower.event().await? else { continue };
            seen = block.txdata.iter().any(|seen| seen.compute_txid() == tx.compute_txid());
        }
        let rate = follower.source.fee_rate(6).await?;
        assert!(rate >= FeeRate::BROADCAST_MIN && rate.to_sat_per_kwu() < 10_000, "{rate}");
        Ok(())
    })
}

#[test]
fn p10_a_reorganisation_is_followed_down_to_seven_blocks() -> Result<()> {
    with_each("reorg", async |follower, node| {
        for _ in 0..2 {
            node.mine_empty(4)?;
            follower.reach(node).await?;
        }
        follower.receive(node, COINS).await?;
        for depth in 1..=7_u32 {
            let tip = node.height()?;
            follower.undone.clear();
            node.invalidate_from(tip + 1 - depth)?;
            node.mine_empty(depth + 1)?;
            follower.reach(node).await.with_context(|| format!("depth {depth}"))?;
            let undone: Vec<_> = (tip + 1 - depth..=tip).rev().collect();
            assert_eq!(follower.undone, undone, "depth {depth}");
            assert_eq!(follower.wallet.balance().confirmed, Amount::ZERO, "depth {depth}");
            // The payment is in the mempool again, and comes back.
            node.mine(1)?;
            follower.reach(node).await?;
            assert_eq!(follower.wallet.balance().confirmed, COINS, "depth {depth}");
        }
        Ok(())
    })
}

#[test]
fn what_is_sent_arrives_or_it_is_told_that_it_does_not() -> Result<()> {
    with_each("send", async |follower, node| {
        follower.receive(node, COINS).await?;
        follower.receive(node, COINS).await?;
        let tx = follower.fund(50_000)?;
        assert_eq!(follower.source.broadcast(&tx).await, Broadcast::Accepted);
        assert_eq!(node.mempool()?, [tx.compute_txid()]);
        assert_eq!(follower.source.broadcast(&tx).await, Broadcast::Accepted, "it waits already");

        let again = follower.fund(1_000)?;
        let conflict = Transaction { input: tx.input.clone(), ..again };
        let outcome = follower.source.broadcast(&conflict).await;
        assert!(matches!(outcome, Broadcast::Rejected { .. }), "{outcome:?}");
        assert_eq!(node.mempool()?, [tx.compute_txid()]);

        node.mine(1)?;
        follower.reach(node).await?;
        let outcome = follower.source.broadcast(&tx).await;
        let known = match follower.via {
            // Peers hand out what is in the newest block, and nothing of those before.
            Via::Light => outcome == Broadcast::Accepted,
            Via::Node | Via::Esplora => outcome == Broadcast::Known,
        };
        assert!(known, "{outcome:?}");
        Ok(())
    })
}

#[test]
fn p16_a_source_that_goes_away_is_told_and_found_again() -> Result<()> {
    with_each("gone", async |follower, node| {
        follower.receive(node, COINS).await?;
        node.stop()?;
        let reason = follower.lost().await?;
        assert!(reason.contains("no answer") || reason.contains("answers 5"), "{reason}");
        let tx = follower.fund(50_000)?;
        let outcome = follower.source.broadcast(&tx).await;
        assert!(matches!(outcome, Broadcast::Unreachable { .. }), "{outcome:?}");
        node.launch()?;
        assert_eq!(follower.synced().await?, node.height()?);
        assert_eq!(follower.source.broadcast(&tx).await, Broadcast::Accepted);
        node.mine(1)?;
        follower.reach(node).await?;
        assert!(follower.wallet.balance().confirmed > Amount::ZERO);
        Ok(())
    })
}

#[test]
fn a_restart_goes_on_where_it_was_and_sees_what_it_missed() -> Result<()> {
    with_each("restart", async |follower, node| {
        // So many that a light client starts from what was seen, and not from the first block.
        for _ in 0..6 {
            node.mine_empty(4)?;
            follower.reach(node).await?;
        }
        follower.receive(node, COINS).await?;
        let (before, _) = *follower.tips.last().context("a tip")?;
        node.send(&follower.wallet.next_address().to_string(), COINS)?;
        node.mine(1)?;
        node.mine_empty(2)?;
        follower.undone.clear();
        follower.restart().await?;
        follower.reach(node).await?;
        assert_eq!(follower.undone, [0; 0]);
        assert_eq!(follower.wallet.balance().confirmed, COINS * 2);

        // The chain changed while nobody looked, below what was seen last.
        follower.events = follow(
            follower.source.clone(),
            follower.watched.clone(),
            follower.tips.clone(),
            Duration::from_hours(1),
        );
        node.invalidate_from(before)?;
        node.mine_empty(5)?;
        follower.restart().await?;
        follower.reach(node).await?;
        assert_eq!(follower.undone, [before + 3, before + 2, before + 1, before]);
        assert_eq!(follower.wallet.balance().confirmed, Amount::ZERO);
        Ok(())
    })
}

#[test]
fn the_words_alone_bring_the_money_back() -> Result<()> {
    with_each("words", async |follower, node| {
        let birthday = *follower.tips.first().context("a birthday")?;
        // Past what is looked ahead for at first, in blocks right behind each other.
        for index in [150, 300, 450] {
            let address = std::iter::repeat_with(|| follower.wallet.next_address()).nth(149);
            let address = address.with_context(|| format!("address {index}"))?;
            node.send(&address.to_string(), COINS)?;
            node.mine(1)?;
        }
        follower.begin_again(birthday)?;
        follower.restart().await?;
        follower.reach(node).await?;
        assert_eq!(follower.wallet.balance().confirmed, COINS * 3);
        Ok(())
    })
}

/// A lie is told, and for a while after no block is taken in.
async fn is_not_believed(follower: &mut Sourced) -> Result<()> {
    let (began, mut told) = (Instant::now(), None);
    while told.is_none_or(|told: Instant| told.elapsed() < UNMOVED) {
        // Looked at again and again: it may be told while nothing happens.
        if let Ok(event) = tokio::time::timeout(INTERVAL, follower.event()).await {
            let event = event?;
            ensure!(!matches!(event, ChainEvent::Connected { .. }), "it is believed: {event:?}");
        }
        if told.is_none() {
            ensure!(began.elapsed() < TOLD, "nothing was asked that could be lied about");
            let changed = follower.liar.as_ref().context("a peer")?.changed();
            told = (changed > 0).then(Instant::now);
        }
    }
    Ok(())
}

/// Has the next blocks come with an output that pays more.
fn overpay(block: &mut Block) {
    if let Some(output) = block.txdata.first_mut().and_then(|tx| tx.output.first_mut()) {
        output.value += Amount::from_sat(1);
    }
}

#[test]
fn p17_a_false_block_is_not_believed() -> Result<()> {
    with_each("falseblock", async |follower, node| {
        follower.receive(node, COINS).await?;
        if let Some(server) = &follower.server {
            server.tamper(Some(Box::new(|asked, body| {
                if asked == "getblock" {
                    let mut answer: Value = serde_json::from_slice(body).unwrap();
                    let hex = answer["result"].as_str().unwrap();
                    let mut block: Block = deserialize_hex(hex).unwrap();
                    overpay(&mut block);
                    answer["result"] = serialize_hex(&block).into();
                    *body = serde_json::to_vec(&answer).unwrap();
                } else if asked.ends_with("/raw") {
                    let mut block: Block = bitcoin::consensus::deserialize(body).unwrap();
                    overpay(&mut block);
                    *body = serialize(&block);
                }
            })));
        }
        if let Some(liar) = &follower.liar {
            liar.lie(Some(Box::new(|message| {
                if let NetworkMessage::Block(block) = message {
                    overpay(block);
                }
            })));
        }
        let before = follower.tips.len();
        node.send(&follower.wallet.next_address().to_string(), COINS)?;
        node.mine(1)?;
        match follower.via {
            // It drops the peer, and waits for another to send the right one.
            Via::Light => is_not_believed(follower).await?,
            Via::Node | Via::Esplora => {
                let reason = follower.lost().await?;
                assert!(reason.contains("a lie"), "{reason}");
            }
        }
        assert_eq!((follower.tips.len(), follower.wallet.balance().confirmed), (before, COINS));
        follower.server.iter().for_each(|server| server.tamper(None));
        follower.liar.iter().for_each(|liar| liar.lie(None));
        follower.recover(node).await?;
        assert_eq!(follower.wallet.balance().confirmed, COINS * 2);
        Ok(())
    })
}

#[test]
fn p17_a_header_without_work_is_not_believed() -> Result<()> {
    for via in ALL {
        with(via, "falseheader", async |follower, node| {
            follower.receive(node, COINS).await?;
            // Its work is what its target asks for only by chance of one in two, on this network.
            let lazy = |block: &mut Block| {
                while block.header.validate_pow(block.header.target()).is_ok() {
                    block.header.nonce = block.header.nonce.wrapping_add(1);
                }
            };
            let next = node.height()? + 1;
            if let Some(server) = &follower.server {
                server.tamper(Some(Box::new(move |asked, body| {
                    let lazy_hash = |hex: &str| {
                        let mut block: Block = deserialize_hex(hex).unwrap();
                        lazy(&mut block);
                        serialize_hex(&block)
                    };
                    if asked == "getblock" {
                        let mut answer: Value = serde_json::from_slice(body).unwrap();
                        answer["result"] = lazy_hash(answer["result"].as_str().unwrap()).into();
                        *body = serde_json::to_vec(&answer).unwrap();
                    } else if asked.ends_with("/raw") {
                        *body = hex::decode(lazy_hash(&hex::encode(&*body))).unwrap();
                    }
                })));
            }
            if let Some(liar) = &follower.liar {
                liar.lie(Some(Box::new(move |message| {
                    if let NetworkMessage::Headers(headers) = message {
                        for header in headers {
                            let mut block = Block { header: *header, txdata: Vec::new() };
                            lazy(&mut block);
                            *header = block.header;
                        }
                    }
                })));
            }
            node.mine(1)?;
            if via == Via::Light {
                is_not_believed(follower).await?;
            } else {
                let reason = follower.lost().await?;
                assert!(reason.contains("is not the one that was asked for"), "{reason}");
            }
            assert!(follower.tips.last().is_some_and(|(height, _)| *height < next));
            follower.server.iter().for_each(|server| server.tamper(None));
            follower.liar.iter().for_each(|liar| liar.lie(None));
            follower.recover(node).await?;
            Ok(())
        })
        .with_context(|| format!("via {via:?}"))?;
    }
    Ok(())
}

#[test]
fn p17_a_filter_that_is_not_the_one_agreed_on_is_not_believed() -> Result<()> {
    with(Via::Light, "falsefilter", async |follower, node| {
        follower.receive(node, COINS).await?;
        let liar = follower.liar.as_ref().context("a peer")?;
        liar.lie(Some(Box::new(|message| {
            if let NetworkMessage::CFilter(filter) = message {
                filter.filter = vec![0];
            }
        })));
        node.send(&follower.wallet.next_address().to_string(), COINS)?;
        node.mine(1)?;
        is_not_believed(follower).await?;
        follower.liar.iter().for_each(|liar| liar.lie(None));
        follower.recover(node).await?;
        assert_eq!(follower.wallet.balance().confirmed, COINS * 2);
        Ok(())
    })
}

#[test]
fn p17_a_block_with_more_in_it_than_its_filter_says_has_the_peers_replaced() -> Result<()> {
    with(Via::Light, "thinfilter", async |follower, node| {
        follower.receive(node, COINS).await?;
        // A filter with the one script that leads to the block, and headers that agree with it.
        let address = follower.wallet.next_address();
        node.send(&address.to_string(), COINS)?;
        let stolen = address.script_pubkey();
        let liar = follower.liar.as_ref().context("a peer")?;
        let thin = move |hash: &BlockHash| {
            let mut octets = Vec::new();
            let key = hash.to_byte_array();
            let [k0, k1] =
                [&key[..8], &key[8..16]].map(|half| u64::from_le_bytes(half.try_into().unwrap()));
            let mut writer =
                bitcoin::bip158::GcsFilterWriter::new(&mut octets, k0, k1, 784_931, 19);
            writer.add_element(stolen.as_bytes());
            writer.finish().unwrap();
            BlockFilter::new(&octets)
        };
        liar.lie(Some(Box::new(move |message| match message {
            NetworkMessage::CFilter(filter) => {
                filter.filter = thin(&filter.block_hash).content;
            }
            NetworkMessage::CFHeaders(headers) => {
                if let Some(last) = headers.filter_hashes.last_mut() {
                    let content = thin(&headers.stop_hash).content;
                    *last = bitcoin::FilterHash::hash(&content);
                }
            }
            _ => {}
        })));
        node.mine(1)?;
        let reason = follower.lost().await?;
        assert!(reason.contains("more in it than its filter says"), "{reason}");
        follower.liar.iter().for_each(|liar| liar.lie(None));
        follower.recover(node).await?;
        assert_eq!(follower.wallet.balance().confirmed, COINS * 2);
        assert_eq!(block_at(node, node.height()?)?.txdata.len(), 2);
        Ok(())
    })
}

#[test]
fn a_trade_needs_no_node_of_its_own_at_either_end() -> Result<()> {
    let topology = Topology::edge()?;
    let trade = Trade { price: 100_000, light: true, ..Trade::default() };
    let mut world = World::new(&topology, &trade)?;
    world.open_channel(COINS)?;
    let status = world.provider_status()?;
    assert!(status.chain.source.contains("peer 10.79.1.1"), "{}", status.chain.source);
    assert!(status.chain.synced && status.chain.block_seen_at.is_some());
    let _server = traffic::Server::start(&topology.internet)?;
    transfer(&topology.subscriber, INTERNET_V4, Direction::Download, 4, 200)?;
    let (ours, _) = world.channel()?;
    assert!(ours.paid > Amount::ZERO);
    let closed = world.subscriber.cli(&["close", "--all"])?;
    ensure!(closed.status.success(), "{}", String::from_utf8_lossy(&closed.stderr));
    eventually("a claim in the mempool", PATIENCE, || {
        Ok((!world.node.mempool()?.is_empty()).then_some(()))
    })
    .with_context(|| world.logs())?;
    world.node.mine(1)?;
    world.wait_for(Phase::Closed)
}

/// What a light client takes while nothing happens: octets of memory beyond the process's own, and
/// its part of a CPU. Printed, since it differs from machine to machine.
#[test]
#[ignore = "a measurement of a minute"]
fn a_light_client_at_rest() -> Result<()> {
    let resident = || -> Result<u64> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let line = status.lines().find(|line| line.starts_with("VmRSS")).context("VmRSS")?;
        let kib = line.split_whitespace().nth(1).context("a number")?;
        Ok(kib.parse::<u64>()? << 10)
    };
    let busy = || -> Result<Duration> {
        let stat = std::fs::read_to_string("/proc/self/stat")?;
        let after_name = stat.rsplit(')').next().context("a name")?;
        let ticks = after_name.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
        let ticks: u64 = ticks.sum::<Result<u64, _>>()?;
        Ok(Duration::from_millis(ticks * 10))
    };
    let namespace = Namespace::create("atrest")?;
    let node = Node::start(&namespace)?;
    let peer = node.peer(LOCALHOST);
    namespace.block_on(async || {
        let directory = tempfile::tempdir()?;
        let before = resident()?;
        let source = source(Via::Light, "", &peer, &[], &directory)?;
        let tip = ready(source.as_ref()).await?;
        let _events = follow(source, Watched::default(), vec![tip], Duration::from_millis(500));
        tokio::time::sleep(Duration::from_secs(5)).await;
        let (memory, start) = (resident()?.saturating_sub(before), busy()?);
        let time = Duration::from_mins(1);
        tokio::time::sleep(time).await;
        let cpu = busy()?.saturating_sub(start).as_secs_f64() / time.as_secs_f64();
        println!("{} KiB, {:.2} % of a CPU", memory >> 10, cpu * 100.0);
        Ok(())
    })
}
