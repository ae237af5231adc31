//! Traffic of a station that never pays, in both directions, and what of it gets through.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::{
    netns::Namespace,
    topology::{FREELOADER_V4, INTERNET_V4, Topology},
};

/// Port that floods go to.
pub const FLOOD_PORT: u16 = 9_000;
/// Pause between two frames of a flood.
pub const FLOOD_PAUSE: Duration = Duration::from_micros(200);
/// In which some of what waits in a socket is read, and all of it.
const DRAIN: Duration = Duration::from_millis(100);
const DRAINED: Duration = Duration::from_secs(5);

/// Sends and listens in both directions between the internet and the station that never pays, for
/// as long as this lives, and counts what gets through.
struct Flood<'scope> {
    heard: &'scope Heard,
}

/// What got through.
#[derive(Debug, Default)]
pub struct Heard {
    stop: AtomicBool,
    /// Frames of the freeloader that the internet got.
    up: AtomicU64,
    /// Frames of the internet that the freeloader got.
    down: AtomicU64,
}

impl Heard {
    /// Frames up and down since the start.
    pub fn both(&self) -> (u64, u64) {
        (self.up.load(Ordering::Relaxed), self.down.load(Ordering::Relaxed))
    }

    /// Waits until what had come through before is counted, and for five seconds at most.
    pub fn drain(&self) {
        let until = Instant::now() + DRAINED;
        let mut before = self.both();
        loop {
            thread::sleep(DRAIN);
            let now = self.both();
            if now == before || Instant::now() > until {
                return;
            }
            before = now;
        }
    }

    /// What gets through in this time.
    pub fn during(&self, time: Duration) -> (u64, u64) {
        let before = self.both();
        thread::sleep(time);
        let after = self.both();
        (after.0 - before.0, after.1 - before.1)
    }
}

impl Drop for Flood<'_> {
    fn drop(&mut self) {
        self.heard.stop.store(true, Ordering::Relaxed);
    }
}

/// Runs `work` under floods of a station that never pays, in both directions.
pub fn flooded<T>(topology: &Topology, work: impl FnOnce(&Heard) -> Result<T>) -> Result<T> {
    let heard = Heard::default();
    thread::scope(|scope| {
        let flood = Flood { heard: &heard };
        let ends = [
            (&topology.freeloader, FREELOADER_V4, &heard.down, INTERNET_V4),
            (&topology.internet, INTERNET_V4, &heard.up, FREELOADER_V4),
        ];
        for (namespace, own, count, peer) in ends {
            let peer: Ipv4Addr = peer.parse()?;
            let from = socket(namespace, "0.0.0.0")?;
            let to = socket(namespace, own)?;
            let stop = &heard.stop;
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    // Its port may be away just now.
                    let _ = from.send_to(&[0; 100], (peer, FLOOD_PORT));
                    thread::sleep(FLOOD_PAUSE);
                }
            });
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    if to.recv_from(&mut [0; 128]).is_ok_and(|(_, who)| who.ip() == peer) {
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        let done = work(flood.heard);
        drop(flood);
        done
    })
}

/// One that sends when `address` is any, else one that listens.
pub fn socket(namespace: &Namespace, address: &str) -> Result<UdpSocket> {
    let address: Ipv4Addr = address.parse()?;
    let port = if address.is_unspecified() { 0 } else { FLOOD_PORT };
    let socket = namespace.run(|| Ok(UdpSocket::bind(SocketAddr::from((address, port)))?))?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    Ok(socket)
}
