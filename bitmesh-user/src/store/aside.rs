//! Files that are kept aside.

use std::path::{Path, PathBuf};

/// A name beside `path`, with `why` behind it, that no file has yet.
pub(super) fn vacant(path: &Path, why: &str) -> PathBuf {
    let with = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let names = std::iter::once(format!(".{why}"))
        .chain((2_u32..).map(|number| format!(".{why}.{number}")))
        .map(|suffix| with(&suffix));
    names.into_iter().find(|name| !name.exists()).unwrap_or_else(|| with(".aside"))
}
