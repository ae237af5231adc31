//! Which CPU receives: ports polled by a kernel thread of their own, held on one CPU.

use std::{
    collections::HashSet,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    process::Pid,
    thread::{CpuSet, UnshareFlags, sched_setaffinity, unshare_unsafe},
};

use crate::netns::Namespace;

/// Time that the kernel has to start a thread.
const THREAD_DEADLINE: Duration = Duration::from_secs(2);

impl Namespace {
    /// Runs a closure on a thread that sees the namespace's own interfaces in `/sys`.
    pub fn run_with_sysfs<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.run(|| {
            // SAFETY: only this thread, which ends here, leaves the process's mounts.
            unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
            mount("sysfs", "/sys", "sysfs", MountFlags::empty(), None).context("mounting /sys")?;
            work()
        })
    }

    /// Has `interface` receive on `cpu` alone. It must have a poller: an XDP program, or GRO.
    pub fn receive_on(&self, interface: &str, cpu: usize) -> Result<()> {
        let before: HashSet<_> = pollers(interface).into_iter().collect();
        let file = Path::new("/sys/class/net").join(interface).join("threaded");
        self.run_with_sysfs(|| {
            fs::write(&file, "1").with_context(|| format!("a receiving thread for {interface}"))
        })?;
        let deadline = Instant::now() + THREAD_DEADLINE;
        loop {
            let new: Vec<_> =
                pollers(interface).into_iter().filter(|pid| !before.contains(pid)).collect();
            if !new.is_empty() {
                return new.into_iter().try_for_each(|pid| hold(Some(pid), cpu));
            }
            anyhow::ensure!(Instant::now() < deadline, "no receiving thread for {interface}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Keeps a process, or this thread, on one CPU.
pub fn hold(pid: Option<i32>, cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    let pid = pid.map(|pid| Pid::from_raw(pid).context("a process id")).transpose()?;
    sched_setaffinity(pid, &cpus).with_context(|| format!("keeping a thread on CPU {cpu}"))
}

/// The kernel's threads that poll an interface of this name, in whatever namespace.
fn pollers(interface: &str) -> Vec<i32> {
    let name = format!("napi/{interface}-");
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pid = |entry: fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let comm = fs::read_to_string(entry.path().join("comm")).ok()?;
        comm.starts_with(&name).then_some(pid)
    };
    processes.filter_map(pid).collect()
}
