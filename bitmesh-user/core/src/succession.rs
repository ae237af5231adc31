//! Which channel a subscriber pays on, when it opens the next, and when it leaves the last: so that
//! one takes over before the other is spent, and nothing is opened that the budget does not need.

use bitcoin::Amount;

use crate::{
    buyer::Buyer,
    channel::{
        CAPACITY_MIN, CLAIM_MARGIN_BLOCKS, ChannelId, ChannelStatus, LIFETIME_MIN_BLOCKS,
        SubscriberChannel,
    },
    units::Octets,
};

/// The next channel is opened when less than one part in so many of the last is left.
const LOW_SHARE: u64 = 4;

/// Blocks before the provider's claim margin, its confirmations aside, at which the next channel is
/// opened.
const SUCCESSION_BLOCKS: u32 = 36;
const _: () = assert!(LIFETIME_MIN_BLOCKS - CLAIM_MARGIN_BLOCKS > SUCCESSION_BLOCKS + 100);

/// Blocks before the claim margin at which another channel that takes payments is preferred: the
/// provider may see the margin's block first, and refuse what was signed for it.
const HANDOVER_BLOCKS: u32 = 2;

/// The least that a further channel is opened for: less than the smallest channel holds is not
/// worth its fees.
pub const FURTHER_MIN: Amount = CAPACITY_MIN;

/// What a subscriber wants of a provider.
#[derive(Clone, Copy, Debug)]
pub struct Wants<'a> {
    /// Where the provider's API is.
    pub url: &'a str,
    /// May be spent, over all channels.
    pub budget: Amount,
    /// The provider has every payment that was signed.
    pub acknowledged: bool,
}

/// Something to be done beside paying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errand {
    /// Sign a funding for it: the first one, or one that replaces the last.
    Fund(ChannelId),
    /// Leave it: it is spent, and another takes over or has to be opened.
    Leave(ChannelId),
    /// Ask the provider for the end that was decided.
    Close(ChannelId),
    /// Open the first channel, or one after all others have ended.
    Open,
    /// Open one that takes over, and can pay so much.
    OpenNext(Amount),
}

impl Buyer {
    /// The channel to pay on: of those that take payments the oldest that is not spent, else the
    /// one that will be able to soonest, else the last one that has not ended.
    pub fn active(&self, url: &str) -> Option<ChannelId> {
        let tip = self.book().tip();
        let margin = tip.saturating_add(CLAIM_MARGIN_BLOCKS + HANDOVER_BLOCKS);
        let rank = |channel: &SubscriberChannel| match channel.status(tip) {
            ChannelStatus::Open if channel.disputed().is_some() => 0,
            ChannelStatus::Open
                if !is_spent(channel) && margin < channel.params().expiry_height =>
            {
                1
            }
            ChannelStatus::Open if !is_spent(channel) => 2,
            ChannelStatus::Confirming { .. } | ChannelStatus::Unfunded
                if channel.payable(tip) > channel.paid() =>
            {
                3
            }
            ChannelStatus::Confirming { .. } => 4,
            ChannelStatus::Unfunded => 5,
            ChannelStatus::Open => 6,
            ChannelStatus::Closing => 7,
            ChannelStatus::Settled { .. } | ChannelStatus::Closed { .. } => 8,
        };
        let over = |channel: &SubscriberChannel| {
            channel.finished() || channel.spent().is_some() || channel.given_up(tip)
        };
        self.at(url)
            .filter(|(_, channel)| !over(channel))
            .min_by_key(|(_, channel)| (rank(channel), channel.key_index()))
            .map(|(id, _)| *id)
    }

    /// What is to be done beside paying, the most urgent first.
    pub fn errands(&self, wants: &Wants<'_>) -> Vec<Errand> {
        let tip = self.book().tip();
        let funded = self.at(wants.url).filter(|(_, channel)| channel.funding_due(tip));
        let mut errands: Vec<_> = funded.map(|(id, _)| Errand::Fund(*id)).collect();
        errands.extend(self.left_behind(wants).map(Errand::Leave));
        errands.extend(self.next_channel(wants));
        let closing = self.at(wants.url).filter(|(_, channel)| {
            let unspent = channel.spent().is_none() && !channel.given_up(tip);
            channel.status(tip) == ChannelStatus::Closing && unspent
        });
        errands.extend(closing.map(|(id, _)| Errand::Close(*id)));
        errands
    }

