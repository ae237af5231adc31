//! The eBPF object, its maps and the configuration in them.

use std::{collections::BTreeSet, net::IpAddr};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, Map, MapData, MapError, MapInfo},
};
use bitmesh_common::{
    EDGE_MAP, EVENTS_MAP, EdgeConfig, LOST_MAP, NEWCOMERS_MAP, STATIONS_MAP, STATS_MAP, StationSlot,
};

use super::{DataplaneError, memory::EdgeValue, pins::Pins};

/// The object, as `cargo xtask build-ebpf` made it.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/bitmesh-ebpf.o"));

/// Slots that a table can have.
const SLOTS_MIN: u32 = 16;
const SLOTS_MAX: u32 = 1 << 24;

/// The maps that this side uses, too.
pub(super) struct Maps {
    pub(super) stations: Map,
    pub(super) edge: Map,
    pub(super) stats: Map,
    pub(super) events: Map,
    pub(super) lost: Map,
}

impl Maps {
    /// Takes them out of the object.
    pub(super) fn of(object: &mut Ebpf) -> Result<Self, DataplaneError> {
        Ok(Self {
            stations: take_map(object, STATIONS_MAP)?,
            edge: take_map(object, EDGE_MAP)?,
            stats: take_map(object, STATS_MAP)?,
            events: take_map(object, EVENTS_MAP)?,
            lost: take_map(object, LOST_MAP)?,
        })
    }

    /// Of programs that use the maps with these ids; `None` where they don't all use one station table,
    /// the one that is pinned.
    pub(super) fn used_by_all(uses: &[Vec<u32>], pins: &Pins) -> Option<Self> {
        let pinned = |name| MapInfo::from_pin(pins.path(name)).ok().map(|info| info.id());
        for name in [STATIONS_MAP, EDGE_MAP, STATS_MAP] {
            let id = pinned(name)?;
            if !uses.iter().all(|ids| ids.contains(&id)) {
                return None;
            }
        }
        let mut all = Vec::new();
        for id in uses.iter().flatten().collect::<BTreeSet<_>>() {
            all.push((*id, MapInfo::from_id(*id).ok()?));
        }
        let map = |name: &str| {
            let mut named = all.iter().filter(|(_, info)| info.name_as_str() == Some(name));
            let (id, _) = named.next()?;
            if named.next().is_some() { None } else { MapData::from_id(*id).ok() }
        };
        forget_newcomers(map(NEWCOMERS_MAP)?).ok()?;
        Some(Self {
            stations: Map::Array(map(STATIONS_MAP)?),
            edge: Map::Array(map(EDGE_MAP)?),
            stats: Map::PerCpuArray(map(STATS_MAP)?),
            events: Map::RingBuf(map(EVENTS_MAP)?),
            lost: Map::PerCpuArray(map(LOST_MAP)?),
        })
    }
}

/// Stations that an earlier controller was told of are told of again.
fn forget_newcomers(map: MapData) -> Result<(), MapError> {
    let mut newcomers = Array::<_, u64>::try_from(Map::Array(map))?;
    (0..newcomers.len()).try_for_each(|place| newcomers.set(place, 0, 0))
}

/// Refuses a table of `slots` that can't be, or that is not the one which is pinned.
pub(super) fn check(pins: &Pins, instance: &str, slots: u32) -> Result<(), DataplaneError> {
    check_slots(slots)?;
    check_pinned(pins, instance, STATIONS_MAP, size_of::<StationSlot>(), slots)?;
    check_pinned(pins, instance, EDGE_MAP, size_of::<EdgeConfig>(), 1)
}

/// Loads the object with a table of `slots`, or onto the one that is pinned.
pub(super) fn load(pins: &Pins, slots: u32) -> Result<Ebpf, DataplaneError> {
    let (stations, edge, stats) =
        (pins.path(STATIONS_MAP), pins.path(EDGE_MAP), pins.path(STATS_MAP));
    Ok(EbpfLoader::new()
        .btf(None)
        .map_max_entries(STATIONS_MAP, slots)
        .map_pin_path(STATIONS_MAP, stations)
        .map_pin_path(EDGE_MAP, edge)
        .map_pin_path(STATS_MAP, stats)
        .load(OBJECT)?)
}

