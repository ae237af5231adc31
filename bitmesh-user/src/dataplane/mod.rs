//! The dataplane: loads the programs, puts them on the LAN ports, and keeps the station table.
//!
//! The only holder of BPF file descriptors. It may touch bpffs, the interfaces that it is told to
//! meter, and the maps. It never decides who may use how much: it carries out what the controller
//! says, and reports what the kernel counted. It never takes a program off an interface because the
//! controller stops; only [`Dataplane::detach`] and [`purge`] do.

mod belt;
mod choice;
mod error;
mod events;
mod flowtables;
mod hooks;
mod host;
mod memory;
mod netlink;
mod object;
mod observer;
mod offloads;
mod pins;
mod ports;
mod programs;
mod survey;
mod table;
mod terms;
mod watch;
mod workbench;

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd, OwnedFd},
    time::Instant,
};

use aya::maps::{Map, MapData, PerCpuArray};
pub use bitmesh_common::{Budget, Cause, Counts, DEFAULT_TABLE_SLOTS, EventKind, Mac, StationKey};
use bitmesh_common::{CAUSES, EdgeConfig, STATIONS_MAP};
use bitmesh_common::{FreeBudgets, ISOLATE};
use serde::{Deserialize, Serialize};

pub use self::{
    choice::{Choice, SINGLE_BUFFER_MTU, choose},
    error::DataplaneError,
    events::{Events, StationEvent},
    flowtables::{Flowtable, flowtables},
    hooks::{Hook, HookKind},
    host::{has_bpffs, missing_capabilities},
    object::OBJECT,
    observer::Observer,
    offloads::{Offloads, Rings, XdpFeatures, rings},
    pins::{Side, instances},
    ports::{Master, Named, Port, XdpProgram},
    survey::{TcProgram, check_together, tc_programs, try_programs},
    table::Sight,
    terms::{Terms, since_boot},
    watch::{Change, Watch},
    workbench::{Workbench, frame_cost},
};
use self::{
    hooks::Attacher,
    memory::Memory,
    object::Edge,
    pins::{LinkPin, Pins},
    table::Table,
};

/// Where a provider meters, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of this provider on this machine: 1 to 32 letters, digits, `-` or `_`. Pins of one
    /// instance are never another's.
    pub instance: String,
    /// LAN ports to meter. Of a bridge, its ports: on the bridge itself, frames between two of its
    /// ports would not be seen.
    pub lan: Vec<String>,
    /// How to meter uploads.
    pub upload_hook: UploadHook,
    /// How to hold programs at TC.
    pub tc_hook: TcHook,
    /// Slots of the station table, a power of two; half of them can be taken.
    pub table_slots: u32,
    /// The edge's own addresses, at most 8 of each IP version. Traffic with them is not billed. The
    /// link-local addresses of the LAN ports belong here too, or stations cannot reach services
    /// (`DHCPv6`, DNS) over them.
    pub edge_addresses: Vec<IpAddr>,
    /// TCP port of the payment API and the portal.
    pub api_port: u16,
    /// What is free before payment.
    pub free: Free,
    /// Whether stations are kept from each other: frames from one LAN port to another drop.
    pub isolate: bool,
    /// VLAN id of the outer tag of frames with two (IEEE 802.1ad); `None` takes none with two. The
    /// inner names the station's VLAN.
    pub service_vlan: Option<u16>,
}

impl Options {
    /// What there is to say; hooks by what the ports are, the usual table, budgets and no addresses.
    pub fn new(instance: String, lan: &[&str], api_port: u16) -> Self {
        Self {
            instance,
            lan: lan.iter().map(|&port| port.to_owned()).collect(),
            upload_hook: UploadHook::Auto,
            tc_hook: TcHook::Auto,
            table_slots: DEFAULT_TABLE_SLOTS,
            edge_addresses: Vec::new(),
            api_port,
            free: Free::default(),
            isolate: false,
            service_vlan: None,
        }
    }
}

/// What is free before payment: ARP and neighbour discovery, DHCP, DNS, the portal and the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Free {
    /// Of one station, both directions.
    pub station: Budget,
    /// Of one port's stations that never bought, together.
    pub port: Budget,
    /// Of all stations that never bought, together.
    pub total: Budget,
    /// Of one station's DNS: a tunnel through it is slower than what the least buys.
    pub dns: Budget,
}

impl Default for Free {
    fn default() -> Self {
        Self {
            station: Budget::per_second(32 << 10, 2 << 20),
            port: Budget::per_second(1 << 20, 16 << 20),
            total: Budget::per_second(4 << 20, 32 << 20),
            dns: Budget::per_second(1 << 10, 64 << 10),
        }
    }
}

