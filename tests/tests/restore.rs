//! The provider is gone for good: the money of a channel comes back to the daemon (`faults.rs`), to
//! the words alone on another machine, and to a stock Bitcoin Core wallet.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use bitcoin::Amount;
use bitmesh_core::channel::ChannelId;
use bitmesh_tests::{
    commands::Desk,
    daemon::eventually,
    topology::{INTERNET_V4, NODE_FOR_SUBSCRIBER, Topology},
    traffic::{Direction, Server, transfer},
    world::{Trade, World},
};
use bitmesh_user::{
    api::{PastKind, PastReport, RefundExport},
    runloop::status::WalletStatus,
    wallet::Sealed,
};

const COINS: Amount = Amount::from_sat(200_000);
const CAPACITY_SAT: u64 = 50_000;
const STEP: Duration = Duration::from_secs(30);

/// Writes down the words of a data directory that has no passphrase.
fn note_words(directory: &Path, file: &Path) -> Result<u32> {
    let sealed = Sealed::read(directory)?;
    let words: Vec<_> = sealed.open(None)?.words().iter().map(ToOwned::to_owned).collect();
    fs::write(file, words.join(" "))?;
    Ok(sealed.birthday())
}

#[test]
fn p18_the_words_alone_bring_a_channels_money_back_on_another_machine() -> Result<()> {
    let topology = Topology::edge()?;
    let mut world = World::new(&topology, &Trade::default())?;
    world.open_channel(COINS)?;
    let channel = world.own_channel()?;
    let words = world.data().join("words.txt");
    let birthday = note_words(world.subscriber.directory(), &words)?.to_string();
    world.provider.kill();
    world.subscriber.kill();

    let other = world.data().join("other/buy");
    let desk = Desk::new(&topology.subscriber, &world.node, NODE_FOR_SUBSCRIBER, &other);
    let words = words.display().to_string();
    let restore = ["wallet", "restore", "--words-file", &words, "--birthday", &birthday];
    let found: WalletStatus = desk.json(&restore)?;
    assert_eq!(found.in_channels_sat, CAPACITY_SAT);
    let fee = COINS.to_sat() - CAPACITY_SAT - found.confirmed_sat;
    assert!((1..5_000).contains(&fee), "{found:?}");

    // A block before the end, nothing may happen.
    let end = channel.params.expiry_height;
    world.node.mine(end - 1 - world.node.height()?)?;
    let waits: WalletStatus = desk.json(&["wallet"])?;
    assert_eq!(waits.in_channels_sat, CAPACITY_SAT);
    assert!(world.node.mempool()?.is_empty());
    world.node.mine(1)?;
    let output = desk.bitmesh(&["wallet", "balance"])?.output()?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(told.contains("has ended: refunded in"), "{told}");
    let txid = *world.node.mempool()?.first().context("a refund")?;
    let refund = world.node.transaction(txid, None)?;
    assert_eq!(refund.lock_time.to_consensus_u32(), end);
    world.node.mine(1)?;
    let back: WalletStatus = desk.json(&["wallet"])?;
    assert_eq!(back.in_channels_sat, 0);
    let came = refund.output.iter().map(|output| output.value.to_sat()).sum::<u64>();
    assert_eq!(back.confirmed_sat, found.confirmed_sat + came);
    let history: Vec<PastReport> = desk.json(&["wallet", "history"])?;
    let kinds: Vec<_> = history.iter().map(|past| past.kind).collect();
    assert_eq!(kinds, [PastKind::Refund, PastKind::Funding, PastKind::Received]);
    assert!(history.iter().take(2).all(|past| past.channel == Some(channel.channel)));

    // The restored directory is one that a daemon goes on with.
    let seed = fs::read_to_string(other.join("seed"))?;
    assert!(desk.fails(&restore)?.contains("is there already"));
    assert_eq!(fs::read_to_string(other.join("seed"))?, seed);
    Ok(())
}

