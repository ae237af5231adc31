//! Puts the object for the kernel where the dataplane includes it from.

use std::{env, fs, path::PathBuf};

const OBJECT_VARIABLE: &str = "BITMESH_EBPF_OBJECT";
const OBJECT: &str = "../target/ebpf/bpfel-unknown-none/release/bitmesh-ebpf";

fn main() {
    let variable = |name| env::var_os(name).map(PathBuf::from);
    let (Some(manifest), Some(out)) = (variable("CARGO_MANIFEST_DIR"), variable("OUT_DIR")) else {
        panic!("cargo runs this");
    };
    let object = variable(OBJECT_VARIABLE).unwrap_or_else(|| manifest.join(OBJECT));
    println!("cargo::rerun-if-env-changed={OBJECT_VARIABLE}");
    println!("cargo::rerun-if-changed={}", object.display());
    if let Err(error) = fs::copy(&object, out.join("bitmesh-ebpf.o")) {
        println!(
            "cargo::error=no eBPF object at {} ({error}): run `cargo xtask build-ebpf` first",
            object.display()
        );
    }
}
