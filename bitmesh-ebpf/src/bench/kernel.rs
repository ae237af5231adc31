//! Frames from nowhere, and to nowhere.

use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::{Array, PerCpuArray},
    helpers::bpf_redirect,
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use bitmesh_common::Generator;

/// Ethernet and IPv4 header.
const HEADERS: usize = 34;
const SOURCE_MAC: usize = 6;
const IPV4_TTL: usize = 22;
const IPV4_CHECKSUM: usize = 24;
const IPV4_DESTINATION: usize = 30;
/// First two octets of a station's MAC address: locally administered.
const LOCAL: u16 = 0x0200;
/// Time to live, 64, and protocol.
const TTL_OF_UDP: u16 = 64 << 8 | 17;
/// Where the generator starts; any number but 0.
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

#[btf_map]
pub static GENERATOR: Array<Generator, 1> = Array::new();

#[btf_map]
pub static STATE: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Drops everything: the fastest that a frame can be refused, and the end of forwarded ones.
#[xdp]
pub fn drop_xdp(_: XdpContext) -> u32 {
    xdp_action::XDP_DROP
}

/// Sends the frame on as one from a station at random.
#[xdp]
pub fn generate_up(ctx: XdpContext) -> u32 {
    generate(&ctx, |_| 0)
}

/// Sends the frame on as one to a station at random.
#[xdp]
pub fn generate_down(ctx: XdpContext) -> u32 {
    generate(&ctx, |station| station)
}

/// Writes everything that varies, and what whoever forwarded the frame before has changed: the
/// kernel uses the memory of frames again as it comes back.
#[inline(always)]
fn generate(ctx: &XdpContext, further: impl Fn(u32) -> u32) -> u32 {
    let frame = ctx.data();
    if frame + HEADERS > ctx.data_end() {
        return xdp_action::XDP_ABORTED;
    }
    let (Some(generator), Some(state)) = (GENERATOR.get(0), STATE.get_ptr_mut(0)) else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: the pointer is to this CPU's value, which nobody else writes.
    let random = unsafe {
        let next = xorshift(if *state == 0 { SEED } else { *state });
        *state = next;
        next >> 32
    };
    let station = ((random * u64::from(generator.stations)) >> 32) as u32;
    let address = generator.address + further(station);
    let (high, low) = (address >> 16, address & 0xffff);
    let sum = generator.sum + high + low;
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    for (offset, value) in [
        (0, (generator.to >> 32) as u16),
        (2, (generator.to >> 16) as u16),
        (4, generator.to as u16),
        (SOURCE_MAC, LOCAL),
        (SOURCE_MAC + 2, (station >> 16) as u16),
        (SOURCE_MAC + 4, station as u16),
        (IPV4_TTL, TTL_OF_UDP),
        (IPV4_CHECKSUM, !folded as u16),
        (IPV4_DESTINATION, high as u16),
        (IPV4_DESTINATION + 2, low as u16),
    ] {
        put(frame, offset, value);
    }
    // SAFETY: the kernel checks the index.
    unsafe { bpf_redirect(generator.port, 0) as u32 }
}

/// Writes a number in network order below `HEADERS`.
#[inline(always)]
fn put(frame: usize, offset: usize, value: u16) {
    // SAFETY: all headers are inside the frame, and `offset` is one of the constants above.
    unsafe { ((frame + offset) as *mut u16).write(value.to_be()) }
}

/// Marsaglia's xorshift64 (2003).
#[inline(always)]
fn xorshift(mut bits: u64) -> u64 {
    bits ^= bits << 13;
    bits ^= bits >> 7;
    bits ^ (bits << 17)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // A program with a loop that has no way out does not load.
    loop {}
}

/// No helper that is reserved to GPL programs is used.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 18] = *b"MIT OR Apache-2.0\0";
