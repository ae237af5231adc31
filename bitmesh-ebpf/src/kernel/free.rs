//! What is free before payment, and how much of it.

use bitmesh_common::{Budget, Cause, EdgeConfig, Probe, Spending};
use bitmesh_ebpf::{Content, Transport};

use super::{
    clock, events,
    maps::FREE,
    meter::{self, Direction, Place, Verdict, edge, refuse},
};

/// Where the spending of everything together is.
const TOTAL: u32 = 0;
/// Where that of events is.
const EVENTS: u32 = 1;
/// Where those of ports begin; ports share by their index's low bits.
const PORTS_AT: u32 = 64;
const PORTS_MASK: u32 = 63;
/// Where those of what goes to many stations of a port begin.
const GROUPS_AT: u32 = PORTS_AT + PORTS_MASK + 1;
/// Where those of stations begin; stations share by hash.
const STATIONS_AT: u32 = GROUPS_AT + PORTS_MASK + 1;
const STATIONS_MASK: u32 = (1 << 14) - 1;
/// Where those of stations' DNS begin.
const DNS_AT: u32 = STATIONS_AT + STATIONS_MASK + 1;
/// Where those of stations in the table begin: strangers, who share by hash too, can't spend them.
const KNOWN_AT: u32 = DNS_AT + STATIONS_MASK + 1;
/// Where those of their DNS begin.
const KNOWN_DNS_AT: u32 = KNOWN_AT + STATIONS_MASK + 1;

/// Entries of the map.
pub const SPENDINGS: u32 = KNOWN_DNS_AT + STATIONS_MASK + 1;

const PORT_DNS: u16 = 53;

/// Whether a frame is DNS.
#[inline(always)]
pub fn is_dns(content: &Content) -> bool {
    let Content::Ip(ip) = content else { return false };
    match ip.transport {
        Transport::Udp { source, destination } | Transport::Tcp { source, destination } => {
            source == PORT_DNS || destination == PORT_DNS
        }
        _ => false,
    }
}

/// Lets a free frame pass if the budgets that it counts against hold it. Who is in the table has its
/// own, as large as a port's: the more it uses, the more often it pays.
#[inline(never)]
pub fn pass(whom: u64, octets: u32, dns: bool, cause: Cause, place: Place) -> Verdict {
    let Some(edge) = edge() else { return refuse(Cause::NotReady) };
    let now = clock();
    let octets = u64::from(octets);
    let free = &edge.free;
    let port = place.port & PORTS_MASK;
    if place.direction == Direction::Down && is_group(whom) {
        // What the box itself says to all is not a copy of what a station said.
        let passes = place.from == 0 || take(GROUPS_AT + port, free.port, now, octets);
        return verdict(passes, cause);
    }
    let own = Probe::of_bits(whom, edge.hash_seed).next(STATIONS_MASK);
    let passes = match meter::find(whom, edge) {
        Some(slot) => {
            take(KNOWN_AT + own, free.port, now, octets)
                && (!dns
                    || meter::left(slot) > 0
                    || take(KNOWN_DNS_AT + own, free.dns, now, octets))
        }
        None => {
            if place.direction == Direction::Up {
                events::announce(whom, place.port);
            }
            take(STATIONS_AT + own, free.station, now, octets)
                && (!dns || take(DNS_AT + own, free.dns, now, octets))
                && take(PORTS_AT + port, free.port, now, octets)
                && take(TOTAL, free.total, now, octets)
        }
    };
    verdict(passes, cause)
}

#[inline(always)]
fn verdict(passes: bool, cause: Cause) -> Verdict {
    if passes { events::passed(cause) } else { refuse(Cause::FreeSpent) }
}

/// Whether one more event about a stranger may be told now.
#[inline(always)]
pub fn may_tell(edge: &EdgeConfig) -> bool {
    take(EVENTS, edge.free.events, clock(), 1)
}

#[inline(always)]
fn is_group(whom: u64) -> bool {
    whom >> 40 & 1 == 1
}

#[inline(always)]
fn take(place: u32, budget: Budget, now: u64, octets: u64) -> bool {
    let Some(spending) = FREE.get_ptr_mut(place) else { return false };
    // SAFETY: the pointer is to a value of the map; the fields are aligned words.
    unsafe {
        let before = Spending {
            time: (&raw const (*spending).time).read_volatile(),
            spent: (&raw const (*spending).spent).read_volatile(),
        };
        let Some(after) = budget.spend(before, now, octets) else { return false };
        (&raw mut (*spending).time).write_volatile(after.time);
        (&raw mut (*spending).spent).write_volatile(after.spent);
    }
    true
}
