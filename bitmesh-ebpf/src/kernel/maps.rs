//! The maps. Names and layouts are `bitmesh-common`'s.

use aya_ebpf::{
    btf_maps::{Array, PerCpuArray, RingBuf},
    macros::btf_map,
};
use bitmesh_common::{
    CAUSES, DEFAULT_TABLE_SLOTS, EVENT_KINDS, EVENTS_OCTETS, EdgeConfig, Event, NEWCOMERS,
    Observed, ObserverConfig, SinceBoot, Spending, StationSlot,
};

use super::free::SPENDINGS;

const MMAPABLE: usize = aya_ebpf::bindings::BPF_F_MMAPABLE as usize;

#[btf_map]
pub static STATIONS: Array<StationSlot, { DEFAULT_TABLE_SLOTS as usize }, MMAPABLE> = Array::new();

#[btf_map]
pub static EDGE: Array<EdgeConfig, 1> = Array::new();

#[btf_map]
pub static STATS: PerCpuArray<u64, CAUSES> = PerCpuArray::new();

#[btf_map]
pub static FREE: Array<Spending, { SPENDINGS as usize }> = Array::new();

#[btf_map]
pub static SINCE_BOOT: Array<SinceBoot, 1> = Array::new();

#[btf_map]
pub static EVENTS: RingBuf<Event, { EVENTS_OCTETS as usize }> = RingBuf::new();

#[btf_map]
pub static LOST: PerCpuArray<u64, EVENT_KINDS> = PerCpuArray::new();

#[btf_map]
pub static NEW: Array<u64, { NEWCOMERS as usize }> = Array::new();

#[btf_map]
pub static OBSERVED: Array<Observed, 1, MMAPABLE> = Array::new();

#[btf_map]
pub static OBSERVER: Array<ObserverConfig, 1> = Array::new();
