//! The places that connections of stations have: how many, and who gives one up for whom.
//!
//! A station is its MAC, whatever addresses it has; those that the neighbour table doesn't know count
//! as one together, and so do the stations of an account. Strangers have a share of the places,
//! payers the rest too. Who has as many as it may gives up the one that it has not used for the
//! longest time; where all are taken, a payer gets the place of a stranger, or of the account that
//! has most.

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use bitmesh_core::{account::AccountId, station::Station};
use metrics::{counter, gauge};
use tokio::sync::Notify;

/// Connections in all on one port.
const PLACES: usize = 4_096;
/// Those of them that only stations with an account get.
const PLACES_OF_PAYERS: usize = 1_024;
/// Connections that one station may have open from one address.
const PLACES_PER_ADDRESS: usize = 16;
/// Connections that one station may have open, by whatever addresses.
const PLACES_PER_STATION: usize = 32;
/// Connections that all stations of one account may have open.
const PLACES_PER_ACCOUNT: usize = 64;
/// Connections of all that the neighbour table doesn't know.
const PLACES_OF_UNKNOWN: usize = 64;
/// A place that was used within this time, in milliseconds, is not taken away for a stranger.
const GRACE_MILLIS: u64 = 1_000;
/// Accounts that are looked at for one that gives a place up.
const ACCOUNTS_LOOKED_AT: usize = 16;
const _: () = assert!(PLACES_OF_PAYERS < PLACES && PLACES_OF_UNKNOWN < PLACES - PLACES_OF_PAYERS);

/// Everything on one port.
#[derive(Clone, Debug)]
pub(super) struct Places(Arc<Port>);

#[derive(Debug)]
struct Port {
    start: Instant,
    taken: Mutex<Taken>,
}

type Numbers = BTreeSet<u64>;

#[derive(Debug, Default)]
struct Taken {
    next: u64,
    all: HashMap<u64, Arc<Place>>,
    by_address: HashMap<(Option<Station>, IpAddr), Numbers>,
    by_station: HashMap<Option<Station>, Numbers>,
    by_account: HashMap<AccountId, Numbers>,
    /// Accounts by how many places they have.
    sizes: BTreeSet<(usize, AccountId)>,
    /// Strangers by when they were used last, or earlier: put right when somebody looks.
    strangers: BTreeSet<(u64, u64)>,
}

/// One connection's.
#[derive(Debug)]
struct Place {
    station: Option<Station>,
    address: IpAddr,
    account: Option<AccountId>,
    start: Instant,
    /// When its last request was answered, in milliseconds from `start`.
    used: AtomicU64,
    /// The time by which it is among the strangers.
    ranked: AtomicU64,
    /// A request of it is being answered.
    busy: AtomicBool,
    gone: AtomicBool,
    leave: Notify,
}

impl Place {
    fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed)
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
    /// The address has as many as it may, and all are busy.
    Address,
    /// The station has.
    Station,
    /// The account has.
    Account,
    /// All are taken.
    Full,
}

impl NoPlace {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Station => "station",
            Self::Account => "account",
            Self::Full => "full",
        }
    }
}

impl Default for Places {
    fn default() -> Self {
        Self(Arc::new(Port { start: Instant::now(), taken: Mutex::default() }))
    }
}

impl Places {
    /// A place for a connection of `station`, for which `account` pays, or nobody.
    pub(super) fn enter(
        &self,
        station: Option<Station>,
        address: IpAddr,
        account: Option<AccountId>,
    ) -> Result<Seated, NoPlace> {
        self.enter_at(station, address, account, millis(self.0.start))
    }