    /// Octets that all payments that were ever signed bought, also those that a provider refused: it
    /// may claim them all the same.
    pub fn bought(&self) -> Octets {
        self.book().iter().fold(Octets(0), |sum, (_, channel)| sum.saturating_add(channel.bought()))
    }

    /// Sum of all payments, on all channels, and of what is owed again after another funding than
    /// the one that was paid on confirmed.
    pub fn spent(&self) -> Amount {
        self.book().iter().map(|(_, channel)| channel.promised()).sum()
    }

    /// What one channel may be paid in all, for all together to stay within `budget`.
    pub fn budget_of(&self, channel: &ChannelId, budget: Amount) -> Amount {
        let own = self.book().get(channel).map_or(Amount::ZERO, SubscriberChannel::promised);
        let elsewhere = self.spent().checked_sub(own).unwrap_or_default();
        budget.checked_sub(elsewhere).unwrap_or_default()
    }

    fn at<'a>(
        &'a self,
        url: &'a str,
    ) -> impl Iterator<Item = (&'a ChannelId, &'a SubscriberChannel)> {
        self.book().iter().filter(move |(_, channel)| channel.url() == url)
    }

    /// Channels that can be paid on, now or later.
    fn usable<'a>(&'a self, url: &'a str) -> Vec<(&'a ChannelId, &'a SubscriberChannel)> {
        let tip = self.book().tip();
        let usable = |channel: &SubscriberChannel| {
            matches!(
                channel.status(tip),
                ChannelStatus::Unfunded | ChannelStatus::Confirming { .. } | ChannelStatus::Open
            ) && !channel.given_up(tip)
        };
        self.at(url).filter(|(_, channel)| usable(channel)).collect()
    }

    fn next_channel(&self, wants: &Wants<'_>) -> Option<Errand> {
        let tip = self.book().tip();
        let spent = self.spent();
        let left = wants.budget.checked_sub(spent).unwrap_or_default();
        let usable = self.usable(wants.url);
        if usable.iter().any(|(_, channel)| channel.disputed().is_some()) {
            return None;
        }
        let mut lasting = usable.iter().filter(|(_, channel)| !is_spent(channel));
        let (last, others) = (lasting.next(), lasting.next());
        let Some((_, last)) = last else {
            let worth = if spent == Amount::ZERO { Amount::ONE_SAT } else { FURTHER_MIN };
            return (left >= worth).then_some(Errand::Open);
        };
        if others.is_some() {
            return None;
        }
        let params = last.params();
        let rest = params.payable().checked_sub(last.paid()).unwrap_or_default();
        let soon = CLAIM_MARGIN_BLOCKS + SUCCESSION_BLOCKS + params.confirmations;
        let expiring = tip.saturating_add(soon) >= params.expiry_height;
        // What is left of a channel that expires may not be used in time.
        let ahead = if expiring { Amount::ZERO } else { rest };
        let further = left.checked_sub(ahead).filter(|further| *further >= FURTHER_MIN)?;
        let low = rest < params.payable() / LOW_SHARE;
        (low || expiring).then_some(Errand::OpenNext(further))
    }

    /// A channel that is spent, once another one is there or the budget asks for one.
    fn left_behind(&self, wants: &Wants<'_>) -> Option<ChannelId> {
        let tip = self.book().tip();
        let left = wants.budget.checked_sub(self.spent()).unwrap_or_default();
        let usable = self.usable(wants.url);
        let open = |channel: &SubscriberChannel| channel.status(tip) == ChannelStatus::Open;
        let follows = usable.iter().any(|(_, channel)| open(channel) && !is_spent(channel));
        let (id, _) = usable.into_iter().find(|(_, channel)| {
            open(channel) && is_spent(channel) && channel.disputed().is_none()
        })?;
        (wants.acknowledged && (follows || left >= FURTHER_MIN)).then_some(*id)
    }
}

fn is_spent(channel: &SubscriberChannel) -> bool {
    channel.paid() >= channel.params().payable()
}

