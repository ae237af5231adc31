//! What the programs know about the edge that they run on.

use core::net::IpAddr;

/// Own addresses that an edge can have, of each IP version.
pub const EDGE_ADDRESS_LIMIT: usize = 8;
/// LAN ports that an edge can have, bridges above them included.
pub const EDGE_PORT_LIMIT: usize = 16;

/// Frames from one LAN port to another are dropped.
pub const ISOLATE: u16 = 1;

/// The edge's own addresses and ports, its rules before payment, and the table's shape. Written only
/// by userspace; the seed and the mask never change while stations are in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct EdgeConfig {
    /// Keys the table's hash; 0 means that the table was never set up.
    pub hash_seed: u64,
    /// Which values [`own_bit`] has over all own addresses: a zero there says that an address is
    /// none of them.
    pub own_bits: u64,
    /// Slots in the table minus one; the slots are a power of two.
    pub slot_mask: u32,
    /// TCP port of the payment API and the portal, in host order.
    pub api_port: u16,
    /// How many of `ipv4` are set.
    pub ipv4_count: u8,
    /// How many of `ipv6` are set.
    pub ipv6_count: u8,
    /// VLAN id of the outer tag that frames with two tags have; 0 takes no frames with two.
    pub service_vlan: u16,
    /// [`ISOLATE`].
    pub flags: u16,
    /// How many of `lan` are set.
    pub lan_count: u32,
    /// What is free before payment, in octets.
    pub free: FreeBudgets,
    /// Indexes of the LAN ports and of the bridges above them.
    pub lan: [u32; EDGE_PORT_LIMIT],
    /// Own IPv4 addresses as numbers (the first octet on the wire in the top byte).
    pub ipv4: [u32; EDGE_ADDRESS_LIMIT],
    /// Own IPv6 addresses as two numbers each, the first eight octets first.
    pub ipv6: [[u64; 2]; EDGE_ADDRESS_LIMIT],
}

const _: () = assert!(size_of::<EdgeConfig>() == 32 + 40 + 64 + 32 + 128);

impl EdgeConfig {
    /// Nothing is set, and nothing is free.
    pub const UNSET: Self = Self {
        hash_seed: 0,
        own_bits: 0,
        slot_mask: 0,
        api_port: 0,
        ipv4_count: 0,
        ipv6_count: 0,
        service_vlan: 0,
        flags: 0,
        lan_count: 0,
        free: FreeBudgets::of(Budget { rate: 0, burst: 0 }),
        lan: [0; EDGE_PORT_LIMIT],
        ipv4: [0; EDGE_ADDRESS_LIMIT],
        ipv6: [[0; 2]; EDGE_ADDRESS_LIMIT],
    };

    /// Adds one of the edge's own addresses; false when there is no place for it.
    pub fn add_own(&mut self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => {
                let bits = v4.to_bits();
                let Some(place) = self.ipv4.get_mut(usize::from(self.ipv4_count)) else {
                    return false;
                };
                *place = bits;
                self.ipv4_count += 1;
                self.own_bits |= own_bit_v4(bits);
            }
            IpAddr::V6(v6) => {
                let [high @ .., e, f, g, h] = v6.segments();
                let word = |parts: [u16; 4]| {
                    parts.into_iter().fold(0, |word, part| word << 16 | u64::from(part))
                };
                let (high, low) = (word(high), word([e, f, g, h]));
                let Some(place) = self.ipv6.get_mut(usize::from(self.ipv6_count)) else {
                    return false;
                };
                *place = [high, low];
                self.ipv6_count += 1;
                self.own_bits |= own_bit_v6(high, low);
            }
        }
        true
    }

    /// Adds the index of a LAN port; false when there is no place for it.
    pub fn add_lan(&mut self, index: u32) -> bool {
        let Ok(at) = usize::try_from(self.lan_count) else { return false };
        let Some(place) = self.lan.get_mut(at) else { return false };
        *place = index;
        self.lan_count += 1;
        true
    }
}

/// Budgets of what is free: whoever is not in the table keeps within the first three and the fifth
/// at once, whoever is within its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct FreeBudgets {
    /// Of one station, both directions.
    pub station: Budget,
    /// Of one port's stations together.
    pub port: Budget,
    /// Of all ports together.
    pub total: Budget,
    /// Of one station's DNS.
    pub dns: Budget,
    /// Events about stations that the table doesn't hold, one octet each.
    pub events: Budget,
}

