//! What an interface is, asked of the kernel over netlink: /sys may belong to another namespace.

use std::io;

use aya::programs::loaded_programs;
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp, XdpAttached},
    tc::{TcHandle, TcHeader, TcMessage},
};

use super::{
    DataplaneError, netlink,
    offloads::{self, Offloads, XdpFeatures},
    pins::Side,
};

/// An interface that can carry stations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Its index in this network namespace.
    pub index: u32,
    /// The kernel's kind of a virtual interface (`veth`, `bridge`, `vlan`, ...); `None` for a
    /// device.
    pub kind: Option<String>,
    /// Whether nl80211 knows it.
    pub wireless: bool,
    /// What it is a port of.
    pub master: Option<Master>,
    /// The interface that it rides on (of a VLAN, a macvlan, a port of a switch chip).
    pub lower: Option<Named>,
    /// Where it is a master: its ports.
    pub ports: Vec<String>,
    /// Where it leads to a switch chip (DSA): the chip's ports.
    pub switch_ports: Vec<String>,
    /// Largest payload of a frame, in octets.
    pub mtu: u32,
    /// Whether it is up and has a carrier.
    pub running: bool,
    /// What its driver says about XDP; `None` where the kernel does not tell (before 6.3).
    pub xdp_features: Option<XdpFeatures>,
    /// What its hardware does before the programs see a frame; `None` where the kernel does not tell.
    pub offloads: Option<Offloads>,
    /// The XDP program on it.
    pub xdp: Option<XdpProgram>,
    /// The group that somebody put it in; 0 for a new interface.
    pub group: u32,
}

/// An interface and its index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// The name.
    pub name: String,
    /// The index.
    pub index: u32,
}

/// The interface that has others as its ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Master {
    /// Which.
    pub interface: Named,
    /// Its kind (`bridge`, `bond`, ...).
    pub kind: String,
}

/// An XDP program that is attached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct XdpProgram {
    /// The program's id.
    pub id: u32,
    /// Its name, as far as the kernel tells.
    pub name: String,
    /// Whether it runs after the driver, on socket buffers.
    pub generic: bool,
}

impl Port {
    /// The interface called `name` in this thread's network namespace.
    pub fn find(name: &str) -> Result<Self, DataplaneError> {
        let links = links()?;
        let link = named(&links, name)?;
        Ok(link.with_details(&links))
    }

    /// Every interface with MAC addresses in this thread's network namespace.
    pub fn all() -> Result<Vec<Self>, DataplaneError> {
        let links = links()?;
        Ok(links.iter().filter(|link| link.ethernet).map(|l| l.with_details(&links)).collect())
    }
}

/// The index of the interface that [`Port::find`] finds, without asking what it can do.
pub(super) fn index_of(name: &str) -> Result<u32, DataplaneError> {
    Ok(named(&links()?, name)?.index)
}

fn named<'a>(links: &'a [Link], name: &str) -> Result<&'a Link, DataplaneError> {
    let link = links
        .iter()
        .find(|link| link.name == name)
        .ok_or_else(|| DataplaneError::NoInterface { interface: name.to_owned() })?;
    if link.ethernet {
        Ok(link)
    } else {
        Err(DataplaneError::NotEthernet { interface: name.to_owned() })
    }
}

/// The name of the interface with this index in this thread's network namespace.
pub(super) fn name_of(index: u32) -> Result<Option<String>, DataplaneError> {
    Ok(links()?.into_iter().find(|link| link.index == index).map(|link| link.name))
}

/// An interface as rtnetlink tells of it.
#[derive(Debug, Default)]
struct Link {
    name: String,
    index: u32,
    ethernet: bool,
    kind: Option<String>,
    master: Option<u32>,
    master_kind: Option<String>,
    lower: Option<u32>,
    lower_is_here: bool,
    mtu: u32,
    running: bool,
    xdp: Option<(u32, bool)>,
    group: u32,
}

impl Link {
    fn with_details(&self, all: &[Self]) -> Port {
        let by_index = |index: u32| {
            let name = all.iter().find(|link| link.index == index)?.name.clone();
            Some(Named { name, index })
        };
        let names = |wanted: &dyn Fn(&&Self) -> bool| {
            let mut found: Vec<_> = all.iter().filter(wanted).map(|l| l.name.clone()).collect();
            found.sort_unstable();
            found
        };
        // What a veth's link names is its other end, not what it rides on.
        let rides = self.lower_is_here && self.kind.as_deref() != Some("veth");
        let master = self.master.and_then(by_index).map(|interface| Master {
            interface,
            kind: self.master_kind.clone().unwrap_or_default(),
        });
        Port {
            name: self.name.clone(),
            index: self.index,
            kind: self.kind.clone(),
            wireless: offloads::is_wireless(self.index),
            master,
            lower: self.lower.filter(|_| rides).and_then(by_index),
            ports: names(&|link| link.master == Some(self.index)),
            switch_ports: names(&|link| {
                link.kind.as_deref() == Some("dsa") && link.lower == Some(self.index)
            }),
            mtu: self.mtu,
            running: self.running,
            xdp_features: offloads::xdp_features(self.index),
            offloads: offloads::offloads(self.index),
            xdp: self.xdp.map(|(id, generic)| XdpProgram { id, name: program_name(id), generic }),
            group: self.group,
        }
    }
}

