//! Any events in any order as a journal: followed, or refused with nothing changed.
#![no_main]

use std::sync::{Arc, OnceLock};

use bitmesh_core::{
    bitcoin::{
        Amount, BlockHash, Network, OutPoint, ScriptBuf, Transaction, TxIn, TxOut, Txid,
        WPubkeyHash,
        absolute::LockTime,
        hashes::Hash,
        secp256k1::{Message, Secp256k1, SecretKey, ecdsa::Signature},
        transaction::Version,
    },
    buyer::Buyer,
    channel::{
        ChannelId, ChannelParams, CloseRecord, Durable, Entry, Funding, PROTOCOL_VERSION, ProviderChannel, ProviderEvent,
        SubscriberChannel, SubscriberEvent,
    },
    controller::Controller,
    fleet::{EdgeNumber, LateId},
    ledger::{Counts, Usage},
    offer::OfferId,
    pricing::Schedule,
    station::Station,
    units::Octets,
};
use libfuzzer_sys::{
    arbitrary::{Error, Result, Unstructured},
    fuzz_target,
};
use serde::de::DeserializeOwned;

/// Channels that the events are about.
const CHANNELS: usize = 3;
/// Most events of one journal.
const EVENTS_MAX: usize = 64;

/// Values that are dear to make.
struct Fixtures {
    params: Vec<(ChannelId, ChannelParams)>,
    signature: Signature,
}

fn fixtures() -> &'static Fixtures {
    static FIXTURES: OnceLock<Fixtures> = OnceLock::new();
    FIXTURES.get_or_init(|| {
        let secp = Secp256k1::new();
        let key = |seed: u8| SecretKey::from_slice(&[seed; 32]).expect("a constant");
        let signature = secp.sign_ecdsa(&Message::from_digest([1; 32]), &key(1));
        let offer: OfferId = "01".repeat(32).parse().expect("a constant");
        let params = (0..CHANNELS).map(|i| {
            let params = ChannelParams {
                version: PROTOCOL_VERSION,
                unconfirmed_max: Amount::from_sat(5_000),
                network: Network::Regtest,
                offer,
                subscriber: key(1).public_key(&secp).into(),
                provider: key(2).public_key(&secp).into(),
                expiry_height: 1_000 + i as u32,
                capacity: Amount::from_sat(100_000),
                remainder_script: ScriptBuf::new_p2wpkh(&WPubkeyHash::all_zeros()),
                schedule: Schedule::flat(1_000),
                confirmations: 2,
                tick_max: Octets(8 << 20),
            };
            (params.id(), params)
        });
        Fixtures { params: params.collect(), signature }
    })
}

/// Small numbers and the ones at an edge are more telling than the rest.
fn number(u: &mut Unstructured) -> Result<u64> {
    Ok(match u.int_in_range(0..=7)? {
        0 => u.arbitrary()?,
        1 => u64::MAX,
        2 => u64::from(u32::MAX),
        3 => 99_670,
        4 => 1_000 - 144,
        _ => u.int_in_range(0..=1_100)?,
    })
}

fn height(u: &mut Unstructured) -> Result<u32> {
    Ok(u32::try_from(number(u)?).unwrap_or(u32::MAX))
}

fn station(u: &mut Unstructured) -> Result<Station> {
    let last = u.int_in_range(1..=20)?;
    Ok(Station::new([2, 0, 0, 0, 0, last], 0).expect("a unicast address"))
}

fn usage(u: &mut Unstructured) -> Result<Usage> {
    let mut counts = || -> Result<Counts> {
        Ok(Counts { octets: Octets(number(u)?), frames: 1, ..Counts::default() })
    };
    Ok(Usage { up: counts()?, down: counts()? })
}

fn transaction(u: &mut Unstructured, params: &ChannelParams) -> Result<Transaction> {
    let spent = u.int_in_range(0..=3)?;
    let outpoint = OutPoint::new(Txid::from_byte_array([spent; 32]), 0);
    let script_pubkey = params.funding_script();
    let capacity = params.capacity.to_sat();
    let value = Amount::from_sat(if u.ratio(1, 4)? { number(u)? } else { capacity });
    Ok(Transaction {
        version: Version(u.int_in_range(2..=3)?),
        lock_time: LockTime::ZERO,
        input: vec![TxIn { previous_output: outpoint, ..TxIn::default() }],
        output: vec![TxOut { value, script_pubkey }],
    })
}

fn funding(u: &mut Unstructured) -> Result<Funding> {
    // One that was signed or presented, or another.
    let txid = if u.arbitrary()? {
        let (_, params) = u.choose(&fixtures().params)?;
        transaction(u, params)?.compute_txid()
    } else {
        Txid::from_byte_array([u.int_in_range(0..=3)?; 32])
    };
    Ok(Funding { outpoint: OutPoint::new(txid, 0), height: height(u)? })
}