#[test]
fn p18_a_stock_wallet_refunds_by_the_commands_that_export_refund_prints() -> Result<()> {
    let topology = Topology::edge()?;
    let mut world = World::new(&topology, &Trade::default())?;
    world.open_channel(COINS)?;
    let channel = world.own_channel()?;
    let home = world.subscriber.directory().to_owned();
    let desk = Desk::new(&topology.chain, &world.node, "127.0.0.1", &home);
    world.provider.kill();

    // With the daemon, and without it: the same but for the tip.
    let asked = desk.run(&["channels", "export-refund"])?;
    world.subscriber.kill();
    let id = channel.channel.to_string();
    let begin = id.get(..8).context("an id")?;
    let alone = desk.run(&["channels", "export-refund", begin])?;
    assert_eq!(asked, alone);
    assert!(alone.contains("SECRET"), "{alone}");
    let end = channel.params.expiry_height;
    assert!(alone.contains(&format!("once block {end} is there")), "{alone}");
    let exports: Vec<RefundExport> = desk.json(&["channels", "export-refund"])?;
    let named: Vec<ChannelId> = exports.iter().map(|export| export.channel).collect();
    assert_eq!(named, [channel.channel]);
    assert!(desk.fails(&["channels", "export-refund", "zz"])?.contains("no channel that begins"));
    let main = "bc1qcr8te4kr609gcawutmrza0j4xv80jy8z306fyu";
    assert!(desk.fails(&["channels", "export-refund", "--to", main])?.contains("--to"));

    // A block early, nodes refuse it; the commands themselves all succeed until there.
    world.node.mine(end - 1 - world.node.height()?)?;
    let folder = tempfile::tempdir()?;
    let early = desk.script(folder.path(), &world.node, &alone)?;
    let said = String::from_utf8_lossy(&early.stderr).into_owned();
    ensure!(!early.status.success() && said.contains("non-final"), "{said}");
    world.node.mine(1)?;
    let last: Vec<_> = alone.lines().filter(|line| !line.starts_with('#')).skip(3).collect();
    let done = desk.script(folder.path(), &world.node, &last.join("\n"))?;
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    ensure!(done.status.success(), "{said}");
    assert_eq!(world.node.mempool()?.len(), 1);
    world.node.mine(1)?;

    // And the wallet of this program sees where the money went: to itself.
    let back: WalletStatus = desk.json(&["wallet"])?;
    assert_eq!(back.in_channels_sat, 0);
    assert!(back.confirmed_sat > COINS.to_sat() - 10_000, "{back:?}");
    Ok(())
}

#[test]
fn p18_a_restored_providers_wallet_finds_what_it_was_paid() -> Result<()> {
    let topology = Topology::edge()?;
    // A satoshi buys a KiB: soon there is enough to claim.
    let mut world = World::new(&topology, &Trade { price: 1_000_000, ..Trade::default() })?;
    let _server = Server::start(&topology.internet)?;
    world.open_channel(COINS)?;
    transfer(&topology.subscriber, INTERNET_V4, Direction::Download, 8, 200)?;
    world.subscriber.cli(&["close", "--all"])?;
    eventually("a claim in the mempool", STEP, || {
        Ok((!world.node.mempool()?.is_empty()).then_some(()))
    })
    .with_context(|| world.logs())?;
    world.node.mine(1)?;
    let known = eventually("what was claimed", STEP, || {
        let wallet: WalletStatus = world.provider.json(&["wallet"])?;
        Ok((wallet.confirmed_sat > 0).then_some(wallet))
    })
    .with_context(|| world.logs())?;

    let words = world.data().join("words.txt");
    note_words(world.provider.directory(), &words)?;
    world.provider.kill();
    let other = world.data().join("other/sell");
    let desk = Desk::new(&topology.subscriber, &world.node, NODE_FOR_SUBSCRIBER, &other);
    let words = words.display().to_string();
    let output = desk.run(&["wallet", "restore", "--role", "sell", "--words-file", &words])?;
    assert!(output.contains("claimed with the data directory of before alone"), "{output}");
    let again: WalletStatus = desk.json(&["wallet"])?;
    assert_eq!(again.confirmed_sat, known.confirmed_sat);
    Ok(())
}
