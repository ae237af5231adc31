//! Who gets through to the runloop: payers always, strangers as far as there is room.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::http::StatusCode;
use bitmesh_core::{account::AccountId, station::Station};
use tokio::sync::mpsc;

use super::{ApiError, Envelope, MAILBOX_REQUESTS, Payers, whole_seconds};

/// Places in the mailbox that strangers leave to payers.
const MAILBOX_OF_PAYERS: usize = MAILBOX_REQUESTS / 4;
/// Requests of one account that are answered at one time, on all ports: what it can have in the
/// mailbox.
const REQUESTS_PER_ACCOUNT: usize = 64;
const _: () = assert!(REQUESTS_PER_ACCOUNT * 4 <= MAILBOX_OF_PAYERS);
/// Openings of one account, or of a stranger: so many at once, then one in each interval.
const OPENS_OF_ONE: Pace = Pace { burst: 8, every: Duration::from_secs(2) };
/// Openings of all strangers on one port. Those that are never funded push each other out at this
/// pace (see the controller's bound on them).
const OPENS_OF_STRANGERS: Pace = Pace { burst: 50, every: Duration::from_millis(100) };
/// The same on all ports: each that finds the bound on channels reached takes the loop milliseconds.
const OPENS_OF_ALL_STRANGERS: Pace = Pace { burst: 100, every: Duration::from_millis(20) };
/// Openings of all stations that pay, on one port.
const OPENS_OF_PAYERS: Pace = Pace { burst: 50, every: Duration::from_millis(100) };
/// Payments of one station with a signature that is none. Who counts right never sends one.
const WRONG_OF_STATION: Pace = Pace { burst: 8, every: Duration::from_secs(1) };
/// Openers, or stations, whose pace is remembered; the one that is soonest quiet makes room.
const PACES_MAX: usize = 1_024;
/// Ports whose pace is remembered; VLANs come and go.
const PORTS_MAX: usize = 4_096;

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

/// Who opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Opener {
    Account(AccountId),
    Stranger(Station),
}

#[derive(Debug, Default)]
struct Opens {
    openers: HashMap<Opener, Bucket>,
    /// By port, and whether payers'.
    ports: HashMap<(u32, bool), Bucket>,
    strangers: Option<Bucket>,
}

/// What the sockets ask before a request goes on.
#[derive(Clone, Debug)]
pub struct Gate {
    /// Who pays.
    pub payers: Payers,
    opens: Arc<Mutex<Opens>>,
    /// Stations, those that nobody knows together, that sent wrong signatures.
    wrong: Arc<Mutex<HashMap<Option<Station>, Bucket>>>,
    answering: Arc<Mutex<HashMap<AccountId, usize>>>,
    mailbox: mpsc::Sender<Envelope>,
}

/// Room for one request, until it is dropped.
#[derive(Debug)]
pub(super) struct Room {
    of: Arc<Mutex<HashMap<AccountId, usize>>>,
    account: AccountId,
}

impl Drop for Room {
    fn drop(&mut self) {
        less(&mut lock(&self.of), &self.account);
    }
}

impl Gate {
    /// In front of a mailbox.
    pub fn new(mailbox: mpsc::Sender<Envelope>) -> Self {
        Self {
            payers: Payers::default(),
            opens: Arc::default(),
            wrong: Arc::default(),
            answering: Arc::default(),
            mailbox,
        }
    }

    /// Who pays for a station.
    pub(super) fn account(&self, station: Option<Station>) -> Option<AccountId> {
        self.payers.account(station?)
    }

    /// Whether there is room for a request of somebody.
    pub(super) fn check_room(&self, payer: bool) -> Result<(), ApiError> {
        if payer || self.mailbox.capacity() > MAILBOX_OF_PAYERS {
            return Ok(());
        }
        Err(ApiError::busy())
    }

