//! Which crate may know of which: arrows point one way.

use anyhow::{Result, bail};

use crate::shell::{cargo, output};

/// A crate, all that it may depend on directly, and what must be nowhere below it.
struct Rule {
    package: &'static str,
    direct: Option<&'static [&'static str]>,
    nowhere: &'static [&'static str],
}

/// Clocks, chance, files, sockets, SQL and the kernel: what the rules of money must not touch.
const IMPURE: &[&str] = &[
    "async-std",
    "aya",
    "axum",
    "chrono",
    "getrandom",
    "hyper",
    "libc",
    "mio",
    "rand",
    "reqwest",
    "rusqlite",
    "rustix",
    "socket2",
    "sqlx",
    "sqlx-core",
    "time",
    "tokio",
];

const RULES: &[Rule] = &[
    Rule { package: "bitmesh-common", direct: Some(&[]), nowhere: &[] },
    Rule {
        package: "bitmesh-ebpf",
        direct: Some(&["bitmesh-common", "aya-ebpf"]),
        nowhere: &["bitmesh-core", "bitmesh-user"],
    },
    Rule {
        package: "bitmesh-core",
        direct: Some(&[
            "bitcoin",
            "bitmesh-common",
            "hex",
            "miniscript",
            "serde",
            "serde_json",
            "thiserror",
        ]),
        nowhere: IMPURE,
    },
    Rule {
        package: "bitmesh-user",
        direct: None,
        nowhere: &["bitmesh-ebpf", "bitmesh-tests", "xtask"],
    },
    Rule { package: "bitmesh-tests", direct: None, nowhere: &["bitmesh-ebpf", "xtask"] },
    Rule {
        package: "xtask",
        direct: None,
        nowhere: &["bitmesh-common", "bitmesh-core", "bitmesh-user", "bitmesh-tests"],
    },
];

/// Checks every crate of the workspace.
pub fn check() -> Result<()> {
    let mut wrong = Vec::new();
    for rule in RULES {
        let below = tree(rule.package, None)?;
        let forbidden = below.iter().filter(|name| rule.nowhere.contains(&name.as_str()));
        wrong.extend(forbidden.map(|name| format!("{} must not know of {name}", rule.package)));
        let Some(allowed) = rule.direct else { continue };
        let direct = tree(rule.package, Some(1))?;
        let extra = direct
            .iter()
            .filter(|name| name.as_str() != rule.package && !allowed.contains(&name.as_str()));
        wrong.extend(extra.map(|name| format!("{} may not depend on {name}", rule.package)));
    }
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("dependencies point the wrong way (ARCHITECTURE.md):\n  {}", wrong.join("\n  "))
}

/// Names of all crates that a package is built from, itself included.
fn tree(package: &str, depth: Option<u32>) -> Result<Vec<String>> {
    let mut command = cargo();
    command.args(["tree", "--package", package, "--edges", "normal", "--prefix", "none"]);
    command.args(["--format", "{p}", "--target", "all"]);
    if let Some(depth) = depth {
        command.args(["--depth", &depth.to_string()]);
    }
    let text = output(&mut command)?;
    let name = |line: &str| line.split_whitespace().next().map(str::to_owned);
    let mut names: Vec<_> = text.lines().filter_map(name).collect();
    names.sort();
    names.dedup();
    Ok(names)
}
