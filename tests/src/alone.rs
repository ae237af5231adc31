//! A guard without a daemon.

use std::{
    io::{BufRead as _, BufReader, Lines},
    os::{fd::OwnedFd, unix::net::UnixStream},
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use bitmesh_user::dataplane::{Dataplane, Options, TcHook, UploadHook};

use crate::{daemon::bitmesh, netns::Namespace, topology::EDGE_FREELOADER_V4};

/// A guard of its own over a port of an edge, without a daemon.
pub struct Alone {
    dataplane: Option<Dataplane>,
    /// The guard.
    pub process: Child,
    /// The daemon's end of its socket.
    pub ours: UnixStream,
    /// What it says.
    pub told: Lines<BufReader<UnixStream>>,
}

impl Alone {
    /// Meters a port with TC programs and starts a guard over it.
    pub fn over(edge: &Namespace, lan: &str, instance: &str, tc_hook: TcHook) -> Result<Self> {
        let options = Options {
            upload_hook: UploadHook::Tc,
            tc_hook,
            table_slots: 1_024,
            edge_addresses: vec![EDGE_FREELOADER_V4.parse()?],
            ..Options::new(instance.to_owned(), &[lan], 8_434)
        };
        let dataplane = edge.run(|| Ok(Dataplane::open(&options)?))?;
        let (ours, theirs) = UnixStream::pair()?;
        let mut command = edge.command(bitmesh()?)?;
        command.args(["guard", "--instance", instance, "--lan", lan, "--upload-hook", "tc"]);
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::from(dataplane.hold()?));
        let process = command.spawn()?;
        drop(command);
        ours.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut told = BufReader::new(ours.try_clone()?).lines();
        let ready = told.next().context("a guard")??;
        ensure!(ready.contains("ready"), "{ready}");
        Ok(Self { dataplane: Some(dataplane), process, ours, told })
    }

    /// Takes the programs off.
    pub fn detach(&mut self, edge: &Namespace) -> Result<()> {
        let dataplane = self.dataplane.take().context("attached")?;
        edge.run(|| Ok(dataplane.detach()?))
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
