//! What an operator, a script or a driver does to ports and programs.

use std::{
    ffi::CString,
    fs, io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    netns::Namespace,
    topology::{FREELOADER_LAN, Topology, UPLINK},
};

/// Whether a program succeeds in a namespace.
pub fn run(namespace: &Namespace, program: &str, args: &[&str]) -> Result<bool> {
    let output = namespace.command(program)?.args(args).output().context(program.to_owned())?;
    Ok(output.status.success())
}

/// An interface's index.
pub fn interface_index(namespace: &Namespace, name: &str) -> Result<u32> {
    namespace.run(|| {
        let output = Command::new("ip").args(["-j", "link", "show", name]).output();
        let told: Value = serde_json::from_slice(&output?.stdout)?;
        let index = told.pointer("/0/ifindex").and_then(Value::as_u64).context("an index")?;
        Ok(index.try_into()?)
    })
}

/// Makes the freeloader's port anew with an index of choice.
pub fn recreate_with_index(topology: &Topology, index: u32) -> Result<()> {
    let Topology { edge, freeloader, .. } = topology;
    edge.delete(FREELOADER_LAN)?;
    let index = index.to_string();
    let new = ["link", "add", FREELOADER_LAN, "index", &index, "type", "veth"];
    let peer = ["peer", "name", UPLINK, "netns", freeloader.name()];
    ensure!(run(edge, "ip", &[&new[..], &peer].concat())?);
    edge.set_up(FREELOADER_LAN, true)?;
    freeloader.set_up(UPLINK, true)?;
    topology.address_freeloader_port()
}

/// Where the pins of a provider's instance are.
pub fn pins_of(instance: &str) -> PathBuf {
    let room = PathBuf::from("/sys/fs/bpf/bitmesh").join(instance);
    let mut layouts = fs::read_dir(&room).into_iter().flatten().flatten();
    let layout = layouts.find(|entry| entry.file_name().to_string_lossy().starts_with('v'));
    layout.map_or(room, |layout| layout.path())
}

/// What `bpftool link detach` does, by the link's pin.
pub fn detach_link(pin: &Path) -> Result<()> {
    const BPF_OBJ_GET: libc::c_long = 7;
    const BPF_LINK_DETACH: libc::c_long = 34;
    let path = CString::new(pin.to_str().context("a path")?)?;
    let call = |command: libc::c_long, attribute: &mut [u64; 15]| {
        let size = size_of_val(attribute);
        // SAFETY: the attribute and what it points to outlive the call.
        let done = unsafe { libc::syscall(libc::SYS_bpf, command, attribute.as_mut_ptr(), size) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done) }
    };
    let mut attribute = [0; 15];
    attribute[0] = path.as_ptr() as u64;
    let link = call(BPF_OBJ_GET, &mut attribute).context("opening a link")?;
    // SAFETY: the call before has made it, and nobody else has it.
    let link = unsafe { OwnedFd::from_raw_fd(link.try_into()?) };
    let mut attribute = [0; 15];
    attribute[0] = link.as_raw_fd().try_into()?;
    call(BPF_LINK_DETACH, &mut attribute).context("detaching a link")?;
    Ok(())
}

/// A field of every thread's status.
pub fn of_threads(pid: u32, field: &str) -> Result<Vec<String>> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))?;
    tasks
        .map(|task| {
            let status = fs::read_to_string(task?.path().join("status"))?;
            let line = status.lines().find_map(|line| line.strip_prefix(field));
            Ok(line.with_context(|| field.to_owned())?.trim().to_owned())
        })
        .collect()
}
