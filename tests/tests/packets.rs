//! Single frames through the real programs in the real kernel, by `BPF_PROG_TEST_RUN`. As root.
//!
//! Each file in `tests/packets` holds cases in this form:
//!
//! ```text
//! ## what the case shows
//! upload | upload xdp | upload tc | download       (`upload` alone runs at XDP and at TC; the
//!                                       kernel's test has no skb over a page or under an IP header)
//! station: none | left=OCTETS [vlan=ID] (02:00:00:00:00:0a and what it may still use), and its terms:
//!     [low=OCTETS] [expiry=past|future] [rate=OCTETS burst=OCTETS] [port=INDEX] [ipv4=HEX] [strict=1]
//! edge: [service-vlan=ID] [free=none]   (where it is not as below)
//! gso: size=OCTETS segments=COUNT       (where the frame is to be segmented)
//! frame:
//!   020000000001 02000000000a 0800      (hex; spaces do not matter; `zero*N` is N zero octets)
//! => pass | drop, then billed=OCTETS, or a cause, with refused=OCTETS where it is `spent`, and
//!     event=KIND or event=none where it matters what userspace is told
//! ```
//!
//! The edge is 02:00:00:00:00:01 with 10.64.0.1, `fd64::1` and `fe80::1`, its API on port 8480. Frames
//! come by the port with index 1.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a helper that fails is a test that fails"
)]

use std::{
    env, fs,
    mem::offset_of,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, MapData, PerCpuArray, RingBuf},
    programs::{SchedClassifier, TestRun, TestRunOptions, Xdp},
};
use bitmesh_common::{
    BOUND, Budget, Cause, Counts, EDGE_MAP, EVENTS_MAP, EXPIRES, EdgeConfig, EventKind,
    FreeBudgets, Lease, Mac, NEWCOMERS, NEWCOMERS_MAP, PROBE_LIMIT, Probe, RATED, Rate,
    STATIONS_MAP, STATS_MAP, STRICT, StationKey, StationSlot,
};
use bitmesh_user::dataplane::OBJECT;
use object::{Object, ObjectSection, SectionKind};

const SLOTS: u32 = 64;
const SEED: u64 = 0x5eed;
const STATION: [u8; 6] = [2, 0, 0, 0, 0, 0x0a];
/// What the kernel counted before each case: limits are compared with totals.
const UP_BEFORE: u64 = 1_000;
const DOWN_BEFORE: u64 = 500;

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const TC_ACT_SHOT: u32 = 2;
const TC_ACT_UNSPEC: u32 = u32::MAX;

/// `struct __sk_buff` of linux/bpf.h, as far as a test may set it.
const SKB_OCTETS: usize = 192;
const SKB_GSO_SEGMENTS: usize = 164;
const SKB_GSO_SIZE: usize = 176;

/// Words of a slot.
type Slot = [u64; size_of::<StationSlot>() / 8];
const EMPTY: Slot = [0; size_of::<StationSlot>() / 8];
const KEY: usize = offset_of!(Lease, key) / 8;
const LIMIT: usize = offset_of!(Lease, limit) / 8;
const UP: usize = offset_of!(StationSlot, up) / 8;
const DOWN: usize = offset_of!(StationSlot, down) / 8;

#[derive(Clone, Copy)]
#[repr(transparent)]
struct EdgeValue(EdgeConfig);

// SAFETY: integers only, laid out without padding.
unsafe impl Pod for EdgeValue {}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Program {
    UploadXdp,
    UploadTc,
    DownloadTc,
}

impl Program {
    fn name(self) -> &'static str {
        match self {
            Self::UploadXdp => "upload_xdp",
            Self::UploadTc => "upload_tc",
            Self::DownloadTc => "download_tc",
        }
    }
}

#[derive(Debug)]
struct Case {
    title: String,
    programs: Vec<Program>,
    station: Option<Terms>,
    edge: EdgeConfig,
    gso: Option<(u32, u32)>,
    frame: Vec<u8>,
    expected: Outcome,
    /// The events that are expected, where the case says so.
    told: Option<Vec<EventKind>>,
}

#[derive(Clone, Debug, Default)]
struct Terms {
    left: i64,
    vlan: u16,
    low: u64,
    expiry: Option<u64>,
    rate: Option<Rate>,
    burst: u32,
    port: u32,
    ipv4: u32,
    strict: bool,
}

