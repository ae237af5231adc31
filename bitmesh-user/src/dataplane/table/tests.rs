//! The table against a plain map, with the kernel's part played on the same memory.

use bitmesh_common::{Mac, credit};
use proptest::prelude::*;

use super::*;

const SLOTS: u32 = 64;
const SEED: u64 = 0x5eed;

fn key(n: u8) -> StationKey {
    StationKey::new(Mac::from_parts(0x0200, n.into()), 0).unwrap()
}

fn used(octets: u64) -> StationUsage {
    StationUsage { up: Counts { octets, ..Counts::default() }, down: Counts::default() }
}

fn table(slots: u32) -> Table {
    let memory = Memory::anonymous(Table::words(slots).unwrap()).unwrap();
    Table::new(memory, SEED, Instant::now()).unwrap()
}

impl Table {
    /// What the kernel does with a frame of `octets`.
    fn frame(&self, key: StationKey, octets: u64, direction: usize) -> Option<bool> {
        let mut probe = Probe::new(key, self.seed);
        for _ in 0..PROBE_LIMIT {
            let slot = probe.next(self.mask);
            match self.load(slot, KEY) {
                raw if raw == key.raw() => {
                    let (up, down) = (self.load(slot, UP), self.load(slot, DOWN));
                    let left = credit(self.load(slot, LIMIT), up, down);
                    let passes = left >= octets.cast_signed();
                    let first = direction + if passes { 0 } else { 2 };
                    self.at(slot, first).fetch_add(octets, Ordering::Relaxed);
                    self.at(slot, first + 1).fetch_add(1, Ordering::Relaxed);
                    return Some(passes);
                }
                StationKey::EMPTY => return None,
                _ => {}
            }
        }
        None
    }
}

#[derive(Clone, Debug)]
enum Event {
    Insert { station: u8, used: u64, bought: u64 },
    Remove { station: u8 },
    SetBought { station: u8, bought: u64 },
    Frame { station: u8, octets: u64, up: bool },
    Restart,
    Wait,
}

fn event() -> impl Strategy<Value = Event> {
    let station = 0..40u8;
    let amount = 0..10_000u64;
    prop_oneof![
        4 => (station.clone(), amount.clone(), amount.clone())
            .prop_map(|(station, used, bought)| Event::Insert { station, used, bought }),
        2 => station.clone().prop_map(|station| Event::Remove { station }),
        2 => (station.clone(), amount)
            .prop_map(|(station, bought)| Event::SetBought { station, bought }),
        12 => (station, 20..1_500u64, any::<bool>())
            .prop_map(|(station, octets, up)| Event::Frame { station, octets, up }),
        1 => Just(Event::Restart),
        2 => Just(Event::Wait),
    ]
}

proptest! {
    #[test]
    fn the_table_behaves_as_a_map_whatever_happens(
        events in proptest::collection::vec(event(), 1..400)
    ) {
        let mut table = table(SLOTS);
        let mut now = Instant::now();
        let mut model: HashMap<StationKey, (u64, StationUsage)> = HashMap::new();
        let mut seen: HashMap<StationKey, StationUsage> = HashMap::new();
        for event in events {
            match event {
                Event::Insert { station, used: octets, bought } => {
                    let key = key(station);
                    match table.insert(key, used(octets), bought, now) {
                        Ok(()) => {
                            let before = model.insert(key, (bought, used(octets)));
                            prop_assert!(before.is_none());
                        }
                        Err(DataplaneError::AlreadyThere { .. }) => {
                            prop_assert!(model.contains_key(&key));
                        }
                        Err(error) => {
                            let full = matches!(error, DataplaneError::TableFull { .. });
                            prop_assert!(full, "{error}");
                            prop_assert!(!model.contains_key(&key));
                        }
                    }
                }
                Event::Remove { station } => {
                    let expected = model.remove(&key(station)).map(|(_, usage)| usage);
                    prop_assert_eq!(table.remove(key(station), now), expected);
                }
                Event::SetBought { station, bought } => {
                    let done = table.set_bought(key(station), bought);
                    prop_assert_eq!(done.is_ok(), model.contains_key(&key(station)));
                    if let Some((limit, _)) = model.get_mut(&key(station)) {
                        *limit = bought.max(*limit);
                    }
                }
                Event::Frame { station, octets, up } => {
                    let direction = if up { UP } else { DOWN };
                    let passed = table.frame(key(station), octets, direction);
                    let expected = model.get_mut(&key(station)).map(|(bought, usage)| {
                        let passes = usage.octets() + octets <= *bought;
                        let counts = if up { &mut usage.up } else { &mut usage.down };
                        if passes {
                            counts.octets += octets;
                            counts.frames += 1;
                        } else {
                            counts.refused_octets += octets;
                            counts.refused_frames += 1;
                        }
                        passes
                    });
                    prop_assert_eq!(passed, expected);
                }
                Event::Restart => {
                    table = Table::new(table.memory, SEED, now).unwrap();
                    seen.clear();
                }
                Event::Wait => now += QUARANTINE,
            }
            prop_assert_eq!(table.len(), model.len());
            let moved = table.moved();
            let changed = table.changed();
            prop_assert_eq!(&moved, &changed);
            for (key, usage) in changed {
                prop_assert_ne!(seen.insert(key, usage), Some(usage), "nothing changed");
            }
            seen.retain(|key, _| model.contains_key(key));
            for (key, (_, usage)) in &model {
                prop_assert_eq!(seen.get(key), Some(usage), "a change that was not seen");
            }
            for (key, bought, usage) in table.stations() {
                prop_assert_eq!(model.get(&key), Some(&(bought, usage)));
            }
        }
    }
}

