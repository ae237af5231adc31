//! The parser against frames that nobody would send.

extern crate std;

use std::vec::Vec;

use bitmesh_common::{Cause, EdgeConfig, ISOLATE};
use proptest::prelude::*;

use super::*;

fn edge() -> EdgeConfig {
    let mut config =
        EdgeConfig { hash_seed: 1, slot_mask: 63, api_port: 8_480, ..EdgeConfig::UNSET };
    assert!(config.add_own([10, 64, 0, 1].into()));
    assert!(config.add_own([0xfd64, 0, 0, 0, 0, 0, 0, 1].into()));
    config
}

fn parse(packet: &Octets<'_>) -> Result<Frame, Cause> {
    Frame::parse(packet, 0)
}

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
        let packet = Octets { tag: TAG_PRESENT | u32::from(beside), ..Octets::new(&octets) };
        if let Ok(frame) = parse(&packet) {
            for step in [upload(&frame, &edge()), download(&frame, 0, &edge())] {
                if let Step::Bill(billed) = step {
                    prop_assert!((20..=held).contains(&billed), "{billed} of {held}");
                }
            }
        }
    }

    #[test]
    fn the_short_way_reads_what_the_long_way_reads(octets in frame()) {
        let packet = Octets::new(&octets);
        if let Some(frame) = Frame::plain(&packet) {
            prop_assert_eq!(Ok(frame), parse(&packet));
        }
    }

    #[test]
    fn no_frame_to_segment_is_billed_for_less_than_it_holds(
        octets in frame(),
        gso_size in 1..70_000u32,
        gso_segments in 0..u32::from(u16::MAX),
    ) {
        let held = u32::try_from(octets.len()).unwrap() - 14;
        let packet = Octets { gso_size, gso_segments, ..Octets::new(&octets) };
        if let Ok(Frame { content: Content::Ip(ip), .. }) = parse(&packet) {
            // The option that only tells the kernel to segment is eight octets of what is held.
            prop_assert!(ip.octets + 8 >= held, "{} of {held}", ip.octets);
        }
    }

    #[test]
    fn what_is_cut_short_is_never_read_as_something_else(octets in frame(), cut in 1..60usize) {
        let whole = parse(&Octets::new(&octets));
        let kept = octets.len().saturating_sub(cut);
        let cut = parse(&Octets::new(&octets[..kept]));
        if let (Ok(whole), Ok(cut)) = (whole, cut) {
            prop_assert_eq!(whole, cut, "only padding can be missing");
        }
    }
}

#[test]
fn a_frame_shorter_than_its_own_header_drops() {
    for length in 0..14 {
        let octets = std::vec![2; length];
        let packet = Octets::new(&octets);
        assert_eq!(parse(&packet), Err(Cause::Truncated), "{length} octets");
    }
}

#[test]
fn a_tag_beside_the_frame_and_one_inside_are_two() {
    let mut octets = std::vec![2; 12];
    octets.extend([0x81, 0x00, 0x00, 0x2a, 0x08, 0x06]);
    let inside = parse(&Octets::new(&octets)).unwrap();
    assert_eq!((inside.vlan, inside.content, inside.weight), (42, Content::Arp, 46));
    let both = Octets { tag: TAG_PRESENT, ..Octets::new(&octets) };
    assert_eq!(parse(&both), Err(Cause::Vlan));
}

#[test]
fn of_two_tags_the_outer_is_to_be_the_expected_and_the_inner_is_the_stations() {
    let tagged = |outer: u16, inner: u16| {
        let mut octets = std::vec![2; 12];
        octets.extend([0x88, 0xa8, 0, outer.to_be_bytes()[1], 0x81, 0, 0, inner.to_be_bytes()[1]]);
        octets.extend([0x08, 0x06]);
        octets
    };
    let vlan = |octets: &[u8], expected| {
        Frame::parse(&Octets::new(octets), expected).map(|frame| frame.vlan)
    };
    assert_eq!(vlan(&tagged(7, 42), 7), Ok(42));
    assert_eq!(vlan(&tagged(8, 42), 7), Err(Cause::Vlan));
    assert_eq!(vlan(&tagged(7, 42), 0), Err(Cause::Vlan));
    assert_eq!(vlan(&tagged(0, 42), 0), Err(Cause::Vlan));
}

#[test]
fn frames_from_lan_to_lan_drop_where_stations_are_kept_apart() {
    let mut octets = std::vec![2; 12];
    octets.extend([0x08, 0x06]);
    let frame = parse(&Octets::new(&octets)).unwrap();
    let mut edge = edge();
    assert!(edge.add_lan(3) && edge.add_lan(5));
    assert_eq!(download(&frame, 5, &edge), Step::Pass(Cause::Arp));
    edge.flags = ISOLATE;
    assert_eq!(download(&frame, 5, &edge), Step::Drop(Cause::Isolated));
    for elsewhere in [0, 4] {
        assert_eq!(download(&frame, elsewhere, &edge), Step::Pass(Cause::Arp));
    }
}

#[test]
fn nobody_sends_with_the_edges_address_or_finds_neighbours_beyond_the_link() {
    let icmpv6 = |from: [u8; 16], to: [u8; 16]| {
        let mut octets = std::vec![2; 12];
        octets.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 24, 58, 255]);
        octets.extend([&from[..], &to, &[135, 0], &[0; 22]].concat());
        octets
    };
    let address = |first: u16, last: u8| {
        let [high, low] = first.to_be_bytes();
        let mut address = [0; 16];
        (address[0], address[1], address[15]) = (high, low, last);
        address
    };
    let (edge, own) = (edge(), address(0xfd64, 1));
    let sent = |to| {
        let octets = icmpv6(address(0xfd64, 9), to);
        upload(&parse(&Octets::new(&octets)).unwrap(), &edge)
    };
    let neighbour = Step::Pass(Cause::Neighbour);
    assert_eq!(sent(own), neighbour);
    assert_eq!(sent(address(0xfe80, 7)), neighbour);
    assert_eq!(sent(address(0xff02, 1)), neighbour);
    assert_eq!(sent(address(0x2001, 7)), Step::Bill(64));

    let mut echo = icmpv6(own, address(0xfd64, 9));
    (echo[21], echo[54]) = (64, 1);
    let echo = parse(&Octets::new(&echo)).unwrap();
    assert_eq!(download(&echo, 0, &edge), Step::ForPayers);
    assert_eq!(download(&echo, 4, &edge), Step::Drop(Cause::Spoofed));
}

#[test]
fn a_tag_beside_the_frame_names_its_vlan() {
    let mut octets = std::vec![2; 12];
    octets.extend([0x08, 0x06]);
    let vlan = |tag| parse(&Octets { tag, ..Octets::new(&octets) }).unwrap().vlan;
    assert_eq!(vlan(TAG_PRESENT | 0xe02a), 42);
    assert_eq!(vlan(TAG_PRESENT), 0);
    assert_eq!(vlan(0), 0);
}
