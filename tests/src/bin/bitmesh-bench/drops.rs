//! Frames dropped a second: from stations that are known and may not pass.

use std::cell::RefCell;

use anyhow::{Result, ensure};
use bitmesh_tests::topology::LAN;
use bitmesh_user::{
    bench::{Better, Contender, Group, Measure, Missing, Target, grouped},
    dataplane::UploadHook,
};

use crate::{
    Bench,
    generator::{Generator, Way, key_of},
    lane::{Lane, Placement},
    peers::{self, Listed, XdpFilter},
    profile::explain,
};

/// Stations among which frames are at random: few, whose slots stay in the cache, and many.
const FEW: u32 = 1_000;
const MANY: u32 = 100_000;
/// Ours against doing nothing but drop, with few stations.
const OF_EMPTY: f64 = 0.75;
/// Ours against nft, with few and with many.
const OF_NFT: f64 = 3.0;
/// Stations that xdp-filter's table holds (`prog_kern.h` in xdp-tools).
const XDP_FILTER_LIMIT: u32 = 10_000;
/// Of the frames that arrived, those that must be in our counters; the rest are the kernel's own.
const COUNTED: f64 = 0.999;

const OURS: &str = "ours, XDP";
const OURS_TC: &str = "ours, TC";
const EMPTY: &str = "empty XDP drop";
const NFT: &str = "nft netdev set with counters";
const IPTABLES: &str = "iptables -m mac, a rule a station";
const XDP_FILTER: &str = "xdp-filter";

/// Both crowds; the small one on a receiving CPU of its own too.
pub fn run(bench: &mut Bench) -> Result<Vec<(Group, Vec<Measure>)>> {
    let runs = [(FEW, Placement::Shared), (MANY, Placement::Shared), (FEW, Placement::Own)];
    runs.into_iter().map(|(stations, on)| crowd(bench, stations, on)).collect()
}

/// Who stands ready, and who can't.
#[derive(Default)]
struct Field {
    lanes: Vec<(&'static str, Lane)>,
    filters: Vec<XdpFilter>,
    missing: Vec<Missing>,
}

impl Field {
    fn peer(&mut self, name: &'static str, made: Result<Lane>) {
        match made {
            Ok(lane) => self.lanes.push((name, lane)),
            Err(error) => {
                self.missing.push(Missing { name: name.into(), why: format!("{error:#}") });
            }
        }
    }
}

fn crowd(bench: &mut Bench, stations: u32, on: Placement) -> Result<(Group, Vec<Measure>)> {
    let field = field(&mut bench.generator, stations, on)?;
    let generator = RefCell::new(&mut bench.generator);
    let mut contenders = Vec::new();
    for (name, lane) in &field.lanes {
        let flow = lane.flow(Way::Up, stations)?;
        let (generator, slice) = (&generator, bench.plan.slice);
        contenders.push(Contender::new(*name, move || {
            lane.rate(&mut generator.borrow_mut(), &flow, (&lane.edge, LAN), slice)
        }));
    }
    let place = if on == Placement::Own { ", on a CPU of its own" } else { "" };
    let title = format!("dropped over veth, {} stations{place}", grouped(stations.into()));
    let unit = ("frames/s", Better::Higher);
    let before = |name: &str| bench.progress.next(name);
    let mut group = Group::race(title, unit, bench.plan.rounds, contenders, &before)?;
    for (name, lane) in &field.lanes {
        check(name, lane)?;
    }
    group.missing = field.missing;

    // On a CPU of its own, the generator may be what limits the empty program.
    let shared = on == Placement::Shared;
    let of_empty = (shared && stations == FEW).then_some(Target::RatioAtLeast(OF_EMPTY));
    let of_nft = shared.then_some(Target::RatioAtLeast(OF_NFT));
    let mut measures = vec![
        group.compare(OURS, EMPTY, of_empty),
        group.compare(OURS, NFT, of_nft),
        group.compare(OURS, IPTABLES, None),
        group.compare(OURS, XDP_FILTER, None),
        group.compare(OURS_TC, NFT, None),
    ];
    if let Some((_, lane)) = field.lanes.iter().find(|(name, _)| *name == OURS) {
        let flow = lane.flow(Way::Up, stations)?;
        explain(&mut measures, |time| {
            lane.rate(&mut bench.generator, &flow, (&lane.edge, LAN), time)
        });
    }
    Ok((group, measures))
}

fn field(generator: &mut Generator, stations: u32, on: Placement) -> Result<Field> {
    let lane = |short: &str| {
        let lane = Lane::to_edge(&format!("{short}{stations}"))?;
        lane.receive(LAN, on)?;
        anyhow::Ok(lane)
    };
    let mut field = Field::default();
    let empty = lane("empty")?;
    generator.sink(&empty.edge, LAN)?;
    field.lanes.push((EMPTY, empty));
    for (name, short, hook) in
        [(OURS, "xdp", UploadHook::XdpNative), (OURS_TC, "tc", UploadHook::Tc)]
    {
        let mut ours = lane(short)?;
        ours.meter(hook, (0..stations).map(key_of).collect::<Vec<_>>().into_iter(), 0)?;
        field.lanes.push((name, ours));
    }
    field.peer(
        NFT,
        lane("nft").and_then(|lane| {
            peers::nft_drop(&lane.edge, stations)?;
            Ok(lane)
        }),
    );
    let iptables = if stations == FEW {
        lane("ipt").and_then(|lane| {
            peers::iptables_drop(&lane.edge, stations)?;
            Ok(lane)
        })
    } else {
        Err(anyhow::anyhow!("not run: each frame is compared with every rule before its own"))
    };
    field.peer(IPTABLES, iptables);
    let filter = if stations <= XDP_FILTER_LIMIT {
        lane("filter").and_then(|lane| {
            let macs = peers::macs(stations);
            field.filters.push(XdpFilter::load(&lane.edge, LAN, Listed::Drop, macs)?);
            Ok(lane)
        })
    } else {
        Err(anyhow::anyhow!(
            "not possible: its table holds {} stations",
            grouped(XDP_FILTER_LIMIT.into())
        ))
    };
    field.peer(XDP_FILTER, filter);
    Ok(field)
}

/// Fails unless everything was dropped, and where it is our work, counted.
fn check(name: &str, lane: &Lane) -> Result<()> {
    lane.check_shut()?;
    let Some((billed, refused)) = lane.metered() else { return Ok(()) };
    let arrived = lane.edge.received(LAN)?;
    let share = share(refused, arrived)?;
    ensure!(billed == 0, "{name}: {billed} frames of stations without credit passed");
    ensure!(share > COUNTED, "{name}: {refused} of {arrived} frames were counted");
    Ok(())
}

fn share(part: u64, whole: u64) -> Result<f64> {
    let scaled = u128::from(part) * 1_000_000 / u128::from(whole.max(1));
    Ok(f64::from(u32::try_from(scaled)?) / 1e6)
}
