//! An edge of a fleet: signs of life, accounts that come and go.
//!
//! The clock here is the one since boot, which the kernel's leases end by, too: it goes on while the
//! machine is suspended. In a virtual machine that its host pauses it stands still, and so do the
//! leases: such an edge goes on for what was left of its hold time.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use bitcoin::Block;
use bitmesh_core::{
    account::AccountId,
    alarm::{self, Alarm, EdgeSight},
    bitcoin,
    channel::{Batch, ProviderEvent},
    controller::{Action, Controller, Input, Missing, Place},
    fleet::{EdgeNumber, HOLD_MIN, Hold, Lease, Silence},
};
use tracing::{debug, error, info, warn};

use super::{
    super::status::{FleetStatus, OtherEdge},
    Internal, Session,
    parked::Parked,
    seizing::Seizing,
};
use crate::{
    chain::{ChainError, ChainSource, whole_block},
    config::FleetConfig,
    dataplane::{self, since_boot},
    store::{EdgeRow, Store},
};

/// Longest time between two signs of life, which are looks at what is wanted, too.
const BEAT_MAX: Duration = Duration::from_millis(500);
/// Signs of life in a hold time at least.
const BEATS_PER_HOLD: u32 = 8;
/// Time between two looks while something is on its way.
const BEAT_BUSY: Duration = Duration::from_millis(100);
/// Between two counts of the accounts of all edges.
const COUNT_PAUSE: Duration = Duration::from_secs(15);

const _: () = assert!(BEAT_MAX.as_millis() * 4 <= HOLD_MIN.as_millis(), "lost beats are survived");

/// What the loop keeps of its fleet.
pub(super) struct Fleet {
    pub(super) edge: EdgeNumber,
    name: String,
    hold: Hold,
    lease: Lease,
    /// Until when the kernel's leases hold.
    leases_end: Option<Duration>,
    others: BTreeMap<EdgeNumber, (EdgeRow, Silence)>,
    /// Edges that were taken over and are silent since, each with its epoch and beat: that is told
    /// once.
    pub(super) fenced: BTreeMap<EdgeNumber, (i64, i64)>,
    pub(super) seizing: Seizing,
    pub(super) parked: Parked,
    /// Accounts that can't be taken.
    refused: BTreeSet<AccountId>,
    fetching: bool,
    last_beat: Instant,
    epoch: i64,
    came: u64,
    went: u64,
    /// No number is left whose keys could be used.
    out_of_keys: bool,
    /// Signs of life that came late.
    late: u64,
    /// Accounts of each edge, and when they were counted.
    counts: BTreeMap<EdgeNumber, u64>,
    counted: Option<Instant>,
}

impl Fleet {
    /// Has the controller join.
    pub(super) async fn join(
        config: &FleetConfig,
        store: &mut Store,
        controller: &mut Controller,
    ) -> Result<Self> {
        let edge = store.edge()?;
        controller.join(edge, store.next_key_index().await?);
        controller.use_keys(store.keys().await?);
        info!("edge {} of the fleet, number {edge}", config.edge);
        let now = Instant::now();
        Ok(Self {
            edge,
            name: config.edge.clone(),
            hold: config.hold,
            lease: Lease::new(config.hold),
            leases_end: None,
            others: BTreeMap::new(),
            fenced: BTreeMap::new(),
            seizing: Seizing::default(),
            parked: Parked::default(),
            refused: BTreeSet::new(),
            fetching: false,
            last_beat: now,
            epoch: 0,
            came: 0,
            went: 0,
            out_of_keys: false,
            late: 0,
            counts: BTreeMap::new(),
            counted: None,
        })
    }

    /// When leases in the kernel end: they have, before the first sign of life.
    fn ends(&self) -> Duration {
        self.lease.ends().unwrap_or_default()
    }

    /// Gives the first sign of life of a session.
    pub(super) async fn begin(&mut self, store: &mut Store) -> Result<()> {
        let started = since_boot();
        store.renew().await?;
        self.lease.renew(started);
        Ok(())
    }

    /// When the next sign of life is due.
    pub(super) fn next_beat(&self, controller: &Controller) -> Instant {
        let busy = self.parked.is_busy();
        let moving = controller.arriving() > controller.lost() || controller.leaving() > 0;
        let pause = (self.hold.get() / BEATS_PER_HOLD).min(BEAT_MAX);
        let moving = moving || !self.seizing.is_empty();
        self.last_beat + if busy || moving { BEAT_BUSY } else { pause }
    }

