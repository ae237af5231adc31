//! Frames from many stations, made in the kernel: `BPF_PROG_TEST_RUN` with live frames runs a
//! program that gives each frame a MAC or an IP address at random and sends it out of a port.

use std::{cell::Cell, num::NonZeroUsize, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf, Pod,
    maps::{Array, MapData},
    programs::{Program, TestRun as _, TestRunAttrs, TestRunOptions, Xdp, XdpMode},
};
use bitmesh_common::{GENERATOR_MAP, Generator as Config, Mac, StationKey};
use bitmesh_tests::{napi::hold, netns::Namespace};

/// CPU that frames are made on.
pub const SENDER: usize = 0;
/// Frames that the kernel makes at once.
const BATCH: u32 = 64;
/// Frames of a first run, which warms caches up and tells how long one takes.
const FIRST: u32 = 1 << 13;
const PROGRAMS: [&str; 3] = ["drop_xdp", "generate_up", "generate_down"];
const ETHERTYPE_IPV4: [u8; 2] = [8, 0];
const IPV4_HEADER: u16 = 20;
const TTL: u8 = 64;
const UDP: u8 = 17;
const UDP_HEADER: u16 = 8;
const UDP_PORT: [u8; 2] = 40_000u16.to_be_bytes();
/// Octets of UDP payload that make a frame of 60 octets, the least that Ethernet carries.
const PAYLOAD: u16 = 18;

/// Which way frames go, seen from the stations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From stations at random: their MAC addresses vary.
    Up,
    /// To stations at random: their IP addresses vary.
    Down,
}

/// What is sent.
#[derive(Clone, Debug)]
pub struct Flow {
    pub way: Way,
    /// Stations to choose from.
    pub stations: u32,
    /// Index of the port that the frames leave by.
    pub port: u32,
    /// MAC address at the other end of the link.
    pub to: [u8; 6],
    /// Where uploads are for.
    pub destination: [u8; 4],
    /// Of the first station; the others follow.
    pub first_station: [u8; 4],
    /// Time that a frame took when this was last sent.
    pub pace: Cell<Option<Duration>>,
}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Value(Config);

// SAFETY: numbers without padding, as its size is asserted to be.
unsafe impl Pod for Value {}

/// The programs of the benches, loaded.
pub struct Generator {
    object: Ebpf,
    config: Array<MapData, Value>,
}

/// What was sent.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// Frames that were made; what the receiver could not take is among them.
    pub frames: u32,
    /// Seconds that they were made in, without the kernel's preparations.
    pub seconds: f64,
}

impl Generator {
    /// Loads the object that `cargo xtask build-ebpf` made.
    pub fn load(path: &Path) -> Result<Self> {
        let mut object = Ebpf::load_file(path)
            .with_context(|| format!("{}; run `cargo xtask build-ebpf`", path.display()))?;
        // Held until the programs are loaded: they refer to it by descriptor until then.
        let map = object.take_map(GENERATOR_MAP).context("the object has no generator")?;
        for name in PROGRAMS {
            xdp(&mut object, name)?.load()?;
        }
        Ok(Self { object, config: Array::try_from(map)? })
    }

    /// Drops whatever an interface receives.
    pub fn sink(&mut self, namespace: &Namespace, interface: &str) -> Result<()> {
        let program = xdp(&mut self.object, "drop_xdp")?;
        namespace.run(|| Ok(program.attach(interface, XdpMode::Driver).map(drop)?))
    }

    /// Sends from a namespace for about some time, in one go: the kernel prepares memory for each
    /// run and waits for it to come back, which takes longer than thousands of frames.
    pub fn send(&mut self, from: &Namespace, flow: &Flow, time: Duration) -> Result<Sent> {
        let pace = match flow.pace.get() {
            Some(pace) => pace,
            None => self.make(from, flow, FIRST)?,
        };
        let frames = u32::try_from(time.as_nanos() / pace.as_nanos().max(1))?.max(FIRST);
        let pace = self.make(from, flow, frames)?;
        Ok(Sent { frames, seconds: pace.as_secs_f64() * f64::from(frames) })
    }

    /// Sends so many frames. Returns the time that one took, as the kernel tells it.
    fn make(&mut self, from: &Namespace, flow: &Flow, frames: u32) -> Result<Duration> {
        let frame = flow.frame();
        self.config.set(0, Value(flow.config()), 0)?;
        let name = if flow.way == Way::Up { "generate_up" } else { "generate_down" };
        let program = xdp(&mut self.object, name)?;
        let pace = from.run(|| {
            hold(None, SENDER)?;
            let result = program.test_run(TestRunOptions {
                data_in: Some(&frame),
                repeat: frames,
                attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
                ..TestRunOptions::default()
            })?;
            Ok(result.duration)
        })?;
        flow.pace.set(Some(pace));
        Ok(pace)
    }
}

impl Flow {
    fn config(&self) -> Config {
        Config {
            to: Mac::new(self.to).bits(),
            port: self.port,
            stations: self.stations,
            address: u32::from_be_bytes(self.address()),
            sum: sum(&self.header()),
        }
    }

    /// A UDP datagram; the program writes what varies.
    fn frame(&self) -> Vec<u8> {
        let mut header = self.header();
        header.extend(self.address());
        let length = (UDP_HEADER + PAYLOAD).to_be_bytes();
        let udp = [UDP_PORT, UDP_PORT, length, [0; 2]].concat();
        let payload = [0; PAYLOAD as usize];
        [&self.to[..], &mac_of(0), &ETHERTYPE_IPV4, &header, &udp, &payload].concat()
    }

    /// IPv4 without checksum and destination.
    fn header(&self) -> Vec<u8> {
        let [high, low] = (IPV4_HEADER + UDP_HEADER + PAYLOAD).to_be_bytes();
        let source = if self.way == Way::Up { self.first_station } else { self.destination };
        let fixed = [0x45, 0, high, low, 0, 0, 0x40, 0, TTL, UDP, 0, 0];
        [&fixed[..], &source].concat()
    }

    fn address(&self) -> [u8; 4] {
        if self.way == Way::Up { self.destination } else { self.first_station }
    }
}

/// Of 16-bit words (RFC 1071), not folded yet.
fn sum(header: &[u8]) -> u32 {
    let words = header.chunks_exact(2).map(|word| match word {
        [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
        _ => 0,
    });
    words.sum()
}

/// CPU that frames are received on: another one, where there is one.
pub fn receiver() -> usize {
    let cpus = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    if cpus > 1 { SENDER + 1 } else { SENDER }
}

/// The MAC address that the generator gives a station.
pub fn mac_of(station: u32) -> [u8; 6] {
    Mac::from_parts(0x0200, station).octets()
}

/// Its key in the station table.
pub fn key_of(station: u32) -> Result<StationKey> {
    StationKey::new(Mac::new(mac_of(station)), 0).context("a station's address")
}

fn xdp<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    match object.program_mut(name) {
        Some(Program::Xdp(program)) => Ok(program),
        _ => anyhow::bail!("the object has no {name}; run `cargo xtask build-ebpf`"),
    }
}
