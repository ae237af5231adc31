//! Giving up what isn't needed any more.

use std::{
    fs,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::{MetadataExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use bitcoin::hashes::{Hash as _, sha256};
use bitmesh_core::bitcoin;
use nix::unistd::User;
use rustix::{
    fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid, chownat, fstat, openat},
    io::Errno,
    process::{Resource, Rlimit, geteuid, getrlimit, setrlimit, umask},
    thread::{
        CapabilitySet, CapabilitySets, clear_ambient_capability_set,
        remove_capability_from_bounding_set, set_capabilities, set_no_new_privs, set_thread_groups,
        set_thread_res_gid, set_thread_res_uid,
    },
};

/// The user that is taken when there is one of this name.
const DEFAULT_USER: &str = "bitmesh";
/// Users that systemd gives out for a while and that own nothing
/// (<https://systemd.io/UIDS-GIDS>, dynamic service users).
const DYNAMIC_FIRST: u32 = 61_184;
const DYNAMIC_LAST: u32 = 65_519;
/// Descriptors that a daemon may have open: connections on several ports, and some for itself.
const DESCRIPTORS_MAX: u64 = 65_536;
/// Numbers of capabilities that a kernel could have.
const CAPABILITIES: u32 = 64;
/// What a guard works with: interfaces, filters and nftables; programs and links; the node's cookie,
/// which belongs to the node's user.
const GUARDS: CapabilitySet =
    CapabilitySet::NET_ADMIN.union(CapabilitySet::BPF).union(CapabilitySet::DAC_READ_SEARCH);

/// Directories that are the system's, whatever somebody types.
const SYSTEM: [&str; 10] =
    ["/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/sbin", "/sys", "/usr"];

/// Who a daemon becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    uid: u32,
    gid: u32,
    name: String,
}

impl Identity {
    /// The user of this name; by default `bitmesh`, where there is one, else a number that is
    /// nobody's and always the same for an instance. `None` for who is not root and stays as it is.
    pub fn choose(named: Option<&str>, instance: &str) -> Result<Option<Self>> {
        if !geteuid().is_root() {
            if named.is_some() {
                bail!("--user takes root to become somebody else: start as root, or leave it out");
            }
            return Ok(None);
        }
        let found = User::from_name(named.unwrap_or(DEFAULT_USER)).context("asking for a user")?;
        let identity = match (found, named) {
            (Some(user), _) => {
                Self { uid: user.uid.as_raw(), gid: user.gid.as_raw(), name: user.name }
            }
            (None, Some(named)) => bail!(
                "there is no user {named}: `useradd --system --no-create-home {named}` makes one"
            ),
            (None, None) => Self::derived(instance)?,
        };
        if identity.uid == 0 {
            bail!("--user is somebody without privileges, not root");
        }
        Ok(Some(identity))
    }

    fn derived(instance: &str) -> Result<Self> {
        let [first, second, ..] = sha256::Hash::hash(instance.as_bytes()).to_byte_array();
        let count = DYNAMIC_LAST - DYNAMIC_FIRST + 1;
        let start = u32::from(u16::from_be_bytes([first, second])) % count;
        for step in 0..count {
            let uid = DYNAMIC_FIRST + (start + step) % count;
            if User::from_uid(uid.into()).context("asking for a user")?.is_none() {
                return Ok(Self { uid, gid: uid, name: uid.to_string() });
            }
        }
        bail!("every number from {DYNAMIC_FIRST} to {DYNAMIC_LAST} is taken; name a --user")
    }

    /// Name, or number.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn may_enter(&self, directory: &fs::Metadata) -> bool {
        let mode = directory.permissions().mode();
        let bit = match (directory.uid() == self.uid, directory.gid() == self.gid) {
            (true, _) => 0o100,
            (false, true) => 0o010,
            (false, false) => 0o001,
        };
        mode & bit != 0
    }
}

/// Refuses what can't be a data directory: it will be given away and shut to others.
pub fn check_directory(directory: &Path) -> Result<()> {
    let Ok(real) = directory.canonicalize() else { return Ok(()) };
    let top = real.components().count() <= 2;
    let system = SYSTEM.iter().any(|system| real.starts_with(system));
    let known = ["/var/lib", "/var/log", "/var/cache", "/var/spool"].map(PathBuf::from);
    let shared = fs::metadata(&real).is_ok_and(|found| found.permissions().mode() & 0o1000 != 0);
    if top || system || shared || known.contains(&real) {
        bail!("{} belongs to the system; name a directory of its own", real.display());
    }
    Ok(())
}

