//! What the kernel programs and the controller share: the layout of the maps and the arithmetic on
//! it.
//!
//! It touches nothing: no memory of its own, no clock, no allocation, no dependency. It never holds
//! a rule of money; it says where a number lives, who writes it, and how both sides find it.
#![no_std]
#![allow(clippy::inline_always, reason = "the verifier follows no call that it need not follow")]

mod boot;
mod cause;
mod counted;
mod edge;
mod event;
mod generator;
mod key;
mod observed;
mod probe;
mod rate;
mod slot;

pub use boot::SinceBoot;
pub use cause::{CAUSES, Cause};
pub use edge::{
    Budget, EDGE_ADDRESS_LIMIT, EDGE_PORT_LIMIT, EdgeConfig, FreeBudgets, ISOLATE, Spending,
    own_bit_v4, own_bit_v6,
};
pub use event::{EVENT_KINDS, EVENTS_OCTETS, Event, EventKind, NEWCOMERS};
pub use generator::Generator;
pub use key::{Mac, StationKey};
pub use observed::{Observed, ObserverConfig};
pub use probe::{PROBE_LIMIT, Probe};
pub use rate::{OCTETS_PER_SECOND_MAX, Pace, Rate, STRIDE_NANOS};
pub use slot::{
    BOUND, Base, Counts, EXPIRES, Lease, RATED, SMALLEST_PACKET, STRICT, StationSlot, Usage, credit,
};

/// Version of everything in this crate that is seen by both sides. It is part of the pins' path:
/// a controller never takes over a table whose layout it does not know.
pub const LAYOUT_VERSION: u32 = 2;

/// Slots of the station table where nobody asks for another number.
pub const DEFAULT_TABLE_SLOTS: u32 = 65_536;

/// Name of the map with the station table.
pub const STATIONS_MAP: &str = "STATIONS";
/// Name of the map with the edge's own addresses and ports.
pub const EDGE_MAP: &str = "EDGE";
/// Name of the map with frames by [`Cause`], one counter per CPU each.
pub const STATS_MAP: &str = "STATS";
/// Name of the map with a subscriber's own count.
pub const OBSERVED_MAP: &str = "OBSERVED";
/// Name of the map that says what a subscriber's own count leaves out.
pub const OBSERVER_MAP: &str = "OBSERVER";
/// Name of the ring buffer with [`Event`]s.
pub const EVENTS_MAP: &str = "EVENTS";
/// Name of the map with lost events by [`EventKind`], one counter per CPU each.
pub const LOST_MAP: &str = "LOST";
/// Name of the map with the stations that were told last as new.
pub const NEWCOMERS_MAP: &str = "NEW";
/// Name of the map that tells the benchmarks' generator what to send.
pub const GENERATOR_MAP: &str = "GENERATOR";
