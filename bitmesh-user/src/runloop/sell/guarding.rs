//! What the guard tells, and what follows from it.

use std::collections::{BTreeSet, VecDeque};

use tracing::{error, info, warn};

use super::{
    super::{
        now,
        status::{GuardEvent, GuardStatus},
    },
    answer::{direction, hook_name},
};
use crate::{
    dataplane::{Change, Hook},
    guard::{Cookies, Guard},
};

/// Changes that `status` shows.
const RECENT_EVENTS: usize = 16;

/// The guard, and where programs are by what it told.
pub(super) struct Guarding {
    guard: Guard,
    hooks: Vec<Hook>,
    put_back: u64,
    recent: VecDeque<GuardEvent>,
}

impl Guarding {
    pub(super) fn new(guard: Guard, hooks: &[Hook]) -> Self {
        Self { guard, hooks: hooks.to_vec(), put_back: 0, recent: VecDeque::new() }
    }

    pub(super) fn cookies(&self) -> Cookies {
        self.guard.cookies()
    }

    /// Tells the guard that this provider sells.
    pub(super) async fn selling(&self) {
        self.guard.selling().await;
    }

    /// The next change; `None` when the guard is gone.
    pub(super) async fn change(&mut self) -> Option<Change> {
        self.guard.change().await
    }

    pub(super) fn hooks(&self) -> &[Hook] {
        &self.hooks
    }

    /// Names of the interfaces that are metered, as they are called now.
    pub(super) fn ports(&self) -> BTreeSet<String> {
        self.hooks.iter().map(|hook| hook.interface.clone()).collect()
    }

    pub(super) fn status(&self) -> GuardStatus {
        GuardStatus {
            pid: self.guard.pid,
            put_back: self.put_back,
            recent: self.recent.iter().cloned().collect(),
        }
    }

    /// Logs and remembers it.
    pub(super) fn note(&mut self, change: &Change) {
        let what = match change {
            Change::Gone { interface, index } => {
                self.hooks.retain(|hook| hook.interface != *interface);
                format!("{interface} (interface {index}) is gone")
            }
            Change::Renamed { from, interface, index } => {
                for hook in self.hooks.iter_mut().filter(|hook| hook.interface == *from) {
                    hook.interface.clone_from(interface);
                }
                format!("{from} (interface {index}) is called {interface} now and stays metered")
            }
            Change::Attached { interface, index, hooks } => {
                self.hooks.retain(|hook| hook.interface != *interface);
                self.hooks.extend(hooks.iter().cloned());
                self.put_back += 1;
                let kinds: Vec<_> = hooks.iter().map(hook_name).collect();
                format!(
                    "{interface} is back as interface {index} and metered ({})",
                    kinds.join(", ")
                )
            }
            Change::Restored { hook } => {
                let same =
                    |known: &Hook| known.interface == hook.interface && known.side == hook.side;
                self.hooks.retain(|known| !same(known));
                self.hooks.push(hook.clone());
                self.put_back += 1;
                let (direction, interface) = (direction(hook.side), &hook.interface);
                format!("the {direction} program had been taken off {interface} and is back")
            }
            Change::BeltRestored => {
                self.put_back += 1;
                "the belt behind the programs had been taken away and is back".to_owned()
            }
            Change::Failed { message } => message.clone(),
        };
        match change {
            Change::Failed { .. } => error!("{what}"),
            Change::Gone { .. } | Change::Renamed { .. } => info!("{what}"),
            _ => warn!("{what}"),
        }
        if self.recent.len() == RECENT_EVENTS {
            self.recent.pop_front();
        }
        self.recent.push_back(GuardEvent { at: now(), what });
    }
}
