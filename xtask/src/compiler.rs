//! The compiler for the kernel's virtual machine, and the linker that goes with it.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    setup::{Installed, apt_candidate, apt_install},
    shell::{self, cache, find, output, run_quietly},
};

const TARGET: &str = "bpfel-unknown-none";
const LINKER_VERSION: &str = "0.13.0";
/// Debian's rustc with the core library for the target built in, newest first.
const DEBIAN: [(&str, &str); 2] =
    [("rustc-web", "libstd-rust-web-dev-bpf"), ("rustc", "libstd-rust-dev-bpf")];
/// Debian's rustc: the one that dpkg installed, whatever is first on PATH.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// A compiler that makes objects for the kernel.
pub enum Compiler {
    /// rustup's nightly, which builds its core library itself.
    Nightly,
    /// Debian's, which has it built in.
    Debian,
}

impl Compiler {
    /// What people read.
    pub fn name(&self) -> Result<String> {
        let version = self.version("release")?;
        Ok(match self {
            Self::Nightly => format!("rustup's nightly with rust-src, {version}"),
            Self::Debian => format!("Debian's rustc {version} ({DEBIAN_RUSTC})"),
        })
    }

    /// A cargo that compiles with it.
    pub fn cargo(&self) -> Command {
        let mut command;
        match self {
            Self::Nightly => {
                command = Command::new("rustup");
                command.args(["run", "nightly", "cargo"]).current_dir(shell::root());
                command.env_remove("CARGO").env_remove("RUSTC");
            }
            Self::Debian => {
                command = shell::cargo();
                // aya-ebpf uses one feature that is not stable.
                command.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
            }
        }
        for variable in ["RUSTUP_TOOLCHAIN", "RUSTC_WRAPPER", "RUSTFLAGS", "RUSTDOC"] {
            command.env_remove(variable);
        }
        command
    }

    /// Arguments of cargo that it needs.
    pub fn arguments(&self) -> &'static [&'static str] {
        match self {
            Self::Nightly => &["-Z", "build-std=core"],
            Self::Debian => &[],
        }
    }

    fn version(&self, field: &str) -> Result<String> {
        let mut rustc = match self {
            Self::Nightly => {
                let mut command = Command::new("rustup");
                command.args(["run", "nightly", "rustc"]);
                command
            }
            Self::Debian => Command::new(DEBIAN_RUSTC),
        };
        let text = output(rustc.arg("-vV"))?;
        text.lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(": "))
            .map(str::to_owned)
            .with_context(|| format!("rustc -vV names no {field}"))
    }

    fn llvm_major(&self) -> Result<u32> {
        let version = self.version("LLVM version")?;
        let major = version.split('.').next().and_then(|major| major.parse().ok());
        major.with_context(|| format!("an LLVM of version {version}"))
    }
}

/// A compiler that is there.
pub fn present() -> Option<Compiler> {
    if has_nightly() {
        return Some(Compiler::Nightly);
    }
    let sysroot = output(Command::new(DEBIAN_RUSTC).args(["--print", "sysroot"])).ok()?;
    let core = Path::new(sysroot.trim()).join("lib/rustlib").join(TARGET);
    core.is_dir().then_some(Compiler::Debian)
}

fn has_nightly() -> bool {
    let sysroot =
        output(Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]));
    sysroot.is_ok_and(|sysroot| {
        Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core").is_dir()
    })
}

/// Finds or installs a compiler.
pub fn install() -> Result<(Compiler, Installed)> {
    if let Some(compiler) = present() {
        return Ok((compiler, Installed::Found));
    }
    for (rustc, core) in DEBIAN {
        if apt_candidate(core) && apt_candidate(rustc) {
            apt_install(&[rustc, core])?;
            if let Some(compiler) = present() {
                return Ok((compiler, Installed::Now));
            }
        }
    }
    if find("rustup").is_some() {
        let mut rustup = Command::new("rustup");
        let words = ["toolchain", "install", "nightly", "--profile", "minimal"];
        rustup.args(words).args(["--component", "rust-src"]);
        run_quietly("fetching rustup's nightly with rust-src", &mut rustup)?;
        if let Some(compiler) = present() {
            return Ok((compiler, Installed::Now));
        }
    }
    bail!(
        "no compiler for the kernel's programs can be had here. Either of these will do: Debian's \
         packages rustc-web and libstd-rust-web-dev-bpf, or `rustup toolchain install nightly \
         --component rust-src`"
    )
}

/// The folder of the bpf-linker for a compiler; its LLVM must not be older than the compiler's.
fn linker_folder(llvm: u32) -> PathBuf {
    cache().join(format!("llvm-{llvm}"))
}

/// The linker for a compiler, if it is there.
pub fn linker(compiler: &Compiler) -> Result<Option<PathBuf>> {
    let linker = linker_folder(compiler.llvm_major()?).join("bin/bpf-linker");
    Ok(linker.is_file().then_some(linker))
}

/// Finds or builds the linker for a compiler.
pub fn install_linker(compiler: &Compiler) -> Result<(PathBuf, Installed)> {
    if let Some(linker) = linker(compiler)? {
        return Ok((linker, Installed::Found));
    }
    let llvm = compiler.llvm_major()?;
    let folder = linker_folder(llvm);
    let mut cargo = shell::cargo();
    cargo
        .args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked", "--force"])
        .arg("--root")
        .arg(&folder)
        .env_remove("CARGO_TARGET_DIR");
    let development = format!("llvm-{llvm}-dev");
    if apt_candidate(&development) {
        let polly = format!("libpolly-{llvm}-dev");
        apt_install(&[&development, &polly, "zlib1g-dev", "libzstd-dev", "libxml2-dev"])?;
        let config = format!("llvm-config-{llvm}");
        // Without it, the build links what another LLVM has in its folder.
        let prefix = output(Command::new(config).arg("--prefix"))?;
        cargo.env("LLVM_PREFIX", prefix.trim());
        cargo.args(["--no-default-features", "--features", &format!("llvm-{llvm}")]);
    } else if !matches!(compiler, Compiler::Nightly) {
        bail!(
            "{development} can't be had here, and bpf-linker needs it for this compiler; add \
             LLVM {llvm}'s packages, or `rustup toolchain install nightly --component rust-src`"
        );
    }
    run_quietly(
        &format!("building bpf-linker {LINKER_VERSION} with LLVM {llvm}, a minute or two"),
        &mut cargo,
    )?;
    linker(compiler)?.map(|linker| (linker, Installed::Now)).context("bpf-linker was not built")
}
