//! Frames of a station that paid and of one that did not, both ways, and which of them arrive.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Result, anyhow};
use bitmesh_tests::netns::Namespace;
use rustix::net::sockopt::set_socket_recv_buffer_size_force;

use super::town::{INTERNET, LAN, Town, address, device};

/// Pause between two frames of a line, each way.
const PAUSE: Duration = Duration::from_millis(2);
/// Time in which all that was sent arrives, or never does.
const UNDER_WAY: Duration = Duration::from_millis(100);
const DATA_OCTETS: usize = 100;
/// What arrives waits here until it is counted: of minutes, so that nobody has to read in time.
const BUFFER_OCTETS: usize = 64 << 20;
const STATION_PORT: u16 = 9_000;

/// What was sent, and what of it arrived.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub sent: u64,
    pub arrived: u64,
}

/// Between a station and a host on the internet.
pub struct Line {
    ends: [(UdpSocket, SocketAddr); 2],
}

impl Line {
    /// Of a station of the town.
    pub fn new(town: &Town, station: u32) -> Result<Self> {
        let near = SocketAddr::new(address(station).into(), STATION_PORT);
        let far = SocketAddr::new(INTERNET.into(), STATION_PORT + 1 + u16::try_from(station)?);
        let (_, edge) = town.edge.interface(LAN)?;
        // Stations share a namespace: each reaches the edge by its own device, without a route.
        town.stations.neighbours(&device(station), &[(IpAddr::V4(INTERNET), edge)])?;
        let at_station = open(&town.stations, near, Some(&device(station)))?;
        let at_host = open(&town.internet, far, None)?;
        Ok(Self { ends: [(at_station, far), (at_host, near)] })
    }

    fn send(&self, tally: &mut Tally) {
        for (socket, to) in &self.ends {
            tally.sent += u64::from(socket.send_to(&[0; DATA_OCTETS], to).is_ok());
        }
    }

    fn arrived(&self) -> Result<u64> {
        let mut count = 0;
        for (socket, peer) in &self.ends {
            loop {
                match socket.recv_from(&mut [0; 2 * DATA_OCTETS]) {
                    Ok((_, from)) => count += u64::from(from == *peer),
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(count)
    }
}

fn open(namespace: &Namespace, at: SocketAddr, device: Option<&str>) -> Result<UdpSocket> {
    let socket = namespace.block_on(async || {
        let socket = tokio::net::UdpSocket::bind(at).await?;
        if let Some(device) = device {
            socket.bind_device(Some(device.as_bytes()))?;
        }
        Ok(socket.into_std()?)
    })?;
    set_socket_recv_buffer_size_force(&socket, BUFFER_OCTETS)?;
    Ok(socket)
}

/// Sends on all lines while something is done: what it gave, and what came of each line's frames.
pub fn during<T>(lines: &[Line], work: impl FnOnce() -> Result<T>) -> Result<(T, Vec<Tally>)> {
    for line in lines {
        line.arrived()?;
    }
    let stop = AtomicBool::new(false);
    let (done, mut tallies) = thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut tallies = vec![Tally::default(); lines.len()];
            while !stop.load(Ordering::Relaxed) {
                for (line, tally) in lines.iter().zip(&mut tallies) {
                    line.send(tally);
                }
                thread::sleep(PAUSE);
            }
            tallies
        });
        let done = work();
        stop.store(true, Ordering::Relaxed);
        let tallies = sender.join().map_err(|_| anyhow!("the sender died"))?;
        anyhow::Ok((done?, tallies))
    })?;
    thread::sleep(UNDER_WAY);
    for (line, tally) in lines.iter().zip(&mut tallies) {
        tally.arrived = line.arrived()?;
    }
    Ok((done, tallies))
}
