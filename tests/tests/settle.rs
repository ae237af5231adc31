//! Settlements that have to fight: for their fee, their place and their time; and credit on fundings
//! that never confirm. The provider is the real one; the subscriber signs by hand, as no honest one
//! would.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bitcoin::{
    Amount, EcdsaSighashType, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Witness,
    absolute::LockTime,
    consensus::encode,
    ecdsa,
    hashes::Hash as _,
    secp256k1::{All, Message, Secp256k1, SecretKey},
    sighash::SighashCache,
    transaction::Version,
};
use bitmesh_core::{
    alarm::{ALARM_LEAD_BLOCKS, Kind, Level},
    channel::{
        CLAIM_BUMP_BLOCKS, CLAIM_DONE_BLOCKS, CLAIM_MARGIN_BLOCKS, ChannelStatus,
        LIFETIME_MIN_BLOCKS, PROTOCOL_VERSION, SpendKind, close_digest, funding_outpoint,
        payment_sighash,
    },
    offer::SignedOffer,
    units::Octets,
    wire::{
        AccountReport, ChannelReport, CloseRequest, ErrorBody, FundingRequest, OpenRequest,
        PaymentRequest,
    },
};
use bitmesh_tests::{
    daemon::eventually,
    regtest::Node,
    topology::Topology,
    world::{Trade, World, ask},
};
use reqwest::{Method, StatusCode};
use serde::Serialize;
use serde_json::{Value, json};

const CAPACITY: Amount = Amount::from_sat(50_000);
const STEP: Duration = Duration::from_secs(30);

/// A subscriber that does what it is told to.
struct Hand<'a> {
    topology: &'a Topology,
    secp: Secp256k1<All>,
    key: SecretKey,
    channel: ChannelReport,
}

impl<'a> Hand<'a> {
    /// A channel that is agreed on and not funded.
    fn open(topology: &'a Topology, tip: u32, lifetime: u32) -> Result<Self> {
        let secp = Secp256k1::new();
        let key = SecretKey::from_slice(&[7; 32])?;
        let (_, offer) = ask(topology, &Method::GET, "/v1/offer", None)?;
        let offer: SignedOffer = serde_json::from_value(offer)?;
        let own = bitcoin::PublicKey::new(key.public_key(&secp));
        let request = OpenRequest {
            version: PROTOCOL_VERSION,
            offer: offer.offer.id(),
            subscriber: own.inner,
            capacity: CAPACITY,
            expiry_height: tip + lifetime,
            remainder_script: ScriptBuf::new_p2wpkh(&own.wpubkey_hash()?),
        };
        let (status, report) = post(topology, "/v1/channels", &request)?;
        ensure!(status.is_success(), "{report}");
        Ok(Self { topology, secp, key, channel: serde_json::from_value(report)? })
    }

    /// The same, in a block.
    fn funded(
        topology: &'a Topology,
        world: &World<'_>,
        lifetime: u32,
    ) -> Result<(Self, OutPoint)> {
        let hand = Self::open(topology, world.node.height()?, lifetime)?;
        let txid = world.node.send(&hand.channel.address, CAPACITY)?;
        let tx = world.node.transaction(txid, None)?;
        mine(world, 1)?;
        let funding = funding_outpoint(&hand.channel.params, &tx).context("a funding")?;
        hand.seen(&tx, world)?;
        Ok((hand, funding))
    }

    fn seen(&self, tx: &Transaction, world: &World<'_>) -> Result<()> {
        eventually("a funding that the provider sees", STEP, || {
            let funding = self.now(world)?.funding;
            Ok(funding.is_some_and(|at| at.txid == tx.compute_txid()).then_some(()))
        })
        .with_context(|| world.logs())
    }

    fn path(&self, of: &str) -> String {
        format!("/v1/channels/{}/{of}", self.channel.channel)
    }

    fn present(&self, tx: &Transaction) -> Result<(StatusCode, Value)> {
        post(self.topology, &self.path("funding"), &FundingRequest { tx: tx.clone() })
    }

    fn pay(&self, funding: OutPoint, sum: u64) -> Result<(StatusCode, Value)> {
        let paid = Amount::from_sat(sum);
        let message = payment_sighash(&self.channel.params, funding, paid).context("too much")?;
        let signature = self.secp.sign_ecdsa(&message, &self.key);
        post(self.topology, &self.path("payments"), &PaymentRequest { paid, signature })
    }

