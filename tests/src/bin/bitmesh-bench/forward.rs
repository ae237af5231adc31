//! Frames forwarded a second through the kernel's stack, with both directions metered.

use std::cell::RefCell;

use anyhow::{Result, ensure};
use bitmesh_tests::topology::{LAN, UPLINK, WAN};
use bitmesh_user::{
    bench::{Better, Contender, Group, Measure, Missing, Target, grouped},
    dataplane::UploadHook,
};

use crate::{
    Bench,
    generator::{Way, key_of},
    lane::{Lane, Placement},
    peers,
    profile::explain,
};

/// Stations among which frames are at random; fewer than the kernel keeps neighbours for.
const STATIONS: u32 = 1_000;
/// Octets that each may use: more than all rounds together.
pub const BOUGHT: u64 = 1 << 50;
/// Ours against nothing attached.
const OF_NOTHING: f64 = 0.88;
/// Ours against nft.
const OF_NFT: f64 = 1.1;

const OURS: &str = "ours";
const NOTHING: &str = "nothing attached";
const NFT: &str = "nft inet forward set with counters";

/// Uploads, then downloads, through the same edges.
pub fn run(bench: &mut Bench) -> Result<Vec<(Group, Vec<Measure>)>> {
    let mut missing = Vec::new();
    let mut lanes = Vec::new();
    for (name, short) in [(NOTHING, "nothing"), (OURS, "ours"), (NFT, "nft")] {
        let mut lane = Lane::through_edge(&format!("fwd-{short}"))?;
        for port in [LAN, WAN] {
            lane.receive(port, Placement::Shared)?;
        }
        lane.introduce(STATIONS)?;
        bench.generator.sink(&lane.near, UPLINK)?;
        bench.generator.sink(lane.far()?, UPLINK)?;
        match name {
            OURS => {
                let stations = (0..STATIONS).map(key_of).collect::<Vec<_>>();
                lane.meter(UploadHook::Auto, stations.into_iter(), BOUGHT)?;
            }
            NFT => {
                if let Err(error) = peers::nft_forward(&lane.edge, STATIONS) {
                    missing.push(Missing { name: name.into(), why: format!("{error:#}") });
                    continue;
                }
            }
            _ => {}
        }
        lanes.push((name, lane));
    }
    let mut done = Vec::new();
    for way in [Way::Up, Way::Down] {
        done.push(direction(bench, way, &lanes, &missing)?);
    }
    for (name, lane) in &lanes {
        check(name, lane)?;
    }
    Ok(done)
}

fn direction(
    bench: &mut Bench,
    way: Way,
    lanes: &[(&'static str, Lane)],
    missing: &[Missing],
) -> Result<(Group, Vec<Measure>)> {
    let generator = RefCell::new(&mut bench.generator);
    let mut contenders = Vec::new();
    for (name, lane) in lanes {
        let flow = lane.flow(way, STATIONS)?;
        let (generator, slice) = (&generator, bench.plan.slice);
        let arrives = if way == Way::Up { lane.far()? } else { &lane.near };
        contenders.push(Contender::new(*name, move || {
            lane.rate(&mut generator.borrow_mut(), &flow, (arrives, UPLINK), slice)
        }));
    }
    let name = if way == Way::Up { "up" } else { "down" };
    let title = format!("forwarded {name}, {} stations", grouped(STATIONS.into()));
    let unit = ("frames/s", Better::Higher);
    let before = |name: &str| bench.progress.next(name);
    let mut group = Group::race(title, unit, bench.plan.rounds, contenders, &before)?;
    group.missing = missing.to_vec();
    let mut measures = vec![
        group.compare(OURS, NOTHING, Some(Target::RatioAtLeast(OF_NOTHING))),
        group.compare(OURS, NFT, Some(Target::RatioAtLeast(OF_NFT))),
    ];
    if let Some((_, lane)) = lanes.iter().find(|(name, _)| *name == OURS) {
        let flow = lane.flow(way, STATIONS)?;
        let arrives = if way == Way::Up { lane.far()? } else { &lane.near };
        explain(&mut measures, |time| {
            lane.rate(&mut bench.generator, &flow, (arrives, UPLINK), time)
        });
    }
    Ok((group, measures))
}

/// Every frame that arrived behind our edge must have been billed.
fn check(name: &str, lane: &Lane) -> Result<()> {
    let Some((billed, _)) = lane.metered() else { return Ok(()) };
    let arrived = lane.near.received(UPLINK)? + lane.far()?.received(UPLINK)?;
    ensure!(billed >= arrived, "{name}: {arrived} frames arrived, {billed} were billed");
    Ok(())
}
