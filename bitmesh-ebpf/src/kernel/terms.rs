//! What a lease says besides its limit: an end, a speed, where the station has to be.

use core::ptr::addr_of_mut;

use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use bitmesh_common::{BOUND, Cause, EXPIRES, Pace, RATED, Rate, STRICT, SinceBoot, StationSlot};

use super::{
    clock, clock_fine, events,
    maps::SINCE_BOOT,
    meter::{self, Direction, Place},
};

/// Nothing stands against the frame.
pub const HELD: u32 = u32::MAX;

/// Nanoseconds of `CLOCK_BOOTTIME`, which goes on while the machine is suspended: 1 to 10 ms old. It
/// takes 45 ns to ask for, and is asked for once a tick.
#[inline(always)]
fn since_boot() -> u64 {
    let Some(seen) = SINCE_BOOT.get_ptr_mut(0) else { return u64::MAX };
    let tick = clock();
    // SAFETY: the pointer is to the value of the map; the fields are aligned words. The helper takes
    // nothing and changes nothing.
    unsafe {
        let (time, mark) = (&raw mut (*seen).time, &raw mut (*seen).mark);
        let last = SinceBoot { time: time.read_volatile(), mark: mark.read_volatile() };
        if let Some(time) = last.at(tick) {
            return time;
        }
        let now = SinceBoot::new(tick, bpf_ktime_get_boot_ns());
        time.write_volatile(now.time);
        mark.write_volatile(now.mark);
        now.time
    }
}

/// The cause as a number, [`HELD`] if the frame may pass. `sender` is its IPv4 source, 0 for none.
#[inline(never)]
pub fn check(slot: *mut StationSlot, octets: u64, sender: u32, place: Place) -> u32 {
    // SAFETY: the pointer is to a value of the table; the fields are aligned words.
    let (flags, expiry) = unsafe {
        let lease = addr_of_mut!((*slot).lease);
        (
            addr_of_mut!((*lease).flags).read_volatile(),
            addr_of_mut!((*lease).expiry).read_volatile(),
        )
    };
    if flags & EXPIRES != 0 && since_boot() >= expiry {
        return Cause::Expired as u32;
    }
    if flags & BOUND != 0 && place.direction == Direction::Up && moved(slot, sender, place.port) {
        events::moved(slot, sender, place.port);
        if flags & STRICT != 0 {
            return Cause::Moved as u32;
        }
    }
    if flags & RATED != 0 && !keeps_pace(slot, octets, place.direction) {
        return Cause::TooFast as u32;
    }
    HELD
}

#[inline(always)]
fn moved(slot: *mut StationSlot, sender: u32, port: u32) -> bool {
    // SAFETY: the pointer is to a value of the table; the fields are aligned words.
    let (bound_port, bound_ipv4) = unsafe {
        let lease = addr_of_mut!((*slot).lease);
        (addr_of_mut!((*lease).port).read_volatile(), addr_of_mut!((*lease).ipv4).read_volatile())
    };
    (bound_port != 0 && bound_port != port)
        || (bound_ipv4 != 0 && sender != 0 && bound_ipv4 != sender)
}

/// Whether the frame is within the speed. CPUs that move the anchor at the same instant write
/// nearly the same.
#[inline(always)]
fn keeps_pace(slot: *mut StationSlot, octets: u64, direction: Direction) -> bool {
    let usage = meter::usage(slot, direction);
    // SAFETY: the pointers are to a value of the table; the fields are aligned words.
    unsafe {
        let lease = addr_of_mut!((*slot).lease);
        let rate = match direction {
            Direction::Up => addr_of_mut!((*lease).up_rate),
            Direction::Down => addr_of_mut!((*lease).down_rate),
        };
        let Some(rate) = Rate::from_raw(rate.cast::<u64>().read_volatile()) else { return true };
        let burst = u64::from(addr_of_mut!((*lease).burst).read_volatile());
        let time = addr_of_mut!((*usage).anchor_time);
        let anchored = addr_of_mut!((*usage).anchor_octets);
        let used = addr_of_mut!((*usage).counts.octets).read_volatile();
        let anchor = (time.read_volatile(), anchored.read_volatile());
        match rate.pace(anchor, clock_fine(), used, octets, burst) {
            Pace::Within => true,
            Pace::TooFast => false,
            Pace::Anchored(at, line) => {
                time.write_volatile(at);
                anchored.write_volatile(line);
                true
            }
        }
    }
}
