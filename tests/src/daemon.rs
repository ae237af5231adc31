//! The `bitmesh` program as users run it.

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use bitmesh_core::{channel::ChannelId, wire::ChannelReport};
use rustix::process::{Pid, Signal, kill_process};
use serde::de::DeserializeOwned;

use crate::netns::Namespace;

/// Time that a daemon has to answer on its socket.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// Time that a daemon has to end after it was asked to.
const STOP_DEADLINE: Duration = Duration::from_secs(20);

/// The program: `BITMESH_BIN`, or beside the one that is running.
pub fn bitmesh() -> Result<PathBuf> {
    if let Some(named) = env::var_os("BITMESH_BIN") {
        return Ok(named.into());
    }
    let own = env::current_exe()?;
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join("bitmesh"))
        .find(|program| program.is_file())
        .context("no bitmesh program; run `cargo build` first, or set BITMESH_BIN")
}

/// A role's data, command line and process.
pub struct Daemon<'a> {
    namespace: &'a Namespace,
    program: PathBuf,
    args: Vec<String>,
    directory: PathBuf,
    environment: Vec<(OsString, OsString)>,
    process: Option<Child>,
}

impl<'a> Daemon<'a> {
    /// `bitmesh ARGS` in a namespace, with its data in `directory`; not started yet.
    pub fn new(namespace: &'a Namespace, directory: &Path, args: &[&str]) -> Result<Self> {
        let mut args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        args.extend(["--data-dir".into(), directory.display().to_string()]);
        fs::create_dir_all(directory)?;
        let directory = directory.to_owned();
        Ok(Self {
            namespace,
            program: bitmesh()?,
            args,
            directory,
            environment: Vec::new(),
            process: None,
        })
    }

    /// Starts it and waits until it answers.
    pub fn start(&mut self) -> Result<()> {
        self.spawn()?;
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            if self.cli(&["status", "--json"])?.status.success() {
                return Ok(());
            }
            let ended = self.process.as_mut().and_then(|process| process.try_wait().ok()?);
            if ended.is_some() || Instant::now() > deadline {
                bail!("{} did not start:\n{}", self.args.join(" "), self.log());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Starts it, whether or not it will last.
    pub fn spawn(&mut self) -> Result<()> {
        let log = fs::OpenOptions::new().append(true).create(true).open(self.log_path())?;
        let mut command = self.namespace.command(&self.program)?;
        command.args(&self.args).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        self.process = Some(command.spawn()?);
        Ok(())
    }

    /// From the next start on it has a library before all others, which finds a file by a variable.
    pub(crate) fn preload(&mut self, library: &Path, variable: &str, file: &Path) {
        self.set_environment("LD_PRELOAD", library);
        self.set_environment(variable, file);
    }

    /// From the next start on it has a variable of this value in its environment.
    pub fn set_environment(&mut self, name: &str, value: impl Into<OsString>) {
        self.environment.push((name.into(), value.into()));
    }

    /// Asks it to do something by a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let process = self.process.as_ref().context("it was not started")?;
        Ok(kill_process(Pid::from_child(process), signal)?)
    }

    /// Waits for it to be killed, or to end by itself.
    pub fn wait_for_end(&mut self, within: Duration) -> Result<ExitStatus> {
        let process = self.process.as_mut().context("it was not started")?;
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = process.try_wait()? {
                self.process = None;
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("it goes on after {within:?}");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Its process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// kill -9.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Asks it to end, and waits until it has.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        let pid = Pid::from_child(&process);
        kill_process(pid, Signal::TERM)?;
        let deadline = Instant::now() + STOP_DEADLINE;
        while process.try_wait()?.is_none() {
            if Instant::now() > deadline {
                let _ = process.kill();
                bail!("{} did not stop:\n{}", self.args.join(" "), self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Waits for it to end by itself; gives its log when it failed.
    pub fn wait_for_failure(&mut self) -> Result<String> {
        let mut process = self.process.take().context("it was not started")?;
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            match process.try_wait()? {
                Some(status) if status.success() => bail!("it ended without an error"),
                Some(_) => return Ok(self.log()),
                None if Instant::now() > deadline => {
                    let _ = process.kill();
                    bail!("it goes on:\n{}", self.log())
                }
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// A command of the same program, asked of this daemon.
    pub fn cli(&self, args: &[&str]) -> Result<Output> {
        Ok(self.cli_command(args)?.output()?)
    }

    /// The same, not started yet.
    pub fn cli_command(&self, args: &[&str]) -> Result<Command> {
        let mut command = self.namespace.command(&self.program)?;
        command.args(args).arg("--data-dir").arg(&self.directory);
        Ok(command)
    }

    /// The JSON that a command prints.
    pub fn json<T: DeserializeOwned>(&self, args: &[&str]) -> Result<T> {
        let output = self.cli(&[args, &["--json"]].concat())?;
        if !output.status.success() {
            bail!("{}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        serde_json::from_slice(&output.stdout).with_context(|| args.join(" "))
    }

    /// Its channels.
    pub fn channels(&self) -> Result<BTreeMap<ChannelId, ChannelReport>> {
        let channels: Vec<ChannelReport> = self.json(&["channels"])?;
        Ok(channels.into_iter().map(|report| (report.channel, report)).collect())
    }

    /// Its data.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What it logged since it was first started.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.directory.join("log")
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Tries until it holds; fails with what was last seen.
pub fn eventually<T>(
    what: &str,
    within: Duration,
    mut attempt: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + within;
    loop {
        // A look that began in time counts, however long it takes.
        let is_last = Instant::now() > deadline;
        let seen = attempt();
        match seen {
            Ok(Some(found)) => return Ok(found),
            Err(error) if is_last => {
                return Err(error.context(format!("{what} within {within:?}")));
            }
            Ok(None) if is_last => bail!("not {what} within {within:?}"),
            _ => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}
