//! Judges the machine: kernel, rights, clock, memory.

use super::finding::Finding;

/// What was read of the machine. What could not be read is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Machine {
    /// As `uname -r` has it.
    pub(super) release: String,
    /// Major and minor number of the kernel.
    pub(super) version: Option<(u32, u32)>,
    /// Whether the kernel describes its types.
    pub(super) btf: bool,
    /// `net.core.bpf_jit_enable`: 0 is off.
    pub(super) jit: Option<u32>,
    /// Whether /sys/fs/bpf is one.
    pub(super) bpffs: bool,
    /// Capabilities that loading needs and this process has not.
    pub(super) missing_capabilities: Vec<&'static str>,
    /// Whether the kernel made the programs machine code, or why it does not take them; `None` where
    /// it was not asked.
    pub(super) programs: Option<Result<bool, String>>,
    /// `kernel.unprivileged_bpf_disabled`: 0 lets everybody load programs.
    pub(super) unprivileged_bpf_disabled: Option<u32>,
    /// Whether it forwards IPv4.
    pub(super) forwards_v4: Option<bool>,
    /// Whether it forwards IPv6.
    pub(super) forwards_v6: Option<bool>,
    /// Whether something keeps the clock right.
    pub(super) clock_synchronised: Option<bool>,
    /// Memory that could be taken, in octets.
    pub(super) memory_octets: Option<u64>,
    /// What the station table takes, in octets.
    pub(super) table_octets: u64,
}

/// The oldest kernel that is supported, and the first with tcx links.
const KERNEL_FLOOR: (u32, u32) = (6, 1);
const KERNEL_WITH_TCX: (u32, u32) = (6, 6);
/// A table that takes more than one part in so many of the memory is worth a word.
const MEMORY_SHARE: u64 = 4;

pub(super) fn judge(machine: &Machine) -> Vec<Finding> {
    vec![
        kernel(machine),
        tcx(machine),
        btf(machine),
        jit(machine),
        rights(machine),
        bpffs(machine),
        programs(machine),
        unprivileged(machine),
        forwarding("forwarding-v4", "IPv4", "net.ipv4.ip_forward", machine.forwards_v4),
        forwarding("forwarding-v6", "IPv6", "net.ipv6.conf.all.forwarding", machine.forwards_v6),
        clock(machine),
        memory(machine),
    ]
}

fn kernel(machine: &Machine) -> Finding {
    let seen = format!("Linux {}", machine.release);
    match machine.version {
        Some(version) if version < KERNEL_FLOOR => Finding::failure("kernel", seen)
            .advice("BitMesh needs Linux 6.1 or newer: install a newer kernel"),
        Some(_) => Finding::ok("kernel", seen),
        None => Finding::note("kernel", format!("{seen}, of unknown version"))
            .advice("BitMesh needs Linux 6.1 or newer"),
    }
}

fn tcx(machine: &Machine) -> Finding {
    match machine.version {
        Some(version) if version >= KERNEL_WITH_TCX => {
            Finding::ok("tcx", "programs at TC are held by links")
        }
        _ => Finding::note("tcx", "no tcx before Linux 6.6: programs at TC are filters of clsact")
            .advice("who deletes clsact from a port takes the meter off; Linux 6.6 has links"),
    }
}

fn btf(machine: &Machine) -> Finding {
    if machine.btf {
        Finding::ok("btf", "/sys/kernel/btf/vmlinux is there")
    } else {
        Finding::note("btf", "no /sys/kernel/btf/vmlinux")
            .advice("the programs load without it; tools that look into them need it")
    }
}

