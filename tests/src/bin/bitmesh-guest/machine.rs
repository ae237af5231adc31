//! The guest as a machine: file systems, modules, power.

use std::{
    env,
    fs::{self, File},
    io,
};

use anyhow::{Context as _, Result};
use rustix::{
    io::Errno,
    mount::{MountFlags, mount},
    process::getpid,
    system::{RebootCommand, finit_module, reboot, uname},
};

/// Modules in the order in which they are loaded, by file name.
const MODULES: &str = "/modules";

/// The device of the serial line that the report goes to, from the kernel's command line.
pub const LINE_VARIABLE: &str = "BITMESH_REPORT";

/// Whether we are a machine's first process, and may do with it what we like.
pub fn is_ours() -> bool {
    getpid().is_init() && env::var_os(LINE_VARIABLE).is_some()
}

/// The kernel's release.
pub fn release() -> String {
    uname().release().to_string_lossy().into_owned()
}

/// The first two numbers of the kernel's release.
pub fn version() -> Result<(u32, u32)> {
    let release = release();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => anyhow::bail!("a kernel that calls itself {release}"),
    }
}

/// Makes `/dev`; the kernel's own archive has a console there and no more.
pub fn mount_devices() -> io::Result<()> {
    mount_at("/dev", "devtmpfs")
}

/// Mounts what programs expect and loads the modules. The dataplane mounts bpffs itself.
pub fn prepare() -> Result<()> {
    for (path, kind) in [("/proc", "proc"), ("/sys", "sysfs"), ("/run", "tmpfs"), ("/tmp", "tmpfs")]
    {
        mount_at(path, kind).with_context(|| format!("mounting {path}"))?;
    }
    let mut modules = fs::read_dir(MODULES)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<Vec<_>>>()?;
    modules.sort();
    for module in modules {
        let file = File::open(&module)?;
        match finit_module(&file, c"", 0) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("loading {}", module.display()));
            }
        }
    }
    Ok(())
}

fn mount_at(path: &str, kind: &str) -> io::Result<()> {
    fs::create_dir_all(path)?;
    Ok(mount(kind, path, kind, MountFlags::empty(), None)?)
}

/// Ends the machine.
pub fn power_off() -> ! {
    if let Err(error) = reboot(RebootCommand::PowerOff) {
        eprintln!("error: the guest stays on: {error}");
    }
    loop {
        std::thread::park();
    }
}
