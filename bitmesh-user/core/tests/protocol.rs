//! `docs/PROTOCOL.md` and `docs/vectors.json` say what the code does.
//!
//! The vectors are made anew from fixed keys and compared with the file, so that neither changes
//! without the other: after a change of the protocol, `BITMESH_WRITE_VECTORS=1` has the test write
//! the file.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test ends where it fails")]

use std::{collections::BTreeMap, fs, path::PathBuf};

use bitcoin::{
    Address, Amount, EcdsaSighashType, FeeRate, Network, OutPoint, ScriptBuf, Transaction, TxIn,
    TxOut, Txid, WPubkeyHash,
    absolute::LockTime,
    consensus::encode::serialize_hex,
    hashes::Hash as _,
    secp256k1::{All, Keypair, Message, Secp256k1, SecretKey, ecdsa::Signature},
    sighash::SighashCache,
    transaction::Version,
};
use bitmesh_core::{
    bitcoin,
    channel::{
        self, Binding, ChannelParams, Claim, ClaimInput, Close, PROTOCOL_VERSION, Refund,
        close_digest, funding_outpoint, payment_sighash, verify_payment,
    },
    offer::{self, OFFER_VERSION, Offer, OfferId, SignedOffer, Terms},
    pricing::{self, Schedule, Tier},
    units::{Msat, Octets},
    wire::{self, CloseRequest, ErrorBody, OpenRequest, PaymentRequest, StationsRequest},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

const SUBSCRIBER: u8 = 1;
const PROVIDER: u8 = 2;
const NODE: u8 = 3;
const OTHER: u8 = 4;

fn secp() -> Secp256k1<All> {
    Secp256k1::new()
}

fn keys(octet: u8) -> Keypair {
    Keypair::from_secret_key(&secp(), &SecretKey::from_slice(&[octet; 32]).unwrap())
}

fn sign(octet: u8, message: &Message) -> Signature {
    secp().sign_ecdsa(message, &keys(octet).secret_key())
}

fn compact(signature: &Signature) -> String {
    hex::encode(signature.serialize_compact())
}

fn script(seed: &[u8]) -> ScriptBuf {
    ScriptBuf::new_p2wpkh(&WPubkeyHash::hash(seed))
}

fn sat(sat: u64) -> Amount {
    Amount::from_sat(sat)
}

fn tiered() -> Schedule {
    let tier = |from, msat_per_mib| Tier { from_octets: Octets(from), msat_per_mib };
    Schedule { tiers: vec![tier(0, 700), tier(1 << 30, 500), tier(10 << 30, 333)].into() }
}

fn signed_offer() -> SignedOffer {
    let offer = Offer {
        version: OFFER_VERSION,
        network: Network::Regtest,
        provider: keys(NODE).x_only_public_key().0,
        issued_at: 1_800_000_000,
        valid_until: 1_800_003_600,
        height: 1_700,
        schedule: tiered(),
        terms: Terms {
            capacity_min: sat(5_000),
            capacity_max: sat(10_000_000),
            lifetime_min_blocks: 288,
            lifetime_max_blocks: 52_560,
            confirmations: 1,
            unconfirmed_max: sat(500),
            tick_max: Octets(8 << 20),
        },
    };
    let signature = secp().sign_schnorr_no_aux_rand(&offer.message(), &keys(NODE));
    SignedOffer { offer, signature }
}

fn params(provider: u8, expiry_height: u32) -> ChannelParams {
    ChannelParams {
        version: PROTOCOL_VERSION,
        network: Network::Regtest,
        offer: signed_offer().offer.id(),
        subscriber: keys(SUBSCRIBER).public_key().into(),
        provider: keys(provider).public_key().into(),
        expiry_height,
        capacity: sat(50_000),
        remainder_script: script(b"remainder"),
        schedule: tiered(),
        confirmations: 1,
        unconfirmed_max: sat(500),
        tick_max: Octets(8 << 20),
    }
}

fn funding_tx(params: &ChannelParams) -> Transaction {
    let input = TxIn { previous_output: OutPoint::new(Txid::hash(b"coin"), 0), ..TxIn::default() };
    let output = TxOut { value: params.capacity, script_pubkey: params.funding_script() };
    Transaction {
        version: Version::TWO,
        lock_time: LockTime::ZERO,
        input: vec![input],
        output: vec![output],
    }
}

fn funding(params: &ChannelParams) -> OutPoint {
    funding_outpoint(params, &funding_tx(params)).unwrap()
}

fn channel_vector(params: &ChannelParams) -> Value {
    let address = Address::from_script(&params.funding_script(), Network::Regtest).unwrap();
    json!({
        "params": params,
        "descriptor": params.descriptor().unwrap().to_string(),
        "witness_script": params.witness_script(),
        "funding_script": params.funding_script(),
        "funding_address": address.to_string(),
        "id": params.id(),
        "funding_tx": serialize_hex(&funding_tx(params)),
        "funding_outpoint": funding(params),
    })
}

fn payment(params: &ChannelParams, paid: u64) -> Value {
    let message = payment_sighash(params, funding(params), sat(paid)).unwrap();
    let signature = sign(SUBSCRIBER, &message);
    json!({
        "paid_sat": paid,
        "sighash": hex::encode(message.as_ref()),
        "signature": compact(&signature),
    })
}

/// Commitments that a verifier has to refuse: each is signed by the subscriber's key.
fn refused_payments(params: &ChannelParams) -> Vec<Value> {
    let paid = sat(20_000);
    let sign_as = |version: i32, lock_time: u32, value: Amount, kind: EcdsaSighashType| {
        let input = TxIn {
            previous_output: funding(params),
            sequence: bitcoin::Sequence::ENABLE_RBF_NO_LOCKTIME,
            ..TxIn::default()
        };
        let output = TxOut { value, script_pubkey: params.remainder_script.clone() };
        let tx = Transaction {
            version: Version(version),
            lock_time: LockTime::from_consensus(lock_time),
            input: vec![input],
            output: vec![output],
        };
        let script = params.witness_script();
        let mut cache = SighashCache::new(&tx);
        let hash = cache.p2wsh_signature_hash(0, &script, params.capacity, kind).unwrap();
        sign(SUBSCRIBER, &Message::from(hash))
    };
    let agreed = EcdsaSighashType::SinglePlusAnyoneCanPay;
    let rest = params.capacity - paid;
    let good = sign_as(3, 0, rest, agreed);
    assert!(verify_payment(&secp(), params, funding(params), paid, &good));
    let mut high_s = good.serialize_compact();
    let s = SecretKey::from_slice(&high_s[32..]).unwrap().negate();
    high_s[32..].copy_from_slice(&s.secret_bytes());
    let cases = [
        ("version 2", sign_as(2, 0, rest, agreed)),
        ("lock time T", sign_as(3, params.expiry_height, rest, agreed)),
        ("a larger remainder", sign_as(3, 0, rest + sat(1), agreed)),
        ("sighash ALL", sign_as(3, 0, rest, EcdsaSighashType::All)),
        ("sighash SINGLE", sign_as(3, 0, rest, EcdsaSighashType::Single)),
        ("sighash NONE|ANYONECANPAY", sign_as(3, 0, rest, EcdsaSighashType::NonePlusAnyoneCanPay)),
        ("high S", Signature::from_compact(&high_s).unwrap()),
    ];
    let refused = cases.into_iter().map(|(why, signature)| {
        assert!(!verify_payment(&secp(), params, funding(params), paid, &signature), "{why}");
        json!({ "why": why, "paid_sat": paid.to_sat(), "signature": compact(&signature) })
    });
    refused.collect()
}

fn claim_vector(channels: &[(ChannelParams, u8, u64)], sat_per_vb: u64) -> Value {
    let inputs = channels.iter().map(|(params, _, paid)| {
        let message = payment_sighash(params, funding(params), sat(*paid)).unwrap();
        let signature = sign(SUBSCRIBER, &message);
        let (params, funding) = (params.clone(), funding(params));
        ClaimInput { params, funding, paid: sat(*paid), signature }
    });
    let rate = FeeRate::from_sat_per_vb(sat_per_vb).unwrap();
    let claim = Claim::new(inputs.collect(), &script(b"payout"), rate).unwrap();
    let sighashes = claim.sighashes();
    let own = sighashes.iter().zip(channels).map(|(message, (_, key, _))| sign(*key, message));
    let fee = claim.fee();
    let own: Vec<_> = own.collect();
    json!({
        "channels": channels.iter().map(|(params, ..)| params.id()).collect::<Vec<_>>(),
        "paid_sat": channels.iter().map(|(.., paid)| paid).collect::<Vec<_>>(),
        "payout_script": script(b"payout"),
        "fee_rate_sat_per_vb": sat_per_vb,
        "fee_sat": fee.to_sat(),
        "sighashes": sighashes.iter().map(|m| hex::encode(m.as_ref())).collect::<Vec<_>>(),
        "tx": serialize_hex(&claim.finish(&own).unwrap()),
    })
}

fn refund_vector(params: &ChannelParams) -> Value {
    let rate = FeeRate::from_sat_per_vb(2).unwrap();
    let refund = Refund::new(params, funding(params), &script(b"refund"), rate).unwrap();
    let message = refund.sighash().unwrap();
    json!({
        "to_script": script(b"refund"),
        "fee_rate_sat_per_vb": 2,
        "sighash": hex::encode(message.as_ref()),
        "tx": serialize_hex(&refund.finish(sign(SUBSCRIBER, &message)).unwrap()),
    })
}

fn close_vector(params: &ChannelParams, paid: u64) -> Value {
    let rate = FeeRate::from_sat_per_vb(3).unwrap();
    let payout = script(b"payout");
    let close = Close::at_rate(params, funding(params), sat(paid), &payout, rate).unwrap();
    let (fee, message) = (close.fee(), close.sighash().unwrap());
    let [own, theirs] = [SUBSCRIBER, PROVIDER].map(|key| sign(key, &message));
    json!({
        "paid_sat": paid,
        "payout_script": payout,
        "fee_rate_sat_per_vb": 3,
        "fee_sat": fee.to_sat(),
        "sighash": hex::encode(message.as_ref()),
        "signature": compact(&own),
        "tx": serialize_hex(&close.finish(own, theirs, 1_750).unwrap().tx),
    })
}

fn bindings(params: &ChannelParams) -> Vec<Value> {
    let station = Some("02:00:00:00:00:0a".parse().unwrap());
    let nonce = [1, 2, 3, 4, 5, 6, 7, 8].into();
    let all = [
        Binding { station, remove: false, nonce, expires_at: None },
        Binding { station, remove: true, nonce, expires_at: None },
        Binding { station: None, remove: false, nonce, expires_at: Some(1_800_000_600) },
    ];
    let signed = all.iter().map(|binding| {
        let digest = binding.digest(&params.id());
        json!({
            "binding": binding,
            "digest": hex::encode(digest.as_ref()),
            "signature": compact(&sign(SUBSCRIBER, &digest)),
        })
    });
    signed.collect()
}

fn schedule_vector(schedule: &Schedule) -> Value {
    let bought = [0, 1, 699, 700, 716_800, 716_801, 5_000_000, 1_000_000_000];
    let asked = [0, 1, 1 << 20, (1 << 30) - 1, 1 << 30, (1 << 30) + 1, 20 << 30];
    let octets = |msat| schedule.octets_for(Msat(msat)).unwrap();
    let cost = |octets| schedule.cost_of(Octets(octets)).unwrap();
    json!({
        "schedule": schedule,
        "octets_for_msat": bought.map(|msat| json!([msat, octets(msat)])),
        "msat_for_octets": asked.map(|octets| json!([octets, cost(octets)])),
    })
}

fn vectors() -> Value {
    let (one, two) = (params(PROVIDER, 2_000), params(OTHER, 2_100));
    let signed = signed_offer();
    let close = close_digest(&one.id());
    let payments = [1, 330, 20_000, 49_670].map(|paid| payment(&one, paid));
    let closes = [0, 329, 330, 20_000].map(|paid| close_vector(&one, paid));
    json!({
        "secret_keys": {
            "subscriber": hex::encode([SUBSCRIBER; 32]),
            "provider": hex::encode([PROVIDER; 32]),
            "provider_of_second_channel": hex::encode([OTHER; 32]),
            "node": hex::encode([NODE; 32]),
        },
        "offer": {
            "signed": signed,
            "text": serde_json::to_string(&signed.offer).unwrap(),
            "id": signed.offer.id(),
        },
        "channels": [channel_vector(&one), channel_vector(&two)],
        "payments": payments,
        "refused_payments": refused_payments(&one),
        "claims": [
            claim_vector(&[(one.clone(), PROVIDER, 20_000)], 2),
            claim_vector(&[(one.clone(), PROVIDER, 20_000), (two, OTHER, 49_670)], 10),
        ],
        "refund": refund_vector(&one),
        "close_request": {
            "digest": hex::encode(close.as_ref()),
            "signature": compact(&sign(SUBSCRIBER, &close)),
        },
        "closes": closes,
        "stations": bindings(&one),
        "schedules": [schedule_vector(&tiered()), schedule_vector(&Schedule::flat(1))],
    })
}

fn docs(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name)
}

