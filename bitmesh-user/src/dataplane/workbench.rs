//! The programs and a table beside whatever meters this machine: on no port, without pins, gone
//! when dropped. For measuring what they cost.

use std::time::{Duration, Instant};

use aya::{
    Ebpf,
    maps::Map,
    programs::{Program, TestRun, TestRunAttrs, TestRunOptions, TestRunResult},
};
use bitmesh_common::{EDGE_MAP, STATIONS_MAP, StationKey};

use super::{
    DataplaneError, Events, StationUsage, host, new_seed,
    object::{self, Edge},
    open_table,
    table::Table,
};

/// The edge's address, which no frame that is measured is for (RFC 5737).
const EDGE_ADDRESS: [u8; 4] = [192, 0, 2, 254];
const API_PORT: u16 = 8_434;
const PROGRAMS: [&str; 5] = ["empty_xdp", "empty_tc", "upload_xdp", "upload_tc", "download_tc"];
/// What a program at XDP, and one at TC, answers for a frame that passes.
const XDP_PASS: u32 = 2;
const TC_ACT_UNSPEC: u32 = u32::MAX;

/// Credit that is low in a measurement of events: several of the largest frames.
const LOW_OCTETS: u64 = 1 << 20;
/// Time that a thread has to begin to wait.
const BEFORE_EVENT: Duration = Duration::from_millis(1);
/// Time after which an event does not come any more.
const EVENT_DEADLINE: Duration = Duration::from_secs(2);

/// What is cut off whole nanoseconds, in the mean.
const HALF: f64 = 0.5;

/// Loaded programs, and their table mapped.
pub struct Workbench {
    object: Ebpf,
    table: Table,
    events: Events,
    _edge: Edge,
    _stations: Map,
}

impl Workbench {
    /// Loads the programs with a table of `slots`, a power of two; 256 octets of memory each.
    pub fn open(slots: u32) -> Result<Self, DataplaneError> {
        host::check()?;
        let mut object = object::load_unpinned(slots)?;
        let mut config = object::config(&[EDGE_ADDRESS.into()], API_PORT)?;
        (config.hash_seed, config.slot_mask) = (new_seed()?, slots.saturating_sub(1));
        let mut edge = Edge::new(object::take_map(&mut object, EDGE_MAP)?)?;
        edge.write(&config)?;
        let events = Events::of(&mut object)?;
        let stations = object::take_map(&mut object, STATIONS_MAP)?;
        let table = open_table(&stations, slots, &config)?;
        for name in PROGRAMS {
            match program_mut(&mut object, name)? {
                Program::Xdp(program) => program.load()?,
                Program::SchedClassifier(program) => program.load()?,
                _ => return Err(DataplaneError::ObjectLacks { name }),
            }
        }
        Ok(Self { object, table, events, _edge: edge, _stations: stations })
    }

    /// Puts a station in the table that may use `bought` octets.
    pub fn insert(&mut self, key: StationKey, bought: u64) -> Result<(), DataplaneError> {
        self.table.insert(key, StationUsage::default(), bought, Instant::now())
    }

    /// Nanoseconds that one of our programs takes for a frame that it lets pass: the mean of
    /// `repeat` runs on the same frame.
    pub fn frame(
        &self,
        name: &'static str,
        frame: &[u8],
        repeat: u32,
    ) -> Result<f64, DataplaneError> {
        let program = self.object.program(name).ok_or(DataplaneError::ObjectLacks { name })?;
        match program {
            Program::Xdp(program) => frame_cost(program, XDP_PASS, frame, repeat),
            Program::SchedClassifier(program) => frame_cost(program, TC_ACT_UNSPEC, frame, repeat),
            _ => Err(DataplaneError::ObjectLacks { name }),
        }
    }

    /// Time that it takes to raise what `stations` have bought, one by one: the first to `bought`
    /// octets, each further one to an octet more.
    pub fn top_up(
        &mut self,
        stations: &[StationKey],
        bought: u64,
    ) -> Result<Duration, DataplaneError> {
        let started = Instant::now();
        for (bought, key) in (bought..).zip(stations) {
            self.table.set_bought(*key, bought)?;
        }
        Ok(started.elapsed())
    }

    /// Time from handing the kernel a frame that leaves its station with low credit until a thread
    /// that waits for events has the event. The frame's own way through the kernel is part of it.
    pub fn event(
        &mut self,
        program: &'static str,
        station: StationKey,
        frame: &[u8],
    ) -> Result<Duration, DataplaneError> {
        let bought = self.table.usage(station).map_or(0, |used| used.octets());
        self.table.set_bought(station, bought.saturating_add(LOW_OCTETS))?;
        self.table.set_low(station, LOW_OCTETS)?;
        let object = &self.object;
        let events = &mut self.events;
        while events.next().is_some() {}
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let told = events.wait(EVENT_DEADLINE)?;
                Ok::<_, DataplaneError>(told.then(Instant::now))
            });
            // The thread is to wait before there is something to wait for.
            std::thread::sleep(BEFORE_EVENT);
            let started = Instant::now();
            run_once(object, program, frame)?;
            let told = waiting.join().ok().and_then(Result::ok).flatten();
            told.map(|told| told.saturating_duration_since(started)).ok_or(DataplaneError::NoEvent)
        })
    }

    /// Time that it takes to read every station's counters, and how many of them had changed.
    pub fn scan(&mut self) -> (Duration, usize) {
        let started = Instant::now();
        let changed = self.table.changed();
        (started.elapsed(), changed.len())
    }
}

fn run_once(object: &Ebpf, name: &'static str, frame: &[u8]) -> Result<(), DataplaneError> {
    match object.program(name).ok_or(DataplaneError::ObjectLacks { name })? {
        Program::Xdp(program) => frame_cost(program, XDP_PASS, frame, 1),
        Program::SchedClassifier(program) => frame_cost(program, TC_ACT_UNSPEC, frame, 1),
        _ => return Err(DataplaneError::ObjectLacks { name }),
    }
    .map(drop)
}

fn program_mut<'a>(
    object: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut Program, DataplaneError> {
    object.program_mut(name).ok_or(DataplaneError::ObjectLacks { name })
}

/// Nanoseconds that a program takes for a frame, by `BPF_PROG_TEST_RUN`: the mean of `repeat` runs.
/// Fails where it does not answer `verdict`.
///
/// The kernel tells whole nanoseconds, cut off, and leaves out its preparations and when it was not
/// running. The time of the whole call gives the fraction where those don't count.
pub fn frame_cost<P>(
    program: &P,
    verdict: u32,
    frame: &[u8],
    repeat: u32,
) -> Result<f64, DataplaneError>
where
    P: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = TestRunResult>,
{
    let options = TestRunOptions {
        data_in: Some(frame),
        data_out: None,
        ctx_in: None,
        ctx_out: None,
        repeat,
        attrs: TestRunAttrs::new(),
    };
    let started = Instant::now();
    let result = program.test_run(options)?;
    let whole = started.elapsed().as_secs_f64() * 1e9 / f64::from(repeat.max(1));
    if result.return_value != verdict {
        return Err(DataplaneError::OtherVerdict { wanted: verdict, found: result.return_value });
    }
    let told = result.duration.as_secs_f64() * 1e9;
    let between = (told..told + 1.0).contains(&whole);
    Ok(if between { whole } else { told + HALF })
}
