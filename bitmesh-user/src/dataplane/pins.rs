//! Where maps and links stay when the controller is gone.

use std::{
    fs::{self, File},
    io,
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use bitmesh_common::LAYOUT_VERSION;
use rustix::fs::{FlockOperation, flock};

use super::DataplaneError;

const ROOT: &str = "/sys/fs/bpf/bitmesh";
/// Longest name of an instance, in octets.
const INSTANCE_LIMIT: usize = 32;

/// How long an instance is waited for whose controller has just ended: its guard ends after it.
const HELD_PATIENCE: Duration = Duration::from_secs(2);
const HELD_PAUSE: Duration = Duration::from_millis(20);

/// How the directory of a subscriber's own count begins.
const OBSERVER: &str = "observer";

/// What holds a pin's program on its interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    /// A link to XDP.
    Xdp,
    /// A link to TC.
    Tcx,
    /// A filter of clsact. The pin is the program, and says that the filter is ours.
    Clsact,
}

impl Holder {
    const ALL: [Self; 3] = [Self::Xdp, Self::Tcx, Self::Clsact];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// Which side of an interface a program is on, as the host sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// What the interface receives.
    Ingress,
    /// What the interface sends.
    Egress,
}

impl Side {
    const ALL: [Self; 2] = [Self::Ingress, Self::Egress];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// One attachment's pin. bpffs takes no dots, so that interfaces are pinned by index, and by
/// namespace, in which the index is one of a kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LinkPin {
    pub(super) holder: Holder,
    pub(super) side: Side,
    pub(super) namespace: u64,
    pub(super) index: u32,
}

impl LinkPin {
    fn file(&self) -> String {
        let (holder, side) = (self.holder.name(), self.side.name());
        format!("{holder}_{side}_{}_{}", self.namespace, self.index)
    }

    fn parse(file: &str) -> Option<Self> {
        let mut parts = file.split('_');
        let (holder, side) = (parts.next()?, parts.next()?);
        let pin = Self {
            holder: Holder::ALL.into_iter().find(|known| known.name() == holder)?,
            side: Side::ALL.into_iter().find(|known| known.name() == side)?,
            namespace: parts.next()?.parse().ok()?,
            index: parts.next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(pin)
    }
}

/// Names of all instances on this machine that have pins.
pub fn instances() -> Vec<String> {
    names(Path::new(ROOT)).unwrap_or_default()
}

/// What holds an instance's program on what a port receives, whether or not a process runs it.
pub(super) fn held(
    instance: &str,
    namespace: u64,
    index: u32,
) -> Result<Option<Holder>, DataplaneError> {
    let own = room(instance)?.join(format!("v{LAYOUT_VERSION}"));
    let found = names(&own)?
        .iter()
        .filter_map(|name| LinkPin::parse(name))
        .find(|pin| pin.side == Side::Ingress && pin.namespace == namespace && pin.index == index);
    Ok(found.map(|pin| pin.holder))
}

/// The directory of one instance's pins, held against other processes.
pub(super) struct Pins {
    instance: String,
    directory: PathBuf,
    held: File,
}

impl Pins {
    /// The pins of a provider's dataplane.
    pub(super) fn of_dataplane(instance: &str) -> Result<Self, DataplaneError> {
        let room = room(instance)?;
        let own = format!("v{LAYOUT_VERSION}");
        for found in names(&room)? {
            if found.starts_with('v') && found != own {
                let instance = instance.to_owned();
                return Err(DataplaneError::OtherLayout { instance, found });
            }
        }
        Self::open(instance, room.join(own))
    }

    /// The pins of a subscriber's own count.
    pub(super) fn of_observer(instance: &str) -> Result<Self, DataplaneError> {
        Self::open(instance, room(instance)?.join(format!("{OBSERVER}{LAYOUT_VERSION}")))
    }

    /// Every directory of an instance, a provider's and a subscriber's, of whatever layout.
    pub(super) fn of_every_layout(instance: &str) -> Result<Vec<Self>, DataplaneError> {
        let room = room(instance)?;
        names(&room)?
            .into_iter()
            .filter(|name| name.starts_with('v') || name.starts_with(OBSERVER))
            .map(|name| Self::open(instance, room.join(name)))
            .collect()
    }

