//! Loads every program of the object, as the verifier of this kernel sees it.

use std::time::Instant;

use anyhow::{Result, ensure};
use aya::{
    EbpfLoader,
    programs::{Program as Loaded, ProgramError, ProgramInfo},
};
use bitmesh_common::STATIONS_MAP;
use bitmesh_user::{
    bench::{Scale, frames},
    dataplane::OBJECT,
};

use crate::report::{Program, tail};

/// The programs are as large whatever the table's size is.
const SLOTS: u32 = 64;
/// Frames that one figure is the mean of, and rounds that it is the median of: the emulator is
/// slow, and its figures are only to be compared with each other.
const REPEAT: u32 = 20_000;
const ROUNDS: usize = 3;

/// Loads each, whatever becomes of the others.
pub fn load() -> Result<Vec<Program>> {
    let mut object =
        EbpfLoader::new().btf(None).map_max_entries(STATIONS_MAP, SLOTS).load(OBJECT)?;
    let mut programs: Vec<_> = object
        .programs_mut()
        .map(|(name, program)| {
            let started = Instant::now();
            let loaded = load_one(program);
            let load_microseconds =
                u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
            let told = Program { name: name.to_owned(), load_microseconds, ..Program::default() };
            match loaded {
                Ok(info) => Program {
                    verified_instructions: info.verified_instruction_count(),
                    translated_octets: info.size_translated(),
                    jited_octets: info.size_jitted(),
                    ..told
                },
                Err(error) => Program { error: Some(tail(&error.to_string())), ..told },
            }
        })
        .collect();
    programs.sort_by(|a, b| a.name.cmp(&b.name));
    ensure!(!programs.is_empty(), "the object has no programs");
    Ok(programs)
}

fn load_one(program: &mut Loaded) -> Result<ProgramInfo, ProgramError> {
    match program {
        Loaded::Xdp(program) => program.load()?,
        Loaded::SchedClassifier(program) => program.load()?,
        _ => return Err(ProgramError::UnexpectedProgramType),
    }
    program.info()
}

/// Times those that meter, and the empty ones beside them.
pub fn time(programs: &mut [Program]) -> Result<String> {
    let scale = Scale { rounds: ROUNDS, frames: REPEAT, stations: 0 };
    let (_, measures) = frames(scale, Vec::new(), &|_| {})?;
    let of = |name: &str| measures.iter().find(|measure| measure.name.ends_with(name));
    let whole = |nanoseconds: Option<f64>| nanoseconds.map(f64::round);
    let mut timed = 0;
    for program in programs.iter_mut() {
        program.nanoseconds_a_frame = match program.name.as_str() {
            "empty_xdp" => whole(of("upload_xdp, IPv4").and_then(|measure| measure.reference)),
            "empty_tc" => whole(of("upload_tc, IPv4").and_then(|measure| measure.reference)),
            name => whole(of(&format!("{name}, IPv4")).and_then(|measure| measure.ours)),
        };
        timed += usize::from(program.nanoseconds_a_frame.is_some());
    }
    ensure!(timed > 0, "no program was timed");
    Ok(format!("{timed} of them, medians of {ROUNDS} times {REPEAT} frames"))
}
