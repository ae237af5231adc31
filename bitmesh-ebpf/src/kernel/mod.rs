//! What only the kernel can run: maps, frames where they lie, and the entry points.

mod bytes;
mod events;
mod free;
mod maps;
mod meter;
mod observe;
mod terms;

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action},
    helpers::{bpf_ktime_get_coarse_ns, bpf_ktime_get_ns},
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use bitmesh_common::Cause;
use bitmesh_ebpf::{Far, Frame};

use self::{
    bytes::{SkbBytes, XdpBytes},
    meter::{Direction, Place, Verdict, edge, meter, refuse},
};

/// Meters what stations send, in the driver or in generic XDP.
#[xdp(frags)]
pub fn upload_xdp(ctx: XdpContext) -> u32 {
    let Some(edge) = edge() else { return xdp(refuse(Cause::NotReady)) };
    match Frame::plain(&XdpBytes::new(&ctx)) {
        Some(frame) => xdp(meter(&frame, at_xdp(&ctx), edge)),
        None => xdp(unusual_xdp(&ctx)),
    }
}

/// Meters what stations send, at TC ingress.
#[classifier]
pub fn upload_tc(ctx: TcContext) -> i32 {
    let Some(edge) = edge() else { return tc(refuse(Cause::NotReady)) };
    match Frame::plain(&SkbBytes::new(&ctx)) {
        Some(frame) => tc(meter(&frame, at_ingress(&ctx), edge)),
        None => tc(unusual_ingress(&ctx)),
    }
}

/// Meters what stations receive, at TC egress.
#[classifier]
pub fn download_tc(ctx: TcContext) -> i32 {
    let Some(edge) = edge() else { return tc(refuse(Cause::NotReady)) };
    match Frame::plain(&SkbBytes::new(&ctx)) {
        Some(frame) => tc(meter(&frame, at_egress(&ctx), edge)),
        None => tc(unusual_egress(&ctx)),
    }
}

/// Counts what a subscriber sends, at TC egress; never drops.
#[classifier]
pub fn observe_up(ctx: TcContext) -> i32 {
    observe::count(|| parse(&ctx, 0), Far::Destination);
    TC_ACT_UNSPEC
}

/// Counts what a subscriber receives, at TC ingress; never drops.
#[classifier]
pub fn observe_down(ctx: TcContext) -> i32 {
    observe::count(|| parse(&ctx, 0), Far::Source);
    TC_ACT_UNSPEC
}

/// Does nothing: what metering at XDP is measured against.
#[xdp(frags)]
pub fn empty_xdp(_: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Does nothing: what metering at TC is measured against.
#[classifier]
pub fn empty_tc(_: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

#[inline(never)]
fn unusual_xdp(ctx: &XdpContext) -> Verdict {
    let Some(edge) = edge() else { return refuse(Cause::NotReady) };
    match Frame::parse(&XdpBytes::new(ctx), edge.service_vlan) {
        Ok(frame) => meter(&frame, at_xdp(ctx), edge),
        Err(cause) => refuse(cause),
    }
}

#[inline(never)]
fn unusual_ingress(ctx: &TcContext) -> Verdict {
    let Some(edge) = edge() else { return refuse(Cause::NotReady) };
    match parse(ctx, edge.service_vlan) {
        Ok(frame) => meter(&frame, at_ingress(ctx), edge),
        Err(cause) => refuse(cause),
    }
}

#[inline(never)]
fn unusual_egress(ctx: &TcContext) -> Verdict {
    let Some(edge) = edge() else { return refuse(Cause::NotReady) };
    match parse(ctx, edge.service_vlan) {
        Ok(frame) => meter(&frame, at_egress(ctx), edge),
        Err(cause) => refuse(cause),
    }
}

#[inline(always)]
fn parse(ctx: &TcContext, service_vlan: u16) -> Result<Frame, Cause> {
    let bytes = SkbBytes::new(ctx);
    let frame = Frame::parse(&bytes, service_vlan);
    if frame == Err(Cause::Truncated)
        && let Some(pulled) = bytes.pulled(ctx)
    {
        return Frame::parse(&pulled, service_vlan);
    }
    frame
}

#[inline(always)]
fn at_xdp(ctx: &XdpContext) -> Place {
    // SAFETY: the kernel rewrites reads of the context.
    let port = unsafe { (*ctx.ctx).ingress_ifindex };
    Place { port, from: 0, direction: Direction::Up }
}

#[inline(always)]
fn at_ingress(ctx: &TcContext) -> Place {
    // SAFETY: the kernel rewrites reads of the context.
    let port = unsafe { (*ctx.skb.skb).ifindex };
    Place { port, from: 0, direction: Direction::Up }
}

#[inline(always)]
fn at_egress(ctx: &TcContext) -> Place {
    // SAFETY: the kernel rewrites reads of the context.
    let (port, from) = unsafe { ((*ctx.skb.skb).ifindex, (*ctx.skb.skb).ingress_ifindex) };
    Place { port, from, direction: Direction::Down }
}

fn xdp(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::Pass => xdp_action::XDP_PASS,
        Verdict::Drop => xdp_action::XDP_DROP,
    }
}

/// "Unspecified" lets the next program or filter have its say; an OK would skip it.
fn tc(verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Pass => TC_ACT_UNSPEC,
        Verdict::Drop => TC_ACT_SHOT,
    }
}

/// Nanoseconds of `CLOCK_MONOTONIC`, as of the last tick of the kernel's timer: 1 to 10 ms old.
#[inline(always)]
fn clock() -> u64 {
    // SAFETY: the helper takes nothing and changes nothing.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// Nanoseconds of `CLOCK_MONOTONIC`.
#[inline(always)]
fn clock_fine() -> u64 {
    // SAFETY: the helper takes nothing and changes nothing.
    unsafe { bpf_ktime_get_ns() }
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