impl Terms {
    fn words(&self) -> [(usize, u64); 7] {
        let bound = self.port != 0 || self.ipv4 != 0;
        let flags = [
            (self.expiry.is_some(), EXPIRES),
            (self.rate.is_some(), RATED),
            (bound, BOUND),
            (self.strict, STRICT),
        ];
        let flags = flags.iter().filter(|(set, _)| *set).fold(0, |all, (_, flag)| all | flag);
        let halves = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
        let rate = self.rate.map_or(0, Rate::raw);
        [
            (offset_of!(Lease, low), self.low),
            (offset_of!(Lease, expiry), self.expiry.unwrap_or(0)),
            (offset_of!(Lease, up_rate), rate),
            (offset_of!(Lease, down_rate), rate),
            (offset_of!(Lease, burst), halves(self.burst, self.ipv4)),
            (offset_of!(Lease, port), halves(self.port, flags)),
            (offset_of!(Lease, limit), (UP_BEFORE + DOWN_BEFORE).wrapping_add_signed(self.left)),
        ]
        .map(|(offset, word)| (offset / 8, word))
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Outcome {
    passes: bool,
    counts: Counts,
    other_direction: Counts,
    cause: Option<Cause>,
}

#[test]
fn limits_hold_on_both_sides_of_the_edge() {
    run("limits.txt");
}

#[test]
fn tagged_frames_are_charged_to_the_right_station() {
    run("vlan.txt");
}

#[test]
fn the_unpaid_reach_services_of_the_edge_and_nothing_else() {
    run("services.txt");
}

#[test]
fn neighbours_pass_and_rogue_routers_drop() {
    run("neighbours.txt");
}

#[test]
fn lying_and_cut_headers_drop() {
    run("headers.txt");
}

#[test]
fn leases_end_and_have_speeds_and_places() {
    run("leases.txt");
}

#[test]
fn gso_packets_count_as_their_segments() {
    run("gso.txt");
}

#[test]
fn programs_that_were_not_set_up_let_nothing_through() {
    let mut kernel = Kernel::load();
    let mut case = parse(&fixture("services.txt")).into_iter().next().unwrap();
    case.edge.hash_seed = 0;
    for program in [Program::UploadXdp, Program::UploadTc, Program::DownloadTc] {
        let (outcome, _) = kernel.run(&case, program);
        assert_eq!((outcome.passes, outcome.cause), (false, Some(Cause::NotReady)), "{program:?}");
    }
}

#[test]
fn a_station_is_found_at_the_end_of_its_probes_and_not_past_an_empty_slot() {
    let mut kernel = Kernel::load();
    let key = StationKey::new(Mac::new(STATION), 0).unwrap();
    let case = parse(&fixture("limits.txt")).into_iter().next().unwrap();
    kernel.prepare(&case);
    let mut probe = Probe::new(key, SEED);
    let places: Vec<u32> = (0..=PROBE_LIMIT).map(|_| probe.next(SLOTS - 1)).collect();
    let (last, past) = (places[places.len() - 2], places[places.len() - 1]);

    let mut place = |at: u32, fill: u64| {
        for &slot in &places {
            let mut value: Slot = EMPTY;
            value[KEY] = fill;
            kernel.stations.set(slot, value, 0).unwrap();
        }
        let mut value: Slot = EMPTY;
        (value[KEY], value[LIMIT]) = (key.raw(), 60);
        kernel.stations.set(at, value, 0).unwrap();
        kernel.verdict(&case, Program::UploadXdp)
    };
    let other = StationKey::new(Mac::new([2, 9, 9, 9, 9, 9]), 0).unwrap().raw();
    assert!(place(last, other), "behind fifteen others");
    assert!(place(last, StationKey::REMOVED), "behind fifteen that left");
    assert!(!place(past, other), "past the last probe");
    assert!(!place(last, StationKey::EMPTY), "behind an empty slot");
}

#[test]
fn frames_of_many_cpus_are_all_counted() {
    const THREADS: u64 = 4;
    const FRAMES: u32 = 20_000;
    let mut kernel = Kernel::load();
    let mut case = parse(&fixture("limits.txt")).into_iter().next().unwrap();
    case.station = Some(Terms { left: i64::MAX / 2, ..Terms::default() });
    let slot = kernel.prepare(&case).unwrap();
    let program = kernel.xdp();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let options = TestRunOptions {
                    data_in: Some(&case.frame),
                    repeat: FRAMES,
                    ..TestRunOptions::default()
                };
                assert_eq!(program.test_run(options).unwrap().return_value, XDP_PASS);
            });
        }
    });
    let value = kernel.stations.get(&slot, 0).unwrap();
    let frames = THREADS * u64::from(FRAMES);
    assert_eq!((value[UP] - UP_BEFORE, value[UP + 1]), (60 * frames, frames));
}

