//! Which stations an account pays for, and how its credit reaches them.

use std::collections::BTreeSet;

use super::{Action, Answer, Controller, Out, Refusal, RequestId};
use crate::{
    account::AccountId,
    channel::{BindingError, ChannelId, Entry, ProviderEvent, STATIONS_PER_ACCOUNT_MAX},
    drift::Drift,
    leasing::Change,
    ledger::Usage,
    station::Station,
    units::Octets,
    wire::StationsRequest,
};

/// Somebody presents a change of an account's stations.
#[derive(Clone, Copy, Debug)]
pub struct StationsAsk {
    /// For the answer.
    pub request: RequestId,
    /// Who presents it, as the edge sees it.
    pub peer: Station,
    /// Of which account: one of its channels.
    pub channel: ChannelId,
    /// What, signed.
    pub change: StationsRequest,
    /// Seconds since 1970, to judge its age.
    pub now: u64,
}

/// A change that may be made.
struct Judged {
    account: AccountId,
    station: Station,
}

impl Controller {
    pub(super) fn change_stations(&mut self, ask: StationsAsk, out: &mut Out) {
        let answer = match self.judge(&ask) {
            Ok(Judged { account, station }) if ask.change.binding.remove => {
                let nonce = ask.change.binding.nonce;
                self.record(ask.channel, ProviderEvent::Unbound { station, nonce }, out);
                self.share(account, out);
                Ok(Answer::Account(Box::new(self.account_of(account, station))))
            }
            Ok(Judged { account, station }) => match self.accounts.seat(station) {
                // What was done before is answered as it was then.
                Some(seat) if seat.bound && seat.account == account => {
                    Ok(Answer::Account(Box::new(self.account_of(account, station))))
                }
                Some(seat) if self.accounts.held(station) > Octets(0) => {
                    self.accounts.retire(station);
                    self.moves.insert(station, ask);
                    return self.share(seat.account, out);
                }
                _ => return self.bind(ask, out),
            },
            Err(refusal) => Err(refusal),
        };
        out.act(Action::Reply(ask.request, answer));
    }

    fn judge(&self, ask: &StationsAsk) -> Result<Judged, Refusal> {
        let StationsRequest { binding, signature } = &ask.change;
        let channel = self.book.get(&ask.channel).ok_or(Refusal::UnknownChannel)?;
        let account = self.accounts.of_channel(&ask.channel).ok_or(Refusal::UnknownChannel)?;
        channel
            .judge_binding(&self.secp, binding, signature, ask.now)
            .map_err(Refusal::Stations)?;
        let station = binding.station.unwrap_or(ask.peer);
        if self.moves.contains_key(&station) {
            return Err(Refusal::Moving);
        }
        let bound = self.accounts.seat(station);
        self.check_stays(Some(account))?;
        self.check_stays(bound.map(|seat| seat.account))?;
        self.check_not_arriving(station)?;
        let bound = bound.is_some_and(|seat| seat.bound && seat.account == account);
        let refused = if binding.remove {
            (!bound).then_some(BindingError::NotBound)
        } else if station != ask.peer {
            Some(BindingError::OtherStation { wanted: station, asking: ask.peer })
        } else {
            let full = self.accounts.members(account) >= STATIONS_PER_ACCOUNT_MAX;
            (full && !bound).then_some(BindingError::TooManyStations)
        };
        refused.map_or(Ok(Judged { account, station }), |error| Err(Refusal::Stations(error)))
    }

    /// Binds a station that holds nothing of another account's.
    fn bind(&mut self, ask: StationsAsk, out: &mut Out) {
        let answer = self.judge(&ask).map(|Judged { account, station }| {
            let (nonce, used) = (ask.change.binding.nonce, self.accounts.usage(station));
            self.write_down(station, out);
            if self.accounts.seat(station).is_some_and(|seat| seat.account != account) {
                self.leave(station, out);
            }
            self.record(ask.channel, ProviderEvent::Bound { station, nonce, used }, out);
            self.share(account, out);
            Answer::Account(Box::new(self.account_of(account, station)))
        });
        out.act(Action::Reply(ask.request, answer));
    }

