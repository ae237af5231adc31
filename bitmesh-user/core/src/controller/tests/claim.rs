//! Claims as they are planned, signed, refused, replaced and settled.

use bitcoin::{FeeRate, OutPoint, Transaction};
use proptest::prelude::*;

use super::*;
use crate::channel::{
    CLAIM_BUMP_BLOCKS, CLAIM_DONE_BLOCKS, CLAIM_MARGIN_BLOCKS, DUST, FINAL_DEPTH_BLOCKS,
    payment_sighash,
};

const EXPIRY: u32 = 1_000;
const MARGIN: u32 = EXPIRY - CLAIM_MARGIN_BLOCKS;

fn vb(rate: u64) -> FeeRate {
    FeeRate::from_sat_per_vb(rate).unwrap()
}

fn fees(rate: u64) -> Input {
    Input::Fees(Some(FeeEstimates { normal: vb(rate), urgent: vb(2 * rate) }))
}

impl Provider {
    /// Channels of several subscribers that are at the margin, each having paid its sum.
    fn paid(sums: &[u64]) -> Self {
        let mut provider = Self::new();
        let payout = ScriptBuf::new_p2wpkh(&WPubkeyHash::hash(b"payout"));
        provider.controller.set_payout(payout);
        let mut fundings = Vec::new();
        for key in 10..10 + u8::try_from(sums.len()).unwrap() {
            let report = provider.open(key, provider.request(key), NOW).unwrap();
            fundings.push((report.channel, testing::funding_tx(&report.params, key), key, report));
        }
        let transactions = fundings.iter().map(|(_, tx, ..)| tx.clone()).collect();
        provider.mine(101, transactions);
        provider.mine(102, vec![]);
        for ((channel, tx, key, report), sum) in fundings.into_iter().zip(sums) {
            let paid = Amount::from_sat(*sum);
            let outpoint = OutPoint::new(tx.compute_txid(), 1);
            let message = payment_sighash(&report.params, outpoint, paid).unwrap();
            let payment = PaymentRequest { paid, signature: sign(key, message) };
            let request = RequestId(2);
            let taken = provider.put(Input::Pay {
                request,
                channel,
                payment,
                verified: None,
                station: None,
            });
            assert!(matches!(taken.last(), Some(Action::Reply(_, Ok(_)))), "{taken:?}");
        }
        provider
    }

    /// What is broadcast once what is planned has been signed.
    fn sign(&mut self, actions: Vec<Action>) -> Vec<Transaction> {
        let mut sent = Vec::new();
        for action in actions {
            match action {
                Action::Claim(planned) => {
                    let signed = planned.sign(|_, message| sign(PROVIDER, message)).unwrap();
                    let actions = self.put(signed);
                    sent.extend(self.sign(actions));
                }
                Action::Broadcast(tx) => sent.push(tx),
                _ => {}
            }
        }
        sent
    }

    fn fee_of(&self, tx: &Transaction) -> Amount {
        let capacity = |input: &bitcoin::TxIn| {
            self.controller.book().at(&input.previous_output).unwrap().params().capacity
        };
        let spent: Amount = tx.input.iter().map(capacity).sum();
        spent - tx.output.iter().map(|output| output.value).sum()
    }

    /// One block, then fees; what is broadcast.
    fn block(&mut self, height: u32, rate: u64) -> Vec<Transaction> {
        let connected = Input::BlockConnected { height, block: block(vec![], height) };
        self.put(connected);
        let actions = self.put(fees(rate));
        self.sign(actions)
    }
}

#[test]
fn p4_a_channel_at_its_margin_takes_no_payment_and_is_claimed() {
    let mut provider = Provider::paid(&[50_000]);
    assert!(provider.block(MARGIN - 1, 2).is_empty());
    let sent = provider.block(MARGIN, 2);
    let [claim] = sent.as_slice() else { panic!("{sent:?}") };
    let fee = provider.fee_of(claim).to_sat();
    let vbytes = u64::try_from(claim.vsize()).unwrap();
    assert!((vbytes * 2..vbytes * 2 + 10).contains(&fee), "{fee} for {vbytes} vB");
    let report = provider.controller.channels().next().unwrap();
    assert_eq!(report.status, ChannelStatus::Closing);
    let refused = provider.pay(&report, 60_000);
    assert!(
        matches!(
            refused.as_slice(),
            [Action::Reply(_, Err(Refusal::Payment { error: PaymentError::Closed, .. }))]
        ),
        "{refused:?}"
    );
}

