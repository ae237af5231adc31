//! The objects for the kernel, in `target/ebpf/bpfel-unknown-none/release`: `bitmesh-ebpf`, which
//! the daemon includes, and `bitmesh-ebpf-bench`, which measures it.

use std::env;

use anyhow::{Context as _, Result};

use crate::{
    compiler,
    setup::{self, Need},
    shell::{root, run},
};

/// Debug information for BTF, which makes maps and programs readable by bpftool.
const RUSTFLAGS: &str = "-Cdebuginfo=2\x1f-Clink-arg=--btf";

/// The programs that measure the others, below `target`.
pub const BENCH_OBJECT: &str = "ebpf/bpfel-unknown-none/release/bitmesh-ebpf-bench";

/// The task.
pub fn build() -> Result<()> {
    setup::ensure(Need::Build)?;
    let compiler = compiler::present().context("no compiler; run `cargo xtask setup`")?;
    let linker = compiler::linker(&compiler)?.context("no linker; run `cargo xtask setup`")?;
    eprintln!("building the programs for the kernel with {}", compiler.name()?);
    let folder = linker.parent().map(std::path::Path::to_owned).into_iter();
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths(folder.chain(env::split_paths(&path)))?;
    let mut cargo = compiler.cargo();
    cargo
        .args(["build", "--package", "bitmesh-ebpf", "--bins", "--release"])
        .args(["--target", "bpfel-unknown-none", "--target-dir"])
        .arg(root().join("target/ebpf"))
        .args(compiler.arguments())
        .env("CARGO_ENCODED_RUSTFLAGS", RUSTFLAGS)
        .env("PATH", path);
    run(&mut cargo)
}
