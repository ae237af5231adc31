//! `bitmesh doctor` on real ports, against what attaching does to the same ports. As root.
//!
//! Not here, for want of hardware or of the kernel's modules: LRO, GRO in hardware, offload to
//! hardware, rings, radios, switch chips, bonds, VLAN devices, flowtables. What is concluded from
//! them is tested beside the code, on facts as the kernel gives them.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::Path,
    process::Output,
};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf, EbpfLoader,
    programs::{
        SchedClassifier, TcAttachType, Xdp, XdpMode,
        tc::{NlOptions, TcAttachOptions, qdisc_add_clsact},
    },
};
use bitcoin::Amount;
use bitmesh_tests::{
    counters,
    daemon::bitmesh,
    netns::Namespace,
    sweep::{own_name, sweep},
    topology::{EDGE_V4, EDGE_V6, FREELOADER_LAN, INTERNET_V4, LAN, Topology, WAN},
    traffic::{Direction, Server, transfer},
    world::{Trade, World},
};
use bitmesh_user::{
    dataplane::{self, Dataplane, DataplaneError, OBJECT, Options, Port, UploadHook},
    doctor::{Finding, Level, Report},
    runloop::status::Phase,
};
use rtnetlink::{LinkMacVlan, LinkVxlan, packet_route::link::MacVlanMode};

const NOBODY: u32 = 65_534;
const BRIDGE: &str = "br0";

/// An edge with a veth, a bridge of one more, and interfaces that have no native XDP.
struct Edge {
    edge: Namespace,
    peer: Namespace,
}

impl Edge {
    fn new(name: &str) -> Result<Self> {
        sweep();
        let (edge, peer) = (Namespace::create(name)?, Namespace::create(&format!("{name}-peer"))?);
        edge.connect(LAN, &peer, LAN)?;
        edge.connect(FREELOADER_LAN, &peer, FREELOADER_LAN)?;
        edge.connect(WAN, &peer, WAN)?;
        edge.bridge(BRIDGE, &[FREELOADER_LAN])?;
        edge.netlink(async |handle| {
            let index = index_of(&handle, WAN).await?;
            let macvlan = LinkMacVlan::new("macvlan0", index, MacVlanMode::Bridge).up();
            handle.link().add(macvlan.build()).execute().await?;
            let vxlan = LinkVxlan::new("vxlan0", 7).port(4_789).up();
            Ok(handle.link().add(vxlan.build()).execute().await?)
        })?;
        Ok(Self { edge, peer })
    }

    fn doctor(&self, args: &[&str]) -> Result<Output> {
        Ok(self.edge.command(bitmesh()?)?.arg("doctor").args(args).output()?)
    }

    /// What it found, and that the exit code is 0 when nothing failed and 1 when something did.
    fn report(&self, args: &[&str]) -> Result<Report> {
        let output = self.doctor(&[args, &["--json"]].concat())?;
        let report: Report = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        assert_eq!(output.status.code(), Some(i32::from(!report.healthy)), "{report:?}");
        for finding in report.findings.iter().filter(|finding| finding.level != Level::Ok) {
            assert!(finding.advice.as_ref().is_some_and(|text| !text.is_empty()), "{finding:?}");
        }
        Ok(report)
    }

    fn attach(&self, lan: &[&str], upload_hook: UploadHook) -> Result<Attached> {
        let options = Options {
            upload_hook,
            table_slots: 64,
            ..Options::new(own_name("doctor"), lan, 8_434)
        };
        self.edge.run(|| match Dataplane::open(&options) {
            Ok(dataplane) => {
                let uploads =
                    dataplane.hooks().iter().filter(|h| h.side == dataplane::Side::Ingress);
                let hooks: Vec<_> = uploads
                    .map(|hook| {
                        let kind = serde_json::to_value(hook.kind)?;
                        let kind = kind.as_str().unwrap_or_default().to_owned();
                        anyhow::Ok((kind, hook.why.clone(), hook.warning.clone()))
                    })
                    .collect::<Result<_>>()?;
                dataplane.detach()?;
                Ok(Ok(hooks))
            }
            Err(error) => Ok(Err(error)),
        })
    }
}

/// Hook, why, and warning of each port; or why not.
type Attached = std::result::Result<Vec<(String, String, Option<String>)>, DataplaneError>;

async fn index_of(handle: &rtnetlink::Handle, name: &str) -> Result<u32> {
    use futures_util::TryStreamExt as _;
    let mut links = handle.link().get().match_name(name).execute();
    Ok(links.try_next().await?.context("no such interface")?.header.index)
}