#[test]
fn a_claim_is_replaced_every_few_blocks_until_a_block_holds_it() {
    let mut provider = Provider::paid(&[50_000, 40_000]);
    let first = provider.block(MARGIN, 1).remove(0);
    for height in MARGIN + 1..MARGIN + CLAIM_BUMP_BLOCKS {
        assert!(provider.block(height, 1).is_empty());
    }
    let second = provider.block(MARGIN + CLAIM_BUMP_BLOCKS, 1).remove(0);
    assert_eq!(first.input.len(), 2);
    let outpoints = |tx: &Transaction| {
        tx.input.iter().map(|input| input.previous_output).collect::<BTreeSet<_>>()
    };
    assert_eq!(outpoints(&first), outpoints(&second));
    assert!(provider.fee_of(&second) >= provider.fee_of(&first) + Amount::from_sat(300));
    // Once it is in a block, nothing more.
    let height = MARGIN + CLAIM_BUMP_BLOCKS + 1;
    provider.mine(height, vec![second]);
    for height in height + 1..height + 10 {
        assert!(provider.block(height, 1).is_empty());
    }
}

#[test]
fn p2_a_claim_that_is_refused_for_its_fee_is_replaced_at_the_next_block() {
    let mut provider = Provider::paid(&[50_000]);
    let claim = provider.block(MARGIN, 1).remove(0);
    let other = claim.compute_txid();
    provider.put(Input::Refused { txid: other });
    let at_once = provider.put(fees(1));
    assert!(at_once.is_empty(), "{at_once:?}");
    let next = provider.block(MARGIN + 1, 1).remove(0);
    assert!(provider.fee_of(&next) > provider.fee_of(&claim));
    assert!(provider.block(MARGIN + 2, 1).is_empty());
    // What is no claim of ours is nothing to it.
    provider.put(Input::Refused { txid: other });
    assert!(provider.block(MARGIN + 3, 1).is_empty());
}

#[test]
fn p2_an_early_claim_is_replaced_only_when_fees_have_risen_over_its_own() {
    let mut provider = Provider::paid(&[50_000]);
    let report = provider.controller.channels().next().unwrap();
    let signature = sign(10, close_digest(&report.channel));
    let close = CloseRequest { signature, proposal: None };
    let (request, channel, own) = (RequestId(3), report.channel, CloseOwn::default());
    let asked = provider.put(Input::Close { request, channel, close, own });
    let mut sent = provider.sign(asked);
    let claim = sent.remove(0);
    // Neither time nor a refusal is a reason: both would give miners half of it within hours.
    provider.put(Input::Refused { txid: claim.compute_txid() });
    for height in 103..130 {
        assert!(provider.block(height, 1).is_empty(), "at {height}");
    }
    let dearer = provider.block(130, 3).remove(0);
    let vbytes = u64::try_from(dearer.vsize()).unwrap();
    assert!((vbytes * 3..vbytes * 3 + 10).contains(&provider.fee_of(&dearer).to_sat()));
    for height in 131..MARGIN {
        assert!(provider.block(height, 3).is_empty(), "at {height}");
    }
    // From the margin on it is as for any other.
    let last = provider.block(MARGIN, 1).remove(0);
    assert!(provider.fee_of(&last) > provider.fee_of(&dearer));
}

#[test]
fn p2_a_channel_that_does_not_pay_for_its_claim_waits_and_offers_more_as_time_runs_out() {
    // A claim of one channel takes 170 vB: at 10 sat/vB, 1,700 of 3,000 sat.
    let mut provider = Provider::paid(&[3_000]);
    assert!(provider.block(MARGIN, 10).is_empty());
    let cheap = provider.put(fees(8));
    assert!(matches!(cheap.as_slice(), [Action::Claim(_)]), "{cheap:?}");
    // Not carried out, and the fees are high again: the share is 1,694 sat, then 1,708.
    assert!(provider.block(MARGIN + 14, 10).is_empty());
    assert_eq!(provider.block(MARGIN + 15, 10).len(), 1);
}

#[test]
fn p2_when_time_is_short_miners_are_offered_what_there_is() {
    let mut provider = Provider::paid(&[3_000]);
    assert!(provider.block(EXPIRY - CLAIM_DONE_BLOCKS - 36, 1_000).is_empty());
    let sent = provider.block(EXPIRY - CLAIM_DONE_BLOCKS - 35, 1_000);
    let fee = provider.fee_of(&sent[0]).to_sat();
    assert!((2_500..=3_000 - DUST.to_sat()).contains(&fee), "{fee}");
}

#[test]
fn channels_that_pay_off_do_not_wait_for_one_that_does_not() {
    let mut provider = Provider::paid(&[50_000, 900, 40_000]);
    let sent = provider.block(MARGIN, 20);
    assert_eq!(sent.iter().map(|tx| tx.input.len()).collect::<Vec<_>>(), [2]);
}

#[test]
fn p10_a_claim_that_leaves_the_chain_again_is_broadcast_and_replaced_again() {
    let mut provider = Provider::paid(&[50_000]);
    let claim = provider.block(MARGIN, 1).remove(0);
    provider.mine(MARGIN + 1, vec![claim.clone()]);
    provider.put(Input::BlockDisconnected { height: MARGIN + 1 });
    let height = MARGIN + 1;
    let again = provider.put(Input::BlockConnected { height, block: block(vec![], 7) });
    assert!(matches!(again.as_slice(), [Action::Broadcast(tx)] if *tx == claim), "{again:?}");
    assert_eq!(provider.block(MARGIN + CLAIM_BUMP_BLOCKS, 1).len(), 1);
}