#[test]
fn a_table_is_full_when_half_of_it_is_taken() {
    let mut table = table(16);
    let now = Instant::now();
    for n in 1..=8 {
        table.insert(key(n), StationUsage::default(), 1, now).unwrap();
    }
    let full = table.insert(key(9), StationUsage::default(), 1, now);
    assert!(matches!(full, Err(DataplaneError::TableFull { stations: 8, slots: 16 })));
    assert_eq!(table.frame(key(8), 1, UP), Some(true));
}

#[test]
fn a_removed_slot_rests_before_it_is_used_again() {
    let mut table = table(1);
    let now = Instant::now();
    table.insert(key(1), StationUsage::default(), 100, now).unwrap();
    let then = now + Duration::from_nanos(1);
    table.remove(key(1), then).unwrap();
    assert!(table.insert(key(2), StationUsage::default(), 100, now + QUARANTINE).is_err());
    table.insert(key(2), StationUsage::default(), 100, then + QUARANTINE).unwrap();
    assert_eq!(table.usage(key(2)), Some(StationUsage::default()));
}

#[test]
fn a_station_that_used_more_than_it_bought_gets_nothing_through() {
    let mut table = table(SLOTS);
    table.insert(key(1), used(1_000), 900, Instant::now()).unwrap();
    assert_eq!(table.frame(key(1), 20, DOWN), Some(false));
    table.set_bought(key(1), 1_020).unwrap();
    assert_eq!(table.frame(key(1), 21, DOWN), Some(false));
    assert_eq!(table.frame(key(1), 20, DOWN), Some(true));
    assert_eq!(table.usage(key(1)).unwrap().octets(), 1_020);
}

#[test]
fn a_lowered_limit_holds_at_once_and_takes_no_count_back() {
    let mut table = table(SLOTS);
    table.insert(key(1), used(1_000), 9_000, Instant::now()).unwrap();
    assert_eq!(table.frame(key(1), 100, DOWN), Some(true));
    table.set_limit(key(1), 1_200).unwrap();
    assert_eq!(table.frame(key(1), 101, UP), Some(false));
    assert_eq!(table.frame(key(1), 100, UP), Some(true));
    table.set_limit(key(1), 0).unwrap();
    assert_eq!(table.frame(key(1), 1, UP), Some(false));
    assert_eq!(table.usage(key(1)).unwrap().octets(), 1_200);
    assert!(table.set_limit(key(1), BOUGHT_LIMIT + 1).is_err());
    assert!(table.set_limit(key(2), 1).is_err());
}

#[test]
fn what_was_bought_never_shrinks_and_has_a_bound() {
    let mut table = table(SLOTS);
    table.insert(key(1), StationUsage::default(), 500, Instant::now()).unwrap();
    table.set_bought(key(1), 400).unwrap();
    assert_eq!(table.stations().next().unwrap().1, 500);
    assert!(table.set_bought(key(1), BOUGHT_LIMIT).is_ok());
    assert!(table.set_bought(key(1), BOUGHT_LIMIT + 1).is_err());
}

#[test]
fn what_somebody_else_did_to_the_table_is_seen_and_strays_are_off_again() {
    let (mut table, now) = (table(SLOTS), Instant::now());
    for n in 1..=4 {
        table.insert(key(n), used(10), 1_000, now).unwrap();
    }
    let calm = table.look(0, SLOTS, now);
    assert_eq!((calm.there.len(), calm.lost.len(), calm.strays.len()), (4, 0, 0));
    let place = |table: &Table, n| *table.places.get(&key(n)).unwrap();
    let (one, two, three) = (place(&table, 1), place(&table, 2), place(&table, 3));
    table.frame(key(1), 500, UP);
    table.store(one, KEY, StationKey::REMOVED, Ordering::Release);
    table.store(two, KEY, key(9).raw(), Ordering::Release);
    table.store(three, LIMIT, 5_000, Ordering::Release);
    let mut seen = Sight::default();
    for from in (0..SLOTS).step_by(7) {
        seen.append(table.look(from, 7, now));
    }
    seen.lost.sort_unstable_by_key(|(key, _)| *key);
    assert_eq!(seen.lost, [(key(1), used_frame(510)), (key(2), used(10))]);
    assert_eq!(seen.strays, [(key(9), 1_000)]);
    let limit = seen.there.iter().find(|(known, ..)| *known == key(3)).unwrap().1;
    assert_eq!((seen.there.len(), limit), (2, 5_010));
    assert_eq!(table.frame(key(9), 20, UP), None);
    // They can be put in again, and go on where they were.
    table.insert(key(1), seen.lost[0].1, 1_000, now).unwrap();
    assert_eq!(table.usage(key(1)), Some(used_frame(510)));
    assert_eq!(table.look(0, SLOTS, now).lost, []);
}

fn used_frame(octets: u64) -> StationUsage {
    StationUsage { up: Counts { octets, frames: 1, ..Counts::default() }, down: Counts::default() }
}
