//! The parser against frames that nobody would send.

extern crate std;

use std::{ops::Range, vec::Vec};

use bitmesh_common::{Cause, EDGE_ADDRESS_LIMIT, EdgeConfig};
use proptest::prelude::*;

use super::*;

struct Bytes {
    octets: Vec<u8>,
    tag: u32,
    gso_size: u32,
    gso_segments: u32,
}

impl Bytes {
    fn plain(octets: Vec<u8>) -> Self {
        Self { octets, tag: 0, gso_size: 0, gso_segments: 0 }
    }

    fn word<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let start = usize::try_from(offset).ok()?;
        self.octets.get(Range { start, end: start + N })?.try_into().ok()
    }
}

impl Packet for Bytes {
    fn frame_len(&self) -> u32 {
        self.octets.len().try_into().unwrap()
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

const EDGE: EdgeConfig = EdgeConfig {
    hash_seed: 1,
    slot_mask: 63,
    api_port: 8_480,
    ipv4_count: 1,
    ipv6_count: 1,
    ipv4: [0x0a40_0001; EDGE_ADDRESS_LIMIT],
    ipv6: [[0xfd64 << 48, 1]; EDGE_ADDRESS_LIMIT],
};

/// Frames that begin as if they meant it, so that chance gets past the Ethernet header.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    let ethertype = prop_oneof![
        3 => Just([0x08, 0x00, 0x45]),
        3 => Just([0x86, 0xdd, 0x60]),
        1 => Just([0x81, 0x00, 0x00]),
        1 => any::<[u8; 3]>(),
    ];
    let next = prop_oneof![Just(0u8), Just(6), Just(17), Just(43), Just(44), Just(58), Just(60)];
    let rest = proptest::collection::vec(any::<u8>(), 0..200);
    (any::<[u8; 12]>(), ethertype, next, rest).prop_map(|(macs, ethertype, next, mut rest)| {
        let offset = if ethertype[0] == 0x86 { 5 } else { 8 };
        if let Some(protocol) = rest.get_mut(offset) {
            *protocol = next;
        }
        macs.into_iter().chain(ethertype).chain(rest).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_frame_is_billed_for_more_than_it_holds(octets in frame(), beside in any::<u16>()) {
        let held = u32::try_from(octets.len()).unwrap() - 14;
        let packet = Bytes { tag: TAG_PRESENT | u32::from(beside), ..Bytes::plain(octets) };
        if let Ok(frame) = Frame::parse(&packet) {
            for step in [upload(&frame, &EDGE), download(&frame, &EDGE)] {
                if let Step::Bill(billed) = step {
                    prop_assert!((20..=held).contains(&billed), "{billed} of {held}");
                }
            }
        }
    }

    #[test]
    fn no_frame_to_segment_is_billed_for_less_than_it_holds(
        octets in frame(),
        gso_size in 1..70_000u32,
        gso_segments in 0..u32::from(u16::MAX),
    ) {
        let held = u32::try_from(octets.len()).unwrap() - 14;
        let packet = Bytes { gso_size, gso_segments, ..Bytes::plain(octets) };
        if let Ok(Frame { content: Content::Ip(ip), .. }) = Frame::parse(&packet) {
            // The option that only tells the kernel to segment is eight octets of what is held.
            prop_assert!(ip.octets + 8 >= held, "{} of {held}", ip.octets);
        }
    }

    #[test]
    fn what_is_cut_short_is_never_read_as_something_else(octets in frame(), cut in 1..60usize) {
        let whole = Frame::parse(&Bytes::plain(octets.clone()));
        let kept = octets.len().saturating_sub(cut);
        let cut = Frame::parse(&Bytes::plain(octets[..kept].to_vec()));
        if let (Ok(whole), Ok(cut)) = (whole, cut) {
            prop_assert_eq!(whole, cut, "only padding can be missing");
        }
    }
}

#[test]
fn a_frame_shorter_than_its_own_header_drops() {
    for length in 0..14 {
        let packet = Bytes::plain(std::vec![2; length]);
        assert_eq!(Frame::parse(&packet), Err(Cause::Truncated), "{length} octets");
    }
}

#[test]
fn a_tag_beside_the_frame_and_one_inside_are_two() {
    let mut octets = std::vec![2; 12];
    octets.extend([0x81, 0x00, 0x00, 0x2a, 0x08, 0x06]);
    let inside = Frame::parse(&Bytes::plain(octets.clone())).unwrap();
    assert_eq!((inside.vlan, inside.content), (42, Content::Arp));
    let both = Bytes { tag: TAG_PRESENT, ..Bytes::plain(octets) };
    assert_eq!(Frame::parse(&both), Err(Cause::Vlan));
}

#[test]
fn a_tag_beside_the_frame_names_its_vlan() {
    let mut octets = std::vec![2; 12];
    octets.extend([0x08, 0x06]);
    let vlan = |tag| Frame::parse(&Bytes { tag, ..Bytes::plain(octets.clone()) }).unwrap().vlan;
    assert_eq!(vlan(TAG_PRESENT | 0xe02a), 42);
    assert_eq!(vlan(TAG_PRESENT), 0);
    assert_eq!(vlan(0), 0);
}
