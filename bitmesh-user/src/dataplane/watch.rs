//! Sees to it that the programs stay on the LAN ports: puts them back where somebody took them off,
//! and on interfaces that come back under a port's name.

use std::{
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{
    DataplaneError, Hook, TcHook, UploadHook,
    belt::{self, Belt},
    hooks::{self, Attacher},
    host,
    pins::{self, Holder, Pins, Side},
    ports::{self, Port},
    programs::{Pinned, Programs},
};

/// How often the belt is tried again after it could not be put on.
const BELT_RETRY: Duration = Duration::from_secs(10);

/// What was found, and what was done about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "kebab-case")]
pub enum Change {
    /// An interface is gone, and its pins with it.
    Gone {
        /// Its last name.
        interface: String,
        /// Its index.
        index: u32,
    },
    /// A metered interface has another name.
    Renamed {
        /// The old name.
        from: String,
        /// The new one.
        interface: String,
        /// Its index.
        index: u32,
    },
    /// A port came back as another interface, and is metered.
    Attached {
        /// The port.
        interface: String,
        /// The index of the new interface.
        index: u32,
        /// What was put on it.
        hooks: Vec<Hook>,
    },
    /// A program had been taken off and is back.
    Restored {
        /// Where it is.
        hook: Hook,
    },
    /// The belt had been taken away and is back.
    BeltRestored,
    /// Something could not be done; it is tried again.
    Failed {
        /// What, why and what to do.
        message: String,
    },
}

/// A port's interface.
#[derive(Clone, Debug)]
struct Watched {
    index: u32,
    called: String,
    /// Whether both programs were on it when it was last looked at.
    metered: bool,
    /// Whether it is in a group of the operator's.
    grouped: bool,
    /// What it was when it was asked for last; none, when that has to be done again.
    port: Option<Port>,
}

impl Watched {
    fn new(index: u32, called: String, metered: bool) -> Self {
        Self { index, called, metered, grouped: false, port: None }
    }
}

/// What was done to a port.
struct PutOn {
    port: Port,
    hooks: Vec<Hook>,
    grouped: bool,
}

/// Watches over one provider's ports.
pub struct Watch {
    named: Vec<String>,
    upload_hook: UploadHook,
    pins: Pins,
    namespace: u64,
    programs: Pinned,
    watched: Vec<Watched>,
    belt: Option<Belt>,
    belt_retry: Option<Instant>,
    failure: Option<String>,
}

impl Watch {
    /// Takes up what a dataplane has put on the ports and lends; the belt is put on by the first
    /// [`Watch::pass`].
    pub fn open(
        instance: &str,
        lan: Vec<String>,
        upload_hook: UploadHook,
        hold: OwnedFd,
    ) -> Result<Self, DataplaneError> {
        let pins = Pins::lent(instance, hold)?;
        let mut watched = Vec::new();
        for name in &lan {
            let port = Port::find(name)?;
            let (index, called) = (port.index, port.name);
            watched.push(Watched::new(index, called, true));
        }
        Ok(Self {
            named: lan,
            upload_hook,
            namespace: host::namespace()?,
            programs: Pinned::open(&pins)?,
            pins,
            watched,
            belt: None,
            belt_retry: None,
            failure: None,
        })
    }

    /// Looks whether the programs are on the ports and puts right what is not. With `links_changed`,
    /// the interfaces are asked for anew; with `rules_changed`, the belt too is looked at.
    pub fn pass(&mut self, links_changed: bool, rules_changed: bool) -> Vec<Change> {
        let mut changes = Vec::new();
        let asks = links_changed || self.failure.is_some();
        let mut failure = self.ports(asks, &mut changes).err();
        if let Err(error) = self.belt(rules_changed, &mut changes) {
            failure = failure.or(Some(error));
        }
        // The same failure is told once.
        let failure = failure.map(|error| error.to_string());
        if let Some(message) = failure.clone().filter(|_| failure != self.failure) {
            changes.push(Change::Failed { message });
        }
        self.failure = failure;
        changes
    }

    /// Takes everything off again: for a provider that could not start.
    pub fn let_go(self) -> Result<(), DataplaneError> {
        super::let_go(self.pins)
    }

    fn ports(&mut self, asks: bool, changes: &mut Vec<Change>) -> Result<(), DataplaneError> {
        let mut failed = if asks { self.ask(changes)? } else { None };
        for at in 0..self.watched.len() {
            if let Err(error) = self.meter(at, changes) {
                failed = Some(error);
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Finds the interfaces that are the ports now.
    fn ask(&mut self, changes: &mut Vec<Change>) -> Result<Option<DataplaneError>, DataplaneError> {
        self.follow(changes)?;
        let mut failed = None;
        for name in self.named.clone() {
            match ports::index_of(&name) {
                Ok(index) if self.watched.iter().all(|known| known.index != index) => {
                    self.watched.push(Watched::new(index, name, false));
                }
                Ok(_) | Err(DataplaneError::NoInterface { .. }) => {}
                Err(error) => failed = Some(error),
            }
        }
        Ok(failed)
    }

    /// Forgets interfaces that are gone and takes note of new names.
    fn follow(&mut self, changes: &mut Vec<Change>) -> Result<(), DataplaneError> {
        for Watched { index, called, metered, grouped, .. } in std::mem::take(&mut self.watched) {
            let Some(name) = ports::name_of(index)? else {
                for pin in self.pins.links()? {
                    if pin.namespace == self.namespace && pin.index == index {
                        pins::remove(&self.pins.link_path(&pin))?;
                    }
                }
                changes.push(Change::Gone { interface: called, index });
                continue;
            };
            if name != called {
                let interface = name.clone();
                changes.push(Change::Renamed { from: called, interface, index });
            }
            self.watched.push(Watched { index, called: name, metered, grouped, port: None });
        }
        Ok(())
    }

    /// Puts on an interface what is missing there.
    fn meter(&mut self, at: usize, changes: &mut Vec<Change>) -> Result<(), DataplaneError> {
        let Some(mut known) = self.watched.get(at).cloned() else { return Ok(()) };
        let mut done = self.attach(&known);
        // It may be another by now, or gone.
        if done.is_err() && known.port.take().is_some() {
            done = self.attach(&known);
        }
        if let Some(watched) = self.watched.get_mut(at) {
            watched.port = None;
            match &done {
                Ok(Some(PutOn { port, grouped, .. })) => {
                    (watched.metered, watched.grouped) = (true, *grouped);
                    watched.port = Some(port.clone());
                }
                Ok(None) => {}
                Err(_) => {
                    watched.metered = false;
                    belt::unmark(self.pins.instance(), watched.index)?;
                }
            }
        }
        let Some(PutOn { hooks, .. }) = done? else { return Ok(()) };
        if known.metered {
            changes.extend(hooks.into_iter().map(|hook| Change::Restored { hook }));
        } else if !hooks.is_empty() {
            let (interface, index) = (known.called, known.index);
            changes.push(Change::Attached { interface, index, hooks });
        }
        Ok(())
    }

    /// The hooks that had to be put on, and whether the operator has grouped it; `None` when the interface was renamed or removed at this
    /// very moment, of which the next pass knows.
    fn attach(&mut self, watched: &Watched) -> Result<Option<PutOn>, DataplaneError> {
        let mut port = match watched.port.clone().map_or_else(|| Port::find(&watched.called), Ok) {
            Ok(port) if port.index != watched.index => return Ok(None),
            Err(DataplaneError::NoInterface { .. }) => return Ok(None),
            found => found?,
        };
        let mut attacher = Attacher {
            programs: Programs::Pinned(&mut self.programs),
            pins: &self.pins,
            pinned: self.pins.links()?,
            namespace: self.namespace,
            tc_hook: TcHook::Auto,
        };
        let mut hooks = Vec::new();
        for side in [Side::Egress, Side::Ingress] {
            // A filter has no link that can be asked; replacing it would be noticed as a change.
            if attacher.found(&port, side) == Some(Holder::Clsact)
                && ports::has_filter(port.index, side, hooks::CLSACT_PRIORITY)?
            {
                continue;
            }
            let hook = if side == Side::Egress {
                let why = "downloads are metered where the port sends".to_owned();
                attacher.tc(&port, side, "download_tc", why)?
            } else {
                attacher.upload(&port, self.upload_hook)?
            };
            if !hook.taken_over {
                hooks.push(hook);
            }
        }
        let grouped = belt::mark(self.pins.instance(), &mut port)?;
        Ok(Some(PutOn { port, hooks, grouped }))
    }

    fn belt(&mut self, look: bool, changes: &mut Vec<Change>) -> Result<(), DataplaneError> {
        let names = self.named.iter().chain(self.watched.iter().map(|watched| &watched.called));
        let metered = self.watched.iter().filter(|watched| watched.metered && watched.grouped);
        let wanted = Belt {
            names: names.cloned().collect(),
            metered: metered.map(|watched| watched.index).collect(),
        };
        let instance = self.pins.instance();
        let known = self.belt.as_ref() == Some(&wanted);
        let due = self.belt_retry.is_some_and(|at| Instant::now() >= at);
        let lost = known && look && self.belt_retry.is_none() && !wanted.holds(instance);
        if known && !due && !lost {
            return Ok(());
        }
        let done = wanted.apply(instance);
        self.belt_retry = done.is_err().then(|| Instant::now() + BELT_RETRY);
        self.belt = Some(wanted);
        if lost && done.is_ok() {
            changes.push(Change::BeltRestored);
        }
        done
    }
}
