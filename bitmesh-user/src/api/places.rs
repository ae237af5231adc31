//! The places that connections of stations have: how many, and who gives one up for whom.
//!
//! A station is its MAC, whatever addresses it has; those that the neighbour table doesn't know count
//! as one together. Strangers have a share of the places, payers the rest too; and where all are
//! taken, the newest gets the place of a stranger that has asked for nothing for the longest time.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bitmesh_core::station::Station;
use metrics::{counter, gauge};
use tokio::sync::Notify;

/// Connections in all on one port.
const PLACES: usize = 4_096;
/// Those of them that only stations with an account get.
const PLACES_OF_PAYERS: usize = 1_024;
/// Connections that one address may have open.
const PLACES_PER_ADDRESS: usize = 16;
/// Connections that one station may have open, by whatever addresses.
const PLACES_PER_STATION: usize = 32;
/// Connections of all that the neighbour table doesn't know.
const PLACES_OF_UNKNOWN: usize = 64;
/// A place that was used within this time is not taken away for a stranger.
const GRACE: Duration = Duration::from_secs(1);
const _: () = assert!(PLACES_OF_PAYERS < PLACES && PLACES_OF_UNKNOWN < PLACES - PLACES_OF_PAYERS);

/// Everything on one port.
#[derive(Clone, Debug, Default)]
pub(super) struct Places(Arc<Mutex<Taken>>);

#[derive(Debug, Default)]
struct Taken {
    next: u64,
    all: HashMap<u64, Arc<Place>>,
    by_address: HashMap<IpAddr, usize>,
    by_station: HashMap<Option<Station>, usize>,
    strangers: usize,
}

/// One connection's.
#[derive(Debug)]
struct Place {
    station: Option<Station>,
    address: IpAddr,
    payer: bool,
    since: Instant,
    /// When its last request was answered, in milliseconds from `since`.
    used: AtomicU64,
    /// A request of it is being answered.
    busy: AtomicBool,
    gone: AtomicBool,
    leave: Notify,
}

impl Place {
    fn used_at(&self) -> Instant {
        self.since + Duration::from_millis(self.used.load(Ordering::Relaxed))
    }
}

/// A place, until it is dropped.
#[derive(Debug)]
pub(super) struct Seated {
    of: Places,
    number: u64,
    place: Arc<Place>,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoPlace {
    /// The address has as many as it may.
    Address,
    /// The station has, and all are busy.
    Station,
    /// All are taken.
    Full,
}

impl NoPlace {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Station => "station",
            Self::Full => "full",
        }
    }
}

impl Places {
    /// A place for a connection of `station`, who pays or doesn't.
    pub(super) fn enter(
        &self,
        station: Option<Station>,
        address: IpAddr,
        payer: bool,
    ) -> Result<Seated, NoPlace> {
        let mut taken = self.lock();
        if taken.by_address.get(&address).copied().unwrap_or(0) >= PLACES_PER_ADDRESS {
            return Err(NoPlace::Address);
        }
        let most = if station.is_some() { PLACES_PER_STATION } else { PLACES_OF_UNKNOWN };
        if taken.by_station.get(&station).copied().unwrap_or(0) >= most {
            taken.push_out(|place| place.station == station, GRACE).ok_or(NoPlace::Station)?;
        }
        let full = taken.all.len() >= PLACES;
        let strangers_full = taken.strangers >= PLACES - PLACES_OF_PAYERS;
        if full || (!payer && strangers_full) {
            let grace = if payer { Duration::ZERO } else { GRACE };
            taken.push_out(|place| !place.payer, grace).ok_or(NoPlace::Full)?;
        }
        let place = Arc::new(Place {
            station,
            address,
            payer,
            since: Instant::now(),
            used: AtomicU64::new(0),
            busy: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            leave: Notify::new(),
        });
        let number = taken.next;
        taken.next += 1;
        taken.put(number, place.clone());
        Ok(Seated { of: self.clone(), number, place })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn put(&mut self, number: u64, place: Arc<Place>) {
        *self.by_address.entry(place.address).or_default() += 1;
        *self.by_station.entry(place.station).or_default() += 1;
        self.strangers += usize::from(!place.payer);
        gauge!("bitmesh_connections", "kind" => kind(place.payer)).increment(1);
        self.all.insert(number, place);
    }

    fn take(&mut self, number: u64) {
        let Some(place) = self.all.remove(&number) else { return };
        less(&mut self.by_address, &place.address);
        less(&mut self.by_station, &place.station);
        self.strangers -= usize::from(!place.payer);
        gauge!("bitmesh_connections", "kind" => kind(place.payer)).decrement(1);
    }

    /// Ends the connection of those that has asked for nothing for the longest time, and for `grace`
    /// at least.
    fn push_out(&mut self, of: impl Fn(&Place) -> bool, grace: Duration) -> Option<()> {
        let idle = |place: &Place| !place.busy.load(Ordering::Relaxed);
        let old = |place: &Place| place.used_at().elapsed() >= grace;
        let found = self.all.iter().filter(|(_, place)| of(place) && idle(place) && old(place));
        let (number, place) = found.min_by_key(|(_, place)| place.used_at())?;
        let number = *number;
        place.gone.store(true, Ordering::Relaxed);
        place.leave.notify_one();
        counter!("bitmesh_connections_pushed_out_total").increment(1);
        self.take(number);
        Some(())
    }
}

fn kind(payer: bool) -> &'static str {
    if payer { "payer" } else { "stranger" }
}

