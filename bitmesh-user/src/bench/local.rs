//! What can be measured without a lab: programs in the kernel that nothing is attached to, and a
//! table that nobody meters by.

use std::cell::RefCell;

use anyhow::{Context as _, Result};
use bitmesh_common::{Mac, StationKey};

use super::{Better, Contender, Group, Measure, Target, grouped, payments};
use crate::dataplane::{DataplaneError, Workbench};

/// Slots of a table with one station.
const SMALL_TABLE: u32 = 1 << 10;
/// Octets that stations may use: more than all rounds together.
const BOUGHT: u64 = 1 << 40;
/// Top-ups that one figure is the mean of.
const TOP_UPS: u32 = 100_000;
/// Stations among which a top-up is at random: their slots are not in any cache.
const CROWD: u32 = 100_000;

/// Of so many stations, one may be refused by a table that is not full.
const REFUSED: u32 = 1_000;

/// A metered IPv4 frame may take so many times what an empty program takes.
const FRAME_RATIO: f64 = 1.6;
/// Nanoseconds of one top-up from userspace.
const TOP_UP_NS: f64 = 50.0;
/// Milliseconds of a scan of 10^6 stations.
const SCAN_MS: f64 = 20.0;
const SCAN_STATIONS: f64 = 1e6;

/// Events that one figure is the median of.
const EVENTS: usize = 101;
/// Microseconds until userspace has an event.
const EVENT_US: f64 = 100.0;

/// MAC address of the station that frames are from or for.
pub const STATION: [u8; 6] = [2, 0, 0, 0, 0, 10];
const EDGE: [u8; 6] = [2, 0, 0, 0, 0, 1];
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];

/// How much work is put into the figures.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Rounds behind each figure of a frame.
    pub rounds: usize,
    /// Frames that one figure is the mean of.
    pub frames: u32,
    /// Stations of a scan.
    pub stations: u32,
}

impl Scale {
    /// Seconds in all.
    pub const QUICK: Self = Self { rounds: 9, frames: 500_000, stations: 100_000 };
    /// Half a minute.
    pub const FULL: Self = Self { rounds: 31, frames: 1_000_000, stations: 100_000 };

    /// Runs of the costlier measures, top-ups and scans.
    pub(super) fn few(self) -> usize {
        self.rounds.div_ceil(2)
    }
}

/// Everything that needs no lab. `before` is told what comes.
pub fn local(scale: Scale, before: &dyn Fn(&str)) -> Result<Vec<Measure>> {
    let (_, mut measures) = frames(scale, Vec::new(), before)?;
    measures.extend(top_ups(scale, before)?.1);
    measures.extend(scans(scale, before)?.1);
    measures.extend(events(scale, before)?.1);
    measures.extend(payments(scale, before)?.1);
    Ok(measures)
}

/// Nanoseconds a frame, of our programs and empty ones, and of `peers` in the same rounds.
pub fn frames(
    scale: Scale,
    peers: Vec<Contender<'_>>,
    before: &dyn Fn(&str),
) -> Result<(Group, Vec<Measure>)> {
    let mut bench = Workbench::open(SMALL_TABLE)?;
    bench.insert(station(0)?, BOUGHT)?;
    let bench = &bench;
    let (up4, down4) = (tcp4(EDGE, STATION), tcp4(STATION, EDGE));
    let (up6, down6) = (tcp6(EDGE, STATION), tcp6(STATION, EDGE));
    let mut contenders = Vec::new();
    for (name, program, frame) in [
        ("empty_xdp", "empty_xdp", up4.clone()),
        ("upload_xdp, IPv4", "upload_xdp", up4.clone()),
        ("upload_xdp, IPv6", "upload_xdp", up6.clone()),
        ("empty_tc", "empty_tc", up4.clone()),
        ("upload_tc, IPv4", "upload_tc", up4),
        ("upload_tc, IPv6", "upload_tc", up6),
        ("download_tc, IPv4", "download_tc", down4),
        ("download_tc, IPv6", "download_tc", down6),
    ] {
        let run = move || Ok(bench.frame(program, &frame, scale.frames)?);
        contenders.push(Contender::new(name, run));
    }
    contenders.extend(peers);
    let title = "test_run, metered frame";
    let unit = ("ns/frame", Better::Lower);
    let group = Group::race(title, unit, scale.rounds, contenders, before)?;
    let mut measures = Vec::new();
    for (program, empty) in
        [("upload_xdp", "empty_xdp"), ("upload_tc", "empty_tc"), ("download_tc", "empty_tc")]
    {
        let target = Some(Target::RatioAtMost(FRAME_RATIO));
        measures.push(group.compare(&format!("{program}, IPv4"), empty, target));
        measures.push(group.compare(&format!("{program}, IPv6"), empty, None));
    }
    Ok((group, measures))
}

/// Nanoseconds of a top-up: of the same station again and again, and of one at random of many.
pub fn top_ups(scale: Scale, before: &dyn Fn(&str)) -> Result<(Group, Vec<Measure>)> {
    let bench = RefCell::new(crowd(CROWD, 0)?);
    let one = vec![station(0)?; usize::try_from(TOP_UPS)?];
    let many = (0..TOP_UPS).map(|i| station(scattered(i, CROWD))).collect::<Result<Vec<_>>>()?;
    // Each is to raise what was bought: a top-up to less than before does nothing.
    let bought = RefCell::new(0);
    let run = |stations: &[StationKey]| {
        let from = *bought.borrow() + 1;
        *bought.borrow_mut() += u64::from(TOP_UPS);
        let took = bench.borrow_mut().top_up(stations, from)?;
        Ok(took.as_secs_f64() * 1e9 / f64::from(TOP_UPS))
    };
    let names = ["one station", "stations at random"];
    let contenders =
        vec![Contender::new(names[0], || run(&one)), Contender::new(names[1], || run(&many))];
    let title = format!("top-up, {} stations known", grouped(CROWD.into()));
    let group = Group::race(title, ("ns", Better::Lower), scale.few(), contenders, before)?;
    let measures =
        vec![group.alone(names[0], Some(Target::AtMost(TOP_UP_NS))), group.alone(names[1], None)];
    Ok((group, measures))
}

