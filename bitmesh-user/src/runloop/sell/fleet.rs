//! An edge of a fleet: signs of life, accounts that come and go, requests that wait for them.
//!
//! The clock here is the monotonic one, which the kernel's leases go by, too: an edge that is
//! suspended has to be one whose clock goes on meanwhile, or it is not to be suspended.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use axum::http::StatusCode;
use bitcoin::Block;
use bitmesh_core::{
    account::AccountId,
    bitcoin,
    channel::{Batch, ProviderEvent},
    controller::{Action, Controller, Input, Missing, Place},
    fleet::{EdgeNumber, HOLD_MIN, Hold, Lease, Member, Silence},
    station::Station,
};
use tracing::{debug, error, info, warn};

use super::{
    super::status::{FleetStatus, OtherEdge},
    Internal, Session,
};
use crate::{
    api::{ApiError, Ask, Envelope},
    chain::{ChainError, ChainSource, whole_block},
    config::FleetConfig,
    dataplane::{self, EventKind, StationEvent},
    store::{EdgeRow, Store},
};

/// Longest time between two signs of life, which are looks at what is wanted, too.
const BEAT_MAX: Duration = Duration::from_millis(500);
/// Signs of life in a hold time at least.
const BEATS_PER_HOLD: u32 = 8;
/// Time between two looks while something is on its way.
const BEAT_BUSY: Duration = Duration::from_millis(100);
/// How long a request waits for an account that is elsewhere.
const PARKED_FOR: Duration = Duration::from_secs(3);
/// Requests that wait.
const PARKED_MAX: usize = 1_024;
/// Seconds after which who was told to come again should.
const RETRY_SECONDS: u16 = 1;
/// Stations and channels that are looked up at once; more wait for the next look.
const ASKED_AT_ONCE: usize = 256;
/// Those that wait to be looked up. A flood of new stations costs no more than that.
const ASKED_MAX: usize = 1_024;
/// How long it is remembered that nobody has something.
const ABSENT_FOR: Duration = Duration::from_secs(1);
/// Of how many things.
const ABSENT_MAX: usize = 16_384;

const _: () = assert!(BEAT_MAX.as_millis() * 4 <= HOLD_MIN.as_millis(), "lost beats are survived");

/// A request about something that is not here.
struct Parked {
    envelope: Envelope,
    until: Instant,
}

/// What the loop keeps of its fleet.
pub(super) struct Fleet {
    edge: EdgeNumber,
    name: String,
    hold: Hold,
    lease: Lease,
    began: Instant,
    /// Until when the kernel's leases hold.
    leases_end: Option<Duration>,
    others: BTreeMap<EdgeNumber, (EdgeRow, Silence)>,
    /// Edges that were taken over and are silent since, each with its epoch and beat: that is told
    /// once.
    fenced: BTreeMap<EdgeNumber, (i64, i64)>,
    asked: BTreeSet<Member>,
    absent: HashMap<Member, Instant>,
    parked: Vec<Parked>,
    /// Accounts that can't be taken.
    refused: BTreeSet<AccountId>,
    fetching: bool,
    last_beat: Instant,
    epoch: i64,
    came: u64,
    went: u64,
}

impl Fleet {
    /// Has the controller join, and takes off the kernel what another edge has taken over.
    pub(super) async fn join(
        config: &FleetConfig,
        store: &mut Store,
        controller: &mut Controller,
        dataplane: &mut dataplane::Dataplane,
    ) -> Result<Self> {
        let edge = store.edge()?;
        controller.join(edge, store.next_key_index().await?);
        if store.seized()? {
            let keys: Vec<_> = dataplane.stations().map(|(key, ..)| key).collect();
            warn!(
                "another edge took this one's accounts over while it was silent: what its kernel \
                 still had of {} stations ends",
                keys.len()
            );
            for key in keys {
                dataplane.remove(key);
            }
        }
        info!("edge {} of the fleet, number {edge}", config.edge);
        let now = Instant::now();
        Ok(Self {
            edge,
            name: config.edge.clone(),
            hold: config.hold,
            lease: Lease::new(config.hold),
            began: now,
            leases_end: None,
            others: BTreeMap::new(),
            fenced: BTreeMap::new(),
            asked: BTreeSet::new(),
            absent: HashMap::new(),
            parked: Vec::new(),
            refused: BTreeSet::new(),
            fetching: false,
            last_beat: now,
            epoch: 0,
            came: 0,
            went: 0,
        })
    }

    pub(super) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// When leases in the kernel end.
    fn ends(&self) -> Instant {
        self.began + self.lease.ends().unwrap_or_default()
    }

