//! Every way out of a channel, and every way that must not be one, before a real node's consensus
//! and policy.

use anyhow::{Context as _, Result, ensure};
use bitcoin::{
    Address, Amount, FeeRate, Network, OutPoint, ScriptBuf, Transaction,
    hashes::Hash as _,
    secp256k1::{All, Keypair, Message, Secp256k1, SecretKey, ecdsa::Signature},
};
use bitmesh_core::{
    channel::{
        CLAIM_DONE_BLOCKS, ChannelParams, Claim, ClaimInput, Close, DUST, PROTOCOL_VERSION, Refund,
        funding_outpoint, payment_sighash,
    },
    offer::OfferId,
    pricing::Schedule,
    units::Octets,
};
use bitmesh_tests::{netns::Namespace, regtest::Node, sweep::sweep};

const CAPACITY: Amount = Amount::from_sat(100_000);
const LIFETIME_BLOCKS: u32 = 60;
const _: () = assert!(LIFETIME_BLOCKS > CLAIM_DONE_BLOCKS);

/// Both ends of a channel in one hand.
struct Bench {
    secp: Secp256k1<All>,
    params: ChannelParams,
    funding: OutPoint,
}

fn key(seed: u8) -> SecretKey {
    SecretKey::from_slice(&[seed; 32]).expect("no zero")
}

fn script(seed: u8) -> ScriptBuf {
    ScriptBuf::new_p2wpkh(&bitcoin::WPubkeyHash::hash(&[seed]))
}

fn rate(sat_per_vb: u64) -> Result<FeeRate> {
    FeeRate::from_sat_per_vb(sat_per_vb).context("a fee rate")
}

impl Bench {
    /// A channel that is confirmed; `provider` tells several apart.
    fn open(node: &Node<'_>, provider: u8) -> Result<Self> {
        let secp = Secp256k1::new();
        let public = |seed| Keypair::from_secret_key(&secp, &key(seed)).public_key();
        let params = ChannelParams {
            version: PROTOCOL_VERSION,
            network: Network::Regtest,
            offer: format!("{:064}", 0).parse::<OfferId>()?,
            subscriber: public(1).into(),
            provider: public(provider).into(),
            expiry_height: node.height()? + LIFETIME_BLOCKS,
            capacity: CAPACITY,
            remainder_script: script(1),
            schedule: Schedule::flat(1_000),
            confirmations: 1,
            tick_max: Octets(8 << 20),
            unconfirmed_max: Amount::ZERO,
        };
        params.validate()?;
        let address = Address::from_script(&params.funding_script(), Network::Regtest)?;
        let txid = node.send(&address.to_string(), CAPACITY)?;
        let tx = node.transaction(txid, None)?;
        let funding = funding_outpoint(&params, &tx).context("an output of the capacity")?;
        node.mine(1)?;
        Ok(Self { secp, params, funding })
    }

    fn sign(&self, seed: u8, message: Message) -> Signature {
        self.secp.sign_ecdsa(&message, &key(seed))
    }

    fn part(&self, paid: u64) -> Result<ClaimInput> {
        let paid = Amount::from_sat(paid);
        let message = payment_sighash(&self.params, self.funding, paid).context("too much")?;
        let signature = self.sign(1, message);
        Ok(ClaimInput { params: self.params.clone(), funding: self.funding, paid, signature })
    }

    fn refund(&self, rate: FeeRate) -> Result<Transaction> {
        let refund = Refund::new(&self.params, self.funding, &script(4), rate)?;
        let message = refund.sighash().context("a message")?;
        refund.finish(self.sign(1, message)).context("a witness")
    }
}

/// Claims some channels together; `providers` are the seeds of their keys.
fn claim(benches: &[&Bench], providers: &[u8], paid: u64, rate: FeeRate) -> Result<Transaction> {
    let parts = benches.iter().map(|bench| bench.part(paid)).collect::<Result<_>>()?;
    let claim = Claim::new(parts, &script(3), rate)?;
    let signatures: Vec<_> = claim
        .sighashes()
        .into_iter()
        .zip(benches.iter().zip(providers))
        .map(|(message, (bench, provider))| bench.sign(*provider, message))
        .collect();
    claim.finish(&signatures).context("signatures")
}

