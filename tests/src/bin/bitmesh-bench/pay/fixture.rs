//! Channels in numbers: real keys, terms and signatures, on fundings that no chain has.

use std::{ops::Range, sync::Arc, thread};

use anyhow::{Context as _, Result};
use bitcoin::{
    Amount, OutPoint, Txid,
    hashes::{Hash as _, sha256},
    secp256k1::{All, Message, PublicKey, Secp256k1, SecretKey, ecdsa::Signature},
};
use bitmesh_core::{
    channel::{ChannelId, ChannelParams, Entry, Funding, ProviderEvent, payment_sighash},
    ledger::Usage,
    station::Station,
    wire::PaymentRequest,
};
use bitmesh_user::bench::terms;

/// Blocks that a channel lives.
const LIFETIME_BLOCKS: u32 = 20_000;

/// A funded channel and who pays on it.
pub struct Account {
    /// Its name.
    pub channel: ChannelId,
    /// Its terms.
    pub params: ChannelParams,
    /// Who opened it.
    pub station: Station,
    index: u32,
    outpoint: OutPoint,
    secret: SecretKey,
}

impl Account {
    fn new(secp: &Secp256k1<All>, provider: PublicKey, index: u32, height: u32) -> Result<Self> {
        let secret = secret_key(u64::from(index) + 1)?;
        let params = terms(secret.public_key(secp), provider, height + LIFETIME_BLOCKS);
        let txid = Txid::from_byte_array(sha256::Hash::hash(&index.to_be_bytes()).to_byte_array());
        let station = station(index)?;
        let (channel, outpoint) = (params.id(), OutPoint::new(txid, 0));
        Ok(Self { channel, params, station, index, outpoint, secret })
    }

    /// What a provider's journal holds of it: opened and funded below `height`, and `paid` satoshi.
    pub fn journal(&self, secp: &Secp256k1<All>, height: u32, paid: u64) -> Result<Vec<Event>> {
        let opened = ProviderEvent::Opened {
            params: Arc::new(self.params.clone()),
            key_index: self.index,
            station: self.station,
            height,
            used: Usage::default(),
        };
        let funding = Funding { outpoint: self.outpoint, height };
        let mut events = vec![opened, ProviderEvent::Funded(funding)];
        if paid > 0 {
            let payment = self.pay(secp, paid)?;
            let (paid, signature) = (payment.paid, payment.signature);
            events.push(ProviderEvent::Paid { paid, signature, earlier: 0 });
        }
        let channel = self.channel;
        Ok(events.into_iter().map(|event| Entry::Channel { channel, event }).collect())
    }

    /// A payment of so much in all.
    pub fn pay(&self, secp: &Secp256k1<All>, sat: u64) -> Result<PaymentRequest> {
        let signature: Signature = secp.sign_ecdsa(&self.message(sat)?, &self.secret);
        Ok(PaymentRequest { paid: Amount::from_sat(sat), signature })
    }

    /// What is signed for it.
    pub fn message(&self, sat: u64) -> Result<Message> {
        let message = payment_sighash(&self.params, self.outpoint, Amount::from_sat(sat));
        message.context("a sum over the capacity")
    }
}

/// What a journal holds.
pub type Event = Entry<ProviderEvent>;

/// The accounts of these numbers, each of a channel and a station, made on all cores.
pub fn accounts(numbers: Range<u32>, height: u32) -> Result<Vec<Account>> {
    let secp = &Secp256k1::new();
    let provider = secret_key(u64::MAX)?.public_key(secp);
    let threads = thread::available_parallelism()?.get();
    let numbers: Vec<u32> = numbers.collect();
    thread::scope(|scope| {
        let parts: Vec<_> = numbers
            .chunks(numbers.len().div_ceil(threads).max(1))
            .map(|part| {
                let make = move |index: &u32| Account::new(secp, provider, *index, height);
                scope.spawn(move || part.iter().map(make).collect::<Result<Vec<_>>>())
            })
            .collect();
        let mut all = Vec::new();
        for part in parts {
            all.extend(part.join().expect("a thread that makes keys")?);
        }
        Ok(all)
    })
}

fn secret_key(number: u64) -> Result<SecretKey> {
    let mut octets = [0; 32];
    let (_, last) = octets.split_at_mut(24);
    last.copy_from_slice(&number.to_be_bytes());
    Ok(SecretKey::from_slice(&octets)?)
}

/// The MAC address of an account's station.
pub fn mac(index: u32) -> [u8; 6] {
    let [a, b, c, d] = index.to_be_bytes();
    [0x02, 0x50, a, b, c, d]
}

fn station(index: u32) -> Result<Station> {
    Station::new(mac(index), 0).context("a unicast address")
}
