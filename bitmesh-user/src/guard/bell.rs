//! Something that rings when the kernel tells of a change. What changed is looked up afterwards.

use std::io;

use futures_util::FutureExt as _;
use netlink_sys::{
    AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket,
    protocols::{NETLINK_NETFILTER, NETLINK_ROUTE},
};

/// `RTMGRP_LINK` and `RTMGRP_TC`, linux/rtnetlink.h.
const LINKS_AND_FILTERS: u32 = 0x1 | 0x8;
/// `NFNLGRP_NFTABLES`, linux/netfilter/nfnetlink.h, as a bit.
const RULES: u32 = 1 << 6;
/// Octets of a message that are taken; the rest is let go.
const TAKEN_OCTETS: usize = 64;

/// A subscription to changes in this network namespace.
pub(super) struct Bell(TokioSocket);

impl Bell {
    /// Interfaces, queueing disciplines and filters.
    pub(super) fn of_links() -> io::Result<Self> {
        Self::of(NETLINK_ROUTE, LINKS_AND_FILTERS)
    }

    /// The rules of nftables.
    pub(super) fn of_rules() -> io::Result<Self> {
        Self::of(NETLINK_NETFILTER, RULES)
    }

    fn of(protocol: isize, groups: u32) -> io::Result<Self> {
        let mut socket = TokioSocket::new(protocol)?;
        socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
        Ok(Self(socket))
    }

    /// Waits until something changed; takes everything that was told of so far.
    pub(super) async fn rung(&mut self) -> io::Result<()> {
        self.take().await?;
        while let Some(taken) = self.take().now_or_never() {
            taken?;
        }
        Ok(())
    }

    async fn take(&mut self) -> io::Result<()> {
        let mut octets = Vec::with_capacity(TAKEN_OCTETS);
        match self.0.recv(&mut octets).await {
            // More was told than the socket holds: that is a change, too.
            Err(error) if error.raw_os_error() != Some(libc::ENOBUFS) => Err(error),
            _ => Ok(()),
        }
    }
}