#[cfg(test)]
mod tests {
    use bitcoin::{
        Network, ScriptBuf, Transaction, WPubkeyHash, hashes::Hash as _, secp256k1::XOnlyPublicKey,
    };

    use super::*;
    use crate::channel::{
        Batch, ChannelParams, Durable, FUNDING_BUMP_BLOCKS, FUNDING_WINDOW_BLOCKS, SubscriberEvent,
        testing::{block, funding_tx, params, public_key, secp, secret_key, sign},
    };

    const URL: &str = "http://192.0.2.1:8434";

    struct Subscriber {
        buyer: Buyer,
        height: u32,
    }

    impl Subscriber {
        fn new() -> Self {
            let mut subscriber = Self { buyer: Buyer::new(Network::Regtest), height: 99 };
            subscriber.mine(vec![]);
            subscriber
        }

        fn act(
            &mut self,
            step: impl FnOnce(&mut Buyer, &mut Batch<SubscriberEvent, crate::buyer::Action>),
        ) {
            let mut out = Batch::default();
            step(&mut self.buyer, &mut out);
            let _ = out.release(&Durable::committed());
        }

        fn mine(&mut self, transactions: Vec<Transaction>) {
            self.height += 1;
            let height = self.height;
            let block = block(transactions, height);
            self.act(|buyer, out| buyer.connect(height, &block, out));
        }

        /// A channel of 100,000 sat that the next block funds; two blocks confirm it.
        fn open(&mut self, key: u8, expiry_height: u32) -> ChannelId {
            let params = ChannelParams {
                subscriber: public_key(key).into(),
                expiry_height,
                remainder_script: ScriptBuf::new_p2wpkh(&WPubkeyHash::hash(&[key])),
                ..params()
            };
            let (id, tx) = self.sign(key, params, self.height);
            self.mine(vec![tx]);
            id
        }

        /// A channel that was agreed on at a height, with a funding that no block holds.
        fn sign(
            &mut self,
            key: u8,
            params: ChannelParams,
            height: u32,
        ) -> (ChannelId, Transaction) {
            let id = params.id();
            let tx = funding_tx(&params, key);
            let (provider, _): (XOnlyPublicKey, _) = secret_key(2).x_only_public_key(&secp());
            self.act(|buyer, out| {
                buyer.negotiated(params, provider, URL.into(), height, out);
            });
            assert_eq!(self.errands(1_000_000).first(), Some(&Errand::Fund(id)));
            self.act(|buyer, out| assert!(buyer.funding_signed(id, tx.clone(), out)));
            (id, tx)
        }

        fn mine_until(&mut self, height: u32) {
            while self.height < height {
                self.mine(vec![]);
            }
        }

        fn pay(&mut self, id: ChannelId, key: u8, sum: u64) {
            let tip = self.buyer.book().tip();
            let sum = Amount::from_sat(sum);
            let message = self.buyer.book().get(&id).unwrap().payment(sum, tip).unwrap();
            let signature = sign(key, message);
            self.act(|buyer, out| buyer.payment_signed(id, sum, signature, out));
        }

        fn errands(&self, budget: u64) -> Vec<Errand> {
            let budget = Amount::from_sat(budget);
            self.buyer.errands(&Wants { url: URL, budget, acknowledged: true })
        }

        fn active(&self) -> Option<ChannelId> {
            self.buyer.active(URL)
        }
    }

    fn ready(subscriber: &mut Subscriber) -> ChannelId {
        let first = subscriber.open(1, 1_000);
        subscriber.mine(vec![]);
        first
    }

    const PAYABLE: u64 = 99_670;

    #[test]
    fn the_first_channel_is_opened_for_any_budget_and_for_none_without() {
        let subscriber = Subscriber::new();
        assert_eq!(subscriber.errands(1), [Errand::Open]);
        assert_eq!(subscriber.errands(0), []);
        assert_eq!(subscriber.active(), None);
    }

