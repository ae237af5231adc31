//! What a frame costs in the programs, by `BPF_PROG_TEST_RUN`: the kernel runs a program many times
//! on one frame and tells the mean.

use anyhow::{Context as _, Result};
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::Array,
    programs::{SchedClassifier, TestRun as _, TestRunOptions, Xdp},
};
use bitmesh_common::{EDGE_MAP, EdgeConfig, Mac, Probe, STATIONS_MAP, StationKey};
use bitmesh_user::dataplane::OBJECT;

const SLOTS: u32 = 64;
const SEED: u64 = 1;
const STATION: [u8; 6] = [2, 0, 0, 0, 0, 10];
const EDGE: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Frames that one figure is the mean of.
const REPEAT: u32 = 1_000_000;
/// Rounds, each of all programs in turn, that a figure is the median of.
const ROUNDS: usize = 5;

/// Words of a slot, of which the first is the key and the second the limit.
type Slot = [u64; 32];

#[derive(Clone, Copy)]
#[repr(transparent)]
struct EdgeValue(EdgeConfig);

// SAFETY: integers only, laid out without padding.
unsafe impl Pod for EdgeValue {}

/// Nanoseconds a frame: of one program, and of one that does nothing at the same hook.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// The program.
    pub program: &'static str,
    /// Its frames.
    pub nanoseconds: u64,
    /// Those of the empty program.
    pub empty: u64,
}

/// Measures the metering programs with one station that pays.
pub fn measure() -> Result<Vec<Cost>> {
    measure_by(REPEAT, ROUNDS)
}

/// The same by figures that are the median of `rounds`, each of `repeat` frames.
pub fn measure_by(repeat: u32, rounds: usize) -> Result<Vec<Cost>> {
    let mut object =
        EbpfLoader::new().btf(None).map_max_entries(STATIONS_MAP, SLOTS).load(OBJECT)?;
    for name in ["upload_xdp", "empty_xdp"] {
        xdp_mut(&mut object, name)?.load()?;
    }
    for name in ["upload_tc", "download_tc", "empty_tc"] {
        tc_mut(&mut object, name)?.load()?;
    }
    let mut edge = Array::<_, EdgeValue>::try_from(map(&mut object, EDGE_MAP)?)?;
    let mut stations = Array::<_, Slot>::try_from(map(&mut object, STATIONS_MAP)?)?;
    edge.set(0, EdgeValue(edge_config()), 0)?;
    let key = StationKey::new(Mac::new(STATION), 0).context("a station's address")?;
    let mut slot: Slot = [0; 32];
    let [at, limit, ..] = &mut slot;
    (*at, *limit) = (key.raw(), u64::MAX / 4);
    stations.set(Probe::new(key, SEED).next(SLOTS - 1), slot, 0)?;

    let (up, down) = (frame(EDGE, STATION), frame(STATION, EDGE));
    let measured = [
        ("upload_xdp", "empty_xdp", &up),
        ("upload_tc", "empty_tc", &up),
        ("download_tc", "empty_tc", &down),
    ];
    let mut figures = vec![(Vec::new(), Vec::new()); measured.len()];
    for _ in 0..rounds {
        for ((program, empty, frame), (ours, floor)) in measured.iter().zip(&mut figures) {
            ours.push(one(&mut object, program, frame, repeat)?);
            floor.push(one(&mut object, empty, frame, repeat)?);
        }
    }
    let costs = measured.iter().zip(figures).map(|((program, _, _), (ours, floor))| Cost {
        program,
        nanoseconds: median(ours),
        empty: median(floor),
    });
    Ok(costs.collect())
}

fn one(object: &mut Ebpf, program: &str, frame: &[u8], repeat: u32) -> Result<u64> {
    let options = TestRunOptions { data_in: Some(frame), repeat, ..TestRunOptions::default() };
    let result = if program.ends_with("xdp") {
        xdp_mut(object, program)?.test_run(options)?
    } else {
        tc_mut(object, program)?.test_run(options)?
    };
    Ok(u64::try_from(result.duration.as_nanos())?)
}

fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// A TCP segment without payload from one MAC to another, between hosts that are not the edge.
fn frame(to: [u8; 6], from: [u8; 6]) -> Vec<u8> {
    let ip = [0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 2, 192, 0, 2, 1];
    let tcp = [0x9c, 0x40, 0x01, 0xbb, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0];
    [&to[..], &from, &[8, 0], &ip, &tcp, &[0; 6]].concat()
}

fn edge_config() -> EdgeConfig {
    let mut config =
        EdgeConfig { hash_seed: SEED, slot_mask: SLOTS - 1, api_port: 8_434, ..EdgeConfig::UNSET };
    config.add_own([10, 0, 0, 1].into());
    config
}

fn map(object: &mut Ebpf, name: &str) -> Result<aya::maps::Map> {
    object.take_map(name).with_context(|| format!("the object has no map {name}"))
}

fn xdp_mut<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = object.program_mut(name).with_context(|| format!("no program {name}"))?;
    Ok(program.try_into()?)
}

fn tc_mut<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    let program = object.program_mut(name).with_context(|| format!("no program {name}"))?;
    Ok(program.try_into()?)
}
