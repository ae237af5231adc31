//! What only the kernel can run: maps, frames where they lie, and the entry points.

mod bytes;
mod maps;
mod meter;

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action},
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use bitmesh_common::Cause;
use bitmesh_ebpf::{Far, Frame};

use self::{
    bytes::{SkbBytes, XdpBytes},
    meter::{Verdict, download, observe, upload},
};

/// Meters what stations send, in the driver or in generic XDP.
#[xdp(frags)]
pub fn upload_xdp(ctx: XdpContext) -> u32 {
    match upload(|| Frame::parse(&XdpBytes::new(&ctx))) {
        Verdict::Pass => xdp_action::XDP_PASS,
        Verdict::Drop => xdp_action::XDP_DROP,
    }
}

/// Meters what stations send, at TC ingress.
#[classifier]
pub fn upload_tc(ctx: TcContext) -> i32 {
    action(upload(|| parse(&ctx)))
}

/// Meters what stations receive, at TC egress.
#[classifier]
pub fn download_tc(ctx: TcContext) -> i32 {
    action(download(|| parse(&ctx)))
}

/// Counts what a subscriber sends, at TC egress; never drops.
#[classifier]
pub fn observe_up(ctx: TcContext) -> i32 {
    observe(|| parse(&ctx), Far::Destination);
    TC_ACT_UNSPEC
}

/// Counts what a subscriber receives, at TC ingress; never drops.
#[classifier]
pub fn observe_down(ctx: TcContext) -> i32 {
    observe(|| parse(&ctx), Far::Source);
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

#[inline(always)]
fn parse(ctx: &TcContext) -> Result<Frame, Cause> {
    let bytes = SkbBytes::new(ctx);
    let frame = Frame::parse(&bytes);
    if frame == Err(Cause::Truncated)
        && let Some(pulled) = bytes.pulled(ctx)
    {
        return Frame::parse(&pulled);
    }
    frame
}

/// "Unspecified" lets the next program or filter have its say; an OK would skip it.
fn action(verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Pass => TC_ACT_UNSPEC,
        Verdict::Drop => TC_ACT_SHOT,
    }
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
