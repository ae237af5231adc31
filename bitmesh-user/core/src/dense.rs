//! Trees as small as they can be: nodes that were filled one entry at a time are a half to two thirds
//! full, and those that are made of what is sorted already are full.
//!
//! All that is packed together is taken apart before any of it is put together: what is new would
//! come to lie between what is old, and would keep the memory of it from being given back.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
};

/// What can be made anew, and will not change much then.
pub(crate) trait Pack {
    /// What is in it, in a piece or few.
    type Apart;

    /// Takes everything out.
    fn take_apart(&mut self) -> Self::Apart;
    /// Puts it back.
    fn put_together(&mut self, apart: Self::Apart);
}

impl<K: Ord, V> Pack for BTreeMap<K, V> {
    type Apart = Vec<(K, V)>;

    fn take_apart(&mut self) -> Self::Apart {
        mem::take(self).into_iter().collect()
    }

    fn put_together(&mut self, apart: Self::Apart) {
        *self = apart.into_iter().collect();
    }
}

impl<K: Ord> Pack for BTreeSet<K> {
    type Apart = Vec<K>;

    fn take_apart(&mut self) -> Self::Apart {
        mem::take(self).into_iter().collect()
    }

    fn put_together(&mut self, apart: Self::Apart) {
        *self = apart.into_iter().collect();
    }
}
