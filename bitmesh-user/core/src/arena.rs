//! Values that are found by a key, or at once by who remembers their spot: a search for a key as long as
//! ours is a handful of cache misses.

use std::collections::BTreeMap;

use crate::dense::Pack;

/// Where a value is for as long as it is there; nothing is there afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spot {
    at: u32,
    /// How many values had been there before.
    turn: u32,
}

#[derive(Clone, Debug)]
struct Slot<K, V> {
    turn: u32,
    held: Option<(K, V)>,
}

/// Values by key.
#[derive(Clone, Debug)]
pub(crate) struct Arena<K, V> {
    spots: BTreeMap<K, Spot>,
    slots: Vec<Slot<K, V>>,
    /// Slots that hold nothing.
    free: Vec<u32>,
}

impl<K, V> Default for Arena<K, V> {
    fn default() -> Self {
        Self { spots: BTreeMap::new(), slots: Vec::new(), free: Vec::new() }
    }
}

fn index(at: u32) -> usize {
    usize::try_from(at).unwrap_or(usize::MAX)
}

impl<K: Ord + Copy, V> Arena<K, V> {
    /// Where the value of a key is.
    pub(crate) fn spot(&self, key: &K) -> Option<Spot> {
        self.spots.get(key).copied()
    }

    pub(crate) fn contains_key(&self, key: &K) -> bool {
        self.spots.contains_key(key)
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.at(self.spot(key)?).map(|(_, value)| value)
    }

    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.at_mut(self.spot(key)?).map(|(_, value)| value)
    }

    /// What is at a spot, with its key.
    pub(crate) fn at(&self, spot: Spot) -> Option<(&K, &V)> {
        let room = self.slots.get(index(spot.at)).filter(|room| room.turn == spot.turn)?;
        room.held.as_ref().map(|(key, value)| (key, value))
    }

    pub(crate) fn at_mut(&mut self, spot: Spot) -> Option<(&K, &mut V)> {
        let room = self.slots.get_mut(index(spot.at)).filter(|room| room.turn == spot.turn)?;
        room.held.as_mut().map(|(key, value)| (&*key, value))
    }

    /// Puts a value in, in the place of an earlier one of the same key.
    ///
    /// # Panics
    /// When there are 2^32 of them.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Spot {
        if let Some(spot) = self.spot(&key) {
            if let Some((_, known)) = self.at_mut(spot) {
                *known = value;
            }
            return spot;
        }
        let at = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { turn: 0, held: None });
            u32::try_from(self.slots.len() - 1).expect("as many values as memory holds")
        });
        let mut spot = Spot { at, turn: 0 };
        if let Some(room) = self.slots.get_mut(index(at)) {
            spot.turn = room.turn;
            room.held = Some((key, value));
        }
        self.spots.insert(key, spot);
        spot
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let spot = self.spots.remove(key)?;
        let room = self.slots.get_mut(index(spot.at))?;
        room.turn = room.turn.wrapping_add(1);
        self.free.push(spot.at);
        room.held.take().map(|(_, value)| value)
    }

    /// Every key, in order.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &K> {
        self.spots.keys()
    }

    /// Every value, in the order of their spots.
    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.slots.iter().filter_map(|room| room.held.as_ref().map(|(_, value)| value))
    }

    /// Every value with its key, in the order of their spots.
    pub(crate) fn into_entries(self) -> impl Iterator<Item = (K, V)> {
        self.slots.into_iter().filter_map(|room| room.held)
    }
}

/// Spots stay as they are.
impl<K: Ord, V> Pack for Arena<K, V> {
    type Apart = <BTreeMap<K, Spot> as Pack>::Apart;

    fn take_apart(&mut self) -> Self::Apart {
        self.spots.take_apart()
    }

    fn put_together(&mut self, apart: Self::Apart) {
        self.spots.put_together(apart);
        self.slots.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_map_and_a_spot_is_that_of_one_value(
            steps in prop::collection::vec((0u8..8, prop::option::of(any::<u8>())), 0..60),
        ) {
            let (mut arena, mut map) = (Arena::default(), BTreeMap::new());
            let mut gone: Vec<Spot> = Vec::new();
            for (key, value) in steps {
                if let Some(value) = value {
                    let spot = arena.insert(key, value);
                    map.insert(key, value);
                    prop_assert_eq!(arena.at(spot), Some((&key, &value)));
                } else {
                    gone.extend(arena.spot(&key));
                    prop_assert_eq!(arena.remove(&key), map.remove(&key));
                }
                prop_assert!(arena.keys().eq(map.keys()));
                for (key, value) in &map {
                    prop_assert_eq!(arena.get(key), Some(value));
                    let spot = arena.spot(key).unwrap();
                    prop_assert!(!gone.contains(&spot));
                }
                prop_assert!(gone.iter().all(|spot| arena.at(*spot).is_none()));
            }
            let (mut values, mut known): (Vec<_>, Vec<_>) =
                (arena.values().copied().collect(), map.values().copied().collect());
            values.sort_unstable();
            known.sort_unstable();
            prop_assert_eq!(values, known);
            let apart = arena.take_apart();
            arena.put_together(apart);
            prop_assert!(arena.keys().eq(map.keys()));
            prop_assert_eq!(arena.into_entries().collect::<BTreeMap<_, _>>(), map);
        }
    }
}
