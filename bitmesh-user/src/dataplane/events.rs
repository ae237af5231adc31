//! What the kernel tells at once, by a ring buffer. A lost event costs latency, never money.

use std::{
    os::fd::{AsRawFd, RawFd},
    time::Duration,
};

use aya::{
    Ebpf,
    maps::{Map, MapData, PerCpuArray, RingBuf},
};
use bitmesh_common::{EVENT_KINDS, EVENTS_MAP, Event, EventKind, LOST_MAP, StationKey};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{DataplaneError, object};

/// An event about a station.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StationEvent {
    /// What happened.
    pub kind: EventKind,
    /// To whom.
    pub station: StationKey,
    /// Index of the port that it was seen on.
    pub port: u32,
    /// For low and spent credit: octets left, negative after an overshoot. For a station that
    /// moved: the IPv4 address that it sent from as a number, 0 when it had none.
    pub value: i64,
    /// Nanoseconds of `CLOCK_MONOTONIC`, as of the last tick of the kernel's timer.
    pub time: u64,
}

/// The ring buffer. Readable as a file descriptor when there are events.
pub struct Events {
    ring: RingBuf<MapData>,
    lost: PerCpuArray<MapData, u64>,
}

impl Events {
    pub(super) fn of(object: &mut Ebpf) -> Result<Self, DataplaneError> {
        Self::new(object::take_map(object, EVENTS_MAP)?, object::take_map(object, LOST_MAP)?)
    }

    /// By the maps of the events, and of how many were lost.
    pub(super) fn new(events: Map, lost: Map) -> Result<Self, DataplaneError> {
        Ok(Self { ring: RingBuf::try_from(events)?, lost: PerCpuArray::try_from(lost)? })
    }

    /// The next event, `None` when there is none at the moment.
    #[allow(clippy::should_implement_trait, reason = "it can be asked again after None")]
    pub fn next(&mut self) -> Option<StationEvent> {
        loop {
            // What this version doesn't know is passed over.
            if let Some(event) = read(&self.ring.next()?) {
                return Some(event);
            }
        }
    }

    /// Waits until there are events, at most so long; whether there are.
    pub fn wait(&self, within: Duration) -> Result<bool, DataplaneError> {
        let timeout = Timespec::try_from(within).map_err(|_| DataplaneError::NoEvent)?;
        let mut waited = [PollFd::new(&self.ring, PollFlags::IN)];
        let ready = poll(&mut waited, Some(&timeout))
            .map_err(DataplaneError::system("waiting for the kernel's events"))?;
        Ok(ready > 0)
    }

    /// Events of each kind that found no place, since the programs were loaded.
    pub fn lost(&self) -> Result<[(EventKind, u64); EVENT_KINDS], DataplaneError> {
        let mut lost = EventKind::ALL.map(|kind| (kind, 0));
        for (i, (_, count)) in (0u32..).zip(&mut lost) {
            *count = self.lost.get(&i, 0)?.iter().sum();
        }
        Ok(lost)
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

fn read(octets: &[u8]) -> Option<StationEvent> {
    let word = |at: usize| Some(u64::from_ne_bytes(octets.get(at..at + 8)?.try_into().ok()?));
    let half = |at: usize| Some(u32::from_ne_bytes(octets.get(at..at + 4)?.try_into().ok()?));
    let kind = half(std::mem::offset_of!(Event, kind))?;
    Some(StationEvent {
        kind: EventKind::ALL.into_iter().find(|known| *known as u32 == kind)?,
        station: StationKey::from_raw(word(std::mem::offset_of!(Event, key))?)?,
        port: half(std::mem::offset_of!(Event, port))?,
        value: word(std::mem::offset_of!(Event, value))?.cast_signed(),
        time: word(std::mem::offset_of!(Event, time))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_short_or_unknown_is_no_event() {
        let mut octets = [0; size_of::<Event>()];
        octets[0] = 2;
        octets[8] = 9;
        let event = read(&octets).unwrap();
        assert_eq!((event.kind, event.station.raw()), (EventKind::NewStation, 9));
        assert_eq!(read(&octets[..31]), None);
        octets[0] = 200;
        assert_eq!(read(&octets), None);
        assert_eq!(read(&[]), None);
    }
}
