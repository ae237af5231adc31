//! A program on a terminal, as a person sits before it.

use std::{
    fs::File,
    io::{ErrorKind, Read as _, Write as _},
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    process::{Child, Command},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use rustix::{
    fs::{OFlags, fcntl_setfl},
    process::{ioctl_tiocsctty, setsid},
    pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt},
    termios::{LocalModes, tcgetattr},
};

use crate::daemon::eventually;

/// Time that a program has to say what is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// A program that runs on a terminal of its own.
pub struct Session {
    terminal: File,
    process: Child,
    seen: String,
    /// Up to where what was seen has been waited for.
    expected: usize,
}

impl Session {
    /// Starts it.
    pub fn start(mut command: Command) -> Result<Self> {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&terminal)?;
        unlockpt(&terminal)?;
        let own: OwnedFd = ioctl_tiocgptpeer(&terminal, OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
        fcntl_setfl(&terminal, OFlags::NONBLOCK)?;
        let controlling = own.try_clone()?;
        command.stdin(own.try_clone()?).stdout(own.try_clone()?).stderr(own);
        // SAFETY: between fork and exec only two system calls are made, on a descriptor that the
        // closure owns.
        unsafe {
            command.pre_exec(move || {
                setsid()?;
                Ok(ioctl_tiocsctty(&controlling)?)
            });
        }
        let process = command.spawn()?;
        // The last copies of its end of the terminal are its own.
        drop(command);
        Ok(Self { terminal: File::from(terminal), process, seen: String::new(), expected: 0 })
    }

    /// Waits until it says something that was not waited for before.
    pub fn expect(&mut self, text: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let fresh = self.seen.get(self.expected..).unwrap_or_default();
            if let Some(at) = fresh.find(text) {
                self.expected += at + text.len();
                return Ok(());
            }
            if !self.read() || Instant::now() > deadline {
                bail!("it never said {text:?}:\n{}", self.seen);
            }
        }
    }

    /// Types a line.
    pub fn say(&mut self, line: &str) -> Result<()> {
        self.terminal.write_all(line.as_bytes())?;
        Ok(self.terminal.write_all(b"\n")?)
    }

    /// The same, not before the terminal stops to show what is typed: a prompt comes before that, and a
    /// person needs a moment.
    pub fn say_hidden(&mut self, line: &str) -> Result<()> {
        eventually("a terminal that hides what is typed", PATIENCE, || {
            let shows = tcgetattr(&self.terminal)?.local_modes.contains(LocalModes::ECHO);
            Ok((!shows).then_some(()))
        })?;
        self.say(line)
    }

    /// Waits for its end; gives whether it succeeded, and all that it said.
    pub fn end(mut self) -> Result<(bool, String)> {
        let deadline = Instant::now() + PATIENCE;
        while self.read() {
            if Instant::now() > deadline {
                bail!("it goes on:\n{}", self.seen);
            }
        }
        Ok((self.process.wait()?.success(), std::mem::take(&mut self.seen)))
    }

    /// What it said since; false when there will be no more.
    fn read(&mut self) -> bool {
        let mut buffer = [0; 4_096];
        match self.terminal.read(&mut buffer) {
            Ok(0) => false,
            Ok(read) => {
                let said = buffer.get(..read).unwrap_or_default();
                self.seen.push_str(&String::from_utf8_lossy(said));
                true
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(20));
                true
            }
            // EIO: nobody has the other end any more.
            Err(_) => false,
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
