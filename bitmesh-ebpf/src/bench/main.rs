//! The programs that `cargo xtask bench` measures with: a generator of frames, and a sink.
//!
//! They are never shipped, and only run in network namespaces that the benchmarks made.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![allow(clippy::inline_always, reason = "the verifier follows no call that it need not follow")]

#[cfg(target_arch = "bpf")]
mod kernel;

#[cfg(not(target_arch = "bpf"))]
fn main() {
    println!("This program runs in the kernel: build it with `cargo xtask build-ebpf`.");
}
