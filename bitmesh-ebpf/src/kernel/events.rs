//! Telling userspace, once for each cause and never at packet rate.

use core::ptr::addr_of_mut;

use bitmesh_common::{
    Cause, Event, EventKind, NEWCOMERS, SMALLEST_PACKET, StationKey, StationSlot,
};

use super::{
    clock, free,
    maps::{EVENTS, LOST, NEW},
    meter::{self, Direction, Verdict, count, edge, refuse},
};

/// The station's credit is low: told once for each limit and direction.
#[inline(never)]
pub fn low_credit(slot: *mut StationSlot, left: i64, port: u32, direction: Direction) {
    // SAFETY: the pointer is to a value of the table; the fields are aligned words.
    unsafe {
        let told = addr_of_mut!((*meter::usage(slot, direction)).told_low);
        let limit = meter::limit(slot);
        if told.read_volatile() == limit {
            return;
        }
        told.write_volatile(limit);
        let key = addr_of_mut!((*slot).lease.key).read_volatile();
        tell(EventKind::LowCredit, key, left.cast_unsigned(), port);
    }
}

/// The station's credit or time is over: told once for each limit and direction.
#[inline(never)]
pub fn spent(slot: *mut StationSlot, port: u32, direction: Direction) {
    // One reading of the limit for both: what is told of it has to be true of it.
    let limit = meter::limit(slot);
    let left = meter::left_under(slot, limit);
    // SAFETY: the pointer is to a value of the table; the fields are aligned words.
    unsafe {
        let told = addr_of_mut!((*meter::usage(slot, direction)).told_spent);
        let before = told.read_volatile();
        if left < SMALLEST_PACKET {
            told.write_volatile(!limit);
        } else if before != limit {
            told.write_volatile(limit);
        }
        if before != limit && before != !limit {
            let key = addr_of_mut!((*slot).lease.key).read_volatile();
            tell(EventKind::Spent, key, left.cast_unsigned(), port);
        }
    }
}

/// The station sent from elsewhere. Within the budget of such events: a clone can send at line rate.
#[inline(never)]
pub fn moved(slot: *mut StationSlot, sender: u32, port: u32) {
    let Some(edge) = edge() else { return };
    if free::may_tell(edge) {
        // SAFETY: the pointer is to a value of the table; the field is an aligned word.
        let key = unsafe { addr_of_mut!((*slot).lease.key).read_volatile() };
        tell(EventKind::StationMoved, key, sender.into(), port);
    }
}

/// A station that the table doesn't hold sent something that takes credit.
#[inline(never)]
pub fn newcomer(whom: u64, port: u32) -> Verdict {
    announce(whom, port);
    refuse(Cause::Unknown)
}

/// Tells a station that the table doesn't hold, unless it was told lately.
#[inline(never)]
pub fn announce(whom: u64, port: u32) {
    let Some(edge) = edge() else { return };
    let place = bitmesh_common::Probe::of_bits(whom, edge.hash_seed).next(NEWCOMERS - 1);
    let Some(last) = NEW.get_ptr_mut(place) else { return };
    // SAFETY: the pointer is to a value of the map, an aligned word.
    unsafe {
        // On another port it is told again.
        let seen = whom ^ u64::from(port) << 32;
        if last.read_volatile() == seen || !free::may_tell(edge) {
            return;
        }
        last.write_volatile(seen);
    }
    if StationKey::from_raw(whom).is_some() {
        tell(EventKind::NewStation, whom, 0, port);
    }
}

#[inline(always)]
fn tell(kind: EventKind, key: u64, value: u64, port: u32) {
    let event = Event { kind: kind as u32, port, key, value, time: clock() };
    if EVENTS.output(event, 0).is_err()
        && let Some(lost) = LOST.get_ptr_mut(kind as u32)
    {
        // SAFETY: the pointer is to this CPU's value, which nobody else writes.
        unsafe { *lost += 1 };
    }
}

/// Counts a free frame that passed.
#[inline(always)]
pub fn passed(cause: Cause) -> Verdict {
    count(cause);
    Verdict::Pass
}