/// An atomic whose result is used is where the compiler went wrong before: every frame dropped, and
/// nothing said so. The programs add and never fetch.
#[test]
fn the_object_has_no_atomic_that_fetches() {
    const INSTRUCTION: usize = 8;
    const LOAD_IMMEDIATE_64: u8 = 0x18;
    const ATOMIC_32: u8 = 0xc3;
    const ATOMIC_64: u8 = 0xdb;
    const ADD_WITHOUT_FETCH: i32 = 0;

    let object = object::File::parse(OBJECT).unwrap();
    let mut atomics = 0;
    for section in object.sections().filter(|section| section.kind() == SectionKind::Text) {
        let code = section.data().unwrap();
        let mut instructions = code.chunks_exact(INSTRUCTION).enumerate();
        while let Some((at, instruction)) = instructions.next() {
            match instruction[0] {
                // Takes two places, the second of which is data.
                LOAD_IMMEDIATE_64 => drop(instructions.next()),
                ATOMIC_32 | ATOMIC_64 => {
                    let operation = i32::from_le_bytes(instruction[4..].try_into().unwrap());
                    let name = section.name().unwrap();
                    assert_eq!(operation, ADD_WITHOUT_FETCH, "{name}, instruction {at}");
                    atomics += 1;
                }
                _ => {}
            }
        }
    }
    assert!(atomics >= 4, "each program counts by atomic adds, found {atomics}");
}

