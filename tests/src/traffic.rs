//! Real bytes by real TCP: iperf3 at both ends.

use std::{
    fs,
    process::{Child, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{daemon::eventually, netns::Namespace};

const PORT: u16 = 5_201;
/// Time that a server has to be free for the next client.
const FREE: Duration = Duration::from_secs(5);
/// States of sockets, as the kernel shows them.
const ESTABLISHED: &str = "01";
const CLOSE_WAIT: &str = "08";
const LISTEN: &str = "0A";

/// Which way the bytes go, seen from the subscriber.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the subscriber.
    Download,
    /// From the subscriber.
    Upload,
}

/// An iperf3 server; ended when dropped.
pub struct Server(Child);

impl Server {
    /// Serves in a namespace.
    pub fn start(namespace: &Namespace) -> Result<Self> {
        Self::start_at(namespace, PORT)
    }

    /// The same at another port: a server takes one client at a time.
    pub fn start_at(namespace: &Namespace, port: u16) -> Result<Self> {
        let mut command = namespace.command("iperf3")?;
        command.args(["--server", "--port", &port.to_string()]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let server = Self(command.spawn().context("iperf3; run `cargo xtask setup`")?);
        servers().push((server.0.id(), port));
        wait_until_free(server.0.id(), port);
        Ok(server)
    }
}

/// Processes of servers, and their ports.
fn servers() -> MutexGuard<'static, Vec<(u32, u16)>> {
    static SERVERS: Mutex<Vec<(u32, u16)>> = Mutex::new(Vec::new());
    SERVERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until a server listens and has no client: between two it does not listen for a moment, and one that
/// comes then is refused. A client that was ended where nothing passes leaves it busy: then that is seen.
fn wait_until_free(process: u32, port: u16) {
    let _ = eventually("a server that is free", FREE, || {
        let mut listens = false;
        for table in ["tcp", "tcp6"] {
            for line in fs::read_to_string(format!("/proc/{process}/net/{table}"))?.lines() {
                let mut words = line.split_whitespace().skip(1);
                let local = words.next().and_then(|local| local.rsplit_once(':'));
                if local.and_then(|(_, port)| u16::from_str_radix(port, 16).ok()) != Some(port) {
                    continue;
                }
                match words.nth(1) {
                    Some(LISTEN) => listens = true,
                    Some(ESTABLISHED | CLOSE_WAIT) => return Ok(None),
                    _ => {}
                }
            }
        }
        Ok(listens.then_some(()))
    });
}

impl Drop for Server {
    fn drop(&mut self) {
        servers().retain(|(process, _)| *process != self.0.id());
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A transfer that is on its way; ended when dropped.
pub struct Transfer {
    process: Child,
    started: Instant,
}

impl Transfer {
    /// Moves `mib` MiB between a namespace and the server at `host`, at most `mbit` Mbit/s.
    pub fn start(
        namespace: &Namespace,
        host: &str,
        direction: Direction,
        mib: u64,
        mbit: u64,
    ) -> Result<Self> {
        Self::start_at(namespace, host, PORT, direction, mib, mbit)
    }

    /// The same with a server at another port.
    pub fn start_at(
        namespace: &Namespace,
        host: &str,
        port: u16,
        direction: Direction,
        mib: u64,
        mbit: u64,
    ) -> Result<Self> {
        let at_port: Vec<_> = servers().iter().filter(|(_, it)| *it == port).copied().collect();
        for (process, port) in at_port {
            wait_until_free(process, port);
        }
        let mut command = namespace.command("iperf3")?;
        let port = port.to_string();
        command
            .args(["--client", host, "--port", &port, "--json", "--connect-timeout", "10000"])
            .args(["--bytes", &format!("{mib}M"), "--bitrate", &format!("{mbit}M")])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if direction == Direction::Download {
            command.arg("--reverse");
        }
        let process = command.spawn().context("iperf3; run `cargo xtask setup`")?;
        Ok(Self { process, started: Instant::now() })
    }

    /// Whether it has ended.
    pub fn ended(&mut self) -> Result<bool> {
        Ok(self.process.try_wait()?.is_some())
    }

    /// Waits for the end: octets that the receiver got, as the client was told.
    pub fn finish(mut self, within: Duration) -> Result<u64> {
        while !self.ended()? {
            if self.started.elapsed() > within {
                bail!("the transfer did not end within {within:?}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let mut text = String::new();
        if let Some(output) = &mut self.process.stdout {
            std::io::Read::read_to_string(output, &mut text)?;
        }
        let report: Value = serde_json::from_str(&text).context("iperf3's report")?;
        if let Some(error) = report.get("error") {
            bail!("iperf3: {error}");
        }
        report.pointer("/end/sum_received/bytes").and_then(Value::as_u64).context(text)
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Moves some MiB and waits until they are there.
pub fn transfer(
    namespace: &Namespace,
    host: &str,
    direction: Direction,
    mib: u64,
    mbit: u64,
) -> Result<u64> {
    Transfer::start(namespace, host, direction, mib, mbit)?.finish(Duration::from_mins(1))
}

/// Bits a second that the receiver got in some seconds of one TCP connection. Client and server
/// each stay on one of the `cpus`.
pub fn throughput(
    namespace: &Namespace,
    host: &str,
    direction: Direction,
    seconds: u32,
    cpus: [usize; 2],
) -> Result<f64> {
    let mut command = namespace.command("iperf3")?;
    let [client, server] = cpus;
    command
        .args([
            "--client",
            host,
            "--port",
            &PORT.to_string(),
            "--json",
            "--connect-timeout",
            "3000",
        ])
        .args(["--time", &seconds.to_string()])
        .args(["--affinity", &format!("{client},{server}")]);
    if direction == Direction::Download {
        command.arg("--reverse");
    }
    let output = command.output().context("iperf3; run `cargo xtask setup`")?;
    let report: Value = serde_json::from_slice(&output.stdout).context("iperf3's report")?;
    if let Some(error) = report.get("error") {
        bail!("iperf3: {error}");
    }
    let rate = report.pointer("/end/sum_received/bits_per_second").and_then(Value::as_f64);
    rate.with_context(|| report.to_string())
}
