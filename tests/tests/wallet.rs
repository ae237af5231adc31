//! The chain's adapter and the wallet against a real node: what arrives is seen and can be spent,
//! what leaves the chain is taken back, and what is wrong with a node is told.

use std::{fs, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use bitcoin::{Amount, BlockHash, FeeRate, Network, Transaction, hashes::Hash as _};
use bitmesh_tests::{
    follower::{Follower, channel_script},
    netns::Namespace,
    regtest::{Node, PASSWORD, USER},
};
use bitmesh_user::{
    chain::{Broadcast, ChainError, ChainSource as _, NodeRpc},
    config::NodeLogin,
    wallet::{Wallet, WalletError},
};

const LOCALHOST: &str = "127.0.0.1";
/// Time in which nothing has to happen.
const SILENCE: Duration = Duration::from_millis(300);
const COINS: Amount = Amount::from_sat(200_000);

fn login(password: &str) -> NodeLogin {
    NodeLogin::Password { user: USER.into(), password: password.into() }
}

fn rpc(node: &Node<'_>) -> Result<NodeRpc> {
    Ok(NodeRpc::new(&node.url(LOCALHOST), login(PASSWORD), Network::Regtest)?)
}

fn rate(sat_per_vb: u64) -> Result<FeeRate> {
    FeeRate::from_sat_per_vb(sat_per_vb).context("a fee rate")
}

/// A new wallet that follows the node.
async fn follower(node: &Node<'_>) -> Result<Follower> {
    let source = rpc(node)?;
    source.check().await?;
    let tip = source.tip().await?;
    Follower::new(Arc::new(source), tip)
}

/// Ends, and starts again from what was stored.
fn restart(follower: &mut Follower, node: &Node<'_>) -> Result<()> {
    follower.wallet = Wallet::load(&follower.words, Network::Regtest, &follower.changes)?;
    follower.follow(Arc::new(rpc(node)?));
    Ok(())
}

fn sum(tx: &Transaction) -> Amount {
    tx.output.iter().map(|output| output.value).sum()
}

fn with_node(name: &str, test: impl AsyncFnOnce(&mut Node<'_>) -> Result<()> + Send) -> Result<()> {
    let namespace = Namespace::create(name)?;
    let mut node = Node::start(&namespace)?;
    namespace.block_on(async || test(&mut node).await)
}

#[test]
fn money_that_arrives_is_spent_to_the_satoshi() -> Result<()> {
    with_node("spend", async |node| {
        let mut follower = follower(node).await?;
        let source = rpc(node)?;
        follower.receive(node, COINS).await?;
        assert_eq!(follower.wallet.balance().confirmed, COINS);

        let (value, rate) = (Amount::from_sat(150_000), rate(3)?);
        let short = follower.fund(COINS, rate).err().context("the fee is not covered")?;
        let WalletError::Insufficient { needed, available } = short else { bail!("{short}") };
        assert_eq!(available, COINS);
        assert!(needed > COINS, "{needed}");

        let tx = follower.fund(value, rate)?;
        follower.store()?;
        assert_eq!(node.refuses(&tx)?, None);
        assert_eq!(source.broadcast(&tx).await, Broadcast::Accepted);
        assert_eq!(source.broadcast(&tx).await, Broadcast::Accepted, "it waits already");
        let vbytes = u64::try_from(tx.vsize())?;
        let fee = COINS - sum(&tx);
        let asked = rate.fee_vb(vbytes).context("a fee")?;
        let most = asked + rate.fee_vb(2).context("a fee")?;
        assert!(fee >= asked && fee <= most, "{fee} for {vbytes} vB");
        let change = sum(&tx) - value;
        assert_eq!(follower.wallet.balance().pending, change);

        node.mine(1)?;
        follower.reach(node).await?;
        assert_eq!(source.broadcast(&tx).await, Broadcast::Known);
        assert_eq!(follower.wallet.balance().confirmed, change);
        assert_eq!(follower.wallet.balance().pending, Amount::ZERO);
        restart(&mut follower, node)?;
        assert_eq!(follower.wallet.balance().confirmed, change);
        assert!(source.fee_rate(6).await? >= FeeRate::BROADCAST_MIN, "without an estimate");

        let again =
            Transaction { input: tx.input, ..follower.fund(Amount::from_sat(1_000), rate)? };
        let outcome = source.broadcast(&again).await;
        assert!(matches!(outcome, Broadcast::Rejected { .. }), "{outcome:?}");
        Ok(())
    })
}

#[test]
fn the_words_alone_bring_the_money_back() -> Result<()> {
    with_node("words", async |node| {
        let mut follower = follower(node).await?;
        let birthday = *follower.tips.first().context("a birthday")?;
        follower.receive(node, COINS).await?;
        let tx = follower.fund(Amount::from_sat(60_000), rate(2)?)?;
        node.broadcast(&tx)?;
        follower.receive(node, COINS).await?;
        let balance = follower.wallet.balance();
        assert!(balance.confirmed > COINS);

        follower.begin_again(birthday)?;
        follower.follow(Arc::new(rpc(node)?));
        follower.reach(node).await?;
        assert_eq!(follower.wallet.balance(), balance);
        Ok(())
    })
}

#[test]
fn p5_what_is_below_dust_is_refused_or_goes_to_the_miners() -> Result<()> {
    with_node("dust", async |node| {
        let mut follower = follower(node).await?;
        let rate = rate(1)?;
        let dust = channel_script().minimal_non_dust();
        follower.receive(node, COINS).await?;
        let below = follower.fund(dust - Amount::from_sat(1), rate).err();
        assert!(matches!(below, Some(WalletError::Dust(_))), "{below:?}");

        // One input, one output: what is left is less than an output may hold.
        let left = Amount::from_sat(122 + 200);
        let tx = follower.fund(COINS - left, rate)?;
        assert_eq!(tx.output.len(), 1, "{tx:?}");
        assert_eq!(node.refuses(&tx)?, None);
        node.broadcast(&tx)?;
        node.mine(1)?;
        follower.reach(node).await?;
        assert_eq!(follower.wallet.balance().confirmed, Amount::ZERO);

        follower.receive(node, COINS).await?;
        let tx = follower.fund(dust, rate)?;
        assert_eq!(node.refuses(&tx)?, None);
        Ok(())
    })
}

#[test]
fn p10_money_in_blocks_that_leave_the_chain_is_taken_back_and_comes_again() -> Result<()> {
    with_node("reorg", async |node| {
        let mut follower = follower(node).await?;
        follower.receive(node, COINS).await?;
        let received = node.height()?;
        node.mine(2)?;
        follower.reach(node).await?;
        assert_eq!(follower.wallet.balance().confirmed, COINS);

        node.invalidate_from(received)?;
        node.mine_empty(4)?;
        follower.reach(node).await?;
        assert_eq!(follower.undone, [received + 2, received + 1, received]);
        assert_eq!(follower.wallet.balance().confirmed, Amount::ZERO);
        node.mine(1)?;
        follower.reach(node).await?;
        assert_eq!(follower.wallet.balance().confirmed, COINS);

        // The same while nobody looks.
        let before = node.height()?;
        node.invalidate_from(before)?;
        node.mine_empty(2)?;
        follower.undone.clear();
        restart(&mut follower, node)?;
        follower.reach(node).await?;
        assert_eq!(follower.undone, [before]);
        assert_eq!(follower.wallet.balance().confirmed, Amount::ZERO);
        Ok(())
    })
}

#[test]
fn p10_a_reorganisation_below_every_block_that_is_remembered_undoes_nothing() -> Result<()> {
    with_node("deep", async |node| {
        let mut follower = follower(node).await?;
        let (birthday, _) = *follower.tips.first().context("a birthday")?;
        node.mine(2)?;
        follower.reach(node).await?;
        node.invalidate_from(birthday)?;
        node.mine_empty(4)?;
        let reason = follower.lost().await?;
        assert!(reason.contains("none of the last 3 blocks"), "{reason}");
        assert_eq!(follower.undone, [0; 0]);
        Ok(())
    })
}

#[test]
fn p16_a_node_that_goes_away_is_told_once_and_found_again() -> Result<()> {
    with_node("gone", async |node| {
        let mut follower = follower(node).await?;
        let source = rpc(node)?;
        follower.receive(node, COINS).await?;
        assert_eq!(follower.synced().await?, node.height()?);
        let tx = follower.fund(Amount::from_sat(50_000), rate(2)?)?;
        node.stop()?;
        let reason = follower.lost().await?;
        assert!(reason.contains("is it running"), "{reason}");
        assert!(matches!(source.broadcast(&tx).await, Broadcast::Unreachable { .. }));
        let more = tokio::time::timeout(SILENCE, follower.events.recv()).await;
        assert!(more.is_err(), "{more:?}");

        node.launch()?;
        assert_eq!(follower.synced().await?, node.height()?);
        assert_eq!(source.broadcast(&tx).await, Broadcast::Accepted);
        node.mine(1)?;
        follower.reach(node).await?;
        assert_eq!(follower.wallet.balance().confirmed, sum(&tx) - Amount::from_sat(50_000));
        Ok(())
    })
}

#[test]
fn what_is_wrong_with_a_node_is_told_with_what_to_do() -> Result<()> {
    with_node("wrong", async |node| {
        let url = node.url(LOCALHOST);
        let failure = async |url: &str, login, network| -> Result<ChainError> {
            let source = NodeRpc::new(url, login, network)?;
            source.check().await.err().context("the node was believed")
        };
        let error = failure(&url, login(PASSWORD), Network::Signet).await?;
        assert!(error.to_string().contains("on regtest, not on signet"), "{error}");
        let error = failure(&url, login("wrong"), Network::Regtest).await?;
        assert!(matches!(error, ChainError::Login { .. }), "{error}");
        let error = failure("http://127.0.0.1:1", login(PASSWORD), Network::Regtest).await?;
        assert!(error.to_string().contains("refused"), "{error}");
        let error = failure("127.0.0.1:18443", login(PASSWORD), Network::Regtest).await;
        let error = error.err().context("an address without a scheme was taken")?;
        assert!(error.to_string().contains("write it as http://"), "{error}");

        let cookie = node.directory().join("test.cookie");
        let source = NodeRpc::new(&url, NodeLogin::Cookie(cookie.clone()), Network::Regtest)?;
        let error = source.check().await.err().context("no cookie was needed")?;
        assert!(error.to_string().contains("test.cookie"), "{error}");
        fs::write(&cookie, format!("{USER}:of the last start"))?;
        let error = source.check().await.err().context("an old cookie was taken")?;
        assert!(error.to_string().contains("test.cookie"), "{error}");
        fs::write(&cookie, format!("{USER}:{PASSWORD}\n"))?;
        source.check().await?;

        let error = source.hash_at(1_000_000).await.err().context("a block of the future")?;
        assert!(matches!(error, ChainError::Refused { .. }), "{error}");
        let error = source.block(BlockHash::all_zeros()).await.err().context("a block of zeros")?;
        assert!(matches!(error, ChainError::Refused { .. }), "{error}");
        Ok(())
    })
}
