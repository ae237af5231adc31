//! The simulation notices each rule that is broken on purpose, and nothing else.

use super::*;

/// Histories within which a broken rule is noticed.
const SEEDS: u64 = 2_000;

fn first_failure(sabotage: Option<Sabotage>, seeds: u64) -> Option<Failure> {
    (0..seeds).find_map(|seed| run(seed, sabotage).err())
}

fn noticed(sabotage: Sabotage, invariants: &[&str]) {
    let failure = first_failure(Some(sabotage), SEEDS).expect("it goes unnoticed");
    let invariant = failure.violation.invariant;
    assert!(invariants.contains(&invariant), "{invariant}: {}", failure.violation.detail);
}

#[test]
fn histories_hold() {
    if let Some(failure) = first_failure(None, 100) {
        panic!("seed {}: {}", failure.seed, failure.violation);
    }
}

#[test]
fn a_seed_tells_the_same_history_each_time() {
    let (_, once) = tell(11, None);
    let (_, again) = tell(11, None);
    assert!(once.len() > 10);
    assert_eq!(once, again);
}

#[test]
fn p13_a_provider_that_acts_before_the_store_is_noticed() {
    let credit = "no credit without a durable payment";
    let told = "no acknowledgement before the payment is durable";
    noticed(
        Sabotage::ActBeforeDurable,
        &[credit, told, "a replay gives the state before the crash"],
    );
}

#[test]
fn p13_a_subscriber_that_sends_before_the_store_is_noticed() {
    let known = "a restart knows what was signed and sent";
    noticed(Sabotage::SendBeforeDurable, &[known, "a replay gives the state before the crash"]);
}

#[test]
fn p15_a_forgotten_commitment_is_noticed() {
    let known = "a restart knows the newest durable commitment";
    let kernel = "the kernel honours what is durably paid";
    noticed(Sabotage::ForgetNewest, &[known, kernel, "a durable journal can be replayed"]);
}

#[test]
fn p6_credit_that_is_granted_twice_is_noticed() {
    noticed(Sabotage::GrantTwice, &["no credit without a durable payment"]);
}

#[test]
fn p4_a_claim_after_the_margin_is_noticed() {
    let late = "claims are in a block 36 blocks before the expiry";
    noticed(Sabotage::SleepThroughMargin, &[late, "what was paid is claimed"]);
}

#[test]
fn p2_a_claim_whose_fee_is_never_raised_is_noticed() {
    let late = "claims are in a block 36 blocks before the expiry";
    noticed(Sabotage::NeverBump, &[late, "what was paid is claimed"]);
}

#[test]
fn a_subscriber_that_pays_double_is_noticed() {
    noticed(Sabotage::PayDouble, &["a subscriber pays for what it used and one tick"]);
}
