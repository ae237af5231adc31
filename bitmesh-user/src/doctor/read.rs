//! Reads the facts. Nothing here changes anything, and what can't be read stays unknown.

use std::{fs, path::Path};

use bitmesh_common::StationSlot;

use super::{ethtool, machine::Machine, port::PortFacts};
use crate::dataplane::{self, DataplaneError, Port};

/// Type information of the kernel.
const BTF: &str = "/sys/kernel/btf/vmlinux";

pub(super) fn machine(table_slots: u32) -> Machine {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let missing_capabilities =
        dataplane::missing_capabilities().unwrap_or_else(|_| vec!["any that can be read"]);
    let privileged = missing_capabilities.is_empty();
    let slot_octets = u64::try_from(size_of::<StationSlot>()).unwrap_or(u64::MAX);
    Machine {
        version: version(&release),
        release,
        btf: Path::new(BTF).exists(),
        jit: sysctl("net/core/bpf_jit_enable"),
        bpffs: dataplane::has_bpffs(),
        programs: privileged.then(|| dataplane::try_programs().map_err(|error| error.to_string())),
        missing_capabilities,
        unprivileged_bpf_disabled: sysctl("kernel/unprivileged_bpf_disabled"),
        forwards_v4: sysctl("net/ipv4/ip_forward").map(|on| on != 0),
        forwards_v6: sysctl("net/ipv6/conf/all/forwarding").map(|on| on != 0),
        clock_synchronised: clock_synchronised(),
        memory_octets: fs::read_to_string("/proc/meminfo").ok().as_deref().and_then(available),
        table_octets: slot_octets.saturating_mul(u64::from(table_slots)),
    }
}

pub(super) fn port(port: Port) -> Result<PortFacts, DataplaneError> {
    let aggregate = matches!(port.kind.as_deref(), Some("bond" | "team"));
    let lower = port.lower.as_ref().map(|lower| &lower.name);
    let through = if aggregate { port.ports.iter().collect() } else { Vec::from_iter(lower) };
    let bridge = port.master.as_ref().filter(|master| master.kind == "bridge");
    let mut siblings =
        bridge.map_or(Ok(Vec::new()), |b| Port::find(&b.interface.name).map(|b| b.ports))?;
    siblings.retain(|name| *name != port.name);
    Ok(PortFacts {
        siblings,
        below: through.into_iter().map(|name| Port::find(name)).collect::<Result<_, _>>()?,
        driver: ethtool::driver(&port.name)
            .map_err(DataplaneError::system(format!("asking for the driver of {}", port.name)))?,
        rings: dataplane::rings(port.index),
        others: dataplane::tc_programs(&port).ok(),
        port,
    })
}

/// `6.1.0-18-amd64` as (6, 1).
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn sysctl(name: &str) -> Option<u32> {
    fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?.trim().parse().ok()
}

/// Octets that could be taken without swapping, of /proc/meminfo.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1_024)
}

/// Whether NTP, or whatever sets the clock, says that it is right (adjtimex(2)).
fn clock_synchronised() -> Option<bool> {
    // SAFETY: a timex is plain data; all zero, `modes` above all, only asks.
    let mut times: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the struct outlives the call.
    let state = unsafe { libc::adjtimex(&raw mut times) };
    (state >= 0).then_some(times.status & libc::STA_UNSYNC == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read_as_distributions_write_them() {
        assert_eq!(version("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(version("6.18.44"), Some((6, 18)));
        assert_eq!(version("7.0-rc1"), Some((7, 0)));
        assert_eq!(version("next"), None);
    }

    #[test]
    fn memory_is_what_is_available_not_what_is_free() {
        let meminfo = "MemTotal: 100 kB\nMemFree: 1 kB\nMemAvailable:       8 kB\n";
        assert_eq!(available(meminfo), Some(8_192));
        assert_eq!(available("MemTotal: 100 kB\n"), None);
    }

    #[test]
    fn this_machine_is_read() {
        let machine = machine(1 << 16);
        assert!(machine.version.is_some() && machine.memory_octets.is_some());
        assert_eq!(machine.table_octets, 65_536 * size_of::<StationSlot>() as u64);
        assert!(machine.clock_synchronised.is_some());
    }
}