/// Loads the object with a table of `slots` that nobody else can see.
pub(super) fn load_unpinned(slots: u32) -> Result<Ebpf, DataplaneError> {
    check_slots(slots)?;
    Ok(EbpfLoader::new().btf(None).map_max_entries(STATIONS_MAP, slots).load(OBJECT)?)
}

fn check_slots(slots: u32) -> Result<(), DataplaneError> {
    if slots.is_power_of_two() && (SLOTS_MIN..=SLOTS_MAX).contains(&slots) {
        return Ok(());
    }
    Err(DataplaneError::BadTableSize { slots })
}

fn check_pinned(
    pins: &Pins,
    instance: &str,
    name: &str,
    value_size: usize,
    entries: u32,
) -> Result<(), DataplaneError> {
    let path = pins.path(name);
    if !path.exists() {
        return Ok(());
    }
    let info = MapInfo::from_pin(&path)?;
    if u32::try_from(value_size) == Ok(info.value_size()) && info.max_entries() == entries {
        return Ok(());
    }
    Err(DataplaneError::OtherTable {
        instance: instance.to_owned(),
        found: format!("{} entries of {} octets", info.max_entries(), info.value_size()),
        wanted: format!("{entries} entries of {value_size} octets"),
    })
}

/// Takes a map out of the object.
pub(super) fn take_map(object: &mut Ebpf, name: &'static str) -> Result<Map, DataplaneError> {
    object.take_map(name).ok_or(DataplaneError::ObjectLacks { name })
}

/// The map with the edge's configuration.
pub(super) struct Edge(Array<MapData, EdgeValue>);

impl Edge {
    pub(super) fn new(map: Map) -> Result<Self, DataplaneError> {
        Ok(Self(Array::try_from(map)?))
    }

    /// What the programs go by; all zero in a new map.
    pub(super) fn read(&self) -> Result<EdgeConfig, DataplaneError> {
        Ok(self.0.get(&0, 0)?.0)
    }

    pub(super) fn write(&mut self, config: &EdgeConfig) -> Result<(), DataplaneError> {
        Ok(self.0.set(0, EdgeValue(*config), 0)?)
    }
}

/// A configuration with these addresses and port; the rest is unset.
pub(super) fn config(addresses: &[IpAddr], api_port: u16) -> Result<EdgeConfig, DataplaneError> {
    let mut config = EdgeConfig { api_port, ..EdgeConfig::UNSET };
    for address in addresses {
        if !config.add_own(*address) {
            let version = if address.is_ipv4() { "IPv4" } else { "IPv6" };
            return Err(DataplaneError::TooManyAddresses { version });
        }
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_become_numbers_with_the_first_octet_on_top() {
        let addresses = ["10.0.0.1".parse().unwrap(), "fe80::1:2".parse().unwrap()];
        let config = config(&addresses, 8_480).unwrap();
        assert_eq!((config.ipv4_count, config.ipv6_count, config.api_port), (1, 1, 8_480));
        assert_eq!(config.ipv4[0], 0x0a00_0001);
        assert_eq!(config.ipv6[0], [0xfe80 << 48, 0x0001_0002]);
    }

    #[test]
    fn eight_addresses_fit_and_nine_do_not() {
        let addresses = |n: u8| (0..n).map(|i| IpAddr::from([10, 0, 0, i])).collect::<Vec<_>>();
        assert_eq!(config(&addresses(8), 1).unwrap().ipv4_count, 8);
        let error = config(&addresses(9), 1).unwrap_err();
        assert!(matches!(error, DataplaneError::TooManyAddresses { version: "IPv4" }));
    }
}