    /// An account's room for a request that goes into the mailbox.
    pub(super) fn enter(&self, account: AccountId) -> Result<Room, ApiError> {
        let mut answering = lock(&self.answering);
        let own = answering.entry(account).or_default();
        if *own >= REQUESTS_PER_ACCOUNT {
            return Err(ApiError::busy());
        }
        *own += 1;
        Ok(Room { of: self.answering.clone(), account })
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
        let account = self.payers.account(station);
        let opener = account.map_or(Opener::Stranger(station), Opener::Account);
        let mut opens = lock(&self.opens);
        let own = opens.openers.get(&opener).copied().unwrap_or(Bucket::full(now));
        let own = own.less_one(OPENS_OF_ONE, now).map_err(|wait| {
            let what = "this station opens channels faster than it could fund them";
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, "too-many-opens", what, WAIT)
                .after(whole_seconds(wait))
        })?;
        let pays = account.is_some();
        let pace = if pays { OPENS_OF_PAYERS } else { OPENS_OF_STRANGERS };
        let on_port = opens.ports.get(&(port, pays)).copied().unwrap_or(Bucket::full(now));
        let on_port = on_port.less_one(pace, now).map_err(too_many)?;
        if !pays {
            let all = opens.strangers.unwrap_or(Bucket::full(now));
            let all = all.less_one(OPENS_OF_ALL_STRANGERS, now).map_err(too_many)?;
            opens.strangers = Some(all);
        }
        remember(&mut opens.ports, (port, pays), on_port, PORTS_MAX, now);
        remember(&mut opens.openers, opener, own, PACES_MAX, now);
        Ok(())
    }

    /// Whether a station may have a signature verified.
    pub(super) fn check_pay(&self, station: Option<Station>) -> Result<(), ApiError> {
        self.check_pay_at(station, Instant::now())
    }

    fn check_pay_at(&self, station: Option<Station>, now: Instant) -> Result<(), ApiError> {
        let wrong = lock(&self.wrong);
        let Some(bucket) = wrong.get(&station) else { return Ok(()) };
        bucket.less_one(WRONG_OF_STATION, now).map(drop).map_err(|wait| {
            let what = "this station sent many payments that nobody signed";
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, "too-many-wrong", what, WAIT)
                .after(whole_seconds(wait))
        })
    }

    /// A station sent a payment that nobody signed.
    pub(super) fn wrong_signature(&self, station: Option<Station>) {
        self.wrong_signature_at(station, Instant::now());
    }

    fn wrong_signature_at(&self, station: Option<Station>, now: Instant) {
        let mut wrong = lock(&self.wrong);
        let bucket = wrong.get(&station).copied().unwrap_or(Bucket::full(now));
        // What was on its way when the bucket got empty counts no more.
        let bucket = bucket.less_one(WRONG_OF_STATION, now).unwrap_or(bucket);
        remember(&mut wrong, station, bucket, PACES_MAX, now);
    }
}

/// Puts a bucket in; where there is no room, the one that is full soonest goes.
fn remember<K: Copy + Eq + Hash>(
    buckets: &mut HashMap<K, Bucket>,
    key: K,
    bucket: Bucket,
    most: usize,
    now: Instant,
) {
    if buckets.len() >= most && !buckets.contains_key(&key) {
        buckets.retain(|_, bucket| bucket.0 > now);
        let soonest = buckets.iter().min_by_key(|(_, bucket)| bucket.0).map(|(key, _)| *key);
        if let Some(soonest) = soonest.filter(|_| buckets.len() >= most) {
            buckets.remove(&soonest);
        }
    }
    buckets.insert(key, bucket);
}

/// One less of it; none is no entry.
pub(super) fn less<K: Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(key);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const WAIT: &str = "wait as long as the header Retry-After says, in seconds, then try again";

fn too_many(wait: Duration) -> ApiError {
    let what = "more channels are being opened at this edge than it takes at once";
    ApiError::unavailable("too-many-opens", what, WAIT, wait)
}

#[cfg(test)]
mod tests {
    use bitmesh_core::channel::ChannelId;

    use super::*;

    fn gate() -> Gate {
        Gate::new(mpsc::channel(MAILBOX_REQUESTS).0)
    }

    fn station(number: u32) -> Option<Station> {
        let [a, b, c, d] = number.to_be_bytes();
        Station::new([2, 0, a, b, c, d], 0)
    }

    fn account(number: u32) -> AccountId {
        let id: ChannelId = format!("{number:064x}").parse().unwrap();
        id.into()
    }