fn finding<'a>(report: &'a Report, port: Option<&str>, id: &str) -> Result<&'a Finding> {
    let found = report.findings.iter().find(|f| f.id == id && f.port.as_deref() == port);
    found.with_context(|| format!("no {id} of {port:?} in {report:#?}"))
}

#[test]
fn what_the_doctor_says_is_what_attaching_does() -> Result<()> {
    let edge = Edge::new("agree")?;
    let mut refusals = 0;
    for port in [LAN, FREELOADER_LAN, BRIDGE, "macvlan0", "vxlan0", "nope0"] {
        for (flag, wish) in [
            ("auto", UploadHook::Auto),
            ("tc", UploadHook::Tc),
            ("xdp", UploadHook::XdpNative),
            ("xdp-generic", UploadHook::XdpGeneric),
        ] {
            let report = edge.report(&["--lan", port, "--upload-hook", flag])?;
            match edge.attach(&[port], wish)? {
                Ok(hooks) => {
                    let said = report.ports.first().context("a line")?;
                    let said = (said.hook.clone().unwrap_or_default(), &said.why, &said.warning);
                    let (kind, why, warning) = &hooks[0];
                    assert_eq!(said, (kind.clone(), why, warning), "{port} {flag}");
                    assert!(report.healthy, "{port} {flag}: {report:?}");
                }
                Err(error) => {
                    let failure = finding(&report, Some(port), "hook")?;
                    let advice = failure.advice.clone().unwrap_or_default();
                    assert_eq!(failure.level, Level::Failure, "{port} {flag}: {error}");
                    let error = error.to_string();
                    assert!(error.starts_with(&failure.seen), "{error}: {failure:?}");
                    assert!(error.ends_with(&advice), "{error}: {failure:?}");
                    refusals += 1;
                }
            }
        }
    }
    // The bridge and what is not there always; native XDP on the two that have none.
    assert_eq!(refusals, 4 + 4 + 2);
    Ok(())
}

#[test]
fn a_bridge_is_refused_with_its_ports_and_they_are_metered_at_tc() -> Result<()> {
    let edge = Edge::new("bridge")?;
    let report = edge.report(&["--lan", BRIDGE])?;
    let failure = finding(&report, Some(BRIDGE), "hook")?;
    assert!(failure.advice.as_ref().is_some_and(|text| text.contains("`--lan lan1`")));
    assert_eq!(report.ports[0].hook, None);
    let report = edge.report(&["--lan", FREELOADER_LAN])?;
    assert_eq!(report.ports[0].hook.as_deref(), Some("tcx"));
    assert!(report.healthy);
    // Proven by the programs, in a namespace that has no such sysctl.
    assert_eq!(finding(&report, None, "jit")?.level, Level::Ok);
    Ok(())
}

#[test]
fn a_port_of_the_bridge_that_nobody_named_is_a_way_past_the_meter() -> Result<()> {
    let edge = Edge::new("siblings")?;
    edge.edge.connect("lan2", &edge.peer, "lan2")?;
    edge.edge.bridge("br1", &[LAN, "lan2"])?;
    let report = edge.report(&["--lan", LAN])?;
    let bridge = finding(&report, Some(LAN), "bridge")?;
    assert_eq!(bridge.seen, "br1 has ports that are not metered: lan2");
    for named in [["--lan", "lan2"], ["--wan", "lan2"]] {
        let report = edge.report(&[&["--lan", LAN], &named[..]].concat())?;
        assert!(finding(&report, Some(LAN), "bridge").is_err(), "{report:?}");
    }
    Ok(())
}

#[test]
fn ports_that_would_meter_a_frame_twice_are_refused() -> Result<()> {
    let edge = Edge::new("twice")?;
    for lan in [["macvlan0", WAN], [LAN, LAN]] {
        let report = edge.report(&["--lan", lan[0], "--lan", lan[1]])?;
        assert_eq!(finding(&report, None, "ports")?.level, Level::Failure);
        assert!(edge.attach(&lan, UploadHook::Auto)?.is_err());
    }
    let report = edge.report(&["--lan", LAN, "--lan", FREELOADER_LAN, "--wan", WAN])?;
    assert!(report.healthy && finding(&report, None, "ports").is_err());
    assert_eq!(finding(&report, Some(WAN), "wan")?.level, Level::Ok);
    let report = edge.report(&["--lan", LAN, "--wan", LAN])?;
    assert_eq!(finding(&report, Some(LAN), "wan")?.level, Level::Failure);
    let report = edge.report(&["--lan", LAN, "--wan", "nope0"])?;
    assert_eq!(finding(&report, Some("nope0"), "wan")?.level, Level::Failure);
    Ok(())
}

