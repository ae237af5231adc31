//! What the machine must have before anything is loaded.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

use aya::util::KernelVersion;
use rustix::{fs::statfs, mount::MountFlags};

use super::DataplaneError;

/// The oldest kernel that is supported, and the first with tcx links.
const KERNEL_FLOOR: KernelVersion = KernelVersion::new(6, 1, 0);
const KERNEL_WITH_TCX: KernelVersion = KernelVersion::new(6, 6, 0);

const BPFFS: &str = "/sys/fs/bpf";
/// `BPF_FS_MAGIC` of linux/magic.h.
const BPFFS_MAGIC: u64 = 0xcafe_4a11;

const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// Checks rights, kernel and bpffs, and mounts the last where it is missing.
pub(super) fn check() -> Result<(), DataplaneError> {
    check_capabilities()?;
    let known = KernelVersion::current().ok();
    if known.is_some_and(|version| version < KERNEL_FLOOR) {
        let found = rustix::system::uname().release().to_string_lossy().into_owned();
        return Err(DataplaneError::KernelTooOld { found });
    }
    mount_bpffs()
}

/// Whether programs at TC can be held by links.
pub(super) fn has_tcx() -> bool {
    KernelVersion::current().is_ok_and(|version| version >= KERNEL_WITH_TCX)
}

/// The network namespace of this thread, as the number that no other has while it lives.
pub(super) fn namespace() -> Result<u64, DataplaneError> {
    fs::metadata("/proc/thread-self/ns/net")
        .map(|file| file.ino())
        .map_err(DataplaneError::system("reading this thread's network namespace"))
}

fn check_capabilities() -> Result<(), DataplaneError> {
    let missing = missing_capabilities()?;
    if missing.is_empty() {
        Ok(())
    } else {
        Err(DataplaneError::NotPrivileged { missing: missing.join(", ") })
    }
}

/// Capabilities that loading programs takes and this thread has not.
pub fn missing_capabilities() -> Result<Vec<&'static str>, DataplaneError> {
    let status = fs::read_to_string("/proc/thread-self/status")
        .map_err(DataplaneError::system("reading this thread's capabilities"))?;
    let effective = effective_capabilities(&status).unwrap_or(0);
    let has = |capability: u32| effective >> capability & 1 == 1;
    let needed = [
        ("CAP_NET_ADMIN", has(CAP_NET_ADMIN)),
        ("CAP_BPF", has(CAP_BPF) || has(CAP_SYS_ADMIN)),
        ("CAP_PERFMON", has(CAP_PERFMON) || has(CAP_SYS_ADMIN)),
    ];
    Ok(needed.into_iter().filter_map(|(name, held)| (!held).then_some(name)).collect())
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// Whether pins have their place.
pub fn has_bpffs() -> bool {
    is_bpffs(Path::new(BPFFS))
}

fn mount_bpffs() -> Result<(), DataplaneError> {
    if has_bpffs() {
        return Ok(());
    }
    rustix::mount::mount("bpf", BPFFS, "bpf", MountFlags::empty(), None)
        .map_err(|error| DataplaneError::NoBpffs { source: io::Error::from(error) })
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| u64::try_from(found.f_type) == Ok(BPFFS_MAGIC))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_the_status_file() {
        let status = "Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t000000c000001000\n";
        let effective = effective_capabilities(status).unwrap();
        assert_eq!(effective, 1 << CAP_BPF | 1 << CAP_PERFMON | 1 << CAP_NET_ADMIN);
        assert_eq!(effective_capabilities("CapEff:\tx\n"), None);
    }
}