fn links() -> Result<Vec<Link>, DataplaneError> {
    let answers = netlink::route(RouteNetlinkMessage::GetLink(LinkMessage::default()))
        .map_err(DataplaneError::system("listing the interfaces"))?;
    let messages = answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(link) => Some(link),
        _ => None,
    });
    Ok(messages.map(parse).collect())
}

fn parse(message: LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        running: flags.contains(LinkFlags::Up) && flags.contains(LinkFlags::LowerUp),
        lower_is_here: true,
        ..Link::default()
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Group(group) => link.group = group,
            LinkAttribute::Controller(index) => link.master = Some(index),
            LinkAttribute::Link(index) => link.lower = Some(index),
            LinkAttribute::IfNetnsId(_) => link.lower_is_here = false,
            LinkAttribute::Xdp(details) => link.xdp = attached(&details),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(kind) => link.kind = Some(kind.to_string()),
                        LinkInfo::PortKind(kind) => link.master_kind = Some(kind.to_string()),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    link
}

fn attached(details: &[LinkXdp]) -> Option<(u32, bool)> {
    let mode = details.iter().find_map(|detail| match detail {
        LinkXdp::Attached(mode) => Some(*mode),
        _ => None,
    })?;
    let id = details.iter().find_map(|detail| match detail {
        LinkXdp::ProgId(id) | LinkXdp::DrvProgId(id) | LinkXdp::SkbProgId(id) => Some(*id),
        _ => None,
    })?;
    Some((id, mode == XdpAttached::SocketBuffer))
}

fn program_name(id: u32) -> String {
    loaded_programs()
        .flatten()
        .find(|program| program.id() == id)
        .and_then(|program| program.name_as_str().map(ToOwned::to_owned))
        .unwrap_or_else(|| "without a name".to_owned())
}

/// Puts an interface into a group.
pub(super) fn set_group(index: u32, group: u32) -> Result<(), DataplaneError> {
    let mut asked = LinkMessage::default();
    asked.header.index = index;
    asked.attributes.push(LinkAttribute::Group(group));
    netlink::change(RouteNetlinkMessage::SetLink(asked))
        .map_err(DataplaneError::system(format!("grouping interface {index}")))
}

/// Whether clsact has a filter of this priority on one side of an interface. One that has no
/// clsact, or is gone, has none.
pub(super) fn has_filter(index: u32, side: Side, priority: u16) -> Result<bool, DataplaneError> {
    let doing = || format!("asking the kernel for the filters of interface {index}");
    filters(index, side, priority).map_err(DataplaneError::system(doing()))
}

fn filters(index: u32, side: Side, priority: u16) -> io::Result<bool> {
    let minor = match side {
        Side::Ingress => TcHandle::MIN_INGRESS,
        Side::Egress => TcHandle::MIN_EGRESS,
    };
    let header = TcHeader {
        index: index.try_into().map_err(io::Error::other)?,
        parent: TcHandle { major: u16::MAX, minor },
        ..TcHeader::default()
    };
    let asked = RouteNetlinkMessage::GetTrafficFilter(TcMessage::from_parts(header, Vec::new()));
    let found = match netlink::route(asked) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(false),
        answers => netlink::present(answers)?.unwrap_or_default(),
    };
    // linux/pkt_sched.h: the priority is the upper half.
    Ok(found.iter().any(|answer| match answer {
        RouteNetlinkMessage::NewTrafficFilter(filter) => {
            filter.header.info >> 16 == u32::from(priority)
        }
        _ => false,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_is_not_there_is_named() {
        let error = Port::find("nosuch0").unwrap_err();
        assert!(
            matches!(error, DataplaneError::NoInterface { interface } if interface == "nosuch0")
        );
        let too_long = Port::find("a-name-that-no-interface-can-have").unwrap_err();
        assert!(matches!(too_long, DataplaneError::NoInterface { .. }));
    }

    #[test]
    fn an_interface_without_macs_is_refused() {
        let error = Port::find("lo").unwrap_err();
        assert!(matches!(error, DataplaneError::NotEthernet { .. }));
    }

    #[test]
    fn a_link_in_another_namespace_is_nothing_to_ride_on() {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName("macvlan0".to_owned()));
        message.attributes.push(LinkAttribute::Link(7));
        let below = Link { name: "eth0".to_owned(), index: 7, ..Link::default() };
        let lower = |message: LinkMessage| {
            let link = parse(message);
            link.with_details(&[Link { index: 7, name: below.name.clone(), ..Link::default() }])
                .lower
        };
        let here = lower(message.clone());
        assert_eq!(here, Some(Named { name: "eth0".to_owned(), index: 7 }));
        message.attributes.push(LinkAttribute::IfNetnsId(1));
        assert_eq!(lower(message), None);
    }
}
