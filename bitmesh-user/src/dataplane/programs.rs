//! Where programs come from: the object that was just loaded, or their pins.

use std::{collections::HashMap, fs, os::unix::fs::symlink, thread};

use aya::{
    Ebpf,
    programs::{Program, ProgramError, ProgramInfo, SchedClassifier, Xdp},
};
use aya_obj::programs::XdpAttachType;
use bitcoin::hashes::{Hash as _, sha256};
use bitmesh_core::bitcoin;

use super::{
    DataplaneError,
    object::{self, Maps, OBJECT},
    pins::Pins,
};

const UPLOAD_XDP: &str = "upload_xdp";
/// Name of the link beside the pinned programs that tells which they are ([`which`]).
const WHICH: &str = "object";
/// The programs that go onto a provider's ports.
const PINNED: [&str; 3] = [UPLOAD_XDP, "upload_tc", "download_tc"];

/// A source of programs.
pub(super) enum Programs<'a> {
    /// Loaded by this process.
    Object(&'a mut Ebpf),
    /// Loaded by another.
    Pinned(&'a mut Pinned),
}

impl Programs<'_> {
    /// A TC program, in the kernel.
    pub(super) fn classifier(
        &mut self,
        name: &'static str,
    ) -> Result<&mut SchedClassifier, DataplaneError> {
        let program: &mut SchedClassifier = match self {
            Self::Object(object) => {
                object.program_mut(name).ok_or(DataplaneError::ObjectLacks { name })?.try_into()?
            }
            Self::Pinned(pinned) => {
                return pinned.tc.get_mut(name).ok_or(DataplaneError::ObjectLacks { name });
            }
        };
        if program.fd().is_err() {
            program.load()?;
        }
        Ok(program)
    }

    /// The program for XDP, in the kernel.
    pub(super) fn xdp(&mut self) -> Result<&mut Xdp, DataplaneError> {
        let missing = DataplaneError::ObjectLacks { name: UPLOAD_XDP };
        let program: &mut Xdp = match self {
            Self::Object(object) => object.program_mut(UPLOAD_XDP).ok_or(missing)?.try_into()?,
            Self::Pinned(pinned) => return Ok(&mut pinned.xdp),
        };
        if program.fd().is_err() {
            program.load()?;
        }
        Ok(program)
    }
}

/// Programs that stay in the kernel by their pins.
pub(super) struct Pinned {
    xdp: Xdp,
    tc: HashMap<&'static str, SchedClassifier>,
}

impl Pinned {
    pub(super) fn open(pins: &Pins) -> Result<Self, DataplaneError> {
        let mut tc = HashMap::new();
        for name in PINNED.into_iter().filter(|name| *name != UPLOAD_XDP) {
            tc.insert(name, SchedClassifier::from_pin(pins.path(&file(name)))?);
        }
        let xdp = Xdp::from_pin(pins.path(&file(UPLOAD_XDP)), XdpAttachType::Interface)?;
        Ok(Self { xdp, tc })
    }

    /// Those of an earlier controller with the maps that they use, if they are of this very object:
    /// then the kernel need not verify it again.
    pub(super) fn of_this_object(pins: &Pins) -> Option<(Self, Maps)> {
        let said = fs::read_link(pins.path(WHICH)).ok()?;
        let pinned = Self::open(pins).ok()?;
        let mut infos = Vec::new();
        for name in PINNED {
            infos.push(match pinned.tc.get(name) {
                Some(tc) => tc.info().ok()?,
                None => pinned.xdp.info().ok()?,
            });
        }
        let ids: Vec<_> = infos.iter().map(ProgramInfo::id).collect();
        if said.to_str() != Some(&which(&ids)) {
            return None;
        }
        let uses = infos.iter().map(|info| info.map_ids().ok()?).collect::<Option<Vec<_>>>()?;
        Some((pinned, Maps::used_by_all(&uses, pins)?))
    }
}

/// This object, and by the kernel's ids the programs of it that are pinned: others may have taken their
/// places since.
fn which(ids: &[u32]) -> String {
    let names = [sha256::Hash::hash(OBJECT).to_string()].into_iter();
    names.chain(ids.iter().map(u32::to_string)).collect::<Vec<_>>().join("-")
}

/// Where the programs of a start come from.
pub(super) enum Source {
    /// This start.
    Object(Box<Ebpf>),
    /// An earlier one of the same object.
    Pinned(Box<Pinned>),
}

/// Finds the programs for a table of `slots`, with the maps that they use: those that are pinned, if
/// they are of this object, else the object's.
pub(super) fn find(pins: &Pins, slots: u32) -> Result<(Source, Maps), DataplaneError> {
    if let Some((pinned, maps)) = Pinned::of_this_object(pins) {
        return Ok((Source::Pinned(Box::new(pinned)), maps));
    }
    let mut object = object::load(pins, slots)?;
    let maps = Maps::of(&mut object)?;
    Ok((Source::Object(Box::new(object)), maps))
}

impl Source {
    /// Has the kernel verify those that it does not know.
    pub(super) fn load(&mut self) -> Result<(), DataplaneError> {
        match self {
            Self::Object(object) => load(object),
            Self::Pinned(_) => Ok(()),
        }
    }

    pub(super) fn lend(&mut self) -> Programs<'_> {
        match self {
            Self::Object(object) => Programs::Object(object),
            Self::Pinned(pinned) => Programs::Pinned(pinned),
        }
    }

    /// Pins those that are not.
    pub(super) fn pin(&mut self, pins: &Pins) -> Result<(), DataplaneError> {
        match self {
            Self::Object(object) => pin(object, pins),
            Self::Pinned(_) => Ok(()),
        }
    }
}

/// Has the kernel verify the programs, all at once: at a start, this takes longer than all else here.
fn load(object: &mut Ebpf) -> Result<(), DataplaneError> {
    let programs = object.programs_mut().filter(|(name, _)| PINNED.contains(name));
    thread::scope(|scope| {
        let loads: Vec<_> =
            programs.map(|(_, program)| scope.spawn(move || load_one(program))).collect();
        loads.into_iter().try_for_each(|load| {
            load.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })
}

fn load_one(program: &mut Program) -> Result<(), DataplaneError> {
    match program {
        Program::Xdp(xdp) => xdp.load()?,
        Program::SchedClassifier(tc) => tc.load()?,
        _ => return Err(ProgramError::UnexpectedProgramType.into()),
    }
    Ok(())
}

/// Pins the programs, so that whoever puts them back needs no object. What an earlier controller
/// pinned is replaced in one step.
fn pin(object: &mut Ebpf, pins: &Pins) -> Result<(), DataplaneError> {
    let link = pins.path(WHICH);
    super::pins::remove(&link)?;
    let mut ids = Vec::new();
    for name in PINNED {
        let program = object.program_mut(name).ok_or(DataplaneError::ObjectLacks { name })?;
        ids.push(program.info()?.id());
        let (new, path) = (pins.path(&format!("new_{}", file(name))), pins.path(&file(name)));
        super::pins::remove(&new)?;
        program.pin(&new).map_err(|source| DataplaneError::Pin {
            path: new.clone(),
            source: Box::new(source),
        })?;
        fs::rename(&new, &path)
            .map_err(DataplaneError::system(format!("replacing {}", path.display())))?;
    }
    symlink(which(&ids), &link)
        .map_err(DataplaneError::system(format!("making {}", link.display())))
}

fn file(program: &str) -> String {
    format!("program_{program}")
}
