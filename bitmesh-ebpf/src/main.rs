//! The programs that the kernel runs: two that meter and enforce on the edge's LAN ports, and two
//! that only count on a subscriber's own interface.
//!
//! They may touch their maps and read frames. They never write a frame, never write a field that
//! userspace writes, and never decide on a value that an atomic returned.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]
#![allow(clippy::inline_always, reason = "the verifier follows no call that it need not follow")]

#[cfg(target_arch = "bpf")]
mod kernel;

#[cfg(not(target_arch = "bpf"))]
fn main() {
    println!("This program runs in the kernel: build it with `cargo xtask build-ebpf`.");
}
