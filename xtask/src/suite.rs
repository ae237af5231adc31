//! Programs of another suite of Debian, beside the system's files: each runs with the libraries and
//! the program loader that it was made for.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    setup::apt_install,
    shell::{cache, find, run_quietly},
};

/// Fetches a package and what it depends on into a folder of the cache, whose path it returns. The
/// packages are signed and stored where the system's own are.
pub fn extract(suite: &str, package: &str, name: &str, what: &str) -> Result<PathBuf> {
    if find("mmdebstrap").is_none() {
        apt_install(&["mmdebstrap"])?;
    }
    let folder = cache().join(name);
    // What an interrupted run left is not whole.
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(cache())?;
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--variant=extract", "--aptopt=Acquire::Check-Valid-Until \"false\""])
        .args([&format!("--include={package}"), suite])
        .arg(&folder);
    run_quietly(&format!("fetching {what}, Debian's {package}"), &mut command)?;
    Ok(folder)
}

/// Where the script is that starts a fetched program.
pub fn launcher(program: &str) -> PathBuf {
    cache().join("bin").join(program)
}

/// Writes the script that starts a program of an extracted package.
pub fn write_launcher(folder: &Path, program: &str) -> Result<()> {
    let loader = ["usr/lib64/ld-linux-x86-64.so.2", "usr/lib/ld-linux-aarch64.so.1"]
        .map(|path| folder.join(path))
        .into_iter()
        .find(|path| path.exists())
        .with_context(|| format!("the fetched {program} has no program loader that is known"))?;
    let libraries = fs::read_dir(folder.join("usr/lib"))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().ends_with("-linux-gnu"))
        })
        .with_context(|| format!("the fetched {program} has no libraries"))?;
    let script = format!(
        "#!/bin/sh\nexec '{}' --library-path '{}' '{}' \"$@\"\n",
        loader.display(),
        libraries.display(),
        folder.join("usr/bin").join(program).display()
    );
    let path = launcher(program);
    fs::create_dir_all(cache().join("bin"))?;
    fs::write(&path, script)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}
