//! The L3 octets that a GSO packet becomes on the wire, where every segment has its own headers.

use bitmesh_common::Cause;

use crate::{
    network::{TCP, UDP},
    packet::Packet,
};

const TCP_HEADER: u32 = 20;
const TCP_DATA_OFFSET: u32 = 12;
const UDP_HEADER: u32 = 8;

/// L3 octets of all segments. `length` is the packet's own L3 length, `header` its L3 header, both
/// in octets; `payload` is where in the frame the L4 header starts.
///
/// Segments come from the payload, not from the kernel's own count, which a virtual machine may
/// leave at zero. Inside tunnels the inner headers are not known here: those frames count the
/// outer header of each segment, which is less than the wire carries and never more.
#[inline(always)]
pub(crate) fn octets(
    packet: &impl Packet,
    protocol: u8,
    length: u32,
    header: u32,
    payload: u32,
) -> Result<u32, Cause> {
    let size = packet.gso_size();
    if size == 0 {
        return Err(Cause::Malformed);
    }
    let (repeated, segments) = match protocol {
        TCP | UDP => {
            let repeated = header + l4_header(packet, protocol, payload)?;
            let data = length.checked_sub(repeated).ok_or(Cause::Malformed)?;
            (repeated, data.div_ceil(size))
        }
        _ => (header, packet.gso_segments()),
    };
    Ok(length + segments.saturating_sub(1) * repeated)
}

#[inline(always)]
fn l4_header(packet: &impl Packet, protocol: u8, offset: u32) -> Result<u32, Cause> {
    if protocol == UDP {
        return Ok(UDP_HEADER);
    }
    let words = packet.u8(offset + TCP_DATA_OFFSET).ok_or(Cause::Truncated)? >> 4;
    let header = u32::from(words) * 4;
    if header < TCP_HEADER { Err(Cause::Malformed) } else { Ok(header) }
}
