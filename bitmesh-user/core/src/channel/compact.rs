//! What of a journal may be told in fewer events, so that it comes to the same.

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
        match (&mut *self, next) {
            (
                Self::Paid { paid, earlier, .. },
                Self::Paid { paid: sum, signature, earlier: between },
            ) if *paid < sum => {
                let earlier = earlier.saturating_add(1).saturating_add(between);
                *self = Self::Paid { paid: sum, signature, earlier };
                None
            }
            (_, next) => Some(next),
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
    fn absorb(&mut self, next: Self) -> Option<Self> {
        match (&mut *self, next) {
            (
                Self::PaymentSigned { paid, earlier, .. },
                Self::PaymentSigned { paid: sum, signature, earlier: between },
            ) if *paid < sum => {
                let earlier = earlier.saturating_add(1).saturating_add(between);
                *self = Self::PaymentSigned { paid: sum, signature, earlier };
                None
            }
            (_, next) => Some(next),
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

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
pub(super) fn is_zero(number: &u64) -> bool {
    *number == 0
}