    /// Gives the first sign of life of a session.
    pub(super) async fn begin(&mut self, store: &mut Store) -> Result<()> {
        let started = self.now();
        store.renew().await?;
        self.lease.renew(started);
        Ok(())
    }

    /// When the next sign of life is due.
    pub(super) fn next_beat(&self, controller: &Controller) -> Instant {
        let busy = !self.parked.is_empty() || !self.asked.is_empty();
        let moving = controller.arriving() > controller.lost() || controller.leaving() > 0;
        let pause = (self.hold.get() / BEATS_PER_HOLD).min(BEAT_MAX);
        self.last_beat + if busy || moving { BEAT_BUSY } else { pause }
    }

    fn is_absent(&self, member: &Member) -> bool {
        self.absent.get(member).is_some_and(|since| since.elapsed() < ABSENT_FOR)
    }

    /// Whether something has to be looked up, or waited for, before it is decided on.
    fn waits(&self, member: &Member, controller: &Controller) -> bool {
        match controller.place_of(*member) {
            Place::Here | Place::Leaving => false,
            Place::Arriving => true,
            Place::Elsewhere => !self.is_absent(member),
        }
    }

    fn ask(&mut self, member: Member) {
        if self.asked.len() < ASKED_MAX && !self.is_absent(&member) {
            self.asked.insert(member);
        }
    }

    fn note_absent(&mut self, members: impl Iterator<Item = Member>) {
        self.absent.retain(|_, since| since.elapsed() < ABSENT_FOR);
        for member in members {
            if self.absent.len() < ABSENT_MAX {
                self.absent.insert(member, Instant::now());
            }
        }
    }

    /// Other edges as they were seen last, and those that are silent for too long.
    fn see(&mut self, rows: Vec<EdgeRow>) -> Vec<EdgeRow> {
        let now = self.now();
        let mut over = Vec::new();
        let mut seen = BTreeMap::new();
        for row in rows {
            if row.number == self.edge {
                self.epoch = row.epoch;
                continue;
            }
            let hold = Duration::from_millis(row.hold_ms.unsigned_abs());
            // One that is out of bounds is another program's: it is waited for as long as can be.
            let hold = Hold::new(hold).or(Hold::new(bitmesh_core::fleet::HOLD_MAX));
            let hold = hold.unwrap_or_default();
            let (epoch, beat) = (row.epoch.cast_unsigned(), row.beat.cast_unsigned());
            let silence = match self.others.remove(&row.number) {
                Some((_, mut silence)) => {
                    silence.see(hold, epoch, beat, now);
                    silence
                }
                None => Silence::new(hold, epoch, beat, now),
            };
            if self.fenced.get(&row.number).is_some_and(|known| *known != (row.epoch, row.beat)) {
                self.fenced.remove(&row.number);
                info!("edge {} is back", row.name);
            }
            if silence.is_over(now) {
                over.push(row.clone());
            }
            seen.insert(row.number, (row, silence));
        }
        self.others = seen;
        over
    }

    pub(super) fn status(&self, controller: &Controller) -> FleetStatus {
        let now = self.now();
        let other = |(row, silence): &(EdgeRow, Silence)| OtherEdge {
            number: row.number.get(),
            name: row.name.clone(),
            epoch: row.epoch,
            silent_ms: u64::try_from(silence.lasted(now).as_millis()).unwrap_or(u64::MAX),
            taken_over: self.fenced.contains_key(&row.number),
        };
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        FleetStatus {
            edge: self.name.clone(),
            number: self.edge.get(),
            epoch: self.epoch,
            hold_seconds: self.hold.get().as_secs(),
            may_grant: self.lease.may_grant(now),
            accounts_arriving: count(controller.arriving()),
            accounts_leaving: count(controller.leaving()),
            accounts_lost: count(controller.lost() + self.refused.len()),
            accounts_came: self.came,
            accounts_went: self.went,
            requests_waiting: count(self.parked.len()),
            others: self.others.values().map(other).collect(),
        }
    }
}

/// What a request is about.
fn members(ask: &Ask) -> Vec<Member> {
    match ask {
        Ask::Open(station, ..) | Ask::Account(station) => vec![Member::Station(*station)],
        Ask::ChangeStations(channel, peer, change) => {
            let station = change.binding.station.unwrap_or(*peer);
            vec![Member::Channel(*channel), Member::Station(station)]
        }
        Ask::Pay(pay) => vec![Member::Channel(pay.channel)],
        Ask::Channel(channel) | Ask::Fund(channel, _) | Ask::Close(channel, _) => {
            vec![Member::Channel(*channel)]
        }
        _ => Vec::new(),
    }
}