fn run(file: &str) {
    let mut kernel = Kernel::load();
    let cases = parse(&fixture(file));
    assert!(!cases.is_empty(), "{file} has no cases");
    let mut failures = Vec::new();
    for case in &cases {
        for &program in &case.programs {
            let (outcome, told) = kernel.run(case, program);
            if case.told.as_ref().is_some_and(|expected| *expected != told) {
                failures.push(format!("{file}: {} ({program:?}) told {told:?}", case.title));
            }
            if outcome != case.expected {
                failures.push(format!(
                    "{file}: {} ({program:?})\n  expected {:?}\n  got      {outcome:?}",
                    case.title, case.expected
                ));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

struct Kernel {
    object: Ebpf,
    stations: Array<MapData, Slot>,
    edge: Array<MapData, EdgeValue>,
    stats: PerCpuArray<MapData, u64>,
    events: RingBuf<MapData>,
    newcomers: Array<MapData, u64>,
}

impl Kernel {
    fn load() -> Self {
        let mut object = EbpfLoader::new()
            .btf(None)
            .map_max_entries(STATIONS_MAP, SLOTS)
            .load(OBJECT)
            .expect("loading takes root: run `cargo xtask test`");
        let xdp: &mut Xdp = object.program_mut("upload_xdp").unwrap().try_into().unwrap();
        xdp.load().unwrap();
        for name in ["upload_tc", "download_tc"] {
            let tc: &mut SchedClassifier = object.program_mut(name).unwrap().try_into().unwrap();
            tc.load().unwrap();
        }
        let stations = object.take_map(STATIONS_MAP).unwrap().try_into().unwrap();
        let edge = object.take_map(EDGE_MAP).unwrap().try_into().unwrap();
        let stats = object.take_map(STATS_MAP).unwrap().try_into().unwrap();
        let events = object.take_map(EVENTS_MAP).unwrap().try_into().unwrap();
        let newcomers = object.take_map(NEWCOMERS_MAP).unwrap().try_into().unwrap();
        Self { object, stations, edge, stats, events, newcomers }
    }

    fn run(&mut self, case: &Case, program: Program) -> (Outcome, Vec<EventKind>) {
        let slot = self.prepare(case);
        let before = self.causes();
        let passes = self.verdict(case, program);
        let after = self.causes();
        let changed: Vec<Cause> = Cause::ALL
            .into_iter()
            .zip(before.iter().zip(&after))
            .filter_map(|(cause, (before, after))| (after != before).then_some(cause))
            .collect();
        assert!(changed.len() <= 1, "{}: counted twice, {changed:?}", case.title);
        let (up, down) = slot.map_or_else(Default::default, |slot| {
            let value = self.stations.get(&slot, 0).unwrap();
            (counts(&value, UP, UP_BEFORE), counts(&value, DOWN, DOWN_BEFORE))
        });
        let (counts, other_direction) =
            if program == Program::DownloadTc { (down, up) } else { (up, down) };
        let outcome = Outcome { passes, counts, other_direction, cause: changed.first().copied() };
        (outcome, self.told())
    }

    /// What userspace was told since it last looked.
    fn told(&mut self) -> Vec<EventKind> {
        let mut told = Vec::new();
        while let Some(item) = self.events.next() {
            let kind = u32::from_ne_bytes(item[..4].try_into().unwrap());
            told.push(EventKind::ALL[usize::try_from(kind).unwrap()]);
        }
        told
    }

    /// Sets the edge up, empties the table and puts the case's station in; returns its slot.
    fn prepare(&mut self, case: &Case) -> Option<u32> {
        self.edge.set(0, EdgeValue(case.edge), 0).unwrap();
        if case.told.is_some() {
            for place in 0..NEWCOMERS {
                self.newcomers.set(place, 0, 0).unwrap();
            }
        }
        for slot in 0..SLOTS {
            self.stations.set(slot, EMPTY, 0).unwrap();
        }
        let terms = case.station.as_ref()?;
        let key = StationKey::new(Mac::new(STATION), terms.vlan).unwrap();
        let slot = Probe::new(key, SEED).next(SLOTS - 1);
        let mut value: Slot = EMPTY;
        value[KEY] = key.raw();
        for (word, content) in terms.words() {
            value[word] = content;
        }
        (value[UP], value[DOWN]) = (UP_BEFORE, DOWN_BEFORE);
        self.stations.set(slot, value, 0).unwrap();
        Some(slot)
    }

    fn verdict(&self, case: &Case, program: Program) -> bool {
        let mut skb = [0; SKB_OCTETS];
        let context = case.gso.map(|(size, segments)| {
            skb[SKB_GSO_SEGMENTS..][..4].copy_from_slice(&segments.to_ne_bytes());
            skb[SKB_GSO_SIZE..][..4].copy_from_slice(&size.to_ne_bytes());
            &skb[..]
        });
        let options = TestRunOptions {
            data_in: Some(&case.frame),
            ctx_in: context,
            ..TestRunOptions::default()
        };
        let (result, pass, drop) = if program == Program::UploadXdp {
            (self.xdp().test_run(options), XDP_PASS, XDP_DROP)
        } else {
            let tc: &SchedClassifier =
                self.object.program(program.name()).unwrap().try_into().unwrap();
            (tc.test_run(options), TC_ACT_UNSPEC, TC_ACT_SHOT)
        };
        let verdict = result.unwrap_or_else(|e| panic!("{}: {e:?}", case.title)).return_value;
        assert!(verdict == pass || verdict == drop, "{}: verdict {verdict}", case.title);
        verdict == pass
    }

    fn xdp(&self) -> &Xdp {
        self.object.program("upload_xdp").unwrap().try_into().unwrap()
    }

    fn causes(&self) -> Vec<u64> {
        let count = u32::try_from(Cause::ALL.len()).unwrap();
        (0..count).map(|i| self.stats.get(&i, 0).unwrap().iter().sum()).collect()
    }
}

fn counts(value: &Slot, first: usize, before: u64) -> Counts {
    Counts {
        octets: value[first] - before,
        frames: value[first + 1],
        refused_octets: value[first + 2],
        refused_frames: value[first + 3],
    }
}

fn fixture(file: &str) -> String {
    // Another kernel's guest has them elsewhere: `cargo xtask kernels`.
    let folder = env::var_os("BITMESH_PACKETS").map(PathBuf::from);
    let here = || Path::new(env!("CARGO_MANIFEST_DIR")).join("packets");
    let path = folder.unwrap_or_else(here).join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn parse(text: &str) -> Vec<Case> {
    text.split("\n## ").skip(1).map(parse_case).collect()
}

fn parse_case(text: &str) -> Case {
    let mut lines = text.lines().map(|line| line.split('#').next().unwrap().trim());
    let title = lines.next().unwrap().to_owned();
    let programs = match lines.next().unwrap() {
        "upload" => vec![Program::UploadXdp, Program::UploadTc],
        "upload xdp" => vec![Program::UploadXdp],
        "upload tc" => vec![Program::UploadTc],
        "download" => vec![Program::DownloadTc],
        other => panic!("{title}: program {other:?}"),
    };
    let mut case = Case {
        title,
        programs,
        station: None,
        edge: edge(),
        gso: None,
        frame: Vec::new(),
        expected: Outcome::default(),
        told: None,
    };
    for line in lines.filter(|line| !line.is_empty() && *line != "frame:") {
        if let Some(station) = line.strip_prefix("station: ") {
            case.station = (station != "none").then(|| parse_terms(station));
        } else if let Some(edge) = line.strip_prefix("edge: ") {
            case.edge.service_vlan = number(edge, "service-vlan").unwrap_or(0);
            if edge.contains("free=none") {
                case.edge.free.station = Budget { rate: 0, burst: 0 };
            }
        } else if let Some(gso) = line.strip_prefix("gso: ") {
            case.gso = Some((number(gso, "size").unwrap(), number(gso, "segments").unwrap()));
        } else if let Some(expected) = line.strip_prefix("=> ") {
            case.expected = parse_outcome(expected);
            let told: Option<String> = number(expected, "event");
            case.told = told.map(|told| {
                let of_name = |kind: &EventKind| kind.name() == told;
                let kinds: Vec<_> = EventKind::ALL.into_iter().filter(of_name).collect();
                assert!(!kinds.is_empty() || told == "none", "event in {expected:?}");
                kinds
            });
        } else if let Some(zeros) = line.strip_prefix("zero*") {
            case.frame.extend(vec![0; zeros.parse::<usize>().unwrap()]);
        } else {
            let digits: Vec<u8> = line.bytes().filter(|b| *b != b' ').collect();
            case.frame.extend(digits.chunks(2).map(|pair| {
                u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16)
                    .unwrap_or_else(|_| panic!("{}: not hex: {line:?}", case.title))
            }));
        }
    }
    case
}

fn parse_terms(text: &str) -> Terms {
    let expiry: Option<String> = number(text, "expiry");
    let ipv4: Option<String> = number(text, "ipv4");
    Terms {
        left: number(text, "left").unwrap(),
        vlan: number(text, "vlan").unwrap_or(0),
        low: number(text, "low").unwrap_or(0),
        expiry: expiry.map(|when| if when == "past" { 1 } else { u64::MAX }),
        rate: number(text, "rate").map(|octets| Rate::new(octets).unwrap()),
        burst: number(text, "burst").unwrap_or(0),
        port: number(text, "port").unwrap_or(0),
        ipv4: ipv4.map_or(0, |hex| u32::from_str_radix(&hex, 16).unwrap()),
        strict: text.contains("strict=1"),
    }
}

fn edge() -> EdgeConfig {
    let mut config = EdgeConfig {
        hash_seed: SEED,
        slot_mask: SLOTS - 1,
        api_port: 8_480,
        free: FreeBudgets::of(Budget::UNLIMITED),
        ..EdgeConfig::UNSET
    };
    assert!(config.add_own([10, 64, 0, 1].into()));
    assert!(config.add_own([0xfd64, 0, 0, 0, 0, 0, 0, 1].into()));
    assert!(config.add_own([0xfe80, 0, 0, 0, 0, 0, 0, 1].into()));
    config
}

fn parse_outcome(text: &str) -> Outcome {
    let words: Vec<&str> = text.split(' ').collect();
    let mut outcome = Outcome { passes: words[0] == "pass", ..Outcome::default() };
    if let Some(octets) = number(text, "billed") {
        (outcome.counts.octets, outcome.counts.frames) = (octets, 1);
    } else {
        let cause = Cause::ALL.into_iter().find(|cause| cause.name() == words[1]);
        outcome.cause = Some(cause.unwrap_or_else(|| panic!("cause in {text:?}")));
        assert_eq!(cause.is_some_and(Cause::passes), outcome.passes, "{text:?}");
    }
    if let Some(octets) = number(text, "refused") {
        (outcome.counts.refused_octets, outcome.counts.refused_frames) = (octets, 1);
    }
    outcome
}

fn number<T: std::str::FromStr>(text: &str, name: &str) -> Option<T> {
    let mut words = text.split(' ').filter_map(|word| word.split_once('='));
    words.find_map(|(key, value)| (key == name).then(|| value.parse().ok()).flatten())
}
