//! What a lease says besides how much: until when, how fast, from where.

use std::{mem::offset_of, net::Ipv4Addr, time::Duration};

use rustix::time::{ClockId, clock_gettime};

use bitmesh_common::{BOUND, EXPIRES, Lease, OCTETS_PER_SECOND_MAX, RATED, Rate, STRICT};

/// Terms of one station's lease. The default has none: only the limit holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// When nothing passes any more, whatever credit is left, by [`since_boot`].
    pub ends: Option<Duration>,
    /// Fastest upload, in octets per second.
    pub up: Option<u64>,
    /// Fastest download, in octets per second.
    pub down: Option<u64>,
    /// Octets of credit below which the kernel tells, once for each limit; `None` leaves it as it is.
    pub low: Option<u64>,
    /// Index of the port that the station has to send from.
    pub port: Option<u32>,
    /// The IPv4 address that the station has to send from.
    pub ipv4: Option<Ipv4Addr>,
    /// Whether what comes from elsewhere drops; else it is only told.
    pub strict: bool,
}

/// Time since the machine was booted, suspended or not (`CLOCK_BOOTTIME`): what leases end by. It stands
/// still in a virtual machine that is paused by its host.
pub fn since_boot() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default()
}

/// Shortest time of full speed that a burst lasts: TCP reaches the speed that was sold only when a
/// burst covers a round trip or two.
const BURST: Duration = Duration::from_millis(50);
/// Least burst, in octets: two packets of the largest size that a port is given to segment.
const BURST_MIN_OCTETS: u64 = 128 << 10;

/// Words of a lease that terms are in, each with its place in the slot.
pub(super) const WORDS: usize = 5;
const EXPIRY: usize = offset_of!(Lease, expiry) / 8;
const UP_RATE: usize = offset_of!(Lease, up_rate) / 8;
const DOWN_RATE: usize = offset_of!(Lease, down_rate) / 8;
const BURST_AND_IPV4: usize = offset_of!(Lease, burst) / 8;
const PORT_AND_FLAGS: usize = offset_of!(Lease, port) / 8;
const _: () = assert!(offset_of!(Lease, ipv4) == offset_of!(Lease, burst) + 4);
const _: () = assert!(offset_of!(Lease, flags) == offset_of!(Lease, port) + 4);

impl Terms {
    /// The words of the lease; what there is to look at comes last.
    pub(super) fn words(&self) -> [(usize, u64); WORDS] {
        let rate =
            |speed: Option<u64>| speed.and_then(|s| Rate::new(s.clamp(1, OCTETS_PER_SECOND_MAX)));
        let (up, down) = (rate(self.up), rate(self.down));
        let burst = [self.up, self.down].into_iter().flatten().max().map_or(0, burst);
        let set = |is: bool, flag: u32| if is { flag } else { 0 };
        let flags = set(self.ends.is_some(), EXPIRES)
            | set(up.is_some() || down.is_some(), RATED)
            | set(self.port.is_some() || self.ipv4.is_some(), BOUND)
            | set(self.strict, STRICT);
        let expiry = self.ends.map_or(0, |ends| u64::try_from(ends.as_nanos()).unwrap_or(u64::MAX));
        [
            (EXPIRY, expiry),
            (UP_RATE, up.map_or(0, Rate::raw)),
            (DOWN_RATE, down.map_or(0, Rate::raw)),
            (BURST_AND_IPV4, halves(burst, self.ipv4.map_or(0, Ipv4Addr::to_bits))),
            (PORT_AND_FLAGS, halves(self.port.unwrap_or(0), flags)),
        ]
    }

    /// The word of a lease that binds to a port, without the port: other terms stay.
    pub(super) fn without_port(load: impl Fn(usize) -> u64) -> (usize, u64) {
        (PORT_AND_FLAGS, load(PORT_AND_FLAGS) & !u64::from(u32::MAX))
    }

