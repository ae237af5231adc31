//! What the benchmarks' frame generator is told.

/// Where generated frames go and whose they are. Written only by userspace, between runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Generator {
    /// MAC address at the other end of the link, as [`crate::Mac::bits`].
    pub to: u64,
    /// Index of the interface that the frames leave by.
    pub port: u32,
    /// Stations to choose from at random.
    pub stations: u32,
    /// IPv4 address that frames from stations are for, or that of the first station, as a number.
    pub address: u32,
    /// Sum of the IPv4 header's 16-bit words without checksum and destination (RFC 1071).
    pub sum: u32,
}

const _: () = assert!(size_of::<Generator>() == 24);
