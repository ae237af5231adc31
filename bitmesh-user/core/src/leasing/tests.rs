//! Leases against a kernel played in memory: no leak and no stall, whatever comes when.

use std::collections::{BTreeSet, VecDeque};

use proptest::prelude::*;

use super::*;

/// The largest frame of the model, in octets.
const FRAME: u64 = 1_500;

fn station(n: u8) -> Station {
    Station::new([2, 0, 0, 0, 0, n], 0).unwrap()
}

/// What the kernel does, split where it really is split: a frame is checked, then counted.
#[derive(Default)]
struct Kernel {
    limit: BTreeMap<Station, u64>,
    used: BTreeMap<Station, u64>,
    refused: BTreeMap<Station, u64>,
    /// Frames that a CPU has let pass and not counted yet.
    in_flight: Vec<(Station, u64)>,
    cpus: usize,
}

impl Kernel {
    fn frame(&mut self, station: Station, octets: u64) -> bool {
        let used = self.used.get(&station).copied().unwrap_or(0);
        let passes = self.limit.get(&station).is_some_and(|limit| used + octets <= *limit);
        if passes {
            self.in_flight.push((station, octets));
            if self.in_flight.len() > self.cpus {
                self.count_oldest();
            }
        } else {
            *self.refused.entry(station).or_default() += octets;
        }
        passes
    }

    fn count_oldest(&mut self) {
        if !self.in_flight.is_empty() {
            let (station, octets) = self.in_flight.remove(0);
            *self.used.entry(station).or_default() += octets;
        }
    }

    fn forwarded(&self) -> u64 {
        self.used.values().sum::<u64>() + self.in_flight.iter().map(|(_, n)| n).sum::<u64>()
    }

    fn reading(&self, station: Station) -> (Station, Octets, Octets) {
        let of = |counts: &BTreeMap<Station, u64>| counts.get(&station).copied().unwrap_or(0);
        (station, Octets(of(&self.used)), Octets(of(&self.refused)))
    }
}

/// An account, a kernel, and what is on its way between them.
struct World {
    leases: Leases,
    kernel: Kernel,
    stations: Vec<Station>,
    total: u64,
    changes: VecDeque<Change>,
    late: Vec<(Station, Octets, Octets)>,
    confirming: BTreeSet<Station>,
}

impl World {
    fn new(stations: u8, cpus: usize) -> Self {
        let stations: Vec<_> = (1..=stations).map(station).collect();
        let mut leases = Leases::default();
        for station in &stations {
            leases.join(*station, Octets(0), Octets(0), Octets(0));
        }
        let kernel = Kernel { cpus, ..Kernel::default() };
        let (changes, late, confirming) = Default::default();
        Self { leases, kernel, stations, total: 0, changes, late, confirming }
    }

    fn decide(&mut self) {
        let changes = self.leases.share(Octets(self.total));
        self.changes.extend(changes);
    }

    fn look(&mut self) {
        for station in self.stations.clone() {
            let (station, used, refused) = self.kernel.reading(station);
            self.leases.read(station, used, refused);
        }
        self.decide();
        self.leases.forget();
    }

    /// Does what was decided first; when nothing is left to do, what was reclaimed is read.
    fn perform_one(&mut self) {
        match self.changes.pop_front() {
            Some(Change::Grant { station, limit, .. }) => {
                let held = self.kernel.limit.entry(station).or_default();
                *held = limit.0.max(*held);
            }
            Some(Change::Reclaim { station, limit }) => {
                self.kernel.limit.insert(station, limit.0);
                self.confirming.insert(station);
            }
            None => {}
        }
        if self.changes.is_empty() && !self.confirming.is_empty() {
            for station in self.stations.clone() {
                let (station, used, refused) = self.kernel.reading(station);
                self.leases.read(station, used, refused);
            }
            for station in std::mem::take(&mut self.confirming) {
                let (_, used, refused) = self.kernel.reading(station);
                self.leases.reclaimed(station, used, refused);
            }
            self.decide();
        }
    }

