use super::{super::finding::Level, *};
use crate::dataplane::{Offloads, XdpFeatures};

fn facts() -> PortFacts {
    let features = XdpFeatures { native: true, multi_buffer: true };
    let port = Port {
        name: "eth1".into(),
        mtu: 1_500,
        running: true,
        offloads: Some(Offloads::default()),
        xdp_features: Some(features),
        ..Port::default()
    };
    let rings = Some(Rings { rx: 512, rx_max: 4_096 });
    PortFacts {
        port,
        rings,
        driver: Some("igc".into()),
        others: Some(vec![]),
        ..PortFacts::default()
    }
}

fn chosen(hook: HookKind) -> Choice {
    Choice { hook, why: "a test".into(), warning: None, or_tc: false }
}

fn of(facts: &PortFacts, hook: HookKind, flowtables: &[Flowtable], id: &str) -> Finding {
    let findings = judge(facts, &Ok(chosen(hook)), Some(flowtables));
    findings.into_iter().find(|finding| finding.id == id).unwrap()
}

fn with_port(change: impl FnOnce(&mut Port)) -> PortFacts {
    let mut facts = facts();
    change(&mut facts.port);
    facts
}

fn flowtable(device: &str, hardware: bool) -> Flowtable {
    let devices = vec![device.to_owned()];
    Flowtable {
        table: "filter".into(),
        name: "fast".into(),
        devices,
        hardware,
        ..Flowtable::default()
    }
}

#[test]
fn a_good_port_is_good_and_has_nothing_to_do() {
    for hook in [HookKind::XdpNative, HookKind::Tcx, HookKind::Clsact] {
        for finding in judge(&facts(), &Ok(chosen(hook)), Some(&[])) {
            assert_eq!((finding.level, &finding.advice), (Level::Ok, &None), "{finding:?}");
            assert_eq!(finding.port.as_deref(), Some("eth1"));
        }
    }
}

#[test]
fn a_refused_port_fails_with_what_to_do() {
    let refusal = "br0 is a bridge: frames pass; name its ports instead: `--lan lan0`".to_owned();
    let mut findings = judge(&facts(), &Err(refusal), Some(&[]));
    assert_eq!(findings.len(), 1, "the rest is of no use before another port is named");
    let finding = findings.remove(0);
    assert_eq!((finding.id.as_str(), finding.level), ("hook", Level::Failure));
    assert_eq!(finding.seen, "br0 is a bridge: frames pass");
    assert_eq!(finding.advice.unwrap(), "name its ports instead: `--lan lan0`");
}

#[test]
fn the_choices_warning_is_shown() {
    let choice = Choice { warning: Some("miscounts".into()), ..chosen(HookKind::XdpGeneric) };
    let finding = judge(&facts(), &Ok(choice.clone()), Some(&[])).remove(0);
    assert_eq!((finding.level, finding.advice.as_deref()), (Level::Warning, Some("miscounts")));
    let line = line(&facts(), &Ok(choice));
    assert_eq!(
        (line.hook.as_deref(), line.warning.as_deref()),
        (Some("xdp-generic"), Some("miscounts"))
    );
}

#[test]
fn mtu_is_judged_on_both_sides_of_one_buffer() {
    let at = |mtu, multi_buffer, hook| {
        let facts = with_port(|port| {
            port.mtu = mtu;
            port.xdp_features = Some(XdpFeatures { native: true, multi_buffer });
        });
        of(&facts, hook, &[], "mtu").level
    };
    assert_eq!(at(SINGLE_BUFFER_MTU, false, HookKind::XdpNative), Level::Ok);
    assert_eq!(at(SINGLE_BUFFER_MTU + 1, false, HookKind::XdpNative), Level::Failure);
    assert_eq!(at(SINGLE_BUFFER_MTU + 1, true, HookKind::XdpNative), Level::Ok);
    assert_eq!(at(SINGLE_BUFFER_MTU + 1, false, HookKind::Tcx), Level::Ok);
    let unknown = with_port(|port| (port.mtu, port.xdp_features) = (9_000, None));
    assert_eq!(of(&unknown, HookKind::XdpNative, &[], "mtu").level, Level::Note);
}

