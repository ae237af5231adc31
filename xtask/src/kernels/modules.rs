//! The modules that the guest needs, with those that they need.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use object::{Object as _, ObjectSection as _};

/// What the exercises use: ports of namespaces, classifiers where there are no links for them,
/// bridges and tags.
const WANTED: [&str; 5] = ["veth", "sch_ingress", "cls_bpf", "bridge", "8021q"];

/// Copies the modules of `release` from a package's `files` to `folder`, unpacked; in the order of
/// their names, each comes after those that it needs.
pub fn take(files: &Path, release: &str, folder: &Path) -> Result<()> {
    let mut found = BTreeMap::new();
    for place in ["usr/lib/modules", "lib/modules"] {
        list(&files.join(place).join(release), &mut found)?;
    }
    let mut taken = Vec::new();
    for name in WANTED {
        // Where it is built in, there is no file; what needs it says so when it is not there.
        if found.contains_key(name) {
            collect(name, &found, &mut taken)?;
        }
    }
    fs::create_dir_all(folder)?;
    for (number, (name, octets)) in taken.iter().enumerate() {
        fs::write(folder.join(format!("{number:02}-{name}.ko")), octets)?;
    }
    Ok(())
}

/// Every module's file by its name, in which the kernel writes `_` for `-`.
fn list(folder: &Path, found: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    for entry in entries {
        let (entry, path) = entry.map(|entry| (entry.file_type(), entry.path()))?;
        if entry?.is_dir() {
            list(&path, found)?;
        } else if let Some((name, _)) =
            path.file_name().and_then(|name| name.to_str()).and_then(|name| name.split_once(".ko"))
        {
            found.insert(name.replace('-', "_"), path);
        }
    }
    Ok(())
}

fn collect(
    name: &str,
    found: &BTreeMap<String, PathBuf>,
    taken: &mut Vec<(String, Vec<u8>)>,
) -> Result<()> {
    if taken.iter().any(|(known, _)| known == name) {
        return Ok(());
    }
    let path = found.get(name).with_context(|| format!("there is no module {name}"))?;
    let octets = unpack(path)?;
    for needed in needs(&octets).with_context(|| path.display().to_string())? {
        collect(&needed.replace('-', "_"), found, taken)?;
    }
    taken.push((name.to_owned(), octets));
    Ok(())
}

fn unpack(path: &Path) -> Result<Vec<u8>> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("ko") => Ok(fs::read(path)?),
        Some("xz") => {
            let mut xz = Command::new("xz");
            let output = xz.args(["--decompress", "--stdout"]).arg(path).output()?;
            if !output.status.success() {
                bail!("{}: {}", path.display(), String::from_utf8_lossy(&output.stderr));
            }
            Ok(output.stdout)
        }
        _ => bail!("{} is packed in a way that is not known here", path.display()),
    }
}

/// The modules that one says it needs: `depends=` in the list of `name=value` texts that it carries
/// (linux/module.h).
fn needs(module: &[u8]) -> Result<Vec<String>> {
    let file = object::File::parse(module)?;
    let section = file.section_by_name(".modinfo").context("this is no module")?;
    let fields = section.data()?.split(|octet| *octet == 0).map(String::from_utf8_lossy);
    let names = fields.filter_map(|field| field.strip_prefix("depends=").map(str::to_owned));
    Ok(names
        .flat_map(|list| list.split(',').map(str::to_owned).collect::<Vec<_>>())
        .filter(|name| !name.is_empty())
        .collect())
}
