//! The meter: finds the station, compares with its lease, counts.

use core::{arch::asm, ptr::addr_of_mut};

use bitmesh_common::{
    Cause, EdgeConfig, PROBE_LIMIT, Probe, StationKey, StationSlot, Usage, credit,
};
use bitmesh_ebpf::{Content, Frame, Step};

use super::{
    events, free,
    maps::{EDGE, STATIONS, STATS},
    terms,
};

/// What happens to a frame.
#[derive(Clone, Copy)]
pub enum Verdict {
    Pass,
    Drop,
}

/// Whose credit a frame takes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The sender's.
    Up,
    /// The receiver's.
    Down,
}

/// Where a frame was seen.
#[derive(Clone, Copy)]
pub struct Place {
    /// Index of the port.
    pub port: u32,
    /// Index of the port that it came into the box by; 0 at upload.
    pub from: u32,
    pub direction: Direction,
}

/// Does with a frame what the rules say.
#[inline(always)]
pub fn meter(frame: &Frame, place: Place, edge: &EdgeConfig) -> Verdict {
    let (step, mac) = match place.direction {
        Direction::Up => (bitmesh_ebpf::upload(frame, edge), frame.source),
        Direction::Down => (bitmesh_ebpf::download(frame, place.from, edge), frame.destination),
    };
    let whom = StationKey::bits(mac, frame.vlan);
    match step {
        Step::Bill(octets) => bill(frame, whom, octets.into(), place, edge),
        Step::Pass(cause) => {
            free::pass(whom, frame.weight, free::is_dns(&frame.content), cause, place)
        }
        Step::ForPayers => for_payers(whom, edge),
        Step::Drop(cause) => refuse(cause),
    }
}

#[inline(always)]
fn bill(frame: &Frame, whom: u64, octets: u64, place: Place, edge: &EdgeConfig) -> Verdict {
    let Some(slot) = find(whom, edge) else {
        return match place.direction {
            Direction::Up => events::newcomer(whom, place.port),
            Direction::Down => refuse(Cause::Unknown),
        };
    };
    // SAFETY: the pointer is to a value of the table; the fields are aligned words.
    let (flags, low) = unsafe {
        let lease = addr_of_mut!((*slot).lease);
        (addr_of_mut!((*lease).flags).read_volatile(), addr_of_mut!((*lease).low).read_volatile())
    };
    if flags != 0 {
        let refused = terms::check(slot, octets, sender(frame, place.direction), place);
        if refused != terms::HELD {
            return refused_by_terms(slot, refused, place);
        }
    }
    let usage = usage(slot, place.direction);
    let limit = limit(slot);
    // SAFETY: as above.
    let told = unsafe { addr_of_mut!((*usage).told_spent).read_volatile() };
    if told == !limit {
        return refuse_spent(usage, octets);
    }
    let left = left_under(slot, limit).wrapping_sub(octets.cast_signed());
    if left < 0 {
        return spent(slot, octets, place.port, place.direction);
    }
    // SAFETY: the pointer is to a value of the table.
    unsafe {
        add(addr_of_mut!((*usage).counts.octets), octets);
        add(addr_of_mut!((*usage).counts.frames), 1);
    }
    if left < low.cast_signed() {
        events::low_credit(slot, left, place.port, place.direction);
    }
    Verdict::Pass
}

/// The IPv4 address that an uploaded frame comes from; 0 for others.
#[inline(always)]
fn sender(frame: &Frame, direction: Direction) -> u32 {
    match (&frame.content, direction) {
        (Content::Ip(ip), Direction::Up) => ip.source.v4().unwrap_or(0),
        _ => 0,
    }
}

#[inline(never)]
fn refused_by_terms(slot: *mut StationSlot, refused: u32, place: Place) -> Verdict {
    if refused == Cause::Expired as u32 {
        events::spent(slot, place.port, place.direction);
    }
    if let Some(frames) = STATS.get_ptr_mut(refused) {
        // SAFETY: the pointer is to this CPU's value, which nobody else writes.
        unsafe { *frames += 1 };
    }
    Verdict::Drop
}

