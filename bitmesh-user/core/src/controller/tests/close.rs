//! Leaving with the provider's help.

use super::*;
use crate::{
    channel::{CLOSE_WAIT_BLOCKS, Close, CloseError},
    wire::CloseProposal,
};

fn payout_script() -> ScriptBuf {
    ScriptBuf::new_p2wpkh(&WPubkeyHash::hash(b"payout"))
}

/// A wish to close as a wallet is behind the controller.
fn ask(provider: &mut Provider, channel: &ChannelReport, fee: Option<u64>) -> Vec<Action> {
    let proposal = fee.map(|fee| {
        let (paid, fee) = (provider.controller.book.get(&channel.channel).unwrap().paid(), fee);
        let funding = testing::outpoint(&channel.params);
        let fee = Amount::from_sat(fee);
        let close = Close::new(&channel.params, funding, paid, &payout_script(), fee).unwrap();
        CloseProposal { paid, fee, signature: sign(SUBSCRIBER, close.sighash().unwrap()) }
    });
    let signature = sign(SUBSCRIBER, close_digest(&channel.channel));
    let (id, close) = (channel.channel, CloseRequest { signature, proposal });
    let needs = provider.controller.close_needs(&id, &close);
    let own = CloseOwn {
        payout_script: needs.payout_script.then(payout_script),
        signature: needs.signature.map(|(_, message)| sign(PROVIDER, message)),
    };
    provider.put(Input::Close { request: RequestId(3), channel: id, close, own })
}

#[test]
fn a_channel_that_was_never_paid_on_is_closed_by_both() {
    let mut provider = Provider::new();
    let channel = provider.opened();
    let [Action::Reply(_, Ok(Answer::Channel(report)))] = &ask(&mut provider, &channel, None)[..]
    else {
        panic!("there is nothing to claim");
    };
    assert_eq!(report.payout_script, Some(payout_script()));
    assert_eq!(report.closed_by_both, None);
    let before = provider.journal.len();
    let actions = ask(&mut provider, &channel, Some(300));
    assert_eq!(provider.journal.len(), before + 1, "it is stored before anything leaves");
    let [Action::Broadcast(tx), Action::Reply(_, Ok(Answer::Channel(report)))] = &actions[..]
    else {
        panic!("{actions:?}");
    };
    assert_eq!(report.closed_by_both.as_ref().map(|close| &close.tx), Some(tx));
    assert_eq!(report.status, ChannelStatus::Closing);
    assert_eq!(report.closing_txid, Some(tx.compute_txid()));
    let again = ask(&mut provider, &channel, Some(300));
    assert!(matches!(again.as_slice(), [Action::Reply(_, Ok(_))]), "{again:?}");
    assert_eq!(provider.journal.len(), before + 1);
    let waiting = provider.mine(103, vec![]);
    assert!(matches!(waiting.as_slice(), [Action::Broadcast(_)]), "it is sent again");
    let tx = tx.clone();
    provider.mine(104, vec![tx]);
    assert!(provider.mine(105, vec![]).is_empty());
}

#[test]
fn a_close_is_not_signed_for_another_key_or_before_it_was_asked_for() {
    let mut provider = Provider::new();
    let channel = provider.opened();
    let actions = ask(&mut provider, &channel, Some(300));
    let [Action::Reply(_, Err(Refusal::Close(CloseError::NoPayoutScript)))] = &actions[..] else {
        panic!("{actions:?}");
    };
    let signature = sign(PROVIDER, close_digest(&channel.channel));
    let close = CloseRequest { signature, proposal: None };
    let needs = provider.controller.close_needs(&channel.channel, &close);
    assert_eq!(needs, CloseNeeds::default());
}

#[test]
fn the_claim_waits_for_the_close_and_then_no_more() {
    let mut provider = Provider::new();
    let channel = provider.opened();
    provider.pay(&channel, 1_500);
    ask(&mut provider, &channel, None);
    ask(&mut provider, &channel, Some(300));
    for height in 103..102 + CLOSE_WAIT_BLOCKS {
        let actions = provider.mine(height, vec![]);
        assert!(matches!(actions.as_slice(), [Action::Broadcast(_)]), "{height}: {actions:?}");
    }
    // The close stays good until a claim takes its place, which pays for both.
    let actions = provider.mine(102 + CLOSE_WAIT_BLOCKS, vec![]);
    let [Action::Broadcast(_), Action::Claim(claim)] = actions.as_slice() else {
        panic!("{actions:?}");
    };
    assert!(claim.fee() > Amount::from_sat(450), "{}", claim.fee());
}

#[test]
fn p10_a_close_that_leaves_the_chain_again_is_sent_again_and_waited_for() {
    const AT: u32 = 120;
    let mut provider = Provider::new();
    let channel = provider.opened();
    provider.pay(&channel, 50_000);
    ask(&mut provider, &channel, None);
    let actions = ask(&mut provider, &channel, Some(300));
    let [Action::Broadcast(tx), ..] = &actions[..] else { panic!("{actions:?}") };
    provider.mine(AT, vec![tx.clone()]);
    provider.put(Input::BlockDisconnected { height: AT });
    for height in AT..AT + CLOSE_WAIT_BLOCKS {
        let actions = provider.mine(height, vec![]);
        assert!(
            matches!(actions.as_slice(), [Action::Broadcast(sent)] if sent == tx),
            "{height}: {actions:?}"
        );
    }
    let actions = provider.mine(AT + CLOSE_WAIT_BLOCKS, vec![]);
    assert!(matches!(actions.as_slice(), [Action::Broadcast(_), Action::Claim(_)]), "{actions:?}");
}