    fn perform_all(&mut self) {
        while !self.changes.is_empty() {
            self.perform_one();
        }
    }

    /// Everyone takes all that the kernel lets it, before and after each thing that is still to do.
    fn drain(&mut self) {
        loop {
            for station in self.stations.clone() {
                for octets in [FRAME, 20, 1] {
                    while self.kernel.frame(station, octets) {}
                }
            }
            if self.changes.is_empty() {
                return;
            }
            self.perform_one();
        }
    }

    fn credit(&self) -> u64 {
        self.total.saturating_sub(self.kernel.forwarded())
    }
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Frames {
        station: usize,
        octets: u64,
        count: u8,
    },
    Count,
    Pay {
        octets: u64,
    },
    Look,
    /// A reading is taken and delivered later, if ever.
    Take {
        station: usize,
    },
    Deliver {
        which: usize,
    },
    Perform {
        steps: u8,
    },
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => (0usize..16, 20..=FRAME, 1u8..60)
            .prop_map(|(station, octets, count)| Event::Frames { station, octets, count }),
        2 => Just(Event::Count),
        2 => prop_oneof![1u64..5_000, 1u64..300_000].prop_map(|octets| Event::Pay { octets }),
        3 => Just(Event::Look),
        1 => (0usize..16).prop_map(|station| Event::Take { station }),
        1 => (0usize..64).prop_map(|which| Event::Deliver { which }),
        6 => (1u8..8).prop_map(|steps| Event::Perform { steps }),
    ]
}

