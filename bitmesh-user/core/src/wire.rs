//! The bodies of the API's requests and answers, JSON. Unknown fields in a request are refused.

use std::net::IpAddr;

use bitcoin::{
    Amount, OutPoint, ScriptBuf, Transaction, Txid,
    secp256k1::{PublicKey, ecdsa::Signature},
};
use serde::{Deserialize, Serialize};

use crate::{
    account::AccountId,
    channel::{Binding, ChannelId, ChannelParams, ChannelStatus, CloseRecord},
    ledger::Usage,
    offer::OfferId,
    station::Station,
    units::Octets,
};

/// Largest body that either side accepts, in octets.
pub const BODY_MAX_OCTETS: usize = 16 * 1024;

/// `POST /v1/channels`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenRequest {
    /// [`PROTOCOL_VERSION`](crate::channel::PROTOCOL_VERSION). Read it alone first
    /// ([`Versioned`](crate::channel::Versioned)): another version has other fields.
    pub version: u16,
    /// The offer that the subscriber accepts.
    pub offer: OfferId,
    /// Its key for this channel.
    pub subscriber: PublicKey,
    /// Exact value that it will fund the channel with.
    #[serde(rename = "capacity_sat", with = "bitcoin::amount::serde::as_sat")]
    pub capacity: Amount,
    /// Height from which it can refund itself.
    pub expiry_height: u32,
    /// Where the remainder goes at the close.
    pub remainder_script: ScriptBuf,
}

/// `POST /v1/channels/{id}/funding`: the signed funding, for a subscriber that has no other way to
/// the network, or that wants its payments to count before it is in a block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FundingRequest {
    /// In consensus encoding, hexadecimal.
    #[serde(with = "crate::hexadecimal")]
    pub tx: Transaction,
}

/// Answer to `POST /v1/channels` and `GET /v1/channels/{id}`, and what `bitmesh channels` lists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelReport {
    /// The channel's name.
    pub channel: ChannelId,
    /// Where it stands.
    #[serde(flatten)]
    pub status: ChannelStatus,
    /// The terms.
    pub params: ChannelParams,
    /// Descriptor of the funding output: enough to refund with any wallet that knows descriptors.
    pub descriptor: String,
    /// The same as an address.
    pub address: String,
    /// Station that opened it; absent on the subscriber's side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub station: Option<Station>,
    /// Account that payments credit; absent on the subscriber's side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    /// The confirmed funding.
    pub funding: Option<OutPoint>,
    /// The funding that was presented and taken, while no block holds one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offered: Option<OutPoint>,
    /// Most that payments may come to at this moment: before the funding is confirmed, the terms'
    /// `unconfirmed_max_sat` once one was taken.
    #[serde(rename = "payable_sat", default, with = "bitcoin::amount::serde::as_sat")]
    pub payable: Amount,
    /// Sum of all payments.
    #[serde(rename = "paid_sat", with = "bitcoin::amount::serde::as_sat")]
    pub paid: Amount,
    /// Number of payments.
    pub commitments: u64,
    /// What the payments bought.
    pub bought_octets: Octets,
    /// The newest claim or refund that was broadcast.
    pub closing_txid: Option<Txid>,
    /// The confirmed one.
    pub settled_txid: Option<Txid>,
    /// What the closing transaction pays to miners; it may close other channels too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closing_fee_sat: Option<u64>,
    /// Where a close pays the provider; it says so once it was asked to close.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payout_script: Option<ScriptBuf>,
    /// The newest close that both signed: either may broadcast it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed_by_both: Option<ClosedByBoth>,
    /// Numbers that both sides differ on, if they do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dispute: Option<DisputeReport>,
}

/// A transaction as the network takes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClosedByBoth {
    /// In hexadecimal.
    #[serde(with = "crate::hexadecimal")]
    pub tx: Transaction,
}

/// Why a subscriber stopped paying.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DisputeReport {
    /// What the provider reported.
    pub reported_octets: Octets,
    /// What the subscriber counted.
    pub counted_octets: Octets,
}

/// `POST /v1/channels/{id}/payments`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PaymentRequest {
    /// Sum of all payments, this one included.
    #[serde(rename = "paid_sat", with = "bitcoin::amount::serde::as_sat")]
    pub paid: Amount,
    /// Over the commitment: 64 octets r || s in hexadecimal, low S.
    #[serde(with = "compact")]
    pub signature: Signature,
}

