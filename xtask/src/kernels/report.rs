//! What a guest told, as a verdict, for people and for programs.

use std::time::Duration;

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use serde::{Deserialize, Serialize};

/// Octets at the end of a verifier's log that people are shown; the guest's report has more.
const SHOWN_OCTETS: usize = 1_500;

/// How the emulated machine ended.
#[derive(Clone, Copy, Debug)]
pub enum End {
    /// It went off.
    Off,
    /// The emulator itself failed.
    Emulator,
    /// It was ended by us.
    Hung { limit: Duration },
}

/// One line of the guest's. The guest's program writes the same.
#[derive(Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum Event {
    Started { release: String },
    Program(Program),
    Exercise(Exercise),
    Finished { exercises: usize },
}

/// A program as a kernel took it, or why it did not.
#[derive(Debug, Deserialize, Serialize)]
pub struct Program {
    name: String,
    error: Option<String>,
    verified_instructions: Option<u32>,
    translated_octets: Option<u32>,
    jited_octets: u32,
    load_microseconds: u64,
    nanoseconds_a_frame: Option<f64>,
}

/// One exercise, with what was seen or why it failed.
#[derive(Debug, Deserialize, Serialize)]
pub struct Exercise {
    name: String,
    passed: bool,
    seconds: f64,
    detail: String,
}

/// Everything that a guest told before it ended.
#[derive(Debug, Default, Serialize)]
pub struct Told {
    #[serde(skip)]
    started: Option<String>,
    programs: Vec<Program>,
    exercises: Vec<Exercise>,
    #[serde(skip)]
    promised: Option<usize>,
}

impl Told {
    /// Reads the guest's lines; what is none of them is the rest of one that was cut.
    pub fn parse(text: &str) -> Self {
        let mut told = Self::default();
        for event in text.lines().filter_map(|line| serde_json::from_str(line.trim()).ok()) {
            match event {
                Event::Started { release } => told.started = Some(release),
                Event::Program(program) => told.programs.push(program),
                Event::Exercise(exercise) => told.exercises.push(exercise),
                Event::Finished { exercises } => told.promised = Some(exercises),
            }
        }
        told
    }

    /// Whether the kernel ran the guest.
    pub fn started(&self) -> bool {
        self.started.is_some()
    }

    /// Whether the guest told all that it had to.
    pub fn finished(&self) -> bool {
        self.promised.is_some_and(|promised| promised > 0 && promised == self.exercises.len())
            && !self.programs.is_empty()
    }

    /// How far it came, in words.
    pub fn place(&self) -> String {
        match (&self.started, self.exercises.last()) {
            (None, _) => "before the guest was reached".to_owned(),
            (_, None) => format!("after {} programs", self.programs.len()),
            (_, Some(last)) => format!("after \"{}\"", last.name),
        }
    }
}

/// What came of one kernel.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// As `uname -r` has it.
    pub release: String,
    /// Boots that it took; more than 1 where the emulator or the kernel failed by itself.
    pub boots: u32,
    /// With all boots.
    pub seconds: f64,
    /// Why the guest did not come to its end.
    pub problem: Option<String>,
    /// What the guest told.
    #[serde(flatten)]
    pub told: Told,
}

impl Outcome {
    /// Whether this kernel loads every program and passes every exercise, all told.
    pub fn passed(&self) -> bool {
        self.problem.is_none()
            && self.told.finished()
            && self.told.started.as_ref() == Some(&self.release)
            && self.told.programs.iter().all(|program| program.error.is_none())
            && self.told.exercises.iter().all(|exercise| exercise.passed)
    }

    fn verdict(&self) -> &'static str {
        if self.passed() { "passed" } else { "FAILED" }
    }
}

