//! Real bytes by real TCP: iperf3 at both ends.

use std::{
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::netns::Namespace;

const PORT: u16 = 5_201;

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
        std::thread::sleep(Duration::from_millis(200));
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
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
        let mut command = namespace.command("iperf3")?;
        let port = port.to_string();
        command
            .args(["--client", host, "--port", &port, "--json", "--connect-timeout", "3000"])
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
