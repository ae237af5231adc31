//! Frames as a hand makes them, sent and received by packet sockets.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd as _, OwnedFd},
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::netns::Namespace;

/// `ETH_P_ALL`, `linux/if_ether.h`.
const ALL_PROTOCOLS: u16 = 0x0003;
/// Octets of frames that wait to be received.
const BUFFER_OCTETS: libc::c_int = 64 << 20;
/// Most octets of a frame that are received.
const FRAME_MAX: usize = 65_536;

/// A packet socket on one interface.
pub struct Raw(OwnedFd);

impl Raw {
    /// Opens one in a namespace.
    pub fn open(namespace: &Namespace, interface: &str) -> Result<Self> {
        let index = namespace.index(interface)?;
        namespace
            .run(|| Ok(open(index)?))
            .with_context(|| format!("a packet socket on {interface}"))
    }

    /// Sends one frame, whole.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        loop {
            // SAFETY: the buffer is valid for its length; the descriptor is ours.
            let sent =
                unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
            if sent >= 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::ENOBUFS) {
                return Err(error);
            }
            std::thread::yield_now();
        }
    }

    /// Frames that arrive until none has for `pause`.
    pub fn receive(&self, pause: Duration) -> io::Result<Vec<Vec<u8>>> {
        let mut frames = Vec::new();
        let mut buffer = vec![0u8; FRAME_MAX];
        let timeout = libc::c_int::try_from(pause.as_millis()).unwrap_or(libc::c_int::MAX);
        let mut wait = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd is passed, and it outlives the call.
        while unsafe { libc::poll(&raw mut wait, 1, timeout) } > 0 {
            // SAFETY: the buffer is valid for its length; the descriptor is ours.
            let got = unsafe {
                libc::recv(self.0.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0)
            };
            let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
            frames.push(buffer.get(..got).unwrap_or_default().to_vec());
        }
        Ok(frames)
    }
}

fn open(index: u32) -> io::Result<Raw> {
    let protocol = libc::c_int::from(ALL_PROTOCOLS.to_be());
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: a plain system call.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, and nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: a sockaddr_ll is plain data; all zero is one without an interface.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET.unsigned_abs().try_into().map_err(io::Error::other)?;
    address.sll_protocol = ALL_PROTOCOLS.to_be();
    address.sll_ifindex = index.try_into().map_err(io::Error::other)?;
    let length = libc::socklen_t::try_from(size_of_val(&address)).map_err(io::Error::other)?;
    // SAFETY: the address is a sockaddr_ll of the length that is named.
    let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) };
    if bound != 0 {
        return Err(io::Error::last_os_error());
    }
    set_option(&fd, (libc::SOL_SOCKET, libc::SO_RCVBUFFORCE), BUFFER_OCTETS)?;
    Ok(Raw(fd))
}

/// Sets an option of a socket, of a level, that is an int.
pub(crate) fn set_option(
    socket: &impl AsRawFd,
    (level, name): (libc::c_int, libc::c_int),
    value: libc::c_int,
) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of_val(&value)).map_err(io::Error::other)?;
    let fd = socket.as_raw_fd();
    // SAFETY: the option is an int of the length that is named.
    let set = unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), length) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// An Ethernet frame.
pub fn ethernet(
    to: [u8; 6],
    from: [u8; 6],
    tags: &[(u16, u16)],
    kind: u16,
    content: &[u8],
) -> Vec<u8> {
    let mut frame = [to, from].concat();
    for (protocol, tag) in tags {
        frame.extend(protocol.to_be_bytes());
        frame.extend(tag.to_be_bytes());
    }
    frame.extend(kind.to_be_bytes());
    frame.extend(content);
    frame
}

/// A UDP datagram in IPv4, without a UDP checksum.
pub fn udp(from: [u8; 4], to: [u8; 4], ports: (u16, u16), data: usize) -> Vec<u8> {
    let length = u16::try_from(28 + data).unwrap_or(u16::MAX);
    let mut packet = vec![0x45, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    packet.extend(from);
    packet.extend(to);
    let sum: u32 = packet
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes(pair.try_into().unwrap_or_default())))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or(0);
    if let Some(place) = packet.get_mut(10..12) {
        place.copy_from_slice(&checksum.to_be_bytes());
    }
    packet.extend(ports.0.to_be_bytes());
    packet.extend(ports.1.to_be_bytes());
    packet.extend((length - 20).to_be_bytes());
    packet.extend([0, 0]);
    packet.resize(usize::from(length), 0);
    packet
}
