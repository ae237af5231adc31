//! What of a journal may be told in fewer events, so that it comes to the same.

use bitcoin::Amount;

use super::{ProviderEvent, SubscriberEvent};

/// What of a payment the one that follows it has to know to stand for both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally {
    /// Sum of all payments.
    pub paid: Amount,
    /// Payments right before it that it stands for, too.
    pub earlier: u64,
}

/// An event that a store may keep together with others.
pub trait Compact: Clone {
    /// Of a payment.
    fn tally(&self) -> Option<Tally>;

    /// Stands for the payment right before it in its channel's journal, too, if it is one of more.
    /// Otherwise it stays as it is.
    fn stand_for(&mut self, before: Tally) -> bool;

    /// Takes in the event that follows it in its channel's journal, where one can stand for both;
    /// else gives that back.
    #[must_use = "an event that was not taken in is lost"]
    fn absorb(&mut self, mut next: Self) -> Option<Self> {
        if self.tally().is_some_and(|before| next.stand_for(before)) {
            *self = next;
            return None;
        }
        Some(next)
    }

    /// Index of the key that a channel took, in the event that begins it. The highest one must stay
    /// known, so that no key is taken twice.
    fn key_index(&self) -> Option<u32>;
}

impl Compact for ProviderEvent {
    fn tally(&self) -> Option<Tally> {
        match *self {
            Self::Paid { paid, earlier, .. } => Some(Tally { paid, earlier }),
            _ => None,
        }
    }

    fn stand_for(&mut self, before: Tally) -> bool {
        match self {
            Self::Paid { paid, earlier, .. } => add(*paid, earlier, before),
            _ => false,
        }
    }

    fn key_index(&self) -> Option<u32> {
        match self {
            Self::Opened { key_index, .. } => Some(*key_index),
            _ => None,
        }
    }
}

impl Compact for SubscriberEvent {
    fn tally(&self) -> Option<Tally> {
        match *self {
            Self::PaymentSigned { paid, earlier, .. } => Some(Tally { paid, earlier }),
            _ => None,
        }
    }

    fn stand_for(&mut self, before: Tally) -> bool {
        match self {
            Self::PaymentSigned { paid, earlier, .. } => add(*paid, earlier, before),
            _ => false,
        }
    }

    fn key_index(&self) -> Option<u32> {
        match self {
            Self::Negotiated { key_index, .. } | Self::Restored { key_index, .. } => {
                Some(*key_index)
            }
            _ => None,
        }
    }
}

/// Adds the smaller payment before one of `paid` to those that it stands for.
fn add(paid: Amount, earlier: &mut u64, before: Tally) -> bool {
    let more = before.paid < paid;
    if more {
        *earlier = earlier.saturating_add(1).saturating_add(before.earlier);
    }
    more
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
pub(super) fn is_zero(number: &u64) -> bool {
    *number == 0
}
