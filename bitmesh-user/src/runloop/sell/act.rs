//! What the controller decided, done: limits raised and lowered, answers sent, transactions handed
//! on; and what the kernel counted, read.

use std::collections::BTreeSet;

use anyhow::Result;
use bitmesh_core::{
    channel::{Batch, ProviderEvent},
    controller::{Action, Answer, Input, Refusal},
    ledger::{Counts, Usage},
    station::Station,
    units::Octets,
};
use tracing::{debug, info, warn};

use super::{
    Session,
    edge::{spent, usage_of},
};
use crate::{
    api::{ApiError, Ask, Body, Origin},
    dataplane::{self, DataplaneError, StationKey, StationUsage},
};

/// What came of the actions of a batch.
#[derive(Default)]
pub(super) struct Done {
    /// Stations that the kernel has no room for.
    refused: BTreeSet<Station>,
    /// Stations whose limits were lowered.
    reclaimed: Vec<Station>,
    /// Accounts whose stations are off the table, with what these have used.
    taken_off: Vec<Input>,
    /// Claims, to be made durable before they are broadcast.
    signed: Vec<Input>,
}

impl Session<'_> {
    /// What was done goes back to the controller: claims that were signed, and limits that were
    /// lowered with what was used until then, of all that share the credit.
    pub(super) fn tell_done(&mut self, done: Done) -> Batch<ProviderEvent, Action> {
        let mut out = Batch::default();
        for input in done.signed.into_iter().chain(done.taken_off) {
            self.controller.handle(input, &mut out);
        }
        let stations = done.reclaimed;
        if !stations.is_empty() {
            let company: BTreeSet<_> =
                stations.iter().flat_map(|station| self.controller.company(*station)).collect();
            let readings = company.into_iter().filter_map(|station| {
                Some((station, usage_of(&self.dataplane.usage(station.key())?)))
            });
            let readings = readings.collect();
            self.controller.handle(Input::Reclaimed { stations, readings }, &mut out);
        }
        out
    }

    pub(super) fn perform(&mut self, action: Action, done: &mut Done) {
        match action {
            Action::Reclaim { station, limit } => {
                // One that is not in the table holds nothing.
                if let Err(error) = self.dataplane.set_limit(station.key(), limit.0) {
                    debug!("{station} had no lease to reclaim: {error}");
                }
                done.reclaimed.push(station);
            }
            Action::Grant { station, limit, usage, low } => {
                let key = station.key();
                if let Some((account, _)) = self.controller.payer(station) {
                    self.desk.gate.payers.add(station, account);
                }
                let granted = self.grant(station, limit, usage);
                if let Err(error) = granted.and_then(|()| self.dataplane.set_low(key, low.0)) {
                    warn!("{station} can't use what it bought yet: {error}");
                    done.refused.insert(station);
                    self.refuse(station);
                }
            }
            Action::TakeOff { account, stations } => {
                let readings = stations.into_iter().filter_map(|station| {
                    Some((station, usage_of(&self.dataplane.remove(station.key())?)))
                });
                let readings = readings.collect();
                done.taken_off.push(Input::TakenOff { account, readings });
            }
            Action::Reply(request, answer) => {
                let Some(reply) = self.pending.remove(&request) else { return };
                let answer = match answer {
                    Ok(Answer::Payment(paid)) if done.refused.contains(&paid.account.station) => {
                        Err(Refusal::TableFull.into())
                    }
                    Ok(Answer::Payment(paid)) => Ok(Body::Paid(paid)),
                    Ok(Answer::Channel(report)) => Ok(Body::of(report)),
                    Ok(Answer::Account(report)) => Ok(Body::of(report)),
                    Err(refusal) => Err(ApiError::from(refusal)),
                };
                // Who asked may have gone; what was stored stays.
                let _ = reply.send(answer);
            }
            Action::Claim(planned) => done.signed.extend(self.sign_claim(planned)),
            Action::Present { request, channel, tx } => self.present(request, channel, tx),
            Action::CheckOffered(offered) => self.check_offered(offered),
            Action::Broadcast(tx) => self.broadcast(tx),
        }
    }

    /// The kernel has no room for a station at this moment.
    pub(super) fn refuse(&mut self, station: Station) {
        let mut none = Batch::default();
        self.controller.handle(Input::GrantFailed(station), &mut none);
        debug_assert!(none.entries().is_empty(), "a failed grant stores nothing");
    }

    pub(super) fn grant(
        &mut self,
        station: Station,
        limit: Octets,
        usage: Usage,
    ) -> Result<(), DataplaneError> {
        let key = station.key();
        if self.dataplane.usage(key).is_some() {
            return self.dataplane.set_bought(key, limit.0);
        }
        let counts = |counts: Counts| dataplane::Counts {
            octets: counts.octets.0,
            frames: counts.frames,
            refused_octets: counts.refused_octets.0,
            refused_frames: counts.refused_frames,
        };
        let used = StationUsage { up: counts(usage.up), down: counts(usage.down) };
        // Nothing is granted before the lease has its end.
        let spent = usage.billed().0.min(limit.0);
        let inserted = self.dataplane.insert(key, used, spent);
        if matches!(inserted, Err(DataplaneError::TableFull { .. })) {
            self.crowded = true;
        }
        inserted?;
        let terms = self.terms_of(self.told.port(key), self.told.ipv4(key));
        self.dataplane.set_terms(key, &terms)?;
        self.dataplane.set_bought(key, limit.0)
    }

    /// A station opens a channel: from now on it is bound to where it does.
    pub(super) fn opens(&mut self, key: StationKey, from: Origin) {
        // Where stations are behind a bridge, it answers them for all its ports.
        let ports = self.guarding.ports();
        let is_port = self
            .desk
            .lan
            .iter()
            .any(|lan| lan.index == from.interface && ports.contains(&lan.name));
        self.told.opens(key, is_port.then_some(from.interface), from.address);
        if self.dataplane.usage(key).is_some() {
            let terms = self.terms_of(self.told.port(key), self.told.ipv4(key));
            if let Err(error) = self.dataplane.set_terms(key, &terms) {
                warn!("{} is bound to where it was: {error}", Station::from(key));
            }
        }
    }

    /// Gives every station in the table the terms of today's settings. Each stays bound to the port
    /// and the address that it was.
    pub(super) fn renew_terms(&mut self) {
        let keys: Vec<_> = self.dataplane.stations().map(|(key, ..)| key).collect();
        for key in keys {
            let (port, ipv4) = self.dataplane.bound(key);
            let terms = self.terms_of(port, ipv4);
            if let Err(error) = self.dataplane.set_terms(key, &terms) {
                warn!("{} keeps its earlier terms: {error}", Station::from(key));
            }
        }
    }

    /// Has stations that spent all leave the full table, once what they used is written down: nothing
    /// else remembers it. Their slots can be used after a rest; the grants that found no place are tried
    /// again at the next checkpoint.
    pub(super) async fn make_room(&mut self) -> Result<()> {
        let leaving = spent(&self.controller, self.dataplane);
        if leaving.is_empty() {
            warn!("the station table is full of stations with credit: --table-slots");
            return Ok(());
        }
        let mut readings = Vec::with_capacity(leaving.len());
        for (key, limit) in leaving {
            let Some(used) = self.dataplane.usage(key) else { continue };
            // Frames on several CPUs can have gone beyond the limit: it is never raised to that.
            self.dataplane.set_limit(key, usage_of(&used).billed().0.min(limit))?;
            let used = self.dataplane.usage(key).map(|used| usage_of(&used));
            readings.extend(used.map(|used| (Station::from(key), used)));
        }
        let mut out = Batch::default();
        self.controller.handle(Input::Usage(readings.clone()), &mut out);
        self.controller.handle(Input::Checkpoint, &mut out);
        self.settle(out).await?;
        let mut left = 0;
        for (station, written) in readings {
            let used = self.dataplane.usage(station.key()).map(|used| usage_of(&used).billed());
            if used == Some(written.billed()) {
                self.dataplane.remove(station.key());
                left += 1;
            }
        }
        info!("the station table was full; {left} that had spent all left it");
        Ok(())
    }

    pub(super) fn read_one(&mut self, key: StationKey, out: &mut Batch<ProviderEvent, Action>) {
        if let Some(used) = self.dataplane.usage(key) {
            let reading = Input::Reading(Station::from(key), usage_of(&used));
            self.controller.handle(reading, out);
        }
    }

    /// Reads the counters that a question is about, out of turn: its answer is of now, however seldom they
    /// are read at rest.
    pub(super) fn read_for(&mut self, ask: &Ask, out: &mut Batch<ProviderEvent, Action>) {
        match ask {
            Ask::Account(station) => {
                for station in self.controller.company(*station) {
                    self.read_one(station.key(), out);
                }
            }
            Ask::Stations | Ask::Status => {
                for (key, used) in self.dataplane.moved() {
                    let reading = Input::Reading(Station::from(key), usage_of(&used));
                    self.controller.handle(reading, out);
                }
            }
            _ => {}
        }
    }

    /// Reads all counters; whether any changed.
    pub(super) fn read_usage(&mut self, out: &mut Batch<ProviderEvent, Action>) -> bool {
        let changed = self.dataplane.changed().into_iter();
        let readings: Vec<_> =
            changed.map(|(key, used)| (Station::from(key), usage_of(&used))).collect();
        let busy = !readings.is_empty();
        self.controller.handle(Input::Usage(readings), out);
        busy
    }
}
