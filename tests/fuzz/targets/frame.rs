//! Any octets as a frame: each gets a verdict, and none is billed for what it does not hold.
#![no_main]

use bitmesh_common::{EdgeConfig, ISOLATE};
use bitmesh_ebpf::{Content, Far, Frame, Octets, Step, TAG_PRESENT, download, own_count, upload};
use libfuzzer_sys::fuzz_target;

const ETHERNET_HEADER: u32 = 14;
/// What the kernel adds to an IPv6 packet that it means to segment.
const JUMBO_HEADER: u32 = 8;

fn edge(isolate: bool) -> EdgeConfig {
    let mut edge = EdgeConfig { hash_seed: 1, slot_mask: 63, api_port: 8_434, ..EdgeConfig::UNSET };
    assert!(edge.add_own([10, 64, 0, 1].into()));
    assert!(edge.add_own([0xfd64, 0, 0, 0, 0, 0, 0, 1].into()));
    assert!(edge.add_lan(3));
    edge.flags = if isolate { ISOLATE } else { 0 };
    edge
}

fuzz_target!(|input: &[u8]| {
    // The first octets are what the kernel keeps beside a frame.
    let Some((&[kind, tag_high, tag_low, size_high, size_low, segments], frame)) =
        input.split_first_chunk::<6>()
    else {
        return;
    };
    let mut packet = Octets::new(frame);
    if kind & 1 != 0 {
        packet.tag = TAG_PRESENT | u32::from(u16::from_be_bytes([tag_high, tag_low]));
    }
    if kind & 2 != 0 {
        packet.gso_size = u32::from(u16::from_be_bytes([size_high, size_low]));
        packet.gso_segments = u32::from(segments);
    }
    let edge = edge(kind & 4 != 0);
    let service_vlan = u16::from(kind >> 4);
    let parsed = Frame::parse(&packet, service_vlan);
    if let Some(short) = Frame::plain(&packet) {
        assert_eq!(Ok(short), parsed, "the short way reads something else");
    }
    let Ok(parsed) = parsed else { return };
    let held = u32::try_from(frame.len()).unwrap() - ETHERNET_HEADER;
    for step in [upload(&parsed, &edge), download(&parsed, 3, &edge), download(&parsed, 0, &edge)] {
        if let (Step::Bill(billed), 0) = (step, packet.gso_size) {
            assert!((20..=held).contains(&billed), "{billed} of {held}");
        }
    }
    if let (Content::Ip(ip), true) = (parsed.content, packet.gso_size > 0) {
        assert!(ip.octets + JUMBO_HEADER + 8 >= held, "{} of {held}", ip.octets);
    }
    for far in [Far::Source, Far::Destination] {
        if let Some(counted) = own_count(&parsed, far, &edge) {
            let Content::Ip(ip) = parsed.content else { panic!("only IP is counted") };
            assert_eq!(counted, ip.octets);
        }
    }
});
