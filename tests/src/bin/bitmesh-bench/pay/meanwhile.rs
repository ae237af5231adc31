//! What passes while the daemon is away: all that a station sends that paid, and nothing of one that
//! did not.

use std::{
    net::{Ipv4Addr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Result, anyhow, ensure};
use bitmesh_tests::{
    edge::udp_socket,
    raw::{Raw, ethernet, udp},
};

use super::{
    fixture::mac,
    town::{LAN, NODE, Town, UPLINK, address},
};

/// Time from one frame of each to the next.
const PACE: Duration = Duration::from_millis(5);
/// Time that the last frames have to arrive.
const REST: Duration = Duration::from_millis(200);
/// Whose frames are to pass: of an account, and not the one that pays.
const PAID: u32 = 1;
/// Whose are not: no account's.
const STRANGER: u32 = 60_000;
const STRANGER_MAC: [u8; 6] = [0x02, 0x51, 0, 0, 0, 1];
const PORTS: [u16; 2] = [7_001, 7_002];
/// Octets of a datagram.
const DATA: usize = 64;
/// `ETH_P_IP`, `linux/if_ether.h`.
const IPV4: u16 = 0x0800;

/// Two stations that send, from its start to its end.
pub struct Meanwhile {
    ended: Arc<AtomicBool>,
    sending: JoinHandle<Result<Counted>>,
}

/// Frames.
#[derive(Default)]
struct Counted {
    sent: u64,
    /// Of who paid, and of the stranger.
    arrived: [u64; 2],
}

impl Meanwhile {
    /// Has them begin to send through the edge.
    pub fn start(town: &Town) -> Result<Self> {
        let node: Ipv4Addr = NODE.parse()?;
        let (_, edge_mac) = town.edge.interface(LAN)?;
        let raw = Raw::open(&town.stations, UPLINK)?;
        let frame = |from: u32, mac: [u8; 6], port: u16| {
            let packet = udp(address(from).octets(), node.octets(), (port, port), DATA);
            ethernet(edge_mac, mac, &[], IPV4, &packet)
        };
        let frames = [frame(PAID, mac(PAID), PORTS[0]), frame(STRANGER, STRANGER_MAC, PORTS[1])];
        let socket = |port: u16| {
            let socket = udp_socket(&town.chain, &format!("{node}:{port}"))?;
            socket.set_nonblocking(true)?;
            anyhow::Ok(socket)
        };
        let sockets = [socket(PORTS[0])?, socket(PORTS[1])?];
        let ended = Arc::new(AtomicBool::new(false));
        let end = ended.clone();
        let sending = thread::spawn(move || {
            let mut counted = Counted::default();
            while !end.load(Ordering::Relaxed) {
                for frame in &frames {
                    raw.send(frame)?;
                }
                counted.sent += 1;
                thread::sleep(PACE);
                counted.receive(&sockets);
            }
            thread::sleep(REST);
            counted.receive(&sockets);
            Ok(counted)
        });
        Ok(Self { ended, sending })
    }

    /// Fails if anything was lost of who paid, or anything passed of who did not.
    pub fn end(self) -> Result<()> {
        self.ended.store(true, Ordering::Relaxed);
        let counted = self.sending.join().map_err(|_| anyhow!("a thread died"))??;
        let Counted { sent, arrived: [paid, strange] } = counted;
        ensure!(paid == sent, "{paid} of {sent} paid frames passed while the daemon was away");
        ensure!(strange == 0, "{strange} of {sent} unpaid frames passed while the daemon was away");
        Ok(())
    }
}

impl Counted {
    fn receive(&mut self, sockets: &[UdpSocket; 2]) {
        let mut octets = [0; 2 * DATA];
        for (socket, arrived) in sockets.iter().zip(&mut self.arrived) {
            while socket.recv(&mut octets).is_ok() {
                *arrived += 1;
            }
        }
    }
}