    /// The IPv4 address that a lease's words bind to.
    pub(super) fn ipv4_of(load: impl Fn(usize) -> u64) -> Option<Ipv4Addr> {
        let [.., a, b, c, d] = load(BURST_AND_IPV4).to_le_bytes();
        Some(u32::from_le_bytes([a, b, c, d])).filter(|ipv4| *ipv4 != 0).map(Ipv4Addr::from_bits)
    }

    /// The port that a lease's words bind to.
    pub(super) fn port_of(load: impl Fn(usize) -> u64) -> Option<u32> {
        let [a, b, c, d, ..] = load(PORT_AND_FLAGS).to_le_bytes();
        Some(u32::from_le_bytes([a, b, c, d])).filter(|port| *port != 0)
    }
}

fn burst(speed: u64) -> u32 {
    let octets = u128::from(speed) * BURST.as_millis() / 1_000;
    let octets = u64::try_from(octets).unwrap_or(u64::MAX).max(BURST_MIN_OCTETS);
    u32::try_from(octets).unwrap_or(u32::MAX)
}

/// Two fields of 32 bits in one word, as a little-endian kernel has them.
fn halves(first: u32, second: u32) -> u64 {
    u64::from(second) << 32 | u64::from(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(terms: &Terms, at: usize) -> u64 {
        terms.words().into_iter().find_map(|(place, word)| (place == at).then_some(word)).unwrap()
    }

    fn flags(terms: &Terms) -> u32 {
        u32::try_from(word(terms, PORT_AND_FLAGS) >> 32).unwrap()
    }

    #[test]
    fn a_lease_without_terms_has_nothing_to_look_at() {
        let words = Terms::default().words();
        assert!(words.iter().all(|(_, word)| *word == 0));
    }

    #[test]
    fn each_term_is_looked_at_when_it_is_there() {
        let ends = Some(Duration::from_mins(1));
        assert_eq!(flags(&Terms { ends, ..Terms::default() }), EXPIRES);
        assert_eq!(flags(&Terms { down: Some(1), ..Terms::default() }), RATED);
        assert_eq!(flags(&Terms { port: Some(3), ..Terms::default() }), BOUND);
        let ipv4 = Some(Ipv4Addr::new(10, 0, 0, 2));
        let bound = Terms { ipv4, strict: true, ..Terms::default() };
        assert_eq!(flags(&bound), BOUND | STRICT);
        assert_eq!(Terms::ipv4_of(|at| word(&bound, at)), ipv4);
    }

    #[test]
    fn an_end_is_told_in_nanoseconds_since_boot() {
        let terms = Terms { ends: Some(Duration::from_secs(160)), ..Terms::default() };
        assert_eq!(word(&terms, EXPIRY), 160_000_000_000);
        // What is over is over, and not "never".
        let over = Terms { ends: Some(Duration::ZERO), ..Terms::default() };
        assert_eq!((word(&over, EXPIRY), flags(&over)), (0, EXPIRES));
    }

    #[test]
    fn the_time_since_boot_goes_on_and_counts_what_a_machine_slept() {
        let monotonic = || Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap();
        let (awake, before) = (monotonic(), since_boot());
        assert!(before >= awake);
        assert!(since_boot() >= before);
    }

    #[test]
    fn a_burst_covers_a_round_trip_and_the_largest_packet() {
        assert_eq!(burst(1_000), 131_072);
        assert_eq!(burst(125_000_000), 6_250_000);
        assert_eq!(burst(OCTETS_PER_SECOND_MAX), 625_000_000);
    }

    #[test]
    fn the_port_is_found_again() {
        let terms = Terms { port: Some(7), strict: true, ..Terms::default() };
        assert_eq!(Terms::port_of(|at| word(&terms, at)), Some(7));
        assert_eq!(Terms::port_of(|at| word(&Terms::default(), at)), None);
        let (at, unbound) = Terms::without_port(|at| word(&terms, at));
        assert_eq!(Terms::port_of(|_| unbound), None);
        assert_eq!((at, unbound >> 32), (PORT_AND_FLAGS, u64::from(flags(&terms))));
    }
}
