//! What the guest tells: one line of JSON for each thing, on a serial line of its own, so that the
//! kernel's messages can't fall in between.

use std::{env, fs::File, io::Write as _};

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::machine::{self, LINE_VARIABLE};

/// Octets at the end of a long text that are told: a verifier's log ends with the reason.
const TEXT_OCTETS: usize = 16_384;

/// One line. `xtask` reads the same.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event<'a> {
    /// The kernel runs us.
    Started { release: &'a str },
    /// The verifier has spoken on one program.
    Program(Program),
    /// An exercise is over.
    Exercise(Exercise),
    /// All is told.
    Finished { exercises: usize },
}

/// A program as this kernel took it.
#[derive(Default, Serialize)]
pub struct Program {
    /// As in the object.
    pub name: String,
    /// Why it was not loaded, with the verifier's log.
    pub error: Option<String>,
    /// Instructions that the verifier walked over, on all paths.
    pub verified_instructions: Option<u32>,
    /// Octets after the verifier's rewriting.
    pub translated_octets: Option<u32>,
    /// Octets of machine code.
    pub jited_octets: u32,
    /// How long loading took: verifying and compiling.
    pub load_microseconds: u64,
    /// The mean by `BPF_PROG_TEST_RUN`, of programs that are timed.
    pub nanoseconds_a_frame: Option<f64>,
}

/// One exercise.
#[derive(Serialize)]
pub struct Exercise {
    pub name: &'static str,
    pub passed: bool,
    pub seconds: f64,
    /// What was seen, or why it failed.
    pub detail: String,
}

/// Where events go.
pub struct Report(File);

impl Report {
    pub fn open() -> Result<Self> {
        let line = env::var(LINE_VARIABLE)
            .with_context(|| format!("the kernel's command line names no {LINE_VARIABLE}"))?;
        machine::mount_devices()?;
        File::options().write(true).open(&line).map(Self).with_context(|| line)
    }

    pub fn tell(&mut self, event: &Event<'_>) -> Result<()> {
        let mut text = serde_json::to_string(event)?;
        text.push('\n');
        Ok(self.0.write_all(text.as_bytes())?)
    }
}

/// The end of a text that may be very long.
pub fn tail(text: &str) -> String {
    let from = text.len().saturating_sub(TEXT_OCTETS);
    let from = (from..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text.get(from..).unwrap_or_default().to_owned()
}
