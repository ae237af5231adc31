//! Any octets as each body of the API: refused or taken, and what is taken is written as it was read.
#![no_main]

use std::fmt::Debug;

use bitmesh_core::wire::{
    AccountReport, ChannelReport, CloseRequest, ErrorBody, FundingRequest, OpenRequest,
    PaymentReply, PaymentRequest, StationsRequest,
};
use libfuzzer_sys::fuzz_target;
use serde::{Serialize, de::DeserializeOwned};

fn read<T: Serialize + DeserializeOwned + PartialEq + Debug>(input: &[u8]) -> Option<T> {
    let body: T = serde_json::from_slice(input).ok()?;
    let written = serde_json::to_vec(&body).expect("what was read can be written");
    let again: T = serde_json::from_slice(&written).expect("what was written can be read");
    assert_eq!(again, body);
    assert_eq!(serde_json::to_vec(&again).ok(), Some(written));
    Some(body)
}

fuzz_target!(|input: &[u8]| {
    read::<OpenRequest>(input);
    read::<PaymentRequest>(input);
    read::<FundingRequest>(input);
    read::<CloseRequest>(input);
    read::<ErrorBody>(input);
    if let Some(reply) = read::<PaymentReply>(input) {
        assert!(reply.account.used_octets() >= reply.account.others_octets);
    }
    if let Some(report) = read::<AccountReport>(input) {
        assert!(report.used_octets() >= report.usage.billed());
    }
    if let Some(report) = read::<ChannelReport>(input) {
        if report.params.validate().is_ok() {
            assert_eq!(report.params.id(), report.params.clone().id());
            assert!(report.params.payable() < report.params.capacity);
        }
        if let Some(request) = read::<StationsRequest>(input) {
            request.binding.digest(&report.channel);
        }
    }
});
