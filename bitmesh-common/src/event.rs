//! What the kernel tells userspace at once. A lost event costs latency, never money: every one of
//! them can also be seen in the table.

use crate::counted::counted;

counted! {
    /// What happened; the index of its counter of lost events.
    EventKind,
    /// How many kinds there are.
    EVENT_KINDS:
    /// A station's credit is below [`crate::Lease::low`].
    LowCredit = "low_credit",
    /// A frame was dropped because the station's credit did not cover it, or its time is over.
    Spent = "spent",
    /// A station that the table doesn't hold sent something.
    NewStation = "new_station",
    /// A station sent from another port or address than it is bound to.
    StationMoved = "station_moved",
}

/// One event, as it lies in the ring buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Event {
    /// [`EventKind`] as a number.
    pub kind: u32,
    /// Index of the port that the frame was on.
    pub port: u32,
    /// [`crate::StationKey::raw`].
    pub key: u64,
    /// Octets of credit left, as a signed number; for a station that moved, the IPv4 address that
    /// it sent from, or 0.
    pub value: u64,
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub time: u64,
}

const _: () = assert!(size_of::<Event>() == 32);

/// Octets of the ring buffer: 6,500 events.
pub const EVENTS_OCTETS: u32 = 256 << 10;
/// Stations that are not told again as new before another took their place.
pub const NEWCOMERS: u32 = 1 << 12;
