//! Trees as small as they can be: nodes that were filled one entry at a time are a half to two thirds
//! full, and those that are made of what is sorted already are full.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
};

/// Makes a map anew that will not change much.
pub(crate) fn pack<K: Ord, V>(map: &mut BTreeMap<K, V>) {
    *map = mem::take(map).into_iter().collect();
}

/// The same, of a set.
pub(crate) fn pack_set<K: Ord>(set: &mut BTreeSet<K>) {
    *set = mem::take(set).into_iter().collect();
}