    #[test]
    fn a4_a_station_opens_at_its_own_pace() {
        let (gate, now) = (gate(), Instant::now());
        for _ in 0..OPENS_OF_ONE.burst {
            gate.check_open_at(station(1), 3, now).unwrap();
        }
        let refused = gate.check_open_at(station(1), 3, now).unwrap_err();
        assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
        assert!(gate.check_open_at(station(2), 3, now).is_ok());
        let almost = now + OPENS_OF_ONE.every.saturating_sub(Duration::from_nanos(1));
        assert!(gate.check_open_at(station(1), 3, almost).is_err());
        assert!(gate.check_open_at(station(1), 3, now + OPENS_OF_ONE.every).is_ok());
    }

    #[test]
    fn a4_a_flood_on_one_port_slows_neither_payers_nor_other_ports() {
        let (gate, now) = (gate(), Instant::now());
        gate.payers.add(station(0).unwrap(), account(0));
        let flood: Vec<_> = (1..100_000).map(|n| gate.check_open_at(station(n), 3, now)).collect();
        let let_in = flood.iter().filter(|open| open.is_ok()).count();
        assert_eq!(let_in, OPENS_OF_STRANGERS.burst as usize);
        let refused = flood.last().unwrap().clone().unwrap_err();
        assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(gate.opens.lock().unwrap().openers.len() <= PACES_MAX);
        let later = now + OPENS_OF_ONE.every;
        assert!(gate.check_open_at(station(0), 3, later).is_ok());
        assert!(gate.check_open_at(station(200_000), 4, later).is_ok());
    }

    #[test]
    fn a4_a_flood_on_many_ports_has_a_pace_in_all() {
        let (gate, now) = (gate(), Instant::now());
        let opens = (0..10_000).map(|n| gate.check_open_at(station(n), n % 100, now));
        assert_eq!(opens.flatten().count(), OPENS_OF_ALL_STRANGERS.burst as usize);
        gate.payers.add(station(0).unwrap(), account(0));
        assert!(gate.check_open_at(station(0), 3, now).is_ok());
    }

    #[test]
    fn a4_an_account_opens_at_one_pace_whatever_stations_it_has() {
        let (gate, now) = (gate(), Instant::now());
        for number in 0..1_000 {
            gate.payers.add(station(number).unwrap(), account(7));
        }
        let opens = (0..1_000).map(|n| gate.check_open_at(station(n), 3, now));
        assert_eq!(opens.flatten().count(), OPENS_OF_ONE.burst as usize);
        gate.payers.add(station(2_000).unwrap(), account(8));
        assert!(gate.check_open_at(station(2_000), 3, now).is_ok());
    }

    #[test]
    fn a3_who_sends_wrong_signatures_has_them_verified_at_a_pace() {
        let (gate, now) = (gate(), Instant::now());
        for _ in 0..WRONG_OF_STATION.burst {
            assert!(gate.check_pay_at(station(1), now).is_ok());
            gate.wrong_signature_at(station(1), now);
        }
        let refused = gate.check_pay_at(station(1), now).unwrap_err();
        assert_eq!((refused.status.as_u16(), refused.retry_after), (429, Some(1)));
        assert!(gate.check_pay_at(station(2), now).is_ok());
        assert!(gate.check_pay_at(None, now).is_ok());
        assert!(gate.check_pay_at(station(1), now + WRONG_OF_STATION.every).is_ok());
        for number in 0..2_000 {
            gate.wrong_signature_at(station(number), now);
        }
        assert!(gate.wrong.lock().unwrap().len() <= PACES_MAX);
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

    #[test]
    fn a1_an_account_has_its_share_of_the_mailbox_and_others_have_theirs() {
        let gate = gate();
        let mut own: Vec<_> =
            (0..REQUESTS_PER_ACCOUNT).map(|_| gate.enter(account(1)).unwrap()).collect();
        assert_eq!(gate.enter(account(1)).unwrap_err(), ApiError::busy());
        assert!(gate.enter(account(2)).is_ok());
        own.pop();
        assert!(gate.enter(account(1)).is_ok());
        drop(own);
        assert!(gate.answering.lock().unwrap().is_empty());
    }
}
