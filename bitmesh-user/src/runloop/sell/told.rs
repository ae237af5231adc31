//! What the kernel tells at once, and what is remembered of it for `status`.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    net::{IpAddr, Ipv4Addr},
};

use anyhow::{Context as _, Result};
use bitmesh_core::station::Station;
use tokio::io::{Interest, unix::AsyncFd};
use tracing::{debug, warn};

use super::{
    super::status::{EventStatus, MovedStation},
    drift::Drifted,
};
use crate::dataplane::{EventKind, Events, StationEvent, StationKey};

/// Events that are taken at once.
const BATCH_EVENTS: usize = 1_024;
/// Stations whose port is remembered until they buy.
const NEWCOMERS_MAX: usize = 65_536;
/// Stations that moved lately, for `status`.
const MOVED_MAX: usize = 32;

/// The kernel's events.
pub(super) struct Told {
    events: AsyncFd<Events>,
    counts: BTreeMap<EventKind, u64>,
    ports: HashMap<StationKey, u32>,
    addresses: HashMap<StationKey, Ipv4Addr>,
    moved: VecDeque<MovedStation>,
    pub(super) drifted: Drifted,
}

impl Told {
    pub(super) fn new(events: Events) -> Result<Self> {
        // SAFETY: the ring buffer keeps one descriptor open for as long as it lives.
        let events = unsafe { AsyncFd::register_with_interest(events, Interest::READABLE) }
            .context("waiting for the kernel's events")?;
        Ok(Self {
            events,
            counts: BTreeMap::new(),
            ports: HashMap::new(),
            addresses: HashMap::new(),
            moved: VecDeque::new(),
            drifted: Drifted::default(),
        })
    }

    /// Waits until there are events, and takes some. Nothing is lost when it is not waited for.
    pub(super) async fn next(&mut self) -> Result<Vec<StationEvent>> {
        let mut ready = self.events.readable_mut().await.context("the kernel's events")?;
        let mut taken = Vec::new();
        while taken.len() < BATCH_EVENTS {
            let Some(event) = ready.get_inner_mut().next() else {
                ready.clear_ready();
                break;
            };
            taken.push(event);
        }
        Ok(taken)
    }

    /// Remembers events; the stations whose counters ask for a look.
    pub(super) fn note(&mut self, events: &[StationEvent]) -> BTreeSet<StationKey> {
        let mut urgent = BTreeSet::new();
        for event in events {
            *self.counts.entry(event.kind).or_default() += 1;
            let station = Station::from(event.station);
            match event.kind {
                EventKind::LowCredit | EventKind::Spent => {
                    urgent.insert(event.station);
                }
                EventKind::NewStation => {
                    debug!("{station} is new on port {}", event.port);
                    if self.ports.len() >= NEWCOMERS_MAX {
                        self.ports.clear();
                    }
                    self.ports.insert(event.station, event.port);
                }
                EventKind::StationMoved => self.moved(station, event),
            }
        }
        urgent
    }

    fn moved(&mut self, station: Station, event: &StationEvent) {
        let address = u32::try_from(event.value).ok().filter(|bits| *bits != 0);
        let seen =
            MovedStation { station, port: event.port, ipv4: address.map(Ipv4Addr::from_bits) };
        let known =
            |moved: &&mut MovedStation| (moved.station, moved.port) == (seen.station, seen.port);
        if let Some(known) = self.moved.iter_mut().find(known) {
            known.ipv4 = seen.ipv4;
        } else {
            warn!(
                "{station} sends from port {} and not from where it bought: it moved, or another \
                 device uses its MAC address; `--bind strict` drops such frames",
                event.port
            );
            if self.moved.len() >= MOVED_MAX {
                self.moved.pop_front();
            }
            self.moved.push_back(seen);
        }
    }

    /// Remembers where a station opens a channel from: its address and, where stations are not
    /// behind a bridge, its port.
    pub(super) fn opens(&mut self, station: StationKey, port: Option<u32>, address: IpAddr) {
        if self.addresses.len() >= NEWCOMERS_MAX {
            self.addresses.clear();
        }
        if let Some(port) = port {
            self.ports.insert(station, port);
        }
        if let IpAddr::V4(address) = address {
            self.addresses.insert(station, address);
        }
    }

    /// Forgets stations on a port that is gone.
    pub(super) fn gone(&mut self, port: u32) {
        self.ports.retain(|_, known| *known != port);
    }

    /// The IPv4 address that a station last opened a channel from.
    pub(super) fn ipv4(&self, station: StationKey) -> Option<Ipv4Addr> {
        self.addresses.get(&station).copied()
    }

    /// The port that a station was seen on last, before it bought.
    pub(super) fn port(&self, station: StationKey) -> Option<u32> {
        self.ports.get(&station).copied()
    }

    pub(super) fn status(&self) -> EventStatus {
        let counts = |counts: &mut dyn Iterator<Item = (EventKind, u64)>| {
            counts.map(|(kind, n)| (kind.name().to_owned(), n)).collect()
        };
        let lost = self.events.get_ref().lost().unwrap_or_else(|error| {
            warn!("the kernel's count of lost events can't be read: {error}");
            EventKind::ALL.map(|kind| (kind, 0))
        });
        EventStatus {
            told: counts(
                &mut EventKind::ALL
                    .into_iter()
                    .map(|kind| (kind, self.counts.get(&kind).copied().unwrap_or(0))),
            ),
            lost: counts(&mut lost.into_iter()),
            moved: self.moved.iter().cloned().collect(),
        }
    }
}
