//! What an interface is, asked of the kernel over rtnetlink: /sys may belong to another namespace.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkInfo, LinkLayerType, LinkMessage, LinkXdp, XdpAttached},
    tc::{TcHandle, TcHeader, TcMessage},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::{DataplaneError, pins::Side};

/// An interface that can carry stations.
#[derive(Clone, Debug)]
pub(super) struct Port {
    pub(super) name: String,
    pub(super) index: u32,
    /// The driver's kind of a virtual interface (`veth`, `bridge`, ...); `None` for a real one.
    pub(super) kind: Option<String>,
    /// The XDP program on it.
    pub(super) xdp: Option<XdpProgram>,
    /// The group that somebody put it in; 0 for a new interface.
    pub(super) group: u32,
}

/// An XDP program that is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct XdpProgram {
    pub(super) id: u32,
    pub(super) generic: bool,
}

impl Port {
    /// The interface called `name` in this thread's network namespace.
    pub(super) fn find(name: &str) -> Result<Self, DataplaneError> {
        let missing = || DataplaneError::NoInterface { interface: name.to_owned() };
        let mut asked = LinkMessage::default();
        asked.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let link = query(asked)
            .map_err(DataplaneError::system(format!("asking the kernel about {name}")))?
            .ok_or_else(missing)?;
        if link.header.link_layer_type != LinkLayerType::Ether {
            return Err(DataplaneError::NotEthernet { interface: name.to_owned() });
        }
        let mut port = Self {
            name: name.to_owned(),
            index: link.header.index,
            kind: None,
            xdp: None,
            group: 0,
        };
        for attribute in link.attributes {
            match attribute {
                LinkAttribute::LinkInfo(infos) => {
                    port.kind = infos.into_iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind.to_string()),
                        _ => None,
                    });
                }
                LinkAttribute::Xdp(details) => port.xdp = attached(&details),
                LinkAttribute::Group(group) => port.group = group,
                _ => {}
            }
        }
        Ok(port)
    }
}

/// The name of the interface with this index in this thread's network namespace.
pub(super) fn name_of(index: u32) -> Result<Option<String>, DataplaneError> {
    let mut asked = LinkMessage::default();
    asked.header.index = index;
    let link = query(asked)
        .map_err(DataplaneError::system(format!("asking the kernel about interface {index}")))?;
    Ok(link.and_then(|link| {
        link.attributes.into_iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name),
            _ => None,
        })
    }))
}

/// Puts an interface into a group.
pub(super) fn set_group(index: u32, group: u32) -> Result<(), DataplaneError> {
    let mut asked = LinkMessage::default();
    asked.header.index = index;
    asked.attributes.push(LinkAttribute::Group(group));
    let set = || {
        let socket = ask(RouteNetlinkMessage::SetLink(asked), NLM_F_REQUEST | NLM_F_ACK)?;
        let (answer, _) = socket.recv_from_full()?;
        match parse(&answer)?.payload {
            NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
            _ => Ok(()),
        }
    };
    set().map_err(DataplaneError::system::<io::Error>(format!("grouping interface {index}")))
}

fn attached(details: &[LinkXdp]) -> Option<XdpProgram> {
    let mode = details.iter().find_map(|detail| match detail {
        LinkXdp::Attached(mode) => Some(*mode),
        _ => None,
    })?;
    let id = details.iter().find_map(|detail| match detail {
        LinkXdp::ProgId(id) | LinkXdp::DrvProgId(id) | LinkXdp::SkbProgId(id) => Some(*id),
        _ => None,
    })?;
    Some(XdpProgram { id, generic: mode == XdpAttached::SocketBuffer })
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
    let socket = ask(asked, NLM_F_REQUEST | NLM_F_DUMP)?;
    let mut found = false;
    loop {
        let (answer, _) = socket.recv_from_full()?;
        let mut rest = answer.as_slice();
        while !rest.is_empty() {
            let message = parse(rest)?;
            let length = usize::try_from(message.header.length).map_err(io::Error::other)?;
            match message.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewTrafficFilter(filter)) => {
                    // linux/pkt_sched.h: the priority is the upper half.
                    found |= filter.header.info >> 16 == u32::from(priority);
                }
                NetlinkPayload::Error(error) => {
                    let error = error.to_io();
                    return match error.raw_os_error() {
                        Some(libc::ENODEV | libc::EINVAL | libc::ENOENT) => Ok(false),
                        _ => Err(error),
                    };
                }
                _ => return Ok(found),
            }
            // Messages are aligned to 4 octets.
            rest = rest.get(length.next_multiple_of(4).max(1)..).unwrap_or_default();
        }
    }
}

/// Sends a request on a socket of its own.
fn ask(asked: RouteNetlinkMessage, flags: u16) -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;

    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let mut request = NetlinkMessage::new(header, NetlinkPayload::from(asked));
    request.finalize();
    let mut octets = vec![0; request.buffer_len()];
    request.serialize(&mut octets);
    socket.send(&octets, 0)?;
    Ok(socket)
}

fn query(asked: LinkMessage) -> io::Result<Option<LinkMessage>> {
    let socket = ask(RouteNetlinkMessage::GetLink(asked), NLM_F_REQUEST)?;
    let (answer, _) = socket.recv_from_full()?;
    match parse(&answer)?.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => Ok(Some(link)),
        NetlinkPayload::Error(error) => {
            let error = error.to_io();
            match error.raw_os_error() {
                // A name that is too long for the kernel is a range error, not an absence.
                Some(libc::ENODEV | libc::ERANGE | libc::EINVAL) => Ok(None),
                _ => Err(error),
            }
        }
        _ => Err(io::Error::other("the kernel answered with another message")),
    }
}

fn parse(octets: &[u8]) -> io::Result<NetlinkMessage<RouteNetlinkMessage>>
where
    RouteNetlinkMessage: NetlinkDeserializable,
{
    NetlinkMessage::deserialize(octets).map_err(io::Error::other)
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
}