#[test]
fn the_vectors_are_what_the_code_makes() {
    let path = docs("vectors.json");
    let made = serde_json::to_string_pretty(&vectors()).unwrap() + "\n";
    if std::env::var_os("BITMESH_WRITE_VECTORS").is_some() {
        fs::write(&path, &made).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap();
    let [made, written] = [made, written].map(|text| serde_json::from_str::<Value>(&text).unwrap());
    for (name, value) in made.as_object().unwrap() {
        assert_eq!(written.get(name), Some(value), "{name} of docs/vectors.json");
    }
    assert_eq!(made, written);
}

#[test]
fn the_pages_constants_are_the_codes() {
    let page = fs::read_to_string(docs("PROTOCOL.md")).unwrap();
    let rows = page.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.split(" | ");
        let name = cells.next()?.strip_suffix('`')?;
        let value = cells.next()?.split(' ').next()?.parse::<u64>().ok()?;
        name.chars().all(|c| c.is_ascii_uppercase() || c == '_').then_some((name, value))
    });
    let told: BTreeMap<_, _> = rows.collect();
    let size = |size: usize| u64::try_from(size).unwrap();
    let code: BTreeMap<_, u64> = [
        ("PROTOCOL_VERSION", PROTOCOL_VERSION.into()),
        ("BODY_MAX_OCTETS", size(wire::BODY_MAX_OCTETS)),
        ("CAPACITY_MIN", channel::CAPACITY_MIN.to_sat()),
        ("RESERVE", channel::RESERVE.to_sat()),
        ("DUST", channel::DUST.to_sat()),
        ("CLAIM_MARGIN_BLOCKS", channel::CLAIM_MARGIN_BLOCKS.into()),
        ("CLAIM_DONE_BLOCKS", channel::CLAIM_DONE_BLOCKS.into()),
        ("FINAL_DEPTH_BLOCKS", channel::FINAL_DEPTH_BLOCKS.into()),
        ("LIFETIME_MIN_BLOCKS", channel::LIFETIME_MIN_BLOCKS.into()),
        ("LIFETIME_MAX_BLOCKS", channel::LIFETIME_MAX_BLOCKS.into()),
        ("CONFIRMATIONS_MAX", channel::CONFIRMATIONS_MAX.into()),
        ("FUNDING_WINDOW_BLOCKS", channel::FUNDING_WINDOW_BLOCKS.into()),
        ("AGREED_WINDOW_BLOCKS", channel::AGREED_WINDOW_BLOCKS.into()),
        ("TIERS_MAX", size(pricing::TIERS_MAX)),
        ("MSAT_PER_MIB_MAX", pricing::MSAT_PER_MIB_MAX),
        ("OFFER_LIFETIME_MAX_SECONDS", offer::OFFER_LIFETIME_MAX_SECONDS),
        ("STATIONS_PER_ACCOUNT_MAX", size(channel::STATIONS_PER_ACCOUNT_MAX)),
        ("BINDINGS_PER_CHANNEL_MAX", size(channel::BINDINGS_PER_CHANNEL_MAX)),
    ]
    .into();
    assert_eq!(told, code);
}

