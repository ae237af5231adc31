//! What a frame is and what may happen to it, as pure functions.
//!
//! The kernel programs in `main.rs` and the tests on the host compile the same code: a parser over
//! a bounds-checked [`Packet`], and the table of who may do what before paying. It may use
//! `bitmesh-common` and nothing else; it never reads a map and never counts.
#![no_std]
#![allow(clippy::inline_always, reason = "the verifier follows no call that it need not follow")]

mod frame;
mod gso;
mod network;
#[cfg(not(target_arch = "bpf"))]
mod octets;
mod packet;
mod policy;

pub use frame::{Content, Frame};
pub use network::{Address, Network, Transport};
#[cfg(not(target_arch = "bpf"))]
pub use octets::Octets;
pub use packet::{Head, Packet, TAG_PRESENT};
pub use policy::{Far, Step, download, own_count, upload};

#[cfg(test)]
mod tests;
