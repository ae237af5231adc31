//! What was used at an edge that was taken over.

use super::*;

/// An edge that paid for 8 MiB, of which 2 are written down and 1 more was used, is taken over.
fn seized() -> Lab {
    let mut lab = Lab::funded(&[(0, 1)]);
    lab.pay(0, 0, 8).unwrap();
    lab.consume(0, 1, 2 * MIB);
    lab.look(0);
    lab.put(0, Input::Checkpoint);
    lab.consume(0, 1, MIB);
    lab.seize(1);
    lab.take(1, 0);
    lab
}

fn credit(lab: &Lab, edge: usize) -> u64 {
    lab.controller(edge).account(station(1)).credit_octets.0
}

#[test]
fn a_silent_edges_accounts_go_on_elsewhere_from_what_it_wrote_last() {
    let mut lab = seized();
    let slot = lab.edges[1].kernel[&station(1)];
    assert_eq!((slot.limit, slot.used), (8 * MIB, 2 * MIB), "a MiB is not known of yet");
    lab.check().unwrap();
    // Who was fenced starts with nothing.
    lab.start(0);
    assert!(lab.edges[0].kernel.is_empty());
    assert_eq!(lab.controller(0).place(lab.channels[0].account), Place::Elsewhere);
}

#[test]
fn what_was_used_before_a_takeover_is_debited_once_when_the_edge_is_back() {
    let mut lab = seized();
    let account = lab.channels[0].account;
    lab.consume(1, 1, MIB);
    lab.start(0);
    let told = lab.ledger.told_late(1);
    assert_eq!(told.iter().map(|late| late.octets).collect::<Vec<_>>(), [Octets(MIB)]);
    lab.hear_late(1);
    let report = lab.controller(1).account(station(1));
    assert_eq!((report.credit_octets, report.used_octets()), (Octets(4 * MIB), Octets(4 * MIB)));
    let slot = lab.edges[1].kernel[&station(1)];
    assert_eq!(slot.limit - slot.used, 4 * MIB, "the kernel honours no more than that");
    assert_eq!(lab.controller(1).late(), (Octets(MIB), Octets(0)));
    assert!(lab.ledger.late.is_empty());
    // Told again, after a start too, it says nothing.
    lab.put(1, Input::UsedLate(told.clone()));
    lab.edges[1].controller = None;
    lab.start(1);
    lab.put(1, Input::UsedLate(told.clone()));
    assert_eq!(credit(&lab, 1), 4 * MIB);
    // Nor does it at the edge that it moves on to.
    lab.now += STAY_MIN;
    lab.want(0, account);
    lab.take(0, 0);
    lab.put(0, Input::UsedLate(told));
    assert_eq!(credit(&lab, 0), 4 * MIB);
    lab.check().unwrap();
}

#[test]
fn no_more_is_debited_than_the_account_has_left_and_the_rest_is_counted_as_lost() {
    let mut lab = seized();
    assert_eq!(lab.consume(1, 1, 100 * MIB), 6 * MIB, "all that was left, as far as was known");
    lab.start(0);
    lab.hear_late(1);
    assert_eq!(lab.controller(1).late(), (Octets(0), Octets(MIB)));
    assert_eq!(credit(&lab, 1), 0);
    lab.check().unwrap();
    // A little of it fits.
    let mut lab = seized();
    lab.consume(1, 1, 6 * MIB - 1_000);
    lab.start(0);
    lab.hear_late(1);
    assert_eq!(lab.controller(1).late(), (Octets(1_000), Octets(MIB - 1_000)));
    assert_eq!(lab.consume(1, 1, MIB), 0, "the account owes nothing, and has nothing");
    lab.pay(1, 0, 9).unwrap();
    assert_eq!(lab.consume(1, 1, 2 * MIB), MIB, "what is bought after that is whole");
    lab.check().unwrap();
}

#[test]
fn whatever_is_killed_while_an_edge_comes_back_what_was_used_is_told_once() {
    for halt in [Halt::Voided, Halt::Told, Halt::Removed] {
        for heard in [false, true] {
            let mut lab = seized();
            lab.settle_seizure(0, Some(halt));
            assert!(lab.edges[0].seized, "void until it is written that it is not");
            if heard {
                lab.hear_late(1);
            }
            lab.start(0);
            lab.hear_late(1);
            lab.hear_late(1);
            assert_eq!(lab.controller(1).late(), (Octets(MIB), Octets(0)), "{halt:?}");
            assert_eq!(credit(&lab, 1), 5 * MIB);
            lab.check().unwrap();
        }
    }
}

#[test]
fn an_account_that_leaves_takes_along_what_is_to_be_settled() {
    let mut lab = seized();
    let account = lab.channels[0].account;
    lab.start(0);
    let late = lab.ledger.told_late(1);
    lab.now += STAY_MIN;
    // Its limits are on their way down when the other edge wants it.
    let Some(controller) = &mut lab.edges[1].controller else { unreachable!() };
    let mut out = Out::default();
    controller.handle(Input::UsedLate(late), &mut out);
    assert_eq!(controller.late(), (Octets(0), Octets(0)), "nothing before limits are lowered");
    controller.handle(Input::Wanted { account, by: edge(0), now: lab.now }, &mut out);
    lab.settle(1, out);
    assert_eq!(lab.ledger.accounts[&account].edge, 0);
    lab.take(0, 0);
    lab.hear_late(0);
    assert_eq!(credit(&lab, 0), 5 * MIB);
    lab.check().unwrap();
}

#[test]
fn what_was_used_beyond_a_limit_that_was_lowered_meanwhile_is_known_too() {
    let mut lab = Lab::funded(&[(0, 3), (0, 1)]);
    lab.pay(0, 0, 1).unwrap();
    lab.consume(0, 3, MIB);
    // Nobody looked: the other station is to get half of what is gone.
    lab.edges[0].crash = Some(Crash::AfterActions(1));
    let _ = lab.bind(0, 0, 1);
    lab.start(0);
    lab.seize(1);
    lab.take(1, 0);
    lab.start(0);
    lab.hear_late(1);
    assert_eq!(lab.controller(1).late(), (Octets(MIB), Octets(0)));
    lab.check().unwrap();
}

#[test]
fn a_station_that_changes_accounts_leaves_nothing_unwritten() {
    let mut lab = Lab::funded(&[(0, 1), (0, 2)]);
    lab.pay(0, 0, 8).unwrap();
    lab.pay(0, 1, 8).unwrap();
    lab.consume(0, 1, 3 * MIB);
    lab.bind(0, 1, 1).unwrap();
    lab.consume(0, 1, MIB);
    lab.seize(1);
    lab.take(1, 0);
    lab.start(0);
    lab.hear_late(1);
    let [old, new] = [0, 1].map(|channel| lab.channels[channel].account);
    let used = |account| lab.controller(1).accounts.used(account);
    assert_eq!((used(old), used(new)), (Octets(3 * MIB), Octets(MIB)));
    lab.check().unwrap();
}
