//! The file system that a guest starts with: an archive in the format `newc`
//! (Documentation/driver-api/early-userspace/buffer-format.rst of the kernel).

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, BufWriter, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use cpio::{
    NewcBuilder,
    newc::{ModeFileType, trailer},
};
use serde::Deserialize;

use super::fetch::Kernel;
use crate::shell::{cargo, output, root};

const PACKAGE: &str = "bitmesh-tests";
const GUEST: &str = "bitmesh-guest";
const PACKETS: &str = "packets";

/// What runs in the guest: our own build for this machine, and the libraries that it needs.
pub struct Programs {
    guest: PathBuf,
    packets: PathBuf,
    libraries: BTreeSet<PathBuf>,
}

/// A line of cargo's messages, as far as it is looked at.
#[derive(Deserialize)]
struct Message {
    executable: Option<PathBuf>,
    target: Option<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

impl Programs {
    /// Builds them; cargo builds a package's programs along with its tests.
    pub fn build() -> Result<Self> {
        let mut command = cargo();
        command.args(["test", "--package", PACKAGE, "--test", PACKETS, "--no-run", "--locked"]);
        command.arg("--message-format=json-render-diagnostics");
        let output = command.stderr(Stdio::inherit()).output()?;
        if !output.status.success() {
            bail!("the guest's programs do not build ({})", output.status);
        }
        let said = String::from_utf8(output.stdout)?;
        let built = |name: &str| {
            said.lines()
                .filter_map(|line| serde_json::from_str::<Message>(line).ok())
                .filter(|message| message.target.as_ref().is_some_and(|t| t.name == name))
                .find_map(|message| message.executable)
                .with_context(|| format!("cargo built no {name}"))
        };
        let (guest, packets) = (strip(GUEST, &built(GUEST)?)?, strip(PACKETS, &built(PACKETS)?)?);
        let libraries = [&guest, &packets].map(|program| libraries(program));
        let libraries = libraries.into_iter().collect::<Result<Vec<_>>>()?.concat();
        Ok(Self { guest, packets, libraries: libraries.into_iter().collect() })
    }
}

/// A copy without what only debuggers read.
fn strip(name: &str, program: &Path) -> Result<PathBuf> {
    let folder = root().join("target/kernels");
    fs::create_dir_all(&folder)?;
    let stripped = folder.join(name);
    output(Command::new("strip").arg("-o").arg(&stripped).arg(program))?;
    Ok(stripped)
}

/// Shared libraries and the program loader, of ldd(1)'s lines `NAME => PATH (ADDRESS)` and
/// `PATH (ADDRESS)`.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let text = output(Command::new("ldd").arg(program))?;
    let paths = text.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(paths.map(PathBuf::from).collect())
}

/// Writes the archive for a kernel.
pub fn write(archive: &Path, programs: &Programs, kernel: &Kernel) -> Result<()> {
    let mut files = vec![
        (PathBuf::from("init"), programs.guest.clone()),
        (PathBuf::from("tests/packets"), programs.packets.clone()),
    ];
    for library in &programs.libraries {
        files.push((library.strip_prefix("/")?.to_owned(), library.clone()));
    }
    let fixtures = fs::read_dir(root().join("tests/packets"))?;
    let fixtures = fixtures.map(|entry| entry.map(|e| e.path())).collect::<io::Result<Vec<_>>>()?;
    for (folder, paths) in [("tests/fixtures", &fixtures), ("modules", &kernel.modules)] {
        for path in paths {
            let name = path.file_name().context("a file without a name")?;
            files.push((Path::new(folder).join(name), path.clone()));
        }
    }
    let mut output = BufWriter::new(File::create(archive)?);
    let mut folders = BTreeSet::from([PathBuf::from("modules")]);
    for (place, _) in &files {
        folders.extend(place.ancestors().skip(1).map(Path::to_owned));
    }
    // A folder comes before what is in it.
    for folder in folders.iter().filter(|folder| !folder.as_os_str().is_empty()) {
        let entry = entry(folder)?.set_mode_file_type(ModeFileType::Directory);
        entry.write(&mut output, 0).finish()?;
    }
    for (place, path) in files {
        let octets = fs::read(&path).with_context(|| path.display().to_string())?;
        let length = u32::try_from(octets.len()).with_context(|| path.display().to_string())?;
        let entry = entry(&place)?.set_mode_file_type(ModeFileType::Regular);
        let mut file = entry.write(&mut output, length);
        file.write_all(&octets)?;
        file.finish()?;
    }
    trailer(output)?.flush()?;
    Ok(())
}

fn entry(place: &Path) -> Result<NewcBuilder> {
    let name = place.to_str().with_context(|| format!("{} is no text", place.display()))?;
    Ok(NewcBuilder::new(name).mode(0o755).nlink(1))
}
