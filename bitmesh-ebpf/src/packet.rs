//! The bytes of one frame, wherever they are.

/// Set in [`Packet::tag`] when there is a tag, whose own 16 bits may all be zero. A word instead of
/// an `Option`, whose unset half the verifier would see spilled.
pub const TAG_PRESENT: u32 = 1 << 16;

/// One frame from its destination MAC on, with the bounds check in each read. Only the part that the
/// kernel holds in one piece can be read, which is `None` past it.
pub trait Packet {
    /// Its first octets.
    type Head<const N: usize>: Head<N>;

    /// The first `N` octets, checked to be there at once; `None` when they are not all in one piece.
    fn head<const N: usize>(&self) -> Option<Self::Head<N>>;
    /// Whether the whole frame has at least so many octets. Cheaper than [`Packet::frame_len`].
    fn holds(&self, octets: u32) -> bool;
    /// Octets of the whole frame, in however many buffers it lies.
    fn frame_len(&self) -> u32;
    /// The VLAN tag that the kernel took out of the frame and keeps beside it: [`TAG_PRESENT`] and
    /// the tag control information; 0 when there is none.
    fn tag(&self) -> u32;
    /// Payload octets of each segment of a GSO packet; 0 when it is one frame.
    fn gso_size(&self) -> u32;
    /// Segments of a GSO packet as the kernel counted them; 0 when it did not.
    fn gso_segments(&self) -> u32;
    /// The octet at `offset`; `None` past the end.
    fn u8(&self, offset: u32) -> Option<u8>;
    /// Two octets in network order.
    fn u16(&self, offset: u32) -> Option<u16>;
    /// Four octets in network order.
    fn u32(&self, offset: u32) -> Option<u32>;
    /// Eight octets in network order.
    fn u64(&self, offset: u32) -> Option<u64>;
}

/// The first `N` octets of a frame: reads of these need no check. Reads past them do not compile.
pub trait Head<const N: usize> {
    /// The octet at `AT`.
    fn u8<const AT: usize>(&self) -> u8;
    /// Two octets in network order.
    fn u16<const AT: usize>(&self) -> u16;
    /// Four octets in network order.
    fn u32<const AT: usize>(&self) -> u32;
    /// Eight octets in network order.
    fn u64<const AT: usize>(&self) -> u64;
}
