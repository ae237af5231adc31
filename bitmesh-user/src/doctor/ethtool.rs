//! The name of a port's driver, by the ioctl of ethtool(8): netlink does not tell it.

use std::{
    ffi::CStr,
    io,
    net::{Ipv4Addr, UdpSocket},
    os::fd::AsRawFd as _,
};

/// `ETHTOOL_GDRVINFO` (linux/ethtool.h).
const GET_DRIVER: u32 = 3;
const NAME_OCTETS: usize = 32;

/// `struct ethtool_drvinfo`, of which only the driver's name is read.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; NAME_OCTETS],
    rest: [u8; 160],
}

const _: () = assert!(size_of::<DriverInfo>() == 196);

/// `None` where the interface has no driver that says its name.
pub(super) fn driver(interface: &str) -> io::Result<Option<String>> {
    // Any socket of the namespace does.
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let mut info = DriverInfo { command: GET_DRIVER, driver: [0; NAME_OCTETS], rest: [0; 160] };
    // SAFETY: an ifreq is plain data; all zero is one without a name.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = (&raw mut info).cast();
    // SAFETY: the request and the struct that it points to outlive the call and are what
    // SIOCETHTOOL takes for this command.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) } != 0 {
        let error = io::Error::last_os_error();
        let silent = matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENODEV));
        return if silent { Ok(None) } else { Err(error) };
    }
    let name = CStr::from_bytes_until_nul(&info.driver).ok().and_then(|name| name.to_str().ok());
    Ok(name.filter(|name| !name.is_empty()).map(ToOwned::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_is_not_there_has_no_driver() {
        assert_eq!(driver("nosuch0").unwrap(), None);
        assert!(driver("a-name-that-no-interface-can-have").is_err());
    }
}
