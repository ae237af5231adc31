//! One station in the table: four cache lines, one writer each.

use crate::Rate;

/// Cumulative counters of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counts {
    /// L3 octets that were forwarded and billed.
    pub octets: u64,
    /// Frames that were forwarded and billed; a GSO packet counts as one.
    pub frames: u64,
    /// L3 octets that were dropped because the limit was reached.
    pub refused_octets: u64,
    /// Frames that were dropped because the limit was reached.
    pub refused_frames: u64,
}

/// What the kernel honours. Written only by userspace, whole words at a time.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Lease {
    /// [`crate::StationKey::raw`], or one of its two reserved values. Published last: whoever sees
    /// the key sees the limit that belongs to it, or one that lets nothing pass.
    pub key: u64,
    /// A frame of n octets passes while `limit - up.octets - down.octets`, as a signed 64-bit
    /// number, is at least n. Zero lets nothing pass, whatever the counters are.
    pub limit: u64,
    /// Octets of credit below which the kernel says so, once for each limit; 0 never does.
    pub low: u64,
    /// Nanoseconds of `CLOCK_BOOTTIME` from which nothing passes. Counts with [`EXPIRES`].
    pub expiry: u64,
    /// The speed of uploads, 0 for any. Counts with [`RATED`].
    pub up_rate: Rate,
    /// The speed of downloads, 0 for any. Counts with [`RATED`].
    pub down_rate: Rate,
    /// Octets that may come at once above the speed.
    pub burst: u32,
    /// The IPv4 address that the station has to send from, 0 for any. Counts with [`BOUND`].
    pub ipv4: u32,
    /// Index of the port that the station has to be on, 0 for any. Counts with [`BOUND`].
    pub port: u32,
    /// [`EXPIRES`], [`RATED`], [`BOUND`], [`STRICT`]: what there is to look at besides the limit.
    pub flags: u32,
}

/// The lease ends at [`Lease::expiry`].
pub const EXPIRES: u32 = 1;
/// The lease has a speed.
pub const RATED: u32 = 1 << 1;
/// The station is bound to a port or an address.
pub const BOUND: u32 = 1 << 2;
/// What comes from elsewhere than the station is bound to is dropped, not only told.
pub const STRICT: u32 = 1 << 3;

/// One direction's counters and what the kernel remembers with them. Written only by the kernel,
/// never reset.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Usage {
    /// The counters, over all stations that this slot ever held.
    pub counts: Counts,
    /// Where the speed is measured from: nanoseconds of `CLOCK_MONOTONIC`.
    pub anchor_time: u64,
    /// `counts.octets` that the speed allowed at `anchor_time`, without a burst.
    pub anchor_octets: u64,
    /// The limit for which low credit was told last.
    pub told_low: u64,
    /// The limit for which spent credit was told last, or its complement once less than the smallest
    /// packet is left of it: then no other line has to be read to refuse a frame.
    pub told_spent: u64,
}

/// What to add (wrapping) to the kernel's counters for the station's lifetime totals. Written and
/// read only by userspace; it lives here so that it outlives the controller.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Base {
    /// From station to internet.
    pub up: Counts,
    /// From internet to station.
    pub down: Counts,
}

/// One slot of the station table.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct StationSlot {
    /// Key, limit and terms.
    pub lease: Lease,
    /// Counters from station to internet.
    pub up: Usage,
    /// Counters from internet to station.
    pub down: Usage,
    /// Userspace's bookkeeping.
    pub base: Base,
}

/// Octets of the smallest IP packet: with less credit, nothing passes.
pub const SMALLEST_PACKET: i64 = 20;

const CACHE_LINE: usize = 64;
const _: () = assert!(size_of::<StationSlot>() == 4 * CACHE_LINE);
const _: () = assert!(align_of::<StationSlot>() == CACHE_LINE);
const _: () = assert!(size_of::<Lease>() == CACHE_LINE && size_of::<Usage>() == CACHE_LINE);
const _: () = assert!(core::mem::offset_of!(StationSlot, up) == CACHE_LINE);
const _: () = assert!(core::mem::offset_of!(StationSlot, down) == 2 * CACHE_LINE);
const _: () = assert!(core::mem::offset_of!(StationSlot, base) == 3 * CACHE_LINE);
const _: () = assert!(core::mem::offset_of!(Lease, limit) == 8);

/// Octets left under `limit` when `up` and `down` were used; negative after an overshoot, which
/// the next payment covers.
#[inline(always)]
pub const fn credit(limit: u64, up: u64, down: u64) -> i64 {
    limit.wrapping_sub(up).wrapping_sub(down).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::credit;

    #[test]
    fn credit_is_what_the_limit_leaves() {
        assert_eq!(credit(1_000, 400, 600), 0);
        assert_eq!(credit(1_000, 400, 599), 1);
        assert_eq!(credit(1_000, 400, 601), -1);
    }

    #[test]
    fn credit_of_a_limit_below_zero_stays_below_zero() {
        assert_eq!(credit(5u64.wrapping_sub(7), 0, 0), -2);
        assert!(credit(0, 123, 456) < 0);
    }
}
