//! What the programs know about the edge that they run on.

/// Own addresses that an edge can have, of each IP version.
pub const EDGE_ADDRESS_LIMIT: usize = 8;

/// The edge's own addresses and ports, and the table's shape. Written only by userspace; the seed
/// and the mask never change while stations are in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct EdgeConfig {
    /// Keys the table's hash; 0 means that the table was never set up.
    pub hash_seed: u64,
    /// Slots in the table minus one; the slots are a power of two.
    pub slot_mask: u32,
    /// TCP port of the payment API and the portal, in host order.
    pub api_port: u16,
    /// How many of `ipv4` are set.
    pub ipv4_count: u8,
    /// How many of `ipv6` are set.
    pub ipv6_count: u8,
    /// Own IPv4 addresses as numbers (the first octet on the wire in the top byte).
    pub ipv4: [u32; EDGE_ADDRESS_LIMIT],
    /// Own IPv6 addresses as two numbers each, the first eight octets first.
    pub ipv6: [[u64; 2]; EDGE_ADDRESS_LIMIT],
}

const _: () = assert!(size_of::<EdgeConfig>() == 16 + 32 + 128);
