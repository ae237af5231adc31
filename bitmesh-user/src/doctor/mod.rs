//! The doctor: looks at a machine and its ports and says what stands in the way of metering, and
//! what to do about it.
//!
//! It may read /proc, /sys, netlink and the list of loaded programs. It never attaches, pins, mounts
//! or sets anything. Facts are read in one place (`read`) and judged in others (`machine`, `port`);
//! which hook a port gets is the dataplane's own decision, asked for here.

mod ethtool;
mod finding;
mod machine;
mod port;
mod read;
mod show;

pub use self::finding::{Finding, Level, PortHook, Report};
use self::port::refused;
use crate::dataplane::{
    self, Choice, DEFAULT_TABLE_SLOTS, DataplaneError, Flowtable, HookKind, Port, UploadHook,
};

/// Kinds of virtual interfaces that no station can be on.
const NO_STATIONS: [&str; 4] = ["dummy", "ifb", "nlmon", "vrf"];

/// What to look at, and what `bitmesh sell` would be told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Ports of stations; none looks at every port.
    pub lan: Vec<String>,
    /// Ports of the internet.
    pub wan: Vec<String>,
    /// How uploads are to be metered.
    pub upload_hook: UploadHook,
    /// Whose pins may be in place.
    pub instance: String,
    /// Slots of the station table.
    pub table_slots: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            lan: Vec::new(),
            wan: Vec::new(),
            upload_hook: UploadHook::default(),
            instance: "sell".to_owned(),
            table_slots: DEFAULT_TABLE_SLOTS,
        }
    }
}

/// Looks at everything.
pub fn examine(options: &Options) -> Result<Report, DataplaneError> {
    let mut findings = machine::judge(&read::machine(options.table_slots));
    let flowtables = dataplane::flowtables().ok();
    let mut lines = Vec::new();
    if options.lan.is_empty() {
        for port in Port::all()? {
            if port.kind.as_deref().is_some_and(|kind| NO_STATIONS.contains(&kind)) {
                continue;
            }
            let choice = choice(&port, options);
            lines.push(port::line(&read::port(port)?, &choice));
        }
    }
    let mut ports = Vec::new();
    for name in &options.lan {
        match Port::find(name) {
            Ok(found) => {
                let choice = choice(&found, options);
                let facts = read::port(found)?;
                findings.extend(port::judge(&facts, &choice, flowtables.as_deref()));
                findings.extend(port::siblings(&facts, &options.lan, &options.wan));
                lines.push(port::line(&facts, &choice));
                ports.push(facts.port);
            }
            Err(error) => findings.push(refused("hook", &error.to_string()).of_port(name)),
        }
    }
    if let Err(error) = dataplane::check_together(&ports) {
        // What is wrong with one port alone was said above.
        let alone = ports.iter().any(|port| choice(port, options).is_err());
        findings.extend((!alone).then(|| refused("ports", &error.to_string())));
    }
    for name in &options.wan {
        findings.push(wan(name, &options.lan, flowtables.as_deref()).of_port(name));
    }
    Ok(Report::new(findings, lines))
}

/// The report as people read it.
pub fn table(report: &Report) -> String {
    show::report(report)
}

fn choice(port: &Port, options: &Options) -> Result<Choice, String> {
    dataplane::choose(port, options.upload_hook, &options.instance)
        .map_err(|error| error.to_string())
}

fn wan(name: &str, lan: &[String], flowtables: Option<&[Flowtable]>) -> Finding {
    if lan.iter().any(|lan| lan == name) {
        return Finding::failure("wan", "is a LAN port too")
            .advice("stations and the internet need two ports; name another as --wan");
    }
    match Port::find(name) {
        // A modem or a tunnel has no MAC addresses, and needs none.
        Ok(_) | Err(DataplaneError::NotEthernet { .. }) => {}
        Err(error) => return refused("wan", &error.to_string()),
    }
    let in_hardware = |table: &&Flowtable| table.hardware && table.covers(name);
    match flowtables.and_then(|tables| tables.iter().find(in_hardware)) {
        Some(table) => Finding::failure("wan", "devices forward known flows by themselves").advice(
            format!("take `flags offload` out of flowtable {} in {}", table.name, table.table),
        ),
        None => Finding::ok("wan", "there, and not metered"),
    }
}

fn hook_name(hook: HookKind) -> String {
    match hook {
        HookKind::XdpNative => "xdp-native",
        HookKind::XdpGeneric => "xdp-generic",
        HookKind::Tcx => "tcx",
        HookKind::Clsact => "clsact",
    }
    .to_owned()
}
