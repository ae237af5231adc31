//! What of a journal may be told in fewer events, so that it comes to the same.

use bitcoin::Amount;

use super::{ProviderEvent, SubscriberEvent};

/// An event that a store may keep together with others.
pub trait Compact: Clone {
    /// Takes in the event that follows it in its channel's journal, where one can stand for both;
    /// else gives that back.
    #[must_use = "an event that was not taken in is lost"]
    fn absorb(&mut self, next: Self) -> Option<Self>;

    /// Index of the key that a channel took, in the event that begins it. The highest one must stay
    /// known, so that no key is taken twice.
    fn key_index(&self) -> Option<u32>;
}

impl Compact for ProviderEvent {
    fn absorb(&mut self, next: Self) -> Option<Self> {
        replace(self, next, |event| match event {
            Self::Paid { paid, earlier, .. } => Some((*paid, earlier)),
            _ => None,
        })
    }

    fn key_index(&self) -> Option<u32> {
        match self {
            Self::Opened { key_index, .. } => Some(*key_index),
            _ => None,
        }
    }
}

impl Compact for SubscriberEvent {
    fn absorb(&mut self, next: Self) -> Option<Self> {
        replace(self, next, |event| match event {
            Self::PaymentSigned { paid, earlier, .. } => Some((*paid, earlier)),
            _ => None,
        })
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

/// A payment's sum, and how many payments before it the event stands for.
type Payment<'a> = (Amount, &'a mut u64);

/// Puts a payment in the place of a smaller one before it, which it then stands for, too; else gives
/// it back.
fn replace<E>(
    last: &mut E,
    mut next: E,
    payment: for<'a> fn(&'a mut E) -> Option<Payment<'a>>,
) -> Option<E> {
    if let (Some((paid, earlier)), Some((sum, between))) = (payment(last), payment(&mut next))
        && paid < sum
    {
        *between = between.saturating_add(1).saturating_add(*earlier);
        *last = next;
        return None;
    }
    Some(next)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
pub(super) fn is_zero(number: &u64) -> bool {
    *number == 0
}
