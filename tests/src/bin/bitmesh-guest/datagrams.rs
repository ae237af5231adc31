//! UDP that goes to and fro: a station says something, the internet host says it again.

use std::{
    io,
    net::UdpSocket,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use bitmesh_tests::{
    netns::Namespace,
    topology::{INTERNET_V4, INTERNET_V6},
};

/// Octets that a datagram carries.
pub const PAYLOAD_OCTETS: usize = 100;
/// L3 octets of such a datagram: headers of IPv4 (RFC 791) or IPv6 (RFC 8200), and of UDP (RFC 768).
pub const V4_OCTETS: u64 = 20 + 8 + PAYLOAD_OCTETS as u64;
/// The same, IPv6.
pub const V6_OCTETS: u64 = 40 + 8 + PAYLOAD_OCTETS as u64;

const PORT: u16 = 9_000;
/// How long an answer may take: an emulator is slow.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a datagram is awaited that must not come.
const IMPATIENCE: Duration = Duration::from_millis(400);
/// How often a thread looks whether it is to end.
const LOOK: Duration = Duration::from_millis(100);

/// Says again what it hears, until dropped.
pub struct Echo {
    heard: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    pub fn start(namespace: &Namespace) -> Result<Self> {
        let socket = namespace.run(|| Ok(UdpSocket::bind(("::", PORT))?)).context("an echo")?;
        socket.set_read_timeout(Some(LOOK))?;
        let (heard, ended) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (counter, end) = (Arc::clone(&heard), Arc::clone(&ended));
        let thread = thread::spawn(move || {
            let mut octets = [0; 2 * PAYLOAD_OCTETS];
            while !end.load(Ordering::Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut octets) {
                    counter.fetch_add(1, Ordering::Relaxed);
                    let _ = socket.send_to(octets.get(..length).unwrap_or_default(), from);
                }
            }
        });
        Ok(Self { heard, ended, thread: Some(thread) })
    }

    /// Datagrams that came through.
    pub fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A station's end.
pub struct Caller {
    v4: UdpSocket,
    v6: UdpSocket,
    said: u64,
}

impl Caller {
    pub fn new(namespace: &Namespace) -> Result<Self> {
        let socket = |any: &'static str, host: &'static str| {
            namespace.run(move || {
                let socket = UdpSocket::bind((any, 0))?;
                socket.connect((host, PORT)).with_context(|| format!("a way to {host}"))?;
                Ok(socket)
            })
        };
        Ok(Self { v4: socket("0.0.0.0", INTERNET_V4)?, v6: socket("::", INTERNET_V6)?, said: 0 })
    }

    /// Says something by IPv4; whether the answer came.
    pub fn call_v4(&mut self) -> io::Result<bool> {
        self.said += 1;
        exchange(&self.v4, self.said, PATIENCE)
    }

    /// Says something by IPv6; whether the answer came.
    pub fn call_v6(&mut self) -> io::Result<bool> {
        self.said += 1;
        exchange(&self.v6, self.said, PATIENCE)
    }

    /// The same as by IPv4, where no answer may come.
    pub fn call_in_vain(&mut self) -> io::Result<bool> {
        self.said += 1;
        exchange(&self.v4, self.said, IMPATIENCE).map(|answered| !answered)
    }
}

fn exchange(socket: &UdpSocket, number: u64, patience: Duration) -> io::Result<bool> {
    let mut said = [0x5a; PAYLOAD_OCTETS];
    if let Some(start) = said.first_chunk_mut() {
        *start = number.to_be_bytes();
    }
    socket.send(&said)?;
    let until = Instant::now() + patience;
    let mut heard = [0; PAYLOAD_OCTETS];
    while let Some(left) = until.checked_duration_since(Instant::now()).filter(|t| !t.is_zero()) {
        socket.set_read_timeout(Some(left))?;
        match socket.recv(&mut heard) {
            Ok(length) if length == said.len() && heard == said => return Ok(true),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}