fn close(u: &mut Unstructured, params: &ChannelParams) -> Result<CloseRecord> {
    let (paid, fee) = (Amount::from_sat(number(u)?), Amount::from_sat(number(u)?));
    let signature = fixtures().signature;
    Ok(CloseRecord { tx: transaction(u, params)?, paid, fee, signature, height: height(u)? })
}

/// An event as JSON: fields that a later version adds are left to their defaults.
fn event<E: DeserializeOwned>(json: serde_json::Value) -> Option<E> {
    serde_json::from_value(json).ok()
}

fn provider_event(u: &mut Unstructured, params: &ChannelParams) -> Result<Option<ProviderEvent>> {
    let nonce = [u.int_in_range(0..=3u8)?; 8].into();
    Ok(Some(match u.int_in_range(0..=16)? {
        0 | 1 => ProviderEvent::Opened {
            params: Arc::new(params.clone()),
            key_index: height(u)?,
            station: station(u)?,
            height: height(u)?,
            used: usage(u)?,
        },
        2 => ProviderEvent::Bound { station: station(u)?, nonce, used: usage(u)? },
        3 => ProviderEvent::Unbound { station: station(u)?, nonce },
        4 | 5 => ProviderEvent::Funded(funding(u)?),
        6 => ProviderEvent::Unfunded,
        7 | 8 => ProviderEvent::Paid {
            paid: Amount::from_sat(number(u)?),
            signature: fixtures().signature,
            earlier: number(u)?,
        },
        9 => ProviderEvent::CloseRequested {
            payout_script: u.arbitrary::<bool>()?.then(|| params.remainder_script.clone()),
        },
        12 => {
            let Some(edge) = EdgeNumber::new(u.int_in_range(0..=3)?) else { return Ok(None) };
            let late = LateId { edge, epoch: u.int_in_range(0..=3)?, station: station(u)? };
            ProviderEvent::UsedLate { late, octets: Octets(number(u)?) }
        }
        13 => ProviderEvent::FundingOffered { tx: transaction(u, params)? },
        14 => ProviderEvent::FundingRevoked,
        15 => ProviderEvent::CloseSigned(close(u, params)?),
        10 => {
            let tx = bitmesh_core::bitcoin::consensus::encode::serialize_hex(&transaction(u, params)?);
            return Ok(event(serde_json::json!({
                "event": "claim-signed", "tx": tx, "fee_rate_sat_per_kwu": number(u)?,
                "fee_sat": number(u)?, "height": height(u)?,
            })));
        }
        11 => return Ok(event(spent(u)?)),
        _ if u.ratio(1, 4)? => ProviderEvent::Finished,
        _ => ProviderEvent::Unspent,
    }))
}

fn spent(u: &mut Unstructured) -> Result<serde_json::Value> {
    let kind = if u.arbitrary()? { "claim" } else { "refund" };
    let txid = "02".repeat(32);
    Ok(serde_json::json!({"event": "spent", "txid": txid, "height": height(u)?, "kind": kind}))
}

fn subscriber_event(
    u: &mut Unstructured,
    params: &ChannelParams,
) -> Result<Option<SubscriberEvent>> {
    Ok(Some(match u.int_in_range(0..=16)? {
        0 | 1 => SubscriberEvent::Negotiated {
            params: Box::new(params.clone()),
            key_index: height(u)?,
            provider: params.provider.point().ok_or(Error::IncorrectFormat)?.into(),
            url: String::new(),
            height: height(u)?,
        },
        2 => SubscriberEvent::FundingSigned { tx: transaction(u, params)?, height: height(u)? },
        3 | 4 => SubscriberEvent::Funded(funding(u)?),
        5 => SubscriberEvent::Unfunded,
        6 | 7 => SubscriberEvent::PaymentSigned {
            paid: Amount::from_sat(number(u)?),
            signature: fixtures().signature,
            earlier: number(u)?,
        },
        8 => SubscriberEvent::Disputed {
            reported_octets: Octets(number(u)?),
            counted_octets: Octets(number(u)?),
        },
        9 => SubscriberEvent::CloseRequested { height: height(u)? },
        13 => SubscriberEvent::FundingTaken { outpoint: funding(u)?.outpoint },
        14 => SubscriberEvent::CloseSigned(close(u, params)?),
        15 => SubscriberEvent::CloseAgreed { tx: transaction(u, params)? },
        10 => SubscriberEvent::RefundSigned { tx: transaction(u, params)?, height: height(u)? },
        11 => return Ok(event(spent(u)?)),
        _ if u.ratio(1, 4)? => SubscriberEvent::Finished,
        _ => SubscriberEvent::Unspent,
    }))
}