/// For programs.
pub fn print_json(outcomes: &[Outcome]) -> Result<()> {
    #[derive(Serialize)]
    struct Line<'a> {
        passed: bool,
        #[serde(flatten)]
        outcome: &'a Outcome,
    }
    let lines: Vec<_> =
        outcomes.iter().map(|outcome| Line { passed: outcome.passed(), outcome }).collect();
    println!("{}", serde_json::to_string_pretty(&lines)?);
    Ok(())
}

/// For people.
pub fn print_table(outcomes: &[Outcome]) {
    for outcome in outcomes {
        let boots =
            if outcome.boots > 1 { format!(", {} boots", outcome.boots) } else { String::new() };
        println!("\n{} {} in {:.0} s{boots}", outcome.release, outcome.verdict(), outcome.seconds);
        if !outcome.told.programs.is_empty() {
            println!("{}", programs(&outcome.told.programs));
        }
        for Program { name, error, .. } in &outcome.told.programs {
            if let Some(error) = error {
                println!("{name} was not loaded:\n{}", end_of(error));
            }
        }
        for Exercise { name, passed, seconds, detail } in &outcome.told.exercises {
            let verdict = if *passed { "passed" } else { "FAILED" };
            println!("{verdict} {seconds:>5.1} s  {name}: {}", end_of(detail));
        }
        if let Some(problem) = &outcome.problem {
            println!("FAILED: {problem}");
        }
    }
    println!("\nTimes are an emulator's: compare them with each other only.");
}

fn end_of(text: &str) -> &str {
    let from = text.len().saturating_sub(SHOWN_OCTETS);
    let from = (from..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text.get(from..).unwrap_or(text)
}

fn programs(programs: &[Program]) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED).set_header([
        "program",
        "verified instructions",
        "translated octets",
        "machine code octets",
        "load ms",
        "ns a frame",
    ]);
    let or_none = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), |n| n.to_string());
    for program in programs {
        table.add_row([
            program.name.clone(),
            or_none(program.verified_instructions.map(u64::from)),
            or_none(program.translated_octets.map(u64::from)),
            program.jited_octets.to_string(),
            (program.load_microseconds / 1_000).to_string(),
            program.nanoseconds_a_frame.map_or_else(|| "-".to_owned(), |n| format!("{n:.0}")),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROGRAM: &str = r#"{"event":"program","name":"a","error":null,"verified_instructions":9,"translated_octets":80,"jited_octets":70,"load_microseconds":5,"nanoseconds_a_frame":7}"#;
    const EXERCISE: &str =
        r#"{"event":"exercise","name":"b","passed":true,"seconds":1.5,"detail":"c"}"#;

    fn passes(lines: &[&str]) -> bool {
        let told = Told::parse(&lines.join("\r\n"));
        let release = "6.1".to_owned();
        Outcome { release, boots: 1, seconds: 1.0, problem: None, told }.passed()
    }

    #[test]
    fn a_kernel_passes_when_all_was_told_and_is_well() {
        let started = r#"{"event":"started","release":"6.1"}"#;
        let finished = r#"{"event":"finished","exercises":1}"#;
        let failed = EXERCISE.replace("true", "false");
        let refused = PROGRAM.replace("null", "\"too complex\"");
        let other = started.replace("6.1", "6.2");
        assert!(passes(&[started, PROGRAM, EXERCISE, finished]));
        assert!(!passes(&[started, PROGRAM, EXERCISE]), "it did not say that it had finished");
        assert!(!passes(&[started, PROGRAM, finished]), "an exercise is missing");
        assert!(!passes(&[started, EXERCISE, finished]), "no program was loaded");
        assert!(!passes(&[started, PROGRAM, &failed, finished]), "an exercise failed");
        assert!(!passes(&[started, &refused, EXERCISE, finished]), "a program was refused");
        assert!(!passes(&[&other, PROGRAM, EXERCISE, finished]), "another kernel ran");
        assert!(!passes(&[started, PROGRAM, &EXERCISE[..30], EXERCISE, "{"]), "the report is cut");
    }
}
