//! Payments that were verified elsewhere before they are put in.

use super::*;

impl Provider {
    /// Verifies on what holds now, as another thread would.
    fn verified(&self, channel: &ChannelReport, payment: &PaymentRequest) -> VerifiedPayment {
        let check = self.controller.payment_check(&channel.channel, payment.paid).unwrap();
        check.verify(&secp(), payment.paid, &payment.signature).unwrap()
    }

    fn put_in(
        &mut self,
        channel: &ChannelReport,
        payment: PaymentRequest,
        verified: Option<VerifiedPayment>,
    ) -> Result<Amount, PaymentError> {
        let (request, channel) = (RequestId(3), channel.channel);
        let paid = Input::Pay { request, channel, payment, verified, station: None };
        match self.put(paid).pop() {
            Some(Action::Reply(_, Ok(Answer::Payment(reply)))) => Ok(reply.paid),
            Some(Action::Reply(_, Err(Refusal::Payment { error, .. }))) => Err(error),
            other => panic!("no answer to a payment but {other:?}"),
        }
    }

    fn reorganise(&mut self, height: u32) {
        self.put(Input::BlockDisconnected { height });
    }
}

fn payment(channel: &ChannelReport, sum: u64) -> PaymentRequest {
    let signature = testing::pay(&channel.params, sum);
    PaymentRequest { paid: Amount::from_sat(sum), signature }
}

#[test]
fn what_was_verified_before_is_taken_and_granted() {
    let mut provider = Provider::new();
    let channel = provider.opened();
    let first = payment(&channel, 3);
    let verified = provider.verified(&channel, &first);
    assert_eq!(provider.put_in(&channel, first, Some(verified)), Ok(Amount::from_sat(3)));
    assert_eq!(provider.controller.account(station(1)).bought_octets, Octets(3 << 20));
}

#[test]
fn a_proof_of_one_payment_proves_no_other() {
    let mut provider = Provider::new();
    let channel = provider.opened();
    let good = payment(&channel, 3);
    let verified = provider.verified(&channel, &good);
    for (paid, signature) in
        [(4, good.signature), (3, testing::pay(&channel.params, 4)), (5, good.signature)]
    {
        let other = PaymentRequest { paid: Amount::from_sat(paid), signature };
        let judged = provider.put_in(&channel, other, Some(verified.clone()));
        assert_eq!(judged, Err(PaymentError::Signature), "{paid}");
    }
    let second = provider.open(2, provider.request(9), NOW).unwrap();
    provider.mine(103, vec![testing::funding_tx(&second.params, 2)]);
    provider.mine(104, vec![]);
    let judged = provider.put_in(&second, good, Some(verified));
    assert_eq!(judged, Err(PaymentError::Signature), "another channel's proof was taken");
}

#[test]
fn a_reorganisation_between_verifying_and_handling_voids_the_proof() {
    let mut provider = Provider::new();
    let channel = provider.opened();
    let on_first = payment(&channel, 3);
    let verified = provider.verified(&channel, &on_first);

    provider.reorganise(102);
    let judged = provider.put_in(&channel, on_first.clone(), Some(verified.clone()));
    assert!(matches!(judged, Err(PaymentError::Unconfirmed { .. })), "{judged:?}");
    provider.reorganise(101);
    let judged = provider.put_in(&channel, on_first.clone(), Some(verified.clone()));
    assert_eq!(judged, Err(PaymentError::Unfunded));

    // Another funding confirms: the signature is none over what it pays.
    provider.mine(101, vec![testing::funding_tx(&channel.params, 2)]);
    provider.mine(102, vec![]);
    let judged = provider.put_in(&channel, on_first.clone(), Some(verified.clone()));
    assert_eq!(judged, Err(PaymentError::Signature));
    assert_eq!(provider.controller.account(station(1)).bought_octets, Octets(0));

    // The first one again: what was proven is true again.
    provider.reorganise(102);
    provider.reorganise(101);
    provider.mine(101, vec![testing::funding_tx(&channel.params, 1)]);
    provider.mine(102, vec![]);
    assert_eq!(provider.put_in(&channel, on_first, Some(verified)), Ok(Amount::from_sat(3)));
}

#[test]
fn what_is_refused_by_its_sum_has_nothing_to_verify() {
    let mut provider = Provider::new();
    let channel = provider.opened();
    provider.pay(&channel, 3);
    let check = |sum| provider.controller.payment_check(&channel.channel, Amount::from_sat(sum));
    let most = channel.params.payable().to_sat();
    assert!(check(2).is_none() && check(most + 1).is_none());
    assert!(check(3).is_some() && check(most).is_some());
}

#[test]
fn a_check_says_the_same_until_its_channel_changes() {
    let mut provider = Provider::new();
    let channel = provider.opened();
    let at = |provider: &Provider| {
        provider.controller.payment_check(&channel.channel, Amount::from_sat(3)).unwrap()
    };
    let before = at(&provider);
    provider.mine(103, vec![]);
    assert!(before.agrees(&at(&provider)));
    for height in [103, 102, 101] {
        provider.reorganise(height);
    }
    provider.mine(101, vec![testing::funding_tx(&channel.params, 2)]);
    provider.mine(102, vec![]);
    assert!(!before.agrees(&at(&provider)));
}