fn moving() -> ApiError {
    ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "moving",
        "this account is on its way here from another edge",
        "try again in a second",
    )
    .after(RETRY_SECONDS)
}

impl Session<'_> {
    /// Terms of a lease, which ends when this edge may not grant any more.
    pub(super) fn terms_of(&self, port: Option<u32>, ipv4: Option<Ipv4Addr>) -> dataplane::Terms {
        let ends = self.fleet.as_ref().map(Fleet::ends);
        dataplane::Terms { ends, ..self.config.terms_of(port, ipv4) }
    }

    /// Keeps a request that is about something that is not here, until it is or was not found.
    pub(super) fn park(&mut self, envelope: Envelope) -> Option<Envelope> {
        let Some(fleet) = &mut self.fleet else { return Some(envelope) };
        let missing: Vec<_> = members(&envelope.ask)
            .into_iter()
            .filter(|member| fleet.waits(member, &self.controller))
            .collect();
        if missing.is_empty() {
            return Some(envelope);
        }
        if fleet.parked.len() >= PARKED_MAX {
            let _ = envelope.reply.send(Err(moving()));
            return None;
        }
        for member in missing {
            fleet.ask(member);
        }
        fleet.parked.push(Parked { envelope, until: Instant::now() + PARKED_FOR });
        None
    }

    /// Takes requests up whose accounts have come, or whom nobody has; others are told to come again
    /// when they have waited for too long.
    pub(super) fn unpark(&mut self, out: &mut Batch<ProviderEvent, Action>) {
        let Some(fleet) = &mut self.fleet else { return };
        let now = Instant::now();
        let mut ready = Vec::new();
        for parked in std::mem::take(&mut fleet.parked) {
            let waits = members(&parked.envelope.ask);
            let waits: Vec<_> =
                waits.iter().filter(|member| fleet.waits(member, &self.controller)).collect();
            if waits.is_empty() {
                ready.push(parked.envelope);
            } else if now >= parked.until {
                let _ = parked.envelope.reply.send(Err(moving()));
            } else {
                for member in waits {
                    fleet.ask(*member);
                }
                fleet.parked.push(parked);
            }
        }
        for envelope in ready {
            self.take(envelope, out);
        }
    }

    /// Stations that are new on a port may have an account at another edge.
    pub(super) fn newcomers(&mut self, events: &[StationEvent]) {
        let Some(fleet) = &mut self.fleet else { return };
        for event in events.iter().filter(|event| event.kind == EventKind::NewStation) {
            let member = Member::Station(Station::from(event.station));
            if fleet.waits(&member, &self.controller) {
                fleet.ask(member);
            }
        }
    }

    /// Gives a sign of life, and follows what goes on in the fleet.
    pub(super) async fn beat(&mut self, out: &mut Batch<ProviderEvent, Action>) -> Result<()> {
        let Some(fleet) = &mut self.fleet else { return Ok(()) };
        fleet.last_beat = Instant::now();
        let started = fleet.now();
        let beat = self.foundation.store.renew().await?;
        fleet.lease.renew(started);
        let over = fleet.see(beat.edges);
        self.take_over(over).await?;
        self.look_up(out).await?;
        let Some(fleet) = &mut self.fleet else { return Ok(()) };
        let now = fleet.now();
        for wanted in beat.wanted {
            let before = self.controller.leaving();
            let (account, by) = (wanted.account, wanted.by);
            self.controller.handle(Input::Wanted { account, by, now }, out);
            if self.controller.leaving() > before {
                debug!("account {account} goes to edge {by}");
                fleet.went += 1;
            }
        }
        let new = |id: &AccountId| {
            self.controller.place(*id) == Place::Elsewhere && !fleet.refused.contains(id)
        };
        let arriving: Vec<_> = beat.arriving.into_iter().filter(new).collect();
        if !arriving.is_empty() {
            for taken in self.foundation.store.take(&arriving).await? {
                let accounts = taken.accounts.clone();
                match self.controller.take(taken, now, out) {
                    Ok(()) => fleet.came += accounts.len() as u64,
                    Err(wrong) => {
                        error!("{} accounts can't be taken: {wrong}", accounts.len());
                        fleet.refused.extend(accounts);
                    }
                }
            }
        }
        self.controller.handle(Input::Beat { now }, out);
        self.fetch_missing();
        self.renew_leases();
        Ok(())
    }

    /// Edges that were silent for longer than they may grant are fenced, and their accounts come here.
    async fn take_over(&mut self, over: Vec<EdgeRow>) -> Result<()> {
        for row in over {
            if !self.foundation.store.take_over(&row).await? {
                continue;
            }
            let fenced = (row.epoch.saturating_add(1), row.beat);
            if let Some(fleet) = &mut self.fleet
                && fleet.fenced.insert(row.number, fenced).is_none()
            {
                warn!(
                    "edge {} gave no sign of life for longer than {} ms: its accounts come here",
                    row.name, row.hold_ms
                );
            }
        }
        Ok(())
    }

    /// Finds out where things are, and asks for what other edges have.
    async fn look_up(&mut self, out: &mut Batch<ProviderEvent, Action>) -> Result<()> {
        let Some(fleet) = &mut self.fleet else { return Ok(()) };
        let mut asked = Vec::new();
        while asked.len() < ASKED_AT_ONCE
            && let Some(member) = fleet.asked.pop_first()
        {
            if self.controller.place_of(member) == Place::Elsewhere {
                asked.push(member);
            }
        }
        if asked.is_empty() {
            return Ok(());
        }
        let found = self.foundation.store.look_up(&asked).await?;
        let others = found.iter().filter(|found| found.edge != fleet.edge);
        let wanted: BTreeSet<_> = others.map(|found| found.account).collect();
        let known: BTreeSet<_> = found.iter().map(|found| found.member).collect();
        let absent: Vec<_> = asked.into_iter().filter(|member| !known.contains(member)).collect();
        let stations: Vec<_> = absent
            .iter()
            .filter_map(|member| match member {
                Member::Station(station) => Some(*station),
                Member::Channel(_) => None,
            })
            .collect();
        fleet.note_absent(absent.into_iter());
        if !wanted.is_empty() {
            let wanted: Vec<_> = wanted.into_iter().collect();
            self.foundation.store.want(&wanted).await?;
        }
        // Whoever pays for one that nobody pays for at present goes on from where it was.
        let parked = &fleet.parked;
        let asks = |station: &Station| {
            let member = Member::Station(*station);
            parked.iter().any(|parked| members(&parked.envelope.ask).contains(&member))
        };
        let stations: Vec<_> = stations.into_iter().filter(asks).collect();
        if !stations.is_empty() {
            let readings = self.foundation.store.usage_of(&stations).await?;
            self.controller.handle(Input::Usage(readings), out);
        }
        Ok(())
    }

    /// Fetches a block that accounts on their way here have not seen.
    fn fetch_missing(&mut self) {
        let Some(fleet) = self.fleet.as_mut().filter(|fleet| !fleet.fetching) else { return };
        let Some(missing) = self.controller.missing() else { return };
        fleet.fetching = true;
        let (source, internal) = (self.foundation.source.clone(), self.internal.clone());
        self.tasks.spawn(async move {
            let found = match missing_block(source.as_ref(), missing).await {
                Ok(block) => Some((missing.height, Arc::new(block))),
                Err(error) => {
                    debug!("the block at height {} is not there yet: {error}", missing.height);
                    None
                }
            };
            let _ = internal.send(Internal::Passed(found)).await;
        });
    }

    /// What became of that.
    pub(super) fn passed(&mut self, found: Option<(u32, Arc<Block>)>) -> Input {
        let now = self.fleet.as_mut().map_or(Duration::ZERO, |fleet| {
            fleet.fetching = false;
            fleet.now()
        });
        match found {
            Some((height, block)) => Input::Passed { height, block, now },
            None => Input::Beat { now },
        }
    }

    /// Leases in the kernel end when this edge may not grant any more: they are prolonged when that
    /// has moved on by an eighth of the hold time.
    fn renew_leases(&mut self) {
        let Some(fleet) = &mut self.fleet else { return };
        let ends = fleet.lease.ends();
        let due = fleet.leases_end.map(|end| end + fleet.hold.get() / BEATS_PER_HOLD);
        if ends >= due {
            fleet.leases_end = ends;
            self.renew_terms();
        }
    }

    /// Has the chain watched for channels that came.
    pub(super) fn watch_arrived(&mut self) {
        let came = self.fleet.as_ref().map_or(0, |fleet| fleet.came);
        if came != self.watched_arrivals {
            self.watched_arrivals = came;
            self.foundation.watch(self.controller.book());
        }
    }
}

async fn missing_block(source: &dyn ChainSource, missing: Missing) -> Result<Block, ChainError> {
    let hash = match missing.hash {
        Some(hash) => hash,
        None => source.hash_at(missing.height).await?,
    };
    whole_block(source, missing.height, hash).await
}