/// The programs themselves are the proof: the sysctl is seen only by root, outside of network
/// namespaces, and is there without a JIT for this processor too.
fn jit(machine: &Machine) -> Finding {
    match (&machine.programs, machine.jit) {
        (Some(Ok(true)), _) => Finding::ok("jit", "the programs become machine code"),
        (Some(Ok(false)), _) | (_, Some(0)) => {
            Finding::warning("jit", "the programs are interpreted: every frame takes longer")
                .advice(
                    "`sysctl -w net.core.bpf_jit_enable=1`; without that file, take a kernel with \
                 CONFIG_BPF_JIT",
                )
        }
        _ => Finding::unchecked("jit", "loading programs needs root"),
    }
}

fn rights(machine: &Machine) -> Finding {
    if machine.missing_capabilities.is_empty() {
        return Finding::ok("rights", "may load programs");
    }
    let seen = format!("may not load programs: no {}", machine.missing_capabilities.join(", "));
    Finding::note("rights", seen)
        .advice("`bitmesh sell` needs root, or the service CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON")
}

fn bpffs(machine: &Machine) -> Finding {
    if machine.bpffs {
        Finding::ok("bpffs", "mounted at /sys/fs/bpf")
    } else {
        Finding::note("bpffs", "not mounted at /sys/fs/bpf")
            .advice("`bitmesh sell` mounts it; to have it before: `mount -t bpf bpf /sys/fs/bpf`")
    }
}

fn programs(machine: &Machine) -> Finding {
    match &machine.programs {
        Some(Ok(_)) => Finding::ok("programs", "the kernel takes them"),
        Some(Err(why)) => Finding::failure("programs", why)
            .advice("report this with `uname -r`; the kernel's verifier differs from tested ones"),
        None => Finding::unchecked("programs", "loading them needs root"),
    }
}

fn unprivileged(machine: &Machine) -> Finding {
    let id = "unprivileged-bpf";
    match machine.unprivileged_bpf_disabled {
        Some(0) => Finding::warning(id, "every user may load programs")
            .advice("`sysctl -w kernel.unprivileged_bpf_disabled=1`"),
        Some(_) => Finding::ok(id, "only privileged users may load programs"),
        None => Finding::unchecked(id, "kernel.unprivileged_bpf_disabled can't be read"),
    }
}

fn forwarding(id: &str, version: &str, sysctl: &str, on: Option<bool>) -> Finding {
    match on {
        Some(true) => Finding::ok(id, format!("{version} is forwarded")),
        Some(false) => Finding::warning(id, format!("{version} is not forwarded")).advice(format!(
            "`sysctl -w {sysctl}=1` once it is metered (docs/OPERATING.md has the daemon's unit do it), \
             unless this box bridges or {version} is not sold"
        )),
        None => Finding::note(id, format!("this kernel has no {version}"))
            .advice(format!("{version} can't be sold")),
    }
}

fn clock(machine: &Machine) -> Finding {
    match machine.clock_synchronised {
        Some(true) => Finding::ok("clock", "synchronised"),
        Some(false) => Finding::warning("clock", "the kernel says that nothing synchronises it")
            .advice(
                "run an NTP client (systemd-timesyncd, chrony): offers carry times, and a wrong \
                 clock makes subscribers refuse them",
            ),
        None => Finding::note("clock", "the kernel does not tell whether it is synchronised"),
    }
}

fn memory(machine: &Machine) -> Finding {
    let table = mebibytes(machine.table_octets);
    let Some(free) = machine.memory_octets else {
        return Finding::note(
            "memory",
            format!("free memory can't be read; the table takes {table}"),
        );
    };
    let seen = format!("the station table takes {table} of {} that are free", mebibytes(free));
    if machine.table_octets > free {
        Finding::failure("memory", seen).advice("take a smaller --table-slots, or add memory")
    } else if machine.table_octets > free / MEMORY_SHARE {
        Finding::warning("memory", seen).advice("a smaller --table-slots leaves room for the rest")
    } else {
        Finding::ok("memory", seen)
    }
}

fn mebibytes(octets: u64) -> String {
    format!("{} MiB", octets >> 20)
}

#[cfg(test)]
mod tests {
    use super::{super::finding::Level, *};