#[test]
fn jumbo_frames_pass_where_the_driver_has_several_buffers_a_frame() -> Result<()> {
    let edge = Edge::new("jumbo")?;
    edge.edge.mtu(LAN, 9_000)?;
    for hook in ["auto", "xdp"] {
        let report = edge.report(&["--lan", LAN, "--upload-hook", hook])?;
        let mtu = finding(&report, Some(LAN), "mtu")?;
        assert_eq!((mtu.level, mtu.seen.as_str()), (Level::Ok, "9000 octets"));
        let driver = finding(&report, Some(LAN), "driver")?;
        assert_eq!(driver.seen, "veth has native XDP, for frames over a page too");
    }
    let report = edge.report(&["--lan", "macvlan0"])?;
    let driver = finding(&report, Some("macvlan0"), "driver")?;
    assert_eq!(driver.seen, "macvlan has no native XDP");
    Ok(())
}

fn object(namespace: &Namespace) -> Result<Ebpf> {
    namespace.run(|| {
        let mut object = EbpfLoader::new().btf(None).load(OBJECT)?;
        let xdp: &mut Xdp = object.program_mut("empty_xdp").context("it")?.try_into()?;
        xdp.load()?;
        let tc: &mut SchedClassifier = object.program_mut("empty_tc").context("it")?.try_into()?;
        tc.load()?;
        Ok(object)
    })
}

#[test]
fn programs_of_others_are_found_and_xdp_is_never_put_over_one() -> Result<()> {
    let edge = Edge::new("others")?;
    let none = edge.report(&["--lan", LAN])?;
    assert_eq!(finding(&none, Some(LAN), "other-programs")?.level, Level::Ok);
    let mut object = object(&edge.edge)?;
    edge.edge.run(|| {
        let xdp: &mut Xdp = object.program_mut("empty_xdp").context("it")?.try_into()?;
        xdp.attach(LAN, XdpMode::Driver)?;
        let tc: &mut SchedClassifier = object.program_mut("empty_tc").context("it")?.try_into()?;
        tc.attach(LAN, TcAttachType::Ingress)?;
        qdisc_add_clsact(LAN)?;
        let filter = TcAttachOptions::Netlink(NlOptions::default());
        tc.attach_with_options(LAN, TcAttachType::Egress, filter)?;
        Ok(())
    })?;
    let report = edge.report(&["--lan", LAN])?;
    let others = finding(&report, Some(LAN), "other-programs")?;
    assert_eq!(others.seen, "empty_tc (tcx ingress), bpf (clsact egress)");
    let warning = report.ports[0].warning.clone().unwrap_or_default();
    assert!(warning.contains("(empty_xdp) runs before the meter"), "{warning}");

    let report = edge.report(&["--lan", LAN, "--upload-hook", "xdp"])?;
    let failure = finding(&report, Some(LAN), "hook")?;
    assert!(failure.seen.contains("already carries XDP program"), "{failure:?}");
    let refused = edge.attach(&[LAN], UploadHook::XdpNative)?.err();
    assert!(matches!(refused, Some(DataplaneError::ForeignXdp { .. })), "{refused:?}");
    Ok(())
}

#[test]
fn looking_changes_nothing() -> Result<()> {
    let edge = Edge::new("looking")?;
    let state = || {
        let ports = edge.edge.run(|| {
            let ports = Port::all()?;
            let programs = ports.iter().map(dataplane::tc_programs);
            let programs = programs.collect::<std::result::Result<Vec<_>, _>>()?;
            Ok((ports, programs))
        })?;
        anyhow::Ok((ports, dataplane::instances().contains(&"sell".to_owned())))
    };
    let before = state()?;
    let report = edge.report(&[])?;
    edge.report(&["--lan", LAN, "--lan", BRIDGE, "--wan", WAN])?;
    assert_eq!(state()?, before);
    // Every port that a station could be on has its line, and the bridge says what to name.
    let names: Vec<_> = report.ports.iter().map(|line| line.port.as_str()).collect();
    for name in [LAN, FREELOADER_LAN, WAN, BRIDGE, "macvlan0", "vxlan0"] {
        assert!(names.contains(&name), "{names:?}");
    }
    assert!(!names.contains(&"lo"));
    let bridge = report.ports.iter().find(|line| line.port == BRIDGE).context("the bridge")?;
    assert!(bridge.hook.is_none() && bridge.why.contains("`--lan lan1`"), "{bridge:?}");
    Ok(())
}

