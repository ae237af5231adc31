use super::*;
use crate::dataplane::{
    offloads::{Offloads, XdpFeatures},
    ports::{Master, Named, XdpProgram},
};

const NATIVE: XdpFeatures = XdpFeatures { native: true, multi_buffer: true };

fn named(name: &str, index: u32) -> Named {
    Named { name: name.to_owned(), index }
}

fn real() -> Port {
    let mtu = 1_500;
    Port { name: "eth1".into(), index: 2, mtu, xdp_features: Some(NATIVE), ..Port::default() }
}

fn virtual_port(kind: &str) -> Port {
    Port { kind: Some(kind.to_owned()), ..real() }
}

fn auto(port: &Port) -> Choice {
    upload(port, UploadHook::Auto, None).unwrap()
}

#[test]
fn a_real_port_gets_native_xdp_and_tc_if_its_driver_refuses_after_all() {
    let choice = auto(&real());
    assert_eq!((choice.hook, choice.or_tc), (HookKind::XdpNative, true));
    assert_eq!(choice.warning, None);
    let old_kernel = auto(&Port { xdp_features: None, ..real() });
    assert_eq!((old_kernel.hook, old_kernel.or_tc), (HookKind::XdpNative, true));
}

#[test]
fn a_real_port_whose_driver_has_no_xdp_gets_tc() {
    let port = Port { xdp_features: Some(XdpFeatures::default()), ..real() };
    assert_eq!(auto(&port).hook, tc(None));
    assert!(auto(&port).why.contains("no native XDP"));
    let error = upload(&port, UploadHook::XdpNative, None).unwrap_err();
    assert!(matches!(error, DataplaneError::NoNativeXdp { .. }), "{error}");
}

#[test]
fn jumbo_frames_need_a_driver_with_several_buffers_a_frame() {
    let single = XdpFeatures { native: true, multi_buffer: false };
    let port = |mtu, features| Port { mtu, xdp_features: Some(features), ..real() };
    assert_eq!(auto(&port(SINGLE_BUFFER_MTU, single)).hook, HookKind::XdpNative);
    assert_eq!(auto(&port(SINGLE_BUFFER_MTU + 1, single)).hook, tc(None));
    assert_eq!(auto(&port(SINGLE_BUFFER_MTU + 1, NATIVE)).hook, HookKind::XdpNative);
}

#[test]
fn virtual_ports_and_radios_get_tc_even_where_their_drivers_have_xdp() {
    for kind in ["veth", "tun", "macvlan", "vlan", "bond", "team", "dsa", "vxlan"] {
        assert_eq!(auto(&virtual_port(kind)).hook, tc(None), "{kind}");
    }
    assert_eq!(auto(&Port { wireless: true, ..real() }).hook, tc(None));
}

#[test]
fn a_port_of_a_bridge_is_metered_like_any_other() {
    let master = Some(Master { interface: named("br0", 9), kind: "bridge".into() });
    assert_eq!(auto(&Port { master: master.clone(), ..real() }).hook, HookKind::XdpNative);
    assert_eq!(auto(&Port { master, ..virtual_port("veth") }).hook, tc(None));
}

#[test]
fn a_bridge_is_refused_and_its_ports_are_named() {
    for wish in [UploadHook::Auto, UploadHook::Tc, UploadHook::XdpGeneric] {
        let ports = vec!["lan0".to_owned(), "lan1".to_owned()];
        let port = Port { ports, ..virtual_port("bridge") };
        let error = upload(&port, wish, None).unwrap_err().to_string();
        assert!(error.contains("`--lan lan0 --lan lan1`"), "{error}");
    }
    let error = upload(&virtual_port("bridge"), UploadHook::Auto, None).unwrap_err().to_string();
    assert!(error.contains("its ports, when it has some"), "{error}");
}

#[test]
fn a_bond_is_metered_whole_and_never_by_its_ports() {
    assert_eq!(auto(&virtual_port("bond")).hook, tc(None));
    let master = Some(Master { interface: named("bond0", 9), kind: "bond".into() });
    let error = upload(&Port { master, ..real() }, UploadHook::Auto, None).unwrap_err();
    assert!(error.to_string().contains("`--lan bond0`"), "{error}");
}