    fn good() -> Machine {
        Machine {
            release: "6.6.1".into(),
            version: Some((6, 6)),
            btf: true,
            jit: Some(1),
            bpffs: true,
            missing_capabilities: Vec::new(),
            programs: Some(Ok(true)),
            unprivileged_bpf_disabled: Some(2),
            forwards_v4: Some(true),
            forwards_v6: Some(true),
            clock_synchronised: Some(true),
            memory_octets: Some(1 << 30),
            table_octets: 1 << 24,
        }
    }

    fn level(machine: &Machine, id: &str) -> Level {
        judge(machine).into_iter().find(|finding| finding.id == id).unwrap().level
    }

    #[test]
    fn a_good_machine_is_good_and_has_nothing_to_do() {
        for finding in judge(&good()) {
            assert_eq!((finding.level, &finding.advice), (Level::Ok, &None), "{finding:?}");
        }
    }

    #[test]
    fn kernels_are_judged_on_both_sides_of_the_floor_and_of_tcx() {
        let at = |major, minor| Machine { version: Some((major, minor)), ..good() };
        assert_eq!(level(&at(6, 0), "kernel"), Level::Failure);
        assert_eq!(level(&at(5, 19), "kernel"), Level::Failure);
        assert_eq!(level(&at(6, 1), "kernel"), Level::Ok);
        assert_eq!(level(&at(6, 5), "tcx"), Level::Note);
        assert_eq!(level(&at(6, 6), "tcx"), Level::Ok);
        assert_eq!(level(&at(7, 0), "tcx"), Level::Ok);
    }

    #[test]
    fn each_thing_that_is_wrong_is_said_with_what_to_do() {
        for (machine, id, expected) in [
            (Machine { version: None, ..good() }, "kernel", Level::Note),
            (Machine { btf: false, ..good() }, "btf", Level::Note),
            (Machine { programs: Some(Ok(false)), ..good() }, "jit", Level::Warning),
            (Machine { programs: None, jit: Some(0), ..good() }, "jit", Level::Warning),
            (Machine { programs: None, ..good() }, "jit", Level::Note),
            (Machine { missing_capabilities: vec!["CAP_BPF"], ..good() }, "rights", Level::Note),
            (Machine { bpffs: false, ..good() }, "bpffs", Level::Note),
            (Machine { programs: None, ..good() }, "programs", Level::Note),
            (Machine { programs: Some(Err("no".into())), ..good() }, "programs", Level::Failure),
            (
                Machine { unprivileged_bpf_disabled: Some(0), ..good() },
                "unprivileged-bpf",
                Level::Warning,
            ),
            (Machine { forwards_v4: Some(false), ..good() }, "forwarding-v4", Level::Warning),
            (Machine { forwards_v6: None, ..good() }, "forwarding-v6", Level::Note),
            (Machine { clock_synchronised: Some(false), ..good() }, "clock", Level::Warning),
        ] {
            let finding = judge(&machine).into_iter().find(|finding| finding.id == id).unwrap();
            assert_eq!(finding.level, expected, "{finding:?}");
            assert!(finding.advice.is_some(), "{finding:?}");
        }
        // Switched off after the proof, or unseen: what counts is what became of the programs.
        assert_eq!(level(&Machine { jit: None, ..good() }, "jit"), Level::Ok);
    }

    #[test]
    fn a_table_may_take_a_quarter_of_the_free_memory_before_it_is_worth_a_word() {
        let with = |table_octets| Machine { table_octets, ..good() };
        assert_eq!(level(&with(1 << 28), "memory"), Level::Ok);
        assert_eq!(level(&with((1 << 28) + 1), "memory"), Level::Warning);
        assert_eq!(level(&with(1 << 30), "memory"), Level::Warning);
        assert_eq!(level(&with((1 << 30) + 1), "memory"), Level::Failure);
    }
}