fn less<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

impl Seated {
    /// A request of it is being answered, until the guard is dropped.
    pub(super) fn busy(&self) -> Busy {
        self.place.busy.store(true, Ordering::Relaxed);
        Busy(self.place.clone())
    }

    /// Ends when somebody else gets the place.
    pub(super) async fn pushed_out(&self) {
        self.place.leave.notified().await;
    }
}

impl Drop for Seated {
    fn drop(&mut self) {
        if !self.place.gone.load(Ordering::Relaxed) {
            self.of.lock().take(self.number);
        }
    }
}

/// See [`Seated::busy`].
#[derive(Debug)]
pub(super) struct Busy(Arc<Place>);

impl Drop for Busy {
    fn drop(&mut self) {
        let used = u64::try_from(self.0.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.used.store(used, Ordering::Relaxed);
        self.0.busy.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn station(number: usize) -> Option<Station> {
        let [.., a, b] = number.to_be_bytes();
        Station::new([2, 0, 0, 0, a, b], 0)
    }

    fn address(number: usize) -> IpAddr {
        IpAddr::from(u128::try_from(number).unwrap().to_be_bytes())
    }

    /// As many strangers as get in, sixteen connections each.
    fn strangers(places: &Places) -> Vec<Seated> {
        let seated = (0..PLACES).map(|n| places.enter(station(n / 16), address(n / 16), false));
        seated.map_while(Result::ok).collect()
    }

    #[test]
    fn a1_strangers_leave_the_payers_share_free() {
        let places = Places::default();
        let crowd = strangers(&places);
        assert_eq!(crowd.len(), PLACES - PLACES_OF_PAYERS);
        let payers: Vec<_> = (0..PLACES_OF_PAYERS)
            .map(|n| places.enter(station(60_000 + n / 8), address(60_000 + n / 8), true).unwrap())
            .collect();
        assert_eq!(payers.len(), PLACES_OF_PAYERS);
        drop((crowd, payers));
        let taken = places.lock();
        assert!(taken.all.is_empty() && taken.by_address.is_empty() && taken.by_station.is_empty());
        assert_eq!(taken.strangers, 0);
    }

    #[test]
    fn a1_the_newest_payer_gets_the_place_that_a_stranger_has_not_used_for_longest() {
        let places = Places::default();
        let crowd = strangers(&places);
        let payers: Vec<_> = (0..PLACES_OF_PAYERS)
            .map(|n| places.enter(station(60_000 + n / 8), address(60_000 + n / 8), true).unwrap())
            .collect();
        let asking = crowd[0].busy();
        drop(crowd[1].busy());
        std::thread::sleep(Duration::from_millis(3));
        drop(crowd[1].busy());
        let one_more = places.enter(station(65_000), address(65_000), true).unwrap();
        let left: Vec<_> =
            (0..3).filter(|n| crowd[*n].pushed_out().now_or_never().is_some()).collect();
        assert_eq!(left, [2], "one is being answered, one was just now");
        assert!(payers.iter().all(|payer| payer.pushed_out().now_or_never().is_none()));
        assert_eq!(
            places.enter(station(65_001), address(65_001), false).err(),
            Some(NoPlace::Full)
        );
        drop((asking, one_more));
    }

    #[test]
    fn a1_a_station_with_many_addresses_is_one_station() {
        let places = Places::default();
        let own: Vec<_> = (0..PLACES_PER_STATION)
            .map(|n| places.enter(station(1), address(n), false).unwrap())
            .collect();
        let more = places.enter(station(1), address(99), false);
        assert_eq!(more.err(), Some(NoPlace::Station));
        assert!(places.enter(station(2), address(100), false).is_ok());
        let unknown: Vec<_> =
            (200..).map(|n| places.enter(None, address(n), false)).map_while(Result::ok).collect();
        assert_eq!(unknown.len(), PLACES_OF_UNKNOWN);
        drop(own);
        let same: Vec<_> = (0..=PLACES_PER_ADDRESS)
            .map(|n| places.enter(station(300 + n), address(1), false))
            .collect();
        assert_eq!(same.iter().filter(|seated| seated.is_ok()).count(), PLACES_PER_ADDRESS);
    }
}
