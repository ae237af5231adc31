//! Other programs, with a spinner while they work and their output when they fail.

use std::{
    env,
    ffi::OsStr,
    fs::File,
    io::{Read as _, Seek as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

/// Last octets of a failed program's output that are shown.
const TAIL_OCTETS: usize = 4_000;

/// The checkout.
pub fn root() -> PathBuf {
    let manifest = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest.parent().map(Path::to_owned).unwrap_or(manifest)
}

/// Where what was fetched and built for the project stays.
pub fn cache() -> PathBuf {
    let home = env::var_os("HOME").map_or_else(|| "/root".into(), PathBuf::from);
    let cache = env::var_os("XDG_CACHE_HOME").map_or_else(|| home.join(".cache"), PathBuf::from);
    cache.join("bitmesh")
}

/// Whether we are root already.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A program that runs as root: by sudo, where we are not.
pub fn as_root(program: impl AsRef<OsStr>) -> Result<Command> {
    if is_root() {
        return Ok(Command::new(program));
    }
    if find("sudo").is_none() {
        bail!(
            "{} needs root, and there is no sudo; run the task as root",
            program.as_ref().display()
        );
    }
    let mut command = Command::new("sudo");
    command.arg("--preserve-env").arg("--").arg(program);
    Ok(command)
}

/// A program on PATH.
pub fn find(program: &str) -> Option<PathBuf> {
    // Debian keeps some tools where only root's PATH looks.
    let extra = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let path = env::var_os("PATH")?;
    env::split_paths(&path).chain(extra).map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// Runs a program to its end with what it says on our terminal.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| described(command))?;
    if !status.success() {
        bail!("{} failed ({status})", described(command));
    }
    Ok(())
}

/// Runs a long program behind a spinner; shows what it said only when it fails.
pub fn run_quietly(what: &str, command: &mut Command) -> Result<()> {
    let spinner = ProgressBar::new_spinner().with_style(
        ProgressStyle::with_template("{spinner} {msg} {elapsed}")
            .unwrap_or_else(|_| ProgressStyle::default_spinner()),
    );
    spinner.set_message(what.to_owned());
    spinner.enable_steady_tick(Duration::from_millis(120));
    if spinner.is_hidden() {
        eprintln!("{what} ...");
    }
    let mut log = temporary()?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log.try_clone()?);
    let status = command.status();
    spinner.finish_and_clear();
    let status = status.with_context(|| described(command))?;
    if !status.success() {
        let mut said = Vec::new();
        log.rewind()?;
        log.read_to_end(&mut said)?;
        let from = said.len().saturating_sub(TAIL_OCTETS);
        let tail = said.get(from..).unwrap_or_default();
        bail!("{} failed ({status}):\n{}", described(command), String::from_utf8_lossy(tail));
    }
    Ok(())
}

/// What a program prints; an error when it fails.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| described(command))?;
    if !output.status.success() {
        bail!("{} failed: {}", described(command), String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A file without a name, gone when it is closed.
fn temporary() -> Result<File> {
    let directory = cache();
    std::fs::create_dir_all(&directory)?;
    let path = directory.join(format!("log-{}", std::process::id()));
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
    std::fs::remove_file(path)?;
    Ok(file)
}

fn described(command: &Command) -> String {
    let words = [command.get_program()].into_iter().chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// Cargo as a task uses it: the one that runs us, and nothing that it told us for itself.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    for variable in env::vars_os().map(|(name, _)| name) {
        let name = variable.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name == "CARGO_MANIFEST_DIR" {
            command.env_remove(&variable);
        }
    }
    command
}