    fn close(&self) -> Result<()> {
        let digest = close_digest(&self.channel.channel);
        let signature = self.secp.sign_ecdsa(&digest, &self.key);
        let close = CloseRequest { signature, proposal: None };
        let (status, told) = post(self.topology, &self.path("close"), &close)?;
        ensure!(status.is_success(), "{told}");
        Ok(())
    }

    fn now(&self, world: &World<'_>) -> Result<ChannelReport> {
        world.provider.channels()?.remove(&self.channel.channel).context("no channel")
    }

    /// Height from which no payment is taken.
    fn margin(&self) -> u32 {
        self.channel.params.expiry_height - CLAIM_MARGIN_BLOCKS
    }

    /// Mines until the settlement may be pending, which it is then.
    fn claimed(&self, world: &World<'_>) -> Result<Transaction> {
        mine(world, self.margin() - world.node.height()?)?;
        claim(world)
    }

    fn settled(&self, world: &World<'_>) -> Result<()> {
        eventually("a settlement", STEP, || {
            let settled = ChannelStatus::Settled { kind: SpendKind::Claim, depth: 1 };
            Ok((self.now(world)?.status == settled).then_some(()))
        })
        .with_context(|| world.logs())
    }
}

/// A provider that has caught up with its node.
fn provider<'a>(topology: &'a Topology, trade: &Trade<'_>) -> Result<World<'a>> {
    let world = World::new(topology, trade)?;
    eventually("a provider that sees the chain", STEP, || {
        Ok(world.provider_status()?.chain.synced.then_some(()))
    })
    .with_context(|| world.logs())?;
    Ok(world)
}

fn post(topology: &Topology, path: &str, body: &impl Serialize) -> Result<(StatusCode, Value)> {
    ask(topology, &Method::POST, path, Some(&serde_json::to_value(body)?))
}

fn refused((status, told): (StatusCode, Value)) -> Result<(u16, String)> {
    let error: ErrorBody =
        serde_json::from_value(told.clone()).with_context(|| told.to_string())?;
    Ok((status.as_u16(), error.error))
}

/// Waits until the provider has seen the newest block.
fn follow(world: &World<'_>) -> Result<()> {
    let height = world.node.height()?;
    eventually("a provider at the tip", STEP, || {
        Ok((world.provider_status()?.chain.height == height).then_some(()))
    })
    .with_context(|| world.logs())
}

fn mine(world: &World<'_>, blocks: u32) -> Result<()> {
    world.node.mine(blocks)?;
    follow(world)
}

/// A block that holds these transactions and none of the mempool's.
fn mine_only(world: &World<'_>, transactions: &[&Transaction]) -> Result<()> {
    let address: String = world.node.call("getnewaddress", json!([]))?;
    let held: Vec<_> = transactions.iter().map(|tx| encode::serialize_hex(*tx)).collect();
    world.node.call::<Value>("generateblock", json!([address, held]))?;
    follow(world)
}

/// The version 3 transaction in the mempool that spends a channel.
fn claim(world: &World<'_>) -> Result<Transaction> {
    eventually("a claim in the mempool", STEP, || claim_in(&world.node))
        .with_context(|| world.logs())
}

fn claim_in(node: &Node<'_>) -> Result<Option<Transaction>> {
    for txid in node.mempool()? {
        // One that was replaced since is gone.
        let Ok(tx) = node.transaction(txid, None) else { continue };
        // Its witness: two signatures and the script.
        if tx.input.first().is_some_and(|input| input.witness.len() == 3) {
            return Ok(Some(tx));
        }
    }
    Ok(None)
}