    fn enter_at(
        &self,
        station: Option<Station>,
        address: IpAddr,
        account: Option<AccountId>,
        now: u64,
    ) -> Result<Seated, NoPlace> {
        let mut taken = self.lock();
        let own = taken.by_address.get(&(station, address));
        if own.is_some_and(|own| own.len() >= PLACES_PER_ADDRESS) {
            let idle = taken.idle_longest(own, now);
            taken.push_out(idle.ok_or(NoPlace::Address)?);
        }
        // Those that nobody knows are many: they get no place of each other's that is in use.
        let (most, before) = match station {
            Some(_) => (PLACES_PER_STATION, now),
            None => (PLACES_OF_UNKNOWN, now.saturating_sub(GRACE_MILLIS)),
        };
        let own = taken.by_station.get(&station);
        if own.is_some_and(|own| own.len() >= most) {
            let idle = taken.idle_longest(own, before);
            taken.push_out(idle.ok_or(NoPlace::Station)?);
        }
        let own = account.and_then(|account| taken.by_account.get(&account));
        if own.is_some_and(|own| own.len() >= PLACES_PER_ACCOUNT) {
            let idle = taken.idle_longest(own, now);
            taken.push_out(idle.ok_or(NoPlace::Account)?);
        }
        if taken.all.len() >= PLACES && account.is_some() {
            let idle = taken.stranger_before(now, now).or_else(|| taken.of_largest(now));
            taken.push_out(idle.ok_or(NoPlace::Full)?);
        } else if account.is_none()
            && (taken.all.len() >= PLACES || taken.strangers.len() >= PLACES - PLACES_OF_PAYERS)
        {
            let idle = taken.stranger_before(now.saturating_sub(GRACE_MILLIS), now);
            taken.push_out(idle.ok_or(NoPlace::Full)?);
        }
        let place = Arc::new(Place {
            station,
            address,
            account,
            start: self.0.start,
            used: now.into(),
            ranked: now.into(),
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
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn put(&mut self, number: u64, place: Arc<Place>) {
        self.by_address.entry((place.station, place.address)).or_default().insert(number);
        self.by_station.entry(place.station).or_default().insert(number);
        if let Some(account) = place.account {
            let own = self.by_account.entry(account).or_default();
            self.sizes.remove(&(own.len(), account));
            own.insert(number);
            self.sizes.insert((own.len(), account));
        } else {
            self.strangers.insert((place.ranked.load(Ordering::Relaxed), number));
        }
        gauge!("bitmesh_connections", "kind" => kind(&place)).increment(1);
        self.all.insert(number, place);
    }

    fn take(&mut self, number: u64) {
        let Some(place) = self.all.remove(&number) else { return };
        remove(&mut self.by_address, &(place.station, place.address), number);
        remove(&mut self.by_station, &place.station, number);
        if let Some(account) = place.account {
            let size = self.by_account.get(&account).map_or(0, Numbers::len);
            self.sizes.remove(&(size, account));
            if size > 1 {
                self.sizes.insert((size - 1, account));
            }
            remove(&mut self.by_account, &account, number);
        } else {
            self.strangers.remove(&(place.ranked.load(Ordering::Relaxed), number));
        }
        gauge!("bitmesh_connections", "kind" => kind(&place)).decrement(1);
    }

    /// Of some, the one that has asked for nothing for the longest time, since `before` at least.
    fn idle_longest(&self, of: Option<&Numbers>, before: u64) -> Option<u64> {
        let places =
            of.into_iter().flatten().filter_map(|number| Some((*number, self.all.get(number)?)));
        let idle = places.filter(|(_, place)| !place.is_busy() && place.used() <= before);
        idle.min_by_key(|(_, place)| place.used()).map(|(number, _)| number)
    }

    /// The same of strangers. Each look puts right what it finds used since, which nobody has to look
    /// at again until then.
    fn stranger_before(&mut self, before: u64, now: u64) -> Option<u64> {
        while let Some(&(ranked, number)) = self.strangers.first() {
            if ranked > before {
                return None;
            }
            let place = self.all.get(&number)?;
            // One that is busy will have been used later than now.
            let used = if place.is_busy() { now + 1 } else { place.used() };
            if used == ranked {
                return Some(number);
            }
            place.ranked.store(used, Ordering::Relaxed);
            self.strangers.remove(&(ranked, number));
            self.strangers.insert((used, number));
        }
        None
    }

    /// A payer's, of the account that has most.
    fn of_largest(&self, now: u64) -> Option<u64> {
        let accounts = self.sizes.iter().rev().take(ACCOUNTS_LOOKED_AT);
        let own = accounts.map(|(_, account)| self.by_account.get(account));
        own.into_iter().find_map(|own| self.idle_longest(own, now))
    }

    /// Ends a connection.
    fn push_out(&mut self, number: u64) {
        if let Some(place) = self.all.get(&number) {
            place.gone.store(true, Ordering::Relaxed);
            place.leave.notify_one();
            counter!("bitmesh_connections_pushed_out_total").increment(1);
            self.take(number);
        }
    }
}

fn kind(place: &Place) -> &'static str {
    if place.account.is_some() { "payer" } else { "stranger" }
}

fn millis(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn remove<K: Hash + Eq>(groups: &mut HashMap<K, Numbers>, key: &K, number: u64) {
    if let Some(group) = groups.get_mut(key) {
        group.remove(&number);
        if group.is_empty() {
            groups.remove(key);
        }
    }
}

impl Seated {
    /// A request of it is being answered, until the guard is dropped.
    pub(super) fn busy(&self) -> Busy {
        self.place.busy.store(true, Ordering::Relaxed);
        Busy(self.place.clone())
    }

    /// Who paid for the station when it got the place.
    pub(super) fn account(&self) -> Option<AccountId> {
        self.place.account
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
        self.0.used.store(millis(self.0.start), Ordering::Relaxed);
        self.0.busy.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
