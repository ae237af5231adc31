//! TCP through the edge, with the hooks that are chosen where nobody chooses.

use anyhow::Result;
use bitmesh_common::Mac;
use bitmesh_tests::{
    topology::UPLINK,
    traffic::{Direction, Server, throughput},
};
use bitmesh_user::{
    bench::{Better, Contender, Group, Measure, Target},
    dataplane::{StationKey, UploadHook},
};

use crate::{
    Bench,
    forward::BOUGHT,
    generator::{SENDER, receiver},
    lane::{FAR, Lane, text},
    plan::go_on,
};

/// Ours against nothing attached.
const OF_NOTHING: f64 = 0.9;
const OURS: &str = "ours";
const NOTHING: &str = "nothing attached";

/// Uploads and downloads.
pub fn run(bench: &mut Bench) -> Result<Vec<(Group, Vec<Measure>)>> {
    let nothing = Lane::through_edge("tcp-nothing")?;
    let mut ours = Lane::through_edge("tcp-ours")?;
    let (_, mac) = ours.near.interface(UPLINK)?;
    let station = StationKey::new(Mac::new(mac), 0);
    let station = station.ok_or_else(|| anyhow::anyhow!("the station's address is a group's"));
    ours.meter(UploadHook::Auto, vec![station].into_iter(), BOUGHT)?;
    let lanes = [(NOTHING, &nothing), (OURS, &ours)];
    let servers = lanes.iter().map(|(_, lane)| Server::start(lane.far()?));
    let _servers = servers.collect::<Result<Vec<_>>>()?;
    let mut done = Vec::new();
    for direction in [Direction::Upload, Direction::Download] {
        let seconds = bench.plan.tcp_seconds;
        let contenders = lanes.iter().map(|(name, lane)| {
            Contender::new(*name, move || {
                go_on()?;
                let cpus = [SENDER, receiver()];
                throughput(&lane.near, &text(FAR), direction, seconds, cpus)
            })
        });
        let contenders = contenders.collect();
        let before = |name: &str| bench.progress.next(name);
        let title = format!("iperf3, TCP {}", format!("{direction:?}").to_lowercase());
        let unit = ("bit/s", Better::Higher);
        let group = Group::race(title, unit, bench.plan.tcp_rounds, contenders, &before)?;
        let target = Some(Target::RatioAtLeast(OF_NOTHING));
        let measures = vec![group.compare(OURS, NOTHING, target)];
        done.push((group, measures));
    }
    Ok(done)
}