/// Mines blocks without it until another claim of the same funding is in the mempool.
fn replaced(world: &World<'_>, claim: &Transaction) -> Result<Transaction> {
    for _ in 0..4 * CLAIM_BUMP_BLOCKS {
        mine_only(world, &[])?;
        // What is signed with this block arrives by the next one at the latest.
        for _ in 0..10 {
            if let Some(tx) = claim_in(&world.node)?
                && tx.compute_txid() != claim.compute_txid()
            {
                let spends = |tx: &Transaction| tx.input.first().map(|input| input.previous_output);
                assert_eq!(spends(&tx), spends(claim));
                return Ok(tx);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    Err(anyhow::anyhow!("no replacement")).with_context(|| world.logs())
}

fn fee(tx: &Transaction) -> Amount {
    CAPACITY - tx.output.iter().map(|output| output.value).sum::<Amount>()
}

/// Signed by the node's wallet and not broadcast: pays the channel of the inputs that are named, or
/// of any.
fn wallet_tx(
    node: &Node<'_>,
    inputs: &[OutPoint],
    outputs: &Value,
    sat_per_vb: u32,
) -> Result<Transaction> {
    let inputs: Vec<_> =
        inputs.iter().map(|at| json!({ "txid": at.txid, "vout": at.vout })).collect();
    let wallet = |method, params: Value| node.in_wallet::<Value>("lab", method, &params);
    let raw = wallet("createrawtransaction", json!([inputs, outputs]))?;
    let funded = wallet("fundrawtransaction", json!([raw, { "fee_rate": sat_per_vb }]))?;
    let signed = wallet("signrawtransactionwithwallet", json!([funded.get("hex")]))?;
    Ok(encode::deserialize_hex(
        signed.get("hex").and_then(Value::as_str).context("a transaction")?,
    )?)
}

#[test]
fn p4_no_credit_after_the_margin_and_settled_36_blocks_early() -> Result<()> {
    let topology = Topology::edge()?;
    let world = provider(&topology, &Trade::default())?;
    let (hand, funding) = Hand::funded(&topology, &world, LIFETIME_MIN_BLOCKS)?;
    mine(&world, hand.margin() - 1 - world.node.height()?)?;
    let (status, told) = hand.pay(funding, 20_000)?;
    assert_eq!(status, StatusCode::OK, "{told}");
    let first = hand.claimed(&world)?;
    assert_eq!(refused(hand.pay(funding, 20_001)?)?, (410, "closed".into()));

    let second = replaced(&world, &first)?;
    assert!(fee(&second) > fee(&first), "{} then {}", fee(&first), fee(&second));
    assert!(world.node.height()? >= hand.margin() + CLAIM_BUMP_BLOCKS);
    mine(&world, 1)?;
    hand.settled(&world)?;
    let height = world.node.height()?;
    assert!(height + CLAIM_DONE_BLOCKS <= hand.channel.params.expiry_height, "{height}");
    let remainder = second.output.first().context("a remainder")?;
    assert_eq!(remainder.value, CAPACITY - Amount::from_sat(20_000));
    Ok(())
}

#[test]
fn p2_when_fees_rise_over_the_claim_it_is_replaced_and_confirms() -> Result<()> {
    let topology = Topology::edge()?;
    let mut world = provider(&topology, &Trade::default())?;
    let (hand, funding) = Hand::funded(&topology, &world, LIFETIME_MIN_BLOCKS)?;
    hand.pay(funding, 20_000)?;
    let first = hand.claimed(&world)?;
    let pays_ten =
        |tx: &Transaction| fee(tx) >= Amount::from_sat(10) * tx.weight().to_vbytes_ceil();
    assert!(!pays_ten(&first), "{}", fee(&first));
    // 10 sat/vB from now on: what was in the mempool is out of it.
    world.node.stop()?;
    world.node.launch_with(&["-minrelaytxfee=0.0001", "-blockmintxfee=0.0001"])?;
    assert_eq!(claim_in(&world.node)?, None, "the first claim is too cheap now");
    let second = replaced(&world, &first)?;
    assert!(pays_ten(&second), "{}", fee(&second));
    mine(&world, 1)?;
    hand.settled(&world)
}

#[test]
fn p3_descendants_of_the_remainder_do_not_keep_the_claim_from_a_block() -> Result<()> {
    let topology = Topology::edge()?;
    let world = provider(&topology, &Trade::default())?;
    let (hand, funding) = Hand::funded(&topology, &world, LIFETIME_MIN_BLOCKS)?;
    hand.pay(funding, 20_000)?;
    let first = hand.claimed(&world)?;
    // As cheap and as heavy as the one descendant of a version 3 transaction may be. Nodes that do
    // not hold them to that (Knots, unless it is told to) take worse.
    let child = |version, outputs| descendant(&hand, &first, version, outputs, 1_000);
    let enforced = world.node.refuses(&child(Version::TWO, 20)?)?.is_some();
    let pin = child(Version(3), 20)?;
    world.node.broadcast(&pin)?;
    if enforced {
        let heavy = world.node.refuses(&child(Version(3), 24)?)?;
        assert!(heavy.is_some_and(|said| said.contains("TRUC")));
    }

    let second = replaced(&world, &first)?;
    assert!(fee(&second) > fee(&first) + Amount::from_sat(1_000), "it pays for the pin, too");
    assert!(!world.node.mempool()?.contains(&pin.compute_txid()));
    mine(&world, 1)?;
    hand.settled(&world)
}

/// Spends the remainder of a claim to many outputs.
fn descendant(
    hand: &Hand<'_>,
    claim: &Transaction,
    version: Version,
    outputs: u64,
    fee: u64,
) -> Result<Transaction> {
    let remainder = claim.output.first().context("a remainder")?;
    let each = (remainder.value - Amount::from_sat(fee)) / outputs;
    let output = (0..outputs).map(|n| {
        let script = bitcoin::WScriptHash::hash(&n.to_le_bytes());
        TxOut { value: each, script_pubkey: ScriptBuf::new_p2wsh(&script) }
    });
    let input = TxIn {
        previous_output: OutPoint::new(claim.compute_txid(), 0),
        sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
        ..TxIn::default()
    };
    let mut tx = Transaction {
        version,
        lock_time: LockTime::ZERO,
        input: vec![input],
        output: output.collect(),
    };
    let all = EcdsaSighashType::All;
    let script = &remainder.script_pubkey;
    let hash = SighashCache::new(&tx).p2wpkh_signature_hash(0, script, remainder.value, all)?;
    let signature = hand.secp.sign_ecdsa(&Message::from(hash), &hand.key);
    let own = hand.key.public_key(&hand.secp);
    let signature = ecdsa::Signature::sighash_all(signature);
    tx.input.first_mut().context("an input")?.witness = Witness::p2wpkh(&signature, &own);
    Ok(tx)
}

#[test]
fn p1_another_funding_that_confirms_is_the_channel_and_the_first_gets_no_credit() -> Result<()> {
    let topology = Topology::edge()?;
    let trade = Trade { sell: &["--unconfirmed-credit", "2000"], ..Trade::default() };
    let world = provider(&topology, &trade)?;
    let hand = Hand::open(&topology, world.node.height()?, LIFETIME_MIN_BLOCKS)?;
    let pays = json!({ &hand.channel.address: CAPACITY.to_btc() });
    let first = wallet_tx(&world.node, &[], &pays, 2)?;
    let at = |tx: &Transaction| funding_outpoint(&hand.channel.params, tx).context("a funding");
    let (status, told) = hand.present(&first)?;
    assert_eq!(status, StatusCode::OK, "{told}");
    let (status, told) = hand.pay(at(&first)?, 500)?;
    assert_eq!(status, StatusCode::OK, "{told}");

    let spent = first.input.first().context("an input")?.previous_output;
    let second = wallet_tx(&world.node, &[spent], &pays, 20)?;
    world.node.broadcast(&second)?;
    mine(&world, 1)?;
    hand.seen(&second, &world)?;
    let report = hand.now(&world)?;
    assert_eq!((report.paid, report.funding), (Amount::ZERO, Some(at(&second)?)));
    assert_eq!(refused(hand.pay(at(&first)?, 600)?)?, (403, "wrong-signature".into()));
    let (status, told) = hand.pay(at(&second)?, 20_000)?;
    assert_eq!(status, StatusCode::OK, "{told}");
    hand.close()?;
    assert_eq!(claim(&world)?.input.first().map(|it| it.previous_output), Some(at(&second)?));
    mine(&world, 1)?;
    hand.settled(&world)
}

#[test]
fn p9_credit_before_confirmation_is_bounded_and_revoked_when_the_funding_is_spent_elsewhere()
-> Result<()> {
    let topology = Topology::edge()?;
    let trade = Trade { sell: &["--unconfirmed-credit", "2000"], ..Trade::default() };
    let mut world = provider(&topology, &trade)?;
    let hand = Hand::open(&topology, world.node.height()?, LIFETIME_MIN_BLOCKS)?;
    let pays = json!({ &hand.channel.address: CAPACITY.to_btc() });
    let tx = wallet_tx(&world.node, &[], &pays, 2)?;
    let funding = funding_outpoint(&hand.channel.params, &tx).context("a funding")?;
    assert_eq!(refused(hand.pay(funding, 1)?)?, (425, "unfunded".into()));
    let (status, report) = hand.present(&tx)?;
    assert_eq!((status, &report["payable_sat"]), (StatusCode::OK, &json!(2_000)), "{report}");
    assert!(world.node.mempool()?.contains(&tx.compute_txid()), "the provider broadcasts it");
    let (status, told) = hand.pay(funding, 2_000)?;
    assert_eq!(status, StatusCode::OK, "{told}");
    assert_eq!(refused(hand.pay(funding, 2_001)?)?, (425, "too-early".into()));
    assert_eq!(world.account()?.lease_octets, Octets(2_000 << 20));
    // A block without it changes nothing, nor does a restart.
    mine_only(&world, &[])?;
    world.provider.kill();
    world.provider.start()?;
    follow(&world)?;
    assert_eq!(hand.now(&world)?.paid, Amount::from_sat(2_000));

    let spent = tx.input.first().context("an input")?.previous_output;
    let own: String = world.node.call("getnewaddress", json!([]))?;
    let elsewhere = wallet_tx(&world.node, &[spent], &json!({ own: CAPACITY.to_btc() }), 20)?;
    world.node.broadcast(&elsewhere)?;
    mine(&world, 1)?;
    eventually("credit that is taken back", STEP, || {
        let stations: Vec<AccountReport> = world.provider.json(&["stations"])?;
        let gone = |account: &AccountReport| {
            account.bought_octets == Octets(0) && account.lease_octets == Octets(0)
        };
        Ok((!stations.is_empty() && stations.iter().all(gone)).then_some(()))
    })
    .with_context(|| world.logs())?;
    let report = hand.now(&world)?;
    assert_eq!((report.paid, report.offered), (Amount::ZERO, None));
    assert_eq!(refused(hand.pay(funding, 1_000)?)?, (425, "unfunded".into()));
    let refusal = refused(hand.present(&tx)?)?;
    assert_eq!(refusal, (422, "funding-refused".into()));
    Ok(())
}

#[test]
fn p16_the_operator_is_told_of_a_lost_chain_well_before_a_deadline() -> Result<()> {
    let topology = Topology::edge()?;
    let mut world = provider(&topology, &Trade::default())?;
    let (hand, funding) = Hand::funded(&topology, &world, 400)?;
    hand.pay(funding, 20_000)?;
    assert_eq!(world.provider_status()?.alarms, []);
    world.node.stop()?;
    let told = |world: &World<'_>, level| {
        eventually("an alarm", STEP, || {
            let alarms = world.provider_status()?.alarms;
            Ok(alarms.into_iter().find(|it| it.kind == Kind::ChainLost && it.level == level))
        })
        .with_context(|| world.logs())
    };
    let warning = told(&world, Level::Warning)?;
    assert!(warning.message.contains(" 20000 sat "), "{}", warning.message);
    let (status, _) = hand.pay(funding, 20_001)?;
    assert_eq!(status, StatusCode::OK, "existing credit is honoured");
    let refused = Hand::open(&topology, 102, 400).err().context("a new channel")?;
    assert!(format!("{refused:#}").contains("chain-lost"), "{refused:#}");

    world.node.launch()?;
    follow(&world)?;
    eventually("the end of the alarm", STEP, || {
        Ok(world.provider_status()?.alarms.is_empty().then_some(()))
    })?;
    mine(&world, hand.margin() - ALARM_LEAD_BLOCKS - world.node.height()?)?;
    world.node.stop()?;
    told(&world, Level::Error)?;
    let table = world.provider.cli(&["status"])?;
    assert!(String::from_utf8_lossy(&table.stdout).contains("ALARM: the chain source"));
    eventually("a line in the log", STEP, || {
        let log = world.provider.log();
        Ok(log.lines().any(|it| it.contains("ERROR") && it.contains("chain source")).then_some(()))
    })
    .with_context(|| world.logs())
}
