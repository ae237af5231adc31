//! Frames in ordinary memory: what the host's tests and the fuzzer read from.

use crate::packet::{Head, Packet};

/// A frame as a slice, with what the kernel may keep beside it.
#[derive(Clone, Copy, Debug)]
pub struct Octets<'a> {
    /// The frame, whole and in one piece.
    pub frame: &'a [u8],
    /// See [`Packet::tag`].
    pub tag: u32,
    /// See [`Packet::gso_size`].
    pub gso_size: u32,
    /// See [`Packet::gso_segments`].
    pub gso_segments: u32,
}

impl<'a> Octets<'a> {
    /// A frame with nothing beside it.
    pub fn new(frame: &'a [u8]) -> Self {
        Self { frame, tag: 0, gso_size: 0, gso_segments: 0 }
    }

    fn word<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let start = usize::try_from(offset).ok()?;
        self.frame.get(start..start.checked_add(N)?)?.try_into().ok()
    }
}

impl<const N: usize> Head<N> for [u8; N] {
    fn u8<const AT: usize>(&self) -> u8 {
        u8::from_be_bytes(part::<N, AT, 1>(self))
    }
    fn u16<const AT: usize>(&self) -> u16 {
        u16::from_be_bytes(part::<N, AT, 2>(self))
    }
    fn u32<const AT: usize>(&self) -> u32 {
        u32::from_be_bytes(part::<N, AT, 4>(self))
    }
    fn u64<const AT: usize>(&self) -> u64 {
        u64::from_be_bytes(part::<N, AT, 8>(self))
    }
}

fn part<const N: usize, const AT: usize, const SIZE: usize>(head: &[u8; N]) -> [u8; SIZE] {
    const { assert!(AT + SIZE <= N) };
    let mut part = [0; SIZE];
    for (to, from) in part.iter_mut().zip(head.iter().skip(AT)) {
        *to = *from;
    }
    part
}

impl Packet for Octets<'_> {
    type Head<const N: usize> = [u8; N];

    fn head<const N: usize>(&self) -> Option<[u8; N]> {
        self.word(0)
    }
    fn holds(&self, octets: u32) -> bool {
        self.frame_len() >= octets
    }
    fn frame_len(&self) -> u32 {
        u32::try_from(self.frame.len()).unwrap_or(u32::MAX)
    }
    fn tag(&self) -> u32 {
        self.tag
    }
    fn gso_size(&self) -> u32 {
        self.gso_size
    }
    fn gso_segments(&self) -> u32 {
        self.gso_segments
    }
    fn u8(&self, offset: u32) -> Option<u8> {
        self.word(offset).map(u8::from_be_bytes)
    }
    fn u16(&self, offset: u32) -> Option<u16> {
        self.word(offset).map(u16::from_be_bytes)
    }
    fn u32(&self, offset: u32) -> Option<u32> {
        self.word(offset).map(u32::from_be_bytes)
    }
    fn u64(&self, offset: u32) -> Option<u64> {
        self.word(offset).map(u64::from_be_bytes)
    }
}
