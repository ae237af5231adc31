//! What can go wrong with the kernel, and what to do about it.

use std::{io, path::PathBuf};

use aya::{
    EbpfError,
    maps::MapError,
    pin::PinError,
    programs::{ProgramError, links::LinkError},
};
use bitmesh_common::StationKey;

/// A failure of the dataplane. Each says what to do next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataplaneError {
    /// The process may not load programs.
    #[error(
        "not allowed to load programs into the kernel (missing {missing}): run as root, or give \
         the service CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON and CAP_SYS_ADMIN"
    )]
    NotPrivileged {
        /// The capabilities that are missing.
        missing: String,
    },
    /// The kernel is older than the programs need.
    #[error("this kernel is {found}; BitMesh needs Linux 6.1 or newer")]
    KernelTooOld {
        /// The running kernel's release.
        found: String,
    },
    /// There is no bpffs, and mounting one failed.
    #[error(
        "no bpffs at /sys/fs/bpf and mounting it failed: {source}; as root run `mount -t bpf bpf \
         /sys/fs/bpf`"
    )]
    NoBpffs {
        /// Why the mount failed.
        source: io::Error,
    },
    /// The instance's name cannot be part of a path in bpffs.
    #[error("instance name {name:?} is not usable: take 1 to 32 letters, digits, `-` or `_`")]
    BadInstance {
        /// The name as given.
        name: String,
    },
    /// Another process has this instance open.
    #[error(
        "instance {instance} is run by another process: stop that one first, or choose another \
         instance name"
    )]
    InUse {
        /// The instance.
        instance: String,
    },
    /// There is no such interface in this network namespace.
    #[error("no interface {interface} here: `ip link` shows those that there are")]
    NoInterface {
        /// The name as given.
        interface: String,
    },
    /// The interface carries no Ethernet frames.
    #[error(
        "interface {interface} has no MAC addresses to tell stations by: name an Ethernet, Wi-Fi \
         or bridge port"
    )]
    NotEthernet {
        /// The interface.
        interface: String,
    },
    /// A bridge was named in place of its ports.
    #[error(
        "{interface} is a bridge: frames between two of its ports would pass it unmetered; name its \
         ports instead: {instead}"
    )]
    BridgeItself {
        /// The bridge.
        interface: String,
        /// The flags to type.
        instead: String,
    },
    /// One port of a bond or a team was named.
    #[error(
        "{interface} is a port of a {kind}: stations can come by any of its ports; name the whole \
         instead: {instead}"
    )]
    PortOfAggregate {
        /// The port.
        interface: String,
        /// `bond` or `team`.
        kind: String,
        /// The flags to type.
        instead: String,
    },
    /// The way into a switch chip was named.
    #[error(
        "{interface} leads to a switch chip, and its frames carry the chip's tags; name the chip's \
         ports instead: {instead}"
    )]
    SwitchConduit {
        /// The interface.
        interface: String,
        /// The flags to type.
        instead: String,
    },
    /// The same port was named again.
    #[error("--lan names {interface} twice; once is enough")]
    NamedTwice {
        /// The interface.
        interface: String,
    },
    /// Two ports of which one carries the other's frames.
    #[error(
        "frames of {interface} go through {lower} and would be metered at both; name one of the two"
    )]
    MeteredTwice {
        /// The interface above.
        interface: String,
        /// The interface below.
        lower: String,
    },
    /// The driver cannot run XDP.
    #[error(
        "{interface} has no native XDP; meter with `--upload-hook tc`, which is exact and needs no \
         driver"
    )]
    NoNativeXdp {
        /// The interface.
        interface: String,
    },
    /// Another XDP program is on the interface.
    #[error(
        "interface {interface} already carries XDP program {id} ({name}): remove it with `ip link \
         set dev {interface} xdp off`, or meter with `--upload-hook tc`"
    )]
    ForeignXdp {
        /// The interface.
        interface: String,
        /// The program's id.
        id: u32,
        /// The program's name, as far as the kernel tells.
        name: String,
    },
    /// The interface cannot do what was asked for.
    #[error("{hook} does not work on {interface}: {source}; try `--upload-hook tc`")]
    HookRefused {
        /// The interface.
        interface: String,
        /// What was asked for.
        hook: &'static str,
        /// The kernel's answer.
        source: Box<ProgramError>,
    },
    /// A link is not what its pin says, or the kernel gave none.
    #[error(
        "this kernel holds a program without a link, or a pin is not a link ({source}): run \
         `bitmesh sell --detach`, then use `--upload-hook tc`"
    )]
    BrokenLink {
        /// What was wrong.
        source: Box<LinkError>,
    },
    /// The interface is metered by another kind of hook since before.
    #[error(
        "{interface} is already metered by {found} from an earlier run: use that upload hook, or \
         run `bitmesh sell --detach` first"
    )]
    OtherHook {
        /// The interface.
        interface: String,
        /// The hook that is in place.
        found: &'static str,
    },
    /// Pins of another version of the layout.
    #[error(
        "instance {instance} was set up by another version of BitMesh ({found}): run `bitmesh \
         sell --detach` with it, then start again"
    )]
    OtherLayout {
        /// The instance.
        instance: String,
        /// What was found in its place.
        found: String,
    },
    /// The pinned table is not the one that was asked for.
    #[error(
        "the table of instance {instance} has {found}, not {wanted}: keep to that size, or run \
         `bitmesh sell --detach` first"
    )]
    OtherTable {
        /// The instance.
        instance: String,
        /// What is pinned.
        found: String,
        /// What was asked for.
        wanted: String,
    },
    /// The number of slots cannot be a table.
    #[error(
        "a station table of {slots} slots is not possible: take a power of two from 16 to 16777216"
    )]
    BadTableSize {
        /// As given.
        slots: u32,
    },
    /// More own addresses than the programs look at.
    #[error("the edge has more than 8 {version} addresses: name the 8 that stations use")]
    TooManyAddresses {
        /// `IPv4` or `IPv6`.
        version: &'static str,
    },
    /// An event that was expected did not come.
    #[error("the kernel told of no event; is another process reading this ring buffer?")]
    NoEvent,
    /// More LAN ports than the programs look at.
    #[error("more than 16 LAN ports: run another instance for the rest")]
    TooManyPorts,
    /// No place for another station.
    #[error(
        "the station table is full ({stations} stations in {slots} slots): wait for stations to \
         leave, or restart with a larger table after `bitmesh sell --detach`"
    )]
    TableFull {
        /// Stations in it.
        stations: usize,
        /// Its size.
        slots: u32,
    },
    /// The station has a slot.
    #[error("station {key} is in the table already: raise what it bought instead")]
    AlreadyThere {
        /// The station.
        key: StationKey,
    },
    /// The station has no slot.
    #[error("station {key} is not in the table: insert it first")]
    NotThere {
        /// The station.
        key: StationKey,
    },
    /// More octets than the kernel can compare with.
    #[error("{bought} octets are more than a station can buy in its life (2^62)")]
    TooMuch {
        /// As given.
        bought: u64,
    },
    /// The object has no such map or program: it is not this version's.
    #[error("the eBPF object has no {name}: rebuild with `cargo xtask build-ebpf`")]
    ObjectLacks {
        /// The map or program.
        name: &'static str,
    },
    /// A program answered something else for a frame that was made to be measured.
    #[error(
        "a program answered {found} for a frame that it should answer {wanted} for: nothing was \
         measured; report this with `bitmesh doctor --json`"
    )]
    OtherVerdict {
        /// The answer of a program that does what it should.
        wanted: u32,
        /// The answer that it gave.
        found: u32,
    },
    /// The object did not load.
    #[error(
        "the kernel did not take the eBPF object: {0}; `bitmesh doctor` shows what this kernel has"
    )]
    Load(#[from] Box<EbpfError>),
    /// A program did not load or attach.
    #[error("the kernel refused a program: {0}; `bitmesh doctor` shows what this kernel has")]
    Program(#[from] Box<ProgramError>),
    /// A map could not be read or written.
    #[error("a map could not be used: {0}; restart, and run `bitmesh sell --detach` if it stays")]
    Map(#[from] Box<MapError>),
    /// A pin could not be made.
    #[error("could not pin {path}: {source}; check that /sys/fs/bpf is writable")]
    Pin {
        /// Where.
        path: PathBuf,
        /// Why.
        source: Box<PinError>,
    },
    /// No rules behind the programs.
    #[error(
        "no belt behind the programs ({source}): install nftables, with its kernel modules for \
         inet and bridge. Until then a LAN port that is recreated while no controller runs \
         forwards unmetered"
    )]
    NoBelt {
        /// What nft or the system said.
        source: Box<io::Error>,
    },
    /// Rules that should go stay.
    #[error(
        "the belt could not be taken away ({source}): `nft delete table inet {table}`, and the same for bridge"
    )]
    StaleBelt {
        /// The table.
        table: String,
        /// What nft said.
        source: Box<io::Error>,
    },
    /// A file of bpffs or a socket to the kernel failed.
    #[error("{doing}: {source}; check that this runs as root, in the namespace that it should")]
    System {
        /// What was being done.
        doing: String,
        /// Why it failed.
        source: io::Error,
    },
}

impl DataplaneError {
    /// For `map_err` on calls into the system.
    pub(crate) fn system<E: Into<io::Error>>(doing: impl Into<String>) -> impl FnOnce(E) -> Self {
        let doing = doing.into();
        move |source| Self::System { doing, source: source.into() }
    }
}

macro_rules! from_boxed {
    ($($variant:ident($source:ty),)+) => {
        $(impl From<$source> for DataplaneError {
            fn from(source: $source) -> Self {
                Self::$variant(Box::new(source))
            }
        })+
    };
}

from_boxed! {
    Load(EbpfError),
    Program(ProgramError),
    Map(MapError),
}