fn entry<E>(u: &mut Unstructured, event: Option<E>, channel: ChannelId) -> Result<Option<Entry<E>>> {
    Ok(match u.int_in_range(0..=11)? {
        0 => Some(Entry::Block { height: height(u)?, hash: BlockHash::all_zeros() }),
        1 => Some(Entry::BlockGone { height: height(u)? }),
        2 => Some(Entry::Usage { station: station(u)?, usage: usage(u)? }),
        _ => event.map(|event| Entry::Channel { channel, event }),
    })
}

fn follow_provider(journal: &[Entry<ProviderEvent>], tip: u32) {
    let mut controller = Controller::new(Network::Regtest, vec![]);
    for entry in journal {
        let before = match entry {
            Entry::Channel { channel, .. } => controller.book().get(channel).cloned(),
            _ => None,
        };
        if controller.replay(entry).is_err() {
            if let (Some(before), Entry::Channel { channel, event }) = (before, entry) {
                let mut channel = controller.book().get(channel).cloned().unwrap_or(before);
                let before = channel.clone();
                if channel.apply(event).is_err() {
                    assert_eq!(channel, before, "a refused event changed the channel");
                }
            }
            break;
        }
    }
    for (_, channel) in controller.book().iter() {
        channel.status(tip);
        channel.finish(tip);
        channel.claim_due(tip);
        channel.block_gone(tip);
        assert!(channel.paid() <= channel.params().payable());
    }
    let known = controller.channels().count();
    assert_eq!(known, controller.book().iter().count());
    controller.accounts().count();
    controller.resume().release(&Durable::committed());
}

fn follow_subscriber(journal: &[Entry<SubscriberEvent>], tip: u32) {
    let mut buyer = Buyer::new(Network::Regtest);
    for entry in journal {
        if buyer.replay(entry).is_err() {
            if let Entry::Channel { channel, event } = entry
                && let Some(channel) = buyer.book().get(channel)
            {
                let mut again = channel.clone();
                assert!(again.apply(event).is_err());
                assert_eq!(&again, channel, "a refused event changed the channel");
            }
            break;
        }
    }
    for (_, channel) in buyer.book().iter() {
        channel.status(tip);
        channel.finish(tip);
        channel.refund_due(tip);
        let _ = channel.payment(Amount::from_sat(tip.into()), tip);
        channel.block_gone(tip);
    }
    buyer.channels().count();
    buyer.refunds_due();
    buyer.resume().release(&Durable::committed());
}

/// Events as text, one a line, all of the channel that the first opens.
fn lines(text: &str) {
    let provider: Vec<ProviderEvent> =
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    if let Some(mut channel) = provider.first().and_then(|event| ProviderChannel::open(event).ok()) {
        for event in &provider {
            let before = channel.clone();
            if channel.apply(event).is_err() {
                assert_eq!(channel, before, "a refused event changed the channel");
            }
            let written = serde_json::to_string(event).expect("what was read can be written");
            assert_eq!(serde_json::from_str::<ProviderEvent>(&written).ok().as_ref(), Some(event));
        }
        let channel = channel.params().id();
        let of = |event: &ProviderEvent| Entry::Channel { channel, event: event.clone() };
        follow_provider(&provider.iter().map(of).collect::<Vec<_>>(), 900);
    }
    let subscriber: Vec<SubscriberEvent> =
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    if let Some(channel) = subscriber.first().and_then(|event| SubscriberChannel::open(event).ok()) {
        let channel = channel.params().id();
        let of = |event: &SubscriberEvent| Entry::Channel { channel, event: event.clone() };
        follow_subscriber(&subscriber.iter().map(of).collect::<Vec<_>>(), 900);
    }
}

fn generated(u: &mut Unstructured) -> Result<()> {
    let tip = height(u)?;
    let (mut provider, mut subscriber) = (Vec::new(), Vec::new());
    while !u.is_empty() && provider.len() < EVENTS_MAX {
        let (channel, params) = u.choose(&fixtures().params)?;
        let event = provider_event(u, params)?;
        provider.extend(entry(u, event, *channel)?);
        let event = subscriber_event(u, params)?;
        subscriber.extend(entry(u, event, *channel)?);
    }
    follow_provider(&provider, tip);
    follow_subscriber(&subscriber, tip);
    Ok(())
}

fuzz_target!(|input: &[u8]| {
    match std::str::from_utf8(input) {
        Ok(text) if text.starts_with('{') => lines(text),
        _ => drop(generated(&mut Unstructured::new(input))),
    }
});