#[test]
fn the_way_into_a_switch_chip_is_refused_and_the_chips_ports_are_named() {
    let port = Port { switch_ports: vec!["lan1".into(), "lan2".into()], ..real() };
    let error = upload(&port, UploadHook::Auto, None).unwrap_err();
    assert!(error.to_string().contains("`--lan lan1 --lan lan2`"), "{error}");
}

#[test]
fn d17_generic_xdp_is_never_chosen_and_never_without_a_warning() {
    for port in [
        real(),
        virtual_port("macvlan"),
        Port { xdp_features: Some(XdpFeatures::default()), ..real() },
        Port { xdp_features: None, ..real() },
    ] {
        assert_ne!(auto(&port).hook, HookKind::XdpGeneric, "{port:?}");
        let choice = upload(&port, UploadHook::XdpGeneric, None).unwrap();
        assert_eq!(choice.hook, HookKind::XdpGeneric);
        assert!(choice.warning.is_some_and(|warning| warning.contains("generic XDP")), "{port:?}");
    }
}

#[test]
fn lro_is_warned_of_and_gro_is_not() {
    let port =
        |lro, gro_hw| Port { offloads: Some(Offloads { lro, gro_hw, hw_tc: true }), ..real() };
    for wish in [UploadHook::Auto, UploadHook::Tc] {
        let warning = |lro, gro_hw| upload(&port(lro, gro_hw), wish, None).unwrap().warning;
        assert_eq!(warning(false, false), None);
        assert!(warning(true, false).unwrap().contains("lro off"));
        // GRO can be taken apart again: TC counts the parts, drivers end it for XDP.
        assert_eq!(warning(false, true), None);
    }
}

#[test]
fn another_xdp_program_is_refused_where_ours_would_be_and_warned_of_elsewhere() {
    let xdp = Some(XdpProgram { id: 7, name: "other".into(), generic: false });
    let error = upload(&Port { xdp: xdp.clone(), ..real() }, UploadHook::Auto, None).unwrap_err();
    assert!(matches!(error, DataplaneError::ForeignXdp { id: 7, .. }), "{error}");
    let choice = auto(&Port { xdp: xdp.clone(), ..virtual_port("veth") });
    assert!(choice.warning.unwrap().contains("XDP program 7 (other)"));
    // Ours is there since before.
    let choice = upload(&Port { xdp, ..real() }, UploadHook::Auto, Some(Holder::Xdp)).unwrap();
    assert_eq!((choice.hook, choice.why), (HookKind::XdpNative, kept()));
}

#[test]
fn what_is_in_place_is_kept_and_nothing_else_is_put_beside_it() {
    let held = |wish, held| upload(&virtual_port("veth"), wish, Some(held));
    assert_eq!(held(UploadHook::Auto, Holder::Clsact).unwrap().hook, HookKind::Clsact);
    assert_eq!(held(UploadHook::Tc, Holder::Tcx).unwrap().hook, HookKind::Tcx);
    for (wish, holder) in [
        (UploadHook::Tc, Holder::Xdp),
        (UploadHook::XdpNative, Holder::Tcx),
        (UploadHook::XdpGeneric, Holder::Clsact),
    ] {
        let error = held(wish, holder).unwrap_err();
        assert!(matches!(error, DataplaneError::OtherHook { .. }), "{error}");
    }
}

#[test]
fn no_frame_is_metered_twice() {
    let lower = Some(named("eth1", 2));
    let vlan = Port { name: "eth1.10".into(), index: 3, lower, ..virtual_port("vlan") };
    assert!(check_together(std::slice::from_ref(&vlan)).is_ok());
    let error = check_together(&[vlan.clone(), real()]).unwrap_err();
    assert!(matches!(error, DataplaneError::MeteredTwice { .. }), "{error}");
    assert!(check_together(&[vlan, Port { index: 4, ..real() }]).is_ok());
    let error = check_together(&[real(), real()]).unwrap_err();
    assert!(matches!(error, DataplaneError::NamedTwice { .. }), "{error}");
}