/// Gives a data directory and the files that a daemon makes in it to `identity`.
pub fn hand_over(directory: &Path, files: &[&str], identity: &Identity) -> Result<()> {
    let doing = || format!("giving {} to user {}", directory.display(), identity.name);
    let real = directory.canonicalize().with_context(doing)?;
    check_directory(&real)?;
    for above in real.ancestors().skip(1) {
        if !identity.may_enter(&fs::metadata(above)?) {
            bail!(
                "user {} can't reach {}: `chmod o+x {}`, or choose another --data-dir or --user",
                identity.name,
                real.display(),
                above.display()
            );
        }
    }
    let found = open(CWD, &real).with_context(doing)?;
    let owner = fstat(&found)?.st_uid;
    let ours =
        owner == 0 || owner == identity.uid || (DYNAMIC_FIRST..=DYNAMIC_LAST).contains(&owner);
    if !ours {
        bail!("{} belongs to user {owner}: name that one with --user", real.display());
    }
    for file in files {
        match open(&found, *file) {
            Ok(file) => give(&file, identity).with_context(doing)?,
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error).with_context(doing),
        }
    }
    give(&found, identity).with_context(doing)
}

/// Without following a link, and without side effects.
fn open(directory: impl rustix::fd::AsFd, path: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    openat(directory, path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

fn give(file: &OwnedFd, identity: &Identity) -> Result<()> {
    let found = fstat(file)?;
    let kind = FileType::from_raw_mode(found.st_mode);
    // Of a file with two names, one may be anybody's.
    if kind == FileType::Symlink || (kind != FileType::Directory && found.st_nlink > 1) {
        bail!("a link is in the place of a file of ours; look at who put it there");
    }
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    Ok(chownat(file.as_fd(), "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?)
}

/// Gives up everything for good: user, groups but the one that may administer, capabilities, and the
/// ways to new ones. What is open stays open. There must be one thread: these are properties of threads.
pub fn give_up(identity: Option<&Identity>, group: Option<u32>) -> Result<()> {
    let threads = fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        bail!("rights are given up by one thread, and there are {threads}");
    }
    limits()?;
    set_no_new_privs(true)?;
    shrink_bounding_set(CapabilitySet::empty())?;
    if let Some(identity) = identity {
        let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
        let groups: Vec<_> = group.into_iter().map(Gid::from_raw).collect();
        set_thread_groups(&groups)?;
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)?;
    }
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    if identity.is_some() && set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).is_ok() {
        bail!("this system lets a process without rights become root; not going on");
    }
    Ok(())
}

/// Leaves a guard what it works with.
pub(super) fn keep_what_a_guard_needs() -> Result<()> {
    set_no_new_privs(true)?;
    shrink_bounding_set(GUARDS)?;
    let has = rustix::thread::capabilities(None)?;
    let keep = |set: CapabilitySet| set & GUARDS;
    let sets = CapabilitySets {
        effective: keep(has.effective),
        permitted: keep(has.permitted),
        inheritable: keep(has.inheritable),
    };
    Ok(set_capabilities(None, sets)?)
}

fn shrink_bounding_set(keep: CapabilitySet) -> Result<()> {
    for number in 0..CAPABILITIES {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if keep.contains(one) {
            continue;
        }
        match remove_capability_from_bounding_set(one) {
            // Past the last one; or somebody who may not, and has nothing to win from the set.
            Err(Errno::INVAL | Errno::PERM) => break,
            removed => removed?,
        }
    }
    // A kernel without ambient capabilities has none to clear.
    let _ = clear_ambient_capability_set();
    Ok(())
}

/// No memory with keys on the disk, no file that others can read; room for every connection.
fn limits() -> Result<()> {
    umask(Mode::RWXG | Mode::RWXO);
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    let most = getrlimit(Resource::Nofile).maximum.unwrap_or(DESCRIPTORS_MAX).min(DESCRIPTORS_MAX);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: Some(most) })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_always_gets_the_same_number_of_nobodys() {
        let first = Identity::derived("sell").unwrap();
        assert_eq!(Identity::derived("sell").unwrap(), first);
        assert!((DYNAMIC_FIRST..=DYNAMIC_LAST).contains(&first.uid));
        assert_ne!(Identity::derived("other").unwrap().uid, first.uid);
    }

    #[test]
    fn directories_of_the_system_are_no_data_directories() {
        for path in ["/", "/root", "/tmp", "/etc", "/usr/lib", "/var/lib", "/proc/self"] {
            assert!(check_directory(Path::new(path)).is_err(), "{path}");
        }
        let own = tempfile::tempdir().unwrap();
        check_directory(own.path()).unwrap();
    }

    #[test]
    fn a_link_in_the_place_of_a_file_is_not_given_away() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("target");
        fs::write(&target, "").unwrap();
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let identity = Identity { uid, gid, name: "self".into() };
        let place = directory.path().join("place");
        let file = || open(CWD, &place).unwrap();
        std::os::unix::fs::symlink(&target, &place).unwrap();
        assert!(give(&file(), &identity).is_err());
        fs::remove_file(&place).unwrap();
        fs::hard_link(&target, &place).unwrap();
        assert!(give(&file(), &identity).is_err());
        fs::remove_file(&place).unwrap();
        fs::write(&place, "").unwrap();
        give(&file(), &identity).unwrap();
    }
}