    #[test]
    fn the_next_one_is_opened_when_less_than_a_quarter_is_left_and_the_budget_needs_it() {
        let mut subscriber = Subscriber::new();
        let first = ready(&mut subscriber);
        assert_eq!(subscriber.active(), Some(first));
        let quarter = PAYABLE / 4;
        subscriber.pay(first, 1, PAYABLE - quarter);
        assert_eq!(subscriber.errands(1_000_000), []);
        subscriber.pay(first, 1, PAYABLE - quarter + 1);
        let least = PAYABLE + FURTHER_MIN.to_sat();
        assert_eq!(subscriber.errands(least - 1), []);
        assert_eq!(subscriber.errands(least), [Errand::OpenNext(FURTHER_MIN)]);
        assert_eq!(subscriber.errands(100_000), [], "a budget of what the channel holds");
    }

    #[test]
    fn a_second_takes_over_when_the_first_is_spent_which_is_then_left() {
        let mut subscriber = Subscriber::new();
        let first = ready(&mut subscriber);
        subscriber.pay(first, 1, 80_000);
        let second = subscriber.open(5, 2_000);
        assert_eq!(subscriber.errands(1_000_000), [], "one is on its way");
        subscriber.mine(vec![]);
        assert_eq!(subscriber.active(), Some(first), "the first is not spent");
        subscriber.pay(first, 1, PAYABLE);
        assert_eq!(subscriber.active(), Some(second));
        let budget = Amount::from_sat(1_000_000);
        let wants = Wants { url: URL, budget, acknowledged: false };
        assert_eq!(subscriber.buyer.errands(&wants), [], "the last payment is under way");
        assert_eq!(subscriber.errands(1_000_000), [Errand::Leave(first)]);
        subscriber.act(|buyer, out| buyer.close(first, out));
        assert_eq!(subscriber.errands(1_000_000), [Errand::Close(first)]);
        subscriber.pay(second, 5, 7);
        assert_eq!(subscriber.buyer.spent(), Amount::from_sat(PAYABLE + 7));
    }

    #[test]
    fn a_spent_channel_is_left_for_another_where_the_budget_allows_and_else_kept() {
        let mut subscriber = Subscriber::new();
        let first = ready(&mut subscriber);
        subscriber.pay(first, 1, PAYABLE);
        assert_eq!(subscriber.errands(PAYABLE + FURTHER_MIN.to_sat() - 1), []);
        let goes_on = subscriber.errands(PAYABLE + FURTHER_MIN.to_sat());
        assert_eq!(goes_on, [Errand::Leave(first), Errand::Open]);
    }

    #[test]
    fn the_next_one_is_opened_in_time_before_the_claim_margin_and_takes_over_just_before_it() {
        let mut subscriber = Subscriber::new();
        let first = ready(&mut subscriber);
        let margin = 1_000 - CLAIM_MARGIN_BLOCKS;
        while subscriber.height < margin - SUCCESSION_BLOCKS - 3 {
            subscriber.mine(vec![]);
        }
        assert_eq!(subscriber.errands(50_000), []);
        subscriber.mine(vec![]);
        assert_eq!(subscriber.errands(50_000), [Errand::OpenNext(Amount::from_sat(50_000))]);
        let second = subscriber.open(5, 3_000);
        while subscriber.height < margin - HANDOVER_BLOCKS - 1 {
            subscriber.mine(vec![]);
        }
        assert_eq!(subscriber.active(), Some(first));
        subscriber.mine(vec![]);
        assert_eq!(subscriber.active(), Some(second));
        assert_eq!(subscriber.errands(50_000), []);
        while subscriber.height < margin {
            subscriber.mine(vec![]);
        }
        assert_eq!(subscriber.active(), Some(second));
        assert_eq!(subscriber.errands(50_000), [Errand::Close(first)]);
    }

    #[test]
    fn p1_a_channel_whose_funding_never_confirms_gives_way_to_another_and_is_followed_on() {
        let mut subscriber = Subscriber::new();
        let params = ChannelParams { expiry_height: 3_000, ..params() };
        let (first, tx) = subscriber.sign(1, params, 100);
        let late = 100 + FUNDING_WINDOW_BLOCKS - 36;
        subscriber.mine_until(late - 1);
        assert_eq!(subscriber.active(), Some(first));
        assert_eq!(subscriber.errands(100_000), [Errand::Fund(first)]);
        subscriber.mine(vec![]);
        assert_eq!(subscriber.active(), None);
        assert_eq!(subscriber.errands(100_000), [Errand::Open]);
        assert_eq!(subscriber.buyer.unconfirmed(), []);
        subscriber.act(|buyer, out| buyer.close(first, out));
        assert_eq!(subscriber.errands(100_000), [Errand::Open], "nothing is asked for");
        subscriber.mine_until(2_999);
        subscriber.mine(vec![tx]);
        let due = subscriber.buyer.refunds_due();
        assert_eq!(due.first().map(|due| due.channel), Some(first), "it confirmed after all");
    }