    fn open(instance: &str, directory: PathBuf) -> Result<Self, DataplaneError> {
        let doing = format!("opening {}", directory.display());
        let until = Instant::now() + HELD_PATIENCE;
        loop {
            if let Some(held) = hold(&directory).map_err(DataplaneError::system(&doing))? {
                return Ok(Self { instance: instance.to_owned(), directory, held });
            }
            if Instant::now() > until {
                return Err(DataplaneError::InUse { instance: instance.to_owned() });
            }
            thread::sleep(HELD_PAUSE);
        }
    }

    /// The pins of a dataplane that another process has opened and lends.
    pub(super) fn lent(instance: &str, held: OwnedFd) -> Result<Self, DataplaneError> {
        let directory = room(instance)?.join(format!("v{LAYOUT_VERSION}"));
        Ok(Self { instance: instance.to_owned(), directory, held: held.into() })
    }

    /// A copy of what holds the directory.
    pub(super) fn hold(&self) -> Result<OwnedFd, DataplaneError> {
        let copy = self.held.try_clone().map(OwnedFd::from);
        copy.map_err(DataplaneError::system("copying a descriptor"))
    }

    pub(super) fn instance(&self) -> &str {
        &self.instance
    }

    pub(super) fn path(&self, map: &str) -> PathBuf {
        self.directory.join(map)
    }

    pub(super) fn link_path(&self, pin: &LinkPin) -> PathBuf {
        self.directory.join(pin.file())
    }

    /// Every attachment that is pinned.
    pub(super) fn links(&self) -> Result<Vec<LinkPin>, DataplaneError> {
        Ok(names(&self.directory)?.iter().filter_map(|name| LinkPin::parse(name)).collect())
    }

    /// Removes every pin and the directory; links without a pin let go of their interfaces.
    pub(super) fn clear(self) -> Result<(), DataplaneError> {
        for name in names(&self.directory)? {
            remove(&self.directory.join(name))?;
        }
        fs::remove_dir(&self.directory)
            .map_err(DataplaneError::system(format!("removing {}", self.directory.display())))?;
        // The instance's room stays while it has the other kind of pins.
        if let Some(room) = self.directory.parent() {
            let _kept = fs::remove_dir(room);
        }
        Ok(())
    }
}

/// Makes a directory and holds it; `None` while another process does, or has just removed it.
fn hold(directory: &Path) -> io::Result<Option<File>> {
    fs::create_dir_all(directory)?;
    let held = File::open(directory)?;
    if flock(&held, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(None);
    }
    let same = fs::metadata(directory).is_ok_and(|found| {
        held.metadata().is_ok_and(|held| (held.dev(), held.ino()) == (found.dev(), found.ino()))
    });
    Ok(same.then_some(held))
}

/// Removes one pin, which may be gone already.
pub(super) fn remove(path: &Path) -> Result<(), DataplaneError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(DataplaneError::system(format!("removing {}", path.display()))(error))
        }
        _ => Ok(()),
    }
}

fn room(instance: &str) -> Result<PathBuf, DataplaneError> {
    let usable = (1..=INSTANCE_LIMIT).contains(&instance.len())
        && instance.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    if usable {
        Ok(Path::new(ROOT).join(instance))
    } else {
        Err(DataplaneError::BadInstance { name: instance.to_owned() })
    }
}

fn names(directory: &Path) -> Result<Vec<String>, DataplaneError> {
    let doing = || format!("listing {}", directory.display());
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(DataplaneError::system(doing())(error)),
    };
    entries
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<_>>()
        .map_err(DataplaneError::system(doing()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_found_again_by_its_name() {
        let pin =
            LinkPin { holder: Holder::Tcx, side: Side::Egress, namespace: 4_026_531_840, index: 7 };
        assert_eq!(LinkPin::parse(&pin.file()), Some(pin));
        for other in ["STATIONS", "tcx_egress_1", "tcx_egress_1_2_3", "tcx_sideways_1_2"] {
            assert_eq!(LinkPin::parse(other), None, "{other}");
        }
    }

    #[test]
    fn an_instance_name_stays_inside_its_directory() {
        for name in ["", "..", "a/b", "a.b", &"x".repeat(33)] {
            assert!(matches!(room(name), Err(DataplaneError::BadInstance { .. })), "{name:?}");
        }
        assert!(room("edge-1_b").is_ok());
    }
}