/// A body of the page, read and written again.
fn again<T: DeserializeOwned + Serialize>(text: &str) -> Value {
    let read: T = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    serde_json::to_value(read).unwrap()
}

#[test]
fn the_pages_examples_are_bodies_that_the_code_takes() {
    let page = fs::read_to_string(docs("PROTOCOL.md")).unwrap();
    let mut seen = Vec::new();
    for block in page.split("```json ").skip(1) {
        let (name, rest) = block.split_once('\n').unwrap();
        let text = rest.split("```").next().unwrap();
        let read = match name {
            "SignedOffer" => again::<SignedOffer>(text),
            "OpenRequest" => again::<OpenRequest>(text),
            "ChannelReport" => again::<wire::ChannelReport>(text),
            "PaymentRequest" => again::<PaymentRequest>(text),
            "PaymentReply" => again::<wire::PaymentReply>(text),
            "AccountReport" => again::<wire::AccountReport>(text),
            "StationsRequest" => again::<StationsRequest>(text),
            "FundingRequest" => again::<wire::FundingRequest>(text),
            "CloseRequest" => again::<CloseRequest>(text),
            "ErrorBody" => again::<ErrorBody>(text),
            other => panic!("{other} is no body of the API"),
        };
        assert_eq!(read, serde_json::from_str::<Value>(text).unwrap(), "{name}");
        seen.push(name.to_owned());
    }
    seen.sort();
    assert_eq!(seen.len(), 10, "{seen:?}");
}

#[test]
fn the_page_lists_every_error_of_the_core() {
    let page = fs::read_to_string(docs("PROTOCOL.md")).unwrap();
    let (_, errors) = page.split_once("## 7. Errors").unwrap();
    let source = include_str!("../src/controller/report.rs");
    let (_, codes) = source.split_once("pub fn code(&self)").unwrap();
    let (codes, _) = codes.split_once("fn advice(&self)").unwrap();
    let codes: Vec<_> = codes.split('"').skip(1).step_by(2).collect();
    assert!(codes.len() > 30, "{codes:?}");
    for code in codes {
        assert!(errors.contains(&format!("`{code}`")), "{code} is not on the page");
    }
}

#[test]
fn an_offers_id_is_of_its_text() {
    let signed = signed_offer();
    let text = serde_json::to_string(&signed.offer).unwrap();
    let again: Offer = serde_json::from_str(&text).unwrap();
    assert_eq!((again.id(), again), (signed.offer.id(), signed.offer));
    assert_ne!("00".repeat(32).parse::<OfferId>().unwrap(), signed_offer().offer.id());
}
