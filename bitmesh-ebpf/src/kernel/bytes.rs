//! Frames where the kernel holds them, read by direct loads from the linear part.

use core::arch::asm;

use aya_ebpf::{
    bindings::{__sk_buff, xdp_md},
    helpers::{bpf_skb_pull_data, bpf_xdp_get_buff_len},
    programs::{TcContext, XdpContext},
};
use bitmesh_ebpf::{Head, Packet, TAG_PRESENT};

/// Octets within which all headers of a frame must be, where they are not in the linear part.
const HEADERS_LIMIT: u32 = 512;

/// A load of one word in one instruction. Headers are aligned to two octets only, which Rust's own
/// loads would take byte by byte.
macro_rules! load {
    ($name:ident, $type:ty, $instruction:literal) => {
        #[inline(always)]
        fn $name(&self, offset: u32) -> Option<$type> {
            const SIZE: usize = size_of::<$type>();
            let start = self.data + offset as usize;
            if end_of::<SIZE>(start) > self.end {
                return None;
            }
            let word: u64;
            // SAFETY: the load stays below `end`, as the verifier checks once more.
            unsafe {
                asm!(
                    $instruction,
                    word = out(reg) word,
                    start = in(reg) start,
                    options(pure, readonly, nostack, preserves_flags),
                );
            }
            Some(<$type>::from_be(word as $type))
        }
    };
}

/// The end of a word, in a form that the compiler keeps: the verifier learns nothing from the
/// `start >= end` that it would otherwise make of a one-octet check.
#[inline(always)]
fn end_of<const SIZE: usize>(start: usize) -> usize {
    let mut end = start;
    // SAFETY: an addition to a register.
    unsafe {
        asm!(
            "{end} += {size}",
            end = inout(reg) end,
            size = const SIZE,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    end
}

/// The first octets of a frame, which were compared with its end.
pub struct Checked<const N: usize> {
    data: usize,
}

/// A load at a constant offset, in one instruction and without a check of its own.
macro_rules! load_at {
    ($name:ident, $type:ty, $instruction:literal) => {
        #[inline(always)]
        fn $name<const AT: usize>(&self) -> $type {
            const { assert!(AT + size_of::<$type>() <= N) };
            let word: u64;
            // SAFETY: the load stays inside the first `N` octets, as the verifier checks once more.
            unsafe {
                asm!(
                    $instruction,
                    word = out(reg) word,
                    data = in(reg) self.data,
                    at = const AT,
                    options(pure, readonly, nostack, preserves_flags),
                );
            }
            <$type>::from_be(word as $type)
        }
    };
}

impl<const N: usize> Head<N> for Checked<N> {
    load_at!(u8, u8, "{word} = *(u8 *)({data} + {at})");
    load_at!(u16, u16, "{word} = *(u16 *)({data} + {at})");
    load_at!(u32, u32, "{word} = *(u32 *)({data} + {at})");
    load_at!(u64, u64, "{word} = *(u64 *)({data} + {at})");
}

macro_rules! loads {
    () => {
        load!(u8, u8, "{word} = *(u8 *)({start} + 0)");
        load!(u16, u16, "{word} = *(u16 *)({start} + 0)");
        load!(u32, u32, "{word} = *(u32 *)({start} + 0)");
        load!(u64, u64, "{word} = *(u64 *)({start} + 0)");

        type Head<const N: usize> = Checked<N>;

        #[inline(always)]
        fn head<const N: usize>(&self) -> Option<Checked<N>> {
            (end_of::<N>(self.data) <= self.end).then_some(Checked { data: self.data })
        }

        #[inline(always)]
        fn holds(&self, octets: u32) -> bool {
            self.end - self.data >= octets as usize || self.frame_len() >= octets
        }
    };
}

/// A frame at XDP, possibly in several buffers. Drivers put at least the headers into the first.
pub struct XdpBytes {
    xdp: *mut xdp_md,
    data: usize,
    end: usize,
}

impl XdpBytes {
    #[inline(always)]
    pub fn new(ctx: &XdpContext) -> Self {
        Self { xdp: ctx.ctx, data: ctx.data(), end: ctx.data_end() }
    }
}

impl Packet for XdpBytes {
    #[inline(always)]
    fn frame_len(&self) -> u32 {
        // SAFETY: the context is the one that the kernel passed in.
        unsafe { bpf_xdp_get_buff_len(self.xdp) as u32 }
    }

    #[inline(always)]
    fn tag(&self) -> u32 {
        0
    }

    #[inline(always)]
    fn gso_size(&self) -> u32 {
        0
    }

    #[inline(always)]
    fn gso_segments(&self) -> u32 {
        0
    }

    loads!();
}

/// A socket buffer at TC, possibly with most of it in fragments.
pub struct SkbBytes {
    skb: *mut __sk_buff,
    data: usize,
    end: usize,
}

impl SkbBytes {
    #[inline(always)]
    pub fn new(ctx: &TcContext) -> Self {
        Self { skb: ctx.skb.skb, data: ctx.data(), end: ctx.data_end() }
    }

    /// Brings more of a frame whose headers were not all in the linear part into it; `None` when
    /// they were, or when there is no memory.
    #[inline(always)]
    pub fn pulled(&self, ctx: &TcContext) -> Option<Self> {
        let linear = self.end - self.data;
        let wanted = self.frame_len().min(HEADERS_LIMIT);
        if linear >= wanted as usize {
            return None;
        }
        // SAFETY: the context is the kernel's; the old pointers into the frame are not used again.
        let error = unsafe { bpf_skb_pull_data(self.skb, wanted) };
        (error == 0).then(|| Self::new(ctx))
    }
}

impl Packet for SkbBytes {
    #[inline(always)]
    fn frame_len(&self) -> u32 {
        // SAFETY: the kernel rewrites reads of the context.
        unsafe { (*self.skb).len }
    }

    #[inline(always)]
    fn tag(&self) -> u32 {
        // SAFETY: the kernel rewrites reads of the context.
        let (present, tci) = unsafe { ((*self.skb).vlan_present, (*self.skb).vlan_tci) };
        if present == 0 { 0 } else { TAG_PRESENT | (tci & 0xffff) }
    }

    #[inline(always)]
    fn gso_size(&self) -> u32 {
        // SAFETY: the kernel rewrites reads of the context.
        unsafe { (*self.skb).gso_size }
    }

    #[inline(always)]
    fn gso_segments(&self) -> u32 {
        // SAFETY: the kernel rewrites reads of the context.
        unsafe { (*self.skb).gso_segs }
    }

    loads!();
}