/// Answer to a payment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PaymentReply {
    /// The best payment that is durable at the provider.
    #[serde(rename = "paid_sat", with = "bitcoin::amount::serde::as_sat")]
    pub paid: Amount,
    /// What the channel's account has now, as the station sees it that paid.
    pub account: AccountReport,
}

/// `POST /v1/channels/{id}/stations`, by the station that is to be bound; anyone may remove one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StationsRequest {
    /// What changes.
    pub binding: Binding,
    /// Over [`Binding::digest`], by the subscriber's key of the channel.
    #[serde(with = "compact")]
    pub signature: Signature,
}

/// `POST /v1/channels/{id}/close`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloseRequest {
    /// Over the tagged hash of the channel's id, by the subscriber's key of the channel.
    #[serde(with = "compact")]
    pub signature: Signature,
    /// A close that the provider can sign, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proposal: Option<CloseProposal>,
}

/// What a close depends on beside the channel's terms, its funding and the payout script of its
/// report: both sides build the transaction of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloseProposal {
    /// What it pays to the provider: all that was paid.
    #[serde(rename = "paid_sat", with = "bitcoin::amount::serde::as_sat")]
    pub paid: Amount,
    /// What it pays to miners in all, out of the subscriber's remainder.
    #[serde(rename = "fee_sat", with = "bitcoin::amount::serde::as_sat")]
    pub fee: Amount,
    /// Over the transaction, `ALL`, by the subscriber's key of the channel.
    #[serde(with = "compact")]
    pub signature: Signature,
}

impl From<&CloseRecord> for CloseProposal {
    fn from(close: &CloseRecord) -> Self {
        Self { paid: close.paid, fee: close.fee, signature: close.signature }
    }
}

/// Answer to `GET /v1/account` and to changes of an account's stations, and what `bitmesh stations`
/// lists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountReport {
    /// Whose.
    pub station: Station,
    /// The account that pays, or paid last, for the station; absent: none ever did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    /// Whether the station may use the account's credit.
    #[serde(default)]
    pub bound: bool,
    /// Octets that the account bought.
    pub bought_octets: Octets,
    /// Octets that the account bought and did not use; all its stations share them.
    pub credit_octets: Octets,
    /// What the station used of the account's.
    pub usage: Usage,
    /// What others used of the account's: stations that have left included, and what this one used at an edge
    /// that was taken over.
    #[serde(default)]
    pub others_octets: Octets,
    /// Stations that may use the credit.
    #[serde(default)]
    pub stations: u64,
    /// The part of the credit that the station can use at this moment; it grows by itself as it is
    /// used.
    #[serde(default)]
    pub lease_octets: Octets,
    /// The edge's own addresses: traffic with them is never billed.
    pub edge_addresses: Vec<IpAddr>,
}

impl AccountReport {
    /// What the whole account used.
    pub fn used_octets(&self) -> Octets {
        self.usage.billed().saturating_add(self.others_octets)
    }
}

/// Body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// For programs: stable, kebab-case.
    pub error: String,
    /// For people: what is wrong.
    pub message: String,
    /// What to do about it.
    pub r#try: String,
}

/// Signatures as 64 octets, r || s.
mod compact {
    use bitcoin::secp256k1::ecdsa::Signature;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(
        signature: &Signature,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(signature.serialize_compact()))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Signature, D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut bytes = [0; 64];
        hex::decode_to_slice(&text, &mut bytes)
            .map_err(|_| de::Error::custom("a signature is 128 hexadecimal digits, r || s"))?;
        Signature::from_compact(&bytes).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::testing;

    #[test]
    fn a_payment_is_two_fields_and_nothing_else() {
        let payment = PaymentRequest {
            paid: Amount::from_sat(12),
            signature: testing::pay(&testing::params(), 12),
        };
        let json = serde_json::to_value(&payment).unwrap();
        assert_eq!(json["paid_sat"], 12);
        assert_eq!(json["signature"].as_str().map(str::len), Some(128));
        assert_eq!(serde_json::from_value::<PaymentRequest>(json.clone()).unwrap(), payment);
        for (field, value) in
            [("paid_sat", "\"12\""), ("paid_sat", "-1"), ("signature", "\"00\""), ("more", "1")]
        {
            let mut bad = json.clone();
            bad[field] = serde_json::from_str(value).unwrap();
            assert!(serde_json::from_value::<PaymentRequest>(bad).is_err(), "{field}: {value}");
        }
    }
}