#[test]
fn a_restart_goes_on_with_the_watch() {
    let mut provider = Provider::paid(&[50_000]);
    let claim = provider.block(MARGIN, 1).remove(0);
    let mut again = Controller::new(Network::Regtest, vec![]);
    for entry in &provider.journal {
        again.replay(entry).unwrap();
    }
    again.set_payout(provider.controller.payout().to_owned());
    let actions = again.resume().release(&Durable::committed());
    assert!(actions.iter().any(|action| matches!(action, Action::Broadcast(tx) if *tx == claim)));
    provider.controller = again;
    // Nothing is signed while the chain is not known.
    assert!(provider.block(MARGIN + 3, 1).is_empty());
    provider.put(Input::Chain { synced: true });
    let actions = provider.put(fees(1));
    let replacement = provider.sign(actions).remove(0);
    assert!(provider.fee_of(&replacement) > provider.fee_of(&claim));
}

#[test]
fn many_blocks_at_once_are_one_reason_to_replace() {
    let mut provider = Provider::paid(&[50_000]);
    provider.block(MARGIN, 1);
    for height in MARGIN + 1..MARGIN + 30 {
        let connected = Input::BlockConnected { height, block: block(vec![], height) };
        let actions = provider.put(connected);
        assert!(matches!(actions.as_slice(), [Action::Broadcast(_)]), "{actions:?}");
    }
    assert_eq!(provider.block(MARGIN + 30, 1).len(), 1);
}

#[test]
fn a_channel_that_can_not_pay_for_its_claim_is_refused_with_the_capacity_that_would() {
    let mut provider = Provider::new();
    provider.put(fees(200));
    let refused = provider.open(1, provider.request(SUBSCRIBER), NOW).unwrap_err();
    let Refusal::Uneconomic(why) = refused else { panic!("{refused:?}") };
    let enough = OpenRequest { capacity: why.capacity_min, ..provider.request(SUBSCRIBER) };
    let short = OpenRequest { capacity: why.capacity_min - Amount::ONE_SAT, ..enough.clone() };
    assert!(provider.open(1, short, NOW).is_err());
    // A source that can't tell is no reason to refuse; the last estimate holds.
    provider.put(Input::Fees(None));
    assert!(provider.open(1, provider.request(SUBSCRIBER), NOW).is_err());
    provider.open(1, enough, NOW).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever was paid and whatever miners take: each claim makes and loses no satoshi, gives
    /// every subscriber its remainder, holds no dust, and pays more than what it replaces.
    #[test]
    fn no_claim_makes_or_loses_a_satoshi(
        sums in prop::collection::vec(1u64..99_670, 1..6),
        rates in prop::collection::vec(1u64..300, 1..30),
    ) {
        let mut provider = Provider::paid(&sums);
        let mut earlier: BTreeMap<OutPoint, Amount> = BTreeMap::new();
        let mut height = MARGIN;
        for rate in rates {
            for tx in provider.block(height, rate) {
                let fee = provider.fee_of(&tx);
                let mut paid = Amount::ZERO;
                for (input, output) in tx.input.iter().zip(&tx.output) {
                    let channel = provider.controller.book().at(&input.previous_output).unwrap();
                    prop_assert_eq!(output.value, channel.params().capacity - channel.paid());
                    prop_assert_eq!(&output.script_pubkey, &channel.params().remainder_script);
                    paid += channel.paid();
                    let before = earlier.insert(input.previous_output, fee);
                    prop_assert!(before.is_none_or(|before| before < fee));
                }
                prop_assert_eq!(tx.output.len(), tx.input.len() + 1);
                prop_assert!(tx.output.iter().all(|output| output.value >= DUST));
                prop_assert_eq!(tx.output.last().unwrap().value + fee, paid);
            }
            height += 4;
        }
    }
}

#[test]
fn a_block_looks_at_the_channels_that_wait_and_at_no_others() {
    let mut provider = Provider::paid(&[5_000; 40]);
    let looked_at = |provider: &Provider, tip: u32| {
        let book = &provider.controller.book;
        book.waiting(Wait::End, Wait::Claim { from: tip }).count()
    };
    assert_eq!(looked_at(&provider, MARGIN - 1), 0);
    assert_eq!(looked_at(&provider, MARGIN), 40);
    let actions = provider.mine(MARGIN, vec![]);
    let claims = provider.sign(actions);
    assert_eq!(looked_at(&provider, MARGIN - 1), 40, "they are broadcast again");
    provider.mine(MARGIN + 1, claims);
    assert_eq!(looked_at(&provider, EXPIRY), 40, "their ends are waited for");
    provider.mine(MARGIN + FINAL_DEPTH_BLOCKS, vec![]);
    assert_eq!(looked_at(&provider, EXPIRY), 0);
}
