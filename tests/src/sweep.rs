//! Takes away what a run left that could not clean up: namespaces, pins and data.

use std::{fs, path::Path};

use bitmesh_user::dataplane;
use rustix::process::{Pid, getpid, test_kill_process};

use crate::netns;

/// Of every name that a run gives to something outside of itself: `bm-<pid>-<name>`.
const PREFIX: &str = "bm-";

/// A name that says whose it is.
pub fn own_name(name: &str) -> String {
    format!("{PREFIX}{}-{name}", std::process::id())
}

/// Removes what runs that are gone left behind.
pub fn sweep() {
    remove_of(|owner| test_kill_process(owner).is_err());
}

/// Removes everything of this run, for an end in which nothing is dropped.
pub fn remove_own() {
    remove_of(|owner| owner == getpid());
}

fn remove_of(gone: impl Fn(Pid) -> bool) {
    let is_gone = |name: &str| owner_of(name).is_some_and(&gone);
    for path in entries(Path::new(netns::DIRECTORY), is_gone) {
        netns::remove(&path);
    }
    for instance in dataplane::instances().iter().filter(|name| is_gone(name)) {
        let _ = dataplane::purge(instance);
    }
    for path in entries(&std::env::temp_dir(), is_gone) {
        let _ = fs::remove_dir_all(path);
    }
}

fn entries(directory: &Path, wanted: impl Fn(&str) -> bool) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let wanted = entries.filter(|entry| entry.file_name().to_str().is_some_and(&wanted));
    wanted.map(|entry| entry.path()).collect()
}

fn owner_of(name: &str) -> Option<Pid> {
    Pid::from_raw(name.strip_prefix(PREFIX)?.split_once('-')?.0.parse().ok()?)
}
