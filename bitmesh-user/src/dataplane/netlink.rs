//! Questions to the kernel over netlink, in the network namespace of the thread that asks.

use std::io;

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable as _, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer,
    NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
    Nla as _, NlaBuffer, NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{
    Socket, SocketAddr,
    protocols::{NETLINK_GENERIC, NETLINK_NETFILTER, NETLINK_ROUTE},
};

/// Octets of the header of generic netlink (`genlmsghdr`) and of netfilter (`nfgenmsg`).
const HEADER_OCTETS: usize = 4;
/// Octets that a single message from the kernel starts at a multiple of (`NLMSG_ALIGNTO`).
const ALIGNMENT_OCTETS: usize = 4;

/// `GENL_ID_CTRL`, and what it is asked (linux/genetlink.h).
const CONTROLLER: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

/// Everything that answers a question to rtnetlink.
pub(super) fn route(message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
    ask(NETLINK_ROUTE, message, NLM_F_REQUEST | NLM_F_DUMP)
}

/// Has rtnetlink change something.
pub(super) fn change(message: RouteNetlinkMessage) -> io::Result<()> {
    ask(NETLINK_ROUTE, message, NLM_F_REQUEST | NLM_F_ACK).map(drop)
}

/// A message of generic netlink or of netfilter, as far as it is not looked into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plain {
    kind: u16,
    header: [u8; HEADER_OCTETS],
    pub(super) attributes: Vec<DefaultNla>,
}

impl Plain {
    /// The payload of the first attribute of this kind.
    pub(super) fn attribute(&self, kind: u16) -> Option<Vec<u8>> {
        self.attributes.iter().find(|attribute| attribute.kind() == kind).map(payload)
    }
}

/// A family of generic netlink.
#[derive(Clone, Copy, Debug)]
pub(super) struct Family(u16);

impl Family {
    /// `None` where the kernel has no such family.
    pub(super) fn find(name: &str) -> io::Result<Option<Self>> {
        let named = DefaultNla::new(CTRL_ATTR_FAMILY_NAME, text(name));
        let asked = Family(CONTROLLER).get(CTRL_CMD_GETFAMILY, vec![named]);
        let Some(answer) = present(asked)? else { return Ok(None) };
        let id = answer.attribute(CTRL_ATTR_FAMILY_ID).and_then(|id| id.try_into().ok());
        id.map(|id| Some(Self(u16::from_ne_bytes(id)))).ok_or_else(unexpected)
    }

    /// One question with one answer.
    pub(super) fn get(self, command: u8, attributes: Vec<DefaultNla>) -> io::Result<Plain> {
        let asked = Plain { kind: self.0, header: [command, 1, 0, 0], attributes };
        let answers = ask(NETLINK_GENERIC, asked, NLM_F_REQUEST | NLM_F_ACK)?;
        answers.into_iter().next().ok_or_else(unexpected)
    }
}

/// `None` for what the kernel, or the interface, does not have.
pub(super) fn present<T>(answer: io::Result<T>) -> io::Result<Option<T>> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT) => {
                Ok(None)
            }
            _ => Err(error),
        },
    }
}

/// All objects of one kind that netfilter has, of any family. Needs `CAP_NET_ADMIN`.
pub(super) fn netfilter(kind: u16) -> io::Result<Vec<Plain>> {
    let asked = Plain { kind, header: [0; HEADER_OCTETS], attributes: Vec::new() };
    ask(NETLINK_NETFILTER, asked, NLM_F_REQUEST | NLM_F_DUMP)
}

/// Attributes inside an attribute.
pub(super) fn nested(octets: &[u8]) -> Vec<DefaultNla> {
    NlasIterator::new(octets)
        .flatten()
        .map(|nla: NlaBuffer<&[u8]>| DefaultNla::new(nla.kind(), nla.value().to_vec()))
        .collect()
}

/// What an attribute holds.
pub(super) fn payload(attribute: &DefaultNla) -> Vec<u8> {
    let mut octets = vec![0; attribute.value_len()];
    attribute.emit_value(&mut octets);
    octets
}

/// Text as attributes have it, with an octet of zero behind.
pub(super) fn text(text: &str) -> Vec<u8> {
    text.bytes().chain([0]).collect()
}

/// The text of an attribute.
pub(super) fn string(octets: &[u8]) -> String {
    let end = octets.iter().position(|octet| *octet == 0).unwrap_or(octets.len());
    String::from_utf8_lossy(octets.get(..end).unwrap_or_default()).into_owned()
}

impl NetlinkSerializable for Plain {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        HEADER_OCTETS + self.attributes.as_slice().buffer_len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        if let Some((header, rest)) = buffer.split_at_mut_checked(HEADER_OCTETS) {
            header.copy_from_slice(&self.header);
            self.attributes.as_slice().emit(rest);
        }
    }
}

impl NetlinkDeserializable for Plain {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let (own, rest) = payload
            .split_first_chunk()
            .ok_or_else(|| DecodeError::from("a message without its header"))?;
        Ok(Self { kind: header.message_type, header: *own, attributes: nested(rest) })
    }
}

fn ask<M>(protocol: isize, message: M, flags: u16) -> io::Result<Vec<M>>
where
    M: NetlinkSerializable + NetlinkDeserializable,
{
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;

    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let mut request = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    request.finalize();
    let mut octets = vec![0; request.buffer_len()];
    request.serialize(&mut octets);
    socket.send(&octets, 0)?;

    let mut answers = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = datagram.as_slice();
        while !rest.is_empty() {
            let envelope = NetlinkBuffer::new_checked(rest).map_err(io::Error::other)?;
            let length = usize::try_from(envelope.length()).map_err(io::Error::other)?;
            let message = NetlinkMessage::<M>::deserialize(rest);
            rest = rest.get(length.next_multiple_of(ALIGNMENT_OCTETS)..).unwrap_or_default();
            let payload = match message {
                Ok(message) => message.payload,
                // One strange interface is no reason not to see the others.
                Err(_) if flags & NLM_F_DUMP == NLM_F_DUMP => continue,
                Err(error) => return Err(io::Error::other(error)),
            };
            match payload {
                NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                NetlinkPayload::Done(_) => return Ok(answers),
                // An acknowledgement is an error of number 0.
                NetlinkPayload::Error(error) if error.code.is_none() => return Ok(answers),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => return Err(unexpected()),
            }
        }
    }
}

fn unexpected() -> io::Error {
    io::Error::other("the kernel answered with another message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_that_every_kernel_has_is_found_and_one_that_none_has_is_not() {
        assert!(Family::find("nlctrl").unwrap().is_some());
        assert!(Family::find("bitmesh-none").unwrap().is_none());
    }

    #[test]
    fn a_message_survives_the_wire() {
        let attributes = vec![DefaultNla::new(1, text("eth0")), DefaultNla::new(2, vec![1, 2])];
        let message = Plain { kind: 0x20, header: [5, 1, 0, 0], attributes };
        let mut octets = vec![0; message.buffer_len()];
        message.serialize(&mut octets);
        let mut header = NetlinkHeader::default();
        header.message_type = 0x20;
        assert_eq!(Plain::deserialize(&header, &octets).unwrap(), message);
        assert_eq!(string(&message.attribute(1).unwrap()), "eth0");
        assert!(Plain::deserialize(&header, &[0; 3]).is_err());
    }
}
