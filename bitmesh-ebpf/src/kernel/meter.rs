//! The meter: finds the station, compares with its limit, counts.

use core::{arch::asm, ptr::addr_of_mut};

use bitmesh_common::{
    Cause, Counts, EdgeConfig, Mac, PROBE_LIMIT, Probe, StationKey, StationSlot, credit,
};
use bitmesh_ebpf::{Far, Frame, Step, own_count};

use super::maps::{EDGE, OBSERVED, OBSERVER, STATIONS, STATS};

/// What happens to a frame.
#[derive(Clone, Copy)]
pub enum Verdict {
    Pass,
    Drop,
}

/// A frame from a station: its source address is who pays.
#[inline(always)]
pub fn upload(parse: impl FnOnce() -> Result<Frame, Cause>) -> Verdict {
    let Some(edge) = edge() else { return refuse(Cause::NotReady) };
    match parse() {
        Ok(frame) => {
            let step = bitmesh_ebpf::upload(&frame, edge);
            carry_out(step, frame.source, frame.vlan, Direction::Up, edge)
        }
        Err(cause) => refuse(cause),
    }
}

/// A frame for a station: its destination address is who pays.
#[inline(always)]
pub fn download(parse: impl FnOnce() -> Result<Frame, Cause>) -> Verdict {
    let Some(edge) = edge() else { return refuse(Cause::NotReady) };
    match parse() {
        Ok(frame) => {
            let step = bitmesh_ebpf::download(&frame, edge);
            carry_out(step, frame.destination, frame.vlan, Direction::Down, edge)
        }
        Err(cause) => refuse(cause),
    }
}

/// A frame on a subscriber's own interface.
#[inline(always)]
pub fn observe(parse: impl FnOnce() -> Result<Frame, Cause>, far: Far) {
    let (Some(config), Some(observed)) = (OBSERVER.get(0), OBSERVED.get_ptr_mut(0)) else {
        return;
    };
    let Ok(frame) = parse() else { return };
    let neighbour = match far {
        Far::Source => frame.source,
        Far::Destination => frame.destination,
    };
    let Some(octets) = own_count(&frame, far, &config.provider) else { return };
    if config.provider_mac != 0 && config.provider_mac != neighbour.bits() {
        return;
    }
    // SAFETY: the pointer is to the map's one value.
    let (counted, frames) = unsafe {
        match far {
            Far::Source => {
                (addr_of_mut!((*observed).down_octets), addr_of_mut!((*observed).down_frames))
            }
            Far::Destination => {
                (addr_of_mut!((*observed).up_octets), addr_of_mut!((*observed).up_frames))
            }
        }
    };
    add(counted, octets.into());
    add(frames, 1);
}

#[derive(Clone, Copy)]
enum Direction {
    Up,
    Down,
}

#[inline(always)]
fn carry_out(step: Step, mac: Mac, vlan: u16, direction: Direction, edge: &EdgeConfig) -> Verdict {
    let outcome = match step {
        Step::Pass(cause) => Ok(Some(cause)),
        Step::Drop(cause) => Err(cause),
        Step::ForPayers => has_credit(mac, vlan, edge),
        Step::Bill(octets) => bill(mac, vlan, octets.into(), direction, edge),
    };
    match outcome {
        Ok(None) => Verdict::Pass,
        Ok(Some(cause)) => {
            count(cause);
            Verdict::Pass
        }
        Err(cause) => refuse(cause),
    }
}

#[inline(always)]
fn has_credit(mac: Mac, vlan: u16, edge: &EdgeConfig) -> Result<Option<Cause>, Cause> {
    match find(mac, vlan, edge) {
        Some(slot) if left(slot) > 0 => Ok(Some(Cause::EdgeOfPayer)),
        _ => Err(Cause::EdgeClosed),
    }
}

#[inline(always)]
fn bill(
    mac: Mac,
    vlan: u16,
    octets: u64,
    direction: Direction,
    edge: &EdgeConfig,
) -> Result<Option<Cause>, Cause> {
    let slot = find(mac, vlan, edge).ok_or(Cause::Unknown)?;
    // SAFETY: the pointer is to a value of the table.
    let counts: *mut Counts = unsafe {
        match direction {
            Direction::Up => addr_of_mut!((*slot).up.counts),
            Direction::Down => addr_of_mut!((*slot).down.counts),
        }
    };
    if left(slot) >= octets.cast_signed() {
        // SAFETY: as above.
        let (total, frames) =
            unsafe { (addr_of_mut!((*counts).octets), addr_of_mut!((*counts).frames)) };
        add(total, octets);
        add(frames, 1);
        Ok(None)
    } else {
        // SAFETY: as above.
        let (total, frames) = unsafe {
            (addr_of_mut!((*counts).refused_octets), addr_of_mut!((*counts).refused_frames))
        };
        add(total, octets);
        add(frames, 1);
        Err(Cause::Spent)
    }
}

/// Octets that the station may still use. Several CPUs may read the same and each let one frame
/// pass: the overshoot stays in the counters and the next payment covers it.
#[inline(always)]
fn left(slot: *mut StationSlot) -> i64 {
    // SAFETY: the pointer is to a value of the table; the fields are aligned words.
    unsafe {
        let limit = addr_of_mut!((*slot).lease.limit).read_volatile();
        let up = addr_of_mut!((*slot).up.counts.octets).read_volatile();
        let down = addr_of_mut!((*slot).down.counts.octets).read_volatile();
        credit(limit, up, down)
    }
}

#[inline(always)]
fn find(mac: Mac, vlan: u16, edge: &EdgeConfig) -> Option<*mut StationSlot> {
    let key = StationKey::new(mac, vlan)?;
    let mut probe = Probe::new(key, edge.hash_seed);
    for _ in 0..PROBE_LIMIT {
        let slot = STATIONS.get_ptr_mut(probe.next(edge.slot_mask))?;
        // SAFETY: the pointer is to a value of the table; the field is an aligned word.
        let held = unsafe { addr_of_mut!((*slot).lease.key).read_volatile() };
        if held == key.raw() {
            return Some(slot);
        }
        if held == StationKey::EMPTY {
            return None;
        }
    }
    None
}

#[inline(always)]
fn edge() -> Option<&'static EdgeConfig> {
    EDGE.get(0).filter(|edge| edge.hash_seed != 0)
}

#[inline(always)]
fn refuse(cause: Cause) -> Verdict {
    count(cause);
    Verdict::Drop
}

#[inline(always)]
fn count(cause: Cause) {
    if let Some(frames) = STATS.get_ptr_mut(cause as u32) {
        // SAFETY: the pointer is to this CPU's value, which nobody else writes.
        unsafe { *frames += 1 };
    }
}

/// An atomic add without a result, spelt out: the compiler's own atomics may fetch.
#[inline(always)]
fn add(counter: *mut u64, amount: u64) {
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