impl FreeBudgets {
    /// The same for everyone.
    pub const fn of(budget: Budget) -> Self {
        Self { station: budget, port: budget, total: budget, dns: budget, events: budget }
    }
}

/// Octets that flow in all the time, and that can be saved up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Budget {
    /// Octets per 2^30 ns.
    pub rate: u32,
    /// Octets that can be saved up.
    pub burst: u32,
}

/// What is gone of a budget. Written only by the kernel, without atomics: CPUs that spend from one
/// at the same instant may lose one frame's worth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Spending {
    /// Nanoseconds of `CLOCK_MONOTONIC` at which `spent` held.
    pub time: u64,
    /// Octets times 2^20.
    pub spent: u64,
}

/// Nanoseconds, as a power of two, that a budget's rate is for.
const RATE_SHIFT: u32 = 30;
/// Nanoseconds, as a power of two, that refills are counted in.
const TICK_SHIFT: u32 = 10;
/// What spending is scaled by, as a power of two.
const SPENT_SHIFT: u32 = RATE_SHIFT - TICK_SHIFT;
/// Most ticks that are refilled at once, 36 minutes: keeps products in 64 bits.
const TICKS_MAX: u64 = 1 << 31;

impl Budget {
    /// More than any port carries.
    pub const UNLIMITED: Self = Self { rate: u32::MAX, burst: u32::MAX };

    /// From octets per second, rounded up.
    pub const fn per_second(octets: u32, burst: u32) -> Self {
        let rate = ((octets as u64) << RATE_SHIFT).div_ceil(1_000_000_000);
        // Held at the highest that the field has.
        #[allow(clippy::cast_possible_truncation)]
        Self { rate: if rate > u32::MAX as u64 { u32::MAX } else { rate as u32 }, burst }
    }

    /// The spending after a frame of `octets`, or `None` when the budget doesn't hold it.
    #[inline(always)]
    pub const fn spend(self, before: Spending, now: u64, octets: u64) -> Option<Spending> {
        let ticks = now.saturating_sub(before.time) >> TICK_SHIFT;
        let refilled = if ticks > TICKS_MAX { u64::MAX } else { ticks * self.rate as u64 };
        let spent = before.spent.saturating_sub(refilled) + (octets << SPENT_SHIFT);
        if spent > (self.burst as u64) << SPENT_SHIFT {
            return None;
        }
        let time = before.time + (ticks << TICK_SHIFT);
        Some(Spending { time, spent })
    }
}

/// The bit of [`EdgeConfig::own_bits`] that an IPv4 address has.
#[inline(always)]
pub const fn own_bit_v4(address: u32) -> u64 {
    1 << (address.wrapping_mul(0x9e37_79b1) >> 26)
}

/// The bit of [`EdgeConfig::own_bits`] that an IPv6 address has.
#[inline(always)]
pub const fn own_bit_v6(high: u64, low: u64) -> u64 {
    1 << ((high ^ low.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_budget_gives_its_burst_at_once_and_its_rate_after_that() {
        for rate in [10, 10_000, 1_000_000] {
            let budget = Budget::per_second(rate, 300_000);
            let start = Spending { time: SECOND, spent: 0 };
            let full = budget.spend(start, SECOND, 300_000).unwrap();
            assert_eq!(budget.spend(full, SECOND, 1), None);
            let (later, octets) = (6 * SECOND, u64::from(rate) * 5);
            assert_eq!(budget.spend(full, later, octets + octets / 10 + 1), None, "{rate}");
            assert!(budget.spend(full, later, octets.min(300_000)).is_some(), "{rate}");
            assert!(budget.spend(full, 90_000 * SECOND, 300_000).is_some());
            assert_eq!(budget.spend(full, 90_000 * SECOND, 300_001), None);
        }
        let start = Spending { time: SECOND, spent: 0 };
        assert!(Budget::UNLIMITED.spend(start, u64::MAX, 65_535).is_some());
    }

    #[test]
    fn many_small_frames_refill_as_one_large_one() {
        let budget = Budget::per_second(1_000_000, 1_000);
        let mut spending = Spending::default();
        let mut passed = 0;
        for i in 0..1_000_000u64 {
            if let Some(next) = budget.spend(spending, SECOND + i * 1_000, 10) {
                spending = next;
                passed += 10;
            }
        }
        assert!((990_000..1_010_000).contains(&passed), "{passed}");
    }
}
