//! The maps. Names and layouts are `bitmesh-common`'s.

use aya_ebpf::{
    btf_maps::{Array, PerCpuArray},
    macros::btf_map,
};
use bitmesh_common::{
    CAUSES, DEFAULT_TABLE_SLOTS, EdgeConfig, Observed, ObserverConfig, StationSlot,
};

const MMAPABLE: usize = aya_ebpf::bindings::BPF_F_MMAPABLE as usize;

#[btf_map]
pub static STATIONS: Array<StationSlot, { DEFAULT_TABLE_SLOTS as usize }, MMAPABLE> = Array::new();

#[btf_map]
pub static EDGE: Array<EdgeConfig, 1> = Array::new();

#[btf_map]
pub static STATS: PerCpuArray<u64, CAUSES> = PerCpuArray::new();

#[btf_map]
pub static OBSERVED: Array<Observed, 1, MMAPABLE> = Array::new();

#[btf_map]
pub static OBSERVER: Array<ObserverConfig, 1> = Array::new();