#[test]
fn without_root_it_checks_what_it_can_and_says_what_it_could_not() -> Result<()> {
    let edge = Edge::new("nobody")?;
    let data = tempfile::tempdir()?;
    std::os::unix::fs::chown(data.path(), Some(NOBODY), Some(NOBODY))?;
    // The build's folders may be closed to others.
    let program = data.path().join("bitmesh");
    fs::copy(bitmesh()?, &program)?;
    // As bpffs is on most machines: closed.
    let instance = own_name("nobody");
    let pins = Path::new("/sys/fs/bpf/bitmesh").join(&instance);
    fs::create_dir_all(&pins)?;
    fs::set_permissions(&pins, fs::Permissions::from_mode(0o700))?;
    let mut command = edge.edge.command(&program)?;
    command.args(["doctor", "--json", "--lan", LAN, "--instance", &instance]);
    // SAFETY: three system calls without memory of ours, between fork and exec.
    unsafe {
        command.pre_exec(|| {
            let done = libc::setgroups(0, std::ptr::null()) == 0
                && libc::setgid(NOBODY) == 0
                && libc::setuid(NOBODY) == 0;
            if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        });
    }
    let output = command.output()?;
    fs::remove_dir(&pins)?;
    let report: Report = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    assert!(output.status.success() && report.healthy, "{report:?}");
    assert_eq!(finding(&report, None, "rights")?.level, Level::Note);
    for (port, id) in [
        (None, "programs"),
        (None, "jit"),
        (Some(LAN), "flow-offload"),
        (Some(LAN), "other-programs"),
    ] {
        let unchecked = finding(&report, port, id)?;
        assert!(unchecked.seen.contains("could not be checked"), "{unchecked:?}");
    }
    // What it may see it sees.
    assert_eq!(finding(&report, Some(LAN), "lro")?.level, Level::Ok);
    assert_eq!(report.ports[0].hook.as_deref(), Some("tcx"));
    Ok(())
}

#[test]
fn d17_without_native_xdp_generic_is_refused_or_warned_of_in_log_status_and_doctor() -> Result<()> {
    let edge = Edge::new("d17")?;
    // Nobody asked for generic XDP: it is TC, or a refusal, never generic in silence.
    for port in ["macvlan0", "vxlan0"] {
        let hooks = edge.attach(&[port], UploadHook::Auto)??;
        assert_eq!((hooks[0].0.as_str(), &hooks[0].2), ("tcx", &None));
        let refused = edge.attach(&[port], UploadHook::XdpNative)?.err();
        assert!(matches!(refused, Some(DataplaneError::NoNativeXdp { .. })), "{refused:?}");
        let hooks = edge.attach(&[port], UploadHook::XdpGeneric)??;
        assert_eq!(hooks[0].0, "xdp-generic");
        assert!(hooks[0].2.as_ref().is_some_and(|warning| warning.contains("generic XDP")));
    }
    drop(edge);

    let topology = Topology::edge()?;
    let hook = ["--upload-hook", "xdp-generic"];
    let world = World::new(&topology, &Trade { sell: &hook, ..Trade::default() })?;
    let log = world.provider.log();
    assert!(log.contains("WARN") && log.contains("generic XDP sees merged packets"), "{log}");
    let status = world.provider_status()?;
    let upload = status.hooks.iter().find(|hook| hook.direction == "upload").context("upload")?;
    assert_eq!(upload.hook, "xdp-generic");
    assert!(upload.warning.as_ref().is_some_and(|warning| warning.contains("generic XDP")));
    let shown = world.provider.cli(&["status"])?.stdout;
    assert!(String::from_utf8_lossy(&shown).contains("WARNING"));
    let mut doctor = topology.edge.command(bitmesh()?)?;
    doctor.args(["doctor", "--lan", LAN, "--upload-hook", "xdp-generic", "--instance"]);
    let shown = doctor.arg(world.instance()).output()?;
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.status.success() && text.contains("WARNING: generic XDP"), "{text}");
    Ok(())
}

#[test]
fn a_station_behind_a_port_of_a_bridge_pays_for_exactly_what_it_gets() -> Result<()> {
    let topology = Topology::edge()?;
    topology.edge.no_addresses(LAN)?;
    topology.edge.bridge(BRIDGE, &[LAN])?;
    topology.edge.address(BRIDGE, EDGE_V4, 24)?;
    topology.edge.address(BRIDGE, EDGE_V6, 64)?;
    let mut world = World::new(&topology, &Trade::default())?;
    let _server = Server::start(&topology.internet)?;
    counters::start_far_sides(&topology)?;
    world.open_channel(Amount::from_sat(200_000))?;
    transfer(&topology.subscriber, INTERNET_V4, Direction::Download, 4, 200)?;
    transfer(&topology.subscriber, INTERNET_V4, Direction::Upload, 4, 200)?;
    world.wait_for(Phase::Buying)?;
    world.usage_as_counted(&topology)?;
    Ok(())
}