fn with_node(test: impl FnOnce(&Node<'_>) -> Result<()>) -> Result<()> {
    sweep();
    let namespace = Namespace::create("spend")?;
    test(&Node::start(&namespace)?)
}

#[test]
fn a_claim_is_taken_alone_in_a_batch_and_with_a_higher_fee_again() -> Result<()> {
    with_node(|node| {
        let one = Bench::open(node, 2)?;
        let two = Bench::open(node, 5)?;
        let alone = claim(&[&one], &[2], 40_000, rate(1)?)?;
        assert_eq!(node.refuses(&alone)?, None);
        assert_eq!(alone.version.0, 3);
        node.broadcast(&alone)?;
        let better = claim(&[&one], &[2], 50_000, rate(5)?)?;
        node.broadcast(&better)?;
        assert_eq!(node.mempool()?, [better.compute_txid()], "replaced by fee");
        let both = claim(&[&one, &two], &[2, 5], 50_000, rate(20)?)?;
        node.broadcast(&both)?;
        assert_eq!(node.mempool()?, [both.compute_txid()]);
        node.mine(1)?;
        assert!(node.mempool()?.is_empty());
        println!(
            "claim {} vB alone, {} vB of two, {} vB refund",
            alone.vsize(),
            both.vsize(),
            Bench::open(node, 6)?.refund(rate(1)?)?.vsize()
        );
        Ok(())
    })
}

#[test]
fn p5_both_outputs_are_taken_at_dust_and_the_payout_is_never_less() -> Result<()> {
    with_node(|node| {
        let bench = Bench::open(node, 2)?;
        let payable = bench.params.payable().to_sat();
        let most = claim(&[&bench], &[2], payable, rate(1)?)?;
        assert_eq!(most.output.first().map(|output| output.value), Some(DUST));
        assert_eq!(node.refuses(&most)?, None, "the reserve as remainder");
        let fee = CAPACITY - most.output.iter().map(|output| output.value).sum::<Amount>();
        let least = (fee + DUST).to_sat();
        let tx = claim(&[&bench], &[2], least, rate(1)?)?;
        assert_eq!(tx.output.get(1).map(|output| output.value), Some(DUST));
        assert_eq!(node.refuses(&tx)?, None, "dust as payout");
        assert!(claim(&[&bench], &[2], least - 1, rate(1)?).is_err());
        assert!(bench.part(payable + 1).is_err());
        Ok(())
    })
}

#[test]
fn the_subscriber_alone_spends_from_the_expiry_on_and_not_a_block_before() -> Result<()> {
    with_node(|node| {
        let bench = Bench::open(node, 2)?;
        let refund = bench.refund(rate(2)?)?;
        node.mine(bench.params.expiry_height - node.height()? - 1)?;
        assert_eq!(node.refuses(&refund)?.as_deref(), Some("non-final"));
        let mut early = refund.clone();
        early.lock_time = bitcoin::absolute::LockTime::from_consensus(node.height()?);
        ensure!(node.refuses(&early)?.is_some(), "a lock time below the script's is refused");
        node.mine(1)?;
        assert_eq!(node.refuses(&refund)?, None);
        let claim = claim(&[&bench], &[2], 40_000, rate(2)?)?;
        assert_eq!(node.refuses(&claim)?, None, "the provider's claim stays good, too");
        node.broadcast(&refund)?;
        node.mine(1)?;
        ensure!(node.refuses(&claim)?.is_some(), "spent");
        Ok(())
    })
}

#[test]
fn what_was_not_agreed_is_refused_by_consensus() -> Result<()> {
    with_node(|node| {
        let bench = Bench::open(node, 2)?;
        let good = claim(&[&bench], &[2], 40_000, rate(2)?)?;
        assert_eq!(node.refuses(&good)?, None);
        let changed = |change: &dyn Fn(&mut Transaction)| -> Result<Option<String>> {
            let mut tx = good.clone();
            change(&mut tx);
            node.refuses(&tx)
        };
        let one_sat = Amount::ONE_SAT;
        // The remainder is the subscriber's: less, another script or another place void its word.
        for change in [
            (&|tx: &mut Transaction| tx.output[0].value -= one_sat) as &dyn Fn(&mut Transaction),
            &|tx| tx.output[0].script_pubkey = script(9),
            &|tx| tx.output.swap(0, 1),
            &|tx| tx.version = bitcoin::transaction::Version::TWO,
            &|tx| tx.lock_time = bitcoin::absolute::LockTime::from_consensus(1),
            // The payout is the provider's.
            &|tx| tx.output[1].value -= one_sat,
            &|tx| tx.output[1].script_pubkey = script(9),
        ] {
            assert!(changed(change)?.is_some());
        }
        // Neither alone, nor with the other's signature in its place.
        let wrong = claim(&[&bench], &[9], 40_000, rate(2)?)?;
        ensure!(node.refuses(&wrong)?.is_some(), "another provider's key");
        let mut alone = bench.refund(rate(2)?)?;
        alone.lock_time = bitcoin::absolute::LockTime::ZERO;
        ensure!(node.refuses(&alone)?.is_some(), "the refund branch without its lock time");
        Ok(())
    })
}

#[test]
fn a_stock_wallet_refunds_with_nothing_but_the_descriptor_and_the_key() -> Result<()> {
    with_node(|node| {
        use serde_json::{Value, json};
        let bench = Bench::open(node, 2)?;
        node.mine(bench.params.expiry_height - node.height()?)?;
        let private = bitcoin::PrivateKey::new(key(1), Network::Regtest).to_wif();
        let public = bench.params.subscriber.to_string();
        let text = bench.params.descriptor().context("keys that are points")?.to_string();
        let (text, _) = text.split_once('#').context("a checksum")?;
        let signing = text.replace(&public, &private);
        let info: Value = node.call("getdescriptorinfo", json!([signing]))?;
        let checksum = info["checksum"].as_str().context("a checksum")?;
        node.call::<Value>("createwallet", json!(["stock", false, true]))?;
        let import = json!([[{"desc": format!("{signing}#{checksum}"), "timestamp": 0}]]);
        let imported: Value = node.in_wallet("stock", "importdescriptors", &import)?;
        assert_eq!(imported[0]["success"], true, "{imported}");
        let inputs = json!([{
            "txid": bench.funding.txid, "vout": bench.funding.vout, "sequence": 4_294_967_293u32,
        }]);
        let to = Address::from_script(&script(4), Network::Regtest)?.to_string();
        let funded: Value = node.in_wallet(
            "stock",
            "walletcreatefundedpsbt",
            &json!([inputs, [{to: CAPACITY.to_btc()}], bench.params.expiry_height, {
                "add_inputs": false, "subtractFeeFromOutputs": [0], "fee_rate": 2,
            }]),
        )?;
        let signed: Value =
            node.in_wallet("stock", "walletprocesspsbt", &json!([funded["psbt"]]))?;
        assert_eq!(signed["complete"], true, "{signed}");
        let hex = signed["hex"].as_str().context("a transaction")?;
        let tx: Transaction = bitcoin::consensus::encode::deserialize_hex(hex)?;
        node.broadcast(&tx)?;
        node.mine(1)?;
        assert!(node.mempool()?.is_empty());
        Ok(())
    })
}

#[test]
fn p5_a_close_at_every_edge_of_dust_is_taken_and_nothing_but_the_agreed_one() -> Result<()> {
    with_node(|node| {
        let bench = Bench::open(node, 2)?;
        let params = &bench.params;
        let close = |paid: u64, fee: u64| -> Result<Transaction> {
            let (paid, fee) = (Amount::from_sat(paid), Amount::from_sat(fee));
            let close = Close::new(params, bench.funding, paid, &script(3), fee)?;
            let message = close.sighash().context("a message")?;
            let (own, theirs) = (bench.sign(1, message), bench.sign(2, message));
            Ok(close.finish(own, theirs, 0).context("a witness")?.tx)
        };
        let dust = DUST.to_sat();
        for (paid, outputs) in [(0, 1), (dust - 1, 1), (dust, 2), (dust + 1, 2)] {
            let tx = close(paid, 400)?;
            assert_eq!(tx.output.len(), outputs, "{paid} paid");
            assert_eq!(node.refuses(&tx)?, None, "{paid} paid");
        }
        let capacity = CAPACITY.to_sat();
        for remainder in [dust, dust + 1] {
            let tx = close(capacity - 2 * remainder, remainder)?;
            assert_eq!(tx.output.first().map(|o| o.value.to_sat()), Some(remainder));
            assert_eq!(node.refuses(&tx)?, None, "{remainder} left");
        }
        assert!(close(capacity - 2 * dust + 2, dust - 1).is_err(), "{} left", dust - 1);

        let good = close(40_000, 400)?;
        for change in [
            (|tx| tx.output[1].value -= Amount::ONE_SAT) as fn(&mut Transaction),
            |tx| tx.output.truncate(1),
            |tx| tx.output[0].script_pubkey = script(9),
            |tx| tx.version = bitcoin::transaction::Version::TWO,
            |tx| tx.lock_time = bitcoin::absolute::LockTime::from_consensus(1),
        ] {
            let mut tx = good.clone();
            change(&mut tx);
            assert!(node.refuses(&tx)?.is_some());
        }
        node.broadcast(&claim(&[&bench], &[2], 40_000, rate(1)?)?)?;
        node.broadcast(&good)?;
        assert_eq!(node.mempool()?, [good.compute_txid()], "it replaces a claim that pays less");
        println!("close {} vB, without a payout {} vB", good.vsize(), close(0, 400)?.vsize());
        Ok(())
    })
}