#[test]
fn what_merges_frames_before_they_are_counted_fails_here_and_below() {
    let lro = Offloads { lro: true, ..Offloads::default() };
    let gro_hw = Offloads { gro_hw: true, ..Offloads::default() };
    let here = |offloads| with_port(|port| port.offloads = Some(offloads));
    for hook in [HookKind::XdpNative, HookKind::Tcx] {
        assert_eq!(of(&here(lro), hook, &[], "lro").level, Level::Failure);
    }
    assert_eq!(of(&here(gro_hw), HookKind::XdpNative, &[], "gro-hw").level, Level::Note);
    // TC counts a merged packet as its parts.
    assert_eq!(of(&here(gro_hw), HookKind::Tcx, &[], "gro-hw").level, Level::Ok);

    let lower = Port { name: "eth0".into(), offloads: Some(lro), ..Port::default() };
    let vlan = PortFacts { below: vec![lower], ..facts() };
    let finding = of(&vlan, HookKind::Tcx, &[], "lro");
    assert_eq!(finding.level, Level::Failure);
    assert!(finding.advice.unwrap().contains("`ethtool -K eth0 lro off`"));
    let silent = with_port(|port| port.offloads = None);
    assert_eq!(of(&silent, HookKind::Tcx, &[], "lro").level, Level::Note);
}

#[test]
fn flowtables_pass_by_the_meter_in_hardware_and_below_the_port_only() {
    let offloads = Some(Offloads::default());
    let lower = Port { name: "eth0".into(), offloads, ..Port::default() };
    let vlan = PortFacts { below: vec![lower], ..facts() };
    let level = |facts: &PortFacts, table| of(facts, HookKind::Tcx, &[table], "flow-offload").level;
    assert_eq!(level(&facts(), flowtable("eth1", true)), Level::Failure);
    assert_eq!(level(&facts(), flowtable("eth1", false)), Level::Note);
    assert_eq!(level(&facts(), flowtable("eth0", false)), Level::Ok);
    assert_eq!(level(&vlan, flowtable("eth0", false)), Level::Failure);
    assert_eq!(level(&vlan, flowtable("eth0", true)), Level::Failure);
    assert_eq!(level(&vlan, flowtable("eth1", false)), Level::Note);
    let unknown = judge(&facts(), &Ok(chosen(HookKind::Tcx)), None);
    let finding = unknown.iter().find(|finding| finding.id == "flow-offload").unwrap();
    assert_eq!(finding.level, Level::Note);
}

#[test]
fn a_device_that_may_forward_by_itself_is_warned_of() {
    let facts =
        with_port(|port| port.offloads = Some(Offloads { hw_tc: true, ..Offloads::default() }));
    let finding = of(&facts, HookKind::XdpNative, &[], "flow-offload");
    assert_eq!(finding.level, Level::Warning);
    assert!(finding.advice.unwrap().contains("hw-tc-offload off"));
}

#[test]
fn rings_are_small_below_512_where_the_device_has_more() {
    let level = |rx, rx_max| {
        let rings = Some(Rings { rx, rx_max });
        of(&PortFacts { rings, ..facts() }, HookKind::Tcx, &[], "rings").level
    };
    assert_eq!(level(511, 4_096), Level::Note);
    assert_eq!(level(512, 4_096), Level::Ok);
    assert_eq!(level(256, 256), Level::Ok);
}

#[test]
fn a_bridged_port_of_a_switch_chip_is_warned_of() {
    let bridged = |master_kind: &str| {
        let facts = with_port(|port| {
            port.kind = Some("dsa".into());
            port.master =
                Some(crate::dataplane::Master { kind: master_kind.into(), ..Default::default() });
        });
        judge(&facts, &Ok(chosen(HookKind::Tcx)), Some(&[])).iter().any(|f| f.id == "switch")
    };
    assert!(bridged("bridge") && !bridged("vrf"));
}

#[test]
fn ports_of_the_same_bridge_that_nobody_named_are_warned_of() {
    let mut facts = with_port(|port| {
        let interface = crate::dataplane::Named { name: "br0".into(), index: 9 };
        port.master = Some(crate::dataplane::Master { interface, kind: "bridge".into() });
    });
    assert_eq!(siblings(&facts, &["eth1".into()], &[]), None);
    facts.siblings = vec!["eth2".into(), "eth3".into()];
    let finding = siblings(&facts, &["eth1".into(), "eth2".into()], &[]).unwrap();
    assert_eq!(finding.seen, "br0 has ports that are not metered: eth3");
    assert_eq!(siblings(&facts, &["eth2".into()], &["eth3".into()]), None);
}

#[test]
fn programs_of_others_are_named() {
    let other = TcProgram { side: Side::Egress, hook: HookKind::Clsact, name: "flower".into() };
    let facts = PortFacts { others: Some(vec![other]), ..facts() };
    let finding = of(&facts, HookKind::Tcx, &[], "other-programs");
    assert_eq!((finding.level, finding.seen.as_str()), (Level::Note, "flower (clsact egress)"));
    let unknown = PortFacts { others: None, ..facts };
    assert!(of(&unknown, HookKind::Tcx, &[], "other-programs").advice.is_some());
}

#[test]
fn a_port_that_is_down_is_noted() {
    let facts = with_port(|port| port.running = false);
    assert_eq!(of(&facts, HookKind::Tcx, &[], "link").level, Level::Note);
}
