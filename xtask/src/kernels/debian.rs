//! Debian's packages of several suites, by an apt of our own beside the system's: its lists are in
//! the cache, and it installs nothing.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::shell::{cache, find, output, run_quietly};

/// Suites that have kernels: bookworm 6.1, trixie 6.12, the others newer ones.
const SUITES: [&str; 4] = ["bookworm", "trixie", "trixie-backports", "sid"];
/// The keys that Debian signs its suites with, of the package `debian-archive-keyring`.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// An apt with lists of its own.
pub struct Apt {
    folder: PathBuf,
}

impl Apt {
    /// One with fresh lists.
    pub fn updated() -> Result<Self> {
        for program in ["apt-get", "apt-cache", "dpkg-deb"] {
            if find(program).is_none() {
                bail!("no {program} here: other kernels are only fetched on Debian and its kin");
            }
        }
        let apt = Self { folder: cache().join("apt") };
        fs::create_dir_all(apt.folder.join("lists/partial"))?;
        fs::create_dir_all(apt.folder.join("archives/partial"))?;
        let mirror = mirror()?;
        let source = |suite| format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n");
        fs::write(apt.sources(), SUITES.map(source).concat())?;
        let mut update = apt.command("apt-get");
        run_quietly("reading Debian's lists of kernels", update.arg("update"))
            .context("Debian's lists can't be had; is there a network?")?;
        Ok(apt)
    }

    /// Names of packages that begin with `prefix`.
    pub fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let text = output(self.command("apt-cache").args(["pkgnames", prefix]))?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Fetches packages and lays their files out in `folder`.
    pub fn extract(&self, packages: &[String], folder: &Path) -> Result<()> {
        let fetched = folder.with_extension("fetched");
        let _ = fs::remove_dir_all(&fetched);
        fs::create_dir_all(&fetched)?;
        let mut download = self.command("apt-get");
        download.arg("download").args(packages).current_dir(&fetched);
        run_quietly(&format!("fetching {}", packages.join(", ")), &mut download)?;
        for entry in fs::read_dir(&fetched)? {
            output(Command::new("dpkg-deb").arg("--extract").arg(entry?.path()).arg(folder))?;
        }
        Ok(fs::remove_dir_all(&fetched)?)
    }

    fn sources(&self) -> PathBuf {
        self.folder.join("sources.list")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let mut set = |name: &str, value: &dyn AsRef<Path>| {
            command.arg("-o").arg(format!("{name}={}", value.as_ref().display()));
        };
        set("Dir::State", &self.folder);
        set("Dir::State::status", &"/dev/null");
        set("Dir::Cache", &self.folder);
        set("Dir::Etc::sourcelist", &self.sources());
        for other in ["sourceparts", "preferences", "preferencesparts"] {
            set(&format!("Dir::Etc::{other}"), &"/dev/null");
        }
        // It may not be let into our cache.
        set("APT::Sandbox::User", &"root");
        set("Acquire::Languages", &"none");
        set("Acquire::IndexTargets::deb::DEP-11::DefaultEnabled", &"false");
        // Suites that are not published any more, and machines whose clock is off.
        set("Acquire::Check-Valid-Until", &"false");
        command
    }
}

/// Where the system's own apt finds Debian.
fn mirror() -> Result<String> {
    let mut targets = Command::new("apt-get");
    targets.args(["indextargets", "--format", "$(REPO_URI)"]);
    let text = output(targets.args(["Created-By: Packages", "Origin: Debian"]))?;
    // The archive of security updates has no suites of its own.
    let mirror = text.lines().find(|uri| !uri.contains("security"));
    mirror.map(str::to_owned).context(
        "this machine's apt knows no mirror of Debian, and other kernels are fetched from there; \
         add one to its sources",
    )
}
