//! What a subscriber counts for itself on its own interface.

use crate::EdgeConfig;

/// L3 octets of unicast frames that went through the provider, by the provider's own rule. Written
/// only by the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Observed {
    /// From this station to the internet.
    pub up_octets: u64,
    /// Frames behind `up_octets`; a GSO packet counts as one.
    pub up_frames: u64,
    /// From the internet to this station.
    pub down_octets: u64,
    /// Frames behind `down_octets`.
    pub down_frames: u64,
}

/// What the count leaves out. Written only by userspace, before the programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ObserverConfig {
    /// The provider's own addresses; traffic with them is not billed. The rest is not used.
    pub provider: EdgeConfig,
    /// The provider's MAC as [`crate::Mac::bits`]; 0 counts frames with every neighbour.
    pub provider_mac: u64,
}
