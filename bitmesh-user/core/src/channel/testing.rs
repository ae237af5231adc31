//! Keys and terms for the tests of this crate.

use bitcoin::{
    Amount, Block, BlockHash, CompactTarget, Network, OutPoint, ScriptBuf, Transaction, TxIn,
    TxMerkleNode, TxOut, Txid, WPubkeyHash,
    absolute::LockTime,
    block::{self, Header},
    hashes::Hash,
    secp256k1::{All, Message, PublicKey, Secp256k1, SecretKey, ecdsa::Signature},
    transaction::Version,
};

use super::{ChannelParams, PROTOCOL_VERSION, payment_sighash};
use crate::{offer::OfferId, pricing::Schedule, units::Octets};

pub(crate) const SUBSCRIBER: u8 = 1;
pub(crate) const PROVIDER: u8 = 2;

pub(crate) fn secp() -> Secp256k1<All> {
    Secp256k1::new()
}

pub(crate) fn secret_key(seed: u8) -> SecretKey {
    SecretKey::from_slice(&[seed; 32]).unwrap()
}

pub(crate) fn public_key(seed: u8) -> PublicKey {
    secret_key(seed).public_key(&secp())
}

pub(crate) fn sign(seed: u8, message: Message) -> Signature {
    secp().sign_ecdsa(&message, &secret_key(seed))
}

/// 100,000 sat until height 1,000, at 1,000 msat per MiB: a satoshi buys a MiB.
pub(crate) fn params() -> ChannelParams {
    ChannelParams {
        version: PROTOCOL_VERSION,
        network: Network::Regtest,
        offer: OfferId::of_bytes(b"offer"),
        subscriber: public_key(SUBSCRIBER).into(),
        provider: public_key(PROVIDER).into(),
        expiry_height: 1_000,
        capacity: Amount::from_sat(100_000),
        remainder_script: ScriptBuf::new_p2wpkh(&WPubkeyHash::hash(b"remainder")),
        schedule: Schedule::flat(1_000),
        confirmations: 2,
        tick_max: Octets(8 << 20),
        unconfirmed_max: Amount::ZERO,
    }
}

/// A block of these transactions, unique by `salt`.
pub(crate) fn block(transactions: Vec<Transaction>, salt: u32) -> Block {
    let header = Header {
        version: block::Version::TWO,
        prev_blockhash: BlockHash::all_zeros(),
        merkle_root: TxMerkleNode::all_zeros(),
        time: 0,
        bits: CompactTarget::from_consensus(0),
        nonce: salt,
    };
    Block { header, txdata: transactions }
}

/// A transaction that funds `params` at output 1 and is unique by `salt`.
pub(crate) fn funding_tx(params: &ChannelParams, salt: u8) -> Transaction {
    let previous_output = OutPoint::new(Txid::from_byte_array([salt; 32]), 0);
    let change = TxOut { value: Amount::from_sat(7), script_pubkey: ScriptBuf::new() };
    let funding = TxOut { value: params.capacity, script_pubkey: params.funding_script() };
    Transaction {
        version: Version::TWO,
        lock_time: LockTime::ZERO,
        input: vec![TxIn { previous_output, ..TxIn::default() }],
        output: vec![change, funding],
    }
}

pub(crate) fn outpoint(params: &ChannelParams) -> OutPoint {
    OutPoint::new(funding_tx(params, 1).compute_txid(), 1)
}

pub(crate) fn pay(params: &ChannelParams, sat: u64) -> Signature {
    let paid = Amount::from_sat(sat);
    sign(SUBSCRIBER, payment_sighash(params, outpoint(params), paid).unwrap())
}