/// Events about stations that the table doesn't hold, a second and at once.
const STRANGER_EVENTS: Budget = Budget::per_second(1_000, 500);

/// How to meter what stations send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UploadHook {
    /// Native XDP on real ports whose driver has it, TC elsewhere.
    #[default]
    Auto,
    /// XDP in the driver.
    XdpNative,
    /// XDP after the driver. For tests: it miscounts merged packets.
    XdpGeneric,
    /// TC ingress.
    Tc,
}

/// How to hold programs at TC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TcHook {
    /// By links where the kernel has them (6.6), by clsact elsewhere.
    #[default]
    Auto,
    /// By links.
    Tcx,
    /// By filters of clsact.
    Clsact,
}

/// What a station used in its life, over all the slots that it had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StationUsage {
    /// From the station to the internet.
    pub up: Counts,
    /// From the internet to the station.
    pub down: Counts,
}

impl StationUsage {
    /// L3 octets that were billed, both directions together; held at 2^64 - 1.
    pub fn octets(&self) -> u64 {
        self.up.octets.saturating_add(self.down.octets)
    }
}

/// Frames that passed or were dropped without being billed, by cause, since the pins were made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats([u64; CAUSES]);

impl Stats {
    /// Frames with this cause.
    pub fn of(&self, cause: Cause) -> u64 {
        self.iter().find_map(|(known, frames)| (known == cause).then_some(frames)).unwrap_or(0)
    }

    /// Every cause with its frames.
    pub fn iter(&self) -> impl Iterator<Item = (Cause, u64)> {
        Cause::ALL.into_iter().zip(self.0)
    }
}

/// The programs on their ports, and the table that they honour.
pub struct Dataplane {
    loaded: Loaded,
    pins: Pins,
    is_new: bool,
}

struct Loaded {
    table: Table,
    edge: Edge,
    stats: PerCpuArray<MapData, u64>,
    events: Option<Events>,
    hooks: Vec<Hook>,
}

impl Dataplane {
    /// Loads the programs and puts them on the ports, or takes over from an earlier controller of
    /// the same instance: its table stays, its programs too if they are of the same object, else they are
    /// replaced in place, and no frame passes unmetered in between. Ports that are not in `options` any
    /// more are let go.
    pub fn open(options: &Options) -> Result<Self, DataplaneError> {
        host::check()?;
        let ports =
            options.lan.iter().map(|name| Port::find(name)).collect::<Result<Vec<_>, _>>()?;
        choice::check_together(&ports)?;
        let config = config(options, &ports)?;
        let pins = Pins::of_dataplane(&options.instance)?;
        let is_new = !pins.path(STATIONS_MAP).exists();
        match load(options, &ports, &config, &pins) {
            Ok(loaded) => Ok(Self { loaded, pins, is_new }),
            Err(error) => {
                if is_new {
                    clear(pins)?;
                }
                Err(error)
            }
        }
    }

    /// What holds the instance against other processes; it does so until its last copy is closed.
    pub fn hold(&self) -> Result<OwnedFd, DataplaneError> {
        self.pins.hold()
    }

    /// Whether nobody had metered with this instance before.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// What was put where, in the order of the ports.
    pub fn hooks(&self) -> &[Hook] {
        &self.loaded.hooks
    }

    /// Replaces the edge's own addresses and the API's port.
    pub fn set_edge(&mut self, addresses: &[IpAddr], api_port: u16) -> Result<(), DataplaneError> {
        let own = object::config(addresses, api_port)?;
        let now = self.loaded.edge.read()?;
        self.loaded.edge.write(&EdgeConfig {
            api_port,
            own_bits: own.own_bits,
            ipv4_count: own.ipv4_count,
            ipv6_count: own.ipv6_count,
            ipv4: own.ipv4,
            ipv6: own.ipv6,
            ..now
        })
    }

