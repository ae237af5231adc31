//! Addresses from which stations that pay connected a moment ago.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bitmesh_core::{account::AccountId, station::Station};

use super::Gate;

/// How long an address is remembered after its last connection.
const MEMORY: Duration = Duration::from_mins(1);
/// Addresses that are remembered.
const ADDRESSES_MAX: usize = 4_096;
/// Addresses that one station can have remembered: it makes as many up as it likes.
const ADDRESSES_PER_STATION: usize = 4;

/// On one port.
#[derive(Clone, Debug, Default)]
pub(super) struct Lately(Arc<Mutex<HashMap<IpAddr, (Station, Instant)>>>);

impl Lately {
    /// A connection came from there; the neighbour table knows the station, or doesn't.
    pub(super) fn note(&self, address: IpAddr, station: Option<Station>, gate: &Gate) {
        if let Some(station) = station.filter(|station| gate.account(Some(*station)).is_some()) {
            self.note_at(address, station, Instant::now());
        }
    }

    fn note_at(&self, address: IpAddr, station: Station, now: Instant) {
        let mut known = self.lock();
        if let Some((known, since)) = known.get_mut(&address) {
            (*known, *since) = (station, now);
            return;
        }
        if known.len() >= ADDRESSES_MAX {
            known.retain(|_, (_, since)| now.saturating_duration_since(*since) < MEMORY);
        }
        let fresh = |since: Instant| now.saturating_duration_since(since) < MEMORY;
        let own = known.values().filter(|(of, since)| *of == station && fresh(*since)).count();
        if known.len() < ADDRESSES_MAX && own < ADDRESSES_PER_STATION {
            known.insert(address, (station, now));
        }
    }

    /// Who was there a moment ago, and pays.
    pub(super) fn payer(&self, address: IpAddr, gate: &Gate) -> Option<(Station, AccountId)> {
        let station = self.station_at(address, Instant::now())?;
        Some((station, gate.account(Some(station))?))
    }

    fn station_at(&self, address: IpAddr, now: Instant) -> Option<Station> {
        let known = self.lock();
        let (station, since) = known.get(&address)?;
        (now.saturating_duration_since(*since) < MEMORY).then_some(*station)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, (Station, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn station(number: u8) -> Station {
        Station::new([2, 0, 0, 0, 0, number], 0).unwrap()
    }

    fn address(number: u32) -> IpAddr {
        IpAddr::from(number.to_be_bytes())
    }

    #[test]
    fn an_address_is_remembered_for_a_while_and_few_of_one_station() {
        let (lately, now) = (Lately::default(), Instant::now());
        for number in 0..10 {
            lately.note_at(address(number), station(1), now);
        }
        let last = u32::try_from(ADDRESSES_PER_STATION).unwrap() - 1;
        assert_eq!(lately.station_at(address(last), now), Some(station(1)));
        assert_eq!(lately.station_at(address(last + 1), now), None);
        lately.note_at(address(0), station(2), now);
        assert_eq!(lately.station_at(address(0), now), Some(station(2)));
        let almost = now + MEMORY.checked_sub(Duration::from_nanos(1)).unwrap();
        assert_eq!(lately.station_at(address(0), almost), Some(station(2)));
        assert_eq!(lately.station_at(address(0), now + MEMORY), None);
        lately.note_at(address(50), station(1), now + MEMORY);
        assert_eq!(lately.station_at(address(50), now + MEMORY), Some(station(1)));
    }
}