fn play(world: &mut World, event: Event) {
    let at = |world: &World, n: usize| world.stations[n % world.stations.len()];
    match event {
        Event::Frames { station, octets, count } => {
            let station = at(world, station);
            for _ in 0..count {
                world.kernel.frame(station, octets);
            }
        }
        Event::Count => world.kernel.count_oldest(),
        Event::Pay { octets } => {
            world.total += octets;
            world.decide();
        }
        Event::Look => world.look(),
        Event::Take { station } => {
            let reading = world.kernel.reading(at(world, station));
            world.late.push(reading);
        }
        Event::Deliver { which } => {
            if !world.late.is_empty() {
                // It stays: it may come again.
                let (station, used, refused) = world.late[which % world.late.len()];
                world.leases.read(station, used, refused);
                world.decide();
            }
        }
        Event::Perform { steps } => (0..steps).for_each(|_| world.perform_one()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn never_an_octet_more_than_was_bought_passes(
        stations in 1u8..=16,
        events in prop::collection::vec(event(), 1..200),
    ) {
        let mut world = World::new(stations, 0);
        for event in events {
            play(&mut world, event);
            prop_assert!(world.kernel.forwarded() <= world.total);
        }
        world.drain();
        prop_assert!(world.kernel.forwarded() <= world.total);
    }

    #[test]
    fn cpus_that_count_late_overshoot_each_limit_by_a_frame_and_it_is_not_given_twice(
        stations in 1u8..=16,
        cpus in 1usize..=8,
        events in prop::collection::vec(event(), 1..200),
    ) {
        let mut world = World::new(stations, cpus);
        let slack = (u64::from(stations) + 1) * u64::try_from(cpus).unwrap() * FRAME;
        for event in events {
            play(&mut world, event);
            let forwarded = world.kernel.forwarded();
            prop_assert!(forwarded <= world.total + slack, "{forwarded} of {}", world.total);
        }
        // Once all is counted and read, what is still held fits into what is left.
        (0..cpus).for_each(|_| world.kernel.count_oldest());
        world.look();
        world.perform_all();
        let held: u64 = world.stations.iter().map(|s| world.leases.held(*s).0).sum();
        prop_assert!(held <= world.credit(), "{held} of {}", world.credit());
    }

    #[test]
    fn who_wants_a_frame_gets_it_within_two_looks_as_long_as_there_is_credit_for_all_who_want(
        stations in 2u8..=16,
        events in prop::collection::vec(event(), 1..120),
        wanting in prop::collection::btree_set(0usize..16, 1..16),
        paid in 1u64..1_000_000,
    ) {
        let mut world = World::new(stations, 0);
        for event in events {
            play(&mut world, event);
        }
        world.total += paid;
        let wanting: BTreeSet<_> =
            wanting.into_iter().map(|n| world.stations[n % world.stations.len()]).collect();
        let mut passed = BTreeMap::new();
        let each = world.credit() / u64::try_from(wanting.len()).unwrap();
        for _ in 0..2 {
            for station in &wanting {
                *passed.entry(*station).or_insert(false) |= world.kernel.frame(*station, FRAME);
            }
            world.look();
            world.perform_all();
        }
        for station in &wanting {
            *passed.entry(*station).or_insert(false) |= world.kernel.frame(*station, FRAME);
        }
        // Others may have been busy just before, and count as such for a moment.
        let busy = CRUMB_OCTETS * u64::from(stations);
        if world.credit() > busy && each > busy {
            prop_assert!(passed.values().all(|passed| *passed), "{passed:?} of {}", world.credit());
        }
    }

    #[test]
    fn credit_is_used_up_to_less_than_a_frame_whoever_wants_it(
        stations in 1u8..=16,
        events in prop::collection::vec(event(), 1..120),
        wanting in prop::collection::btree_set(0usize..16, 1..16),
    ) {
        let mut world = World::new(stations, 0);
        for event in events {
            play(&mut world, event);
        }
        let wanting: Vec<_> =
            wanting.into_iter().map(|n| world.stations[n % world.stations.len()]).collect();
        let mut idle_looks = 0;
        while idle_looks < 40 {
            let before = world.kernel.forwarded();
            for station in &wanting {
                while world.kernel.frame(*station, FRAME) {}
            }
            world.look();
            world.perform_all();
            idle_looks = if world.kernel.forwarded() == before { idle_looks + 1 } else { 0 };
        }
        prop_assert!(world.credit() < FRAME, "{} octets are stuck: {:?}", world.credit(), world.leases);
    }
}

fn grants(changes: &[Change]) -> Vec<(Station, u64)> {
    let grant = |change: &Change| match change {
        Change::Grant { station, limit, .. } => Some((*station, limit.0)),
        Change::Reclaim { .. } => None,
    };
    changes.iter().filter_map(grant).collect()
}

#[test]
fn a_station_alone_has_all_credit_and_nothing_is_taken_back() {
    let mut leases = Leases::default();
    leases.join(station(1), Octets(0), Octets(0), Octets(0));
    assert_eq!(grants(&leases.share(Octets(9_000))), [(station(1), 9_000)]);
    leases.read(station(1), Octets(8_999), Octets(0));
    assert_eq!(leases.share(Octets(9_000)), []);
    let [Change::Grant { limit: Octets(9_001), low: Octets(0), .. }] =
        leases.share(Octets(9_001))[..]
    else {
        panic!("one more octet was bought");
    };
}

#[test]
fn what_a_station_used_before_it_came_is_not_the_accounts() {
    let mut leases = Leases::default();
    leases.join(station(1), Octets(500), Octets(500), Octets(0));
    assert_eq!(grants(&leases.share(Octets(9_000))), [(station(1), 9_500)]);
    leases.read(station(1), Octets(700), Octets(0));
    assert_eq!(leases.used(), Octets(200));
}

#[test]
fn what_is_reclaimed_is_given_on_only_after_the_counter_was_read() {
    let mut leases = Leases::default();
    leases.join(station(1), Octets(0), Octets(0), Octets(0));
    leases.share(Octets(1_000_000));
    leases.join(station(2), Octets(0), Octets(0), Octets(0));
    let changes = leases.share(Octets(1_000_000));
    let [Change::Reclaim { station: from, limit: Octets(500_000) }] = changes[..] else {
        panic!("{changes:?}");
    };
    assert_eq!(from, station(1));
    assert_eq!(leases.share(Octets(1_000_000)), [], "not before it is confirmed");
    // It used 600,000 before the limit was lowered: that is gone.
    leases.reclaimed(station(1), Octets(600_000), Octets(0));
    assert_eq!(grants(&leases.share(Octets(1_000_000))).len(), 2);
    let held = leases.held(station(1)).0 + leases.held(station(2)).0;
    assert_eq!(held, 400_000, "{leases:?}");
    assert!(leases.held(station(2)) > Octets(0));
}

#[test]
fn the_busy_one_has_nearly_all_and_the_idle_one_enough_to_begin() {
    let mut leases = Leases::default();
    for n in [1, 2] {
        leases.join(station(n), Octets(0), Octets(0), Octets(0));
    }
    let mut total = 50 << 20;
    leases.share(Octets(total));
    // A gigabit a second uses 12.5 MB between two looks.
    let mut used = 0;
    for _ in 0..20 {
        used += 12_500_000;
        total += 12_500_000;
        leases.read(station(1), Octets(used), Octets(0));
        for change in leases.share(Octets(total)) {
            if let Change::Reclaim { station, .. } = change {
                let used = if station == self::station(1) { used } else { 0 };
                leases.reclaimed(station, Octets(used), Octets(0));
            }
        }
        leases.share(Octets(total));
        leases.forget();
        assert!(leases.held(station(1)) > Octets(12_500_000), "{:?}", leases.held(station(1)));
        assert!(leases.held(station(2)) >= Octets(FLOOR_OCTETS), "{:?}", leases.held(station(2)));
    }
    assert!(leases.held(station(2)) < Octets(2 * FLOOR_OCTETS), "{:?}", leases.held(station(2)));
}

#[test]
fn who_begins_beside_a_busy_one_is_not_crowded_out() {
    let mut leases = Leases::default();
    for n in [1, 2, 3] {
        leases.join(station(n), Octets(0), Octets(0), Octets(0));
    }
    // The first could use all there is, the second a fifth of that; the third is idle.
    leases.read(station(1), Octets(1_000_000), Octets(0));
    leases.read(station(2), Octets(200_000), Octets(0));
    let credit = 900_000;
    let targets = leases.targets(credit);
    assert_eq!(targets.values().sum::<u64>(), credit);
    let of = |n| targets[&station(n)];
    assert!(of(1) == of(2) || of(1) == of(2) + 1, "{targets:?}");
    assert!(of(3) > 0 && of(3) <= FLOOR_OCTETS, "{targets:?}");
    // With enough for both, each has room to grow fourfold, and the rest goes by need.
    let targets = leases.targets(9_000_000);
    assert_eq!(targets.values().sum::<u64>(), 9_000_000);
    let of = |n| targets[&station(n)];
    assert!(of(2) > HEADROOM * 200_000 && of(1) > HEADROOM * 1_000_000, "{targets:?}");
    assert!(of(1) > of(2) && of(2) > of(3), "{targets:?}");
}

#[test]
fn a_station_without_room_in_the_kernel_holds_nothing_back() {
    let mut leases = Leases::default();
    for n in [1, 2] {
        leases.join(station(n), Octets(0), Octets(0), Octets(0));
    }
    leases.share(Octets(1_000_000));
    leases.bar(station(2));
    assert_eq!(grants(&leases.share(Octets(1_000_000))), [(station(1), 1_000_000)]);
    leases.unbar(station(2));
    assert!(matches!(leases.share(Octets(1_000_000))[..], [Change::Reclaim { .. }]));
}

#[test]
fn who_leaves_gives_back_what_it_did_not_use() {
    let mut leases = Leases::default();
    for n in [1, 2] {
        leases.join(station(n), Octets(0), Octets(0), Octets(0));
    }
    leases.share(Octets(1_000_000));
    leases.leave(station(1));
    let changes = leases.share(Octets(1_000_000));
    assert_eq!(changes, [Change::Reclaim { station: station(1), limit: Octets(0) }]);
    leases.reclaimed(station(1), Octets(100), Octets(0));
    assert_eq!(grants(&leases.share(Octets(1_000_000))), [(station(2), 999_900)]);
    assert_eq!(leases.remove(station(1)), Octets(100));
}
