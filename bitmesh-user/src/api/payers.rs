//! Which stations pay, and for whom: by account, so that one account is one payer however many
//! stations it has, and only for as long as it buys.

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bitmesh_core::{account::AccountId, station::Station};

/// Time from the last grant after which an account that has spent all is a stranger's again.
const QUIET: Duration = Duration::from_mins(10);
/// Stations that are looked at in one sweep.
const SWEEP_STATIONS: usize = 1_024;

/// Stations whose account has paid, as far as the runloop told.
#[derive(Clone, Debug)]
pub struct Payers(Arc<Known>);

#[derive(Debug)]
struct Known {
    start: Instant,
    all: RwLock<BTreeMap<Station, Paying>>,
    /// Where the next sweep goes on.
    swept: Mutex<Option<Station>>,
}

#[derive(Debug)]
struct Paying {
    account: AccountId,
    /// Milliseconds from the start at which the station was granted something last.
    granted: AtomicU64,
}

impl Default for Payers {
    fn default() -> Self {
        let start = Instant::now();
        Self(Arc::new(Known { start, all: RwLock::default(), swept: Mutex::default() }))
    }
}

impl Payers {
    /// A station's account has paid.
    pub fn add(&self, station: Station, account: AccountId) {
        self.add_at(station, account, Instant::now());
    }

    /// The accounts of these stations have paid.
    pub fn add_all(&self, payers: impl Iterator<Item = (Station, AccountId)>) {
        let granted = self.millis(Instant::now());
        let paying = |account| Paying { account, granted: granted.into() };
        let mut payers: BTreeMap<_, _> =
            payers.map(|(station, account)| (station, paying(account))).collect();
        // Nodes that are made of what is sorted are full.
        self.0.all.write().unwrap_or_else(PoisonError::into_inner).append(&mut payers);
    }

    fn add_at(&self, station: Station, account: AccountId, now: Instant) {
        let granted = self.millis(now);
        {
            let all = self.0.all.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(known) = all.get(&station).filter(|known| known.account == account) {
                known.granted.store(granted, Ordering::Relaxed);
                return;
            }
        }
        let paying = Paying { account, granted: granted.into() };
        self.0.all.write().unwrap_or_else(PoisonError::into_inner).insert(station, paying);
    }

    /// Who pays for a station.
    pub(super) fn account(&self, station: Station) -> Option<AccountId> {
        let all = self.0.all.read().unwrap_or_else(PoisonError::into_inner);
        all.get(&station).map(|known| known.account)
    }

    /// Looks at the next of the stations, and forgets those that no account pays for, by what `now_of`
    /// tells: the account, and whether it has credit.
    pub fn sweep(&self, now_of: impl Fn(Station) -> Option<(AccountId, bool)>) {
        self.sweep_at(now_of, Instant::now());
    }

    fn sweep_at(&self, now_of: impl Fn(Station) -> Option<(AccountId, bool)>, now: Instant) {
        let mut swept = self.0.swept.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.millis(now);
        let quiet = u64::try_from(QUIET.as_millis()).unwrap_or(u64::MAX);
        let from = swept.map_or(Bound::Unbounded, Bound::Excluded);
        let mut changed = Vec::new();
        let mut seen = 0;
        let mut newest = None;
        {
            let all = self.0.all.read().unwrap_or_else(PoisonError::into_inner);
            for (station, known) in all.range((from, Bound::Unbounded)).take(SWEEP_STATIONS) {
                (seen, newest) = (seen + 1, Some(*station));
                let since = now.saturating_sub(known.granted.load(Ordering::Relaxed));
                let kept = now_of(*station).filter(|(_, credit)| *credit || since < quiet);
                let account = kept.map(|(account, _)| account);
                if account != Some(known.account) {
                    changed.push((*station, account));
                }
            }
        }
        if !changed.is_empty() {
            let mut all = self.0.all.write().unwrap_or_else(PoisonError::into_inner);
            for (station, account) in changed {
                match account {
                    Some(account) => {
                        all.insert(station, Paying { account, granted: now.into() });
                    }
                    None => {
                        all.remove(&station);
                    }
                }
            }
        }
        *swept = newest.filter(|_| seen == SWEEP_STATIONS);
    }

    fn millis(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.0.start);
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use bitmesh_core::channel::ChannelId;

    use super::*;

    fn account(number: u8) -> AccountId {
        let id: ChannelId = format!("{number:064x}").parse().unwrap();
        id.into()
    }

    fn station(number: usize) -> Station {
        let [.., a, b] = number.to_be_bytes();
        Station::new([2, 0, 0, 0, a, b], 0).unwrap()
    }

    #[test]
    fn who_has_spent_all_is_forgotten_once_it_is_quiet_and_who_left_at_once() {
        let (payers, now) = (Payers::default(), Instant::now());
        for number in 0..4 {
            payers.add_at(station(number), account(1), now);
        }
        let now_of = |of: Station| match of {
            of if of == station(0) => Some((account(1), true)),
            of if of == station(1) => Some((account(1), false)),
            of if of == station(2) => Some((account(2), true)),
            _ => None,
        };
        let almost = now + QUIET.checked_sub(Duration::from_millis(1)).unwrap();
        payers.sweep_at(now_of, almost);
        let who = |number| payers.account(station(number));
        assert_eq!(
            [who(0), who(1), who(2), who(3)],
            [Some(account(1)), Some(account(1)), Some(account(2)), None]
        );
        payers.sweep_at(now_of, now + QUIET);
        assert_eq!([who(0), who(1)], [Some(account(1)), None]);
    }

    #[test]
    fn those_of_a_start_come_beside_who_is_known_and_in_the_place_of_older_accounts() {
        let payers = Payers::default();
        payers.add(station(0), account(1));
        payers.add(station(1), account(1));
        payers.add_all([(station(1), account(2)), (station(2), account(3))].into_iter());
        let who = [0, 1, 2, 3].map(|number| payers.account(station(number)));
        assert_eq!(who, [Some(account(1)), Some(account(2)), Some(account(3)), None]);
    }

    #[test]
    fn a_sweep_looks_at_a_part_and_the_next_goes_on() {
        let (payers, many) = (Payers::default(), 3 * SWEEP_STATIONS - 1);
        for number in 0..many {
            payers.add(station(number), account(1));
        }
        let left = || payers.0.all.read().unwrap().len();
        // What is kept is not looked at again before all others were.
        payers.sweep(|_| Some((account(1), true)));
        for sweep in 1..=2 {
            payers.sweep(|_| None);
            assert_eq!(left(), many.saturating_sub(sweep * SWEEP_STATIONS).max(SWEEP_STATIONS));
        }
        payers.sweep(|_| None);
        assert_eq!(left(), 0);
    }
}