/// Milliseconds of reading every station's counters. With less than 10^6 stations, the target is
/// in proportion.
pub fn scans(scale: Scale, before: &dyn Fn(&str)) -> Result<(Group, Vec<Measure>)> {
    let mut bench = crowd(scale.stations, BOUGHT)?;
    let (_, new) = bench.scan();
    anyhow::ensure!(u32::try_from(new)? == scale.stations, "a scan saw {new} new stations");
    let bench = RefCell::new(bench);
    let name = format!("{} stations", grouped(scale.stations.into()));
    let run = || {
        let (took, changed) = bench.borrow_mut().scan();
        anyhow::ensure!(changed == 0, "counters that no frame reached changed: {changed}");
        Ok(took.as_secs_f64() * 1e3)
    };
    let contenders = vec![Contender::new(name.clone(), run)];
    let title = "scan of all counters";
    let group = Group::race(title, ("ms", Better::Lower), scale.few(), contenders, before)?;
    let most = SCAN_MS * f64::from(scale.stations) / SCAN_STATIONS;
    let measures = vec![group.alone(&name, Some(Target::AtMost(most)))];
    Ok((group, measures))
}

/// Microseconds until userspace has a low-credit event: each figure is the median of many events.
pub fn events(scale: Scale, before: &dyn Fn(&str)) -> Result<(Group, Vec<Measure>)> {
    let bench = RefCell::new(Workbench::open(SMALL_TABLE)?);
    let station = station(0)?;
    bench.borrow_mut().insert(station, 0)?;
    let frame = tcp4(EDGE, STATION);
    let name = "to the thread that waits";
    let run = || {
        let mut bench = bench.borrow_mut();
        let mut took = Vec::with_capacity(EVENTS);
        for _ in 0..EVENTS {
            took.push(bench.event("upload_xdp", station, &frame)?.as_secs_f64() * 1e6);
        }
        took.sort_by(f64::total_cmp);
        took.get(EVENTS / 2).copied().context("events")
    };
    let contenders = vec![Contender::new(name, run)];
    let title = "low-credit event";
    let group = Group::race(title, ("us", Better::Lower), scale.few(), contenders, before)?;
    let measures = vec![group.alone(name, Some(Target::AtMost(EVENT_US)))];
    Ok((group, measures))
}

/// A table, less than half full, with this many stations.
fn crowd(stations: u32, bought: u64) -> Result<Workbench> {
    let slots = stations.saturating_mul(2).checked_next_power_of_two();
    let mut bench = Workbench::open(slots.context("fewer stations, please")?)?;
    let (mut index, mut inserted) = (0, 0);
    while inserted < stations {
        match bench.insert(station(index)?, bought) {
            Ok(()) => inserted += 1,
            // One in 2^24 finds all its places taken when a table is half full.
            Err(DataplaneError::TableFull { .. }) if index - inserted < stations / REFUSED => {}
            Err(error) => return Err(error.into()),
        }
        index += 1;
    }
    Ok(bench)
}

/// Number `i` of an order without order over `0..below`: a step that shares no factor with it.
fn scattered(i: u32, below: u32) -> u32 {
    const STEP: u64 = 61_803;
    u32::try_from(u64::from(i) * STEP % u64::from(below)).unwrap_or_default()
}

/// The first is the one that frames are from.
fn station(index: u32) -> Result<StationKey> {
    let [_, _, low @ ..] = STATION;
    let mac = Mac::from_parts(0x0200, u32::from_be_bytes(low).wrapping_add(index));
    StationKey::new(mac, 0).context("a station's address")
}

/// A TCP segment without payload from one MAC to another, between hosts that are not the edge.
pub fn tcp4(to: [u8; 6], from: [u8; 6]) -> Vec<u8> {
    let ip = [0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 2, 192, 0, 2, 1];
    [&to[..], &from, &IPV4, &ip, &TCP, &[0; 6]].concat()
}

/// The same over IPv6.
pub fn tcp6(to: [u8; 6], from: [u8; 6]) -> Vec<u8> {
    let mut address = [0; 16];
    [address[0], address[15]] = [0xfd, 2];
    let ip = [0x60, 0, 0, 0, 0, 20, 6, 64];
    [&to[..], &from, &IPV6, &ip, &address, &[0x20, 1, 0x0d, 0xb8], &address[4..], &TCP].concat()
}

const TCP: [u8; 20] =
    [0x9c, 0x40, 0x01, 0xbb, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_scattered_order_reaches_everyone() {
        let seen: HashSet<_> = (0..CROWD).map(|i| scattered(i, CROWD)).collect();
        assert_eq!(seen.len(), 100_000);
    }

    #[test]
    fn frames_are_as_long_as_they_say() {
        assert_eq!(tcp4(EDGE, STATION).len(), 60);
        assert_eq!(tcp6(EDGE, STATION).len(), 14 + 40 + 20);
    }
}