#[inline(never)]
fn spent(slot: *mut StationSlot, octets: u64, port: u32, direction: Direction) -> Verdict {
    events::spent(slot, port, direction);
    refuse_spent(usage(slot, direction), octets)
}

#[inline(always)]
fn refuse_spent(usage: *mut Usage, octets: u64) -> Verdict {
    // SAFETY: the pointer is to a value of the table.
    unsafe {
        add(addr_of_mut!((*usage).counts.refused_octets), octets);
        add(addr_of_mut!((*usage).counts.refused_frames), 1);
    }
    refuse(Cause::Spent)
}

#[inline(never)]
fn for_payers(whom: u64, edge: &EdgeConfig) -> Verdict {
    match find(whom, edge) {
        Some(slot) if left(slot) > 0 => {
            count(Cause::EdgeOfPayer);
            Verdict::Pass
        }
        _ => refuse(Cause::EdgeClosed),
    }
}

/// One direction's counters.
#[inline(always)]
pub fn usage(slot: *mut StationSlot, direction: Direction) -> *mut Usage {
    // SAFETY: the pointer is to a value of the table.
    unsafe {
        match direction {
            Direction::Up => addr_of_mut!((*slot).up),
            Direction::Down => addr_of_mut!((*slot).down),
        }
    }
}

/// Octets that the station may still use. Several CPUs may read the same and each let one frame
/// pass: the overshoot stays in the counters and the next payment covers it.
#[inline(always)]
pub fn left(slot: *mut StationSlot) -> i64 {
    left_under(slot, limit(slot))
}

/// The station's limit at this moment.
#[inline(always)]
pub fn limit(slot: *mut StationSlot) -> u64 {
    // SAFETY: the pointer is to a value of the table; the field is an aligned word.
    unsafe { addr_of_mut!((*slot).lease.limit).read_volatile() }
}

/// Octets that are left under a limit that was read before.
#[inline(always)]
pub fn left_under(slot: *mut StationSlot, limit: u64) -> i64 {
    // SAFETY: the pointer is to a value of the table; the fields are aligned words.
    unsafe {
        let up = addr_of_mut!((*slot).up.counts.octets).read_volatile();
        let down = addr_of_mut!((*slot).down.counts.octets).read_volatile();
        credit(limit, up, down)
    }
}

/// The slot of a station, `None` if the table doesn't hold it.
#[inline(always)]
pub fn find(whom: u64, edge: &EdgeConfig) -> Option<*mut StationSlot> {
    if whom == StationKey::EMPTY {
        return None;
    }
    let mut probe = Probe::of_bits(whom, edge.hash_seed);
    for _ in 0..PROBE_LIMIT {
        let slot = STATIONS.get_ptr_mut(probe.next(edge.slot_mask))?;
        // SAFETY: the pointer is to a value of the table; the field is an aligned word.
        let held = unsafe { addr_of_mut!((*slot).lease.key).read_volatile() };
        if held == whom {
            return Some(slot);
        }
        if held == StationKey::EMPTY {
            return None;
        }
    }
    None
}

/// What the programs go by; `None` before the controller has set them up.
#[inline(always)]
pub fn edge() -> Option<&'static EdgeConfig> {
    EDGE.get(0).filter(|edge| edge.hash_seed != 0)
}

#[inline(always)]
pub fn refuse(cause: Cause) -> Verdict {
    count(cause);
    Verdict::Drop
}

#[inline(always)]
pub fn count(cause: Cause) {
    if let Some(frames) = STATS.get_ptr_mut(cause as u32) {
        // SAFETY: the pointer is to this CPU's value, which nobody else writes.
        unsafe { *frames += 1 };
    }
}

/// An atomic add without a result, spelt out: the compiler's own atomics may fetch.
#[inline(always)]
pub fn add(counter: *mut u64, amount: u64) {
    // SAFETY: the pointer is to an aligned word of a map's value, as the verifier checks.
    unsafe {
        asm!(
            "lock *(u64 *)({counter} + 0) += {amount}",
            counter = in(reg) counter,
            amount = in(reg) amount,
            options(nostack),
        );
    }
}
