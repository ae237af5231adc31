//! Nanoseconds a frame by the kernel's test runs, with xdp-filter in the same rounds.

use anyhow::Result;
use bitmesh_common::Mac;
use bitmesh_tests::topology::LAN;
use bitmesh_user::{
    bench::{self, Contender, Group, Measure, Missing, STATION, Target},
    dataplane::frame_cost,
};

use crate::{
    Bench,
    lane::Lane,
    peers::{self, Listed, XdpFilter},
    plan::go_on,
};

const OURS: &str = "upload_xdp, IPv4";
const XDP_FILTER: &str = "xdp-filter, one entry";
/// Ours against xdp-filter.
const OF_XDP_FILTER: f64 = 0.5;
const XDP_PASS: u32 = 2;

/// Programs of ours, empty ones, and the peer.
pub fn run(bench: &Bench) -> Result<(Group, Vec<Measure>)> {
    let scale = bench.plan.scale;
    let lane = Lane::to_edge("frames")?;
    let station = Mac::new(STATION).to_string();
    let filter = XdpFilter::load(&lane.edge, LAN, Listed::Pass, [station].into_iter())
        .and_then(|filter| Ok((peers::program_on(&lane.edge, LAN)?, filter)));
    let (filter, missing) = match filter {
        Ok(filter) => (Some(filter), None),
        Err(error) => (None, Some(Missing { name: XDP_FILTER.into(), why: format!("{error:#}") })),
    };
    let frame = bench::tcp4(lane.edge.interface(LAN)?.1, STATION);
    let peer = filter.as_ref().map(|(program, _)| {
        let run = || {
            go_on()?;
            Ok(frame_cost(program, XDP_PASS, &frame, scale.frames)?)
        };
        Contender::new(XDP_FILTER, run)
    });
    let before = |name: &str| bench.progress.next(name);
    let (mut group, mut measures) = bench::frames(scale, peer.into_iter().collect(), &before)?;
    group.missing.extend(missing);
    let target = Some(Target::RatioAtMost(OF_XDP_FILTER));
    measures.push(group.compare(OURS, XDP_FILTER, target));
    Ok((group, measures))
}
