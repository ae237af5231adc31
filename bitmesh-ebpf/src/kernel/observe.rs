//! A subscriber's own count.

use core::ptr::addr_of_mut;

use bitmesh_common::Cause;
use bitmesh_ebpf::{Far, Frame, own_count};

use super::{
    maps::{OBSERVED, OBSERVER},
    meter::add,
};

/// Counts a frame on a subscriber's own interface.
#[inline(always)]
pub fn count(parse: impl FnOnce() -> Result<Frame, Cause>, far: Far) {
    let (Some(config), Some(observed)) = (OBSERVER.get(0), OBSERVED.get_ptr_mut(0)) else {
        return;
    };
    let Ok(frame) = parse() else { return };
    let neighbour = match far {
        Far::Source => frame.source,
        Far::Destination => frame.destination,
    };
    let Some(octets) = own_count(&frame, far, &config.provider) else { return };
    if config.provider_mac != 0 && config.provider_mac != neighbour.bits() {
        return;
    }
    // SAFETY: the pointer is to the map's one value.
    let (counted, frames) = unsafe {
        match far {
            Far::Source => {
                (addr_of_mut!((*observed).down_octets), addr_of_mut!((*observed).down_frames))
            }
            Far::Destination => {
                (addr_of_mut!((*observed).up_octets), addr_of_mut!((*observed).up_frames))
            }
        }
    };
    add(counted, octets.into());
    add(frames, 1);
}