    #[test]
    fn p1_terms_agreed_without_the_chain_count_from_the_height_that_the_provider_told() {
        let mut subscriber = Subscriber::new();
        let params = ChannelParams { expiry_height: 5_000, ..params() };
        let (id, tx) = subscriber.sign(1, params, 3_000);
        subscriber.height = 3_000;
        subscriber.mine(vec![]);
        assert_eq!(subscriber.buyer.unconfirmed(), [tx]);
        assert_eq!(subscriber.errands(100_000), [], "it is young");
        subscriber.mine_until(3_000 + FUNDING_BUMP_BLOCKS);
        assert_eq!(subscriber.errands(100_000), [Errand::Fund(id)]);
    }

    #[test]
    fn p9_what_is_owed_again_after_another_funding_confirmed_counts_as_spent() {
        let mut subscriber = Subscriber::new();
        let params = ChannelParams { unconfirmed_max: Amount::from_sat(50), ..params() };
        let (id, tx) = subscriber.sign(1, params, 100);
        let taken = crate::channel::funding_outpoint(
            subscriber.buyer.book().get(&id).unwrap().params(),
            &tx,
        );
        subscriber.act(|buyer, out| buyer.funding_taken(id, taken.unwrap(), out));
        subscriber.pay(id, 1, 40);
        let mut other = tx;
        other.output[0].value -= Amount::ONE_SAT;
        subscriber.act(|buyer, out| assert!(buyer.funding_signed(id, other.clone(), out)));
        subscriber.mine(vec![other]);
        subscriber.mine(vec![]);
        assert_eq!(subscriber.buyer.book().get(&id).unwrap().owed(), Some(Amount::from_sat(40)));
        assert_eq!(subscriber.buyer.spent(), Amount::from_sat(40));
        let budget = Amount::from_sat(100);
        assert_eq!(subscriber.buyer.budget_of(&id, budget), budget);
        let second = subscriber.open(5, 3_000);
        assert_eq!(subscriber.buyer.budget_of(&second, budget), Amount::from_sat(60));
        subscriber.pay(id, 1, 45);
        assert_eq!(subscriber.buyer.spent(), Amount::from_sat(45), "not paid twice");
        assert_eq!(subscriber.buyer.budget_of(&second, Amount::from_sat(44)), Amount::ZERO);
    }

    #[test]
    fn a_channel_that_its_provider_takes_no_payments_on_is_left_for_another() {
        for code in ["closed", "unknown-channel", "stale-payment"] {
            let mut subscriber = Subscriber::new();
            let first = ready(&mut subscriber);
            subscriber.pay(first, 1, 5);
            for passing in ["unconfirmed", "station-table-full"] {
                subscriber.act(|buyer, out| assert!(!buyer.payment_refused(first, passing, out)));
            }
            assert_eq!(subscriber.errands(100_000), []);
            subscriber.act(|buyer, out| assert!(buyer.payment_refused(first, code, out)));
            assert_eq!(subscriber.errands(100_000), [Errand::Open, Errand::Close(first)]);
            let second = subscriber.open(5, 2_000);
            subscriber.mine(vec![]);
            assert_eq!(subscriber.active(), Some(second));
        }
    }

    #[test]
    fn nothing_is_opened_with_who_billed_too_much() {
        let mut subscriber = Subscriber::new();
        let first = ready(&mut subscriber);
        subscriber.pay(first, 1, 90_000);
        let dispute = crate::payer::Dispute {
            reported: crate::units::Octets(2),
            counted: crate::units::Octets(1),
            tolerance: crate::units::Octets(0),
        };
        subscriber.act(|buyer, out| buyer.disputed(first, dispute, out));
        assert_eq!(subscriber.errands(1_000_000), []);
        assert_eq!(subscriber.active(), Some(first));
    }
}
