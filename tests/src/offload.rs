//! Turns a port's offloads off and on, by the ioctl of ethtool(8).

use std::{io, os::fd::AsRawFd as _};

use anyhow::{Context as _, Result};

use crate::netns::Namespace;

/// `ETHTOOL_STSO`, linux/ethtool.h.
const SET_TSO: u32 = 0x1f;
/// `ETHTOOL_SGSO`.
const SET_GSO: u32 = 0x24;
/// `ETHTOOL_SGRO`.
const SET_GRO: u32 = 0x2c;

/// `struct ethtool_value`.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

/// What a port leaves to its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// The device segments TCP; off, the stack does after TC egress.
    Tso,
    /// The stack segments late; off, as early as it can.
    Gso,
    /// What arrives is merged before it is counted.
    Gro,
}

impl Namespace {
    /// Turns offloads of an interface off.
    pub fn offloads_off(&self, interface: &str, offloads: &[Offload]) -> Result<()> {
        self.offloads(interface, offloads, false)
    }

    /// Turns offloads of an interface on.
    pub fn offloads_on(&self, interface: &str, offloads: &[Offload]) -> Result<()> {
        self.offloads(interface, offloads, true)
    }

    fn offloads(&self, interface: &str, offloads: &[Offload], on: bool) -> Result<()> {
        self.run(|| {
            for offload in offloads {
                set(interface, *offload, on.into())
                    .with_context(|| format!("{offload:?} of {interface}"))?;
            }
            Ok(())
        })
    }
}

fn set(interface: &str, offload: Offload, data: u32) -> io::Result<()> {
    let command = match offload {
        Offload::Tso => SET_TSO,
        Offload::Gso => SET_GSO,
        Offload::Gro => SET_GRO,
    };
    let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
    let mut value = EthtoolValue { command, data };
    // SAFETY: an ifreq is plain data; all zero is one without a name.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the request and the value that it points to outlive the call, and are what
    // SIOCETHTOOL takes (linux/sockios.h, linux/ethtool.h).
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