    /// What is reclaimed is read by now: it is given to who waits for it, and stations that have
    /// nothing of their old account's any more change to the new one.
    pub(super) fn reclaimed(
        &mut self,
        stations: Vec<Station>,
        readings: Vec<(Station, Usage)>,
        out: &mut Out,
    ) {
        for (station, usage) in readings {
            self.read(station, usage);
        }
        let mut accounts = BTreeSet::new();
        for station in stations {
            self.accounts.reclaimed(station);
            accounts.extend(self.accounts.seat(station).map(|seat| seat.account));
            if self.accounts.held(station) == Octets(0)
                && let Some(ask) = self.moves.remove(&station)
            {
                self.move_on(station, ask, out);
            }
        }
        for account in accounts {
            self.share(account, out);
            self.settle_late(account, out);
            self.take_off(account, out);
        }
    }

    /// A station goes over to another account: what it used until now stays with the one it had. One
    /// without a channel is in no journal.
    pub(super) fn leave(&mut self, station: Station, out: &mut Out) {
        let seat = self.accounts.seat(station);
        if let Some(channel) = seat.and_then(|seat| self.accounts.a_channel_of(seat.account)) {
            let used = self.accounts.usage(station);
            self.record(channel, ProviderEvent::Left { station, used }, out);
        }
    }

    fn move_on(&mut self, station: Station, ask: StationsAsk, out: &mut Out) {
        self.bind(ask, out);
        let moved = self.accounts.seat(station).map(|seat| seat.account)
            == self.accounts.of_channel(&ask.channel);
        if !moved {
            self.accounts.keep(station);
        }
    }

    pub(super) fn take_usage(&mut self, readings: Vec<(Station, Usage)>, out: &mut Out) {
        for (station, usage) in readings {
            self.read(station, usage);
        }
        let changes = self.accounts.balance();
        self.carry_out(changes, out);
    }

    pub(super) fn take_reading(&mut self, station: Station, usage: Usage, out: &mut Out) {
        self.read(station, usage);
        if let (true, Some(seat)) = (self.accounts.is_shared(station), self.accounts.seat(station))
        {
            self.share(seat.account, out);
        }
    }

    pub(super) fn read(&mut self, station: Station, usage: Usage) {
        if self.accounts.read(station, usage) {
            self.unwritten.insert(station);
        }
    }

    pub(super) fn checkpoint(&mut self, out: &mut Out) {
        for station in std::mem::take(&mut self.unwritten) {
            let usage = self.accounts.usage(station);
            out.record(Entry::Usage { station, usage });
        }
        for station in std::mem::take(&mut self.ungranted) {
            self.accounts.set_room(station, true);
            if let Some(seat) = self.accounts.seat(station) {
                self.share(seat.account, out);
            }
        }
    }

    pub(super) fn share(&mut self, account: AccountId, out: &mut Out) {
        let changes = self.accounts.share(account);
        self.carry_out(changes, out);
    }

    fn carry_out(&self, changes: Vec<Change>, out: &mut Out) {
        for change in changes {
            out.act(match change {
                Change::Grant { station, limit, low } => {
                    let usage = self.accounts.usage(station);
                    Action::Grant { station, limit, low, usage }
                }
                Change::Reclaim { station, limit } => Action::Reclaim { station, limit },
            });
        }
    }

    /// Judges what the kernel has for a station ([`Accounts::drift`]).
    ///
    /// [`Accounts::drift`]: crate::account::Accounts::drift
    pub fn drift(&self, station: Station, kernel: Option<(Octets, Usage)>) -> Option<Drift> {
        self.accounts.drift(station, kernel)
    }

    /// A station and all that share an account with it.
    pub fn company(&self, station: Station) -> Vec<Station> {
        match self.accounts.seat(station) {
            Some(seat) => self.accounts.stations(seat.account).collect(),
            None => vec![station],
        }
    }
}
