//! A real systemd as the first process of a box: a namespace of processes and mounts inside of one of
//! networks. It sees the machine's files, and what it and its units write is gone with it.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use tempfile::NamedTempFile;

use crate::{
    daemon::{bitmesh, eventually},
    netns::Namespace,
    sweep::own_name,
    world::instance,
};

/// Time that it has to come up, or to bring a unit to where it is wanted.
pub const WAIT: Duration = Duration::from_secs(30);
/// Where the distribution's programs and units are.
const SYSTEMD: &str = "/lib/systemd";
/// Where the program is that a release would have.
pub const PROGRAM: &str = "/run/program/bitmesh";
/// Units that a service waits for, of which a box of namespaces has nothing to wait for.
const STUBS: [&str; 8] = [
    "basic",
    "local-fs",
    "multi-user",
    "network-online",
    "network",
    "shutdown",
    "sockets",
    "sysinit",
];
/// Units of the distribution that are copied; it knows no others, and starts none.
const JOURNAL: [&str; 2] = ["systemd-journald.service", "systemd-journald.socket"];
/// What it is asked to start.
const TARGET: &str = "[Unit]\nDefaultDependencies=no\nWants=systemd-journald.service\n";

/// Goes into a control group of its own, then makes the box and becomes systemd. All files are the machine's, and
/// what is written to them goes to memory: a systemd clears folders as if the machine had just started.
const BOOT: &str = r#"
set -eu
mount -t tmpfs tmpfs /mnt
mkdir -p /mnt/upper /mnt/work /mnt/root /mnt/groups
mount -t cgroup2 cgroup2 /mnt/groups
mkdir "/mnt/groups/$1"
echo $$ > "/mnt/groups/$1/cgroup.procs"
umount /mnt/groups
exec unshare --cgroup bash -c "$2" bash "$3" "$4" "$5"
"#;
const BOX: &str = r#"
set -eu
mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work overlay /mnt/root
cd /mnt/root
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o bind,remount,ro proc/sys
mount --bind /proc/sys/net proc/sys/net
mount --rbind /dev dev
mount --rbind /sys sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
for fresh in run tmp var/tmp etc/systemd/system lib/systemd/system-generators; do
  mount -t tmpfs -o mode=0755 tmpfs $fresh
done
mount --bind "$3" root
mkdir -p .machine run/units run/program run/systemd/journald.conf.d
cp "$1"/* run/units
cp "$2" run/program/bitmesh
printf '[Journal]\nStorage=volatile\nReadKMsg=no\nAudit=no\n' > run/systemd/journald.conf.d/box.conf
pivot_root . .machine
cd /
umount --lazy .machine
mount --make-rshared /
exec env -i container=bitmesh PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
  SYSTEMD_UNIT_PATH=/run/units:/etc/systemd/system SYSTEMD_LOG_TARGET=journal \
  /lib/systemd/systemd --system --unit=box.target
"#;
/// Removes the control groups, once nothing is in them any more.
const SWEEP: &str = r#"
mount -t cgroup2 cgroup2 /mnt
for _ in $(seq 50); do
  find "/mnt/$1" -depth -type d -exec rmdir {} + && exit
  sleep 0.1
done
"#;

/// It, running. It and all that it started end when this is dropped, and what they wrote is gone.
pub struct Systemd<'a> {
    namespace: &'a Namespace,
    console: NamedTempFile,
    group: String,
    process: Child,
    init: u32,
}

impl<'a> Systemd<'a> {
    /// Boots one whose `/root` is this folder, and waits until it takes commands.
    pub fn boot(namespace: &'a Namespace, root: &Path) -> Result<Self> {
        ensure!(Path::new(SYSTEMD).join("systemd").exists(), "no systemd; run `cargo xtask setup`");
        let units = tempfile::Builder::new().prefix(&own_name("systemd-")).tempdir()?;
        fs::write(units.path().join("box.target"), TARGET)?;
        for stub in STUBS {
            let path = units.path().join(format!("{stub}.target"));
            fs::write(path, "[Unit]\nDefaultDependencies=no\n")?;
        }
        for unit in JOURNAL {
            fs::copy(Path::new(SYSTEMD).join("system").join(unit), units.path().join(unit))?;
        }
        let console = NamedTempFile::new()?;
        let group = instance();
        let mut command = namespace.command("unshare")?;
        command
            .args(["--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child"])
            .args(["bash", "-c", BOOT, "bash", &group, BOX])
            .args([units.path(), &bitmesh()?, root])
            .stdin(Stdio::null())
            .stdout(console.reopen()?)
            .stderr(console.reopen()?);
        let mut booted = Self { namespace, console, group, process: command.spawn()?, init: 0 };
        let id = booted.process.id();
        let children = format!("/proc/{id}/task/{id}/children");
        booted.init = eventually("the first process", WAIT, || {
            let told = fs::read_to_string(&children).with_context(|| booted.console())?;
            Ok(told.split_whitespace().next().and_then(|first| first.parse().ok()))
        })?;
        eventually("systemd", WAIT, || {
            let output = booted.command("systemctl")?.arg("is-system-running").output()?;
            Ok((output.stdout.trim_ascii() == b"running").then_some(()))
        })
        .with_context(|| booted.console())?;
        Ok(booted)
    }

    /// A program that will run on the box.
    pub fn command(&self, program: &str) -> Result<Command> {
        let mut command = self.namespace.command("nsenter")?;
        command.args(["--target", &self.init.to_string()]);
        command.args(["--mount", "--pid", "--cgroup", "--ipc", "--uts", "--", program]);
        command.stdin(Stdio::null());
        Ok(command)
    }

    /// Runs commands of a shell on the box; gives what they print.
    pub fn sh(&self, script: &str) -> Result<String> {
        let here = format!("cd /\n{script}");
        let output = self.command("bash")?.args(["-euo", "pipefail", "-c", &here]).output()?;
        let said = |octets: &[u8]| String::from_utf8_lossy(octets).into_owned();
        let (out, err) = (said(&output.stdout), said(&output.stderr));
        ensure!(output.status.success(), "{script}\n{out}{err}\n{}", self.journal());
        Ok(out)
    }

    /// A property of a unit.
    pub fn property(&self, unit: &str, name: &str) -> Result<String> {
        Ok(self.sh(&format!("systemctl show --value --property={name} {unit}"))?.trim().to_owned())
    }

    /// Waits until the journal has something, which comes there by other processes than its unit's.
    pub fn wait_for(&self, text: &str) -> Result<()> {
        eventually(text, WAIT, || Ok(self.journal().contains(text).then_some(())))
            .with_context(|| self.journal())
    }

    /// All that is in the journal.
    pub fn journal(&self) -> String {
        let output = self
            .command("journalctl")
            .and_then(|mut command| Ok(command.args(["--no-pager", "--output=cat"]).output()?));
        output.map_or_else(
            |error| error.to_string(),
            |output| String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    }

    /// What was said before it was there.
    fn console(&self) -> String {
        fs::read_to_string(self.console.path()).unwrap_or_default()
    }
}

impl Drop for Systemd<'_> {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = eventually("the box's end", WAIT, || {
            Ok((!Path::new(&format!("/proc/{}", self.init)).exists()).then_some(()))
        });
        let mut sweep = Command::new("unshare");
        sweep.args(["--mount", "bash", "-c", SWEEP, "bash", &self.group]);
        let _ = sweep.stderr(Stdio::null()).status();
    }
}