    /// Other edges as they were seen last, and those that are silent for too long.
    fn see(&mut self, rows: Vec<EdgeRow>) -> Vec<EdgeRow> {
        let now = since_boot();
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

    fn count_of(&self, edge: EdgeNumber) -> u64 {
        self.counts.get(&edge).copied().unwrap_or(0)
    }

    /// Since the last sign of life of this edge that succeeded.
    fn silent(&self, now: Duration) -> Duration {
        let last = self.lease.ends().map(|ends| ends.saturating_sub(self.hold.granting()));
        last.map(|last| now.saturating_sub(last)).unwrap_or_default()
    }

    pub(super) fn alarms(&self) -> Vec<Alarm> {
        let now = since_boot();
        let others = self.others.values().map(|(row, silence)| EdgeSight {
            edge: row.number,
            name: &row.name,
            hold: silence.hold(),
            silent: silence.lasted(now),
            accounts: self.count_of(row.number),
            taken_over: self.fenced.contains_key(&row.number),
        });
        alarm::of_fleet(self.hold, self.silent(now), others)
    }

    /// A sign of life begins: whether it comes late is counted, and told.
    fn begin_beat(&mut self, now: Duration) {
        let since = self.silent(now);
        if alarm::is_late(self.hold, since) {
            self.late += 1;
            warn!(
                "the last sign of life was {} ms ago; at {} ms this edge ends to grant",
                since.as_millis(),
                self.hold.granting().as_millis()
            );
        }
    }

    pub(super) fn status(&self, controller: &Controller) -> FleetStatus {
        let now = since_boot();
        let other = |(row, silence): &(EdgeRow, Silence)| OtherEdge {
            number: row.number.get(),
            name: row.name.clone(),
            epoch: row.epoch,
            silent_ms: u64::try_from(silence.lasted(now).as_millis()).unwrap_or(u64::MAX),
            taken_over: self.fenced.contains_key(&row.number),
            accounts: self.count_of(row.number),
        };
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        FleetStatus {
            edge: self.name.clone(),
            number: self.edge.get(),
            epoch: self.epoch,
            hold_seconds: self.hold.get().as_secs(),
            may_grant: self.lease.may_grant(now),
            accounts: self.count_of(self.edge),
            silent_ms: u64::try_from(self.silent(now).as_millis()).unwrap_or(u64::MAX),
            beats_late: self.late,
            accounts_arriving: count(controller.arriving()),
            accounts_leaving: count(controller.leaving()),
            accounts_lost: count(controller.lost() + self.refused.len()),
            accounts_came: self.came,
            accounts_went: self.went,
            requests_waiting: count(self.parked.len()),
            late_settled_octets: controller.late().0,
            late_lost_octets: controller.late().1,
            others: self.others.values().map(other).collect(),
        }
    }
}

impl Session<'_> {
    /// Terms of a lease, which ends when this edge may not grant any more.
    pub(super) fn terms_of(&self, port: Option<u32>, ipv4: Option<Ipv4Addr>) -> dataplane::Terms {
        let ends = self.fleet.as_ref().map(Fleet::ends);
        dataplane::Terms { ends, ..self.config.terms_of(port, ipv4) }
    }

    /// Gives a sign of life, and follows what goes on in the fleet.
    pub(super) async fn beat(&mut self, out: &mut Batch<ProviderEvent, Action>) -> Result<()> {
        let Some(fleet) = &mut self.fleet else { return Ok(()) };
        fleet.last_beat = Instant::now();
        fleet.parked.forget_claims();
        let started = since_boot();
        fleet.begin_beat(started);
        let beat = self.foundation.store.renew().await?;
        fleet.lease.renew(started);
        if fleet.counted.is_none_or(|at| at.elapsed() >= COUNT_PAUSE) {
            fleet.counted = Some(Instant::now());
            fleet.counts = self.foundation.store.account_counts().await?.into_iter().collect();
        }
        if !self.controller.has_keys() && !fleet.out_of_keys {
            if let Some(number) = self.foundation.store.fresh_keys().await? {
                info!("this edge's keys are used up: it goes on with those of number {number}");
                self.controller.use_keys(number);
            } else {
                fleet.out_of_keys = true;
                error!(
                    "every key of this fleet's seed is used up: no channels are opened here any more, \
                     those that are open go on. Set up a fleet with another seed for new ones"
                );
            }
        }
        let over = fleet.see(beat.edges);
        self.take_over(over).await?;
        self.look_up(out).await?;
        let Some(fleet) = &mut self.fleet else { return Ok(()) };
        let now = since_boot();
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
        let mut arriving = std::mem::take(&mut fleet.parked.due);
        arriving.extend(beat.arriving);
        let arriving: Vec<_> = arriving.into_iter().filter(new).collect();
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
        self.controller.handle(Input::UsedLate(beat.late), out);
        self.fetch_missing();
        self.renew_leases();
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
        if let Some(fleet) = &mut self.fleet {
            fleet.fetching = false;
        }
        let now = since_boot();
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
