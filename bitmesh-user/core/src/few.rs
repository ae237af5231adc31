//! A map of a few entries, which takes no more memory than these: a node of a tree would have room
//! for eleven, and there are a hundred thousand maps of one.

use std::{mem, slice};

/// Entries in ascending order of their keys. A single one is in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Few<K, V> {
    One((K, V)),
    Others(Box<[(K, V)]>),
}

impl<K, V> Default for Few<K, V> {
    fn default() -> Self {
        Self::Others(Box::default())
    }
}

impl<K, V> From<Vec<(K, V)>> for Few<K, V> {
    fn from(mut all: Vec<(K, V)>) -> Self {
        match all.pop() {
            Some(only) if all.is_empty() => Self::One(only),
            last => {
                all.extend(last);
                Self::Others(all.into_boxed_slice())
            }
        }
    }
}

impl<K: Ord + Copy, V> Few<K, V> {
    fn all(&self) -> &[(K, V)] {
        match self {
            Self::One(only) => slice::from_ref(only),
            Self::Others(all) => all,
        }
    }

    fn all_mut(&mut self) -> &mut [(K, V)] {
        match self {
            Self::One(only) => slice::from_mut(only),
            Self::Others(all) => all,
        }
    }

    fn take(&mut self, more: usize) -> Vec<(K, V)> {
        match mem::take(self) {
            Self::One(only) => {
                let mut all = Vec::with_capacity(1 + more);
                all.push(only);
                all
            }
            Self::Others(all) => {
                let mut all = all.into_vec();
                all.reserve_exact(more);
                all
            }
        }
    }

    fn find(&self, key: &K) -> Result<usize, usize> {
        self.all().binary_search_by(|(known, _)| known.cmp(key))
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        let at = self.find(key).ok()?;
        self.all().get(at).map(|(_, value)| value)
    }

    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let at = self.find(key).ok()?;
        self.all_mut().get_mut(at).map(|(_, value)| value)
    }

    /// Puts an entry in, in the place of an earlier one, which it returns.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        if let Some(known) = self.get_mut(&key) {
            return Some(mem::replace(known, value));
        }
        if self.is_empty() {
            *self = Self::One((key, value));
            return None;
        }
        let at = self.find(&key).unwrap_or_else(|at| at);
        let mut all = self.take(1);
        all.insert(at, (key, value));
        *self = all.into();
        None
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let at = self.find(key).ok()?;
        let mut all = self.take(0);
        let (_, value) = all.remove(at);
        *self = all.into();
        Some(value)
    }

    /// The value, where there is one alone.
    pub(crate) fn only(&self) -> Option<&V> {
        match self {
            Self::One((_, value)) => Some(value),
            Self::Others(_) => None,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.all().is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.all().iter().map(|(key, value)| (key, value))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&K, &mut V)> {
        self.all_mut().iter_mut().map(|(key, value)| (&*key, value))
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &K> {
        self.all().iter().map(|(key, _)| key)
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.all().iter().map(|(_, value)| value)
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.all_mut().iter_mut().map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_map(steps in prop::collection::vec((0u8..8, prop::option::of(any::<u8>())), 0..40)) {
            let (mut few, mut map) = (Few::default(), BTreeMap::new());
            for (key, value) in steps {
                let (ours, theirs) = if let Some(value) = value {
                    (few.insert(key, value), map.insert(key, value))
                } else {
                    (few.remove(&key), map.remove(&key))
                };
                prop_assert_eq!(ours, theirs);
                prop_assert_eq!(few.get(&key), map.get(&key));
                prop_assert!(few.iter().eq(map.iter()));
                prop_assert_eq!(few.is_empty(), map.is_empty());
                prop_assert_eq!(few.only(), map.values().next().filter(|_| map.len() == 1));
            }
        }
    }
}