    /// Takes note of other interfaces under the ports' names. Stations that are bound to a port
    /// which is gone are not bound any more.
    pub fn set_ports(&mut self, lan: &BTreeSet<String>) -> Result<(), DataplaneError> {
        let mut ports = Vec::new();
        for name in lan {
            match Port::find(name) {
                Ok(port) => ports.push(port),
                Err(DataplaneError::NoInterface { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let mut config = self.loaded.edge.read()?;
        add_ports(&mut config, &ports)?;
        self.loaded.edge.write(&config)?;
        self.loaded.table.unbind(|port| ports.iter().any(|there| there.index == port));
        Ok(())
    }

    /// Puts a station in the table. Its totals go on from `used`, and it may use `bought` octets
    /// in its life. A full table refuses.
    pub fn insert(
        &mut self,
        key: StationKey,
        used: StationUsage,
        bought: u64,
    ) -> Result<(), DataplaneError> {
        self.loaded.table.insert(key, used, bought, Instant::now())
    }

    /// Takes a station off the table: nothing that is billed passes any more. Returns its totals,
    /// `None` if it was not there. A frame that another CPU is handling at this instant may be
    /// missing from them, one for each CPU at most.
    pub fn remove(&mut self, key: StationKey) -> Option<StationUsage> {
        self.loaded.table.remove(key, Instant::now())
    }

    /// Raises what a station may use in its life to `bought` octets. A lower number than before
    /// changes nothing.
    pub fn set_bought(&mut self, key: StationKey, bought: u64) -> Result<(), DataplaneError> {
        self.loaded.table.set_bought(key, bought)
    }

    /// Sets what a station may use in its life to `octets`, which may be less than before. A frame
    /// that another CPU is handling at this instant may still pass, one for each CPU at most.
    pub fn set_limit(&mut self, key: StationKey, octets: u64) -> Result<(), DataplaneError> {
        self.loaded.table.set_limit(key, octets)
    }

    /// Sets until when, how fast and from where a station may use what it bought.
    pub fn set_terms(&mut self, key: StationKey, terms: &Terms) -> Result<(), DataplaneError> {
        self.loaded.table.set_terms(key, terms)
    }

    /// Sets the octets of credit below which the kernel tells.
    pub fn set_low(&mut self, key: StationKey, octets: u64) -> Result<(), DataplaneError> {
        self.loaded.table.set_low(key, octets)
    }

    /// The index of the port, and the address, that a station is bound to.
    pub fn bound(&self, key: StationKey) -> (Option<u32>, Option<Ipv4Addr>) {
        self.loaded.table.bound(key)
    }

    /// What the kernel tells at once; `None` after the first call.
    pub fn take_events(&mut self) -> Option<Events> {
        self.loaded.events.take()
    }

    /// A station's totals, `None` if it is not in the table.
    pub fn usage(&self, key: StationKey) -> Option<StationUsage> {
        self.loaded.table.usage(key)
    }

    /// Every station in the table with the octets that it bought and what it used, in no order.
    pub fn stations(&self) -> impl Iterator<Item = (StationKey, u64, StationUsage)> {
        self.loaded.table.stations()
    }

    /// Reads every station's counters, and returns those that changed since the last time.
    pub fn changed(&mut self) -> Vec<(StationKey, StationUsage)> {
        self.loaded.table.changed()
    }

    /// Those that changed since then, which [`Self::changed`] will return, too.
    pub fn moved(&mut self) -> Vec<(StationKey, StationUsage)> {
        self.loaded.table.moved()
    }

    /// Compares some slots of the table, from one on, with what was put there; what somebody else put
    /// there is taken off again.
    pub fn look(&mut self, from: u32, slots: u32) -> Sight {
        self.loaded.table.look(from, slots, Instant::now())
    }

    /// Slots of the table.
    pub fn slots(&self) -> u32 {
        self.loaded.table.slots()
    }

    /// How many stations are in the table.
    pub fn station_count(&self) -> usize {
        self.loaded.table.len()
    }

    /// What was not billed, by cause.
    pub fn stats(&self) -> Result<Stats, DataplaneError> {
        let mut frames = [0; CAUSES];
        for (i, total) in (0u32..).zip(&mut frames) {
            *total = self.loaded.stats.get(&i, 0)?.iter().sum();
        }
        Ok(Stats(frames))
    }

    /// Takes the programs off the ports and forgets the table. Until something else stops it,
    /// traffic then passes unmetered.
    pub fn detach(self) -> Result<(), DataplaneError> {
        let_go(self.pins)
    }
}

/// Takes an instance off its ports whether or not a controller left it there, of whatever version.
/// Returns whether there was anything. Fails while a controller runs it. The belt behind the
/// programs is taken away in this network namespace, even where there are no pins any more.
pub fn purge(instance: &str) -> Result<bool, DataplaneError> {
    let found = Pins::of_every_layout(instance)?;
    let any = !found.is_empty();
    found.into_iter().try_for_each(clear)?;
    Ok(belt::remove(instance)? || any)
}

fn let_go(pins: Pins) -> Result<(), DataplaneError> {
    let instance = pins.instance().to_owned();
    clear(pins)?;
    belt::remove(&instance).map(drop)
}

fn clear(pins: Pins) -> Result<(), DataplaneError> {
    let namespace = host::namespace()?;
    for pin in pins.links()? {
        take_off(&pins, &pin, namespace)?;
    }
    pins.clear()
}

fn take_off(pins: &Pins, pin: &LinkPin, namespace: u64) -> Result<(), DataplaneError> {
    hooks::detach(pins, pin, namespace)?;
    if pin.namespace == namespace { belt::unmark(pins.instance(), pin.index) } else { Ok(()) }
}

fn load(
    options: &Options,
    ports: &[Port],
    config: &EdgeConfig,
    pins: &Pins,
) -> Result<Loaded, DataplaneError> {
    let slots = options.table_slots;
    object::check(pins, &options.instance, slots)?;
    let (mut programs, maps) = programs::find(pins, slots)?;
    let mut edge = Edge::new(maps.edge)?;
    let mut config = *config;
    config.hash_seed = match edge.read()?.hash_seed {
        0 => new_seed()?,
        seed => seed,
    };
    config.slot_mask = slots.saturating_sub(1);
    edge.write(&config)?;
    // Held until the programs are loaded: they refer to maps by descriptor until then.
    let stations = maps.stations;
    let mut table = open_table(&stations, slots, &config)?;
    table.unbind(|index| ports.iter().any(|port| port.index == index));
    let stats = PerCpuArray::try_from(maps.stats)?;
    let events = Some(Events::new(maps.events, maps.lost)?);

    let namespace = host::namespace()?;
    let tc_hook = options.tc_hook;
    programs.load()?;
    let mut attacher =
        Attacher { programs: programs.lend(), pins, pinned: pins.links()?, namespace, tc_hook };
    let mut hooks = Vec::new();
    for port in ports {
        let why = "downloads are metered where the port sends".to_owned();
        hooks.push(attacher.tc(port, Side::Egress, "download_tc", why)?);
        hooks.push(attacher.upload(port, options.upload_hook)?);
    }
    for pin in pins.links()? {
        let kept = pin.namespace == namespace && ports.iter().any(|p| p.index == pin.index);
        if !kept {
            take_off(pins, &pin, namespace)?;
        }
    }
    programs.pin(pins)?;
    drop(stations);
    Ok(Loaded { table, edge, stats, events, hooks })
}

fn config(options: &Options, ports: &[Port]) -> Result<EdgeConfig, DataplaneError> {
    let mut config = object::config(&options.edge_addresses, options.api_port)?;
    let Free { station, port, total, dns } = options.free;
    config.free = FreeBudgets { station, port, total, dns, events: STRANGER_EVENTS };
    config.service_vlan = options.service_vlan.unwrap_or(0);
    config.flags = if options.isolate { ISOLATE } else { 0 };
    add_ports(&mut config, ports)?;
    Ok(config)
}

/// The ports, and the bridges above them, by which a routed frame comes in.
fn add_ports(config: &mut EdgeConfig, ports: &[Port]) -> Result<(), DataplaneError> {
    (config.lan_count, config.lan) = (0, EdgeConfig::UNSET.lan);
    let masters = ports.iter().filter_map(|port| port.master.as_ref());
    let indexes = ports.iter().map(|port| port.index);
    for index in indexes.chain(masters.map(|master| master.interface.index)) {
        if !config.lan.contains(&index) && !config.add_lan(index) {
            return Err(DataplaneError::TooManyPorts);
        }
    }
    Ok(())
}

fn open_table(map: &Map, slots: u32, config: &EdgeConfig) -> Result<Table, DataplaneError> {
    let Map::Array(map) = map else {
        return Err(DataplaneError::ObjectLacks { name: STATIONS_MAP });
    };
    let bad_size = || DataplaneError::BadTableSize { slots };
    let words = Table::words(slots).ok_or_else(bad_size)?;
    let memory = Memory::of_map(map.fd().as_fd(), words)
        .map_err(DataplaneError::system("mapping the station table"))?;
    Table::new(memory, config.hash_seed, Instant::now()).ok_or_else(bad_size)
}

/// A seed that is not 0, which means "never set up".
fn new_seed() -> Result<u64, DataplaneError> {
    let random = getrandom::u64().map_err(|error| {
        DataplaneError::system("reading random numbers")(io::Error::other(error.to_string()))
    })?;
    Ok(random.max(1))
}
