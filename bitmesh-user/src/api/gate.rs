//! Who gets through to the runloop: payers always, strangers as far as there is room.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, Instant},
};

use axum::http::StatusCode;
use bitmesh_core::station::Station;
use tokio::sync::mpsc;

use super::{ApiError, Envelope, MAILBOX_REQUESTS, whole_seconds};

/// Places in the mailbox that strangers leave to payers.
const MAILBOX_OF_PAYERS: usize = MAILBOX_REQUESTS / 4;
/// Openings of one station: so many at once, then one in each interval.
const OPENS_OF_STATION: Pace = Pace { burst: 8, every: Duration::from_secs(2) };
/// Openings of all strangers on one port. Those that are never funded push each other out at this
/// pace (see the controller's bound on them).
const OPENS_OF_STRANGERS: Pace = Pace { burst: 50, every: Duration::from_millis(100) };
/// Openings of all stations that pay.
const OPENS_OF_PAYERS: Pace = Pace { burst: 50, every: Duration::from_millis(100) };
/// Stations whose pace is remembered before those that were quiet are forgotten. Only those that are
/// let through get in, at the pace of all.
const PACES_MAX: usize = 1_024;

/// A token bucket's size and filling.
#[derive(Clone, Copy, Debug)]
struct Pace {
    burst: u32,
    every: Duration,
}

/// A token bucket, as the instant at which it is full again.
#[derive(Clone, Copy, Debug)]
struct Bucket(Instant);

impl Bucket {
    fn full(now: Instant) -> Self {
        Self(now)
    }

    /// Without one token more; or how long there is none.
    fn less_one(self, pace: Pace, now: Instant) -> Result<Self, Duration> {
        let full = self.0.max(now) + pace.every;
        match full.saturating_duration_since(now + pace.every * pace.burst) {
            Duration::ZERO => Ok(Self(full)),
            wait => Err(wait),
        }
    }
}

/// Stations whose account has paid, as far as the runloop told.
#[derive(Clone, Debug, Default)]
pub struct Payers(Arc<RwLock<BTreeSet<Station>>>);

impl Payers {
    /// A station's account has paid.
    pub fn add(&self, station: Station) {
        if !self.has(station) {
            self.0.write().unwrap_or_else(PoisonError::into_inner).insert(station);
        }
    }

    fn has(&self, station: Station) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains(&station)
    }
}

#[derive(Debug, Default)]
struct Opens {
    stations: HashMap<Station, Bucket>,
    ports: HashMap<u32, Bucket>,
    payers: Option<Bucket>,
}

/// What the sockets ask before a request goes on.
#[derive(Clone, Debug)]
pub struct Gate {
    /// Who pays.
    pub payers: Payers,
    opens: Arc<Mutex<Opens>>,
    mailbox: mpsc::Sender<Envelope>,
}

impl Gate {
    /// In front of a mailbox.
    pub fn new(mailbox: mpsc::Sender<Envelope>) -> Self {
        Self { payers: Payers::default(), opens: Arc::default(), mailbox }
    }

    pub(super) fn pays(&self, station: Option<Station>) -> bool {
        station.is_some_and(|station| self.payers.has(station))
    }

    /// Whether there is room for a request of somebody.
    pub(super) fn check_room(&self, payer: bool) -> Result<(), ApiError> {
        if payer || self.mailbox.capacity() > MAILBOX_OF_PAYERS {
            return Ok(());
        }
        Err(ApiError::busy())
    }

    /// Whether a station may open a channel now.
    pub(super) fn check_open(&self, station: Option<Station>, port: u32) -> Result<(), ApiError> {
        self.check_open_at(station, port, Instant::now())
    }

    fn check_open_at(
        &self,
        station: Option<Station>,
        port: u32,
        now: Instant,
    ) -> Result<(), ApiError> {
        // Who is no station is refused by the route.
        let Some(station) = station else { return Ok(()) };
        let mut opens = self.opens.lock().unwrap_or_else(PoisonError::into_inner);
        let own = opens.stations.get(&station).copied().unwrap_or(Bucket::full(now));
        let own = own.less_one(OPENS_OF_STATION, now).map_err(|wait| {
            let what = "this station opens channels faster than it could fund them";
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, "too-many-opens", what, WAIT)
                .after(whole_seconds(wait))
        })?;
        let (all, pace) = if self.payers.has(station) {
            (opens.payers.get_or_insert_with(|| Bucket::full(now)), OPENS_OF_PAYERS)
        } else {
            (opens.ports.entry(port).or_insert_with(|| Bucket::full(now)), OPENS_OF_STRANGERS)
        };
        *all = all.less_one(pace, now).map_err(too_many)?;
        if opens.stations.len() >= PACES_MAX {
            opens.stations.retain(|_, bucket| bucket.0 > now);
        }
        opens.stations.insert(station, own);
        Ok(())
    }
}

const WAIT: &str = "wait as long as the header Retry-After says, in seconds, then try again";

fn too_many(wait: Duration) -> ApiError {
    let what = "more channels are being opened at this edge than it takes at once";
    ApiError::unavailable("too-many-opens", what, WAIT, wait)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate() -> Gate {
        Gate::new(mpsc::channel(MAILBOX_REQUESTS).0)
    }

    fn station(number: u32) -> Option<Station> {
        let [a, b, c, d] = number.to_be_bytes();
        Station::new([2, 0, a, b, c, d], 0)
    }

    #[test]
    fn a4_a_station_opens_at_its_own_pace() {
        let (gate, now) = (gate(), Instant::now());
        for _ in 0..OPENS_OF_STATION.burst {
            gate.check_open_at(station(1), 3, now).unwrap();
        }
        let refused = gate.check_open_at(station(1), 3, now).unwrap_err();
        assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
        assert!(gate.check_open_at(station(2), 3, now).is_ok());
        let almost = now + OPENS_OF_STATION.every.saturating_sub(Duration::from_nanos(1));
        assert!(gate.check_open_at(station(1), 3, almost).is_err());
        assert!(gate.check_open_at(station(1), 3, now + OPENS_OF_STATION.every).is_ok());
    }

    #[test]
    fn a4_a_flood_on_one_port_slows_neither_payers_nor_other_ports() {
        let (gate, now) = (gate(), Instant::now());
        gate.payers.add(station(0).unwrap());
        let flood: Vec<_> = (1..100_000).map(|n| gate.check_open_at(station(n), 3, now)).collect();
        let let_in = flood.iter().filter(|open| open.is_ok()).count();
        assert_eq!(let_in, OPENS_OF_STRANGERS.burst as usize);
        let refused = flood.last().unwrap().clone().unwrap_err();
        assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(gate.opens.lock().unwrap().stations.len() <= PACES_MAX);
        let later = now + OPENS_OF_STATION.every;
        assert!(gate.check_open_at(station(0), 3, later).is_ok());
        assert!(gate.check_open_at(station(200_000), 4, later).is_ok());
    }

    #[tokio::test]
    async fn a1_strangers_leave_room_in_the_mailbox() {
        let (mailbox, _kept) = mpsc::channel(MAILBOX_REQUESTS);
        let gate = Gate::new(mailbox.clone());
        let held = mailbox.reserve_many(MAILBOX_REQUESTS - MAILBOX_OF_PAYERS).await.unwrap();
        assert!(gate.check_room(true).is_ok() && gate.check_room(false).is_err());
        drop(held);
        assert!(gate.check_room(false).is_ok());
    }
}
