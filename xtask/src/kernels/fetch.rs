//! Kernels as Debian built them, in the cache: the image, and the few modules that are needed.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{FlockOperation, flock};

use super::{debian::Apt, modules};
use crate::shell::cache;

/// The build for virtual machines, which is the smallest.
const FLAVOUR: &str = "-cloud-amd64";
const IMAGE: &str = "linux-image-";
/// What a kernel's files are in; since 6.19 the first is almost empty and the others exist.
const PARTS: [&str; 3] = [IMAGE, "linux-binary-", "linux-modules-"];
const NEWEST: &str = "newest";

/// Which kernel somebody wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// The newest there is.
    Newest,
    /// The newest whose release begins with these numbers.
    Version(String),
}

impl FromStr for Wish {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        match text {
            NEWEST => Ok(Self::Newest),
            _ if text.split('.').all(number) => Ok(Self::Version(text.to_owned())),
            _ => bail!("{text:?} is no kernel's version; say 6.1, or {NEWEST}"),
        }
    }
}

impl Wish {
    fn admits(&self, release: &str) -> bool {
        match self {
            Self::Newest => true,
            Self::Version(wanted) => numbers(release).starts_with(&numbers(wanted)),
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Newest => NEWEST,
            Self::Version(wanted) => wanted,
        }
    }
}

/// A kernel in the cache.
pub struct Kernel {
    /// As `uname -r` has it.
    pub release: String,
    /// The image.
    pub image: PathBuf,
    /// Modules, in the order in which they can be loaded.
    pub modules: Vec<PathBuf>,
}

/// Finds or fetches each, a kernel once.
pub fn each(wishes: &[Wish], update: bool) -> Result<Vec<Kernel>> {
    fs::create_dir_all(folder())?;
    // Other checkouts share the cache.
    let held = File::open(folder())?;
    flock(&held, FlockOperation::LockExclusive)?;
    let mut apt = None;
    let mut releases: Vec<String> = Vec::new();
    for wish in wishes {
        let cached = if update || *wish == Wish::Newest { None } else { best(wish, cached()?) };
        let release = if let Some(release) = cached {
            release
        } else {
            let apt = match &mut apt {
                Some(apt) => apt,
                none => none.insert(Apt::updated()?),
            };
            fetch(wish, apt)?
        };
        if !releases.contains(&release) {
            releases.push(release);
        }
    }
    releases.into_iter().map(open).collect()
}

fn folder() -> PathBuf {
    cache().join("kernels")
}

fn cached() -> Result<Vec<String>> {
    let names =
        fs::read_dir(folder())?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.filter(|name| name.as_ref().map_or(true, |name| name.ends_with(FLAVOUR))).collect()
}

fn fetch(wish: &Wish, apt: &Apt) -> Result<String> {
    let names = apt.names(IMAGE)?;
    let releases = names.iter().filter_map(|name| name.strip_prefix(IMAGE));
    let built = releases.filter(|release| release.ends_with(FLAVOUR)).map(str::to_owned);
    let release = best(wish, built.collect())
        .with_context(|| format!("no suite of Debian has a kernel {} now", wish.name()))?;
    if folder().join(&release).exists() {
        return Ok(release);
    }
    let packages: Vec<String> = PARTS
        .iter()
        .map(|part| apt.names(&format!("{part}{release}")).map(|names| (part, names)))
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .map(|(part, names)| (format!("{part}{release}"), names))
        .filter_map(|(package, names)| names.contains(&package).then_some(package))
        .collect();
    // Under another name until it is whole.
    let (whole, files) = (folder().join("part"), folder().join("files"));
    for old in [&whole, &files] {
        let _ = fs::remove_dir_all(old);
        fs::create_dir_all(old)?;
    }
    apt.extract(&packages, &files)?;
    let image = [
        format!("boot/vmlinuz-{release}"),
        format!("usr/lib/modules/{release}/vmlinuz"),
        format!("lib/modules/{release}/vmlinuz"),
    ];
    let image = image.iter().map(|place| files.join(place)).find(|place| place.is_file());
    let image = image.with_context(|| format!("the packages of {release} hold no image"))?;
    fs::copy(image, image_of(&whole))?;
    modules::take(&files, &release, &modules_of(&whole))?;
    fs::rename(&whole, folder().join(&release))?;
    fs::remove_dir_all(&files)?;
    Ok(release)
}

fn open(release: String) -> Result<Kernel> {
    let place = folder().join(&release);
    let modules = fs::read_dir(modules_of(&place))?.map(|entry| entry.map(|entry| entry.path()));
    let mut modules = modules.collect::<io::Result<Vec<_>>>()?;
    modules.sort();
    Ok(Kernel { image: image_of(&place), release, modules })
}

fn image_of(place: &Path) -> PathBuf {
    place.join("vmlinuz")
}

fn modules_of(place: &Path) -> PathBuf {
    place.join("modules")
}

fn best(wish: &Wish, releases: Vec<String>) -> Option<String> {
    releases.into_iter().filter(|release| wish.admits(release)).max_by_key(|r| numbers(r))
}

/// The numbers of a version in their order: `6.1.0-50-cloud-amd64` is 6, 1, 0, 50, 64.
fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(wish: &str) -> Option<String> {
        let releases = ["6.1.0-47", "6.1.0-50", "6.12.107+deb13", "6.16.3+deb13", "6.16.12+deb13"];
        let releases = releases.map(|release| format!("{release}{FLAVOUR}")).to_vec();
        best(&wish.parse().unwrap(), releases)
    }

    #[test]
    fn a_version_is_compared_by_numbers_and_not_by_letters() {
        assert_eq!(found("6.1").unwrap(), "6.1.0-50-cloud-amd64");
        assert_eq!(found("6.12").unwrap(), "6.12.107+deb13-cloud-amd64");
        assert_eq!(found("6.16").unwrap(), "6.16.12+deb13-cloud-amd64");
        assert_eq!(found("6.16.3").unwrap(), "6.16.3+deb13-cloud-amd64");
        assert_eq!(found("newest").unwrap(), "6.16.12+deb13-cloud-amd64");
        assert_eq!(found("6.2"), None);
    }

    #[test]
    fn what_is_no_version_is_refused() {
        for text in ["", "6.", "six", "6.1-rc1", "-6.1"] {
            assert!(text.parse::<Wish>().is_err(), "{text:?}");
        }
    }
}
