//! What the loop waits for, and what it does with each thing that comes. Each turn is marked, so that
//! one that hangs is seen from outside.

use std::pin::Pin;

use anyhow::{Context as _, Result};
use bitmesh_core::{
    channel::{Batch, ChannelId, ProviderEvent},
    controller::Input,
};
use tokio::{
    signal::unix::Signal,
    time::{Instant, Interval, MissedTickBehavior, Sleep, interval, sleep},
};

use super::{
    ADDRESSES_INTERVAL, ALARMS_INTERVAL, BATCH_REQUESTS, CHECKPOINT_INTERVAL, DRIFT_INTERVAL,
    FEES_INTERVAL, Internal, Session, USAGE_INTERVAL, USAGE_INTERVAL_IDLE, stop::Stop,
};
use crate::{
    api::{Doing, Envelope},
    chain::{self, ChainEvent},
    dataplane::{Change, StationEvent},
    footprint,
    store::TIDY_INTERVAL_IDLE,
};

/// When things are due.
pub(super) struct Timers {
    usage: Pin<Box<Sleep>>,
    pace: std::time::Duration,
    checkpoint: Interval,
    fees: Interval,
    alarms: Interval,
    addresses: Interval,
    drift: Interval,
    tidy: Pin<Box<Sleep>>,
    /// The next sign of life of a fleet's edge.
    beat: Pin<Box<Sleep>>,
}

impl Timers {
    pub(super) fn new() -> Self {
        Self {
            usage: Box::pin(sleep(USAGE_INTERVAL)),
            pace: USAGE_INTERVAL,
            checkpoint: every(CHECKPOINT_INTERVAL),
            fees: every(FEES_INTERVAL),
            alarms: every(ALARMS_INTERVAL),
            addresses: every(ADDRESSES_INTERVAL),
            drift: every(DRIFT_INTERVAL),
            tidy: Box::pin(sleep(TIDY_INTERVAL_IDLE)),
            beat: Box::pin(sleep(std::time::Duration::ZERO)),
        }
    }

    fn read_again(&mut self) {
        self.usage.as_mut().reset(Instant::now() + self.pace);
    }
}

/// What came.
pub(super) enum Event {
    Asked,
    Chain(Option<ChainEvent>),
    Internal(Internal),
    Fees,
    Alarms,
    Told(Result<Vec<StationEvent>>),
    Usage,
    Checkpoint,
    Addresses,
    Drift,
    Tidy,
    Beat,
    Guard(Option<Change>),
    Reload,
    Stop,
}

impl Session<'_> {
    /// Waits for the next thing; envelopes are put into `envelopes`.
    pub(super) async fn next(
        &mut self,
        chain: &mut chain::Events,
        timers: &mut Timers,
        (stop, hangup): (&mut Stop, &mut Signal),
        envelopes: &mut Vec<Envelope>,
    ) -> Event {
        self.desk.front.doing(Doing::Waiting);
        let event = tokio::select! {
            _ = self.desk.mailbox.recv_many(envelopes, BATCH_REQUESTS) => Event::Asked,
            event = chain.recv() => Event::Chain(event),
            Some(internal) = self.internals.recv() => Event::Internal(internal),
            _ = timers.fees.tick() => Event::Fees,
            _ = timers.alarms.tick() => Event::Alarms,
            events = self.told.next() => Event::Told(events),
            () = &mut timers.usage => Event::Usage,
            _ = timers.checkpoint.tick() => Event::Checkpoint,
            _ = timers.addresses.tick() => Event::Addresses,
            _ = timers.drift.tick() => Event::Drift,
            () = &mut timers.tidy => Event::Tidy,
            () = &mut timers.beat, if self.fleet.is_some() => Event::Beat,
            change = self.guarding.change() => Event::Guard(change),
            _ = hangup.recv() => Event::Reload,
            _ = stop.asked() => Event::Stop,
        };
        self.desk.front.doing(Doing::Turn);
        event
    }

    /// Does what follows from it, and stores what was decided.
    pub(super) async fn turn(
        &mut self,
        event: Event,
        timers: &mut Timers,
        envelopes: &mut Vec<Envelope>,
    ) -> Result<()> {
        let mut out = Batch::default();
        match event {
            Event::Asked => {
                for envelope in envelopes.drain(..) {
                    self.take(envelope, &mut out);
                }
            }
            Event::Chain(event) => {
                let event = event.context("the task that follows the chain has ended")?;
                self.chain(event, &mut out)?;
            }
            Event::Internal(internal) => {
                let input = self.internal(internal);
                self.controller.handle(input, &mut out);
            }
            Event::Fees => self.ask_fees(),
            Event::Alarms => {
                self.tell_alarms();
                let _ = self.keep_status();
            }
            Event::Told(events) => {
                let events = events?;
                self.newcomers(&events);
                for key in self.told.note(&events) {
                    self.read_one(key, &mut out);
                }
            }
            Event::Usage => {
                let busy = self.read_usage(&mut out);
                timers.pace =
                    if busy { USAGE_INTERVAL } else { (timers.pace * 2).min(USAGE_INTERVAL_IDLE) };
                timers.read_again();
            }
            Event::Checkpoint => self.checkpoint(timers, &mut out).await?,
            Event::Addresses => self.read_addresses().await,
            Event::Drift => self.find_drift(&mut out),
            Event::Tidy => {
                let forgotten = |id: &ChannelId| self.controller.is_forgotten(id);
                let pause = {
                    let _writing = self.desk.front.writing();
                    self.foundation.store.tidy::<ProviderEvent>(forgotten).await?
                };
                if pause == TIDY_INTERVAL_IDLE {
                    footprint::give_back_program();
                }
                timers.tidy.as_mut().reset(Instant::now() + pause);
            }
            Event::Beat => {
                self.beat(&mut out).await?;
                self.settle(std::mem::take(&mut out)).await?;
                self.watch_arrived();
                self.unpark(&mut out);
            }
            Event::Guard(change) => {
                let gone = "the guard has ended; the programs and the belt hold: start again";
                self.changed(change.context(gone)?).await;
            }
            Event::Reload => self.reload(),
            Event::Stop => {}
        }
        self.settle(out).await?;
        if let Some(fleet) = &self.fleet {
            let due = Instant::from_std(fleet.next_beat(&self.controller));
            if due != timers.beat.deadline() {
                timers.beat.as_mut().reset(due);
            }
        }
        Ok(())
    }

    async fn checkpoint(
        &mut self,
        timers: &mut Timers,
        out: &mut Batch<ProviderEvent, super::Action>,
    ) -> Result<()> {
        self.tend();
        self.renew_offer();
        // Finished tasks are let go.
        while self.tasks.try_join_next().is_some() {}
        while self.answers.try_join_next().is_some() {}
        if self.read_usage(out) {
            timers.pace = USAGE_INTERVAL;
        }
        timers.read_again();
        self.controller.handle(Input::Checkpoint, out);
        if std::mem::take(&mut self.crowded) {
            self.settle(std::mem::take(out)).await?;
            self.make_room().await?;
        }
        Ok(())
    }
}

fn every(period: std::time::Duration) -> Interval {
    let mut interval = interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}
