//! What the benchmarks' frame generator is told.

/// Where generated frames go and whose they are. Written only by userspace, between runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Generator {
    /// Index of the interface that the frames leave by.
    pub port: u32,
    /// Stations to choose from at random: MAC addresses from 02:00:00:00:00:00 on, IPv4 addresses
    /// from `address` on.
    pub stations: u32,
    /// IPv4 address of the first station as a number.
    pub address: u32,
    /// Sum of the IPv4 header's 16-bit words without checksum and destination (RFC 1071).
    pub sum: u32,
}

const _: () = assert!(size_of::<Generator>() == 16);
