//! Transactions in JSON: consensus encoding, hexadecimal. The `bitcoin` crate's own module for this
//! panics on an encoding that ends early.

use bitcoin::{
    Transaction,
    consensus::encode::{deserialize_hex, serialize_hex},
};
use serde::{Deserialize, Deserializer, Serializer, de};

pub(crate) fn serialize<S: Serializer>(tx: &Transaction, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&serialize_hex(tx))
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Transaction, D::Error> {
    let text = String::deserialize(deserializer)?;
    deserialize_hex(&text).map_err(de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        channel::testing::{funding_tx, params},
        wire::FundingRequest,
    };

    #[test]
    fn a3_a_transaction_that_ends_early_is_refused() {
        let funding = FundingRequest { tx: funding_tx(&params(), 1) };
        let json = serde_json::to_value(&funding).unwrap();
        assert_eq!(serde_json::from_value::<FundingRequest>(json.clone()).unwrap(), funding);
        let text = serialize_hex(&funding.tx);
        for octets in 0..text.len() {
            let mut short = json.clone();
            short["tx"] = text[..octets].into();
            assert!(serde_json::from_value::<FundingRequest>(short).is_err(), "{octets}");
        }
    }
}
