//! One station in the table: four cache lines, one writer each.

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

/// What the kernel honours. Written only by userspace.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Lease {
    /// [`crate::StationKey::raw`], or one of its two reserved values. Published last: whoever sees
    /// the key sees the limit that belongs to it, or one that lets nothing pass.
    pub key: u64,
    /// A frame of n octets passes while `limit - up.octets - down.octets`, as a signed 64-bit
    /// number, is at least n. Zero lets nothing pass, whatever the counters are.
    pub limit: u64,
    _pad: [u64; 6],
}

/// One direction's counters. Written only by the kernel, never reset.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Usage {
    /// The counters, over all stations that this slot ever held.
    pub counts: Counts,
    _pad: [u64; 4],
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
    /// Key and limit.
    pub lease: Lease,
    /// Counters from station to internet.
    pub up: Usage,
    /// Counters from internet to station.
    pub down: Usage,
    /// Userspace's bookkeeping.
    pub base: Base,
}

const CACHE_LINE: usize = 64;
const _: () = assert!(size_of::<StationSlot>() == 4 * CACHE_LINE);
const _: () = assert!(align_of::<StationSlot>() == CACHE_LINE);
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
